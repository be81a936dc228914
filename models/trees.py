"""Boosted trees as one half of the incident head: fitted by scikit-learn, kept in the ONNX graph.

What scikit-learn grew is copied into plain arrays with float32 thresholds, which is what the graph
compares with. The graph has them as one `TreeEnsembleRegressor` (ONNX-ML), which onnxruntime walks
for 10,000 nodes in some hundredths of a second; `BoostedHalf` is the same for torch, walked in
numpy, so that an export can be compared with it.

Numbers are rounded before trees see them, in training as later. A tree jumps at its thresholds, and
much of a description is 0 but for the rounding of float32, which differs between machines and with
the order of nodes: without the grid a threshold could lie in that noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import Tensor, nn

from models.graph_export import TREES_DOMAIN
from models.network import calibrated

ROUNDS = 150
LEAVES_MAX = 15
LEARNING_RATE = 0.08
# Steps of the grid in one unit of a description, which is a factor of e for most of its numbers.
STEPS_PER_UNIT = 64.0

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trees:
    """All nodes of all trees, one behind the other; `first` [trees] is where each one begins.

    A node goes left where the value is not above its threshold. Leaves lead to themselves, and
    `weight` is what a leaf adds to the log-odds, 0 elsewhere. Children count from the tree's first.
    """

    first: Places
    feature: Places
    threshold: Floats
    left: Places
    right: Places
    is_leaf: npt.NDArray[np.bool_]
    weight: Floats
    base: float
    depth: int

    def odds(self, rounded: Floats) -> Floats:
        """Log-odds [rows] of `on_grid` descriptions [rows, numbers]."""
        rows = np.arange(len(rounded))[:, None]
        at = np.broadcast_to(self.first, (len(rounded), len(self.first))).copy()
        for _ in range(self.depth):
            goes_left = rounded[rows, self.feature[at]] <= self.threshold[at]
            at = self.first + np.where(goes_left, self.left[at], self.right[at])
        told = self.weight[at].sum(axis=1, dtype=np.float32) + np.float32(self.base)
        return np.asarray(told, dtype=np.float32)


def on_grid(described: Tensor) -> Tensor:
    """Descriptions without NaN [rows, numbers] in steps of the grid."""
    return torch.round(described * STEPS_PER_UNIT)


def grow(rounded: Floats, labels: Floats, *, seed: int) -> Trees:
    """Fit to `on_grid` descriptions [rows, numbers] and labels [rows] of 0 and 1."""
    fitted = HistGradientBoostingClassifier(
        max_iter=ROUNDS,
        max_leaf_nodes=LEAVES_MAX,
        learning_rate=LEARNING_RATE,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=seed,
    ).fit(rounded, labels > 0.5)
    grown = [one.nodes for (one,) in fitted._predictors]
    first = np.cumsum([0, *(len(nodes) for nodes in grown)])[:-1]
    nodes = np.concatenate(grown)
    own = np.concatenate([np.arange(len(each)) for each in grown])
    is_leaf = nodes["is_leaf"].astype(bool)
    return Trees(
        first=first.astype(np.int64),
        feature=np.where(is_leaf, 0, nodes["feature_idx"]).astype(np.int64),
        threshold=np.where(is_leaf, 0.0, nodes["num_threshold"]).astype(np.float32),
        left=np.where(is_leaf, own, nodes["left"]).astype(np.int64),
        right=np.where(is_leaf, own, nodes["right"]).astype(np.int64),
        is_leaf=is_leaf,
        weight=np.where(is_leaf, nodes["value"], 0.0).astype(np.float32),
        base=float(np.ravel(fitted._baseline_prediction)[0]),
        depth=int(nodes["depth"].max()),
    )


def trees_of(told: Mapping[str, Sequence[int] | Sequence[float] | Sequence[bytes]]) -> Trees:
    """The trees of a graph's node, by the names of its attributes; what `_attributes` writes."""
    tree = np.array(told["nodes_treeids"], dtype=np.int64)
    first = np.flatnonzero(np.diff(tree, prepend=-1))
    own = np.arange(len(tree)) - first[tree]
    is_leaf = np.array([mode == b"LEAF" for mode in told["nodes_modes"]])
    left = np.array(told["nodes_truenodeids"], dtype=np.int64)
    right = np.array(told["nodes_falsenodeids"], dtype=np.int64)
    weight = np.zeros(len(tree), dtype=np.float32)
    weight[is_leaf] = np.array(told["target_weights"], dtype=np.float32)
    depth = np.zeros(len(tree), dtype=np.int64)
    for node in np.flatnonzero(~is_leaf):  # parents stand before their children
        for child in (left[node], right[node]):
            depth[first[tree[node]] + child] = depth[node] + 1
    return Trees(
        first=first,
        feature=np.array(told["nodes_featureids"], dtype=np.int64),
        threshold=np.array(told["nodes_values"], dtype=np.float32),
        left=np.where(is_leaf, own, left),
        right=np.where(is_leaf, own, right),
        is_leaf=is_leaf,
        weight=weight,
        base=float(told["base_values"][0]),
        depth=int(depth.max()),
    )


def _attributes(trees: Trees) -> dict[str, object]:
    """Of the graph's one node; suffixes are torch's for the kind of a value."""
    sizes = np.diff([*trees.first, len(trees.feature)])
    tree = np.repeat(np.arange(len(sizes)), sizes)
    own = np.arange(len(tree)) - trees.first[tree]
    leaf = trees.is_leaf
    return {
        "nodes_treeids_i": tree.tolist(),
        "nodes_nodeids_i": own.tolist(),
        "nodes_featureids_i": trees.feature.tolist(),
        "nodes_values_f": trees.threshold.tolist(),
        "nodes_modes_s": ["LEAF" if end else "BRANCH_LEQ" for end in leaf.tolist()],
        "nodes_truenodeids_i": np.where(leaf, 0, trees.left).tolist(),
        "nodes_falsenodeids_i": np.where(leaf, 0, trees.right).tolist(),
        "target_treeids_i": tree[leaf].tolist(),
        "target_nodeids_i": own[leaf].tolist(),
        "target_ids_i": [0] * int(leaf.sum()),
        "target_weights_f": trees.weight[leaf].tolist(),
        "base_values_f": [trees.base],
        "n_targets_i": 1,
        "post_transform_s": "NONE",
    }


class _Walk(torch.autograd.Function):
    """The trees' log-odds [rows, 1], and how the exporter writes them."""

    @staticmethod
    def forward(ctx: object, rounded: Tensor, trees: Trees) -> Tensor:  # type: ignore[override]
        del ctx
        return torch.from_numpy(trees.odds(rounded.numpy())).unsqueeze(1)

    @staticmethod
    def symbolic(graph, rounded, trees):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        told = graph.op(f"{TREES_DOMAIN}::TreeEnsembleRegressor", rounded, **_attributes(trees))
        # What the exporter cannot infer: [rows, 1], of the numbers' own type.
        return told.setType(rounded.type().with_sizes([None, 1]))


class BoostedHalf(nn.Module):
    """Calibrated log-odds [nodes] of descriptions [nodes, numbers]."""

    calibration: Tensor

    def __init__(self, trees: Trees, calibration: Tensor) -> None:
        super().__init__()
        self.trees = trees
        self.register_buffer("calibration", calibration)

    def forward(self, described: Tensor) -> Tensor:
        """What the trees say, calibrated."""
        odds = _Walk.apply(on_grid(described), self.trees).squeeze(1)
        return calibrated(odds, self.calibration)
