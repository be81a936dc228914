"""What the history head reads of a node: its outages and its neighbours', as numbers.

One function makes them, for training, for replay and for the daemon: what the head learned from is
what it is asked with. `HistoryIndex` is that function for many moments over the same outages:
sorted once, then a few binary searches a node; `history_inputs` is one moment of it.

Invariants:
- *Nothing of the future.* At `now_s` only outages that have begun count; of one that has not ended
  by then the length is unknown. So an index over a whole record, asked for a moment in it, answers
  as one over the part of the record that lay before.
- *Failures only.* What an operator wished is no failure and is not counted, but its end is a
  recovery: the node was started.
- *Missing is NaN*, never zero: no failure yet, no neighbours, nobody said since when it is watched.
- The order of the outages does not matter, nor do rows of nodes that no longer exist.

Neighbours are the other nodes of the same rack; where no rack is named, of the same host. Their
failures are given per neighbour, so that a rack of four and a rack of forty read alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from las.core.history import Cause, Outage

DAY_S = 86_400

HISTORY_SCHEMA_VERSION = 1
_COUNTED_DAYS = (1, 7, 30, 90, 365)
_DECAY_DAYS = (7, 30, 180)
_NEIGHBOUR_DAYS = (1, 7, 30)
# Causes by the number that stands for them in `last_cause`; appended to, never reordered.
CAUSES = (
    Cause.UNKNOWN,
    Cause.HARDWARE,
    Cause.DISK,
    Cause.MEMORY,
    Cause.NETWORK,
    Cause.POWER,
    Cause.SOFTWARE,
    Cause.CRASH,
)
_WORN = frozenset((Cause.HARDWARE, Cause.DISK, Cause.MEMORY))


@dataclass(frozen=True, slots=True)
class HistoryFeature:
    """One number of the history head's input."""

    name: str
    unit: str
    meaning: str


# The input's last axis, in order. Part of the model contract: a change of it is a new
# `HISTORY_SCHEMA_VERSION`.
HISTORY_FEATURES: tuple[HistoryFeature, ...] = (
    HistoryFeature("watched_s", "s", "how long the node has been known to this history"),
    HistoryFeature("since_failure_s", "s", "since its last failure began"),
    HistoryFeature("since_recovery_s", "s", "since its last outage of any cause ended"),
    HistoryFeature("last_gap_s", "s", "between the beginnings of its last two failures"),
    HistoryFeature("last_length_s", "s", "how long its last failure took"),
    HistoryFeature("last_cause", "code", "cause of its last failure, its place in CAUSES"),
    *(
        HistoryFeature(f"failures_{days}d", "count", f"its failures of the last {days} d")
        for days in _COUNTED_DAYS
    ),
    HistoryFeature("worn_failures_90d", "count", "of them hardware, disk or memory, last 90 d"),
    *(
        HistoryFeature(f"decayed_{days}d", "count", f"its failures, each fading by 1/e in {days} d")
        for days in _DECAY_DAYS
    ),
    *(
        HistoryFeature(
            f"neighbour_failures_{days}d", "count", f"failures per neighbour, last {days} d"
        )
        for days in _NEIGHBOUR_DAYS
    ),
    HistoryFeature(
        "neighbour_decayed_180d", "count", "failures per neighbour, each fading by 1/e in 180 d"
    ),
)
HISTORY_NAMES: tuple[str, ...] = tuple(feature.name for feature in HISTORY_FEATURES)

Inputs = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]

# Later than any second of a history (the year 36812), so that node and second make one sort key.
_SPAN_S = 1 << 40


@dataclass(frozen=True, slots=True)
class Place:
    """A node, where it stands, and since when its outages are recorded (None: nobody knows)."""

    node: str
    host: str = ""
    rack: str = ""
    since_s: int | None = None


def history_inputs(outages: Sequence[Outage], now_s: int, places: Sequence[Place]) -> Inputs:
    """The history head's input for these nodes: float32 [nodes, features], in their order.

    Args:
        outages: Of these nodes and any others, in any order.
        now_s: The moment, seconds since 1970 as in the outages.
        places: The nodes of the fleet, each once; neighbours are looked for among them.
    """
    return HistoryIndex(outages, places).at(now_s)


class HistoryIndex:
    """`history_inputs` over the same outages and nodes, for many moments. Immutable.

    Building costs a sort of the outages; each moment some binary searches a node.
    """

    def __init__(self, outages: Sequence[Outage], places: Sequence[Place]) -> None:
        row_of = {place.node: row for row, place in enumerate(places)}
        known = [outage for outage in outages if outage.node in row_of]
        # Two of one second have an order too, so that the order they came in does not matter.
        failures = sorted(
            (outage for outage in known if outage.is_failure),
            key=lambda each: (
                row_of[each.node],
                each.begin_s,
                CAUSES.index(each.cause),
                _SPAN_S if each.end_s is None else each.end_s,
            ),
        )
        rows = np.array([row_of[each.node] for each in failures], dtype=np.int64)
        begins = np.array([each.begin_s for each in failures], dtype=np.int64)
        self._watched_since = np.array(
            [np.nan if place.since_s is None else place.since_s for place in places]
        )
        groups, sizes = _groups(places)
        self._group_of = groups
        # Neighbours of each node; NaN instead of none, so that a rate over them is missing.
        others = sizes[groups] - 1.0
        self._others = np.where((groups >= 0) & (others > 0), others, np.nan)
        self._own = _Series(rows, begins, len(places), _DECAY_DAYS)
        self._begins = begins.astype(np.float64)
        self._ends = np.array([np.nan if f.end_s is None else f.end_s for f in failures])
        self._causes = np.array([CAUSES.index(f.cause) for f in failures], dtype=np.float64)
        worn = np.array([f.cause in _WORN for f in failures], dtype=np.bool_)
        self._worn = _Series(rows[worn], begins[worn], len(places), ())
        ends = sorted((row_of[each.node], each.end_s) for each in known if each.end_s is not None)
        self._recovered_s = np.array([end for _, end in ends], dtype=np.float64)
        self._recoveries = _Series(
            np.array([row for row, _ in ends], dtype=np.int64),
            np.array([end for _, end in ends], dtype=np.int64),
            len(places),
            (),
        )
        grouped = groups[rows]
        order = np.lexsort((begins, grouped))
        order = order[grouped[order] >= 0]
        self._together = _Series(grouped[order], begins[order], len(sizes), (*_DECAY_DAYS,))

    def at(self, now_s: int) -> Inputs:
        """The input at that moment: float32 [nodes, features]."""
        own, last = self._own, self._own.last(now_s)
        before = np.where(last > own.first, last - 1, -1)
        begun = _taken(self._begins, last)
        ended = _taken(self._ends, last)
        recovered = _taken(self._recovered_s, self._recoveries.last(now_s))
        columns = [
            now_s - self._watched_since,
            now_s - begun,
            now_s - recovered,
            begun - _taken(self._begins, before),
            np.where(ended <= now_s, ended - begun, np.nan),
            _taken(self._causes, last),
            *(own.count(now_s, days) for days in _COUNTED_DAYS),
            self._worn.count(now_s, 90),
            *(own.decayed(now_s, days) for days in _DECAY_DAYS),
            *(
                self._of_neighbours(self._together.count(now_s, days), own.count(now_s, days))
                for days in _NEIGHBOUR_DAYS
            ),
            self._of_neighbours(self._together.decayed(now_s, 180), own.decayed(now_s, 180)),
        ]
        return np.stack(columns, axis=1).astype(np.float32)

    def _of_neighbours(self, together: _Floats, own: _Floats) -> _Floats:
        """What a group has without the node itself, per other node of the group."""
        rate: _Floats = np.maximum(together[self._group_of] - own, 0.0) / self._others
        return rate


def _groups(places: Sequence[Place]) -> tuple[_Ints, _Floats]:
    """Each node's group (-1: it has none), and the number of nodes by group."""
    named = [
        f"rack {place.rack}" if place.rack else f"host {place.host}" if place.host else ""
        for place in places
    ]
    numbers = {name: number for number, name in enumerate(sorted(set(named) - {""}))}
    groups = np.array([numbers.get(name, -1) for name in named], dtype=np.int64)
    sizes = np.bincount(groups[groups >= 0], minlength=len(numbers) + 1).astype(np.float64)
    return groups, sizes


def _taken(values: _Floats, places: _Ints) -> _Floats:
    """`values` at these places; NaN at place -1."""
    if not len(values):
        return np.full(len(places), np.nan)
    return np.where(places >= 0, values[places], np.nan)


class _Series:
    """Moments by owner (a node or a group), sorted by both."""

    def __init__(
        self, owners: _Ints, moments_s: _Ints, owner_count: int, decay_days: Sequence[int]
    ) -> None:
        self._keys = owners * _SPAN_S + moments_s
        self._moments = moments_s.astype(np.float64)
        self._bases = np.arange(owner_count, dtype=np.int64) * _SPAN_S
        # Where each owner's moments begin.
        self.first: _Ints = np.searchsorted(self._keys, self._bases, side="left")
        self._decayed = {days: _decayed_sums(owners, moments_s, days) for days in decay_days}

    def last(self, now_s: int) -> _Ints:
        """By owner, the place of its last moment at or before `now_s`; -1 without one."""
        after = np.searchsorted(self._keys, self._bases + now_s, side="right")
        return np.where(after > self.first, after - 1, -1)

    def count(self, now_s: int, days: int) -> _Floats:
        """By owner, its moments in the last `days`."""
        edge_s = max(now_s - days * DAY_S, -1)
        after = np.searchsorted(self._keys, self._bases + now_s, side="right")
        before = np.searchsorted(self._keys, self._bases + edge_s, side="right")
        return (after - before).astype(np.float64)

    def decayed(self, now_s: int, days: int) -> _Floats:
        """By owner, its moments so far, each weighing exp(-age / `days`)."""
        last = self.last(now_s)
        fading = np.exp(-(now_s - _taken(self._moments, last)) / (days * DAY_S))
        return np.where(last >= 0, _taken(self._decayed[days], last) * fading, 0.0)


def _decayed_sums(owners: _Ints, moments_s: _Ints, days: int) -> _Floats:
    """The decayed count of each moment's owner just after that moment."""
    sums = np.ones(len(owners))
    fading = np.exp(
        -np.diff(moments_s) / (days * DAY_S),
        where=np.diff(owners) == 0,
        out=np.zeros(max(len(owners) - 1, 0)),
    )
    for place in range(1, len(owners)):
        sums[place] += sums[place - 1] * fading[place - 1]
    return sums
