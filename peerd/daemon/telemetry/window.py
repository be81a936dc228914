"""A peer's own memory of its last two minutes, and an optional recording of all of them.

The window lives on the peer, so that a new LAS leader, which knows nothing, can be given all of
it with the first heartbeat. Both classes are safe to use from several threads.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from peerd.daemon.telemetry.collector import Sample
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA

# limit: samples kept on a peer; two minutes at one a second is what the forecast looks at.
WINDOW_SAMPLES_MAX = 120


class Window:
    """The newest `capacity` samples; adding one to a full window drops the oldest."""

    def __init__(self, capacity: int = WINDOW_SAMPLES_MAX) -> None:
        self._samples: deque[Sample] = deque(maxlen=capacity)
        self._lock = threading.Lock()

    def add(self, sample: Sample) -> None:
        """Take in the newest sample."""
        with self._lock:
            self._samples.append(sample)

    def latest(self) -> Sample | None:
        """The newest sample; None before the first."""
        with self._lock:
            return self._samples[-1] if self._samples else None

    def since(self, sequence: int) -> list[Sample]:
        """Samples after that number, oldest first: what the next heartbeat carries.

        `since(-1)` is the whole window: what a new leader gets.
        """
        with self._lock:
            return [sample for sample in self._samples if sample.sequence > sequence]


class RecordingUnreadable(Exception):
    """The file is no recording of samples; the message says what is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Samples of one peer: ticks [n] and wall_ms [n] as int64, values [n, metrics] as float32."""

    names: tuple[str, ...]
    schema_version: int
    tick_ms: npt.NDArray[np.int64]
    wall_ms: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]


def _row_type(metric_count: int) -> np.dtype[np.void]:
    return np.dtype([("tick_ms", "<i8"), ("wall_ms", "<i8"), ("values", "<f4", (metric_count,))])


class Recorder:
    """Appends each sample to a file: one JSON line naming the schema, then rows of fixed size.

    A process that is killed leaves at most one torn row at the end, which the reader drops. A file
    of an earlier process of the same schema is continued.
    """

    def __init__(self, path: Path) -> None:
        self._row = np.zeros(1, dtype=_row_type(len(TELEMETRY_SCHEMA)))
        header = _header()
        if path.exists() and path.stat().st_size > 0:
            read_recording(path)  # refuses a foreign file before it is written to
            size_bytes = path.stat().st_size - len(header)
            whole_bytes = size_bytes // self._row.itemsize * self._row.itemsize
            self._file = path.open("r+b", buffering=0)
            self._file.truncate(len(header) + whole_bytes)
            self._file.seek(0, 2)
        else:
            self._file = path.open("wb", buffering=0)
            self._file.write(header)

    def add(self, sample: Sample) -> None:
        """Append one sample; the row is with the kernel when this returns."""
        self._row["tick_ms"] = sample.tick_ms
        self._row["wall_ms"] = sample.wall_ms
        self._row["values"] = sample.values
        self._file.write(self._row.tobytes())

    def close(self) -> None:
        """End the recording."""
        self._file.close()


def _header() -> bytes:
    content = {"schema_version": TELEMETRY_SCHEMA.version, "metrics": TELEMETRY_SCHEMA.names}
    return json.dumps(content).encode() + b"\n"


def read_recording(path: Path) -> Recording:
    """Read what `Recorder` wrote. Raises `RecordingUnreadable`."""
    head, separator, body = path.read_bytes().partition(b"\n")
    try:
        content = json.loads(head)
        names = tuple(str(name) for name in content["metrics"])
        version = int(content["schema_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise RecordingUnreadable(f"{path}: no recording of samples: {error}") from error
    if not separator:
        raise RecordingUnreadable(f"{path}: the first line is cut off")
    if version != TELEMETRY_SCHEMA.version:
        raise RecordingUnreadable(
            f"{path}: recorded with schema {version}, this program has {TELEMETRY_SCHEMA.version}"
        )
    row_type = _row_type(len(names))
    rows = np.frombuffer(body, dtype=row_type, count=len(body) // row_type.itemsize)
    return Recording(
        names=names,
        schema_version=version,
        tick_ms=rows["tick_ms"].copy(),
        wall_ms=rows["wall_ms"].copy(),
        values=rows["values"].copy(),
    )
