"""Sealed segments with the same holders share an entry of the committed map (§8)."""

from collections.abc import Iterable

import pytest

from las.core import snapshot
from las.core.codec import CodecError
from las.core.commands import (
    AddHolder,
    DropHolder,
    PrepareSegment,
    RaiseCommandLevel,
    Reason,
    ReplaceNode,
    SegmentOpened,
    SetNodeState,
    TrimShard,
    WantHolders,
)
from las.core.index import FleetIndex, indexed
from las.core.placement import FleetView, Limits, Placement
from las.core.state import (
    JOINING_LEVEL,
    SEALED_EPOCHS_MAX,
    SEALED_SEGMENTS_MAX,
    ClusterState,
    NodeState,
)
from peerd.core.ids import Epoch, Offset, StoreId, Tick
from peerd.core.shard_map import entries_of, newest_of
from tests.las_core.builders import (
    SHARD,
    do,
    done,
    name,
    node_of,
    plan_of,
    process,
    register,
    replica,
    with_log,
)

RAISED = RaiseCommandLevel(level=JOINING_LEVEL)


def led(state: ClusterState, times: Iterable[int], *holders: int) -> ClusterState:
    """The lead goes from peer to peer of the same voters, ten records after each other."""
    for _ in times:
        opened = state.shards[SHARD].shard.open
        primary = opened.epoch % 3 + 1
        prepare = PrepareSegment(shard=SHARD, epoch=opened.epoch, plan=plan_of(primary, 1, 2, 3))
        state, result = do(state, prepare)
        begun = SegmentOpened(
            shard=SHARD,
            epoch=result.epoch,
            begin=Offset((opened.begin or 0) + 10),
            holders=tuple(replica(each) for each in holders or (1, 2, 3)),
        )
        state = done(state, begun)
    return state


def shapes(state: ClusterState) -> list[tuple[int, int]]:
    """Epoch and number of segments of each entry."""
    return [
        (newest_of(each).epoch, 1 if newest_of(each) is each else len(each))
        for each in entries_of(state.shards[SHARD].shard.sealed)
    ]


def test_nothing_is_joined_before_all_members_know_it():
    state = led(with_log(), range(4))
    assert shapes(state) == [(1, 1), (2, 1), (3, 1), (4, 1)]
    assert b'"format":2' in snapshot.snapshot(state)
    # And then with the next change of the chain.
    state = done(state, RAISED)
    assert len(shapes(state)) == 4
    assert shapes(led(state, range(1))) == [(5, 5)]


def test_one_copy_that_is_damaged_leaves_its_entry_and_comes_back_repaired():
    """The others of the entry keep their holder: nothing is wrong with them."""
    state = led(done(with_log(), RAISED), range(5))
    assert shapes(state) == [(5, 5)]
    dropped = done(state, DropHolder(shard=SHARD, epoch=Epoch(3), holder=replica(2)))
    assert shapes(dropped) == [(2, 2), (3, 1), (5, 2)]
    holders = {each.epoch: each.holders for each in dropped.shards[SHARD].shard.sealed}
    assert [len(holders[Epoch(epoch)]) for epoch in range(1, 6)] == [3, 3, 2, 3, 3]
    wanted = done(dropped, WantHolders(shard=SHARD, epoch=Epoch(3), holders=(replica(2),)))
    back = done(wanted, AddHolder(shard=SHARD, epoch=Epoch(3), holder=replica(2)))
    assert shapes(back) == [(5, 5)]
    assert back.shards == state.shards


def test_an_index_counts_each_segment_of_an_entry():
    state = led(done(with_log(), RAISED), range(5))
    assert indexed(state).holding[replica(1)] == 5
    index = FleetIndex()
    index.update(state)
    index.update(done(state, DropHolder(shard=SHARD, epoch=Epoch(3), holder=replica(2))))
    assert (index.holding[replica(1)], index.holding[replica(2)]) == (5, 4)


def test_a_new_store_holds_nothing_of_what_its_node_had():
    state = led(done(with_log(), RAISED), range(5))
    new = StoreId("store-new")
    gone = SetNodeState(node=name(2), boot=process(2).boot, state=NodeState.DOWN)
    replaced = ReplaceNode(node=name(2), store=new)
    state = done(state, gone, replaced, register(2, boot=2, store=new))
    assert (indexed(state).holding[replica(2)], node_of(state, 2).store) == (5, new)
    assert indexed(state).holding[node_of(state, 2).replica] == 0
    placement = Placement(state, FleetView(now=Tick(0)), Limits(), indexed(state))
    assert placement._load(name(2)) == placement._load(name(1)) - 5


def test_a_trim_takes_segments_out_of_an_entry():
    state = led(done(with_log(), RAISED), range(5))
    trimmed = done(state, TrimShard(shard=SHARD, epoch=Epoch(3), trimmed_to=Offset(25)))
    assert shapes(trimmed) == [(5, 3)]
    assert trimmed.shards[SHARD].shard.sealed[0].begin == 20
    everything = done(state, TrimShard(shard=SHARD, epoch=Epoch(6), trimmed_to=Offset(50)))
    assert shapes(everything) == [(5, 1)]


def test_a_snapshot_keeps_entries_and_their_form():
    state = led(done(with_log(), RAISED), range(5))
    state = done(state, DropHolder(shard=SHARD, epoch=Epoch(3), holder=replica(2)))
    data = snapshot.snapshot(state)
    assert b'"format":7' in data
    again = snapshot.restore(data)
    assert again == state
    assert shapes(again) == shapes(state)
    assert snapshot.snapshot(again) == data
    with pytest.raises(CodecError, match="damaged"):
        snapshot.restore(data.replace(b"[1,0]", b"[9,0]"))


def test_a_shard_may_be_moved_after_more_plans_than_entries_fit():
    state = led(done(with_log(), RAISED), range(SEALED_SEGMENTS_MAX + 1))
    assert shapes(state) == [(SEALED_SEGMENTS_MAX + 1, SEALED_SEGMENTS_MAX + 1)]


def test_the_epochs_of_a_chain_are_bounded_too(monkeypatch):
    monkeypatch.setattr("las.core.segments.SEALED_EPOCHS_MAX", 7)
    state = led(done(with_log(), RAISED), range(7))
    prepare = PrepareSegment(shard=SHARD, epoch=Epoch(8), plan=plan_of(1, 1, 2, 3))
    _, result = do(state, prepare)
    assert result.reason is Reason.LIMIT_REACHED
    assert "7 sealed segments in 1 entries" in result.text
    assert SEALED_EPOCHS_MAX >= 4 * SEALED_SEGMENTS_MAX
