"""Judges a model file on held-out runs, beside what else could be asked.

    python -m models.evaluate [--model FILE] [--recordings DIR] [--without-trees]

Plays the recordings through the file as the LAS would. Boosted trees are fitted anew, on the same
training runs; only they need torch and scikit-learn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from las.core.signs import SignRules
from las.forecast.contract import ModelRefused
from las.forecast.heuristic import HeuristicForecaster
from las.forecast.load import SHIPPED_MODEL
from las.forecast.model import ForecastModel
from models.baselines import BaseRate, Extrapolation
from models.dataset import RECORDINGS, RecordingRefused, Run, read_runs
from models.judge import (
    Event,
    Judge,
    Judged,
    calibration,
    figures,
    intervals,
    judge_run,
    leads,
    rate_interval,
)

_PAIRED = ("average_precision", "foreseen_share", "shielded_share", "false_alarms_per_node_hour")


def judged_by_all(
    path: Path, runs: Sequence[Run], others: Mapping[str, Judge] | None = None
) -> dict[str, list[Judged]]:
    """The runs as the model, the baselines and `others` saw them. Raises `ModelRefused`."""
    model = ForecastModel.load(path)
    forecasters: dict[str, Judge] = {
        "model": model,
        "rule": HeuristicForecaster(),
        **(others or {}),
        "extrapolation": Extrapolation(),
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


def report(path: Path, runs: Sequence[Run], others: Mapping[str, Judge] | None = None) -> str:
    """The figures as Markdown tables."""
    judged = judged_by_all(path, runs, others)
    # How the LAS judges: whatever the model says, a sign that lasts is a reason, too.
    model = ForecastModel.load(path)
    judged["model and signs"] = [judge_run(model, run, SignRules()) for run in runs]
    return "\n".join(
        [
            *_figures(judged),
            "",
            *_leads(judged),
            "",
            *_calibration(judged["model"]),
            "",
            *_gradual(judged),
            "",
            *_others(judged),
            "",
        ]
    )


def _figures(judged: Mapping[str, Sequence[Judged]]) -> list[str]:
    names = list(judged)
    point = {name: figures(judged[name]) for name in names}
    bounds = {name: intervals(judged[name]) for name in names}
    lines = ["| figure | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for figure in point["model"]:
        cells = [_cell(point[name][figure], bounds[name][figure]) for name in names]
        lines.append(f"| {figure} | " + " | ".join(cells) + " |")
    events = _events(judged["model"])
    count = sum(event.false_alarm for event in events)
    hours = sum(event.watched_s for event in events) / 3600.0
    low, high = rate_interval(count, hours)
    told = f"{count} false alarms of the model in {hours:.1f} node-hours: exact 95 % interval"
    return [*lines, "", f"{told} {low:.2g} to {high:.2g} a node-hour."]


def _leads(judged: Mapping[str, Sequence[Judged]]) -> list[str]:
    others = [name for name in judged if name not in ("model", "base rate")]
    lines = ["| the model's lead (paired) | " + " | ".join(f"over {n}" for n in others) + " |"]
    lines.append("| --- |" + " --- |" * len(others))
    told = {name: leads(judged["model"], judged[name]) for name in others}
    for figure in _PAIRED:
        cells = [_cell(*told[name][figure]) for name in others]
        lines.append(f"| {figure} | " + " | ".join(cells) + " |")
    return lines


def _calibration(judged: Sequence[Judged]) -> list[str]:
    labels = np.concatenate([run.labels for run in judged])
    scores = np.concatenate([run.probabilities for run in judged])
    bins = calibration(labels, scores)
    error = sum(abs(said - true) * rows for said, true, rows in bins) / len(labels)
    return [
        "| said | came true | rows |",
        "| --- | --- | --- |",
        *(f"| {said:.2f} | {true:.2f} | {rows} |" for said, true, rows in bins),
        "",
        f"Expected calibration error {error:.3f}.",
    ]


def _events(judged: Sequence[Judged]) -> list[Event]:
    return [event for run in judged for event in run.events]


def _gradual(judged: Mapping[str, Sequence[Judged]]) -> list[str]:
    """Shielded node-runs by kind of gradual fault."""
    others = [name for name in judged if name not in ("model", "base rate")]
    kinds = sorted({event.node.kind for event in _events(judged["model"]) if event.is_fault})
    head = ["gradual kind", "node-runs", "shielded", "median lead, s", "early"]
    lines = ["| " + " | ".join([*head, *(f"by {name}" for name in others)]) + " |"]
    lines.append("| --- |" + " --- |" * (len(head) - 1 + len(others)))
    for kind in kinds:
        events = [e for e in _events(judged["model"]) if e.is_fault and e.node.kind == kind]
        found = [e.node.stop_s - e.called_s for e in events if e.foreseen]  # type: ignore[operator]
        cells = [kind, str(len(events)), str(sum(e.shielded for e in events))]
        cells += [f"{np.median(found):.0f}" if found else "–"]
        cells += [str(sum(e.false_alarm for e in events))]
        cells += [
            str(sum(e.shielded for e in _events(judged[n]) if e.is_fault and e.node.kind == kind))
            for n in others
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _others(judged: Mapping[str, Sequence[Judged]]) -> list[str]:
    """Alarms on what was harmless, and on what stopped without a sign, which nobody foresees."""
    others = [name for name in judged if name not in ("model", "base rate")]
    lines = ["| harmless, or abrupt | node-runs | called | " + " | ".join(others) + " |"]
    lines.append("| --- | --- | --- |" + " --- |" * len(others))
    events = [event for event in _events(judged["model"]) if not event.is_fault]
    for kind in sorted({event.node.kind for event in events}):
        here = [event for event in events if event.node.kind == kind]
        told = f"{kind} (abrupt)" if here[0].node.abrupt else kind
        cells = [told, str(len(here)), str(sum(e.called_s is not None for e in here))]
        cells += [
            str(
                sum(
                    e.called_s is not None
                    for e in _events(judged[name])
                    if not e.is_fault and e.node.kind == kind
                )
            )
            for name in others
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cell(value: float, interval: tuple[float, float]) -> str:
    if np.isnan(value):
        return "–"
    return f"{value:.3g} ({interval[0]:.3g} to {interval[1]:.3g})"


def main() -> int:
    """Print the report."""
    parser = argparse.ArgumentParser(prog="python -m models.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL)
    parser.add_argument("--recordings", type=Path, default=RECORDINGS)
    parser.add_argument("--without-trees", action="store_true")
    arguments = parser.parse_args()
    try:
        runs = read_runs(arguments.recordings)
        others: dict[str, Judge] = {}
        if not arguments.without_trees:
            from models.train import trees

            others["boosted trees"] = trees([run for run in runs if not run.truth.held_out])
        print(report(arguments.model, [run for run in runs if run.truth.held_out], others))
    except (ModelRefused, RecordingRefused, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
