"""A primary without a vote. §1: "then neither its own fsync nor its own word counts anywhere"."""

from dataclasses import replace

import pytest

from peerd.core import events as ev
from peerd.core.effects import SegmentOpened, Stall, TailAnswered
from peerd.core.errors import Reason
from peerd.core.ids import Epoch, Offset, Tick
from peerd.core.messages import Adopt, Begin, Frame, Ready
from tests.core.words import FIRST_MAP, SHARD, A, B, C, D, Peer, plan, segment, shard_map

MIRRORED = plan(A, "bc", non_voters="a")


@pytest.fixture
def mirror() -> Peer:
    """a, which orders epoch 1 for the voters b and c, and is at risk."""
    peer = Peer(A)
    peer.learn(shard_map(segment(1, 0, plan=MIRRORED)))
    peer.fsync()
    for other in (B, C):
        peer.tell(ev.StreamUp(replica=other.replica))
        peer.ack(other, 0)
    peer.forget()
    return peer


def prepared(the_plan, epoch: int = 2):
    return replace(FIRST_MAP, prepared=segment(epoch, plan=the_plan))


def test_its_own_fsync_acknowledges_nothing(mirror):
    request = mirror.append()
    mirror.fsync()
    mirror.ack(B, 1)
    assert mirror.reply(request) is None
    mirror.ack(C, 1)
    assert mirror.accepted(request).durable_on == (B.replica, C.replica)


def test_it_acknowledges_what_its_own_disk_does_not_have_yet(mirror):
    request = mirror.append()
    mirror.ack(B, 1)
    mirror.ack(C, 1)
    assert mirror.accepted(request).base == 0
    assert mirror.store.state.segments[Epoch(1)].end == 0
    mirror.fsync()
    assert mirror.store.state.segments[Epoch(1)].end == 1


def test_it_serves_no_further_than_its_own_disk_has_it(mirror):
    mirror.append()
    mirror.ack(B, 1)
    mirror.ack(C, 1)
    assert (mirror.replica.committed, mirror.replica.readable_limit(Epoch(1))) == (1, 0)
    mirror.fsync()
    assert mirror.replica.readable_limit(Epoch(1)) == 1


def test_its_own_word_confirms_no_tail(mirror):
    request = mirror.request()
    mirror.tell(ev.TailAsked(request=request, now=Tick(0)))
    for sender, answer in (
        (B, None),
        (C, TailAnswered(request=request, epoch=Epoch(1), tail=Offset(0))),
    ):
        mirror.tell(
            ev.EpochConfirmed(
                sender=sender.replica, epoch=Epoch(1), round=1, promised=Epoch(1), now=Tick(0)
            )
        )
        assert mirror.reply(request) == answer


def test_its_own_stall_is_not_reported_and_holds_up_no_drain(mirror):
    mirror.append()
    mirror.ack(B, 1)
    mirror.ack(C, 1)
    for _ in range(12):
        mirror.tick(50)
    assert not mirror.reports(Stall)
    assert mirror.replica.is_primary


def test_its_own_promise_ends_it_like_any_primary(mirror):
    request = mirror.append()
    mirror.tell(ev.PromiseReceived(request=mirror.request(), fence=Epoch(2), epoch=Epoch(1)))
    mirror.fsync()
    assert mirror.refused(request).reason is Reason.FENCED


def test_a_primary_at_risk_gives_up_its_vote_and_no_client_notices(primary):
    first = primary.append()
    primary.fsync()
    primary.ack(B, 1)
    assert primary.accepted(first)
    primary.learn(prepared(plan(A, "bcd", non_voters="a")))
    assert primary.replica.epoch == 2
    (opened,) = primary.reports(SegmentOpened)
    assert (opened.epoch, opened.begin) == (2, 1)
    second = primary.append()
    primary.fsync()
    primary.ack(B, 2, epoch=2)
    assert primary.reply(second) is None
    primary.ack(D, 2, epoch=2)
    assert primary.accepted(second).durable_on == (B.replica, D.replica)


def test_it_takes_its_vote_back_by_another_switch(mirror):
    mirror.learn(prepared(plan(A, "abc")))
    assert mirror.replica.epoch == 2
    request = mirror.append()
    mirror.ack(B, 1, epoch=2)
    assert mirror.reply(request) is None
    mirror.fsync()
    assert mirror.accepted(request).durable_on == (A.replica, B.replica)


def test_it_hands_over_and_does_not_name_itself_as_a_holder(mirror):
    mirror.append()
    mirror.fsync()
    mirror.ack(B, 1)
    mirror.ack(C, 1)
    mirror.learn(shard_map(segment(1, 0, plan=MIRRORED), prepared=segment(2, plan=plan(B, "bc"))))
    ready = Ready(shard=SHARD, epoch=Epoch(2), sender=B, table_as_of=Offset(0))
    mirror.tell(ev.ReadyReceived(sender=B.replica, message=ready))
    (begin,) = mirror.sent(B, Begin)
    assert (begin.begin, begin.holders) == (1, (B.replica, C.replica))


def test_a_mirror_may_take_over_from_another_primary():
    """The next primary need not vote either: it begins by `Begin`, like any."""
    peer = Peer(D)
    the_plan = plan(D, "bc", non_voters="d")
    peer.learn(prepared(the_plan))
    peer.fsync()
    peer.load_own_table()
    begin = Begin(
        shard=SHARD,
        old_epoch=Epoch(1),
        epoch=Epoch(2),
        boot=D.boot,
        begin=Offset(0),
        plan=the_plan,
        table=peer.store.table(),
        holders=(),
        timestamp_ms=0,
    )
    request = peer.request()
    peer.tell(
        ev.BeginReceived(request=request, sender=A.replica, message=begin, now=Tick(peer.now))
    )
    assert peer.reply(request).begun
    assert [message.begin for message in peer.sent(B, Adopt)] == [0]
    append = peer.append()
    assert len(peer.sent(C, Frame)) == 1
    for voter in (B, C):
        peer.ack(voter, 1, epoch=2)
    assert peer.accepted(append).epoch == 2
