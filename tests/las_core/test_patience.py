"""Patience with nodes that take over many shards: who, from when, and for how long at most."""

from las.core.commands import FenceSegment, OpenSegment, RecoveredSegment, SetNodeState
from las.core.patience import TakeOvers, taken_over
from las.core.state import ClusterState, NodeState
from peerd.core.ids import NO_EPOCH, Epoch, NodeName, Offset, ShardId
from tests.las_core.builders import done, name, plan_of, process, replica, with_log

A, B = NodeName("a"), NodeName("b")


def test_a_mass_take_over_makes_busy_a_small_one_does_not():
    taken = TakeOvers(shards_min=3, patience_ms=1_000)
    for _ in range(2):
        taken.opened([A, B], 100)
    assert taken.busy(100) == {}
    taken.opened([A], 300)
    assert taken.busy(300) == {A: 800}
    assert taken.busy(1_099) == {A: 1}
    assert taken.busy(1_100) == {}


def test_more_shards_do_not_make_it_longer_and_then_there_is_none_for_as_long_again():
    taken = TakeOvers(shards_min=1, patience_ms=1_000)
    busy_ms = 0
    for now in range(0, 10_000, 10):
        taken.opened([A], now)
        busy_ms += 10 * (A in taken.busy(now))
    assert busy_ms == 5_000
    assert taken.busy(999 + 8_000) == {A: 1}
    assert taken.busy(1_001 + 8_000) == {}


def test_no_patience_is_none():
    taken = TakeOvers(shards_min=1, patience_ms=0)
    taken.opened([A], 5)
    assert taken.busy(5) == {}


def with_a_death(at_s: int, *, shards: int = 3, records: int = 1) -> ClusterState:
    """peer-1 led `shards` shards and is down since `at_s`; peer-2 leads them now, and another."""
    state = with_log(rows=((0, 1, 2),) * shards + ((1, 2, 3),))
    state = done(
        state,
        SetNodeState(node=name(1), boot=process(1).boot, state=NodeState.DOWN, at_s=at_s),
    )
    for shard in range(1, shards + 1):
        state = done(
            state,
            FenceSegment(shard=ShardId(shard), epoch=Epoch(1), prepared=NO_EPOCH, why="it is down"),
            OpenSegment(
                shard=ShardId(shard),
                fence=Epoch(2),
                plan=plan_of(2, 2, 3),
                ended=RecoveredSegment(
                    end=Offset(records),
                    known_commit=Offset(0),
                    holders=(replica(2), replica(3)) if records else (),
                ),
            ),
        )
    return state


def test_the_next_leader_finds_who_was_given_the_shards_of_a_node_that_has_just_died():
    state = with_a_death(1_000)
    given = list(taken_over(state, now_s=1_020, patience_ms=60_000))
    assert given == [((name(2), name(3)), 20_000)] * 3
    taken = TakeOvers(shards_min=3, patience_ms=60_000)
    for nodes, age_ms in given:
        taken.opened(nodes, 500_000 - age_ms)
    assert taken.busy(500_000) == {name(2): 40_000, name(3): 40_000}


def test_it_finds_nothing_of_deaths_that_are_long_ago_or_moved_nothing():
    state = with_a_death(1_000)
    assert not list(taken_over(state, now_s=1_060, patience_ms=60_000))
    assert not list(taken_over(state, now_s=1_001, patience_ms=0))
    assert not list(taken_over(with_log(), now_s=1_000, patience_ms=60_000))
    assert not list(taken_over(with_a_death(1_000, records=0), now_s=1_001, patience_ms=60_000))
    # A clock that stands before the one that wrote the death: it was now.
    assert next(iter(taken_over(state, now_s=990, patience_ms=60_000)))[1] == 0


def test_what_a_dead_node_still_leads_was_given_to_nobody_yet():
    state = done(
        with_log(),
        FenceSegment(shard=ShardId(1), epoch=Epoch(1), prepared=NO_EPOCH, why="it hung"),
        OpenSegment(
            shard=ShardId(1),
            fence=Epoch(2),
            plan=plan_of(1, 1, 2, 3),
            ended=RecoveredSegment(end=Offset(1), known_commit=Offset(0), holders=(replica(1),)),
        ),
        SetNodeState(node=name(1), boot=process(1).boot, state=NodeState.DOWN, at_s=1_000),
    )
    assert not list(taken_over(state, now_s=1_001, patience_ms=60_000))
