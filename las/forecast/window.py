"""The fleet's last two minutes on the LAS leader, filled from heartbeats.

All nodes share one array [rows, 2 · window, metrics] and one time base, the leader's own seconds,
so that a snapshot for the whole fleet is a slice and not a copy per node.

Invariants:
- A sample stands at the second it was taken in; a second without a sample is NaN. The place
  follows from the sample's sequence, so that a late heartbeat fills the gap it left.
- Memory is bounded: `NODES_MAX` nodes, `window` samples each; rows grow by doubling.
- Time is passed in (monotonic milliseconds of the leader); nothing here reads a clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from las.forecast.answer import NODES_MAX
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA

SLOT_MS = 1000
# How far sequence and age may disagree on a sample's second before the sequence is taken to have
# begun anew (a reboot): a heartbeat's way may differ by this much.
_SLIP_SLOTS_MAX = 2
_ROWS_FIRST = 64


class FleetFull(Exception):
    """More nodes than one LAS judges; the message says how many and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSnapshot:
    """Windows of all nodes seen, by name.

    `windows` is float32 [nodes, window, metrics], newest last, in the order of `nodes`; it is a
    view that the next `add` may change. `age_ms` [nodes] is the age of each node's newest sample.
    """

    nodes: tuple[str, ...]
    windows: npt.NDArray[np.float32]
    age_ms: npt.NDArray[np.int64]


class FleetWindows:
    """Windows of a fleet; used by one thread (the leader's loop)."""

    def __init__(self, window: int, metric_count: int = len(TELEMETRY_SCHEMA)) -> None:
        self._window = window
        self._rows: dict[str, int] = {}
        self._offsets: dict[str, int] = {}
        self._newest_slot = np.zeros(0, dtype=np.int64)
        self._values = np.full((0, 2 * window, metric_count), np.nan, dtype=np.float32)
        # The newest slot stands at column `_column`; older ones to the left of it.
        self._head_slot = 0
        self._column = window

    def __len__(self) -> int:
        return len(self._rows)

    def add(
        self, node: str, *, sequence: int, age_ms: int, values: Sequence[float], now_ms: int
    ) -> None:
        """Take in one sample of a node, `age_ms` old. Too old a sample is dropped.

        Raises `FleetFull` for a new node beyond `NODES_MAX`, `ValueError` for another number of
        values than the schema has.
        """
        if len(values) != self._values.shape[2]:
            raise ValueError(f"{len(values)} values, the schema has {self._values.shape[2]}")
        self._advance(now_ms // SLOT_MS)
        row = self._row(node)
        told_slot = (now_ms - age_ms) // SLOT_MS
        offset = self._offsets.get(node, told_slot - sequence)
        if abs(sequence + offset - told_slot) > _SLIP_SLOTS_MAX:
            offset = told_slot - sequence
        # The first sample's place was one too late if a later one now lies in the future.
        slip = sequence + offset - self._head_slot
        if slip > 0:
            offset -= slip
            self._move_back(row, slip)
        self._offsets[node] = offset
        slot = sequence + offset
        if slot > self._head_slot - self._window:
            self._values[row, self._column - (self._head_slot - slot)] = values
            self._newest_slot[row] = max(self._newest_slot[row], slot)

    def recent(self, node: str, *, now_ms: int, count: int) -> npt.NDArray[np.float32]:
        """The last `count` whole seconds of a node, [at most `count`, metrics]; none if unknown."""
        self._advance(now_ms // SLOT_MS)
        row = self._rows.get(node)
        if row is None:
            return np.empty((0, self._values.shape[2]), dtype=np.float32)
        return self._values[row, self._column - min(count, self._window) : self._column].copy()

    def forget(self, node: str) -> None:
        """A node left the fleet; its row is given to the last one."""
        row = self._rows.pop(node, None)
        if row is None:
            return
        self._offsets.pop(node, None)
        last = len(self._rows)
        for other, other_row in self._rows.items():
            if other_row == last:
                self._rows[other] = row
                self._values[row] = self._values[last]
                self._newest_slot[row] = self._newest_slot[last]
        self._values[last] = np.nan

    def snapshot(self, *, now_ms: int) -> FleetSnapshot:
        """All windows, ending with the last whole second before `now_ms`."""
        self._advance(now_ms // SLOT_MS)
        count = len(self._rows)
        end = self._column  # the second under way is left out: its sample is not due yet
        return FleetSnapshot(
            nodes=tuple(sorted(self._rows, key=self._rows.__getitem__)),
            windows=self._values[:count, end - self._window : end],
            age_ms=np.maximum(now_ms - self._newest_slot[:count] * SLOT_MS - SLOT_MS // 2, 0),
        )

    def _row(self, node: str) -> int:
        row = self._rows.get(node)
        if row is not None:
            return row
        row = len(self._rows)
        if row >= NODES_MAX:
            raise FleetFull(f"{node}: a LAS judges at most {NODES_MAX} nodes; use a second cell")
        if row == len(self._values):
            self._grow()
        self._rows[node] = row
        self._newest_slot[row] = self._head_slot - self._window
        return row

    def _move_back(self, row: int, slots: int) -> None:
        self._values[row, :-slots] = self._values[row, slots:].copy()
        self._values[row, -slots:] = np.nan
        self._newest_slot[row] -= slots

    def _grow(self) -> None:
        before = len(self._values)
        rows = min(max(2 * before, _ROWS_FIRST), NODES_MAX)
        values = np.full((rows, *self._values.shape[1:]), np.nan, dtype=np.float32)
        values[:before] = self._values
        newest_slot = np.zeros(rows, dtype=np.int64)
        newest_slot[:before] = self._newest_slot
        self._values, self._newest_slot = values, newest_slot

    def _advance(self, slot: int) -> None:
        steps = slot - self._head_slot
        if steps <= 0:
            return
        self._head_slot = slot
        if steps > self._window:
            self._values[:] = np.nan
            self._column = self._window
            return
        if self._column + steps >= 2 * self._window:
            # One move of the newest window to the front pays for a whole window of slots.
            kept = self._values[:, self._column - self._window + 1 : self._column + 1].copy()
            self._values[:] = np.nan
            self._values[:, : self._window] = kept
            self._column = self._window - 1
        self._column += steps
