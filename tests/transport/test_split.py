"""A split shard at the edge of a peer: who is answered, and who must say more."""

import grpc.aio
import pytest

from las.v1 import shard_map_pb2, shard_map_pb2_grpc
from peerd.core.errors import Reason
from peerd.core.ids import ShardId
from peerd.transport.status import refusal_of_error
from peerd.v1 import errors_pb2, log_pb2

PRODUCER = b"p" * 16


async def refusal_to(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    found = refusal_of_error(caught.value)
    assert found is not None, caught.value
    return found


async def test_a_retry_that_names_the_parent_is_answered_and_a_new_batch_is_not(
    cluster, stub, append
):
    cluster.create_log("orders")
    fields = {"shard": 1, "producer_id": PRODUCER}
    first = (await stub(1).Append(append(first_sequence=0, **fields))).receipt
    cluster.split(1)
    again = (await stub(2).Append(append(first_sequence=0, **fields))).receipt
    assert (again.shard, again.epoch, again.base_offset) == (1, first.epoch, first.base_offset)
    refusal = await refusal_to(stub(3).Append(append(first_sequence=1, **fields)))
    assert Reason(refusal.reason) is Reason.SPLIT
    assert refusal.taken == errors_pb2.TAKEN_NO
    assert (refusal.first_offset, list(refusal.children)) == (1, [2, 3])


async def test_a_sequence_without_a_shard_is_not_routed_to_a_child(cluster, stub, append):
    """It may be a retry of what the parent has: only its sender knows."""
    cluster.create_log("orders")
    await stub(1).Append(append(key=b"k", producer_id=PRODUCER, first_sequence=0))
    cluster.split(1)
    call = stub(1).Append(append(key=b"k", producer_id=PRODUCER, first_sequence=0))
    refusal = await refusal_to(call)
    assert Reason(refusal.reason) is Reason.SPLIT
    assert list(refusal.children) == [2, 3]
    assert "name 1" in refusal.message
    assert cluster.payloads(2) + cluster.payloads(3) == []
    assert (await stub(1).Append(append(key=b"k"))).receipt.shard in {2, 3}


async def test_the_map_of_one_log_has_its_ancestors(cluster, stub):
    cluster.create_log("orders")
    cluster.create_log("other")
    lower, _ = cluster.split(1)
    cluster.split(lower)
    cache = next(iter(cluster.hosts.values())).cache
    assert cache.shards_of("orders") == (5, 6, 4)
    assert cache.family_of("orders") == (1, 3, 5, 6, 4)
    assert cache.family_of("nothing") == ()
    assert cache.is_part("orders", 1)
    assert not cache.is_part("orders", 2)
    assert cache.shard_for("orders", 0) == ShardId(5)
    async with grpc.aio.insecure_channel(cluster.addresses[0]) as channel:
        maps = shard_map_pb2_grpc.ShardMapServiceStub(channel)
        answer = await maps.GetMap(shard_map_pb2.GetMapRequest(log="orders"))
    assert [shard.shard for shard in answer.map.shards] == [1, 3, 5, 6, 4]


async def test_a_following_read_of_a_log_ends_when_one_of_its_shards_is_split(
    cluster, stub, append
):
    cluster.create_log("orders", shards=2)
    await stub(1).Append(append(b"0", shard=1))
    call = stub(3).Read(log_pb2.ReadRequest(log="orders", follow=True))
    batches, last, children = [], None, ()
    async for response in call:
        batches += response.batches
        if batches and not children:
            children = cluster.split(1)
        last = response
    assert [batch.shard for batch in batches] == [1]
    assert dict(last.resume.offsets) == {1: 1, 2: 0}


async def test_the_token_of_a_following_read_goes_on_with_the_children(cluster, stub, append):
    """As docs/client.md tells clients without the library."""
    cluster.create_log("orders")
    await stub(1).Append(append(b"0"))
    token = None
    async for response in stub(2).Read(log_pb2.ReadRequest(log="orders", follow=True)):
        if response.batches:
            cluster.split(1)
        token = response.resume
    values = [b"1", b"2", b"3"]
    for value in values:
        await stub(1).Append(append(value, key=value))
    again = stub(3).Read(log_pb2.ReadRequest(log="orders", resume=token, follow=True))
    read = []
    async for response in again:
        for batch in response.batches:
            assert batch.shard in {2, 3}
            read += [record.value for record in batch.batch.records.records]
        if len(read) == len(values):
            break
    assert sorted(read) == values
