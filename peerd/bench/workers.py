"""Client processes of a benchmark: started together, begun together, watched, and ended.

Each runs one job on an event loop of its own. It says that it is ready, waits for the common
moment at which all begin, tells how far it is, and hands its result back.
"""

import asyncio
import multiprocessing
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Generic, Protocol, TypeVar

import uvloop

from peerd.allocator import keep_freed_memory
from peerd.client.errors import PeerdError
from peerd.garbage import settle_garbage

# Between the word to begin and the beginning: enough for it to arrive everywhere.
LEAD_S = 0.1
# limit: client processes; each is a Python of 60 MB, and a machine has only so many cores
CLIENTS_MAX = 256

Result = TypeVar("Result")


class Stage(Protocol):
    """What a job sees of the process that asked for it."""

    async def begin(self) -> float:
        """Say that everything is ready; returns the moment of `time.monotonic` to begin at."""

    def told(self, acknowledged: int) -> None:
        """Say how much is done."""


Job = Callable[[Stage], Awaitable[Result]]


class BenchFailed(Exception):
    """The benchmark cannot be run like that; one line."""


@dataclass(frozen=True, slots=True)
class _Ready:
    """The process waits for the word to begin."""


@dataclass(frozen=True, slots=True)
class _Told:
    acknowledged: int


@dataclass(frozen=True, slots=True)
class _Done(Generic[Result]):
    result: Result


@dataclass(frozen=True, slots=True)
class _Failed:
    why: str


class _PipeStage:
    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    async def begin(self) -> float:
        self._pipe.send(_Ready())
        begin_s = await asyncio.to_thread(self._pipe.recv)
        assert isinstance(begin_s, float)
        return begin_s

    def told(self, acknowledged: int) -> None:
        self._pipe.send(_Told(acknowledged))


def _main(job: Job[object], pipe: Connection) -> None:
    """A client process."""

    async def run() -> object:
        return await job(_PipeStage(pipe))

    # As docs/client.md advises programs that move much.
    keep_freed_memory()
    settle_garbage()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            pipe.send(_Done(runner.run(run())))
    except PeerdError as error:
        pipe.send(_Failed(str(error)))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        # Nobody waits for the result any more.
        return


class Workers(Generic[Result]):
    """A context that runs `jobs`, each in a process of its own; they end with it."""

    def __init__(self, jobs: Sequence[Job[Result]]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for job in jobs:
            ours, theirs = context.Pipe()
            process = context.Process(target=_main, args=(job, theirs), daemon=True)
            self._pipes.append(ours)
            self._processes.append((process, theirs))

    def __enter__(self) -> "Workers[Result]":
        for process, theirs in self._processes:
            process.start()
            theirs.close()
        return self

    def __exit__(self, *_: object) -> None:
        for process, _theirs in self._processes:
            process.terminate()
        for process, _theirs in self._processes:
            process.join()

    def begin(self) -> float:
        """Wait until all are ready, and let them begin; the moment of `time.monotonic`.

        Raises:
            BenchFailed: what one of them could not do.
        """
        for pipe in self._pipes:
            heard = self._receive(pipe)
            if isinstance(heard, _Failed):
                raise BenchFailed(heard.why)
        begin_s = time.monotonic() + LEAD_S
        for pipe in self._pipes:
            pipe.send(begin_s)
        return begin_s

    def results(
        self,
        told: Callable[[int], None],
        at: Sequence[tuple[float, Callable[[], None]]] = (),
    ) -> list[Result]:
        """The results of all, in the order of the jobs.

        Args:
            told: Gets what all have done together, now and then.
            at: What to call at which moments of `time.monotonic`, in their order.

        Raises:
            BenchFailed: one of them ended without.
        """
        left = dict(zip(self._pipes, range(len(self._pipes)), strict=True))
        results: dict[int, Result] = {}
        done = [0] * len(self._pipes)
        appointments = deque(at)
        while left or appointments:
            timeout_s = None
            if appointments:
                timeout_s = max(0.0, appointments[0][0] - time.monotonic())
            heard = wait(list(left), timeout_s)
            if appointments and appointments[0][0] <= time.monotonic():
                appointments.popleft()[1]()
            for pipe in heard:
                assert isinstance(pipe, Connection)
                message = self._receive(pipe)
                if isinstance(message, _Told):
                    done[left[pipe]] = message.acknowledged
                    told(sum(done))
                elif isinstance(message, _Done):
                    results[left.pop(pipe)] = message.result
                elif isinstance(message, _Failed):
                    raise BenchFailed(message.why)
        return [results[index] for index in range(len(self._pipes))]

    @staticmethod
    def _receive(pipe: Connection) -> _Ready | _Told | _Done[Result] | _Failed:
        try:
            message: _Ready | _Told | _Done[Result] | _Failed = pipe.recv()
        except EOFError:
            return _Failed("a client process ended without a word")
        return message
