"""Recordings of the fault lab: one parquet file a run, the ground truth inside it.

A *run* is one cluster under load; a *node-run* is one of its peers. A file holds a row a peer and
second: `peer` (its number), `second` (of the run), and a float32 column a metric of the telemetry
schema; and in its metadata, under `peerd.truth`, what was really done to whom and when.

The split is fixed by the run's number before anything is recorded: every third run
(`number % 3 == 2`) is held out. It is by run, since rows of one run know each other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from models.lab.kinds import ABRUPT
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA

RECORDINGS = Path(__file__).parent / "recordings"
HELD_OUT_EVERY = 3
_TRUTH_KEY = b"peerd.truth"


class RecordingRefused(Exception):
    """A recording that cannot be used; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTruth:
    """What was done to one peer. Seconds of the run; None where it did not happen.

    `kind` is a fault, a look-alike (`models/lab/plan.py` and `models/lab/kinds.py`), or `healthy`.
    `stop_s` is when a fault stopped it: its process gone, its storage failed, or nothing
    acknowledged for 3 s under load.
    """

    peer: str
    kind: str
    onset_s: float | None
    stop_s: float | None
    parameters: dict[str, float | str]

    @property
    def abrupt(self) -> bool:
        """Whether it stopped without anything that could have announced it."""
        return self.kind in ABRUPT


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTruth:
    """What was done in one run; `shared` are look-alikes that concern the whole machine."""

    number: int
    seed: int
    load: dict[str, float]
    shared: list[dict[str, float | str]]
    nodes: list[NodeTruth]

    @property
    def in_rooms(self) -> bool:
        """Whether each peer had a network and a disk of its own (`models/lab/room.py`)."""
        return bool(self.load.get("in_rooms", 0.0))

    @property
    def held_out(self) -> bool:
        """Whether the run is kept from training."""
        return self.number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run: `values` is float32 [peers, seconds, metrics] in schema order, NaN = missing."""

    truth: RunTruth
    values: npt.NDArray[np.float32]

    def labels(self, horizon_s: float) -> npt.NDArray[np.float32]:
        """[peers, seconds]: 1 if the onset is past and the stop at most `horizon_s` away.

        NaN from the stop on: nothing is left to forecast. What is abrupt is never foreseeable.
        """
        seconds = np.arange(self.values.shape[1])
        labels = np.zeros(self.values.shape[:2], dtype=np.float32)
        for row, node in enumerate(self.truth.nodes):
            if node.stop_s is None:
                continue
            onset_s = node.stop_s if node.onset_s is None or node.abrupt else node.onset_s
            labels[row] = (seconds >= onset_s) & (node.stop_s - seconds <= horizon_s)
            labels[row, seconds >= node.stop_s] = np.nan
        return labels

    def without(self, kind: str) -> Run:
        """The same, with nothing known of the peers that suffered `kind`: nothing to learn from."""
        hit = [row for row, node in enumerate(self.truth.nodes) if node.kind == kind]
        values = self.values.copy()
        values[hit] = np.nan
        # Stopped from the first second on: each of their labels is unknown.
        nodes = [
            replace(node, onset_s=None, stop_s=0.0) if node.kind == kind else node
            for node in self.truth.nodes
        ]
        return Run(truth=replace(self.truth, nodes=nodes), values=values)

    def windows(self, second: int, window: int) -> npt.NDArray[np.float32]:
        """[peers, window, metrics]: what the LAS would hold after that second."""
        seen = self.values[:, max(second - window + 1, 0) : second + 1]
        missing = window - seen.shape[1]
        return np.pad(seen, ((0, 0), (missing, 0), (0, 0)), constant_values=np.nan)


# Metrics of the first telemetry that was recorded.
FIRST_METRICS = 44


def write_run(path: Path, run: Run) -> None:
    """Write a run as one file, complete or not at all."""
    peers, seconds, _ = run.values.shape
    columns: dict[str, npt.NDArray[np.generic]] = {
        "peer": np.repeat(np.arange(peers, dtype=np.int16), seconds),
        "second": np.tile(np.arange(seconds, dtype=np.int32), peers),
    }
    for position, name in enumerate(TELEMETRY_SCHEMA.names):
        columns[name] = run.values[:, :, position].reshape(-1)
    table = pa.table(columns).replace_schema_metadata(
        {_TRUTH_KEY: json.dumps(asdict(run.truth)).encode()}
    )
    beside = path.with_name(f".{path.name}.new")
    pq.write_table(table, beside, compression="zstd", compression_level=15)
    beside.replace(path)


def read_run(path: Path) -> Run:
    """Read one file. Raises `RecordingRefused` when its metrics are not those of today."""
    table = pq.read_table(path)
    try:
        content = json.loads((table.schema.metadata or {})[_TRUTH_KEY])
        nodes = [NodeTruth(**node) for node in content.pop("nodes")]
        truth = RunTruth(**content, nodes=nodes)
    except (KeyError, TypeError, ValueError) as error:
        raise RecordingRefused(f"{path}: no ground truth inside: {error}") from error
    # A metric that came after the recording is missing in it; one of the first ones is not.
    first = TELEMETRY_SCHEMA.names[:FIRST_METRICS]
    absent = [name for name in first if name not in table.column_names]
    if absent:
        raise RecordingRefused(f"{path}: lacks {', '.join(absent)}; record it anew")
    peers = len(truth.nodes)
    missing = np.full((peers, len(table) // peers), np.nan, dtype=np.float32)
    columns = [
        table[name].to_numpy().reshape(peers, -1) if name in table.column_names else missing
        for name in TELEMETRY_SCHEMA.names
    ]
    return Run(truth=truth, values=np.stack(columns, axis=2).astype(np.float32))


def read_runs(directory: Path) -> list[Run]:
    """All runs of a directory, by number. Raises `RecordingRefused`, also when there is none."""
    paths = sorted(directory.glob("run-*.parquet"))
    if not paths:
        raise RecordingRefused(f"{directory}: no recordings; make some with `make lab`")
    return sorted((read_run(path) for path in paths), key=lambda run: run.truth.number)


def training_hash(runs: Iterable[Run]) -> str:
    """SHA-256 over truth and values of the runs, in order of their numbers.

    Metrics that a run does not have, since they came later, are no part of it.
    """
    digest = hashlib.sha256()
    for run in sorted(runs, key=lambda run: run.truth.number):
        digest.update(json.dumps(asdict(run.truth), sort_keys=True).encode())
        recorded = np.isfinite(run.values).any(axis=(0, 1))
        recorded[:FIRST_METRICS] = True
        digest.update(np.ascontiguousarray(run.values[:, :, recorded], dtype="<f4").tobytes())
    return digest.hexdigest()
