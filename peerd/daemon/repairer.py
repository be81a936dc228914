"""The repairer: writes damaged batches of this store anew from another holder's bytes.

Whoever meets damage (a read, a fetch of another peer, a copy, the scrub) tells `found`; a damaged
batch is not given out meanwhile, its readers are served by other holders (docs/protocol.md §7).
What may be written, and why that changes nothing that was acknowledged: `peerd.storage.repair`.

Invariants:
- Only committed bytes are asked for (`copy`: of a sealed segment up to its X, of an open one below
  the commit offset that the other store heard), and only from stores that the map names for the
  segment.
- A copy of a sealed segment that cannot be mended is none: after `TRIES_UNTIL_LOST` the LAS is
  told, and finds another holder. It is tried on, since holders come back.
- At most `DAMAGED_MAX` damages are remembered; the scrub finds the others again.

Must not: read the own store to look for damage (`peerd.daemon.scrubber`), or hold anything up.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from las.v1 import fleet_pb2
from peerd.core.batch import PlacedBatch
from peerd.core.durable import StoredShard
from peerd.core.ids import Epoch, Offset, ReplicaId, ShardId
from peerd.core.shard_map import Segment
from peerd.daemon.logging import get_logger
from peerd.daemon.peer_calls import PeerCalls
from peerd.storage.errors import Corrupt, StorageFailed, StoreClosed, WriterOverloaded
from peerd.storage.repair import Repair, Repaired
from peerd.storage.store import Store
from peerd.transport.host_api import HolderUnavailable
from peerd.transport.map_cache import MapCache

# limit: damaged batches that are remembered at a time
DAMAGED_MAX = 4_096
# A batch that could not be mended is tried again after this, then twice as long each time. Seconds.
AGAIN_AFTER_S = 1.0
# limit: times that it is doubled: once a minute for as long as it takes
AGAIN_DOUBLINGS_MAX = 6
# limit: tries, within 7 s, after which a damaged copy of a sealed segment does not count any more
TRIES_UNTIL_LOST = 3

_log = get_logger("repairer")

Place = tuple[ShardId, Epoch, Offset]


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairStatistics:
    """`damaged`: batches known to be damaged now; the others since the start of the process."""

    damaged: int
    found: int
    repaired: int


@dataclass(slots=True)
class _Damage:
    """`due_s`: when it is tried next."""

    due_s: float
    tries: int = 0
    is_reported: bool = False


class Repairer:
    """One per process; `run` is its only task. Used on the event loop."""

    def __init__(
        self,
        *,
        me: ReplicaId,
        store: Store,
        stored: Callable[[ShardId], StoredShard],
        map_cache: MapCache,
        calls: PeerCalls,
        report: Callable[[fleet_pb2.PeerReport], None],
        now_s: Callable[[], float],
    ) -> None:
        self._me = me
        self._store = store
        self._stored = stored
        self._map = map_cache
        self._calls = calls
        self._report = report
        self._now_s = now_s
        self._damaged: dict[Place, _Damage] = {}
        self._news = asyncio.Event()
        self._found = 0
        self._repaired = 0

    def statistics(self) -> RepairStatistics:
        """Counts, now."""
        return RepairStatistics(
            damaged=len(self._damaged), found=self._found, repaired=self._repaired
        )

    def found(self, damage: Corrupt) -> None:
        """A batch of this store did not pass its checksum."""
        place = (damage.shard, damage.epoch, damage.offset)
        if place in self._damaged or len(self._damaged) >= DAMAGED_MAX:
            return
        _log.error("own copy is damaged", shard=damage.shard, why=str(damage))
        self._found += 1
        self._damaged[place] = _Damage(due_s=self._now_s())
        self._news.set()

    async def run(self) -> None:
        """Mend what is found, for ever."""
        while True:
            self._news.clear()
            place = min(self._damaged, key=lambda p: self._damaged[p].due_s, default=None)
            wait_s = None if place is None else self._damaged[place].due_s - self._now_s()
            if place is not None and wait_s is not None and wait_s <= 0:
                await self._try(place)
                continue
            try:
                async with asyncio.timeout(wait_s):
                    await self._news.wait()
            except TimeoutError:
                pass  # something waits to be tried again

    async def _try(self, place: Place) -> None:
        """Mend one damage, or leave it for later."""
        damage = self._damaged[place]
        shard, epoch, offset = place
        why = await self._mend(place)
        if why is None:
            del self._damaged[place]
            return
        damage.tries += 1
        doublings = min(damage.tries - 1, AGAIN_DOUBLINGS_MAX)
        damage.due_s = self._now_s() + AGAIN_AFTER_S * 2**doublings
        if damage.tries in {1, TRIES_UNTIL_LOST}:  # not a line a minute for as long as it takes
            _log.warning("not repaired yet", shard=shard, epoch=epoch, offset=offset, why=why)
        if damage.tries >= TRIES_UNTIL_LOST and not damage.is_reported:
            damage.is_reported = self._tell_lost(shard, epoch)

    async def _mend(self, place: Place) -> str | None:
        """None if nothing is damaged there any more, else why it still is."""
        shard, epoch, offset = place
        stored = self._stored(shard).segments.get(epoch)
        if stored is None or not stored.first <= offset < stored.end:
            return None  # it was dropped
        segment = self._segment(shard, epoch)
        if segment is None:
            return "the map does not show its segment yet"
        why = "the map names no other holder"
        for holder in self._sources(segment):
            try:
                batches = await self._calls.fetch(
                    holder, shard, epoch, offset, offset + 1, 1, copy=True
                )
                result = await self._write(shard, epoch, batches)
            except (HolderUnavailable, WriterOverloaded) as error:
                why = str(error)
                continue
            except (StorageFailed, StoreClosed) as error:
                return str(error)
            if not result.refused:
                self._note(place, holder, result)
                return None
            why = f"{holder.peer}: {result.refused}"
        return why

    def _note(self, place: Place, holder: ReplicaId, result: Repaired) -> None:
        shard, epoch, offset = place
        self._repaired += result.rewritten
        if result.rewritten:
            _log.info("repaired", shard=shard, epoch=epoch, offset=offset, source=holder.peer)

    async def _write(self, shard: ShardId, epoch: Epoch, batches: list[PlacedBatch]) -> Repaired:
        """Raises `WriterOverloaded`, `StorageFailed` or `StoreClosed`."""
        loop = asyncio.get_running_loop()
        written: asyncio.Future[Repaired] = loop.create_future()

        def resolve(result: Repaired) -> None:
            if not written.done():
                written.set_result(result)

        def done(result: Repaired) -> None:
            loop.call_soon_threadsafe(resolve, result)

        self._store.repair(Repair(shard=shard, epoch=epoch, batches=tuple(batches)), done)
        return await written

    def _segment(self, shard: ShardId, epoch: Epoch) -> Segment | None:
        """As the map shows it; None if the epoch is in no chain."""
        entry = self._map.shards.get(shard)
        segments = () if entry is None else (*entry.sealed, entry.open)
        return next((each for each in segments if each.epoch == epoch), None)

    def _sources(self, segment: Segment) -> list[ReplicaId]:
        """Other stores that should have the segment, those that are up first."""
        named = segment.holders if segment.end is not None else segment.plan.replicas

        def is_away(replica: ReplicaId) -> bool:
            node = self._map.nodes.get(replica.peer)
            return node is None or not node.up or node.store != replica.store

        return sorted((each for each in named if each != self._me), key=is_away)

    def _tell_lost(self, shard: ShardId, epoch: Epoch) -> bool:
        """Tell the LAS, if it counts on this copy of a sealed segment."""
        segment = self._segment(shard, epoch)
        if segment is None or segment.end is None or self._me not in segment.holders:
            return False
        self._report(
            fleet_pb2.PeerReport(holder_lost=fleet_pb2.HolderLost(shard=shard, epoch=epoch))
        )
        return True
