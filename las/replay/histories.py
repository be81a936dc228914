"""Recorded histories of other fleets, as outages and places: LANL's machines and Grid'5000.

The files stay where they are (`--data`, `PEERD_DATA`); docs/anticipation.md names their origin.

The split is fixed here, by node and by time: a node is held out by a hash of its name (one in
five), and what is judged lies after `SPLIT_S`. Training reads the other nodes before it. Neighbours
of a held-out node may have been trained on, but only their earlier time.

LANL names no racks, so its system stands for the rack, as the cluster does for Grid'5000.
"""

from __future__ import annotations

import calendar
import hashlib
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from las.core.history import Cause, Outage
from las.forecast.history_inputs import Place

DATA = Path(os.environ.get("PEERD_DATA", "../shared/data"))
HELD_OUT_ONE_IN = 5
_MONTHS = {name.lower(): number for number, name in enumerate(calendar.month_abbr) if name}
_GRID5000_BEGIN_S = 1_115_811_139


class DataMissing(Exception):
    """A data set is not where it was looked for; the message says where and what to do."""


@dataclass(frozen=True, kw_only=True)
class History:
    """A fleet's outages, its nodes, and when each was in service: [`since_s`, `until_s`)."""

    name: str
    outages: Sequence[Outage]
    places: Sequence[Place]
    until_s: npt.NDArray[np.int64]
    split_s: int

    @cached_property
    def since_s(self) -> npt.NDArray[np.int64]:
        """Since when each node was in service."""
        return np.array([place.since_s for place in self.places], dtype=np.int64)

    @property
    def held_out(self) -> npt.NDArray[np.bool_]:
        """Which nodes are kept from training."""
        return np.array([held_out(self.name, place.node) for place in self.places])


def held_out(history: str, node: str) -> bool:
    """Whether a node of that history is kept from training."""
    digest = hashlib.sha256(f"{history}/{node}".encode()).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0


def data_file(directory: Path, data_set: str) -> Path:
    """The table of a data set. Raises `DataMissing`."""
    path = directory / data_set / "dev.parquet"
    if not path.exists():
        raise DataMissing(
            f"{path} is not there; name the folder of the data sets with --data or PEERD_DATA"
        )
    return path


def _parquet() -> ModuleType:
    """pyarrow's parquet. Raises `DataMissing` where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataMissing(
            "recorded histories are parquet, which needs pyarrow: pip install 'peerd[parquet]'"
        ) from error
    return pyarrow.parquet  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------ LANL
_LANL_CAUSES = {
    "Hardware": Cause.HARDWARE,
    "Software": Cause.SOFTWARE,
    "Network": Cause.NETWORK,
    "Facilities": Cause.POWER,
}


def read_lanl(directory: Path = DATA) -> History:
    """The 22 systems of Los Alamos; a node is called SYSTEM/NUMBER. Raises `DataMissing`."""
    rows = _parquet().read_table(data_file(directory, "lanl-failures")).to_pylist()
    rows = [row for row in rows if row["node"] is not None]
    last_s = max(_seconds(row["start"]) for row in rows)
    systems: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        systems.setdefault(row["system"], []).append(row)
    places: list[Place] = []
    until_s: list[int] = []
    for system, members in sorted(systems.items()):
        inventory = max(row["nodes_in_system"] or 0 for row in members)
        count = max(inventory, max(row["node"] for row in members) + 1)
        first_s = min(_seconds(row["start"]) for row in members)
        since = _month_s(members[0]["node_prod"])
        until = _month_s(members[0]["node_decom"])
        newest_s = max(_seconds(row["start"]) for row in members)
        for node in range(count):
            name = f"{system}/{node}"
            begin_s = first_s if since is None else min(since, first_s)
            places.append(Place(name, name, str(system), begin_s))
            # Without a date of its end a system served until its last failure, if that is long ago.
            ended = until if until is not None else newest_s
            keeps_on = members[0]["node_decom"] == "current"
            until_s.append(last_s if keeps_on else min(max(ended, newest_s), last_s))
    return History(
        name="lanl",
        outages=[_lanl_outage(row) for row in rows],
        places=places,
        until_s=np.array(until_s, dtype=np.int64),
        split_s=calendar.timegm((2003, 7, 1, 0, 0, 0)),
    )


def _lanl_outage(row: dict[str, Any]) -> Outage:
    name = f"{row['system']}/{row['node']}"
    begin_s = _seconds(row["start"])
    end_s = max(begin_s, begin_s if row["fixed"] is None else _seconds(row["fixed"]))
    cause = _LANL_CAUSES.get(str(row["cause"]), Cause.UNKNOWN)
    if cause is Cause.HARDWARE:
        detail = str(row["detail"])
        if "Memory" in detail or "DIMM" in detail.upper():
            cause = Cause.MEMORY
        elif "Disk" in detail:
            cause = Cause.DISK
    return Outage(name, name, str(row["system"]), begin_s, end_s, cause)


def _seconds(moment: datetime) -> int:
    return calendar.timegm(moment.timetuple())


def _month_s(text: str | None) -> int | None:
    """`Jan-97` and `3-Sep` (September 2003: a spreadsheet had its way with it) as seconds."""
    first, _, second = (text or "").partition("-")
    for month, year in ((first, second), (second, first)):
        if month.lower() in _MONTHS and re.fullmatch(r"\d{1,2}", year):
            full = int(year) + (1900 if int(year) > 50 else 2000)
            return calendar.timegm((full, _MONTHS[month.lower()], 1, 0, 0, 0))
    return None


# ------------------------------------------------------------------------------------ Grid'5000
def read_grid5000(directory: Path = DATA) -> History:
    """The nodes of Grid'5000; down for any reason counts, the reason unknown. `DataMissing`."""
    downs = _parquet().read_table(data_file(directory, "grid5000-availability")).to_pydict()
    nodes = _parquet().read_table(directory / "grid5000-availability" / "nodes.parquet").to_pydict()
    cluster = dict(zip(downs["node"], downs["cluster"], strict=True))
    known = [n for n in range(len(nodes["node"])) if nodes["node"][n] in cluster]
    newest_s = max(downs["down_start"])
    names = {number: str(number) for number in cluster}
    return History(
        name="grid5000",
        outages=[
            Outage(
                names[node],
                names[node],
                cluster[node],
                _GRID5000_BEGIN_S + start,
                _GRID5000_BEGIN_S + max(stop, start),
                Cause.UNKNOWN,
            )
            for node, start, stop in zip(
                downs["node"], downs["down_start"], downs["down_stop"], strict=True
            )
        ],
        places=[
            Place(
                names[nodes["node"][n]],
                names[nodes["node"][n]],
                cluster[nodes["node"][n]],
                _GRID5000_BEGIN_S + nodes["first"][n],
            )
            for n in known
        ],
        until_s=np.array(
            [_GRID5000_BEGIN_S + min(nodes["last"][n], newest_s) for n in known], dtype=np.int64
        ),
        split_s=calendar.timegm((2006, 3, 1, 0, 0, 0)),
    )


HISTORIES: dict[str, Callable[[Path], History]] = {"lanl": read_lanl, "grid5000": read_grid5000}


# ------------------------------------------------------------------------------------- snapshots
def down_or_fails(
    history: History, moments_s: Sequence[int], horizons_s: Sequence[int]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """Who served at each moment, and whether it fails within each horizon.

    Returns bool [moments, nodes], False for a node that is down or not in service; and float32
    [moments, nodes, horizons], 1 when a failure begins in (moment, moment + horizon], NaN when the
    node was not in service so long and nothing is known.
    """
    row_of = {place.node: row for row, place in enumerate(history.places)}
    begins: list[list[int]] = [[] for _ in history.places]
    serving = np.zeros((len(moments_s), len(history.places)), dtype=np.bool_)
    moments = np.asarray(moments_s, dtype=np.int64)
    serving |= (moments[:, None] >= history.since_s) & (moments[:, None] < history.until_s)
    for outage in history.outages:
        row = row_of.get(outage.node)
        if row is None:
            continue
        end_s = outage.end_s if outage.end_s is not None else 1 << 40
        first, after = np.searchsorted(moments, [outage.begin_s, end_s])
        serving[first:after, row] = False
        if outage.is_failure:
            begins[row].append(outage.begin_s)
    next_s = np.full(serving.shape, np.inf)
    for row, moments_of in enumerate(begins):
        ordered = np.sort(np.array([*moments_of, 1 << 60], dtype=np.int64))
        next_s[:, row] = ordered[np.searchsorted(ordered, moments, side="right")]
    labels = np.empty((*serving.shape, len(horizons_s)), dtype=np.float32)
    for column, horizon_s in enumerate(horizons_s):
        fails = next_s <= moments[:, None] + horizon_s
        seen = moments[:, None] + horizon_s <= history.until_s
        labels[:, :, column] = np.where(fails, 1.0, np.where(seen, 0.0, np.nan))
    return serving, labels


def stamp(seconds: int) -> str:
    """A moment as a date."""
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
