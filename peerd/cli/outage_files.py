"""Outages in files: CSV, and parquet where pyarrow is installed.

Columns: `node` and `begin`; and, where known, `end` (none: it goes on), `cause` (none: unknown),
`host`, `rack`, `in_service`. Times are seconds since 1970 UTC, or ISO 8601 with a time zone: a time
without one would be a guess. A column of whole numbers in which some are missing is one of floats
and NaN where pandas wrote it: a NaN is an empty cell, and parts of a second are left out.
Unknown columns are refused, so that a misspelt one is not lost.

A file is read whole before anything is sent, and a row that cannot be refuses all of it, with its
line. Bounds: `FILE_BYTES_MAX`, `ROWS_MAX`.
"""

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from las.v1 import history_pb2

# limit: bytes of an imported file; a full history has a sixth of it.
FILE_BYTES_MAX = 32 * 1024 * 1024
# limit: rows of an imported file: as many as a LAS keeps.
ROWS_MAX = 32_768
# limit: characters of one cell.
CELL_CHARACTERS_MAX = 1_024

COLUMNS = ("node", "host", "rack", "begin", "end", "cause", "in_service")
_REQUIRED = frozenset({"node", "begin"})
_NAME_CHARACTERS_MAX = 128
_PREFIX = "OUTAGE_CAUSE_"
_NUMBER = re.compile(r"-?[0-9]{1,15}(\.[0-9]{0,9})?")
CAUSES = tuple(
    name.removeprefix(_PREFIX).lower()
    for name in history_pb2.OutageCause.keys()  # noqa: SIM118 - it is an enum, not a dict
    if not name.endswith("UNSPECIFIED")
)

Row = Mapping[str, object]


class BadFile(Exception):
    """The file is not what it should be; the message says where, and what would be right."""


def read_outages(path: Path, until_s: int | None = None) -> list[history_pb2.Outage]:
    """The outages of a `.csv` or `.parquet` file, none of which is to lie beyond `until_s`.

    Raises:
        BadFile: it cannot be read, is too large, or a row in it cannot be.
    """
    try:
        size_bytes = path.stat().st_size
        if size_bytes > FILE_BYTES_MAX:
            text = f"{path} has {size_bytes} bytes, at most {FILE_BYTES_MAX} are taken: cut it up"
            raise BadFile(text)
        rows = _parquet_rows(path) if _is_parquet(path) else _csv_rows(path)
        return list(_outages(path, rows, until_s))
    except OSError as error:
        raise BadFile(f"{path} cannot be read: {error.strerror or error}") from error


def write_outages(path: Path, outages: Iterable[history_pb2.Outage]) -> None:
    """Writes what `read_outages` reads. Raises `BadFile` if it cannot be written."""
    try:
        if _is_parquet(path):
            _write_parquet(path, list(outages))
        else:
            path.write_text(csv_text(outages), encoding="utf-8", newline="")
    except OSError as error:
        raise BadFile(f"{path} cannot be written: {error.strerror or error}") from error


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def csv_text(outages: Iterable[history_pb2.Outage]) -> str:
    """Outages as CSV, times in ISO 8601."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for outage in outages:
        writer.writerow(
            [
                outage.node,
                outage.host,
                outage.rack,
                time_text(outage.begin_s),
                time_text(outage.end_s) if outage.HasField("end_s") else "",
                cause_text(outage),
                time_text(outage.in_service_s) if outage.HasField("in_service_s") else "",
            ]
        )
    return out.getvalue()


def cause_text(outage: history_pb2.Outage) -> str:
    """Its cause in one word."""
    return history_pb2.OutageCause.Name(outage.cause).removeprefix(_PREFIX).lower()


def time_text(time_s: int) -> str:
    """Seconds since 1970 as ISO 8601 in UTC."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# ---------------------------------------------------------------------------------- reading
def _csv_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Rows with where they stand. A line's number counts the header."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            _check_columns(path, header)
            for cells in reader:
                if len(cells) not in {0, len(header)}:
                    text = f"{len(cells)} cells, the header has {len(header)}"
                    raise BadFile(f"{path}, line {reader.line_num}: {text}")
                if cells:
                    yield f"line {reader.line_num}", dict(zip(header, cells, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise BadFile(f"{path}, line {reader.line_num + 1}: no CSV: {error}") from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    pyarrow = _pyarrow()
    try:
        file = pyarrow.parquet.ParquetFile(path)
        if file.metadata.num_rows > ROWS_MAX:
            raise BadFile(f"{path} has {file.metadata.num_rows} rows, at most {ROWS_MAX} are taken")
        _check_columns(path, file.schema_arrow.names)
        rows = file.read().to_pylist()
    except (pyarrow.ArrowException, ValueError) as error:
        raise BadFile(f"{path} is no parquet file: {error}") from error
    for number, row in enumerate(rows, 1):
        yield f"row {number}", row


def _pyarrow() -> Any:
    """The library, with what is used of it. Raises `BadFile` where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise BadFile(
            "parquet needs pyarrow, which is not installed: pip install 'peerd[parquet]', or use "
            "a .csv file"
        ) from error
    return pyarrow


def _check_columns(path: Path, names: Sequence[str]) -> None:
    if missing := sorted(_REQUIRED.difference(names)):
        raise BadFile(f"{path} has no column {missing[0]}; columns are {', '.join(COLUMNS)}")
    if unknown := sorted(set(names).difference(COLUMNS)):
        raise BadFile(f"{path} has a column {unknown[0]!r}; columns are {', '.join(COLUMNS)}")
    if len(set(names)) != len(names):
        raise BadFile(f"{path} has two columns of one name")


def _outages(
    path: Path, rows: Iterable[tuple[str, Row]], until_s: int | None
) -> Iterator[history_pb2.Outage]:
    for number, (where, row) in enumerate(rows, 1):
        if number > ROWS_MAX:
            raise BadFile(f"{path} has more than {ROWS_MAX} rows: cut it up")
        try:
            outage = _outage(row)
            latest_s = max(outage.begin_s, outage.end_s)
            if until_s is not None and latest_s > until_s:
                raise ValueError(
                    f"{time_text(latest_s)} lies in the future: what was seen does not"
                )
            yield outage
        except ValueError as error:
            raise BadFile(f"{path}, {where}: {error}") from error


def _outage(row: Row) -> history_pb2.Outage:
    """Raises `ValueError` with what is wrong."""
    node = _name(row, "node")
    if not node:
        raise ValueError("node is empty")
    begin_s, end_s = _time_s(row, "begin"), _time_s(row, "end")
    in_service_s = _time_s(row, "in_service")
    if begin_s is None:
        raise ValueError("begin is empty")
    if end_s is not None and end_s < begin_s:
        raise ValueError(f"end {time_text(end_s)} lies before begin {time_text(begin_s)}")
    if in_service_s is not None and in_service_s > begin_s:
        raise ValueError(f"in_service {time_text(in_service_s)} lies after begin")
    cause = _name(row, "cause").lower() or "unknown"
    if cause not in CAUSES:
        raise ValueError(f"cause is {cause[:40]!r}; causes are {', '.join(CAUSES)}")
    return history_pb2.Outage(
        node=node,
        host=_name(row, "host"),
        rack=_name(row, "rack"),
        begin_s=begin_s,
        end_s=end_s,
        cause=history_pb2.OutageCause.Value(_PREFIX + cause.upper()),
        in_service_s=in_service_s,
    )


def _name(row: Row, column: str) -> str:
    cell = row.get(column)
    if isinstance(cell, float) and math.isnan(cell):
        cell = None
    if not isinstance(cell, str | int | None):
        raise ValueError(f"{column} is a {type(cell).__name__}: expected a name")
    value = "" if cell is None else str(cell).strip()
    if len(value) > _NAME_CHARACTERS_MAX:
        raise ValueError(f"{column} has {len(value)} characters, at most {_NAME_CHARACTERS_MAX}")
    if not value.isprintable():
        raise ValueError(f"{column} has characters that cannot be printed")
    return value


def _time_s(row: Row, column: str) -> int | None:
    """A time of a cell in seconds since 1970; None if it is empty."""
    value = row.get(column)
    text = "" if value is None else str(value).strip()[:CELL_CHARACTERS_MAX]
    if text.lower() in {"", "nan", "nat"}:
        return None
    try:
        if isinstance(value, int | float) or _NUMBER.fullmatch(text):
            time_s = int(float(text)) if "." in text or "e" in text else int(text)
        else:
            moment = value if isinstance(value, datetime) else datetime.fromisoformat(text)
            if moment.tzinfo is None:
                raise ValueError(f"{column} {text!r} has no time zone: write {text}Z for UTC")
            time_s = int(moment.timestamp())
        time_text(time_s)
    except (ValueError, OverflowError, OSError) as error:
        if "time zone" in str(error):
            raise
        raise ValueError(
            f"{column} is {text[:40]!r}: expected seconds since 1970, or a time such as "
            "2026-03-01T12:00:00Z"
        ) from error
    if time_s < 0:
        raise ValueError(f"{column} {text[:40]} lies before 1970")
    return time_s


# ---------------------------------------------------------------------------------- writing
def _write_parquet(path: Path, outages: Sequence[history_pb2.Outage]) -> None:
    pyarrow = _pyarrow()
    moment = pyarrow.timestamp("s", tz="UTC")

    def times(name: Literal["end_s", "in_service_s"]) -> object:
        values = [getattr(each, name) if each.HasField(name) else None for each in outages]
        return pyarrow.array(values, type=pyarrow.int64()).cast(moment)

    table = pyarrow.table(
        {
            "node": [each.node for each in outages],
            "host": [each.host for each in outages],
            "rack": [each.rack for each in outages],
            "begin": pyarrow.array([each.begin_s for each in outages], pyarrow.int64()).cast(
                moment
            ),
            "end": times("end_s"),
            "cause": [cause_text(each) for each in outages],
            "in_service": times("in_service_s"),
        }
    )
    pyarrow.parquet.write_table(table, path)
