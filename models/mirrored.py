"""The share of LANL's failures that find their node mirrored: the history head beside its rivals.

    python -m models.mirrored --data ../shared/data

Held-out nodes after the split alone (`las.replay.histories`): nothing of them was trained on. So
many per cent of the nodes in service are mirrored at a time; copying one takes 1 TB at 100 MB/s.
The judgement is the product's (`las.replay.shielding`). Beside the head stand a decayed failure
count and scikit-learn's boosted trees, trained on the rows of the head's training, for the day
and for the week; the ratio is to the better of the rivals, its 95 % interval over nodes, paired.
Needs the extra `train`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from las.forecast.heads import horizons_of, shipped_head
from las.forecast.history_inputs import HISTORY_NAMES, HistoryIndex
from las.replay.histories import DATA, DataMissing, History, read_lanl
from las.replay.shielding import Mirroring, Shielding, ratio, shield
from models.history_head import training_rows

SHARES = (0.01, 0.02, 0.05)
DAY_S = 86_400
STEP_S = 21_600
# Rows of the trees' training that did not fail, for each that did.
CALM_PER_FAILING = 20

Floats = npt.NDArray[np.float64]


class Table:
    """Answers of a predictor for the held-out nodes, worked out before: [steps, nodes]."""

    def __init__(
        self, name: str, horizon_s: int, begin_s: int, held_out: npt.NDArray[np.bool_]
    ) -> None:
        self.name, self.horizon_s = name, horizon_s
        self._begin_s, self._held_out = begin_s, held_out
        self.rows: list[npt.NDArray[np.float32]] = []

    def at(self, now_s: int) -> Floats:
        """By node; 0 for a node that is not held out."""
        found = np.zeros(len(self._held_out))
        found[self._held_out] = self.rows[(now_s - self._begin_s) // STEP_S]
        return found


def boosted_trees(history: History, horizons_s: tuple[int, ...], seed: int) -> dict[int, object]:
    """Trees by horizon, trained on what the head was trained on."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    rows = training_rows(history)
    chance = np.random.default_rng(seed)
    made: dict[int, object] = {}
    for horizon_s in horizons_s:
        labels = rows.labels[:, horizons_of("history").index(horizon_s)]
        failing = np.flatnonzero(labels == 1.0)
        calm = np.flatnonzero(labels == 0.0)
        kept = chance.choice(calm, min(len(calm), CALM_PER_FAILING * len(failing)), replace=False)
        weights = np.r_[np.ones(len(failing)), np.full(len(kept), len(calm) / len(kept))]
        chosen = np.r_[failing, kept]
        trees = HistGradientBoostingClassifier(
            max_iter=200,
            learning_rate=0.05,
            max_leaf_nodes=15,
            min_samples_leaf=100,
            l2_regularization=1.0,
            random_state=seed,
        )
        made[horizon_s] = trees.fit(rows.inputs[chosen, 0], labels[chosen], sample_weight=weights)
    return made


def tables(history: History, seed: int, end_s: int) -> list[Table]:
    """Each predictor's answers at each step from the split on."""
    index = HistoryIndex(history.outages, history.places)
    held_out, begin_s = history.held_out, history.split_s
    trees = boosted_trees(history, (DAY_S, 7 * DAY_S), seed)
    head, horizons = shipped_head("history"), horizons_of("history")
    decayed = HISTORY_NAMES.index("decayed_180d")

    def table(name: str, horizon_s: int) -> Table:
        return Table(name, horizon_s, begin_s, held_out)

    heads = {s: table(f"history head {s // DAY_S} d", s) for s in (DAY_S, 7 * DAY_S)}
    forests = {s: table(f"boosted trees {s // DAY_S} d", s) for s in trees}
    count = table("decayed count", 7 * DAY_S)
    for now_s in range(begin_s, end_s, STEP_S):
        inputs = index.at(now_s)[held_out]
        found = head.predict(inputs[:, None]).probabilities
        for horizon_s, each in heads.items():
            each.rows.append(found[:, horizons.index(horizon_s)])
        for horizon_s, each in forests.items():
            told = trees[horizon_s].predict_proba(inputs)[:, 1]  # type: ignore[attr-defined]
            each.rows.append(told.astype(np.float32))
        rate = inputs[:, decayed] * 7.0 / 180.0
        count.rows.append(-np.expm1(-rate))
    return [*heads.values(), *forests.values(), count]


def report(found: Mapping[tuple[str, float], Shielding], names: list[str]) -> str:
    """The table, in Markdown."""
    lines = ["| mirrored at a time | " + " | ".join(names) + " | head 1 d / better rival |"]
    lines.append("| --- " * (len(names) + 2) + "|")
    for share in SHARES:
        rivals = [name for name in names if not name.startswith("history")]
        better = max(rivals, key=lambda name: found[name, share].share)
        against = ratio(found[names[0], share], found[better, share])
        cells = [
            f"{found[name, share].share:.1%} ({found[name, share].copied_bytes / 1e12:.0f} TB)"
            for name in names
        ]
        told = f"{against.value:.2f} ({against.low:.2f} to {against.high:.2f}; {better})"
        lines.append(f"| {share:.0%} | " + " | ".join([*cells, told]) + " |")
    return "\n".join(lines)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m models.mirrored", description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write shares here, too")
    arguments = parser.parse_args()
    try:
        history = read_lanl(arguments.data)
    except DataMissing as error:
        print(f"mirrored: {error}", file=sys.stderr)
        return 1
    end_s = int(history.until_s.max())
    made = tables(history, arguments.seed, end_s)
    found = {
        (each.name, share): shield(
            history,
            each,
            history.held_out,
            Mirroring(share=share, step_s=STEP_S),
            begin_s=history.split_s,
            end_s=end_s,
        )
        for each in made
        for share in SHARES
    }
    print(f"{len(next(iter(found.values())).rows)} failures of {history.held_out.sum()} nodes")
    print(report(found, [each.name for each in made]))
    if arguments.json is not None:
        shares = {f"{name} {share}": each.share for (name, share), each in found.items()}
        arguments.json.write_text(json.dumps(shares, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
