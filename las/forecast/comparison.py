"""A model in shadow beside the one that answers: how far apart they are, and which was right.

Every round tells by how much their probabilities of one horizon differ and which of them reached
the line. A few times within a horizon a round is kept until its end is known: a forecast of a node
that failed came true, one of a node that was up all along did not; the mean squared errors of both
(Brier's score) are over the same forecasts. What was drained, was stopped by an operator, or was
protected and did not fail is unknown and counts for neither.

Bounds: `KEPT_MAX` rounds of one fleet. Time is passed in; nothing here reads a clock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# limit: rounds that wait for their end.
KEPT_MAX = 10
# From this probability on the policy's line is reached, unless it was configured otherwise.
LINE = 0.8

Probabilities = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was seen; see the module. Errors are NaN where nothing has ended."""

    horizon_s: int
    rounds: int
    forecasts: int
    difference_mean: float
    difference_max: float
    alarms: int
    alarms_shadow: int
    scored: int
    came_true: int
    brier: float
    brier_shadow: float


@dataclass(slots=True)
class _Kept:
    at_s: int
    rows: dict[str, int]
    live: Probabilities
    shadow: Probabilities


class Comparison:
    """Used by one thread."""

    def __init__(self, horizon_s: int) -> None:
        self._horizon_s = horizon_s
        self._kept: deque[_Kept] = deque()
        self._protected: dict[str, int] = {}
        self._crying: dict[bool, frozenset[str]] = {False: frozenset(), True: frozenset()}
        self._rounds = self._forecasts = self._scored = self._came_true = 0
        self._difference = self._difference_max = 0.0
        self._errors = {False: 0.0, True: 0.0}
        self._alarms = {False: 0, True: 0}

    @property
    def waiting(self) -> frozenset[str]:
        """Nodes whose fate is waited for."""
        return frozenset(name for kept in self._kept for name in kept.rows)

    def add(
        self, now_s: int, nodes: Sequence[str], live: Probabilities, shadow: Probabilities
    ) -> None:
        """One round: probabilities [nodes] of both, of nodes that both know."""
        if not nodes:
            return
        apart = np.abs(live - shadow)
        self._rounds += 1
        self._forecasts += len(nodes)
        self._difference += float(apart.sum())
        self._difference_max = max(self._difference_max, float(apart.max()))
        for is_shadow, told in ((False, live), (True, shadow)):
            crying = frozenset(nodes[row] for row in np.flatnonzero(told >= LINE).tolist())
            self._alarms[is_shadow] += len(crying - self._crying[is_shadow])
            self._crying[is_shadow] = crying
        if not self._kept or now_s - self._kept[-1].at_s >= self._horizon_s / KEPT_MAX:
            rows = {name: row for row, name in enumerate(nodes)}
            self._kept.append(_Kept(now_s, rows, live.copy(), shadow.copy()))
        while len(self._kept) > KEPT_MAX or now_s - self._kept[0].at_s > self._horizon_s:
            self._end(self._kept.popleft())
        self._protected = {
            name: until_s for name, until_s in self._protected.items() if until_s >= now_s
        }

    def protected(self, now_s: int, nodes: Collection[str]) -> None:
        """These are kept out of harm's way: should they not fail, nobody knows why."""
        for name in nodes:
            self._protected[name] = now_s + self._horizon_s

    def ended(self, node: str, *, failed: bool | None) -> None:
        """The node failed, or is gone for a reason that tells nothing (None)."""
        for kept in self._kept:
            row = kept.rows.pop(node, None)
            if row is not None and failed is not None:
                self._score(kept, np.array([row]), float(failed))

    def figures(self) -> Figures:
        """All so far."""
        scored = self._scored
        return Figures(
            horizon_s=self._horizon_s,
            rounds=self._rounds,
            forecasts=self._forecasts,
            difference_mean=self._difference / self._forecasts if self._forecasts else 0.0,
            difference_max=self._difference_max,
            alarms=self._alarms[False],
            alarms_shadow=self._alarms[True],
            scored=scored,
            came_true=self._came_true,
            brier=self._errors[False] / scored if scored else math.nan,
            brier_shadow=self._errors[True] / scored if scored else math.nan,
        )

    def _end(self, kept: _Kept) -> None:
        rows = [row for name, row in kept.rows.items() if name not in self._protected]
        self._score(kept, np.array(rows, dtype=np.int64), 0.0)

    def _score(self, kept: _Kept, rows: npt.NDArray[np.int64], truth: float) -> None:
        self._scored += len(rows)
        self._came_true += int(truth) * len(rows)
        self._errors[False] += float(((kept.live[rows] - truth) ** 2).sum())
        self._errors[True] += float(((kept.shadow[rows] - truth) ** 2).sum())
