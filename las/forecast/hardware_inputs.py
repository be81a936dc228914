"""What the hardware head reads of a disk: nine SMART counters on thirteen days, age, capacity.

The table below is what a collector has to send, once a day and disk; the head looks at the reading
of today and of twelve days that lie further and further back. Raw values: clipping, logarithms and
missing values are the graph's matter.

Meant for SATA disks: NVMe and SAS disks do not have these counters, so for them there is no input.

Invariants:
- A day takes the newest reading at or before it, since the counters hold until they change; before
  the first reading everything is NaN, and so is a counter that the disk does not report.
- Without a reading of the last `STALE_DAYS_MAX` days there is no input: all is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

HARDWARE_SCHEMA_VERSION = 1
# How many days before today each row of the window is, the newest last.
DAYS_BEFORE = (90, 60, 45, 30, 21, 14, 10, 7, 5, 3, 2, 1, 0)
# limit: days of readings kept of a disk; the oldest that the head looks at, and slack for a gap.
READING_DAYS_MAX = DAYS_BEFORE[0] + 7
# limit: days that the newest reading may be old; more, and the disk of today is not known.
STALE_DAYS_MAX = 2


@dataclass(frozen=True, slots=True)
class HardwareFeature:
    """One value of a disk's daily reading. `attribute` is its SMART number; 0 if it has none."""

    name: str
    attribute: int
    unit: str
    meaning: str


# The input's last axis, in order: the raw value of the attribute. Part of the model contract.
HARDWARE_FEATURES: tuple[HardwareFeature, ...] = (
    HardwareFeature("smart_5", 5, "sectors", "reallocated sectors"),
    HardwareFeature("smart_10", 10, "count", "spin retries"),
    HardwareFeature("smart_12", 12, "count", "power cycles"),
    HardwareFeature("smart_187", 187, "count", "reported uncorrectable errors"),
    HardwareFeature("smart_188", 188, "packed", "command timeouts, three 16-bit numbers in some"),
    HardwareFeature("smart_189", 189, "count", "high-fly writes"),
    HardwareFeature("smart_196", 196, "count", "reallocation events"),
    HardwareFeature("smart_197", 197, "sectors", "current pending sectors"),
    HardwareFeature("smart_198", 198, "sectors", "offline uncorrectable sectors"),
    HardwareFeature("power_on_hours", 9, "h", "age in hours of power"),
    HardwareFeature("capacity_tb", 0, "TB", "capacity, 10^12 bytes"),
)
HARDWARE_NAMES: tuple[str, ...] = tuple(feature.name for feature in HARDWARE_FEATURES)
COUNTER_COUNT = 9

CAPACITY = HARDWARE_NAMES.index("capacity_tb")
PRESENT = HARDWARE_NAMES.index("smart_5")
"""Reallocated sectors: what every SATA disk reports, and no other."""

Window = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Reading:
    """A disk's values on one day (days since 1970), in the order of `HARDWARE_FEATURES`."""

    day: int
    values: tuple[float, ...]


def hardware_inputs(readings: Sequence[Reading], today: int) -> Window:
    """The hardware head's input for one disk: float32 [days, features], the newest day last.

    Args:
        readings: Of this disk, in any order, at most one a day.
        today: The day asked for; readings after it do not count.

    Raises:
        ValueError: A reading has another number of values than the table.
    """
    window = np.full((len(DAYS_BEFORE), len(HARDWARE_FEATURES)), np.nan, dtype=np.float32)
    known = sorted((each for each in readings if each.day <= today), key=lambda each: each.day)
    if not known or today - known[-1].day > STALE_DAYS_MAX:
        return window
    for reading in known:
        if len(reading.values) != len(HARDWARE_FEATURES):
            raise ValueError(
                f"{len(reading.values)} values in a reading, wanted {len(HARDWARE_FEATURES)}"
            )
    days = [each.day for each in known]
    for row, before in enumerate(DAYS_BEFORE):
        place = int(np.searchsorted(days, today - before, side="right")) - 1
        if place >= 0:
            window[row] = known[place].values
    return window
