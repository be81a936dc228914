"""Runs seeds of the simulator in the tree that is the working directory until one finds a fault.

Started by `tests.mutants.run` in a copy that is mutated. Prints one line of JSON: the seed, how
many were run, what was found, and the CPU seconds of all.
"""

import argparse
import json
import signal
import sys
import time
from types import FrameType

SEED_S_MAX = 60
"""No run of an intact tree takes a tenth of it: what goes on for longer goes round in circles."""


def give_up(_signal: int, _frame: FrameType | None) -> None:
    """A run that does not end breaks G11."""
    raise AssertionError(f"G11: the run has not ended after {SEED_S_MAX} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--seeds", type=int, required=True)
    chosen = parser.parse_args()
    # Not above: a mutant may break even the import.
    from peerd.testing.sim.runner import run_seed

    signal.signal(signal.SIGALRM, give_up)
    began = time.process_time()
    found = ""
    seed = chosen.first
    for seed in range(chosen.first, chosen.first + chosen.seeds):
        signal.alarm(SEED_S_MAX)
        found = run_seed(seed, mode=chosen.mode).failure
        signal.alarm(0)
        if found:
            break
    told = {
        "seed": seed,
        "seeds": seed - chosen.first + 1,
        "found": found,
        "cpu_s": round(time.process_time() - began, 2),
    }
    sys.stdout.write(json.dumps(told) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
