"""Producers: options and batches of their own, compression, and how they end."""

import asyncio

import pytest

import peerd
from peerd.client.errors import tell_taken
from peerd.core.ids import NodeName
from peerd.core.shard_map import Compression
from peerd.v1 import batch_pb2

ZSTD = peerd.ProducerOptions(compression="zstd")
TEXT = b"the same words again and again, " * 30


def batches(cluster, shard=1):
    return [batch_pb2.Batch.FromString(payload) for payload in cluster.payloads(shard)]


async def values(client):
    return [record.value async for record in client.read("orders")]


async def test_a_producer_appends_to_its_log_and_waits_at_its_end(cluster, client):
    cluster.create_log("orders", shards=2)
    async with client.producer("orders") as producer:
        receipt = await producer.append(b"0", key=b"k", headers={"h": b"1"}, timestamp_ms=4)
        later = producer.append_nowait(b"1", shard=receipt.shard)
        await producer.append_many([b"2", peerd.NewRecord(value=b"3")])
        batch = await producer.append_batch([peerd.NewRecord(value=b"4")] * 2)
        last = producer.append_nowait(b"5")
        assert producer.log == "orders"
    assert (await later).offset == receipt.offset + 1
    assert batch.record_count == 2
    assert last.done()
    assert sorted(await values(client)) == [b"0", b"1", b"2", b"3", b"4", b"4", b"5"]
    with pytest.raises(peerd.ClientClosed, match="producer is closed") as caught:
        await producer.append(b"6")
    assert caught.value.taken == "no"
    await producer.close()
    assert (await client.append("orders", b"7")).log == "orders"


async def test_a_closed_client_ends_its_producers(cluster, connect):
    cluster.create_log("orders")
    client = await connect()
    producer = client.producer("orders")
    cluster.hosts[NodeName("peer-1")].holding = []
    waiting = producer.append_nowait(b"0")
    await cluster.hosts[NodeName("peer-1")].until_held(1)
    await client.close()
    with pytest.raises(peerd.ClientClosed) as caught:
        await waiting
    assert caught.value.taken == "unknown"


async def test_producers_of_one_client_keep_apart(cluster, client):
    cluster.create_log("orders")
    small = peerd.ProducerOptions(batch_records_max=2)
    async with client.producer("orders", options=small) as one, client.producer("orders") as other:
        await asyncio.gather(one.append_many([b"a"] * 4), other.append_many([b"b"] * 4))
    contents = [[record.value for record in batch.records.records] for batch in batches(cluster)]
    assert sorted(contents) == [[b"a", b"a"], [b"a", b"a"], [b"b"] * 4]


async def test_a_hand_over_moves_a_producer_too(cluster, client):
    cluster.create_log("orders")
    async with client.producer("orders") as producer:
        await producer.append(b"0")
        cluster.hand_over(1, "peer-2")
        assert (await producer.append(b"1")).epoch == 2
    assert await values(client) == [b"0", b"1"]


# ---------------------------------------------------------------------------- compression


async def test_batches_travel_packed_and_are_read_unpacked(cluster, client):
    cluster.create_log("orders")
    async with client.producer("orders", options=ZSTD) as producer:
        receipts = await producer.append_many([TEXT] * 20)
    assert [receipt.offset for receipt in receipts] == list(range(20))
    (batch,) = batches(cluster)
    assert batch.codec == batch_pb2.CODEC_ZSTD
    assert batch.record_count == 20
    assert batch.ByteSize() < len(TEXT)
    assert await values(client) == [TEXT] * 20


async def test_what_does_not_get_smaller_is_not_packed(cluster, connect):
    client = await connect(compression="zstd")
    cluster.create_log("orders")
    await client.append("orders", b"short")
    await client.append("orders", TEXT)
    assert [batch.codec for batch in batches(cluster)] == [0, batch_pb2.CODEC_ZSTD]
    assert await values(client) == [b"short", TEXT]


async def test_a_log_says_how_its_producers_pack_unless_they_say_it_themselves(cluster, client):
    cluster.create_log("orders", compression=Compression.ZSTD)
    plain = peerd.ProducerOptions(compression="none")
    async with client.producer("orders", options=plain) as producer:
        await producer.append(TEXT)
    await client.append("orders", TEXT)
    cluster.set_compression("orders", Compression.NONE)
    cluster.create_log("later")
    await client.append("later", b"", shard=2)  # its map is as new as that log
    await client.append("orders", TEXT)
    packed = [batch.codec for batch in batches(cluster)]
    assert packed == [0, batch_pb2.CODEC_ZSTD, 0]


async def test_keys_of_packed_records_are_checked_like_others(cluster, client):
    cluster.create_log("orders", shards=4)
    async with client.producer("orders", options=ZSTD) as producer:
        receipts = [await producer.append(TEXT, key=b"k%d" % number) for number in range(16)]
        wrong = next(one.shard for one in receipts if one.shard != receipts[0].shard)
        with pytest.raises(peerd.KeysSpanShards) as caught:
            await producer.append(TEXT, key=b"k0", shard=wrong)
    assert caught.value.taken == "no"


def test_an_unknown_compression_is_refused():
    with pytest.raises(peerd.InvalidRequest, match="'lz4' is none of none, zstd"):
        peerd.ProducerOptions(compression="lz4")


# ---------------------------------------------------------------------------- cancelled appends


async def under_way(cluster, client, count):
    """`count` appends; the first is at its primary, the others wait in the client."""
    host = cluster.hosts[NodeName("peer-1")]
    host.holding = []
    tasks = [asyncio.create_task(client.append("orders", b"0"))]
    await host.until_held(1)
    tasks += [
        asyncio.create_task(client.append("orders", b"%d" % number)) for number in range(1, count)
    ]
    await asyncio.sleep(0)
    return tasks


async def test_a_cancelled_append_tells_whether_it_may_be_in_the_log(cluster, connect):
    cluster.create_log("orders")
    client = await connect(batches_inflight_max=1)
    tasks = await under_way(cluster, client, 4)
    for task in (tasks[0], tasks[2]):
        task.cancel()
    ended = []
    for task in (tasks[0], tasks[2]):
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        ended.append(peerd.taken_of(caught.value))
    assert ended == ["unknown", "no"]
    cluster.hosts[NodeName("peer-1")].release()
    await asyncio.gather(tasks[1], tasks[3])
    assert await values(client) == [b"0", b"1", b"3"]
    assert client.statistics().queued_bytes == 0


async def test_a_time_limit_of_the_caller_tells_it_too(cluster, connect):
    cluster.create_log("orders")
    client = await connect(batches_inflight_max=1)
    (first,) = await under_way(cluster, client, 1)
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.01):
            await client.append("orders", b"1")
    assert peerd.taken_of(caught.value) == "no"
    cluster.hosts[NodeName("peer-1")].release()
    await first
    assert await values(client) == [b"0"]


def test_other_errors_tell_nothing_of_appends():
    assert peerd.taken_of(ValueError("x")) is None
    assert peerd.taken_of(peerd.OutcomeUnknown("x", taken="unknown")) == "unknown"
    assert peerd.taken_of(_raised_while_cancelled(ValueError)) is None


def test_a_time_limit_that_names_no_cause_tells_it_too():
    assert peerd.taken_of(_raised_while_cancelled(TimeoutError)) == "no"


def _raised_while_cancelled(kind: type[Exception]) -> Exception:
    error, cancelled = kind(), asyncio.CancelledError()
    tell_taken(cancelled, "no")
    error.__context__ = cancelled
    return error


async def test_a_closed_producer_of_a_log_with_one_shard_takes_nothing(cluster, client):
    cluster.create_log("orders")
    async with client.producer("orders") as producer:
        await producer.append(b"0")
        await producer.append(b"1")
    with pytest.raises(peerd.ClientClosed) as caught:
        await producer.append(b"2")
    assert caught.value.taken == "no"
    assert await values(client) == [b"0", b"1"]


async def test_where_the_records_of_a_log_went_is_forgotten_with_the_log(cluster, client):
    cluster.create_log("orders")
    assert (await client.append("orders", b"0")).shard == 1
    assert (await client.append("orders", b"1")).shard == 1
    # The log is deleted, and another one gets its name.
    del cluster.logs["orders"], cluster.shards[1]
    cluster.create_log("other", publish=False)
    cluster.create_log("orders")
    cache = client._directory.cache
    while cache.shards_of("orders") in {(), (1,)}:
        await cache.changed.wait()
    async with asyncio.timeout(5):
        receipt = await client.append("orders", b"2")
    assert (receipt.shard, receipt.offset) == (cache.shards_of("orders")[0], 0)
