"""Where a history to replay comes from: a known data set, a file of one's own, or made up.

`lanl-failures` and `grid5000-availability` are read from a folder that holds them. A file is what
`peerctl history export` writes, CSV or parquet. `synthetic:NODESxDAYS` is a fleet whose failures
cluster as real ones do: each node has its own rate (gamma, shape 0.5) and a failure is followed by
another within hours with probability 0.2. The same seed gives the same history.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from las.core.history import Cause, Outage
from las.forecast.history_inputs import Place
from las.replay.histories import DataMissing, History, read_grid5000, read_lanl
from peerd.cli.outage_files import BadFile, cause_text, read_outages

DATA_SETS = ("lanl-failures", "grid5000-availability")
DAY_S = 86_400
# limit: nodes of a made-up fleet; twice what the project designs for.
NODES_MAX = 20_000
# limit: days of a made-up history; ten years.
DAYS_MAX = 3_650
# Failures a node and year in a made-up fleet, and days of it before what is replayed.
RATE_PER_YEAR = 1.5
WARM_UP_DAYS = 180
_SYNTHETIC = re.compile(r"synthetic:(\d{1,5})x(\d{1,4})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Name of a history, and the folder of the known ones."""

    name: str
    data: Path
    seed: int = 1


def read(source: Source) -> History:
    """The history. Raises `DataMissing`: it is not there, or is none."""
    if source.name == "lanl-failures":
        return read_lanl(source.data)
    if source.name == "grid5000-availability":
        return read_grid5000(source.data)
    if (found := _SYNTHETIC.fullmatch(source.name)) is not None:
        return synthetic(int(found[1]), int(found[2]), source.seed)
    path = Path(source.name)
    if path.suffix not in {".csv", ".parquet"}:
        raise DataMissing(
            f"{source.name!r} is no history: name {', '.join(DATA_SETS)}, a .csv or .parquet "
            "file as `peerctl history export` writes it, or synthetic:NODESxDAYS"
        )
    try:
        told = read_outages(path)
    except BadFile as error:
        raise DataMissing(str(error)) from error
    return of_outages(
        path.name,
        [
            Outage(
                each.node,
                each.host,
                each.rack,
                each.begin_s,
                each.end_s if each.HasField("end_s") else None,
                Cause(cause_text(each)),
                each.in_service_s if each.HasField("in_service_s") else None,
            )
            for each in told
        ],
    )


def of_outages(name: str, outages: list[Outage]) -> History:
    """A history of one's own: the nodes that occur, from the first outage to the last.

    Raises `DataMissing` if there is no outage. Nodes that never failed are not in such a file.
    """
    if not outages:
        raise DataMissing(f"{name} holds no outage: there is nothing to replay")
    first_s = min(each.begin_s for each in outages)
    last_s = max(each.end_s or each.begin_s for each in outages)
    newest = {each.node: each for each in sorted(outages, key=lambda each: each.begin_s)}
    places = [
        Place(node, each.host, each.rack, min(first_s, each.in_service_s or first_s))
        for node, each in sorted(newest.items())
    ]
    return History(
        name=name,
        outages=outages,
        places=places,
        until_s=np.full(len(places), last_s + 1, dtype=np.int64),
        split_s=first_s + (last_s - first_s) // 3,
    )


def synthetic(nodes: int, days: int, seed: int) -> History:
    """A made-up history; see the module. Raises `DataMissing`: too large, or nothing."""
    if not (3 <= nodes <= NODES_MAX and 1 <= days <= DAYS_MAX):
        text = f"a made-up history has 3 to {NODES_MAX} nodes and 1 to {DAYS_MAX} days"
        raise DataMissing(text)
    chance = np.random.default_rng(seed)
    span_s = (days + WARM_UP_DAYS) * DAY_S
    rates = chance.gamma(0.5, RATE_PER_YEAR / 0.5, nodes) * 0.8
    outages = []
    for node, count in enumerate(chance.poisson(rates * span_s / (365 * DAY_S)).tolist()):
        for begin in chance.uniform(0, span_s, count).tolist():
            begin_s = int(begin)
            while begin_s < span_s:
                end_s = begin_s + 60 + int(chance.exponential(6 * 3_600))
                name = f"node-{node + 1}"
                outages.append(
                    Outage(name, name, f"rack-{node // 40 + 1}", begin_s, end_s, Cause.HARDWARE)
                )
                if chance.random() >= 0.2:
                    break
                begin_s = end_s + int(chance.exponential(12 * 3_600))
    places = [
        Place(f"node-{node + 1}", f"node-{node + 1}", f"rack-{node // 40 + 1}", 0)
        for node in range(nodes)
    ]
    return History(
        name=f"synthetic:{nodes}x{days}",
        outages=outages,
        places=places,
        until_s=np.full(nodes, span_s, dtype=np.int64),
        split_s=WARM_UP_DAYS * DAY_S,
    )
