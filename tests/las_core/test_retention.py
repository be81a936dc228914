"""Ages of records by the committed clock, and drains that end by it: pure commands, no leader."""

import pytest

from las.core.commands import MarkAges, Reason, SetDraining, SetRetention
from las.core.retention import expired
from las.core.state import AGE_MARKS_MAX, ClusterState
from peerd.core.ids import Offset, ShardId
from tests.las_core.builders import SHARD, do, done, name, shard_of, with_log

LOG = shard_of(with_log()).log
MINUTE_MS = 60_000


def keeping(retention_ms: int) -> ClusterState:
    return done(with_log(), SetRetention(log=LOG, retention_bytes=0, retention_ms=retention_ms))


def mark(clock_ms: int, offset: int, shard: ShardId = SHARD) -> MarkAges:
    return MarkAges(clock_ms=clock_ms, marks=((shard, Offset(offset)),))


def ages(state: ClusterState) -> list[tuple[int, int]]:
    return [(each.clock_ms, each.offset) for each in state.shards[SHARD].ages]


def test_a_policy_is_kept_and_said_twice_changes_nothing():
    state = keeping(MINUTE_MS)
    assert state.logs[LOG].retention_ms == MINUTE_MS
    again, result = do(state, SetRetention(log=LOG, retention_bytes=0, retention_ms=MINUTE_MS))
    assert (again is state, result.text) == (True, "so it is already")


@pytest.mark.parametrize(
    ("log", "kept_bytes", "kept_ms", "reason"),
    [
        ("none", 0, 0, Reason.UNKNOWN_LOG),
        (LOG, -1, 0, Reason.INVALID_ARGUMENT),
        (LOG, 0, -1, Reason.INVALID_ARGUMENT),
    ],
)
def test_a_policy_that_is_none_is_refused(log, kept_bytes, kept_ms, reason):
    command = SetRetention(log=log, retention_bytes=kept_bytes, retention_ms=kept_ms)
    assert do(with_log(), command)[1].reason is reason


def test_the_clock_never_goes_back():
    state = done(keeping(MINUTE_MS), MarkAges(clock_ms=5_000, marks=()))
    assert do(state, MarkAges(clock_ms=4_999, marks=()))[1].reason is Reason.STATE_CHANGED
    assert done(state, MarkAges(clock_ms=5_000, marks=())).clock_ms == 5_000


def test_a_mark_is_noted_where_the_offset_grew_and_where_ages_matter():
    state = done(keeping(MINUTE_MS), mark(1_000, 10), mark(2_000, 10), mark(3_000, 25))
    assert ages(state) == [(1_000, 10), (3_000, 25)]
    assert ages(done(with_log(), mark(1_000, 10))) == []
    # Of a shard that is gone, or was never there.
    assert ages(done(state, mark(4_000, 99, ShardId(77)))) == ages(state)


def test_of_the_marks_that_are_old_enough_the_newest_stays():
    state = done(
        keeping(MINUTE_MS), mark(0, 10), mark(1_000, 20), mark(30_000, 30), mark(61_000, 40)
    )
    assert ages(state) == [(1_000, 20), (30_000, 30), (61_000, 40)]
    assert expired(state.shards[SHARD], 60_999, MINUTE_MS) is None
    assert expired(state.shards[SHARD], 61_000, MINUTE_MS) == 20
    assert expired(state.shards[SHARD], 90_000, MINUTE_MS) == 30


def test_marks_are_bounded_by_forgetting_the_oldest():
    state = keeping(10**9)
    for number in range(AGE_MARKS_MAX + 3):
        state = done(state, mark(number, number + 1))
    assert len(ages(state)) == AGE_MARKS_MAX
    assert ages(state)[-1] == (AGE_MARKS_MAX + 2, AGE_MARKS_MAX + 3)


def test_marks_go_with_the_policy():
    state = done(
        keeping(MINUTE_MS),
        mark(1_000, 10),
        SetRetention(log=LOG, retention_bytes=0, retention_ms=0),
        mark(2_000, 20),
    )
    assert ages(state) == []


def test_a_drain_ends_when_the_clock_has_come_to_its_end():
    drained = done(
        with_log(), SetDraining(node=name(1), draining=True, until_ms=500), MarkAges(clock_ms=499)
    )
    assert drained.nodes[name(1)].draining
    assert not done(drained, MarkAges(clock_ms=500)).nodes[name(1)].draining
