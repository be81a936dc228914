"""Steps of many planned changes in one command: what one after another does, and nothing more."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from las.core.apply import apply
from las.core.commands import (
    COMMANDS,
    AddHolder,
    DropHolder,
    FenceSegment,
    HaltShard,
    PrepareSegment,
    PrepareSplit,
    Reason,
    Result,
    SegmentOpened,
    WantHolders,
    WithdrawSegment,
    command_from_json,
    command_to_json,
    result_from_json,
    result_to_json,
)
from las.core.many_steps import ShardStep, joined_steps, may_join, steps_of
from las.core.rows import CHANGES_MAX, StepShards
from las.core.state import ClusterState
from las.raft import COMMAND_BYTES_MAX
from peerd.core.ids import BootId, Epoch, NodeName, Offset, ProcessId, ReplicaId, ShardId, StoreId
from peerd.core.shard_map import Plan
from tests.las_core.builders import do, done, plan_of, process, replica, with_log

SHARDS = 12


def prepare(shard: int, epoch: int = 1, plan: Plan | None = None, why: str = "peer-1 is gone"):
    plan = plan or plan_of(2, 2, 3, 4)
    return PrepareSegment(shard=ShardId(shard), epoch=Epoch(epoch), plan=plan, why=why)


def opened(shard: int, epoch: int = 2, begin: int = 9, holders: Sequence[int] = (2, 3)):
    return SegmentOpened(
        shard=ShardId(shard),
        epoch=Epoch(epoch),
        begin=Offset(begin),
        holders=tuple(map(replica, holders)),
    )


def withdraw(shard: int, epoch: int = 2, by: int = 1):
    return WithdrawSegment(shard=ShardId(shard), epoch=Epoch(epoch), declined_by=process(by))


def want(shard: int, epoch: int = 1, *stores: int):
    holders = tuple(map(replica, stores or (4,)))
    return WantHolders(shard=ShardId(shard), epoch=Epoch(epoch), holders=holders)


def add(shard: int, epoch: int = 1, store: int = 4):
    return AddHolder(shard=ShardId(shard), epoch=Epoch(epoch), holder=replica(store))


def drop(shard: int, epoch: int = 1, store: int = 2):
    return DropHolder(shard=ShardId(shard), epoch=Epoch(epoch), holder=replica(store))


def together(state: ClusterState, *steps: ShardStep) -> tuple[ClusterState, list]:
    """Apply all of them as one command, by way of its JSON; results in the order of `steps`."""
    command, taken = joined_steps(steps)
    assert sorted(taken) == list(range(len(steps)))
    assert list(steps_of(command)) == [steps[number] for number in taken]
    after, result = do(state, command_from_json(command_to_json(command)))
    assert result_from_json(result_to_json(result)) == result
    by_number = dict(zip(taken, result.each, strict=True))
    return after, [by_number[number] for number in range(len(steps))]


def shards_of(count: int = SHARDS) -> ClusterState:
    return with_log(rows=((0, 1, 2),) * count)


def test_a_change_goes_through_all_its_steps_for_all_shards_in_one_version_each():
    state, every = shards_of(), range(1, SHARDS + 1)
    version = state.version
    for step in (prepare, opened, want, add, drop):
        state, results = together(state, *(step(shard) for shard in every))
        assert all(each.ok for each in results), results
        version += 1
        assert state.version == version
    shard = state.shards[ShardId(5)].shard
    assert shard.open.epoch == 2
    assert shard.sealed[0].holders == tuple(map(replica, (3, 4)))
    assert shard.sealed[0].wanted_holders == ()


@pytest.mark.parametrize("seed", range(40))
def test_it_is_the_same_as_one_command_after_another(seed: int):
    """Steps of every kind mixed, stale ones, halted and fenced shards, plans nobody may have."""
    rng = random.Random(seed)
    state = shards_of()
    halted, fenced = rng.sample(range(1, SHARDS + 1), 2)
    state = done(
        state, HaltShard(shard=ShardId(halted), epoch=Epoch(9), node=NodeName("peer-1"), why="9")
    )
    state = done(state, FenceSegment(shard=ShardId(fenced), epoch=Epoch(1)))
    for _ in range(12):
        some = rng.sample(range(1, SHARDS + 3), rng.randint(1, SHARDS))
        steps = [_some_step(rng, shard) for shard in some]
        one_by_one, results = state, []
        for step in steps:
            one_by_one, result = apply(one_by_one, step)
            results.append((result.ok, result.reason, result.epoch))
        state, each_of = together(state, *steps)
        assert [(each.ok, each.reason, each.epoch) for each in each_of] == results
        assert replace(state, version=one_by_one.version) == one_by_one
        again, _ = together(state, *steps)
        for step in steps:
            one_by_one, _ = apply(one_by_one, step)
        assert again.shards == one_by_one.shards


def _some_step(rng: random.Random, shard: int) -> ShardStep:
    epoch = rng.choice((1, 1, 2, 2, 3, 4))
    plan = rng.choice((plan_of(1, 1, 2, 4), plan_of(3, 3, 2, non=(4,)), plan_of(7, 7, 2)))
    begin = rng.choice((3, 9, 0))
    return rng.choice(
        (
            prepare(shard, epoch, plan),
            opened(shard, epoch, begin, rng.choice(((1, 2), (2, 3), (4,)))),
            withdraw(shard, epoch, rng.choice((1, 1, 2))),
            want(shard, epoch, *rng.choice(((4,), (5,), (4, 5), (4, 4)))),
            add(shard, epoch, rng.choice((4, 5, 9))),
            drop(shard, epoch, rng.choice((2, 4, 9))),
        )
    )


def test_of_one_shard_only_the_first_step_is_taken():
    command, taken = joined_steps([prepare(1), add(1), prepare(2), opened(1)])
    assert taken == [0, 2]
    assert [each.shard for each in steps_of(command)] == [1, 2]


def test_the_step_that_commits_a_split_goes_by_itself():
    """Its children draw ids, so it would not be independent of the others."""
    state = shards_of(2)
    split = PrepareSplit(
        shard=ShardId(1), epoch=Epoch(1), key_hash=1 << 40, plan=plan_of(1, 1, 2, 3)
    )
    state = done(state, split)
    step = opened(1, holders=(1, 2))
    assert not may_join(state, step)
    assert may_join(state, opened(2))
    assert may_join(state, add(1))
    after, (refused,) = together(state, step)
    assert after is state
    assert (refused.ok, refused.reason) == (False, Reason.STATE_CHANGED)
    assert "give it by itself" in refused.text
    after = done(state, step)
    assert after.shards[ShardId(1)].shard.is_split
    # Later segments of a shard that is split draw nothing, and may travel along.
    after = done(after, prepare(1, 2, plan_of(2, 2, 3)))
    epoch = after.shards[ShardId(1)].shard.prepared.epoch
    assert may_join(after, opened(1, epoch))
    _, (result,) = together(after, opened(1, epoch, holders=(1, 2)))
    assert result.ok


def test_what_no_step_can_be_read_from_is_refused_as_a_whole():
    state = shards_of(2)
    good = joined_steps([prepare(1)])[0]
    row = good.prepared[0]
    place = (ShardId(1), Epoch(1), 77)
    for wrong in (
        replace(good, prepared=good.prepared * 2),
        replace(good, whys=()),
        replace(good, stores=()),
        replace(good, processes=()),
        replace(good, processes=((99, BootId("b")),)),
        replace(good, prepared=((*row[:3], -1, *row[4:]),)),
        replace(good, prepared=((*row[:4], (0, 0), *row[5:]),)),
        StepShards(begun=((ShardId(1), Epoch(2), Offset(0), (1,)),)),
        StepShards(withdrawn=(place,)),
        StepShards(wanted=((ShardId(1), Epoch(1), (-1,)),)),
        StepShards(added=(place,)),
        StepShards(dropped=(place,)),
        StepShards(wanted=tuple((ShardId(at), Epoch(1), ()) for at in range(CHANGES_MAX + 1))),
    ):
        after, result = do(state, wrong)
        assert result.reason is Reason.INVALID_ARGUMENT, wrong
        assert after is state


def test_nothing_to_do_changes_nothing():
    state = shards_of(1)
    assert do(state, StepShards()) == (state, Result(ok=True))


def test_the_name_in_the_consensus_log_stays():
    assert COMMANDS["step_shards"] is StepShards


# ---------------------------------------------------------------------------------- size
def far(number: int) -> ReplicaId:
    return ReplicaId(NodeName(f"peer-{number}"), StoreId(f"{number:032x}"))


def wide(shard: int, peers: int, offset: int) -> ShardStep:
    """A step as a fleet of so many peers has it."""
    voters = tuple(far((shard * 7 + step) % peers) for step in range(3))
    primary = ProcessId(voters[0].peer, voters[0].store, BootId("b" * 32))
    at, epoch = ShardId(shard), Epoch(3)
    return (
        PrepareSegment(
            shard=at, epoch=epoch, plan=Plan(primary=primary, voters=voters, acks=2), why="w" * 99
        ),
        SegmentOpened(shard=at, epoch=epoch, begin=Offset(offset), holders=voters),
        WithdrawSegment(shard=at, epoch=epoch, declined_by=primary),
        WantHolders(shard=at, epoch=epoch, holders=voters),
        AddHolder(shard=at, epoch=epoch, holder=voters[0]),
        DropHolder(shard=at, epoch=epoch, holder=voters[0]),
    )[shard % 6]


@pytest.mark.parametrize(("peers", "least"), [(100, CHANGES_MAX), (10_000, 100)])
@pytest.mark.parametrize("offset", [1_000_000_000, (1 << 64) - 1])
def test_as_many_travel_as_fit(peers: int, least: int, offset: int):
    steps = [wide(shard, peers, offset) for shard in range(100_000, 101_000)]
    while steps:
        command, taken = joined_steps(steps)
        assert len(command_to_json(command).encode()) <= COMMAND_BYTES_MAX
        assert len(taken) >= min(least, len(steps))
        assert sorted(taken) == list(range(len(taken)))
        assert list(steps_of(command)) == [steps[number] for number in taken]
        steps = steps[len(taken) :]
