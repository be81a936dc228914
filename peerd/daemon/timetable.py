"""When which shard wants to be woken: one timer of the event loop for all of them.

A shard may have several appointments in the heap, of which one counts: making one earlier is a
push, making one later is nothing (it is looked at when the earlier one comes). So an append costs
no timer, and the heap never holds more than the appointments that were made earlier.
"""

import asyncio
import heapq
from collections.abc import Callable

from peerd.core.ids import ShardId, Tick


class Timetable:
    """`ring` is called on the event loop, once for each appointment that has come."""

    def __init__(self, ring: Callable[[ShardId, Tick], None]) -> None:
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._due: dict[ShardId, Tick] = {}
        self._heap: list[tuple[Tick, ShardId]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: Tick | None = None
        self._ringing = False

    def now(self) -> Tick:
        """The clock that appointments are made by: milliseconds, monotonic."""
        return Tick(int(self._loop.time() * 1000))

    def wake(self, shard: ShardId, at: Tick | None) -> None:
        """Ring for `shard` at `at` or, if it has an earlier appointment, then. None: no wish."""
        if at is None:
            return
        due = self._due.get(shard)
        if due is not None and due <= at:
            return
        self._due[shard] = at
        heapq.heappush(self._heap, (at, shard))
        if not self._ringing and (self._timer_at is None or at < self._timer_at):
            self._arm(at)

    def stop(self) -> None:
        """Ring no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._ringing = True

    def _arm(self, at: Tick) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        # A millisecond later: the clock is cut to whole ones, so the tick itself may be to come.
        self._timer = self._loop.call_at((at + 1) / 1000.0, self._run)

    def _run(self) -> None:
        self._timer = self._timer_at = None
        now = self.now()
        # An appointment that is made for now while ringing comes in the next turn of the loop.
        self._ringing = True
        try:
            come = []
            while self._heap and self._heap[0][0] <= now:
                due, shard = heapq.heappop(self._heap)
                if self._due.get(shard) == due:
                    del self._due[shard]
                    come.append(shard)
            for shard in come:
                self._ring(shard, now)
        finally:
            self._ringing = False
        if self._heap:
            self._arm(self._heap[0][0])
