"""Whole clusters of cores under trouble, each run drawn from a seed.

To see one run again: `Simulation(seed, KINDS[kind]).run()`.
"""

import pytest

from peerd.core import events as ev
from peerd.core.ids import Tick
from peerd.testing.cluster import Options, Simulation

KINDS = {
    "three copies, two acks": Options(),
    "two copies, lossy, many crashes": Options(copies=2, loss=0.08, crashes_per_s=2.0),
    "nothing in order, partitions and pauses": Options(
        ordered_streams=False, loss=0.05, repeat=0.3, partitions_per_s=2.0, pauses_per_s=1.5
    ),
    "three acks, a lost store": Options(acks=3, lost_stores=1),
    "five peers, a lost store, longer": Options(
        peers=5, lost_stores=1, trouble_ms=8_000, appends_per_client=60
    ),
}
SEEDS = range(100, 108)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_promises_hold(kind, seed):
    Simulation(seed, KINDS[kind]).run()


def test_the_same_seed_gives_the_same_run():
    runs = [Simulation(7, Options()) for _ in range(2)]
    for run in runs:
        run.run()
    assert runs[0].clock.now == runs[1].clock.now
    assert runs[0].history.acked == runs[1].history.acked
    assert runs[0].las.shard == runs[1].las.shard


def test_a_cluster_at_rest_costs_nothing():
    run = Simulation(3, Options(trouble_ms=1_500))
    run.run()
    run.clock.run(run.clock.now + 5_000)
    for peer in run.peers.values():
        assert peer.replica is not None
        assert peer.replica.wake_at is None, peer.name
        run.deliver(peer, ev.Ticked(now=Tick(run.clock.now)))
        assert not peer.store.queue
