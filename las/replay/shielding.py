"""Which failures find their node mirrored, when so many nodes may be at a time.

The judgement is the daemon's (`las.core.judgement`), its budget a share of the nodes in service.
A node that comes to be at risk is copied, its bytes at the given rate, and is *shielded* from then
on; a failure before that counts as not shielded, as does one of a node that was not at risk. A node
that is down is not judged; when it is back it is copied anew. Only failures of nodes that were up
count.

Nothing of the map is asked: this is the question of docs/anticipation.md for a forecast alone. What
the same forecast saves with the planner is in `las.replay.fleet`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from las.core.judgement import COST_LINE_MIN, Judge, Outlook, Rules, Stake
from las.replay.histories import History
from las.replay.predictors import Predictor
from peerd.core.ids import NodeName

Progress = Callable[[float], None]


def _silent(_: float) -> None:
    return


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirroring:
    """How many nodes may be mirrored at a time, and how long copying one takes."""

    share: float
    bytes_per_node: int = 10**12
    copy_bytes_per_s: float = 100e6
    step_s: int = 21_600
    replace_factor: float = 1.0

    @property
    def copy_s(self) -> float:
        """Seconds until a node is mirrored."""
        return self.bytes_per_node / self.copy_bytes_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Shielding:
    """What became of the failures: `rows` [failures] of nodes, and whether each was shielded."""

    rows: npt.NDArray[np.int64]
    shielded: npt.NDArray[np.bool_]
    copied_bytes: int

    @property
    def share(self) -> float:
        """Share of the failures that were shielded."""
        return float(self.shielded.mean()) if len(self.shielded) else float("nan")


def shield(
    history: History,
    predictor: Predictor,
    nodes: npt.NDArray[np.bool_],
    mirroring: Mirroring,
    *,
    begin_s: int,
    end_s: int,
    progress: Progress = _silent,
) -> Shielding:
    """Mirror the riskiest of `nodes` [nodes] from `begin_s` to `end_s` of a history."""
    failures = _Failures(history, nodes)
    rules = Rules(
        consecutive=1,
        off_after_ms=0,
        at_risk_share_max=mirroring.share,
        replace_factor=mirroring.replace_factor,
        exposure_cost=1.0 / COST_LINE_MIN,
        copy_bytes_per_s=1 << 60,
        shadows_max=1_000_000,
        breaker_share=1.0,
        breaker_window_ms=0,
    )
    judge = Judge(rules)
    stake = Stake(led=1, voting=1, stored_bytes=mirroring.bytes_per_node)
    names = [NodeName(place.node) for place in history.places]
    row_of = {name: row for row, name in enumerate(names)}
    ready_s: dict[NodeName, float] = {}
    found: list[tuple[int, bool]] = []
    copies = 0
    for now_s in range(begin_s, end_s, mirroring.step_s):
        in_service = nodes & (history.since_s <= now_s) & (history.until_s > now_s)
        up = in_service & (failures.down_until_s <= now_s)
        for name in [name for name in ready_s if not up[row_of[name]]]:
            del ready_s[name]
        served = int(in_service.sum())
        enough = 2 * max(1, int(mirroring.share * served))
        outlooks = _outlooks(predictor, now_s, up, names, ready_s, enough=enough)
        verdict = judge.judge(
            outlooks,
            ready_s,
            now_s * 1_000,
            stakes=dict.fromkeys(outlooks, stake),
            up=served,
        )
        for name in verdict.end:
            ready_s.pop(name, None)
        for name in verdict.begin:
            ready_s[name] = now_s + mirroring.copy_s
            copies += 1
        for row, at_s in failures.until(min(now_s + mirroring.step_s, end_s)):
            if now_s <= at_s:
                found.append((row, ready_s.get(names[row], np.inf) <= at_s))
        progress((now_s - begin_s) / max(1, end_s - begin_s))
    return Shielding(
        rows=np.array([row for row, _ in found], dtype=np.int64),
        shielded=np.array([held for _, held in found], dtype=np.bool_),
        copied_bytes=copies * mirroring.bytes_per_node,
    )


def _outlooks(
    predictor: Predictor,
    now_s: int,
    up: npt.NDArray[np.bool_],
    names: list[NodeName],
    mirrored: Mapping[NodeName, float],
    *,
    enough: int,
) -> dict[NodeName, Outlook]:
    """Outlooks of the mirrored nodes and of the riskiest: no other has a chance of a place.

    `enough` is twice the budget: the mirrored may all be among the riskiest.
    """
    probabilities = np.where(up, predictor.at(now_s), -1.0)
    riskiest = np.argsort(-probabilities, kind="stable")[:enough]
    rows = {row for row in riskiest.tolist() if probabilities[row] > 0.0}
    rows |= {row for row, name in enumerate(names) if name in mirrored}
    return {
        names[row]: Outlook(horizons=((predictor.horizon_s, max(0.0, float(probabilities[row]))),))
        for row in sorted(rows)
    }


class _Failures:
    """The failures of nodes that were up, in order, and until when each node is down."""

    def __init__(self, history: History, nodes: npt.NDArray[np.bool_]) -> None:
        row_of = {place.node: row for row, place in enumerate(history.places)}
        self._history, self._nodes = history, nodes
        self._events = sorted(
            (each.begin_s, each.end_s or each.begin_s, row_of[each.node])
            for each in history.outages
            if each.is_failure and each.node in row_of
        )
        self._at = 0
        self.down_until_s = np.zeros(len(history.places))

    def until(self, until_s: int) -> Iterator[tuple[int, int]]:
        """(node, second) of each failure that begins before `until_s` and was not yet given."""
        history = self._history
        while self._at < len(self._events) and self._events[self._at][0] < until_s:
            begin_s, end_s, row = self._events[self._at]
            self._at += 1
            up = self.down_until_s[row] <= begin_s
            self.down_until_s[row] = max(self.down_until_s[row], end_s)
            served = history.since_s[row] <= begin_s < history.until_s[row]
            if up and served and self._nodes[row]:
                yield row, begin_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """One share of failures over another, with a paired 95 % interval over nodes."""

    value: float
    low: float
    high: float


def ratio(first: Shielding, second: Shielding, *, draws: int = 2_000, seed: int = 1) -> Ratio:
    """Shielded by `first` over shielded by `second`: the same failures, nodes drawn together."""
    nodes, place = np.unique(first.rows, return_inverse=True)
    ours = np.bincount(place, weights=first.shielded, minlength=len(nodes))
    theirs = np.bincount(place, weights=second.shielded, minlength=len(nodes))
    chance = np.random.default_rng(seed)
    weights = chance.multinomial(len(nodes), np.full(len(nodes), 1 / len(nodes)), size=draws)
    below = np.maximum(weights @ theirs, 0.5)
    drawn = (weights @ ours) / below
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Ratio(value=float(ours.sum() / max(theirs.sum(), 0.5)), low=float(low), high=float(high))
