"""A batch that is taken for a plain one is what protobuf finds in it; whatever is not, is not."""

import random

import pytest
from google.protobuf.message import DecodeError

from peerd.client.payload import build_batch, serialize_record
from peerd.client.values import NewRecord
from peerd.core.shard_map import Compression
from peerd.transport.plain_batch import plain_batch, plain_records
from peerd.v1 import batch_pb2


def batch(records: list[NewRecord], compression: str = Compression.NONE) -> bytes:
    serialized = [serialize_record(record) for record in records]
    return build_batch(serialized, len(records), compression).payload


def values(size: int, count: int) -> list[NewRecord]:
    random_bytes = random.Random(size * 1009 + count).randbytes
    return [NewRecord(value=random_bytes(size)) for _ in range(count)]


def is_plain(payload: bytes) -> bool:
    """Whether protobuf finds records in it with nothing but values, and as many as it says."""
    try:
        found = batch_pb2.Batch.FromString(payload)
    except DecodeError:
        return False
    records = found.records.records
    rebuilt = batch_pb2.Batch(
        record_count=len(records),
        records=batch_pb2.Records(records=[batch_pb2.Record(value=each.value) for each in records]),
    )
    return rebuilt.SerializeToString() == found.SerializeToString() and len(records) > 0


@pytest.mark.parametrize("size", [1, 2, 127, 128, 256, 16_383, 16_384])
@pytest.mark.parametrize("count", [1, 2, 127, 128, 300])
def test_records_of_one_length_are_plain(size: int, count: int) -> None:
    records = values(size, count)
    payload = batch(records)
    layout = plain_batch(payload)
    assert layout is not None
    assert layout.records == count
    found = batch_pb2.Batch.FromString(payload).records.records
    assert plain_records(payload) == [each.SerializeToString() for each in found]


@pytest.mark.parametrize(
    "records",
    [
        [NewRecord(value=b"ab"), NewRecord(value=b"abc")],
        [NewRecord(value=b"ab"), NewRecord(value=b"ab", key=b"")],
        [NewRecord(value=b"ab", key=b"k")] * 2,
        [NewRecord(value=b"ab", headers={"h": b"1"})] * 2,
        [NewRecord(value=b"ab", timestamp_ms=0)] * 2,
        [NewRecord(value=b"")] * 2,
        # The second one is as long as the first, and begins otherwise.
        [NewRecord(value=b"abcdef"), NewRecord(value=b"ab", key=b"ab")],
    ],
)
def test_others_are_not(records: list[NewRecord]) -> None:
    assert plain_batch(batch(records)) is None
    assert plain_records(batch(records)) is None


def test_neither_is_what_is_packed_or_nothing() -> None:
    assert plain_batch(batch([NewRecord(value=bytes(100))] * 9, Compression.ZSTD)) is None
    assert plain_batch(b"") is None
    assert plain_batch(batch_pb2.Batch(record_count=0).SerializeToString()) is None


@pytest.mark.parametrize(("size", "count"), [(1, 1), (3, 1), (1, 5), (3, 4), (127, 2), (128, 3)])
def test_no_damage_makes_a_plain_batch_of_what_is_none(size: int, count: int) -> None:
    payload = batch(values(size, count))
    for at in range(len(payload)):
        for byte in range(0, 256, 1 if at < 16 else 7):
            damaged = payload[:at] + bytes((byte,)) + payload[at + 1 :]
            layout = plain_batch(damaged)
            if layout is not None:
                assert is_plain(damaged)
                assert layout.records == count
    for cut in range(len(payload)):
        assert plain_batch(payload[:cut]) is None
        assert plain_batch(payload + payload[:cut]) is None or cut == 0


def test_numbers_in_a_longer_form_than_need_be_are_left_to_others() -> None:
    payload = batch(values(3, 4))
    longer = payload.replace(b"\x10\x04", b"\x10\x84\x00", 1)
    assert batch_pb2.Batch.FromString(longer).record_count == 4
    assert plain_batch(longer) is None
