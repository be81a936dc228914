"""What is read off windows: standing still, and running out."""

import math

import numpy as np
import pytest

from las.core.signs import NO_SIGNS
from las.forecast import signs
from las.forecast.signs import (
    DISTANCE_METRIC,
    LOSS_METRIC,
    OWN_MEMORY_METRIC,
    STALL_METRIC,
    TREND_SAMPLES,
    read_signs,
)
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA

WINDOW = 120
MEMORY, DESCRIPTORS, DISK_FREE = (
    TELEMETRY_SCHEMA.positions[name]
    for name in (
        "process_memory_limit_share",
        "process_file_descriptors_share",
        "disk_free_share",
    )
)
SECONDS = np.arange(WINDOW, dtype=np.float32)


def windows(nodes: int = 1) -> np.ndarray:
    """Nothing seen of anything."""
    return np.full((nodes, WINDOW, len(TELEMETRY_SCHEMA)), np.nan, dtype=np.float32)


def test_nothing_seen_is_nothing_read():
    assert read_signs(windows(2)) == [NO_SIGNS, NO_SIGNS]


def test_a_line_tells_when_it_ends():
    seen = windows()
    seen[0, :, MEMORY] = 0.4 + 0.004 * SECONDS  # 0.876 at the newest
    (signs,) = read_signs(seen)
    assert signs.exhausting == "memory"
    assert signs.used_share == pytest.approx(0.876, abs=1e-3)
    assert signs.exhausted_in_s == pytest.approx(31.0, abs=0.5)


def test_free_space_counts_down_and_the_first_to_end_is_named():
    seen = windows()
    seen[0, :, DISK_FREE] = 0.3 - 0.002 * SECONDS
    seen[0, :, DESCRIPTORS] = 0.5 + 0.001 * SECONDS
    (signs,) = read_signs(seen)
    assert signs.exhausting == "disk"
    assert signs.exhausted_in_s == pytest.approx(31.0, abs=0.5)


@pytest.mark.parametrize(
    "used",
    [
        np.where(SECONDS < 105, 0.2, 0.8),  # a jump that stays
        0.7 + 0.1 * np.sin(SECONDS / 3.0),  # up and down
        np.full(WINDOW, 0.9),  # full and steady
        0.95 - 0.002 * SECONDS,  # on the way back
        np.where(SECONDS < WINDOW - 10, np.nan, 0.01 * SECONDS - 0.4),  # too little
    ],
    ids=["jump", "wave", "steady", "less", "young"],
)
def test_what_is_no_trend_does_not_run_out(used):
    seen = windows()
    seen[0, :, MEMORY] = used
    (signs,) = read_signs(seen)
    assert math.isinf(signs.exhausted_in_s)
    assert not signs.exhausting


def test_gaps_do_not_hide_a_trend():
    seen = windows()
    seen[0, :, MEMORY] = 0.4 + 0.004 * SECONDS
    seen[0, ::3, MEMORY] = np.nan
    (signs,) = read_signs(seen)
    assert signs.exhausted_in_s == pytest.approx(31.0, abs=0.5)


def test_a_trend_is_that_of_the_last_half_minute():
    seen = windows()
    seen[0, :, MEMORY] = 0.1
    seen[0, -TREND_SAMPLES:, MEMORY] = 0.6 + 0.01 * np.arange(TREND_SAMPLES)
    (signs,) = read_signs(seen)
    assert signs.exhausted_in_s == pytest.approx(11.0, abs=0.5)


def test_standing_still_is_told_by_its_own_past_of_each_node():
    seen = windows(2)
    column = TELEMETRY_SCHEMA.positions[STALL_METRIC]
    seen[:, :, column] = 5.0
    seen[1, -10:, column] = 500.0
    calm, stalled = read_signs(seen)
    assert (calm.stall_factor, calm.stalled_ms) == (1.0, 5.0)
    assert (stalled.stall_factor, stalled.stalled_ms) == (100.0, 500.0)


def of_links(metric: str, past: list[float], now: list[float]) -> np.ndarray:
    """A fleet whose links were as in `past` until ten seconds ago, and are as in `now`."""
    seen = windows(len(past))
    column = TELEMETRY_SCHEMA.positions[metric]
    seen[:, :, column] = np.array(past, dtype=np.float32)[:, None]
    seen[:, -10:, column] = np.array(now, dtype=np.float32)[:, None]
    return seen


def test_a_link_that_grows_far_is_told_by_its_own_past():
    far = read_signs(of_links(DISTANCE_METRIC, [2.0, 2.0, 2.0], [600.0, 2.0, 2.0]))
    assert [round(each.distance_factor) for each in far] == [300, 0, 0]
    assert far[0].round_trip_ms == pytest.approx(600.0)


def test_a_link_that_is_far_and_stays_so_is_as_it_was():
    stable = read_signs(of_links(DISTANCE_METRIC, [250.0, 2.0, 2.0], [250.0, 2.0, 2.0]))
    assert stable[0].distance_factor == pytest.approx(1.0)


def test_where_all_grow_far_at_once_no_link_is_to_blame():
    everyone = read_signs(of_links(DISTANCE_METRIC, [2.0] * 4, [600.0, 610.0, 620.0, 630.0]))
    assert {each.distance_factor for each in everyone} == {0.0}


def test_of_a_far_peer_half_of_a_neighbours_round_trips_say_nothing():
    # The one that is far sees it on each of its links, another one on that one alone.
    fleet = read_signs(of_links(DISTANCE_METRIC, [2.0, 2.0], [600.0, 2.0]))
    assert fleet[0].distance_factor > 100.0
    assert fleet[1].distance_factor == 0.0
    (alone,) = read_signs(of_links(DISTANCE_METRIC, [2.0], [600.0]))
    assert alone.distance_factor > 100.0


def test_round_trips_that_grow_are_told_with_how_much():
    fleet = of_links(DISTANCE_METRIC, [2.0] * 4, [2.0] * 4)
    newest = fleet[:, -10:, TELEMETRY_SCHEMA.positions[DISTANCE_METRIC]]
    newest[0] = 20.0 * np.arange(10)  # steadily
    newest[0, 4] = np.nan
    newest[1] = np.where(np.arange(10) < 5, 2.0, np.where(np.arange(10) % 2, 400.0, 2.0))
    newest[2] = 200.0 - 10.0 * np.arange(10)  # on the way back
    newest[3, :4] = np.nan  # too little was seen
    newest[3, 4:] = 20.0 * np.arange(6)
    grown = [each.growth_ms for each in read_signs(fleet)]
    assert grown[0] == pytest.approx(200.0, rel=0.01)
    assert grown[1:] == [0.0, 0.0, 0.0]


def test_a_peer_need_not_be_a_minute_old_for_its_links():
    young = of_links(DISTANCE_METRIC, [2.0, 2.0], [600.0, 2.0])
    young[:, :-45] = np.nan
    assert read_signs(young)[0].distance_factor == pytest.approx(300.0)
    young[:, -45] = np.nan
    assert read_signs(young)[0].distance_factor == 0.0
    column = TELEMETRY_SCHEMA.positions[STALL_METRIC]
    young[0, -44:, column] = 5.0
    young[0, -10:, column] = 500.0
    assert read_signs(young)[0].stall_factor == 0.0, "of its process more must be known"


def test_a_link_that_begins_to_lose_is_told_although_it_never_lost():
    lossy = read_signs(of_links(LOSS_METRIC, [0.0, 0.0, 0.0], [6.0, 1.0, 0.0]))
    assert lossy[0].loss_factor == pytest.approx(31.0, rel=0.01)
    assert lossy[0].timeouts_per_s == pytest.approx(6.0, abs=0.01)
    stable = read_signs(of_links(LOSS_METRIC, [6.0, 0.0, 0.0], [6.0, 0.0, 0.0]))
    assert stable[0].loss_factor == pytest.approx(1.0)


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 5, 8, 9])
def test_a_link_is_compared_with_the_lower_median_of_the_others(nodes):
    level = np.random.default_rng(nodes).integers(0, 5, nodes).astype(np.float32)
    others = [sorted(np.delete(level, node)) for node in range(nodes)]
    expected = [each[(len(each) - 1) // 2] if each else 0.0 for each in others]
    assert signs._medians_of_others(level).tolist() == expected


@pytest.mark.parametrize(("own", "runs_out"), [(True, True), (False, False), (None, True)])
def test_memory_runs_out_only_where_the_process_itself_grows(own, runs_out):
    """What the kernel keeps of files fills a group's memory in good health."""
    seen = windows()
    seen[0, :, MEMORY] = 0.4 + 0.004 * SECONDS
    if own is not None:
        seen[0, :, TELEMETRY_SCHEMA.positions[OWN_MEMORY_METRIC]] = 1e8 + 1e6 * SECONDS * own
    (signs,) = read_signs(seen)
    assert bool(signs.exhausting) is runs_out


def test_a_large_fleet_is_read_in_parts_and_judged_as_a_whole(monkeypatch):
    """Links are compared with those of all nodes, in whichever part they are."""
    chance = np.random.default_rng(5)
    shape = (11, 120, len(TELEMETRY_SCHEMA))
    fleet = np.exp(chance.normal(0.0, 0.3, shape)).astype(np.float32)
    fleet[chance.random(shape) < 0.1] = np.nan
    at = TELEMETRY_SCHEMA.positions
    fleet[:, :, at["process_memory_limit_share"]] = np.linspace(0.1, 0.9, 120)
    fleet[:, :, at["process_memory_anonymous_bytes"]] = np.linspace(1e6, 9e6, 120)
    fleet[7:, -3:, at["round_trip_ms_p50"]] *= 50.0
    whole = read_signs(fleet)
    assert sum(each.distance_factor > 10.0 for each in whole) == 4
    assert {each.exhausting for each in whole} == {"memory"}
    for nodes in (1, 4, 11):
        monkeypatch.setattr(signs, "PART_NODES", nodes)
        assert read_signs(fleet) == whole
    assert read_signs(fleet[:0]) == []
