"""Records to batch bytes and back.

A batch is built from records that were serialized one by one, as they came in: the wire form of a
batch is theirs, joined. Reading checks the checksum end to end, before anything is parsed.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, count, repeat

import crc32c
import zstandard
from google.protobuf.message import DecodeError

from peerd.client.errors import CodecUnknown, CorruptData, InvalidRequest
from peerd.client.values import Headers, NewRecord, Record
from peerd.core.shard_map import Compression
from peerd.internal.v1 import log_bytes_pb2
from peerd.transport.limits import DECOMPRESSED_BYTES_MAX, HEADER_NAME_BYTES_MAX
from peerd.transport.wire_form import sized_tag, varint
from peerd.v1 import batch_pb2

_RECORD_TAG = sized_tag(batch_pb2.Records.RECORDS_FIELD_NUMBER)
_VALUE_TAG = sized_tag(batch_pb2.Record.VALUE_FIELD_NUMBER)
_RECORDS_TAG = sized_tag(batch_pb2.Batch.RECORDS_FIELD_NUMBER)
_BYTES = frozenset({bytes})
# limit: lengths of values whose prefix is kept
PREFIXES_MAX = 4_096
# Of so many records each is asked for what it has.
FEW_RECORDS = 8
# What a batch costs beyond its records: two tags, two lengths.
BATCH_OVERHEAD_BYTES = 16
# zstd's own default: beyond it, time grows faster than bytes shrink.
ZSTD_LEVEL = 3


@dataclass(frozen=True, slots=True)
class BuiltBatch:
    """A serialized `peerd.v1.Batch` and its CRC-32C."""

    payload: bytes
    crc: int
    record_count: int


def serialize_records(records: Sequence[NewRecord]) -> bytes:
    """Records as `serialize_record` makes them, side by side.

    Raises:
        InvalidRequest: as `serialize_record`.
    """
    if len(records) == 1:
        return serialize_record(records[0])
    values = [
        record.value
        for record in records
        if record.key is None and record.timestamp_ms is None and not record.headers
    ]
    # Most are nothing but a value; then what is left is a few passes that cost a third of a loop.
    if len(values) < len(records) or set(map(type, values)) - _BYTES:
        return b"".join(map(serialize_record, records))
    lengths = list(map(len, values))
    if len(set(lengths)) == 1:
        prefix = _value_prefix(lengths[0])
        return prefix + prefix.join(values)
    return b"".join(chain.from_iterable(zip(map(_value_prefix, lengths), values, strict=True)))


def serialize_record(record: NewRecord) -> bytes:
    """The record as an element of a serialized `peerd.v1.Records`: tag, length, `peerd.v1.Record`.

    Raises:
        InvalidRequest: key, value or a header is not of its type, or a header's name is too long.
    """
    headers, value = record.headers, record.value
    if not headers and record.timestamp_ms is None:
        # Most records are like this, and building is most of what an append costs here.
        if record.key is None and value.__class__ is bytes:
            return _value_prefix(len(value)) + value
        try:
            return _element(batch_pb2.Record(key=record.key, value=value))
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
    return _element(message)


@lru_cache(maxsize=PREFIXES_MAX)
def _value_prefix(value_bytes: int) -> bytes:
    """What stands before a value of this length in an element with nothing but a value. It is made
    here since a message object would take five times as long.
    """
    if not value_bytes:
        return _element(batch_pb2.Record())
    field = _VALUE_TAG + varint(value_bytes)
    return _RECORD_TAG + varint(len(field) + value_bytes) + field


def _element(message: batch_pb2.Record) -> bytes:
    serialized = message.SerializeToString()
    return _RECORD_TAG + varint(len(serialized)) + serialized


def _pairs(headers: Headers) -> Sequence[tuple[str, bytes]]:
    return list(headers.items()) if isinstance(headers, Mapping) else headers


def build_batch(
    records: Sequence[bytes], record_count: int, compression: str = Compression.NONE
) -> BuiltBatch:
    """One batch of `record_count` serialized records, in order; packed if that makes it smaller.

    Each of `records` is one of them, or several side by side.
    """
    packed = _compressed(b"".join(records)) if compression == Compression.ZSTD else None
    if packed is None:
        # Put together here: message objects would copy all of it three times.
        head = log_bytes_pb2.BatchBytes(record_count=record_count).SerializeToString()
        length = varint(sum(map(len, records)))
        payload = b"".join((head, _RECORDS_TAG, length, *records))
    else:
        payload = log_bytes_pb2.BatchBytes(
            codec=batch_pb2.CODEC_ZSTD, record_count=record_count, compressed=packed
        ).SerializeToString()
    return BuiltBatch(payload=payload, crc=crc32c.crc32c(payload), record_count=record_count)


def _compressed(data: bytes) -> bytes | None:
    """A zstd frame that names its size; None if it is not smaller, or no reader would unpack it."""
    if len(data) > DECOMPRESSED_BYTES_MAX:
        return None
    packed = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(data)
    return packed if len(packed) < len(data) else None


def records_of(log: str, batch: log_bytes_pb2.ReadBatchBytes, begin: int) -> list[Record]:
    """The records of a batch as it was read, from offset `begin` on.

    Raises:
        CorruptData: the bytes do not match their checksum, or are no batch.
        CodecUnknown: they are packed in a way that this version does not know.
    """
    where = f"{log}/{batch.shard} offset {batch.base_offset}"
    payload = batch.batch
    if crc32c.crc32c(payload) != batch.payload_crc:
        raise CorruptData(
            f"{where}: the batch arrived with another checksum than it was appended with: read it "
            "again, from another peer"
        )
    try:
        found, shown = _unpack(payload, where)
    except (DecodeError, zstandard.ZstdError, ValueError) as error:
        raise CorruptData(f"{where}: the batch cannot be unpacked ({error})") from error
    first = max(begin, batch.base_offset)
    records = list(found)[first - batch.base_offset :]
    # Column by column, and without the columns that no record has: to ask each record for each
    # field takes far longer than to parse them all.
    keys: Iterable[bytes | None] = _NONE
    headers: Iterable[Sequence[tuple[str, bytes]]] = _NO_HEADERS
    times: Iterable[int | None] = _NONE
    if any(each.HasField("key") for each in shown):
        keys = [record.key if record.HasField("key") else None for record in records]
    if any(each.headers for each in shown):
        headers = [_headers(record) for record in records]
    if any(each.HasField("timestamp_ms") for each in shown):
        times = [r.timestamp_ms if r.HasField("timestamp_ms") else None for r in records]
    columns = (
        repeat(log),
        repeat(batch.shard),
        count(first),
        repeat(batch.epoch),
        keys,
        # A column that ends, as do the records.
        [record.value for record in records],
        headers,
        times,
        repeat(batch.timestamp_ms),
    )
    return list(map(_RECORD, zip(*columns, strict=False)))


# `Record._make` without a call of Python's for each.
_RECORD: Callable[[Iterable[object]], Record] = partial(tuple.__new__, Record)
_NONE: Iterable[None] = repeat(None)
_NO_HEADERS: Iterable[tuple[tuple[str, bytes], ...]] = repeat(())


def _headers(record: batch_pb2.Record) -> tuple[tuple[str, bytes], ...]:
    return tuple((header.name, header.value) for header in record.headers)


def _unpack(
    payload: bytes, where: str
) -> tuple[Sequence[batch_pb2.Record], Sequence[batch_pb2.Record]]:
    """The records of a batch, and what shows which fields they have: all of them merged into one,
    since what that lacks, all of them lack; or themselves, if they are few: to merge copies them.

    Raises:
        CodecUnknown: see `records_of`.
        DecodeError, zstandard.ZstdError, ValueError: there are none.
    """
    batch = batch_pb2.Batch.FromString(payload)
    shown: Sequence[batch_pb2.Record] = ()
    if batch.codec == batch_pb2.CODEC_UNSPECIFIED:
        records = batch.records.records
        if len(records) > FEW_RECORDS:
            shown = [log_bytes_pb2.BatchMerged.FromString(payload).records.records]
    elif batch.codec == batch_pb2.CODEC_ZSTD:
        if zstandard.frame_content_size(batch.compressed) > DECOMPRESSED_BYTES_MAX:
            raise ValueError(f"it unpacks to more than {DECOMPRESSED_BYTES_MAX} bytes")
        data = zstandard.ZstdDecompressor().decompress(
            batch.compressed, max_output_size=DECOMPRESSED_BYTES_MAX, allow_extra_data=False
        )
        records = batch_pb2.Records.FromString(data).records
        if len(records) > FEW_RECORDS:
            shown = [log_bytes_pb2.RecordsMerged.FromString(data).records]
    else:
        raise CodecUnknown(
            f"{where}: the batch is packed by codec {batch.codec}, which this version does not "
            "know: read it with a newer one"
        )
    if len(records) != batch.record_count:
        raise ValueError(f"it has {len(records)} records, not {batch.record_count} as it says")
    return records, shown or records
