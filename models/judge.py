"""Figures of a forecaster on recorded runs: by row, by event, with intervals by run.

*Row*: one peer at one second; its label is 1 when it is past its onset and stops within ten
minutes. *Event*: one node-run; it is *called* at the first second at which the 10-minute
probability reached `THRESHOLD` in `CONSECUTIVE` seconds running, which is when the policy acts.
A call before the onset is a false alarm, also on a peer that falls sick later. It is *shielded*
when the call left at least `SHIELD_S` until the stop. Stops of an abrupt kind count neither for nor
against: they are told apart.

Intervals: 95 % bootstrap over runs, since rows and peers of one run are not independent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from las.core.signs import SIGNS, Rule, SignRules, held_signs
from las.forecast.answer import Forecast, Windows
from las.forecast.contract import HORIZONS_S
from las.forecast.heuristic import RULE_WINDOW
from las.forecast.signs import read_signs
from models.dataset import NodeTruth, Run
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA

THRESHOLD = 0.8
CONSECUTIVE = 2
# From the call to the last switch of a shard: a round of the LAS, and the changes of the plan.
SHIELD_S = 2.0
# Seconds of a run before which nothing is judged: the peers have only just started.
FIRST_SECOND = 8
BOOTSTRAP_ROUNDS = 1000
_MOMENTS_AT_ONCE = 64

Array = npt.NDArray[np.float64]


class Judge(Protocol):
    """The part of a forecaster that is judged."""

    @property
    def window(self) -> int:
        """Samples of a window."""

    def predict(self, windows: Windows) -> Forecast:
        """Judge nodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One node-run: what it was, when it was called, and for how many seconds it was watched."""

    run: int
    node: NodeTruth
    called_s: float | None
    watched_s: float

    @property
    def is_fault(self) -> bool:
        """Whether the peer stopped after an onset."""
        return self.node.stop_s is not None and not self.node.abrupt

    @property
    def foreseen(self) -> bool:
        """Called after the onset and before the stop."""
        node = self.node
        if self.called_s is None or node.stop_s is None or node.onset_s is None:
            return False
        return node.onset_s <= self.called_s < node.stop_s

    @property
    def shielded(self) -> bool:
        """Foreseen early enough for its shards to be elsewhere."""
        called_s, stop_s = self.called_s, self.node.stop_s
        return (
            self.foreseen
            and called_s is not None
            and stop_s is not None
            and stop_s - called_s >= SHIELD_S
        )

    @property
    def false_alarm(self) -> bool:
        """Called although nothing had begun."""
        if self.called_s is None:
            return False
        return self.node.onset_s is None or not self.is_fault or self.called_s < self.node.onset_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One run as a forecaster saw it: rows with their labels, and its events."""

    labels: Array
    probabilities: Array
    events: tuple[Event, ...]


def judge_run(forecaster: Judge, run: Run, signs: SignRules | None = None) -> Judged:
    """Play a run second by second through the forecaster.

    With `signs`, a node also counts as called where a sign has lasted as these rules ask, which is
    how the LAS judges it: whatever the forecaster says.
    """
    seconds = range(FIRST_SECOND, run.values.shape[1])
    answers = np.full(run.values.shape[:2], np.nan)
    identity = TELEMETRY_SCHEMA.positions["machine_identity"]
    for first in range(0, len(seconds), _MOMENTS_AT_ONCE):
        moments = seconds[first : first + _MOMENTS_AT_ONCE]
        windows = np.stack([run.windows(second, forecaster.window) for second in moments])
        # Moments are judged together but must not take each other for companions.
        windows[:, :, :, identity] = np.arange(len(moments), dtype=np.float32)[:, None, None]
        forecast = forecaster.predict(windows.reshape(-1, *windows.shape[2:]))
        answers[:, moments] = forecast.p_10_min.reshape(len(moments), -1).T
    if signs is not None:
        answers[:, list(seconds)] = np.fmax(
            answers[:, list(seconds)], _lasting(run, seconds, signs)
        )
    labels = run.labels(HORIZONS_S[0]).astype(np.float64)
    judged = ~np.isnan(labels) & ~np.isnan(answers)
    return Judged(
        labels=labels[judged],
        probabilities=answers[judged],
        events=tuple(
            _event(run.truth.number, node, np.where(judged[row], answers[row], np.nan))
            for row, node in enumerate(run.truth.nodes)
        ),
    )


def _lasting(run: Run, seconds: Sequence[int], rules: SignRules) -> Array:
    """1 where a sign of a node has lasted long enough: [nodes, seconds]."""
    said = np.zeros((run.values.shape[0], len(seconds)))
    rounds: Counter[tuple[int, Rule]] = Counter()
    for place, second in enumerate(seconds):
        for node, signs in enumerate(read_signs(run.windows(second, RULE_WINDOW))):
            held = {sign.rule: sign for sign in held_signs(signs, rules)}
            for rule in SIGNS:
                rounds[node, rule] = rounds[node, rule] + 1 if rule in held else 0
                if rule in held and rounds[node, rule] >= held[rule].consecutive:
                    said[node, place] = 1.0
    return said


def _event(run: int, node: NodeTruth, answers: Array) -> Event:
    above = np.concatenate([np.zeros(CONSECUTIVE - 1), np.nan_to_num(answers) >= THRESHOLD])
    held = np.lib.stride_tricks.sliding_window_view(above, CONSECUTIVE).all(axis=1)
    called = np.flatnonzero(held)
    return Event(
        run=run,
        node=node,
        called_s=float(called[0]) if len(called) else None,
        watched_s=float(np.count_nonzero(~np.isnan(answers))),
    )


def auroc(labels: Array, scores: Array) -> float:
    """Probability that a positive row scores above a negative one; NaN without both."""
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return math.nan
    values, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[inverse.reshape(-1)]
    above = ranks[labels > 0.5].sum() - positives * (positives + 1) / 2.0
    return float(above / (positives * negatives)) if len(values) else math.nan


def average_precision(labels: Array, scores: Array) -> float:
    """Area under precision over recall, ties taken together; NaN without positives."""
    if not labels.sum():
        return math.nan
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(labels[order])
    last_of_tie = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    precision = hits[last_of_tie] / (last_of_tie + 1.0)
    recall = hits[last_of_tie] / labels.sum()
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def brier(labels: Array, scores: Array) -> float:
    """Mean squared error of the probabilities."""
    return float(((scores - labels) ** 2).mean())


def calibration(labels: Array, scores: Array, bins: int = 5) -> list[tuple[float, float, int]]:
    """By equal bins of the probability: mean said, share that came true, rows."""
    place = np.minimum((scores * bins).astype(int), bins - 1)
    return [
        (
            float(scores[place == b].mean()),
            float(labels[place == b].mean()),
            int((place == b).sum()),
        )
        for b in range(bins)
        if (place == b).any()
    ]


def figures(runs: Sequence[Judged]) -> dict[str, float]:
    """All figures of some judged runs together; NaN where there is nothing to count."""
    labels = np.concatenate([run.labels for run in runs])
    scores = np.concatenate([run.probabilities for run in runs])
    return {
        "auroc": auroc(labels, scores),
        "average_precision": average_precision(labels, scores),
        "brier": brier(labels, scores),
        "base_rate": float(labels.mean()),
        **event_figures(runs),
    }


def event_figures(runs: Sequence[Judged]) -> dict[str, float]:
    """The figures that count events."""
    events = [event for run in runs for event in run.events]
    faults = [event for event in events if event.is_fault]
    ahead_s = [e.node.stop_s - e.called_s for e in faults if e.foreseen]  # type: ignore[operator]
    delays = [e.called_s - e.node.onset_s for e in faults if e.foreseen]  # type: ignore[operator]
    calm = [event for event in events if not event.is_fault and not event.node.abrupt]
    alarms = [event for event in events if event.false_alarm]
    calls = len(alarms) + len(ahead_s)
    node_hours = sum(event.watched_s for event in events) / 3600.0
    return {
        "foreseen_share": len(ahead_s) / len(faults) if faults else math.nan,
        "shielded_share": sum(e.shielded for e in faults) / len(faults) if faults else math.nan,
        "precision": len(ahead_s) / calls if calls else math.nan,
        "lead_time_s_median": float(np.median(ahead_s)) if ahead_s else math.nan,
        "delay_after_onset_s_median": float(np.median(delays)) if delays else math.nan,
        "false_alarm_share": (
            sum(event.false_alarm for event in calm) / len(calm) if calm else math.nan
        ),
        "false_alarms_per_node_hour": len(alarms) / node_hours if node_hours else math.nan,
    }


def intervals(
    runs: Sequence[Judged],
    measure: Callable[[Sequence[Judged]], dict[str, float]] = figures,
    *,
    rounds: int = BOOTSTRAP_ROUNDS,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals over runs, by figure; NaN where a figure was never defined."""
    random = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {}
    for _ in range(rounds):
        chosen = [runs[index] for index in random.integers(0, len(runs), size=len(runs))]
        for name, value in measure(chosen).items():
            drawn.setdefault(name, []).append(value)
    return {name: _interval(np.array(values)) for name, values in drawn.items()}


def leads(
    first: Sequence[Judged],
    second: Sequence[Judged],
    *,
    rounds: int = BOOTSTRAP_ROUNDS,
    seed: int = 0,
) -> dict[str, tuple[float, tuple[float, float]]]:
    """By how much the first forecaster exceeds the second on the same runs (paired).

    In average precision and in what counts events.
    """

    def measured(runs: Sequence[Judged]) -> dict[str, float]:
        labels = np.concatenate([run.labels for run in runs])
        scores = np.concatenate([run.probabilities for run in runs])
        return {"average_precision": average_precision(labels, scores), **event_figures(runs)}

    def differences(chosen: Sequence[int]) -> dict[str, float]:
        ours = measured([first[index] for index in chosen])
        theirs = measured([second[index] for index in chosen])
        return {name: ours[name] - theirs[name] for name in ours}

    random = np.random.default_rng(seed)
    draws = [random.integers(0, len(first), size=len(first)).tolist() for _ in range(rounds)]
    drawn = [differences(draw) for draw in draws]
    return {
        name: (value, _interval(np.array([each[name] for each in drawn])))
        for name, value in differences(range(len(first))).items()
    }


def rate_interval(count: int, exposure: float) -> tuple[float, float]:
    """Exact 95 % interval of a rate from `count` events in `exposure` (Garwood's, of Poisson)."""

    def at_most(mean: float, events: int) -> float:
        terms = [math.exp(-mean)]
        for event in range(1, events + 1):
            terms.append(terms[-1] * mean / event)
        return sum(terms)

    def solve(events: int, share: float) -> float:
        low, high = 0.0, 10.0 * (count + 2.0)
        for _ in range(60):
            middle = (low + high) / 2.0
            low, high = (middle, high) if at_most(middle, events) > share else (low, middle)
        return low

    lower = solve(count - 1, 0.975) if count else 0.0
    return (lower / exposure, solve(count, 0.025) / exposure)


def _interval(values: Array) -> tuple[float, float]:
    known = values[~np.isnan(values)]
    if not len(known):
        return (math.nan, math.nan)
    low, high = np.quantile(known, [0.025, 0.975])
    return (float(low), float(high))
