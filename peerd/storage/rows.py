"""The small rows of a store: who it is, its shards, segments, producer rows and pending drops.

Each function works inside a transaction of the caller. Reading checks every row and raises
`CorruptRow`; these rows carry promises, so a store with a damaged one cannot be trusted as a whole.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from peerd.core.chunks import Chunk
from peerd.core.durable import StoredSegment, StoredShard
from peerd.core.ids import FIRST_OFFSET, Epoch, Offset, ProducerId, ShardId, StoreId
from peerd.core.producer import packed_end
from peerd.storage.environment import Database, Tables, Transaction
from peerd.storage.errors import CorruptRow
from peerd.storage.layout import (
    chunk_key,
    drop_key,
    open_row,
    read_chunk_key,
    read_drop_key,
    read_segment_key,
    read_shard_key,
    row_crc,
    seal_row,
    segment_key,
    shard_key,
)

_SHARD = struct.Struct(">QQQ?qIQ")
_SEGMENT = struct.Struct(">QQQ?QQQ")
# As written before there were chunks and trims: without the last two.
_SEGMENT_OLD = struct.Struct(">QQQ?Q")
_CHUNK = struct.Struct(">Q")
_STORE = struct.Struct(">32sIQ")
_STORE_KEY = b".store"
_OFFSET_MAX = Offset((1 << 64) - 1)


@dataclass(frozen=True, slots=True)
class DropRange:
    """Batches of a segment with a base in [begin, end): dead, and deleted slice by slice."""

    shard: ShardId
    epoch: Epoch
    begin: Offset
    end: Offset


@dataclass(frozen=True, slots=True)
class StoreMark:
    """Which store a data file is of, so that it is never taken for another's."""

    store_id: StoreId
    format_version: int


@dataclass(frozen=True, slots=True)
class TableMark:
    """What a shard's row says of its producer rows.

    `complete`, `timestamp_ms` and `forgotten_before` as in `TableSnapshot`; rows of producers that
    are forgotten may still lie there, and count for nothing. `digest` is the exclusive or of the
    rows' checksums: it tells a row that is missing, or is an older one, which no checksum of the
    rows themselves can.
    """

    complete: bool = True
    timestamp_ms: int = 0
    digest: int = 0
    forgotten_before: Offset = FIRST_OFFSET


@dataclass(frozen=True, slots=True)
class StoredState:
    """All small rows of a store but the producer rows, as read at opening."""

    store: StoreMark
    shards: dict[ShardId, StoredShard]
    marks: dict[ShardId, TableMark]
    drops: list[DropRange]
    sweeps: dict[ShardId, bytes] = field(default_factory=dict)
    """Where the next sweep of a shard's producer rows begins."""


# ------------------------------------------------------------------ the store itself
def put_store(transaction: Transaction, mark: StoreMark) -> None:
    """Write who the store is, and which transaction wrote it: a part of every commit.

    The row lies in the main database, whose page every commit writes anyway.
    """
    body = _STORE.pack(mark.store_id.encode(), mark.format_version, transaction.id())
    transaction.put(_STORE_KEY, seal_row(_STORE_KEY, body))


def read_store(transaction: Transaction) -> StoreMark:
    """Who the store is. Raises `CorruptRow`, also if what is read is not the newest state.

    A damaged meta page may make LMDB take an older state for the newest one. Then the row says so:
    it names the transaction that wrote it.
    """
    value = transaction.get(_STORE_KEY)
    if value is None:
        raise CorruptRow("main", _STORE_KEY, "missing")
    store_id, format_version, number = _STORE.unpack(open_row("main", _STORE_KEY, value))
    if number != transaction.id():
        why = f"it was written by transaction {number}, but the newest one is {transaction.id()}"
        raise CorruptRow("main", _STORE_KEY, why)
    return StoreMark(StoreId(store_id.decode()), format_version)


# ------------------------------------------------------------------ shards and segments
def put_shard(
    transaction: Transaction, tables: Tables, state: StoredShard, mark: TableMark
) -> None:
    """Write a shard's row; its segments have rows of their own."""
    key = shard_key(state.shard)
    body = _SHARD.pack(
        state.promised,
        state.adopted,
        state.table_as_of,
        mark.complete,
        mark.timestamp_ms,
        mark.digest,
        mark.forgotten_before,
    )
    transaction.put(key, seal_row(key, body), db=tables.shards)


def read_shard(
    transaction: Transaction, tables: Tables, shard: ShardId
) -> tuple[StoredShard, TableMark] | None:
    """A shard's row: a state without segments, and what it says of the producer rows."""
    key = shard_key(shard)
    value = transaction.get(key, db=tables.shards)
    return None if value is None else _open_shard(key, value)


def put_segment(
    transaction: Transaction, tables: Tables, shard: ShardId, segment: StoredSegment
) -> None:
    """Write a segment's row."""
    key = segment_key(shard, segment.epoch)
    body = _SEGMENT.pack(
        segment.begin,
        segment.end,
        segment.commit,
        segment.seal is not None,
        segment.seal or 0,
        segment.trimmed_to,
        segment.uncut_bytes,
    )
    transaction.put(key, seal_row(key, body), db=tables.segments)


def delete_segment(transaction: Transaction, tables: Tables, shard: ShardId, epoch: Epoch) -> None:
    """Remove a segment's row and those of its chunks; its batches are dropped apart."""
    transaction.delete(segment_key(shard, epoch), db=tables.segments)
    delete_chunks(transaction, tables, shard, epoch, FIRST_OFFSET, _OFFSET_MAX)


def put_chunk(
    transaction: Transaction, tables: Tables, shard: ShardId, epoch: Epoch, chunk: Chunk
) -> None:
    """Write that a chunk ends there."""
    key = chunk_key(shard, epoch, chunk.end)
    transaction.put(key, seal_row(key, _CHUNK.pack(chunk.payload_bytes)), db=tables.segments)


def delete_chunks(  # noqa: PLR0917 - where, and from where to where
    transaction: Transaction,
    tables: Tables,
    shard: ShardId,
    epoch: Epoch,
    begin: Offset,
    end: Offset,
) -> None:
    """Remove the rows of the chunks that end in [begin, end]: a few for each GiB."""
    cursor = transaction.cursor(tables.segments)
    found = cursor.set_range(chunk_key(shard, epoch, begin))
    last = chunk_key(shard, epoch, end)
    while found and bytes(cursor.key()) <= last:
        cursor.delete()  # moves to the next key
        found = bool(cursor.key())


def read_chunks_backwards(
    transaction: Transaction, tables: Tables, shard: ShardId, epoch: Epoch
) -> Iterator[Chunk]:
    """The whole chunks of a segment, the last one first. Raises `CorruptRow`."""
    cursor = transaction.cursor(tables.segments)
    beyond = chunk_key(shard, epoch, _OFFSET_MAX)
    found = cursor.prev() if cursor.set_range(beyond) else cursor.last()
    while found:
        place = read_chunk_key(cursor.key())
        if place is None or place[:2] != (shard, epoch):
            return
        (payload_bytes,) = _CHUNK.unpack(open_row("segments", cursor.key(), cursor.value()))
        yield Chunk(end=place[2], payload_bytes=payload_bytes)
        found = cursor.prev()


def read_segment(
    transaction: Transaction, tables: Tables, shard: ShardId, epoch: Epoch
) -> StoredSegment | None:
    """A segment's row."""
    key = segment_key(shard, epoch)
    value = transaction.get(key, db=tables.segments)
    return None if value is None else _open_segment(key, value)


def _open_shard(key: bytes | memoryview, value: memoryview) -> tuple[StoredShard, TableMark]:
    promised, adopted, as_of, *mark = _SHARD.unpack(open_row("shards", key, value))
    state = StoredShard(
        shard=read_shard_key(key),
        promised=Epoch(promised),
        adopted=Epoch(adopted),
        table_as_of=Offset(as_of),
    )
    complete, timestamp_ms, digest, forgotten = mark
    return state, TableMark(complete, timestamp_ms, digest, Offset(forgotten))


def _open_segment(key: bytes | memoryview, value: memoryview) -> StoredSegment:
    body = open_row("segments", key, value)
    trimmed_to, uncut_bytes = 0, 0
    if len(body) == _SEGMENT_OLD.size:
        begin, end, commit, sealed, seal = _SEGMENT_OLD.unpack(body)
    else:
        begin, end, commit, sealed, seal, trimmed_to, uncut_bytes = _SEGMENT.unpack(body)
    return StoredSegment(
        epoch=read_segment_key(key)[1],
        begin=Offset(begin),
        end=Offset(end),
        commit=Offset(commit),
        seal=Offset(seal) if sealed else None,
        trimmed_to=Offset(trimmed_to),
        uncut_bytes=uncut_bytes,
    )


# ------------------------------------------------------------------ drops
def put_drop(transaction: Transaction, tables: Tables, drop: DropRange) -> None:
    """Write that the range is dead, so that its deletion goes on after a restart."""
    key = drop_key(drop.shard, drop.epoch, drop.begin, drop.end)
    transaction.put(key, seal_row(key, b""), db=tables.drops)


def delete_drop(transaction: Transaction, tables: Tables, drop: DropRange) -> None:
    """The range is gone."""
    transaction.delete(drop_key(drop.shard, drop.epoch, drop.begin, drop.end), db=tables.drops)


# ------------------------------------------------------------------ producers
def get_producer(
    transaction: Transaction, tables: Tables, shard: ShardId, producer: ProducerId
) -> tuple[bytes, int]:
    """A producer's packed row (`peerd.core.producer.pack_row`) and its part in the digest.

    Empty and 0 if it has none.
    """
    key = shard_key(shard) + producer
    value = transaction.get(key, db=tables.producers)
    return (b"", 0) if value is None else (open_row("producers", key, value), row_crc(value))


def put_producer(
    transaction: Transaction,
    tables: Tables,
    shard: ShardId,
    producer: ProducerId,
    packed_row: bytes,
) -> int:
    """Write a producer's packed row; its part in the digest."""
    key = shard_key(shard) + producer
    value = seal_row(key, packed_row)
    transaction.put(key, value, db=tables.producers)
    return row_crc(value)


def read_producers(
    transaction: Transaction, tables: Tables, shard: ShardId, mark: TableMark
) -> Iterator[tuple[ProducerId, bytes]]:
    """All remembered producers of a shard with their packed rows, in the order of their ids.

    Raises `CorruptRow`, at the end at the latest, unless they are exactly the rows of `mark`.
    """
    prefix = shard_key(shard)
    cursor = transaction.cursor(tables.producers)
    found = cursor.set_range(prefix)
    digest = 0
    while found and bytes(cursor.key()[: len(prefix)]) == prefix:
        key, value = bytes(cursor.key()), cursor.value()
        packed = open_row("producers", key, value)
        if packed_end(packed) > mark.forgotten_before:
            yield ProducerId(key[len(prefix) :]), packed
        digest ^= row_crc(value)
        found = cursor.next()
    if digest != mark.digest:
        raise CorruptRow("producers", prefix, "rows are missing, or are not the newest ones")


def sweep_producers(
    transaction: Transaction,
    tables: Tables,
    shard: ShardId,
    *,
    forgotten_before: Offset,
    begin: bytes,
    rows_max: int,
) -> tuple[bytes, int]:
    """Look at up to `rows_max` producer rows of a shard from the key `begin` on (empty: the first),
    and delete those of forgotten producers.

    Returns the key to go on from (empty: from the first again), and what leaves the digest.
    """
    prefix = shard_key(shard)
    cursor = transaction.cursor(tables.producers)
    found = cursor.set_range(begin or prefix)
    digest = 0
    for _ in range(rows_max):
        if not found or bytes(cursor.key()[: len(prefix)]) != prefix:
            return b"", digest
        value = cursor.value()
        if packed_end(open_row("producers", cursor.key(), value)) <= forgotten_before:
            digest ^= row_crc(value)
            cursor.delete()  # moves to the next key
            found = bool(cursor.key())
        else:
            found = cursor.next()
    return bytes(cursor.key()) if found else b"", digest


def delete_producers(transaction: Transaction, tables: Tables, shard: ShardId) -> None:
    """Remove all producer rows of a shard."""
    prefix = shard_key(shard)
    cursor = transaction.cursor(tables.producers)
    found = cursor.set_range(prefix)
    while found and bytes(cursor.key()[: len(prefix)]) == prefix:
        cursor.delete()  # moves to the next key
        found = bool(cursor.key())


# ------------------------------------------------------------------ everything
def _all_rows(
    transaction: Transaction, name: str, table: Database
) -> Iterator[tuple[memoryview, memoryview]]:
    """Every row of a small table. Raises `CorruptRow` if a damaged page hides some of them."""
    count = 0
    for key, value in transaction.cursor(table):
        yield key, value
        count += 1
    entries = transaction.stat(table)["entries"]
    if count != entries:
        raise CorruptRow(name, b"", f"{count} rows where there are {entries}")


def read_state(transaction: Transaction, tables: Tables) -> StoredState:
    """The store's mark, all shards with their segments, the pending drops. Raises `CorruptRow`."""
    store = read_store(transaction)
    segments: dict[ShardId, dict[Epoch, StoredSegment]] = {}
    for key, value in _all_rows(transaction, "segments", tables.segments):
        if read_chunk_key(key) is not None:
            open_row("segments", key, value)
            continue
        segment = _open_segment(key, value)
        segments.setdefault(read_segment_key(key)[0], {})[segment.epoch] = segment
    shards: dict[ShardId, StoredShard] = {}
    marks: dict[ShardId, TableMark] = {}
    for key, value in _all_rows(transaction, "shards", tables.shards):
        state, mark = _open_shard(key, value)
        marks[state.shard] = mark
        shards[state.shard] = StoredShard(
            shard=state.shard,
            promised=state.promised,
            adopted=state.adopted,
            segments=segments.pop(state.shard, {}),
            table_as_of=state.table_as_of,
        )
    if segments:
        stray = next(iter(segments))
        raise CorruptRow("segments", shard_key(stray), "the shard has no row")
    drops = []
    for key, value in _all_rows(transaction, "drops", tables.drops):
        open_row("drops", key, value)
        drops.append(DropRange(*read_drop_key(key)))
    return StoredState(store, shards, marks, drops)
