"""Trains the incident head on the lab's recordings, and ships it with its card if the gate lets it.

    python -m models.train [--recordings DIR] [--out FILE] [--seed N] [--steps N] [--ungated]

The candidate and its card are left in `build/models`; they take the place of `--out` when
`models/gate.py` finds them no worse.

Everything random comes from the seed. Held-out runs (`models/dataset.py`) are not looked at before
the model is finished. Calibration is fitted on predictions for runs that the predicting
network had not seen: folds by run.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from las.forecast.contract import HORIZONS_S
from las.forecast.load import SHIPPED_MODEL
from models.augment import haste, part, vary
from models.baselines import BoostedTrees
from models.card import write_card
from models.dataset import RECORDINGS, Run, read_runs, training_hash
from models.evaluate import evaluate
from models.export import export
from models.features import FEATURES, OF_ROOMS, OLDEST_INPUTS, WINDOW
from models.gate import compare
from models.network import IncidentNetwork, JoinedNetwork, WindowDescription, calibrated
from models.overlay import overlaid
from models.trees import BoostedHalf, Trees, grow, on_grid
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA

BATCH_ROWS = 512
STEPS = 1000
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.5
FOLDS = 3
# Varied copies of each moment that are trained on, beside the moment as it was recorded.
VARIATIONS = 6
# Copies of each run with made-up trouble, each moment of it varied so many times.
OVERLAYS = 5
OVERLAY_VARIATIONS = 1
# Of each batch, so many rows are such.
MADE_UP_ROWS = 224
# Every so many seconds of a run are a moment: neighbours differ too little to be worth it.
STRIDE_S = 2
# Seconds of a run before which there is nothing to judge.
FIRST_SECOND = 8

CANDIDATES = Path("build/models")

_COLUMNS = [TELEMETRY_SCHEMA.positions[name] for name in FEATURES]
_OF_ROOMS = [TELEMETRY_SCHEMA.positions[name] for name in OF_ROOMS]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """One run as the network's inner part sees it: descriptions [rows, numbers], labels [rows].

    `recorded` marks the rows that were not varied, `made_up` those of `models/overlay.py`.
    """

    descriptions: Tensor
    labels: Tensor
    recorded: Tensor
    made_up: Tensor

    def as_recorded(self) -> Rows:
        """Without made-up trouble."""
        kept = ~self.made_up
        return Rows(
            descriptions=self.descriptions[kept],
            labels=self.labels[kept],
            recorded=self.recorded[kept],
            made_up=self.made_up[kept],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Half:
    """What one half of the head is, reads, and learns from."""

    boosted: bool
    inputs: Collection[str] | None
    in_rooms: bool
    made_up: bool

    def rows(self, runs: Sequence[Run], rows: Sequence[Rows]) -> list[Rows]:
        """Of all runs' rows those that it learns from, by run."""
        chosen = [
            row
            for run, row in zip(runs, rows, strict=True)
            if self.in_rooms or not run.truth.in_rooms
        ]
        return chosen if self.made_up else [row.as_recorded() for row in chosen]

    def reads(self) -> Tensor:
        """[numbers]: 0 for each that it must not look at, else 1."""
        description = WindowDescription()
        if self.inputs is None:
            return torch.ones(description.width)
        return description.numbers_of(self.inputs)


HALVES = (
    Half(boosted=False, inputs=OLDEST_INPUTS, in_rooms=False, made_up=False),
    Half(boosted=True, inputs=None, in_rooms=True, made_up=True),
)


def describe_run(run: Run, describe: WindowDescription, random: np.random.Generator) -> Rows:
    """The run's moments, their variations and copies with made-up trouble, described.

    Rows of stopped peers are left out.
    """
    if not run.truth.in_rooms:
        values = run.values.copy()
        values[:, :, _OF_ROOMS] = np.nan
        run = Run(truth=run.truth, values=values)
    parts = [_described(run, describe, VARIATIONS, random, is_recorded=True)]
    for _ in range(OVERLAYS):
        copy = overlaid(run, random)
        parts.append(_described(copy, describe, OVERLAY_VARIATIONS, random, is_recorded=False))
    return Rows(
        descriptions=torch.cat([part.descriptions for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        recorded=torch.cat([part.recorded for part in parts]),
        made_up=torch.cat([part.made_up for part in parts]),
    )


@torch.no_grad()
def _described(
    run: Run,
    describe: WindowDescription,
    variations: int,
    random: np.random.Generator,
    *,
    is_recorded: bool,
) -> Rows:
    all_labels = run.labels(HORIZONS_S[0])
    windows, labels, recorded = [], [], []
    for second in range(FIRST_SECOND, run.values.shape[1], STRIDE_S):
        for variation in range(variations + 1):
            every = 1 if variation == 0 else haste(random)
            moment = run.windows(second, WINDOW * every)[:, every - 1 :: every, _COLUMNS]
            copy = moment.copy() if variation == 0 else vary(moment, random)
            parted = np.zeros(len(copy)) if variation == 0 else part(len(copy), random)
            # Machines of one moment must not be taken for those of another.
            copy[:, :, -1] = (len(windows) * len(copy) + parted)[:, None]
            windows.append(copy)
            labels.append(all_labels[:, second])
            recorded.append(np.full(len(copy), is_recorded and variation == 0))
    descriptions = describe(torch.from_numpy(np.concatenate(windows)))
    told = torch.from_numpy(np.concatenate(labels))
    known = ~torch.isnan(told)
    return Rows(
        descriptions=descriptions[known],
        labels=told[known],
        recorded=torch.from_numpy(np.concatenate(recorded))[known],
        made_up=torch.full((int(known.sum()),), not is_recorded),
    )


def fit(
    runs: Sequence[Rows], *, seed: int, steps: int, reads: Tensor | None = None
) -> IncidentNetwork:
    """Train one network (uncalibrated) on these runs; `reads` as in `IncidentNetwork`."""
    torch.manual_seed(seed)
    network = IncidentNetwork(reads)
    descriptions = torch.cat([run.descriptions for run in runs])
    labels = torch.cat([run.labels for run in runs])
    sources = torch.cat([torch.full((len(run.labels),), index) for index, run in enumerate(runs)])
    network.standardize(descriptions)
    # Each member sees the runs with weights of its own (a bootstrap by run): their votes differ
    # where the recordings are too few to tell.
    random = np.random.default_rng(seed)
    shape = (network.first.shape[0], len(runs))
    weights = torch.from_numpy(random.poisson(1.0, size=shape).astype(np.float32))
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    made_up = torch.cat([run.made_up for run in runs])
    kinds = [torch.nonzero(chosen).squeeze(1) for chosen in (~made_up, made_up)]
    counts = (BATCH_ROWS - MADE_UP_ROWS, MADE_UP_ROWS) if len(kinds[1]) else (BATCH_ROWS, 0)
    network.train()
    for _ in range(steps):
        rows = torch.cat(
            [
                each[torch.randint(len(each), (count,))]
                for each, count in zip(kinds, counts, strict=True)
                if count
            ]
        )
        logits = network.member_logits(descriptions[rows])
        losses = nn.functional.binary_cross_entropy_with_logits(
            logits, labels[rows].expand_as(logits), reduction="none"
        )
        weight = weights[:, sources[rows]]
        loss = (losses * weight).sum() / weight.sum().clamp(min=1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def log_odds(learnt: IncidentNetwork | Trees, runs: Sequence[Rows]) -> tuple[Tensor, Tensor]:
    """Uncalibrated log-odds and labels of the runs' rows as they were recorded."""
    descriptions = torch.cat([run.descriptions[run.recorded] for run in runs])
    labels = torch.cat([run.labels[run.recorded] for run in runs])
    if isinstance(learnt, Trees):
        return torch.from_numpy(learnt.odds(on_grid(descriptions).numpy())), labels
    return learnt.member_logits(descriptions).mean(dim=0), labels


def calibrate(odds: Tensor, labels: Tensor) -> Tensor:
    """The calibration that makes the log-odds most likely (Platt's targets against overfit)."""
    positives, negatives = float(labels.sum()), float((1.0 - labels).sum())
    high, low = (positives + 1.0) / (positives + 2.0), 1.0 / (negatives + 2.0)
    targets = torch.where(labels > 0.5, high, low).double()
    # Slopes as logarithms: they must not fall below 0, or a sicker node would seem healthier.
    chosen = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([chosen], max_iter=100, line_search_fn="strong_wolfe")

    def slopes() -> Tensor:
        return torch.cat([chosen[:2].exp(), chosen[2:]])

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(
            calibrated(odds.double(), slopes()), targets
        )
        loss.backward()
        return loss

    optimizer.step(closure)
    return slopes().detach().float()


def learn(
    rows: Sequence[Rows], half: Half, *, seed: int, steps: int, reads: Tensor | None = None
) -> IncidentNetwork | Trees:
    """One half fitted to these runs (uncalibrated); `reads` instead of what it reads."""
    looks_at = half.reads() if reads is None else reads
    if not half.boosted:
        return fit(rows, seed=seed, steps=steps, reads=looks_at)
    # What never differs in training is never asked for.
    descriptions = torch.cat([run.descriptions for run in rows]) * looks_at
    return grow(
        on_grid(descriptions).numpy(), torch.cat([run.labels for run in rows]).numpy(), seed=seed
    )


def finished(learnt: IncidentNetwork | Trees, calibration: Tensor) -> nn.Module:
    """The half with its calibration, for `JoinedNetwork`."""
    if isinstance(learnt, Trees):
        return BoostedHalf(learnt, calibration)
    learnt.calibration.copy_(calibration)
    return learnt


def train_half(rows: Sequence[Rows], half: Half, *, seed: int, steps: int) -> nn.Module:
    """Fitted on all rows that are given, by run, and calibrated on folds of them."""
    odds, labels = [], []
    for fold in range(FOLDS):
        seen = [run for index, run in enumerate(rows) if index % FOLDS != fold]
        unseen = [run for index, run in enumerate(rows) if index % FOLDS == fold]
        fold_odds, fold_labels = log_odds(
            learn(seen, half, seed=seed + 1 + fold, steps=steps), unseen
        )
        odds.append(fold_odds)
        labels.append(fold_labels)
    calibration = calibrate(torch.cat(odds), torch.cat(labels))
    return finished(learn(rows, half, seed=seed, steps=steps), calibration)


def train(runs: Sequence[Run], *, seed: int, steps: int) -> JoinedNetwork:
    """The finished network: both halves, each calibrated on runs that it had not seen."""
    random = np.random.default_rng(seed)
    rows = [describe_run(run, WindowDescription(), random) for run in runs]
    network = JoinedNetwork(
        [train_half(half.rows(runs, rows), half, seed=seed, steps=steps) for half in HALVES]
    ).eval()
    # No recorded run stops later than ten minutes after its onset, so the hour adds what a
    # node-run that did not stop at all might have done: half an event in all of them (Jeffreys).
    survivors = sum(node.stop_s is None for run in runs for node in run.truth.nodes)
    network.later.fill_(0.5 / (survivors + 1.0))
    return network


def trees(runs: Sequence[Run], *, seed: int = 1) -> BoostedTrees:
    """Boosted trees on what the network learns from: the same runs, variations and description."""
    random = np.random.default_rng(seed)
    rows = [describe_run(run, WindowDescription(), random) for run in runs]
    return BoostedTrees(
        torch.cat([each.descriptions for each in rows]).numpy(),
        torch.cat([each.labels for each in rows]).numpy(),
        seed=seed,
    )


def offer(candidate: Path, card: Path, live: Path, runs: Sequence[Run], *, ungated: bool) -> int:
    """Ship the candidate and its card if the gate lets them; else 1."""
    if live.exists() and not ungated:
        refusals, lines = compare(candidate, live, runs)
        print("\n".join(lines))
        if refusals:
            print(f"refused, {live} stays: {'; '.join(refusals)}")
            return 1
    if not (live.exists() and candidate.samefile(live)):
        shutil.copy(candidate, live)
        shutil.copy(card, live.with_suffix(".md"))
    return 0


def main() -> int:
    """Train, export, judge, write the card."""
    parser = argparse.ArgumentParser(prog="python -m models.train", description=__doc__)
    parser.add_argument("--recordings", type=Path, default=RECORDINGS)
    parser.add_argument("--out", type=Path, default=SHIPPED_MODEL)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--ungated", action="store_true", help="ship it although it is worse")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the matrices are small; threads would only wait for each other
    begun_s = time.monotonic()
    runs = read_runs(arguments.recordings)
    training = [run for run in runs if not run.truth.held_out]
    held_out = [run for run in runs if run.truth.held_out]
    network = train(training, seed=arguments.seed, steps=arguments.steps)
    labels = np.concatenate([run.labels(HORIZONS_S[0]).ravel() for run in training])
    candidate = CANDIDATES / arguments.out.name
    CANDIDATES.mkdir(parents=True, exist_ok=True)
    export(
        network,
        training,
        candidate,
        base_rate=float(np.nanmean(labels)),
        training_data=training_hash(training),
        evaluate=lambda path: evaluate(path, held_out),
    )
    print(f"trained on {len(training)} runs in {time.monotonic() - begun_s:.0f} s: {candidate}")
    card = write_card(candidate, runs, {"boosted trees": trees(training, seed=arguments.seed)})
    return offer(candidate, card, arguments.out, runs, ungated=arguments.ungated)


if __name__ == "__main__":
    sys.exit(main())
