"""Many replays of one history over the cores, and how far they are.

A signal of the terminal, Ctrl-C, is for the process that asked: those that replay never see it, are
told by it, and end with their next step; as they do when it has gone.

Bounds: as many processes as cores, each with one replay at a time.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.sharedctypes import Synchronized, SynchronizedArray

from las.forecast.history_inputs import HistoryIndex
from las.replay.histories import History
from las.replay.predictors import DecayedCount, HistoryHead, Predictor, Remembered
from las.replay.run import ANTICIPATE, Options, Outcome, replay
from las.replay.sources import Source, read

# limit: runs of one sweep; a table of more tells nobody anything.
RUNS_MAX = 1_000
_LOOK_S = 0.5

Told = Callable[[float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What every process needs to know; each reads the history itself."""

    source: Source
    predictor: str
    horizon_s: int
    begin_s: int
    end_s: int


_work: Work
_history: History
_predictor: Predictor | None
_done: SynchronizedArray[float]
_ended: Synchronized[int]


class _RunEnded(Exception):  # noqa: N818 - it is the wish of who asked
    """Nobody waits for this run any more."""


def _prepare(work: Work, done: SynchronizedArray[float], ended: Synchronized[int]) -> None:
    """Once in each process."""
    global _work, _history, _predictor, _done, _ended
    _work, _done, _ended, _predictor = work, done, ended, None
    _history = read(work.source)


def _predicts() -> Predictor:
    """The predictor, made when the first run asks for it; its answers serve all runs."""
    global _predictor
    if _predictor is None:
        index = HistoryIndex(_history.outages, _history.places)
        made: Predictor = (
            HistoryHead(index, _work.horizon_s)
            if _work.predictor == "history"
            else DecayedCount(index, _work.horizon_s)
        )
        _predictor = Remembered(made)
    return _predictor


def _one(number: int, options: Options) -> Outcome:
    def progress(share: float) -> None:
        parent = parent_process()
        if _ended.value or parent is None or not parent.is_alive():
            raise _RunEnded
        _done[number] = share

    return replay(
        _history,
        _predicts() if options.way == ANTICIPATE else None,
        options,
        begin_s=_work.begin_s,
        end_s=_work.end_s,
        progress=progress,
    )


def sweep(work: Work, runs: Sequence[Options], *, jobs: int, told: Told) -> list[Outcome]:
    """All runs, in their order. `told` hears the share that is done, now and then.

    Raises:
        ValueError: too many runs, or a fleet that is too small.
    """
    if len(runs) > RUNS_MAX:
        raise ValueError(f"{len(runs)} runs, at most {RUNS_MAX}: sweep fewer values")
    context = get_context("spawn")
    done = context.Array("d", len(runs))
    ended = context.Value("i", 0)
    with ProcessPoolExecutor(
        min(jobs, len(runs)),
        mp_context=context,
        initializer=_prepare,
        initargs=(work, done, ended),
    ) as pool:
        try:
            with _deaf_to_the_terminal():
                futures = [pool.submit(_one, *each) for each in enumerate(runs)]
            waiting = set(futures)
            while waiting:
                _, waiting = wait(waiting, timeout=_LOOK_S, return_when=FIRST_COMPLETED)
                told(sum(done[:]) / len(runs))
            return [future.result() for future in futures]
        except BaseException:
            ended.value = 1
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _deaf_to_the_terminal() -> Iterator[None]:
    """Processes that begin in it have SIGINT blocked; here it comes when this is over."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
