"""The rules of a store, one sentence of docs/protocol.md at a time."""

import pytest

from peerd.core import durable, producer
from peerd.core.check import InvariantViolation
from peerd.core.durable import (
    AdoptEpoch,
    AppendBatches,
    FillSealed,
    InstallTable,
    LearnMap,
    Outcome,
    PromiseEpoch,
    Refused,
    Stored,
    StoredSegment,
    StoredShard,
    StoreOperation,
    TableRange,
)
from peerd.core.ids import Epoch, Offset, ShardId
from peerd.core.producer import TableSnapshot
from tests.core.words import SHARD, batch


def adopt(epoch: int, begin: int) -> AdoptEpoch:
    return AdoptEpoch(shard=SHARD, epoch=Epoch(epoch), begin=Offset(begin))


def append(epoch: int, *batches, commit: int = 0) -> AppendBatches:
    return AppendBatches(shard=SHARD, epoch=Epoch(epoch), batches=batches, commit=Offset(commit))


def promise(fence: int, epoch: int = 1, prepared: int = 0) -> PromiseEpoch:
    return PromiseEpoch(
        shard=SHARD, fence=Epoch(fence), epoch=Epoch(epoch), prepared=Epoch(prepared)
    )


def learn(open_epoch: int, seals: dict[int, int] | None = None, dead: tuple = ()) -> LearnMap:
    pairs = tuple((Epoch(epoch), Offset(seal)) for epoch, seal in (seals or {}).items())
    return LearnMap(shard=SHARD, open_epoch=Epoch(open_epoch), seals=pairs, dead=dead)


def fill(epoch: int, begin: int, end: int, *batches, open_epoch: int = 9) -> FillSealed:
    return FillSealed(
        shard=SHARD,
        epoch=Epoch(epoch),
        begin=Offset(begin),
        end=Offset(end),
        open_epoch=Epoch(open_epoch),
        batches=batches,
    )


def install(as_of: int, since: int = 0) -> InstallTable:
    table = TableSnapshot(as_of=Offset(as_of), since=Offset(since))
    return InstallTable(shard=SHARD, table=table)


def run(*operations: StoreOperation, state: StoredShard | None = None) -> StoredShard:
    """The state after operations that are all taken."""
    state = state or StoredShard(shard=SHARD)
    for operation in operations:
        outcome, state = durable.apply(state, operation)
        assert isinstance(outcome, Stored), outcome
        assert outcome.state is state
    return state


def refused(state: StoredShard, operation: StoreOperation) -> Outcome:
    outcome, after = durable.apply(state, operation)
    assert isinstance(outcome, Refused)
    assert outcome.state is state is after
    return outcome


# ------------------------------------------------------------------ adopt
def test_an_adoption_promises_adopts_and_begins_an_empty_segment():
    state = run(adopt(3, 10))
    assert (state.promised, state.adopted) == (3, 3)
    assert state.segments[3] == StoredSegment(epoch=3, begin=10, end=10, commit=10)


def test_an_adoption_below_the_promise_is_refused():
    refused(run(promise(5)), adopt(4, 0))


def test_an_adoption_of_the_promised_epoch_is_taken():
    assert run(promise(5), adopt(5, 0)).adopted == 5


def test_the_same_adoption_again_changes_nothing():
    state = run(adopt(1, 0), append(1, batch(0)))
    assert run(adopt(1, 0), state=state) == state


def test_another_begin_of_the_same_epoch_stops_the_process():
    state = run(adopt(1, 0))
    with pytest.raises(InvariantViolation, match="one epoch begins at one offset"):
        durable.apply(state, adopt(1, 5))


def test_an_adoption_drops_no_older_tail_since_its_epoch_may_be_dead():
    state = run(adopt(1, 0), append(1, batch(0, 5)), adopt(2, 3))
    assert state.segments[1].end == 5


def test_an_adoption_that_would_empty_a_filled_segment_stops_the_process():
    # Only a promise that was not raised by the filling could let it come that far.
    state = StoredShard(
        shard=SHARD,
        segments={Epoch(1): StoredSegment(epoch=1, begin=0, end=4, commit=0, seal=4)},
    )
    with pytest.raises(InvariantViolation, match="empties no segment"):
        durable.apply(state, adopt(1, 0))


# ------------------------------------------------------------------ append
def test_batches_are_taken_at_the_end_of_the_adopted_epoch():
    state = run(adopt(1, 0), append(1, batch(0, 2), batch(2, 3), commit=2))
    assert state.segments[1] == StoredSegment(epoch=1, begin=0, end=5, commit=2, uncut_bytes=2)


@pytest.mark.parametrize("operation", [append(1, batch(3)), append(1, batch(0)), append(2)])
def test_batches_elsewhere_or_of_another_epoch_are_refused(operation):
    refused(run(adopt(1, 0), append(1, batch(0, 2))), operation)


def test_batches_with_a_gap_between_them_are_refused_as_a_whole():
    refused(run(adopt(1, 0)), append(1, batch(0), batch(2)))


def test_nothing_of_an_older_epoch_is_taken_after_a_promise():
    refused(run(adopt(1, 0), promise(2)), append(1, batch(0)))


def test_nothing_is_taken_in_an_epoch_that_was_only_promised():
    refused(run(promise(2)), append(2, batch(0)))


def test_the_commit_offset_only_grows_and_is_cut_to_the_end():
    state = run(adopt(1, 0), append(1, batch(0, 2), commit=9))
    assert state.segments[1].commit == 2
    assert run(append(1, commit=1), state=state).segments[1].commit == 2


# ------------------------------------------------------------------ promise
def test_a_promise_only_grows_and_freezes_what_is_stored():
    state = run(adopt(1, 0), append(1, batch(0)), promise(4))
    assert (state.promised, state.adopted, state.segments[1].end) == (4, 1, 1)
    refused(state, promise(3))


def test_asked_again_a_store_answers_the_same():
    state = run(adopt(1, 0), promise(4))
    assert run(promise(4), state=state) == state


# ------------------------------------------------------------------ the map
def test_the_map_drops_what_lies_at_or_beyond_the_seal():
    state = run(adopt(1, 0), append(1, batch(0, 2), batch(2, 2), commit=2), learn(2, {1: 2}))
    assert state.segments[1] == StoredSegment(epoch=1, begin=0, end=2, commit=2, seal=2)
    assert state.promised == 2


def test_a_seal_below_a_commit_offset_stops_the_process():
    state = run(adopt(1, 0), append(1, batch(0, 2), commit=2))
    with pytest.raises(InvariantViolation, match="no cut below a commit offset"):
        durable.apply(state, learn(2, {1: 1}))


def test_a_second_seal_elsewhere_stops_the_process():
    state = run(adopt(1, 0), append(1, batch(0, 2)), learn(2, {1: 1}))
    with pytest.raises(InvariantViolation, match="sealed at one offset"):
        durable.apply(state, learn(2, {1: 2}))


def test_a_dead_epoch_is_dropped_and_its_promise_stays():
    state = run(adopt(1, 0), adopt(2, 0), append(2, batch(0)), learn(3, dead=(Epoch(2),)))
    assert list(state.segments) == [1]
    assert (state.promised, state.adopted) == (3, 2)
    refused(state, adopt(2, 0))


def test_a_late_adoption_of_an_epoch_that_was_dropped_is_refused():
    state = run(adopt(1, 0), adopt(3, 0), learn(1, dead=(Epoch(3),)))
    assert state.promised == 3
    refused(state, adopt(3, 0))


def test_a_dead_epoch_that_committed_something_stops_the_process():
    state = run(adopt(2, 0), append(2, batch(0), commit=1))
    with pytest.raises(InvariantViolation, match="dead epoch committed nothing"):
        durable.apply(state, learn(3, dead=(Epoch(2),)))


def test_seals_of_epochs_that_are_not_here_change_only_the_promise():
    assert run(learn(7, {1: 3})) == StoredShard(shard=SHARD, promised=7)


# ------------------------------------------------------------------ filling
def test_filling_raises_the_promise_so_that_a_late_adoption_is_refused():
    state = run(fill(1, 0, 4, batch(0, 2)))
    assert state.promised == 9
    assert state.segments[1] == StoredSegment(
        epoch=1, begin=0, end=2, commit=0, seal=4, uncut_bytes=1
    )
    refused(state, adopt(1, 0))


def test_filling_goes_on_at_the_end_and_stops_at_the_seal():
    state = run(fill(1, 0, 4, batch(0, 2)), fill(1, 0, 4, batch(2, 2)))
    assert state.segments[1].end == 4
    refused(state, fill(1, 0, 4, batch(4)))
    refused(run(fill(1, 0, 4)), fill(1, 0, 4, batch(2, 2)))


def test_filling_over_an_adopted_tail_cuts_it_first():
    state = run(adopt(1, 0), append(1, batch(0, 3), batch(3, 3)), fill(1, 0, 3))
    assert (state.segments[1].end, state.segments[1].seal) == (3, 3)


def test_the_open_segment_is_never_filled():
    with pytest.raises(InvariantViolation, match="only a sealed segment"):
        durable.apply(StoredShard(shard=SHARD), fill(9, 0, 4))


# ------------------------------------------------------------------ the producer table
def test_the_table_covers_exactly_what_is_below_the_commit_offset_as_heard():
    state = run(adopt(1, 0), append(1, batch(0, 2), batch(2, 2), commit=2))
    assert state.table_as_of == 2


def test_the_table_crosses_into_the_next_segment_only_when_the_map_has_sealed_the_last():
    state = run(adopt(1, 0), append(1, batch(0, 2), batch(2, 2), commit=2), adopt(2, 4))
    state = run(append(2, batch(4), commit=5), state=state)
    assert state.table_as_of == 2
    state = run(learn(2, {1: 4}), state=state)
    assert state.table_as_of == 5
    assert durable.table_ranges(state, Offset(2), Offset(5)) == (
        TableRange(epoch=1, begin=2, end=4),
        TableRange(epoch=2, begin=4, end=5),
    )


def test_the_table_never_takes_an_older_tail_for_a_part_of_the_log():
    state = run(adopt(1, 0), append(1, batch(0, 2), batch(2, 2), commit=2), adopt(2, 2))
    state = run(append(2, batch(2, 2), commit=2), state=state)
    assert state.table_as_of == 2
    assert durable.table_ranges(state, Offset(2), Offset(4)) == ()


def test_the_table_stands_still_before_a_hole_until_one_is_installed():
    state = run(adopt(2, 10), append(2, batch(10, 2), commit=12))
    assert state.table_as_of == 0
    refused(state, install(10, since=5))
    state = run(install(10), state=state)
    assert state.table_as_of == 12
    assert durable.table_ranges(state, Offset(10), Offset(12)) == (
        TableRange(epoch=2, begin=10, end=12),
    )


def test_a_table_that_is_behind_changes_nothing():
    state = run(install(10))
    assert run(install(5), state=state) == state


def test_an_incomplete_table_is_never_durable():
    table = producer.empty_table(Offset(5), complete=False)
    with pytest.raises(InvariantViolation, match="only a complete table"):
        durable.apply(StoredShard(shard=SHARD), InstallTable(shard=SHARD, table=table))


def test_an_operation_of_another_shard_stops_the_process():
    operation = AdoptEpoch(shard=ShardId(2), epoch=Epoch(1), begin=Offset(0))
    with pytest.raises(InvariantViolation, match="of this shard"):
        durable.apply(StoredShard(shard=SHARD), operation)
