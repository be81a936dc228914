"""The linearizable tail. §7: "when `acks` voters have answered this round that they promised
nothing above e, and it is still primary, it answers".
"""

from dataclasses import replace

import pytest

from peerd.core import events as ev
from peerd.core.effects import ConfirmAnswer, HigherPromise, TailAnswered
from peerd.core.errors import Reason
from peerd.core.ids import Epoch, Offset, Tick
from peerd.core.limits import TAIL_WAITERS_MAX
from peerd.core.messages import ConfirmEpoch, Ready
from tests.core.words import FIRST_MAP, SHARD, A, B, C, D, Peer, plan, segment, shard_map


def ask(peer: Peer):
    request = peer.request()
    peer.tell(ev.TailAsked(request=request, now=Tick(peer.now)))
    return request


def confirm(peer: Peer, sender, round_number: int, *, promised: int = 1, epoch: int = 1) -> None:
    peer.tell(
        ev.EpochConfirmed(
            sender=sender.replica,
            epoch=Epoch(epoch),
            round=round_number,
            promised=Epoch(promised),
            now=Tick(peer.now),
        )
    )


def told(peer: Peer, request) -> int | Reason | None:
    """The tail, the reason of the refusal, or None: no answer yet."""
    answer = peer.reply(request)
    if answer is None:
        return None
    assert isinstance(answer, TailAnswered)
    return answer.refusal.reason if answer.refusal is not None else answer.tail


def committed(peer: Peer, records: int) -> None:
    peer.append(count=records)
    peer.fsync()
    peer.ack(B, peer.replica.committed + records)


# ------------------------------------------------------------------ a round
def test_a_request_begins_a_round_and_is_answered_when_acks_voters_confirm_it(primary):
    committed(primary, 3)
    request = ask(primary)
    for voter in (B, C):
        question = ConfirmEpoch(shard=SHARD, epoch=Epoch(1), round=1)
        assert primary.sent(voter, ConfirmEpoch) == [question]
    assert told(primary, request) is None
    confirm(primary, C, 1)
    assert primary.reply(request) == TailAnswered(request=request, epoch=Epoch(1), tail=Offset(3))


def test_one_voter_alone_is_not_acks():
    peer = Peer(A)
    peer.learn(shard_map(segment(1, 0, plan=plan(acks=3))))
    peer.fsync()
    request = ask(peer)
    confirm(peer, B, 1)
    confirm(peer, B, 1)
    assert told(peer, request) is None
    confirm(peer, C, 1)
    assert told(peer, request) == 0


def test_where_one_ack_is_enough_the_own_word_is():
    peer = Peer(A)
    peer.learn(shard_map(segment(1, 0, plan=plan(voters="a", acks=1))))
    assert told(peer, ask(peer)) == 0


@pytest.mark.parametrize(
    ("sender", "fields"),
    [(B, {"epoch": 2}), (D, {})],
    ids=["another epoch", "no voter"],
)
def test_an_answer_of_another_epoch_or_of_a_stranger_counts_for_nothing(primary, sender, fields):
    request = ask(primary)
    confirm(primary, sender, 1, **fields)
    assert told(primary, request) is None


def test_an_older_round_serves_nobody(primary):
    first = ask(primary)
    confirm(primary, B, 1)
    assert told(primary, first) == 0
    committed(primary, 2)
    second = ask(primary)
    confirm(primary, C, 1)
    assert told(primary, second) is None
    confirm(primary, C, 2)
    assert told(primary, second) == 2


def test_requests_that_wait_share_the_next_round(primary):
    ask(primary)
    waiting = [ask(primary), ask(primary)]
    assert len(primary.sent(B, ConfirmEpoch)) == 1
    committed(primary, 1)
    confirm(primary, B, 1)
    assert [told(primary, request) for request in waiting] == [None, None]
    assert [message.round for message in primary.sent(B, ConfirmEpoch)] == [1, 2]
    confirm(primary, B, 2)
    assert [told(primary, request) for request in waiting] == [1, 1]


def test_a_voter_that_owes_an_answer_gets_the_newest_question_after_it(primary):
    ask(primary)
    confirm(primary, B, 1)
    request = ask(primary)
    assert [message.round for message in primary.sent(C, ConfirmEpoch)] == [1]
    confirm(primary, C, 1)
    assert [message.round for message in primary.sent(C, ConfirmEpoch)] == [1, 2]
    confirm(primary, C, 2)
    assert told(primary, request) == 0


def test_a_silent_voter_is_asked_again(primary):
    ask(primary)
    primary.tick(249)
    assert len(primary.sent(B, ConfirmEpoch)) == 1
    primary.tick(1)
    assert [message.round for message in primary.sent(B, ConfirmEpoch)] == [1, 1]


# ------------------------------------------------------------------ not primary, or not any more
def test_a_higher_promise_ends_the_primary_and_its_tails(primary):
    request = ask(primary)
    confirm(primary, B, 1, promised=2)
    assert not primary.replica.is_primary
    assert told(primary, request) is Reason.NOT_PRIMARY
    primary.tick(0)
    assert [report.promised for report in primary.reports(HigherPromise)] == [2]


def test_the_own_promise_ends_them_too(primary):
    request = ask(primary)
    primary.tell(ev.PromiseReceived(request=primary.request(), fence=Epoch(2), epoch=Epoch(1)))
    confirm(primary, B, 1)
    assert told(primary, request) is None
    primary.fsync()
    assert told(primary, request) is Reason.NOT_PRIMARY


def test_a_replica_that_is_not_primary_says_where_to_go(shadow):
    request = ask(shadow)
    assert told(shadow, request) is Reason.NOT_PRIMARY
    assert shadow.reply(request).refusal.leader == A


def test_after_a_switch_to_another_process_the_old_primary_answers_nobody(primary):
    committed(primary, 1)
    request = ask(primary)
    prepared = segment(2, plan=plan(B))
    primary.learn(replace(FIRST_MAP, prepared=prepared))
    ready = Ready(shard=SHARD, epoch=Epoch(2), sender=B, table_as_of=Offset(0))
    primary.tell(ev.ReadyReceived(sender=B.replica, message=ready))
    assert told(primary, request) is Reason.MOVED
    confirm(primary, C, 1)
    assert told(primary, ask(primary)) is Reason.MOVED


def test_a_switch_to_itself_confirms_the_next_epoch(primary):
    committed(primary, 1)
    request = ask(primary)
    primary.learn(replace(FIRST_MAP, prepared=segment(2, plan=plan(A))))
    assert primary.replica.epoch == 2
    confirm(primary, B, 1)
    assert told(primary, request) is None
    confirm(primary, C, 1, epoch=2, promised=2)
    assert told(primary, request) == 1
    assert primary.reply(request).epoch == 2


# ------------------------------------------------------------------ bounds
def test_a_tail_that_nobody_confirms_is_refused_in_time(primary):
    request = ask(primary)
    primary.tick(1_999)
    assert told(primary, request) is None
    primary.tick(1)
    assert told(primary, request) is Reason.NOT_ENOUGH_PEERS
    later = ask(primary)
    confirm(primary, B, 2)
    assert told(primary, later) == 0


def test_the_number_of_waiting_requests_is_bounded(primary):
    requests = [ask(primary) for _ in range(TAIL_WAITERS_MAX + 1)]
    assert told(primary, requests[-1]) is Reason.OVERLOADED
    assert told(primary, requests[-2]) is None


def test_a_primary_whose_tails_wait_is_woken(primary):
    committed(primary, 1)
    primary.ack(C, 1)
    primary.tick(5)
    primary.tick(1_000)
    primary.fsync()
    assert primary.replica.wake_at is None
    ask(primary)
    assert primary.replica.wake_at == primary.now + 250


# ------------------------------------------------------------------ voters
def test_a_voter_tells_what_it_has_promised_durably(shadow):
    def asked() -> ConfirmAnswer:
        request = shadow.request()
        message = ConfirmEpoch(shard=SHARD, epoch=Epoch(1), round=7)
        shadow.tell(ev.ConfirmReceived(request=request, message=message))
        return shadow.reply(request)

    assert (asked().round, asked().promised) == (7, 1)
    shadow.tell(ev.PromiseReceived(request=shadow.request(), fence=Epoch(3), epoch=Epoch(1)))
    assert asked().promised == 1
    shadow.fsync()
    assert asked().promised == 3


# ------------------------------------------------------------------ G12
def recovered(*holders, known_commit: int = 2):
    """Epoch 1 ended at 5 with a kept tail from `known_commit` on; A is primary of epoch 2."""
    sealed = segment(
        1,
        0,
        5,
        known_commit=Offset(known_commit),
        holders=tuple(holder.replica for holder in holders),
    )
    return shard_map(segment(2, 5), sealed)


def test_a_tail_waits_until_a_kept_tail_survives_what_an_acknowledged_batch_does():
    peer = Peer(A)
    peer.learn(recovered(A))
    peer.fsync()
    request = ask(peer)
    confirm(peer, B, 1, epoch=2, promised=2)
    assert told(peer, request) is None
    peer.learn(recovered(A, B))
    assert told(peer, request) == 5


def test_it_does_not_wait_where_all_of_the_tail_was_committed():
    peer = Peer(A)
    peer.learn(recovered(A, known_commit=5))
    peer.fsync()
    request = ask(peer)
    confirm(peer, B, 1, epoch=2, promised=2)
    assert told(peer, request) == 5
