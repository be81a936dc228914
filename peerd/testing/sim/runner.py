"""Many seeds: on several cores, resumable, and what came out of it in figures."""

import gc
import hashlib
import json
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from peerd.testing.acceptor import Judge
from peerd.testing.sim.modes import REGISTER, made, options_of
from peerd.testing.sim.options import Options

CHUNK_SEEDS = 25
"""Seeds that a process runs before it says so: some seconds."""
SOURCES = ("peerd/core", "las/core", "las/raft", "peerd/testing/sim")
ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedResult:
    """One run. `failure` is empty if every promise was kept. `cpu_s` is of this process alone."""

    seed: int
    failure: str
    events: int
    faults: int
    virtual_ms: int
    cpu_s: float


def run_seed(seed: int, options: Options | None = None, *, mode: str = REGISTER) -> SeedResult:
    """Run one seed of a mode; whatever it trips over is a finding.

    The acceptor judges the trace of each drawn run (docs/conformance.md), a sixth of its time. Runs
    with `options` of their own, such as those that measure the speed, have no listener.
    """
    began = time.process_time()
    gc.disable()
    judge = Judge()
    listener = judge.hear if options is None else None
    options = options or options_of(mode, seed)
    simulation = made(mode, seed, options, on_record=listener)
    failure = ""
    try:
        simulation.run()
        if not judge.verdict.accepted:
            failure = f"the acceptor: {' '.join(str(judge.verdict).split())}"[:300]
    except Exception as error:  # noqa: BLE001 - a mutated core may fail in any way
        failure = " ".join(str(error).split())[:300] or type(error).__name__
        if not isinstance(error, AssertionError):
            failure = f"{type(error).__name__}: {failure}"
    finally:
        gc.enable()
    return SeedResult(
        seed=seed,
        failure=failure,
        events=simulation.events,
        faults=simulation.world.faults,
        virtual_ms=simulation.clock.now,
        cpu_s=time.process_time() - began,
    )


@dataclass(slots=True, kw_only=True)
class Totals:
    """Sums over many runs."""

    seeds: int = 0
    failures: int = 0
    events: int = 0
    faults: int = 0
    virtual_ms: int = 0
    cpu_s: float = 0.0

    def add(self, result: SeedResult) -> None:
        """One more run."""
        self.seeds += 1
        self.failures += bool(result.failure)
        self.events += result.events
        self.faults += result.faults
        self.virtual_ms += result.virtual_ms
        self.cpu_s += result.cpu_s

    def words(self) -> str:
        """Two lines for a person."""
        cpu_s = max(self.cpu_s, 1e-9)
        minutes = max(self.virtual_ms / 60_000, 1e-9)
        return (
            f"{self.seeds} seeds, {self.failures} failed: {self.events} events in {cpu_s:.0f} CPU s"
            f" = {self.events / cpu_s:,.0f} events/s of one core\n"
            f"{self.virtual_ms / 3_600_000:.2f} cluster-hours = "
            f"{self.virtual_ms / 1_000 / cpu_s:.0f} for each CPU-hour; "
            f"{self.faults / minutes:.1f} faults a simulated minute"
        )


class Progress:
    """What of a long run is done, in a file; it counts only for the same sources."""

    def __init__(self, directory: Path, first: int, seeds: int, mode: str = REGISTER) -> None:
        self._path = directory / f"{mode}-{first}-{seeds}.json"
        self._sources = _hash_of_sources()
        self.totals = Totals()
        self.failed: list[tuple[int, str]] = []
        self.done: set[int] = set()
        try:
            known = json.loads(self._path.read_text("utf-8"))
        except (OSError, ValueError):
            return
        if known.get("sources") == self._sources:
            self.totals = Totals(**known["totals"])
            self.failed = [(seed, why) for seed, why in known["failed"]]
            self.done = set(known["done"])

    def add(self, chunk: int, results: list[SeedResult]) -> None:
        """A chunk is done."""
        for result in results:
            self.totals.add(result)
            if result.failure:
                self.failed.append((result.seed, result.failure))
        self.done.add(chunk)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        known = {
            "sources": self._sources,
            "totals": asdict(self.totals),
            "failed": self.failed,
            "done": sorted(self.done),
        }
        draft = self._path.with_suffix(".draft")
        draft.write_text(json.dumps(known), "utf-8")
        draft.replace(self._path)

    def close(self) -> None:
        """All is done: the next run begins anew."""
        self._path.unlink(missing_ok=True)


def run_many(
    progress: Progress, first: int, seeds: int, jobs: int, mode: str = REGISTER
) -> Iterator[list[SeedResult]]:
    """Run what is not done yet of `seeds` seeds from `first` on; each chunk when it is done."""
    chunks = [
        (mode, begin, min(begin + CHUNK_SEEDS, first + seeds))
        for begin in range(first, first + seeds, CHUNK_SEEDS)
        if begin not in progress.done
    ]
    if jobs == 1:
        results = map(_run_chunk, chunks)
        yield from _recorded(progress, results)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from _recorded(progress, pool.imap_unordered(_run_chunk, chunks))


def _recorded(
    progress: Progress, chunks: Iterator[tuple[int, list[SeedResult]]]
) -> Iterator[list[SeedResult]]:
    for chunk, results in chunks:
        progress.add(chunk, results)
        yield results


def _run_chunk(chunk: tuple[str, int, int]) -> tuple[int, list[SeedResult]]:
    mode, begin, end = chunk
    results = []
    for seed in range(begin, end):
        results.append(run_seed(seed, mode=mode))
        gc.collect()
    return begin, results


def _hash_of_sources() -> str:
    digest = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
