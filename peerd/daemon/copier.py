"""The copier: makes this store a holder of the sealed segments that the map wants here.

The LAS says what is wanted (`wanted_holders`), the copier pulls it from a holder, the LAS lists
this store once it reports (docs/protocol.md §8).

Invariants:
- A segment is reported only when the store has all of it under its epoch, sealed at the map's X:
  what was fetched has passed its checksum on arrival, what was here before is read back first.
- Kept tails (fewer holders than the segment's `acks`) go first, then whoever has fewest holders.
- All copying together stays within one budget of bytes a second. New appends never wait for it.
- A copy that breaks off is continued where it ended, from another holder if need be.
- What was reported and is not listed yet is reported again, and not read again: a LAS that is away
  for a minute costs no disk.

Must not: choose what is copied, or drop anything.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from las.v1 import fleet_pb2
from peerd.core.batch import PlacedBatch
from peerd.core.durable import FillSealed, Outcome, Stored, StoredSegment
from peerd.core.ids import Epoch, Offset, ProcessId, ReplicaId, ShardId
from peerd.core.shard_map import Segment, Shard
from peerd.daemon.crowd import Crowd
from peerd.daemon.host import ShardHost
from peerd.daemon.logging import get_logger
from peerd.daemon.peer_calls import PeerCalls
from peerd.storage.errors import Corrupt, StorageError
from peerd.transport.host_api import HolderUnavailable
from peerd.transport.map_cache import MapCache
from peerd.transport.status import Refused

# limit: bytes of one fetch and one write; small enough that appends come in between
SLICE_BYTES_MAX = 1024 * 1024
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


class Budget:
    """Spreads bytes over time. `now_s` is a monotonic clock."""

    def __init__(self, bytes_per_s_max: int, now_s: Callable[[], float]) -> None:
        self._bytes_per_s_max = bytes_per_s_max
        self._now_s = now_s
        self._free_at_s = now_s()

    def limit(self, bytes_per_s_max: int) -> None:
        """Another rate from now on."""
        self._bytes_per_s_max = bytes_per_s_max

    def spend(self, size_bytes: int) -> float:
        """Take `size_bytes`; returns how many seconds to wait before the next."""
        now_s = self._now_s()
        self._free_at_s = max(self._free_at_s, now_s) + size_bytes / self._bytes_per_s_max
        return self._free_at_s - now_s


class Copier:
    """One per process; `run` is its only task."""

    def __init__(
        self,
        *,
        me: ProcessId,
        host: ShardHost,
        map_cache: MapCache,
        calls: PeerCalls,
        report: Callable[[fleet_pb2.PeerReport], None],
        bytes_per_s_max: int,
        now_s: Callable[[], float],
    ) -> None:
        self._mine = me.replica
        self._host = host
        self._map = map_cache
        self._calls = calls
        self._report = report
        self._now_s = now_s
        self._budget = Budget(bytes_per_s_max, now_s)
        self._not_before_s: dict[Key, float] = {}
        self._tries: dict[Key, int] = {}
        self._unlisted: set[Key] = set()
        self._copied_bytes = 0
        self._copied_segments = 0
        self._wanted_segments = 0

    def limit(self, bytes_per_s_max: int) -> None:
        """Another rate from now on."""
        self._budget.limit(bytes_per_s_max)

    def statistics(self) -> CopierStatistics:
        """Counts, now."""
        return CopierStatistics(
            copied_bytes=self._copied_bytes,
            copied_segments=self._copied_segments,
            wanted_segments=self._wanted_segments,
        )

    async def run(self) -> None:
        """Copy what is wanted, for ever."""
        while True:
            changed = self._map.changed
            work = self._most_urgent()
            if work is not None:
                await self._copy(*work)
                continue
            try:
                async with asyncio.timeout(AGAIN_AFTER_S if self._wanted_segments else None):
                    await changed.wait()
            except TimeoutError:
                pass  # something waits to be tried again

    def _most_urgent(self) -> tuple[Shard, Segment] | None:
        """The segment to copy next; None if there is none now."""
        wanted = {
            (shard.shard, segment.epoch): (shard, segment)
            for shard in self._host.map_entries()
            for segment in shard.sealed
            if self._mine in segment.wanted_holders and self._mine not in segment.holders
        }
        self._wanted_segments = len(wanted)
        self._unlisted &= wanted.keys()
        for known in (self._not_before_s, self._tries):
            for key in known.keys() - wanted.keys():
                del known[key]
        now_s = self._now_s()
        due = [work for key, work in wanted.items() if self._not_before_s.get(key, now_s) <= now_s]
        return min(due, key=_urgency, default=None)

    async def _copy(self, shard: Shard, segment: Segment) -> None:
        """Bring one segment here and report it, or leave it for later."""
        key = (shard.shard, segment.epoch)
        tries = self._tries.get(key, 0)
        self._tries[key] = tries + 1
        try:
            if key not in self._unlisted:
                await self._fill(shard, segment)
                _crowd.tell(
                    logging.INFO, "segment copied", shard=key[0], epoch=key[1], end=segment.end
                )
                self._copied_segments += 1
                self._unlisted.add(key)
                tries = self._tries[key] = 0
        except (CopyBroken, StorageError, Refused) as error:
            _log.warning("copy broke off", shard=key[0], epoch=key[1], why=str(error))
        else:
            self._report(
                fleet_pb2.PeerReport(holder_added=fleet_pb2.HolderAdded(shard=key[0], epoch=key[1]))
            )
        again_after_s = AGAIN_AFTER_S * 2 ** min(tries, AGAIN_DOUBLINGS_MAX)
        self._not_before_s[key] = self._now_s() + again_after_s

    async def _fill(self, shard: Shard, segment: Segment) -> None:
        """Raises `CopyBroken`, or what store and reader raise."""
        # Without batches: seals what is here at the map's X, and raises the promise (§3).
        here = await self._store(shard, segment, [])
        await self._read_back(shard.shard, here)
        end = _end_of(segment)
        while here.end < end:
            batches = await self._fetch(shard.shard, segment, here.end)
            if batches[0].base != here.end:
                raise CopyBroken(f"offset {here.end} lies inside the batch at {batches[0].base}")
            here = await self._store(shard, segment, batches)
            await self._spend(batches)

    async def _read_back(self, shard: ShardId, here: StoredSegment) -> None:
        """Read what was stored before; a holder vouches for all of it. Raises `Corrupt`."""
        at = here.first
        while at < here.end:
            batches = await self._host.read(shard, here.epoch, at, here.end, SLICE_BYTES_MAX)
            if not batches:
                raise Corrupt(shard, here.epoch, at, "the batch is missing")
            at = batches[-1].end
            await self._spend(batches)

    async def _fetch(self, shard: ShardId, segment: Segment, at: Offset) -> list[PlacedBatch]:
        """The next batches, from the first holder that gives them. Raises `CopyBroken`."""
        failures = []
        for holder in self._sources(segment):
            try:
                return await self._calls.fetch(
                    holder,
                    shard,
                    segment.epoch,
                    at,
                    _end_of(segment),
                    SLICE_BYTES_MAX,
                    copy=True,
                )
            except HolderUnavailable as error:
                failures.append(str(error))
        raise CopyBroken("; ".join(failures) or "no other holder is listed")

    def _sources(self, segment: Segment) -> list[ReplicaId]:
        """Holders to ask, healthy ones first."""
        others = [holder for holder in segment.holders if holder != self._mine]
        return sorted(others, key=self._sickness)

    def _sickness(self, holder: ReplicaId) -> int:
        node = self._map.nodes.get(holder.peer)
        if node is None or not node.up or node.store != holder.store:
            return 2
        return 1 if node.at_risk or node.draining else 0

    async def _store(
        self, shard: Shard, segment: Segment, batches: list[PlacedBatch]
    ) -> StoredSegment:
        """Write a slice; returns the segment as it is stored then."""
        written: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        operation = FillSealed(
            shard=shard.shard,
            epoch=segment.epoch,
            begin=segment.begin if segment.begin is not None else Offset(0),
            end=_end_of(segment),
            open_epoch=shard.open.epoch,
            batches=tuple(batches),
            trimmed_to=shard.trimmed_to,
        )
        self._host.submit(
            operation, lambda outcome: None if written.done() else written.set_result(outcome)
        )
        outcome = await written
        if not isinstance(outcome, Stored):
            raise CopyBroken(f"the store refuses it: {outcome.why}")
        return outcome.state.segments[segment.epoch]

    async def _spend(self, batches: list[PlacedBatch]) -> None:
        size_bytes = sum(len(batch.payload) for batch in batches)
        self._copied_bytes += size_bytes
        await asyncio.sleep(self._budget.spend(size_bytes))


def _urgency(work: tuple[Shard, Segment]) -> tuple[bool, int, int, int]:
    """Smaller goes first."""
    shard, segment = work
    holders = len(segment.holders)
    return (holders >= segment.plan.acks, holders, shard.shard, segment.epoch)


def _end_of(segment: Segment) -> Offset:
    return segment.end if segment.end is not None else Offset(0)
