"""The disks' daily readings on the LAS leader, filled from heartbeats, as the hardware head wants.

Invariants:
- What a peer sends as a whole takes the place of what was known of its disk; a later reading is
  added, or takes the place of the same day's.
- A node's entry is one immutable value, so that the thread of the slow heads may read while the
  event loop takes the next heartbeat.

Bounds: `READING_DAYS_MAX` days a node, one entry a node that sent any; what a peer should not send
is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from las.forecast.answer import NODES_MAX
from las.forecast.hardware_inputs import (
    CAPACITY,
    DAYS_BEFORE,
    HARDWARE_FEATURES,
    PRESENT,
    READING_DAYS_MAX,
    Reading,
    hardware_inputs,
)
from las.v1 import fleet_pb2
from peerd.core.ids import NodeName

DAY_S = 86_400

_NOTHING = np.full((len(DAYS_BEFORE), len(HARDWARE_FEATURES)), np.nan, dtype=np.float32)
_COLUMNS = {each.attribute: n for n, each in enumerate(HARDWARE_FEATURES) if each.attribute}


@dataclass(frozen=True, slots=True)
class _Disk:
    """Days since 1970, ascending, and their values [days, features]: 4 kB for a full one."""

    days: tuple[int, ...]
    values: npt.NDArray[np.float32]

    def readings(self) -> list[Reading]:
        return [
            Reading(day, tuple(row.tolist()))
            for day, row in zip(self.days, self.values, strict=True)
        ]


class DiskReadings:
    """Of a fleet. Filled on the event loop; read by one other thread, too."""

    def __init__(self) -> None:
        self.number = 0
        """Grows when a node's days become more or others; not with what changes within a day."""
        self._disks: dict[NodeName, _Disk] = {}
        self._windows: dict[NodeName, tuple[_Disk, int, npt.NDArray[np.float32]]] = {}

    def take(self, node: NodeName, told: fleet_pb2.DiskDays) -> None:
        """What a heartbeat of `node` says."""
        before = self._disks.get(node)
        if before is None and len(self._disks) >= NODES_MAX:
            return
        rows = {}
        if before is not None and not told.whole:
            rows = dict(zip(before.days, before.values, strict=True))
        known = frozenset(rows)
        rows |= {each.day: _values(each) for each in told.days}
        days = tuple(sorted(rows)[-READING_DAYS_MAX:])
        values = np.array([rows[day] for day in days], dtype=np.float32)
        self._disks[node] = _Disk(days, values.reshape(-1, len(HARDWARE_FEATURES)))
        if told.whole or frozenset(rows) != known:
            self.number += 1

    def windows(self, fleet: Sequence[NodeName], now_s: int) -> npt.NDArray[np.float32]:
        """The hardware head's input for a fleet: [nodes, days, features]."""
        today = now_s // DAY_S
        if not fleet:
            return np.empty((0, *_NOTHING.shape), dtype=np.float32)
        windows = np.stack([self._window(node, today) for node in fleet])
        self._windows = {node: kept for node, kept in self._windows.items() if node in self._disks}
        return windows

    def why_without(self, node: NodeName) -> str:
        """Why the head has no input of a node, in words."""
        disk = self._disks.get(node)
        if disk is None or not disk.days:
            return "no SMART"
        if np.isnan(disk.values[-1, PRESENT]):
            return "no SMART of a SATA disk"
        return "no SMART for days"

    def _window(self, node: NodeName, today: int) -> npt.NDArray[np.float32]:
        disk = self._disks.get(node)
        if disk is None:
            return _NOTHING
        kept = self._windows.get(node)
        if kept is None or kept[0] is not disk or kept[1] != today:
            kept = (disk, today, hardware_inputs(disk.readings(), today))
            self._windows[node] = kept
        return kept[2]


def _values(told: fleet_pb2.DiskDay) -> npt.NDArray[np.float32]:
    values = np.full(len(HARDWARE_FEATURES), np.nan, dtype=np.float32)
    for each in told.attributes:
        if each.number in _COLUMNS:
            values[_COLUMNS[each.number]] = each.raw
    if told.capacity_bytes:
        values[CAPACITY] = told.capacity_bytes / 1e12
    return values
