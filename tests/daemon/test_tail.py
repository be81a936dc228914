"""Linearizable tails over real gRPC: confirmed by real voters, or not given."""

import asyncio

import grpc
import grpc.aio
import pytest

from peerd.core.errors import Reason
from peerd.core.ids import Epoch
from peerd.daemon.peer import Peer
from peerd.internal.v1 import replication_pb2, replication_pb2_grpc
from peerd.pki import Identity, Role
from peerd.transport.log_service import LogService
from peerd.transport.status import reason_of, refusal_of_error
from peerd.transport.tls import plaintext_metadata
from peerd.v1 import log_pb2, log_pb2_grpc
from tests.daemon.fleet import (
    CLUSTER,
    CLUSTER_ID,
    DEADLINE_S,
    LOG,
    SHARD,
    Fleet,
    StandInLas,
    append,
    opened,
    plan,
    sealed,
    shard_of,
    until,
)

CLIENT = plaintext_metadata(Identity(cluster=CLUSTER, role=Role.READER, name="app"))
LINEARIZABLE = log_pb2.GetTailRequest(
    log=LOG, shard=SHARD, consistency=log_pb2.TAIL_CONSISTENCY_LINEARIZABLE
)


async def tail_at(peer: Peer) -> log_pb2.ShardTail:
    async with grpc.aio.insecure_channel(peer.address) as channel:
        stub = log_pb2_grpc.LogServiceStub(channel)
        answer = await stub.GetTail(LINEARIZABLE, metadata=CLIENT, timeout=DEADLINE_S)
    return answer.tails[0]


async def three_peers(fleet: Fleet, las: StandInLas):
    one, two, three = await fleet.start("peer-1", "peer-2", "peer-3")
    las.commit(shard_of(opened(1, plan(one, one, two, three))))
    await until(lambda: one.host.is_primary(SHARD), "peer-1 is primary")
    await append(one, b"a", b"b")
    return one, two, three


async def test_the_tail_is_the_primarys_whoever_is_asked(fleet: Fleet, las: StandInLas) -> None:
    peers = await three_peers(fleet, las)
    for peer in peers:
        tail = await tail_at(peer)
        assert (tail.committed, tail.epoch, tail.peer) == (2, 1, "peer-1")


async def test_it_is_given_with_one_voter_dead_and_not_with_two(
    fleet: Fleet, las: StandInLas, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _, _ = await three_peers(fleet, las)
    await fleet.kill("peer-3")
    assert (await tail_at(one)).committed == 2
    await fleet.kill("peer-2")
    # The peer waits half a second, and the caller longer: its own deadline must not end the call.
    monkeypatch.setattr(LogService, "_timeout_s", lambda *_: 0.5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await tail_at(one)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert reason_of(refusal_of_error(caught.value)) is Reason.NOT_ENOUGH_PEERS


async def test_a_primary_that_was_replaced_gives_none_and_the_new_one_does(
    fleet: Fleet, las: StandInLas
) -> None:
    """The old primary hears nothing from the LAS: its voters tell it."""
    one, two, three = await three_peers(fleet, las)
    for peer in (two, three):
        await fleet.promise(peer, Epoch(2), Epoch(1))
    waiting = asyncio.ensure_future(tail_at(one))
    await until(lambda: not one.host.is_primary(SHARD), "a voter's answer ends the primary")
    assert not waiting.done()
    first = opened(1, plan(one, one, two, three))
    second = opened(2, plan(two, two, three), begin=2)
    las.commit(shard_of(second, sealed=(sealed(first, 2, two, three),)))
    tail = await waiting
    assert (tail.committed, tail.epoch, tail.peer) == (2, 2, "peer-2")


async def test_a_question_for_another_store_is_refused(fleet: Fleet, las: StandInLas) -> None:
    (one,) = await fleet.start("peer-1")
    identity = Identity(cluster=CLUSTER, role=Role.PEER, name="peer-2")
    request = replication_pb2.ConfirmEpochRequest(
        cluster_id=CLUSTER_ID, target_store_id="0" * 32, shard=SHARD, epoch=1, round=1
    )
    async with grpc.aio.insecure_channel(one.address) as channel:
        stub = replication_pb2_grpc.ReplicationServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ConfirmEpoch(request, metadata=plaintext_metadata(identity))
    assert reason_of(refusal_of_error(caught.value)) is Reason.WRONG_STORE
