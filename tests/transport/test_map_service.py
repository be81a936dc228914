"""The map as peers pass it on."""

import grpc
import grpc.aio
import pytest

from las.v1 import shard_map_pb2, shard_map_pb2_grpc
from peerd.core.errors import Reason
from peerd.testing.memory import MemoryCluster
from peerd.transport.map_cache import MapCache
from peerd.transport.status import refusal_of_error


@pytest.fixture
async def maps(cluster):
    async with grpc.aio.insecure_channel(cluster.addresses[1]) as channel:
        yield shard_map_pb2_grpc.ShardMapServiceStub(channel)


async def test_a_peer_gives_the_whole_map_or_one_log(cluster, maps):
    cluster.create_log("orders", shards=2)
    cluster.create_log("carts")
    whole = await maps.GetMap(shard_map_pb2.GetMapRequest())
    assert [len(whole.map.nodes), len(whole.map.logs), len(whole.map.shards)] == [3, 2, 3]
    part = await maps.GetMap(shard_map_pb2.GetMapRequest(log="carts"))
    assert [log.name for log in part.map.logs] == ["carts"]
    assert part.map.version == whole.map.version


async def test_who_has_a_map_gets_what_changed_since(cluster, maps):
    cluster.create_log("orders", shards=2)
    known = (await maps.GetMap(shard_map_pb2.GetMapRequest())).map.version
    carts = shard_map_pb2.Log(name="carts", copies=1, acks=1)
    update = shard_map_pb2.MapUpdate(cluster_id="memory", version=known + 1, logs=[carts])
    cluster.hosts["peer-2"].cache.apply(update)
    request = shard_map_pb2.GetMapRequest(known_version=known)
    change = (await maps.GetMap(request)).map
    assert not change.full
    assert [log.name for log in change.logs] == ["carts"]
    call = maps.WatchMap(shard_map_pb2.WatchMapRequest(known_version=known))
    watched = (await call.read()).map
    assert not watched.full
    assert [log.name for log in watched.logs] == ["carts"]
    call.cancel()
    for strange in (0, 1 << 40):
        request = shard_map_pb2.GetMapRequest(log="carts", known_version=strange)
        assert (await maps.GetMap(request)).map.full


async def test_an_unknown_log_is_refused(cluster, maps):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await maps.GetMap(shard_map_pb2.GetMapRequest(log="nowhere"))
    assert Reason(refusal_of_error(caught.value).reason) == Reason.UNKNOWN_LOG


async def test_a_watcher_gets_the_map_and_then_each_change(cluster, maps):
    cluster.create_log("orders")
    watched = MapCache(lambda: 0)
    call = maps.WatchMap(shard_map_pb2.WatchMapRequest())
    watched.apply((await call.read()).map)
    assert set(watched.logs) == {"orders"}
    cluster.hand_over(1, "peer-3")
    while watched.shards[1].open.epoch != 2:
        watched.apply((await call.read()).map)
    cluster.create_log("carts")
    while "carts" not in watched.logs:
        watched.apply((await call.read()).map)
    assert watched.shards == cluster.hosts["peer-2"].cache.shards
    call.cancel()


async def test_a_peer_without_a_map_says_so():
    cluster = MemoryCluster(peers=1)
    cluster.publish = lambda: None
    async with cluster, grpc.aio.insecure_channel(cluster.addresses[0]) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await shard_map_pb2_grpc.ShardMapServiceStub(channel).GetMap(
                shard_map_pb2.GetMapRequest()
            )
    found = refusal_of_error(caught.value)
    assert Reason(found.reason) == Reason.MAP_UNKNOWN
    assert found.retry_after_ms > 0
