"""Writes the cards of the hardware and the history head, and their pictures under build/.

The words stand here; every number comes from the model file or from the evaluation.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from las.forecast.heads import Head
from models.rank import reliability

if TYPE_CHECKING:
    from models.hardware_head import Judged as HardwareJudged
    from models.history_head import Judged as HistoryJudged

PICTURES = Path(__file__).parents[1] / "build" / "models"

_HISTORY = """\
Says how probable it is that a failure of a node begins within an hour, a day, a week or thirty
days, from what has become of it and its neighbours so far (`las/forecast/history_inputs.py`). It
knows nothing of the node's health. It informs, and enters `peerctl forecast` through the join; it
never acts on the 0.8 line by itself.
"""

_HISTORY_DATA = """\
Trained on `lanl-failures` (LA-UR-05-7318, Los Alamos National Laboratory): nodes that are not held
out, before the split; calibrated on the last year before it, by members that never saw the node.
Judged on the held-out nodes (SHA-256 of the name mod 5 = 0) after the split, once a day. Systems
that began after the split are among them and were never trained on. Grid'5000 is judged with the
same head, untouched: its downs are mostly reinstallations by users.
"""

_HISTORY_LIMITS = """\
- Failures of the past tell little of the next: the head orders nodes hardly better than a decayed
  count does, and no better than boosted trees on the same input. What it adds is calibration.
- The record is from supercomputers of 1996 to 2004, with outages entered by operators. A fleet of
  today has other rates; until the ledger of a fleet confirms it, take its level as a guess.
- LANL names no racks, so a whole system stands for one.
- A cause is taken as known from the outage's beginning on, as the record has it.
"""


_HARDWARE = """\
Says how probable it is that a SATA disk fails within a day, a week or thirty days, from nine SMART
counters of today and of twelve days that lie further and further back, its age and its capacity
(`las/forecast/hardware_inputs.py`). It foresees wear, not trouble under way; a calibrated disk
model never says 0.8, so it informs and never acts on that line.
"""

_HARDWARE_DATA = """\
Trained on `backblaze-smart` (Backblaze Hard Drive Data, 2013 to 2016): disks with SHA-256(disk_id)
mod 5 ≠ 0 before day 905, and nothing of what became of them after it. Each of a disk's last 30 days
before it failed and a random share of all other weeks, weighted to what they stand for, so that
probabilities are those of the true prevalence; calibrated on the last 240 days before the split, by
members that never saw the disk. Judged once a week on the other disks from day 905 on.
"""

_HARDWARE_LIMITS = """\
- The held-out part has few failures within a week of a snapshot, so intervals are wide; boosted
  trees on the head's own description of the input are its equal or better.
- Disks of 2013 to 2016, Seagate, HGST and WDC; NVMe and SAS disks do not have these counters and
  have no input. Temperature, CRC errors and SMART attributes beside the nine are not read.
- The fleet failed less after the split than before it, which calibration on the past cannot know.
- One failure is what the operator took out of service as failed.
"""


def write_hardware_card(head: Head, path: Path, report: str, judged: HardwareJudged) -> Path:
    """Write the hardware head's card beside its file, and its pictures."""
    draw_reliability(judged.labels, judged.scores, PICTURES / "hardware-reliability.svg", "7 d")
    draw_leads(judged.warnings.leads_days, PICTURES / "hardware-leads.svg")
    return _write(head, path, (_HARDWARE, _HARDWARE_DATA, _HARDWARE_LIMITS), report)


def write_history_card(head: Head, path: Path, report: str, judged: HistoryJudged) -> Path:
    """Write the history head's card beside its file, and its picture."""
    draw_reliability(judged.labels, judged.scores, PICTURES / "history-reliability.svg", "7 d")
    return _write(head, path, (_HISTORY, _HISTORY_DATA, _HISTORY_LIMITS), report)


def _write(head: Head, path: Path, words: tuple[str, str, str], report: str) -> Path:
    """`words`: what it is for, what it was made from, what it cannot do."""
    intended, data, limits = words
    contract = head.contract
    lines = [
        f"# Model card: {contract.model_id}",
        "",
        intended,
        "## What it is",
        "",
        f"ONNX, {path.stat().st_size / 1000:.0f} kB. Reads {len(contract.features)} values",
        f"× {contract.window}, raw, gaps as NaN; missing values, scales, the chain of horizons and",
        "calibration are inside the graph (`models/describe.py`, `models/chain.py`).",
        f"Input table `{contract.schema_version}`, training data (SHA-256)",
        f"`{contract.training_data}`.",
        "",
        "## Data and split",
        "",
        data,
        "## Figures on held-out machines and later times",
        "",
        "95 % bootstrap intervals over machines in parentheses.",
        "",
        report,
        "## Limits",
        "",
        limits,
    ]
    card = path.with_suffix(".md")
    card.write_text("\n".join(lines))
    return card


def cost_of_a_fleet(head: Head, nodes: int = 10_000) -> str:
    """What one run for a whole fleet costs on one core, the best of five."""
    window, width = head.contract.window, len(head.contract.features)
    random = np.random.default_rng(0)
    inputs = random.integers(0, 9, size=(nodes, window, width)).astype(np.float32)
    spent_s = []
    for _ in range(5):
        begun_s = time.process_time()
        head.predict(inputs)
        spent_s.append(time.process_time() - begun_s)
    return f"{head.model_id}: {nodes} nodes in {min(spent_s):.3f} s of one core"


def draw_reliability(
    labels: npt.NDArray[np.float64], scores: npt.NDArray[np.float64], path: Path, what: str
) -> None:
    """Said against true, in bins of equal mass, the top 1 % apart."""
    axes, figure = _axes()
    for bins, name in zip(reliability(labels, scores), ("lower 99 %", "top 1 %"), strict=True):
        said = [max(each.said, 1e-7) for each in bins]
        true = [max(each.true, 1e-7) for each in bins]
        axes.plot(said, true, "o-", label=name)
    axes.plot([1e-6, 1.0], [1e-6, 1.0], color="grey", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel=f"p({what}) said", ylabel="came true")
    axes.legend()
    _save(figure, path)


def draw_leads(leads_days: Sequence[float], path: Path) -> None:
    """The share of called machines by how many days ahead they were called."""
    axes, figure = _axes()
    ordered = np.sort(np.asarray(leads_days))
    axes.step(ordered, 1.0 - np.arange(len(ordered)) / max(len(ordered), 1))
    axes.set(xlabel="days between the call and the failure", ylabel="share called so early")
    _save(figure, path)


def _axes():  # type: ignore[no-untyped-def]  # noqa: ANN202
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 4))
    return axes, figure


def _save(figure, path: Path) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path)
