"""`WriteQueue`: what a host has for its storage writer, in order, and when the writer is woken.

Invariants:
- Operations reach the writer in the order of `submit`, also those for which it had no room.
- The writer is woken for each: at once, or in the next turn of the event loop at the latest.

Frames leave before the writer begins. Its thread and the loop's run in turn, and what it does up to
its first write to the disk takes as long as a frame's way to a shadow. Begun at once, it held back
what a shadow waits for, and with it the append: a shadow's flush ends after the own one.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from peerd.core.durable import AppendBatches, Outcome, StoreOperation
from peerd.storage.errors import WriterOverloaded
from peerd.storage.store import Store

OnOutcome = Callable[[Outcome], None]


class WriteQueue:
    """Used on the event loop alone."""

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop) -> None:
        self.submitted = 0
        """Operations so far."""
        self.user_writes = 0
        """Of these, writes of what clients append, here or at another peer."""
        self.completed = 0
        """Of these, how many have their outcome; counted by the host."""
        self._store = store
        self._loop = loop
        self._held: deque[tuple[StoreOperation, OnOutcome | None]] = deque()
        self._wake_is_due = False

    @property
    def is_full(self) -> bool:
        """Operations wait for room in the writer's queue."""
        return bool(self._held)

    def submit(
        self, operation: StoreOperation, on_outcome: OnOutcome | None, *, frames_first: bool = False
    ) -> None:
        """Have `operation` written after all that came before.

        Args:
            operation: What is to be written.
            on_outcome: Comes back beside the outcome.
            frames_first: Let tasks that are woken in this turn of the loop run before.

        Raises:
            StorageFailed, StoreClosed: nothing is written any more.
        """
        self.submitted += 1
        self.user_writes += isinstance(operation, AppendBatches)
        if self._held or not self._has_room(operation, on_outcome, wake=not frames_first):
            # In the order in which it came; the next commit makes room.
            self._held.append((operation, on_outcome))
        elif frames_first and not self._wake_is_due:
            self._wake_is_due = True
            # Twice: the streams' tasks are woken after this call, but in the same turn.
            self._loop.call_soon(self._loop.call_soon, self._wake)

    def submit_again(self) -> None:
        """Room was made: give the writer what waits for it. Raises as `submit`."""
        while self._held and self._has_room(*self._held[0], wake=True):
            self._held.popleft()

    def _has_room(
        self, operation: StoreOperation, on_outcome: OnOutcome | None, *, wake: bool
    ) -> bool:
        """Give the writer an operation; False if its queue is full."""
        try:
            self._store.submit(operation, on_outcome, wake=wake)
        except WriterOverloaded:
            return False
        return True

    def _wake(self) -> None:
        self._wake_is_due = False
        self._store.wake_writer()
