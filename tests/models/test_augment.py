"""Variations change what they are meant to change, and nothing else."""

import numpy as np

from models.augment import part, vary
from models.features import FEATURES, IDENTITY, INPUTS, KEPT, OF_ROOMS, OLDEST_INPUTS, SPANS, WINDOW
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA, Kind, Scope


def windows(peers=5):
    values = np.full((peers, WINDOW, len(FEATURES)), 4.0, dtype=np.float32)
    values[:, :, FEATURES.index(IDENTITY)] = 77.0
    return values


def test_a_variation_leaves_its_original_and_the_identity_alone():
    original = windows()
    varied = vary(original, np.random.default_rng(1))
    assert np.array_equal(original, windows())
    assert (varied[:, :, FEATURES.index(IDENTITY)] == 77.0).all()
    assert not np.array_equal(varied, original, equal_nan=True)


def test_a_disk_is_faster_or_slower_as_a_whole():
    latencies = [FEATURES.index(f"commit_latency_ms_{part}") for part in ("p50", "p99", "max")]
    for seed in range(20):
        varied = vary(windows(), np.random.default_rng(seed))
        for peer in varied[:, :, latencies]:
            seen = peer[~np.isnan(peer)]
            assert np.unique(seen).size == 1


def test_peers_are_parted_into_one_two_or_as_many_machines():
    random = np.random.default_rng(3)
    parted = [part(5, random) for _ in range(200)]
    assert {len(set(machines.tolist())) for machines in parted} >= {1, 2, 5}
    assert all(0 <= machine < 5 for machines in parted for machine in machines.tolist())


def test_only_what_is_a_nodes_own_in_the_recordings_is_read():
    for name in FEATURES:
        metric = TELEMETRY_SCHEMA.metric(name)
        own = metric.scope is Scope.PROCESS or name in OF_ROOMS
        assert own or metric.kind is Kind.IDENTITY
    assert len(set(FEATURES)) == len(INPUTS) + 1


def test_spans_tile_the_window():
    assert [newest for newest, _ in SPANS] == [0, *(oldest for _, oldest in SPANS[:-1])]
    assert SPANS[-1][1] == WINDOW


def test_of_the_past_only_some_samples_are_read():
    """The older a span, the fewer of it: all of the last half minute, a dozen of the oldest."""
    ages = [WINDOW - 1 - position for position in KEPT]
    assert list(KEPT) == sorted(set(KEPT))
    assert set(range(28)) <= set(ages)
    counts = [sum(newest <= age < oldest for age in ages) for newest, oldest in SPANS]
    assert counts == [3, 3, 4, 6, 12, 16, 15]


def test_the_older_half_reads_nothing_that_means_something_else_in_rooms():
    assert not set(OLDEST_INPUTS) & set(OF_ROOMS)
    assert set(OLDEST_INPUTS) < {name for name, _ in INPUTS}
