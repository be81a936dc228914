"""The one place where the daemon creates asyncio tasks.

Every task has a name and an owner: the supervisor. A task that dies is no private matter: what it
did for the process is not done any more, so its death ends the process, told by name and cause.

Invariants:
- No task is created anywhere else in the daemon, and none per append.
- The first failure is kept and told; later ones are consequences.
- `stop` ends every task within its deadline or says which one hangs.

Must not: restart anything. What should be tried again is tried again inside the task, with a bound.
"""

import asyncio
from collections.abc import Coroutine


class TaskDied(Exception):
    """A supervised task ended although it should not have; `__cause__` is its error, if any."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"task {name!r} ended: {why}")
        self.name = name


class Supervisor:
    """Owns the tasks of one process (or of one peer in a test). Used on one event loop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: asyncio.Future[TaskDied] = asyncio.get_running_loop().create_future()
        self._stopping = False

    def start(self, name: str, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Start `work`, which goes on until it is cancelled: its end is a failure."""
        return self._create(name, work, endless=True)

    def spawn(self, name: str, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Start `work`, which may end by itself; only an exception is a failure."""
        return self._create(name, work, endless=False)

    def fail(self, name: str, error: BaseException) -> None:
        """Tell that part `name` of the process, though no task, cannot go on."""
        failure = TaskDied(name, str(error) or type(error).__name__)
        failure.__cause__ = error
        self._record(failure)

    async def failed(self) -> TaskDied:
        """Wait for the first failure and return it."""
        return await asyncio.shield(self._failure)

    @property
    def task_count(self) -> int:
        """Tasks that run now."""
        return len(self._tasks)

    async def stop(self, *, timeout_s: float) -> tuple[str, ...]:
        """Cancel every task; returns the names of those that do not end within `timeout_s`."""
        self._stopping = True
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if not tasks:
            return ()
        _, hanging = await asyncio.wait(tasks, timeout=timeout_s)
        return tuple(sorted(task.get_name() for task in hanging))

    def _create(
        self, name: str, work: Coroutine[None, None, None], *, endless: bool
    ) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(lambda ended: self._ended(ended, endless=endless))
        return task

    def _ended(self, task: asyncio.Task[None], *, endless: bool) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self.fail(task.get_name(), error)
        elif endless and not self._stopping:
            self._record(TaskDied(task.get_name(), "it returned, though its work never ends"))

    def _record(self, failure: TaskDied) -> None:
        if not self._failure.done():
            self._failure.set_result(failure)
