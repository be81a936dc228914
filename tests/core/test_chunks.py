"""Chunks are cut at the same offsets wherever the same batches are, and trims drop no more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerd.core import durable
from peerd.core.check import InvariantViolation
from peerd.core.chunks import Chunk, Cut, cut, find_cut, uncut_after
from peerd.core.durable import DropTrimmed, FillSealed, LearnMap
from peerd.core.effects import FetchTable
from peerd.core.ids import Epoch, Offset
from peerd.testing.sim.store import SimStore
from tests.core.test_durable import adopt, append, fill, install, learn, promise, refused, run
from tests.core.words import SHARD, A, B, Peer, batch, segment, shard_map


def drop(trimmed_to: int, open_epoch: int = 1) -> DropTrimmed:
    return DropTrimmed(shard=SHARD, open_epoch=Epoch(open_epoch), trimmed_to=Offset(trimmed_to))


# ------------------------------------------------------------------ cutting
def test_a_chunk_ends_with_the_batch_that_fills_it():
    batches = [batch(base) for base in range(7)]
    chunks, rest = cut(0, batches, 3)
    assert chunks == [Chunk(end=3, payload_bytes=3), Chunk(end=6, payload_bytes=3)]
    assert rest == 1 == uncut_after(0, batches, 3)


@given(st.lists(st.integers(1, 4), max_size=30), st.integers(1, 9), st.data())
def test_the_cuts_do_not_depend_on_how_batches_came(counts, chunk_bytes, data):
    batches, base = [], 0
    for count in counts:
        batches.append(batch(base, count))
        base += count
    whole, rest = cut(0, batches, chunk_bytes)
    at = data.draw(st.integers(0, len(batches)))
    one, carried = cut(0, batches[:at], chunk_bytes)
    other, left = cut(carried, batches[at:], chunk_bytes)
    assert (one + other, left) == (whole, rest)
    for chunk in whole:  # a copy that begins at a cut
        behind = [each for each in batches if each.base >= chunk.end]
        assert cut(0, behind, chunk_bytes)[0] == [each for each in whole if each.end > chunk.end]


CHUNKS = [Chunk(end=Offset(end), payload_bytes=100) for end in (30, 20, 10)]


@pytest.mark.parametrize(
    ("before", "keep_bytes", "expected"),
    [
        (99, 0, Cut(offset=30, kept_bytes=7)),
        (29, 0, Cut(offset=20, kept_bytes=107)),
        (9, 0, Cut(offset=2, kept_bytes=307)),
        (99, 8, Cut(offset=20, kept_bytes=107)),
        (99, 207, Cut(offset=10, kept_bytes=207)),
        (99, 208, Cut(offset=2, kept_bytes=307)),
        (15, 150, Cut(offset=10, kept_bytes=207)),
    ],
)
def test_the_last_cut_that_keeps_enough(before, keep_bytes, expected):
    found = find_cut(
        CHUNKS, first=Offset(2), uncut_bytes=7, before=Offset(before), keep_bytes=keep_bytes
    )
    assert found == expected


# ------------------------------------------------------------------ what a store drops
def test_the_open_segment_keeps_its_begin_and_loses_its_front():
    state = run(adopt(1, 0), append(1, batch(0, 2), batch(2, 2), commit=4), drop(2))
    kept = state.segments[1]
    assert (kept.begin, kept.first, kept.end, kept.commit) == (0, 2, 4, 4)
    assert run(append(1, batch(4), commit=5), state=state).segments[1].first == 2


def test_a_trim_proves_what_it_drops_committed_and_the_table_covers_it_first():
    state = run(adopt(1, 0), append(1, batch(0, 2), batch(2, 2)), drop(2))
    assert (state.segments[1].commit, state.table_as_of) == (2, 2)


def test_dropping_promises_the_open_epoch():
    state = run(fill(1, 0, 4, batch(0, 2)), drop(2, open_epoch=12))
    assert state.promised == 12
    refused(state, adopt(11, 9))


def test_a_trim_beyond_the_end_of_a_replica_stops_it():
    state = run(adopt(1, 0), append(1, batch(0, 2)))
    with pytest.raises(InvariantViolation, match="passes no replica"):
        durable.apply(state, drop(3))


def test_a_trim_never_goes_back_and_asked_again_changes_nothing():
    state = run(adopt(1, 0), append(1, batch(0, 2), batch(2, 2), commit=4), drop(4))
    assert run(drop(4), drop(2), state=state) == state


def test_a_short_copy_of_a_sealed_segment_goes_on_at_the_trim():
    state = run(fill(1, 0, 6, batch(0, 2)), drop(4, open_epoch=9))
    kept = state.segments[1]
    assert (kept.begin, kept.first, kept.end, kept.seal) == (0, 4, 4, 6)
    done = run(fill(1, 0, 6, batch(4, 2)), state=state)
    assert done.segments[1].end == 6


def test_a_copy_below_the_trim_begins_there():
    late = FillSealed(
        shard=SHARD,
        epoch=Epoch(1),
        begin=Offset(0),
        end=Offset(6),
        open_epoch=Epoch(9),
        batches=(batch(4, 2),),
        trimmed_to=Offset(4),
    )
    kept = run(late).segments[1]
    assert (kept.begin, kept.first, kept.end) == (0, 4, 6)


def test_an_epoch_that_left_the_map_is_dropped_if_all_that_was_committed_is_trimmed():
    state = run(adopt(1, 0), append(1, batch(0, 2), batch(2), commit=2))
    gone = LearnMap(shard=SHARD, open_epoch=Epoch(3), dead=(Epoch(1),), trimmed_to=Offset(2))
    assert not run(gone, state=state).segments
    with pytest.raises(InvariantViolation, match="nothing that is kept"):
        durable.apply(state, LearnMap(shard=SHARD, open_epoch=Epoch(3), dead=(Epoch(1),)))


def test_what_is_prepared_and_what_is_not_sealed_here_is_left_alone():
    state = run(adopt(1, 0), append(1, batch(0, 2), commit=2), adopt(2, 2), append(2, batch(2)))
    after = run(drop(2, open_epoch=1), state=state)
    assert (after.segments[1].first, after.segments[2]) == (2, state.segments[2])


def test_a_store_drops_what_a_late_fence_asks_about_and_answers_the_same_end():
    state = run(adopt(1, 0), append(1, batch(0, 2), batch(2, 2), commit=4), promise(3), drop(4))
    assert (state.segments[1].begin, state.segments[1].end, state.promised) == (0, 4, 3)


def test_a_table_that_stands_before_the_trim_does_not_jump_over_it():
    state = run(adopt(3, 4), append(3, batch(4), batch(5), batch(6), commit=7), drop(6, 3))
    assert state.table_as_of == 0
    state = run(install(5), append(3, batch(7), commit=8), state=state)
    assert state.table_as_of == 5
    assert run(install(6), state=state).table_as_of == 8


# ------------------------------------------------------------------ the replica
def test_a_shadow_whose_table_stands_before_the_trim_fetches_it_as_of_the_trim():
    store = SimStore(SHARD)
    for operation in (adopt(2, 4), append(2, batch(4), batch(5), commit=6)):
        store.submit(operation)
    store.commit()
    peer = Peer(B, store)
    sealed = segment(1, 0, 4, known_commit=Offset(4), holders=(A.replica,))
    peer.learn(shard_map(segment(2, 4), sealed, trimmed_to=Offset(5)))
    peer.fsync()
    peer.tick(0)
    (fetch,) = [load for load in peer.said.load if isinstance(load, FetchTable)]
    assert (fetch.source, fetch.as_of, fetch.or_later) == (A.replica, 5, True)


def test_a_replica_drops_what_the_map_calls_trimmed_and_keeps_its_table():
    store = SimStore(SHARD)
    for operation in (adopt(1, 0), append(1, batch(0), batch(1), commit=2), learn(2, {1: 2})):
        store.submit(operation)
    store.commit()
    peer = Peer(B, store)
    sealed = segment(1, 0, 2, holders=(A.replica, B.replica))
    entry = shard_map(segment(2, 2), sealed, trimmed_to=Offset(1))
    peer.learn(entry)
    peer.fsync()
    assert list(store.batches[Epoch(1)]) == [1]
    peer.learn(shard_map(segment(2, 2), sealed, trimmed_to=Offset(2)))
    peer.fsync()
    assert (store.batches[Epoch(1)], store.state.table_as_of) == ({}, 2)
    assert peer.replica.trim_limit(Epoch(1)) == 2
    assert peer.replica.trim_limit(Epoch(2)) is None
