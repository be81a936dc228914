"""Unary appends at the edge: what is refused, and how, and where the others go."""

import asyncio

import crc32c
import grpc
import grpc.aio
import pytest
import zstandard

from peerd.core.errors import Reason, Refusal
from peerd.core.ids import Epoch, NodeName
from peerd.testing.memory import lost
from peerd.transport import log_service
from peerd.transport.append_edge import key_hash
from peerd.transport.status import refusal_of_error
from peerd.v1 import batch_pb2, errors_pb2

PRODUCER = bytes(range(16))
# Their key hashes lie in the lower and the upper half: see batch.proto.
LOW_KEY, HIGH_KEY = b"\x00", b"household-900"

impatient = pytest.mark.parametrize("cluster", [300], indirect=True)


async def refused(call):
    """The refusal that `call` ends with, beside its gRPC code."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    found = refusal_of_error(caught.value)
    assert found is not None, caught.value
    assert "Traceback" not in caught.value.details()
    return found, caught.value.code()


async def check_refused(call, reason, code, *, says, taken=errors_pb2.TAKEN_NO):
    found, got = await refused(call)
    assert (Reason(found.reason), got) == (reason, code)
    assert says in found.message
    assert found.taken == taken
    return found


@pytest.mark.parametrize(
    ("key", "hashed"),
    [
        (b"", 0xE3B0C44298FC1C14),
        (b"household-900", 0xF270790C05D58F96),
        (b"\x00", 0x6E340B9CFFB37A98),
    ],
)
def test_key_hashes_are_those_of_the_contract(key, hashed):
    assert key_hash(key) == hashed


async def test_only_log_and_batch_are_needed(cluster, stub, append):
    cluster.create_log("orders")
    response = await stub(1).Append(append(b"one"))
    receipt = response.receipt
    assert (receipt.log, receipt.shard, receipt.epoch, receipt.base_offset) == ("orders", 1, 1, 0)
    assert list(receipt.durable_on) == ["peer-1", "peer-2"]
    assert batch_pb2.Batch.FromString(cluster.payloads(1)[0]).records.records[0].value == b"one"


async def test_any_peer_takes_an_append_and_brings_it_to_the_primary(cluster, stub, append):
    cluster.create_log("orders")
    for number in (1, 2, 3):
        response = await stub(number).Append(append())
        assert response.receipt.base_offset == number - 1


async def test_the_bytes_are_stored_as_they_were_sent(cluster):
    cluster.create_log("orders")
    # An unknown field and an unusual order must survive: nobody builds the batch anew.
    raw = b"\x1a\x05\x0a\x03\x12\x01v\x10\x01\xf8\x06\x07"
    request = b"\x0a\x06orders\x1a" + bytes([len(raw)]) + raw
    async with grpc.aio.insecure_channel(cluster.addresses[1]) as channel:
        await channel.unary_unary("/peerd.v1.LogService/Append")(request)
    assert cluster.payloads(1) == [raw]


# ---------------------------------------------------------------------------- routing


async def test_keys_choose_the_shard(cluster, stub, append):
    cluster.create_log("orders", shards=2)
    low = await stub(1).Append(append(key=LOW_KEY))
    high = await stub(1).Append(append(key=HIGH_KEY))
    assert (low.receipt.shard, high.receipt.shard) == (1, 2)


async def test_a_producer_without_keys_stays_with_one_shard(cluster, stub, append):
    cluster.create_log("orders", shards=3)
    found = set()
    for sequence in range(4):
        response = await stub(1 + sequence % 3).Append(
            append(producer_id=PRODUCER, first_sequence=sequence)
        )
        found.add(response.receipt.shard)
    assert len(found) == 1


async def test_without_key_and_producer_any_shard_is_taken_near_ones_first(cluster, stub, append):
    cluster.create_log("orders", shards=3)
    assert {(await stub(2).Append(append())).receipt.shard for _ in range(3)} == {2}


async def test_keys_of_several_shards_are_refused(cluster, stub, append, batch):
    cluster.create_log("orders", shards=2)
    both = batch(b"1", key=LOW_KEY)
    both.records.records.add(value=b"2", key=HIGH_KEY)
    both.record_count = 2
    await check_refused(
        stub(1).Append(append(batch=both)),
        Reason.KEYS_SPAN_SHARDS,
        grpc.StatusCode.INVALID_ARGUMENT,
        says="cut it by key",
    )
    assert cluster.payloads(1) == cluster.payloads(2) == []


async def test_a_key_outside_the_named_shard_is_refused(cluster, stub, append):
    cluster.create_log("orders", shards=2)
    await check_refused(
        stub(1).Append(append(key=HIGH_KEY, shard=1)),
        Reason.KEY_OUTSIDE_SHARD,
        grpc.StatusCode.INVALID_ARGUMENT,
        says="refresh the map",
    )


# ---------------------------------------------------------------------------- bad input


async def test_an_unknown_log_is_refused(cluster, stub, append):
    await check_refused(
        stub(1).Append(append(log="nowhere")),
        Reason.UNKNOWN_LOG,
        grpc.StatusCode.NOT_FOUND,
        says="'nowhere'",
    )


@pytest.mark.parametrize("log", ["", "UPPER", "a" * 129, "sla/sh"])
async def test_a_name_that_no_log_can_have_is_refused(stub, append, log):
    await check_refused(
        stub(1).Append(append(log=log)),
        Reason.INVALID_ARGUMENT,
        grpc.StatusCode.INVALID_ARGUMENT,
        says="log is",
    )


async def test_an_unknown_shard_is_refused(cluster, stub, append):
    cluster.create_log("orders")
    cluster.create_log("other")
    for shard in (2, 77):
        await check_refused(
            stub(1).Append(append(shard=shard)),
            Reason.UNKNOWN_SHARD,
            grpc.StatusCode.NOT_FOUND,
            says=f"no shard {shard}",
        )


async def test_an_oversized_batch_is_refused(cluster, stub, append):
    cluster.create_log("orders")
    await check_refused(
        stub(1).Append(append(b"x" * 64 * 1024)),
        Reason.BATCH_TOO_LARGE,
        grpc.StatusCode.INVALID_ARGUMENT,
        says="the limit is 65536",
    )
    assert cluster.payloads(1) == []


async def test_a_bad_checksum_is_refused_and_a_good_one_is_not(cluster, stub, append, batch):
    cluster.create_log("orders")
    good = crc32c.crc32c(batch(b"v").SerializeToString())
    await check_refused(
        stub(1).Append(append(payload_crc=good ^ 1)),
        Reason.CRC_MISMATCH,
        grpc.StatusCode.DATA_LOSS,
        says="damaged on the way",
    )
    await stub(1).Append(append(payload_crc=good))
    assert len(cluster.payloads(1)) == 1


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_a_wrong_record_count_is_refused(cluster, stub, append, batch, count):
    cluster.create_log("orders")
    wrong = batch(b"1", b"2")
    wrong.record_count = count
    await check_refused(
        stub(1).Append(append(batch=wrong)),
        Reason.RECORD_COUNT_MISMATCH,
        grpc.StatusCode.INVALID_ARGUMENT,
        says="the batch holds 2 records",
    )


async def test_a_batch_without_records_is_refused(cluster, stub, append):
    cluster.create_log("orders")
    for empty in (batch_pb2.Batch(), batch_pb2.Batch(records=batch_pb2.Records())):
        await check_refused(
            stub(1).Append(append(batch=empty)),
            Reason.INVALID_ARGUMENT,
            grpc.StatusCode.INVALID_ARGUMENT,
            says="at least one",
        )


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xff\xff\xff",
        # A batch whose record is cut short.
        b"\x0a\x06orders\x1a\x06\x10\x01\x1a\x02\x0a\x09",
        # A header name that is no UTF-8: it would break whoever reads it.
        b"\x0a\x06orders\x1a\x0b\x10\x01\x1a\x07\x0a\x05\x1a\x03\x0a\x01\xff",
    ],
)
async def test_an_unparsable_frame_is_refused(cluster, raw):
    cluster.create_log("orders")
    async with grpc.aio.insecure_channel(cluster.addresses[0]) as channel:
        await check_refused(
            channel.unary_unary("/peerd.v1.LogService/Append")(raw),
            Reason.MALFORMED_BATCH,
            grpc.StatusCode.INVALID_ARGUMENT,
            says="",
        )
    assert cluster.payloads(1) == []


async def test_an_unparsable_read_is_refused(cluster):
    cluster.create_log("orders")
    async with grpc.aio.insecure_channel(cluster.addresses[0]) as channel:
        call = channel.unary_stream("/peerd.v1.LogService/Read")(b"\xff\xff")
        await check_refused(
            call.read(),
            Reason.INVALID_ARGUMENT,
            grpc.StatusCode.INVALID_ARGUMENT,
            says="not the protobuf message",
        )


@pytest.mark.parametrize(
    ("producer", "says"), [(b"short", "has 5 bytes"), (bytes(16), "is all zero")]
)
async def test_a_producer_id_that_is_none_is_refused(cluster, stub, append, producer, says):
    cluster.create_log("orders")
    await check_refused(
        stub(1).Append(append(producer_id=producer)),
        Reason.INVALID_ARGUMENT,
        grpc.StatusCode.INVALID_ARGUMENT,
        says=says,
    )


async def test_sequences_end_at_64_bits(cluster, stub, append, batch):
    cluster.create_log("orders")
    await check_refused(
        stub(1).Append(
            append(producer_id=PRODUCER, first_sequence=(1 << 64) - 1, batch=batch(b"1", b"2"))
        ),
        Reason.INVALID_ARGUMENT,
        grpc.StatusCode.INVALID_ARGUMENT,
        says="beyond 64 bits",
    )


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("packed", [False, True])
async def test_one_record_of_many_is_looked_at_wherever_it_stands(
    cluster, stub, append, place, packed
):
    cluster.create_log("orders", shards=2)

    def with_one(record):
        records = batch_pb2.Records(records=[batch_pb2.Record(value=b"v") for _ in range(3)])
        records.records[place].CopyFrom(record)
        if not packed:
            return batch_pb2.Batch(record_count=3, records=records)
        data = zstandard.ZstdCompressor().compress(records.SerializeToString())
        return batch_pb2.Batch(record_count=3, codec=batch_pb2.CODEC_ZSTD, compressed=data)

    for key in (b"", HIGH_KEY):
        await check_refused(
            stub(1).Append(append(shard=1, batch=with_one(batch_pb2.Record(key=key)))),
            Reason.KEY_OUTSIDE_SHARD,
            grpc.StatusCode.INVALID_ARGUMENT,
            says="owns key hashes",
        )
    named = batch_pb2.Record(headers=[batch_pb2.Header(name="n" * 257)])
    await check_refused(
        stub(1).Append(append(shard=1, batch=with_one(named))),
        Reason.INVALID_ARGUMENT,
        grpc.StatusCode.INVALID_ARGUMENT,
        says="headers",
    )
    response = await stub(1).Append(append(batch=with_one(batch_pb2.Record(key=HIGH_KEY))))
    assert response.receipt.shard == 2


async def test_a_long_header_name_is_refused(cluster, stub, append, batch):
    cluster.create_log("orders")
    named = batch(b"v")
    named.records.records[0].headers.add(name="n" * 257)
    await check_refused(
        stub(1).Append(append(batch=named)),
        Reason.INVALID_ARGUMENT,
        grpc.StatusCode.INVALID_ARGUMENT,
        says="headers",
    )


# ---------------------------------------------------------------------------- compressed batches


def compressed(records, *, count=None, **fields):
    data = batch_pb2.Records(records=records).SerializeToString()
    return batch_pb2.Batch(
        codec=batch_pb2.CODEC_ZSTD,
        record_count=len(records) if count is None else count,
        compressed=zstandard.compress(data),
        **fields,
    )


async def test_a_compressed_batch_is_counted_and_routed_by_its_keys(cluster, stub, append):
    cluster.create_log("orders", shards=2)
    records = [batch_pb2.Record(value=b"v", key=HIGH_KEY)] * 3
    response = await stub(1).Append(append(batch=compressed(records)))
    assert (response.receipt.shard, response.receipt.record_count) == (2, 3)
    await check_refused(
        stub(1).Append(append(batch=compressed(records, count=2))),
        Reason.RECORD_COUNT_MISMATCH,
        grpc.StatusCode.INVALID_ARGUMENT,
        says="holds 3 records",
    )


@pytest.mark.parametrize(
    "bad",
    [
        batch_pb2.Batch(codec=batch_pb2.CODEC_ZSTD, record_count=1, compressed=b"nonsense"),
        batch_pb2.Batch(record_count=1, compressed=zstandard.compress(b"")),
        batch_pb2.Batch(
            codec=batch_pb2.CODEC_ZSTD,
            record_count=1,
            records=batch_pb2.Records(records=[batch_pb2.Record(value=b"v")]),
        ),
        batch_pb2.Batch(codec=7, record_count=1, compressed=b"?"),
        batch_pb2.Batch(
            codec=batch_pb2.CODEC_ZSTD, record_count=1, compressed=zstandard.compress(b"\xff\xff")
        ),
    ],
    ids=["no-zstd", "codec-missing", "codec-without-frame", "codec-unknown", "no-records-inside"],
)
async def test_what_cannot_be_unpacked_is_refused(cluster, stub, append, bad):
    cluster.create_log("orders")
    await check_refused(
        stub(1).Append(append(batch=bad)),
        Reason.MALFORMED_BATCH,
        grpc.StatusCode.INVALID_ARGUMENT,
        says="cannot be read",
    )


@pytest.mark.parametrize("told", [True, False], ids=["size-in-the-frame", "size-not-told"])
async def test_a_frame_that_unpacks_beyond_the_bound_is_refused(cluster, stub, append, told):
    cluster.create_log("orders")
    bomb = zstandard.ZstdCompressor(write_content_size=told).compress(bytes(65 * 1024 * 1024))
    huge = batch_pb2.Batch(codec=batch_pb2.CODEC_ZSTD, record_count=1, compressed=bomb)
    await check_refused(
        stub(1).Append(append(batch=huge)),
        Reason.MALFORMED_BATCH,
        grpc.StatusCode.INVALID_ARGUMENT,
        says="cannot be read",
    )


# ---------------------------------------------------------------------------- what the core says


async def test_an_offset_mismatch_names_the_end(cluster, stub, append):
    cluster.create_log("orders")
    await stub(1).Append(append())
    found = await check_refused(
        stub(2).Append(append(expected_offset=0)),
        Reason.OFFSET_MISMATCH,
        grpc.StatusCode.ABORTED,
        says="is 1, not 0",
    )
    assert found.first_offset == 1
    assert (await stub(2).Append(append(expected_offset=1))).receipt.base_offset == 1


async def test_the_same_sequence_gets_the_first_receipt_again(cluster, stub, append):
    cluster.create_log("orders")
    first = await stub(1).Append(append(producer_id=PRODUCER))
    again = await stub(3).Append(append(producer_id=PRODUCER))
    assert again.receipt.duplicate
    assert again.receipt.base_offset == first.receipt.base_offset
    assert len(cluster.payloads(1)) == 1


async def test_the_space_reserve_refuses_appends(cluster, stub, append):
    cluster.create_log("orders")
    cluster.hosts[NodeName("peer-1")].space_in_reserve = True
    found = await check_refused(
        stub(1).Append(append()),
        Reason.DISK_RESERVE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        says="space",
    )
    assert found.retry_after_ms > 0


# ---------------------------------------------------------------------------- failover


async def test_an_append_waits_for_a_primary_and_goes_there(cluster, stub, append):
    cluster.create_log("orders")
    await cluster.stop("peer-1")
    waiting = asyncio.ensure_future(stub(2).Append(append()))
    await asyncio.wait({waiting}, timeout=0.05)
    assert not waiting.done()
    cluster.hand_over(1, "peer-3")
    assert (await waiting).receipt.epoch == 2


@impatient
async def test_waiting_for_a_primary_ends_and_says_that_nothing_was_taken(cluster, stub, append):
    cluster.create_log("orders")
    await cluster.stop("peer-1")
    found = await check_refused(
        stub(2).Append(append()),
        Reason.NOT_PRIMARY,
        grpc.StatusCode.FAILED_PRECONDITION,
        says="try again",
    )
    assert found.retry_after_ms > 0


async def test_the_callers_deadline_is_answered_before_it_passes(
    cluster, stub, append, monkeypatch
):
    # Long before: it must not come first on a machine that does not run this process for a while.
    monkeypatch.setattr(log_service, "ANSWER_RESERVE_MS", 60_000)
    cluster.create_log("orders")
    await cluster.stop("peer-1")
    await check_refused(
        stub(2).Append(append(), timeout=60.2),
        Reason.NOT_PRIMARY,
        grpc.StatusCode.FAILED_PRECONDITION,
        says="try again",
    )


async def test_a_hint_is_followed_before_the_map_tells(cluster, stub, append):
    cluster.create_log("orders")
    cluster.hand_over(1, "peer-3", publish=False)
    response = await stub(2).Append(append())
    assert response.receipt.epoch == 2
    assert cluster.hosts[NodeName("peer-2")].cache.shards[1].open.epoch == 1


async def test_what_a_primary_lost_is_sent_again_under_a_producer(cluster, stub, append):
    cluster.create_log("orders")
    primary = cluster.hosts[NodeName("peer-1")]
    primary.refuse_next.append(lost(1))
    response = await stub(2).Append(append(producer_id=PRODUCER))
    assert response.receipt.base_offset == 0
    assert len(cluster.payloads(1)) == 1


async def test_without_a_producer_an_unknown_outcome_is_told_not_tried_again(cluster, stub, append):
    cluster.create_log("orders")
    for number in (1, 2):
        cluster.hosts[NodeName("peer-1")].refuse_next.append(lost(1))
        await check_refused(
            stub(number).Append(append()),
            Reason.OUTCOME_UNKNOWN,
            grpc.StatusCode.UNAVAILABLE,
            says="may be in the log",
            taken=errors_pb2.TAKEN_UNKNOWN,
        )
    assert cluster.payloads(1) == []


async def test_a_hanging_primary_is_left_when_the_map_moves(cluster, stub, append):
    cluster.create_log("orders")
    primary = cluster.hosts[NodeName("peer-1")]
    primary.holding = []
    # Its own deadline is far away: only the map can tell that waiting has become useless.
    waiting = asyncio.ensure_future(stub(2).Append(append(producer_id=PRODUCER), timeout=30))
    await primary.until_held(1)
    cluster.hand_over(1, "peer-3")
    receipt = (await asyncio.wait_for(waiting, 5)).receipt
    assert receipt.duplicate
    assert len(cluster.payloads(1)) == 1
    primary.release()


@impatient
async def test_a_hanging_primary_leaves_an_unknown_outcome(cluster, stub, append):
    cluster.create_log("orders")
    primary = cluster.hosts[NodeName("peer-1")]
    primary.holding = []
    await check_refused(
        stub(1).Append(append(producer_id=PRODUCER)),
        Reason.OUTCOME_UNKNOWN,
        grpc.StatusCode.UNAVAILABLE,
        says="did not answer in time",
        taken=errors_pb2.TAKEN_UNKNOWN,
    )
    primary.release()


async def test_a_forwarded_call_is_never_forwarded_again(cluster, stub, append):
    cluster.create_log("orders")
    found = await check_refused(
        stub(2).Append(append(), metadata=(("peerd-forwarded", "1"),)),
        Reason.NOT_PRIMARY,
        grpc.StatusCode.FAILED_PRECONDITION,
        says="not primary",
    )
    assert found.leader == cluster.addresses[0]


async def test_no_lasting_refusal_is_tried_again(cluster, stub, append):
    cluster.create_log("orders")
    cluster.hosts[NodeName("peer-1")].refuse_next.append(
        Refusal(reason=Reason.NOT_ENOUGH_PEERS, message="one peer is left", epoch=Epoch(1))
    )
    await check_refused(
        stub(2).Append(append()),
        Reason.NOT_ENOUGH_PEERS,
        grpc.StatusCode.UNAVAILABLE,
        says="one peer",
    )


async def test_bytes_in_flight_are_bounded(cluster, stub, append):
    cluster.create_log("orders")
    primary = cluster.hosts[NodeName("peer-1")]
    primary.holding = []
    # With a producer each: without one, they would share a batch.
    waiting = [
        asyncio.ensure_future(stub(1).Append(append(b"x" * 60_000, producer_id=bytes([i]) * 16)))
        for i in range(1, 5)
    ]
    await primary.until_held(4)
    await check_refused(
        stub(1).Append(append(b"x" * 60_000)),
        Reason.OVERLOADED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        says="this peer",
    )
    primary.release()
    await asyncio.gather(*waiting)
    await stub(1).Append(append(b"x" * 60_000))


# ---------------------------------------------------------------------------- everything else


async def test_a_bug_leaves_as_one_line_and_is_reported(cluster, stub, append, monkeypatch):
    cluster.create_log("orders")

    def broken(*_):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(cluster.hosts[NodeName("peer-1")], "append", broken)
    found, code = await refused(stub(1).Append(append()))
    assert (Reason(found.reason), code) == (Reason.INTERNAL, grpc.StatusCode.INTERNAL)
    assert "secret detail" not in found.message
    assert [str(bug) for bug in cluster.bugs] == ["secret detail"]
    cluster.bugs.clear()


async def test_the_wrong_role_is_refused(cluster, stub, append):
    cluster.create_log("orders")
    reader = (("peerd-plaintext-identity", "spiffe://memory/reader/ann"),)
    await check_refused(
        stub(1).Append(append(), metadata=reader),
        Reason.ROLE_NOT_ALLOWED,
        grpc.StatusCode.PERMISSION_DENIED,
        says="appender",
    )
    assert cluster.payloads(1) == []
