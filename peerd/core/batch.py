"""A batch as the core sees it: a header, and a payload that nothing in here opens.

The payload is the serialized `peerd.v1.Batch`. Its CRC-32C (`payload_crc`) is computed and compared
at the edges (transport, storage); the core only carries it.
"""

import struct

from peerd.core.ids import FIRST_OFFSET, Offset, ProducerId
from peerd.core.value import value

_HEADER = struct.Struct(">IIQQ16sQqIQ")
"""record_count, payload_crc, key_hash_low, key_hash_high, producer, first_sequence, timestamp_ms,
payload_bytes, forget_before."""

HEADER_BYTES = _HEADER.size
NO_PRODUCER = ProducerId(b"")
_ZERO_PRODUCER = bytes(16)


@value(frozen=True, slots=True, kw_only=True)
class BatchHeader:
    """What is known of a batch without opening it. `payload_bytes` is the payload's length.

    `forget_before`: from this batch on, producers whose newest batch ends at or below this offset
    are forgotten (docs/protocol.md §3.1). The primary gives it, as it gives the time; 0: nobody is.
    """

    record_count: int
    payload_crc: int
    key_hash_low: int = 0
    key_hash_high: int = 0
    producer: ProducerId = NO_PRODUCER
    first_sequence: int = 0
    timestamp_ms: int = 0
    payload_bytes: int
    forget_before: Offset = FIRST_OFFSET

    def pack(self) -> bytes:
        """`HEADER_BYTES` bytes; `unpack` gives the same header back."""
        return _HEADER.pack(
            self.record_count,
            self.payload_crc,
            self.key_hash_low,
            self.key_hash_high,
            self.producer or _ZERO_PRODUCER,
            self.first_sequence,
            self.timestamp_ms,
            self.payload_bytes,
            self.forget_before,
        )

    @staticmethod
    def unpack(data: bytes | memoryview) -> "BatchHeader":
        """Inverse of `pack`. Raises `struct.error` on a wrong length."""
        count, crc, low, high, producer, sequence, timestamp_ms, size, forget = _HEADER.unpack(data)
        return BatchHeader(
            record_count=count,
            payload_crc=crc,
            key_hash_low=low,
            key_hash_high=high,
            producer=NO_PRODUCER if producer == _ZERO_PRODUCER else ProducerId(producer),
            first_sequence=sequence,
            timestamp_ms=timestamp_ms,
            payload_bytes=size,
            forget_before=Offset(forget),
        )


@value(frozen=True, slots=True, kw_only=True)
class PlacedBatch:
    """A batch at its place in a shard: it fills [base, end)."""

    base: Offset
    header: BatchHeader
    payload: bytes | memoryview

    @property
    def end(self) -> Offset:
        """First offset after the batch."""
        return Offset(self.base + self.header.record_count)
