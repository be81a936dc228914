"""Recalibration of an incident model on an operator's own fleet, and the gate before its use.

The model stays what it is; how its log-odds become probabilities is fitted anew, a slope and an
intercept a horizon (Platt), to the older part of the data. The newest part decides: unless the new
model is at least as good there as the old one (log loss, at each horizon), it is refused and
nothing is written. The parts are of time, and no label of the older one reaches into the newest.

Slope and intercept start from those that change nothing (1 and 0) with a prior around them, so that
a handful of failures moves them a little and a year of them as far as they say.

numpy alone; neither torch nor onnx.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from las.forecast.contract import HORIZONS_S, ModelContract, SelfTest, to_metadata
from las.forecast.model import ForecastModel
from las.forecast.trial import tried
from las.training.onnx_edit import recalibrated
from las.training.windows import Moment

# Fewer forecasts that came true say nothing about a slope.
CAME_TRUE_MIN = 5
# Prior standard deviations of slope and intercept.
_SLOPE_SPREAD, _INTERCEPT_SPREAD = 0.5, 2.0
# A slope below this would turn the order of nodes into noise.
_SLOPE_MIN = 0.05
_EDGE = 1e-6
_STEPS_MAX = 100

Values = npt.NDArray[np.float64]


class Why(StrEnum):
    """Why there is no new model."""

    TOO_FEW_FAILURES = "too_few_failures"
    WORSE = "worse"


class FitRefused(Exception):
    """The gate: no new model comes of these data; the message says why."""

    def __init__(self, why: Why, message: str) -> None:
        super().__init__(message)
        self.why = why


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Forecasts of one horizon with a known end: probabilities, what became of them, weights."""

    probability: Values
    truth: Values
    weight: Values


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One horizon of the newest slice: losses of both models there, lower is better."""

    horizon_s: int
    slope: float
    intercept: float
    forecasts: int
    came_true: int
    loss: float
    loss_before: float
    brier: float
    brier_before: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalibrated:
    """A model that passed the gate and its trial."""

    content: bytes
    model_id: str
    judged: tuple[Judged, ...]


@dataclass(slots=True)
class Told:
    """What a model said of all moments: [forecasts], and [forecasts, horizons]."""

    at_s: npt.NDArray[np.int64]
    weight: Values
    probability: Values
    truth: npt.NDArray[np.int8]
    digest: str


def ask(model: ForecastModel, moments: Iterable[Moment]) -> Told:
    """Let the model forecast at each moment, as it would have done then."""
    at_s, weights, probabilities, truths = [], [], [], []
    digest = hashlib.sha256()
    for moment in moments:
        forecast = model.predict(np.ascontiguousarray(moment.windows[:, -model.window :]))
        rows = np.flatnonzero(forecast.known)
        at_s.append(np.full(len(rows), moment.at_s, dtype=np.int64))
        weights.append(np.full(len(rows), moment.weight))
        probabilities.append(forecast.probabilities[rows].astype(np.float64))
        truths.append(moment.labels[rows])
        digest.update(np.ascontiguousarray(moment.windows, dtype="<f4").tobytes())
        digest.update(moment.labels.tobytes())
    shape = (0, len(HORIZONS_S))
    return Told(
        at_s=np.concatenate([*at_s, np.zeros(0, dtype=np.int64)]),
        weight=np.concatenate([*weights, np.zeros(0)]),
        probability=np.concatenate([*probabilities, np.zeros(shape)]),
        truth=np.concatenate([*truths, np.zeros(shape, dtype=np.int8)]),
        digest=digest.hexdigest(),
    )


def recalibrate(content: bytes, moments: Iterable[Moment], *, newest_share: float) -> Recalibrated:
    """A model with another calibration, of the file `content`.

    Args:
        content: An incident model's file.
        moments: The fleet's windows, of any order.
        newest_share: How much of the time, at its end, is the gate's.

    Raises:
        ModelRefused: `content` is no incident model of this version.
        FitRefused: too few failures, or the new model is worse on the newest slice.
    """
    model = ForecastModel.from_bytes(content)
    told = ask(model, moments)
    if not len(told.at_s):
        raise FitRefused(Why.TOO_FEW_FAILURES, "the data have no forecast of any node")
    begin_s, end_s = int(told.at_s.min()), int(told.at_s.max())
    split_s = end_s - int((end_s - begin_s) * newest_share)
    judged = tuple(
        _judged(told, place, horizon_s, split_s) for place, horizon_s in enumerate(HORIZONS_S)
    )
    worse = [each for each in judged if each.loss > each.loss_before]
    if worse:
        told_worse = ", ".join(
            f"{each.loss:.6f} against {each.loss_before:.6f} within {each.horizon_s} s"
            for each in worse
        )
        text = "on the newest slice it is worse than the model that it comes of: log loss"
        raise FitRefused(Why.WORSE, f"{text} {told_worse}")
    made = _made(content, model.contract, judged, told.digest)
    return Recalibrated(content=made, model_id=tried(made).contract.model_id, judged=judged)


def _judged(told: Told, place: int, horizon_s: int, split_s: int) -> Judged:
    older = _slice(told, place, told.at_s + horizon_s <= split_s)
    newest = _slice(told, place, told.at_s > split_s)
    for what, part, least in (("older", older, CAME_TRUE_MIN), ("newest", newest, 1)):
        came_true = int(part.truth.sum())
        if came_true < least or came_true == len(part.truth):
            text = (
                f"of the {what} part {came_true} of {len(part.truth)} forecasts came true within "
                f"{horizon_s} s: at least {least}, and not all; export a longer time"
            )
            raise FitRefused(Why.TOO_FEW_FAILURES, text)
    slope, intercept = fit(older)
    after = applied(newest.probability, slope, intercept)
    return Judged(
        horizon_s=horizon_s,
        slope=slope,
        intercept=intercept,
        forecasts=len(newest.truth),
        came_true=int(newest.truth.sum()),
        loss=_loss(newest, after),
        loss_before=_loss(newest, newest.probability),
        brier=_brier(newest, after),
        brier_before=_brier(newest, newest.probability),
    )


def _slice(told: Told, place: int, wanted: npt.NDArray[np.bool_]) -> Slice:
    rows = np.flatnonzero(wanted & (told.truth[:, place] >= 0))
    return Slice(
        probability=told.probability[rows, place],
        truth=told.truth[rows, place].astype(np.float64),
        weight=told.weight[rows],
    )


def fit(part: Slice) -> tuple[float, float]:
    """Slope and intercept in log-odds: the most probable ones, by Newton's method."""
    odds = _log_odds(part.probability)
    inputs = np.stack([odds, np.ones_like(odds)], axis=1)
    rests = np.array([1.0, 0.0])
    precision = np.diag([_SLOPE_SPREAD**-2, _INTERCEPT_SPREAD**-2])
    chosen = rests.copy()
    for _ in range(_STEPS_MAX):
        foretold = _sigmoid(inputs @ chosen)
        gradient = inputs.T @ (part.weight * (foretold - part.truth)) + precision @ (chosen - rests)
        curvature = part.weight * foretold * (1.0 - foretold)
        step = np.linalg.solve(inputs.T @ (inputs * curvature[:, None]) + precision, gradient)
        # No further than where the curve is known: a full step may jump over the valley.
        chosen = chosen - np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < 1e-9:
            break
    return max(float(chosen[0]), _SLOPE_MIN), float(chosen[1])


def applied(probability: Values, slope: float, intercept: float) -> Values:
    """What the new model says where the old one said `probability`."""
    return _sigmoid(slope * _log_odds(probability) + intercept)


def _made(
    content: bytes, contract: ModelContract, judged: tuple[Judged, ...], digest: str
) -> bytes:
    slopes = [each.slope for each in judged]
    intercepts = [each.intercept for each in judged]

    def ordered(probabilities: Values) -> Values:
        columns = [
            applied(probabilities[:, place], slope, intercept)
            for place, (slope, intercept) in enumerate(zip(slopes, intercepts, strict=True))
        ]
        return np.maximum.accumulate(np.stack(columns, axis=1), axis=1)

    rates = ordered(np.array([contract.base_rates]))[0]
    test = contract.self_test
    expected = ordered(test.expected.astype(np.float64)).astype(np.float32)
    figures = {
        f"{name}_{each.horizon_s}s": value
        for each in judged
        for name, value in (("log_loss", each.loss), ("brier", each.brier))
    }
    changed = replace(
        contract,
        model_id=f"{contract.model_id.partition('+')[0]}+{digest[:8]}",
        base_rates=tuple(float(rate) for rate in rates),
        training_data=digest,
        figures=figures,
        self_test=SelfTest(windows=test.windows, expected=expected),
    )
    return recalibrated(content, slopes, intercepts, to_metadata(changed))


def _loss(part: Slice, probability: Values) -> float:
    clipped = np.clip(probability, _EDGE, 1.0 - _EDGE)
    losses = -np.where(part.truth > 0.5, np.log(clipped), np.log1p(-clipped))
    return float((part.weight * losses).sum() / part.weight.sum())


def _brier(part: Slice, probability: Values) -> float:
    errors = (probability - part.truth) ** 2
    return float((part.weight * errors).sum() / part.weight.sum())


def _log_odds(probability: Values) -> Values:
    clipped = np.clip(probability, _EDGE, 1.0 - _EDGE)
    odds: Values = np.log(clipped / (1.0 - clipped))
    return odds


def _sigmoid(odds: Values) -> Values:
    return 0.5 * (1.0 + np.tanh(0.5 * odds))
