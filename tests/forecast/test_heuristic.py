"""The rule that stands in for a model."""

import numpy as np
import pytest

from las.forecast.answer import WindowsUnfit
from las.forecast.heuristic import RULE_FALSE, RULE_TRUE, RULE_WINDOW, HeuristicForecaster
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA

AT = TELEMETRY_SCHEMA.positions["commit_latency_ms_p99"]


def fleet(nodes=1, latency=2.0):
    windows = np.zeros((nodes, RULE_WINDOW, len(TELEMETRY_SCHEMA)), dtype=np.float32)
    windows[:, :, AT] = latency
    return windows


def says(windows):
    return HeuristicForecaster().predict(windows).probabilities[:, 0].tolist()


def test_it_says_what_it_is():
    forecast = HeuristicForecaster().predict(fleet(3))
    assert (forecast.model_id, forecast.calibrated) == ("heuristic", False)
    assert (forecast.probabilities[:, 0] <= forecast.probabilities[:, 1]).all()


def test_it_holds_above_ten_times_the_own_past_and_not_at_it():
    windows = fleet(3)
    windows[0, -5:, AT] = 20.0
    windows[1, -5:, AT] = 20.1
    assert says(windows) == pytest.approx([RULE_FALSE[0], RULE_TRUE[0], RULE_FALSE[0]])


def test_one_stray_sample_does_not_make_it_hold():
    windows = fleet()
    windows[0, -1, AT] = 900.0
    assert says(windows) == pytest.approx([RULE_FALSE[0]])


def test_a_slow_but_stable_disk_does_not_make_it_hold():
    assert says(fleet(latency=80.0)) == pytest.approx([RULE_FALSE[0]])


def test_a_young_window_is_compared_with_its_oldest_third():
    windows = fleet()
    windows[0, :-24] = np.nan
    windows[0, -6:, AT] = 90.0
    assert says(windows) == pytest.approx([RULE_TRUE[0]])


def test_too_few_samples_are_unknown_and_calm():
    windows = fleet()
    windows[0, :-9] = np.nan
    windows[0, -3:, AT] = 900.0
    forecast = HeuristicForecaster().predict(windows)
    assert forecast.known.tolist() == [False]
    assert forecast.p_10_min.tolist() == pytest.approx([RULE_FALSE[0]])


def test_its_reason_is_its_input():
    windows = fleet(2)
    windows[1, -20:, AT] = 62.0
    assert HeuristicForecaster().reasons(windows, 0) == ()
    assert [r.text for r in HeuristicForecaster().reasons(windows, 1)] == ["fsync p99 ×31 (62 ms)"]


def test_other_shapes_are_the_callers_fault():
    with pytest.raises(WindowsUnfit):
        HeuristicForecaster().predict(fleet()[:, 1:])
