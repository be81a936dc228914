"""Positions of consumers, through the client: by hand, and by a read that has a name."""

import pytest

import peerd
from tests.client.test_reads import next_values, numbered, values


async def test_a_position_is_committed_found_and_forgotten(cluster, connect):
    client, other = await connect(), await connect()
    await client.create_log("orders", shards=2)
    assert await client.positions.get("orders", "billing") == peerd.Position()
    await client.positions.commit("orders", "billing", peerd.Position({1: 3, 2: 5}))
    assert await other.positions.get("orders", "billing") == peerd.Position({1: 3, 2: 5})
    assert await other.positions.list("orders") == {"billing": peerd.Position({1: 3, 2: 5})}
    await other.positions.forget("orders", "billing")
    assert await client.positions.list("orders") == {}
    assert await client.positions.get("orders", "billing") == peerd.Position()


async def test_what_cannot_be_kept_is_refused_in_words(cluster, client):
    await client.create_log("orders")
    with pytest.raises(peerd.UnknownLog):
        await client.positions.get("nowhere", "billing")
    with pytest.raises(peerd.UnknownShard):
        await client.positions.commit("orders", "billing", peerd.Position({9: 1}))
    with pytest.raises(peerd.InvalidRequest, match="consumer"):
        await client.positions.get("orders", "Billing!")


async def test_a_peer_that_is_gone_is_passed_over(cluster, connect):
    client = await connect()
    await client.create_log("orders", shards=3)
    await client.positions.commit("orders", "billing", peerd.Position({1: 1}))
    shard = cluster.logs["_positions"].shards[0]
    cluster.hand_over(shard, "peer-3")
    await cluster.stop("peer-1")
    await client.positions.commit("orders", "billing", peerd.Position({1: 2}))
    assert await client.positions.get("orders", "billing") == peerd.Position({1: 2})


async def test_a_named_read_goes_on_where_its_consumer_was(cluster, connect):
    client = await connect(position_commit_s=0.0)
    await client.create_log("orders")
    await numbered(client, 6)
    async with client.read("orders", consumer="billing") as stream:
        assert await next_values(stream, 3) == [0, 1, 2]
    # Nobody asked for a fourth: the third may not be done with.
    assert await client.positions.get("orders", "billing") == peerd.Position({1: 2})
    async with client.read("orders", consumer="billing") as stream:
        assert await values(stream) == [2, 3, 4, 5]
    assert await client.positions.get("orders", "billing") == peerd.Position({1: 6})
    await numbered(client, 2, begin=6)
    assert await values(client.read("orders", start="latest", consumer="billing")) == [6, 7]


async def test_a_new_consumer_begins_where_the_read_says(cluster, client):
    await client.create_log("orders")
    await numbered(client, 4)
    assert await values(client.read("orders", start="latest", consumer="late")) == []
    assert await client.positions.get("orders", "late") == peerd.Position({1: 4})


async def test_a_named_read_commits_when_it_is_told_to(cluster, connect):
    client = await connect(position_commit_s=3_600.0)
    await client.create_log("orders")
    await numbered(client, 4)
    async with client.read("orders", consumer="billing") as stream:
        await next_values(stream, 2)
        await stream.commit()
        assert await client.positions.get("orders", "billing") == peerd.Position({1: 2})
        await next_values(stream, 1)
    assert stream.position == peerd.Position({1: 3})
    assert await client.positions.get("orders", "billing") == peerd.Position({1: 2})
    with pytest.raises(peerd.InvalidRequest, match="consumer"):
        await client.read("orders").commit()


def test_the_blocking_face_does_the_same(running_cluster):
    options = peerd.ClientOptions(position_commit_s=0.0)
    addresses = [*running_cluster.addresses, running_cluster.las_address]
    with peerd.connect(addresses, options=options) as client:
        client.create_log("orders")
        client.append_many("orders", [b"%d" % number for number in range(6)])
        with client.read("orders", consumer="billing") as records:
            assert [int(next(records).value) for _ in range(3)] == [0, 1, 2]
        assert records.position == peerd.Position({1: 3})
        assert client.positions.get("orders", "billing") == peerd.Position({1: 2})
        with client.read("orders", consumer="billing") as records:
            assert [int(record.value) for record in records] == [2, 3, 4, 5]
        assert client.positions.get("orders", "billing") == peerd.Position({1: 6})
        client.positions.commit("orders", "billing", peerd.Position({1: 1}))
        client.positions.forget("orders", "billing")
        assert client.positions.get("orders", "billing") == peerd.Position()
