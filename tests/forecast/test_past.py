"""Words for a change, as a person would say it."""

import numpy as np
import pytest

from las.forecast.past import as_before, in_words, now, own_past, slowdowns
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA


def series(past, present, window=120, recent=5):
    values = np.full(window, past, dtype=np.float32)
    values[-recent:] = present
    return values


@pytest.mark.parametrize(
    ("name", "past", "present", "words"),
    [
        ("commit_latency_ms_p99", 2.0, 62.0, "fsync p99 ×31 (62 ms)"),
        ("commit_latency_ms_p99", 2.0, 2.2, "fsync p99 2.2 ms"),
        ("commits_per_s", 90.0, 9.0, "commits ÷10 (9/s)"),
        ("commit_stalls_per_s", 0.0, 4.0, "commit stalls 4/s"),
        ("pressure_io_some_share", 0.1, 0.6, "io pressure ×6 (60 %)"),
        ("process_memory_anonymous_bytes", 1e8, 1.3e9, "own memory ×13 (1.3 GB)"),
        ("commit_bytes_per_s", 1e5, 4.5e6, "committed bytes ×45 (4.5 MB/s)"),
        ("process_cpu_cores", 0.2, 0.9, "own CPU ×4.5 (0.9 cores)"),
    ],
)
def test_words(name, past, present, words):
    assert in_words(TELEMETRY_SCHEMA.metric(name), series(past, present)) == words


def test_what_was_never_seen_is_missing():
    nothing = np.full(120, np.nan, dtype=np.float32)
    assert in_words(TELEMETRY_SCHEMA.metric("commits_per_s"), nothing) == "commits missing"
    assert np.isnan(own_past(nothing))
    assert np.isnan(now(nothing))


def test_as_before_keeps_the_past_and_the_gaps():
    values = series(2.0, 90.0)
    values[-2] = np.nan
    calm = as_before(values)
    assert np.isnan(calm[-2])
    assert np.nanmax(calm) == 2.0
    assert np.nanmax(values) == 90.0


def test_slowdowns_of_a_fleet_are_those_of_each_node():
    missing, sparse = series(2.0, 62.0), series(2.0, 62.0)
    missing[:] = np.nan
    sparse[5:-5] = np.nan  # five samples are no past
    holes = series(2.0, 62.0)
    holes[::2] = np.nan
    factor, level = slowdowns(
        np.stack([series(2.0, 62.0), missing, sparse, holes, series(0.0, 9.0)])
    )
    assert factor.tolist() == [31.0, 0.0, 0.0, 31.0, 0.0]
    assert level.tolist() == [62.0, 0.0, 0.0, 62.0, 9.0]
