"""AppendStream: many appends, joined answers, bounds, and no way to break it for the others."""

import asyncio

import grpc
import grpc.aio
import pytest

from peerd.core.errors import Reason
from peerd.core.ids import NodeName
from peerd.transport.status import refusal_of_error
from peerd.v1 import errors_pb2, log_pb2

PRODUCER = bytes(range(16))


def message(*appends):
    return log_pb2.AppendStreamRequest(
        appends=[
            log_pb2.StreamAppend(request_id=number, append=append)
            for number, append in enumerate(appends, 1)
        ]
    )


async def results_of(call, count):
    found = []
    while len(found) < count:
        response = await call.read()
        assert response is not grpc.aio.EOF
        found += response.results
    return found


async def until_the_end(call):
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_appends_of_one_message_are_answered_in_order(cluster, stub, append):
    cluster.create_log("orders")
    call = stub(1).AppendStream()
    await call.write(
        message(*(append(b"v", shard=1, producer_id=PRODUCER, first_sequence=i) for i in range(50)))
    )
    results = await results_of(call, 50)
    assert [result.request_id for result in results] == list(range(1, 51))
    assert [result.receipt.base_offset for result in results] == list(range(50))
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_answers_that_are_ready_together_travel_together(cluster, stub, append):
    cluster.create_log("orders")
    host = cluster.hosts[NodeName("peer-1")]
    host.holding = []
    call = stub(1).AppendStream()
    for i in range(1, 4):
        # With a producer: without one, they would share a batch.
        named = [append(shard=1, producer_id=bytes([i, n]) * 8) for n in (1, 2)]
        await call.write(message(*named))
    await host.until_held(6)
    host.release()
    response = await call.read()
    assert len(response.results) == 6
    call.cancel()


async def test_the_stream_ends_only_when_everything_is_answered(cluster, stub, append):
    cluster.create_log("orders")
    host = cluster.hosts[NodeName("peer-1")]
    host.holding = []
    call = stub(1).AppendStream()
    await call.write(message(append(shard=1)))
    await call.done_writing()
    await host.until_held(1)
    host.release()
    assert len((await call.read()).results) == 1
    assert await call.read() is grpc.aio.EOF


async def test_a_refused_append_concerns_itself_alone(cluster, stub, append, batch):
    cluster.create_log("orders", shards=2)
    wrong_count = batch(b"v")
    wrong_count.record_count = 9
    call = stub(1).AppendStream()
    await call.write(
        message(
            append(shard=1, batch=wrong_count),
            append(shard=1, payload_crc=7),
            append(),
            append(log="nowhere", shard=1),
            append(shard=9),
            append(b"x" * 70_000, shard=1),
            append(shard=2),
            append(shard=1),
        )
    )
    results = {result.request_id: result for result in await results_of(call, 8)}
    refused = {
        number: Reason(result.refusal.reason)
        for number, result in results.items()
        if result.WhichOneof("outcome") == "refusal"
    }
    assert refused == {
        1: Reason.RECORD_COUNT_MISMATCH,
        2: Reason.CRC_MISMATCH,
        3: Reason.INVALID_ARGUMENT,
        4: Reason.UNKNOWN_LOG,
        5: Reason.UNKNOWN_SHARD,
        6: Reason.BATCH_TOO_LARGE,
        7: Reason.NOT_PRIMARY,
    }
    assert all(results[number].refusal.taken == errors_pb2.TAKEN_NO for number in refused)
    assert results[7].refusal.leader == cluster.addresses[1]
    assert results[8].receipt.base_offset == 0
    call.cancel()


async def test_bytes_in_flight_are_bounded_per_stream(cluster, stub, append):
    cluster.create_log("orders")
    host = cluster.hosts[NodeName("peer-1")]
    host.holding = []
    call = stub(1).AppendStream()
    await call.write(message(*(append(b"x" * 50_000, shard=1) for _ in range(4))))
    refused = await results_of(call, 2)
    assert {Reason(result.refusal.reason) for result in refused} == {Reason.OVERLOADED}
    assert all(result.refusal.retry_after_ms > 0 for result in refused)
    assert "this stream" in refused[0].refusal.message
    # Another stream has its own bound, the peer has one for all.
    other = stub(1).AppendStream()
    await other.write(message(*(append(b"x" * 50_000, shard=1) for _ in range(4))))
    assert len(await results_of(other, 2)) == 2
    third = stub(1).AppendStream()
    await third.write(message(*(append(b"x" * 50_000, shard=1) for _ in range(2))))
    (refused,) = await results_of(third, 1)
    assert "this peer" in refused.refusal.message
    host.release()
    await results_of(call, 2)
    await call.write(message(append(b"x" * 50_000, shard=1)))
    await results_of(call, 1)
    for one in (call, other, third):
        one.cancel()


async def test_what_a_broken_stream_left_is_given_back_to_the_bound(cluster, stub, append):
    cluster.create_log("orders")
    host = cluster.hosts[NodeName("peer-1")]
    for _ in range(4):
        host.holding = []
        call = stub(1).AppendStream()
        await call.write(message(*(append(b"x" * 50_000, shard=1) for _ in range(2))))
        # The other one waits to be joined, and is given back as well.
        await host.until_held(1)
        call.cancel()
        host.release()
    await stub(1).Append(append(b"x" * 60_000))


async def test_too_many_appends_in_a_message_end_the_stream(cluster, stub, append):
    cluster.create_log("orders")
    call = stub(1).AppendStream()
    await call.write(message(*(append(shard=1) for _ in range(1025))))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert refusal_of_error(caught.value).reason == errors_pb2.ERROR_REASON_INVALID_ARGUMENT
    assert cluster.payloads(1) == []


async def test_an_unparsable_frame_ends_the_stream_and_nothing_else(cluster, stub, append):
    cluster.create_log("orders")
    async with grpc.aio.insecure_channel(cluster.addresses[0]) as channel:
        call = channel.stream_stream("/peerd.v1.LogService/AppendStream")()
        await call.write(message(append(shard=1)).SerializeToString())
        await call.write(b"\xff\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await until_the_end(call)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert refusal_of_error(caught.value).reason == errors_pb2.ERROR_REASON_MALFORMED_BATCH
    await stub(1).Append(append())


async def test_the_space_reserve_refuses_each_append(cluster, stub, append):
    cluster.create_log("orders")
    host = cluster.hosts[NodeName("peer-1")]
    host.space_in_reserve = True
    call = stub(1).AppendStream()
    await call.write(message(append(shard=1)))
    (refused,) = await results_of(call, 1)
    assert Reason(refused.refusal.reason) == Reason.DISK_RESERVE
    host.space_in_reserve = False
    await call.write(message(append(shard=1)))
    (taken,) = await results_of(call, 1)
    assert taken.receipt.base_offset == 0
    call.cancel()


async def test_a_client_that_does_not_read_holds_up_nobody_else(cluster, stub, append):
    cluster.create_log("orders")
    call = stub(1).AppendStream()
    for _ in range(20):
        await call.write(message(*(append(shard=1) for _ in range(100))))
    await asyncio.wait_for(stub(1).Append(append()), 5)
    call.cancel()
