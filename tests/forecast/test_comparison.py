"""A model in shadow is compared on the same forecasts, and scored on those whose end is known."""

import math

import numpy as np
import pytest

from las.forecast.comparison import KEPT_MAX, Comparison

NODES = ("a", "b", "c", "d")


def told(*probabilities):
    return np.array(probabilities, dtype=np.float32)


def test_rounds_tell_how_far_apart_they_are_and_who_cries():
    seen = Comparison(600)
    for second, shadow in enumerate((0.5, 0.9, 0.9, 0.1, 0.9)):
        seen.add(second, NODES[:2], told(0.1, 0.1), told(0.1, shadow))
    figures = seen.figures()
    assert (figures.rounds, figures.forecasts, figures.alarms) == (5, 10, 0)
    assert figures.alarms_shadow == 2  # it cried twice, the second time for two rounds
    assert figures.difference_max == pytest.approx(0.8)
    assert figures.difference_mean == pytest.approx((0.4 + 0.8 * 3) / 10)
    assert math.isnan(figures.brier)


def test_a_failure_scores_both_at_once_and_the_others_when_the_horizon_is_over():
    seen = Comparison(600)
    seen.add(0, NODES, told(0.1, 0.1, 0.1, 0.1), told(0.9, 0.2, 0.2, 0.2))
    seen.ended("a", failed=True)
    figures = seen.figures()
    assert (figures.scored, figures.came_true) == (1, 1)
    assert figures.brier == pytest.approx(0.81)
    assert figures.brier_shadow == pytest.approx(0.01)
    seen.protected(300, ["b"])  # protected, and did not fail: nobody knows why
    seen.ended("c", failed=None)  # stopped by an operator
    seen.add(601, ("d",), told(0.1), told(0.2))
    figures = seen.figures()
    assert (figures.scored, figures.came_true) == (2, 1)
    assert figures.brier == pytest.approx((0.81 + 0.01) / 2)
    assert figures.brier_shadow == pytest.approx((0.01 + 0.04) / 2)


def test_what_waits_is_bounded():
    seen = Comparison(600)
    for second in range(0, 6_000, 10):
        seen.add(second, ("a",), told(0.1), told(0.1))
        assert len(seen._kept) <= KEPT_MAX
    assert seen.figures().scored == pytest.approx(6_000 / 60 - KEPT_MAX, abs=2)
    seen.add(6_000, (), told(), told())  # a fleet of which nothing is known yet
    assert seen.waiting == {"a"}
