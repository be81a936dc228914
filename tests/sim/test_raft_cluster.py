"""Whole clusters whose LAS group is the real Raft: G1 to G12 hold, and a seed is a run."""

import os
import subprocess
import sys

import pytest

from peerd.testing.sim import Simulation
from peerd.testing.sim.options import drawn_raft
from peerd.testing.sim.runner import run_seed
from peerd.testing.trace import TraceHash


@pytest.mark.parametrize("seed", [*range(5), 40, 1002])
def test_the_promises_hold(seed):
    assert run_seed(seed, mode="cluster").failure == ""


def trace_of(seed):
    running = TraceHash()
    Simulation(seed, drawn_raft(seed), running.add, on_member=running.add).run()
    return running.hexdigest()


def test_the_same_seed_gives_the_same_run_whatever_the_interpreters_hash_seed():
    told = {
        subprocess.run(
            [sys.executable, "-c", "from tests.sim.test_raft_cluster import *; print(trace_of(3))"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "77")
    }
    assert len(told) == 1
