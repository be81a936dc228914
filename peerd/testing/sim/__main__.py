"""`python -m peerd.testing.sim`: run many seeds, or replay one; `make sim` calls it.

Exit status: 0 if every promise was kept, 1 if a seed found a violation.
"""

import argparse
import sys
from pathlib import Path

from peerd.testing.acceptor import Judge
from peerd.testing.sim.checkers import BrokenPromise
from peerd.testing.sim.modes import MODES, REGISTER, made, options_of
from peerd.testing.sim.options import CALM
from peerd.testing.sim.runner import Progress, Totals, run_many, run_seed
from peerd.testing.sim.story import every_event, every_step, timed
from peerd.testing.trace import Record, TraceHash

RAFT = {"register": "", "cluster": " RAFT=1", "alone": " RAFT=alone"}
"""How `make sim` is told of a mode."""
SPEED_SEEDS = 3
"""Seeds of the calm kind over which the speed is measured."""


def main() -> int:
    """Parse the command line, do it, return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m peerd.testing.sim", description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=300, help="how many")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--progress", type=Path, default=Path("build/sim"), help="a directory")
    parser.add_argument("--seed", type=int, help="replay this seed and print its story")
    parser.add_argument("-v", action="store_true", help="with --seed: every event")
    parser.add_argument(
        "--raft",
        nargs="?",
        choices=MODES[1:],
        const=MODES[1],
        default=REGISTER,
        dest="mode",
        help="the LAS is the real Raft; `alone`: without any peers",
    )
    parser.add_argument("--speed", action="store_true", help="measure the speed on calm runs")
    chosen = parser.parse_args()
    if chosen.seed is not None:
        return replay(chosen.seed, verbose=chosen.v, mode=chosen.mode)
    if chosen.speed:
        return speed()
    return swarm(chosen.first, chosen.seeds, chosen.jobs, chosen.progress, chosen.mode)


def replay(seed: int, *, verbose: bool, mode: str = REGISTER) -> int:
    """One seed with its story, judged as in a swarm; the last line names its trace."""
    options = options_of(mode, seed)
    _write(f"seed {seed}: {options.words()}")
    running, judge, tell_all = TraceHash(), Judge(), every_event(_write)

    def heard(record: Record) -> None:
        running.add(record)
        if judge.take(record):
            raise BrokenPromise(f"the acceptor: {judge.verdict}")
        if verbose:
            tell_all(record)

    tell_step = every_step(_write)

    def stepped(record: object) -> None:
        running.add(record)
        if verbose:
            tell_step(record)

    simulation = made(
        mode,
        seed,
        options,
        on_record=heard,
        on_member=stepped,
        on_story=lambda at_ms, text: _write(timed(at_ms, text)),
    )
    status = 0
    try:
        simulation.run()
    except BrokenPromise as broken:
        _write(timed(simulation.clock.now, f"BROKEN: {broken}"))
        status = 1
    _write(f"{simulation.events} events, {simulation.world.faults} faults")
    _write(f"trace {running.hexdigest()}")
    return status


def swarm(first: int, seeds: int, jobs: int, directory: Path, mode: str = REGISTER) -> int:
    """Many seeds; a line for each that fails, which replays it."""
    progress = Progress(directory, first, seeds, mode)
    again = f"make sim{RAFT[mode]} SEED"
    if progress.done:
        _write(f"going on: {progress.totals.seeds} of {seeds} seeds are done")
    for seed, why in progress.failed:
        _write(f"{again}={seed}   # {why}")
    for results in run_many(progress, first, seeds, jobs, mode):
        for result in results:
            if result.failure:
                _write(f"{again}={result.seed}   # {result.failure}")
    _write(progress.totals.words())
    progress.close()
    return 1 if progress.failed else 0


def speed() -> int:
    """The speed on a day as it is: `Options` CALM, all checkers on, one core."""
    _write(CALM.words())
    totals = Totals()
    for seed in range(SPEED_SEEDS):
        totals.add(run_seed(seed, CALM))
    _write(totals.words())
    return 1 if totals.failures else 0


def _write(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - a command line prints


if __name__ == "__main__":
    sys.exit(main())
