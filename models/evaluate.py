"""Judges a model file on held-out runs, beside the one-line rule and the base rate.

    python -m models.evaluate [--model FILE] [--recordings DIR]

Needs no torch: it plays the recordings through the file as the LAS would.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from las.forecast.answer import Forecast, Windows
from las.forecast.contract import HORIZONS_S, ModelRefused
from las.forecast.heuristic import RULE_WINDOW, HeuristicForecaster
from las.forecast.load import SHIPPED_MODEL
from las.forecast.model import ForecastModel
from models.dataset import RECORDINGS, RecordingRefused, Run, read_runs
from models.judge import Judge, Judged, calibration, figures, intervals, judge_run


class BaseRate:
    """Says the same of every node: what share of the training rows was positive."""

    model_id = "base rate"
    window = RULE_WINDOW

    def __init__(self, rate: float) -> None:
        self._rate = rate

    def predict(self, windows: Windows) -> Forecast:
        """The base rate, for each node and horizon."""
        shape = (len(windows), len(HORIZONS_S))
        return Forecast(
            model_id=self.model_id,
            calibrated=True,
            probabilities=np.full(shape, self._rate, dtype=np.float32),
            known=np.ones(len(windows), dtype=np.bool_),
        )


def judged_by_all(path: Path, runs: Sequence[Run]) -> dict[str, list[Judged]]:
    """The runs as the model, the rule and the base rate saw them. Raises `ModelRefused`."""
    model = ForecastModel.load(path)
    forecasters: dict[str, Judge] = {
        "model": model,
        "rule": HeuristicForecaster(),
        "base rate": BaseRate(model.contract.base_rates[0]),
    }
    return {
        name: [judge_run(forecaster, run) for run in runs]
        for name, forecaster in forecasters.items()
    }


def evaluate(path: Path, runs: Sequence[Run]) -> dict[str, float]:
    """The model's own figures on these runs; what its contract carries."""
    model = ForecastModel.load(path)
    return figures([judge_run(model, run) for run in runs])


def report(path: Path, runs: Sequence[Run]) -> str:
    """The figures as Markdown tables."""
    judged = judged_by_all(path, runs)
    names = list(judged)
    point = {name: figures(judged[name]) for name in names}
    bounds = {name: intervals(judged[name]) for name in names}
    lines = ["| figure | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for figure in point["model"]:
        cells = [_cell(point[name][figure], bounds[name][figure]) for name in names]
        lines.append(f"| {figure} | " + " | ".join(cells) + " |")
    labels = np.concatenate([run.labels for run in judged["model"]])
    scores = np.concatenate([run.probabilities for run in judged["model"]])
    lines += ["", "| said | came true | rows |", "| --- | --- | --- |"]
    lines += [
        f"| {said:.2f} | {true:.2f} | {rows} |" for said, true, rows in calibration(labels, scores)
    ]
    lines += ["", "| kind | node-runs | called | by the rule |", "| --- | --- | --- | --- |"]
    lines += _kinds(judged["model"], judged["rule"])
    return "\n".join(lines) + "\n"


def _kinds(model: Sequence[Judged], rule: Sequence[Judged]) -> list[str]:
    events = [event for run in model for event in run.events]
    rule_events = [event for run in rule for event in run.events]
    rows = []
    for kind in sorted({event.node.kind for event in events}):
        called = [event.called_s is not None for event in events if event.node.kind == kind]
        by_rule = [event.called_s is not None for event in rule_events if event.node.kind == kind]
        rows.append(f"| {kind} | {len(called)} | {sum(called)} | {sum(by_rule)} |")
    return rows


def _cell(value: float, interval: tuple[float, float]) -> str:
    if np.isnan(value):
        return "–"
    return f"{value:.3g} ({interval[0]:.3g} to {interval[1]:.3g})"


def main() -> int:
    """Print the report."""
    parser = argparse.ArgumentParser(prog="python -m models.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL)
    parser.add_argument("--recordings", type=Path, default=RECORDINGS)
    arguments = parser.parse_args()
    try:
        held_out = [run for run in read_runs(arguments.recordings) if run.truth.held_out]
        print(report(arguments.model, held_out))
    except (ModelRefused, RecordingRefused, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
