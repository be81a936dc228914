"""A shard is split while a client appends and reads (docs/protocol.md §4.3)."""

import asyncio

import pytest

import peerd
from peerd.core.ids import NodeName
from peerd.testing.memory import lost
from peerd.transport.append_edge import key_hash
from peerd.v1 import batch_pb2

MIDDLE = 1 << 63
KEYS = [b"key-%d" % number for number in range(16)]
LOW = next(key for key in KEYS if key_hash(key) < MIDDLE)
HIGH = next(key for key in KEYS if key_hash(key) >= MIDDLE)


def stored(cluster, *shards):
    """(key, value) of the shards' records, in order."""
    return [
        (record.key if record.HasField("key") else None, record.value)
        for shard in shards
        for payload in cluster.payloads(shard)
        for record in batch_pb2.Batch.FromString(payload).records.records
    ]


def primary(cluster):
    return cluster.hosts[NodeName("peer-1")]


async def answered_split(cluster):
    """The parent's primary says SPLIT; only then the map has it, too."""
    peer = primary(cluster)
    await peer.until_held(1)
    peer.release()
    cluster.publish()


async def know_the_children(client):
    cache = client._directory.cache
    while len(cache.shards_of("orders")) < 2:
        await cache.changed.wait()


async def append_all(client, count, begin=0):
    return await asyncio.gather(
        *(
            client.append("orders", b"%d" % number, key=KEYS[number % len(KEYS)])
            for number in range(begin, begin + count)
        )
    )


def assert_ordered(records, count):
    assert sorted(int(value) for _, value in records) == list(range(count))
    for key in KEYS:
        mine = [int(value) for found, value in records if found == key]
        assert mine == sorted(mine)


async def test_a_shard_is_split_by_a_client(cluster, client):
    cluster.create_log("orders")
    assert await client.split_shard(1) == (2, 3)
    assert await client.split_shard(1) == (2, 3)
    _, shards = await client.describe_log("orders")
    assert [shard.shard for shard in shards] == [1, 2, 3]
    with pytest.raises(peerd.UnknownShard):
        await client.split_shard(9)


async def test_keys_go_to_the_children_and_keep_their_order(cluster, client):
    cluster.create_log("orders")
    before = await append_all(client, 64)
    assert cluster.split(1) == (2, 3)
    after = await append_all(client, 64, begin=64)
    assert {receipt.shard for receipt in before} == {1}
    assert {receipt.shard for receipt in after} == {2, 3}
    assert_ordered(stored(cluster, 1, 2, 3), 128)
    assert all(key_hash(key) < MIDDLE for key, _ in stored(cluster, 2))
    assert all(key_hash(key) >= MIDDLE for key, _ in stored(cluster, 3))


async def test_what_the_parent_does_not_have_is_cut_by_key(cluster, client):
    """The map lags behind: the batches go to the parent, and its primary says SPLIT."""
    cluster.create_log("orders")
    await append_all(client, 16)
    cluster.split(1, publish=False)
    primary(cluster).holding = []
    late = asyncio.gather(
        *(
            client.append("orders", b"%d" % number, key=KEYS[number % len(KEYS)])
            for number in range(16, 80)
        )
    )
    await answered_split(cluster)
    assert {receipt.shard for receipt in await late} == {2, 3}
    assert_ordered(stored(cluster, 1, 2, 3), 80)


async def test_a_batch_that_the_parent_took_is_not_sent_to_a_child(cluster, client):
    """Its answer is lost with the old primary; the parent answers the retry from its table (G4)."""
    cluster.create_log("orders")
    peer = primary(cluster)
    peer.holding = []
    taken = asyncio.create_task(client.append("orders", b"0", key=LOW))
    await peer.until_held(1)
    cluster.hand_over(1, "peer-2", publish=False)
    cluster.split(1)
    later = await client.append("orders", b"1", key=LOW)
    first = await taken
    assert (first.shard, first.duplicate, later.shard) == (1, True, 2)
    assert stored(cluster, 1, 2, 3) == [(LOW, b"0"), (LOW, b"1")]


async def test_split_settles_what_was_in_doubt(cluster, client):
    """An earlier sending was answered as unknown: SPLIT proves that it was not taken."""
    cluster.create_log("orders")
    primary(cluster).refuse_next.append(lost(1))
    cluster.split(1, publish=False)
    primary(cluster).holding = []
    waiting = asyncio.create_task(client.append("orders", b"0", key=LOW))
    await answered_split(cluster)
    assert (await waiting).shard == 2
    assert stored(cluster, 1, 2, 3) == [(LOW, b"0")]


async def test_nothing_overtakes_what_is_unanswered_at_the_parent(cluster, client):
    cluster.create_log("orders")
    peer = primary(cluster)
    peer.holding = []
    first = asyncio.create_task(client.append("orders", b"0", key=LOW))
    await peer.until_held(1)
    cluster.split(1)
    await know_the_children(client)
    second = client.append_nowait("orders", b"1", key=LOW)
    elsewhere = client.append_nowait("orders", b"2", key=HIGH)
    await asyncio.sleep(0)
    assert stored(cluster, 2, 3) == []
    peer.release()
    assert ((await first).shard, (await second).shard, (await elsewhere).shard) == (1, 2, 3)


async def test_what_the_parent_refused_goes_to_the_child_before_what_came_later(
    cluster, client, connect
):
    cluster.create_log("orders")
    other = await connect()
    peer = primary(cluster)
    cluster.split(1, publish=False)
    peer.holding = []
    first = asyncio.create_task(client.append("orders", b"first", key=LOW))
    await peer.until_held(1)
    say_split, peer.holding = peer.holding, None
    cluster.publish()
    await know_the_children(client)
    second = client.append_nowait("orders", b"second", key=LOW)
    assert (await other.append("orders", b"between", key=LOW)).shard == 2
    for answer in say_split:
        answer()
    assert ((await first).offset, (await second).offset) == (1, 2)
    assert [value for _, value in stored(cluster, 2)] == [b"between", b"first", b"second"]


async def test_a_batch_that_is_split_and_finds_no_child_in_time_was_not_appended(cluster, client):
    """An earlier sending was in doubt; SPLIT ended the doubt."""
    cluster.create_log("orders")
    primary(cluster).refuse_next.append(lost(1))
    cluster.split(1, publish=False)
    with pytest.raises(peerd.NotAppended) as caught:
        await client.append("orders", b"0", key=LOW, timeout_s=0.3)
    assert (caught.value.reason, caught.value.taken) == ("SPLIT", "no")


async def test_what_was_meant_for_the_parent_alone_ends_as_not_appended(cluster, client):
    cluster.create_log("orders")
    cluster.split(1, publish=False)
    primary(cluster).holding = []
    conditional = client.append("orders", b"0", key=LOW, expected_offset=0, shard=1)
    waiting = asyncio.create_task(conditional)
    await answered_split(cluster)
    with pytest.raises(peerd.NotAppended) as caught:
        await waiting
    assert (caught.value.reason, caught.value.taken) == ("SPLIT", "no")
    with pytest.raises(peerd.UnknownShard):
        await client.append("orders", b"0", shard=1)


async def test_a_batch_whose_keys_are_parted_is_told_so(cluster, client):
    cluster.create_log("orders")
    cluster.split(1, publish=False)
    primary(cluster).holding = []
    records = [peerd.NewRecord(value=b"0", key=LOW), peerd.NewRecord(value=b"1", key=HIGH)]
    waiting = asyncio.create_task(client.append_batch("orders", records))
    await answered_split(cluster)
    with pytest.raises(peerd.KeysSpanShards) as caught:
        await waiting
    assert caught.value.taken == "no"
    assert stored(cluster, 1, 2, 3) == []


async def test_records_without_a_key_go_to_a_child(cluster, client):
    cluster.create_log("orders")
    cluster.split(1, publish=False)
    primary(cluster).holding = []
    waiting = asyncio.create_task(client.append("orders", b"0"))
    await answered_split(cluster)
    assert (await waiting).shard in {2, 3}


# ---------------------------------------------------------------------------- reads


async def test_a_whole_log_is_read_parents_first(cluster, client):
    cluster.create_log("orders")
    await append_all(client, 64)
    cluster.split(1)
    await append_all(client, 64, begin=64)
    cluster.split(2)
    await append_all(client, 64, begin=128)
    records = [(record.key, record.value) async for record in client.read("orders")]
    assert_ordered(records, 192)
    assert [tail.shard for tail in await client.tail("orders")] == [1, 2, 3, 4, 5]
    parent = [int(record.value) async for record in client.read("orders", shard=1)]
    assert parent == list(range(64))


async def test_a_child_is_not_read_while_its_parent_is(cluster, client):
    cluster.create_log("orders")
    for number in range(24):
        await client.append("orders", b"%d" % number + b" " * 200_000, key=LOW)
    cluster.split(1)
    for number in range(24, 28):
        await client.append("orders", b"%d" % number, key=LOW)
    read = [int(record.value) async for record in client.read("orders")]
    assert read == list(range(28))


async def test_who_follows_a_log_goes_on_with_the_children(cluster, client):
    cluster.create_log("orders")
    await append_all(client, 16)
    stream = client.read("orders", follow=True)
    records = [await anext(stream) for _ in range(16)]
    cluster.split(1)
    await append_all(client, 64, begin=16)
    records += [await anext(stream) for _ in range(64)]
    assert_ordered([(record.key, record.value) for record in records], 80)
    position = stream.position
    await stream.aclose()
    await append_all(client, 16, begin=80)
    rest = [int(record.value) async for record in client.read("orders", start=position)]
    assert sorted(rest) == list(range(80, 96))


async def test_who_follows_a_shard_alone_is_at_its_end(cluster, client):
    cluster.create_log("orders")
    await append_all(client, 16)
    stream = client.read("orders", shard=1, follow=True)
    records = [await anext(stream) for _ in range(16)]
    cluster.split(1)
    records += [record async for record in stream]
    assert len(records) == 16
