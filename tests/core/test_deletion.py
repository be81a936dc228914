"""A shard whose log was deleted. §8.2: "every `Adopt`, `Replicate`, `Promise` and `Fetch` to a
store that has heard meets the highest promise there is, and is refused".
"""

import random

import pytest

from peerd.core import events as ev
from peerd.core.durable import (
    AdoptEpoch,
    AppendBatches,
    DropShard,
    DropTrimmed,
    FillSealed,
    InstallTable,
    LearnMap,
    PromiseEpoch,
    Refused,
    StoredShard,
    apply,
)
from peerd.core.effects import AppendAccepted, AppendRefused, PromiseAnswered
from peerd.core.errors import Reason, Taken
from peerd.core.ids import DELETED_EPOCH, Epoch, Offset, ReplicaId, ShardId, Tick
from peerd.core.messages import Ack, Adopt, Expect, Frame
from peerd.core.producer import TableSnapshot
from tests.core.words import FIRST_MAP, SHARD, A, B, C, Peer, batch, plan, segment
from tests.core.words import B as OTHER

BATCH = batch(0)
LATE = (
    AdoptEpoch(shard=SHARD, epoch=Epoch(9), begin=Offset(0)),
    AppendBatches(shard=SHARD, epoch=Epoch(1), batches=(), commit=Offset(0)),
    PromiseEpoch(shard=SHARD, fence=Epoch(9), epoch=Epoch(1)),
    LearnMap(shard=SHARD, open_epoch=Epoch(9)),
    DropTrimmed(shard=SHARD, open_epoch=Epoch(9), trimmed_to=Offset(0)),
    FillSealed(
        shard=SHARD,
        epoch=Epoch(1),
        begin=Offset(0),
        end=Offset(1),
        open_epoch=Epoch(9),
        batches=(BATCH,),
    ),
    InstallTable(shard=SHARD, table=TableSnapshot(as_of=Offset(5))),
)


def delete(peer: Peer) -> None:
    peer.tell(ev.ShardDeleted(now=Tick(peer.now)))


def with_records() -> StoredShard:
    state = StoredShard(shard=SHARD)
    for operation in (
        AdoptEpoch(shard=SHARD, epoch=Epoch(1), begin=Offset(0)),
        AppendBatches(shard=SHARD, epoch=Epoch(1), batches=(BATCH,), commit=Offset(1)),
    ):
        _, state = apply(state, operation)
    return state


# ---------------------------------------------------------------------------------- the store
def test_nothing_is_left_but_the_highest_promise():
    _, state = apply(with_records(), DropShard(shard=SHARD))
    assert state == StoredShard(shard=SHARD, promised=DELETED_EPOCH, adopted=Epoch(1))
    assert apply(state, DropShard(shard=SHARD))[1] is state


@pytest.mark.parametrize("operation", LATE, ids=lambda operation: type(operation).__name__)
@pytest.mark.parametrize("state", [StoredShard(shard=SHARD), with_records()], ids=["new", "old"])
def test_what_comes_late_is_refused_for_ever(state, operation):
    _, state = apply(state, DropShard(shard=SHARD))
    outcome, after = apply(state, operation)
    assert isinstance(outcome, Refused)
    assert "deleted" in outcome.why
    assert after is state


# ---------------------------------------------------------------------------------- the primary
def test_a_primary_that_hears_of_it_stops_and_what_waits_is_unknown(primary):
    primary.append()
    waiting = primary.append()
    delete(primary)
    assert not primary.replica.is_primary
    refused = primary.refused(waiting)
    assert (refused.reason, refused.taken) == (Reason.FENCED, Taken.UNKNOWN)
    primary.fsync()
    assert primary.replica.stored.promised == DELETED_EPOCH
    assert not primary.replica.stored.segments
    assert primary.refused(primary.append()).reason is Reason.NOT_PRIMARY
    assert primary.replica.readable_limit(Epoch(1)) is None


def test_acks_that_come_late_acknowledge_nothing(primary):
    request = primary.append()
    primary.fsync()
    delete(primary)
    primary.ack(OTHER, 1)
    assert isinstance(primary.reply(request), AppendRefused)


def test_no_map_entry_or_begin_makes_it_primary_again(primary):
    delete(primary)
    primary.fsync()
    later = FIRST_MAP.__class__(
        shard=SHARD,
        log=FIRST_MAP.log,
        key_hash_low=FIRST_MAP.key_hash_low,
        key_hash_high=FIRST_MAP.key_hash_high,
        open=segment(7, begin=0),
    )
    primary.learn(later)
    assert not primary.replica.is_primary


def test_a_primary_that_sleeps_stops_at_the_first_refusal(primary):
    """Its shadow has heard of the deletion, it has not."""
    request = primary.append()
    primary.fsync()
    expect = Expect(
        shard=SHARD,
        promised=DELETED_EPOCH,
        adopted=Epoch(1),
        end=Offset(0),
        refused_epoch=Epoch(1),
    )
    primary.tell(ev.ExpectReceived(sender=OTHER.replica, message=expect))
    assert not primary.replica.is_primary
    assert primary.refused(request).taken is Taken.UNKNOWN


# ---------------------------------------------------------------------------------- the shadow
def test_a_shadow_that_has_heard_acknowledges_nothing_of_a_primary_that_has_not(shadow):
    adopt = Adopt(shard=SHARD, epoch=Epoch(1), begin=Offset(0), plan=plan())
    shadow.tell(ev.AdoptReceived(sender=A.replica, message=adopt))
    shadow.fsync()
    delete(shadow)
    shadow.forget()
    frame = Frame(shard=SHARD, epoch=Epoch(1), batches=(BATCH,), commit=Offset(0))
    shadow.tell(ev.FrameReceived(sender=A.replica, message=frame))
    shadow.tell(ev.AdoptReceived(sender=A.replica, message=adopt))
    shadow.fsync()
    assert shadow.sent(A, Ack) == []
    assert {message.promised for message in shadow.sent(A, Expect)} == {DELETED_EPOCH}
    assert not shadow.replica.stored.segments


def test_what_was_queued_before_is_dropped_with_the_rest(shadow):
    """The frame is on its way to the store when the deletion is heard."""
    adopt = Adopt(shard=SHARD, epoch=Epoch(1), begin=Offset(0), plan=plan())
    shadow.tell(ev.AdoptReceived(sender=A.replica, message=adopt))
    frame = Frame(shard=SHARD, epoch=Epoch(1), batches=(BATCH,), commit=Offset(0))
    shadow.tell(ev.FrameReceived(sender=A.replica, message=frame))
    delete(shadow)
    shadow.fsync()
    assert not shadow.replica.stored.segments
    assert not any(shadow.store.batches.values())


def test_a_fence_of_a_leader_that_was_deposed_is_answered_with_the_promise(shadow):
    delete(shadow)
    shadow.fsync()
    request = shadow.request()
    shadow.tell(ev.PromiseReceived(request=request, fence=Epoch(5), epoch=Epoch(1)))
    shadow.fsync()
    answer = shadow.reply(request)
    assert isinstance(answer, PromiseAnswered)
    assert (answer.promised, answer.open) == (DELETED_EPOCH, None)


def test_a_restart_finds_the_promise(shadow):
    delete(shadow)
    shadow.fsync()
    again = Peer(B, shadow.store)
    again.learn(FIRST_MAP)
    again.fsync()
    assert again.replica.stored.promised == DELETED_EPOCH
    assert not again.replica.stored.segments


def test_it_has_nothing_to_do_any_more(primary):
    delete(primary)
    primary.fsync()
    assert primary.replica.wake_at is None
    assert primary.replica.stored.shard == ShardId(SHARD)


# ---------------------------------------------------------------------------------- any order
class Three:
    """Replicas a, b and c on links that lose nothing and order nothing; each hears of the deletion
    when it likes.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.peers = {peer.me.replica: peer for peer in map(Peer, (A, B, C))}
        self.wire: list[tuple[ReplicaId, ReplicaId, object]] = []
        self.unheard = list(self.peers)
        self.accepted = self.accepted_late = 0
        self.late: set[object] = set()
        for peer in self.peers.values():
            peer.learn(FIRST_MAP)
        for other in (B, C):
            self.peers[A.replica].tell(ev.StreamUp(replica=other.replica))
        self.collect()

    def collect(self) -> None:
        """Put what was said on the wire, and judge what was answered."""
        for me, peer in self.peers.items():
            self.wire += [(me, send.to, send.message) for send in peer.said.send]
            accepted = {
                reply.request for reply in peer.said.reply if isinstance(reply, AppendAccepted)
            }
            self.accepted += len(accepted)
            self.accepted_late += len(accepted & self.late)
            peer.forget()

    def append(self, peer: Peer) -> None:
        """Two of three voters acknowledge: with two that have dropped it nobody can any more."""
        request = peer.append()
        over = sum(each.replica.stored.promised == DELETED_EPOCH for each in self.peers.values())
        if over >= 2 and peer.me == A:
            self.late.add(request)

    def step(self) -> None:
        me = self.rng.choice(list(self.peers))
        peer = self.peers[me]
        what = self.rng.random()
        if what < 0.25:
            self.append(peer)
        elif what < 0.5:
            peer.fsync()
        elif what < 0.52 and me in self.unheard:
            self.unheard.remove(me)
            delete(peer)
        elif self.wire:
            sender, to, message = self.wire.pop(self.rng.randrange(len(self.wire)))
            if self.rng.random() < 0.2:
                self.wire.append((sender, to, message))
            event = EVENTS[type(message)]
            self.peers[to].tell(event(sender=sender, message=message))
        self.collect()


EVENTS = {
    Adopt: ev.AdoptReceived,
    Frame: ev.FrameReceived,
    Ack: ev.AckReceived,
    Expect: ev.ExpectReceived,
}


@pytest.mark.parametrize("seed", range(60))
def test_in_whatever_order_it_is_heard_nothing_new_is_acknowledged(seed):
    three = Three(seed)
    for _ in range(400):
        three.step()
    for peer in three.peers.values():
        if peer.me.replica in three.unheard:
            delete(peer)
        peer.fsync()
        three.collect()
    assert three.accepted_late == 0
    for peer in three.peers.values():
        peer.fsync()
        assert peer.replica.stored.promised == DELETED_EPOCH
        assert not peer.replica.stored.segments
        assert not any(peer.store.batches.values())
        assert not peer.replica.is_primary
