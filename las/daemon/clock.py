"""The committed clock as one leader reads it, and the drains that end by it.

Invariants:
- The clock goes on from where it was committed, by this leader's monotonic clock, and never back.
  So no wall clock has a part in it; what passed while nobody led is not counted.
- While a drain has a deadline the clock is committed at least once in `COMMIT_MS`, so a change of
  the leader costs so much at most: a drain may end later than was asked for, never earlier.
"""

import asyncio
from collections.abc import Callable

from las.core.commands import MarkAges
from las.core.state import ClusterState
from las.daemon.reconcile import Consensus
from peerd.daemon.logging import get_logger
from peerd.transport.status import Refused

# Pause between two looks for a deadline that has come.
LOOK_MS = 500
# The clock is committed this often while a deadline lies ahead.
COMMIT_MS = 10_000

_log = get_logger("clock")


class CommittedClock:
    """Of one term. `now_ms` is a monotonic clock in milliseconds."""

    def __init__(self, consensus: Consensus, now_ms: Callable[[], int]) -> None:
        self._consensus = consensus
        self._now_ms = now_ms
        state, _ = consensus.indexed()
        self._base_ms = state.clock_ms - now_ms()

    @property
    def clock_ms(self) -> int:
        """The clock, now."""
        state, _ = self._consensus.indexed()
        return max(state.clock_ms, self._base_ms + self._now_ms())


class Deadlines:
    """Ends drains whose time is over. Used on the event loop."""

    def __init__(self, consensus: Consensus, clock: CommittedClock) -> None:
        self._consensus = consensus
        self._clock = clock

    async def run(self) -> None:
        """Look again and again, for ever."""
        while True:
            await asyncio.sleep(LOOK_MS / 1000)
            try:
                await self.look()
            except Refused as refused:
                _log.info("deadlines are looked at again later", why=str(refused))

    async def look(self) -> None:
        """Commit the clock if a drain ends by now, or if it was not for long. Raises `Refused`."""
        state, _ = self._consensus.indexed()
        first_ms = next_deadline_ms(state)
        if first_ms is None:
            return
        clock_ms = self._clock.clock_ms
        if clock_ms >= first_ms or clock_ms - state.clock_ms >= COMMIT_MS:
            await self._consensus.submit(MarkAges(clock_ms=clock_ms))


def next_deadline_ms(state: ClusterState) -> int | None:
    """Where the committed clock ends a drain next; None if there is no such drain."""
    deadlines = (
        node.drain_until_ms
        for node in state.nodes.values()
        if node.draining and node.drain_until_ms
    )
    return min(deadlines, default=None)
