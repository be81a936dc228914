"""What the data directory's disk said of itself, one reading a day, kept across restarts.

The hardware head of the forecast looks ninety days back, and no LAS node keeps so much: so the peer
does, in a file of its own in the data directory, and each new LAS leader is given all of it.

Invariants:
- At most one reading a day (days since 1970, UTC), the newest of it; `DAYS_MAX` days at most. A
  reading of another disk (another serial number) begins anew.
- The file is written beside and renamed, so it is whole or the one before; one that cannot be read
  is begun anew, and one that cannot be written leaves the readings in memory. Neither is worth a
  peer's life.
- `news` tells a listener everything once, and after it what is new; all again for another disk.

Used by the thread that asks the disk and by the event loop.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from peerd.daemon.logging import get_logger
from peerd.storage.directory import write_file_durably

FILE_NAME = "disk-days.json"
FORMAT = 1
DAY_S = 86_400
# limit: days of readings that are kept: the oldest that the hardware head looks at is 90 days old.
DAYS_MAX = 98
# limit: bytes of the file; ten attributes on each day take some 20 kB.
FILE_BYTES_MAX = 1 << 20
# ATA attributes that are kept, by number: those that the hardware head knows.
ATTRIBUTES = (5, 9, 10, 12, 187, 188, 189, 196, 197, 198)

_log = get_logger("telemetry")


@dataclass(frozen=True, slots=True)
class DiskDay:
    """The newest reading of a day: raw values by attribute; a capacity of 0 was not told."""

    day: int
    capacity_bytes: int
    attributes: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class News:
    """What a listener lacks. `whole`: these are all, in place of what it has."""

    number: int
    whole: bool
    days: tuple[DiskDay, ...]


NOTHING_TOLD = -1


class DiskDays:
    """The readings of one disk."""

    def __init__(self, path: Path) -> None:
        """`path` is the file; it need not exist yet, and is read by `load`."""
        self._path = path
        self._lock = threading.Lock()
        self._serial = ""
        self._days: tuple[DiskDay, ...] = ()
        self._number = 0
        self._whole_since = 0

    def load(self) -> None:
        """Take what an earlier process wrote."""
        try:
            if self._path.stat().st_size > FILE_BYTES_MAX:
                raise ValueError("it is too large")
            serial, days = _decoded(json.loads(self._path.read_bytes()))
        except FileNotFoundError:
            return
        except (OSError, ValueError, RecursionError) as error:
            _log.warning("disk readings begin anew", file=str(self._path), why=str(error))
            return
        with self._lock:
            self._serial, self._days = serial, days
            self._number += 1
            self._whole_since = self._number

    def add(self, serial: str, reading: DiskDay) -> None:
        """Keep a reading, in the file as well."""
        with self._lock:
            if serial != self._serial:
                self._serial, self._days = serial, ()
                self._whole_since = self._number + 1
            others = [each for each in self._days if each.day != reading.day]
            days = tuple(sorted([*others, reading], key=lambda each: each.day)[-DAYS_MAX:])
            if days == self._days:
                return
            self._days = days
            self._number += 1
            content = _encoded(self._serial, days)
        try:
            write_file_durably(self._path, content)
        except OSError as error:
            _log.warning("disk readings not written", file=str(self._path), why=str(error))

    def news(self, told: int) -> News:
        """What a listener lacks that was told `told` (`News.number`; `NOTHING_TOLD`: nothing)."""
        with self._lock:
            if told < self._whole_since:
                return News(self._number, True, self._days)
            newest = self._days[-1:] if told < self._number else ()
            return News(self._number, False, newest)


def disk_day(answer: Mapping[str, Any], raw: Mapping[int, int], day: int) -> DiskDay:
    """The reading in smartctl's JSON, of which `raw` are the ATA attributes."""
    capacity = answer.get("user_capacity")
    told = capacity.get("bytes") if isinstance(capacity, dict) else None
    return DiskDay(
        day=day,
        capacity_bytes=told if _is_count(told) else 0,
        attributes={number: raw[number] for number in ATTRIBUTES if number in raw},
    )


def _encoded(serial: str, days: tuple[DiskDay, ...]) -> bytes:
    rows = [[each.day, each.capacity_bytes, sorted(each.attributes.items())] for each in days]
    return json.dumps({"format": FORMAT, "serial": serial, "days": rows}).encode()


def _decoded(value: Any) -> tuple[str, tuple[DiskDay, ...]]:
    """Serial and days of a file. Raises `ValueError` for anything that is none."""
    try:
        if value["format"] != FORMAT or not isinstance(value["serial"], str):
            raise ValueError("it has another format")
        days = tuple(
            DiskDay(day, capacity, dict(attributes)) for day, capacity, attributes in value["days"]
        )
    except (TypeError, KeyError) as error:
        raise ValueError("it has another form") from error
    numbers = [each.day for each in days]
    counts = [each.capacity_bytes for each in days]
    counts += [raw for each in days for raw in each.attributes.values()]
    known = all(number in ATTRIBUTES for each in days for number in each.attributes)
    if not known or not all(_is_count(each) for each in [*numbers, *counts]):
        raise ValueError("it has values that cannot be")
    if numbers != sorted(set(numbers)) or len(days) > DAYS_MAX:
        raise ValueError("its days are not in order, or too many")
    return value["serial"], days


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63
