"""Figures of rare events: ranking, calibration and warning times, with intervals by machine.

Rows of one machine (a disk, a node) know each other, so the bootstrap draws machines, with all
their rows. Drawing is done by weights on rows sorted once, so that a round costs one pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ROUNDS = 500

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure and its 95 % interval; NaN where there is nothing to count."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "–"
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


class _Ranked:
    """Rows sorted by score, ties together, for average precision under any row weights."""

    def __init__(self, labels: Array, scores: Array) -> None:
        self._order = np.argsort(-scores, kind="stable")
        ordered = scores[self._order]
        self._labels = labels[self._order]
        self._last_of_tie = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)

    def average_precision(self, weights: Array) -> float:
        """Area under precision over recall of the weighted rows."""
        weight = weights[self._order]
        hits = np.cumsum(weight * self._labels)
        if not hits[-1]:
            return math.nan
        rows = np.cumsum(weight)[self._last_of_tie]
        found = hits[self._last_of_tie]
        gained = np.diff(found, prepend=0.0)
        return float((gained * found / np.maximum(rows, 1e-12)).sum() / hits[-1])


def _draws(groups: npt.NDArray[np.int64], rounds: int, seed: int) -> Sequence[Array]:
    """Row weights of each round: how often the row's machine was drawn."""
    random = np.random.default_rng(seed)
    _, group = np.unique(groups, return_inverse=True)
    count = int(group.max()) + 1
    chance = np.full(count, 1.0 / count)
    return [random.multinomial(count, chance)[group].astype(np.float64) for _ in range(rounds)]


def interval(values: Sequence[float], at: float) -> Figure:
    """A figure with the 95 % interval of its bootstrap values."""
    known = np.array([value for value in values if not math.isnan(value)])
    if not len(known):
        return Figure(at, math.nan, math.nan)
    low, high = np.quantile(known, [0.025, 0.975])
    return Figure(at, float(low), float(high))


def precisions(
    labels: Array,
    scores: Mapping[str, Array],
    groups: npt.NDArray[np.int64],
    *,
    first: str,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> tuple[dict[str, Figure], dict[str, Figure], Figure]:
    """Average precision by name; the lead of `first` over each other (paired); `first` / base."""
    ranked = {name: _Ranked(labels, values) for name, values in scores.items()}
    whole = np.ones(len(labels))
    point = {name: rank.average_precision(whole) for name, rank in ranked.items()}
    drawn: dict[str, list[float]] = {name: [] for name in ranked}
    bases = []
    for weights in _draws(groups, rounds, seed):
        bases.append(float((weights * labels).sum() / weights.sum()))
        for name, rank in ranked.items():
            drawn[name].append(rank.average_precision(weights))
    figures = {name: interval(drawn[name], point[name]) for name in ranked}
    leads = {
        name: interval(
            [mine - theirs for mine, theirs in zip(drawn[first], drawn[name], strict=True)],
            point[first] - point[name],
        )
        for name in ranked
        if name != first
    }
    base = float(labels.mean())
    lift = interval(
        [mine / base_of for mine, base_of in zip(drawn[first], bases, strict=True) if base_of],
        point[first] / base,
    )
    return figures, leads, lift


@dataclass(frozen=True, slots=True)
class Bin:
    """Rows of like probability: mean said, share that came true, rows."""

    said: float
    true: float
    rows: int


def reliability(labels: Array, scores: Array) -> tuple[list[Bin], list[Bin]]:
    """Ten bins of equal mass over the lower 99 %, and five over the top 1 %."""
    order = np.argsort(scores, kind="stable")
    edge = len(order) - max(len(order) // 100, 1)
    return (
        [_bin(labels, scores, part) for part in np.array_split(order[:edge], 10) if len(part)],
        [_bin(labels, scores, part) for part in np.array_split(order[edge:], 5) if len(part)],
    )


def _bin(labels: Array, scores: Array, part: npt.NDArray[np.int64]) -> Bin:
    return Bin(float(scores[part].mean()), float(labels[part].mean()), len(part))


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: mean distance of said and true, by rows."""
    rows = sum(each.rows for each in bins)
    return sum(abs(each.said - each.true) * each.rows for each in bins) / rows


@dataclass(frozen=True, slots=True)
class Warnings:
    """Detection by machine at a fixed share of false alarms, and the warning time."""

    detected_share: Figure
    false_share: float
    lead_days_median: Figure
    leads_days: tuple[float, ...]


def warnings_by_machine(
    scores: Array,
    days: Array,
    groups: npt.NDArray[np.int64],
    failing_day: Mapping[int, float],
    *,
    false_share: float,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> Warnings:
    """A machine is called at its first row above a line that at most `false_share` of the machines
    that do not fail ever exceed. Lead: from there to its failure.
    """
    names, group = np.unique(groups, return_inverse=True)
    top = np.full(len(names), -np.inf)
    np.maximum.at(top, group, scores)
    fails = np.array([name in failing_day for name in names.tolist()])
    calm = np.sort(top[~fails])
    line = calm[len(calm) - 1 - int(len(calm) * false_share)]
    first = np.full(len(names), np.inf)
    over = scores > line
    np.minimum.at(first, group[over], days[over])
    called = np.isfinite(first)
    ends = np.array([failing_day.get(name, math.nan) for name in names.tolist()])
    hit = called[fails]
    lead = (ends - first)[fails]
    random = np.random.default_rng(seed)
    shares, medians = [], []
    for _ in range(rounds):
        drawn = random.integers(0, len(hit), size=len(hit))
        shares.append(float(hit[drawn].mean()))
        found = lead[drawn][hit[drawn]]
        medians.append(float(np.median(found)) if len(found) else math.nan)
    found = lead[hit]
    return Warnings(
        detected_share=interval(shares, float(hit.mean())),
        false_share=float(called[~fails].mean()),
        lead_days_median=interval(medians, float(np.median(found)) if len(found) else math.nan),
        leads_days=tuple(found.tolist()),
    )
