"""What every forecaster gives, whether a model or the rule that stands in for one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from las.forecast.contract import HORIZONS_S

Windows = npt.NDArray[np.float32]

# limit: nodes judged in one run; twice the fleet that the LAS is designed for.
NODES_MAX = 20_000
# limit: reasons given for a node; what a person reads.
REASONS_MAX = 5


class WindowsUnfit(Exception):
    """The windows have another type or shape than the forecaster reads; a fault of the caller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One input that moved a forecast: its metric, words, and its share of the reasons, 0 to 1."""

    metric: str
    text: str
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Probabilities of stopping within `HORIZONS_S`, one row a node.

    `probabilities` is float32 [nodes, horizons] and never falls along a row. `known` [nodes] is
    False where too little was seen and the base rate stands. `calibrated` is False for the rule.
    """

    model_id: str
    calibrated: bool
    probabilities: npt.NDArray[np.float32]
    known: npt.NDArray[np.bool_]

    @property
    def p_10_min(self) -> npt.NDArray[np.float32]:
        """Probability of stopping within 10 minutes, by node: what the policy decides on."""
        return self.probabilities[:, HORIZONS_S.index(600)]

    @property
    def p_1_h(self) -> npt.NDArray[np.float32]:
        """Probability of stopping within an hour, by node."""
        return self.probabilities[:, HORIZONS_S.index(3600)]


class Forecaster(Protocol):
    """A model, or the rule."""

    @property
    def model_id(self) -> str:
        """Names what answers, in status, in the ledger and to people."""

    @property
    def window(self) -> int:
        """Samples of a window, one a second, newest last."""

    def predict(self, windows: Windows) -> Forecast:
        """Judge a fleet: [nodes, window, metrics] in schema order, NaN = missing."""

    def reasons(self, windows: Windows, node: int, *, count: int = 3) -> tuple[Reason, ...]:
        """Why that node's probability is what it is, strongest first."""


def check_windows(windows: Windows, window: int, metric_count: int) -> None:
    """Raise `WindowsUnfit` unless float32 [nodes ≤ `NODES_MAX`, window, metrics]."""
    if windows.dtype != np.float32:
        raise WindowsUnfit(f"windows are {windows.dtype}, wanted float32")
    if windows.ndim != 3 or windows.shape[1:] != (window, metric_count):
        raise WindowsUnfit(
            f"windows have shape {windows.shape}, wanted [nodes, {window}, {metric_count}]"
        )
    if len(windows) > NODES_MAX:
        raise WindowsUnfit(f"{len(windows)} nodes in one run, at most {NODES_MAX}; use cells")
