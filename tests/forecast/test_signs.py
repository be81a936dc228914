"""What is read off windows: standing still, and running out."""

import math

import numpy as np
import pytest

from las.core.signs import NO_SIGNS
from las.forecast.signs import STALL_METRIC, TREND_SAMPLES, read_signs
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
