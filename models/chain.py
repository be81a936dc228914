"""What the hardware and the history head share: a few small networks that vote, and a chain.

The longest horizon is foreseen first, each shorter one given that the node fails within the next
longer: p(30 d), p(7 d) = p(30 d) · p(7 d | 30 d), and so on. So no longer horizon can have a lower
probability, and what is rare is learned where it is not.

Members see the nodes (disks) with Poisson weights of their own, a bootstrap by node; a row's
log-odds for calibration are the mean of those members that never saw its node. Rows may be sampled
unevenly, positives above all: calibration takes the weights that make them what they stand for, so
the prior is put right by it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

BATCH_ROWS = 512
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
_STANDARD_MAX = 8.0
# What hardly ever differs from zero must not be blown up until it is cut off.
_SPREAD_MIN = 0.5


class ChainNetwork(nn.Module):
    """Raw windows [nodes, window, features] to probabilities [nodes, horizons], shortest first.

    `describe` turns raw windows into numbers [nodes, width] and has nothing to learn.
    """

    centre: Tensor
    spread: Tensor
    slopes: Tensor
    offsets: Tensor

    def __init__(
        self,
        describe: nn.Module,
        *,
        width: int,
        horizons: int,
        members: int = 8,
        hidden: int = 32,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.describe = describe
        self.dropout = nn.Dropout(dropout)
        sizes = ((width, hidden), (hidden, hidden), (hidden, horizons))
        self.layers = nn.ParameterList(
            nn.Parameter(torch.randn(members, before, after) * (2.0 / before) ** 0.5)
            for before, after in sizes
        )
        self.biases = nn.ParameterList(
            nn.Parameter(torch.zeros(members, 1, after)) for _, after in sizes
        )
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))
        # By horizon, longest first: calibrated log-odds = slope * voted log-odds + offset.
        self.register_buffer("slopes", torch.ones(horizons))
        self.register_buffer("offsets", torch.zeros(horizons))

    def standardize(self, numbers: Tensor) -> None:
        """Take centre and spread from what training rows look like [rows, width]."""
        self.centre.copy_(numbers.mean(dim=0))
        self.spread.copy_(numbers.std(dim=0).clamp(min=_SPREAD_MIN))

    def member_logits(self, numbers: Tensor) -> Tensor:
        """[members, nodes, horizons]: each member's log-odds along the chain, longest first."""
        standard = ((numbers - self.centre) / self.spread).clamp(-_STANDARD_MAX, _STANDARD_MAX)
        hidden = standard.unsqueeze(0).expand(self.layers[0].shape[0], -1, -1)
        hidden = torch.relu(torch.matmul(hidden, self.layers[0]) + self.biases[0])
        hidden = torch.relu(torch.matmul(self.dropout(hidden), self.layers[1]) + self.biases[1])
        return torch.matmul(hidden, self.layers[2]) + self.biases[2]

    def forward(self, windows: Tensor) -> Tensor:
        """Probabilities of failing within each horizon."""
        voted = self.member_logits(self.describe(windows)).mean(dim=0)
        links = torch.sigmoid(voted * self.slopes + self.offsets)
        probabilities = [links[:, 0]]
        for link in range(1, links.shape[1]):
            probabilities.append(probabilities[-1] * links[:, link])
        return torch.stack(probabilities[::-1], dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRows:
    """Descriptions [rows, width], labels by horizon shortest first [rows, horizons] (NaN: nobody
    knows), the node of each row, how many real rows it stands for, and which rows are recent."""

    numbers: Tensor
    labels: Tensor
    nodes: npt.NDArray[np.int64]
    weights: Tensor
    recent: npt.NDArray[np.bool_]


def links_of(labels: Tensor) -> Tensor:
    """Labels along the chain, longest first: NaN where the longer horizon's is not 1."""
    backward = labels.flip(1)
    given = torch.cat([torch.ones_like(backward[:, :1]), backward[:, :-1]], dim=1)
    return torch.where(given == 1.0, backward, torch.full_like(backward, torch.nan))


def fit_chain(network: ChainNetwork, rows: TrainingRows, *, seed: int, steps: int) -> None:
    """Train and calibrate the network in place; everything random comes from the seed."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    links = links_of(rows.labels)
    known = ~torch.isnan(links)
    targets = torch.where(known, links, torch.zeros_like(links))
    network.standardize(rows.numbers)
    names, node_of = np.unique(rows.nodes, return_inverse=True)
    members = network.layers[0].shape[0]
    drawn = random.poisson(1.0, size=(members, len(names))).astype(np.float32)
    row_weights = torch.from_numpy(drawn[:, node_of])
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    network.train()
    for _ in range(steps):
        batch = torch.randint(len(targets), (BATCH_ROWS,))
        logits = network.member_logits(rows.numbers[batch])
        losses = nn.functional.binary_cross_entropy_with_logits(
            logits, targets[batch].expand_as(logits), reduction="none"
        )
        weight = row_weights[:, batch, None] * known[batch] * rows.weights[batch, None]
        loss = (losses * weight).sum() / weight.sum().clamp(min=1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()
    _calibrate(network, rows, row_weights == 0.0, targets, known)


@torch.no_grad()
def _unseen_votes(network: ChainNetwork, numbers: Tensor, unseen: Tensor) -> Tensor:
    """Mean log-odds of the members that never saw a row's node: [rows, horizons]."""
    votes = []
    for first in range(0, len(numbers), 8192):
        part = slice(first, first + 8192)
        logits = network.member_logits(numbers[part])
        counted = unseen[:, part, None].float()
        votes.append((logits * counted).sum(dim=0) / counted.sum(dim=0).clamp(min=1.0))
    return torch.cat(votes)


def _calibrate(
    network: ChainNetwork, rows: TrainingRows, unseen: Tensor, targets: Tensor, known: Tensor
) -> None:
    """Slope and offset of each link, on recent rows of nodes that the voting members never saw."""
    usable = unseen.any(dim=0) & torch.from_numpy(rows.recent)
    votes = _unseen_votes(network, rows.numbers[usable], unseen[:, usable]).double()
    for link in range(targets.shape[1]):
        told = known[usable, link]
        slope, offset = _platt(
            votes[told, link], targets[usable, link][told].double(), rows.weights[usable][told]
        )
        network.slopes[link], network.offsets[link] = slope, offset


def _platt(odds: Tensor, targets: Tensor, weights: Tensor) -> tuple[float, float]:
    chosen = torch.tensor([0.0, 0.0], dtype=torch.float64, requires_grad=True)
    weights = weights.double() / weights.double().mean()
    optimizer = torch.optim.LBFGS([chosen], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        # The slope as a logarithm: it must not fall below 0.
        loss = nn.functional.binary_cross_entropy_with_logits(
            odds * chosen[0].exp() + chosen[1], targets, weight=weights
        )
        # Half a row of either kind and a weak pull to slope 1 keep rare links from running away.
        prior = chosen[0] ** 2 + chosen[1] ** 2 / 100.0
        whole = loss + prior / max(float(len(targets)), 1.0)
        whole.backward()
        return whole

    optimizer.step(closure)
    return float(chosen[0].detach().exp()), float(chosen[1].detach())
