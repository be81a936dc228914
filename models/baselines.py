"""Forecasters that the incident head is measured beside: base rate, extrapolation, boosted trees.

The one-line rule is the product's own (`las/forecast/heuristic.py`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from las.forecast.answer import Forecast, Windows
from las.forecast.contract import HORIZONS_S
from las.forecast.heuristic import RULE_WINDOW
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA

# What runs out, and at which value of it: memory and descriptors at their limit, space at none.
_EXHAUSTED = (
    ("process_memory_limit_share", 1.0),
    ("process_file_descriptors_share", 1.0),
    ("disk_free_share", 0.0),
)
_FITTED_SAMPLES = 60
_SAMPLES_MIN = 20


def _forecast(name: str, soon: npt.NDArray[np.float32]) -> Forecast:
    """The same for each horizon."""
    return Forecast(
        model_id=name,
        calibrated=True,
        probabilities=np.repeat(soon[:, None], len(HORIZONS_S), axis=1).astype(np.float32),
        known=np.ones(len(soon), dtype=np.bool_),
    )


class BaseRate:
    """Says the same of every node: what share of the training rows was positive."""

    model_id = "base rate"
    window = RULE_WINDOW

    def __init__(self, rate: float) -> None:
        self._rate = rate

    def predict(self, windows: Windows) -> Forecast:
        """The base rate, for each node and horizon."""
        return _forecast(self.model_id, np.full(len(windows), self._rate, dtype=np.float32))


class Extrapolation:
    """A straight line through the last minute of what can run out: 1 if it does within 10 minutes.

    As the alert that is most often written with PromQL's `predict_linear`.
    """

    model_id = "extrapolation"
    window = _FITTED_SAMPLES

    def predict(self, windows: Windows) -> Forecast:
        """1 or 0 for each node."""
        soon = np.zeros(len(windows), dtype=np.float32)
        seconds = np.arange(windows.shape[1], dtype=np.float64)
        for name, end in _EXHAUSTED:
            values = windows[:, :, TELEMETRY_SCHEMA.positions[name]].astype(np.float64)
            seen = np.isfinite(values)
            counts = seen.sum(axis=1)
            count = np.maximum(counts, 1)
            mean_s = (seen * seconds).sum(axis=1) / count
            clean = np.where(seen, values, 0.0)
            mean = clean.sum(axis=1) / count
            away = np.where(seen, seconds - mean_s[:, None], 0.0)
            slope = (away * (clean - mean[:, None])).sum(axis=1) / np.maximum(
                (away * away).sum(axis=1), 1e-9
            )
            then = mean + slope * (seconds[-1] + HORIZONS_S[0] - mean_s)
            now = mean + slope * (seconds[-1] - mean_s)
            reached = (then - end) * (now - end) <= 0.0
            soon[reached & (counts >= _SAMPLES_MIN)] = 1.0
        return _forecast(self.model_id, soon)


class BoostedTrees:
    """Gradient-boosted trees on the head's own description of a window (training's libraries)."""

    model_id = "boosted trees"

    def __init__(
        self,
        descriptions: npt.NDArray[np.float32],
        labels: npt.NDArray[np.float32],
        *,
        seed: int,
    ) -> None:
        from sklearn.ensemble import HistGradientBoostingClassifier

        from models.features import FEATURES, WINDOW
        from models.network import WindowDescription

        self.window = WINDOW
        self._columns = [TELEMETRY_SCHEMA.positions[name] for name in FEATURES]
        self._describe = WindowDescription()
        self._trees = HistGradientBoostingClassifier(
            max_iter=200, learning_rate=0.08, l2_regularization=1.0, random_state=seed
        )
        self._trees.fit(descriptions, labels > 0.5)

    def predict(self, windows: Windows) -> Forecast:
        """Judge nodes."""
        import torch

        with torch.no_grad():
            raw = torch.from_numpy(np.ascontiguousarray(windows[:, :, self._columns]))
            described = self._describe(raw).numpy()
        said = self._trees.predict_proba(described)[:, 1]
        return _forecast(self.model_id, said.astype(np.float32))
