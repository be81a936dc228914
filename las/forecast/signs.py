"""Signs of trouble of a fleet, read off its windows: what `las.core.signs` judges node by node."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from las.core.signs import Signs
from las.forecast.answer import Windows
from las.forecast.heuristic import RULE_METRIC
from las.forecast.past import Series, slowdowns
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA

STALL_METRIC = "loop_lag_ms_max"
DISTANCE_METRIC = "round_trip_ms_p50"
LOSS_METRIC = "tcp_timeouts_per_s"
# A link is sick only if it is worse than half of the others by so much: of a dead or far peer all
# the others see something, too.
WORSE_THAN_OTHERS = 1.5
# Of a link this much past is enough: trouble does not wait until a peer is a minute old.
LINK_PAST_SAMPLES = 15
# Over so many samples a round trip is seen to grow; its line may fit less well than that of
# something that runs out, since what is measured on some of the links is a second old.
GROWTH_SAMPLES = 10
GROWTH_SAMPLES_MIN = 7
GROWTH_FIT_MIN = 0.8
# A link that never waited for a timer counts as one that does so this often, per second.
_TIMEOUTS_LEAST = 0.2
# What runs out: its name, its metric, and whether that counts what is free.
_EXHAUSTIBLE = (
    ("memory", "process_memory_limit_share", False),
    ("descriptors", "process_file_descriptors_share", False),
    ("disk", "disk_free_share", True),
)
# A group's memory holds what the kernel keeps of files, too, and fills up with it in good health:
# only where the process's own memory grows along does it run out.
OWN_MEMORY_METRIC = "process_memory_anonymous_bytes"
TREND_SAMPLES = 30
TREND_SAMPLES_MIN = 15
# R² of the line: what jumps once and stays, or goes up and down, is no trend.
TREND_FIT_MIN = 0.95

# limit: nodes whose signs are read at once: what lies between stays in the processor's cache.
PART_NODES = 500

Column = npt.NDArray[np.float64]


def read_signs(windows: Windows) -> list[Signs]:
    """The signs of each node: float32 [nodes, window, metrics], newest last."""
    parts = [
        _of_each(windows[first : first + PART_NODES])
        for first in range(0, max(len(windows), 1), PART_NODES)
    ]
    (
        (slowdown, latency_ms),
        (stall, stalled_ms),
        (distance, round_trip_ms),
        (growth_ms,),
        (loss, timeouts),
        (left_s, used),
    ) = (
        tuple(np.concatenate(column, axis=-1) for column in zip(*each, strict=True))
        for each in zip(*parts, strict=True)
    )
    distance = _if_worse_than_others(distance, round_trip_ms)
    loss = _if_worse_than_others(loss, timeouts)
    first = left_s.argmin(axis=0)
    nodes = np.arange(len(first))
    first_s, first_used = left_s[first, nodes], used[first, nodes]
    runs_out = np.isfinite(first_s)
    # Plain numbers of whole columns: to take them out of arrays one by one costs more than all the
    # rest does.
    columns = (
        slowdown,
        latency_ms,
        stall,
        stalled_ms,
        distance,
        round_trip_ms,
        growth_ms,
        loss,
        np.maximum(timeouts.astype(np.float64) - _TIMEOUTS_LEAST, 0.0),
        np.where(runs_out, first, len(_EXHAUSTIBLE)),
        first_s,
        np.where(runs_out, first_used, 0.0),
    )
    names = (*(name for name, _, _ in _EXHAUSTIBLE), "")
    return [
        Signs(
            slowdown=slowdown,
            latency_ms=latency_ms,
            stall_factor=stall_factor,
            stalled_ms=stalled_ms,
            distance_factor=distance_factor,
            round_trip_ms=round_trip_ms,
            growth_ms=growth_ms,
            loss_factor=loss_factor,
            timeouts_per_s=timeouts_per_s,
            exhausting=names[what],
            exhausted_in_s=exhausted_in_s,
            used_share=used_share,
        )
        for (
            slowdown,
            latency_ms,
            stall_factor,
            stalled_ms,
            distance_factor,
            round_trip_ms,
            growth_ms,
            loss_factor,
            timeouts_per_s,
            what,
            exhausted_in_s,
            used_share,
        ) in zip(*(column.tolist() for column in columns), strict=True)
    ]


def _of_each(windows: Windows) -> tuple[tuple[Column | Series, ...], ...]:
    """What is read of each node by itself; the nodes are the last axis of each column."""
    at = TELEMETRY_SCHEMA.positions
    trips = windows[:, :, at[DISTANCE_METRIC]]
    return (
        slowdowns(windows[:, :, at[RULE_METRIC]]),
        slowdowns(windows[:, :, at[STALL_METRIC]]),
        slowdowns(trips, past_samples=LINK_PAST_SAMPLES),
        (_growth(trips),),
        slowdowns(
            windows[:, :, at[LOSS_METRIC]] + np.float32(_TIMEOUTS_LEAST),
            past_samples=LINK_PAST_SAMPLES,
        ),
        _exhaustion(windows),
    )


def _if_worse_than_others(factor: Series, level: Series) -> Series:
    """The factor of each link [nodes] whose level is; 0 where others are as bad."""
    worse = level >= WORSE_THAN_OTHERS * _medians_of_others(level)
    return np.where(worse, factor, 0.0).astype(np.float32)


def _growth(trips: Series) -> Column:
    """By how much each node's round trips have grown on a straight line [nodes]; 0 if none fits."""
    newest = trips[:, -GROWTH_SAMPLES:].astype(np.float64)
    _, slope = _trend(newest, samples_min=GROWTH_SAMPLES_MIN, fit_min=GROWTH_FIT_MIN)
    return np.maximum(slope * GROWTH_SAMPLES, 0.0)


def _medians_of_others(level: Series) -> Series:
    """For each node the lower median of what the other ones have; 0 for a lone one."""
    if len(level) < 2:
        return np.zeros_like(level)
    order = np.argsort(level, kind="stable")
    ordered = level[order]
    middle = (len(level) - 2) // 2
    found = np.empty_like(level)
    # Without one that stands at or below the middle, the middle is the next one.
    found[order] = np.where(np.arange(len(level)) <= middle, ordered[middle + 1], ordered[middle])
    return found


def _exhaustion(windows: Windows) -> tuple[Column, Column]:
    """Seconds until each thing runs out, and its used share now: [things, nodes]."""
    left_s, used = [], []
    own = windows[:, -TREND_SAMPLES:, TELEMETRY_SCHEMA.positions[OWN_MEMORY_METRIC]]
    own_grows = (_trend(own.astype(np.float64))[1] > 0.0) | ~np.isfinite(own).any(axis=1)
    for what, metric, counts_free in _EXHAUSTIBLE:
        column = windows[:, -TREND_SAMPLES:, TELEMETRY_SCHEMA.positions[metric]].astype(np.float64)
        now, slope = _trend(1.0 - column if counts_free else column)
        rises = (slope > 0.0) & (own_grows if what == "memory" else True)
        left_s.append(np.where(rises, (1.0 - now) / np.where(rises, slope, 1.0), np.inf))
        used.append(now)
    return np.maximum(np.array(left_s), 0.0), np.array(used)


def _trend(
    values: Column, *, samples_min: int = TREND_SAMPLES_MIN, fit_min: float = TREND_FIT_MIN
) -> tuple[Column, Column]:
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
    fits = seen.sum(axis=1) >= samples_min
    fits &= common**2 >= fit_min * spread_s * spread
    fits &= spread > 0.0
    slope = np.where(fits, common / np.where(fits, spread_s, 1.0), 0.0)
    return np.where(fits, middle + slope * (seconds[-1] - middle_s), 0.0), slope
