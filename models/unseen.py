"""Kinds of trouble that training never saw: leave one kind out, and see who finds it.

    python -m models.unseen [--recordings DIR] [--seed N]

For each gradual kind a network is fitted on the training runs without the peers that suffered it,
and judged on those peers in all runs, training ones, too: nothing of them was trained on. Beside
it: linear extrapolation of what runs out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from las.forecast.answer import Forecast, Windows
from las.forecast.contract import HORIZONS_S
from models.baselines import Extrapolation
from models.dataset import RECORDINGS, Run, read_runs
from models.features import FEATURES, WINDOW
from models.judge import Event, Judge, judge_run
from models.network import IncidentNetwork, WindowDescription
from models.train import STEPS, Rows, calibrate, describe_run, fit, log_odds
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA

_COLUMNS = [TELEMETRY_SCHEMA.positions[name] for name in FEATURES]


class NetworkJudge:
    """A network that was not exported, as a forecaster."""

    window = WINDOW

    def __init__(self, network: IncidentNetwork) -> None:
        self._network = network

    def predict(self, windows: Windows) -> Forecast:
        """Judge nodes."""
        with torch.no_grad():
            said = self._network(torch.from_numpy(np.ascontiguousarray(windows[:, :, _COLUMNS])))
        return Forecast(
            model_id="unseen",
            calibrated=True,
            probabilities=said.numpy().reshape(-1, len(HORIZONS_S)),
            known=np.ones(len(windows), dtype=np.bool_),
        )


def fit_without(kind: str, runs: Sequence[Run], rows: Sequence[Rows], seed: int) -> NetworkJudge:
    """Fitted on two thirds of the runs and calibrated on the rest, neither with that kind."""
    random = np.random.default_rng(seed)
    mine = [
        describe_run(run.without(kind), WindowDescription(), random)
        if any(node.kind == kind for node in run.truth.nodes)
        else row
        for run, row in zip(runs, rows, strict=True)
    ]
    network = fit([r for i, r in enumerate(mine) if i % 3 != 2], seed=seed, steps=STEPS)
    rest = [row for index, row in enumerate(mine) if index % 3 == 2]
    network.calibration.copy_(calibrate(*log_odds(network, rest)))
    return NetworkJudge(network)


def events_of(kind: str, judge: Judge, runs: Sequence[Run]) -> list[Event]:
    """The node-runs of a kind, as a forecaster saw them."""
    hit = [run for run in runs if any(node.kind == kind for node in run.truth.nodes)]
    judged = [judge_run(judge, run) for run in hit]
    return [event for run in judged for event in run.events if event.node.kind == kind]


def report(runs: Sequence[Run], seed: int) -> str:
    """A table, a row a kind."""
    training = [run for run in runs if not run.truth.held_out]
    random = np.random.default_rng(seed)
    rows = [describe_run(run, WindowDescription(), random) for run in training]
    nodes = [node for run in runs for node in run.truth.nodes]
    kinds = sorted({n.kind for n in nodes if n.stop_s is not None and not n.abrupt})
    lines = [
        "| kind left out | node-runs | shielded | median lead, s | by extrapolation |",
        "| --- | --- | --- | --- | --- |",
    ]
    total = [0, 0, 0]
    for kind in kinds:
        events = events_of(kind, fit_without(kind, training, rows, seed), runs)
        straight = sum(e.shielded for e in events_of(kind, Extrapolation(), runs))
        found = [e.node.stop_s - e.called_s for e in events if e.foreseen]  # type: ignore[operator]
        shielded = sum(e.shielded for e in events)
        median = f"{np.median(found):.0f}" if found else "–"
        lines.append(f"| {kind} | {len(events)} | {shielded} | {median} | {straight} |")
        print(lines[-1], file=sys.stderr, flush=True)
        total = [total[0] + len(events), total[1] + shielded, total[2] + straight]
    lines.append(f"| all | {total[0]} | {total[1]} | | {total[2]} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m models.unseen", description=__doc__)
    parser.add_argument("--recordings", type=Path, default=RECORDINGS)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(report(read_runs(arguments.recordings), arguments.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
