"""The primary: order, stream, count acks, acknowledge. Literal events, like a conversation."""

import pytest

from peerd.core import events as ev
from peerd.core.check import InvariantViolation
from peerd.core.effects import NoteKind, Stall
from peerd.core.errors import Reason, Taken
from peerd.core.ids import Epoch, Offset
from peerd.core.limits import RETRIES_PER_BATCH_MAX
from peerd.core.messages import Ack, Adopt, Expect, Frame
from tests.core.words import FIRST_MAP, SHARD, A, B, C, D, Peer, plan, process, segment, shard_map


def expect(peer: Peer, sender, *, end: int, promised: int = 1, adopted: int = 1) -> None:
    message = Expect(
        shard=SHARD,
        promised=Epoch(promised),
        adopted=Epoch(adopted),
        end=Offset(end),
        refused_epoch=Epoch(1),
    )
    peer.tell(ev.ExpectReceived(sender=sender.replica, message=message))


# ------------------------------------------------------------------ beginning
def test_the_process_that_the_map_names_adopts_and_makes_others_adopt():
    peer = Peer(A)
    peer.learn(FIRST_MAP)
    assert peer.replica.is_primary
    assert [message.epoch for message in peer.sent(B, Adopt)] == [1]
    assert [message.epoch for message in peer.sent(C, Adopt)] == [1]
    peer.fsync()
    assert peer.store.state.adopted == 1


def test_another_process_of_the_same_store_is_primary_of_nothing():
    peer = Peer(process("a", boot=1))
    peer.learn(FIRST_MAP)
    assert not peer.replica.is_primary
    assert peer.refused(peer.append()).reason is Reason.NOT_PRIMARY


def test_a_process_begins_an_epoch_once(primary):
    primary.tell(ev.PromiseReceived(request=primary.request(), fence=Epoch(2), epoch=Epoch(1)))
    primary.fsync()
    assert not primary.replica.is_primary
    primary.learn(FIRST_MAP)
    assert not primary.replica.is_primary


def test_nothing_begins_below_a_promise_even_if_it_is_only_on_its_way_to_the_store():
    peer = Peer(A)
    peer.tell(ev.PromiseReceived(request=peer.request(), fence=Epoch(2), epoch=Epoch(1)))
    peer.learn(FIRST_MAP)
    assert not peer.replica.is_primary


# ------------------------------------------------------------------ acknowledging
def test_a_batch_goes_to_the_own_store_and_to_every_stream_at_once(primary):
    primary.append(b"one", count=3)
    assert [batch.base for batch in primary.said.persist[0].batches] == [0]
    (to_b,), (to_c,) = primary.sent(B, Frame), primary.sent(C, Frame)
    assert to_b is to_c
    assert [(batch.base, batch.payload) for batch in to_b.batches] == [(0, b"one")]


def test_it_is_acknowledged_when_it_is_durable_on_acks_voters(primary):
    request = primary.append(count=3)
    assert primary.reply(request) is None
    primary.ack(B, 3)
    assert primary.reply(request) is None
    primary.fsync()
    receipt = primary.accepted(request)
    assert (receipt.epoch, receipt.base, receipt.record_count) == (1, 0, 3)
    assert receipt.durable_on == (A.replica, B.replica)
    assert primary.replica.committed == 3


def test_the_own_fsync_is_one_vote_and_no_more(primary):
    request = primary.append()
    primary.ack(B, 1)
    primary.ack(C, 1)
    assert primary.accepted(request).durable_on == (B.replica, C.replica)


@pytest.mark.parametrize(
    ("sender", "epoch"), [(B, 2), (D, 1), (process("b"), 0)], ids=["epoch", "stranger", "older"]
)
def test_an_ack_of_another_epoch_or_store_counts_for_nothing(primary, sender, epoch):
    request = primary.append()
    primary.fsync()
    primary.ack(sender, 1, epoch)
    assert primary.reply(request) is None


def test_an_ack_of_a_non_voter_counts_for_nothing():
    peer = Peer(A)
    peer.learn(shard_map(segment(1, 0, plan=plan(A, "ab", non_voters="c"))))
    request = peer.append()
    peer.fsync()
    peer.ack(C, 1)
    assert peer.reply(request) is None
    peer.ack(B, 1)
    assert peer.accepted(request).durable_on == (A.replica, B.replica)


def test_an_ack_beyond_what_was_ordered_stops_the_process(primary):
    with pytest.raises(InvariantViolation, match="nobody has more"):
        primary.ack(B, 1)


def test_acks_are_cumulative_and_receipts_come_in_order(primary):
    requests = [primary.append(count=2) for _ in range(3)]
    primary.fsync()
    primary.ack(B, 4)
    assert [primary.accepted(request).base for request in requests[:2]] == [0, 2]
    assert primary.reply(requests[2]) is None


def test_the_commit_offset_travels_with_the_next_frame_or_by_itself(primary):
    primary.append()
    primary.fsync()
    primary.ack(B, 1)
    primary.append()
    assert primary.sent(B, Frame)[-1].commit == 1
    primary.fsync()
    primary.ack(B, 2)
    primary.ack(C, 2)
    primary.forget()
    primary.tick(5)
    (frame,) = primary.sent(C, Frame)
    assert (frame.commit, frame.batches) == (2, ())
    primary.forget()
    primary.tick(5)
    assert not primary.sent(C, Frame)


def test_time_never_decreases_within_a_shard(primary):
    primary.now = 50
    primary.append()
    primary.now = 10
    primary.append()
    times = [frame.batches[0].header.timestamp_ms for frame in primary.sent(B, Frame)]
    assert times == [1_050, 1_050]


# ------------------------------------------------------------------ refusing
def test_a_conditional_append_that_lost_is_told_the_end(primary):
    primary.append(count=2)
    refusal = primary.refused(primary.append(expected=1))
    assert (refusal.reason, refusal.first_offset, refusal.taken) == (
        Reason.OFFSET_MISMATCH,
        2,
        Taken.NO,
    )
    assert primary.reply(primary.append(expected=2)) is None


def test_a_batch_without_records_is_refused(primary):
    assert primary.refused(primary.append(count=0)).reason is Reason.INVALID_ARGUMENT


@pytest.mark.parametrize("limits", [{"in_flight_bytes_max": 2}, {"in_flight_batches_max": 2}])
def test_more_than_may_be_in_flight_is_refused_until_something_commits(limits):
    peer = Peer(A, **limits)
    peer.learn(FIRST_MAP)
    for _ in range(2):
        peer.append()
    refusal = peer.refused(peer.append())
    assert (refusal.reason, refusal.taken) == (Reason.OVERLOADED, Taken.NO)
    assert refusal.retry_after_ms > 0
    peer.fsync()
    peer.ack(B, 1)
    assert peer.reply(peer.append()) is None


# ------------------------------------------------------------------ retries
def test_a_retry_of_a_batch_in_flight_waits_for_it(primary):
    first = primary.append(sequence=0)
    again = primary.append(sequence=0)
    assert primary.reply(again) is None
    assert len(primary.sent(B, Frame)) == 1
    primary.fsync()
    primary.ack(B, 1)
    assert not primary.accepted(first).duplicate
    assert primary.accepted(again).duplicate
    assert primary.accepted(again).base == primary.accepted(first).base


def test_a_retry_of_a_committed_batch_gets_the_first_answer_again(primary):
    first = primary.append(sequence=0, count=4)
    primary.fsync()
    primary.ack(B, 4)
    receipt = primary.accepted(primary.append(sequence=0, count=4))
    assert receipt.duplicate
    assert receipt.base == primary.accepted(first).base
    assert receipt.timestamp_ms == primary.accepted(first).timestamp_ms


def test_a_retry_with_an_expected_offset_gets_the_first_answer_too(primary):
    primary.append(sequence=0, expected=0)
    primary.fsync()
    primary.ack(B, 1)
    assert primary.accepted(primary.append(sequence=0, expected=0)).base == 0


def test_retries_of_one_batch_are_bounded(primary):
    for _ in range(RETRIES_PER_BATCH_MAX + 1):
        primary.append(sequence=0)
    refusal = primary.refused(primary.append(sequence=0))
    assert (refusal.reason, refusal.taken) == (Reason.OVERLOADED, Taken.UNKNOWN)


def test_a_gap_is_refused_with_the_next_sequence(primary):
    primary.append(sequence=0, count=3)
    refusal = primary.refused(primary.append(sequence=5))
    assert (refusal.reason, refusal.next_sequence) == (Reason.SEQUENCE_GAP, 3)


# ------------------------------------------------------------------ streams
def test_a_stream_that_came_back_is_asked_and_then_served_from_what_the_replica_has(primary):
    for _ in range(3):
        primary.append()
    primary.forget()
    primary.tell(ev.StreamDown(replica=B.replica))
    primary.append()
    assert not primary.sent(B)
    primary.tell(ev.StreamUp(replica=B.replica))
    assert [type(message) for message in primary.sent(B)] == [Adopt]
    primary.ack(B, 2)
    (frame,) = primary.sent(B, Frame)
    assert [batch.base for batch in frame.batches] == [2, 3]


def test_a_refused_frame_makes_the_primary_go_back_once(primary):
    for _ in range(3):
        primary.append()
    primary.forget()
    expect(primary, B, end=1)
    expect(primary, B, end=1)
    assert [type(message) for message in primary.sent(B)] == [Adopt]
    primary.ack(B, 1)
    (frame,) = primary.sent(B, Frame)
    assert [batch.base for batch in frame.batches] == [1, 2]


def test_a_replica_far_behind_is_caught_up_from_the_store(primary):
    primary.tell(ev.StreamDown(replica=C.replica))
    for _ in range(3):
        primary.append()
    primary.fsync()
    primary.ack(B, 3)
    primary.forget()
    primary.tell(ev.StreamUp(replica=C.replica))
    primary.ack(C, 0)
    (load,) = primary.loads()
    assert (load.begin, load.end, load.epoch) == (0, 3, 1)
    primary.append()
    assert not primary.sent(C, Frame)
    batches = primary.store.read(load.epoch, load.begin, load.end)
    primary.tell(
        ev.BatchesLoaded(replica=C.replica, epoch=load.epoch, begin=load.begin, batches=batches[:2])
    )
    assert [batch.base for batch in primary.sent(C, Frame)[-1].batches] == [0, 1]
    assert primary.loads()[-1].begin == 2
    primary.tell(
        ev.BatchesLoaded(replica=C.replica, epoch=load.epoch, begin=Offset(2), batches=batches[2:])
    )
    assert [batch.base for batch in primary.sent(C, Frame)[-1].batches] == [3]
    assert any(note.kind is NoteKind.CATCH_UP for note in primary.notes())


def test_a_slow_replica_is_not_served_from_memory_without_bound():
    peer = Peer(A, stream_bytes_max=2, recent_bytes_max=2)
    peer.learn(FIRST_MAP)
    for other in (B, C):
        peer.ack(other, 0)
    for number in range(6):
        peer.append()
        peer.fsync()
        peer.ack(B, number + 1)
    assert len(peer.sent(C, Frame)) == 2
    peer.ack(C, 2)
    assert peer.loads()[-1].begin == 2


def test_damaged_own_batches_are_said_and_tried_again(primary):
    primary.tell(ev.StreamDown(replica=C.replica))
    primary.append()
    primary.fsync()
    primary.ack(B, 1)
    primary.tell(ev.StreamUp(replica=C.replica))
    primary.ack(C, 0)
    event = ev.BatchesUnavailable(replica=C.replica, epoch=Epoch(1), begin=Offset(0))
    primary.tell(event)
    assert any(note.kind is NoteKind.BATCHES_DAMAGED for note in primary.notes())
    primary.forget()
    primary.tick(1_000)
    assert primary.sent(C, Adopt)


def test_an_adoption_that_is_not_answered_is_repeated_less_and_less_often():
    peer = Peer(A)
    peer.tell(ev.StreamUp(replica=B.replica))
    peer.learn(FIRST_MAP)

    def said_after(ms: int) -> int:
        peer.forget()
        for _ in range(ms // 250):
            peer.tick(250)
        assert not peer.sent(C, Adopt)  # there is no stream that could carry it
        return len(peer.sent(B, Adopt))

    # A stream loses nothing without telling: what is not answered waits, mostly for its turn.
    assert [said_after(ms) for ms in (750, 250, 1_750, 250, 3_750, 250, 3_750, 250)] == [0, 1] * 4
    peer.tell(ev.StreamUp(replica=B.replica))
    assert [said_after(ms) for ms in (750, 250)] == [0, 1]
    # An answer ends it; what is asked later begins anew.
    peer.ack(B, 0)
    peer.fsync()
    peer.learn(FIRST_MAP)
    peer.append()
    while not said_after(250):
        pass  # its silence is asked about
    assert [said_after(ms) for ms in (750, 250)] == [0, 1]


def test_a_stall_is_looked_for_soon_after_a_move_and_then_when_it_is_to_be_told(primary):
    primary.append()
    primary.fsync()
    primary.ack(B, 1)
    primary.append()  # stands still everywhere, and nobody acknowledges it
    looks, began = [], primary.now
    while primary.now - began < 1_250:
        primary.tick(primary.replica.wake_at - primary.now)
        looks.append(primary.now - began)
    assert looks == [50, 100, 150, 250, 450, 550, 800, 1_050, 1_300]
    assert {stall.stalled_ms for stall in primary.reports(Stall)} == {500, 750, 1_000, 1_250}


def test_silence_over_frames_in_flight_is_asked_about_and_slowness_is_no_loss(primary):
    for _ in range(2):
        primary.append()
    for _ in range(30):
        primary.tick(50)
    assert primary.sent(C, Adopt)
    primary.forget()
    primary.ack(C, 1)
    assert not primary.sent(C, Frame)
    for _ in range(30):
        primary.tick(50)
    primary.forget()
    primary.ack(C, 1)
    assert [batch.base for batch in primary.sent(C, Frame)[0].batches] == [1]


# ------------------------------------------------------------------ stalls
def test_a_voter_that_stalls_is_reported_while_it_lasts(primary):
    primary.append()
    primary.fsync()
    primary.ack(B, 1)
    for _ in range(11):
        primary.tick(50)
    (stall,) = primary.reports(Stall)
    assert (stall.replica, stall.epoch) == (C.replica, 1)
    assert stall.stalled_ms >= 500
    primary.ack(C, 1)
    primary.forget()
    for _ in range(20):
        primary.tick(50)
    assert not primary.reports(Stall)


def test_the_own_store_is_reported_too_when_it_stalls(primary):
    primary.append()
    primary.ack(B, 1)
    primary.ack(C, 1)
    for _ in range(11):
        primary.tick(50)
    assert {stall.replica for stall in primary.reports(Stall)} == {A.replica}


def test_an_idle_voter_does_not_stall(primary):
    for _ in range(30):
        primary.tick(50)
    assert not primary.reports(Stall)


# ------------------------------------------------------------------ idleness
def test_an_idle_primary_needs_no_ticks(primary):
    primary.append()
    primary.fsync()
    for other in (B, C):
        primary.ack(other, 1)
    for _ in range(10):
        wake_at = primary.replica.wake_at
        if wake_at is None:
            break
        primary.tick(max(1, wake_at - primary.now))
        primary.fsync()
    assert primary.replica.wake_at is None
    assert primary.store.state.segments[1].commit == 1


def test_acks_after_the_end_of_a_primary_are_ignored(primary):
    request = primary.append()
    primary.tell(ev.PromiseReceived(request=primary.request(), fence=Epoch(2), epoch=Epoch(1)))
    primary.fsync()
    primary.tell(
        ev.AckReceived(sender=B.replica, message=Ack(shard=SHARD, epoch=Epoch(1), end=Offset(1)))
    )
    assert primary.refused(request).reason is Reason.FENCED
