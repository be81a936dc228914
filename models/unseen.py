"""Kinds of trouble that training never saw: leave one kind out, and see who finds it.

    python -m models.unseen [--recordings DIR] [--seed N]

For each gradual kind a head is fitted on the training runs without the peers that suffered it,
and judged on those peers in all runs, training ones, too: nothing of them was trained on. Beside
it: the signs that need no model (`las.core.signs`), both together, which is what the LAS does, and
linear extrapolation of what runs out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from las.core.signs import SignRules
from las.forecast.answer import Forecast, Windows
from las.forecast.contract import HORIZONS_S
from models.baselines import BaseRate, Extrapolation
from models.dataset import RECORDINGS, Run, read_runs
from models.features import FEATURES, WINDOW
from models.judge import Event, Judge, judge_run
from models.network import JoinedNetwork, WindowDescription
from models.train import (
    HALVES,
    STEPS,
    Half,
    Rows,
    calibrate,
    describe_run,
    finished,
    learn,
    log_odds,
)
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA

RULES = SignRules()
_COLUMNS = [TELEMETRY_SCHEMA.positions[name] for name in FEATURES]


class NetworkJudge:
    """A network that was not exported, as a forecaster."""

    window = WINDOW

    def __init__(self, network: JoinedNetwork) -> None:
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


def fit_on_two_thirds(
    runs: Sequence[Run],
    rows: Sequence[Rows],
    seed: int,
    reads: Callable[[Half], Tensor] = Half.reads,
) -> NetworkJudge:
    """Both halves fitted on two thirds of the runs and calibrated on the rest."""
    halves = []
    for half in HALVES:
        chosen = half.rows(runs, rows)
        seen = [row for index, row in enumerate(chosen) if index % 3 != 2]
        rest = [row for index, row in enumerate(chosen) if index % 3 == 2]
        learnt = learn(seen, half, seed=seed, steps=STEPS, reads=reads(half))
        halves.append(finished(learnt, calibrate(*log_odds(learnt, rest))))
    return NetworkJudge(JoinedNetwork(halves).eval())


def fit_without(kind: str, runs: Sequence[Run], rows: Sequence[Rows], seed: int) -> NetworkJudge:
    """Fitted on two thirds of the runs and calibrated on the rest, neither with that kind."""
    random = np.random.default_rng(seed)
    mine = [
        describe_run(run.without(kind), WindowDescription(), random)
        if any(node.kind == kind for node in run.truth.nodes)
        else row
        for run, row in zip(runs, rows, strict=True)
    ]
    return fit_on_two_thirds(runs, mine, seed)


def events_of(
    kind: str, judge: Judge, runs: Sequence[Run], signs: SignRules | None = None
) -> list[Event]:
    """The node-runs of a kind, as a forecaster saw them, with `signs` also the rules."""
    hit = [run for run in runs if any(node.kind == kind for node in run.truth.nodes)]
    judged = [judge_run(judge, run, signs) for run in hit]
    return [event for run in judged for event in run.events if event.node.kind == kind]


def report(runs: Sequence[Run], seed: int) -> str:
    """A table, a row a kind."""
    training = [run for run in runs if not run.truth.held_out]
    random = np.random.default_rng(seed)
    rows = [describe_run(run, WindowDescription(), random) for run in training]
    nodes = [node for run in runs for node in run.truth.nodes]
    kinds = sorted({n.kind for n in nodes if n.stop_s is not None and not n.abrupt})
    lines = [
        (
            "| kind left out | node-runs | shielded by the head | by signs | by both "
            "| median lead, s | by extrapolation |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    total = np.zeros(5, dtype=int)
    for kind in kinds:
        network = fit_without(kind, training, rows, seed)
        both = events_of(kind, network, runs, RULES)
        found = [e.node.stop_s - e.called_s for e in both if e.foreseen]  # type: ignore[operator]
        median = f"{np.median(found):.0f}" if found else "–"
        shielded = [
            sum(event.shielded for event in events)
            for events in (
                events_of(kind, network, runs),
                events_of(kind, BaseRate(0.0), runs, RULES),
                both,
                events_of(kind, Extrapolation(), runs),
            )
        ]
        by_head, by_signs, by_both, straight = shielded
        lines.append(
            f"| {kind} | {len(both)} | {by_head} | {by_signs} | {by_both} | {median} | {straight} |"
        )
        print(lines[-1], file=sys.stderr, flush=True)
        total += np.array([len(both), *shielded])
    count, by_head, by_signs, by_both, straight = total
    lines.append(f"| all | {count} | {by_head} | {by_signs} | {by_both} | | {straight} |")
    return "\n".join(lines) + "\n\n" + _false_alarms(runs)


def _false_alarms(runs: Sequence[Run]) -> str:
    """What the signs alone take for trouble that is none, in all runs."""
    events = [event for run in runs for event in judge_run(BaseRate(0.0), run, RULES).events]
    false = [event for event in events if event.false_alarm]
    hours = sum(event.watched_s for event in events) / 3600
    kinds = ", ".join(sorted(event.node.kind for event in false)) or "none"
    return f"False alarms of the signs in {hours:.1f} node-hours: {len(false)} ({kinds}).\n"


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
