"""Gaps: G10, "What cannot be kept is said: … never silence and never invented data"."""

from dataclasses import replace

import pytest

from peerd.core import events as ev
from peerd.core.check import InvariantViolation
from peerd.core.durable import AdoptEpoch, AppendBatches, LearnMap, StoredShard, apply
from peerd.core.effects import FetchTable
from peerd.core.errors import Reason
from peerd.core.ids import Epoch, Offset, Tick
from peerd.core.limits import Limits
from peerd.core.producer import TableSnapshot
from peerd.core.shard_map import Gap, SkippedEpochs, plan_of_nobody
from peerd.core.table_search import sources_of
from peerd.testing.sim.store import SimStore
from tests.core.words import SHARD, A, B, C, Peer, batch, segment, shard_map

GAP = Gap(begin=Offset(3), end=Offset(100), epochs=(Epoch(1),), why="burned")
BEHIND = shard_map(
    segment(2, 100), segment(1, 0, 3, known_commit=Offset(2), holders=(B.replica,)), gaps=(GAP,)
)
MINUTE = 60_000
KEPT_MS = 7_000
"""The time of the records before the gap; the clock of the primary behind it is slow."""


@pytest.mark.parametrize(
    "gaps",
    [(), (replace(GAP, end=Offset(99)),), (GAP, replace(GAP, begin=Offset(200), end=Offset(201)))],
    ids=["none", "too short", "beyond the open segment"],
)
def test_segments_and_gaps_tile(gaps):
    with pytest.raises(InvariantViolation):
        replace(BEHIND, gaps=gaps)


def test_a_gap_is_not_empty():
    with pytest.raises(InvariantViolation):
        replace(GAP, end=GAP.begin)


# ------------------------------------------------------------------ a store that comes back
def stored(end: int, commit: int) -> SimStore:
    store = SimStore(SHARD)
    store.submit(AdoptEpoch(shard=SHARD, epoch=Epoch(1), begin=Offset(0)))
    batches = tuple(batch(base, timestamp_ms=KEPT_MS) for base in range(end))
    store.submit(AppendBatches(shard=SHARD, epoch=Epoch(1), batches=batches, commit=Offset(commit)))
    store.commit()
    return store


def test_a_store_that_comes_back_drops_what_the_map_calls_lost_even_if_it_was_committed():
    peer = Peer(C, stored(end=6, commit=5))
    peer.learn(BEHIND)
    peer.fsync()
    kept = peer.store.state.segments[Epoch(1)]
    assert (kept.end, kept.commit, kept.seal) == (3, 3, 3)
    assert peer.replica.readable_limit(Epoch(1)) == 3


def test_a_lost_epoch_without_any_record_left_is_dropped_whole():
    whole = replace(GAP, begin=Offset(0))
    peer = Peer(C, stored(end=6, commit=5))
    peer.learn(shard_map(segment(2, 100), gaps=(whole,), dead_epochs=(Epoch(1),)))
    peer.fsync()
    assert not peer.store.state.segments


# ------------------------------------------------------------------ a LAS that began anew
SKIPPED = SkippedEpochs(first=Epoch(1), last=Epoch(9))
"""Epoch 1 was drawn by a commit that is lost."""


def test_what_a_store_has_of_a_skipped_epoch_is_kept_until_a_person_has_given_it_up():
    peer = Peer(C, stored(end=6, commit=5))
    behind = shard_map(segment(10, 0), skipped=(SKIPPED,))
    peer.learn(behind)
    peer.fsync()
    assert peer.store.state.segments[Epoch(1)].end == 6
    given_up = replace(SKIPPED, given_up=True)
    peer.learn(replace(behind, skipped=(given_up,)))
    peer.fsync()
    assert not peer.store.state.segments


def test_it_is_kept_while_the_segment_behind_the_gap_is_not_open():
    peer = Peer(C, stored(end=6, commit=5))
    peer.learn(shard_map(segment(1, 0), skipped=(replace(SKIPPED, given_up=True),)))
    peer.fsync()
    assert peer.store.state.segments[Epoch(1)].end == 6


def test_an_end_that_a_lost_commit_told_is_none_where_the_map_has_a_gap():
    store = stored(end=6, commit=5)
    store.submit(LearnMap(shard=SHARD, open_epoch=Epoch(2), seals=((Epoch(1), Offset(5)),)))
    store.commit()
    peer = Peer(C, store)
    peer.learn(BEHIND)
    peer.fsync()
    kept = peer.store.state.segments[Epoch(1)]
    assert (kept.end, kept.commit, kept.seal) == (3, 3, 3)


@pytest.mark.parametrize("change", [{"seals": ((Epoch(1), Offset(3)),)}, {"dead": (Epoch(1),)}])
def test_without_a_gap_nothing_committed_is_ever_dropped(change):
    state: StoredShard = stored(end=6, commit=5).state
    learn = LearnMap(shard=SHARD, open_epoch=Epoch(2), **change)
    with pytest.raises(InvariantViolation):
        apply(state, learn)
    apply(state, replace(learn, cut=(Epoch(1),)))


# ------------------------------------------------------------------ the primary behind a gap
@pytest.fixture
def behind() -> Peer:
    """a, primary of the segment behind the gap; it has epoch 1 up to the gap."""
    peer = Peer(A, stored(end=3, commit=2))
    peer.learn(BEHIND)
    peer.fsync()
    peer.load_own_table()
    return peer


def acked(peer: Peer, request, end: int):
    peer.fsync()
    peer.ack(B, end, epoch=2)
    return peer.accepted(request)


def test_it_goes_on_behind_the_gap_and_asks_nobody_for_a_table(behind):
    assert behind.replica.is_primary
    assert not [load for load in behind.said.load if isinstance(load, FetchTable)]
    assert acked(behind, behind.append(), 101).base == 100


def test_time_goes_on_from_that_of_what_was_kept_whatever_the_clock_says(behind):
    assert acked(behind, behind.append(), 101).timestamp_ms == KEPT_MS > 1_000 + behind.now


def test_who_does_not_have_what_was_kept_asks_for_its_time():
    peer = Peer(A)
    peer.learn(BEHIND)
    peer.fsync()
    request = peer.append()
    (fetch,) = [load for load in peer.said.load if isinstance(load, FetchTable)]
    assert fetch.as_of == 3
    table = TableSnapshot(as_of=Offset(3), timestamp_ms=KEPT_MS)
    peer.tell(ev.TableFetched(token=fetch.token, table=table))
    peer.fsync()
    peer.load_own_table()
    receipt = acked(peer, request, 101)
    assert (receipt.base, receipt.timestamp_ms) == (100, KEPT_MS)
    assert peer.refused(peer.append(sequence=0)).reason is Reason.PRODUCER_STATE_LOST


def test_behind_what_the_tier_alone_has_nobody_is_asked_and_every_producer_is_unknown():
    alone = replace(segment(1, 0, 3, known_commit=Offset(3)), plan=plan_of_nobody())
    peer = Peer(A)
    peer.learn(replace(BEHIND, sealed=(alone,), trimmed_to=Offset(3)))
    peer.fsync()
    assert peer.replica.is_primary
    assert not [load for load in peer.said.load if isinstance(load, FetchTable)]
    assert acked(peer, peer.append(), 101).base == 100
    assert peer.refused(peer.append(sequence=0)).reason is Reason.PRODUCER_STATE_LOST


def test_nobody_is_no_source_of_a_table():
    alone = replace(segment(1, 0, 3, known_commit=Offset(3)), plan=plan_of_nobody())
    known = replace(segment(2, 3, 100, known_commit=Offset(100)), holders=(C.replica,))
    shard = shard_map(segment(3, 100), alone, known)
    assert sources_of(shard, A.replica) == (B.replica, C.replica)


def test_a_gap_may_follow_another_before_any_record():
    second = Gap(begin=Offset(100), end=Offset(200), epochs=(Epoch(2),), why="burned, too")
    peer = Peer(A, stored(end=3, commit=2))
    peer.learn(
        replace(BEHIND, open=segment(3, 200), gaps=(GAP, second), dead_epochs=(Epoch(2),)),
    )
    peer.fsync()
    peer.load_own_table()
    request = peer.append()
    peer.fsync()
    peer.ack(B, 201, epoch=3)
    receipt = peer.accepted(request)
    assert (receipt.base, receipt.timestamp_ms) == (200, KEPT_MS)


def test_at_first_every_producer_is_unknown(behind):
    for sequence in (0, 4):
        refusal = behind.refused(behind.append(sequence=sequence))
        assert refusal.reason is Reason.PRODUCER_STATE_LOST


def test_when_nobody_can_be_sending_again_new_producers_are_taken(behind):
    end = 100
    for _ in range(Limits().retry_silence_ms // MINUTE + 1):
        end += 1
        acked(behind, behind.append(), end)
        behind.now += MINUTE
    forgetting = behind.append()
    end += 1
    acked(behind, forgetting, end)
    assert behind.said.persist[-1].batches[0].header.forget_before == 100
    fresh = behind.append(sequence=0)
    assert acked(behind, fresh, end + 1).base == end
    table = behind.request()
    behind.tell(ev.TableAsked(request=table, as_of=Offset(end), or_later=True, since=Offset(0)))
    answer = behind.reply(table).table
    assert (answer.complete, answer.forgotten_before, len(answer.producers)) == (True, 100, 1)


def test_a_new_producer_need_not_wait_for_an_append_without_one(behind):
    for _ in range(Limits().retry_silence_ms // MINUTE + 1):
        refusal = behind.refused(behind.append(sequence=0))
        assert refusal.reason is Reason.PRODUCER_STATE_LOST
        behind.now += MINUTE
    late = behind.refused(behind.append(sequence=4))
    assert late.reason is Reason.PRODUCER_STATE_LOST
    fresh = behind.append(sequence=0)
    assert behind.said.persist[-1].batches[0].header.forget_before == 100
    assert acked(behind, fresh, 101).base == 100
    again = behind.append(sequence=0)
    assert behind.accepted(again).base == 100


def test_a_tail_behind_a_gap_is_confirmed_once_what_was_kept_is_safe(behind):
    request = behind.request()
    behind.tell(ev.TailAsked(request=request, now=Tick(0)))
    behind.tell(
        ev.EpochConfirmed(sender=B.replica, epoch=Epoch(2), round=1, promised=Epoch(2), now=Tick(0))
    )
    assert behind.reply(request) is None
    sealed = replace(BEHIND.sealed[0], holders=(A.replica, B.replica))
    behind.learn(replace(BEHIND, sealed=(sealed,)))
    assert behind.reply(request).tail == 100
