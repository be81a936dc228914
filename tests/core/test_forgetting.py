"""Forgetting of producers. §3.1: "A producer is forgotten only by an entry in the stream, never by
a replica's own clock, so all tables as of X are equal."
"""

from dataclasses import replace

import pytest

from peerd.core import events as ev
from peerd.core import producer
from peerd.core.batch import BatchHeader
from peerd.core.durable import AppendBatches, InstallTable
from peerd.core.errors import Reason, Taken
from peerd.core.forgetting import FORGET_AT_ONCE_MAX, Forgetting
from peerd.core.ids import Epoch, Offset, ProducerId, Tick
from peerd.core.limits import Limits
from peerd.core.messages import Begin, Frame, Ready
from peerd.core.producer import (
    ProducerTable,
    TableSnapshot,
    changed_since,
    empty_table,
    entry_of,
    extended,
    merged,
)
from tests.core.words import FIRST_MAP, SHARD, A, B, C, Peer, batch, plan, segment

P, Q, R = (ProducerId(name * 16) for name in (b"p", b"q", b"r"))
EXPIRY_MS = 1_000_000
MINUTE = 60_000


def header(name: ProducerId, sequence: int = 0, *, at: int = 0, forget: int = 0) -> BatchHeader:
    return BatchHeader(
        record_count=1,
        payload_crc=0,
        payload_bytes=1,
        producer=name,
        first_sequence=sequence,
        timestamp_ms=at,
        forget_before=Offset(forget),
    )


def table_of(*headers: BatchHeader) -> TableSnapshot:
    numbered = [(Offset(base), each) for base, each in enumerate(headers)]
    return extended(empty_table(), Epoch(1), numbered)


# ------------------------------------------------------------------ what an entry does to a table
def test_from_the_batch_on_older_producers_are_not_in_the_table():
    table = table_of(header(P), header(Q), header(R, forget=1))
    assert (set(table.producers), table.forgotten_before) == ({Q, R}, 1)


def test_a_batch_of_a_producer_that_its_own_entry_forgets_is_the_only_one_remembered():
    table = table_of(header(P), header(P, 1, forget=1))
    assert [entry.first_sequence for entry in table.producers[P]] == [1]


def test_changes_take_from_an_older_table_whom_they_forgot():
    older = table_of(header(P), header(Q))
    newer = extended(older, Epoch(1), [(Offset(2), header(R, forget=1))])
    assert merged(older, changed_since(newer, Offset(2))) == newer


def test_the_primarys_table_forgets_what_extended_does_when_the_batch_commits():
    base = table_of(header(P), header(Q))
    table = ProducerTable(base)
    table.order(Epoch(1), Offset(2), header(R, forget=1))
    assert table.snapshot() == base
    table.commit(Offset(3), header(R, forget=1))
    assert table.snapshot() == extended(base, Epoch(1), [(Offset(2), header(R, forget=1))])


def test_what_a_forgotten_producer_has_under_way_is_remembered_when_it_commits():
    table = ProducerTable(table_of(header(P)))
    table.order(Epoch(1), Offset(1), header(Q, forget=1))
    table.order(Epoch(1), Offset(2), header(P, 1))
    table.commit(Offset(2), header(Q, forget=1))
    table.commit(Offset(3), header(P, 1))
    wanted = table_of(header(P), header(Q, forget=1), header(P, 1))
    assert table.snapshot() == wanted


@pytest.mark.parametrize(("sequence", "reason"), [(0, None), (1, Reason.PRODUCER_STATE_LOST)])
def test_a_forgotten_producer_is_told_so_and_a_new_one_is_taken(sequence, reason):
    table = ProducerTable(table_of(header(P), header(Q, forget=1)))
    verdict = table.judge(header(P, sequence))
    assert (verdict and verdict.reason) == reason
    assert verdict is None or verdict.taken is Taken.UNKNOWN


def test_where_nobody_was_ever_forgotten_a_gap_is_a_gap():
    table = ProducerTable(table_of(header(Q)))
    assert table.judge(header(P, 1)).reason is Reason.SEQUENCE_GAP


def test_a_packed_row_tells_its_end():
    row = (entry_of(Epoch(1), Offset(3), header(P)), entry_of(Epoch(1), Offset(7), header(P, 1)))
    assert producer.packed_end(producer.pack_row(row)) == 8


def test_a_header_keeps_its_entry_when_it_is_packed():
    assert BatchHeader.unpack(header(P, forget=9).pack()) == header(P, forget=9)


# ------------------------------------------------------------------ when it is written
def aged(*headers: BatchHeader, minutes: int = 11) -> ProducerTable:
    """A table whose primary has seen so many minutes pass."""
    table = ProducerTable(table_of(*headers))
    for minute in range(minutes + 1):
        table.pass_time(Tick(minute * MINUTE), Limits().pause_ms_max)
    return table


def written(table: ProducerTable, log_ms: int, by: ProducerId = R) -> int:
    policy = Forgetting(Limits(producer_expiry_ms=EXPIRY_MS))
    return policy.offset_for(table, by, log_ms)


def test_expired_producers_are_forgotten_and_younger_ones_are_not():
    table = aged(header(P, at=0), header(Q, at=10))
    assert written(table, EXPIRY_MS) == 0
    assert written(table, EXPIRY_MS + 10) == 1
    assert written(table, EXPIRY_MS + 11) == 2


def test_nobody_is_forgotten_whom_this_primary_may_still_hear_again():
    assert written(aged(header(P), minutes=10), 2 * EXPIRY_MS) == 0
    table = aged(header(P))
    table.judge(header(P))
    assert written(table, 2 * EXPIRY_MS) == 0


def test_a_clock_that_jumps_and_a_pause_count_for_a_minute():
    table = ProducerTable(table_of(header(P)))
    table.pass_time(Tick(0), Limits().pause_ms_max)
    table.pass_time(Tick(1_000 * MINUTE), Limits().pause_ms_max)
    assert table.active_ms == MINUTE
    table.pass_time(Tick(0), Limits().pause_ms_max)
    table.pass_time(Tick(1_000 * MINUTE), Limits().pause_ms_max)
    assert table.active_ms == MINUTE


def test_whoever_appends_or_has_something_under_way_ends_the_run():
    assert written(aged(header(P), header(Q)), 2 * EXPIRY_MS, by=Q) == 1
    table = aged(header(P), header(Q))
    table.order(Epoch(1), Offset(2), header(Q, 1))
    assert written(table, 2 * EXPIRY_MS) == 1


def test_one_entry_is_on_its_way_at_a_time_and_forgets_a_bounded_number():
    names = [ProducerId(number.to_bytes(16, "big")) for number in range(FORGET_AT_ONCE_MAX + 9)]
    table = aged(*(header(name) for name in names))
    policy = Forgetting(Limits(producer_expiry_ms=EXPIRY_MS))
    assert policy.offset_for(table, R, 2 * EXPIRY_MS) == FORGET_AT_ONCE_MAX
    for _ in range(2):
        table.pass_time(Tick(99 * MINUTE), Limits().pause_ms_max)
        assert policy.offset_for(table, R, 2 * EXPIRY_MS) == 0


def lost_past(*headers: BatchHeader, minutes: int) -> ProducerTable:
    """A table that is not complete and knows what lies below its begin at 1, of some producers."""
    known = extended(empty_table(Offset(1), complete=False), Epoch(1), [(Offset(1), header(P))])
    table = ProducerTable(known)
    for minute in range(minutes + 1):
        table.pass_time(Tick(minute * MINUTE), Limits().pause_ms_max)
    return table


def test_a_table_without_its_past_becomes_whole_when_nobody_can_be_sending_again():
    assert written(lost_past(minutes=10), 0) == 0
    table = lost_past(minutes=11)
    assert written(table, 0) == 2
    table.order(Epoch(1), Offset(2), header(R, forget=2))
    table.commit(Offset(3), header(R, forget=2))
    assert (table.complete, set(table.snapshot().producers)) == (True, {R})
    assert table.judge(header(Q)) is None
    assert table.judge(header(P, 1)).reason is Reason.PRODUCER_STATE_LOST


def test_it_waits_for_producers_of_the_past_that_are_still_heard():
    table = lost_past(minutes=11)
    assert written(table, 0, by=P) == 0
    table.judge(header(P))
    assert written(table, 0) == 0


# ------------------------------------------------------------------ a full table
@pytest.fixture
def two_at_most(monkeypatch):
    monkeypatch.setattr(producer, "PRODUCERS_PER_SHARD_MAX", 2)


def test_in_a_full_table_whoever_is_silent_for_longest_makes_room(two_at_most):
    table, policy = aged(header(P), header(Q)), Forgetting(Limits(producer_expiry_ms=EXPIRY_MS))
    table.judge(header(Q))
    assert policy.offset_for(table, R, 0) == 1
    assert policy.admit(table, R)
    assert not policy.admit(table, ProducerId(b"s" * 16))
    assert policy.admit(table, Q)


def test_where_nobody_is_silent_a_new_producer_is_refused(two_at_most):
    peer = Peer(A)
    peer.learn(FIRST_MAP)
    peer.fsync()
    outcomes = []
    for name in (P, Q, R):
        request = peer.request()
        peer.tell(
            ev.AppendRequested(
                request=request,
                header=header(name),
                payload=b"x",
                expected_offset=None,
                now_ms=0,
                now=Tick(0),
            )
        )
        outcomes.append(peer.reply(request))
    assert outcomes[:2] == [None, None]
    assert outcomes[2].refusal.reason is Reason.LIMIT_REACHED


# ------------------------------------------------------------------ from primary to replica
def append(peer: Peer, name: ProducerId, sequence: int = 0):
    request = peer.request()
    event = ev.AppendRequested(
        request=request,
        header=header(name, sequence),
        payload=b"x",
        expected_offset=None,
        now_ms=peer.now,
        now=Tick(peer.now),
    )
    peer.tell(event)
    return request


def grown_old() -> Peer:
    """A primary with P's batch at 0, which has expired, and Q's at 1, which forgets it."""
    peer = Peer(A, producer_expiry_ms=5 * MINUTE)
    peer.learn(FIRST_MAP)
    peer.fsync()
    append(peer, P)
    peer.fsync()
    peer.ack(B, 1)
    for _ in range(12):
        peer.now += MINUTE
        append(peer, Q, 1)
    append(peer, Q)
    return peer


def test_a_primary_writes_the_entry_into_the_batch_that_it_orders():
    peer = grown_old()
    frame = peer.sent(B, Frame)[-1]
    assert [each.header.forget_before for each in frame.batches] == [1]
    assert peer.said.persist[-1].batches[0].header.forget_before == 1


def test_a_replica_forgets_with_the_transaction_that_moves_its_table():
    source = grown_old()
    peer = Peer(B)
    for message in source.sent(B):
        if isinstance(message, Frame):
            peer.tell(ev.FrameReceived(sender=A.replica, message=message))
        else:
            peer.tell(ev.AdoptReceived(sender=A.replica, message=message))
    peer.fsync()
    assert set(peer.store.table().producers) == {P}
    commit = Frame(shard=SHARD, epoch=Epoch(1), commit=Offset(2), batches=(batch(2),))
    peer.tell(ev.FrameReceived(sender=A.replica, message=commit))
    peer.fsync()
    assert set(peer.store.table().producers) == {Q}
    assert peer.store.table().forgotten_before == 1


def test_the_forgotten_producer_gets_an_answer_that_it_can_recover_from():
    peer = grown_old()
    peer.fsync()
    peer.ack(B, 2)
    refusal = peer.refused(append(peer, P, 1))
    assert (refusal.reason, refusal.taken) == (Reason.PRODUCER_STATE_LOST, Taken.UNKNOWN)
    fresh = append(peer, R)
    peer.fsync()
    peer.ack(B, 3)
    assert peer.accepted(fresh).base == 2


def test_begin_carries_whom_the_table_forgot():
    peer = grown_old()
    peer.fsync()
    peer.ack(B, 2)
    peer.learn(replace(FIRST_MAP, prepared=segment(2, plan=plan(B))))
    ready = Ready(shard=SHARD, epoch=Epoch(2), sender=B, table_as_of=Offset(1))
    peer.tell(ev.ReadyReceived(sender=B.replica, message=ready))
    (begin,) = peer.sent(B, Begin)
    assert (begin.table.since, begin.table.forgotten_before) == (1, 1)


def test_what_was_in_flight_goes_on_in_the_next_segment_whoever_was_forgotten():
    """P's next batch is behind the entry that forgets P; the segment ends between the two."""
    peer = grown_old()
    again = append(peer, P, 1)
    assert peer.reply(again) is None
    peer.tell(ev.StreamUp(replica=B.replica))
    peer.tell(ev.StreamUp(replica=C.replica))
    peer.store.queue, rest = (
        [
            each
            for each in peer.store.queue
            if not (isinstance(each, AppendBatches) and each.batches and each.batches[0].base == 2)
        ],
        [peer.store.queue[-1]],
    )
    peer.fsync()
    peer.store.queue = rest
    peer.ack(B, 2)
    peer.learn(replace(FIRST_MAP, prepared=segment(2, plan=plan(A))))
    peer.tick(1)
    peer.tick(51)
    assert peer.replica.epoch == 2
    peer.fsync()
    peer.ack(B, 3, epoch=2)
    assert (peer.accepted(again).base, peer.accepted(again).epoch) == (2, 2)


def test_an_installed_table_brings_what_it_forgot():
    peer = Peer(B)
    peer.store.submit(InstallTable(shard=SHARD, table=table_of(header(P), header(Q))))
    newer = table_of(header(P), header(Q), header(R, forget=1))
    peer.store.submit(InstallTable(shard=SHARD, table=changed_since(newer, Offset(2))))
    peer.store.commit()
    assert peer.store.table() == newer
