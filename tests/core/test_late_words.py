"""Messages that come late, twice or to the wrong one, and answers that nobody waits for any more:
they change nothing. Literal events.
"""

from dataclasses import replace

import pytest

from peerd.core import events as ev
from peerd.core.batch import BatchHeader
from peerd.core.durable import (
    LearnMap,
    StoredShard,
    apply,
)
from peerd.core.effects import (
    BeginAnswer,
    Declined,
    FetchTable,
    HigherPromise,
    LoadTable,
    NoteKind,
    SegmentOpened,
    Stall,
)
from peerd.core.errors import Reason
from peerd.core.ids import Epoch, Offset, RequestId
from peerd.core.messages import Adopt, Begin, Expect, Frame, Ready
from peerd.core.producer import TableSnapshot
from tests.core.words import (
    FIRST_MAP,
    PRODUCER,
    SHARD,
    A,
    B,
    C,
    D,
    Peer,
    SimStore,
    batch,
    plan,
    segment,
    shard_map,
)

HOLDERS = (A.replica, C.replica)
NO_TABLE = TableSnapshot(as_of=Offset(0))


def prepared(epoch: int = 2, **more):
    return replace(FIRST_MAP, prepared=segment(epoch, plan=plan(B, **more)))


def expect(sender, refused: int = 1) -> ev.ExpectReceived:
    message = Expect(
        shard=SHARD,
        promised=Epoch(1),
        adopted=Epoch(1),
        end=Offset(0),
        refused_epoch=Epoch(refused),
    )
    return ev.ExpectReceived(sender=sender.replica, message=message)


def ready(epoch: int = 2, sender=B) -> ev.ReadyReceived:
    message = Ready(shard=SHARD, epoch=Epoch(epoch), sender=sender, table_as_of=Offset(0))
    return ev.ReadyReceived(sender=sender.replica, message=message)


def promise(peer: Peer, fence: int) -> None:
    peer.tell(ev.PromiseReceived(request=peer.request(), fence=Epoch(fence), epoch=Epoch(1)))


def loaded(replica, begin: int = 0, epoch: int = 1, batches=()) -> ev.BatchesLoaded:
    return ev.BatchesLoaded(
        replica=replica.replica, epoch=Epoch(epoch), begin=Offset(begin), batches=batches
    )


# ------------------------------------------------------------------ to one that is no primary
@pytest.mark.parametrize(
    "event",
    [
        expect(C),
        ev.StreamUp(replica=C.replica),
        ev.StreamDown(replica=C.replica),
        loaded(C),
        ev.BatchesUnavailable(replica=C.replica, epoch=Epoch(1), begin=Offset(0)),
        ready(),
        ev.BeginAnswered(sender=B.replica, epoch=Epoch(2), begun=True, promised=Epoch(2)),
        ev.TableLoaded(token=RequestId(9), table=NO_TABLE),
    ],
    ids=lambda event: type(event).__name__,
)
def test_words_for_a_primary_change_nothing_at_another(shadow, event):
    step = shadow.tell(event)
    assert not step.persist + step.send + step.reply + step.report
    assert not shadow.replica.is_primary


def test_an_ack_for_a_primary_that_is_over_changes_nothing(primary):
    request = primary.append()
    promise(primary, 2)
    primary.fsync()
    assert primary.refused(request).reason is Reason.FENCED
    primary.ack(B, 1)
    assert primary.replica.committed == 0


# ------------------------------------------------------------------ to a primary
@pytest.mark.parametrize(
    "event",
    [
        expect(D),
        expect(B, refused=7),
        ev.StreamUp(replica=D.replica),
        ev.StreamDown(replica=D.replica),
        loaded(D),
        loaded(B),
        loaded(B, epoch=7),
        ev.BatchesUnavailable(replica=B.replica, epoch=Epoch(1), begin=Offset(5)),
        ev.BatchesUnavailable(replica=B.replica, epoch=Epoch(7), begin=Offset(0)),
    ],
    ids=lambda event: f"{type(event).__name__}",
)
def test_words_of_strangers_and_of_other_epochs_change_nothing_at_a_primary(primary, event):
    step = primary.tell(event)
    assert step.send == step.load == step.note == ()


def test_many_refusals_make_one_probe(primary):
    primary.tell(expect(B))
    primary.tell(expect(B))
    assert len(primary.sent(B, Adopt)) == 1


def test_an_empty_load_is_asked_for_again_with_the_next_tick():
    peer = Peer(A, recent_bytes_max=1, stream_bytes_max=1)
    peer.learn(FIRST_MAP)
    peer.fsync()
    peer.ack(B, 0)
    peer.ack(C, 0)
    for _ in range(3):
        peer.append()
    peer.fsync()
    peer.ack(B, 1)
    assert [load.begin for load in peer.loads()] == [1]
    peer.tell(loaded(B, 1))
    peer.tick(10)
    assert [load.begin for load in peer.loads()] == [1, 1]


def test_wake_at_is_soon_while_something_is_to_be_acked_and_late_while_one_is_asked(primary):
    primary.append()
    assert primary.replica.wake_at == 50
    primary.fsync()
    primary.ack(B, 1)
    primary.ack(C, 1)
    assert primary.replica.wake_at == 5
    primary.tick(5)
    assert primary.replica.wake_at == 5 + 1_000
    primary.tell(ev.StreamDown(replica=C.replica))
    assert primary.replica.wake_at == 5 + 1_000
    primary.tell(ev.StreamUp(replica=C.replica))
    assert primary.replica.wake_at == 5 + 250


def test_a_replica_without_a_stream_is_told_nothing_and_costs_no_tick(primary):
    """A peer that dies leaves hundreds of idle primaries behind, and none of them may be busy."""
    primary.tell(ev.StreamDown(replica=C.replica))
    primary.forget()
    assert primary.replica.wake_at is None
    for _ in range(8):
        primary.tick(250)
    assert not primary.sent(C)
    primary.tell(ev.StreamUp(replica=C.replica))
    assert primary.sent(C, Adopt)


def test_a_voter_without_a_stream_is_still_reported_while_it_lacks_something(primary):
    primary.tell(ev.StreamDown(replica=C.replica))
    primary.append()
    primary.fsync()
    primary.ack(B, 1)
    for _ in range(4):
        assert primary.replica.wake_at is not None
        primary.tick(250)
    assert C.replica in {report.replica for report in primary.reports(Stall)}
    assert not primary.sent(C, Adopt)


def test_a_primary_may_serve_what_it_has_committed(primary):
    primary.append()
    primary.fsync()
    assert primary.replica.readable_limit(Epoch(1)) == 0
    primary.ack(B, 1)
    assert primary.replica.readable_limit(Epoch(1)) == 1


# ------------------------------------------------------------------ the switch
def test_the_map_again_changes_nothing_of_a_switch_that_is_under_way(primary):
    primary.learn(prepared())
    primary.learn(prepared())
    primary.tell(ready(epoch=9))
    assert primary.replica.is_primary
    assert primary.replica.wake_at == 250


def test_only_the_one_who_was_asked_ends_the_repeating_of_begin(primary):
    primary.learn(prepared())
    primary.tell(ready())
    for sender, epoch in ((C, 2), (B, 3)):
        primary.tell(
            ev.BeginAnswered(
                sender=sender.replica, epoch=Epoch(epoch), begun=True, promised=Epoch(epoch)
            )
        )
    assert primary.replica.wake_at == 250
    primary.tick(100)
    assert len(primary.sent(B, Begin)) == 1


def test_begin_that_was_not_begun_without_a_higher_promise_is_left_to_the_las(primary):
    primary.learn(prepared())
    primary.tell(ready())
    primary.tell(ev.BeginAnswered(sender=B.replica, epoch=Epoch(2), begun=False, promised=Epoch(1)))
    primary.tick(250)
    assert not primary.reports(HigherPromise)


def test_a_primary_that_has_no_table_yet_switches_to_itself_when_it_has_one():
    peer = Peer(A)
    sealed = segment(1, 0, 2, known_commit=Offset(2), holders=HOLDERS)
    peer.learn(shard_map(segment(3, 2), sealed, prepared=segment(4, plan=plan(A, "abd"))))
    peer.fsync()
    peer.tell(ready(epoch=4))
    peer.tick(10)
    assert peer.replica.epoch == 3
    fetch = next(load for load in peer.said.load if isinstance(load, FetchTable))
    peer.tell(ev.TableFetched(token=fetch.token, table=TableSnapshot(as_of=Offset(2))))
    peer.fsync()
    peer.load_own_table()
    peer.tick(10)
    assert peer.replica.epoch == 4


def test_a_primary_that_promised_more_does_not_switch_to_itself(primary):
    promise(primary, 5)
    primary.tell(
        ev.MapLearned(
            shard=replace(FIRST_MAP, prepared=segment(2, plan=plan(A, "abd"))), now=primary.now
        )
    )
    assert not primary.replica.is_primary
    assert NoteKind.STOPPED in [note.kind for note in primary.notes()]


# ------------------------------------------------------------------ the candidate
def candidate(begin: int = 9) -> Peer:
    """b, which shall be primary of epoch 3 after epoch 2 of a, and has nothing of the past."""
    peer = Peer(B)
    sealed = segment(1, 0, begin, known_commit=Offset(begin), holders=(A.replica,))
    peer.learn(shard_map(segment(2, begin), sealed, prepared=segment(3, plan=plan(B))))
    peer.fsync()
    return peer


def loads(peer: Peer, kind: type):
    return [load for load in peer.said.load if isinstance(load, kind)]


def test_a_table_that_comes_after_ready_was_said_is_not_taken():
    peer = candidate()
    peer.tick(1_000)
    peer.load_own_table()
    assert not loads(peer, FetchTable)
    late = candidate()
    late.load_own_table()
    late.tick(1_000)
    (fetch,) = loads(late, FetchTable)
    late.tell(ev.TableFetched(token=fetch.token, table=TableSnapshot(as_of=Offset(9))))
    assert [message.table_as_of for message in late.sent(A, Ready)] == [0]


@pytest.mark.parametrize(
    "table",
    [
        None,
        TableSnapshot(as_of=Offset(9), complete=False),
        TableSnapshot(as_of=Offset(9), since=Offset(5)),
    ],
    ids=["none", "incomplete", "changes that do not meet"],
)
def test_a_table_that_is_of_no_use_does_not_keep_it_from_saying_ready(table):
    peer = candidate()
    peer.load_own_table()
    (fetch,) = loads(peer, FetchTable)
    if table is None:
        peer.tell(ev.TableUnavailable(token=fetch.token, answered=True))
    else:
        peer.tell(ev.TableFetched(token=fetch.token, table=table))
    assert [message.table_as_of for message in peer.sent(A, Ready)] == [0]
    peer.tick(100)
    assert len(peer.sent(A, Ready)) == 1


def test_without_an_own_table_it_asks_for_all_of_it():
    peer = candidate()
    (load,) = loads(peer, LoadTable)
    peer.tell(ev.TableUnavailable(token=load.token, answered=True))
    assert [fetch.since for fetch in loads(peer, FetchTable)] == [0]


def begin_with(peer: Peer, table: TableSnapshot) -> BeginAnswer:
    request = peer.request()
    message = Begin(
        shard=SHARD,
        old_epoch=Epoch(2),
        epoch=Epoch(3),
        boot=B.boot,
        begin=Offset(9),
        plan=plan(B),
        table=table,
        holders=HOLDERS,
        timestamp_ms=0,
    )
    peer.tell(ev.BeginReceived(request=request, sender=A.replica, message=message, now=peer.now))
    reply = peer.reply(request)
    assert isinstance(reply, BeginAnswer)
    return reply


def test_changes_for_a_candidate_without_a_base_are_refused():
    peer = candidate()
    peer.tick(1_000)
    assert not begin_with(peer, TableSnapshot(as_of=Offset(9), since=Offset(4))).begun


def test_an_incomplete_table_is_begun_with_and_not_made_durable():
    peer = candidate()
    assert begin_with(peer, TableSnapshot(as_of=Offset(9), complete=False)).begun
    peer.fsync()
    assert peer.store.state.table_as_of == 0
    assert peer.refused(peer.append(sequence=1)).reason is Reason.PRODUCER_STATE_LOST


# ------------------------------------------------------------------ reports
def test_a_higher_promise_that_the_map_has_passed_is_not_reported(shadow):
    message = Adopt(shard=SHARD, epoch=Epoch(1), begin=Offset(0), plan=plan(A))
    shadow.tell(ev.AdoptReceived(sender=A.replica, message=message))
    shadow.learn(shard_map(segment(3, 0, plan=plan(C))))
    frame = Frame(shard=SHARD, epoch=Epoch(1), commit=Offset(0), batches=(batch(0),))
    shadow.tell(ev.FrameReceived(sender=A.replica, message=frame))
    shadow.fsync()
    shadow.tick(250)
    assert not shadow.reports(HigherPromise)


def test_reports_are_repeated_no_sooner_than_they_should_be(primary):
    primary.learn(replace(FIRST_MAP, prepared=segment(2, plan=plan(A, "abd"))))
    primary.tick(250)
    primary.forget()
    primary.tick(10)
    assert not primary.reports(SegmentOpened)
    primary.tick(240)
    assert len(primary.reports(SegmentOpened)) == 1


def test_a_decline_is_forgotten_when_the_map_is_past_it(primary):
    primary.learn(prepared())
    primary.tick(5_000)
    assert primary.reports(Declined)
    sealed = segment(1, 0, 1, known_commit=Offset(1), holders=(B.replica,))
    primary.learn(shard_map(segment(3, 1, plan=plan(C)), sealed))
    assert primary.replica.wake_at is None


# ------------------------------------------------------------------ a replica's table
def test_an_answer_without_a_whole_table_is_asked_for_again():
    peer = Peer(D)
    with_d = plan(A, "abd")
    sealed = segment(1, 0, 4, known_commit=Offset(4), holders=HOLDERS)
    peer.learn(shard_map(segment(2, 4, plan=with_d), sealed))
    message = Adopt(shard=SHARD, epoch=Epoch(2), begin=Offset(4), plan=with_d)
    peer.tell(ev.AdoptReceived(sender=A.replica, message=message))
    peer.fsync()
    peer.tick(0)
    (fetch,) = loads(peer, FetchTable)
    peer.tell(ev.TableUnavailable(token=fetch.token, answered=True))
    peer.tick(10)
    assert len(loads(peer, FetchTable)) == 1
    peer.tick(1_000)
    assert len(loads(peer, FetchTable)) == 2
    assert peer.store.state.table_as_of == 0


# ------------------------------------------------------------------ the search for the table
def searching(*, sources=HOLDERS) -> Peer:
    """a, primary of epoch 3 from offset 2, without the past."""
    peer = Peer(A, table_timeout_ms=5_000)
    sealed = segment(1, 0, 2, known_commit=Offset(2), holders=sources)
    peer.learn(shard_map(segment(3, 2), sealed))
    peer.fsync()
    return peer


def test_what_a_primary_looks_for_is_waited_for():
    assert [fetch.is_waited_for for fetch in loads(searching(), FetchTable)] == [True]


def fail_all(peer: Peer) -> None:
    for fetch in loads(peer, FetchTable):
        peer.tell(ev.TableUnavailable(token=fetch.token, answered=True))


def test_after_a_round_without_success_another_begins():
    peer = searching()
    for _ in range(2):
        fail_all(peer)
    asked = len(loads(peer, FetchTable))
    peer.tick(100)
    assert len(loads(peer, FetchTable)) == asked
    peer.tick(250)
    assert len(loads(peer, FetchTable)) == asked + 1


def test_a_table_from_beyond_the_begin_or_without_the_past_is_not_taken():
    for table in (
        TableSnapshot(as_of=Offset(3)),
        TableSnapshot(as_of=Offset(2), complete=False),
    ):
        peer = searching()
        (fetch,) = loads(peer, FetchTable)
        peer.tell(ev.TableFetched(token=fetch.token, table=table))
        assert [each.source for each in loads(peer, FetchTable)] == [B.replica, C.replica]


def test_a_table_that_does_not_reach_the_begin_is_not_enough():
    peer = searching()
    (fetch,) = loads(peer, FetchTable)
    peer.tell(ev.TableFetched(token=fetch.token, table=TableSnapshot(as_of=Offset(1))))
    peer.fsync()
    assert [each.source for each in loads(peer, FetchTable)] == [B.replica, C.replica]


def test_an_own_table_that_cannot_be_read_is_fetched():
    store = SimStore(SHARD)
    peer = Peer(A, store)
    peer.learn(FIRST_MAP)
    request = peer.append(sequence=0)
    peer.fsync()
    peer.ack(B, 1)
    peer.accepted(request)
    peer.append()
    peer.fsync()
    peer.ack(B, 2)
    again = Peer(B, store)
    sealed = segment(1, 0, 2, known_commit=Offset(2), holders=HOLDERS)
    again.learn(shard_map(segment(3, 2, plan=plan(B)), sealed))
    again.fsync()
    (load,) = loads(again, LoadTable)
    again.tell(ev.TableUnavailable(token=load.token, answered=True))
    (fetch,) = loads(again, FetchTable)
    assert fetch.since == 2


def test_a_fetched_table_after_giving_up_is_not_taken():
    peer = searching()
    (fetch,) = loads(peer, FetchTable)
    peer.tick(5_000)
    assert NoteKind.TABLE_INCOMPLETE in [note.kind for note in peer.notes()]
    peer.tell(ev.TableFetched(token=fetch.token, table=TableSnapshot(as_of=Offset(2))))
    assert peer.refused(peer.append(sequence=0)).reason is Reason.PRODUCER_STATE_LOST


def is_without_table(peer: Peer) -> bool:
    return NoteKind.TABLE_INCOMPLETE in [note.kind for note in peer.notes()]


def test_a_connected_source_that_has_not_answered_is_waited_for():
    peer = searching()
    peer.tell(ev.StreamUp(replica=B.replica))
    peer.tick(5_000)
    assert not is_without_table(peer)
    late = next(each for each in loads(peer, FetchTable) if each.source == B.replica)
    for fetch in loads(peer, FetchTable):
        if fetch is not late:
            peer.tell(ev.TableUnavailable(token=fetch.token, answered=False))
    peer.tick(3_000)
    assert not is_without_table(peer)
    late = [each for each in loads(peer, FetchTable) if each.source == B.replica][-1]
    peer.tell(ev.TableFetched(token=late.token, table=TableSnapshot(as_of=Offset(2))))
    peer.fsync()
    peer.load_own_table()
    request = peer.append(sequence=0)
    peer.fsync()
    peer.ack(B, 3, epoch=3)
    assert peer.accepted(request).base == 2


@pytest.mark.parametrize(
    "what",
    [
        pytest.param(ev.TableUnavailable, id="it says that it has none"),
        pytest.param(ev.StreamDown, id="its stream breaks"),
    ],
)
def test_a_source_without_hope_prolongs_nothing(what):
    peer = searching(sources=(B.replica,))
    peer.tell(ev.StreamUp(replica=B.replica))
    peer.tick(5_000)
    assert not is_without_table(peer)
    fetch = next(each for each in loads(peer, FetchTable) if each.source == B.replica)
    if what is ev.StreamDown:
        peer.tell(ev.StreamDown(replica=B.replica))
    else:
        peer.tell(ev.TableUnavailable(token=fetch.token, answered=True))
    peer.tick(300)
    assert is_without_table(peer)


def test_a_silent_source_is_not_waited_for_for_ever():
    peer = searching()
    peer.tell(ev.StreamUp(replica=B.replica))
    for _ in range(11):
        peer.tick(5_000)
    assert not is_without_table(peer)
    peer.tick(5_000)
    assert is_without_table(peer)


# ------------------------------------------------------------------ the durable rules
def test_the_map_may_name_epochs_that_a_store_has_not():
    state = StoredShard(shard=SHARD)
    operation = LearnMap(
        shard=SHARD, open_epoch=Epoch(4), seals=((Epoch(1), Offset(3)),), dead=(Epoch(2),)
    )
    _, after = apply(state, operation)
    assert after == replace(state, promised=Epoch(4))


def test_a_header_survives_its_packing():
    for producer in (b"", PRODUCER):
        header = BatchHeader(
            record_count=3,
            payload_crc=4,
            key_hash_low=5,
            key_hash_high=6,
            producer=producer,
            first_sequence=7,
            timestamp_ms=8,
            payload_bytes=9,
        )
        assert BatchHeader.unpack(header.pack()) == header
