"""Figures against literal cases, and events against runs whose truth is known."""

import math
from dataclasses import replace

import numpy as np
import pytest
from synthetic import make_run

from las.forecast.heuristic import HeuristicForecaster
from models.baselines import BaseRate, Extrapolation
from models.judge import (
    Event,
    auroc,
    average_precision,
    brier,
    calibration,
    figures,
    intervals,
    judge_run,
    leads,
    rate_interval,
)
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA


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


def test_a_call_shields_when_it_leaves_time_for_the_switches():
    assert event(108.0).shielded
    assert event(109.0).foreseen
    assert not event(109.0).shielded
    assert not event(39.0).shielded
    assert not event(None).shielded


def test_an_abrupt_stop_is_no_fault_to_foresee_but_a_call_before_it_is_a_false_alarm():
    told = event(60.0)
    sudden = replace(told, node=replace(told.node, kind="killed"))
    assert not sudden.is_fault
    assert sudden.false_alarm
    assert not replace(sudden, called_s=None).false_alarm


def test_leads_are_paired_by_run():
    runs = [make_run(number) for number in (1, 2, 3)]
    rule = [judge_run(HeuristicForecaster(), run) for run in runs]
    base = [judge_run(BaseRate(0.1), run) for run in runs]
    assert leads(rule, base, rounds=50)["foreseen_share"] == (1.0, (1.0, 1.0))
    assert leads(rule, rule, rounds=50)["average_precision"] == (0.0, (0.0, 0.0))


def test_the_interval_of_a_rate_is_exact():
    # Garwood's table for 0, 1 and 10 events in one unit.
    assert rate_interval(0, 1.0) == pytest.approx((0.0, 3.689), abs=1e-3)
    assert rate_interval(1, 1.0) == pytest.approx((0.0253, 5.572), abs=1e-3)
    assert rate_interval(10, 1.0) == pytest.approx((4.795, 18.390), abs=1e-3)
    assert rate_interval(10, 4.0)[1] == pytest.approx(18.390 / 4.0, abs=1e-3)


def test_extrapolation_calls_what_runs_out_within_ten_minutes_and_nothing_else():
    windows = make_run(1, fault=False).windows(99, Extrapolation.window)
    at = TELEMETRY_SCHEMA.positions
    windows[:, :, at["process_memory_limit_share"]] = 0.4
    windows[:, :, at["disk_free_share"]] = 0.5
    seconds = np.arange(Extrapolation.window)
    # 0.4 left, full in 400 s; space that ends in 20 min; descriptors that come back.
    windows[0, :, at["process_memory_limit_share"]] = 0.6 + (seconds - seconds[-1]) * 0.001
    windows[1, :, at["disk_free_share"]] = 0.5 - (seconds - seconds[-1]) * (0.5 / 1200.0)
    windows[2, :, at["process_file_descriptors_share"]] = 0.5 - seconds * 0.001
    windows[3, :-10, at["process_memory_limit_share"]] = np.nan  # too few to draw a line
    assert Extrapolation().predict(windows).p_10_min.tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]
    windows[1, :, at["disk_free_share"]] = 0.5 - (seconds - seconds[-1]) * (0.5 / 300.0)
    assert Extrapolation().predict(windows).p_10_min.tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]


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
