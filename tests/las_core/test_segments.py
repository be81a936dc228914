"""Each row of the table of docs/protocol.md §4: when it is taken, what it does, what refuses it."""

from dataclasses import replace

import pytest

from las.core.commands import (
    AddHolder,
    Command,
    DropHolder,
    FenceSegment,
    HaltShard,
    OpenSegment,
    PrepareSegment,
    Reason,
    RecoveredSegment,
    SegmentOpened,
    WantHolders,
    WithdrawSegment,
)
from las.core.state import SEALED_SEGMENTS_MAX, ClusterState
from peerd.core.ids import NO_EPOCH, Epoch, Offset, ShardId
from peerd.core.shard_map import Segment
from tests.las_core.builders import (
    SHARD,
    do,
    done,
    plan_of,
    process,
    register,
    replica,
    shard_of,
    with_log,
)


def prepare(epoch: int = 1, plan=None) -> PrepareSegment:
    return PrepareSegment(shard=SHARD, epoch=Epoch(epoch), plan=plan or plan_of(1, 1, 2, 4))


def opened(epoch: int = 2, begin: int = 10, holders=(1, 2)) -> SegmentOpened:
    return SegmentOpened(
        shard=SHARD,
        epoch=Epoch(epoch),
        begin=Offset(begin),
        holders=tuple(map(replica, holders)),
    )


def fence(epoch: int = 1, prepared: int = 0) -> FenceSegment:
    return FenceSegment(shard=SHARD, epoch=Epoch(epoch), prepared=Epoch(prepared))


def ended(end: int, known: int | None = None, holders=(2, 3)) -> RecoveredSegment:
    return RecoveredSegment(
        end=Offset(end),
        known_commit=Offset(end if known is None else known),
        holders=tuple(map(replica, holders)),
    )


def reopen(fence_epoch: int, end: RecoveredSegment, prepared=None, plan=None) -> OpenSegment:
    return OpenSegment(
        shard=SHARD,
        fence=Epoch(fence_epoch),
        plan=plan or plan_of(2, 2, 3, 4),
        ended=end,
        ended_prepared=prepared,
    )


def refused(state: ClusterState, command: Command, reason: Reason) -> str:
    _, result = do(state, command)
    assert not result.ok
    assert result.reason is reason, result
    return result.text


# ---------------------------------------------------------------------------------- planned
def test_a_prepared_segment_draws_the_next_epoch_and_changes_nothing_else():
    state, result = do(with_log(), prepare())
    assert result.ok
    assert result.epoch == 2
    shard = shard_of(state)
    assert shard.open.epoch == 1
    assert shard.prepared == Segment(epoch=Epoch(2), plan=plan_of(1, 1, 2, 4))
    assert state.shards[SHARD].drawn == 2


def test_of_two_racing_plans_one_loses():
    state = done(with_log(), prepare())
    refused(state, prepare(), Reason.STATE_CHANGED)
    state = done(state, opened())
    refused(state, prepare(epoch=1), Reason.STATE_CHANGED)


def test_nothing_is_prepared_while_a_fence_stands():
    refused(done(with_log(), fence()), prepare(), Reason.FENCED)


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        (replace(plan_of(1, 1, 2, 4), primary=process(1, boot=9)), "has restarted"),
        (plan_of(1, 1, 2, 9), "no node is called peer-9"),
        (plan_of(1, 1, 2, acks=1), "acks = 2, not 1"),
        (plan_of(1, 2, 3, non=(1,)), "without a vote, and it is not at risk"),
        (plan_of(6, 6, 2), "never primary"),
        (plan_of(1, 1, 7), "both on host host-1"),
    ],
)
def test_a_plan_that_breaks_a_hard_rule_is_refused(plan, why):
    state = done(
        with_log(),
        register(6, may_lead=False),
        register(7, labels=(("host", "host-1"),)),
    )
    assert why in refused(state, prepare(plan=plan), Reason.INVALID_ARGUMENT)


def test_a_store_that_was_replaced_is_another_replica():
    state = with_log()
    plan = plan_of(1, 1, 2)
    other = replace(plan, voters=(replica(1), replace(replica(2), store="store-9")))
    assert "another store" in refused(state, prepare(plan=other), Reason.INVALID_ARGUMENT)


def test_confirming_seals_the_old_segment_where_the_new_one_begins():
    state = done(with_log(), prepare(), opened(begin=10, holders=(2, 1)))
    shard = shard_of(state)
    (sealed,) = shard.sealed
    assert (sealed.epoch, sealed.begin, sealed.end, sealed.known_commit) == (1, 0, 10, 10)
    assert sealed.holders == (replica(1), replica(2))
    assert (shard.open.epoch, shard.open.begin) == (2, 10)
    assert shard.prepared is None


def test_a_sealed_segment_without_records_is_left_out_of_the_chain():
    shard = shard_of(done(with_log(), prepare(), opened(begin=0)))
    assert shard.sealed == ()
    assert shard.dead_epochs == (1,)
    assert (shard.open.epoch, shard.open.begin) == (2, 0)


def test_confirming_again_is_answered_and_changes_nothing():
    state = done(with_log(), prepare(), opened())
    again, result = do(state, opened())
    assert result.ok
    assert again is state


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([], Reason.STATE_CHANGED),
        ([prepare(), fence(prepared=2)], Reason.FENCED),
    ],
)
def test_confirming_what_is_not_prepared_or_fenced_is_refused(steps, reason):
    refused(done(with_log(), *steps), opened(), reason)


def test_a_segment_cannot_begin_below_the_one_before_it():
    state = done(with_log(), prepare(), opened(begin=10), prepare(epoch=2, plan=plan_of(1, 1, 2)))
    refused(state, opened(epoch=3, begin=9), Reason.INVALID_ARGUMENT)


def test_a_holder_must_have_been_a_replica():
    state = done(with_log(), prepare())
    assert "peer-5 is no replica" in refused(state, opened(holders=(1, 5)), Reason.INVALID_ARGUMENT)


def test_only_the_primary_process_of_the_open_segment_withdraws_a_prepared_one():
    state = done(with_log(), prepare())
    by_other = WithdrawSegment(shard=SHARD, epoch=Epoch(2), declined_by=process(2))
    by_restarted = replace(by_other, declined_by=process(1, boot=2))
    by_primary = replace(by_other, declined_by=process(1))
    refused(state, by_other, Reason.STALE_BOOT)
    refused(state, by_restarted, Reason.STALE_BOOT)
    shard = shard_of(done(state, by_primary))
    assert shard.prepared is None
    assert shard.dead_epochs == (2,)


def test_a_fenced_prepared_segment_cannot_be_withdrawn():
    state = done(with_log(), prepare(), fence(prepared=2))
    declined = WithdrawSegment(shard=SHARD, epoch=Epoch(2), declined_by=process(1))
    refused(state, declined, Reason.FENCED)


def test_a_withdrawn_epoch_is_never_drawn_again():
    declined = WithdrawSegment(shard=SHARD, epoch=Epoch(2), declined_by=process(1))
    _, result = do(done(with_log(), prepare(), declined), prepare())
    assert result.epoch == 3


def test_the_chain_is_bounded_for_planned_changes():
    state = with_log()
    entry = state.shards[SHARD]
    sealed = tuple(
        Segment(
            epoch=Epoch(each + 1), plan=plan_of(1, 1, 2), begin=Offset(each), end=Offset(each + 1)
        )
        for each in range(SEALED_SEGMENTS_MAX)
    )
    last = Epoch(SEALED_SEGMENTS_MAX + 1)
    opened_at = replace(entry.shard.open, epoch=last, begin=Offset(SEALED_SEGMENTS_MAX))
    long = replace(entry, shard=replace(entry.shard, sealed=sealed, open=opened_at), drawn=last)
    state = state.changed(shards=(long,))
    refused(state, prepare(epoch=last), Reason.LIMIT_REACHED)
    assert do(state, fence(epoch=last))[1].ok


# ---------------------------------------------------------------------------------- unplanned
def test_a_fence_is_drawn_once_and_a_new_leader_goes_on_with_it():
    state, first = do(with_log(), fence())
    assert first.epoch == 2
    again, second = do(state, fence())
    assert again is state
    assert second.ok
    assert second.epoch == 2


def test_a_fence_must_name_what_is_open_and_what_is_prepared():
    state = done(with_log(), prepare())
    refused(state, fence(), Reason.STATE_CHANGED)
    refused(state, fence(epoch=2), Reason.STATE_CHANGED)
    assert do(state, fence(prepared=2))[1].epoch == 3


def test_opening_ends_the_fence_and_keeps_the_tail_apart():
    state = done(with_log(), fence(), reopen(2, ended(12, known=9)))
    shard = shard_of(state)
    (sealed,) = shard.sealed
    assert (sealed.end, sealed.known_commit) == (12, 9)
    assert (shard.open.epoch, shard.open.begin, shard.fence) == (2, 12, NO_EPOCH)


def test_a_prepared_segment_that_was_not_recovered_is_dead():
    state = done(with_log(), prepare(), fence(prepared=2), reopen(3, ended(5)))
    shard = shard_of(state)
    assert [segment.epoch for segment in shard.sealed] == [1]
    assert shard.dead_epochs == (2,)
    assert shard.prepared is None
    assert (shard.open.epoch, shard.open.begin) == (3, 5)


def test_a_prepared_segment_that_was_recovered_is_part_of_the_chain():
    recovered = ended(8, known=6, holders=(4,))
    state = done(with_log(), prepare(), fence(prepared=2), reopen(3, ended(5), recovered))
    shard = shard_of(state)
    assert [(each.epoch, each.begin, each.end) for each in shard.sealed] == [(1, 0, 5), (2, 5, 8)]
    assert shard.sealed[1].holders == (replica(4),)
    assert (shard.open.epoch, shard.open.begin) == (3, 8)


def test_what_ended_without_records_is_dead():
    recovered = ended(0, holders=(4,))
    state = done(with_log(), prepare(), fence(prepared=2), reopen(3, ended(0), recovered))
    assert shard_of(state).sealed == ()
    assert shard_of(state).dead_epochs == (1, 2)


def test_opening_needs_its_own_fence():
    refused(with_log(), reopen(2, ended(5)), Reason.STATE_CHANGED)
    state = done(with_log(), fence())
    refused(state, reopen(3, ended(5)), Reason.STATE_CHANGED)


def test_opening_again_is_answered_and_changes_nothing():
    state = done(with_log(), fence(), reopen(2, ended(5)))
    again, result = do(state, reopen(2, ended(5)))
    assert result.ok
    assert again is state


@pytest.mark.parametrize(
    "command",
    [
        reopen(2, ended(5, known=6)),
        reopen(2, ended(5, holders=(2, 2))),
        reopen(2, ended(5, holders=(5,))),
        reopen(2, ended(5), ended(6)),
        reopen(2, ended(5), plan=replace(plan_of(2, 2, 3), primary=process(2, boot=7))),
    ],
)
def test_an_ending_that_cannot_be_is_refused(command):
    refused(done(with_log(), fence()), command, Reason.INVALID_ARGUMENT)


# ---------------------------------------------------------------------------------- holders
def sealed_state() -> ClusterState:
    return done(with_log(), prepare(), opened(begin=10, holders=(1,)))


def test_a_wanted_holder_becomes_one_when_it_says_so():
    want = WantHolders(shard=SHARD, epoch=Epoch(1), holders=(replica(4), replica(5)))
    add = AddHolder(shard=SHARD, epoch=Epoch(1), holder=replica(4))
    (sealed,) = shard_of(done(sealed_state(), want, add)).sealed
    assert sealed.holders == (replica(1), replica(4))
    assert sealed.wanted_holders == (replica(5),)


def test_a_replica_that_has_it_whole_needs_not_be_wanted():
    add = AddHolder(shard=SHARD, epoch=Epoch(1), holder=replica(2))
    (sealed,) = shard_of(done(sealed_state(), add)).sealed
    assert sealed.holders == (replica(1), replica(2))


def test_a_damaged_copy_is_no_copy():
    drop = DropHolder(shard=SHARD, epoch=Epoch(1), holder=replica(1))
    (sealed,) = shard_of(done(sealed_state(), drop)).sealed
    assert sealed.holders == ()


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (WantHolders(shard=SHARD, epoch=Epoch(1), holders=(replica(1),)), Reason.INVALID_ARGUMENT),
        (WantHolders(shard=SHARD, epoch=Epoch(1), holders=(replica(9),)), Reason.INVALID_ARGUMENT),
        (
            WantHolders(shard=SHARD, epoch=Epoch(1), holders=(replica(4),) * 2),
            Reason.INVALID_ARGUMENT,
        ),
        (WantHolders(shard=SHARD, epoch=Epoch(2), holders=()), Reason.UNKNOWN_SEGMENT),
        (AddHolder(shard=SHARD, epoch=Epoch(1), holder=replica(9)), Reason.INVALID_ARGUMENT),
        (AddHolder(shard=ShardId(7), epoch=Epoch(1), holder=replica(2)), Reason.UNKNOWN_SHARD),
    ],
)
def test_holders_must_be_stores_of_the_fleet(command, reason):
    refused(sealed_state(), command, reason)


# ---------------------------------------------------------------------------------- halted
@pytest.mark.parametrize(
    "command",
    [
        prepare(),
        opened(),
        WithdrawSegment(shard=SHARD, epoch=Epoch(2), declined_by=process(1)),
        fence(),
        reopen(2, ended(5)),
        WantHolders(shard=SHARD, epoch=Epoch(1), holders=()),
        AddHolder(shard=SHARD, epoch=Epoch(1), holder=replica(2)),
        DropHolder(shard=SHARD, epoch=Epoch(1), holder=replica(2)),
    ],
)
def test_an_epoch_above_all_drawn_stops_every_change_of_the_shard(command):
    halt = HaltShard(shard=SHARD, epoch=Epoch(7), node=replica(2).peer, why="it promised 7")
    refused(done(with_log(), halt), command, Reason.HALTED)


def test_an_epoch_that_was_drawn_halts_nothing():
    halt = HaltShard(shard=SHARD, epoch=Epoch(1), node=replica(2).peer, why="it promised 1")
    refused(with_log(), halt, Reason.STATE_CHANGED)


def test_answers_that_contradict_each_other_halt_the_fenced_shard():
    halt = HaltShard(
        shard=SHARD, epoch=Epoch(2), node=replica(2).peer, why="two begins", fence=Epoch(2)
    )
    state = done(with_log(), fence(), halt)
    assert state.shards[SHARD].halted.startswith("peer-2: two begins")


def test_a_promise_that_a_deposed_leader_met_halts_nothing():
    """It asked for an older fence; what it met is the standing one, which was drawn since."""
    halt = HaltShard(shard=SHARD, epoch=Epoch(2), node=replica(2).peer, why="it promised 2")
    refused(done(with_log(), fence()), halt, Reason.STATE_CHANGED)


@pytest.mark.parametrize(
    "command",
    [
        prepare(),
        opened(),
        WithdrawSegment(shard=SHARD, epoch=Epoch(2), declined_by=process(1)),
        fence(),
        reopen(2, ended(5)),
        HaltShard(shard=SHARD, epoch=Epoch(2), node=replica(2).peer, why="no"),
    ],
)
def test_an_unknown_shard_is_said_to_be_unknown(command):
    refused(with_log(), replace(command, shard=ShardId(99)), Reason.UNKNOWN_SHARD)
