"""Backblaze's disks as the hardware head sees them: windows, labels and the split by disk and time.

The table has a row for each span in which no counter of a disk changed, so that any day can be
looked up. The split is fixed: test = disks with SHA-256(disk_id) mod 5 = 0 on days from `SPLIT_DAY`
on; train = the other disks before it, and of their future nothing: a failure after `SPLIT_DAY` is
not known to training.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from las.forecast.hardware_inputs import COUNTER_COUNT, DAYS_BEFORE, HARDWARE_NAMES
from models.histories import data_file

SPLIT_DAY = 905
HELD_OUT_ONE_IN = 5
HORIZONS_DAYS = (1, 7, 30)
WEEK_DAYS = 7

_SPAN_DAYS = 4096.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Disks:
    """Spans sorted by disk and day, and each disk's life. Arrays over spans, then over disks."""

    keys: npt.NDArray[np.float64]  # disk row * _SPAN_DAYS + first day of the span
    day_start: npt.NDArray[np.float64]
    poh_start: npt.NDArray[np.float64]
    counters: npt.NDArray[np.float32]  # [spans, 9]
    disk_id: npt.NDArray[np.int64]
    first_day: npt.NDArray[np.float64]
    last_day: npt.NDArray[np.float64]
    failed: npt.NDArray[np.bool_]
    size_tb: npt.NDArray[np.float32]
    held_out: npt.NDArray[np.bool_]
    end_day: float

    def windows(
        self, rows: npt.NDArray[np.int64], days: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float32]:
        """float32 [snapshots, days before, features] of these disks (rows) on these days."""
        answer = np.full(
            (len(rows), len(DAYS_BEFORE), len(HARDWARE_NAMES)), np.nan, dtype=np.float32
        )
        for column, before in enumerate(DAYS_BEFORE):
            day = days - before
            span = np.searchsorted(self.keys, rows * _SPAN_DAYS + np.maximum(day, 0), "right") - 1
            seen = day >= self.first_day[rows]
            span = np.where(seen, span, 0)
            answer[:, column, :COUNTER_COUNT] = self.counters[span]
            answer[:, column, COUNTER_COUNT] = self.poh_start[span] + 24.0 * (
                day - self.day_start[span]
            )
            answer[:, column, COUNTER_COUNT + 1] = self.size_tb[rows]
            answer[~seen, column] = np.nan
        return answer

    def newest(
        self, rows: npt.NDArray[np.int64], days: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float32]:
        """float32 [snapshots, counters] of disks that were in service on those days."""
        span = np.searchsorted(self.keys, rows * _SPAN_DAYS + days, "right") - 1
        newest: npt.NDArray[np.float32] = self.counters[span]
        return newest

    def labels(
        self, rows: npt.NDArray[np.int64], days: npt.NDArray[np.float64], known_until: float
    ) -> npt.NDArray[np.float32]:
        """[snapshots, horizons]: 1 if the disk fails within it, NaN where nobody can know yet."""
        until = np.minimum(self.last_day[rows], known_until)
        failed = self.failed[rows] & (self.last_day[rows] <= known_until)
        columns = []
        for horizon in HORIZONS_DAYS:
            fails = failed & (self.last_day[rows] - days <= horizon)
            columns.append(np.where(fails, 1.0, np.where(days + horizon <= until, 0.0, np.nan)))
        return np.stack(columns, axis=1).astype(np.float32)


def read_disks(directory: Path) -> Disks:
    """All disks. Raises `DataMissing`."""
    table = pq.read_table(data_file(directory, "backblaze-smart")).to_pandas()
    table = table.sort_values(["disk_id", "day_start", "poh_start"], kind="stable")
    ids, first, row_of_span = np.unique(
        table["disk_id"].to_numpy(), return_index=True, return_inverse=True
    )
    last = np.append(first[1:], len(table)) - 1
    day_start = table["day_start"].to_numpy(dtype=np.float64)
    names = list(HARDWARE_NAMES[:COUNTER_COUNT])
    return Disks(
        keys=row_of_span * _SPAN_DAYS + day_start,
        day_start=day_start,
        poh_start=table["poh_start"].to_numpy(dtype=np.float64),
        counters=table[names].to_numpy(dtype=np.float32, na_value=np.nan),
        disk_id=ids.astype(np.int64),
        first_day=day_start[first],
        last_day=table["day_stop"].to_numpy(dtype=np.float64)[last],
        failed=np.maximum.reduceat(table["failed"].to_numpy(), first) > 0,
        size_tb=table["size_tb"].to_numpy(dtype=np.float32)[first],
        held_out=np.array([is_held_out(disk) for disk in ids.tolist()]),
        end_day=float(table["day_stop"].max()),
    )


def is_held_out(disk_id: int) -> bool:
    """Whether a disk is kept from training."""
    digest = hashlib.sha256(str(disk_id).encode()).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshots:
    """Disks on days, what they looked like, what became of them; `weight` snapshots stand for."""

    rows: npt.NDArray[np.int64]
    days: npt.NDArray[np.float64]
    windows: npt.NDArray[np.float32]
    labels: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]


# Shares of a training disk's weeks that are kept: of those in which some counter of trouble is not
# zero, and of the many in which all are.
_SICK_SHARE, _CALM_SHARE = 0.3, 0.02
_TROUBLE = [HARDWARE_NAMES.index(f"smart_{n}") for n in (5, 187, 188, 197, 198)]


def training_snapshots(disks: Disks, random: np.random.Generator) -> Snapshots:
    """Of the training disks before the split: each day of a disk's last 30 before it fails, and a
    random share of all other weeks; weights make them all stand for weekly snapshots.
    """
    rows, days = _weekly(disks, ~disks.held_out, 0.0, SPLIT_DAY)
    days = days - random.uniform(0.0, WEEK_DAYS, size=len(days))  # no weekday is like another
    alive = days >= disks.first_day[rows]
    rows, days = rows[alive], days[alive]
    now = disks.newest(rows, days)[:, _TROUBLE]
    share = np.where((now > 0.0).any(axis=1), _SICK_SHARE, _CALM_SHARE)
    fails_soon = disks.labels(rows, days, SPLIT_DAY)[:, -1] == 1.0
    chosen = ~fails_soon & (random.random(len(rows)) < share)
    dying = np.flatnonzero(~disks.held_out & disks.failed & (disks.last_day <= SPLIT_DAY))
    ahead = np.arange(HORIZONS_DAYS[-1])
    near_rows = np.repeat(dying, len(ahead))
    near_days = disks.last_day[near_rows] - np.tile(ahead, len(dying)) - 0.5
    alive = near_days >= disks.first_day[near_rows]
    near_rows, near_days = near_rows[alive], near_days[alive]
    rows = np.concatenate([rows[chosen], near_rows])
    days = np.concatenate([days[chosen], near_days])
    weights = np.concatenate([1.0 / share[chosen], np.full(len(near_rows), 1.0 / WEEK_DAYS)])
    return Snapshots(
        rows=rows,
        days=days,
        windows=disks.windows(rows, days),
        labels=disks.labels(rows, days, SPLIT_DAY),
        weights=weights.astype(np.float32),
    )


def held_out_snapshots(disks: Disks) -> Snapshots:
    """Of the held-out disks, one a week from the split on."""
    rows, days = _weekly(disks, disks.held_out, SPLIT_DAY, disks.end_day)
    return Snapshots(
        rows=rows,
        days=days,
        windows=disks.windows(rows, days),
        labels=disks.labels(rows, days, disks.end_day),
        weights=np.ones(len(rows), dtype=np.float32),
    )


def _weekly(
    disks: Disks, chosen: npt.NDArray[np.bool_], begin: float, end: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Chosen disks in service on each seventh day of [begin, end)."""
    rows, days = [], []
    for day in np.arange(begin, end, WEEK_DAYS):
        here = np.flatnonzero(chosen & (disks.first_day <= day) & (day < disks.last_day))
        rows.append(here)
        days.append(np.full(len(here), day))
    return np.concatenate(rows), np.concatenate(days)
