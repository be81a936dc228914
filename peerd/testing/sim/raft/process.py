"""One life of a member: `las.raft.driver` in virtual time.

As there, events wait until the member is free; a step takes what waits, lets the member act, and
what comes out leaves once the step's syncs are done. Nothing else can happen to the member in
between. A paused process takes nothing, and goes on later as if nothing had happened.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, TypeVar

from las.raft.driver import EVENTS_PER_STEP_MAX, Event
from las.raft.errors import RaftError
from las.raft.member import FailStop, Outcome, RaftMember, RaftStatus, Step
from las.raft.sessions import Envelope
from las.raft.store import open_directory
from peerd.testing.sim.checkers import BrokenPromise
from peerd.testing.sim.raft.disk import Gone
from peerd.testing.sim.raft.machine import Machine
from peerd.testing.sim.raft.seams import time_is

if TYPE_CHECKING:
    from peerd.testing.sim.raft.group import Host, RaftGroup

T = TypeVar("T")
Done = Callable[[Outcome], None]

TICK_MS = 20
"""The longest time between two steps, as in production."""
WRITING_MS = (1, 5, 30, 200)
"""How long the snapshot writer takes."""


class Writer(Executor):
    """The thread that writes snapshots: a job is done a while later, if the process still lives."""

    def __init__(self, process: "Process") -> None:
        self._process = process

    def submit(self, function: Callable[..., T], /, *args: object, **kwargs: object) -> Future[T]:
        """See `Executor`."""
        future: Future[T] = Future()

        def job() -> None:
            try:
                future.set_result(function(*args, **kwargs))
            except OSError as error:
                future.set_exception(error)

        process = self._process
        delay_ms = process.group.world.rng.choice(WRITING_MS)
        process.group.world.clock.later(delay_ms, process.write, job)
        return future


class Process:
    """See the module. `is_over` once it has ended, in whatever way."""

    def __init__(self, group: "RaftGroup", host: "Host") -> None:
        self.group = group
        self.host = host
        self.name = host.name
        self.began_at = group.world.clock.now
        self.is_over = False
        self.paused_until = 0
        self.streams: dict[str, object] = {}
        """The newest stream of each other member, whose frames are taken."""
        self._events: deque[tuple[Event, Callable[[], None] | None]] = deque()
        self._free_at = 0
        self._wake_at: int | None = None
        self._token = 0
        self._open: dict[int, Done] = {}
        self.machine = Machine(host.name, group.history)
        with time_is(self.now_s):
            store = open_directory(
                host.directory,
                cluster=group.cluster,
                name=host.name,
                members=tuple(group.hosts),
                disk=host.disk,
            )
            self.member = RaftMember(
                store=store,
                machine=self.machine,
                seed=group.world.rng.getrandbits(32),
                clock=self.now_s,
                background=Writer(self),
                fatal=self._fatal,
                timing=group.timing,
            )
        self.status: RaftStatus = self.member.status()
        self._wake(group.world.clock.now)

    def now_s(self) -> float:
        """This machine's monotonic clock."""
        return self.host.clock_begins_s + self.group.world.clock.now / 1_000

    # ------------------------------------------------------------------ the thread
    def post(self, event: Event, then: Callable[[], None] | None = None) -> None:
        """Let the member take an event; `then` runs after its step's sync."""
        if not self.is_over:
            self._events.append((event, then))
            self._wake(self.group.world.clock.now)

    def _wake(self, at_ms: int) -> None:
        at_ms = max(at_ms, self._free_at, self.paused_until)
        if self._wake_at is None or at_ms < self._wake_at:
            self._wake_at = at_ms
            self.group.world.clock.at(at_ms, self._woken, at_ms)

    def _woken(self, at_ms: int) -> None:
        if self.is_over or self._wake_at != at_ms:
            return
        self._wake_at = None
        now = self.group.world.clock.now
        if now < self.paused_until:
            self._wake(self.paused_until)
            return
        self._step()
        if not self.is_over:
            self._wake(now if self._events else max(now, self._free_at) + TICK_MS)

    def _step(self) -> None:
        taken = []
        step: Step | None = None

        def work() -> None:
            nonlocal step
            for _ in range(min(len(self._events), EVENTS_PER_STEP_MAX)):
                event, then = self._events.popleft()
                event(self.member)
                if then is not None:
                    taken.append(then)
            step = self.member.step()

        self.run(work)
        if step is None or self.is_over:
            return
        clock = self.group.world.clock
        self._free_at = clock.now + self.host.disk.take_busy_ms()
        clock.at(self._free_at, self._release, (step, self.machine.position, taken))

    def run(self, work: Callable[[], None]) -> None:
        """Do something as this process: it may end in the middle."""
        try:
            with time_is(self.now_s):
                work()
        except Gone:
            self.group.end(self.host, "it is killed in the middle of a step")
        except FailStop as failure:
            if self.group.history.finding is not None:
                raise self.group.history.finding from failure
            if not self.host.disk.has_failed:
                raise BrokenPromise(f"{self.name} ended itself: {failure}") from failure
            self.group.end(self.host, f"it ends itself: {failure}")

    def _release(self, released: tuple[Step, int, list[Callable[[], None]]]) -> None:
        step, position, actions = released
        if self.is_over:
            return
        now = self.group.world.clock.now
        if now < self.paused_until:
            self.group.world.clock.at(self.paused_until, self._release, released)
            return
        self.status = step.status
        self.group.stepped(self, step, position)
        for token, outcome in step.outcomes:
            done = self._open.pop(token, None)
            if done is not None:
                done(outcome)
        for action in actions:
            action()

    def write(self, job: Callable[[], None]) -> None:
        """The other thread writes a snapshot; the member does not wait for it."""
        if not self.is_over:
            busy_ms = self.host.disk.busy_ms
            self.run(job)
            self.host.disk.busy_ms = busy_ms

    def _fatal(self, reason: str) -> None:
        """The member raises `FailStop` behind this."""

    # ------------------------------------------------------------------ what is asked of it
    def call(
        self, function: Callable[[RaftMember], T], done: Callable[[T | RaftError], None]
    ) -> None:
        """Run `function` in the thread; `done` gets its result after the step's sync."""
        result: list[T | RaftError] = []

        def event(member: RaftMember) -> None:
            try:
                result.append(function(member))
            except RaftError as error:
                result.append(error)

        self.post(event, lambda: done(result[0]))

    def submit(self, envelope: Envelope, done: Done) -> None:
        """Let the group apply a command; without an outcome `done` is never called."""
        token = self._opened(done)
        self.post(lambda member: member.propose(token, envelope))

    def barrier(self, done: Done) -> None:
        """Wait until all that was acknowledged before is in the machine of this process."""
        token = self._opened(done)
        self.post(lambda member: member.barrier(token))

    def _opened(self, done: Done) -> int:
        self._token += 1
        self._open[self._token] = done
        return self._token

    def end(self) -> None:
        """It is gone: nothing of it acts any more, nobody is told."""
        self.is_over = True
        self._events.clear()
        self._open.clear()
