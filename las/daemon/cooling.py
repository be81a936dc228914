"""Lets stores drop what the tier has: of each shard of a tiered log but its hot bytes.

Invariants:
- Only what the committed map says is in the tier, verified; `las.core.tier` looks again when it is
  committed.
- Of each shard at least `hot_bytes` stay in stores, counted by the stores that have them, segment
  by segment from the newest. Who cannot be asked keeps everything.

Where the tier has grown it looks every `STEP_MS`, so that disks hold little more than they should
while much is appended; everywhere every `period_ms`, since hot bytes grow beside a tier that does
not, and what is in it may go then, too.

Bounds: one call for each segment that is hot, of each shard that has something to cool, a look.

Must not: decide where a shard may be cut; `las.daemon.trimmer` asks for that.
"""

import asyncio

from las.core.state import ShardEntry
from las.core.tier_commands import CoolShard
from las.daemon.reconcile import Consensus
from las.daemon.trimmer import CannotTell, Trimmer
from peerd.core.ids import FIRST_OFFSET, Epoch, Offset, ShardId
from peerd.daemon.logging import get_logger
from peerd.transport.status import Refused

# Between two looks at shards of which more is in the tier. Milliseconds.
STEP_MS = 1_000

_log = get_logger("cooling")


class Cooling:
    """One leader's looks at all tiered logs. Used on the event loop."""

    def __init__(self, consensus: Consensus, trimmer: Trimmer, *, period_ms: int) -> None:
        self._consensus = consensus
        self._trimmer = trimmer
        self._period_ms = period_ms
        self._seen: dict[ShardId, Offset] = {}

    async def run(self) -> None:
        """Look again and again, for ever."""
        step_ms = min(STEP_MS, self._period_ms)
        since_ms = 0
        while True:
            await asyncio.sleep(step_ms / 1000)
            since_ms += step_ms
            try:
                await self.look(everywhere=since_ms >= self._period_ms)
                since_ms %= self._period_ms
            except Refused as refused:
                _log.info("what is cold is looked for again later", why=str(refused))

    async def look(self, *, everywhere: bool = True) -> None:
        """Commit what stores may drop, `everywhere` or where the tier has grown since the last
        look. Raises `Refused`.
        """
        state, _ = self._consensus.indexed()
        self._seen = {shard: end for shard, end in self._seen.items() if shard in state.shards}
        if not any(log.hot_bytes for log in state.logs.values()):
            return
        for entry in list(state.shards.values()):
            log = state.logs[entry.shard.log]
            tier = entry.shard.tier
            if not log.hot_bytes or tier is None or tier.end <= entry.shard.trimmed_to:
                continue
            if not everywhere and self._seen.get(entry.shard.shard) == tier.end:
                continue
            try:
                found = await self._cold_to(entry, log.hot_bytes)
            except CannotTell as error:
                _log.info("not cooled now", shard=entry.shard.shard, why=str(error))
                continue
            self._seen[entry.shard.shard] = tier.end
            if found is not None:
                epoch, cold_to = found
                await self._consensus.submit(
                    CoolShard(shard=entry.shard.shard, epoch=epoch, cold_to=cold_to)
                )

    async def _cold_to(self, entry: ShardEntry, hot_bytes: int) -> tuple[Epoch, Offset] | None:
        """The newest place below which all is in the tier and behind which `hot_bytes` lie.

        Raises `CannotTell`.
        """
        shard = entry.shard
        tiered_to = shard.kept_from if shard.tier is None else shard.tier.end
        for segment in reversed((*shard.sealed, shard.open)):
            if segment.end is not None and segment.end <= shard.trimmed_to:
                return None
            begin = max(segment.begin or FIRST_OFFSET, shard.trimmed_to)
            found = await self._trimmer.ask(shard, segment, before=tiered_to, keep_bytes=hot_bytes)
            if begin < found.offset <= tiered_to:
                return segment.epoch, found.offset
            hot_bytes = max(0, hot_bytes - found.kept_bytes)
            if hot_bytes == 0 and shard.trimmed_to < begin <= tiered_to:
                return segment.epoch, begin
        return None
