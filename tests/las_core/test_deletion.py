"""A log is deleted with all its shards; their ids are never drawn again (docs/protocol.md §8.2)."""

from las.core.commands import (
    CreateLog,
    DeleteLog,
    FenceSegment,
    Reason,
    SetDraining,
)
from las.core.index import FleetIndex, indexed
from las.core.persistent import PersistentMap
from las.core.placement import FleetView, Limits
from las.core.planner import plan
from las.core.snapshot import restore, snapshot
from las.core.state import ClusterState
from peerd.core.ids import Epoch, ShardId, Tick
from tests.las_core.builders import SHARD, do, done, fleet, name, with_log
from tests.las_core.test_split import opened, split

DELETE = DeleteLog(log="orders", shards=(SHARD,))


def again(state: ClusterState) -> ClusterState:
    command = CreateLog(name="orders", copies=1, acks=1, nodes=(name(1),), rows=((0,),))
    return done(state, command)


def test_the_log_and_its_shards_are_gone_and_the_others_stay():
    other = CreateLog(name="other", copies=1, acks=1, nodes=(name(1),), rows=((0,),))
    before = done(with_log(), other)
    after, result = do(before, DELETE)
    assert (result.ok, result.shards) == (True, (SHARD,))
    assert set(after.logs) == {"other"}
    assert set(after.shards) == {2}
    assert after.next_shard == before.next_shard
    assert after.version == before.version + 1
    delta = after.changes_since(before.version)
    assert (delta.full, delta.removed_logs, delta.removed_shards) == (False, ("orders",), (SHARD,))
    assert (delta.logs, delta.shards, delta.next_shard) == ((), (), 3)
    assert restore(snapshot(after)) == after


def test_a_log_of_the_same_name_has_other_shards_and_both_are_told():
    before = with_log()
    after = again(done(before, DELETE))
    assert after.logs["orders"].shards == (2,)
    delta = after.changes_since(before.version)
    assert [log.shards for log in delta.logs] == [(2,)]
    assert (delta.removed_logs, delta.removed_shards) == ((), (SHARD,))
    assert [entry.shard.shard for entry in delta.shards] == [2]


def test_asked_again_it_is_deleted_already_and_never_the_next_of_that_name():
    deleted = done(with_log(), DELETE)
    for state in (deleted, again(deleted)):
        after, result = do(state, DELETE)
        assert after is state
        assert (result.ok, result.text) == (True, "deleted already")


def test_what_is_not_there_or_has_changed_is_refused():
    state = with_log()
    for command, reason in (
        (DeleteLog(log="none", shards=(SHARD,)), Reason.UNKNOWN_LOG),
        (DeleteLog(log="none", shards=()), Reason.UNKNOWN_LOG),
        (DeleteLog(log="orders", shards=()), Reason.STATE_CHANGED),
        (DeleteLog(log="orders", shards=(SHARD, ShardId(2))), Reason.STATE_CHANGED),
        (DeleteLog(log="orders", shards=(ShardId(9),)), Reason.STATE_CHANGED),
    ):
        assert do(state, command)[1].reason is reason


def test_a_shard_that_was_split_goes_with_its_children():
    state = done(
        with_log(),
        split(),
        opened(),
    )
    children = state.logs["orders"].shards
    assert len(children) == 2
    after, result = do(state, DeleteLog(log="orders", shards=children))
    assert result.shards == (SHARD, *children)
    assert not after.shards


def test_nobody_is_needed_for_a_log_that_is_gone():
    """Also one with a standing fence: whoever was finishing it finds no shard."""
    before = done(with_log(), FenceSegment(shard=SHARD, epoch=Epoch(1)))
    index = FleetIndex()
    index.update(before)
    after = done(before, DELETE)
    index.update(after)
    assert not any((index.voting + index.leading + index.holding).values())
    assert not list(index.shards_of(name(1)))
    assert not index.unsettled
    assert vars(index).keys() == vars(indexed(after)).keys()
    assert plan(after, FleetView(now=Tick(0)), Limits()) == []
    refused = do(after, FenceSegment(shard=SHARD, epoch=Epoch(1)))[1]
    assert refused.reason is Reason.UNKNOWN_SHARD
    drained = done(after, SetDraining(node=name(1), draining=True))
    assert plan(drained, FleetView(now=Tick(0)), Limits()) == []


def test_many_keys_leave_a_persistent_map_at_once():
    kept = PersistentMap((each, each) for each in range(2_000))
    after = kept.without_keys((*range(0, 2_000, 2), 7_777))
    assert dict(after) == {each: each for each in range(1, 2_000, 2)}
    assert len(after) == 1_000
    assert len(kept) == 2_000
    assert fleet(1).shards.without_keys((1,)) == fleet(1).shards
