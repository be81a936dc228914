"""Why a node went, from what was seen last."""

import numpy as np
import pytest

from las.core.history import Cause
from las.daemon.evidence import cause_of_end, cause_of_silence
from las.forecast.window import FleetWindows
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA


def samples(count: int, **metrics: float) -> np.ndarray:
    values = np.zeros((count, len(TELEMETRY_SCHEMA)), dtype=np.float32)
    calm = {"memory_available_share": 0.5, "disk_free_share": 0.5}
    for metric, value in (calm | metrics).items():
        values[:, TELEMETRY_SCHEMA.positions[metric]] = value
    return values


MISSING = np.full((5, len(TELEMETRY_SCHEMA)), np.nan, dtype=np.float32)


@pytest.mark.parametrize(
    ("last", "cause"),
    [
        ({"oom_kills_per_s": 1.0}, Cause.MEMORY),
        ({"process_memory_limit_share": 0.97}, Cause.MEMORY),
        ({"memory_available_share": 0.01}, Cause.MEMORY),
        ({"commit_age_ms": 2_000.0}, Cause.DISK),
        ({"disk_free_share": 0.001}, Cause.DISK),
        ({"disk_free_share": np.nan, "commit_age_ms": np.nan}, Cause.CRASH),
        ({}, Cause.CRASH),
    ],
)
def test_the_last_samples_tell_why_a_process_ended(last: dict[str, float], cause: Cause):
    seen = np.vstack([samples(20), samples(1, **last), MISSING])
    assert cause_of_end(seen, refused=True) is cause


def test_silence_alone_tells_nothing():
    assert cause_of_end(samples(9), refused=False) is Cause.UNKNOWN
    assert cause_of_end(MISSING, refused=False) is Cause.UNKNOWN
    assert cause_of_end(MISSING[:0], refused=True) is Cause.CRASH


def test_who_took_samples_while_it_was_not_heard_was_cut_off():
    assert cause_of_silence(samples(10)) is Cause.NETWORK
    assert cause_of_silence(np.vstack([samples(3), MISSING, MISSING])) is Cause.UNKNOWN
    assert cause_of_silence(MISSING[:0]) is Cause.UNKNOWN


def test_the_last_seconds_of_a_node_end_with_the_last_whole_one():
    windows = FleetWindows(120, metric_count=1)
    for second in range(5):
        windows.add("p1", sequence=second, age_ms=0, values=[second], now_ms=second * 1000)
    recent = windows.recent("p1", now_ms=6_000, count=4)
    assert recent[:3, 0].tolist() == [2.0, 3.0, 4.0]
    assert np.isnan(recent[3, 0])
    assert windows.recent("p9", now_ms=6_000, count=4).shape == (0, 1)
