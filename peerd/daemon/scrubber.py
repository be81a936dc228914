"""The scrub: reads all that is stored, again and again, so that damage is met before it is needed.

Bits rot where nobody reads. With every copy read and checked once in a while, a damaged batch is
mended (`peerd.daemon.repairer`) while another holder still has it.

Invariants:
- Every batch of every segment, committed or not, is read once a pass, and both its checksums are
  compared. What is stored or dropped during a pass may be met or not.
- The scrub stays within its budget of bytes a second. A batch counts as a page at least, so many
  small ones do not take the processor.
- Appends and reads go first: before each slice the scrub waits while the storage writer or the
  readers have work, but a second at most, so that a busy store is scrubbed, too.

What it does not see: pages that the kernel still holds in memory are read there, not on the disk.
Must not: change anything.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from peerd.core.batch import PlacedBatch
from peerd.core.ids import Epoch, Offset, ShardId
from peerd.daemon.budget import Budget
from peerd.daemon.host import ShardHost
from peerd.daemon.logging import get_logger
from peerd.daemon.reader import StoreReader
from peerd.storage.errors import Corrupt
from peerd.transport.status import Refused

# limit: bytes of one read; a few milliseconds of one thread
SLICE_BYTES_MAX = 256 * 1024
# What a batch counts at least: a page.
BATCH_BYTES_MIN = 4_096
# limit: times that one slice waits for appends and reads to have nothing to do; a second in all
GIVE_WAY_STEPS_MAX = 50
GIVE_WAY_STEP_S = 0.02

_log = get_logger("scrubber")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubStatistics:
    """Since the start of the process.

    `pass_age_s`: since the end of the last whole pass; None before the first.
    """

    scrubbed_bytes: int
    passes: int
    pass_age_s: float | None


class Scrubber:
    """One per process; `run` is its only task. Used on the event loop."""

    def __init__(
        self,
        *,
        host: ShardHost,
        reader: StoreReader,
        found: Callable[[Corrupt], None],
        bytes_per_s_max: int,
        interval_s: float,
        now_s: Callable[[], float],
    ) -> None:
        self._host = host
        self._reader = reader
        self._tell_found = found
        self._is_on = asyncio.Event()
        self._budget = Budget(1, now_s)
        self.limit(bytes_per_s_max, interval_s)
        self._now_s = now_s
        self._scrubbed_bytes = 0
        self._passes = 0
        self._passed_at_s: float | None = None

    def limit(self, bytes_per_s_max: int, interval_s: float) -> None:
        """Another rate (0: stand still) and another time from pass to pass, from now on."""
        self._budget.limit(max(1, bytes_per_s_max))
        self._interval_s = interval_s
        if bytes_per_s_max > 0:
            self._is_on.set()
        else:
            self._is_on.clear()

    def statistics(self) -> ScrubStatistics:
        """Counts, now."""
        passed_at_s = self._passed_at_s
        return ScrubStatistics(
            scrubbed_bytes=self._scrubbed_bytes,
            passes=self._passes,
            pass_age_s=None if passed_at_s is None else self._now_s() - passed_at_s,
        )

    async def run(self) -> None:
        """One pass after the other, for ever."""
        while True:
            await self._is_on.wait()
            began_s = self._now_s()
            await self._pass()
            self._passes += 1
            self._passed_at_s = self._now_s()
            await asyncio.sleep(max(0.0, began_s + self._interval_s - self._now_s()))

    async def _pass(self) -> None:
        for stored in self._host.stored_shards():
            for epoch, segment in sorted(stored.segments.items()):
                await self._segment(stored.shard, epoch, segment.first)

    async def _segment(self, shard: ShardId, epoch: Epoch, at: Offset) -> None:
        while True:
            await self._is_on.wait()
            segment = self._host.stored(shard).segments.get(epoch)
            if segment is None or at >= segment.end:
                return
            await self._give_way()
            try:
                batches = await self._reader.read(shard, epoch, at, segment.end, SLICE_BYTES_MAX)
            except Corrupt as damage:
                self._tell_found(damage)
                beyond = await self._reader.base_after(shard, epoch, max(at, damage.offset))
                await self._spend([])
                if beyond is None:
                    return
                at = beyond
            except Refused:
                await asyncio.sleep(GIVE_WAY_STEP_S)  # too many reads wait: they go first
            else:
                if not batches:
                    return  # it was dropped meanwhile
                at = batches[-1].end
                await self._spend(batches)

    async def _give_way(self) -> None:
        for _ in range(GIVE_WAY_STEPS_MAX):
            if self._host.storage_queued_bytes == 0 and self._reader.waiting == 0:
                return
            await asyncio.sleep(GIVE_WAY_STEP_S)

    async def _spend(self, batches: list[PlacedBatch]) -> None:
        self._scrubbed_bytes += sum(len(batch.payload) for batch in batches)
        charged_bytes = sum(max(len(batch.payload), BATCH_BYTES_MIN) for batch in batches)
        await asyncio.sleep(self._budget.spend(max(charged_bytes, BATCH_BYTES_MIN)))
