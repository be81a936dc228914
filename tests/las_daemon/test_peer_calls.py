"""Questions to peers: an answer counts only if the right store gives it, and none raises."""

import pytest

from las.daemon.peer_calls import GrpcPeerCalls
from las.daemon.reconcile import PromiseOrder
from peerd.core.ids import BootId, Epoch, ProcessId, ReplicaId, ShardId
from peerd.internal.v1 import replication_pb2
from peerd.transport.map_codec import encode_replica
from tests.las_daemon.stand_in import StandInPeer

ORDER = PromiseOrder(shard=ShardId(1), fence=Epoch(5), epoch=Epoch(3), prepared=Epoch(4))


@pytest.fixture
async def asked(las):
    """The calls of the leader, and the peer that they go to."""
    (peer,) = await las.add_peers(1)
    calls = las.node._calls
    assert isinstance(calls, GrpcPeerCalls)
    return calls, peer


async def test_promises_come_back_as_the_store_says(asked):
    calls, peer = asked

    def promise(request):
        assert [each.fence for each in request.orders] == [5]
        return replication_pb2.PromiseResponse(
            store_id=peer.store,
            promised=[
                replication_pb2.Promised(
                    shard=1,
                    promised=5,
                    open=replication_pb2.EpochState(
                        epoch=3, adopted=True, begin=7, end=20, commit_offset=18
                    ),
                    prepared=replication_pb2.EpochState(epoch=4),
                )
            ],
        )

    peer.answers["Promise"] = promise
    (answer,) = await calls.promise(ReplicaId(peer.name, peer.store), [ORDER])
    assert (answer.shard, answer.promised) == (1, 5)
    assert (answer.open.adopted, answer.open.begin, answer.open.end) == (True, 7, 20)
    assert answer.open.commit == 18
    assert not answer.prepared.adopted


async def test_the_answer_of_another_store_is_none(asked):
    calls, peer = asked

    def promise(request):
        return replication_pb2.PromiseResponse(
            store_id="f" * 32, promised=[replication_pb2.Promised(shard=1, promised=5)]
        )

    peer.answers["Promise"] = promise
    assert await calls.promise(ReplicaId(peer.name, peer.store), [ORDER]) is None


async def test_whether_a_segment_began_is_told_with_its_holders(asked):
    calls, peer = asked
    replica = ReplicaId(peer.name, peer.store)

    def begun(request):
        assert (request.shard, request.epoch) == (1, 4)
        return replication_pb2.HasBegunResponse(
            begun=True, begin=20, holders=[encode_replica(replica)]
        )

    peer.answers["HasBegun"] = begun
    process = ProcessId(peer.name, peer.store, peer.boot)
    answer = await calls.has_begun(process, ShardId(1), Epoch(4))
    assert (answer.begun, answer.begin, answer.holders) == (True, 20, (replica,))


async def test_who_has_no_stream_to_a_suspect_says_so(asked):
    calls, peer = asked
    assert (await calls.hears(peer.name, "peer-9")).silent_ms is None
    peer.silences["peer-9"] = 40
    assert (await calls.hears(peer.name, "peer-9")).silent_ms == 40


async def test_whether_a_process_answers_in_time(las, asked):
    calls, peer = asked
    process = ProcessId(peer.name, peer.store, peer.boot)
    assert await calls.responds(process, 10_000)
    another = ProcessId(peer.name, peer.store, BootId("b" * 32))
    assert not await calls.responds(another, 10_000), "not the process that registered last"
    await peer._server.stop(None)
    assert not await calls.responds(process, 10_000)


async def test_a_dead_peer_gives_no_answer_and_its_next_process_is_dialled_anew(las, asked):
    calls, peer = asked
    process = ProcessId(peer.name, peer.store, peer.boot)
    assert await calls.hears(peer.name, "peer-9") is not None
    await peer._server.stop(None)
    assert await calls.hears(peer.name, "peer-9") is None
    assert await calls.promise(ReplicaId(peer.name, peer.store), [ORDER]) is None
    assert await calls.has_begun(process, ShardId(1), Epoch(4)) is None
    before = calls._channels.to(peer.address)
    again = StandInPeer(1, las.node.address, port=int(peer.address.rpartition(":")[2]))
    again.boot = "a" * 32
    await again.start()
    assert await calls.hears(peer.name, "peer-9") is not None
    assert calls._channels.to(peer.address) is not before
    await again.stop()
