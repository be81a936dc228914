"""`make mutants`: break one rule at a time, and see after how many seeds the simulator finds it.

Each patch of this folder is applied to a copy of the tree in build/mutants, and the copy's own
simulator runs there, seed by seed, in the mode that the patch names (`mode: alone`). What is not
found within `SEEDS_MAX` seeds is missed, and then the exit status is 1.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WORK = ROOT / "build" / "mutants"
PACKAGES = ("peerd", "las")

SEEDS_MAX = 1_000
"""What is not found in so many runs is missed."""
MODE = re.compile(r"^mode: (\w+)$", re.MULTILINE)
"""The line of a patch that names another mode of the simulator than the first."""
HUNT_S_MAX = 3_600
"""No hunt takes so long: then something is wrong with the hunt itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hunt:
    """What came of one mutant. `found` is empty if it was missed in `seeds` seeds."""

    mutant: str
    rule: str
    seed: int
    seeds: int
    found: str
    cpu_s: float


def patches() -> list[Path]:
    """All mutants, in order."""
    return sorted(HERE.glob("*.patch"))


def rule_of(patch: Path) -> str:
    """What the mutant breaks: the text before the first file, without the line of its mode."""
    text, _, _ = patch.read_text("utf-8").partition("\n--- ")
    return " ".join(MODE.sub("", text).split())


def mode_of(patch: Path) -> str:
    """In which mode of the simulator it is hunted."""
    text, _, _ = patch.read_text("utf-8").partition("\n--- ")
    named = MODE.search(text)
    return named[1] if named else "register"


def apply(patch: Path, tree: Path) -> None:
    """Apply a patch to a copy. Raises `CalledProcessError` if it does not fit any more."""
    # `git apply` looks for a repository above and would then see no change in an ignored folder.
    alone = os.environ | {"GIT_CEILING_DIRECTORIES": str(tree.parent)}
    subprocess.run(["git", "apply", str(patch)], cwd=tree, env=alone, check=True)


def mutated(patch: Path) -> Path:
    """A fresh copy of the tree with the patch applied."""
    tree = WORK / patch.stem
    shutil.rmtree(tree, ignore_errors=True)
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__", "models")
        shutil.copytree(ROOT / package, tree / package, ignore=ignored)
    apply(patch, tree)
    return tree


def hunted(tree: Path, mode: str, first: int, seeds: int) -> dict[str, object]:
    """What `tests.mutants.hunt` told of some seeds of a mode in `tree`."""
    hunt = [sys.executable, str(HERE / "hunt.py")]
    command = [*hunt, f"--mode={mode}", f"--first={first}", f"--seeds={seeds}"]
    alone = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command,
        cwd=tree,
        env=alone,
        capture_output=True,
        text=True,
        timeout=HUNT_S_MAX,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the hunt in {tree} itself failed: {done.stderr[-1_000:]}")
    told: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return told


def hunt(patch: Path, first: int, seeds: int) -> Hunt:
    """Run the simulator of the mutated tree until it finds something.

    Raises `RuntimeError` if the intact tree fails the same seed: then it was not the mutant.
    """
    tree, mode = mutated(patch), mode_of(patch)
    told = hunted(tree, mode, first, seeds)
    shutil.rmtree(tree)
    if told["found"]:
        intact = hunted(ROOT, mode, int(str(told["seed"])), 1)
        if intact["found"]:
            raise RuntimeError(f"seed {told['seed']} fails without a mutant: {intact['found']}")
    return Hunt(mutant=patch.stem, rule=rule_of(patch), **told)  # type: ignore[arg-type]


def row(each: Hunt) -> str:
    """One line of the table."""
    after = f"{each.seeds:>5}" if each.found else f">{each.seeds:>4}"
    return f"{after}  {each.cpu_s:>7.1f} s  {each.mutant:<34} {each.found[:60] or 'MISSED'}"


def main() -> int:
    """Hunt, print the table, write build/mutants/mutants.json."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.run", description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=SEEDS_MAX, help="at most so many for each")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    parser.add_argument("--only", default="", help="only those with this text in their name")
    parser.add_argument("--every", type=int, default=1, help="a sample: only each n-th of them")
    chosen = parser.parse_args()
    listed = [each for each in patches() if chosen.only in each.stem][:: chosen.every]
    hunts: list[Hunt] = []
    sys.stdout.write("seeds        CPU    mutant                             found as\n")
    with ThreadPoolExecutor(chosen.jobs) as pool:
        for each in pool.map(lambda patch: hunt(patch, chosen.first, chosen.seeds), listed):
            hunts.append(each)
            sys.stdout.write(row(each) + "\n")
            sys.stdout.flush()
    WORK.mkdir(parents=True, exist_ok=True)
    (WORK / "mutants.json").write_text(json.dumps([asdict(each) for each in hunts], indent=1))
    found = [each.seeds for each in hunts if each.found]
    missed = [each.mutant for each in hunts if not each.found]
    if found:
        median = statistics.median(found)
        text = f"{len(found)} of {len(hunts)} found; seeds: median {median:g}, worst {max(found)}"
        sys.stdout.write(text + "\n")
    if missed:
        sys.stdout.write(f"missed within {chosen.seeds} seeds: {', '.join(missed)}\n")
    return 1 if missed or not hunts else 0


if __name__ == "__main__":
    sys.exit(main())
