"""Everything around the cores: carries out the effects that leave the process or read the store.

Invariants:
- At most one call of a kind, a shard, an epoch and a target is under way; the core repeats what
  got lost.
- Loads from the own store run at most `LOADS_MAX` at a time, fetches from one other store at most
  `FETCHES_MAX`; the others wait in order. No load from the own store ever waits for a fetch: a
  fetch waits for a load of its source, and peers that look for producer tables at each other would
  wait for each other until their calls are given up.
- What no append waits for, the tables of shadows, is fetched in a fraction of the time alone: a
  peer that becomes a shadow of a thousand shards at once takes nothing from those who serve them.
- Links and neighbours follow the map: they are the other replicas of the segments that are open,
  or prepared, with a copy here.

Must not: decide anything about a shard.
"""

import asyncio
from collections.abc import Callable

from las.v1 import fleet_pb2
from peerd.core import effects, events
from peerd.core.batch import PlacedBatch
from peerd.core.chunks import Cut
from peerd.core.ids import FIRST_OFFSET, Epoch, NodeName, Offset, ProcessId, ReplicaId, ShardId
from peerd.core.messages import Adopt, ConfirmEpoch, Frame, Ready
from peerd.core.shard_map import Plan
from peerd.daemon.host import Loaded, ShardHost
from peerd.daemon.host_seam import Call
from peerd.daemon.links import Links
from peerd.daemon.logging import get_logger
from peerd.daemon.neighbours import Neighbours
from peerd.daemon.peer_calls import PeerCalls, PeerUnreachable
from peerd.daemon.reader import StoreReader
from peerd.daemon.repairer import Repairer
from peerd.daemon.reports import encode_report
from peerd.daemon.supervisor import Supervisor
from peerd.daemon.tier import Tier
from peerd.storage.errors import Corrupt
from peerd.tier.errors import TierError
from peerd.transport.map_cache import MapCache
from peerd.transport.status import Refused

# limit: loads of the cores that run at a time; each reads at most a message from the store
LOADS_MAX = 8
# limit: producer tables that are fetched from one store at a time. One that hangs keeps these calls
# for as long as each may take, and no fetch from another store waits for them.
FETCHES_MAX = 32
# limit: producer tables that nothing waits for, fetched at a time
QUIET_FETCHES_MAX = 2
# Each of these fetches is followed by a rest of so many times its duration.
QUIET_REST = 8
# limit: seconds of such a rest; a store that hangs is not rested for longer
QUIET_REST_S_MAX = 0.5

# A look at the whole map is followed by a rest of so many times its duration.
LOOK_REST = 9

CallKey = tuple[type, ShardId, Epoch, ReplicaId]

_log = get_logger("outside")


class Surroundings:
    """Fulfils `peerd.daemon.host_seam.Outside`. Used on the event loop."""

    def __init__(
        self,
        *,
        me: ProcessId,
        host: ShardHost,
        map_cache: MapCache,
        links: Links,
        neighbours: Neighbours,
        calls: PeerCalls,
        reader: StoreReader,
        repairer: Repairer,
        report: Callable[[fleet_pb2.PeerReport], None],
        supervisor: Supervisor,
        tier: Tier | None = None,
    ) -> None:
        self._me = me
        self._host = host
        self._map = map_cache
        self._links = links
        self._neighbours = neighbours
        self._calls = calls
        self._reader = reader
        self._repairer = repairer
        self._report = report
        self._supervisor = supervisor
        self._tier = tier
        self._calling: set[CallKey] = set()
        self._loads = asyncio.Semaphore(LOADS_MAX)
        self._fetches: dict[NodeName, asyncio.Semaphore] = {}
        self._without_answer: set[NodeName] = set()
        self._quiet: dict[ShardId, effects.FetchTable] = {}
        self._quiet_fetchers = 0
        self._look_again = False
        self._looked_until_s = 0.0
        self._look_s = 0.0

    # ------------------------------------------------------------------ frames and calls

    def send_frame(self, to: ReplicaId, message: Adopt | Frame) -> None:
        """See `Outside`."""
        self._links.send(to, message)

    def call(self, to: ReplicaId, message: Call) -> None:
        """See `Outside`."""
        key = (type(message), message.shard, message.epoch, to)
        if key not in self._calling:
            self._calling.add(key)
            self._supervisor.spawn(
                f"{type(message).__name__} of shard {message.shard} to {to.peer}",
                self._call(to, message, key),
            )

    async def _call(self, to: ReplicaId, message: Call, key: CallKey) -> None:
        try:
            if isinstance(message, Ready):
                await self._calls.ready(to, message)
            elif isinstance(message, ConfirmEpoch):
                promised = await self._calls.confirm(to, message)
                self._host.epoch_confirmed(
                    message.shard, to, message.epoch, message.round, promised
                )
            else:
                answer = await self._calls.begin(to, message)
                self._host.begin_answered(message.shard, answer)
        except PeerUnreachable as error:
            _log.warning(
                "call failed", call=type(message).__name__, shard=message.shard, why=str(error)
            )
        finally:
            self._calling.discard(key)

    # ------------------------------------------------------------------ loads

    def load(self, load: effects.Load) -> None:
        """See `Outside`."""
        if isinstance(load, effects.FetchTable) and not load.is_waited_for:
            # A newer one takes the place of one that still waits.
            self._quiet[load.shard] = load
            if self._quiet_fetchers < QUIET_FETCHES_MAX:
                self._quiet_fetchers += 1
                self._supervisor.spawn("producer tables of shadows", self._fetch_quietly())
            return
        self._supervisor.spawn(f"{type(load).__name__} of shard {load.shard}", self._load(load))

    async def _fetch_quietly(self) -> None:
        """Fetch what no append waits for, until there is nothing more of it."""
        loop = asyncio.get_running_loop()
        try:
            while self._quiet:
                shard = next(iter(self._quiet))
                load = self._quiet.pop(shard)
                began_s = loop.time()
                event = await self._fetch_table(load)
                self._host.loaded(shard, event)
                await asyncio.sleep(min(QUIET_REST_S_MAX, QUIET_REST * (loop.time() - began_s)))
        finally:
            self._quiet_fetchers -= 1

    async def _load(self, load: effects.Load) -> None:
        event: Loaded
        if isinstance(load, effects.FetchTable):
            async with self._fetches.setdefault(load.source.peer, asyncio.Semaphore(FETCHES_MAX)):
                event = await self._fetch_table(load)
        else:
            async with self._loads:
                event = await self._load_here(load)
        self._host.loaded(load.shard, event)

    async def _load_here(self, load: effects.LoadBatches | effects.LoadTable) -> Loaded:
        if isinstance(load, effects.LoadBatches):
            return await self._load_batches(load)
        return await self._load_table(load)

    async def _load_batches(
        self, load: effects.LoadBatches
    ) -> events.BatchesLoaded | events.BatchesUnavailable:
        try:
            batches = await self.read(load.shard, load.epoch, load.begin, load.end, load.bytes_max)
        except (Corrupt, Refused):
            batches = []
        if not batches:
            return events.BatchesUnavailable(
                replica=load.replica, epoch=load.epoch, begin=load.begin
            )
        return events.BatchesLoaded(
            replica=load.replica, epoch=load.epoch, begin=load.begin, batches=tuple(batches)
        )

    async def _load_table(
        self, load: effects.LoadTable
    ) -> events.TableLoaded | events.TableUnavailable:
        try:
            table = await self._reader.load_table(load)
        except Refused:
            table = None
        if table is None:
            return events.TableUnavailable(token=load.token, answered=True)
        return events.TableLoaded(token=load.token, table=table)

    async def _fetch_table(
        self, load: effects.FetchTable
    ) -> events.TableFetched | events.TableUnavailable:
        try:
            table = await self._calls.fetch_table(
                load.source, load.shard, load.as_of, load.since, or_later=load.or_later
            )
        except PeerUnreachable as error:
            if load.source.peer not in self._without_answer:
                # Once, not for each of the hundreds of shards that may want something of it.
                self._without_answer.add(load.source.peer)
                _log.info("producer table not fetched", shard=load.shard, why=str(error))
            return events.TableUnavailable(token=load.token, answered=False)
        self._without_answer.discard(load.source.peer)
        if table is None:
            return events.TableUnavailable(token=load.token, answered=True)
        return events.TableFetched(token=load.token, table=table)

    # ------------------------------------------------------------------ the LAS

    def report(self, report: effects.Report) -> None:
        """See `Outside`."""
        self._report(encode_report(report))

    # ------------------------------------------------------------------ who is talked to

    def heard(self, process: ProcessId) -> None:
        """A frame came from `process`."""
        self._neighbours.heard(process)

    def silent_ms(self, peer: NodeName) -> int | None:
        """See `ReplicationHost`."""
        return self._neighbours.silent_ms(peer)

    def stream_broke(self, process: ProcessId) -> None:
        """A stream from `process` ended."""
        self._neighbours.stream_broke(process)

    async def read(
        self, shard: ShardId, epoch: Epoch, from_offset: int, to_offset: int, bytes_max: int
    ) -> list[PlacedBatch]:
        """See `Outside`; what is damaged is also repaired by and by."""
        try:
            return await self._reader.read(shard, epoch, from_offset, to_offset, bytes_max)
        except Corrupt as error:
            self._repairer.found(error)
            raise

    async def fetch(  # noqa: PLR0917 - as `host_api.ShardHost`
        self,
        holder: ReplicaId,
        shard: ShardId,
        epoch: Epoch,
        from_offset: int,
        to_offset: int,
        bytes_max: int,
    ) -> list[PlacedBatch]:
        """See `Outside`."""
        return await self._calls.fetch(holder, shard, epoch, from_offset, to_offset, bytes_max)

    async def find_time(self, shard: ShardId, epoch: Epoch, timestamp_ms: int) -> Offset:
        """See `Outside`."""
        try:
            return await self._reader.find_time(shard, epoch, timestamp_ms)
        except Corrupt as error:
            self._repairer.found(error)
            raise

    async def find_cut(
        self, shard: ShardId, epoch: Epoch, *, before: Offset, keep_bytes: int
    ) -> Cut | None:
        """See `Outside`."""
        hot = await self._reader.find_cut(shard, epoch, before=before, keep_bytes=keep_bytes)
        entry = self._map.shards.get(shard)
        if hot is None or self._tier is None or entry is None or entry.tier is None:
            return hot
        if before > entry.trimmed_to and hot.kept_bytes >= keep_bytes:
            return hot
        try:
            return await self._tier.find_cut(
                entry, epoch, hot, before=before, keep_bytes=keep_bytes
            )
        except TierError as error:
            _log.warning("the tier does not tell", shard=shard, code=error.code, why=str(error))
            return hot

    async def size(self, shard: ShardId, epoch: Epoch) -> int:
        """See `Outside`."""
        cut = await self._reader.find_cut(shard, epoch, before=FIRST_OFFSET, keep_bytes=0)
        return 0 if cut is None else cut.kept_bytes

    def neighbours_changed(self) -> None:
        """See `Outside`. Looks once for all changes of one turn of the loop; and if a look takes
        long, since there are thousands of shards, no more than a tenth of the time is spent on it.
        """
        if not self._look_again:
            self._look_again = True
            loop = asyncio.get_running_loop()
            loop.call_at(self._looked_until_s + LOOK_REST * self._look_s, self._look)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        self._look_again = False
        if self._map.cluster_id:
            self._look_at_map()
        self._looked_until_s = loop.time()
        self._look_s = self._looked_until_s - began_s

    def _look_at_map(self) -> None:
        others: dict[ReplicaId, str] = {}
        # Thousands of shards have a handful of plans between them.
        plans: dict[int, Plan] = {}
        for shard in self._host.map_entries():
            plans[id(shard.open.plan)] = shard.open.plan
            if shard.prepared is not None:
                plans[id(shard.prepared.plan)] = shard.prepared.plan
        for plan in plans.values():
            if self._me.replica in plan.replicas:
                self._add(plan, others)
        self._neighbours.expect({replica.peer: address for replica, address in others.items()})
        self._links.want(others, self._map.cluster_id)

    def _add(self, plan: Plan, others: dict[ReplicaId, str]) -> None:
        """The other replicas of a segment that is open, or will be.

        Also for a shadow: it may be the next primary, and then dialling would lengthen the pause.
        """
        for replica in plan.replicas:
            node = self._map.nodes.get(replica.peer)
            if replica.peer != self._me.peer and node is not None and node.store == replica.store:
                others[replica] = node.address
