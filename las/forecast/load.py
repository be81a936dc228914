"""Which forecaster answers: the named model, the shipped one, or, when neither may, the rule."""

from __future__ import annotations

from pathlib import Path

from las.forecast.answer import Forecaster
from las.forecast.contract import ModelRefused
from las.forecast.heuristic import HeuristicForecaster
from las.forecast.model import ForecastModel

SHIPPED_MODEL = Path(__file__).parent / "shipped" / "incident.onnx"


def load_forecaster(path: Path | None = None) -> tuple[Forecaster, str]:
    """The forecaster to use, and one line that says what an operator should know of it.

    `path` names a model file; None means the shipped one. The line is empty when that model
    answers; otherwise it says why it does not and that the rule stands in.
    """
    chosen = path or SHIPPED_MODEL
    try:
        return ForecastModel.load(chosen), ""
    except (ModelRefused, OSError) as error:
        line = f"no forecast model ({error}); the rule 'fsync p99 > 10 × own past' stands in"
        return HeuristicForecaster(), line
