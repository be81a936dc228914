"""What the client library hands out and takes: receipts, records, positions.

Plain frozen values without protobuf behind them, so that they can be kept, compared and pickled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Headers = Mapping[str, bytes] | Sequence[tuple[str, bytes]]
"""Named values beside a record, in order; names are at most 256 bytes of UTF-8."""


class Receipt(NamedTuple):
    """Where an appended record is, and who had it on stable storage when it was acknowledged. A
    tuple for the reason that `Record` is one.

    Attributes:
        log: Name of the log.
        shard: Shard id.
        epoch: Epoch under which the batch was ordered.
        offset: The record's offset in the shard; for a batch, that of its first record.
        record_count: Records that the receipt is for.
        durable_on: Names of the peers. Empty only for a duplicate whose first answer was given
            under an earlier epoch.
        duplicate: The batch had been taken before; this is its first answer again.
        timestamp_ms: The log's time of the batch, milliseconds since 1970-01-01 UTC.
    """

    log: str
    shard: int
    epoch: int
    offset: int
    record_count: int = 1
    durable_on: tuple[str, ...] = ()
    duplicate: bool = False
    timestamp_ms: int = 0

    def __str__(self) -> str:
        last = self.offset + self.record_count - 1
        where = f"offset {self.offset}" if last == self.offset else f"offsets {self.offset}–{last}"
        durable = f"on disk at {', '.join(self.durable_on)}" if self.durable_on else "taken before"
        return f"{self.log}/{self.shard} {where}, epoch {self.epoch}, {durable}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRecord:
    """A record to append. `timestamp_ms` is the client's own time, if it has one to keep."""

    value: bytes
    key: bytes | None = None
    headers: Headers = ()
    timestamp_ms: int | None = None


class Record(NamedTuple):
    """A record as it was read. A tuple, because a reader makes very many: seven times as fast as a
    frozen dataclass.

    Attributes:
        log: Name of the log.
        shard: Shard id.
        offset: Offset within the shard.
        epoch: Epoch under which it was ordered.
        key: Its key; None if it has none.
        value: Its value.
        headers: Named values, in order.
        timestamp_ms: The producer's own time; None if it gave none.
        appended_ms: The log's time of the batch. Both in milliseconds since 1970-01-01 UTC.
    """

    log: str
    shard: int
    offset: int
    epoch: int
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp_ms: int | None = None
    appended_ms: int = 0


@dataclass(frozen=True, slots=True)
class Position:
    """Where a read stands: the next offset in each shard. What `read(start=…)` takes again."""

    offsets: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """The committed end of a shard.

    Attributes:
        shard: Shard id.
        epoch: Epoch of the segment that the tail lies in.
        committed: First offset after the committed records.
        first_offset: First readable offset.
        peer: Who answered.
    """

    shard: int
    epoch: int
    committed: int
    first_offset: int
    peer: str
