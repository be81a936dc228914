"""A replica: adopt, store, answer; and the fence. Literal events."""

from peerd.core import events as ev
from peerd.core.durable import AppendBatches, FillSealed
from peerd.core.effects import EpochAnswer, FetchTable, HigherPromise, PromiseAnswered
from peerd.core.errors import Reason
from peerd.core.ids import Epoch, Offset
from peerd.core.messages import Ack, Adopt, Expect, Frame
from peerd.core.producer import TableSnapshot
from tests.core.words import (
    FIRST_MAP,
    SHARD,
    A,
    B,
    C,
    Peer,
    batch,
    plan,
    segment,
    shard_map,
)


def adopt(peer: Peer, epoch: int = 1, begin: int = 0, sender=A) -> None:
    message = Adopt(shard=SHARD, epoch=Epoch(epoch), begin=Offset(begin), plan=plan(sender))
    peer.tell(ev.AdoptReceived(sender=sender.replica, message=message))


def frame(peer: Peer, *batches, epoch: int = 1, commit: int = 0, sender=A) -> None:
    message = Frame(shard=SHARD, epoch=Epoch(epoch), commit=Offset(commit), batches=batches)
    peer.tell(ev.FrameReceived(sender=sender.replica, message=message))


def promise(peer: Peer, fence: int, epoch: int = 1, prepared: int = 0) -> PromiseAnswered | None:
    request = peer.request()
    peer.tell(
        ev.PromiseReceived(
            request=request, fence=Epoch(fence), epoch=Epoch(epoch), prepared=Epoch(prepared)
        )
    )
    peer.fsync()
    reply = peer.reply(request)
    assert isinstance(reply, PromiseAnswered)
    return reply


# ------------------------------------------------------------------ answering
def test_nothing_is_acked_before_it_is_durable(shadow):
    adopt(shadow)
    frame(shadow, batch(0, 2))
    assert not shadow.said.send
    shadow.fsync()
    assert [message.end for message in shadow.sent(A, Ack)] == [0, 2]


def test_what_was_not_durable_at_a_crash_is_not_there_and_not_acked(shadow):
    adopt(shadow)
    shadow.fsync()
    frame(shadow, batch(0))
    shadow.store.crash()
    again = Peer(B, shadow.store)
    again.learn(FIRST_MAP)
    again.fsync()
    adopt(again)
    again.fsync()
    assert [message.end for message in again.sent(A, Ack)] == [0]


def test_a_frame_that_does_not_fit_is_answered_with_what_would(shadow):
    adopt(shadow)
    frame(shadow, batch(3))
    shadow.fsync()
    (expect,) = shadow.sent(A, Expect)
    assert (expect.promised, expect.adopted, expect.end, expect.refused_epoch) == (1, 1, 0, 1)


def test_a_frame_before_its_adoption_is_refused(shadow):
    frame(shadow, batch(0))
    shadow.fsync()
    (expect,) = shadow.sent(A, Expect)
    assert (expect.adopted, expect.refused_epoch) == (0, 1)


def test_a_frame_of_an_older_epoch_changes_nothing(shadow):
    adopt(shadow, epoch=1)
    adopt(shadow, epoch=2, sender=C)
    frame(shadow, batch(0), epoch=1)
    shadow.fsync()
    (expect,) = shadow.sent(A, Expect)
    assert (expect.promised, expect.adopted, expect.refused_epoch) == (2, 2, 1)
    assert shadow.store.state.segments[1].end == 0


# ------------------------------------------------------------------ the commit offset
def test_a_commit_offset_alone_needs_no_write_and_lets_readers_go_on(shadow):
    adopt(shadow)
    frame(shadow, batch(0, 2))
    shadow.fsync()
    assert shadow.replica.readable_limit(Epoch(1)) == 0
    shadow.forget()
    frame(shadow, commit=2)
    assert not shadow.said.persist
    assert shadow.replica.committed == 2
    assert shadow.replica.readable_limit(Epoch(1)) == 2


def test_an_idle_shadow_makes_the_commit_offset_durable_once(shadow):
    adopt(shadow)
    frame(shadow, batch(0, 2))
    shadow.fsync()
    frame(shadow, commit=2)
    shadow.forget()
    for _ in range(3):
        shadow.tick(1_000)
        shadow.fsync()
    assert len([o for o in shadow.said.persist if isinstance(o, AppendBatches)]) == 1
    assert shadow.store.state.segments[1].commit == 2
    assert shadow.replica.wake_at is None


def test_a_commit_offset_of_an_epoch_that_was_not_adopted_is_not_heard(shadow):
    adopt(shadow)
    frame(shadow, batch(0))
    shadow.fsync()
    frame(shadow, epoch=2, commit=1, sender=C)
    assert shadow.replica.committed == 0
    assert shadow.sent(C, Expect)


def test_a_reader_is_served_only_below_the_commit_offset_and_the_own_end(shadow):
    adopt(shadow)
    frame(shadow, batch(0, 2), batch(2, 2), commit=2)
    shadow.fsync()
    assert shadow.replica.readable_limit(Epoch(1)) == 2
    frame(shadow, commit=9)
    assert shadow.replica.readable_limit(Epoch(1)) == 4
    assert shadow.replica.readable_limit(Epoch(7)) is None


def test_of_a_kept_tail_only_what_is_known_to_be_committed_is_served(shadow):
    adopt(shadow)
    frame(shadow, batch(0, 2), batch(2, 2), commit=0)
    shadow.fsync()
    kept = segment(1, 0, 4, known_commit=Offset(2), holders=(B.replica,))
    shadow.learn(shard_map(segment(2, 4, plan=plan(C)), kept))
    shadow.fsync()
    assert shadow.replica.readable_limit(Epoch(1)) == 2
    known = segment(1, 0, 4, known_commit=Offset(2), holders=(B.replica, C.replica))
    shadow.learn(shard_map(segment(2, 4, plan=plan(C)), known))
    assert shadow.replica.readable_limit(Epoch(1)) == 4


# ------------------------------------------------------------------ the fence
def test_what_was_queued_before_a_promise_is_inside_its_answer(shadow):
    adopt(shadow)
    shadow.fsync()
    frame(shadow, batch(0, 3))
    answer = promise(shadow, 2)
    frame(shadow, batch(3))
    shadow.fsync()
    assert answer.promised == 2
    assert answer.open == EpochAnswer(epoch=1, adopted=True, begin=0, end=3, commit=0)
    assert [message.end for message in shadow.sent(A, Ack)] == [0, 3]
    assert shadow.sent(A, Expect)[-1].promised == 2


def test_a_promise_is_answered_only_when_it_is_durable(shadow):
    request = shadow.request()
    shadow.tell(ev.PromiseReceived(request=request, fence=Epoch(2), epoch=Epoch(1)))
    assert shadow.reply(request) is None
    shadow.fsync()
    assert shadow.reply(request) is not None


def test_an_epoch_that_was_not_adopted_counts_as_nothing_whatever_older_tail_there_is(shadow):
    adopt(shadow)
    frame(shadow, batch(0, 9))
    shadow.fsync()
    answer = promise(shadow, 5, epoch=3, prepared=4)
    assert answer.open == EpochAnswer(epoch=3, adopted=False)
    assert answer.prepared == EpochAnswer(epoch=4, adopted=False)


def test_the_answer_names_the_prepared_epoch_that_was_adopted(shadow):
    adopt(shadow)
    frame(shadow, batch(0, 2))
    adopt(shadow, epoch=2, begin=2, sender=C)
    frame(shadow, batch(2), epoch=2, commit=2, sender=C)
    answer = promise(shadow, 3, epoch=1, prepared=2)
    assert answer.prepared == EpochAnswer(epoch=2, adopted=True, begin=2, end=3, commit=2)


def test_a_lower_fence_is_told_the_higher_promise(shadow):
    promise(shadow, 5)
    answer = promise(shadow, 4)
    assert (answer.promised, answer.open) == (5, None)


def test_asked_again_the_answer_is_the_same(shadow):
    adopt(shadow)
    frame(shadow, batch(0))
    first = promise(shadow, 5)
    frame(shadow, batch(1))
    again = promise(shadow, 5)
    assert (first.open, first.promised) == (again.open, again.promised)


def test_a_refusal_for_a_promise_without_an_adoption_is_reported_until_the_map_is_there(shadow):
    promise(shadow, 5)
    frame(shadow, batch(0))
    shadow.fsync()
    shadow.tick(0)
    shadow.tick(250)
    reports = shadow.reports(HigherPromise)
    assert [(report.epoch, report.promised) for report in reports] == [(1, 5)] * 2
    shadow.learn(shard_map(segment(5, 0, plan=plan(C))))
    shadow.forget()
    shadow.tick(250)
    assert not shadow.reports(HigherPromise)


# ------------------------------------------------------------------ the map
def test_the_map_makes_a_replica_promise_the_open_epoch(shadow):
    shadow.learn(shard_map(segment(4, 0, plan=plan(C))))
    shadow.fsync()
    assert shadow.store.state.promised == 4
    adopt(shadow, epoch=3)
    shadow.fsync()
    assert shadow.sent(A, Expect)[-1].promised == 4


def test_the_map_seals_what_is_stored_and_drops_what_is_dead_or_empty(shadow):
    adopt(shadow)
    frame(shadow, batch(0, 2), batch(2, 2))
    adopt(shadow, epoch=2, begin=4, sender=C)
    frame(shadow, batch(4), epoch=2, sender=C)
    shadow.fsync()
    sealed = segment(1, 0, 2, known_commit=Offset(2), holders=(A.replica, B.replica))
    shadow.learn(shard_map(segment(3, 2, plan=plan(C)), sealed))
    shadow.fsync()
    state = shadow.store.state
    assert list(state.segments) == [1]
    assert (state.segments[1].end, state.segments[1].seal) == (2, 2)


def test_a_map_that_overtakes_an_adoption_is_told_to_the_store_afterwards():
    shadow = Peer(B)
    adopt(shadow)
    frame(shadow, batch(0, 2))
    sealed = segment(1, 0, 2, known_commit=Offset(0), holders=(A.replica, B.replica))
    shadow.learn(shard_map(segment(3, 2, plan=plan(C, "acd")), sealed))
    shadow.fsync()
    assert shadow.store.state.segments[1].seal == 2
    assert shadow.store.state.table_as_of == 2


def test_an_older_map_is_ignored(shadow):
    shadow.learn(shard_map(segment(4, 0, plan=plan(C))))
    shadow.fsync()
    shadow.forget()
    shadow.learn(FIRST_MAP)
    assert shadow.replica.leader_hint == C
    assert not shadow.said.persist


def test_an_outcome_of_the_copier_changes_what_is_known_to_be_stored(shadow):
    operation = FillSealed(
        shard=SHARD,
        epoch=Epoch(1),
        begin=Offset(0),
        end=Offset(2),
        open_epoch=Epoch(2),
        batches=(batch(0, 2),),
    )
    shadow.store.submit(operation)
    shadow.fsync()
    assert shadow.replica.stored.segments[1].end == 2


# ------------------------------------------------------------------ where to go
def test_an_append_is_sent_to_the_primary_that_is_known(shadow):
    refusal = shadow.refused(shadow.append())
    assert (refusal.reason, refusal.leader) == (Reason.NOT_PRIMARY, A)


def test_the_adopted_plan_is_newer_than_the_map(shadow):
    adopt(shadow, epoch=2, sender=C)
    shadow.fsync()
    assert shadow.replica.leader_hint == C


# ------------------------------------------------------------------ the table of a log-only shadow
def test_a_shadow_that_joined_without_the_past_fetches_the_table_when_the_map_is_sure():
    shadow = Peer(B)
    adopt(shadow, epoch=2, begin=10)
    shadow.fsync()
    shadow.tick(1_000)
    assert not shadow.said.load
    sealed = segment(1, 0, 10, known_commit=Offset(10), holders=(A.replica, C.replica))
    shadow.learn(shard_map(segment(2, 10), sealed))
    shadow.fsync()
    assert shadow.replica.wake_at is not None
    shadow.tick(0)
    (fetch,) = [load for load in shadow.said.load if isinstance(load, FetchTable)]
    assert (fetch.source, fetch.as_of, fetch.or_later, fetch.since) == (A.replica, 10, True, 0)
    assert not fetch.is_waited_for  # no append here needs it
    table = TableSnapshot(as_of=Offset(10))
    shadow.tell(ev.TableFetched(token=fetch.token, table=table))
    shadow.fsync()
    assert shadow.store.state.table_as_of == 10
    assert shadow.replica.wake_at is None
