"""Trains and judges the history head on LANL's record; Grid'5000's is reported beside it.

    python -m models.history_head train|evaluate [--data DIR] [--seed N]

Split by node and by time (`models/histories.py`). A row is a node that serves at a moment; it is
positive when a failure begins within the horizon. Baselines of the same run: the base rate, the
time since the last failure, the decayed failure count (180 d) and boosted trees on the same input.
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

from las.forecast.contract import HISTORY, ModelRefused
from las.forecast.heads import HISTORY_TABLE, SHIPPED, Head, horizons_of
from las.forecast.history_inputs import CAUSES, DAY_S, HISTORY_NAMES, HistoryIndex
from models.histories import DATA, HISTORIES, DataMissing, History, down_or_fails, stamp
from models.rank import Figure, calibration_error, precisions, reliability

HORIZONS_S = horizons_of(HISTORY)
WEEK = HORIZONS_S.index(7 * DAY_S)
STEPS = 1500
# Training looks at each node every so often: no multiple of a day, so that no hour is special.
_TRAINING_STRIDE_S = 3 * DAY_S + 7 * 3600
_CALM_SHARE = 0.3
_RECENT_S = 365 * DAY_S
_TREE_ROUNDS = 120

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Nodes at moments: input [rows, 1, features], labels [rows, horizons], node, moment."""

    inputs: Floats
    labels: Floats
    nodes: npt.NDArray[np.int64]
    moments_s: npt.NDArray[np.int64]


def rows_of(
    history: History, moments: range, chosen: npt.NDArray[np.bool_], *, known_until_s: int
) -> Rows:
    """The chosen nodes that serve at each moment (seconds); the labels know nothing of what comes
    after `known_until_s`.
    """
    index = HistoryIndex(history.outages, history.places)
    serving, labels = down_or_fails(history, moments, HORIZONS_S)
    inputs, told, nodes, when = [], [], [], []
    for place, moment in enumerate(moments):
        here = np.flatnonzero(serving[place] & chosen)
        if not len(here):
            continue
        inputs.append(index.at(moment)[here])
        label = labels[place, here].copy()
        for column, horizon_s in enumerate(HORIZONS_S):
            if moment + horizon_s > known_until_s:
                label[:, column] = np.nan
        told.append(label)
        nodes.append(here)
        when.append(np.full(len(here), moment))
    return Rows(
        inputs=np.concatenate(inputs)[:, None],
        labels=np.concatenate(told),
        nodes=np.concatenate(nodes),
        moments_s=np.concatenate(when),
    )


def training_rows(history: History) -> Rows:
    """The nodes that are not held out, before the split."""
    begin_s = int(history.since_s.min())
    moments = range(begin_s, history.split_s, _TRAINING_STRIDE_S)
    return rows_of(history, moments, ~history.held_out, known_until_s=history.split_s)


def held_out_rows(history: History) -> Rows:
    """The held-out nodes, once a day from the split on."""
    end_s = int(history.until_s.max())
    moments = range(history.split_s, end_s, DAY_S)
    return rows_of(history, moments, history.held_out, known_until_s=end_s)


def data_hash(history: History) -> str:
    """SHA-256 over what training could see: outages before the split of nodes not held out."""
    kept = {
        place.node for place, out in zip(history.places, history.held_out, strict=True) if not out
    }
    digest = hashlib.sha256()
    for each in history.outages:
        if each.node in kept and each.begin_s < history.split_s:
            digest.update(repr((each.node, each.begin_s, each.end_s, each.cause.value)).encode())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Figures of one history's held-out rows, 7 d ahead."""

    precision: Mapping[str, Figure]
    lead: Mapping[str, Figure]
    lift: Figure
    base: float
    rows: int
    positives: int
    error: float
    error_top: float
    labels: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]


def judge(head: Head, rows: Rows, trees: npt.NDArray[np.float64] | None) -> Judged:
    """The head beside its baselines; `trees` are the boosted trees' scores of the rows."""
    known = ~np.isnan(rows.labels[:, WEEK])
    labels = rows.labels[known, WEEK].astype(np.float64)
    answer = head.predict(rows.inputs[known]).probabilities[:, WEEK].astype(np.float64)
    last = rows.inputs[known, -1].astype(np.float64)
    scores = {
        "head": answer,
        "base rate": np.zeros(len(labels)),
        "time since failure": -np.nan_to_num(
            last[:, HISTORY_NAMES.index("since_failure_s")], nan=1e12
        ),
        "decayed count": last[:, HISTORY_NAMES.index("decayed_180d")],
    }
    if trees is not None:
        scores["boosted trees"] = trees[known]
    precision, lead, lift = precisions(labels, scores, rows.nodes[known], first="head")
    lower, top = reliability(labels, answer)
    return Judged(
        precision=precision,
        lead=lead,
        lift=lift,
        base=float(labels.mean()),
        rows=len(labels),
        positives=int(labels.sum()),
        error=calibration_error([*lower, *top]),
        error_top=calibration_error(top),
        labels=labels,
        scores=answer,
    )


def figures(judged: Judged) -> dict[str, float]:
    """What the contract carries."""
    precision = judged.precision["head"]
    return {
        "average_precision_7d": precision.value,
        "average_precision_7d_low": precision.low,
        "average_precision_7d_high": precision.high,
        "base_rate_7d": judged.base,
        "lift_7d": judged.lift.value,
        "calibration_error_7d": judged.error,
        "calibration_error_7d_top": judged.error_top,
    }


def boosted_trees(training: Rows, held_out: Rows, seed: int) -> npt.NDArray[np.float64]:
    """Scores of scikit-learn's boosted trees, trained on the same rows."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    known = ~np.isnan(training.labels[:, WEEK])
    keep, weights = _sampled(training, seed)
    keep &= known
    trees = HistGradientBoostingClassifier(
        max_iter=_TREE_ROUNDS,
        learning_rate=0.06,
        max_leaf_nodes=12,
        min_samples_leaf=100,
        l2_regularization=5.0,
        early_stopping=False,
        random_state=seed,
    )
    trees.fit(training.inputs[keep, -1], training.labels[keep, WEEK], sample_weight=weights[keep])
    scores: npt.NDArray[np.float64] = trees.decision_function(held_out.inputs[:, -1])
    return scores


def _sampled(rows: Rows, seed: int) -> tuple[npt.NDArray[np.bool_], Floats]:
    """All rows that fail within 30 d and a share of the others, and what each stands for."""
    fails = rows.labels[:, -1] == 1.0
    keep = fails | (np.random.default_rng(seed).random(len(fails)) < _CALM_SHARE)
    return keep, np.where(fails, 1.0, 1.0 / _CALM_SHARE).astype(np.float32)


def train(history: History, path: Path, *, seed: int, steps: int) -> Head:
    """Train on the history's training part and write the head with its figures."""
    import torch

    from models.chain import ChainNetwork, TrainingRows, fit_chain
    from models.describe import HistoryDescription
    from models.head_export import export_head

    torch.manual_seed(seed)
    training, held_out = training_rows(history), held_out_rows(history)
    keep, weights = _sampled(training, seed)
    describe = HistoryDescription(HISTORY_NAMES, len(CAUSES))
    rows = TrainingRows(
        numbers=describe(torch.from_numpy(training.inputs[keep])),
        labels=torch.from_numpy(training.labels[keep]),
        nodes=training.nodes[keep],
        weights=torch.from_numpy(weights[keep]),
        recent=training.moments_s[keep] >= history.split_s - _RECENT_S,
    )
    network = ChainNetwork(describe, width=describe.width, horizons=len(HORIZONS_S), hidden=24)
    fit_chain(network, rows, seed=seed, steps=steps)
    recent = training.moments_s >= history.split_s - _RECENT_S
    base = np.nanmean(training.labels[recent], axis=0)
    failing = np.flatnonzero(training.labels[:, WEEK] == 1.0)[:4]
    calm = np.flatnonzero(training.labels[:, -1] == 0.0)[:4]
    return export_head(
        network,
        HISTORY_TABLE,
        path,
        examples=training.inputs[np.concatenate([failing, calm])],
        period_ms=1000,
        base_rates=tuple(base.tolist()),
        training_data=data_hash(history),
        evaluate=lambda head: figures(judge(head, held_out, None)),
    )


def report(head: Head, data: Path, *, seed: int) -> tuple[str, Judged]:
    """Markdown tables of both histories, and what was judged on LANL's."""
    lines: list[str] = []
    first: Judged | None = None
    for name, read in HISTORIES.items():
        history = read(data)
        training, held_out = training_rows(history), held_out_rows(history)
        judged = judge(head, held_out, boosted_trees(training, held_out, seed))
        first = first or judged
        lines += [
            f"### {name}: {int(history.held_out.sum())} nodes from {stamp(history.split_s)} on",
            "",
            (
                f"{judged.rows} node-days, {judged.positives} of them within 7 d of a failure (base"
                f" {judged.base:.4f}). AUPRC(7 d) over base: {judged.lift}. ECE {judged.error:.5f},"
                f" in the top 1 % {judged.error_top:.4f}."
            ),
            "",
            "| | AUPRC(7 d) | times base | lead of the head (paired) |",
            "| --- | --- | --- | --- |",
        ]
        lines += [
            f"| {each} | {figure} | {figure.value / judged.base:.2f} |"
            f" {judged.lead.get(each, '')} |"
            for each, figure in judged.precision.items()
        ]
        lines.append("")
    assert first is not None
    return "\n".join(lines), first


def main() -> int:
    """Train or evaluate."""
    parser = argparse.ArgumentParser(prog="python -m models.history_head", description=__doc__)
    parser.add_argument("what", choices=["train", "evaluate"])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--model", type=Path, default=SHIPPED / "history.onnx")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    begun_s = time.monotonic()
    try:
        if arguments.what == "train":
            import torch

            torch.set_num_threads(1)  # the matrices are small; threads would wait for each other
            history = HISTORIES["lanl"](arguments.data)
            head = train(history, arguments.model, seed=arguments.seed, steps=arguments.steps)
            print(f"{head.model_id} in {time.monotonic() - begun_s:.0f} s: {arguments.model}")
        from models.head_card import cost_of_a_fleet, write_history_card

        head = Head.load(arguments.model, HISTORY_TABLE)
        text, judged = report(head, arguments.data, seed=arguments.seed)
        print(text)
        print(cost_of_a_fleet(head))
        write_history_card(head, arguments.model, text, judged)
    except (DataMissing, ModelRefused, OSError) as error:
        print(f"history head: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
