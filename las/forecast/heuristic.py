"""The rule that answers when there is no model: fsync p99 above ten times its own past.

It is the one line that an operator would write as an alert. It says nothing of growth, sees no
other sign, and its probabilities are two fixed numbers, not calibrated; so every answer names the
rule as its model and carries `calibrated = False`. `models/evaluate.py` measures it beside the
model.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from las.forecast.answer import Forecast, Reason, Windows, check_windows
from las.forecast.contract import HORIZONS_S
from las.forecast.past import in_words, now, own_past
from peerd.daemon.telemetry.schema import ALWAYS_PRESENT, TELEMETRY_SCHEMA

RULE_METRIC = "commit_latency_ms_p99"
RULE_FACTOR = 10.0
RULE_WINDOW = 120
# Fewer samples than this are no past to compare with.
RULE_SAMPLES_MIN = 10
# What the rule answers, by horizon. Above 0.8 it acts; 0.001 is a guess at a healthy node.
RULE_TRUE = (0.85, 0.9)
RULE_FALSE = (0.001, 0.005)


def rule_holds(series: npt.NDArray[np.float32]) -> bool:
    """Whether fsync p99 [window] is now above ten times its own past."""
    if np.count_nonzero(~np.isnan(series)) < RULE_SAMPLES_MIN:
        return False
    level, past = now(series), own_past(series)
    return past > 0.0 and not math.isnan(level) and level > RULE_FACTOR * past


class HeuristicForecaster:
    """Answers by the rule; stateless."""

    model_id = "heuristic"
    window = RULE_WINDOW

    def predict(self, windows: Windows) -> Forecast:
        """Judge a fleet: float32 [nodes, 120, metrics]. Raises `WindowsUnfit`."""
        check_windows(windows, self.window, len(TELEMETRY_SCHEMA))
        latencies = windows[:, :, TELEMETRY_SCHEMA.positions[RULE_METRIC]]
        held = np.array([rule_holds(series) for series in latencies], dtype=np.bool_)
        answer = np.where(held[:, None], RULE_TRUE, RULE_FALSE).astype(np.float32)
        arrived = ~np.isnan(windows[:, :, TELEMETRY_SCHEMA.positions[ALWAYS_PRESENT]])
        return Forecast(
            model_id=self.model_id,
            calibrated=False,
            probabilities=answer.reshape(-1, len(HORIZONS_S)),
            known=arrived.sum(axis=1) >= RULE_SAMPLES_MIN,
        )

    def reasons(self, windows: Windows, node: int, *, count: int = 3) -> tuple[Reason, ...]:
        """The rule's one input, when it holds. Raises `WindowsUnfit`."""
        check_windows(windows, self.window, len(TELEMETRY_SCHEMA))
        series = windows[node, :, TELEMETRY_SCHEMA.positions[RULE_METRIC]]
        if count < 1 or not rule_holds(series):
            return ()
        text = in_words(TELEMETRY_SCHEMA.metric(RULE_METRIC), series)
        return (Reason(metric=RULE_METRIC, text=text, weight=1.0),)
