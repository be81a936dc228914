"""A small fleet in one process: real peers, stores and gRPC, and a LAS written by hand."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
from crc32c import crc32c

from las.v1 import fleet_pb2, fleet_pb2_grpc, shard_map_pb2
from peerd.core.batch import BatchHeader
from peerd.core.effects import AppendAccepted
from peerd.core.ids import Epoch, NodeName, Offset, ProducerId, ShardId
from peerd.core.shard_map import Plan, Segment, Shard
from peerd.daemon.config import PeerdConfig
from peerd.daemon.peer import Peer
from peerd.internal.v1 import replication_pb2, replication_pb2_grpc
from peerd.pki import Identity, Role
from peerd.storage.directory import FORMAT_VERSION
from peerd.storage.layout import batch_key
from peerd.storage.rows import StoreMark, put_store
from peerd.testing.ports import free_address
from peerd.transport.concurrency import first_ended
from peerd.transport.host_api import AppendOutcome
from peerd.transport.map_codec import LogEntry, NodeEntry, encode_log, encode_node, encode_shard
from peerd.transport.status import Refused, refuse
from peerd.transport.tls import plaintext_metadata
from peerd.v1 import batch_pb2

CLUSTER = "test"
CLUSTER_ID = "00000000-0000-4000-8000-000000000001"
LOG = "orders"
SHARD = ShardId(1)
DEADLINE_S = 60.0
LAS_METADATA = plaintext_metadata(Identity(cluster=CLUSTER, role=Role.LAS, name="las-1"))


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition with a deadline; the loop of the test runs on meanwhile."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110 - conditions of many kinds, one way to wait
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"did not happen within {DEADLINE_S:.0f} s: {what}") from None


class StandInLas(fleet_pb2_grpc.FleetServiceServicer):
    """Commits what the test tells it, and keeps what the peers report."""

    def __init__(self) -> None:
        self.version = 1
        self.nodes: dict[str, NodeEntry] = {}
        self.shards: dict[ShardId, Shard] = {}
        self.reports: list[tuple[str, fleet_pb2.PeerReport]] = []
        self.registrations: list[fleet_pb2.RegisterRequest] = []
        self.sampled: dict[str, list[int]] = {}
        self.refuse_with: Refused | None = None
        self.refuse_reports_with: Refused | None = None
        self.answers_heartbeats = True
        self.facts_may_commit = asyncio.Event()
        self.facts_may_commit.set()
        self.committing = 0
        self.address = ""
        self._wakes: set[asyncio.Event] = set()
        self._server: grpc.aio.Server | None = None

    async def start(self, address: str = "") -> None:
        """At `address`, where it was before; no connection may have taken its port meanwhile."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        fleet_pb2_grpc.add_FleetServiceServicer_to_server(self, self._server)
        self.address = address or free_address()
        self._server.add_insecure_port(self.address)
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    # ------------------------------------------------------------------ what the test does

    def commit(self, *shards: Shard) -> None:
        """Commit entries of the map, and tell all peers."""
        self.shards.update({shard.shard: shard for shard in shards})
        self._changed()

    def judge_dead(self, name: str) -> None:
        """Commit that a node is down, and tell all peers."""
        self.nodes[name] = replace(self.nodes[name], up=False)
        self._changed()

    def reported(self, kind: str) -> list[tuple[str, object]]:
        """(boot id, report) of one kind."""
        return [
            (boot, getattr(report, kind))
            for boot, report in self.reports
            if report.WhichOneof("kind") == kind
        ]

    def _changed(self) -> None:
        self.version += 1
        for wake in self._wakes:
            wake.set()

    def _whole(self) -> shard_map_pb2.MapUpdate:
        return shard_map_pb2.MapUpdate(
            cluster_id=CLUSTER_ID,
            version=self.version,
            full=True,
            nodes=[encode_node(node) for node in self.nodes.values()],
            logs=[encode_log(LogEntry(name=LOG, copies=3, acks=2, shards=tuple(self.shards)))],
            shards=[encode_shard(shard) for shard in self.shards.values()],
        )

    # ------------------------------------------------------------------ what peers call

    async def Register(self, request, context):
        if self.refuse_with is not None:
            await refuse(context, self.refuse_with.refusal)
        name = _caller(context)
        self.registrations.append(request)
        self.nodes[name] = NodeEntry(
            name=NodeName(name),
            address=request.address,
            store=request.store_id,
            boot=request.boot_id,
            labels=dict(request.labels),
            may_lead=request.may_lead,
        )
        self._changed()
        return fleet_pb2.RegisterResponse(
            cluster_id=CLUSTER_ID,
            map=self._whole(),
            heartbeat_period_ms=100,
            lease_ms=1500,
        )

    async def Heartbeat(self, requests: AsyncIterator, context) -> None:
        """Each heartbeat is answered, and the whole map told when it has changed."""
        wake = asyncio.Event()
        known, unanswered = [-1], [0]

        async def read() -> None:
            async for request in requests:
                told = self.sampled.setdefault(_caller(context), [])
                told += [sample.sequence for sample in request.samples]
                known[:] = [max(known[0], request.map_version)]
                unanswered[0] += self.answers_heartbeats
                wake.set()

        async def write() -> None:
            while True:
                await wake.wait()
                wake.clear()
                while 0 <= known[0] < self.version:
                    known[0] = self.version
                    await context.write(fleet_pb2.HeartbeatResponse(map=self._whole()))
                while unanswered[0]:
                    unanswered[0] -= 1
                    await context.write(fleet_pb2.HeartbeatResponse())

        self._wakes.add(wake)
        try:
            await first_ended(read(), write())
        finally:
            self._wakes.discard(wake)

    async def Report(self, request, context):
        if self.refuse_reports_with is not None:
            await refuse(context, self.refuse_reports_with.refusal)
        if any(report.WhichOneof("kind") not in {"suspect", "stall"} for report in request.reports):
            self.committing += 1
            await self.facts_may_commit.wait()
        self.reports += [(request.boot_id, report) for report in request.reports]
        return fleet_pb2.ReportResponse()


def _caller(context) -> str:
    for key, value in context.invocation_metadata():
        if key == "peerd-plaintext-identity":
            return Identity.parse(value).name
    raise AssertionError("a peer names itself")


class Fleet:
    """Peers by name, and what tests do with them."""

    def __init__(self, directory: Path, las: StandInLas) -> None:
        self.directory = directory
        self.las = las
        self.peers: dict[str, Peer] = {}

    async def start_peer(self, name: str, **settings: object) -> Peer:
        config = PeerdConfig.model_validate(
            {
                "cluster": CLUSTER,
                "name": name,
                "listen": "127.0.0.1:0",
                "advertise": "127.0.0.1:0",
                "http_listen": "127.0.0.1:0",
                "las": (self.las.address,),
                "data_dir": self.directory / name,
                "insecure_loopback": True,
                "shutdown_timeout_ms": 500,
                "storage": {"reserve_bytes": 0, "map_size_bytes_max": 1 << 30},
                **settings,
            }
        )
        peer = self.peers[name] = await Peer.start(config)
        return peer

    async def start(self, *names: str) -> list[Peer]:
        peers = [await self.start_peer(name) for name in names]
        await until(lambda: all(len(p.map_cache.nodes) >= len(names) for p in peers), "nodes known")
        return peers

    async def kill(self, name: str) -> None:
        """Stop a peer without a word to anybody; nothing under way is waited for."""
        peer = self.peers.pop(name)
        peer.host.stop()
        peer._links.want({}, "")
        await peer.stop()

    async def stop(self) -> None:
        for name in list(self.peers):
            await self.peers.pop(name).stop()

    async def promise(
        self, peer: Peer, fence: Epoch, epoch: Epoch, prepared: Epoch = Epoch(0)
    ) -> replication_pb2.Promised:
        """Ask one peer for a promise, as the LAS does."""
        async with grpc.aio.insecure_channel(peer.address) as channel:
            stub = replication_pb2_grpc.ReplicationServiceStub(channel)
            answer = await stub.Promise(
                replication_pb2.PromiseRequest(
                    cluster_id=CLUSTER_ID,
                    target_store_id=peer.me.store,
                    orders=[
                        replication_pb2.PromiseOrder(
                            shard=SHARD, fence=fence, epoch=epoch, prepared=prepared
                        )
                    ],
                ),
                metadata=LAS_METADATA,
                timeout=DEADLINE_S,
            )
        return answer.promised[0]


# ---------------------------------------------------------------------- maps and batches


def plan(primary: Peer, *replicas: Peer, acks: int = 2) -> Plan:
    return Plan(primary=primary.me, voters=tuple(peer.me.replica for peer in replicas), acks=acks)


def opened(epoch: int, the_plan: Plan, begin: int = 0) -> Segment:
    return Segment(epoch=Epoch(epoch), plan=the_plan, begin=Offset(begin))


def shard_of(segment: Segment, **fields: object) -> Shard:
    return Shard(
        shard=SHARD,
        log=LOG,
        key_hash_low=0,
        key_hash_high=(1 << 64) - 1,
        open=segment,
        **fields,
    )


def sealed(segment: Segment, end: int, *holders: Peer, wanted: tuple[Peer, ...] = ()) -> Segment:
    return replace(
        segment,
        end=Offset(end),
        known_commit=Offset(end),
        holders=tuple(peer.me.replica for peer in holders),
        wanted_holders=tuple(peer.me.replica for peer in wanted),
    )


def batch_of(*values: bytes) -> tuple[BatchHeader, bytes]:
    payload = batch_pb2.Batch(
        record_count=len(values),
        records=batch_pb2.Records(records=[batch_pb2.Record(value=value) for value in values]),
    ).SerializeToString()
    header = BatchHeader(
        record_count=len(values), payload_crc=crc32c(payload), payload_bytes=len(payload)
    )
    return header, payload


def append_later(
    peer: Peer, *values: bytes, producer: bytes = b"", sequence: int = 0
) -> "asyncio.Future[AppendOutcome]":
    header, payload = batch_of(*values)
    header = replace(header, producer=ProducerId(producer), first_sequence=sequence)
    done: asyncio.Future[AppendOutcome] = asyncio.get_running_loop().create_future()
    peer.host.append(SHARD, header, payload, None, done.set_result)
    return done


async def append(peer: Peer, *values: bytes, **fields: object) -> AppendAccepted:
    """Append and expect a receipt."""
    outcome = await asyncio.wait_for(append_later(peer, *values, **fields), DEADLINE_S)
    assert isinstance(outcome, AppendAccepted), outcome
    return outcome


def damage(peer: Peer, epoch: int, base: int) -> None:
    """Flip a bit of a stored batch behind the back of a running peer."""
    environment = peer._store._environment
    key = batch_key(SHARD, Epoch(epoch), Offset(base))
    transaction = environment.begin_write()
    value = bytearray(transaction.get(key, db=environment.tables.batches))
    value[-1] ^= 0x10
    transaction.put(key, bytes(value), db=environment.tables.batches)
    put_store(transaction, StoreMark(peer.me.store, FORMAT_VERSION))
    transaction.commit()


def stored_end(peer: Peer, epoch: int) -> int:
    """How far a peer's disk has an epoch of the shard; -1 while it has not begun there."""
    if SHARD not in peer.host._replicas:
        return -1
    segment = peer.host.stored(SHARD).segments.get(Epoch(epoch))
    return -1 if segment is None else segment.end


async def values_at(peer: Peer, epoch: int, begin: int, end: int) -> list[bytes]:
    """What a peer's store has of one epoch, once it has all of it: its own disk may be behind."""
    await until(
        lambda: stored_end(peer, epoch) >= end, f"{peer.config.name} stores epoch {epoch} to {end}"
    )
    batches = await peer.host.read(SHARD, Epoch(epoch), begin, end, 1 << 20)
    found = []
    for batch in batches:
        records = batch_pb2.Batch.FromString(bytes(batch.payload)).records.records
        found += [record.value for record in records]
    return found
