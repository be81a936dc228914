"""Many shards in one command: what one after another does, and nothing more."""

import random
from dataclasses import replace

import pytest

from las.core.apply import apply
from las.core.commands import (
    COMMANDS,
    FenceSegment,
    HaltShard,
    OpenSegment,
    PrepareSegment,
    Reason,
    RecoveredSegment,
    Result,
    command_from_json,
    command_to_json,
    result_from_json,
    result_to_json,
)
from las.core.many_shards import ShardChange, changes_of, joined
from las.core.rows import CHANGES_MAX, ChangeShards
from las.core.state import ClusterState
from las.raft import COMMAND_BYTES_MAX
from peerd.core.ids import BootId, Epoch, NodeName, Offset, ProcessId, ReplicaId, ShardId, StoreId
from peerd.core.shard_map import Plan
from tests.las_core.builders import do, done, plan_of, replica, with_log

SHARDS = 12
ENDED = RecoveredSegment(end=Offset(9), known_commit=Offset(7), holders=(replica(2), replica(3)))


def fence(shard: int, epoch: int = 1, prepared: int = 0, why: str = "peer-1 is down"):
    return FenceSegment(shard=ShardId(shard), epoch=Epoch(epoch), prepared=Epoch(prepared), why=why)


def reopen(shard: int, fence_epoch: int = 2, plan: Plan | None = None, **changes: object):
    command = OpenSegment(
        shard=ShardId(shard),
        fence=Epoch(fence_epoch),
        plan=plan or plan_of(2, 2, 3, 4),
        ended=ENDED,
    )
    return replace(command, **changes)


def together(state: ClusterState, *changes: ShardChange) -> tuple[ClusterState, Result]:
    """Apply all of them as one command, by way of its JSON."""
    command, taken = joined(changes)
    assert taken == len(changes)
    assert changes_of(command) == list(changes)
    after, result = do(state, command_from_json(command_to_json(command)))
    assert result_from_json(result_to_json(result)) == result
    return after, result


def shards_of(count: int = SHARDS) -> ClusterState:
    return with_log(rows=((0, 1, 2),) * count)


def test_a_peer_s_shards_are_fenced_and_opened_in_one_version_each():
    state = shards_of()
    every = range(1, SHARDS + 1)
    after, result = together(state, *(fence(shard) for shard in every))
    assert [each.epoch for each in result.each] == [2] * SHARDS
    assert after.version == state.version + 1
    assert after.changed_ids(state.version).shards == tuple(every)
    opened, result = together(after, *(reopen(shard) for shard in every))
    assert all(each.ok for each in result.each)
    assert opened.version == state.version + 2
    assert {entry.shard.open.plan.primary.peer for entry in opened.shards.values()} == {"peer-2"}


@pytest.mark.parametrize("seed", range(40))
def test_it_is_the_same_as_one_command_after_another(seed: int):
    """Fences, opens, stale ones, halted and prepared shards, plans that nobody may have."""
    rng = random.Random(seed)
    state = shards_of()
    for shard in rng.sample(range(1, SHARDS + 1), 4):
        state = done(
            state, PrepareSegment(shard=ShardId(shard), epoch=Epoch(1), plan=plan_of(1, 1, 2, 4))
        )
    halted = ShardId(rng.randint(1, SHARDS))
    state = done(state, HaltShard(shard=halted, epoch=Epoch(9), node=NodeName("peer-1"), why="9"))
    behind_a_gap = state.shards[ShardId(rng.randint(1, SHARDS))]
    state = state.changed(shards=(replace(behind_a_gap, gap_why="given up"),))
    for _ in range(6):
        kind = rng.choice((_some_fence, _some_open))
        some = rng.sample(range(1, SHARDS + 3), rng.randint(1, SHARDS))
        changes = [kind(rng, state, shard) for shard in some]
        one_by_one, results = state, []
        for change in changes:
            one_by_one, result = apply(one_by_one, change)
            results.append((result.ok, result.reason, result.epoch))
        state, result = together(state, *changes)
        assert [(each.ok, each.reason, each.epoch) for each in result.each] == results
        assert state.shards == one_by_one.shards
        assert replace(state, version=one_by_one.version) == one_by_one
        again, result = together(state, *changes)
        assert again.shards == apply_all(state, changes).shards
        assert [each.ok for each in result.each] == [ok for ok, _, _ in results]


def apply_all(state: ClusterState, changes: list[ShardChange]) -> ClusterState:
    for change in changes:
        state, _ = apply(state, change)
    return state


def _some_fence(rng: random.Random, state: ClusterState, shard: int) -> FenceSegment:
    return fence(shard, rng.choice((1, 1, 1, 2, 3)), rng.choice((0, 0, 2)), rng.choice("ab"))


def _some_open(rng: random.Random, state: ClusterState, shard: int) -> OpenSegment:
    plan = rng.choice(
        (
            plan_of(2, 2, 3, 4),
            plan_of(3, 3, 2, non=(4,)),
            plan_of(7, 7, 2),
            plan_of(2, 2, 3, acks=1),
        )
    )
    prepared = rng.choice((None, None, replace(ENDED, end=Offset(12), known_commit=Offset(11))))
    return reopen(shard, rng.choice((2, 2, 3)), plan, ended_prepared=prepared)


def test_one_that_is_refused_says_why_and_leaves_the_others_alone():
    state = shards_of(3)
    after, result = together(state, fence(1), fence(2, epoch=7), fence(9))
    assert [each.reason for each in result.each] == [
        Reason.NONE,
        Reason.STATE_CHANGED,
        Reason.UNKNOWN_SHARD,
    ]
    assert "not as it was seen" in result.each[1].text
    assert [after.shards[ShardId(each)].shard.fence for each in (1, 2, 3)] == [2, 0, 0]


def test_when_all_are_refused_the_map_keeps_its_version():
    state = shards_of(2)
    after, result = together(state, fence(1, epoch=7), fence(2, epoch=7))
    assert after is state
    assert result.ok


def test_what_no_change_can_be_read_from_is_refused_as_a_whole():
    state = shards_of(2)
    fences, opens = joined([fence(1)])[0], joined([reopen(1)])[0]
    row = opens.opens[0]
    for wrong in (
        replace(fences, fences=(*fences.fences, *fences.fences)),
        replace(fences, whys=()),
        replace(fences, fences=((ShardId(1), Epoch(1), Epoch(0), -1),)),
        replace(opens, stores=()),
        replace(opens, processes=()),
        replace(opens, processes=((99, BootId("b")),)),
        replace(opens, opens=((*row[:2], -1, *row[3:]),)),
        replace(opens, opens=((*row[:3], (0, 0), *row[4:]),)),
        replace(opens, opens=((*row[:6], (Offset(9), Offset(7), (77,)), None),)),
        replace(
            fences, fences=tuple((ShardId(9 + at), Epoch(1), Epoch(0), 0) for at in range(513))
        ),
    ):
        after, result = do(state, wrong)
        assert result.reason is Reason.INVALID_ARGUMENT, wrong
        assert after is state


def test_the_name_in_the_consensus_log_stays():
    assert COMMANDS["change_shards"] is ChangeShards


# ---------------------------------------------------------------------------------- size
def far(number: int) -> ReplicaId:
    return ReplicaId(NodeName(f"peer-{number}"), StoreId(f"{number:032x}"))


def wide(shard: int, peers: int, offset: int) -> OpenSegment:
    """An open as a fleet of so many peers has it."""
    voters = tuple(far((shard * 7 + step) % peers) for step in range(3))
    primary = ProcessId(voters[0].peer, voters[0].store, BootId("b" * 32))
    ended = RecoveredSegment(end=Offset(offset), known_commit=Offset(offset), holders=voters)
    plan = Plan(primary=primary, voters=voters, acks=2)
    return OpenSegment(shard=ShardId(shard), fence=Epoch(3), plan=plan, ended=ended)


@pytest.mark.parametrize(("peers", "least"), [(100, CHANGES_MAX), (10_000, 100)])
@pytest.mark.parametrize("offset", [1_000_000_000, (1 << 64) - 1])
def test_as_many_travel_as_fit(peers: int, least: int, offset: int):
    """Of a rack's shards 500 and more; of a wide fleet, where each brings names, fewer."""
    changes = [wide(shard, peers, offset) for shard in range(100_000, 101_000)]
    sent = 0
    while sent < len(changes):
        command, taken = joined(changes[sent:])
        assert len(command_to_json(command).encode()) <= COMMAND_BYTES_MAX
        assert taken >= min(least, len(changes) - sent) or offset > 1_000_000_000
        assert changes_of(command) == changes[sent : sent + taken]
        sent += taken


def test_long_reasons_fit_too():
    changes = [fence(shard, why='"' * 300 + str(shard)) for shard in range(1, 400)]
    command, taken = joined(changes)
    assert 0 < taken < len(changes)
    assert len(command_to_json(command).encode()) <= COMMAND_BYTES_MAX
