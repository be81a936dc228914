"""Writes the model's card: what it is for, what it was made from, what it can and cannot do.

Every number in it is read from the model file and the recordings; the words stand here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from las.forecast.model import ForecastModel
from models.dataset import Run
from models.evaluate import evaluate, report
from models.judge import Judge

_INTENDED = """\
Says how probable it is that a peer stops within 10 minutes or an hour, once a second, from the last
two minutes of its telemetry. *Stopped* means: its process is gone, its storage failed, or it
acknowledged nothing for 3 s under load. It is meant to act on trouble that is already under way
(the policy's line is p(10 min) ≥ 0.8 twice running); it does not foresee sudden deaths and does not
estimate the wear of a disk.
"""

_INSIDE = """\
Two halves, joined by the mean of their log-odds: small networks, learnt from the runs below 45 as
they were recorded, and boosted trees, learnt from all runs and from made-up trouble. Scaling by the
node's own past, missing values, comparison with the other peers of the machine and calibration are
inside the graph (`models/network.py`, `models/trees.py`).
"""

_LABORATORY = """\
Real peers under real load in the fault lab (`models/lab`), sampled by the product's own collector,
split by run before recording.
"""

_FIGURES = """\
95 % bootstrap intervals over runs in parentheses. *rule* is the one line "fsync p99 > 10 × its own
past"; *boosted trees* are larger ones than the head's own, fitted alone on the same rows and
description; *extrapolation* draws a straight line through the last minute of what can run out
(memory, descriptors, space) and calls what would within 10 minutes. A node-run counts as called
when p(10 min) reached 0.8 in two seconds running, as foreseen when that was between its onset and
its stop, as shielded when 2 s were left after it. Abrupt stops (a failed file system, a kill) count
in no figure but the last table.
"""

_LIMITS = """\
- Trained on one machine with two cores and one virtual disk. Processors and memory were shared by
  all peers of a run; network and file system, too, in the runs below 45. Of host and disk metrics
  only the free space is read; trouble that shows in the others alone is not seen.
- Disks of the laboratory hold 8 GiB, of which a peer keeps 1 GiB: how close to its reserve a larger
  disk is does not follow from the free share alone.
- Peers of one machine (same kernel) are compared with each other. When all of them get worse at
  once it takes that for the machine's load, not for the end of each: a machine that dies as a whole
  is seen late or not at all, unless it carries a single peer.
- Calibrated for the laboratory's mixture of faults, where they are far more frequent than in a
  fleet; the ledger of a fleet has to confirm it. No recorded fault took longer than some minutes
  from onset to stop, so p(1 h) is p(10 min) plus a small constant.
- A fault that ends by itself looks like one that does not, until it has ended.
- Kinds of trouble that the laboratory does not make (clock jumps, failing memory) are answered by
  whatever they do to what is read; `python -m models.unseen` measures how well that goes.
"""


def write_card(
    model_path: Path, runs: Sequence[Run], others: Mapping[str, Judge] | None = None
) -> Path:
    """Write the card beside the model file; the runs are all recordings, held-out ones too.

    `others` are judged beside it.
    """
    contract = ForecastModel.load(model_path).contract
    training = [run for run in runs if not run.truth.held_out]
    held_out = [run for run in runs if run.truth.held_out]
    reads = ", ".join(f"`{name}`" for name in contract.features)
    text = "\n".join(
        [
            f"# Model card: {contract.model_id}",
            "",
            _INTENDED,
            "## What it is",
            "",
            f"ONNX, {model_path.stat().st_size / 1000:.0f} kB. Reads {len(contract.features)}",
            f"metrics × {contract.window} samples, raw, gaps as NaN: {reads}.",
            _INSIDE,
            f"Telemetry schema `{contract.schema_version}`, training data (SHA-256)",
            f"`{contract.training_data}`.",
            "",
            "## Recordings",
            "",
            _LABORATORY,
            *_recordings("training", training),
            *_recordings("held out", held_out),
            "",
            "## Figures on held-out runs",
            "",
            _FIGURES,
            "All held-out runs:",
            "",
            report(model_path, held_out, others),
            *_by_plan(model_path, held_out),
            "## Limits",
            "",
            _LIMITS,
        ]
    )
    path = model_path.with_suffix(".md")
    path.write_text(text)
    return path


def _by_plan(model_path: Path, held_out: Sequence[Run]) -> list[str]:
    """The model's main figures apart: peers that shared everything, and peers in rooms."""
    lines = ["| held-out runs | shielded | median lead, s | false alarms a node-hour |"]
    lines.append("| --- | --- | --- | --- |")
    for name, in_rooms in (("below 45 (shared)", False), ("from 45 on (in rooms)", True)):
        runs = [run for run in held_out if run.truth.in_rooms == in_rooms]
        if runs:
            told = evaluate(model_path, runs)
            cells = [
                f"{told[figure]:.3g}"
                for figure in (
                    "shielded_share",
                    "lead_time_s_median",
                    "false_alarms_per_node_hour",
                )
            ]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _recordings(name: str, runs: Sequence[Run]) -> list[str]:
    nodes = [node for run in runs for node in run.truth.nodes]
    kinds = Counter(node.kind for node in nodes)
    shared = Counter(str(event["kind"]) for run in runs for event in run.truth.shared)
    hours = sum(run.values.shape[0] * run.values.shape[1] for run in runs) / 3600.0
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    beside = ", ".join(f"{count} {kind}" for kind, count in sorted(shared.items())) or "none"
    return [
        (
            f"- {name}: {len(runs)} runs, {len(nodes)} node-runs, {hours:.1f} node-hours: {told};"
            f" events shared by all peers of a run: {beside}."
        )
    ]
