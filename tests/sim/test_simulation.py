"""The promises G1 to G12 under crashes, pauses, partitions, losses and changes of plan."""

import os
import subprocess
import sys

import pytest

from peerd.core import events as ev
from peerd.core.ids import Tick
from peerd.testing.sim import Options, Simulation, drawn
from peerd.testing.trace import TraceHash

KINDS = {
    "three copies, two acks": Options(),
    "two copies, lossy, many crashes": Options(copies=2, loss=0.08, crashes_per_s=2.0),
    "nothing in order, partitions and pauses": Options(
        ordered=False, loss=0.05, repeat=0.3, partitions_per_s=2.0, pauses_per_s=1.5
    ),
    "three acks, a lost store": Options(acks=3, lost_stores=1, bit_flips_per_s=0),
    "five peers, a lost store, longer": Options(
        peers=5, shards=2, lost_stores=1, bit_flips_per_s=0, trouble_ms=8_000, appends_per_s=40.0
    ),
}
SEEDS = range(100, 105)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_promises_hold(kind, seed):
    Simulation(seed, KINDS[kind]).run()


def trace_of(seed: int) -> str:
    running = TraceHash()
    Simulation(seed, drawn(seed), on_record=running.add).run()
    return running.hexdigest()


def test_the_same_seed_gives_the_same_run_whatever_the_interpreters_hash_seed():
    program = (
        "from tests.sim.test_simulation import trace_of\nprint(*(trace_of(n) for n in range(3)))"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "77")
    }
    assert len(told) == 1
    assert len(set(told.pop().split())) == 3


def test_listening_changes_nothing():
    plain = Simulation(5, drawn(5))
    plain.run()
    records, story = [], []
    heard = Simulation(5, drawn(5), records.append, lambda at_ms, text: story.append(text))
    heard.run()
    assert plain.events == heard.events
    assert plain.clock.now == heard.clock.now
    assert plain.las.state == heard.las.state
    assert records
    assert story


def test_a_cluster_at_rest_costs_nothing():
    run = Simulation(3, Options(trouble_ms=1_500))
    run.run()
    run.clock.run(run.clock.now + 5_000)
    for peer in run.peers.values():
        assert peer.process is not None
        for replica in peer.process.replicas.values():
            assert replica.wake_at is None, peer.name
            step = replica.handle(ev.Ticked(now=Tick(run.clock.now)))
            assert not step.persist
