"""The one thread that owns a member, and the bridge between it and the event loop.

Invariants:
- Only this thread calls the member. The event loop hands it functions, in order.
- What a step sets free reaches the event loop in one call, in order, after the step's sync.
- An exception that nobody expected ends the process.

Must not: wait for the event loop.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from las.raft.errors import NotRunning, RaftError
from las.raft.member import FailStop, Outcome, RaftMember, RaftStatus, Step

T = TypeVar("T")
Event = Callable[[RaftMember], None]

# limit: events that one step takes in; bounds what one sync has to cover and how long a heartbeat
# may wait behind other work
EVENTS_PER_STEP_MAX = 512


class RaftThread:
    """Runs a member. Methods are called from the event loop it was made in."""

    def __init__(
        self,
        make: Callable[[], RaftMember],
        *,
        tick_s: float,
        on_step: Callable[[Step], None],
        fatal: Callable[[str], None],
    ) -> None:
        """
        Args:
            make: Makes the member; runs in the thread and may take as long as a snapshot's load.
            tick_s: A step follows the last one after so long without events.
            on_step: Called in the event loop with each step that sets something free.
            fatal: Ends the process.
        """
        self._make = make
        self._tick_s = tick_s
        self._on_step = on_step
        self._fatal = fatal
        self._loop = asyncio.get_running_loop()
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._after_step: list[Callable[[], None]] = []
        self._remaining: list[tuple[int, Outcome]] = []
        self._told: RaftStatus | None = None
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="las-raft", daemon=True)

    async def start(self) -> None:
        """Starts the thread and waits for the member. Raises what making it raised."""
        self._thread.start()
        await self._started

    async def stop(self) -> list[tuple[int, Outcome]]:
        """Ends the thread after the events before, and returns what was still open."""
        self._events.put(None)
        await self._ended
        self._thread.join()
        return self._remaining

    def post(self, event: Event) -> None:
        """Lets the thread run `event` before its next step."""
        self._events.put(event)

    def after_step(self, action: Callable[[], None]) -> None:
        """From within an event: lets the event loop run `action` after this step's sync."""
        self._after_step.append(action)

    async def call(self, function: Callable[[RaftMember], T]) -> T:
        """Runs `function` in the thread and returns its result, after the step's sync.

        Raises:
            RaftError: the function raised it.
            NotRunning: the thread ended before.
        """
        future: asyncio.Future[T] = self._loop.create_future()

        def event(member: RaftMember) -> None:
            try:
                result = function(member)
            except RaftError as error:
                refusal = error
                self.after_step(lambda: None if future.done() else future.set_exception(refusal))
            else:
                self.after_step(lambda: None if future.done() else future.set_result(result))

        if self._ended.done():
            raise NotRunning("the LAS node stops")
        self.post(event)
        either: set[asyncio.Future[T] | asyncio.Future[None]] = {future, self._ended}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not future.done():
            raise NotRunning("the LAS node stops")
        return future.result()

    # ------------------------------------------------------------------ in the thread

    def _run(self) -> None:
        try:
            member = self._make()
        except (Exception, FailStop) as error:  # noqa: BLE001  whatever it is, start() raises it
            failure = error
            self._tell(lambda: self._started.set_exception(failure))
            return
        self._tell(lambda: self._started.set_result(None))
        try:
            while self._take_events(member):
                self._release(member.step())
            self._remaining = member.close()
        except FailStop:
            pass
        except BaseException as error:  # noqa: BLE001  nothing may go on without this thread
            self._fatal(f"the raft thread ended: {error!r}")
        self._tell(lambda: self._ended.set_result(None))

    def _take_events(self, member: RaftMember) -> bool:
        """Waits for an event or the next tick, and runs what is there; False at the end."""
        try:
            event = self._events.get(timeout=self._tick_s)
        except queue.Empty:
            return True
        for _ in range(EVENTS_PER_STEP_MAX):
            if event is None:
                return False
            event(member)
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return True
        # The event in hand is the first of the next step.
        if event is None:
            return False
        event(member)
        return True

    def _release(self, step: Step) -> None:
        actions, self._after_step = self._after_step, []
        nothing = not (actions or step.frames or step.outcomes)
        if nothing and step.status == self._told:
            # Nearly all steps of an idle group: each would wake the loop, fifty times a second.
            return
        self._told = step.status

        def run() -> None:
            self._on_step(step)
            for action in actions:
                action()

        self._tell(run)

    def _tell(self, action: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(action)
        except RuntimeError:
            # The event loop is closed: nobody is left to be told.
            self._events.put(None)
