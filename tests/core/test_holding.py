"""What a store lets go, and what it says of its copies (docs/protocol.md §8.4)."""

from dataclasses import replace

import pytest

from peerd.core import durable
from peerd.core.check import InvariantViolation
from peerd.core.durable import DropTrimmed, FillSealed, LearnMap, Stored, StoredSegment, StoredShard
from peerd.core.holding import holds, lacking, unlisted
from peerd.core.ids import Epoch, Offset
from peerd.core.learning import learned
from peerd.core.shard_map import Release, Shard
from tests.core.words import SHARD, A, B, C, D, batch, segment, shard_map

ME = A.replica
OTHERS = (B.replica, C.replica, D.replica)
RELEASED = (Release(holder=ME, version=7),)


def entry(*, trimmed_to: int = 0, **past: object) -> Shard:
    """Epoch 1 holds [0, 10), epoch 2 is open from there."""
    sealed = segment(1, 0, 10, known_commit=Offset(10), **{"holders": OTHERS, **past})
    return shard_map(segment(2, 10), sealed, trimmed_to=Offset(trimmed_to))


def stored(
    end: int = 10, *, seal: int | None = 10, trimmed_to: int = 0, promised: int = 2
) -> StoredShard:
    here = StoredSegment(
        epoch=Epoch(1),
        begin=Offset(0),
        end=Offset(end),
        commit=Offset(end),
        seal=None if seal is None else Offset(seal),
        trimmed_to=Offset(trimmed_to),
    )
    return StoredShard(
        shard=SHARD,
        promised=Epoch(promised),
        adopted=Epoch(1),
        segments={Epoch(1): here},
        table_as_of=Offset(end),
    )


NOTHING = StoredShard(shard=SHARD, promised=Epoch(2))


def after(state: StoredShard, *operations: durable.StoreOperation) -> StoredShard:
    for operation in operations:
        outcome, state = durable.apply(state, operation)
        assert isinstance(outcome, Stored), outcome
    return state


# ---------------------------------------------------------------------------------- letting go
def test_a_store_lets_go_what_the_map_tells_it_to():
    operations = learned(entry(released=RELEASED), stored(), ME)
    assert operations == (LearnMap(shard=SHARD, open_epoch=Epoch(2), released=(Epoch(1),)),)
    state = after(stored(), *operations)
    assert not state.segments
    assert (state.promised, state.adopted, state.table_as_of) == (2, 1, 10)
    assert not learned(entry(released=RELEASED), state, ME)


@pytest.mark.parametrize(
    "past",
    [
        pytest.param({}, id="not listed"),
        pytest.param({"holders": (*OTHERS, ME)}, id="one too many"),
        pytest.param({"released": (Release(holder=D.replica, version=7),)}, id="somebody else"),
        pytest.param({"released": RELEASED, "wanted_holders": (ME,)}, id="wanted again"),
        pytest.param({"released": RELEASED, "holders": (ME,)}, id="listed again"),
    ],
)
def test_a_store_lets_nothing_go_for_any_other_reason(past):
    assert not learned(entry(**past), stored(), ME)


def test_what_is_let_go_is_sealed_first_so_that_the_table_goes_over_it():
    before = replace(stored(seal=None, promised=1), table_as_of=Offset(0))
    seal, drop = learned(entry(released=RELEASED), before, ME)
    assert (seal.seals, seal.released) == (((1, 10),), ())
    assert drop.released == (1,)
    state = after(before, seal, drop)
    assert (state.table_as_of, state.promised, dict(state.segments)) == (10, 2, {})


def test_only_a_sealed_segment_is_let_go():
    with pytest.raises(InvariantViolation, match="only a sealed segment"):
        durable.apply(
            stored(seal=None), LearnMap(shard=SHARD, open_epoch=Epoch(2), released=(Epoch(1),))
        )


def test_what_was_let_go_is_fetched_anew_from_its_begin():
    drop = LearnMap(shard=SHARD, open_epoch=Epoch(2), released=(Epoch(1),))
    fill = FillSealed(
        shard=SHARD,
        epoch=Epoch(1),
        begin=Offset(0),
        end=Offset(10),
        open_epoch=Epoch(2),
        batches=(batch(0, 4),),
    )
    state = after(stored(), drop, drop, fill)
    assert (state.segments[Epoch(1)].first, state.segments[Epoch(1)].end) == (0, 4)


# ---------------------------------------------------------------------------------- saying so
def test_a_store_holds_what_it_has_whole_and_is_not_about_to_drop():
    assert holds(entry(), stored(), ME, Epoch(1))
    assert not holds(entry(), stored(9, seal=None), ME, Epoch(1))
    assert not holds(entry(), NOTHING, ME, Epoch(1))
    assert not holds(entry(), stored(), ME, Epoch(2))
    assert not holds(None, stored(), ME, Epoch(1))
    assert not holds(entry(released=RELEASED), stored(), ME, Epoch(1))
    assert holds(entry(released=RELEASED, wanted_holders=(ME,)), stored(), ME, Epoch(1))


def test_what_is_trimmed_is_missed_by_nobody():
    trimmed = stored(trimmed_to=4)
    assert holds(entry(trimmed_to=4), trimmed, ME, Epoch(1))
    assert not holds(entry(trimmed_to=3), trimmed, ME, Epoch(1))
    assert holds(entry(trimmed_to=10), NOTHING, ME, Epoch(1))
    drop = DropTrimmed(shard=SHARD, open_epoch=Epoch(2), trimmed_to=Offset(4))
    assert holds(entry(trimmed_to=4), after(stored(), drop), ME, Epoch(1))


def test_a_store_that_is_listed_and_has_it_not_says_so():
    listed = entry(holders=(ME, *OTHERS))
    assert list(lacking(listed, NOTHING, ME)) == [1]
    assert list(lacking(listed, stored(9, seal=None), ME)) == [1]
    assert not list(lacking(listed, stored(), ME))
    assert not list(lacking(entry(), NOTHING, ME))


def test_a_store_that_has_it_and_is_not_listed_says_so_while_too_few_are():
    few = entry(holders=(B.replica, C.replica))
    assert [each.epoch for each in unlisted(few, stored(), ME)] == [1]
    assert not list(unlisted(few, stored(9, seal=None), ME))
    assert not list(unlisted(entry(), stored(), ME)), "three voted, and three are listed"
    assert not list(unlisted(entry(holders=(ME,)), stored(), ME))
    released = entry(holders=(B.replica,), released=RELEASED)
    assert not list(unlisted(released, stored(), ME)), "the map knows that it had it"
    gone = entry(holders=(B.replica,), trimmed_to=10)
    assert not list(unlisted(gone, stored(), ME)), "nothing of it is kept"
