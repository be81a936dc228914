"""The producer table: retries, gaps, windows, and what travels of it."""

import pytest

from peerd.core import producer
from peerd.core.batch import BatchHeader
from peerd.core.check import InvariantViolation
from peerd.core.errors import Reason, Refusal, Taken
from peerd.core.forgetting import Forgetting
from peerd.core.ids import Epoch, Offset, ProducerId
from peerd.core.limits import PRODUCER_WINDOW_BATCHES, Limits
from peerd.core.producer import (
    ProducerTable,
    TableBatch,
    TableSnapshot,
    changed_since,
    empty_table,
    extended,
    merged,
)

ONE, TWO = ProducerId(b"1" * 16), ProducerId(b"2" * 16)


def header(sequence: int, count: int = 1, name: ProducerId = ONE, time: int = 0) -> BatchHeader:
    return BatchHeader(
        record_count=count,
        payload_crc=0,
        producer=name,
        first_sequence=sequence,
        timestamp_ms=time,
        payload_bytes=0,
    )


def order(table: ProducerTable, base: int, each: BatchHeader) -> None:
    assert table.judge(each) is None
    table.order(Epoch(1), Offset(base), each)


def committed(*batches: tuple[int, BatchHeader]) -> ProducerTable:
    table = ProducerTable(empty_table())
    for base, each in batches:
        order(table, base, each)
        table.commit(Offset(base + each.record_count), each)
    return table


def reason(verdict: TableBatch | Refusal | None) -> Reason:
    assert isinstance(verdict, Refusal)
    return verdict.reason


# ------------------------------------------------------------------ judging
def test_the_next_sequence_follows_the_records_of_the_last_batch():
    table = committed((0, header(0, count=5)))
    assert table.judge(header(5)) is None
    refusal = table.judge(header(6))
    assert isinstance(refusal, Refusal)
    assert (refusal.reason, refusal.next_sequence) == (Reason.SEQUENCE_GAP, 5)


@pytest.mark.parametrize("is_committed", [True, False])
def test_a_retry_finds_the_first_place(is_committed):
    table = ProducerTable(empty_table())
    order(table, 0, header(0, count=3))
    order(table, 3, header(3))
    if is_committed:
        table.commit(Offset(3), header(0, count=3))
    assert table.judge(header(0, count=3)) == TableBatch(0, 3, Epoch(1), Offset(0), 0)


def test_a_batch_that_is_cut_otherwise_than_before_is_no_retry():
    table = committed((0, header(0, count=3)))
    refusal = table.judge(header(0, count=2))
    assert isinstance(refusal, Refusal)
    assert (refusal.reason, refusal.taken) == (Reason.SEQUENCE_TOO_OLD, Taken.UNKNOWN)


def test_a_new_producer_begins_at_sequence_0():
    table = ProducerTable(empty_table())
    refusal = table.judge(header(7))
    assert isinstance(refusal, Refusal)
    assert (refusal.reason, refusal.next_sequence) == (Reason.SEQUENCE_GAP, 0)
    assert table.judge(header(0)) is None


def test_in_an_incomplete_table_an_unknown_producer_is_refused_and_not_guessed():
    table = ProducerTable(empty_table(Offset(5), complete=False))
    assert reason(table.judge(header(0))) is Reason.PRODUCER_STATE_LOST


def test_a_producer_has_at_most_a_window_of_unanswered_batches():
    table = ProducerTable(empty_table())
    for number in range(PRODUCER_WINDOW_BATCHES):
        order(table, number, header(number))
    refusal = table.judge(header(PRODUCER_WINDOW_BATCHES))
    assert reason(refusal) is Reason.PRODUCER_WINDOW_FULL
    table.commit(Offset(1), header(0))
    assert table.judge(header(PRODUCER_WINDOW_BATCHES)) is None


def test_a_retry_of_the_whole_window_is_found_after_a_window_of_commits():
    batches = [(number, header(number)) for number in range(2 * PRODUCER_WINDOW_BATCHES)]
    table = committed(*batches)
    assert isinstance(table.judge(header(PRODUCER_WINDOW_BATCHES)), TableBatch)
    assert reason(table.judge(header(PRODUCER_WINDOW_BATCHES - 1))) is Reason.SEQUENCE_TOO_OLD


def test_the_number_of_producers_is_bounded(monkeypatch):
    monkeypatch.setattr(producer, "PRODUCERS_PER_SHARD_MAX", 1)
    table = committed((0, header(0)))
    assert table.is_full
    policy = Forgetting(Limits())
    assert not policy.admit(table, TWO)
    assert policy.admit(table, header(0).producer)


# ------------------------------------------------------------------ cutting back
def test_the_snapshot_is_as_of_the_commit_offset_and_has_nothing_of_the_tail():
    table = committed((0, header(0)))
    order(table, 1, header(1))
    order(table, 2, header(0, name=TWO))
    snapshot = table.snapshot()
    assert snapshot.as_of == 1
    assert snapshot.producers == {ONE: (TableBatch(0, 1, Epoch(1), Offset(0), 0),)}


def test_the_window_as_of_the_commit_offset_is_whole_whatever_is_in_flight():
    window = PRODUCER_WINDOW_BATCHES
    table = committed(*((number, header(number)) for number in range(window)))
    for number in range(window, 2 * window):
        order(table, number, header(number))
    assert len(table.snapshot().producers[ONE]) == window


def test_dropping_what_is_pending_lets_it_be_ordered_anew():
    table = committed((0, header(0)))
    order(table, 1, header(1))
    order(table, 2, header(0, name=TWO))
    table.drop_pending()
    assert table.judge(header(1)) is None
    assert table.judge(header(0, name=TWO)) is None


def test_commits_out_of_order_are_a_bug():
    table = ProducerTable(empty_table())
    order(table, 0, header(0))
    order(table, 1, header(1))
    with pytest.raises(InvariantViolation, match="in offset order"):
        table.commit(Offset(2), header(1))


# ------------------------------------------------------------------ travelling
def test_changes_since_an_offset_and_the_table_as_of_it_make_the_whole():
    table = committed((0, header(0, time=4)), (1, header(0, name=TWO, time=5)))
    before = table.snapshot()
    order(table, 2, header(1, time=9))
    table.commit(Offset(3), header(1, time=9))
    whole, changes = table.snapshot(), table.snapshot(before.as_of)
    assert set(changes.producers) == {ONE}
    assert changed_since(whole, before.as_of) == changes
    assert merged(before, changes) == whole
    assert whole.timestamp_ms == 9


def test_changes_that_do_not_meet_the_base_are_not_merged():
    changes = TableSnapshot(as_of=Offset(9), since=Offset(5))
    assert merged(TableSnapshot(as_of=Offset(4)), changes) is None
    assert merged(TableSnapshot(as_of=Offset(10)), changes) is None
    assert merged(empty_table(Offset(6), complete=False), changes) is None
    assert merged(TableSnapshot(as_of=Offset(4)), TableSnapshot(as_of=Offset(3))) is not None


def test_a_table_loaded_and_a_table_kept_are_equal():
    batches = [(0, header(0, count=2, time=3)), (2, header(2, time=7)), (3, header(0, name=TWO))]
    kept = committed(*batches).snapshot()
    assert extended(empty_table(), Epoch(1), [(Offset(b), h) for b, h in batches]) == kept
    assert ProducerTable(kept).snapshot() == kept


def test_a_table_is_extended_without_gap():
    with pytest.raises(InvariantViolation, match="without gap"):
        extended(empty_table(), Epoch(1), [(Offset(1), header(0))])


def test_rows_survive_packing():
    row = (TableBatch(5, 2, Epoch(7), Offset(2**63), -1), TableBatch(7, 1, Epoch(8), Offset(9), 0))
    assert producer.unpack_row(producer.pack_row(row)) == row
