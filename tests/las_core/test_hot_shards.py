"""The hottest shard is split in the middle, where that helps and there is room."""

from dataclasses import replace

import pytest

from las.core.commands import PrepareSegment, PrepareSplit, SegmentOpened
from las.core.hot_shards import Heat, hot_shard, why_not
from las.core.state import HELD, ClusterState
from peerd.core.ids import Offset, ShardId
from tests.las_core.builders import SHARD, done, plan_of, replica, shard_of, with_log

LINE = 10e6
TWO = ((0, 1, 2), (1, 2, 3))
HOT = Heat(bytes_per_s=20e6, distinct_keys=1_000, hottest_key_share=0.02)
HOTTER = replace(HOT, bytes_per_s=30e6)


def find(state: ClusterState, heats: dict[int, Heat], shards_max: int = 16):
    told = {ShardId(shard): heat for shard, heat in heats.items()}
    return hot_shard(state, told, bytes_per_s=LINE, shards_max=shards_max)


def test_the_hottest_is_split_in_the_middle_of_its_range():
    state = with_log(rows=TWO)
    found = find(state, {1: HOT, 2: HOTTER})
    shard = state.shards[ShardId(2)].shard
    assert (found.shard, found.epoch) == (2, shard.open.epoch)
    assert found.key_hash - shard.key_hash_low == shard.key_hash_high - found.key_hash + 1
    assert found.why == "30.0 MB/s are written to it, the line is 10.0 MB/s"
    # What is found is taken.
    command = PrepareSplit(
        shard=found.shard, epoch=found.epoch, key_hash=found.key_hash, plan=found.plan
    )
    assert done(state, command).shards[found.shard].shard.split is not None


def test_what_is_not_hot_or_not_there_is_left_alone():
    state = with_log(rows=TWO)
    assert find(state, {}) is None
    assert find(state, {1: replace(HOT, bytes_per_s=LINE - 1)}) is None
    assert find(state, {99: HOT}) is None


@pytest.mark.parametrize(
    ("heat", "why"),
    [
        (replace(HOTTER, hottest_key_share=0.5), "one key has 50% of its batches"),
        (replace(HOTTER, hottest_key_share=float("nan")), "one key has nan% of its batches"),
        (replace(HOTTER, distinct_keys=15), "it has 15 keys"),
    ],
)
def test_a_split_that_would_not_help_is_none_and_the_next_is_looked_at(heat, why):
    state = with_log(rows=TWO)
    assert why_not(state, state.shards[ShardId(2)], heat, 16) == why
    assert find(state, {2: heat}) is None
    assert find(state, {1: HOT, 2: heat}).shard == 1


def test_a_log_has_no_more_shards_than_it_may():
    state = with_log(rows=TWO)
    assert find(state, {1: HOT}, shards_max=2) is None
    assert find(state, {1: HOT}, shards_max=3) is not None


def changed(what: str) -> ClusterState:
    state = with_log(rows=TWO)
    entry = state.shards[SHARD]
    prepare = PrepareSegment(
        shard=SHARD, epoch=shard_of(state).open.epoch, plan=entry.shard.open.plan
    )
    if what == "prepared":
        return done(state, prepare)
    if what == "halted":
        return state.changed(shards=[replace(entry, halted=HELD)])
    if what == "mirror":
        plan = plan_of(4, 1, 2, 3, non=(4,))
        opened = replace(entry.shard.open, plan=plan)
        return state.changed(shards=[replace(entry, shard=replace(entry.shard, open=opened))])
    if what == "narrow":
        shard = replace(entry.shard, key_hash_low=7, key_hash_high=7)
        return state.changed(shards=[replace(entry, shard=shard)])
    found = find(state, {1: HOT})
    split = PrepareSplit(shard=SHARD, epoch=found.epoch, key_hash=found.key_hash, plan=found.plan)
    state = done(state, split)
    opened = SegmentOpened(
        shard=SHARD,
        epoch=state.shards[SHARD].drawn,
        begin=Offset(9),
        holders=(replica(1), replica(2)),
    )
    return done(state, opened)


@pytest.mark.parametrize("what", ["prepared", "halted", "mirror", "narrow", "split"])
def test_a_shard_to_which_something_else_is_done_is_left_alone(what):
    assert find(changed(what), {1: HOT}) is None
