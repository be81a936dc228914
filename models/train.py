"""Trains the incident head on the lab's recordings and ships it with its card.

    python -m models.train [--recordings DIR] [--out FILE] [--seed N] [--steps N]

Everything random comes from the seed. Held-out runs (`models/dataset.py`) are not looked at before
the model is finished. Calibration (Platt) is fitted on predictions for runs that the predicting
network had not seen: three folds by run.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from las.forecast.contract import HORIZONS_S
from las.forecast.load import SHIPPED_MODEL
from models.augment import part, vary
from models.card import write_card
from models.dataset import RECORDINGS, Run, read_runs, training_hash
from models.evaluate import evaluate
from models.export import export
from models.features import FEATURES, WINDOW
from models.network import IncidentNetwork
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA

BATCH_MOMENTS = 48
STEPS = 2500
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 3e-2
FOLDS = 3
# Seconds of a run before which there is nothing to judge.
FIRST_SECOND = 8

_COLUMNS = [TELEMETRY_SCHEMA.positions[name] for name in FEATURES]


class Moments:
    """Draws moments of runs: the windows of all peers of a run at one second, and their labels."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        pad = ((0, 0), (WINDOW - 1, 0), (0, 0))
        self._padded = [
            np.pad(run.values[:, :, _COLUMNS], pad, constant_values=np.nan) for run in runs
        ]
        self._labels = [run.labels(HORIZONS_S[0]) for run in runs]

    def at(self, run: int, second: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Windows [peers, window, features] and labels [peers] of that moment."""
        return self._padded[run][:, second : second + WINDOW], self._labels[run][:, second]

    def draw(self, count: int, random: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Varied windows, labels, and the run of each row, of `count` moments."""
        windows, labels, sources = [], [], []
        for index in range(count):
            run = int(random.integers(len(self.runs)))
            seconds = self.runs[run].values.shape[1]
            moment, label = self.at(run, int(random.integers(FIRST_SECOND, seconds)))
            varied = vary(moment, random)
            varied[:, :, -1] = part(len(varied), index * 16, random)[:, None]
            windows.append(varied)
            labels.append(label)
            sources.append(np.full(len(label), run))
        return (
            torch.from_numpy(np.concatenate(windows)),
            torch.from_numpy(np.concatenate(labels)),
            torch.from_numpy(np.concatenate(sources)),
        )


def fit(runs: Sequence[Run], *, seed: int, steps: int) -> IncidentNetwork:
    """Train one network (uncalibrated) on these runs."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    moments = Moments(runs)
    network = IncidentNetwork()
    network.describe.eval()
    with torch.no_grad():
        network.standardize(network.describe(moments.draw(400, random)[0]))
    # Each member sees the runs with weights of its own (a bootstrap by run): their votes differ
    # where the recordings are too few to tell.
    weights = torch.from_numpy(
        random.poisson(1.0, size=(len(network.members), len(runs))).astype(np.float32)
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    network.train()
    for _ in range(steps):
        windows, labels, sources = moments.draw(BATCH_MOMENTS, random)
        known = ~torch.isnan(labels)
        with torch.no_grad():
            descriptions = network.describe(windows)[known]
        logits = network.member_logits(descriptions)
        losses = nn.functional.binary_cross_entropy_with_logits(
            logits, labels[known].expand_as(logits), reduction="none"
        )
        weight = weights[:, sources[known]]
        loss = (losses * weight).sum() / weight.sum().clamp(min=1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def log_odds(network: IncidentNetwork, runs: Sequence[Run]) -> tuple[Tensor, Tensor]:
    """Uncalibrated log-odds and labels of every known row of the runs, unvaried."""
    moments = Moments(runs)
    odds, labels = [], []
    for index, run in enumerate(runs):
        for second in range(FIRST_SECOND, run.values.shape[1]):
            windows, label = moments.at(index, second)
            known = ~np.isnan(label)
            logits = network.member_logits(network.describe(torch.from_numpy(windows.copy())))
            odds.append(logits.mean(dim=0)[torch.from_numpy(known)])
            labels.append(torch.from_numpy(label[known]))
    return torch.cat(odds), torch.cat(labels)


def platt(odds: Tensor, labels: Tensor) -> Tensor:
    """Slope and offset that make the log-odds most likely (Platt's targets against overfit)."""
    positives, negatives = float(labels.sum()), float((1.0 - labels).sum())
    high, low = (positives + 1.0) / (positives + 2.0), 1.0 / (negatives + 2.0)
    targets = torch.where(labels > 0.5, high, low).double()
    scale = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scale], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(
            scale[0] * odds.double() + scale[1], targets
        )
        loss.backward()
        return loss

    optimizer.step(closure)
    return scale.detach().float()


def train(runs: Sequence[Run], *, seed: int, steps: int) -> IncidentNetwork:
    """The finished network: fitted on all runs, calibrated on folds of them."""
    odds, labels = [], []
    for fold in range(FOLDS):
        seen = [run for index, run in enumerate(runs) if index % FOLDS != fold]
        unseen = [run for index, run in enumerate(runs) if index % FOLDS == fold]
        fold_odds, fold_labels = log_odds(fit(seen, seed=seed + 1 + fold, steps=steps), unseen)
        odds.append(fold_odds)
        labels.append(fold_labels)
    network = fit(runs, seed=seed, steps=steps)
    network.platt.copy_(platt(torch.cat(odds), torch.cat(labels)))
    # No recorded run stops later than ten minutes after its onset, so the hour adds what a
    # node-run that did not stop at all might have done: half an event in all of them (Jeffreys).
    survivors = sum(node.stop_s is None for run in runs for node in run.truth.nodes)
    network.later.fill_(0.5 / (survivors + 1.0))
    return network


def main() -> int:
    """Train, export, judge, write the card."""
    parser = argparse.ArgumentParser(prog="python -m models.train", description=__doc__)
    parser.add_argument("--recordings", type=Path, default=RECORDINGS)
    parser.add_argument("--out", type=Path, default=SHIPPED_MODEL)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    begun_s = time.monotonic()
    runs = read_runs(arguments.recordings)
    training = [run for run in runs if not run.truth.held_out]
    held_out = [run for run in runs if run.truth.held_out]
    network = train(training, seed=arguments.seed, steps=arguments.steps)
    labels = np.concatenate([run.labels(HORIZONS_S[0]).ravel() for run in training])
    export(
        network,
        training,
        arguments.out,
        base_rate=float(np.nanmean(labels)),
        training_data=training_hash(training),
        evaluate=lambda path: evaluate(path, held_out),
    )
    write_card(arguments.out, runs)
    print(f"trained on {len(training)} runs in {time.monotonic() - begun_s:.0f} s: {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
