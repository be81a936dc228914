"""The incident head as a torch module: raw windows in, probabilities out, all of it exportable.

How it looks at a node. Each metric is taken on a logarithmic scale of its own (a factor is a
factor, wherever a disk's normal lies), averaged over seven spans that grow towards the past, and
compared with the mean of the node's own past (older than 16 s, or the oldest span there is). So
the network sees how far a metric has moved, for how long, whether it is still moving, and how much
it used to stray. The same, averaged over the other peers of the same machine, tells trouble that
all share from trouble of one's own. A few small networks with different starts vote.

Only metrics that are a node's own in the recordings are read (`models/features.py`).

Two halves are joined by the mean of their log-odds (`JoinedNetwork`): the networks of this module,
learnt from recorded trouble alone, and boosted trees (`models/trees.py`), learnt from made-up
trouble and from runs in rooms, too. The first is quick where commits grow slow and calls few
look-alikes, the second knows more kinds; both read the same description of the window, which is
what costs time. Of what lies more than half a minute back only every second or fourth sample is
read: a mean of a dozen is as good.

Missing values: a span without a sample takes the next older one's value, so that a gap looks like
"no change"; a peer of whom nothing is known does not count among the others.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from models.features import EXHAUSTIBLE, FEATURES, INPUTS, KEPT, SPANS, TREND_SAMPLES, WINDOW

_PAST_SPANS = 3
_PAST_SAMPLES_MIN = 5
_LOW_SAMPLES = 4
# A peer silent for longer than this says nothing about the machine any more.
_PRESENT_SAMPLES = 10
# A peer says where it runs with each sample; these are enough to know it.
_NAMED_SAMPLES = 16
_SPREAD_FLOOR = 0.3
_VALUE_MAX = 1e13
_ABSENT = 1e6
_LASTS_S_MAX = 600.0
# Of the whole a second: what grows slower than this does not grow.
_SLOPE_MIN = 1e-4
# What strays less than this does so by the rounding of float32, which differs between machines.
_SPREAD_MIN = 1e-7
_VARIANCE_MIN = 2e-5
# No model of this kind knows better than this.
PROBABILITY_MAX = 0.999


class WindowDescription(nn.Module):
    """[nodes, window, features] to [nodes, numbers]; no parameters to learn."""

    per_scale: Tensor
    kept: Tensor
    pooling: Tensor
    signs: Tensor
    offsets: Tensor

    def __init__(self) -> None:
        super().__init__()
        # The identity goes along with the metrics until the spans are pooled: to cut it off there
        # costs less than to copy all samples without it.
        scales = torch.tensor([*(scale for _, scale in INPUTS), 1.0])
        self.register_buffer("per_scale", 1.0 / scales)
        ages = WINDOW - 1 - torch.tensor(KEPT)
        pooling = torch.stack([(ages >= newest) & (ages < oldest) for newest, oldest in SPANS])
        self.register_buffer("kept", torch.tensor(KEPT))
        self.register_buffer("pooling", pooling.float())
        # What runs out, as value * sign + offset = its used share.
        signs = torch.tensor([-1.0 if is_free else 1.0 for _, is_free in EXHAUSTIBLE])
        self.register_buffer("signs", signs)
        self.register_buffer("offsets", (1.0 - signs) / 2.0)

    @property
    def width(self) -> int:
        """Numbers by node."""
        return 14 * len(INPUTS) + self._trend_count + 1

    @property
    def _trend_count(self) -> int:
        return (1 + 2 * len(TREND_SAMPLES)) * len(EXHAUSTIBLE)

    def numbers_of(self, names: Collection[str]) -> Tensor:
        """[numbers]: 1 for each that is made of these metrics alone, without lines, else 0."""
        told = torch.tensor([float(name in names) for name, _ in INPUTS])
        lines = torch.zeros(self._trend_count)
        return torch.cat([told.repeat(11), lines, told.repeat(3), torch.ones(1)])

    def forward(self, windows: Tensor) -> Tensor:
        """Describe each node beside the others of its machine."""
        raw = windows.index_select(1, self.kept)
        seen = raw == raw  # noqa: PLR0124 - not NaN, in one operation
        clean = torch.where(seen, raw, 0.0).clamp(0.0, _VALUE_MAX)
        scaled = torch.log1p(clean * self.per_scale)
        counts = torch.matmul(self.pooling, seen.to(scaled.dtype))[:, :, : len(INPUTS)]
        own, moved = self._own(scaled, seen, counts)
        newest = seen[:, -_PRESENT_SAMPLES:, : len(INPUTS)].to(raw.dtype)
        present = newest.amax(dim=2).amax(dim=1, keepdim=True)
        others, alone = _others(raw[:, -_NAMED_SAMPLES:, -1], moved, present)
        return torch.cat([own, self._trends(windows), others, alone], dim=1)

    def _trends(self, windows: Tensor) -> Tensor:
        """Of what runs out: its used share, then by length of line how long the rest lasts, fit."""
        columns = [FEATURES.index(name) for name, _ in EXHAUSTIBLE]
        newest = windows[:, -max(TREND_SAMPLES) :, :]
        raw = torch.stack([newest[:, :, column] for column in columns], dim=2)
        seen = ~torch.isnan(raw)
        used = torch.where(seen, raw, torch.zeros_like(raw)).clamp(0.0, 1.0)
        used = used * self.signs + self.offsets
        weight = seen.to(raw.dtype)
        told: list[Tensor] = []
        for samples in TREND_SAMPLES:
            count = weight[:, -samples:]
            value = used[:, -samples:] * count
            second = torch.arange(samples, dtype=raw.dtype).reshape(1, samples, 1)
            total = count.sum(dim=1).clamp(min=1.0)
            middle_s = (count * second).sum(dim=1) / total
            middle = value.sum(dim=1) / total
            away_s = (second - middle_s.unsqueeze(1)) * count
            away = (used[:, -samples:] - middle.unsqueeze(1)) * count
            spread_s = (away_s * away_s).sum(dim=1)
            spread = (away * away).sum(dim=1)
            common = (away_s * away).sum(dim=1)
            slope = common / spread_s.clamp(min=1.0)
            now = (middle + slope * (samples - 1.0 - middle_s)).clamp(0.0, 1.0)
            lasts_s = ((1.0 - now) / slope.clamp(min=_SLOPE_MIN)).clamp(max=_LASTS_S_MAX)
            fit = common * common / (spread_s * spread).clamp(min=_SPREAD_MIN)
            if not told:
                told.append(now)
            told += [torch.log1p(lasts_s / 5.0), fit]
        return torch.cat(told, dim=1)

    def _own(self, scaled: Tensor, seen: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        sums = torch.matmul(self.pooling, scaled)[:, :, : len(INPUTS)]
        levels = _filled(sums / counts.clamp(min=1.0), counts > 0.0)
        old_counts = counts[:, -_PAST_SPANS:].sum(dim=1)
        old_mean = sums[:, -_PAST_SPANS:].sum(dim=1) / old_counts.clamp(min=1.0)
        past = torch.where(old_counts >= _PAST_SAMPLES_MIN, old_mean, levels[-1])
        spread = self._spread(scaled, old_mean, old_counts)
        newest, known = (each[:, -_LOW_SAMPLES:, : len(INPUTS)] for each in (scaled, seen))
        low = torch.where(known, newest, _ABSENT).amin(dim=1)
        low = torch.where(low < _ABSENT, low, levels[0]) - past
        moves = [level - past for level in levels[:6]]
        noise = spread + _SPREAD_FLOOR
        own = torch.cat([*moves, past, spread, low, moves[0] / noise, low / noise], dim=1)
        return own, torch.cat([moves[0], low, moves[2]], dim=1)

    def _spread(self, scaled: Tensor, mean: Tensor, counts: Tensor) -> Tensor:
        old = self.pooling[-_PAST_SPANS:].sum(dim=0, keepdim=True)
        squares = torch.matmul(old, scaled * scaled)[:, 0, : len(INPUTS)]
        variance = squares / counts.clamp(min=1.0) - mean * mean
        return variance.clamp(min=_VARIANCE_MIN).sqrt()


def _filled(means: Tensor, known: Tensor) -> list[Tensor]:
    """Levels by span, newest first; an unknown one takes the next older, then the next newer."""
    count = means.shape[1]
    oldest = torch.zeros_like(means[:, 0])
    for span in range(count):
        oldest = torch.where(known[:, span], means[:, span], oldest)
    levels = [oldest]
    for span in reversed(range(count)):
        levels.append(torch.where(known[:, span], means[:, span], levels[-1]))
    return levels[:0:-1]


def _others(identities: Tensor, moved: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of `moved` over the other present nodes of the same machine, and who has none."""
    machine = torch.where(
        torch.isnan(identities), torch.full_like(identities, -1.0), identities
    ).amax(dim=1)
    # A node that never said where it runs is alone: each gets a negative number of its own.
    unnamed = -1.0 - torch.cumsum(torch.ones_like(machine), dim=0)
    machine = torch.where(machine < 0.0, unnamed, machine)
    _, group = torch.unique(machine, sorted=True, return_inverse=True)
    counted = torch.cat([moved * present, present], dim=1)
    index = group.unsqueeze(1).expand(-1, counted.shape[1])
    sums = torch.zeros_like(counted).scatter_add(0, index, counted)
    rest = sums.gather(0, index) - counted
    count = rest[:, -1:]
    return rest[:, :-1] / count.clamp(min=1.0), (count < 0.5).to(moved.dtype)


def calibrated(logits: Tensor, calibration: Tensor) -> Tensor:
    """Log-odds by beta calibration (Kull, Silva Filho, Flach 2017): a·ln p - b·ln(1 - p) + c.

    Two slopes, since the two sides err differently here: the first seconds of a fault look healthy
    whatever one does, while what looks sick hardly ever is not.
    """
    sick = calibration[0] * nn.functional.softplus(-logits)
    healthy = calibration[1] * nn.functional.softplus(logits)
    return calibration[2] - sick + healthy


class IncidentNetwork(nn.Module):
    """Log-odds of stopping within 10 min, by what `WindowDescription` tells of each node.

    `standardize` and `calibration` are measured on data rather than learned by descent. `reads`
    has a 0 for each number that the network must not look at.
    """

    centre: Tensor
    spread: Tensor
    reads: Tensor
    calibration: Tensor

    def __init__(
        self,
        reads: Tensor | None = None,
        *,
        members: int = 5,
        hidden: int = 40,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        width = WindowDescription().width
        self.dropout = nn.Dropout(dropout)
        # All members at once: [members, inputs, hidden] and [members, hidden, 1].
        self.first = nn.Parameter(torch.randn(members, width, hidden) / width**0.5)
        self.first_bias = nn.Parameter(torch.zeros(members, 1, hidden))
        self.second = nn.Parameter(torch.randn(members, hidden, 1) / hidden**0.5)
        self.second_bias = nn.Parameter(torch.zeros(members, 1, 1))
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))
        self.register_buffer("reads", torch.ones(width) if reads is None else reads)
        self.register_buffer("calibration", torch.tensor([1.0, 1.0, 0.0]))

    def standardize(self, descriptions: Tensor) -> None:
        """Take centre and spread from descriptions of training windows [rows, numbers]."""
        self.centre.copy_(descriptions.mean(dim=0))
        self.spread.copy_(descriptions.std(dim=0).clamp(min=0.1))

    def member_logits(self, descriptions: Tensor) -> Tensor:
        """[members, nodes]: each member's log-odds, before calibration."""
        standard = ((descriptions - self.centre) / self.spread).clamp(-6.0, 6.0) * self.reads
        copies = standard.unsqueeze(0).expand(self.first.shape[0], -1, -1)
        hidden = torch.relu(torch.matmul(self.dropout(copies), self.first) + self.first_bias)
        return (torch.matmul(hidden, self.second) + self.second_bias).squeeze(2)

    def forward(self, descriptions: Tensor) -> Tensor:
        """[nodes]: the members' mean, calibrated."""
        return calibrated(self.member_logits(descriptions).mean(dim=0), self.calibration)


class FlatNetwork(nn.Module):
    """A trained `IncidentNetwork` as one product each way: the same answers in less time.

    Its members stand side by side, and what it does not look at weighs nothing: to pick out what it
    looks at would cost more.
    """

    centre: Tensor
    per_spread: Tensor
    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor
    calibration: Tensor

    def __init__(self, network: IncidentNetwork) -> None:
        super().__init__()
        members, inputs, hidden = network.first.shape
        read = network.first.detach() * network.reads.reshape(1, inputs, 1)
        first = read.transpose(0, 1).reshape(inputs, members * hidden)
        second = network.second.detach().reshape(members * hidden, 1) / members
        self.register_buffer("centre", network.centre.clone())
        self.register_buffer("per_spread", 1.0 / network.spread)
        self.register_buffer("first", first.contiguous())
        self.register_buffer("first_bias", network.first_bias.detach().reshape(-1))
        self.register_buffer("second", second)
        self.register_buffer("second_bias", network.second_bias.detach().mean())
        self.register_buffer("calibration", network.calibration.clone())

    def forward(self, descriptions: Tensor) -> Tensor:
        """[nodes]: the members' mean, calibrated."""
        standard = ((descriptions - self.centre) * self.per_spread).clamp(-6.0, 6.0)
        hidden = torch.relu(torch.addmm(self.first_bias, standard, self.first))
        odds = torch.matmul(hidden, self.second).squeeze(1) + self.second_bias
        return calibrated(odds, self.calibration)


class JoinedNetwork(nn.Module):
    """Probabilities of stopping within 10 min and 1 h: [nodes, 2], the second never lower."""

    later: Tensor

    def __init__(self, halves: Sequence[nn.Module]) -> None:
        """Each half answers descriptions [nodes, numbers] with calibrated log-odds [nodes]."""
        super().__init__()
        self.describe = WindowDescription()
        self.halves = nn.ModuleList(
            FlatNetwork(half) if isinstance(half, IncidentNetwork) else half for half in halves
        )
        # Probability of stopping within the hour for a node that survives the ten minutes.
        self.register_buffer("later", torch.zeros(1))

    def forward(self, windows: Tensor) -> Tensor:
        """Raw windows [nodes, window, features] to probabilities [nodes, 2]."""
        described = self.describe(windows)
        odds = torch.stack([half(described) for half in self.halves]).mean(dim=0)
        soon = torch.sigmoid(odds).clamp(max=PROBABILITY_MAX)
        hour = soon + (1.0 - soon) * self.later
        return torch.stack([soon, hour], dim=1)
