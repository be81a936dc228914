"""The planned switch (docs/protocol.md §4.1): prepare, switch, confirm. Literal events."""

from dataclasses import replace

import pytest

from peerd.core import events as ev
from peerd.core.effects import (
    BeginAnswer,
    Declined,
    FetchTable,
    HasBegunAnswer,
    HigherPromise,
    SegmentOpened,
)
from peerd.core.errors import Reason, Taken
from peerd.core.ids import Epoch, Offset
from peerd.core.messages import Adopt, Begin, Frame, Ready
from peerd.core.producer import TableSnapshot
from peerd.core.shard_map import Plan, SkippedEpochs
from tests.core.words import (
    FIRST_MAP,
    SHARD,
    A,
    B,
    C,
    D,
    Peer,
    plan,
    process,
    segment,
    shard_map,
)


def prepared(by: Plan, epoch: int = 2):
    return replace(FIRST_MAP, prepared=segment(epoch, plan=by))


def ready(peer: Peer, sender=B, epoch: int = 2, as_of: int = 0) -> None:
    message = Ready(shard=SHARD, epoch=Epoch(epoch), sender=sender, table_as_of=Offset(as_of))
    peer.tell(ev.ReadyReceived(sender=sender.replica, message=message))


def commit(peer: Peer, **append) -> None:
    """One batch that is acknowledged, by a and b."""
    request = peer.append(**append)
    end = peer.said.persist[-1].batches[-1].end
    peer.fsync()
    peer.ack(B, end)
    peer.accepted(request)


def begin_of(peer: Peer) -> Begin:
    return peer.sent(B, Begin)[-1]


# ------------------------------------------------------------------ the old primary
def test_nothing_pauses_before_the_next_primary_is_ready(primary):
    primary.learn(prepared(plan(B)))
    primary.append()
    assert primary.sent(C, Frame)
    assert not primary.sent(B, Begin)


def test_a_drained_primary_switches_at_once_and_for_good(primary):
    primary.learn(prepared(plan(B)))
    commit(primary, sequence=0)
    ready(primary)
    begin = begin_of(primary)
    assert (begin.old_epoch, begin.epoch, begin.begin, begin.boot) == (1, 2, 1, B.boot)
    assert begin.holders == (A.replica, B.replica)
    assert begin.timestamp_ms == 1_000
    assert len(begin.table.producers) == 1
    assert not primary.replica.is_primary
    refusal = primary.refused(primary.append())
    assert (refusal.reason, refusal.taken, refusal.leader) == (Reason.MOVED, Taken.NO, B)
    assert primary.replica.leader_hint == B


def test_while_it_drains_new_batches_queue_and_what_commits_is_acknowledged(primary):
    primary.learn(prepared(plan(B)))
    in_flight = primary.append()
    ready(primary)
    queued = primary.append()
    assert not primary.sent(B, Begin)
    primary.fsync()
    primary.ack(C, 1)
    assert primary.accepted(in_flight).base == 0
    assert begin_of(primary).begin == 1
    assert primary.refused(queued).reason is Reason.MOVED
    assert primary.refused(queued).taken is Taken.NO


def test_x_is_the_commit_offset_when_the_drain_takes_too_long(primary):
    primary.learn(prepared(plan(B)))
    commit(primary)
    tail = primary.append()
    ready(primary)
    primary.tick(1)
    assert not primary.sent(B, Begin)
    primary.tick(50)
    assert begin_of(primary).begin == 1
    refusal = primary.refused(tail)
    assert (refusal.reason, refusal.taken) == (Reason.MOVED, Taken.UNKNOWN)


def test_there_is_no_drain_when_a_voter_is_gone(primary):
    primary.tell(ev.StreamDown(replica=C.replica))
    primary.learn(prepared(plan(B)))
    primary.append()
    ready(primary)
    assert begin_of(primary).begin == 0


def test_nothing_is_acknowledged_after_the_switch_whatever_becomes_durable(primary):
    primary.tell(ev.StreamDown(replica=C.replica))
    primary.learn(prepared(plan(B)))
    tail = primary.append()
    ready(primary)
    primary.ack(B, 1)
    primary.fsync()
    assert primary.refused(tail).reason is Reason.MOVED


def test_begin_carries_only_what_changed_since_the_table_of_the_next_primary(primary):
    commit(primary, sequence=0)
    primary.learn(prepared(plan(B)))
    ready(primary, as_of=1)
    table = begin_of(primary).table
    assert (table.as_of, table.since, dict(table.producers)) == (1, 1, {})


def test_begin_is_repeated_until_it_is_answered(primary):
    primary.learn(prepared(plan(B)))
    ready(primary)
    primary.tick(250)
    primary.tick(250)
    assert len(primary.sent(B, Begin)) == 3
    primary.tell(ev.BeginAnswered(sender=B.replica, epoch=Epoch(2), begun=True, promised=Epoch(2)))
    primary.tick(250)
    assert len(primary.sent(B, Begin)) == 3
    assert primary.replica.wake_at is None


def test_if_the_next_primary_has_promised_more_the_old_one_stays_stopped_and_says_so(primary):
    primary.learn(prepared(plan(B)))
    ready(primary)
    primary.tell(ev.BeginAnswered(sender=B.replica, epoch=Epoch(2), begun=False, promised=Epoch(3)))
    primary.tick(250)
    assert not primary.replica.is_primary
    assert [report.promised for report in primary.reports(HigherPromise)] == [3]


@pytest.mark.parametrize("sender", [C, process("b", boot=1)], ids=["stranger", "other boot"])
def test_ready_of_another_process_than_the_plans_counts_for_nothing(primary, sender):
    primary.learn(prepared(plan(B)))
    ready(primary, sender=sender)
    assert primary.replica.is_primary


def test_ready_may_come_before_the_map(primary):
    ready(primary)
    primary.learn(prepared(plan(B)))
    assert begin_of(primary).begin == 0


def test_a_next_primary_that_is_not_ready_in_time_is_declined_for_ever(primary):
    primary.learn(prepared(plan(B)))
    primary.tick(5_000)
    (declined,) = primary.reports(Declined)[:1]
    assert (declined.epoch, declined.prepared, declined.process) == (1, 2, A)
    ready(primary)
    assert primary.replica.is_primary
    primary.learn(FIRST_MAP)
    primary.learn(prepared(plan(B)))
    ready(primary)
    assert primary.replica.is_primary
    primary.learn(prepared(plan(B), epoch=3))
    ready(primary, epoch=3)
    assert not primary.replica.is_primary


def test_what_a_lost_commit_prepared_is_declined_by_who_has_the_new_map(primary):
    primary.learn(prepared(plan(B)))
    assert primary.replica.leads(Epoch(1))
    skipped = (SkippedEpochs(first=Epoch(2), last=Epoch(9)),)
    primary.learn(replace(FIRST_MAP, skipped=skipped))
    (declined,) = primary.reports(Declined)
    assert (declined.prepared, declined.process) == (2, A)
    ready(primary)
    assert not primary.sent(B, Begin)
    assert primary.replica.leads(Epoch(1))
    assert not primary.replica.leads(Epoch(2))
    commit(primary)


def test_who_is_just_handing_over_does_not_lead(primary):
    primary.learn(prepared(plan(B)))
    primary.append()
    ready(primary)
    assert not primary.replica.leads(Epoch(1))


def test_a_decline_is_repeated_while_the_map_shows_the_segment_prepared(primary):
    primary.learn(prepared(plan(B)))
    primary.tick(5_000)
    primary.tick(250)
    assert len(primary.reports(Declined)) >= 2
    primary.learn(FIRST_MAP)
    primary.forget()
    primary.tick(250)
    assert not primary.reports(Declined)


# ------------------------------------------------------------------ the primary stays
def test_when_the_primary_stays_it_orders_the_tail_again_and_no_client_notices(primary):
    primary.tell(ev.StreamDown(replica=C.replica))
    commit(primary, sequence=0)
    tail = primary.append(b"tail", sequence=1)
    retry = primary.append(b"tail", sequence=1)
    primary.learn(prepared(plan(A, "abd")))
    assert primary.replica.epoch == 2
    assert [report.begin for report in primary.reports(SegmentOpened)] == [1]
    adopt, frame = primary.sent(D)
    assert (type(adopt), adopt.begin) == (Adopt, 1)
    assert [(batch.base, batch.payload) for batch in frame.batches] == [(1, b"tail")]
    primary.ack(B, 2, epoch=1)
    primary.fsync()
    assert primary.reply(tail) is None
    primary.ack(D, 2, epoch=2)
    receipt = primary.accepted(tail)
    assert (receipt.epoch, receipt.base, receipt.durable_on) == (2, 1, (A.replica, D.replica))
    assert primary.accepted(retry).duplicate


def test_what_queues_while_the_primary_drains_goes_on_in_the_next_segment(primary):
    in_flight = primary.append()
    primary.learn(prepared(plan(A, "abd")))
    queued = primary.append()
    primary.fsync()
    primary.ack(B, 1)
    assert primary.accepted(in_flight).epoch == 1
    assert primary.replica.epoch == 2
    primary.fsync()
    primary.ack(D, 2, epoch=2)
    assert (primary.accepted(queued).epoch, primary.accepted(queued).base) == (2, 1)


def test_that_it_opened_is_reported_until_the_map_shows_it(primary):
    primary.learn(prepared(plan(A, "abd")))
    primary.tick(250)
    assert len(primary.reports(SegmentOpened)) >= 2
    primary.learn(shard_map(segment(2, 0, plan=plan(A, "abd"))))
    primary.forget()
    primary.tick(250)
    assert not primary.reports(SegmentOpened)


# ------------------------------------------------------------------ the new primary
@pytest.fixture
def candidate() -> Peer:
    """b, which the map has prepared as the primary of epoch 2."""
    peer = Peer(B)
    peer.learn(prepared(plan(B)))
    peer.fsync()
    return peer


def begin(peer: Peer, *, table: TableSnapshot, at: int = 0, boot=B.boot, epoch: int = 2):
    request = peer.request()
    message = Begin(
        shard=SHARD,
        old_epoch=Epoch(1),
        epoch=Epoch(epoch),
        boot=boot,
        begin=Offset(at),
        plan=plan(B),
        table=table,
        holders=(A.replica, C.replica),
        timestamp_ms=5_000,
    )
    event = ev.BeginReceived(request=request, sender=A.replica, message=message, now=peer.now)
    peer.tell(event)
    return peer.reply(request)


def test_the_next_primary_loads_its_table_says_ready_and_repeats_it(candidate):
    assert not candidate.sent(A, Ready)
    candidate.load_own_table()
    assert [message.table_as_of for message in candidate.sent(A, Ready)] == [0]
    candidate.tick(250)
    assert len(candidate.sent(A, Ready)) == 2


def test_without_the_past_it_fetches_the_table_from_the_old_primary_first():
    peer = Peer(B)
    sealed = segment(1, 0, 9, known_commit=Offset(9), holders=(A.replica,))
    peer.learn(shard_map(segment(2, 9), sealed, prepared=segment(3, plan=plan(B))))
    peer.fsync()
    peer.load_own_table()
    (fetch,) = [load for load in peer.said.load if isinstance(load, FetchTable)]
    assert (fetch.source, fetch.as_of, fetch.or_later) == (A.replica, 9, True)
    assert not peer.sent(A, Ready)
    peer.tell(ev.TableFetched(token=fetch.token, table=TableSnapshot(as_of=Offset(12))))
    assert [message.table_as_of for message in peer.sent(A, Ready)] == [12]


def test_it_does_not_wait_for_ever_for_the_table():
    peer = Peer(B)
    sealed = segment(1, 0, 9, known_commit=Offset(9), holders=(A.replica,))
    peer.learn(shard_map(segment(2, 9), sealed, prepared=segment(3, plan=plan(B))))
    peer.load_own_table()
    peer.tick(1_000)
    assert [message.table_as_of for message in peer.sent(A, Ready)] == [0]


def test_it_says_no_more_when_the_segment_was_withdrawn(candidate):
    candidate.load_own_table()
    candidate.learn(replace(FIRST_MAP, dead_epochs=(Epoch(2),)))
    candidate.forget()
    candidate.tick(250)
    assert not candidate.said.send
    assert candidate.replica.wake_at is None


def test_it_is_primary_from_the_moment_it_has_begin(candidate):
    candidate.load_own_table()
    answer = begin(candidate, table=TableSnapshot(as_of=Offset(7)), at=7)
    assert isinstance(answer, BeginAnswer)
    assert answer.begun
    assert candidate.replica.is_primary
    (report,) = candidate.reports(SegmentOpened)
    assert (report.epoch, report.begin, report.holders) == (2, 7, (A.replica, C.replica))
    request = candidate.append()
    candidate.fsync()
    candidate.ack(C, 8, epoch=2)
    assert candidate.accepted(request).base == 7
    assert candidate.accepted(request).timestamp_ms == 5_000
    assert candidate.store.state.table_as_of == 7


def test_begin_again_is_answered_again_and_changes_nothing(candidate):
    table = TableSnapshot(as_of=Offset(0))
    begin(candidate, table=table)
    candidate.append()
    answer = begin(candidate, table=table)
    assert answer.begun
    assert candidate.replica.committed == 0
    assert len(candidate.sent(C, Adopt)) == 1


def test_begin_for_another_boot_is_refused(candidate):
    answer = begin(candidate, table=TableSnapshot(as_of=Offset(0)), boot=process("b", 1).boot)
    assert not answer.begun
    assert not candidate.replica.is_primary


def test_begin_after_a_higher_promise_is_refused(candidate):
    candidate.tell(ev.PromiseReceived(request=candidate.request(), fence=Epoch(3), epoch=Epoch(1)))
    answer = begin(candidate, table=TableSnapshot(as_of=Offset(0)))
    assert (answer.begun, answer.promised) == (False, 3)
    assert not candidate.replica.is_primary


def test_begin_with_changes_since_a_table_that_is_not_here_is_refused(candidate):
    table = TableSnapshot(as_of=Offset(9), since=Offset(5))
    assert not begin(candidate, table=table, at=9).begun


def test_the_las_is_told_whether_it_has_begun(candidate):
    def asked() -> HasBegunAnswer:
        request = candidate.request()
        candidate.tell(ev.HasBegunAsked(request=request, epoch=Epoch(2)))
        reply = candidate.reply(request)
        assert isinstance(reply, HasBegunAnswer)
        return reply

    assert not asked().begun
    begin(candidate, table=TableSnapshot(as_of=Offset(3)), at=3)
    assert (asked().begun, asked().begin, asked().holders) == (True, 3, (A.replica, C.replica))
