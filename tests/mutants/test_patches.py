"""The mutants are there and fit the tree. Whether the simulator finds them: `make mutants`."""

import os
import subprocess

import pytest

from tests.mutants.run import ROOT, patches, rule_of

MUTANTS_MIN = 30


@pytest.mark.parametrize("patch", patches(), ids=lambda patch: patch.stem)
def test_a_mutant_fits_the_tree_and_says_what_it_breaks(patch, tmp_path):
    rule = rule_of(patch)
    assert rule.endswith((".", ").")), rule
    # Outside of any repository, since the tree may be a plain copy.
    alone = os.environ | {"GIT_CEILING_DIRECTORIES": str(ROOT.parent)}
    told = subprocess.run(
        ["git", "apply", "--check", str(patch)],
        cwd=ROOT,
        env=alone,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, f"{told.stderr}\n{patch.name} does not fit: write it anew"


def test_the_readme_says_how_many_there_are():
    assert f"{len(patches())} rules broken" in (ROOT / "README.md").read_text("utf-8")


def test_there_are_enough_and_each_has_its_number():
    numbers = [patch.stem.split("-")[0] for patch in patches()]
    assert len(numbers) >= MUTANTS_MIN
    assert numbers == [f"{number:02d}" for number in range(1, len(numbers) + 1)]
