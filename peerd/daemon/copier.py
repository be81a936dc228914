"""The copier: makes this store a holder of the sealed segments that the map wants here.

The LAS says what is wanted (`wanted_holders`), the copier pulls it from a holder, the LAS lists
this store once it reports (docs/protocol.md §8).

Invariants:
- A segment is reported only when the store has all of it under its epoch, sealed at the map's X:
  what was fetched has passed its checksum on arrival, what was here before is read back first, and
  every write has come back from the store.
- Kept tails (fewer holders than the segment's `acks`) go first, then whoever has fewest healthy
  holders: on nodes that are up, not at risk and not drained, as the planner counts them.
- At most `COPIES_MAX` segments that have time are copied at a time, and as many urgent ones, each
  with at most `WRITES_MAX` slices on their way to the disk; and beside appends all together with no
  more than `BUSY_WRITES_BYTES_MAX`. Those of one segment are fetched and written in order, so
  that a copy that breaks off has a beginning without a hole, and is continued where it ended, from
  another holder if need be.
- All copying shares the node's budget of background work and gives way to appends, the least of all
  the urgent ones (`peerd.daemon.budget.presses`). Whether one is is asked anew for each slice: a
  segment whose next holder died meanwhile becomes urgent, and one that got a holder elsewhere is
  no more. Places are kept for urgent ones: those that have time may take `COPIES_MAX` of all, and
  beside them so many urgent ones have theirs.
- What was reported and is not listed yet is reported again, and not read again: a LAS that is away
  for a minute costs no disk. But what the map told this store to let go is looked at anew, once the
  map wants it again, behind all that the store had to drop (§8.4).
- What the list of holders says wrongly of this store is said unasked (`peerd.core.holding`): a copy
  that is listed and not here, and one that is here, not listed, and too few are.

Must not: choose what is copied, or drop anything.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from las.v1 import fleet_pb2
from peerd.core import holding
from peerd.core.batch import PlacedBatch
from peerd.core.durable import FillSealed, Outcome, Stored, StoredSegment
from peerd.core.ids import Epoch, Offset, ProcessId, ReplicaId, ShardId
from peerd.core.shard_map import Segment, Shard
from peerd.daemon.budget import Background, presses
from peerd.daemon.copy_progress import CopyProgress, ProgressMeter
from peerd.daemon.copy_writes import CopyWrites
from peerd.daemon.crowd import Crowd
from peerd.daemon.host import ShardHost
from peerd.daemon.logging import get_logger
from peerd.daemon.peer_calls import PeerCalls
from peerd.storage.errors import Corrupt, StorageError
from peerd.transport.host_api import HolderUnavailable
from peerd.transport.map_cache import MapCache
from peerd.transport.status import Refused

# limit: bytes of one fetch and one write while nothing is appended here; a round trip and a commit
# are small beside them
SLICE_BYTES_MAX = 1024 * 1024
# limit: the same while appends are written here, which share the commit; a few milliseconds
BUSY_SLICE_BYTES_MAX = 256 * 1024
# limit: bytes of copies that wait for the disk while appends are written here: a commit has no more
# of them, and the next append waits for it; on a shared disk so do other processes' flushes
BUSY_WRITES_BYTES_MAX = 512 * 1024
# limit: segments that are copied at a time, of those that are urgent and of all: one waits for the
# holder while another one is written
COPIES_MAX = 4
# limit: slices of one segment that wait for the disk; the next one is fetched meanwhile
WRITES_MAX = 2
# A loop that wakes so much too late has more to do than it can. Seconds.
LATE_S = 0.002
# Then a copy rests for so many times that lateness,
LATE_REST = 4
# limit: and no longer, so that it gets on beside any load. Seconds.
LATE_REST_S_MAX = 0.2
# A segment that was reported and is not listed yet is reported again after this; one that could
# not be copied is tried again after this, too; and then twice as long each time. Seconds.
AGAIN_AFTER_S = 1.0
# limit: times that it is doubled: what fails again and again is tried twice a minute
AGAIN_DOUBLINGS_MAX = 5

_log = get_logger("copier")
_crowd = Crowd(_log)

Key = tuple[ShardId, Epoch]


class CopyBroken(Exception):
    """This copy cannot go on now; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopierStatistics:
    """Since the start of the process."""

    copied_bytes: int
    copied_segments: int
    wanted_segments: int


class Copier:
    """One per process; `run` is its only task, and has one for each segment under way."""

    def __init__(
        self,
        *,
        me: ProcessId,
        host: ShardHost,
        map_cache: MapCache,
        calls: PeerCalls,
        report: Callable[[fleet_pb2.PeerReport], None],
        budget: Background,
        now_s: Callable[[], float],
    ) -> None:
        self._mine = me.replica
        self._host = host
        self._map = map_cache
        self._calls = calls
        self._report = report
        self._now_s = now_s
        self._budget = budget
        self._not_before_s: dict[Key, float] = {}
        self._tries: dict[Key, int] = {}
        self._disowned: dict[Key, float] = {}
        self._unlisted: dict[Key, int] = {}
        """What was reported, with the version of the map before it was looked at."""
        self._under_way: dict[Key, bool] = {}
        """Whether each was urgent when it began."""
        self._asked: dict[ReplicaId, int] = {}
        self._ended = asyncio.Event()
        self._copied_bytes = 0
        self._copied_segments = 0
        self._wanted: dict[Key, tuple[Shard, Segment]] = {}
        self._meter = ProgressMeter(now_s)
        self._writes = CopyWrites(BUSY_WRITES_BYTES_MAX, lambda: budget.is_busy)

    def statistics(self) -> CopierStatistics:
        """Counts, now."""
        return CopierStatistics(
            copied_bytes=self._copied_bytes,
            copied_segments=self._copied_segments,
            wanted_segments=len(self._wanted),
        )

    def progress(self) -> CopyProgress:
        """How far it is with what is wanted now."""
        works = [work for key, work in self._wanted.items() if key not in self._unlisted]
        records = sum(self._lacking(*work) for work in works)
        return self._meter.progress(segments=len(works), records=records)

    def _lacking(self, shard: Shard, segment: Segment) -> int:
        """Records of a wanted segment that are not here."""
        stored = self._host.stored(shard.shard).segments.get(segment.epoch)
        begin = max(segment.begin or 0, shard.trimmed_to)
        here = begin if stored is None else max(begin, stored.end)
        return max(0, _end_of(segment) - here)

    async def run(self) -> None:
        """Copy what is wanted, for ever."""
        async with asyncio.TaskGroup() as copies:
            while True:
                changed = self._map.changed
                self._ended.clear()
                self._disown()
                for shard, segment in self._due():
                    key = (shard.shard, segment.epoch)
                    self._under_way[key] = self._presses(segment)
                    copies.create_task(self._copy(shard, segment))
                await self._news(changed)

    async def _news(self, changed: asyncio.Event) -> None:
        """Wait until the map changed, a copy ended, or something is to be tried again."""
        due = bool(self._wanted or self._not_before_s or self._disowned)
        waits = due and sum(self._under_way.values()) < COPIES_MAX
        news = [asyncio.ensure_future(each.wait()) for each in (changed, self._ended)]
        try:
            await asyncio.wait(
                news,
                timeout=AGAIN_AFTER_S if waits else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            for each in news:
                each.cancel()

    def _due(self) -> list[tuple[Shard, Segment]]:
        """The segments to begin with now, the most urgent first; none without a place."""
        self._wanted = wanted = {
            (shard.shard, segment.epoch): (shard, segment)
            for shard in self._host.map_entries()
            for segment in shard.sealed
            if self._mine in segment.wanted_holders and self._mine not in segment.holders
        }
        claims = {
            (shard.shard, segment.epoch): (shard, segment)
            for shard in self._host.map_entries()
            for segment in holding.unlisted(shard, self._host.stored(shard.shard), self._mine)
        }
        works = claims | wanted
        for key, looked in list(self._unlisted.items()):
            release = works[key][1].release_of(self._mine) if key in works else None
            if key not in works or (release is not None and looked < release.version):
                del self._unlisted[key]
        for known in (self._not_before_s, self._tries):
            for key in known.keys() - works.keys() - self._under_way.keys():
                del known[key]
        now_s = self._now_s()
        due = [
            work
            for key, work in works.items()
            if key not in self._under_way and self._not_before_s.get(key, now_s) <= now_s
        ]
        return self._placed(sorted(due, key=self._urgency))

    def _placed(self, due: list[tuple[Shard, Segment]]) -> list[tuple[Shard, Segment]]:
        """Those of them for which there is a place, in their order."""
        urgent_left = COPIES_MAX - sum(self._under_way.values())
        any_left = COPIES_MAX - len(self._under_way)
        placed = []
        for shard, segment in due:
            urgent = self._presses(segment)
            if (urgent_left if urgent else any_left) > 0:
                placed.append((shard, segment))
                urgent_left -= urgent
                any_left -= 1
        return placed

    def _disown(self) -> None:
        """Say which segments the map lists this store for though it has them not."""
        now_s = self._now_s()
        lacking = {
            (shard.shard, epoch)
            for shard in self._host.map_entries()
            for epoch in holding.lacking(shard, self._host.stored(shard.shard), self._mine)
        }
        for key in self._disowned.keys() - lacking:
            del self._disowned[key]
        for shard_id, epoch in lacking:
            if self._disowned.get((shard_id, epoch), now_s) <= now_s:
                self._disowned[shard_id, epoch] = now_s + AGAIN_AFTER_S
                lost = fleet_pb2.HolderLost(shard=shard_id, epoch=epoch)
                self._report(fleet_pb2.PeerReport(holder_lost=lost))

    async def _copy(self, shard: Shard, segment: Segment) -> None:
        """Bring one segment here and report it, or leave it for later."""
        key = (shard.shard, segment.epoch)
        tries = self._tries.get(key, 0)
        self._tries[key] = tries + 1
        lacked = self._lacking(shard, segment)
        try:
            if key not in self._unlisted:
                version = self._map.version
                await self._fill(shard, segment)
                _crowd.tell(
                    logging.INFO, "segment copied", shard=key[0], epoch=key[1], end=segment.end
                )
                self._copied_segments += 1
                self._unlisted[key] = version
                tries = self._tries[key] = 0
        except (CopyBroken, StorageError, Refused) as error:
            _log.warning("copy broke off", shard=key[0], epoch=key[1], why=str(error))
            if self._lacking(shard, segment) < lacked:
                tries = self._tries[key] = 0  # it gets on
        else:
            added = fleet_pb2.HolderAdded(
                shard=key[0], epoch=key[1], map_version=self._unlisted[key]
            )
            self._report(fleet_pb2.PeerReport(holder_added=added))
        finally:
            again_after_s = AGAIN_AFTER_S * 2 ** min(tries, AGAIN_DOUBLINGS_MAX)
            self._not_before_s[key] = self._now_s() + again_after_s
            del self._under_way[key]
            self._ended.set()

    async def _fill(self, shard: Shard, segment: Segment) -> None:
        """Raises `CopyBroken`, or what store and reader raise."""
        # Without batches: seals what is here at the map's X, and raises the promise (§3).
        here = await self._store(shard, segment, [])
        await self._read_back(shard.shard, segment, here)
        at, end = here.end, _end_of(segment)
        writes: deque[asyncio.Future[StoredSegment]] = deque()
        try:
            while at < end:
                batches = await self._fetch(shard.shard, segment, at)
                if batches[0].base != at:
                    raise CopyBroken(f"offset {at} lies inside the batch at {batches[0].base}")
                if len(writes) >= WRITES_MAX:
                    here = await writes.popleft()
                await self._writes.room(_size_of(batches))
                writes.append(self._store(shard, segment, batches))
                at = batches[-1].end
                await self._spend(shard.shard, segment, batches)
            while writes:
                here = await writes.popleft()
        except Exception:
            # What is queued is written all the same; the next try begins behind it.
            await asyncio.gather(*writes, return_exceptions=True)
            raise
        if here.end < end:
            raise CopyBroken(f"the store has it up to {here.end}, not to {end}")

    async def _read_back(self, shard: ShardId, segment: Segment, here: StoredSegment) -> None:
        """Read what was stored before; a holder vouches for all of it. Raises `Corrupt`."""
        at = here.first
        while at < here.end:
            batches = await self._host.read(shard, here.epoch, at, here.end, self._slice_bytes())
            if not batches:
                raise Corrupt(shard, here.epoch, at, "the batch is missing")
            at = batches[-1].end
            urgent = self._is_urgent(shard, segment)
            await self._wait(self._budget.spend_copy(_size_of(batches), urgent=urgent))

    def _slice_bytes(self) -> int:
        return BUSY_SLICE_BYTES_MAX if self._budget.is_busy else SLICE_BYTES_MAX

    async def _fetch(self, shard: ShardId, segment: Segment, at: Offset) -> list[PlacedBatch]:
        """The next batches, from the first holder that gives them. Raises `CopyBroken`."""
        failures = []
        slice_bytes = self._slice_bytes()
        for holder in self._sources(segment):
            self._asked[holder] = self._asked.get(holder, 0) + 1
            try:
                return await self._calls.fetch(
                    holder,
                    shard,
                    segment.epoch,
                    at,
                    _end_of(segment),
                    slice_bytes,
                    copy=True,
                    urgent=self._is_urgent(shard, segment),
                )
            except HolderUnavailable as error:
                failures.append(str(error))
            finally:
                self._asked[holder] -= 1
                if not self._asked[holder]:
                    del self._asked[holder]
        raise CopyBroken("; ".join(failures) or "no other holder is listed")

    def _sources(self, segment: Segment) -> list[ReplicaId]:
        """Holders to ask, healthy ones first, and of these who is asked for least now."""
        others = [holder for holder in segment.holders if holder != self._mine]
        return sorted(others, key=lambda each: (self._sickness(each), self._asked.get(each, 0)))

    def _sickness(self, holder: ReplicaId) -> int:
        node = self._map.nodes.get(holder.peer)
        if node is None or not node.up or node.store != holder.store:
            return 2
        return 1 if node.at_risk or node.draining else 0

    def _presses(self, segment: Segment) -> bool:
        """Whether it has too few holders to take its time; see `presses`. A drained node counts: it
        stays until its copies are elsewhere.
        """
        nodes = [(self._map.nodes.get(each.peer), each) for each in segment.holders]
        safe = sum(
            node is not None and node.up and node.store == each.store and not node.at_risk
            for node, each in nodes
        )
        return presses(segment, safe)

    def _is_urgent(self, shard: ShardId, segment: Segment) -> bool:
        """The same of a segment under way, as the map has it now."""
        return self._presses(self._wanted.get((shard, segment.epoch), (None, segment))[1])

    def _urgency(self, work: tuple[Shard, Segment]) -> tuple[bool, int, int, int]:
        """Smaller goes first; the planner's order (`las.core.planner`)."""
        shard, segment = work
        sick = [self._sickness(holder) for holder in segment.holders]
        has_tail = (segment.known_commit or 0) < (segment.end or 0)
        lacks_tail = has_tail and sum(each < 2 for each in sick) < segment.plan.acks
        return (not lacks_tail, sick.count(0), shard.shard, segment.epoch)

    def _store(
        self, shard: Shard, segment: Segment, batches: list[PlacedBatch]
    ) -> "asyncio.Future[StoredSegment]":
        """Have a slice written; ends with the segment as it is stored then, or `CopyBroken`."""
        written: asyncio.Future[StoredSegment] = asyncio.get_running_loop().create_future()
        operation = FillSealed(
            shard=shard.shard,
            epoch=segment.epoch,
            begin=segment.begin if segment.begin is not None else Offset(0),
            end=_end_of(segment),
            open_epoch=shard.open.epoch,
            batches=tuple(batches),
            trimmed_to=shard.trimmed_to,
        )

        size_bytes = _size_of(batches)

        def ended(outcome: Outcome) -> None:
            self._writes.ended(size_bytes)
            if written.done():
                return
            if isinstance(outcome, Stored):
                written.set_result(outcome.state.segments[segment.epoch])
            else:
                written.set_exception(CopyBroken(f"the store refuses it: {outcome.why}"))

        self._host.submit(operation, ended)
        self._writes.begun(size_bytes)
        return written

    async def _spend(self, shard: ShardId, segment: Segment, batches: list[PlacedBatch]) -> None:
        size_bytes = _size_of(batches)
        self._copied_bytes += size_bytes
        self._meter.copied(sum(batch.header.record_count for batch in batches), size_bytes)
        urgent = self._is_urgent(shard, segment)
        await self._wait(self._budget.spend_copy(size_bytes, urgent=urgent))

    async def _wait(self, wait_s: float) -> None:
        """Wait as long as the budget says, and longer where that takes longer than it should while
        appends are written: then the processor is short, and they need it.
        """
        due_s = self._now_s() + wait_s
        await asyncio.sleep(wait_s)
        late_s = self._now_s() - due_s
        if late_s > LATE_S and self._budget.is_busy:
            await asyncio.sleep(min(LATE_REST * late_s, LATE_REST_S_MAX))


def _end_of(segment: Segment) -> Offset:
    return segment.end if segment.end is not None else Offset(0)


def _size_of(batches: list[PlacedBatch]) -> int:
    return sum(len(batch.payload) for batch in batches)
