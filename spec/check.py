"""Builds the model and checks it: the protocol must hold, and every mutant must be caught.

    python spec/check.py            CI bounds (under two minutes on one core)
    python spec/check.py --deep     wider bounds, longer walks
    python spec/check.py --only X   only the cases whose name contains X
    python spec/check.py --trace M  the shortest counterexample of mutant M

Needs a C++17 compiler ($CXX, default g++) and nothing else. Each case is a row of the lists below
and of spec/README.md.
"""

import argparse
import itertools
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent

# Segments that a plan may choose from, P:voters:nonvoters:acks. The first is open at the start.
TWO = "0:01::2,1:12::2"  # acks 2 of 2; the next has another primary, a fresh voter
TWO_ALL = "0:01::2,1:12::2,2:02::2"
SELF = "0:01::2,0:02::2"  # the primary stays, its shadow is replaced
THREE = "0:012::2,1:012::2"  # acks 2 of 3
ALL = "0:012::3,1:012::3,1:12::2"  # acks 3 of 3, then fewer
MIXED = "0:012::2,1:12::2"
RISK = "0:01::2,1:12:0:2"  # p0 is at risk: kept as a non-voter
MIRROR = "0:01:2:2,0:12:0:2"  # p0 is at risk: goes on ordering without a vote
SPLIT = "0:01::2,0:01::2!,1:12::2,1:12::2!"  # closed plans: a split, and failovers of the parent
WIDE = "0:01::2,1:123::2,2:02:3:2,3:013::3"

# name, arguments. Complete searches: every reachable state within the bounds is visited.
HOLDS = [
    ("unplanned 2/2", f"-s 0 -f 1 -g {TWO_ALL}"),
    ("unplanned 2/2, two fences", f"-s 0 -f 2 -g {TWO}"),
    ("unplanned 3/2", f"-s 0 -f 1 -c 2 -g {THREE}"),
    ("unplanned 3/3", f"-s 0 -f 1 -c 2 -g {ALL}"),
    ("planned 2/2, two switches", f"-s 2 -f 0 -g {TWO}"),
    ("planned, primary stays", f"-s 1 -f 1 -g {SELF}"),
    ("planned and unplanned 2/2", f"-s 1 -f 1 -g {TWO}"),
    ("planned and unplanned, lost store", f"-s 1 -f 1 -c 0 -l 1 -x -g {TWO}"),
    ("unplanned 2/2, lost store, retries", f"-s 0 -f 1 -l 1 -x -g {TWO_ALL}"),
    ("unplanned 3/2, lost store, retries", f"-s 0 -f 1 -l 1 -x -g {THREE}"),
    ("planned and unplanned 3/2, lost store, one offset", f"-o 1 -s 1 -f 1 -l 1 -x -g {MIXED}"),
    (
        "map fences and drops tails, lost store",
        f"-o 1 -s 1 -f 1 -l 1 -x -m map-fences -m map-drops-tail -g {TWO}",
    ),
    ("planned and unplanned, acks falls to 1, one offset", "-o 1 -s 1 -f 1 -x -g 0:012::2,1:12::1"),
    ("planned and unplanned, non-voter, one offset", f"-o 1 -s 1 -f 1 -l 1 -x -g {RISK}"),
    (
        "planned and unplanned, primary without a vote, one offset",
        f"-o 1 -s 1 -f 1 -l 1 -x -g {MIRROR}",
    ),
    ("unplanned, primary without a vote, lost store", "-s 0 -f 1 -l 1 -x -g 0:12:0:2,1:12:0:2"),
    ("readers of a kept tail 2/2, lost store", f"-s 0 -f 1 -l 1 -x -k -g {TWO_ALL}"),
    ("readers of a kept tail 3/2, lost store", f"-s 0 -f 1 -l 1 -x -k -g {THREE}"),
    (
        "readers of a kept tail, planned too, one offset",
        f"-o 1 -s 1 -f 1 -c 0 -l 1 -x -k -R -g {TWO}",
    ),
    ("split, and a fence", f"-s 1 -f 1 -c 0 -g {SPLIT}"),
    ("split, a crash and a fence, one offset", f"-o 1 -s 1 -f 1 -R -g {SPLIT}"),
    ("split after another change, no fence", "-s 2 -f 0 -c 0 -R -g 0:01::2,1:12::2,1:12::2!"),
    ("variant: X is the largest end", f"-s 0 -f 1 -l 1 -x -m x-max -g {THREE}"),
    ("map drops tails, lost store, retries", f"-s 0 -f 1 -l 1 -x -m map-drops-tail -g {TWO_ALL}"),
    (
        "variant: drain, then adoption may drop",
        f"-s 1 -f 1 -c 0 -l 1 -x -m drain -m adoption-drops-tail -g {TWO}",
    ),
    (
        "variant: write first, then a restart may resume",
        f"-s 1 -f 1 -m write-first -m restart-resumes-asks -g {SELF}",
    ),
    ("variant: as built", f"-s 1 -f 1 -c 0 -R -m as-built -g {TWO}"),
    (
        "variant: as built, lost store, readers, one offset",
        f"-o 1 -s 1 -f 1 -l 1 -x -k -m as-built -g {TWO}",
    ),
    (
        "variant: as built, unplanned 3/2, lost store, readers",
        f"-s 0 -f 1 -l 1 -x -k -m as-built -g {THREE}",
    ),
    ("variant: as built, split, one offset", f"-o 1 -s 1 -f 1 -R -m as-built -g {SPLIT}"),
    ("variant: drain before the switch", f"-s 1 -f 1 -c 0 -m drain -g {TWO}"),
]
DEEP = [
    ("split prepared twice, and a fence, one record", f"-o 1 -r 1 -s 2 -f 1 -c 0 -R -g {SPLIT}"),
    ("split, lost store, one offset", f"-o 1 -s 1 -f 1 -l 1 -x -k -R -g {SPLIT}"),
    ("planned and unplanned 2/2, three plans", f"-s 1 -f 1 -g {TWO_ALL}"),
    ("planned and unplanned 2/2, crash and lost store", f"-s 1 -f 1 -l 1 -x -R -g {TWO}"),
    ("planned and unplanned 3/2", f"-s 1 -f 1 -c 0 -R -g {MIXED}"),
    ("planned and unplanned, non-voter", f"-s 1 -f 1 -g {RISK}"),
    ("two switches and a fence, one record", f"-o 1 -r 1 -s 2 -f 1 -R -g {TWO}"),
    ("a switch and two fences, one record", f"-o 1 -r 1 -s 1 -f 2 -R -g {TWO}"),
    ("two switches and a fence, one offset", f"-o 1 -s 2 -f 1 -R -g {TWO}"),
    ("a switch and two fences, one offset", f"-o 1 -s 1 -f 2 -R -g {TWO}"),
    (
        "four peers, a lost store, one offset",
        "-p 4 -o 1 -s 1 -f 1 -c 0 -l 1 -x -R -g 0:012::2,1:13::2",
    ),
    ("four peers, acks 3, two lost stores", "-p 4 -o 1 -s 0 -f 1 -l 2 -x -g 0:012::3,1:123::3"),
    (
        "four peers, acks 3, two lost stores, a switch",
        "-p 4 -o 1 -s 1 -f 1 -c 0 -l 2 -x -R -g 0:012::3,1:123::3",
    ),
    ("unplanned 2/2, two fences, three plans", f"-s 0 -f 2 -g {TWO_ALL}"),
    ("unplanned 2/2, three offsets", f"-o 3 -r 3 -s 0 -f 1 -g {TWO_ALL}"),
    ("unplanned 3/2, three offsets", f"-o 3 -r 3 -s 0 -f 1 -g {THREE}"),
]
WALKS = [
    ("walk: a split among everything", f"-p 3 -o 3 -r 3 -s 2 -f 2 -c 2 -l 1 -x -k -g {SPLIT}"),
    ("walk: 4 peers, everything", f"-p 4 -o 3 -r 3 -s 2 -f 2 -c 2 -l 1 -x -g {WIDE}"),
    ("walk: 3 peers 3/2", f"-p 3 -o 3 -r 3 -s 2 -f 2 -c 2 -l 1 -x -g {MIXED},0:012::2"),
    ("walk: 3 peers 2/2", f"-p 3 -o 3 -r 3 -s 2 -f 2 -c 2 -l 1 -x -g {TWO_ALL}"),
]
# mutant, arguments, the promise that it must break
MUTANTS = [
    ("fence-quorum", f"-s 0 -f 1 -g {THREE}", "G1"),
    ("promise-overtakes-queue", f"-s 0 -f 1 -g {TWO}", "G1"),
    ("adopt-below-promise", f"-s 1 -f 1 -g {TWO}", "G1"),
    ("promise-forgotten", "-s 0 -f 1 -g 0:01::2,2:2::1", "G1"),
    ("prepared-not-fenced", f"-s 1 -f 1 -g {TWO}", "G1"),
    ("adoption-ignored", f"-s 1 -f 1 -g {TWO}", "G1"),
    ("guard-without-prepared", f"-s 1 -f 1 -g {TWO}", "G1"),
    ("prepare-withdrawn", f"-s 1 -f 1 -g {TWO}", "G1"),
    ("decline-forgotten", f"-s 1 -f 0 -g {TWO}", "G1"),
    ("old-answers-counted", f"-o 1 -s 1 -f 2 -c 0 -R -g {TWO}", "G1"),
    ("primary-does-not-stop", f"-s 1 -f 0 -g {TWO}", "G1"),
    ("x-is-end", f"-s 1 -f 0 -g {TWO}", "G1"),
    ("x-min", f"-s 0 -f 1 -g {THREE}", "G1"),
    ("x-ignores-silent", f"-s 0 -f 1 -g {THREE}", "G1"),
    ("end-without-epoch", f"-s 0 -f 2 -c 0 -g {THREE}", "G7"),
    ("adoption-drops-tail", f"-s 1 -f 1 -c 0 -l 1 -x -g {TWO}", "G1"),
    ("fetch-without-promise", f"-s 1 -f 1 -c 0 -l 1 -x -g {TWO}", "G1"),
    ("non-voters-counted", "-s 0 -f 1 -g 0:01:2:2,1:12::2", "G1"),
    ("lost-store-same-id", f"-s 0 -f 1 -c 0 -l 1 -g {TWO}", "G1"),
    ("ack-without-epoch", f"-s 0 -f 1 -g {TWO}", "G1"),
    ("restart-resumes", f"-s 0 -f 0 -g {TWO}", "G1"),
    ("restart-resumes-asks", f"-s 0 -f 0 -g {THREE}", "G1"),
    ("write-first restart-resumes-asks seal-volatile", f"-s 1 -f 0 -g {SELF}", "G"),
    ("begin-twice", f"-s 0 -f 1 -g {TWO_ALL}", "G1"),
    ("read-quorum", f"-s 0 -f 1 -g {TWO}", "LIN"),
    ("table-not-carried", f"-s 1 -f 0 -g {TWO}", "G4"),
    ("table-keeps-tail", f"-s 0 -f 1 -g {TWO_ALL}", "G1"),
    ("retry-answered-early", f"-s 0 -f 1 -c 0 -l 1 -x -g {TWO_ALL}", "G1"),
    ("kept-tail-read-early", f"-s 0 -f 1 -c 0 -l 1 -x -k -g {TWO_ALL}", "G12"),
    ("tail-covers-kept", f"-s 0 -f 1 -c 0 -l 1 -x -k -g {TWO_ALL}", "G12"),
    ("old-tail-read", f"-s 0 -f 1 -x -k -g {TWO_ALL}", "G12"),
    ("own-end-read", f"-s 0 -f 1 -c 0 -x -k -R -g {TWO_ALL}", "G12"),
    ("child-begins-at-prepare", f"-s 1 -f 1 -c 0 -g {SPLIT}", "G8"),
    ("child-begins-at-begin", f"-s 1 -f 1 -c 0 -g {SPLIT}", "G8"),
    ("split-answered-early", f"-s 1 -f 1 -c 0 -g {SPLIT}", "G4"),
    ("split-without-table", f"-s 1 -f 0 -c 0 -g {SPLIT}", "G4"),
    ("split-answered-by-dead", "-s 2 -f 1 -c 0 -R -g 0:01::2,1:12::2,0:01::2!,1:12::2!", "G4"),
    ("x-noted-at-prepare", f"-s 1 -f 1 -c 0 -g {SPLIT}", "G8"),
    ("split-kept-by-fence", f"-s 1 -f 1 -c 0 -g {SPLIT}", "G8"),
    ("parent-reopens", f"-s 1 -f 1 -c 0 -g {SPLIT}", "G8"),
    ("split-prepared-not-asked", "-s 1 -f 1 -c 0 -g 0:0::1,1:1::1!,2:2::1", "LIN"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run of the model: its arguments, and how what it prints must begin."""

    name: str
    arguments: str
    expected: str


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """All that are asked for, in the order in which they run."""
    for name, arguments in HOLDS + (DEEP if options.deep else []):
        yield Case(name=name, arguments=arguments, expected="HOLDS")
    seconds = options.walk_seconds or (40 if options.deep else 3)
    for name, arguments in WALKS:
        walk = f"{arguments} -w {seconds} -S {options.seed}"
        yield Case(name=name, arguments=walk, expected="NO VIOLATION FOUND in")
    for name, arguments, promise in MUTANTS:
        switches = " ".join(f"-m {each}" for each in name.split())
        yield Case(
            name=f"mutant {name}",
            arguments=f"{switches} {arguments}",
            expected=f"VIOLATED {promise}",
        )


def build(folder: str, arguments: str) -> Path:
    """The model with arrays as small as the bounds allow: a smaller state is a faster search."""
    words = shlex.split(arguments)
    bounds = ("-p", "-o", "-s", "-f")
    bound = {key: int(value) for key, value in itertools.pairwise(words) if key in bounds}
    epochs = 1 + bound.get("-s", 1) + bound.get("-f", 1)
    size = {
        "PEERS": bound.get("-p", 3),
        "OFFSETS": bound.get("-o", 2),
        "EPOCHS": max(3, epochs),
    }
    out = Path(folder) / "-".join(["model", *map(str, size.values())])
    if not out.exists():
        compiler = shlex.split(os.environ.get("CXX", "g++"))
        flags = [f"-D{key}={value}" for key, value in size.items()]
        command = [*compiler, "-O2", "-std=c++17", *flags, "-o", out, HERE / "replication.cpp"]
        subprocess.run(command, check=True)
    return out


def run(binary: Path, arguments: str) -> str:
    """What the model prints."""
    command = [binary, *shlex.split(arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--deep", action="store_true", help="wider bounds and longer walks")
    add("--only", default="", help="only cases whose name contains this")
    add("--trace", metavar="MUTANT", help="print the shortest counterexample of a mutant")
    add("--walk-seconds", type=int, help="length of each random walk (3; with --deep 40)")
    add("--cap", type=int, default=600, help="seconds after which one search is cut off")
    add(
        "--states",
        type=int,
        default=50_000_000,
        help="states after which one search is cut off (200 bytes each)",
    )
    add("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> int:
    """Runs the cases; 0 if all went as expected."""
    options = parsed()
    started, failures = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(options):
            if options.trace and case.name != f"mutant {options.trace}":
                continue
            if options.only not in case.name:
                continue
            quiet = "" if options.trace else "-q"
            limits = f"{quiet} -t {options.cap} -n {options.states}"
            text = run(build(folder, case.arguments), f"{case.arguments} {limits}")
            good = text.startswith(case.expected)
            cut = options.deep and case.expected == "HOLDS" and "search cut off" in text
            failures += not (good or cut)
            verdict = "ok  " if good else "cut " if cut else "FAIL"
            print(f"{verdict} {case.name:<59} {text.rstrip()}", flush=True)
    outcome = f"{failures} FAILED" if failures else "all as expected"
    print(f"{outcome}, {time.monotonic() - started:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
