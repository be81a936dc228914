"""A cluster in this process: real gRPC servers and services, shards in memory, no disk, no LAS.

For tests of programs that append and read, and of what stands before the cores: it answers like a
cluster, and what would be chance elsewhere (a failover, a lost answer, a hanging peer) is a call.

    async with MemoryCluster(peers=3) as cluster:
        cluster.create_log("orders", shards=2)
        async with peerd.aio.connect(cluster.addresses) as client: ...

Must not: be taken for the protocol. Batches reach all peers at once and nothing is ever lost here;
what must hold when machines die is tested against the real parts.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import NoReturn, Self

import grpc.aio

from las.v1 import log_admin_pb2, log_admin_pb2_grpc, shard_map_pb2
from peerd.core import refusals
from peerd.core.batch import BatchHeader, PlacedBatch
from peerd.core.effects import AppendAccepted
from peerd.core.errors import Reason, Refusal, Taken
from peerd.core.ids import (
    BootId,
    Epoch,
    NodeName,
    Offset,
    ProcessId,
    ProducerId,
    ReplicaId,
    RequestId,
    ShardId,
    StoreId,
)
from peerd.core.shard_map import Compression, Parent, Plan, Segment, Shard, Split
from peerd.transport import map_codec
from peerd.transport.access import Access
from peerd.transport.authz import AuthorizationInterceptor
from peerd.transport.caller_limits import CallerLimits, CallerUse
from peerd.transport.host_api import AppendOutcome, Corrupt, HolderUnavailable
from peerd.transport.internal_logs import is_internal
from peerd.transport.limits import EdgeLimits
from peerd.transport.log_service import LogService, add_log_service
from peerd.transport.map_cache import MapCache, MapChange
from peerd.transport.map_codec import LogEntry, NodeEntry
from peerd.transport.map_service import add_map_service
from peerd.transport.options import CHANNEL_OPTIONS, SERVER_OPTIONS
from peerd.transport.status import Context, Refused, refusal
from peerd.transport.typed_errors import TypedErrors

CLUSTER = "memory"
KEY_HASHES = 1 << 64
ACKS = 2
NO_OFFSET = Offset(0)


@dataclass(slots=True)
class MemoryShard:
    """What the whole cluster knows of one shard. `batches` are by epoch, all committed."""

    entry: Shard
    batches: dict[Epoch, list[PlacedBatch]] = field(default_factory=dict)
    end: Offset = NO_OFFSET
    taken: dict[tuple[ProducerId, int], AppendAccepted] = field(default_factory=dict)
    expected: dict[ProducerId, int] = field(default_factory=dict)


class MemoryHost:
    """One peer's `ShardHost`. What it should do wrong is set by the test."""

    def __init__(self, cluster: "MemoryCluster", me: ProcessId, cache: MapCache) -> None:
        self.me = me
        self.cache = cache
        self.space_in_reserve = False
        self.refuse_next: deque[Refusal] = deque()
        """Answers for the next appends, instead of taking them."""
        self.lose_next = 0
        """So many of the next appends are taken, and answered as if nobody knew."""
        self.on_append: Callable[[BatchHeader], None] = lambda _header: None
        """Hears of each append that comes to this peer's shards, before anything is done."""
        self.holding: list[Callable[[], None]] | None = None
        """If a list: appends are taken, but their answers wait in it until `release`."""
        self.primary_of: set[ShardId] = set()
        self.damaged: set[tuple[ShardId, Epoch]] = set()
        """Segments whose bytes fail their checksum in this store."""
        self.lacks: set[tuple[ShardId, Epoch]] = set()
        """Segments that this store does not have."""
        self.reachable = True
        self._held = asyncio.Event()
        self._cluster = cluster
        self._changed: dict[ShardId, asyncio.Event] = {}
        cache.subscribe(self._map_changed)

    async def until_held(self, count: int) -> None:
        """Returns when `count` answers are held back."""
        while len(self.holding or ()) < count:
            await self._held.wait()
            self._held.clear()

    def release(self) -> None:
        """Gives the answers that were held back."""
        held, self.holding = self.holding or [], None
        for answer in held:
            answer()

    def _map_changed(self, change: MapChange) -> None:
        for shard in change.shards:
            self.wake(shard)

    def wake(self, shard: ShardId) -> None:
        """Tells who waits for the shard that it moved."""
        event = self._changed.pop(shard, None)
        if event is not None:
            event.set()

    # -------------------------------------------------------------------------- the seam

    def append(
        self,
        shard: ShardId,
        header: BatchHeader,
        payload: bytes,
        expected_offset: int | None,
        done: Callable[[AppendOutcome], None],
    ) -> None:
        """See `ShardHost`."""
        self.on_append(header)
        if self.refuse_next:
            done(self.refuse_next.popleft())
            return
        outcome = self._order(shard, header, payload, expected_offset)
        if self.lose_next:
            self.lose_next -= 1
            outcome = lost(shard)
        if self.holding is not None:
            self.holding.append(lambda: done(outcome))
            self._held.set()
        else:
            done(outcome)

    def is_primary(self, shard: ShardId) -> bool:
        """See `ShardHost`."""
        return shard in self.primary_of

    def committed(self, shard: ShardId) -> tuple[Epoch, Offset] | None:
        """See `ShardHost`."""
        known = self._cluster.shards.get(shard)
        if known is None or self.me.replica not in known.entry.open.plan.replicas:
            return None
        return known.entry.open.epoch, known.end

    async def linearizable_tail(self, shard: ShardId) -> tuple[Epoch, Offset] | Refusal:
        """See `ShardHost`."""
        if self.refuse_next:
            return self.refuse_next.popleft()
        known = self._cluster.shards[shard]
        if shard not in self.primary_of:
            return self._not_primary(known)
        return known.entry.open.epoch, known.end

    def segment_begin(self, shard: ShardId, epoch: Epoch) -> Offset | None:
        """See `ShardHost`."""
        entry = self._cluster.shards[shard].entry
        return entry.open.begin if entry.open.epoch == epoch else None

    def readable_limit(self, shard: ShardId, epoch: Epoch) -> Offset | None:
        """See `ShardHost`."""
        if (shard, epoch) in self.lacks:
            return None
        known = self._cluster.shards[shard]
        for segment in known.entry.sealed:
            if segment.epoch == epoch and self.me.replica in segment.holders:
                return segment.end
        if epoch == known.entry.open.epoch and self.me.replica in known.entry.open.plan.replicas:
            return known.end
        return None

    def commit_changed(self, shard: ShardId) -> asyncio.Event:
        """See `ShardHost`."""
        return self._changed.setdefault(shard, asyncio.Event())

    async def read(
        self, shard: ShardId, epoch: Epoch, from_offset: int, to_offset: int, bytes_max: int
    ) -> list[PlacedBatch]:
        """See `ShardHost`."""
        if (shard, epoch) in self.damaged:
            raise Corrupt(shard, epoch, Offset(from_offset), "checksum")
        found: list[PlacedBatch] = []
        for batch in self._cluster.shards[shard].batches.get(epoch, ()):
            if batch.end > from_offset and batch.base < to_offset:
                found.append(batch)
                bytes_max -= batch.header.payload_bytes
                if bytes_max <= 0:
                    break
        return found

    async def fetch(  # noqa: PLR0917 - the shape of the protocol
        self,
        holder: ReplicaId,
        shard: ShardId,
        epoch: Epoch,
        from_offset: int,
        to_offset: int,
        bytes_max: int,
    ) -> list[PlacedBatch]:
        """See `ShardHost`."""
        other = self._cluster.hosts[holder.peer]
        limit = other.readable_limit(shard, epoch)
        if not other.reachable or limit is None:
            raise HolderUnavailable(f"{holder.peer} has not got it")
        try:
            return await other.read(shard, epoch, from_offset, min(to_offset, limit), bytes_max)
        except Corrupt as error:
            raise HolderUnavailable(str(error)) from error

    async def find_time(self, shard: ShardId, epoch: Epoch, timestamp_ms: int) -> Offset:
        """See `ShardHost`."""
        batches = self._cluster.shards[shard].batches.get(epoch, ())
        for batch in batches:
            if batch.header.timestamp_ms >= timestamp_ms:
                return batch.base
        return batches[-1].end if batches else Offset(0)

    # -------------------------------------------------------------------------- ordering

    def _order(
        self, shard: ShardId, header: BatchHeader, payload: bytes, expected_offset: int | None
    ) -> AppendOutcome:
        known = self._cluster.shards[shard]
        if shard not in self.primary_of:
            return self._not_primary(known)
        if header.producer:
            before = known.taken.get((header.producer, header.first_sequence))
            if before is not None:
                return replace(before, duplicate=True)
        if known.entry.split is not None:
            return refusals.split(known.entry.split)
        if header.producer:
            expected = known.expected.get(header.producer, 0)
            if header.first_sequence != expected:
                return Refusal(
                    reason=Reason.SEQUENCE_GAP,
                    message=f"sequence {expected} is expected, not {header.first_sequence}",
                    next_sequence=expected,
                )
        if expected_offset is not None and expected_offset != known.end:
            return Refusal(
                reason=Reason.OFFSET_MISMATCH,
                message=f"the end of shard {shard} is {known.end}, not {expected_offset}",
                first_offset=known.end,
            )
        return self._place(known, header, payload)

    def _not_primary(self, known: MemoryShard) -> Refusal:
        primary = known.entry.open.plan.primary
        return Refusal(
            reason=Reason.NOT_PRIMARY,
            message=f"{self.me.peer} is not primary of shard {known.entry.shard}",
            leader=None if primary == self.me else primary,
            epoch=known.entry.open.epoch,
        )

    def _place(self, known: MemoryShard, header: BatchHeader, payload: bytes) -> AppendAccepted:
        header = replace(header, timestamp_ms=self._cluster.now_ms())
        batch = PlacedBatch(base=known.end, header=header, payload=payload)
        known.batches.setdefault(known.entry.open.epoch, []).append(batch)
        known.end = batch.end
        accepted = AppendAccepted(
            request=RequestId(0),
            shard=known.entry.shard,
            epoch=known.entry.open.epoch,
            base=batch.base,
            record_count=header.record_count,
            timestamp_ms=header.timestamp_ms,
            durable_on=known.entry.open.plan.voters[:ACKS],
        )
        if header.producer:
            known.taken[header.producer, header.first_sequence] = accepted
            known.expected[header.producer] = header.first_sequence + header.record_count
        for host in self._cluster.hosts.values():
            host.wake(known.entry.shard)
        return accepted


class MemoryLas(log_admin_pb2_grpc.LogAdminServiceServicer):
    """The part of the LAS that clients need: logs are created, listed and described."""

    def __init__(self, cluster: "MemoryCluster") -> None:
        self._cluster = cluster
        self.refuse_next: deque[Refused] = deque()
        self.descriptions = 0
        """How often a log was asked about."""
        self.described = asyncio.Event()

    async def CreateLog(
        self,
        request: log_admin_pb2.CreateLogRequest,
        context: Context,  # noqa: ARG002 - as the contract has it
    ) -> log_admin_pb2.CreateLogResponse:
        """See the proto."""
        if self.refuse_next:
            raise self.refuse_next.popleft()
        if request.name in self._cluster.logs:
            message = f"log {request.name!r} exists already: go on with it"
            raise Refused(refusal(Reason.LOG_EXISTS, message))
        log = self._cluster.create_log(request.name, shards=request.shards or 1)
        return log_admin_pb2.CreateLogResponse(log=map_codec.encode_log(log))

    async def create(self, name: str, timeout_s: float) -> None:  # noqa: ARG002 - see `InternalLogs`
        """An internal log, for a peer that needs it."""
        if self.refuse_next:
            raise self.refuse_next.popleft()
        if name not in self._cluster.logs:
            self._cluster.create_log(name)

    async def ListLogs(
        self,
        request: log_admin_pb2.ListLogsRequest,  # noqa: ARG002 - as the contract has it
        context: Context,  # noqa: ARG002 - as the contract has it
    ) -> log_admin_pb2.ListLogsResponse:
        """See the proto."""
        logs = sorted(self._cluster.logs.values(), key=lambda log: log.name)
        return log_admin_pb2.ListLogsResponse(
            logs=[map_codec.encode_log(log) for log in logs if not is_internal(log.name)]
        )

    async def DescribeLog(
        self,
        request: log_admin_pb2.DescribeLogRequest,
        context: Context,  # noqa: ARG002 - as the contract has it
    ) -> log_admin_pb2.DescribeLogResponse:
        """See the proto."""
        self.descriptions += 1
        self.described.set()
        log = self._cluster.logs.get(request.name)
        if log is None:
            raise Refused(refusal(Reason.UNKNOWN_LOG, f"there is no log {request.name!r}"))
        return log_admin_pb2.DescribeLogResponse(
            log=map_codec.encode_log(log),
            shards=[
                map_codec.encode_shard(self._cluster.shards[shard].entry)
                for shard in self._cluster.family_of(request.name)
            ],
        )

    async def SplitShard(
        self,
        request: log_admin_pb2.SplitShardRequest,
        context: Context,  # noqa: ARG002 - as the contract has it
    ) -> log_admin_pb2.SplitShardResponse:
        """See the proto; in the middle, wherever it was asked for."""
        known = self._cluster.shards.get(ShardId(request.shard))
        if known is None:
            raise Refused(refusal(Reason.UNKNOWN_SHARD, f"there is no shard {request.shard}"))
        split = known.entry.split
        children = self._cluster.split(request.shard) if split is None else split.children
        return log_admin_pb2.SplitShardResponse(children=children)

    async def _refuse(self, request: object, context: Context) -> NoReturn:  # noqa: ARG002
        raise Refused(refusal(Reason.NOT_SERVED_YET, "not served by a cluster in memory"))

    async def TrimShard(
        self,
        request: log_admin_pb2.TrimShardRequest,
        context: Context,  # noqa: ARG002 - as the contract has it
    ) -> log_admin_pb2.TrimShardResponse:
        """See the proto; a chunk is a batch here."""
        first = await self.trim(request.log, ShardId(request.shard), request.before_offset, 0.0)
        return log_admin_pb2.TrimShardResponse(first_offset=first)

    async def trim(self, log: str, shard: ShardId, before: int, timeout_s: float) -> int:  # noqa: ARG002 - see `LasDoor`
        """For a peer that passes a trim on."""
        known = self._cluster.shards.get(shard)
        if known is None or known.entry.log != log:
            raise Refused(refusal(Reason.UNKNOWN_SHARD, f"log {log!r} has no shard {shard}"))
        return self._cluster.trim(shard, before)

    AlterLog = DeleteLog = SwitchPrimary = RecoverShard = CreateInternalLog = _refuse


class _LoopbackChannels:
    """Plaintext channels between the peers of the process."""

    metadata: tuple[tuple[str, str], ...] = ()

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}

    def to(self, address: str) -> grpc.aio.Channel:
        """The channel to `address`."""
        if address not in self._channels:
            self._channels[address] = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        return self._channels[address]

    async def close(self) -> None:
        """Closes them all."""
        for channel in self._channels.values():
            await channel.close()


class MemoryCluster:
    """Peers `peer-1` … and one LAS node, each with a server of its own on loopback."""

    def __init__(self, *, peers: int = 3, limits: EdgeLimits | None = None) -> None:
        self.hosts: dict[NodeName, MemoryHost] = {}
        self.shards: dict[ShardId, MemoryShard] = {}
        self.logs: dict[str, LogEntry] = {}
        self.nodes: dict[NodeName, NodeEntry] = {}
        self.las = MemoryLas(self)
        self.las_address = ""
        self.bugs: list[Exception] = []
        self.access = Access(CLUSTER, plaintext=True)
        """Of all peers: who may do what to which log."""
        self.callers = CallerLimits()
        """Of each peer: what a caller may ask for; set before the start."""
        self.time_ms: int | None = None
        """The log's time, where a test wants to set it; the wall clock's if None."""
        self._names = [NodeName(f"peer-{number}") for number in range(1, peers + 1)]
        self._limits = limits or EdgeLimits()
        self._version = 0
        self._las_cache = MapCache(_clock_ms)
        self._channels = _LoopbackChannels()
        self._services: dict[NodeName, LogService] = {}
        self._servers: dict[str, grpc.aio.Server] = {}

    @property
    def addresses(self) -> list[str]:
        """`host:port` of the peers."""
        return [self.nodes[name].address for name in self._names]

    def now_ms(self) -> int:
        """The log's time in milliseconds."""
        return time.time_ns() // 1_000_000 if self.time_ms is None else self.time_ms

    async def __aenter__(self) -> Self:
        for name in self._names:
            await self._start_peer(name)
        server = self._server()
        log_admin_pb2_grpc.add_LogAdminServiceServicer_to_server(self.las, server)
        add_map_service(server, self._las_cache)
        self.las_address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        self._servers["las"] = server
        self.publish()
        return self

    async def __aexit__(self, *_: object) -> None:
        for service in self._services.values():
            service.close()
        await self._channels.close()
        for server in self._servers.values():
            await server.stop(None)

    def _server(self) -> grpc.aio.Server:
        guards = [
            AuthorizationInterceptor(CLUSTER, plaintext=True, guard=self.access),
            TypedErrors(self.bugs.append),
        ]
        return grpc.aio.server(interceptors=guards, options=SERVER_OPTIONS)

    async def _start_peer(self, name: NodeName) -> None:
        number = self._names.index(name) + 1
        cache = MapCache(_clock_ms)
        me = ProcessId(name, StoreId(f"{number:032x}"), BootId(f"{number:032x}"))
        host = MemoryHost(self, me, cache)
        service = LogService(
            host,
            cache,
            self._channels,
            self._limits,
            self.las,
            access=self.access,
            use=CallerUse(self.callers, self.access.refused),
        )
        server = self._server()
        add_log_service(server, service)
        add_map_service(server, cache)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self.hosts[name], self._services[name], self._servers[name] = host, service, server
        self.nodes[name] = NodeEntry(
            name=name, address=f"127.0.0.1:{port}", store=me.store, boot=me.boot
        )

    # -------------------------------------------------------------------------- what happens

    def create_log(
        self,
        name: str,
        *,
        shards: int = 1,
        compression: Compression = Compression.NONE,
        publish: bool = True,
    ) -> LogEntry:
        """Creates a log; shard i of it is led by peer 1 + i modulo the number of peers."""
        ids = [ShardId(len(self.shards) + 1 + index) for index in range(shards)]
        for index, shard in enumerate(ids):
            primary = self._names[index % len(self._names)]
            self.shards[shard] = MemoryShard(
                Shard(
                    shard=shard,
                    log=name,
                    key_hash_low=KEY_HASHES * index // shards,
                    key_hash_high=KEY_HASHES * (index + 1) // shards - 1,
                    open=Segment(epoch=Epoch(1), plan=self._plan(primary), begin=Offset(0)),
                )
            )
            self.hosts[primary].primary_of.add(shard)
        log = LogEntry(
            name=name,
            copies=len(self._names),
            acks=ACKS,
            shards=tuple(ids),
            compression=compression,
        )
        self.logs[name] = log
        if publish:
            self.publish()
        return log

    def set_compression(self, name: str, compression: Compression) -> None:
        """Changes how clients pack what they append to a log."""
        self.logs[name] = replace(self.logs[name], compression=compression)
        self.publish()

    def hand_over(self, shard: int, peer: str, *, publish: bool = True) -> None:
        """Makes `peer` primary under the next epoch; `publish` False lets the map lag behind."""
        known = self.shards[ShardId(shard)]
        entry = known.entry
        for host in self.hosts.values():
            host.primary_of.discard(entry.shard)
        sealed = entry.sealed
        if entry.open.begin is not None and known.end > entry.open.begin:
            done = replace(entry.open, end=known.end, holders=entry.open.plan.voters)
            sealed = (*sealed, done)
        opened = Segment(
            epoch=Epoch(entry.open.epoch + 1), plan=self._plan(NodeName(peer)), begin=known.end
        )
        known.entry = replace(entry, sealed=sealed, open=opened)
        self.hosts[NodeName(peer)].primary_of.add(entry.shard)
        if publish:
            self.publish()

    def family_of(self, log: str) -> tuple[ShardId, ...]:
        """A log's shards, each after the one that it came from by a split."""
        return self._las_cache.family_of(log)

    def split(self, shard: int, *, publish: bool = True) -> tuple[ShardId, ShardId]:
        """Splits a shard in the middle; the lower child stays where the parent is led, the upper
        one is led by the next peer. `publish` False lets the map lag behind.
        """
        known = self.shards[ShardId(shard)]
        leader = known.entry.open.plan.primary.peer
        self.hand_over(shard, leader, publish=False)
        entry = known.entry
        children = (ShardId(len(self.shards) + 1), ShardId(len(self.shards) + 2))
        middle = (entry.key_hash_low + entry.key_hash_high + 1) // 2
        split = Split(key_hash=middle, end=known.end, children=children)
        closed = replace(entry.open, plan=replace(entry.open.plan, closed=True))
        known.entry = replace(entry, open=closed, split=split)
        ranges = ((entry.key_hash_low, middle - 1), (middle, entry.key_hash_high))
        second = self._names[(self._names.index(leader) + 1) % len(self._names)]
        for child, (low, high), primary in zip(children, ranges, (leader, second), strict=True):
            begins = Segment(
                epoch=Epoch(closed.epoch + 1), plan=self._plan(primary), begin=Offset(0)
            )
            self.shards[child] = MemoryShard(
                Shard(
                    shard=child,
                    log=entry.log,
                    key_hash_low=low,
                    key_hash_high=high,
                    open=begins,
                    parent=Parent(shard=entry.shard, end=known.end),
                )
            )
            self.hosts[primary].primary_of.add(child)
        log = self.logs[entry.log]
        at = log.shards.index(entry.shard)
        shards = (*log.shards[:at], *children, *log.shards[at + 1 :])
        self.logs[entry.log] = replace(log, shards=shards)
        if publish:
            self.publish()
        return children

    def trim(self, shard: int, before: int, *, publish: bool = True) -> int:
        """Forgets the batches of a shard that end at or below `before`; the first offset left."""
        known = self.shards[ShardId(shard)]
        first = known.entry.trimmed_to
        for epoch, batches in known.batches.items():
            first = max([first, *(batch.end for batch in batches if batch.end <= before)])
            known.batches[epoch] = [batch for batch in batches if batch.end > before]
        known.entry = replace(known.entry, trimmed_to=first)
        if publish:
            self.publish()
        return first

    async def stop(self, peer: str) -> None:
        """Ends a peer's server at once; what it was asked stays unanswered."""
        name = NodeName(peer)
        self.hosts[name].reachable = False
        self.nodes[name] = replace(self.nodes[name], up=False)
        await self._servers.pop(name).stop(None)

    async def stop_las(self) -> None:
        """Ends the LAS's server at once."""
        await self._servers.pop("las").stop(None)

    def publish(self, *, to: Collection[str] | None = None) -> None:
        """Tells everybody the map as it is, or only those named: peers, and "las"."""
        self._version += 1
        update = shard_map_pb2.MapUpdate(
            cluster_id=CLUSTER,
            version=self._version,
            full=True,
            nodes=[map_codec.encode_node(node) for node in self.nodes.values()],
            logs=[map_codec.encode_log(log) for log in self.logs.values()],
            shards=[map_codec.encode_shard(known.entry) for known in self.shards.values()],
        )
        caches = {"las": self._las_cache}
        caches.update({name: host.cache for name, host in self.hosts.items()})
        for name in caches if to is None else to:
            caches[name].apply(update)

    def _plan(self, primary: NodeName) -> Plan:
        hosts = self.hosts
        return Plan(
            primary=hosts[primary].me,
            voters=tuple(hosts[name].me.replica for name in self._names),
            acks=min(ACKS, len(self._names)),
        )

    def payloads(self, shard: int) -> list[bytes]:
        """Every committed batch of a shard, in order, as it was sent."""
        known = self.shards[ShardId(shard)]
        return [bytes(batch.payload) for _, part in sorted(known.batches.items()) for batch in part]


def lost(shard: int) -> Refusal:
    """A refusal for `refuse_next` after which nobody knows whether the batch was taken."""
    return Refusal(reason=Reason.FENCED, message=f"shard {shard} was fenced", taken=Taken.UNKNOWN)


def _clock_ms() -> int:
    return time.monotonic_ns() // 1_000_000
