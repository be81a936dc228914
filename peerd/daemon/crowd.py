"""Log lines of which there may be hundreds at once: the death of a peer with a thousand shards is
one event, not a thousand lines, each of which costs as much as a step of the recovery itself.

Invariants:
- The first lines of an event in a period are written as they are, with all their facts. Those that
  follow are one line at its end: how many they were, and of which shards, as far as there is room.
- Nothing is left out in silence: that line is written in the end, at the latest by `flush`.

Used on one event loop.
"""

import asyncio
import time

from structlog.typing import FilteringBoundLogger

# limit: lines of one event that are written one by one in each period: a change of a few shards,
# or the end of a small peer.
EACH_MAX = 16
PERIOD_S = 1.0
# limit: shards that the line for the others names
SHARDS_TOLD_MAX = 64


class Crowd:
    """Joins lines that are alike."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._period_ends_s = 0.0
        self._written: dict[tuple[int, str], int] = {}
        self._others: dict[tuple[int, str], list[int]] = {}

    def tell(self, level: int, event: str, *, shard: int, **facts: object) -> None:
        """One more line of `event`."""
        now_s = time.monotonic()
        if now_s >= self._period_ends_s:
            self.flush()
            self._period_ends_s = now_s + PERIOD_S
        key = (level, event)
        written = self._written.get(key, 0)
        if written < EACH_MAX:
            self._written[key] = written + 1
            self._log.log(level, event, shard=shard, **facts)
            return
        if not self._others:
            loop = asyncio.get_running_loop()
            loop.call_later(self._period_ends_s - now_s, self.flush)
        self._others.setdefault(key, []).append(shard)

    def flush(self) -> None:
        """Write what is left of the period."""
        others, self._others = self._others, {}
        self._written.clear()
        self._period_ends_s = 0.0
        for (level, event), shards in others.items():
            named = " ".join(map(str, shards[:SHARDS_TOLD_MAX]))
            rest = len(shards) - SHARDS_TOLD_MAX
            told = f"{named} and {rest} more" if rest > 0 else named
            self._log.log(level, event, count=len(shards), shards=told)
