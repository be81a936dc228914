"""The split of a shard (docs/protocol.md §4.3): prepared, committed with its children, undone."""

from dataclasses import replace

import pytest

from las.core import snapshot
from las.core.commands import (
    FenceSegment,
    OpenSegment,
    PrepareSegment,
    PrepareSplit,
    Reason,
    RecoveredSegment,
    SegmentOpened,
    SetAtRisk,
    WithdrawSegment,
    command_from_json,
    command_to_json,
)
from las.core.state import KEY_HASHES, LOG_SHARDS_MAX, ClusterState
from peerd.core.ids import Epoch, Offset, ShardId
from peerd.core.shard_map import Parent, Split
from tests.las_core.builders import (
    SHARD,
    do,
    done,
    name,
    plan_of,
    process,
    register,
    replica,
    shard_of,
    with_log,
)

MIDDLE = KEY_HASHES // 2
LOWER, UPPER = ShardId(2), ShardId(3)


def split(epoch: int = 1, key_hash: int = MIDDLE, plan=None) -> PrepareSplit:
    plan = plan or plan_of(1, 1, 2, 3)
    return PrepareSplit(shard=SHARD, epoch=Epoch(epoch), key_hash=key_hash, plan=plan)


def opened(epoch: int = 2, begin: int = 10) -> SegmentOpened:
    holders = (replica(2),)
    return SegmentOpened(shard=SHARD, epoch=Epoch(epoch), begin=Offset(begin), holders=holders)


def ended(end: int) -> RecoveredSegment:
    return RecoveredSegment(end=Offset(end), known_commit=Offset(end), holders=(replica(2),))


def fence(epoch: int, prepared: int = 0) -> FenceSegment:
    return FenceSegment(shard=SHARD, epoch=Epoch(epoch), prepared=Epoch(prepared))


def reopen(fence_epoch: int, end: int, prepared: RecoveredSegment | None = None) -> OpenSegment:
    return OpenSegment(
        shard=SHARD,
        fence=Epoch(fence_epoch),
        plan=plan_of(2, 2, 3, 4),
        ended=ended(end),
        ended_prepared=prepared,
    )


def is_split(state: ClusterState) -> bool:
    return shard_of(state).is_split


def test_a_prepared_split_is_a_closed_segment_and_no_child_exists_yet():
    state, result = do(with_log(), split())
    assert (result.ok, result.epoch) == (True, 2)
    shard = shard_of(state)
    assert shard.prepared is not None
    assert shard.prepared.plan == replace(plan_of(1, 1, 2, 3), closed=True)
    assert shard.split == Split(key_hash=MIDDLE)
    assert not shard.open.plan.closed
    assert state.logs["orders"].shards == (SHARD,)
    assert len(state.shards) == 1


def test_the_split_is_the_commit_that_opens_the_closed_segment():
    state, result = do(done(with_log(), split()), opened(begin=10))
    assert result.shards == (LOWER, UPPER)
    parent = shard_of(state)
    assert parent.split == Split(key_hash=MIDDLE, end=Offset(10), children=(LOWER, UPPER))
    assert parent.open.plan.closed
    assert parent.open.begin == 10
    assert state.logs["orders"].shards == (LOWER, UPPER)
    lower, upper = (state.shards[each].shard for each in (LOWER, UPPER))
    assert (lower.key_hash_low, lower.key_hash_high) == (0, MIDDLE - 1)
    assert (upper.key_hash_low, upper.key_hash_high) == (MIDDLE, KEY_HASHES - 1)
    for child in (lower, upper):
        assert child.parent == Parent(shard=SHARD, end=Offset(10))
        assert child.open.begin == 0
        assert child.open.epoch > state.shards[SHARD].drawn
        assert set(child.open.plan.voters) == set(parent.open.plan.voters)
        assert not child.open.plan.closed
    assert lower.open.plan.primary == process(1)
    assert upper.open.plan.primary == process(2)
    again, result = do(state, opened(begin=10))
    assert result.ok
    assert again is state


def test_the_upper_child_is_led_by_a_voter_that_can():
    state = done(with_log(), SetAtRisk(node=name(2), at_risk=True), split(), opened())
    assert state.shards[UPPER].shard.open.plan.primary == process(3)
    others = (register(2, may_lead=False), register(3, may_lead=False))
    state = done(with_log(), *others, split(), opened())
    assert state.shards[UPPER].shard.open.plan.primary == process(1)


def test_a_closed_segment_is_led_by_a_voter():
    at_risk = SetAtRisk(node=name(1), at_risk=True)
    _, result = do(done(with_log(), at_risk), split(plan=plan_of(1, 2, 3, non=(1,))))
    assert result.reason is Reason.INVALID_ARGUMENT
    assert "only a voter closes a shard" in result.text


def test_the_children_begin_under_the_plan_of_the_closed_segment():
    plan = plan_of(1, 1, 2, 3, non=(4,))
    state = done(with_log(), split(plan=plan), opened())
    lower, upper = (state.shards[each].shard.open.plan for each in (LOWER, UPPER))
    assert (lower, upper) == (plan, replace(plan, primary=process(2)))


@pytest.mark.parametrize("adopted", [False, True])
def test_a_fence_undoes_a_split_that_is_only_prepared(adopted):
    """spec mutant `split-kept-by-fence`"""
    state = done(with_log(), split(), fence(1, prepared=2))
    state = done(state, reopen(3, 10, ended(10) if adopted else None))
    shard = shard_of(state)
    assert shard.split is None
    assert not shard.open.plan.closed
    assert shard.open.begin == 10
    assert state.logs["orders"].shards == (SHARD,)
    assert is_split(done(state, split(epoch=3, plan=plan_of(2, 2, 3, 4)), opened(4, 12)))


def test_a_split_that_is_declined_is_undone():
    withdraw = WithdrawSegment(shard=SHARD, epoch=Epoch(2), declined_by=process(1))
    shard = shard_of(done(with_log(), split(), withdraw))
    assert (shard.split, shard.prepared) == (None, None)


def test_the_parent_of_a_committed_split_never_takes_a_batch_again():
    """spec mutant `parent-reopens`"""
    state = done(with_log(), split(), opened(), fence(2))
    epoch = shard_of(state).fence
    state = done(state, reopen(epoch, 10))
    assert is_split(state)
    assert shard_of(state).open.plan == replace(plan_of(2, 2, 3, 4), closed=True)
    plan = plan_of(3, 3, 4, 5)
    state = done(state, PrepareSegment(shard=SHARD, epoch=epoch, plan=plan))
    assert shard_of(state).prepared is not None
    assert shard_of(state).prepared.plan.closed
    state = done(state, opened(epoch + 1, 10))
    assert is_split(state)
    assert state.logs["orders"].shards == (LOWER, UPPER)
    assert shard_of(state).open.plan == replace(plan, closed=True)


def test_a_closed_segment_that_is_said_to_hold_records_is_refused():
    prepared = done(with_log(), split(), fence(1, prepared=2))
    _, result = do(prepared, reopen(3, 10, ended(11)))
    assert result.reason is Reason.INVALID_ARGUMENT
    assert "is closed" in result.text


@pytest.mark.parametrize("key_hash", [0, KEY_HASHES])
def test_a_key_hash_that_does_not_cut_the_range_is_refused(key_hash):
    _, result = do(with_log(), split(key_hash=key_hash))
    assert result.reason is Reason.INVALID_ARGUMENT
    assert "does not cut" in result.text


def test_what_is_not_as_it_was_seen_is_refused():
    assert do(with_log(), split(epoch=2))[1].reason is Reason.STATE_CHANGED
    assert do(done(with_log(), split()), split())[1].reason is Reason.STATE_CHANGED
    assert do(done(with_log(), fence(1)), split())[1].reason is Reason.FENCED
    _, result = do(done(with_log(), split(), opened()), split(epoch=2))
    assert result.reason is Reason.INVALID_ARGUMENT
    assert "split already" in result.text
    unknown = replace(split(), shard=ShardId(9))
    assert do(with_log(), unknown)[1].reason is Reason.UNKNOWN_SHARD


def test_a_node_that_does_not_know_splits_is_never_primary_of_a_closed_segment():
    """It would take batches there: neither in the split itself nor after a failover."""
    old = register(2, feature_level=1)
    _, result = do(done(with_log(), old), split(plan=plan_of(2, 2, 1, 3)))
    assert result.reason is Reason.INVALID_ARGUMENT
    assert "upgrade it first" in result.text
    state = done(with_log(), split(), opened(), old, fence(2))
    epoch = shard_of(state).fence
    _, result = do(state, reopen(epoch, 10))
    assert "upgrade it first" in result.text
    assert is_split(done(state, replace(reopen(epoch, 10), plan=plan_of(3, 2, 3, 4))))


def test_a_full_log_is_not_split():
    rows = tuple((0, 1, 2) for _ in range(LOG_SHARDS_MAX))
    state = with_log(rows=rows)
    middle = KEY_HASHES // LOG_SHARDS_MAX // 2
    _, result = do(state, split(key_hash=middle))
    assert result.reason is Reason.LIMIT_REACHED


def test_a_child_can_be_split_again():
    state = done(with_log(), split(), opened())
    child = state.shards[UPPER].shard
    again = PrepareSplit(
        shard=UPPER,
        epoch=child.open.epoch,
        key_hash=MIDDLE + MIDDLE // 2,
        plan=child.open.plan,
    )
    epoch = Epoch(child.open.epoch + 1)
    opening = SegmentOpened(shard=UPPER, epoch=epoch, begin=Offset(5), holders=(replica(2),))
    state = done(state, again, opening)
    assert state.logs["orders"].shards == (LOWER, ShardId(4), ShardId(5))
    assert state.shards[ShardId(4)].shard.parent == Parent(shard=UPPER, end=Offset(5))
    assert state.shards[UPPER].shard.parent == Parent(shard=SHARD, end=Offset(10))


def test_commands_and_states_of_a_split_survive_their_written_form():
    assert command_from_json(command_to_json(split())) == split()
    for state in (done(with_log(), split()), done(with_log(), split(), opened())):
        assert snapshot.restore(snapshot.snapshot(state)) == state
