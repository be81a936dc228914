"""Trains and judges the hardware head on Backblaze's disks.

    python -m models.hardware_head train|evaluate [--data DIR] [--seed N]

The split is fixed by disk and by day (`models/disks.py`); rows are weekly snapshots. Baselines of
the same run: the base rate, the usual SMART rule, the mean |z| of the input, boosted trees on the
same input, and boosted trees on the head's own description of it (levels and growth over spans),
which is what shows how much the description is worth and how much the networks.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from las.forecast.contract import HARDWARE, ModelRefused
from las.forecast.hardware_inputs import COUNTER_COUNT, HARDWARE_NAMES
from las.forecast.heads import HARDWARE_TABLE, SHIPPED, Head, horizons_of
from models.disks import (
    SPLIT_DAY,
    Disks,
    Snapshots,
    held_out_snapshots,
    read_disks,
    training_snapshots,
)
from models.histories import DATA, DataMissing, data_file
from models.rank import (
    Figure,
    Warnings,
    calibration_error,
    precisions,
    reliability,
    warnings_by_machine,
)

HORIZONS_S = horizons_of(HARDWARE)
WEEK = HORIZONS_S.index(7 * 86_400)
STEPS = 3000
FALSE_SHARE = 0.01
# What operators look at: any of these above zero is trouble, and the more of them the more.
RULE = [HARDWARE_NAMES.index(f"smart_{number}") for number in (5, 187, 188, 197, 198)]
# Calibration looks at the newest part of training: fleets change.
_RECENT_DAYS = 240
_TREE_ROUNDS = 150
_ROWS_AT_ONCE = 16_384

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Figures of the held-out snapshots."""

    precision: Mapping[str, Figure]
    lead: Mapping[str, Figure]
    base: float
    rows: int
    positives: int
    error: float
    error_top: float
    warnings: Warnings
    labels: Floats
    scores: Floats


def answers(head: Head, snapshots: Snapshots) -> npt.NDArray[np.float32]:
    """The head's probabilities [rows, horizons]."""
    parts = [
        head.predict(snapshots.windows[first : first + _ROWS_AT_ONCE]).probabilities
        for first in range(0, len(snapshots.windows), _ROWS_AT_ONCE)
    ]
    return np.concatenate(parts)


def judge(
    head: Head, disks: Disks, held_out: Snapshots, beside: Mapping[str, Floats], rounds: int = 500
) -> Judged:
    """The head beside baselines; `beside` are other scores of the held-out rows by name."""
    answer = answers(head, held_out)[:, WEEK].astype(np.float64)
    known = ~np.isnan(held_out.labels[:, WEEK])
    labels = held_out.labels[known, WEEK].astype(np.float64)
    counters = np.nan_to_num(held_out.windows[:, -1, :COUNTER_COUNT].astype(np.float64))
    logs = np.log1p(np.clip(counters, 0.0, 65535.0))
    scores = {
        "head": answer,
        "base rate": np.zeros(len(answer)),
        "SMART rule": (counters[:, RULE] > 0.0).sum(axis=1).astype(np.float64),
        "mean of |z|": np.abs((logs - logs.mean(axis=0)) / (logs.std(axis=0) + 1e-9)).mean(axis=1),
        **beside,
    }
    precision, lead, _ = precisions(
        labels,
        {name: values[known] for name, values in scores.items()},
        held_out.rows[known],
        first="head",
        rounds=rounds,
    )
    lower, top = reliability(labels, answer[known])
    failing = {
        int(row): float(disks.last_day[row])
        for row in np.unique(held_out.rows)
        if disks.failed[row]
    }
    return Judged(
        precision=precision,
        lead=lead,
        base=float(labels.mean()),
        rows=len(labels),
        positives=int(labels.sum()),
        error=calibration_error([*lower, *top]),
        error_top=calibration_error(top),
        warnings=warnings_by_machine(
            answer, held_out.days, held_out.rows, failing, false_share=FALSE_SHARE, rounds=rounds
        ),
        labels=labels,
        scores=answer[known],
    )


def figures(judged: Judged) -> dict[str, float]:
    """What the contract carries."""
    precision, warnings = judged.precision["head"], judged.warnings
    return {
        "average_precision_7d": precision.value,
        "average_precision_7d_low": precision.low,
        "average_precision_7d_high": precision.high,
        "base_rate_7d": judged.base,
        "calibration_error_7d": judged.error,
        "calibration_error_7d_top": judged.error_top,
        "detected_share": warnings.detected_share.value,
        "false_share": warnings.false_share,
        "lead_days_median": warnings.lead_days_median.value,
    }


def describe_all(windows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The head's own description of windows: [rows, numbers]."""
    import torch

    from models.describe import DiskDescription

    describe = DiskDescription(COUNTER_COUNT)
    parts = [
        describe(torch.from_numpy(windows[first : first + _ROWS_AT_ONCE])).numpy()
        for first in range(0, len(windows), _ROWS_AT_ONCE)
    ]
    return np.concatenate(parts)


def boosted_trees(training: Snapshots, held_out: Snapshots, seed: int) -> dict[str, Floats]:
    """Scores of scikit-learn's boosted trees, on the input itself and on its description."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    known = ~np.isnan(training.labels[:, WEEK])
    scores: dict[str, Floats] = {}
    for name, read in (
        ("boosted trees", lambda windows: windows.reshape(len(windows), -1)),
        ("boosted trees on the description", describe_all),
    ):
        trees = HistGradientBoostingClassifier(
            max_iter=_TREE_ROUNDS,
            learning_rate=0.06,
            max_leaf_nodes=15,
            min_samples_leaf=50,
            l2_regularization=1.0,
            early_stopping=False,
            random_state=seed,
        )
        trees.fit(
            read(training.windows)[known],
            training.labels[known, WEEK],
            sample_weight=training.weights[known],
        )
        scores[name] = trees.decision_function(read(held_out.windows))
    return scores


def train(disks: Disks, path: Path, data: Path, *, seed: int, steps: int) -> Head:
    """Train on the training disks before the split and write the head with its figures."""
    import torch

    from models.chain import ChainNetwork, TrainingRows, fit_chain
    from models.describe import DiskDescription
    from models.head_export import export_head

    torch.manual_seed(seed)
    training = training_snapshots(disks, np.random.default_rng(seed))
    rows = TrainingRows(
        numbers=torch.from_numpy(describe_all(training.windows)),
        labels=torch.from_numpy(training.labels),
        nodes=training.rows,
        weights=torch.from_numpy(training.weights),
        recent=training.days >= SPLIT_DAY - _RECENT_DAYS,
    )
    describe = DiskDescription(COUNTER_COUNT)
    network = ChainNetwork(
        describe, width=describe.width, horizons=len(HORIZONS_S), members=8, hidden=48
    )
    fit_chain(network, rows, seed=seed, steps=steps)
    failing = np.flatnonzero(training.labels[:, WEEK] == 1.0)[::997][:6]
    calm = np.flatnonzero(training.labels[:, -1] == 0.0)[::997][:6]
    held_out = held_out_snapshots(disks)
    return export_head(
        network,
        HARDWARE_TABLE,
        path,
        examples=training.windows[np.concatenate([failing, calm])],
        period_ms=86_400_000,
        base_rates=base_rates(training),
        training_data=hashlib.sha256(data_file(data, "backblaze-smart").read_bytes()).hexdigest(),
        evaluate=lambda head: figures(judge(head, disks, held_out, {}, rounds=200)),
    )


def base_rates(training: Snapshots) -> tuple[float, ...]:
    """Weighted share of recent rows that fail, by horizon."""
    recent = training.days >= SPLIT_DAY - _RECENT_DAYS
    rates = []
    for labels in training.labels[recent].T:
        known = ~np.isnan(labels)
        rates.append(float(np.average(labels[known], weights=training.weights[recent][known])))
    return tuple(rates)


def report(judged: Judged) -> str:
    """Markdown tables."""
    warnings = judged.warnings
    lines = [
        (
            f"{judged.rows} disk-weeks of held-out disks from day {SPLIT_DAY} on, "
            f"{judged.positives} of them within 7 d of a failure (base {judged.base:.6f})."
        ),
        "",
        "| | AUPRC(7 d) | times base | lead of the head (paired) |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {name} | {figure} | {figure.value / judged.base:.0f} | {judged.lead.get(name, '')} |"
        for name, figure in judged.precision.items()
    ]
    lines += [
        "",
        (
            f"By disk, at {100 * warnings.false_share:.2f} % of the disks that do not fail called: "
            f"detected {warnings.detected_share}, median lead {warnings.lead_days_median} d."
        ),
        "",
        f"ECE(7 d) {judged.error:.6f}, bins of equal mass; top 1 % apart {judged.error_top:.4f}:",
        "",
        "| said | came true | rows |",
        "| --- | --- | --- |",
    ]
    lower, top = reliability(judged.labels, judged.scores)
    lines += [f"| {each.said:.6f} | {each.true:.6f} | {each.rows} |" for each in (*lower, *top)]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Train or evaluate."""
    parser = argparse.ArgumentParser(prog="python -m models.hardware_head", description=__doc__)
    parser.add_argument("what", choices=["train", "evaluate"])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--model", type=Path, default=SHIPPED / "hardware.onnx")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    begun_s = time.monotonic()
    try:
        import torch

        torch.set_num_threads(1)  # the matrices are small; threads would wait for each other
        disks = read_disks(arguments.data)
        if arguments.what == "train":
            head = train(
                disks,
                arguments.model,
                arguments.data,
                seed=arguments.seed,
                steps=arguments.steps,
            )
            print(f"{head.model_id} in {time.monotonic() - begun_s:.0f} s: {arguments.model}")
        from models.head_card import cost_of_a_fleet, write_hardware_card

        head = Head.load(arguments.model, HARDWARE_TABLE)
        training = training_snapshots(disks, np.random.default_rng(arguments.seed))
        held_out = held_out_snapshots(disks)
        beside = boosted_trees(training, held_out, arguments.seed)
        judged = judge(head, disks, held_out, beside)
        print(report(judged))
        print(cost_of_a_fleet(head))
        write_hardware_card(head, arguments.model, report(judged), judged)
    except (DataMissing, ModelRefused, OSError) as error:
        print(f"hardware head: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
