"""What a replay asks for the future: rows of probabilities by node, from the past alone.

Each reads the same `HistoryIndex`, which answers for a moment as if nothing after it were known.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from las.forecast.heads import horizons_of, shipped_head
from las.forecast.history_inputs import HISTORY_NAMES, HistoryIndex

DAY_S = 86_400
WEEK_S = 7 * DAY_S
# Days in which a failure fades by 1/e: of 30, 90 and 180 the best on LANL's years before the split.
FADING_DAYS = 180

Probabilities = npt.NDArray[np.float64]


class Predictor(Protocol):
    """Probabilities of failing within `horizon_s`, by node."""

    @property
    def name(self) -> str:
        """Names it in tables."""

    @property
    def horizon_s(self) -> int:
        """The horizon that it answers for, in seconds."""

    def at(self, now_s: int) -> Probabilities:
        """By node, at that moment: float64 [nodes]."""


class Nobody:
    """Foresees nothing: the fleet reacts only."""

    name = "react only"
    horizon_s = WEEK_S

    def __init__(self, nodes: int) -> None:
        self._none = np.zeros(nodes)

    def at(self, now_s: int) -> Probabilities:
        """Zero for each node."""
        del now_s
        return self._none


class DecayedCount:
    """A rate from the node's failures, each fading with its age: the usual rule of thumb."""

    name = "decayed count"

    def __init__(self, index: HistoryIndex, horizon_s: int = WEEK_S) -> None:
        self._index = index
        self.horizon_s = horizon_s
        self._column = HISTORY_NAMES.index(f"decayed_{FADING_DAYS}d")

    def at(self, now_s: int) -> Probabilities:
        """1 - exp(-rate × horizon)."""
        count = self._index.at(now_s)[:, self._column].astype(np.float64)
        rate: Probabilities = count * self.horizon_s / (FADING_DAYS * DAY_S)
        return -np.expm1(-rate)


class HistoryHead:
    """The shipped history head at one of its horizons."""

    def __init__(self, index: HistoryIndex, horizon_s: int = WEEK_S) -> None:
        """Raises `ModelRefused` or `OSError`: the head cannot be used."""
        self._index = index
        self._head = shipped_head("history")
        self.horizon_s = horizon_s
        self._column = horizons_of("history").index(horizon_s)
        self.name = "history head"

    def at(self, now_s: int) -> Probabilities:
        """What the head says."""
        inputs = self._index.at(now_s)
        found = self._head.predict(inputs[:, None, :]).probabilities[:, self._column]
        return found.astype(np.float64)


class Remembered:
    """The same answers, worked out once for each moment: runs that differ in budgets share them."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self.name, self.horizon_s = predictor.name, predictor.horizon_s
        self._answers: dict[int, npt.NDArray[np.float32]] = {}

    def at(self, now_s: int) -> Probabilities:
        """What the predictor says, to seven digits."""
        if now_s not in self._answers:
            self._answers[now_s] = self._predictor.at(now_s).astype(np.float32)
        return self._answers[now_s].astype(np.float64)
