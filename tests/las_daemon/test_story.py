"""A node's history tells each thing once, whoever leads, and the lead that was won at the death."""

from las.core.commands import (
    AddHolder,
    MarkAges,
    PrepareSegment,
    RecordEvent,
    SegmentOpened,
    SetAtRisk,
    SetDraining,
    SetNodeState,
)
from las.core.index import indexed
from las.core.state import ClusterState, NodeState
from las.daemon.story import due_lines
from peerd.core.ids import Epoch, Offset
from tests.las_core.builders import SHARD, done, name, plan_of, process, register, replica, with_log


def due(state: ClusterState, number: int = 1, *, why: str = "", now_ms: int = 0):
    lines = due_lines(state, indexed(state), state.nodes[name(number)], why=why, now_ms=now_ms)
    return [(line.kind, line.text) for line in lines]


def told(state: ClusterState, number: int = 1, *, why: str = "", now_ms: int = 0) -> ClusterState:
    """The state after the lines that are due were written; then none is due."""
    for kind, text in due(state, number, why=why, now_ms=now_ms):
        line = RecordEvent(node=name(number), kind=kind, text=text, timestamp_ms=now_ms)
        state = done(state, line)
    return state


def kinds(state: ClusterState, number: int = 1) -> list[str]:
    return [event.kind for event in state.events.get(name(number), ())]


def without_peer_1(state: ClusterState, holders: tuple[int, ...]) -> ClusterState:
    """Peer 1 handed its shard over at offset 9; `holders` have what came before."""
    return done(
        state,
        PrepareSegment(shard=SHARD, epoch=Epoch(1), plan=plan_of(2, 2, 3, 4, non=(1,))),
        SegmentOpened(
            shard=SHARD,
            epoch=Epoch(2),
            begin=Offset(9),
            holders=tuple(replica(each) for each in holders),
        ),
    )


def test_a_quiet_fleet_has_no_story():
    assert due(with_log()) == []


def test_at_risk_shielded_expendable_and_died_are_told_once_with_the_lead():
    state = told(
        done(with_log(), SetAtRisk(node=name(1), at_risk=True)), why="fsync p99 ×31", now_ms=1_000
    )
    assert kinds(state) == ["at_risk"]
    assert state.events[name(1)][0].text == "fsync p99 ×31"
    assert due(state) == []
    state = told(without_peer_1(state, (1, 2, 3)), now_ms=3_000)
    assert kinds(state) == ["at_risk", "shielded"]
    assert due(state) == []
    copied = AddHolder(shard=SHARD, epoch=Epoch(1), holder=replica(4))
    state = told(done(state, copied), now_ms=8_000)
    assert kinds(state) == ["at_risk", "shielded", "expendable"]
    down = SetNodeState(node=name(1), boot=process(1).boot, state=NodeState.DOWN)
    state = told(done(state, down), now_ms=20_000)
    assert kinds(state)[-1] == "died"
    text = state.events[name(1)][-1].text
    assert "expendable for 12.0 s, shielded for 17.0 s" in text
    assert due(state, now_ms=30_000) == []
    state = told(done(state, register(1, boot=2)), now_ms=40_000)
    assert kinds(state)[-1] == "returned"
    state = told(done(state, SetAtRisk(node=name(1), at_risk=False)), now_ms=50_000)
    assert kinds(state)[-1] == "recovered"
    assert due(state) == []


def test_a_mirror_is_told_and_the_shield_that_follows_it():
    state = done(
        with_log(),
        SetAtRisk(node=name(1), at_risk=True),
        PrepareSegment(shard=SHARD, epoch=Epoch(1), plan=plan_of(1, 2, 3, 4, non=(1,))),
        SegmentOpened(shard=SHARD, epoch=Epoch(2), begin=Offset(9), holders=()),
    )
    state = told(state, now_ms=1_000)
    assert kinds(state) == ["at_risk", "mirrored"]
    assert "orders 1 shards as their mirror" in state.events[name(1)][-1].text
    assert due(state) == []
    handed_over = PrepareSegment(shard=SHARD, epoch=Epoch(2), plan=plan_of(2, 2, 3, 4, non=(1,)))
    opened = SegmentOpened(shard=SHARD, epoch=Epoch(3), begin=Offset(12), holders=())
    state = told(done(state, handed_over, opened), now_ms=3_000)
    assert kinds(state)[:3] == ["at_risk", "mirrored", "shielded"]
    down = SetNodeState(node=name(1), boot=process(1).boot, state=NodeState.DOWN)
    state = told(done(state, down), now_ms=9_000)
    assert "shielded for 6.0 s, mirrored for 8.0 s" in state.events[name(1)][-1].text


def test_a_death_that_nobody_foresaw_says_what_it_met():
    down = SetNodeState(node=name(1), boot=process(1).boot, state=NodeState.DOWN)
    ((kind, text),) = due(done(with_log(), down))
    assert kind == "died"
    assert "not foreseen: it voted in 1 shards and led 1 of them" in text


def test_a_failed_store_is_told_as_such():
    failed = SetNodeState(node=name(1), boot=process(1).boot, state=NodeState.FAILED)
    ((kind, text),) = due(done(with_log(), failed))
    assert kind == "died"
    assert "storage failed" in text


def test_a_second_episode_is_told_anew():
    at_risk, calm = (SetAtRisk(node=name(5), at_risk=each) for each in (True, False))
    state = with_log()
    for command in (at_risk, calm, at_risk):
        state = told(done(state, command), 5)
    once = ["at_risk", "shielded", "expendable"]
    assert kinds(state, 5) == [*once, "recovered", *once]


def test_a_drain_is_a_story_too():
    state = told(done(with_log(), SetDraining(node=name(5), draining=True)), 5)
    state = told(state, 5)
    assert kinds(state, 5) == ["draining", "shielded", "expendable"]
    state = told(done(state, SetDraining(node=name(5), draining=False)), 5)
    assert kinds(state, 5)[-1] == "drain_ended"


def test_a_drain_that_ends_by_itself_says_so():
    drain = SetDraining(node=name(5), draining=True, until_ms=60_000)
    state = told(done(with_log(), drain), 5)
    state = told(done(state, MarkAges(clock_ms=59_999)), 5)
    assert kinds(state, 5)[-1] != "drain_ended"
    state = told(done(state, MarkAges(clock_ms=60_000)), 5)
    ended = state.events[name(5)][-1]
    assert (ended.kind, ended.text) == ("drain_ended", "its time was over")
    assert due(state, 5) == []


def test_the_lead_of_an_earlier_episode_does_not_count():
    state = with_log()
    for at, flag in enumerate((True, False)):
        state = told(done(state, SetAtRisk(node=name(5), at_risk=flag)), 5, now_ms=at)
    down = SetNodeState(node=name(5), boot=process(5).boot, state=NodeState.DOWN)
    ((_, text),) = due(done(state, down), 5, now_ms=9_000)
    assert "not foreseen" in text


def test_registering_a_node_is_no_event():
    assert due(done(with_log(), register(6)), 6) == []


def test_a_death_that_comes_before_the_first_line_is_told():
    state = done(
        with_log(),
        SetAtRisk(node=name(1), at_risk=True),
        SetNodeState(node=name(1), boot=process(1).boot, state=NodeState.DOWN, why=""),
    )
    assert [kind for kind, _ in due(state)] == ["at_risk", "died"]
    assert "foreseen too late" in due(state)[-1][1]
