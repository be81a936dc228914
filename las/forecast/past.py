"""A node's metric now against its own past, in numbers and in words.

"Own past" is the median of what was seen before the last `RECENT_SAMPLES`; where the window is
younger than that, the oldest third of it. "Now" is the median of the newest three values, so that
one stray sample neither makes nor hides a reason.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from peerd.daemon.telemetry.schema import Kind, Metric

Series = npt.NDArray[np.float32]

# Younger than this is trouble that may be under way, not past. Seconds at one sample a second.
RECENT_SAMPLES = 30
_NOW_SAMPLES = 3
# Below this factor a change is not worth a word.
_FACTOR_MIN = 1.5


def own_past(series: Series) -> float:
    """The level that counts as normal for this series [window]; NaN when nothing was seen."""
    seen = series[~np.isnan(series)]
    if not len(seen):
        return math.nan
    old = series[:-RECENT_SAMPLES]
    old = old[~np.isnan(old)]
    if len(old) < max(len(seen) // 3, 1):
        old = seen[: max(len(seen) // 3, 1)]
    return float(np.median(old))


def now(series: Series) -> float:
    """The level of the newest seen samples; NaN when nothing was seen."""
    seen = series[~np.isnan(series)]
    return float(np.median(seen[-_NOW_SAMPLES:])) if len(seen) else math.nan


def slowdowns(
    series: Series, *, past_samples: int = RECENT_SAMPLES
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """How far each node's level is above its own past, and the level: [nodes] of [nodes, window].

    Both are 0 where too little was seen: nothing now, or less than `past_samples` of the past.
    """
    old, recent = series[:, :-RECENT_SAMPLES], series[:, -_NOW_SAMPLES:]
    enough = np.isfinite(old).sum(axis=1) >= past_samples
    enough &= np.isfinite(recent).any(axis=1)
    factor = np.zeros(len(series), dtype=np.float32)
    level = np.zeros(len(series), dtype=np.float32)
    level[enough] = _medians(recent[enough])
    past = _medians(old[enough])
    factor[enough] = np.where(past > 0.0, level[enough] / np.where(past > 0.0, past, 1.0), 0.0)
    return factor, level


def _medians(rows: Series) -> Series:
    """Medians of what is not NaN, along rows that each have something."""
    ordered = np.sort(rows, axis=1)  # NaN last
    seen = np.isfinite(ordered).sum(axis=1)
    at = np.arange(len(rows))
    return (ordered[at, (seen - 1) // 2] + ordered[at, seen // 2]) / 2  # type: ignore[no-any-return]


def as_before(series: Series) -> Series:
    """The same series, had its recent samples stayed at the level of the own past."""
    calm = series.copy()
    recent = calm[-RECENT_SAMPLES:]
    recent[~np.isnan(recent)] = own_past(series)
    return calm


def in_words(metric: Metric, series: Series) -> str:
    """`fsync p99 ×31 (62 ms)`, `commit stalls 4/s`: the change of one metric, for a person."""
    level, past = now(series), own_past(series)
    if math.isnan(level):
        return f"{metric.label} missing"
    amount = _amount(metric, level)
    if past > 0.0 and level / past >= _FACTOR_MIN:
        return f"{metric.label} ×{_number(level / past)} ({amount})"
    if past > 0.0 and 0.0 < level / past <= 1.0 / _FACTOR_MIN:
        return f"{metric.label} ÷{_number(past / level)} ({amount})"
    return f"{metric.label} {amount}"


_BYTE_STEPS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def _amount(metric: Metric, value: float) -> str:
    if metric.kind is Kind.SHARE:
        return f"{_number(value * 100.0)} %"
    if metric.unit == "1/s":
        return f"{_number(value)}/s"
    if metric.unit in {"B", "B/s"}:
        for step, name in _BYTE_STEPS:
            if value >= step:
                return f"{_number(value / step)} {metric.unit.replace('B', name)}"
    return f"{_number(value)} {metric.unit}"


def _number(value: float) -> str:
    """Two significant digits, whole from 10 on."""
    if value >= 10.0 or value == 0.0:
        return f"{value:.0f}"
    return f"{value:.2g}"
