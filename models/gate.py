"""Whether a new model may take the place of the one that is shipped.

    python -m models.gate CANDIDATE [--live FILE] [--recordings DIR]

Both are played on the held-out runs. Apart for the runs in which peers shared everything and those
in rooms, the candidate must shield no smaller share of the gradual faults, and must not be worse
beyond doubt (paired 95 % interval over runs) in average precision or false alarms. Nor may it call
a disk that grows slow within a quarter of a minute (`models/made_up.py`) later, in the median or on
four peers in five, whether it has seen little or much of the peer before.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from las.forecast.contract import ModelRefused
from las.forecast.load import SHIPPED_MODEL
from las.forecast.model import ForecastModel
from models.dataset import RECORDINGS, RecordingRefused, Run, read_runs
from models.judge import BOOTSTRAP_ROUNDS, Judged, figures, judge_run, leads
from models.made_up import healthy_hosts, seconds_until_called

# What noise of one second's samples may cost.
LATER_S_MAX = 1.0
# A made-up disk falls sick from then on: with little and with more of a past to compare with.
MADE_UP_ONSETS_S = (30, 60)
# Each figure, and 1 if more of it is better.
_COMPARED = (
    ("shielded_share", 1.0),
    ("average_precision", 1.0),
    ("false_alarms_per_node_hour", -1.0),
)


def compare(
    candidate: Path, live: Path, runs: Sequence[Run], *, rounds: int = BOOTSTRAP_ROUNDS
) -> tuple[list[str], list[str]]:
    """Why the candidate is refused (empty: it is not), and the comparison as lines of Markdown.

    Raises `ModelRefused` when either file is no model.
    """
    lines = ["| held-out runs | figure | candidate | live | candidate's lead (paired) |"]
    lines.append("| --- | --- | --- | --- | --- |")
    refusals = []
    for name, in_rooms in (("shared", False), ("in rooms", True)):
        chosen = [run for run in runs if run.truth.held_out and run.truth.in_rooms == in_rooms]
        if not chosen:
            continue
        new, old = _judged(candidate, chosen), _judged(live, chosen)
        told = leads(new, old, rounds=rounds)
        ours, theirs = figures(new), figures(old)
        for figure, sign in _COMPARED:
            lead, (low, high) = told[figure]
            lines.append(
                f"| {name} | {figure} | {ours[figure]:.3g} | {theirs[figure]:.3g} "
                f"| {lead:+.3g} ({low:+.3g} to {high:+.3g}) |"
            )
            best = high if sign > 0.0 else -low
            if best < 0.0 or (figure == "shielded_share" and lead < 0.0):
                refusals.append(
                    f"{figure} on runs {name}: {ours[figure]:.3g}, live {theirs[figure]:.3g}"
                )
    has_hosts = any(True for _ in healthy_hosts(runs))
    for onset in MADE_UP_ONSETS_S if has_hosts else ():
        new_s, old_s = (_seconds_until_called(path, runs, onset) for path in (candidate, live))
        for name, late, now in zip(("the median", "four in five"), new_s, old_s, strict=True):
            what = f"seconds until a fast one is called, from second {onset} on, {name}"
            lines.append(f"| made up | {what} | {late:.3g} | {now:.3g} | |")
            if late > now + LATER_S_MAX:
                refusals.append(
                    f"a disk that grows slow fast, from second {onset} on, is called "
                    f"after {late:.3g} s, not {now:.3g} ({name})"
                )
    return refusals, lines


def _seconds_until_called(path: Path, runs: Sequence[Run], onset: int) -> tuple[float, float]:
    """The median over peers, and within how many seconds four in five are called."""
    seconds = seconds_until_called(ForecastModel.load(path), runs, onset)
    return float(np.median(seconds)), float(np.quantile(seconds, 0.8, method="lower"))


def _judged(path: Path, runs: Sequence[Run]) -> list[Judged]:
    model = ForecastModel.load(path)
    return [judge_run(model, run) for run in runs]


def main() -> int:
    """Print the comparison; 1 when the candidate is refused."""
    parser = argparse.ArgumentParser(prog="python -m models.gate", description=__doc__)
    parser.add_argument("candidate", type=Path)
    parser.add_argument("--live", type=Path, default=SHIPPED_MODEL)
    parser.add_argument("--recordings", type=Path, default=RECORDINGS)
    arguments = parser.parse_args()
    try:
        refusals, lines = compare(
            arguments.candidate, arguments.live, read_runs(arguments.recordings)
        )
    except (ModelRefused, RecordingRefused, OSError) as error:
        print(f"gate: {error}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    print("refused: " + "; ".join(refusals) if refusals else "not worse: it may be shipped")
    return 1 if refusals else 0


if __name__ == "__main__":
    sys.exit(main())
