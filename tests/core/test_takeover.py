"""After a fence (docs/protocol.md §4.2): the old primary stops, a new one finds its table, the kept
tail waits for copies. Literal events.
"""

from peerd.core import events as ev
from peerd.core.durable import AdoptEpoch, AppendBatches, InstallTable
from peerd.core.effects import (
    FetchTable,
    HigherPromise,
    LoadTable,
    NoteKind,
    PromiseAnswered,
    TableAnswer,
)
from peerd.core.errors import Reason, Taken
from peerd.core.ids import Epoch, Offset
from peerd.core.limits import KEPT_TAIL_WAITERS_MAX
from peerd.core.messages import Expect
from peerd.core.producer import TableBatch, TableSnapshot
from peerd.core.shard_map import Shard
from peerd.testing.sim.store import SimStore
from tests.core.words import PRODUCER, SHARD, A, B, C, Peer, batch, plan, segment, shard_map

HOLDERS = (B.replica, C.replica)


def stored(epoch: int, begin: int, *batches, commit: int = 0) -> SimStore:
    """A store that was a shadow in one epoch."""
    store = SimStore(SHARD)
    store.submit(AdoptEpoch(shard=SHARD, epoch=Epoch(epoch), begin=Offset(begin)))
    store.submit(
        AppendBatches(shard=SHARD, epoch=Epoch(epoch), batches=batches, commit=Offset(commit))
    )
    store.commit()
    return store


def sequenced(base: int, sequence: int):
    return batch(base, producer=PRODUCER, first_sequence=sequence, timestamp_ms=7_000)


def after(*, known: int = 0, holders=HOLDERS, end: int = 2) -> Shard:
    """Epoch 1 was recovered up to `end`; b is primary of epoch 3."""
    sealed = segment(1, 0, end, known_commit=Offset(known), holders=holders)
    return shard_map(segment(3, end, plan=plan(B)), sealed)


def fetches(peer: Peer) -> list[FetchTable]:
    return [load for load in peer.said.load if isinstance(load, FetchTable)]


# ------------------------------------------------------------------ the old primary
def test_a_fenced_primary_stops_and_says_that_it_does_not_know(primary):
    acked = primary.append()
    primary.fsync()
    primary.ack(B, 1)
    tail = primary.append()
    request = primary.request()
    primary.tell(ev.PromiseReceived(request=request, fence=Epoch(2), epoch=Epoch(1)))
    late = primary.append()
    primary.fsync()
    assert primary.accepted(acked).base == 0
    for lost in (tail, late):
        refusal = primary.refused(lost)
        assert (refusal.reason, refusal.taken) == (Reason.FENCED, Taken.UNKNOWN)
        assert refusal.epoch == 2
    answer = primary.reply(request)
    assert isinstance(answer, PromiseAnswered)
    assert answer.open is not None
    assert (answer.open.end, answer.open.commit) == (2, 1)
    assert primary.refused(primary.append()).reason is Reason.NOT_PRIMARY


def test_a_primary_that_meets_a_higher_promise_stops_and_tells_the_las(primary):
    request = primary.append()
    expect = Expect(
        shard=SHARD, promised=Epoch(3), adopted=Epoch(1), end=Offset(0), refused_epoch=Epoch(1)
    )
    primary.tell(ev.ExpectReceived(sender=C.replica, message=expect))
    assert not primary.replica.is_primary
    assert primary.refused(request).reason is Reason.FENCED
    primary.tick(0)
    assert [report.promised for report in primary.reports(HigherPromise)] == [3]


def test_a_primary_that_the_map_has_passed_stops(primary):
    request = primary.append()
    sealed = segment(1, 0, 1, known_commit=Offset(0), holders=(B.replica,))
    primary.learn(shard_map(segment(3, 1, plan=plan(C)), sealed))
    assert not primary.replica.is_primary
    refusal = primary.refused(request)
    assert (refusal.reason, refusal.leader) == (Reason.FENCED, C)


# ------------------------------------------------------------------ the new primary's table
def test_a_new_primary_takes_its_table_from_its_own_store_and_no_append_before():
    peer = Peer(B, stored(1, 0, sequenced(0, 0), sequenced(1, 1), sequenced(2, 2), commit=1))
    peer.learn(after())
    request = peer.append(sequence=2)
    peer.fsync()
    assert not [batch for operation in peer.said.persist if (batch := appended(operation))]
    peer.load_own_table()
    peer.fsync()
    peer.ack(C, 3, epoch=3)
    receipt = peer.accepted(request)
    assert (receipt.epoch, receipt.base, receipt.timestamp_ms) == (3, 2, 7_000)


def appended(operation) -> tuple:
    return operation.batches if isinstance(operation, AppendBatches) else ()


def test_appends_that_wait_for_the_table_are_bounded():
    peer = Peer(B, stored(1, 0, sequenced(0, 0), sequenced(1, 1)), queued_requests_max=2)
    peer.learn(after())
    for _ in range(2):
        assert peer.reply(peer.append()) is None
    assert peer.refused(peer.append()).reason is Reason.OVERLOADED


def test_a_primary_without_the_past_asks_one_holder_after_the_other():
    peer = Peer(A)
    sealed = segment(1, 0, 2, known_commit=Offset(2), holders=HOLDERS)
    peer.learn(shard_map(segment(3, 2), sealed))
    request = peer.append(sequence=1)
    peer.fsync()
    (first,) = fetches(peer)
    assert (first.source, first.as_of, first.or_later, first.since) == (B.replica, 2, True, 0)
    peer.tell(ev.TableUnavailable(token=first.token, answered=True))
    second = fetches(peer)[-1]
    assert second.source == C.replica
    row = (TableBatch(0, 1, Epoch(1), Offset(0), 7_000),)
    table = TableSnapshot(as_of=Offset(2), producers={PRODUCER: row}, timestamp_ms=7_000)
    peer.tell(ev.TableFetched(token=second.token, table=table))
    peer.fsync()
    peer.load_own_table()
    peer.fsync()
    peer.ack(B, 3, epoch=3)
    assert peer.accepted(request).base == 2


def asking(**limits) -> Peer:
    """A new primary without the past, which two stores have."""
    peer = Peer(A, **limits)
    sealed = segment(1, 0, 2, known_commit=Offset(2), holders=HOLDERS)
    peer.learn(shard_map(segment(3, 2), sealed))
    peer.fsync()
    return peer


def whole_table(as_of: int = 2) -> TableSnapshot:
    row = (TableBatch(0, 1, Epoch(1), Offset(0), 7_000),)
    return TableSnapshot(as_of=Offset(as_of), producers={PRODUCER: row}, timestamp_ms=7_000)


def test_beside_a_source_that_says_nothing_the_next_is_asked():
    peer = asking()
    peer.tick(499)
    assert len(fetches(peer)) == 1
    peer.tick(1)
    assert [fetch.source for fetch in fetches(peer)] == [B.replica, C.replica]
    peer.tick(499)
    peer.tell(ev.TableFetched(token=fetches(peer)[1].token, table=whole_table()))
    peer.fsync()
    peer.load_own_table()
    assert peer.replica.is_primary
    peer.append(sequence=1)
    assert [operation.batches for operation in peer.said.persist if appended(operation)]


def test_a_source_that_answers_late_is_as_good():
    peer = asking()
    peer.tick(500)
    first, second = fetches(peer)
    peer.tick(3_000)
    peer.tell(ev.TableFetched(token=first.token, table=whole_table()))
    peer.fsync()
    peer.load_own_table()
    # The search is over, so what the other one says changes nothing any more.
    peer.tell(ev.TableFetched(token=second.token, table=whole_table()))
    peer.append(sequence=1)
    assert [operation.batches for operation in peer.said.persist if appended(operation)]
    assert len(fetches(peer)) == 2


def test_a_silent_source_is_asked_again_when_its_answer_cannot_come_any_more():
    peer = asking()
    for _ in range(15):
        peer.tick(250)
    assert [fetch.source for fetch in fetches(peer)] == [B.replica, C.replica]
    for _ in range(2):
        peer.tick(250)
    assert [fetch.source for fetch in fetches(peer)] == [B.replica, C.replica, B.replica]
    peer.tell(ev.TableFetched(token=fetches(peer)[0].token, table=whole_table()))
    assert not [each for each in peer.said.persist if isinstance(each, InstallTable)]


def test_while_a_table_is_installed_nobody_else_is_asked():
    peer = asking()
    peer.tick(500)
    first, second = fetches(peer)
    peer.tell(ev.TableFetched(token=first.token, table=whole_table()))
    peer.tell(ev.TableUnavailable(token=second.token, answered=False))
    peer.tick(5_000)
    assert len(fetches(peer)) == 2
    peer.fsync()
    assert len(peer.said.load) == 3


def test_a_table_as_of_where_the_own_batches_begin_is_enough():
    peer = Peer(A, stored(2, 5, sequenced(5, 3), sequenced(6, 4)))
    first = segment(1, 0, 5, known_commit=Offset(5), holders=HOLDERS)
    second = segment(2, 5, 7, known_commit=Offset(5), holders=(A.replica, *HOLDERS))
    peer.learn(shard_map(segment(3, 7), first, second))
    peer.fsync()
    (fetch,) = fetches(peer)
    assert fetch.as_of == 5
    row = (TableBatch(0, 3, Epoch(1), Offset(0), 0),)
    table = TableSnapshot(as_of=Offset(5), producers={PRODUCER: row})
    peer.tell(ev.TableFetched(token=fetch.token, table=table))
    peer.fsync()
    peer.load_own_table()
    request = peer.append(sequence=5)
    peer.fsync()
    peer.ack(B, 8, epoch=3)
    assert peer.accepted(request).base == 7


def test_if_nobody_has_the_past_only_known_producers_are_served():
    peer = Peer(A, stored(2, 5, sequenced(5, 3), sequenced(6, 4)))
    first = segment(1, 0, 5, known_commit=Offset(5), holders=())
    second = segment(2, 5, 7, known_commit=Offset(7), holders=(A.replica,))
    peer.learn(shard_map(segment(3, 7), first, second))
    peer.fsync()
    peer.tell(ev.TableUnavailable(token=fetches(peer)[-1].token, answered=True))
    for _ in range(40):
        peer.tick(250)
        for fetch in fetches(peer):
            peer.tell(ev.TableUnavailable(token=fetch.token, answered=True))
    load = [load for load in peer.said.load if isinstance(load, LoadTable)][-1]
    assert (load.from_store, load.ranges[0].begin) == (False, 5)
    peer.load_own_table()
    assert NoteKind.TABLE_INCOMPLETE in [note.kind for note in peer.notes()]
    assert peer.accepted(peer.append(sequence=4)).base == 6
    assert peer.reply(peer.append(sequence=5)) is None
    stranger = Peer(A)
    stranger.learn(shard_map(segment(3, 7), first, second))
    stranger.fsync()
    for _ in range(41):
        stranger.tick(250)
        for fetch in fetches(stranger):
            stranger.tell(ev.TableUnavailable(token=fetch.token, answered=True))
    refusal = stranger.refused(stranger.append(sequence=0))
    assert (refusal.reason, refusal.taken) == (Reason.PRODUCER_STATE_LOST, Taken.UNKNOWN)
    assert stranger.reply(stranger.append()) is None


# ------------------------------------------------------------------ the kept tail
def taken_over(shard: Shard) -> Peer:
    peer = Peer(B, stored(1, 0, sequenced(0, 0), sequenced(1, 1), commit=1))
    peer.learn(shard)
    peer.fsync()
    peer.load_own_table()
    return peer


def test_a_retry_below_a_known_commit_offset_is_answered_at_once():
    peer = taken_over(after(known=1, holders=(B.replica,)))
    receipt = peer.accepted(peer.append(sequence=0))
    assert (receipt.epoch, receipt.base, receipt.duplicate) == (1, 0, True)


def test_a_retry_of_the_kept_tail_waits_until_acks_stores_have_it():
    peer = taken_over(after(known=1, holders=(B.replica,)))
    request = peer.append(sequence=1)
    assert peer.reply(request) is None
    peer.learn(after(known=1, holders=HOLDERS))
    receipt = peer.accepted(request)
    assert (receipt.epoch, receipt.base, receipt.durable_on) == (1, 1, HOLDERS)


def test_new_appends_do_not_wait_for_the_kept_tail():
    peer = taken_over(after(known=1, holders=(B.replica,)))
    request = peer.append(sequence=2)
    peer.fsync()
    peer.ack(C, 3, epoch=3)
    assert peer.accepted(request).base == 2


def test_retries_that_wait_for_copies_are_bounded_and_end_with_the_primary():
    peer = taken_over(after(known=1, holders=(B.replica,)))
    requests = [peer.append(sequence=1) for _ in range(KEPT_TAIL_WAITERS_MAX + 1)]
    refusal = peer.refused(requests[-1])
    assert (refusal.reason, refusal.taken) == (Reason.OVERLOADED, Taken.UNKNOWN)
    peer.tell(ev.PromiseReceived(request=peer.request(), fence=Epoch(4), epoch=Epoch(3)))
    peer.fsync()
    assert peer.refused(requests[0]).reason is Reason.FENCED


# ------------------------------------------------------------------ giving the table
def asked(peer: Peer, as_of: int, *, or_later: bool = False, since: int = 0) -> TableAnswer:
    request = peer.request()
    peer.tell(
        ev.TableAsked(request=request, as_of=Offset(as_of), or_later=or_later, since=Offset(since))
    )
    if peer.reply(request) is None:
        peer.load_own_table()
    reply = peer.reply(request)
    assert isinstance(reply, TableAnswer)
    return reply


def test_a_replica_gives_its_table_as_of_what_it_knows_to_be_committed():
    peer = Peer(B, stored(1, 0, sequenced(0, 0), sequenced(1, 1), commit=1))
    answer = asked(peer, 1)
    assert answer.table is not None
    assert (answer.table.as_of, len(answer.table.producers[PRODUCER])) == (1, 1)
    assert asked(peer, 2).table is None
    assert asked(peer, 0).table is None
    later = asked(peer, 0, or_later=True)
    assert later.table is not None
    assert later.table.as_of == 1


def test_a_primary_gives_the_table_as_of_its_commit_offset_and_only_changes(primary):
    primary.append(sequence=0)
    primary.fsync()
    primary.ack(B, 1)
    answer = asked(primary, 0, or_later=True)
    assert answer.table is not None
    assert (answer.table.as_of, set(answer.table.producers)) == (1, {PRODUCER})
    assert asked(primary, 0, or_later=True, since=1).table.producers == {}
