"""Raw windows to numbers that the hardware and the history head can read; nothing to learn here.

All of it is exported with the head: missing values, clipping and scales are inside the graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class DiskDescription(nn.Module):
    """Windows of SMART counters to numbers: levels, growth over several spans, what is missing."""

    SPANS = (1, 3, 5, 7, 8, 10, 12)  # rows before the newest: 1, 3, 7, 14, 21, 45, 90 days

    def __init__(self, counters: int) -> None:
        super().__init__()
        self.counters = counters

    @property
    def width(self) -> int:
        """Numbers by disk."""
        return self.counters * (3 + len(self.SPANS)) + 2 + 2

    def forward(self, windows: Tensor) -> Tensor:
        """Describe each disk."""
        seen = ~torch.isnan(windows)
        clean = torch.where(seen, windows, torch.zeros_like(windows)).clamp(0.0, 65535.0)
        now, now_seen = clean[:, -1, : self.counters], seen[:, -1, : self.counters]
        parts = [torch.log1p(now), (now > 0.0).float(), now_seen.float()]
        for span in self.SPANS:
            then = clean[:, -1 - span, : self.counters]
            both = seen[:, -1 - span, : self.counters] & now_seen
            grown = torch.where(both, now - then, torch.zeros_like(now)).clamp(min=0.0)
            parts.append(torch.log1p(grown))
        age = torch.log1p(clean[:, -1, self.counters : self.counters + 1] / 1000.0)
        size = clean[:, -1, self.counters + 1 : self.counters + 2]
        old = torch.stack([seen[:, -9, 0], seen[:, 0, 0]], dim=1).float()
        return torch.cat([*parts, age, size, old], dim=1)


class HistoryDescription(nn.Module):
    """A node's history to numbers: times and counts on logarithmic scales, causes one by one."""

    def __init__(self, names: Sequence[str], causes: int) -> None:
        super().__init__()
        self.causes = causes
        self.cause = names.index("last_cause")
        self.times = [n for n, name in enumerate(names) if name.endswith("_s")]
        self.counts = [
            n for n, name in enumerate(names) if not name.endswith("_s") and n != self.cause
        ]
        # A neighbour's failure counts by the share of neighbours it happened to.
        scales = [100.0 if names[n].startswith("neighbour") else 3.0 for n in self.counts]
        self.register_buffer("scales", torch.tensor(scales))
        self.life = names.index("watched_s")
        self.faded = [names.index(f"decayed_{days}d") for days in (30, 180)]

    @property
    def width(self) -> int:
        """Numbers by node."""
        return 2 * len(self.times) + 2 * len(self.counts) + self.causes + len(self.faded)

    def forward(self, windows: Tensor) -> Tensor:
        """Describe each node."""
        row = windows[:, -1]
        seen = ~torch.isnan(row)
        clean = torch.where(seen, row, torch.zeros_like(row)).clamp(0.0, 1e10)
        times = torch.log1p(clean[:, self.times] / 3600.0)
        counts = torch.log1p(clean[:, self.counts] * self.scales)
        parts = [times, seen[:, self.times].float(), counts, seen[:, self.counts].float()]
        code = torch.where(seen[:, self.cause], row[:, self.cause], torch.full_like(row[:, 0], -1))
        parts.append(torch.stack([(code == c).float() for c in range(self.causes)], dim=1))
        # Failures per day of the time that could have held them, half a one given in advance.
        life_days = (
            torch.where(seen[:, self.life], clean[:, self.life], torch.full_like(row[:, 0], 3.2e7))
            / 86400.0
        )
        for column, days in zip(self.faded, (30.0, 180.0), strict=True):
            held = days * (1.0 - torch.exp(-life_days / days)) + 0.3 * days
            rate = (clean[:, column] + 0.3) / held
            parts.append(torch.log(rate).unsqueeze(1))
        return torch.cat(parts, dim=1)
