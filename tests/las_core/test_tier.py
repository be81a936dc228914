"""The tier in the map: what is taken for verified, and what stores may drop for it."""

from dataclasses import replace

import pytest

from las.core import snapshot
from las.core.audit import Target, words_of
from las.core.commands import (
    FenceSegment,
    HaltShard,
    OpenSegment,
    PrepareSegment,
    Reason,
    RecoveredSegment,
    RecoverWithGap,
    SegmentOpened,
    SetNodeState,
    TrimShard,
)
from las.core.state import GAP_OFFSETS_MIN, ClusterState, NodeState
from las.core.tier import TIER_LEVEL
from las.core.tier_commands import CoolShard, SetTier, TierShard
from peerd.core.check import InvariantViolation
from peerd.core.ids import BootId, Epoch, Offset, ShardId
from peerd.core.shard_map import Tiered
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


def tiered(begin: int, end: int, *, epoch: int = 4, by: int = 1, manifest: str = "") -> TierShard:
    """What is in the tier goes from `begin` on to `end`; manifests are called by their end."""
    return TierShard(
        shard=SHARD,
        epoch=Epoch(epoch),
        by=process(by),
        follows=f"m{begin}" if begin else "",
        begin=Offset(begin),
        end=Offset(end),
        manifest=manifest or f"m{end}",
    )


def cool(epoch: int, offset: int) -> CoolShard:
    return CoolShard(shard=SHARD, epoch=Epoch(epoch), cold_to=Offset(offset))


def trim(epoch: int, offset: int) -> TrimShard:
    return TrimShard(shard=SHARD, epoch=Epoch(epoch), trimmed_to=Offset(offset))


def switch(epoch: int, at: int, primary: int = 1) -> tuple[PrepareSegment, SegmentOpened]:
    return (
        PrepareSegment(shard=SHARD, epoch=Epoch(epoch), plan=plan_of(primary, 1, 2, 3)),
        SegmentOpened(
            shard=SHARD, epoch=Epoch(epoch + 1), begin=Offset(at), holders=(replica(1), replica(2))
        ),
    )


@pytest.fixture
def chain() -> ClusterState:
    """Epochs 1 [0, 10), 2 [10, 20), 3 [20, 30) and the open 4."""
    return done(with_log(), *switch(1, 10), *switch(2, 20), *switch(3, 30))


def epochs(state: ClusterState) -> list[int]:
    return [segment.epoch for segment in shard_of(state).sealed]


def refused(state: ClusterState, command: object, reason: Reason) -> str:
    after, result = do(state, command)
    assert (after, result.ok, result.reason) == (state, False, reason)
    return result.text


# ---------------------------------------------------------------------------------- tiering
def test_what_is_tiered_is_named_one_step_after_the_other(chain):
    state = done(chain, tiered(0, 10), tiered(10, 25), tiered(25, 35))
    assert shard_of(state).tier == Tiered(begin=Offset(0), end=Offset(35), manifest="m35")
    assert (shard_of(state).trimmed_to, shard_of(state).kept_from) == (0, 0)
    again, result = do(state, tiered(25, 35))
    assert (again, result.ok) == (state, True)


def test_who_does_not_follow_what_the_map_names_is_refused(chain):
    state = done(chain, tiered(0, 10))
    assert "ends at 10 by now" in refused(state, tiered(0, 12), Reason.STATE_CHANGED)
    refused(state, replace(tiered(10, 12), follows="other"), Reason.STATE_CHANGED)
    refused(state, replace(tiered(10, 12), begin=Offset(11)), Reason.STATE_CHANGED)
    refused(state, replace(tiered(10, 12), end=Offset(9)), Reason.STATE_CHANGED)
    refused(state, replace(tiered(10, 12), manifest="m10"), Reason.STATE_CHANGED)
    refused(state, replace(tiered(10, 12), manifest=""), Reason.STATE_CHANGED)
    refused(state, tiered(10, 12, manifest="m" * 81), Reason.STATE_CHANGED)
    refused(state, replace(tiered(10, 12), shard=ShardId(9)), Reason.UNKNOWN_SHARD)


def test_a_primary_that_was_deposed_is_refused(chain):
    moved = done(chain, *switch(4, 40, primary=2))
    assert "is not the primary" in refused(moved, tiered(0, 10), Reason.STATE_CHANGED)
    refused(moved, tiered(0, 10, epoch=5, by=1), Reason.STATE_CHANGED)
    done(moved, tiered(0, 10, epoch=5, by=2))


def test_nothing_is_tiered_under_a_fence_or_of_a_halted_shard(chain):
    fenced = done(chain, FenceSegment(shard=SHARD, epoch=Epoch(4)))
    refused(fenced, tiered(0, 10), Reason.FENCED)
    refused(done(fenced), cool(1, 10), Reason.FENCED)
    halted = done(chain, HaltShard(shard=SHARD, epoch=Epoch(9), node=name(1), why="it promised 9"))
    refused(halted, tiered(0, 10), Reason.HALTED)


def test_a_kept_tail_is_not_tiered_before_it_is_copied():
    state = done(
        with_log(),
        FenceSegment(shard=SHARD, epoch=Epoch(1)),
        OpenSegment(
            shard=SHARD,
            fence=Epoch(2),
            plan=plan_of(2, 2, 3),
            ended=RecoveredSegment(end=Offset(9), known_commit=Offset(7), holders=(replica(2),)),
        ),
    )
    text = refused(state, tiered(0, 8, epoch=2, by=2), Reason.STATE_CHANGED)
    assert "outside what may be read" in text
    done(state, tiered(0, 7, epoch=2, by=2))


# ---------------------------------------------------------------------------------- cooling
def test_stores_drop_what_is_in_the_tier_and_the_chain_stays(chain):
    state = done(chain, tiered(0, 25), cool(2, 15))
    assert (shard_of(state).trimmed_to, shard_of(state).kept_from) == (15, 0)
    assert epochs(state) == [1, 2, 3]
    state = done(state, cool(3, 25))
    assert epochs(state) == [1, 2, 3]
    again, result = do(state, cool(2, 15))
    assert (again, result.ok) == (state, True)


def test_nothing_is_dropped_that_is_not_in_the_tier(chain):
    refused(chain, cool(1, 10), Reason.STATE_CHANGED)
    state = done(chain, tiered(0, 25))
    assert "does not have all" in refused(state, cool(3, 26), Reason.STATE_CHANGED)
    refused(state, cool(1, 11), Reason.STATE_CHANGED)
    refused(state, cool(9, 11), Reason.STATE_CHANGED)
    refused(state, replace(cool(1, 5), shard=ShardId(9)), Reason.UNKNOWN_SHARD)


def test_a_shard_whose_stores_keep_more_than_the_tier_has_cannot_be(chain):
    shard = shard_of(done(chain, tiered(0, 25), cool(2, 15)))
    with pytest.raises(InvariantViolation, match="stores keep what the tier does not have"):
        replace(shard, trimmed_to=Offset(26))
    with pytest.raises(InvariantViolation, match="ends where it begins or later"):
        Tiered(begin=Offset(2), end=Offset(1), manifest="m")


# ---------------------------------------------------------------------------------- trims
def test_a_trim_inside_what_the_tier_alone_has(chain):
    state = done(chain, tiered(0, 25), cool(3, 25), trim(2, 12))
    shard = shard_of(state)
    assert (shard.kept_from, shard.trimmed_to, epochs(state)) == (12, 25, [2, 3])
    assert shard.tier == Tiered(begin=Offset(12), end=Offset(25), manifest="m25")
    again, result = do(state, trim(2, 11))
    assert (again, result.ok) == (state, True)
    refused(state, trim(1, 13), Reason.STATE_CHANGED)


def test_a_trim_beyond_the_tier_leaves_it_empty_and_it_goes_on_from_there(chain):
    state = done(chain, tiered(0, 15), trim(3, 28))
    shard = shard_of(state)
    assert shard.tier == Tiered(begin=Offset(28), end=Offset(28), manifest="m15")
    assert (shard.kept_from, shard.trimmed_to) == (28, 28)
    after = done(state, replace(tiered(28, 35), follows="m15"))
    assert shard_of(after).tier == Tiered(begin=Offset(28), end=Offset(35), manifest="m35")


def test_a_shard_that_was_trimmed_before_is_tiered_from_there_on(chain):
    state = done(chain, trim(2, 15))
    refused(state, tiered(0, 20), Reason.STATE_CHANGED)
    state = done(state, replace(tiered(0, 20), begin=Offset(15)))
    assert shard_of(state).tier == Tiered(begin=Offset(15), end=Offset(20), manifest="m20")


def test_what_was_lost_stays_told_while_the_tier_has_what_is_before_it():
    down = [
        SetNodeState(node=name(each), boot=BootId(f"boot-{each}-1"), state=NodeState.DOWN)
        for each in (1, 2)
    ]
    resume = 7 + GAP_OFFSETS_MIN
    state = done(
        with_log(),
        *down,
        FenceSegment(shard=SHARD, epoch=Epoch(1)),
        RecoverWithGap(
            shard=SHARD,
            fence=Epoch(2),
            plan=plan_of(3, 3, 4, 5),
            ended=RecoveredSegment(end=Offset(7), known_commit=Offset(7), holders=(replica(3),)),
            resume_at=Offset(resume),
            given_up=(replica(1), replica(2)),
            why="burned",
        ),
        tiered(0, 7, epoch=2, by=3),
        tiered(7, resume + 5, epoch=2, by=3),
        cool(2, resume + 3),
    )
    shard = shard_of(state)
    assert (shard.kept_from, shard.trimmed_to) == (0, resume + 3)
    assert (epochs(state), [gap.begin for gap in shard.gaps]) == ([1], [7])


# ---------------------------------------------------------------------------------- policy
def tier_fleet(level: int = TIER_LEVEL) -> ClusterState:
    state = done(with_log(), *(register(each, feature_level=TIER_LEVEL) for each in range(1, 5)))
    return done(state, register(5, feature_level=level))


def test_a_log_is_tiered_once_every_node_knows_the_tier():
    policy = SetTier(log="orders", hot_bytes=1 << 30)
    text = refused(tier_fleet(TIER_LEVEL - 1), policy, Reason.STATE_CHANGED)
    assert text == "peer-5 run a version that knows no tier: upgrade them first"
    state = done(tier_fleet(), policy)
    assert state.logs["orders"].hot_bytes == 1 << 30
    again, result = do(state, policy)
    assert (again, result.ok) == (state, True)
    refused(state, SetTier(log="orders", hot_bytes=-1), Reason.INVALID_ARGUMENT)
    refused(state, SetTier(log="other", hot_bytes=1), Reason.UNKNOWN_LOG)
    old = register(6, feature_level=TIER_LEVEL - 1)
    assert "upgrade it" in refused(state, old, Reason.STATE_CHANGED)
    done(done(state, SetTier(log="orders", hot_bytes=0)), old)


def test_what_is_in_the_tier_stays_there_when_no_more_goes_there():
    state = done(tier_fleet(), SetTier(log="orders", hot_bytes=5), tiered(0, 9, epoch=1))
    state = done(state, cool(1, 4), SetTier(log="orders", hot_bytes=0))
    assert (shard_of(state).kept_from, shard_of(state).trimmed_to) == (0, 4)
    assert "upgrade it" in refused(
        state, register(6, feature_level=TIER_LEVEL - 1), Reason.STATE_CHANGED
    )


def test_the_tier_survives_a_snapshot_and_an_older_program_does_not_guess(chain):
    before = snapshot.snapshot(chain)
    state = done(chain, tiered(0, 25), cool(2, 15))
    written = snapshot.snapshot(state)
    assert snapshot.restore(written) == state
    assert b'"format":2' in before.split(b"\n")[0]
    assert b'"format":4' in written.split(b"\n")[0]
    policy = done(tier_fleet(), SetTier(log="orders", hot_bytes=5))
    assert snapshot.restore(snapshot.snapshot(policy)) == policy
    assert b'"format":4' in snapshot.snapshot(policy).split(b"\n")[0]


def test_the_audit_says_what_is_where(chain):
    state = done(chain, tiered(0, 25), cool(3, 25), trim(2, 12))
    words = words_of(state, Target(shard=SHARD))
    assert words.endswith("trimmed to 12, in the tier from 12 to 25")
    policy = done(tier_fleet(), SetTier(log="orders", hot_bytes=5))
    assert "5 hot bytes a shard" in words_of(policy, Target(log="orders"))
