"""Trims what logs need not keep any more: by bytes and by age (docs/protocol.md §8.1).

Invariants:
- Of each shard at least `retention_bytes` of what is committed are kept, and everything that is
  younger than `retention_ms` by the committed clock; with both, what either allows may go.
- Bytes are counted by the stores that have them, segment by segment from the newest; a segment that
  nobody can be asked about ends the look at that shard.
- The clock (`las.daemon.clock`) is committed with each mark, and at least once in
  `CLOCK_COMMIT_MS` while there are marks.

Bounds: one call in `period_ms` to each primary for each `CUTS_PER_CALL_MAX` shards with a policy,
one trim a shard and look.

Must not: decide where a shard may be cut; `las.daemon.trimmer` asks for that.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence

from las.core.commands import MarkAges
from las.core.retention import expired
from las.core.state import AGE_MARKS_MAX, Log, ShardEntry
from las.daemon.clock import CommittedClock
from las.daemon.reconcile import Consensus
from las.daemon.trimmer import CannotTell, CutCalls, CutOrder, FoundCut, Trimmer, sources_of
from peerd.core.ids import FIRST_OFFSET, Epoch, Offset, ReplicaId, ShardId
from peerd.core.shard_map import Segment
from peerd.daemon.logging import get_logger
from peerd.transport.status import Refused

# limit: segments asked about in one call to a peer; each costs it the read of some rows
CUTS_PER_CALL_MAX = 256
# limit: marks of one command, so that it stays far below 64 KiB
MARKS_PER_COMMAND_MAX = 1_024
# The clock is committed this often while records grow old and nothing else commits it.
CLOCK_COMMIT_MS = 60_000

_ANYWHERE = Offset((1 << 64) - 1)

_log = get_logger("retention")


class Retention:
    """One leader's looks at all logs with a policy. Used on the event loop."""

    def __init__(
        self,
        consensus: Consensus,
        calls: CutCalls,
        trimmer: Trimmer,
        *,
        period_ms: int,
        clock: CommittedClock,
    ) -> None:
        self._consensus = consensus
        self._calls = calls
        self._trimmer = trimmer
        self._period_ms = period_ms
        self._clock = clock
        # Bytes of sealed segments behind what is trimmed: they do not change.
        self._sealed_bytes: dict[tuple[ShardId, Epoch, Offset], int] = {}
        # What has expired of sealed segments and was looked for: they do not change.
        self._looked: dict[ShardId, Offset] = {}

    @property
    def clock_ms(self) -> int:
        """The clock of retention, now."""
        return self._clock.clock_ms

    async def run(self) -> None:
        """Look again and again, for ever."""
        while True:
            await asyncio.sleep(self._period_ms / 1000)
            try:
                await self.look()
            except Refused as refused:
                _log.info("retention is looked at again later", why=str(refused))

    async def look(self) -> None:
        """Trim what may go, and mark what is committed by now. Raises `Refused`."""
        state, _ = self._consensus.indexed()
        if not any(log.retention_bytes or log.retention_ms for log in state.logs.values()):
            return
        kept = [
            (state.logs[entry.shard.log], entry)
            for entry in state.shards.values()
            if state.logs[entry.shard.log].retention_bytes
            or state.logs[entry.shard.log].retention_ms
        ]
        known = {entry.shard.shard for _, entry in kept}
        self._looked = {each: at for each, at in self._looked.items() if each in known}
        self._sealed_bytes = {
            key: size for key, size in self._sealed_bytes.items() if key[0] in known
        }
        by_bytes = await self._ask_primaries(
            [(entry, _ANYWHERE, log.retention_bytes) for log, entry in kept]
        )
        await self._mark(kept, by_bytes)
        state, _ = self._consensus.indexed()
        # A log may have been deleted meanwhile.
        kept = [(log, entry) for log, entry in kept if entry.shard.shard in state.shards]
        old = {
            entry.shard.shard: before
            for log, entry in kept
            if log.retention_ms
            and (
                before := expired(state.shards[entry.shard.shard], self.clock_ms, log.retention_ms)
            )
        }
        by_age = await self._ask_primaries(
            [
                (entry, old[entry.shard.shard], 0)
                for _, entry in kept
                if old.get(entry.shard.shard, FIRST_OFFSET) > (entry.shard.open.begin or 0)
            ]
        )
        for log, entry in kept:
            shard = entry.shard.shard
            try:
                done = log.retention_bytes and await self._trim_by_bytes(
                    entry, log.retention_bytes, by_bytes.get(shard)
                )
                if not done and shard in old:
                    await self._trim_by_age(entry, old[shard], by_age.get(shard))
            except CannotTell as error:
                _log.info("not trimmed now", shard=entry.shard.shard, why=str(error))

    # -------------------------------------------------------------------------- asking
    async def _ask_primaries(
        self, wishes: Sequence[tuple[ShardEntry, Offset, int]]
    ) -> dict[ShardId, FoundCut]:
        """Cuts of open segments at or below an offset that leave so many bytes, by shard."""
        state, _ = self._consensus.indexed()
        orders: dict[ReplicaId, list[CutOrder]] = defaultdict(list)
        for entry, before, keep_bytes in wishes:
            for replica in sources_of(state, entry.shard.open):
                order = CutOrder(
                    shard=entry.shard.shard,
                    epoch=entry.shard.open.epoch,
                    before=before,
                    keep_bytes=keep_bytes,
                )
                orders[replica].append(order)
        found: dict[ShardId, FoundCut] = {}
        for replica, wanted in orders.items():
            for at in range(0, len(wanted), CUTS_PER_CALL_MAX):
                part = wanted[at : at + CUTS_PER_CALL_MAX]
                answers = await self._calls.find_cuts(replica, part) or ()
                for order, cut in zip(part, answers, strict=False):
                    if cut is not None:
                        found[order.shard] = cut
        return found

    # -------------------------------------------------------------------------- age
    async def _mark(
        self, kept: Sequence[tuple[Log, ShardEntry]], found: dict[ShardId, FoundCut]
    ) -> None:
        """Commit what is committed by now, where it has moved and the last mark is old enough."""
        clock_ms = self.clock_ms
        state, _ = self._consensus.indexed()
        marks, has_marks = [], False
        for log, entry in kept:
            cut = found.get(entry.shard.shard)
            has_marks = has_marks or bool(entry.ages)
            if cut is None or not log.retention_ms:
                continue
            last_ms = entry.ages[-1].clock_ms if entry.ages else 0
            marked_to = entry.ages[-1].offset if entry.ages else entry.shard.trimmed_to
            step_ms = 2 * log.retention_ms // AGE_MARKS_MAX
            if cut.limit > marked_to and (not entry.ages or clock_ms - last_ms >= step_ms):
                marks.append((entry.shard.shard, cut.limit))
        if not marks and not (has_marks and clock_ms - state.clock_ms >= CLOCK_COMMIT_MS):
            return
        for at in range(0, max(1, len(marks)), MARKS_PER_COMMAND_MAX):
            part = tuple(marks[at : at + MARKS_PER_COMMAND_MAX])
            await self._consensus.submit(MarkAges(clock_ms=clock_ms, marks=part))

    # -------------------------------------------------------------------------- trimming
    async def _trim_by_age(self, entry: ShardEntry, before: Offset, cut: FoundCut | None) -> None:
        """Trim to the last cut at or below `before`. Raises `CannotTell`."""
        shard, opened = entry.shard, entry.shard.open
        if shard.kept_from < before <= shard.trimmed_to:
            # In the tier alone. What was committed when the clock was marked ends with a batch.
            await self._commit_cold(entry, before)
        elif before > (opened.begin or FIRST_OFFSET):
            if cut is not None:
                offset = max(opened.begin or FIRST_OFFSET, cut.offset)
                await self._trimmer.commit(shard, opened.epoch, offset)
        elif before > self._looked.get(shard.shard, FIRST_OFFSET):
            result = await self._trimmer.trim(shard.shard, before)
            if result is None or result.ok:
                self._looked[shard.shard] = before

    async def _commit_cold(self, entry: ShardEntry, before: Offset) -> None:
        shard = entry.shard
        for segment in (*shard.sealed, shard.open):
            begin = segment.begin or FIRST_OFFSET
            if begin < before and (segment.end is None or before <= segment.end):
                await self._trimmer.commit(shard, segment.epoch, before)

    async def _trim_by_bytes(
        self, entry: ShardEntry, keep_bytes: int, cut: FoundCut | None
    ) -> bool:
        """Whether something was trimmed; `cut` is that of the open segment. Raises `CannotTell`."""
        shard = entry.shard
        if cut is None:
            return False
        for segment in reversed((*shard.sealed, shard.open)):
            begin = max(segment.begin or FIRST_OFFSET, shard.kept_from)
            if segment.end is not None:
                if segment.end <= shard.kept_from:
                    return False
                known = self._sealed_bytes.get((shard.shard, segment.epoch, begin))
                if known is not None and known < keep_bytes:
                    keep_bytes -= known
                    continue
                cut = await self._trimmer.ask(
                    shard, segment, before=_ANYWHERE, keep_bytes=keep_bytes
                )
            if cut.offset > begin or cut.kept_bytes >= keep_bytes:
                offset = max(begin, cut.offset)
                return await self._commit(entry, segment, offset)
            if segment.end is not None:
                self._sealed_bytes[shard.shard, segment.epoch, begin] = cut.kept_bytes
            keep_bytes -= cut.kept_bytes
        return False

    async def _commit(self, entry: ShardEntry, segment: Segment, offset: Offset) -> bool:
        result = await self._trimmer.commit(entry.shard, segment.epoch, offset)
        return result is not None and result.ok
