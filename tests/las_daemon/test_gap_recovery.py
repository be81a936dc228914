"""A person gives up what is lost: what is asked before, what is refused, what is committed."""

import grpc
import pytest

from las.core.commands import FenceSegment, HaltShard, SetNodeState
from las.core.state import GAP_OFFSETS_MIN, NodeState
from las.v1 import log_admin_pb2 as pb
from peerd.core.ids import BootId, Epoch, NodeName
from peerd.internal.v1 import replication_pb2
from peerd.pki import Role
from tests.las_daemon.stand_in import ADMIN, metadata, refused, until

WHY = "a fire on Sunday"


def recover(las, *, as_=ADMIN, shard=1, **fields):
    request = pb.RecoverShardRequest(shard=shard, **fields)
    return las.logs.RecoverShard(request, metadata=as_, timeout=10)


def shard_of(las):
    return las.state.shards[1].shard


def gone(request, context=None):
    """No usable answer: another store's."""
    return replication_pb2.PromiseResponse(store_id="f" * 32)


def told(end: int, commit: int):
    """A store that has the open segment from 0 to `end`."""

    def answer(request):
        return replication_pb2.PromiseResponse(
            store_id=request.target_store_id,
            promised=[
                replication_pb2.Promised(
                    shard=order.shard,
                    promised=order.fence,
                    open=replication_pb2.EpochState(
                        epoch=order.epoch, adopted=True, begin=0, end=end, commit_offset=commit
                    ),
                    prepared=replication_pb2.EpochState(epoch=order.prepared),
                )
                for order in request.orders
            ],
        )

    return answer


async def one_shard(las, *, peers=5):
    """A log of one shard on three peers; those that vote, the primary first."""
    await las.add_peers(peers)
    request = pb.CreateLogRequest(name="orders", shards=1, copies=3, acks=2)
    await las.logs.CreateLog(request, metadata=ADMIN, timeout=30)
    plan = shard_of(las).open.plan
    first = plan.primary.peer
    voters = sorted((each.peer for each in plan.voters), key=lambda name: name != first)
    by_name = {peer.name: peer for peer in las.peers}
    return [by_name[name] for name in voters]


async def judged_down(las, *peers):
    for peer in peers:
        peer.answers["Promise"] = gone
    for peer in peers:
        command = SetNodeState(
            node=NodeName(peer.name), boot=BootId(peer.boot), state=NodeState.DOWN, why="burned"
        )
        assert (await las.node.group.submit(command)).ok
    await until(lambda: shard_of(las).fence != 0, "a fence")


async def test_a_look_ahead_says_what_would_be_lost_and_changes_nothing(las):
    primary, second, third = await one_shard(las)
    third.answers["Promise"] = told(7, 5)
    await judged_down(las, primary, second)
    before = shard_of(las)
    seen = await recover(las)
    assert not seen.recovered
    assert list(seen.given_up) == sorted([primary.name, second.name])
    assert list(seen.answered) == [third.name]
    assert (seen.end, seen.known_commit, seen.resume_at) == (7, 5, 7 + GAP_OFFSETS_MIN)
    assert shard_of(las) == before


async def test_with_a_persons_word_the_shard_goes_on_behind_a_gap(las):
    primary, second, third = await one_shard(las)
    third.answers["Promise"] = told(7, 5)
    await judged_down(las, primary, second)
    done = await recover(las, accept_loss=True, why=WHY)
    assert done.recovered
    shard = shard_of(las)
    assert (shard.fence, shard.open.begin) == (0, 7 + GAP_OFFSETS_MIN)
    assert shard.open.plan.primary.peer == done.primary
    assert not {primary.name, second.name} & {each.peer for each in shard.open.plan.voters}
    assert [(each.end, [holder.peer for holder in each.holders]) for each in shard.sealed] == [
        (7, [third.name])
    ]
    (gap,) = shard.gaps
    assert (gap.begin, gap.end, gap.why) == (7, 7 + GAP_OFFSETS_MIN, f"{WHY} (ann)")
    assert (await refused(recover(las, accept_loss=True, why=WHY)))[0] == "STATE_CHANGED"


async def test_where_nobody_is_left_all_that_was_is_the_gap(las):
    voters = await one_shard(las, peers=6)
    await judged_down(las, *voters)
    done = await recover(las, accept_loss=True, why=WHY)
    assert (done.end, list(done.answered)) == (0, [])
    assert (shard_of(las).gaps[0].begin, shard_of(las).sealed) == (0, ())


async def test_a_voter_that_is_up_is_not_given_up(las):
    primary, second, third = await one_shard(las)
    third.answers["Promise"] = gone
    await judged_down(las, primary, second)
    reason, refusal = await refused(recover(las, accept_loss=True, why=WHY))
    assert reason == "STATE_CHANGED"
    assert f"{third.name} of shard 1 is up" in refusal.message
    assert shard_of(las).gaps == ()


async def test_nothing_is_given_up_while_nothing_is_known_to_be_lost(las):
    await one_shard(las)
    reason, refusal = await refused(recover(las, accept_loss=True, why=WHY))
    assert (reason, "nothing is known to be lost" in refusal.message) == ("STATE_CHANGED", True)


async def test_a_halted_shard_is_looked_into_first(las):
    await one_shard(las)
    halt = HaltShard(shard=1, epoch=Epoch(99), node=las.peers[0].name, why="never drawn")
    await las.node.group.submit(halt)
    reason, refusal = await refused(recover(las, accept_loss=True, why=WHY))
    assert (reason, "never drawn" in refusal.message) == ("STATE_CHANGED", True)


async def test_without_enough_nodes_left_the_advice_is_to_add_some(las):
    primary, second, third = await one_shard(las, peers=3)
    third.answers["Promise"] = told(7, 5)
    await judged_down(las, primary, second)
    assert (await refused(recover(las)))[0] == "NOT_ENOUGH_PEERS"


async def test_a_fence_that_has_its_answers_is_left_alone(las):
    primary, second, third = await one_shard(las)
    # The leader waits for one more answer than the two that a recovery needs: it gets none.
    for peer in (second, third):
        peer.answers["Promise"] = gone
    command = FenceSegment(shard=1, epoch=Epoch(1), why="a test's")
    assert (await las.node.group.submit(command)).ok
    for peer in (second, third):
        del peer.answers["Promise"]
    reason, _ = await refused(recover(las, accept_loss=True, why=WHY))
    assert reason == "STATE_CHANGED"
    assert shard_of(las).gaps == ()
    assert primary.name


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"shard": 9}, "UNKNOWN_SHARD"),
        ({"accept_loss": True}, "INVALID_ARGUMENT"),
        ({"accept_loss": True, "why": " "}, "INVALID_ARGUMENT"),
        ({"why": "x" * 301}, "INVALID_ARGUMENT"),
        ({"why": "two\nlines"}, "INVALID_ARGUMENT"),
    ],
)
async def test_what_is_asked_wrongly_is_refused(las, fields, reason):
    await one_shard(las)
    assert (await refused(recover(las, **fields)))[0] == reason


async def test_a_reader_may_not(las):
    call = recover(las, as_=metadata(Role.READER, "bob"))
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call
    assert failure.value.code() is grpc.StatusCode.PERMISSION_DENIED
