"""The fleet's windows against a plain dictionary that does the same slowly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from las.forecast import window as window_module
from las.forecast.window import FleetFull, FleetWindows

METRICS = 2


def told(fleet, node, now_ms):
    snapshot = fleet.snapshot(now_ms=now_ms)
    return snapshot.windows[snapshot.nodes.index(node), :, 0].tolist()


def add(fleet, node, sequence, now_ms, *, age_ms=0, value=None):
    values = [float(sequence if value is None else value)] * METRICS
    fleet.add(node, sequence=sequence, age_ms=age_ms, values=values, now_ms=now_ms)


def same(told_values, wanted):
    return np.array_equal(np.array(told_values), np.array(wanted), equal_nan=True)


nan = float("nan")


def test_samples_stand_at_their_second_and_gaps_are_nan():
    fleet = FleetWindows(5, METRICS)
    for sequence in (1, 2, 4):
        add(fleet, "a", sequence, now_ms=(100 + sequence) * 1000 + 500)
    assert same(told(fleet, "a", 105_600), [nan, 1, 2, nan, 4])


def test_the_second_under_way_is_left_out():
    fleet = FleetWindows(3, METRICS)
    add(fleet, "a", 7, now_ms=100_500)
    assert same(told(fleet, "a", 100_900), [nan, nan, nan])
    assert same(told(fleet, "a", 101_000), [nan, nan, 7])


def test_a_late_heartbeat_fills_the_gap_it_left():
    fleet = FleetWindows(5, METRICS)
    add(fleet, "a", 1, now_ms=101_500)
    for sequence in (2, 3, 4):
        add(fleet, "a", sequence, now_ms=104_600, age_ms=(4 - sequence) * 1000 + 100)
    assert same(told(fleet, "a", 105_100), [nan, 1, 2, 3, 4])


def test_jitter_on_the_way_neither_merges_nor_parts_samples():
    fleet = FleetWindows(6, METRICS)
    arrivals = (101_010, 101_995, 103_002, 104_100, 104_999)
    for sequence, now_ms in enumerate(arrivals, start=1):
        add(fleet, "a", sequence, now_ms=now_ms)
    values = told(fleet, "a", 106_000)
    assert [v for v in values if not np.isnan(v)] == [1, 2, 3, 4, 5]


def test_a_rebooted_node_begins_a_new_count():
    fleet = FleetWindows(6, METRICS)
    add(fleet, "a", 900, now_ms=101_500)
    add(fleet, "a", 3, now_ms=104_500)
    add(fleet, "a", 4, now_ms=105_500)
    assert same(told(fleet, "a", 106_200), [nan, 900, nan, nan, 3, 4])


def test_a_whole_window_reaches_a_new_leader_at_once():
    fleet = FleetWindows(4, METRICS)
    for sequence in range(10):
        add(fleet, "a", sequence, now_ms=50_700, age_ms=(9 - sequence) * 1000)
    assert same(told(fleet, "a", 51_000), [6, 7, 8, 9])


def test_ages_are_of_the_newest_sample():
    fleet = FleetWindows(5, METRICS)
    add(fleet, "a", 1, now_ms=100_500)
    add(fleet, "b", 1, now_ms=104_500)
    snapshot = fleet.snapshot(now_ms=105_000)
    assert dict(zip(snapshot.nodes, snapshot.age_ms.tolist(), strict=True)) == {
        "a": 4500,
        "b": 500,
    }


def test_a_forgotten_node_leaves_the_others_as_they_are():
    fleet = FleetWindows(3, METRICS)
    for node, value in (("a", 1), ("b", 2), ("c", 3)):
        add(fleet, node, 5, now_ms=100_500, value=value)
    fleet.forget("a")
    fleet.forget("unknown")
    snapshot = fleet.snapshot(now_ms=101_000)
    assert sorted(snapshot.nodes) == ["b", "c"]
    assert same(told(fleet, "b", 101_000), [nan, nan, 2])
    assert same(told(fleet, "c", 101_000), [nan, nan, 3])
    add(fleet, "d", 6, now_ms=101_500)
    assert same(told(fleet, "d", 102_000), [nan, nan, 6])


def test_more_nodes_than_the_bound_are_refused(monkeypatch):
    monkeypatch.setattr(window_module, "NODES_MAX", 2)
    fleet = FleetWindows(3, METRICS)
    add(fleet, "a", 1, now_ms=1_000)
    add(fleet, "b", 1, now_ms=1_000)
    with pytest.raises(FleetFull, match="at most 2"):
        add(fleet, "c", 1, now_ms=1_000)


def test_another_number_of_values_is_refused():
    with pytest.raises(ValueError, match="schema has 2"):
        FleetWindows(3, METRICS).add("a", sequence=1, age_ms=0, values=[1.0], now_ms=0)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.booleans()),
        max_size=120,
    )
)
def test_it_equals_a_slow_dictionary(steps):
    """Each step: time passes by some seconds, then a node's sample of this second arrives."""
    window = 7
    fleet = FleetWindows(window, METRICS)
    plain: dict[tuple[str, int], float] = {}
    second = 1000
    for node, passed, looks in steps:
        second += passed
        add(fleet, node, second, now_ms=second * 1000 + 500)
        plain[node, second] = float(second)
        if looks:
            for name in {n for n, _ in plain}:
                wanted = [plain.get((name, s), nan) for s in range(second - window, second)]
                assert same(told(fleet, name, second * 1000 + 900), wanted)
