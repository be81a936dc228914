"""When votes and leads are moved: last of all, a few at a time, sooner if an operator asks."""

import asyncio
import itertools
from collections import Counter

import pytest

from las.core.commands import PrepareSegment, RecordEvent, SetAtRisk, SetDraining
from las.core.explain import explain_shard
from las.core.index import indexed
from las.core.placement import FleetView, Limits
from las.core.state import ClusterState
from las.daemon.config import Policy
from las.daemon.rebalancer import PLACED_REST_MS, VOTES_REST_MS, Rebalancer
from las.v1 import fleet_pb2 as pb
from las.v1 import log_admin_pb2
from peerd.core.ids import ShardId, Tick
from peerd.transport.status import Refused
from tests.las_core.builders import SHARD, done, name, plan_of, register, with_log
from tests.las_core.model_fleet import ModelFleet, ModelPeer
from tests.las_daemon.stand_in import ADMIN, until

ROWS = tuple((n % 5, (n + 1) % 5, (n + 2) % 5) for n in range(20))
WAIT_MS = 60_000


def five_and_more(added: int = 1) -> ModelFleet:
    """Twenty shards on five peers, each with a record, and peers that have nothing."""
    state = done(ClusterState(cluster_id="c"), *(register(n, labels=()) for n in range(1, 6)))
    created = with_log(rows=ROWS)
    fleet = ModelFleet(state.changed(logs=created.logs.values(), shards=created.shards.values()))
    for shard in fleet.state.shards:
        assert fleet.append(shard)
    for number in range(6, 6 + added):
        join(fleet, number)
    return fleet


def join(fleet: ModelFleet, number: int) -> None:
    assert fleet.commit(register(number, labels=())).ok
    node = fleet.state.nodes[name(number)]
    fleet.peers[node.name] = ModelPeer(process=node.process, number=number)


class Clock:
    def __init__(self) -> None:
        self.ms = 0


@pytest.fixture
def clock() -> Clock:
    return Clock()


def rebalancer(
    fleet: ModelFleet, clock: Clock, rates: dict[ShardId, float] | None = None, **policy: object
) -> Rebalancer:
    return Rebalancer(
        fleet,
        Policy(**policy),
        view=lambda: FleetView(now=Tick(clock.ms)),
        limits=Limits(),
        writes=lambda: rates or {},
        now_ms=lambda: clock.ms,
        wall_ms=itertools.count(1).__next__,
    )


def moves(fleet: ModelFleet) -> list[PrepareSegment]:
    return [each for each in fleet.commands if isinstance(each, PrepareSegment)]


async def come_to_rest(works: Rebalancer, clock: Clock, looks: int = 100) -> int:
    for count in range(looks):
        if not await works.look():
            return count
        clock.ms += 1_000
    raise AssertionError("it does not come to rest")


# ---------------------------------------------------------------------------------- moving
async def test_a_new_peer_takes_its_part_and_nothing_is_lost(clock):
    fleet = five_and_more()
    works = rebalancer(fleet, clock)
    clock.ms += WAIT_MS
    await come_to_rest(works, clock)
    assert works.told == "even"
    assert set(fleet.indexed()[1].voting.values()) == {10}
    leads = +fleet.indexed()[1].leading
    assert {leads[name(n)] for n in range(1, 7)} <= {3, 4}
    assert all(fleet.append(shard) for shard in fleet.state.shards)
    fleet.check_nothing_lost()
    assert works.moved["vote"] == 10
    # Ten votes had to move; leads for which no vote moved are few.
    assert len(moves(fleet)) <= 11


async def test_at_rest_it_stays_at_rest(clock):
    fleet = five_and_more()
    works = rebalancer(fleet, clock)
    clock.ms += WAIT_MS
    await come_to_rest(works, clock)
    count = len(moves(fleet))
    for _ in range(60):
        clock.ms += VOTES_REST_MS
        assert not await works.look()
    assert len(moves(fleet)) == count


async def test_what_goes_up_and_down_a_little_moves_nothing(clock):
    fleet = five_and_more(added=0)
    rates = dict.fromkeys(fleet.state.shards, 1_000.0)
    works = rebalancer(fleet, clock, rates)
    clock.ms += WAIT_MS
    await come_to_rest(works, clock)
    count = len(moves(fleet))
    # Of the 24 that each carries this makes 25.7 for three of them.
    rates[SHARD] = 6_000.0
    shares = [share.weight for share in (await works.propose()).before]
    even = (await works.propose()).even_weight
    assert 0.05 < max(shares) / even - 1 < 0.1
    assert not await works.look()
    assert works.told == "even"
    assert len(moves(fleet)) == count
    rates[SHARD] = 20_000.0
    assert await works.look()
    await come_to_rest(works, clock)
    assert max(share.weight for share in (await works.propose()).before) / even - 1 <= 0.06


async def test_each_move_is_told_to_who_asks(clock):
    fleet = five_and_more()
    works = rebalancer(fleet, clock)
    clock.ms += WAIT_MS
    await come_to_rest(works, clock)
    told = [each for each in fleet.commands if isinstance(each, RecordEvent)]
    assert Counter(each.kind for each in told) == {"rebalance": 2 * len(moves(fleet))}
    first = moves(fleet)[0]
    texts = {each.text for each in told if each.text.startswith(f"shard {first.shard}: ")}
    (text,) = texts
    assert text.startswith(f"shard {first.shard}: peer-6 votes in place of peer-")
    assert text.endswith("even is 10.0")
    state, index = fleet.indexed()
    facts = explain_shard(state, FleetView(now=Tick(0)), Limits(), first.shard, index).facts
    assert any(fact.startswith("moved so that nodes carry alike: peer-6 votes") for fact in facts)
    still = next(s for s in state.shards if s not in {each.shard for each in moves(fleet)})
    facts = explain_shard(state, FleetView(now=Tick(0)), Limits(), still, index).facts
    assert not any("alike" in fact for fact in facts)


async def test_as_many_a_second_as_the_policy_allows(clock):
    fleet = five_and_more(added=3)
    works = rebalancer(fleet, clock, rebalance_moves_per_s=4)
    clock.ms += WAIT_MS
    assert await works.look()
    assert len(moves(fleet)) == 4


async def test_what_would_not_move_is_not_tried_again_at_once(clock):
    fleet = five_and_more()
    works = rebalancer(fleet, clock)
    clock.ms += WAIT_MS
    fleet.peer(6).alive = False  # and nobody has noticed: old primaries decline
    assert await works.look()
    (first,) = moves(fleet)
    assert await works.look()
    assert first.shard != moves(fleet)[1].shard
    for _ in range(40):
        clock.ms += 1_000
        await works.look()
    assert works.told == "rests: what is uneven was moved a short while ago"
    count = len(moves(fleet))
    clock.ms += VOTES_REST_MS
    assert await works.look()
    assert len(moves(fleet)) == count + 1


async def test_what_an_operator_put_somewhere_stays_there_for_an_hour(clock):
    state = with_log(nodes=3, rows=((0, 1, 2),) * 3)
    fleet = ModelFleet(state)
    works = rebalancer(fleet, clock)
    for shard in fleet.state.shards:
        works.placed(shard, name(1))
    clock.ms += PLACED_REST_MS - 1
    assert not await works.look()
    assert works.told.startswith("rests")
    clock.ms += 1
    assert await works.look()


# ---------------------------------------------------------------------------------- waiting
async def test_it_waits_until_the_nodes_have_been_as_they_are(clock):
    fleet = five_and_more()
    works = rebalancer(fleet, clock)
    assert not await works.look()
    assert works.told == "waits: nodes, or the LAS leader, changed; 60 s more"
    clock.ms += WAIT_MS - 1
    fleet.commit(SetAtRisk(node=name(5), at_risk=True))
    fleet.commit(SetAtRisk(node=name(5), at_risk=False))
    assert not await works.look()
    clock.ms += WAIT_MS - 1
    assert not await works.look()
    assert works.told.endswith("1 s more")
    clock.ms += 1
    assert await works.look()


async def test_an_operator_does_not_wait_for_the_nodes_but_for_what_is_under_way(clock):
    fleet = five_and_more()
    works = rebalancer(fleet, clock, rebalance=False)
    clock.ms += WAIT_MS
    assert not await works.look()
    assert works.told == "off"
    works.ask()
    fleet.hold_reports = True
    fleet.commit(PrepareSegment(shard=SHARD, epoch=1, plan=plan_of(2, 1, 2, 3)))
    assert not await works.look()
    assert works.told == "waits: 1 shards are being changed"
    fleet.hold_reports = False
    fleet.pump()
    await come_to_rest(works, clock)
    assert set(fleet.indexed()[1].voting.values()) == {10}
    assert not await works.look()
    assert works.told == "off"


async def test_a_drain_goes_first(clock):
    fleet = five_and_more()
    works = rebalancer(fleet, clock)
    clock.ms += WAIT_MS
    fleet.commit(SetDraining(node=name(1), draining=True))
    assert not await works.look()
    assert works.told.startswith("waits: nodes")


async def test_a_shard_that_is_gone_or_changed_meanwhile_is_left_alone(clock):
    fleet = five_and_more()
    works = rebalancer(fleet, clock)
    (move, *_) = (await works.propose()).moves
    stale = indexed(fleet.state)
    assert stale.version == fleet.state.version
    fleet.commit(PrepareSegment(shard=move.shard, epoch=move.epoch, plan=move.plan))
    before = len(fleet.commands)
    await works._move(move)
    assert len(fleet.commands) == before + 1, "refused, and nothing is told of it"
    assert works.moved["vote"] == 0


async def test_the_loop_goes_on_when_it_is_asked_and_when_it_does_not_lead(clock, monkeypatch):
    monkeypatch.setattr("las.daemon.rebalancer.LOOK_S", 0.001)
    fleet = five_and_more()
    works = rebalancer(fleet, clock, rebalance=False)
    fleet.leading = False
    task = asyncio.create_task(works.run())
    try:
        await until(lambda: works.told == "off", "it has looked")
        works.ask()
        await until(lambda: works.told.startswith("moving"), "it tries")
        await until(lambda: fleet.refusals > 20, "it has tried each move, and some twice")
        assert not moves(fleet)
        fleet.leading = True
        await until(lambda: works.told == "even" or works.told == "off", "it is even")
        assert set(fleet.indexed()[1].voting.values()) == {10}
        assert not task.done()
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_look_that_may_not_be_committed_says_so(clock):
    fleet = five_and_more()
    works = rebalancer(fleet, clock)
    clock.ms += WAIT_MS
    fleet.leading = False
    with pytest.raises(Refused):
        await works.look()


# ---------------------------------------------------------------------------------- the service
async def test_what_is_to_be_moved_is_told_and_begun(start_las):
    las = await (await start_las(rebalance=False)).leading()
    await las.add_peers(3)
    await las.logs.CreateLog(
        log_admin_pb2.CreateLogRequest(name="orders", shards=4, copies=3, acks=2),
        metadata=ADMIN,
        timeout=30,
    )
    await las.add_peers(1)
    ask = pb.RebalanceRequest(dry_run=True)
    answer = await las.fleet.Rebalance(ask, metadata=ADMIN, timeout=30)
    assert answer.state in {"off", "not looked yet"}
    assert [each.votes for each in answer.nodes] == [4, 4, 4, 0]
    assert [each.votes_after for each in answer.nodes] == [3, 3, 3, 3]
    assert {(move.joins, move.log) for move in answer.moves} == {("peer-4", "orders")}
    assert len(las.state.audit) == 1, "to look changes nothing"
    await las.fleet.Rebalance(pb.RebalanceRequest(), metadata=ADMIN, timeout=30)
    record = las.state.audit[2]
    assert (record.what, record.who) == ("rebalance", "ann")
    first = answer.moves[0].shard
    await until(lambda: las.state.shards[first].shard.prepared is not None, "it begins")
    moved = las.state.shards[first].shard.prepared
    assert "peer-4" in {voter.peer for voter in moved.plan.voters}
