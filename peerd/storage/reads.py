"""Reading rows inside one short transaction, and never believing them unchecked.

Invariants:
- A batch is given out only if its place, header and payload all fit their checksums; otherwise
  `Corrupt` is raised. Damaged is never absent: inside [first, end) of a segment the batches tile
  without gap, so a missing row is damage, too.
- Whatever LMDB itself stumbles over while it looks for a batch is damage of that batch.
- What is given out is copied out of the map: nothing refers to it after the transaction.
"""

import struct
from collections.abc import Iterator
from itertools import islice

import lmdb
from crc32c import crc32c

from peerd.core.batch import BatchHeader, PlacedBatch
from peerd.core.durable import StoredSegment
from peerd.core.ids import Offset, ShardId
from peerd.storage.environment import Database, Transaction
from peerd.storage.errors import Corrupt
from peerd.storage.layout import (
    BATCH_PREFIX_BYTES,
    batch_key,
    part_count,
    read_batch_key,
    read_batch_prefix,
)


class SegmentReader:
    """Reads the batches of one segment, within one transaction of the caller."""

    def __init__(
        self,
        transaction: Transaction,
        batches_table: Database,
        shard: ShardId,
        segment: StoredSegment,
    ) -> None:
        self._cursor = transaction.cursor(batches_table)
        self._shard = shard
        self._segment = segment

    def batches(self, from_offset: Offset, to_offset: Offset) -> Iterator[PlacedBatch]:
        """Batches from the one that contains `from_offset`, with payload, to `to_offset`."""
        for base, header in self.headers(from_offset, to_offset):
            try:
                payload = self._read_payload(base, header)
            except lmdb.Error as error:
                raise self._corrupt(base, f"LMDB: {error}") from error
            yield PlacedBatch(base=base, header=header, payload=payload)

    def headers(
        self, from_offset: Offset, to_offset: Offset
    ) -> Iterator[tuple[Offset, BatchHeader]]:
        """(base, header) of the same batches; payloads are neither read nor checked.

        While the caller holds one, the cursor stands on part 0 of that batch.
        """
        base = max(from_offset, self._segment.first)
        end = min(to_offset, self._segment.end)
        if base >= end:
            return
        try:
            base, header = self._find(base)
            while True:
                yield base, header
                base = Offset(base + header.record_count)
                if base >= end:
                    return
                header = self._read_header(base)
        except lmdb.Error as error:
            raise self._corrupt(base, f"LMDB: {error}") from error

    def header_at(self, offset: Offset) -> tuple[Offset, BatchHeader]:
        """(base, header) of the batch that contains `offset`, which lies in [first, end)."""
        try:
            return self._find(offset)
        except lmdb.Error as error:
            raise self._corrupt(offset, f"LMDB: {error}") from error

    def base_after(self, offset: Offset) -> Offset:
        """Base of the next batch beyond `offset` that has a row; the segment's end if none has."""
        segment = self._segment
        try:
            found = self._cursor.set_range(
                batch_key(self._shard, segment.epoch, Offset(offset + 1))
            )
            while found:
                shard, epoch, base, part = read_batch_key(self._cursor.key())
                if (shard, epoch) != (self._shard, segment.epoch):
                    break
                if part == 0:
                    return min(base, segment.end)
                found = self._cursor.next()
        except (lmdb.Error, struct.error):
            pass  # nothing beyond can be reached: the caller has counted the damage before it
        return segment.end

    def _corrupt(self, offset: Offset, why: str) -> Corrupt:
        return Corrupt(self._shard, self._segment.epoch, offset, why)

    def _find(self, offset: Offset) -> tuple[Offset, BatchHeader]:
        """(base, header) of the batch that contains `offset`; the cursor stands on its part 0."""
        cursor, segment = self._cursor, self._segment
        wanted = batch_key(self._shard, segment.epoch, offset)
        if cursor.set_range(wanted):
            if bytes(cursor.key()) == wanted:
                return offset, self._header_here(offset)
            found = cursor.prev()
        else:
            found = cursor.last()
        if found and len(cursor.key()) == len(wanted):
            shard, epoch, base, _ = read_batch_key(cursor.key())
            if (shard, epoch) == (self._shard, segment.epoch) and base >= segment.first:
                header = self._read_header(base)
                if base + header.record_count > offset:
                    return base, header
        raise self._corrupt(offset, "no batch contains it")

    def _read_header(self, base: Offset) -> BatchHeader:
        """Position the cursor on part 0 of the batch at `base`, check it, give its header."""
        if not self._cursor.set_key(batch_key(self._shard, self._segment.epoch, base)):
            raise self._corrupt(base, "the batch is missing")
        return self._header_here(base)

    def _header_here(self, base: Offset) -> BatchHeader:
        segment = self._segment
        packed = read_batch_prefix(self._shard, segment.epoch, base, self._cursor.value())
        if packed is None:
            raise self._corrupt(base, "checksum mismatch of the header")
        header = BatchHeader.unpack(packed)
        if header.record_count < 1 or base + header.record_count > segment.end:
            raise self._corrupt(base, "the batch leaves the segment")
        return header

    def _read_payload(self, base: Offset, header: BatchHeader) -> bytes:
        """The payload of the batch whose part 0 the cursor stands on."""
        count = part_count(header.payload_bytes)
        # Taken in one go. Rows are sorted, so with the last one in its place all are, but for
        # damage, which the checksum finds.
        parts = list(islice(self._cursor.iternext(), count))
        last = batch_key(self._shard, self._segment.epoch, base, count - 1)
        if len(parts) < count or bytes(parts[-1][0]) != last:
            raise self._corrupt(base, f"one of its {count} parts is missing")
        pieces = [value for _, value in parts]
        pieces[0] = pieces[0][BATCH_PREFIX_BYTES:]
        payload = b"".join(pieces)
        if len(payload) != header.payload_bytes or crc32c(payload) != header.payload_crc:
            raise self._corrupt(base, "checksum mismatch of the payload")
        return payload


def find_time(reader: SegmentReader, segment: StoredSegment, timestamp_ms: int) -> Offset:
    """Base of the first batch with at least this time; the segment's end if there is none.

    The time of batches never decreases within a shard (docs/decisions.md), so halving works.
    """
    low, high = segment.first, segment.end
    while low < high:
        base, header = reader.header_at(Offset((low + high) // 2))
        if header.timestamp_ms >= timestamp_ms:
            high = base
        else:
            low = Offset(base + header.record_count)
    return low
