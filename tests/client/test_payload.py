"""The bytes of a batch are those that protobuf makes of the same records."""

import pytest

import peerd
from peerd.client.payload import (
    FEW_RECORDS,
    build_batch,
    records_of,
    serialize_record,
    serialize_records,
)
from peerd.internal.v1 import log_bytes_pb2
from peerd.v1 import batch_pb2

LENGTHS = (0, 1, 100, 123, 124, 125, 126, 127, 128, 16_380, 16_383, 16_384, 70_000)


def of_protobuf(records):
    wire = [
        batch_pb2.Record(
            key=record.key,
            value=record.value,
            headers=[batch_pb2.Header(name=name, value=value) for name, value in record.headers],
            timestamp_ms=record.timestamp_ms,
        )
        for record in records
    ]
    batch = batch_pb2.Batch(record_count=len(wire), records=batch_pb2.Records(records=wire))
    return batch.SerializeToString()


@pytest.mark.parametrize("length", LENGTHS)
def test_a_value_of_any_length(length):
    record = peerd.NewRecord(value=b"v" * length)
    assert build_batch([serialize_record(record)], 1).payload == of_protobuf([record])


def test_records_of_all_kinds_side_by_side():
    records = [peerd.NewRecord(value=b"v" * length) for length in LENGTHS]
    records += [
        peerd.NewRecord(value=b"", key=b""),
        peerd.NewRecord(value=b"1", key=b"k"),
        peerd.NewRecord(value=b"2", headers=(("name", b"value"),)),
        peerd.NewRecord(value=b"3", timestamp_ms=0),
    ]
    one_by_one = [serialize_record(record) for record in records]
    together = [serialize_records(records[:3]), serialize_records(records[3:])]
    for elements in (one_by_one, together):
        built = build_batch(elements, len(records))
        assert built.payload == of_protobuf(records)
        assert built.record_count == len(records)


def test_values_alone_of_one_length_and_of_several():
    for lengths in ([5, 5, 5], [0, 0], [127, 128, 127, 16_384]):
        records = [peerd.NewRecord(value=b"%d" % n * length) for n, length in enumerate(lengths)]
        built = build_batch([serialize_records(records)], len(records))
        assert built.payload == of_protobuf(records)


def test_one_value_that_is_not_bytes_among_others():
    records = [peerd.NewRecord(value=b"1"), peerd.NewRecord(value="2"), peerd.NewRecord(value=b"3")]
    with pytest.raises(peerd.InvalidRequest):
        serialize_records(records)


@pytest.mark.parametrize("value", ["text", None, 7, bytearray(b"bytes")])
def test_a_value_that_is_not_bytes_is_refused_or_taken_as_protobuf_does(value):
    record = peerd.NewRecord(value=value)
    try:
        expected = of_protobuf([record])
    except TypeError:
        with pytest.raises(peerd.InvalidRequest):
            serialize_record(record)
    else:
        assert build_batch([serialize_record(record)], 1).payload == expected


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("count", [1, FEW_RECORDS, FEW_RECORDS + 1])
@pytest.mark.parametrize("what", [{"key": b"k"}, {"timestamp_ms": 0}, {"headers": [("a", b"1")]}])
def test_what_the_last_of_few_or_many_records_has_is_found(compression, count, what):
    given = [peerd.NewRecord(value=b"v" * 99)] * (count - 1)
    given.append(peerd.NewRecord(value=b"v" * 99, **what))
    built = build_batch([serialize_record(each) for each in given], count, compression)
    batch = log_bytes_pb2.ReadBatchBytes(payload_crc=built.crc, batch=built.payload)
    found = records_of("orders", batch, 0)
    assert len(found) == count
    assert not any(each.key or each.headers or each.timestamp_ms for each in found[:-1])
    last = found[-1]
    assert last.value == b"v" * 99
    assert (last.key, list(last.headers), last.timestamp_ms) == (
        what.get("key"),
        what.get("headers", []),
        what.get("timestamp_ms"),
    )
