"""Neighbouring sealed segments share an entry: a form of the chain that says the same (§8)."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerd.core.check import InvariantViolation
from peerd.core.ids import BootId, Epoch, NodeName, Offset, ProcessId, ReplicaId, ShardId, StoreId
from peerd.core.shard_map import (
    Chain,
    Plan,
    Run,
    Segment,
    Shard,
    chain_behind,
    count_of,
    entries_of,
    joined,
    newest_of,
    plan_of_nobody,
    run_of,
    segment_with,
    with_segment,
)


def store(number: int) -> ReplicaId:
    return ReplicaId(NodeName(f"peer-{number}"), StoreId(f"store-{number}"))


def plan(primary: int, *voters: int) -> Plan:
    first = store(primary)
    process = ProcessId(first.peer, first.store, BootId(f"boot-{primary}"))
    return Plan(primary=process, voters=tuple(map(store, voters)), acks=2)


def sealed(epoch: int, begin: int, end: int, *holders: int, **changes) -> Segment:
    facts = {
        "epoch": Epoch(epoch),
        "plan": plan(1, 1, 2, 3),
        "begin": Offset(begin),
        "end": Offset(end),
        "known_commit": Offset(end),
        "holders": tuple(map(store, holders)),
    }
    return Segment(**(facts | changes))


@st.composite
def chains(draw: st.DrawFn) -> tuple[Segment, ...]:
    """Chains with holes between them, kept tails, and few sets of holders."""
    found, at, epoch = [], draw(st.integers(0, 3)), 0
    for _ in range(draw(st.integers(0, 8))):
        at += draw(st.sampled_from([0, 0, 0, 7]))
        epoch += draw(st.integers(1, 3))
        end = at + draw(st.integers(1, 4))
        holders = draw(st.sampled_from([(1, 2), (1, 2), (1, 2, 3), (2,)]))
        tail = draw(st.sampled_from([0, 0, 1]))
        wanted = draw(st.sampled_from([(), (), (store(4),)]))
        found.append(
            sealed(epoch, at, end, *holders, known_commit=Offset(end - tail), wanted_holders=wanted)
        )
        at = end
    return tuple(found)


def told(segments) -> list[tuple]:
    """What an entry says of each segment."""
    return [(e.epoch, e.begin, e.end, e.holders, e.wanted_holders) for e in segments]


@given(chains())
def test_walking_a_joined_chain_shows_each_segment_as_ever(segments):
    chain = joined(segments)
    assert told(chain) == told(segments)
    assert told(reversed(chain)) == told(reversed(segments))
    assert len(chain) == len(segments) == sum(map(count_of, entries_of(chain)))
    assert bool(chain) == bool(segments)
    for at in range(len(segments)):
        assert told([chain[at]]) == told([segments[at]])
    assert told(chain[-1:]) == told(segments[-1:])
    for segment in segments:
        assert told([segment_with(chain, segment.epoch)]) == told([segment])
    assert segment_with(chain, Epoch(99)) is None


@given(chains())
def test_the_joined_form_is_the_shortest_and_one_form(segments):
    chain = joined(segments)
    assert joined(chain) is chain
    assert entries_of(joined(tuple(chain))) == entries_of(chain)
    entries = entries_of(chain)
    for before, after in pairwise(entries):
        one, other = newest_of(before), newest_of(after)
        begin = after.begin
        tails = [e.known_commit != e.end and len(e.holders) < 2 for e in (one, other)]
        same = (one.holders, one.wanted_holders) == (other.holders, other.wanted_holders)
        assert not (same and one.end == begin and not any(tails))


@given(chains(), st.data())
def test_a_segment_that_changes_leaves_its_run_and_comes_back(segments, data):
    chain = joined(segments)
    if not segments:
        return
    old = data.draw(st.sampled_from(list(chain)))
    changed = replace(old, holders=(store(9),))
    apart = with_segment(chain, changed)
    assert told(apart) == told(changed if e.epoch == old.epoch else e for e in segments)
    again = joined(with_segment(joined(apart), old))
    assert told(again) == told(segments)


@given(chains(), st.integers(0, 40))
def test_what_ends_before_an_offset_leaves_the_chain_but_for_the_newest(segments, offset):
    kept = [each for at, each in enumerate(segments, 1) if at == len(segments) or each.end > offset]
    assert told(chain_behind(joined(segments), Offset(offset))) == told(kept)
    assert told(chain_behind(segments, Offset(offset))) == told(kept)


def test_a_kept_tail_is_joined_only_once_it_was_on_enough_stores():
    """G12: until then readers see what was known to be committed, and no more."""
    tail = sealed(1, 0, 5, 1, known_commit=Offset(3))
    after = sealed(2, 5, 9, 1)
    assert joined((tail, after)) == (tail, after)
    assert isinstance(joined((tail, after)), tuple)
    (entry,) = entries_of(
        joined((replace(tail, holders=(store(1), store(2))), sealed(2, 5, 9, 1, 2)))
    )
    assert [each.known_commit for each in entry.segments()] == [5, 9]


def test_neighbours_with_a_gap_between_them_or_of_nobody_stay_apart():
    apart = (sealed(1, 0, 5, 1, 2), sealed(2, 6, 9, 1, 2))
    assert joined(apart) is apart
    nobodys = (sealed(1, 0, 5, plan=plan_of_nobody()), sealed(2, 5, 9))
    assert joined(nobodys) is nobodys


def test_a_chain_is_equal_to_the_same_segments_and_says_what_it_is():
    segments = (sealed(1, 0, 5, 1, 2), sealed(2, 5, 9, 1, 2))
    chain = joined(segments)
    assert chain == segments
    assert segments == chain
    assert chain == joined(segments)
    assert chain != segments[:1]
    assert chain != list(segments)
    assert hash(chain) == hash(segments)
    assert repr(chain).startswith("Chain((Run(")


def test_a_shard_checks_the_tiling_of_runs():
    chain = joined((sealed(1, 0, 5, 1, 2), sealed(2, 5, 9, 1, 2)))
    opened = Segment(epoch=Epoch(3), plan=plan(1, 1, 2, 3), begin=Offset(9))
    facts = {"log": "orders", "key_hash_low": 0, "key_hash_high": 9, "shard": ShardId(1)}
    assert Shard(**facts, open=opened, sealed=chain).sealed[0].begin == 0
    with pytest.raises(InvariantViolation, match="tile"):
        Shard(**facts, open=replace(opened, begin=Offset(10)), sealed=chain)
    with pytest.raises(InvariantViolation, match="epochs grow along the chain"):
        Shard(**facts, open=replace(opened, epoch=Epoch(2)), sealed=chain)


def test_a_run_is_of_segments_that_follow_each_other():
    newest = sealed(5, 10, 12, 1)
    assert run_of(newest, []) is newest
    assert [each.epoch for each in Chain((run_of(newest, [(1, 0), (3, 4)]),))] == [1, 3, 5]
    for parts in ([(5, 0)], [(1, 10)], [(3, 0), (2, 4)]):
        with pytest.raises(InvariantViolation, match="run"):
            run_of(newest, parts)
    with pytest.raises(InvariantViolation, match="two segments"):
        Run(newest=newest, earlier=b"")
