"""Figures against literal cases, and events against runs whose truth is known."""

import math

import numpy as np
import pytest
from synthetic import make_run

from las.forecast.heuristic import HeuristicForecaster
from models.evaluate import BaseRate
from models.judge import (
    Event,
    auroc,
    average_precision,
    brier,
    calibration,
    figures,
    intervals,
    judge_run,
)


def array(*values):
    return np.array(values, dtype=np.float64)


def test_auroc_counts_pairs_and_halves_ties():
    assert auroc(array(0, 0, 1, 1), array(0.1, 0.2, 0.8, 0.9)) == 1.0
    assert auroc(array(0, 1, 0, 1), array(0.5, 0.5, 0.5, 0.5)) == 0.5
    assert auroc(array(1, 0, 1, 0), array(0.9, 0.8, 0.7, 0.1)) == 0.75
    assert math.isnan(auroc(array(0, 0), array(0.1, 0.2)))


def test_auroc_equals_counting_all_pairs():
    random = np.random.default_rng(4)
    labels = (random.random(60) < 0.3).astype(np.float64)
    scores = np.round(random.random(60), 1)
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels == 1.0] for n in scores[labels == 0.0]]
    assert auroc(labels, scores) == pytest.approx(np.mean(pairs))


def test_average_precision_takes_ties_together():
    assert average_precision(array(1, 1, 0), array(0.9, 0.8, 0.1)) == 1.0
    assert average_precision(array(1, 0), array(0.5, 0.5)) == 0.5
    assert average_precision(array(0, 1, 0, 1), array(0.9, 0.8, 0.7, 0.6)) == pytest.approx(0.5)
    assert math.isnan(average_precision(array(0), array(0.1)))


def test_brier_and_calibration():
    assert brier(array(0, 1), array(0.1, 0.8)) == pytest.approx(0.025)
    bins = calibration(array(0, 0, 1, 1), array(0.05, 0.15, 0.95, 1.0))
    assert [(said, true, rows) for said, true, rows in bins] == [
        (pytest.approx(0.1), 0.0, 2),
        (pytest.approx(0.975), 1.0, 2),
    ]


def event(called_s, *, number=1, peer=0):
    node = make_run(number, seconds=120).truth.nodes[peer]
    return Event(run=number, node=node, called_s=called_s, watched_s=100.0)


def test_a_call_counts_only_between_onset_and_stop():
    assert event(60.0).foreseen
    assert event(40.0).foreseen
    assert not event(None).foreseen
    assert not event(110.0).foreseen
    assert event(39.0).false_alarm
    assert not event(39.0).foreseen
    assert event(60.0, peer=1).false_alarm
    assert not event(None, peer=1).false_alarm


def test_the_rule_foresees_a_slow_death_and_is_judged_by_row_and_event():
    judged = judge_run(HeuristicForecaster(), make_run(1))
    told = figures([judged])
    assert told["foreseen_share"] == 1.0
    assert told["false_alarm_share"] == 0.0
    assert told["precision"] == 1.0
    assert told["lead_time_s_median"] + told["delay_after_onset_s_median"] == 70.0
    assert told["auroc"] > 0.6
    assert len(judged.labels) == 5 * (120 - 8) - 10


def test_the_base_rate_never_calls():
    told = figures([judge_run(BaseRate(0.1), make_run(1))])
    assert told["foreseen_share"] == 0.0
    assert told["auroc"] == 0.5
    assert told["brier"] == pytest.approx(
        told["base_rate"] * (1 - told["base_rate"]) + (told["base_rate"] - 0.1) ** 2, abs=1e-6
    )


def test_intervals_hold_the_figure_and_are_the_same_each_time():
    judged = [judge_run(HeuristicForecaster(), make_run(n)) for n in range(4)]
    told = intervals(judged, rounds=50)
    assert told == intervals(judged, rounds=50)
    low, high = told["auroc"]
    assert low <= figures(judged)["auroc"] <= high
