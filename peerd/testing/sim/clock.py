"""Virtual time, and the one queue of everything that is going to happen.

A run is a loop over this queue: the earliest entry is taken, time jumps to it, its action is done.
At equal times the order is that in which entries were made, so a run depends on its seed alone.
"""

import heapq
from collections.abc import Callable
from typing import TypeVar

Action = Callable[..., None]
Argument = TypeVar("Argument")


class Clock:
    """`now` is virtual milliseconds. It grows only in `run`."""

    __slots__ = ("_due", "_number", "now")

    def __init__(self) -> None:
        self.now = 0
        self._due: list[tuple[int, int, Action, object]] = []
        self._number = 0

    def at(self, when_ms: int, action: Callable[[Argument], None], argument: Argument) -> None:
        """Do `action(argument)` at `when_ms`."""
        self._number += 1
        heapq.heappush(self._due, (when_ms, self._number, action, argument))

    def later(self, delay_ms: int, action: Callable[[Argument], None], argument: Argument) -> None:
        """Do `action(argument)` after `delay_ms`."""
        self._number += 1
        heapq.heappush(self._due, (self.now + delay_ms, self._number, action, argument))

    def run(self, until_ms: int, is_done: Callable[[], bool] | None = None) -> None:
        """Do what is due up to `until_ms`, or until `is_done`, which is asked now and then."""
        due, pop = self._due, heapq.heappop
        asked = 0
        while due and due[0][0] <= until_ms:
            self.now, _, action, argument = pop(due)
            action(argument)
            if is_done is not None:
                asked += 1
                if asked & 63 == 0 and is_done():
                    return
        if is_done is None or not is_done():
            self.now = max(self.now, until_ms)
