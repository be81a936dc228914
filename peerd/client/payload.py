"""Records to batch bytes and back.

A batch is built from records that were serialized one by one, as they came in: the wire form of a
batch is theirs, joined. Reading checks the checksum end to end, before anything is parsed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import crc32c
import zstandard
from google.protobuf.message import DecodeError

from peerd.client.errors import CorruptData, InvalidRequest
from peerd.client.values import Headers, NewRecord, Record
from peerd.internal.v1 import log_bytes_pb2
from peerd.transport.limits import DECOMPRESSED_BYTES_MAX, HEADER_NAME_BYTES_MAX
from peerd.v1 import batch_pb2

# What a record costs in a batch beyond its own bytes: tag and length.
RECORD_OVERHEAD_BYTES = 6
# What a batch costs beyond its records: two tags, two lengths.
BATCH_OVERHEAD_BYTES = 16


@dataclass(frozen=True, slots=True)
class BuiltBatch:
    """A serialized `peerd.v1.Batch` and its CRC-32C."""

    payload: bytes
    crc: int
    record_count: int


def serialize_record(record: NewRecord) -> bytes:
    """The serialized `peerd.v1.Record`.

    Raises:
        InvalidRequest: key, value or a header is not of its type, or a header's name is too long.
    """
    headers = record.headers
    if not headers and record.timestamp_ms is None:
        # Most records are like this, and building is most of what an append costs here.
        try:
            return batch_pb2.Record(key=record.key, value=record.value).SerializeToString()
        except TypeError as error:
            raise InvalidRequest(f"a record's key and value are bytes: {error}") from error
    try:
        message = batch_pb2.Record(
            key=record.key,
            value=record.value,
            headers=[batch_pb2.Header(name=name, value=value) for name, value in _pairs(headers)],
            timestamp_ms=record.timestamp_ms,
        )
    except (TypeError, ValueError) as error:
        raise InvalidRequest(
            f"a record has bytes as key, value and header values, text as header names, and whole "
            f"milliseconds as time: {error}"
        ) from error
    for header in message.headers:
        if len(header.name.encode()) > HEADER_NAME_BYTES_MAX:
            raise InvalidRequest(f"headers: a name is longer than {HEADER_NAME_BYTES_MAX} bytes")
    return message.SerializeToString()


def _pairs(headers: Headers) -> Sequence[tuple[str, bytes]]:
    return list(headers.items()) if isinstance(headers, Mapping) else headers


def build_batch(records: Sequence[bytes]) -> BuiltBatch:
    """One batch of serialized records, in order."""
    payload = log_bytes_pb2.BatchBytes(
        record_count=len(records), records=log_bytes_pb2.RecordsBytes(records=records)
    ).SerializeToString()
    return BuiltBatch(payload=payload, crc=crc32c.crc32c(payload), record_count=len(records))


def records_of(log: str, batch: log_bytes_pb2.ReadBatchBytes, begin: int) -> Iterator[Record]:
    """The records of a batch as it was read, from offset `begin` on.

    Raises:
        CorruptData: the bytes do not match their checksum, or are no batch.
    """
    where = f"{log}/{batch.shard} offset {batch.base_offset}"
    if crc32c.crc32c(batch.batch) != batch.payload_crc:
        raise CorruptData(
            f"{where}: the batch arrived with another checksum than it was appended with: read it "
            "again, from another peer"
        )
    try:
        records = _unpack(batch_pb2.Batch.FromString(batch.batch))
    except (DecodeError, zstandard.ZstdError, ValueError) as error:
        raise CorruptData(f"{where}: the batch cannot be unpacked ({error})") from error
    for index, record in enumerate(records):
        offset = batch.base_offset + index
        if offset < begin:
            continue
        yield Record(
            log=log,
            shard=batch.shard,
            offset=offset,
            epoch=batch.epoch,
            key=record.key if record.HasField("key") else None,
            value=record.value,
            headers=tuple((header.name, header.value) for header in record.headers),
            timestamp_ms=record.timestamp_ms if record.HasField("timestamp_ms") else None,
            appended_ms=batch.timestamp_ms,
        )


def _unpack(batch: batch_pb2.Batch) -> Sequence[batch_pb2.Record]:
    if batch.codec == batch_pb2.CODEC_UNSPECIFIED:
        return batch.records.records
    if batch.codec != batch_pb2.CODEC_ZSTD:
        raise ValueError(f"codec {batch.codec} is not known: use a newer client")
    if zstandard.frame_content_size(batch.compressed) > DECOMPRESSED_BYTES_MAX:
        raise ValueError(f"it unpacks to more than {DECOMPRESSED_BYTES_MAX} bytes")
    data = zstandard.ZstdDecompressor().decompress(
        batch.compressed, max_output_size=DECOMPRESSED_BYTES_MAX
    )
    return batch_pb2.Records.FromString(data).records
