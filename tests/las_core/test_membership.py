"""Who may leave the fleet: nothing that a shard needs is given up, and nothing is deleted."""

from dataclasses import replace

import pytest

from las.core import snapshot
from las.core.commands import (
    AddHolder,
    PrepareSegment,
    Reason,
    RemoveNode,
    ReplaceNode,
    SegmentOpened,
    SetAtRisk,
    SetDraining,
    SetNodeState,
)
from las.core.index import indexed
from las.core.membership import StopCostKind, stop_costs
from las.core.placement import FleetView, Limits
from las.core.planner import plan, primary_gone
from las.core.state import ClusterState, NodeState
from peerd.core.ids import BootId, Epoch, Offset, StoreId, Tick
from tests.las_core.builders import (
    SHARD,
    do,
    done,
    fleet,
    name,
    node_of,
    plan_of,
    process,
    register,
    replica,
    with_log,
)

NEW_STORE = StoreId("store-new")


def down(number: int, state: NodeState = NodeState.DOWN) -> SetNodeState:
    return SetNodeState(node=name(number), boot=process(number).boot, state=state)


def moved(*holders: int) -> ClusterState:
    """The log's first segment, of peers 1 to 3, is sealed; the open one is of peers 3 to 5."""
    return done(
        with_log(nodes=6),
        PrepareSegment(shard=SHARD, epoch=Epoch(1), plan=plan_of(3, 3, 4, 5)),
        SegmentOpened(
            shard=SHARD,
            epoch=Epoch(2),
            begin=Offset(7),
            holders=tuple(replica(each) for each in holders),
        ),
    )


# ---------------------------------------------------------------------------------- remove
def test_a_node_that_nothing_needs_is_removed():
    state = done(moved(1, 2, 3), down(1), RemoveNode(node=name(1)))
    assert name(1) not in state.nodes
    assert snapshot.restore(snapshot.snapshot(state)) == state


def test_a_removal_is_a_change_of_the_map():
    before = done(moved(1, 2, 3), down(1))
    after = done(before, RemoveNode(node=name(1)))
    delta = after.changes_since(before.version)
    assert (delta.full, delta.nodes, delta.removed_nodes) == (False, (), (name(1),))
    assert after.changes_since(-1).removed_nodes == ()
    back = done(after, register(1))
    assert back.changes_since(before.version).removed_nodes == ()
    assert [node.name for node in back.changes_since(before.version).nodes] == [name(1)]


@pytest.mark.parametrize(
    ("state", "number", "reason", "words"),
    [
        (fleet(2), 9, Reason.UNKNOWN_NODE, "no node is called peer-9"),
        (fleet(2), 1, Reason.STATE_CHANGED, "peer-1 is up: drain it"),
        (done(with_log(), down(2)), 2, Reason.STATE_CHANGED, "orders/1 still need peer-2"),
        (done(moved(1), down(1)), 1, Reason.STATE_CHANGED, "orders/1 still need peer-1"),
        (
            done(moved(1, 2), down(1), down(2, NodeState.FAILED)),
            1,
            Reason.STATE_CHANGED,
            "orders/1 still need peer-1",
        ),
    ],
)
def test_a_node_that_is_needed_stays(state, number, reason, words):
    _, result = do(state, RemoveNode(node=name(number)))
    assert result.reason is reason
    assert words in result.text


def test_a_prepared_segment_needs_its_voters_and_its_primary_but_no_replica_without_a_vote():
    state = done(
        with_log(nodes=7),
        SetAtRisk(node=name(6), at_risk=True),
        PrepareSegment(shard=SHARD, epoch=Epoch(1), plan=plan_of(6, 3, 4, 5, non=(6, 7))),
        *map(down, (4, 6, 7)),
    )
    for number in (4, 6):
        _, result = do(state, RemoveNode(node=name(number)))
        assert result.reason is Reason.STATE_CHANGED
    assert name(7) not in done(state, RemoveNode(node=name(7))).nodes


def test_who_was_removed_joins_again_with_what_it_has():
    state = done(moved(1, 2, 3), down(1), RemoveNode(node=name(1)), register(1, boot=2))
    assert node_of(state, 1).store == replica(1).store
    assert replica(1) in state.shards[SHARD].shard.sealed[0].holders


def test_the_copies_of_a_removed_node_are_made_anew():
    state = done(moved(1, 2, 3), down(1), RemoveNode(node=name(1)))
    (want,) = plan(state, FleetView(now=Tick(0)), Limits())
    assert (want.epoch, len(want.holders)) == (1, 1)
    state = done(state, AddHolder(shard=SHARD, epoch=Epoch(1), holder=want.holders[0]))
    assert plan(state, FleetView(now=Tick(0)), Limits()) == []


def test_many_shards_are_counted_not_listed():
    state = done(with_log(rows=((0, 1, 2),) * 5), down(2))
    _, result = do(state, RemoveNode(node=name(2)))
    assert result.text.startswith("orders/1, orders/2, orders/3 and 2 more still need peer-2")


# ---------------------------------------------------------------------------------- replace
def test_a_lost_store_is_replaced_and_its_replicas_are_gone():
    state = done(with_log(), down(1), ReplaceNode(node=name(1), store=NEW_STORE))
    node = node_of(state, 1)
    assert (node.store, node.boot, node.state) == (NEW_STORE, "", NodeState.DOWN)
    assert primary_gone(state, state.shards[SHARD]) == "peer-1 has another store"
    assert do(state, register(1, boot=1))[1].reason is Reason.STORE_ID_CHANGED
    again = done(state, register(1, store=NEW_STORE, boot=7))
    assert again.nodes[name(1)].dead_boots == (process(1).boot,)
    assert again.nodes[name(1)].state is NodeState.UP


def test_the_old_process_does_not_come_back_with_the_new_store():
    state = done(with_log(), down(1), ReplaceNode(node=name(1), store=NEW_STORE))
    _, result = do(state, register(1, store=NEW_STORE, boot=1))
    assert result.reason is Reason.STALE_BOOT


def test_a_replacement_is_taken_back_by_the_old_id():
    state = done(
        with_log(),
        down(1),
        ReplaceNode(node=name(1), store=NEW_STORE),
        ReplaceNode(node=name(1), store=replica(1).store),
        register(1, boot=2),
    )
    assert node_of(state, 1).process == process(1, boot=2)


def test_a_replacement_is_repeated_without_harm():
    state = done(with_log(), down(1), ReplaceNode(node=name(1), store=NEW_STORE))
    assert done(state, ReplaceNode(node=name(1), store=NEW_STORE)) is state


@pytest.mark.parametrize(
    ("state", "command", "reason", "words"),
    [
        (fleet(2), ReplaceNode(node=name(9), store=NEW_STORE), Reason.UNKNOWN_NODE, "peer-9"),
        (fleet(2), ReplaceNode(node=name(1), store=NEW_STORE), Reason.STATE_CHANGED, "stop it"),
        (
            done(fleet(2), down(1)),
            ReplaceNode(node=name(1), store=replica(2).store),
            Reason.INVALID_ARGUMENT,
            "is that of peer-2",
        ),
    ],
)
def test_a_replacement_that_makes_no_sense_is_refused(state, command, reason, words):
    _, result = do(state, command)
    assert result.reason is reason
    assert words in result.text


@pytest.mark.parametrize(
    "state",
    [
        # Two of three voters must answer a fence; with another one failed only one could.
        done(with_log(), down(1), down(2, NodeState.FAILED)),
        # Nobody else has the sealed segment.
        done(moved(1), down(1)),
        done(with_log(copies=1, acks=1, rows=((0,),)), down(1)),
    ],
)
def test_what_may_lose_records_needs_a_persons_word(state):
    command = ReplaceNode(node=name(1), store=NEW_STORE)
    _, result = do(state, command)
    assert result.reason is Reason.STATE_CHANGED
    assert "records of orders/1 may be lost" in result.text
    assert node_of(done(state, replace(command, accept_loss=True)), 1).store == NEW_STORE


# ---------------------------------------------------------------------------------- stop
def costs(state: ClusterState, number: int) -> list[tuple[str, str]]:
    return [(cost.kind.value, cost.why) for cost in stop_costs(state, indexed(state), name(number))]


def test_a_node_without_a_part_may_be_stopped():
    assert costs(with_log(), 5) == []
    assert costs(fleet(1), 1) == []


def test_the_primary_costs_a_pause_and_a_copy():
    assert costs(with_log(), 1) == [
        ("pause", "it is the primary"),
        ("fewer_copies", "2 healthy voters would be left of 3 copies"),
    ]


def test_a_voter_costs_a_copy_and_a_pause_where_all_must_answer():
    assert costs(with_log(), 2) == [("fewer_copies", "2 healthy voters would be left of 3 copies")]
    assert costs(with_log(copies=2, acks=2, rows=((0, 1),)), 2) == [
        ("pause", "1 voters would be up, 2 are needed"),
        ("fewer_copies", "1 healthy voters would be left of 2 copies"),
    ]
    assert costs(done(with_log(), down(3)), 2)[0] == (
        "pause",
        "1 voters would be up, 2 are needed",
    )


def test_the_past_counts_too():
    assert costs(moved(1), 1) == [("unreadable", "1 sealed segment on no other node that is up")]
    short = ("fewer_copies", "1 sealed segment on fewer than 3 other healthy nodes")
    assert costs(moved(1, 2, 3), 1) == [short]
    state = done(moved(1, 2, 3), *(AddHolder(shard=SHARD, epoch=Epoch(1), holder=replica(4)),))
    assert costs(state, 1) == []
    assert costs(done(state, SetAtRisk(node=name(2), at_risk=True)), 1) == [short]
    assert costs(done(state, SetDraining(node=name(2), draining=True)), 1) == [short]


def test_the_worst_cost_comes_first():
    state = done(
        with_log(rows=((0, 1, 2), (1, 0, 2))),
        SetNodeState(node=name(3), boot=BootId("boot-3-1"), state=NodeState.DOWN),
    )
    kinds = [cost.kind for cost in stop_costs(state, indexed(state), name(1))]
    assert kinds == sorted(kinds, key=list(StopCostKind).index)
    assert [cost.shard for cost in stop_costs(state, indexed(state), name(1))][:2] == [1, 2]
