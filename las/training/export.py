"""From a Prometheus server and the LAS's own outages to a file of windows with labels.

A grid of moments over the wished time takes all nodes; the hour before each failure is looked at
once a minute for the node that failed, which the grid then leaves out there, and counts by its
share of a step. So what is rare is seen often, and the weights still tell how often it happens.

Bounds: `MOMENTS_MAX` moments; a large fleet's answers are asked for in pieces of `PIECE_S` seconds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from las.daemon.config import Telemetry
from las.daemon.prometheus import PrometheusClient
from las.daemon.scraped import PIECE_S, queries, samples
from las.forecast.contract import HORIZONS_S
from las.training.labels import Fates
from las.training.windows import WINDOW_S, BadData, Moment, WindowWriter
from peerd.daemon.telemetry.schema import ALWAYS_PRESENT, TELEMETRY_SCHEMA

# How long before a failure, and how often there, its node is looked at.
BEFORE_FAILURE_S = HORIZONS_S[-1]
NEAR_STEP_S = 60
# limit: moments of one file; each costs some queries of the server.
MOMENTS_MAX = 50_000
# Up to so many nodes one answer holds a whole window, some 15 MB for a hundred.
SMALL_FLEET_NODES = 100

_PRESENT = TELEMETRY_SCHEMA.positions[ALWAYS_PRESENT]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to export: [begin, end) in seconds since 1970, a moment each `every_s`."""

    begin_s: int
    end_s: int
    every_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A moment and the nodes to look at; None: all but those that fail soon."""

    at_s: int
    weight: float
    nodes: frozenset[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a file has."""

    moments: int
    windows: int
    came_true: int
    unknown: int


def looks(wanted: Wanted, fates: Fates) -> list[Look]:
    """The moments by time. Raises `BadData` if there are too many."""
    grid = range(wanted.begin_s + WINDOW_S, wanted.end_s, wanted.every_s)
    near: dict[int, set[str]] = defaultdict(set)
    for node, failure_s in fates.failures(wanted.begin_s, wanted.end_s):
        for before_s in range(NEAR_STEP_S // 2, BEFORE_FAILURE_S, NEAR_STEP_S):
            if failure_s - before_s >= wanted.begin_s + WINDOW_S:
                near[failure_s - before_s].add(node)
    count = len(grid) + len(near)
    if count > MOMENTS_MAX:
        raise BadData(
            f"{count} moments, at most {MOMENTS_MAX}: a shorter time, or a larger --every"
        )
    # A grid that is finer than this needs no closer look.
    weight = min(1.0, NEAR_STEP_S / wanted.every_s)
    found = [Look(at_s=at_s, weight=1.0) for at_s in grid]
    found += [
        Look(at_s=at_s, weight=weight, nodes=frozenset(nodes)) for at_s, nodes in near.items()
    ]
    return sorted(found, key=lambda each: each.at_s)


async def export(
    path: Path,
    telemetry: Telemetry,
    wanted: Wanted,
    *,
    hosts: Mapping[str, str],
    fates: Fates,
    progress: Callable[[int, int], None],
) -> Written:
    """Write the file. `hosts` are the fleet's nodes; `progress(done, all)` is called at times.

    Raises:
        PrometheusError: the server does not answer as it should; nothing is written.
        BadData: the file cannot be written, too much was asked for, or there is nothing.
    """
    client = PrometheusClient(telemetry)
    todo = looks(wanted, fates)
    written = Written(moments=0, windows=0, came_true=0, unknown=0)
    try:
        with WindowWriter(path) as writer:
            for number, look in enumerate(todo):
                progress(number, len(todo))
                moment = await _moment(client, telemetry, look, hosts, fates)
                if moment.nodes:
                    writer.write(moment)
                    written = _counted(written, moment)
            progress(len(todo), len(todo))
            if not written.windows:
                raise BadData(
                    f"{telemetry.url} has no sample of {', '.join(sorted(hosts)[:3])} in that "
                    "time: does it scrape the peers, each target with the label "
                    f"{telemetry.node_label}? docs/operations.md, Telemetry from Prometheus"
                )
    finally:
        await client.close()
    return written


async def _moment(
    client: PrometheusClient,
    telemetry: Telemetry,
    look: Look,
    hosts: Mapping[str, str],
    fates: Fates,
) -> Moment:
    nodes = [node for node in sorted(hosts) if _is_wanted(node, look, fates)]
    rows = {node: row for row, node in enumerate(nodes)}
    windows = np.full((len(nodes), WINDOW_S, len(TELEMETRY_SCHEMA)), np.nan, dtype=np.float32)
    first_s = look.at_s - WINDOW_S + 1
    piece_s = WINDOW_S if len(nodes) <= SMALL_FLEET_NODES else PIECE_S
    for begin_s in range(first_s, look.at_s + 1, piece_s):
        end_s = min(begin_s + piece_s - 1, look.at_s)
        answers = await client.query_range(queries(telemetry), begin_s=begin_s, end_s=end_s)
        named = {node: hosts[node] for node in nodes}
        told = samples(answers, telemetry, named, begin_s=begin_s, end_s=end_s)
        for node, second, values in told:
            windows[rows[node], second - first_s] = values
    # Of a node that is down, or was not scraped, there is nothing to forecast.
    seen = np.flatnonzero(~np.isnan(windows[:, -1, _PRESENT])).tolist()
    return Moment(
        at_s=look.at_s,
        nodes=tuple(nodes[row] for row in seen),
        weight=look.weight,
        windows=windows[seen],
        labels=_labels([nodes[row] for row in seen], look.at_s, fates),
    )


def _is_wanted(node: str, look: Look, fates: Fates) -> bool:
    if look.nodes is not None:
        return node in look.nodes
    failure_s = fates.next_failure_s(node, look.at_s)
    return failure_s is None or failure_s - look.at_s > BEFORE_FAILURE_S


def _labels(nodes: Sequence[str], at_s: int, fates: Fates) -> npt.NDArray[np.int8]:
    labels = np.full((len(nodes), len(HORIZONS_S)), -1, dtype=np.int8)
    for row, node in enumerate(nodes):
        for place, horizon_s in enumerate(HORIZONS_S):
            label = fates.label(node, at_s, horizon_s)
            labels[row, place] = -1 if label is None else label
    return labels


def _counted(written: Written, moment: Moment) -> Written:
    return Written(
        moments=written.moments + 1,
        windows=written.windows + len(moment.nodes),
        came_true=written.came_true + int((moment.labels[:, 0] == 1).sum()),
        unknown=written.unknown + int((moment.labels[:, 0] < 0).sum()),
    )
