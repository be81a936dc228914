"""Seeds worth remembering (`seeds.txt`): what was found once is looked for in every run."""

from pathlib import Path

import pytest

from peerd.testing.sim.runner import run_seed

LINES = (Path(__file__).parent / "seeds.txt").read_text("utf-8").splitlines()
SEEDS = [int(line.split()[0]) for line in LINES if not line.startswith("#")]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_remembered_seed_stays_clean(seed):
    assert run_seed(seed).failure == ""
