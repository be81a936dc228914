"""Holders that let a sealed segment go: the commands, and who is one too many (§8.4)."""

from dataclasses import replace

import pytest

from las.core import holders
from las.core.commands import (
    AddHolder,
    DropHolder,
    HaltShard,
    PrepareSegment,
    Reason,
    SegmentOpened,
    SetAtRisk,
    SetCopies,
    SetDraining,
    SetNodeState,
    WantHolders,
)
from las.core.holder_commands import AddHolderAgain, ReleaseHolder
from las.core.holders import RELEASED_FEATURE_LEVEL
from las.core.placement import FleetView, Limits
from las.core.planner import plan
from las.core.snapshot import restore, snapshot
from las.core.state import ClusterState, NodeState
from las.core.surplus import surplus
from peerd.core.ids import BootId, Epoch, Offset, ReplicaId, ShardId, Tick
from peerd.core.shard_map import Release, Segment
from tests.las_core.builders import SHARD, do, done, name, plan_of, register, replica, shard_of
from tests.las_core.builders import with_log as any_log

FIRST = Epoch(1)


def with_log(**more) -> ClusterState:
    state = any_log(**more)
    known = (
        register(number, feature_level=RELEASED_FEATURE_LEVEL)
        for number in range(1, len(state.nodes) + 1)
    )
    return done(state, *known)


def sealed_state(*held_by: int, **more) -> ClusterState:
    """Epoch 1 is sealed at 10, and these hold it."""
    prepare = PrepareSegment(shard=SHARD, epoch=FIRST, plan=plan_of(2, 2, 3, 4))
    opened = SegmentOpened(
        shard=SHARD, epoch=Epoch(2), begin=Offset(10), holders=(replica(held_by[0]),)
    )
    return done(with_log(**more), prepare, opened, *(add(each) for each in held_by[1:]))


def add(number: int) -> AddHolder:
    return AddHolder(shard=SHARD, epoch=FIRST, holder=replica(number))


def again(number: int, version: int) -> AddHolderAgain:
    return AddHolderAgain(shard=SHARD, epoch=FIRST, holder=replica(number), version=version)


def want(*numbers: int) -> WantHolders:
    return WantHolders(shard=SHARD, epoch=FIRST, holders=tuple(map(replica, numbers)))


def release(number: int, *confirmed: int, epoch: int = 1) -> ReleaseHolder:
    return ReleaseHolder(
        shard=SHARD,
        epoch=Epoch(epoch),
        holder=replica(number),
        confirmed=tuple(map(replica, confirmed)),
        why="one too many",
    )


def sealed(state: ClusterState) -> Segment:
    return shard_of(state).sealed[0]


def down(number: int) -> SetNodeState:
    return SetNodeState(node=name(number), boot=BootId(f"boot-{number}-1"), state=NodeState.DOWN)


# ---------------------------------------------------------------------------------- the command
def test_a_holder_is_released_when_enough_others_have_said_that_they_have_it():
    state = sealed_state(1, 2, 3, 4)
    after = done(state, release(1, 2, 3, 4))
    assert sealed(after).holders == (replica(2), replica(3), replica(4))
    assert sealed(after).released == (Release(holder=replica(1), version=after.version),)
    assert sealed(after).lets_go(replica(1))
    assert not sealed(after).lets_go(replica(2))
    assert done(after, release(1, 2, 3, 4)) is after
    assert sealed(restore(snapshot(after))) == sealed(after)


@pytest.mark.parametrize(
    ("trouble", "command", "text"),
    [
        pytest.param((), release(1, 2, 3), "2 other healthy holders", id="one is silent"),
        pytest.param((), release(1, 2, 3, 5), "2 other healthy holders", id="a stranger says so"),
        pytest.param((), release(1, 1, 2, 3), "2 other healthy holders", id="its own word"),
        pytest.param((down(4),), release(1, 2, 3, 4), "2 other healthy", id="one is down"),
        pytest.param(
            (SetAtRisk(node=name(4), at_risk=True),),
            release(1, 2, 3, 4),
            "2 other healthy",
            id="one is at risk",
        ),
        pytest.param(
            (DropHolder(shard=SHARD, epoch=FIRST, holder=replica(4)),),
            release(1, 2, 3, 4),
            "2 other healthy",
            id="one is damaged",
        ),
        pytest.param((want(5),), release(1, 2, 3, 4), "copies first", id="one is wanted"),
        pytest.param((), release(5, 2, 3, 4), "does not hold it", id="no holder"),
        pytest.param(
            (register(1, feature_level=RELEASED_FEATURE_LEVEL - 1),),
            release(1, 2, 3, 4),
            "upgrade it first",
            id="an old peer",
        ),
        pytest.param(
            (register(4, labels=(("host", "host-3"),)),),
            release(1, 2, 3, 4),
            "2 other healthy",
            id="two on a host",
        ),
    ],
)
def test_nobody_is_released_for_whom_too_few_others_would_be_left(trouble, command, text):
    state = done(sealed_state(1, 2, 3, 4), *trouble)
    after, result = do(state, command)
    assert (result.reason, after) == (Reason.INVALID_ARGUMENT, state)
    assert text in result.text


def test_of_two_releases_the_second_is_judged_on_what_the_first_left():
    state = done(sealed_state(1, 2, 3, 4), release(1, 2, 3, 4))
    _, result = do(state, release(2, 1, 3, 4))
    assert "2 other healthy holders" in result.text


def test_two_are_left_at_least_and_as_many_as_acknowledged():
    state = sealed_state(1, 2, 3, copies=3, acks=2)
    state = done(state, SetCopies(log="orders", copies=2, acks=1))
    two = done(state, release(1, 2, 3))
    assert sealed(two).holders == (replica(2), replica(3))
    single = done(two, SetCopies(log="orders", copies=1, acks=1))
    _, result = do(single, release(2, 3))
    assert "not 2" in result.text


def test_nothing_is_released_of_what_is_unknown_or_halted():
    state = sealed_state(1, 2, 3, 4)
    _, result = do(state, release(1, 2, 3, 4, epoch=2))
    assert result.reason is Reason.UNKNOWN_SEGMENT
    _, result = do(state, replace(release(1, 2, 3, 4), shard=ShardId(9)))
    assert result.reason is Reason.UNKNOWN_SHARD
    halted = done(state, HaltShard(shard=SHARD, epoch=Epoch(99), node=name(1), why="test"))
    _, result = do(halted, release(1, 2, 3, 4))
    assert result.reason is Reason.HALTED


def test_the_stores_that_were_told_to_let_go_are_bounded(monkeypatch):
    monkeypatch.setattr(holders, "RELEASES_MAX", 1)
    state = done(sealed_state(1, 2, 3, 4, 5), release(1, 2, 3, 4, 5))
    _, result = do(state, release(2, 3, 4, 5))
    assert "the bound" in result.text


# ---------------------------------------------------------------------------------- coming again
def test_a_word_from_before_the_release_lists_nobody():
    state = done(sealed_state(1, 2, 3, 4), release(1, 2, 3, 4))
    for command in (add(1), again(1, state.version)):
        _, result = do(state, command)
        assert result.reason is Reason.INVALID_ARGUMENT
    wanted = done(state, want(1))
    assert not sealed(wanted).lets_go(replica(1))
    for command in (add(1), again(1, state.version - 1)):
        _, result = do(wanted, command)
        assert result.reason is Reason.INVALID_ARGUMENT


def test_who_is_wanted_again_and_has_looked_since_is_a_holder_again():
    state = done(sealed_state(1, 2, 3, 4), release(1, 2, 3, 4), want(1))
    listed = done(state, again(1, state.version))
    assert replica(1) in sealed(listed).holders
    assert (sealed(listed).released, sealed(listed).wanted_holders) == ((), ())
    assert done(sealed_state(1, 2), again(3, 0)), "who was never released needs no version"
    _, result = do(state, again(9, state.version))
    assert result.reason is Reason.INVALID_ARGUMENT


def test_who_is_wanted_no_more_lets_go_once_more():
    state = done(sealed_state(1, 2, 3, 4), release(1, 2, 3, 4), want(1))
    looked = state.version
    state = done(state, want(), want(1))
    _, result = do(state, again(1, looked))
    assert "looked before" in result.text
    assert replica(1) in sealed(done(state, again(1, state.version))).holders


# ---------------------------------------------------------------------------------- who
def found(state: ClusterState, **more) -> list[ReplicaId]:
    return [each.holder for each in surplus(state, **more)]


def test_who_stores_most_lets_go():
    state = sealed_state(1, 2, 3, 4)
    (each,) = surplus(state, [SHARD, ShardId(9)], stored_bytes={name(4): 5})
    assert each.holder == replica(4)
    assert each.others == (replica(1), replica(2), replica(3))
    assert each.why == "3 others are healthy, 3 are needed"


def test_who_shares_a_zone_lets_go_first():
    # peers 1 and 4 are in zone-1
    assert found(sealed_state(1, 2, 3, 4), stored_bytes={name(2): 9}) == [replica(1)]


def test_who_is_drained_for_good_lets_go_when_enough_others_are_there():
    drain = SetDraining(node=name(2), draining=True)
    assert not found(done(sealed_state(1, 2, 3), drain))
    (each,) = surplus(done(sealed_state(1, 2, 3, 4), drain))
    assert each.holder == replica(2)
    assert each.why.startswith("peer-2 is being drained")
    for_a_while = SetDraining(node=name(2), draining=True, until_ms=60_000)
    assert not found(done(sealed_state(1, 2, 3, 4), for_a_while))


def test_nobody_lets_go_of_what_is_not_settled():
    state = sealed_state(1, 2, 3, 4)
    assert not found(sealed_state(1, 2, 3))
    assert not found(sealed_state(1))
    assert not found(done(state, want(5)))
    assert not found(done(state, down(2)))
    gone = done(state, down(2), SetDraining(node=name(2), draining=True))
    assert not found(gone), "who is down cannot be told"
    halted = HaltShard(shard=SHARD, epoch=Epoch(99), node=name(1), why="test")
    assert not found(done(state, halted))
    old = (register(each, feature_level=2) for each in range(1, 6))
    assert not found(done(state, *old))
    new_store = register(2, boot=9, feature_level=RELEASED_FEATURE_LEVEL)
    assert found(done(state, new_store)), "a restart changes nothing"


def test_the_planner_takes_back_what_no_move_wants():
    state = done(sealed_state(1, 2, 3), want(5))
    view = FleetView(now=Tick(0))
    moving = replace(view, moving=frozenset({(SHARD, FIRST, replica(5))}))
    limits = Limits()
    (taken_back,) = plan(state, view, limits)
    assert taken_back.holders == ()
    assert plan(state, moving, limits) == []
