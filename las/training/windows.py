"""The parquet file of a fleet's windows: what `las train export` writes and `las train fit` reads.

One row group a *moment*: for each node of it `WINDOW_S` rows, a second each, oldest first, with a
float32 column a metric of the telemetry schema (NaN = missing) beside `node`, `moment` (seconds
since 1970), `second`, `weight` (how much of the fleet's time the moment stands for, 1: one step of
the grid) and a column a horizon, `fails_within_600s` and `fails_within_3600s`: 1, 0, or null where
nobody knows. The file says in its metadata, under `peerd.windows`, which telemetry schema it
follows.

Parquet needs pyarrow: `pip install 'peerd[parquet]'`.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from las.forecast.contract import HORIZONS_S
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA
from peerd.daemon.telemetry.window import WINDOW_SAMPLES_MAX

WINDOW_S = WINDOW_SAMPLES_MAX
FORMAT = 1
_KEY = b"peerd.windows"
_UNKNOWN = -1


class BadData(Exception):
    """A file that cannot be read or written; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Nodes at one moment. `labels` [nodes, horizons] are 1, 0, or -1: unknown."""

    at_s: int
    nodes: tuple[str, ...]
    weight: float
    windows: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int8]


def label_column(horizon_s: int) -> str:
    """The column of a horizon's labels."""
    return f"fails_within_{horizon_s}s"


class WindowWriter:
    """Writes a file, complete or not at all. A context: leaving it without an error keeps it."""

    def __init__(self, path: Path) -> None:
        """Raises `BadData` where pyarrow is not installed."""
        self._arrow = _pyarrow()
        self._path = path
        self._beside = path.with_name(f".{path.name}.new")
        self._schema = _schema(self._arrow)
        self._file: Any = None

    def __enter__(self) -> Self:
        try:
            self._file = self._arrow.parquet.ParquetWriter(
                self._beside, self._schema, compression="zstd"
            )
        except OSError as error:
            raise self._not_written(error) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
            if kind is None:
                self._beside.replace(self._path)
        except OSError as failed:
            if kind is None:
                raise self._not_written(failed) from failed
        finally:
            with contextlib.suppress(OSError):
                self._beside.unlink(missing_ok=True)

    def _not_written(self, error: OSError) -> BadData:
        return BadData(f"{self._path} cannot be written: {error.strerror or error}")

    def write(self, moment: Moment) -> None:
        """A row group. Raises `BadData` where it cannot be written."""
        count = len(moment.nodes)
        rows = count * WINDOW_S
        seconds = np.arange(moment.at_s - WINDOW_S + 1, moment.at_s + 1, dtype=np.int64)
        columns: dict[str, Any] = {
            "node": np.repeat(np.array(moment.nodes, dtype=object), WINDOW_S),
            "moment": np.full(rows, moment.at_s, dtype=np.int64),
            "second": np.tile(seconds, count),
            "weight": np.full(rows, moment.weight, dtype=np.float32),
        }
        for place, horizon_s in enumerate(HORIZONS_S):
            told = np.repeat(moment.labels[:, place], WINDOW_S)
            columns[label_column(horizon_s)] = self._arrow.array(told, mask=told == _UNKNOWN)
        for place, name in enumerate(TELEMETRY_SCHEMA.names):
            columns[name] = moment.windows[:, :, place].reshape(-1)
        try:
            self._file.write_table(self._arrow.table(columns, schema=self._schema))
        except OSError as error:
            raise self._not_written(error) from error


def read_moments(paths: Sequence[Path]) -> Iterator[Moment]:
    """The moments of files, in their order. Raises `BadData`."""
    arrow = _pyarrow()
    for path in paths:
        try:
            file = arrow.parquet.ParquetFile(path)
            known = _check(path, file.schema_arrow)
            for number in range(file.num_row_groups):
                yield _moment(path, file.read_row_group(number), known)
        except (OSError, ValueError, KeyError, TypeError, arrow.ArrowException) as error:
            raise BadData(f"{path} is no file of `las train export`: {error}") from error


def _check(path: Path, schema: Any) -> frozenset[str]:
    """The metrics that a file has. Raises `BadData` for another telemetry or format."""
    told = json.loads((schema.metadata or {}).get(_KEY, b"null"))
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise BadData(f"{path} is no file of `las train export` of this version")
    version = told.get("telemetry_schema")
    count = TELEMETRY_SCHEMA.metrics_of(version) if isinstance(version, int) else None
    if count is None:
        raise BadData(
            f"{path} follows telemetry schema {version}, this program has "
            f"{TELEMETRY_SCHEMA.version}: export it anew"
        )
    return frozenset(TELEMETRY_SCHEMA.names[:count])


def _moment(path: Path, table: Any, known: frozenset[str]) -> Moment:
    rows = table.num_rows
    nodes = table["node"].to_pylist()[::WINDOW_S]
    if rows == 0 or rows % WINDOW_S or len(set(nodes)) * WINDOW_S != rows:
        raise BadData(f"{path}: a row group has {rows} rows, {WINDOW_S} a node are expected")
    windows = np.full((len(nodes), WINDOW_S, len(TELEMETRY_SCHEMA)), np.nan, dtype=np.float32)
    for place, name in enumerate(TELEMETRY_SCHEMA.names):
        if name in known:
            windows[:, :, place] = table[name].to_numpy().reshape(len(nodes), WINDOW_S)
    labels = np.stack(
        [
            table[label_column(horizon_s)].fill_null(_UNKNOWN).to_numpy()[::WINDOW_S]
            for horizon_s in HORIZONS_S
        ],
        axis=1,
    ).astype(np.int8)
    at_s, weight = table["moment"][0].as_py(), table["weight"][0].as_py()
    if not (isinstance(at_s, int) and isinstance(weight, float) and 0.0 < weight < math.inf):
        raise BadData(f"{path}: a moment {at_s!r} with the weight {weight!r} is none")
    if not np.isin(labels, (_UNKNOWN, 0, 1)).all():
        raise BadData(f"{path}: a label is neither 0 nor 1 nor null")
    return Moment(
        at_s=at_s,
        nodes=tuple(nodes),
        weight=weight,
        windows=windows,
        labels=labels,
    )


def _schema(arrow: Any) -> Any:
    fields = [
        ("node", arrow.string()),
        ("moment", arrow.int64()),
        ("second", arrow.int64()),
        ("weight", arrow.float32()),
        *((label_column(horizon_s), arrow.int8()) for horizon_s in HORIZONS_S),
        *((name, arrow.float32()) for name in TELEMETRY_SCHEMA.names),
    ]
    told = {"format": FORMAT, "telemetry_schema": TELEMETRY_SCHEMA.version}
    return arrow.schema(fields, metadata={_KEY: json.dumps(told).encode()})


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise BadData(
            "parquet needs pyarrow, which is not installed: pip install 'peerd[parquet]'"
        ) from error
    return pyarrow
