"""The primary of a closed segment, which ends a shard (docs/protocol.md §4.3). Literal events."""

from dataclasses import replace

import pytest

from peerd.core import events as ev
from peerd.core.check import InvariantViolation
from peerd.core.durable import AppendBatches, StoredShard
from peerd.core.effects import Effects, SegmentOpened
from peerd.core.errors import Reason, Taken
from peerd.core.ids import Epoch, Offset, RequestId, ShardId, Tick
from peerd.core.limits import Limits
from peerd.core.messages import Adopt, Begin, Frame
from peerd.core.producer import TableSnapshot
from peerd.core.refusals import moved, not_primary
from peerd.core.shard_map import Split
from peerd.core.situation import Situation
from peerd.core.split import Closing
from tests.core.words import FIRST_MAP, SHARD, A, B, C, Peer, plan, segment, shard_map

CHILDREN = (ShardId(2), ShardId(3))
CLOSED = replace(plan(), closed=True)
PENDING = replace(FIRST_MAP, prepared=segment(2, plan=CLOSED), split=Split(key_hash=5))


def split_map(end: int, epoch: int = 2, by=CLOSED):
    """The committed split, with a chain that fits it."""
    sealed = (segment(1, 0, end, known_commit=Offset(end), holders=by.voters),) if end else ()
    split = Split(key_hash=5, end=Offset(end), children=CHILDREN)
    return shard_map(segment(epoch, end, plan=by), *sealed, split=split)


def commit(peer: Peer, **append) -> None:
    request = peer.append(**append)
    end = peer.said.persist[-1].batches[-1].end
    peer.fsync()
    peer.ack(B, end)
    peer.accepted(request)


def closing(primary: Peer) -> Peer:
    """a has committed one batch of a producer and switched to the closed segment itself."""
    commit(primary, sequence=0)
    primary.learn(PENDING)
    assert primary.reports(SegmentOpened)[-1].begin == 1
    primary.fsync()
    primary.forget()
    return primary


def refusals_say_split(peer: Peer, *requests) -> None:
    for request in requests:
        refusal = peer.refused(request)
        assert (refusal.reason, refusal.taken) == (Reason.SPLIT, Taken.NO)
        assert (refusal.first_offset, refusal.children) == (1, CHILDREN)


# ------------------------------------------------------------------ what is asked of it
def test_it_orders_nothing_and_says_split_once_the_map_has_it(primary):
    """spec mutant `split-answered-early`: a fence may still recover e beyond X until then."""
    peer = closing(primary)
    new, of_producer = peer.append(), peer.append(sequence=1)
    assert peer.reply(new) is None
    assert peer.reply(of_producer) is None
    peer.learn(split_map(1))
    refusals_say_split(peer, new, of_producer, peer.append(), peer.append(sequence=1))
    assert not [each for each in peer.said.persist if isinstance(each, AppendBatches)]
    assert not peer.sent(kind=Frame)


def test_a_retry_of_what_the_parent_has_gets_the_first_answer_before_and_after(primary):
    """spec mutants `split-without-table`, `table-not-carried`"""
    peer = closing(primary)
    before = peer.accepted(peer.append(sequence=0))
    peer.learn(split_map(1))
    after = peer.accepted(peer.append(sequence=0))
    for answer in (before, after):
        assert (answer.shard, answer.epoch, answer.base) == (SHARD, 1, 0)
        assert answer.duplicate


def test_what_was_in_flight_beyond_x_waits_for_the_split_and_is_then_not_taken(primary):
    commit(primary, sequence=0)
    tail = primary.append(sequence=1)
    retry = primary.append(sequence=1)
    primary.tell(ev.StreamDown(replica=C.replica))
    primary.learn(PENDING)
    queued = primary.append(sequence=2)
    primary.fsync()
    primary.ack(B, 2)
    assert primary.reply(tail) is None
    primary.learn(split_map(1))
    refusals_say_split(primary, tail, retry, queued)


def test_if_a_fence_undoes_the_split_the_tail_is_in_doubt_and_the_rest_was_not_taken(primary):
    commit(primary, sequence=0)
    tail = primary.append(sequence=1)
    primary.tell(ev.StreamDown(replica=C.replica))
    primary.learn(PENDING)
    queued = primary.append(sequence=2)
    primary.tell(
        ev.PromiseReceived(
            request=primary.request(), fence=Epoch(3), epoch=Epoch(1), prepared=Epoch(2)
        )
    )
    primary.fsync()
    assert primary.refused(tail).reason is Reason.FENCED
    assert primary.refused(tail).taken is Taken.UNKNOWN
    assert primary.refused(queued).taken is Taken.NO
    assert primary.refused(queued).reason is Reason.NOT_PRIMARY


def test_a_closed_segment_that_is_not_the_open_one_says_nothing_of_a_later_split(primary):
    """spec mutant `split-answered-by-dead`"""
    peer = closing(primary)
    waits = peer.append()
    later = replace(plan(B, "bca"), closed=True)
    sealed = segment(1, 0, 2, known_commit=Offset(2), holders=later.voters)
    split = Split(key_hash=5, end=Offset(2), children=CHILDREN)
    peer.learn(shard_map(segment(4, 2, plan=later), sealed, split=split))
    assert peer.refused(waits).reason is Reason.NOT_PRIMARY
    assert not peer.replica.is_primary


def test_who_waits_in_doubt_is_told_so_and_who_was_never_ordered_that_it_was_not_taken():
    situation = Situation(A, StoredShard(shard=SHARD), Limits())
    closing = Closing(situation, Epoch(2))
    closing.inherit((RequestId(1),))
    situation.learn_map(split_map(2, epoch=4))
    out = Effects()
    closing.map_learned(out)
    assert not out.reply, "the map's split is not of this segment"
    closing.refuse_all(lambda taken: moved(B, Epoch(4), taken), lambda: not_primary(B), out)
    assert [(reply.request, reply.refusal.taken) for reply in out.reply] == [(1, Taken.UNKNOWN)]


def test_what_the_table_cannot_tell_is_not_called_split(primary):
    peer = closing(primary)
    peer.learn(split_map(1))
    commit_again = peer.append(sequence=0, count=2)
    assert peer.refused(commit_again).reason is Reason.SEQUENCE_TOO_OLD
    assert peer.refused(commit_again).taken is Taken.UNKNOWN


def test_who_waits_is_bounded():
    peer = Peer(A, queued_requests_max=1)
    peer.learn(FIRST_MAP)
    peer.fsync()
    peer.learn(replace(PENDING, prepared=segment(2, plan=CLOSED)))
    first, second = peer.append(), peer.append()
    assert peer.reply(first) is None
    assert peer.refused(second).reason is Reason.OVERLOADED


# ------------------------------------------------------------------ who begins it, and after it
def test_another_process_closes_the_shard_with_the_table_that_it_was_sent(shadow):
    by = replace(plan(B, "bac"), closed=True)
    table = TableSnapshot(as_of=Offset(1), producers={})
    begin = Begin(
        shard=SHARD,
        old_epoch=Epoch(1),
        epoch=Epoch(2),
        boot=B.boot,
        begin=Offset(1),
        plan=by,
        table=table,
        holders=(A.replica,),
        timestamp_ms=1_000,
    )
    shadow.tell(
        ev.BeginReceived(
            request=shadow.request(), sender=A.replica, message=begin, now=Tick(shadow.now)
        )
    )
    assert shadow.replica.is_primary
    assert shadow.sent(A, Adopt)[-1].plan.closed
    shadow.fsync()
    waits = shadow.append(sequence=0)
    assert shadow.reply(waits) is None
    shadow.learn(split_map(1, by=by))
    refusals_say_split(shadow, waits)


def test_after_a_failover_the_next_primary_answers_for_the_parent(shadow):
    by = replace(plan(B, "bac"), closed=True)
    shadow.learn(split_map(0, epoch=5, by=by))
    shadow.fsync()
    refusal = shadow.refused(shadow.append(sequence=0))
    assert (refusal.reason, refusal.first_offset) == (Reason.SPLIT, 0)


# ------------------------------------------------------------------ the values
def test_a_shard_is_closed_exactly_if_it_is_split():
    with pytest.raises(InvariantViolation):
        shard_map(segment(2, 0, plan=CLOSED))
    with pytest.raises(InvariantViolation):
        replace(split_map(1), prepared=segment(3, plan=plan()))
    with pytest.raises(InvariantViolation):
        Split(key_hash=5, end=Offset(3))
