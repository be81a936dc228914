"""Writes the shipped incident head anew, with the code of today around what it has learnt.

    python -m models.reexport [--model FILE] [--recordings DIR] [--ungated]

What was learnt (the networks' matrices, the trees, the calibrations) is read from the model file's
own graph, so nothing is trained: for a change of the code in `models/network.py` that must not
change an answer, a faster description of the windows above all. The new file is a candidate in
`build/models` like a trained one: it has a name of its own, its greatest difference from the old
one on all recorded runs is printed, and the gate decides whether it takes the old one's place.

Where it calls each peer of the held-out runs in the same second as the old one, and each of its
figures is the same as printed, the old card stays but for name and size; else it is written anew.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from las.forecast.load import SHIPPED_MODEL
from las.forecast.model import ForecastModel
from models.card import write_card
from models.dataset import RECORDINGS, Run, read_runs, training_hash
from models.evaluate import evaluate
from models.export import export
from models.judge import figures, judge_run
from models.network import FlatNetwork, JoinedNetwork
from models.train import CANDIDATES, offer, trees
from models.trees import BoostedHalf, trees_of

# Every so many seconds of each run old and new answers are compared.
COMPARED_EVERY_S = 5


class NotOurs(Exception):
    """The graph is no incident head of `models/export.py`; the message says what is missing."""


def read_network(path: Path) -> JoinedNetwork:
    """The network that a model file was made from, described by the code of today.

    Raises `NotOurs`; `OSError` if unreadable.
    """
    graph = onnx.load(path).graph
    constants = {
        each.name: torch.from_numpy(onnx.numpy_helper.to_array(each).copy())
        for each in graph.initializer
    }
    halves: list[torch.nn.Module] = []
    while nodes := [each for each in graph.node if each.name.startswith(f"/halves.{len(halves)}/")]:
        calibration = _calibration(nodes, constants)
        grown = [each for each in nodes if each.op_type == "TreeEnsembleRegressor"]
        if grown:
            told = {one.name: onnx.helper.get_attribute_value(one) for one in grown[0].attribute}
            halves.append(BoostedHalf(trees_of(told), calibration))
        else:
            halves.append(_flat(f"halves.{len(halves)}", constants, calibration))
    if not halves or "later" not in constants:
        raise NotOurs(f"{path}: no halves of an incident head in it")
    network = JoinedNetwork(halves)
    network.later.copy_(constants["later"])
    return network.eval()


def _flat(prefix: str, constants: dict[str, Tensor], calibration: Tensor) -> FlatNetwork:
    tensors = {"calibration": calibration}
    for name in FlatNetwork.NAMES:
        if name != "calibration":
            if f"{prefix}.{name}" not in constants:
                raise NotOurs(f"no {prefix}.{name} in the graph")
            tensors[name] = constants[f"{prefix}.{name}"]
    return FlatNetwork(tensors)


def _calibration(nodes: list[onnx.NodeProto], constants: dict[str, Tensor]) -> Tensor:
    """Three numbers, which the exporter names at will: they stand in order of their use."""
    found = [
        constants[name]
        for node in nodes
        for name in node.input
        if node.op_type in {"Mul", "Sub"} and name in constants and constants[name].numel() == 1
    ]
    if len(found) != 3:
        raise NotOurs(f"{len(found)} numbers of a calibration, wanted 3")
    return torch.stack([each.reshape(()) for each in found])


def difference(old: ForecastModel, new: ForecastModel, runs: Sequence[Run]) -> tuple[float, float]:
    """On recorded windows: greatest difference of p(10 min), and the share of nodes beyond 1e-4."""
    apart = []
    for run in runs:
        for second in range(8, run.values.shape[1], COMPARED_EVERY_S):
            windows = run.windows(second, new.window)
            apart.append(np.abs(old.predict(windows).p_10_min - new.predict(windows).p_10_min))
    found = np.concatenate(apart)
    return float(found.max()), float((found > 1e-4).mean())


def calls_alike(old: ForecastModel, new: ForecastModel, held_out: Sequence[Run]) -> bool:
    """Whether both call the same peers of these runs at the same times, with the same figures."""
    before, after = ([judge_run(model, run) for run in held_out] for model in (old, new))
    printed = (
        {name: f"{value:.3g}" for name, value in figures(each).items()} for each in (before, after)
    )
    same = next(printed) == next(printed)
    pairs = zip(before, after, strict=True)
    return same and all(a.events == b.events for a, b in pairs)


def renamed_card(card: str, old: tuple[str, int], new: tuple[str, int]) -> str:
    """A card with another id and size in bytes. Raises `NotOurs` if it does not have the old."""
    for before, after in zip(_titles(*old), _titles(*new), strict=True):
        if card.count(before) != 1:
            raise NotOurs(f"the card says {before!r} not just once")
        card = card.replace(before, after)
    return card


def _titles(model_id: str, size_bytes: int) -> tuple[str, str]:
    return f"# Model card: {model_id}\n", f"\nONNX, {size_bytes / 1000:.0f} kB. "


def main() -> int:
    """Read, export, compare, write the card, offer it to the gate."""
    parser = argparse.ArgumentParser(prog="python -m models.reexport", description=__doc__)
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL)
    parser.add_argument("--recordings", type=Path, default=RECORDINGS)
    parser.add_argument("--ungated", action="store_true", help="ship it although it is worse")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = read_runs(arguments.recordings)
    training = [run for run in runs if not run.truth.held_out]
    held_out = [run for run in runs if run.truth.held_out]
    old = ForecastModel.load(arguments.model)
    if old.contract.training_data != training_hash(training):
        print(f"{arguments.model} was learnt from other runs than those in {arguments.recordings}")
        return 1
    candidate = CANDIDATES / arguments.model.name
    CANDIDATES.mkdir(parents=True, exist_ok=True)
    export(
        read_network(arguments.model),
        training,
        candidate,
        base_rate=old.contract.base_rates[0],
        training_data=old.contract.training_data,
        evaluate=lambda path: evaluate(path, held_out),
    )
    new = ForecastModel.load(candidate)
    greatest, share = difference(old, new, runs)
    print(f"{new.model_id}: at most {greatest:.2g} from {old.model_id}, {share:.2%} beyond 1e-4")
    if calls_alike(old, new, held_out):
        card = candidate.with_suffix(".md")
        before, after = (
            (model.model_id, path.stat().st_size)
            for model, path in ((old, arguments.model), (new, candidate))
        )
        card.write_text(renamed_card(arguments.model.with_suffix(".md").read_text(), before, after))
    else:
        card = write_card(candidate, runs, {"boosted trees": trees(training)})
    return offer(candidate, card, arguments.model, runs, ungated=arguments.ungated)


if __name__ == "__main__":
    sys.exit(main())
