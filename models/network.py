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

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from models.features import EXHAUSTIBLE, FEATURES, INPUTS, KEPT, SPANS, TREND_SAMPLES, WINDOW

_PAST_SPANS = 3
_PAST_SAMPLES_MIN = 5
_LOW_SAMPLES = 4
# A peer silent for longer than these spans, ten seconds, says nothing about the machine any more.
_PRESENT_SPANS = 3
# A peer says where it runs with each sample; these are enough to know it.
_NAMED_SAMPLES = 16
# They are the last of each sample's row.
_NAMES = slice(-(_NAMED_SAMPLES - 1) * len(FEATURES) - 1, None, len(FEATURES))
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


class _Positive(torch.autograd.Function):
    """What is above 0, and 0 for all else, NaN too; by its definition one operation of a graph."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:  # type: ignore[override]
        del ctx
        return torch.where(values > 0.0, values, 0.0)

    @staticmethod
    def symbolic(graph, values):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        return graph.op("ThresholdedRelu", values, alpha_f=0.0).setType(values.type())


class _Gathered(torch.autograd.Function):
    """Sums of `rows` [rows, numbers] by `group` [rows], whole rows at a time, put into `zeros`.

    Number by number, which is what the exporter makes of `scatter_add`, takes three times as long;
    of `index_put` it makes an assignment, where rows of one group do not add up.
    """

    @staticmethod
    def forward(ctx: object, zeros: Tensor, group: Tensor, rows: Tensor) -> Tensor:  # type: ignore[override]
        del ctx
        return zeros.index_add(0, group, rows)

    @staticmethod
    def symbolic(graph, zeros, group, rows):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        axis = graph.op("Constant", value_t=torch.tensor([1]))
        places = graph.op("Unsqueeze", group, axis)
        told = graph.op("ScatterND", zeros, places, rows, reduction_s="add")
        return told.setType(rows.type())


class WindowDescription(nn.Module):
    """[nodes, window, features] to [nodes, numbers]; no parameters to learn.

    Written for the graph's speed. Samples stay in one row a node, in which a metric's scale stands
    as often as it is read: to repeat a short row of scales costs four times as much. What is
    multiplied with constants is one product, not a sum for each of its columns.
    """

    per_scale: Tensor
    kept: Tensor
    pooling: Tensor

    def __init__(self) -> None:
        super().__init__()
        # The identity goes along with the metrics until the spans are pooled: to cut it off there
        # costs less than to copy all samples without it.
        scales = torch.tensor([*(scale for _, scale in INPUTS), 1.0])
        self.register_buffer("per_scale", (1.0 / scales).repeat(len(KEPT)))
        ages = WINDOW - 1 - torch.tensor(KEPT)
        spans = [(ages >= newest) & (ages < oldest) for newest, oldest in SPANS]
        # One span more: all of the past.
        past = torch.stack(spans[-_PAST_SPANS:]).any(dim=0)
        self.register_buffer("kept", torch.tensor(KEPT))
        self.register_buffer("pooling", torch.stack([*spans, past]).float())
        self.trends = TrendDescription()

    @property
    def width(self) -> int:
        """Numbers by node."""
        return 14 * len(INPUTS) + self.trends.width + 1

    def numbers_of(self, names: Collection[str]) -> Tensor:
        """[numbers]: 1 for each that is made of these metrics alone, without lines, else 0."""
        told = torch.tensor([float(name in names) for name, _ in INPUTS])
        lines = torch.zeros(self.trends.width)
        return torch.cat([told.repeat(11), lines, told.repeat(3), torch.ones(1)])

    def forward(self, windows: Tensor) -> Tensor:
        """Describe each node beside the others of its machine."""
        raw = windows.index_select(1, self.kept).flatten(1)
        seen = (raw == raw).to(raw.dtype)  # noqa: PLR0124 - not NaN, in one operation
        clean = _Positive.apply(raw).clamp(max=_VALUE_MAX)
        # Not log1p, which the graph would write with one operation more.
        scaled = torch.log(clean * self.per_scale + 1.0)
        seen, scaled = (each.reshape(-1, len(KEPT), len(FEATURES)) for each in (seen, scaled))
        counts = torch.matmul(self.pooling, seen)[:, :, : len(INPUTS)]
        own, moved = self._own(scaled, seen, counts)
        present = counts[:, :_PRESENT_SPANS].amax(dim=(1, 2)).clamp(max=1.0).unsqueeze(1)
        others, alone = _others(raw[:, _NAMES], moved, present)
        return torch.cat([own, self.trends(raw), others, alone], dim=1)

    def _own(self, scaled: Tensor, seen: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        sums = torch.matmul(self.pooling, scaled)[:, :, : len(INPUTS)]
        means = (sums / counts.clamp(min=1.0)).unbind(dim=1)
        known = (counts > 0.0).unbind(dim=1)
        levels = _filled(means[:-1], known[:-1])
        old_counts, old_mean = counts[:, -1], means[-1]
        past = torch.where(old_counts >= _PAST_SAMPLES_MIN, old_mean, levels[-1])
        squares = torch.matmul(self.pooling[-1:], scaled * scaled)[:, 0, : len(INPUTS)]
        variance = squares / old_counts.clamp(min=1.0) - old_mean * old_mean
        spread = variance.clamp(min=_VARIANCE_MIN).sqrt()
        newest, is_known = (each[:, -_LOW_SAMPLES:, : len(INPUTS)] for each in (scaled, seen))
        low = (newest + (1.0 - is_known) * _ABSENT).amin(dim=1)
        low = torch.where(low < _ABSENT, low, levels[0]) - past
        moves = [level - past for level in levels[:6]]
        noise = spread + _SPREAD_FLOOR
        own = torch.cat([*moves, past, spread, low, moves[0] / noise, low / noise], dim=1)
        return own, torch.cat([moves[0], low, moves[2]], dim=1)


class TrendDescription(nn.Module):
    """Of what runs out: its used share, then by length of line how long the rest lasts, fit.

    All lines of a thing stand side by side in one row of samples; products with `lines` (1 where a
    sample belongs to a line) sum over each line, and bring back to its samples what is one number.
    """

    chosen: Tensor
    signs: Tensor
    offsets: Tensor
    seconds: Tensor
    lines: Tensor
    ends: Tensor

    def __init__(self) -> None:
        super().__init__()
        columns = [FEATURES.index(name) for name, _ in EXHAUSTIBLE]
        samples = [range(len(KEPT) - count, len(KEPT)) for count in TREND_SAMPLES]
        places = [
            [at * len(FEATURES) + column for each in samples for at in each] for column in columns
        ]
        self.register_buffer("chosen", torch.tensor(places).flatten())
        # What runs out, as value * sign + offset = its used share.
        signs = torch.tensor([-1.0 if is_free else 1.0 for _, is_free in EXHAUSTIBLE])
        signs = signs.repeat_interleave(sum(TREND_SAMPLES))
        self.register_buffer("signs", signs)
        self.register_buffer("offsets", (1.0 - signs) / 2.0)
        seconds = torch.cat([torch.arange(count) for count in TREND_SAMPLES]).float()
        self.register_buffer("seconds", seconds)
        ones = [torch.ones(count, 1) for count in TREND_SAMPLES]
        self.register_buffer("lines", torch.block_diag(*ones))
        self.register_buffer("ends", torch.tensor(TREND_SAMPLES).float() - 1.0)

    @property
    def width(self) -> int:
        """Numbers by node."""
        return (1 + 2 * len(TREND_SAMPLES)) * len(EXHAUSTIBLE)

    def forward(self, raw: Tensor) -> Tensor:
        """Samples that are read, [nodes, kept * features], to [nodes, numbers]."""
        samples = raw.index_select(1, self.chosen)
        count = (samples == samples).to(raw.dtype)  # noqa: PLR0124 - not NaN
        used = _Positive.apply(samples).clamp(max=1.0) * self.signs + self.offsets
        # [nodes * things, samples of all lines] and [nodes * things, lines].
        count, used = (each.reshape(-1, len(self.seconds)) for each in (count, used))
        total = torch.matmul(count, self.lines).clamp(min=1.0)
        middle_s = torch.matmul(count * self.seconds, self.lines) / total
        middle = torch.matmul(used * count, self.lines) / total
        away_s = (self.seconds - torch.matmul(middle_s, self.lines.T)) * count
        away = (used - torch.matmul(middle, self.lines.T)) * count
        spread_s = torch.matmul(away_s * away_s, self.lines)
        spread = torch.matmul(away * away, self.lines)
        common = torch.matmul(away_s * away, self.lines)
        slope = common / spread_s.clamp(min=1.0)
        now = (middle + slope * (self.ends - middle_s)).clamp(0.0, 1.0)
        lasts_s = ((1.0 - now) / slope.clamp(min=_SLOPE_MIN)).clamp(max=_LASTS_S_MAX)
        fit = common * common / (spread_s * spread).clamp(min=_SPREAD_MIN)
        told = torch.stack([torch.log1p(lasts_s / 5.0), fit], dim=2)
        things = len(EXHAUSTIBLE)
        by_line = told.reshape(-1, things, 2 * len(TREND_SAMPLES)).transpose(1, 2).flatten(1)
        return torch.cat([now[:, 0].reshape(-1, things), by_line], dim=1)


def _filled(means: Sequence[Tensor], known: Sequence[Tensor]) -> list[Tensor]:
    """Levels by span, newest first; an unknown one takes the next older, then the next newer."""
    level = torch.zeros_like(means[0])
    for is_known, mean in zip(known, means, strict=True):
        level = torch.where(is_known, mean, level)
    levels = []
    for is_known, mean in zip(reversed(known), reversed(means), strict=True):
        level = torch.where(is_known, mean, level)
        levels.append(level)
    return levels[::-1]


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
    sums = _Gathered.apply(torch.zeros_like(counted), group, counted)
    rest = sums.index_select(0, group) - counted
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

    NAMES = (
        "centre",
        "per_spread",
        "first",
        "first_bias",
        "second",
        "second_bias",
        "calibration",
    )

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """`tensors`: one for each of `NAMES`."""
        super().__init__()
        for name in self.NAMES:
            self.register_buffer(name, tensors[name])

    @classmethod
    def of(cls, network: IncidentNetwork) -> FlatNetwork:
        """The same network, flat."""
        members, inputs, hidden = network.first.shape
        read = network.first.detach() * network.reads.reshape(1, inputs, 1)
        first = read.transpose(0, 1).reshape(inputs, members * hidden)
        return cls(
            {
                "centre": network.centre.clone(),
                "per_spread": 1.0 / network.spread,
                "first": first.contiguous(),
                "first_bias": network.first_bias.detach().reshape(-1),
                "second": network.second.detach().reshape(members * hidden, 1) / members,
                "second_bias": network.second_bias.detach().mean(),
                "calibration": network.calibration.clone(),
            }
        )

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
            FlatNetwork.of(half) if isinstance(half, IncidentNetwork) else half for half in halves
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
