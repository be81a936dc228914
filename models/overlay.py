"""Trouble and look-alikes that no recording holds, laid over peers that are well, to train on.

The laboratory records a few troubles of each kind, of some lengths and shapes; a fleet has others.
A copy of a training run is made here in which each peer that nothing grave happened to gets a
made-up trouble, or one that looks like it and is none: of any length between a quarter of a minute
and five minutes, of any end, in three shapes. A peer that had a look-alike keeps it, so some have
both.

Only what each means for the metrics that the head reads is made up, as the recordings show it:

commits      each takes longer and longer; or a step, or a spell, of a disk that is slower
memory, descriptors, space   are used up; or grow, by less than to the line, and stay, or go back
far          round trips grow; or are longer by a step
lossy        retransmissions and timeouts grow, some round trips take a timeout; or few, steadily

Never judged on: what is held out is recorded (`models/evaluate.py`), but for the gate's one ramp.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from models.dataset import NodeTruth, Run
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA

MADE_UP = "made_up"
# What may lie beneath a made-up trouble: peers to whom nothing was done, or something mild.
_HOSTS = (
    *("healthy", "scrub", "single_pause", "memory_step", "connection_burst", "temporary_file"),
    *("far", "lossy", "slow_disk", "cpu_capped", "slow_stable", "slow_step", "slow_spell"),
)
_TROUBLE_SHARE = 0.5
# What grows mostly stops growing: files are written, caches fill.
_USED_UP_SHARE = 0.35
_ONSET_S_MIN = 20
# Seconds that a host must have left after the onset.
_LEFT_S_MIN = 15
_AT = TELEMETRY_SCHEMA.positions

Column = npt.NDArray[np.float32]
Values = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Course:
    """How far it has gone, 0 to 1, at each second from the onset; `stop_s` after it, or None.

    `values` is [seconds from the onset, metrics], to be changed in place.
    """

    values: Values
    done: Column
    stop_s: float | None


def overlaid(run: Run, random: np.random.Generator) -> Run:
    """A copy in which hosts got something; nothing is known of the others (`Run.labels`)."""
    values = run.values.copy()
    nodes = []
    for row, node in enumerate(run.truth.nodes):
        # Stopped from the first second on: each label is unknown.
        told = replace(node, kind=MADE_UP, onset_s=None, stop_s=0.0)
        if node.kind in _HOSTS and node.stop_s is None:
            told = _lay(values[row], node, random) or told
        nodes.append(told)
    return Run(truth=replace(run.truth, nodes=nodes), values=values)


def _lay(values: Values, node: NodeTruth, random: np.random.Generator) -> NodeTruth | None:
    """Change one host's values [seconds, metrics] in place; None where there is no room for it."""
    last = len(values) - _LEFT_S_MIN
    if last <= _ONSET_S_MIN:
        return None
    onset = int(random.integers(_ONSET_S_MIN, last))
    here = values[onset:]
    kinds = _KINDS if np.isfinite(here[:, _AT["round_trip_ms_p50"]]).any() else _WITHOUT_LINKS
    kind = kinds[int(random.integers(len(kinds)))]
    is_trouble = random.random() < (_USED_UP_SHARE if kind in _USED_UP else _TROUBLE_SHARE)
    if is_trouble:
        course = _grown(here, random)
    else:
        course = _stays(here, random, at_once=kind not in _USED_UP)
    kind(course, is_trouble, random)
    stop_s = None if course.stop_s is None else onset + course.stop_s
    if stop_s is not None:
        values[int(stop_s) :] = np.nan
    told = float(onset) if is_trouble else None
    return replace(node, kind=MADE_UP, onset_s=told, stop_s=stop_s)


def _grown(values: Values, random: np.random.Generator) -> _Course:
    grow_s = _log_uniform(12.0, 300.0, random)
    done = np.minimum((np.arange(len(values)) + 0.5) / grow_s, 1.0)
    stop_s = grow_s + random.uniform(1.0, 12.0)
    return _Course(values=values, done=done.astype(np.float32), stop_s=stop_s)


def _stays(values: Values, random: np.random.Generator, *, at_once: bool) -> _Course:
    """Up at once or within some seconds, then level, to the end or for a spell."""
    grow_s = 1.0 if at_once else _log_uniform(5.0, 90.0, random)
    seconds = np.arange(len(values)) + 0.5
    done = np.minimum(seconds / grow_s, 1.0)
    if random.random() < 0.5:
        done = np.where(seconds < grow_s + random.uniform(10.0, 40.0), done, 0.0)
    return _Course(values=values, done=done.astype(np.float32), stop_s=None)


def _commits(course: _Course, is_trouble: bool, random: np.random.Generator) -> None:
    end_ms = _log_uniform(60.0, 1500.0, random) if is_trouble else _log_uniform(4.0, 80.0, random)
    if is_trouble:
        delay_ms = _shaped(course.done, 1.0, end_ms, random)
    else:
        # A disk that is slower is so at once.
        delay_ms = np.where(course.done > 0.0, np.float32(end_ms), np.float32(0.0))
    delay_ms = delay_ms * _jitter(len(delay_ms), random.uniform(0.0, 0.4), random)
    values = course.values
    for part, factor in (("p50", 1.0), ("p99", 1.15), ("max", 1.2)):
        values[:, _AT[f"commit_latency_ms_{part}"]] += np.float32(factor) * delay_ms
    latency_ms = values[:, _AT["commit_latency_ms_p50"]]
    before = values[:, _AT["commits_per_s"]].copy()
    fewer = np.fmin(before, 1000.0 / np.maximum(latency_ms, 0.1))
    values[:, _AT["commits_per_s"]] = np.where(delay_ms > 0.0, fewer, before)
    stalls = np.where(delay_ms >= 100.0, np.nan_to_num(fewer), 0.0)
    values[:, _AT["commit_stalls_per_s"]] += stalls
    if random.random() < 0.5:  # the others are sampled between two commits
        age_ms = delay_ms * random.random(len(delay_ms)).astype(np.float32)
        values[:, _AT["commit_age_ms"]] += age_ms


def _used_up(metric: str, is_free: bool) -> Callable[[_Course, bool, np.random.Generator], None]:
    def lay(course: _Course, is_trouble: bool, random: np.random.Generator) -> None:
        column = course.values[:, _AT[metric]]
        used = 1.0 - column if is_free else column
        if is_trouble:
            # A peer keeps some of its disk to itself.
            end = 1.0 - (random.uniform(0.0, 0.125) if is_free else 0.0)
        else:
            end = random.uniform(0.25, 0.7)
        shape = 1.0 if not is_trouble or random.random() < 0.5 else 2.0
        room = np.maximum(end - used, 0.0)
        grown = np.minimum(used + room * course.done**shape, 1.0)
        if metric == "process_memory_limit_share":
            # The limit of a room is some 460 MB above what a peer begins with.
            taken = (grown - used) * np.float32(5.5e8)
            course.values[:, _AT["process_memory_anonymous_bytes"]] += np.nan_to_num(taken)
        course.values[:, _AT[metric]] = 1.0 - grown if is_free else grown

    return lay


def _far(course: _Course, is_trouble: bool, random: np.random.Generator) -> None:
    end_ms = _log_uniform(400.0, 4000.0, random) if is_trouble else _log_uniform(5.0, 120.0, random)
    if is_trouble:
        delay_ms = _shaped(course.done, 1.0, end_ms, random)
    else:
        delay_ms = np.where(course.done > 0.0, np.float32(end_ms), np.float32(0.0))
    delay_ms = delay_ms * _jitter(len(delay_ms), 0.05, random)
    values = course.values
    values[:, _AT["round_trip_ms_p50"]] += delay_ms
    values[:, _AT["round_trip_ms_max"]] += delay_ms * random.uniform(1.0, 1.5)
    timeouts = random.poisson(np.clip(delay_ms / 1000.0, 0.0, 1.5)).astype(np.float32)
    values[:, _AT["tcp_timeouts_per_s"]] += timeouts
    values[:, _AT["tcp_retransmits_per_s"]] += timeouts


def _lossy(course: _Course, is_trouble: bool, random: np.random.Generator) -> None:
    end = random.uniform(0.4, 0.7) if is_trouble else _log_uniform(0.001, 0.02, random)
    if is_trouble:
        loss = _shaped(course.done, 0.002, end, random)
    else:
        loss = np.where(course.done > 0.0, np.float32(end), np.float32(0.0))
    values = course.values
    timeouts = random.poisson(loss * random.uniform(12.0, 30.0)).astype(np.float32)
    values[:, _AT["tcp_timeouts_per_s"]] += timeouts
    segments = _log_uniform(30.0, 1500.0, random)
    busy = _jitter(len(loss), 0.8, random)
    values[:, _AT["tcp_retransmits_per_s"]] += timeouts + random.poisson(loss * segments * busy)
    # A lost ping comes again after 0.2 s, or twice that, and so on.
    again_ms = np.float32(200.0) * 2.0 ** random.geometric(np.clip(1.0 - loss, 0.3, 1.0))
    slow = random.random(len(loss)) < 1.0 - (1.0 - loss) ** 6
    values[:, _AT["round_trip_ms_max"]] += np.where(slow, again_ms, 0.0).astype(np.float32)
    half = random.random(len(loss)) < loss * 1.2
    values[:, _AT["round_trip_ms_p50"]] += np.where(half, again_ms, 0.0).astype(np.float32)


_USED_UP = (
    _used_up("process_memory_limit_share", False),
    _used_up("process_file_descriptors_share", False),
    _used_up("disk_free_share", True),
)
_WITHOUT_LINKS = (_commits, _commits, *_USED_UP)
_KINDS = (*_WITHOUT_LINKS, _far, _lossy)


def _shaped(done: Column, start: float, end: float, random: np.random.Generator) -> Column:
    match int(random.integers(3)):
        case 0:
            return start + (end - start) * done
        case 1:
            return start + (end - start) * done**2
        case _:
            return np.asarray(start * (end / start) ** done, dtype=np.float32)


def _jitter(count: int, spread: float, random: np.random.Generator) -> Column:
    return np.exp(random.normal(0.0, 1.0, count) * spread).astype(np.float32)


def _log_uniform(low: float, high: float, random: np.random.Generator) -> float:
    return math.exp(random.uniform(math.log(low), math.log(high)))
