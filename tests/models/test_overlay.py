"""Made-up trouble: laid over peers that are well, labelled as what it is, and changing no other."""

import numpy as np
import pytest
from synthetic import make_run

from models.overlay import MADE_UP, overlaid
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA

AT = TELEMETRY_SCHEMA.positions
SEEDS = range(40)


def laid(seed):
    run = make_run(1, seconds=200)
    return run, overlaid(run, np.random.default_rng(seed))


def test_the_same_seed_makes_the_same_up():
    (_, first), (_, second) = laid(3), laid(3)
    assert np.array_equal(first.values, second.values, equal_nan=True)
    assert first.truth == second.truth


def test_of_a_peer_that_stopped_nothing_is_made_up_and_nothing_known():
    for seed in SEEDS:
        run, copy = laid(seed)
        assert np.array_equal(run.values[0], copy.values[0], equal_nan=True)
        assert np.isnan(copy.labels(600.0)[0]).all()


def test_a_trouble_is_one_from_its_onset_on_and_its_past_stays():
    told = 0
    for seed in SEEDS:
        run, copy = laid(seed)
        for row, node in enumerate(copy.truth.nodes[1:], start=1):
            assert node.kind == MADE_UP
            if node.stop_s is None or node.onset_s is None:
                continue
            told += 1
            onset = int(node.onset_s)
            past, was = copy.values[row, :onset], run.values[row, :onset]
            assert np.array_equal(past, was, equal_nan=True)
            labels = copy.labels(600.0)[row]
            assert (labels[:onset] == 0.0).all()
            assert labels[onset] == 1.0
            assert np.isnan(copy.values[row, int(node.stop_s) :]).all()
    assert told >= 20


def test_a_look_alike_is_none():
    harmless = 0
    for seed in SEEDS:
        run, copy = laid(seed)
        for row, node in enumerate(copy.truth.nodes[1:], start=1):
            if node.stop_s is None:
                assert (copy.labels(600.0)[row] == 0.0).all()
                harmless += not np.array_equal(run.values[row], copy.values[row], equal_nan=True)
    assert harmless >= 10


@pytest.mark.parametrize("metric", ["commit_latency_ms_p50", "commits_per_s"])
def test_commits_that_get_slower_are_fewer(metric):
    moved = 0
    for seed in SEEDS:
        run, copy = laid(seed)
        for row in range(1, len(run.values)):
            before, after = run.values[row, :, AT[metric]], copy.values[row, :, AT[metric]]
            seen = np.isfinite(after)
            if metric == "commits_per_s":
                assert (after[seen] <= before[seen] + 1e-3).all()
            else:
                assert (after[seen] >= before[seen]).all()
            moved += bool((after[seen] != before[seen]).any())
    assert moved >= 5
