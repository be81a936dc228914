"""A group that begins from a backup and the tier alone: what it says is there, and what is lost."""

from dataclasses import replace

import pytest

from las.core import recovered, snapshot
from las.core.commands import (
    Caller,
    CreateLog,
    OpenSegment,
    PrepareSegment,
    PrepareSplit,
    SegmentOpened,
    TrimShard,
)
from las.core.placement import FleetView, Limits
from las.core.planner import Recover, plan
from las.core.recovered import SKIPPED
from las.core.recovery import Recovered, decide, voters_to_ask
from las.core.restored import restored
from las.core.state import GAP_OFFSETS_MIN, AgeMark, ClusterState
from las.core.tier import TIER_LEVEL
from las.core.tier_commands import TierShard
from peerd.core.ids import Epoch, Offset, ShardId
from peerd.core.shard_map import Gap, Shard, Tiered
from tests.las_core.builders import (
    SHARD,
    done,
    name,
    plan_of,
    process,
    register,
    replica,
    shard_of,
    with_log,
)

CALLER = Caller(who="ann@host", role="host", what="peerctl restore", clock_ms=0, timestamp_ms=7)
WHY = "restored from backup 7"


def tier_of(begin: int, end: int) -> Tiered:
    return Tiered(begin=Offset(begin), end=Offset(end), manifest=f"r{end}")


def anew(state: ClusterState, forgotten=(), **tiers: Tiered) -> ClusterState:
    """What begins from `state`; `tiers` are called by their shard, as in `s1`."""
    return restored(
        state,
        {ShardId(int(shard[1:])): tier for shard, tier in tiers.items()},
        forgotten=forgotten,
        why=WHY,
        recovery_id="r1",
        caller=CALLER,
        told="from backup 7",
        cluster_id="another",
    )


def switch(epoch: int, at: int, shard: int = SHARD) -> tuple[PrepareSegment, SegmentOpened]:
    return (
        PrepareSegment(shard=ShardId(shard), epoch=Epoch(epoch), plan=plan_of(1, 1, 2, 3)),
        SegmentOpened(
            shard=ShardId(shard),
            epoch=Epoch(epoch + 1),
            begin=Offset(at),
            holders=(replica(1), replica(2)),
        ),
    )


def tiered(end: int, epoch: int) -> TierShard:
    return TierShard(
        shard=SHARD,
        epoch=Epoch(epoch),
        by=process(1),
        follows="",
        begin=Offset(0),
        end=Offset(end),
        manifest=f"m{end}",
    )


@pytest.fixture
def chain() -> ClusterState:
    """Epochs 1 [0, 10), 2 [10, 20), and 3 from 20 on."""
    return done(with_log(), *switch(1, 10), *switch(2, 20))


def pieces(shard: Shard) -> list[tuple[int, int, int]]:
    return [(each.epoch, each.begin, each.end) for each in shard.sealed]


def fleet_again(state: ClusterState) -> ClusterState:
    """New nodes register, one by one, of which one has the name of a node of the old cluster."""
    return done(
        state,
        *(
            register(each, boot=9, store=f"new-{each}", feature_level=TIER_LEVEL)
            for each in (1, 8, 9)
        ),
    )


def opened(state: ClusterState, shard: int = SHARD) -> ClusterState:
    """The fence of a shard is finished, as a leader does it."""
    entry = state.shards[ShardId(shard)].shard
    assert voters_to_ask(entry) == ()
    decision = decide(entry, ())
    assert isinstance(decision, Recovered)
    nodes = [state.nodes[name(each)] for each in (1, 8, 9)]
    following = replace(
        plan_of(1, 1, 2, 3),
        primary=nodes[0].process,
        voters=tuple(node.replica for node in nodes),
    )
    return done(
        state,
        OpenSegment(shard=entry.shard, fence=entry.fence, plan=following, ended=decision.ended),
    )


def test_the_tier_has_the_past_and_a_gap_of_more_than_was_ever_given_out_follows(chain):
    state = anew(chain, s1=tier_of(0, 25))
    shard = shard_of(state)
    assert pieces(shard) == [(1, 0, 10), (2, 10, 20), (3, 20, 25)]
    assert all(not each.holders and each.known_commit == each.end for each in shard.sealed)
    assert (shard.trimmed_to, shard.kept_from) == (25, 0)
    resumes = 25 + GAP_OFFSETS_MIN
    assert shard.gaps == (Gap(begin=Offset(25), end=Offset(resumes), epochs=(), why=WHY),)
    assert shard.open.begin == resumes
    assert shard.open.epoch > 3 + SKIPPED
    assert (state.nodes, state.recovery.id) == ({}, "r1")
    assert state.audit[state.audited].what == "peerctl restore"
    assert snapshot.restore(snapshot.snapshot(state)) == state


def test_what_lies_behind_the_end_of_the_tier_is_lost(chain):
    shard = shard_of(anew(chain, s1=tier_of(5, 12)))
    assert pieces(shard) == [(1, 0, 10), (2, 10, 12)]
    # The open segment began at 20, and nobody knows how far it went.
    resumes = Offset(20 + GAP_OFFSETS_MIN)
    assert shard.gaps == (Gap(begin=Offset(12), end=resumes, epochs=(), why=WHY),)


def test_what_is_prepared_is_lost_too_and_what_was_removed_is_left_out(chain):
    state = done(chain, switch(3, 40)[0])
    shard = shard_of(anew(state, s1=tier_of(10, 20)))
    assert pieces(shard) == [(2, 10, 20)]
    assert shard.prepared is None
    assert [bool(shard.skipped_with(Epoch(each))) for each in (1, 2, 3, 4)] == [
        False,
        False,
        True,
        True,
    ]


def test_a_disk_of_the_old_cluster_that_turns_up_halts_what_it_has_more_of(chain):
    state = opened(fleet_again(anew(chain, s1=tier_of(0, 20))))
    assert recovered.suspicious(state, [(SHARD, Epoch(2))]) == ()
    told = recovered.suspicious(state, [(SHARD, Epoch(3))])
    assert told == ((SHARD, Epoch(3)),)
    after = done(state, register(3, feature_level=TIER_LEVEL, stored=told))
    assert "epoch 3, which was drawn by a commit that is lost" in after.shards[SHARD].halted


def test_a_shard_without_a_tier_has_lost_everything_and_says_so(chain):
    state = done(chain, TrimShard(shard=SHARD, epoch=Epoch(2), trimmed_to=Offset(15)))
    entry = anew(state).shards[SHARD]
    assert (entry.shard.sealed, entry.shard.tier) == ((), None)
    assert (entry.shard.kept_from, entry.shard.gaps[0].begin) == (15, 15)
    assert entry.shard.open.begin == 20 + GAP_OFFSETS_MIN
    opened(fleet_again(anew(state)))


def test_it_goes_on_as_soon_as_nodes_can_vote_and_asks_nobody_of_the_old_cluster(chain):
    state = anew(done(chain, tiered(25, 3)), s1=tier_of(0, 25))
    assert state.shards[SHARD].halted == ""
    view, limits = FleetView(now=0), Limits()
    assert plan(state, view, limits) == [
        Recover(shard=SHARD, why=f"fence {shard_of(state).fence} stands")
    ]
    state = opened(fleet_again(state))
    shard = shard_of(state)
    assert (shard.open.begin, shard.fence) == (25 + GAP_OFFSETS_MIN, 0)
    assert [each.end for each in shard.gaps] == [shard.open.begin]
    # The tier goes on behind the gap, from the manifest that the restore wrote.
    more = TierShard(
        shard=SHARD,
        epoch=shard.open.epoch,
        by=shard.open.plan.primary,
        follows="r25",
        begin=Offset(25),
        end=Offset(shard.open.begin + 5),
        manifest="m2",
    )
    assert shard_of(done(state, more)).tier.end == shard.open.begin + 5


def test_a_cluster_that_was_restored_can_be_restored_again_before_it_goes_on(chain):
    first = anew(chain, s1=tier_of(0, 25))
    shard = shard_of(anew(first, s1=tier_of(0, 25)))
    assert pieces(shard) == [(1, 0, 10), (2, 10, 20), (3, 20, 25)]
    assert [(gap.begin, gap.end) for gap in shard.gaps] == [(25, 25 + 2 * GAP_OFFSETS_MIN)]


def test_gaps_and_ages_below_the_end_stay(chain):
    state = opened(fleet_again(anew(chain, s1=tier_of(0, 25))))
    gap = shard_of(state).gaps[0]
    entry = state.shards[SHARD]
    marks = (
        AgeMark(clock_ms=1, offset=Offset(20)),
        AgeMark(clock_ms=2, offset=Offset(gap.end + 9)),
    )
    state = state.changed(shards=[replace(entry, ages=marks)])
    end = gap.end + 5
    entry = anew(state, s1=tier_of(0, end)).shards[SHARD]
    assert entry.shard.gaps[0] == gap
    assert entry.shard.gaps[1].begin == end
    assert entry.ages == marks[:1]
    assert pieces(entry.shard)[-1][1:] == (gap.end, end)


def split_at_30(chain: ClusterState) -> ClusterState:
    state = done(
        chain,
        PrepareSplit(
            shard=SHARD, epoch=Epoch(3), plan=plan_of(1, 1, 2, 3), key_hash=1 << 63, why="hot"
        ),
        SegmentOpened(
            shard=SHARD, epoch=Epoch(4), begin=Offset(30), holders=(replica(1), replica(2))
        ),
    )
    assert shard_of(state).is_split
    return state


@pytest.mark.parametrize("end", [25, 30])
def test_a_shard_that_was_split_stays_so_and_its_children_begin_where_it_ended(chain, end):
    before = split_at_30(chain)
    state = anew(before, s1=tier_of(0, end))
    shard = shard_of(state)
    assert shard.split == shard_of(before).split
    assert shard.open.begin == 30
    assert [(gap.begin, gap.end) for gap in shard.gaps] == ([(25, 30)] if end == 25 else [])
    state = opened(fleet_again(state))
    assert shard_of(state).open.plan.closed
    child = state.shards[shard.split.children[0]].shard
    assert child.parent.end == 30


def test_a_split_that_was_only_prepared_is_undone(chain):
    command = PrepareSplit(
        shard=SHARD, epoch=Epoch(3), plan=plan_of(1, 1, 2, 3), key_hash=1 << 63, why="hot"
    )
    assert shard_of(anew(done(chain, command), s1=tier_of(0, 25))).split is None


def test_logs_that_are_forgotten_are_made_anew_with_other_shards(chain):
    create = CreateLog(name="_positions", copies=1, acks=1, nodes=(name(1),), rows=((0,),))
    state = done(chain, create)
    after = anew(state, forgotten=["_positions"], s1=tier_of(0, 25))
    assert set(after.logs) == {"orders"}
    assert set(after.shards) == {SHARD}
    assert after.next_shard > state.next_shard


def test_a_segment_that_somebody_has_is_asked_for_as_ever(chain):
    shard = shard_of(chain)
    assert voters_to_ask(shard) == (replica(1), replica(2), replica(3))
    assert not isinstance(decide(replace(shard, fence=Epoch(9)), ()), Recovered)
