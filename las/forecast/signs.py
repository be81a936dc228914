"""Signs of trouble of a fleet, read off its windows: what `las.core.signs` judges node by node."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from las.core.signs import Signs
from las.forecast.answer import Windows
from las.forecast.heuristic import RULE_METRIC
from las.forecast.past import slowdowns
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA

STALL_METRIC = "loop_lag_ms_max"
# What runs out: its name, its metric, and whether that counts what is free.
_EXHAUSTIBLE = (
    ("memory", "process_memory_limit_share", False),
    ("descriptors", "process_file_descriptors_share", False),
    ("disk", "disk_free_share", True),
)
TREND_SAMPLES = 30
TREND_SAMPLES_MIN = 15
# R² of the line: what jumps once and stays, or goes up and down, is no trend.
TREND_FIT_MIN = 0.95

Column = npt.NDArray[np.float64]


def read_signs(windows: Windows) -> list[Signs]:
    """The signs of each node: float32 [nodes, window, metrics], newest last."""
    slowdown, latency_ms = slowdowns(windows[:, :, TELEMETRY_SCHEMA.positions[RULE_METRIC]])
    stall, stalled_ms = slowdowns(windows[:, :, TELEMETRY_SCHEMA.positions[STALL_METRIC]])
    left_s, used = _exhaustion(windows)
    first = left_s.argmin(axis=0)
    return [
        Signs(
            slowdown=float(slowdown[node]),
            latency_ms=float(latency_ms[node]),
            stall_factor=float(stall[node]),
            stalled_ms=float(stalled_ms[node]),
            exhausting=_EXHAUSTIBLE[what][0] if np.isfinite(left_s[what, node]) else "",
            exhausted_in_s=float(left_s[what, node]),
            used_share=float(used[what, node]) if np.isfinite(left_s[what, node]) else 0.0,
        )
        for node, what in enumerate(first.tolist())
    ]


def _exhaustion(windows: Windows) -> tuple[Column, Column]:
    """Seconds until each thing runs out, and its used share now: [things, nodes]."""
    left_s, used = [], []
    for _, metric, counts_free in _EXHAUSTIBLE:
        column = windows[:, -TREND_SAMPLES:, TELEMETRY_SCHEMA.positions[metric]].astype(np.float64)
        now, slope = _trend(1.0 - column if counts_free else column)
        rises = slope > 0.0
        left_s.append(np.where(rises, (1.0 - now) / np.where(rises, slope, 1.0), np.inf))
        used.append(now)
    return np.maximum(np.array(left_s), 0.0), np.array(used)


def _trend(values: Column) -> tuple[Column, Column]:
    """Where the line through each row stands now, and how it rises a second; 0 without a fit.

    Least squares over what is not NaN.
    """
    seconds = np.arange(values.shape[1], dtype=np.float64)
    seen = np.isfinite(values)
    count = np.maximum(seen.sum(axis=1), 1)
    known = np.where(seen, values, 0.0)
    middle_s, middle = (seen * seconds).sum(axis=1) / count, known.sum(axis=1) / count
    away_s = np.where(seen, seconds - middle_s[:, None], 0.0)
    away = np.where(seen, known - middle[:, None], 0.0)
    spread_s, spread = (away_s**2).sum(axis=1), (away**2).sum(axis=1)
    common = (away_s * away).sum(axis=1)
    fits = seen.sum(axis=1) >= TREND_SAMPLES_MIN
    fits &= common**2 >= TREND_FIT_MIN * spread_s * spread
    fits &= spread > 0.0
    slope = np.where(fits, common / np.where(fits, spread_s, 1.0), 0.0)
    return np.where(fits, middle + slope * (seconds[-1] - middle_s), 0.0), slope
