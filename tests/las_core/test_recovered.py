"""A group that begins from older data: what it skips, what it holds, what frees it (§4.6)."""

import pytest

from las.core import recovered, snapshot
from las.core.commands import (
    Caller,
    DeleteLog,
    FenceSegment,
    GiveUpSkipped,
    HaltShard,
    OpenSegment,
    PrepareSegment,
    Reason,
    RecoveredSegment,
    ReleaseShards,
    SegmentOpened,
)
from las.core.recovered import RECOVERED_LEVEL, SKIPPED, TooManyRecoveries, begun_anew
from las.core.state import GAP_OFFSETS_MIN, HELD, RECOVERIES_MAX, ClusterState
from peerd.core.ids import DELETED_EPOCH, Epoch, Offset, ShardId
from tests.las_core.builders import (
    SHARD,
    do,
    done,
    fleet,
    name,
    plan_of,
    register,
    replica,
    shard_of,
    with_log,
)

CALLER = Caller(who="ann@host", role="host", what="las recover", clock_ms=0, timestamp_ms=7)
NODES = 4


def anew(state: ClusterState) -> ClusterState:
    return begun_anew(state, recovery_id="r1", caller=CALLER, told="up to entry 9 of las-3")


def back(number: int, state: ClusterState, boot: int = 1, **changes):
    """The registration of a peer as the service makes it from what its store has."""
    stored = changes.pop("stored", ())
    sealed, adopted = changes.pop("sealed", ()), changes.pop("adopted", ())
    return register(
        number,
        boot=boot,
        feature_level=RECOVERED_LEVEL,
        stored=recovered.suspicious(state, (*stored, *adopted)),
        outlived=recovered.outlived(state, sealed, adopted),
        **changes,
    )


def heard(state: ClusterState, *numbers: int) -> ClusterState:
    for number in numbers:
        state = done(state, back(number, state, stored=((SHARD, Epoch(1)),)))
    return state


def lost(before: ClusterState) -> Epoch:
    """The first epoch that a lost commit would have drawn."""
    return Epoch(before.shards[SHARD].drawn + 1)


def test_nothing_that_lost_commits_may_have_drawn_is_drawn_again():
    before = with_log(NODES)
    state = anew(before)
    entry = state.shards[SHARD]
    assert state.version == before.version + SKIPPED
    assert state.next_shard == before.next_shard + SKIPPED
    assert entry.drawn == before.shards[SHARD].drawn + SKIPPED
    assert entry.shard.skipped_with(lost(before)) is not None
    assert entry.shard.skipped_with(entry.drawn) is not None
    assert entry.shard.skipped_with(Epoch(1)) is None
    assert entry.shard.skipped_with(Epoch(entry.drawn + 1)) is None
    assert (state.recovery.id, state.recovery.unheard) == ("r1", tuple(map(name, range(1, 5))))
    record = state.audit[state.audited]
    assert (record.who, record.what, record.text) == (
        "ann@host",
        "las recover",
        "up to entry 9 of las-3",
    )


def test_its_snapshot_is_its_own_format_and_an_older_one_stays_as_it_was():
    before = with_log(NODES)
    assert b'"format":2' in snapshot.snapshot(before).split(b"\n")[0]
    state = done(anew(before), GiveUpSkipped(shard=SHARD, why="both burned"))
    assert b'"format":3' in snapshot.snapshot(state).split(b"\n")[0]
    assert snapshot.restore(snapshot.snapshot(state)) == state


def test_a_held_shard_is_changed_by_nothing():
    state = anew(with_log(NODES))
    assert state.shards[SHARD].halted == HELD
    for command in (
        PrepareSegment(shard=SHARD, epoch=Epoch(1), plan=plan_of(2, 1, 2, 3)),
        FenceSegment(shard=SHARD, epoch=Epoch(1)),
    ):
        assert do(state, command)[1].reason is Reason.HALTED


def test_it_is_free_when_every_node_was_heard_and_not_before():
    state = heard(anew(with_log(NODES)), 1, 2, 3)
    assert state.shards[SHARD].halted == HELD
    state = heard(state, 4)
    assert state.shards[SHARD].halted == ""
    assert state.recovery.unheard == ()
    assert do(state, FenceSegment(shard=SHARD, epoch=Epoch(1)))[1].epoch > SKIPPED


def test_a_store_that_has_more_to_tell_than_fits_is_not_heard():
    state = heard(anew(with_log(NODES)), 1, 2, 3)
    state = done(state, back(4, state, told_all=False))
    assert state.shards[SHARD].halted == HELD


@pytest.mark.parametrize("number", [2, 9])
def test_a_skipped_epoch_in_a_store_halts_for_good_whoever_is_heard_later(number):
    before = with_log(NODES)
    state = anew(before)
    state = done(state, back(number, state, stored=((SHARD, lost(before)),)))
    assert f"peer-{number} has epoch" in state.shards[SHARD].halted
    assert "a commit that is lost" in state.shards[SHARD].halted
    state = heard(state, 1, 2, 3, 4)
    assert "a commit that is lost" in state.shards[SHARD].halted
    assert not state.recovery.unheard


def test_a_store_that_comes_when_the_shard_is_free_halts_it():
    before = with_log(NODES)
    state = heard(anew(before), 1, 2, 3, 4)
    assert state.shards[SHARD].halted == ""
    state = done(state, back(9, state, stored=((SHARD, lost(before)),)))
    assert "a commit that is lost" in state.shards[SHARD].halted


def test_epochs_that_the_chain_has_are_no_sign_of_anything():
    state = heard(anew(with_log(NODES)), 1, 2, 3, 4)
    state, result = do(state, FenceSegment(shard=SHARD, epoch=Epoch(1)))
    state = done(state, back(2, state, boot=2, stored=((SHARD, result.epoch),)))
    assert state.shards[SHARD].halted == ""


def test_an_open_segment_that_is_sealed_in_a_store_was_ended_by_a_lost_commit():
    state = anew(with_log(NODES))
    state = done(state, back(2, state, sealed=((SHARD, Epoch(1)),)))
    assert "became of epoch 1" in state.shards[SHARD].halted
    # With a segment prepared behind it, that one may have begun: the shard need not know more.
    prepared = done(
        with_log(NODES), PrepareSegment(shard=SHARD, epoch=Epoch(1), plan=plan_of(2, 1, 2, 3))
    )
    state = anew(prepared)
    state = done(state, back(2, state, sealed=((SHARD, Epoch(1)),)))
    assert state.shards[SHARD].halted == HELD
    state = done(state, back(3, state, sealed=((SHARD, Epoch(2)),)))
    assert "became of epoch 2" in state.shards[SHARD].halted


def test_a_standing_fence_may_be_promised_but_not_adopted():
    fenced = done(with_log(NODES), FenceSegment(shard=SHARD, epoch=Epoch(1)))
    state = anew(fenced)
    state = done(state, back(2, state, stored=((SHARD, Epoch(2)),), adopted=((SHARD, Epoch(1)),)))
    assert state.shards[SHARD].halted == HELD
    state = done(state, back(3, state, adopted=((SHARD, Epoch(2)),)))
    assert "became of epoch 2" in state.shards[SHARD].halted
    # Given up, it is one of the epochs of which stores drop what they have.
    given_up = shard_of(done(state, GiveUpSkipped(shard=SHARD, why="burned")))
    assert (given_up.fence > SKIPPED, given_up.skipped_with(Epoch(2)).given_up) == (True, True)


def test_a_report_of_a_skipped_epoch_halts():
    before = with_log(NODES)
    state = anew(before)
    entry = state.shards[SHARD]
    assert entry.shows_skipped(lost(before))
    opened = SegmentOpened(shard=SHARD, epoch=lost(before), begin=Offset(9), holders=())
    assert do(heard(state, 1, 2, 3, 4), opened)[1].reason is Reason.STATE_CHANGED
    halt = HaltShard(shard=SHARD, epoch=lost(before), node=name(2), why="it began")
    assert "it began" in done(state, halt).shards[SHARD].halted
    known = HaltShard(shard=SHARD, epoch=Epoch(1), node=name(2), why="it began")
    assert do(state, known)[1].reason is Reason.STATE_CHANGED


def test_shards_of_lost_commits_are_kept_and_told_and_others_refused():
    before = with_log(NODES)
    state = anew(before)
    stray = ShardId(before.next_shard + 3)
    state = done(state, back(2, state, stored=((stray, Epoch(1)),)))
    assert state.recovery.strays == ((stray, name(2)),)
    assert not recovered.was_deleted(state, stray)
    assert recovered.was_deleted(done(before, delete_of(before)), SHARD)
    beyond = register(3, feature_level=3, stored=((state.next_shard, Epoch(1)),))
    assert do(state, beyond)[1].reason is Reason.LAS_LOST_ITS_PAST
    # Told again without it: nothing is left to tell.
    assert done(state, back(2, state)).recovery.strays == ()


def delete_of(state: ClusterState) -> DeleteLog:
    return DeleteLog(log="orders", shards=state.logs["orders"].shards)


def test_a_deletion_that_was_lost_is_told_and_can_be_done_again():
    state = anew(with_log(NODES))
    state = done(state, back(2, state, stored=((SHARD, DELETED_EPOCH),)))
    assert "delete it again" in state.shards[SHARD].halted
    assert SHARD not in done(state, delete_of(state)).shards


def test_a_peer_that_would_drop_what_was_skipped_is_refused():
    old = register(1, feature_level=RECOVERED_LEVEL - 1)
    assert do(anew(with_log(NODES)), old)[1].reason is Reason.LAS_LOST_ITS_PAST
    assert done(with_log(NODES), old)


def test_a_shard_is_free_when_its_primary_leads_and_acks_voters_were_heard():
    state = anew(with_log(NODES))
    assert not recovered.may_be_freed(state, state.shards[SHARD])
    state = heard(state, 1)
    assert not recovered.may_be_freed(state, state.shards[SHARD])
    state = heard(state, 2)
    assert recovered.may_be_freed(state, state.shards[SHARD])
    # Another process says nothing about the one that led.
    again = done(state, back(1, state, boot=2))
    assert not recovered.may_be_freed(again, again.shards[SHARD])
    assert done(state, ReleaseShards(shards=(SHARD, ShardId(99)))).shards[SHARD].halted == ""


def test_what_halts_for_good_is_not_released():
    before = with_log(NODES)
    state = anew(before)
    state = done(state, back(2, state, stored=((SHARD, lost(before)),)))
    assert done(state, ReleaseShards(shards=(SHARD,))).shards[SHARD].halted


def test_a_person_gives_up_what_was_opened_and_the_shard_goes_on_behind_a_gap():
    before = with_log(NODES)
    state = anew(before)
    state = done(state, back(2, state, stored=((SHARD, lost(before)),)))
    assert do(state, GiveUpSkipped(shard=SHARD, why=" "))[1].reason is Reason.INVALID_ARGUMENT
    state, result = do(state, GiveUpSkipped(shard=SHARD, why="two LAS hosts burned"))
    assert result.epoch == state.shards[SHARD].drawn == shard_of(state).fence
    assert shard_of(state).skipped[0].given_up
    again = do(state, GiveUpSkipped(shard=SHARD, why="again"))
    assert again[1].reason is Reason.STATE_CHANGED
    # A store that shows it later changes nothing any more.
    late = done(state, back(3, state, stored=((SHARD, lost(before)),)))
    assert late.shards[SHARD].halted == ""
    ended = RecoveredSegment(end=Offset(5), known_commit=Offset(5), holders=(replica(1),))
    state = done(
        state,
        OpenSegment(shard=SHARD, fence=result.epoch, plan=plan_of(2, 1, 2, 3), ended=ended),
    )
    shard = shard_of(state)
    (gap,) = shard.gaps
    assert (gap.begin, gap.end, gap.why) == (5, 5 + GAP_OFFSETS_MIN, "two LAS hosts burned")
    assert (shard.open.epoch, shard.open.begin) == (result.epoch, gap.end)
    assert state.shards[SHARD].gap_why == ""


def test_it_begins_anew_again_and_again_but_not_for_ever():
    state = with_log(NODES)
    for _ in range(RECOVERIES_MAX):
        state = anew(state)
    assert len(shard_of(state).skipped) == RECOVERIES_MAX
    assert snapshot.restore(snapshot.snapshot(state)) == state
    with pytest.raises(TooManyRecoveries):
        anew(state)


def test_without_nodes_nothing_is_held():
    assert anew(fleet(0)).recovery.unheard == ()
