"""Every run of the simulator is a run of the model: the acceptor takes its trace to the end."""

import pytest

from peerd.testing.acceptor import Judge
from peerd.testing.sim import Options, Simulation, drawn

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


def verdict_of(seed: int, options: Options):
    judge = Judge()
    Simulation(seed, options, on_record=judge.take).run()
    return judge.verdict


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(200, 202))
def test_a_run_of_the_cores_is_a_run_of_the_model(kind, seed):
    verdict = verdict_of(seed, KINDS[kind])
    assert verdict.accepted, str(verdict)
    assert verdict.record_count > 1_000


# 1018: SPLIT is said by a closed segment that another one has replaced. 1188: a process begins an
# epoch while its store has a higher promise durable, of which it has not heard yet.
@pytest.mark.parametrize("seed", [*range(10), 1018, 1188])
def test_so_is_a_run_of_the_swarm(seed):
    verdict = verdict_of(seed, drawn(seed))
    assert verdict.accepted, str(verdict)
