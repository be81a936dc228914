"""The hardware and the history head: loaded from their files, asked once for the whole fleet.

Each reads a table of its own (`las/forecast/hardware_inputs.py`, `history_inputs.py`) and gives
probabilities for the horizons of `HEAD_HORIZONS_S`. Neither decides anything: see `join.py`.

Invariants:
- A file is refused (`ModelRefused`) unless it is for this head with exactly this table.
- A node without input gets the head's base rates, and is marked as not known.
- Reasons cost at most one run of `REASON_GROUPS_MAX` rows a node.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from las.forecast.answer import REASONS_MAX, Reason
from las.forecast.contract import (
    HARDWARE,
    HEAD_HORIZONS_S,
    HISTORY,
    ModelContract,
    ModelRefused,
)
from las.forecast.graph import Graph, read_bounded
from las.forecast.hardware_inputs import (
    COUNTER_COUNT,
    DAYS_BEFORE,
    HARDWARE_FEATURES,
    HARDWARE_NAMES,
    HARDWARE_SCHEMA_VERSION,
    PRESENT,
)
from las.forecast.history_inputs import DAY_S, HISTORY_NAMES, HISTORY_SCHEMA_VERSION

SHIPPED = Path(__file__).parent / "shipped"

# limit: groups of inputs that a head's reasons are told apart by.
REASON_GROUPS_MAX = 16
# The horizon whose log-odds reasons explain: a week.
_REASON_HORIZON_S = 604_800
_WEIGHT_MIN = 0.05

Inputs = npt.NDArray[np.float32]
Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Inputs that are judged together: their columns, what they would be if nothing had been, and
    how they read in words."""

    name: str
    columns: tuple[int, ...]
    calm: float
    words: Callable[[Inputs], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadTable:
    """What a head reads: [window, names]; `present` is the column that a known node has."""

    head: str
    names: tuple[str, ...]
    version: int
    window: int
    present: int
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadForecast:
    """Probabilities [nodes, horizons of the head], and which nodes had input."""

    model_id: str
    horizons_s: tuple[int, ...]
    probabilities: Probabilities
    known: npt.NDArray[np.bool_]


class Head:
    """A loaded head. Made by `load`; immutable; used from one thread at a time."""

    def __init__(self, graph: Graph, table: HeadTable) -> None:
        self._graph = graph
        self._table = table
        self.contract = graph.contract

    @classmethod
    def load(cls, path: Path, table: HeadTable) -> Head:
        """Read, check and try a head's file. Raises `ModelRefused`; `OSError` if unreadable."""
        try:
            return cls.from_bytes(read_bounded(path), table)
        except ModelRefused as error:
            raise ModelRefused(f"{path}: {error}") from error

    @classmethod
    def from_bytes(cls, content: bytes, table: HeadTable) -> Head:
        """The same from a file's bytes. Raises `ModelRefused`."""

        def check(contract: ModelContract) -> None:
            contract.check_table(table.head, table.names, table.version)
            if contract.window != table.window:
                raise ModelRefused(f"window of {contract.window}, wanted {table.window}")

        return cls(Graph(content, check), table)

    @property
    def model_id(self) -> str:
        """The id in the head's contract."""
        return self.contract.model_id

    def predict(self, inputs: Inputs) -> HeadForecast:
        """Judge a fleet: float32 [nodes, window, features], raw, NaN = missing.

        Raises `ModelRefused` when the graph answers with something that is no probability, and
        `ValueError` for another shape.
        """
        if inputs.shape[1:] != (self._table.window, len(self._table.names)):
            raise ValueError(f"{self._table.head} inputs have shape {inputs.shape}")
        known = ~np.isnan(inputs[:, -1, self._table.present])
        answer = np.empty((len(inputs), len(self.contract.horizons_s)), dtype=np.float32)
        answer[:] = self.contract.base_rates
        if known.any():
            answer[known] = self._graph.run(np.ascontiguousarray(inputs[known]))
        return HeadForecast(
            model_id=self.model_id,
            horizons_s=self.contract.horizons_s,
            probabilities=answer,
            known=known,
        )

    def reasons(self, node_input: Inputs, *, count: int = 3) -> tuple[Reason, ...]:
        """Why the weekly probability of a node [window, features] is what it is, strongest first.

        A group of inputs weighs what its own calm would take from the log-odds.
        """
        groups = self._table.groups
        variants = np.repeat(node_input[None], len(groups) + 1, axis=0)
        for row, group in enumerate(groups, start=1):
            for column in group.columns:
                # What is missing stays missing: its absence is no event.
                seen = ~np.isnan(variants[row, :, column])
                variants[row, seen, column] = group.calm
        horizon = self.contract.horizons_s.index(_REASON_HORIZON_S)
        chosen = np.clip(self._graph.run(variants)[:, horizon].astype(np.float64), 1e-9, 1 - 1e-9)
        odds = np.log(chosen / (1.0 - chosen))
        weights = np.maximum(odds[0] - odds[1:], 0.0)
        total = float(weights.sum())
        if total <= 0.0:
            return ()
        strongest = np.argsort(-weights, kind="stable")[: min(count, REASONS_MAX)]
        return tuple(
            Reason(
                metric=groups[place].name,
                text=groups[place].words(node_input),
                weight=float(weights[place]) / total,
            )
            for place in strongest.tolist()
            if weights[place] / total >= _WEIGHT_MIN
        )


# ---------------------------------------------------------------------------------- hardware
def _grown(column: int) -> Callable[[Inputs], str]:
    meaning = HARDWARE_FEATURES[column].meaning

    def words(window: Inputs) -> str:
        now, week_ago = window[-1, column], window[DAYS_BEFORE.index(7), column]
        text = f"{meaning} {now:.0f}"
        return f"{text} (+{now - week_ago:.0f} in 7 d)" if now > week_ago else text

    return words


HARDWARE_TABLE = HeadTable(
    head=HARDWARE,
    names=HARDWARE_NAMES,
    version=HARDWARE_SCHEMA_VERSION,
    window=len(DAYS_BEFORE),
    present=PRESENT,
    groups=tuple(
        Group(name=HARDWARE_NAMES[column], columns=(column,), calm=0.0, words=_grown(column))
        for column in range(COUNTER_COUNT)
    ),
)


# ----------------------------------------------------------------------------------- history
def _column(name: str) -> int:
    return HISTORY_NAMES.index(name)


def _own_words(window: Inputs) -> str:
    row = window[-1]
    since_s = float(row[_column("since_failure_s")])
    if np.isnan(since_s):
        return "no failure yet"
    ago = f"{since_s / DAY_S:.0f} d" if since_s >= DAY_S else f"{since_s / 3600:.0f} h"
    return f"{row[_column('failures_90d')]:.0f} failures in 90 d, the last {ago} ago"


def _neighbour_words(window: Inputs) -> str:
    rate = window[-1, _column("neighbour_failures_7d")]
    return f"{rate:.2g} failures per neighbour in 7 d"


def _history_columns(*starts: str) -> tuple[int, ...]:
    return tuple(n for n, name in enumerate(HISTORY_NAMES) if name.startswith(starts))


HISTORY_TABLE = HeadTable(
    head=HISTORY,
    names=HISTORY_NAMES,
    version=HISTORY_SCHEMA_VERSION,
    window=1,
    present=_column("watched_s"),
    groups=(
        Group(
            name="own_failures",
            columns=_history_columns("failures_", "worn_", "decayed_"),
            calm=0.0,
            words=_own_words,
        ),
        Group(
            name="neighbour_failures",
            columns=_history_columns("neighbour_"),
            calm=0.0,
            words=_neighbour_words,
        ),
        Group(
            name="last_failure",
            columns=_history_columns("since_failure", "last_"),
            calm=float("nan"),
            words=_own_words,
        ),
    ),
)

TABLES: Mapping[str, HeadTable] = {HARDWARE: HARDWARE_TABLE, HISTORY: HISTORY_TABLE}


def shipped_head(head: str) -> Head:
    """The head that is shipped. Raises `ModelRefused` or `OSError`."""
    return Head.load(SHIPPED / f"{head}.onnx", TABLES[head])


def horizons_of(head: str) -> tuple[int, ...]:
    """Seconds that the head foresees."""
    return HEAD_HORIZONS_S[head]
