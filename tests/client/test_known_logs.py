"""Logs that a map does not have, or not yet: who is asked, and what is told."""

import asyncio

import pytest

import peerd
import peerd.aio
from peerd.client.options import ClientOptions

OPTIONS = ClientOptions(append_timeout_s=20.0)


@pytest.fixture
async def client(cluster, tmp_path):
    """A client that was told where the LAS is, as `peerctl.toml` tells it."""
    path = tmp_path / "peerctl.toml"
    path.write_text(f'peers = {cluster.addresses}\nlas = ["{cluster.las_address}"]\n')
    async with peerd.aio.connect(credentials=path, options=OPTIONS) as client:
        yield client


async def test_a_log_that_no_map_has_yet_is_waited_for(cluster, client):
    cluster.create_log("orders", publish=False)
    append = asyncio.create_task(client.append("orders", b"1"))
    await cluster.las.described.wait()
    assert not append.done()
    cluster.publish()
    assert (await append).log == "orders"


async def test_appends_that_waited_for_their_log_keep_their_order(cluster, client):
    cluster.create_log("orders", publish=False)
    first = [asyncio.create_task(client.append("orders", b"%d" % n)) for n in range(5)]
    await cluster.las.described.wait()
    cluster.publish()
    await first[0]
    last = asyncio.create_task(client.append("orders", b"5"))
    await asyncio.gather(*first, last)
    assert [record.value async for record in client.read("orders")] == [b"%d" % n for n in range(6)]


async def nothing_read(client):
    return [record async for record in client.read("orders")] == []


async def ends_at_zero(client):
    return [tail.committed for tail in await client.tail("orders")] == [0]


async def has_no_position(client):
    return await client.positions.get("orders", "billing") == peerd.Position()


@pytest.mark.parametrize("call", [nothing_read, ends_at_zero, has_no_position])
async def test_what_peers_do_not_know_yet_is_asked_again(cluster, client, call):
    cluster.create_log("orders", publish=False)
    cluster.publish(to=["las"])
    asked = asyncio.create_task(call(client))
    await cluster.las.described.wait()
    assert not asked.done()
    cluster.publish()
    assert await asked


async def test_who_knows_the_las_hears_from_it_that_there_is_no_such_log(cluster, client):
    appends = [client.append("nothing", b"1") for _ in range(20)]
    errors = await asyncio.gather(*appends, return_exceptions=True)
    assert {type(error) for error in errors} == {peerd.UnknownLog}
    assert {error.taken for error in errors} == {"no"}
    # All of them waited for the one question.
    assert cluster.las.descriptions == 1
    for call in (client.tail("nothing"), client.read("nothing").take(1)):
        with pytest.raises(peerd.UnknownLog, match="create it first"):
            await call


async def test_without_the_las_the_peers_word_has_to_do(cluster, client):
    await cluster.stop_las()
    with pytest.raises(peerd.UnknownLog):
        await client.append("nothing", b"1")


async def test_one_peer_that_knows_a_log_is_found_without_the_las(cluster, connect):
    client = await connect(*cluster.addresses)
    cluster.create_log("orders", publish=False)
    cluster.publish(to=["peer-1"])
    assert (await client.append("orders", b"1")).log == "orders"
