"""How state and batches look as LMDB rows: keys, values, checksums. No IO.

Tables (named databases of the one environment), all integers big-endian, so that LMDB's byte order
is the order of shards, epochs and offsets:

| table     | key                             | value                                             |
| --------- | ------------------------------- | ------------------------------------------------- |
| (main)    | b".store"                       | store id, format version, transaction             |
| shards    | shard u64                       | promised, adopted; table: as of, complete, time … |
| segments  | shard u64, epoch u64            | begin, end, commit, seal, trimmed to, uncut bytes |
| segments  | shard, epoch, end of a chunk    | payload bytes of the chunk                        |
| batches   | shard, epoch, offset, part u32  | part 0: header, stored CRC, payload; then payload |
| producers | shard u64, producer 16 B        | the last batches of the producer, oldest first    |
| drops     | shard, epoch, from, to          | nothing: batches that are still to be deleted     |

Invariants:
- No value is longer than `PART_BYTES_MAX`, so no value ever needs two contiguous pages: in a store
  that has aged, LMDB searches its whole free list for a contiguous run (docs/decisions.md).
- Every value ends in, or holds, a CRC-32C over what it says *and* where it stands. A value that is
  read back under another key, or with one bit changed, is never taken for good.
"""

import struct
from collections.abc import Iterator
from typing import TypeAlias

from crc32c import crc32c

from peerd.core.batch import HEADER_BYTES, PlacedBatch
from peerd.core.check import invariant
from peerd.core.ids import Epoch, Offset, ShardId
from peerd.storage.errors import CorruptRow

Bytes: TypeAlias = bytes | memoryview

# limit: bytes of a value; a page of 4 KiB holds 4,080 of one value after its header.
PART_BYTES_MAX = 4_000

_SHARD_KEY = struct.Struct(">Q")
_SEGMENT_KEY = struct.Struct(">QQ")
_CHUNK_KEY = struct.Struct(">QQQ")
_BATCH_KEY = struct.Struct(">QQQI")
_DROP_KEY = struct.Struct(">QQQQ")
_PLACE = struct.Struct(">QQQ")
_CRC = struct.Struct(">I")

BATCH_PREFIX_BYTES = HEADER_BYTES + _CRC.size
"""Length of the header and the stored CRC at the beginning of part 0."""

_PAYLOAD_BYTES_IN_PART_0 = PART_BYTES_MAX - BATCH_PREFIX_BYTES


# ------------------------------------------------------------------ keys
def shard_key(shard: ShardId) -> bytes:
    """Key in `shards`; also the prefix of the shard's keys in all other tables."""
    return _SHARD_KEY.pack(shard)


def read_shard_key(key: Bytes) -> ShardId:
    """The shard of a key of `shards`, or of any key that begins with one."""
    return ShardId(_SHARD_KEY.unpack_from(key)[0])


def segment_key(shard: ShardId, epoch: Epoch) -> bytes:
    """Key in `segments`; also the prefix of the segment's keys in `batches`."""
    return _SEGMENT_KEY.pack(shard, epoch)


def read_segment_key(key: Bytes) -> tuple[ShardId, Epoch]:
    """Inverse of `segment_key`."""
    shard, epoch = _SEGMENT_KEY.unpack(key)
    return ShardId(shard), Epoch(epoch)


def chunk_key(shard: ShardId, epoch: Epoch, end: Offset) -> bytes:
    """Key in `segments` of a whole chunk that ends at `end`; behind the key of its segment."""
    return _CHUNK_KEY.pack(shard, epoch, end)


def read_chunk_key(key: Bytes) -> tuple[ShardId, Epoch, Offset] | None:
    """Inverse of `chunk_key`; None if the key is a segment's."""
    if len(key) != _CHUNK_KEY.size:
        return None
    shard, epoch, end = _CHUNK_KEY.unpack(key)
    return ShardId(shard), Epoch(epoch), Offset(end)


def batch_key(shard: ShardId, epoch: Epoch, base: Offset, part: int = 0) -> bytes:
    """Key in `batches`."""
    return _BATCH_KEY.pack(shard, epoch, base, part)


def read_batch_key(key: Bytes) -> tuple[ShardId, Epoch, Offset, int]:
    """Inverse of `batch_key`."""
    shard, epoch, base, part = _BATCH_KEY.unpack(key)
    return ShardId(shard), Epoch(epoch), Offset(base), part


def drop_key(shard: ShardId, epoch: Epoch, begin: Offset, end: Offset) -> bytes:
    """Key in `drops`: batches with a base in [begin, end) are dead and wait for deletion."""
    return _DROP_KEY.pack(shard, epoch, begin, end)


def read_drop_key(key: Bytes) -> tuple[ShardId, Epoch, Offset, Offset]:
    """Inverse of `drop_key`."""
    shard, epoch, begin, end = _DROP_KEY.unpack(key)
    return ShardId(shard), Epoch(epoch), Offset(begin), Offset(end)


# ------------------------------------------------------------------ small rows
def seal_row(key: bytes, body: bytes) -> bytes:
    """The value to store: the body, then a CRC-32C over key and body."""
    return body + _CRC.pack(crc32c(body, crc32c(key)))


def row_crc(value: Bytes) -> int:
    """The checksum that a sealed value ends in."""
    return int(_CRC.unpack(value[-_CRC.size :])[0])


def open_row(table: str, key: Bytes, value: Bytes) -> bytes:
    """The body of a stored value. Raises `CorruptRow` unless it is what was sealed under `key`."""
    key_bytes, sealed = bytes(key), bytes(value)
    body, crc = sealed[: -_CRC.size], sealed[-_CRC.size :]
    if len(crc) != _CRC.size or _CRC.unpack(crc)[0] != crc32c(body, crc32c(key_bytes)):
        raise CorruptRow(table, key_bytes, "checksum mismatch")
    return body


# ------------------------------------------------------------------ batches
def stored_crc(shard: ShardId, epoch: Epoch, base: Offset, packed_header: Bytes) -> int:
    """CRC-32C over the batch's place and its header, which names the payload's CRC."""
    return crc32c(packed_header, crc32c(_PLACE.pack(shard, epoch, base)))


def batch_rows(shard: ShardId, epoch: Epoch, batch: PlacedBatch) -> Iterator[tuple[bytes, Bytes]]:
    """The rows of a batch, in key order. The payload is sliced, not copied, after part 0."""
    payload = memoryview(batch.payload)
    invariant(
        len(payload) == batch.header.payload_bytes,
        "the header tells the payload's length",
        header=batch.header,
        payload_bytes=len(payload),
    )
    packed = batch.header.pack()
    crc = _CRC.pack(stored_crc(shard, epoch, batch.base, packed))
    first = b"".join((packed, crc, payload[:_PAYLOAD_BYTES_IN_PART_0]))
    yield batch_key(shard, epoch, batch.base), first
    starts = range(_PAYLOAD_BYTES_IN_PART_0, len(payload), PART_BYTES_MAX)
    for part, start in enumerate(starts, 1):
        yield (
            batch_key(shard, epoch, batch.base, part),
            payload[start : start + PART_BYTES_MAX],
        )


def read_batch_prefix(
    shard: ShardId, epoch: Epoch, base: Offset, part_0: memoryview
) -> memoryview | None:
    """The packed header at the beginning of part 0, or None if its stored CRC does not fit."""
    if len(part_0) < BATCH_PREFIX_BYTES:
        return None
    packed = part_0[:HEADER_BYTES]
    (crc,) = _CRC.unpack(part_0[HEADER_BYTES:BATCH_PREFIX_BYTES])
    return packed if crc == stored_crc(shard, epoch, base, packed) else None


def part_count(payload_bytes: int) -> int:
    """Number of rows that a batch of this payload takes."""
    beyond = max(0, payload_bytes - _PAYLOAD_BYTES_IN_PART_0)
    return 1 + -(-beyond // PART_BYTES_MAX)
