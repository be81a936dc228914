"""Every run of the simulator is a run of the model: the acceptor takes its trace to the end."""

import pytest

from peerd.testing.acceptor import judge
from peerd.testing.cluster import Options
from tests.conformance.recorded import Recorded

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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(200, 202))
def test_a_run_of_the_cores_is_a_run_of_the_model(kind, seed):
    run = Recorded(seed, KINDS[kind])
    run.run()
    verdict = judge(run.records)
    assert verdict.accepted, str(verdict)
    assert verdict.record_count == len(run.records) > 1_000
