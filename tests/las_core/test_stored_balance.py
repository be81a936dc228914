"""Copies come to lie evenly, by few moves of which none makes protection less (§8.4)."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from las.core.commands import (
    AddHolder,
    CreateLog,
    DropHolder,
    HaltShard,
    PrepareSegment,
    SegmentOpened,
    SetAtRisk,
    SetCopies,
    SetDraining,
    SetNodeState,
    TrimShard,
    WantHolders,
)
from las.core.explain import explain_shard
from las.core.holder_commands import AddHolderAgain, ReleaseHolder
from las.core.holders import RELEASED_FEATURE_LEVEL
from las.core.index import indexed
from las.core.placement import FleetView, Limits
from las.core.planner import plan
from las.core.rebalance import unrest
from las.core.state import ClusterState, NodeState
from las.core.stored_balance import (
    CopyBalance,
    CopyMove,
    SegmentKey,
    Stored,
    copies_of_moves,
    copy_balance,
    givers,
    held,
    is_uneven,
    may_begin,
    superfluous,
)
from las.core.surplus import surplus
from peerd.core.ids import Epoch, NodeName, Offset, ShardId, Tick
from peerd.core.shard_map import Plan
from tests.las_core.builders import done, name, process, register, replica

VIEW = FleetView(now=Tick(0))
LIMITS = Limits()
MIB = 1 << 20
RECORDS = 10

Sizes = dict[SegmentKey, int]


def node(number: int, **facts: object):
    return register(number, **({"labels": (), "feature_level": RELEASED_FEATURE_LEVEL} | facts))


def fleet(
    sizes: list[int], *, peers: int = 5, joined: int = 3, copies: int = 3
) -> tuple[ClusterState, Sizes]:
    """A sealed segment of each size on `copies` of the first peers; then others join."""
    state, keys = sealed_fleet(len(sizes), peers, joined, copies)
    return state, dict(zip(keys, sizes, strict=True))


@cache
def sealed_fleet(
    segments: int, peers: int, joined: int, copies: int
) -> tuple[ClusterState, list[SegmentKey]]:
    state = done(ClusterState(cluster_id="c"), *(node(n) for n in range(1, peers + 1)))
    rows = tuple(tuple((number + at) % peers for at in range(copies)) for number in range(segments))
    names = tuple(name(n) for n in range(1, peers + 1))
    create = CreateLog(name="orders", copies=copies, acks=min(2, copies), nodes=names, rows=rows)
    state = done(state, create)
    keys = []
    for shard, entry in sorted(state.shards.items()):
        now = entry.shard.open.plan
        prepare = PrepareSegment(shard=shard, epoch=entry.shard.open.epoch, plan=now)
        opened = SegmentOpened(
            shard=shard,
            epoch=Epoch(entry.shard.open.epoch + 1),
            begin=Offset(RECORDS),
            holders=tuple(sorted(now.voters)),
        )
        state = done(state, prepare, opened)
        keys.append((shard, entry.shard.open.epoch))
    return done(state, *(node(n) for n in range(peers + 1, peers + joined + 1))), keys


def bytes_of(state: ClusterState, sizes: Mapping[SegmentKey, int]) -> dict[NodeName, int]:
    """What each healthy node stores by the committed map."""
    found = {each.name: 0 for each in state.nodes.values() if each.is_healthy}
    for entry in state.shards.values():
        for segment in entry.shard.sealed:
            for holder in segment.holders:
                if holder.peer in found:
                    found[holder.peer] += sizes.get((entry.shard.shard, segment.epoch), 0)
    return found


def stored(state: ClusterState, sizes: Sizes, **more: object) -> Stored:
    return Stored(bytes_of=bytes_of(state, sizes), sizes=sizes, **more)


def ask(
    state: ClusterState,
    sizes: Sizes,
    *,
    view: FleetView = VIEW,
    moves_max: int = 1_000,
    **more: object,
) -> CopyBalance:
    now = stored(state, sizes, **more)
    index = indexed(state)
    shards_of = {each: tuple(index.shards_of(each)) for each in givers(state, now)}
    return copy_balance(state, view, LIMITS, now, shards_of=shards_of, moves_max=moves_max)


def move(state: ClusterState, each: CopyMove) -> ClusterState:
    """`state` after a move: its taker is wanted and listed, its giver lets go."""
    wanted = done(state, wish(each))
    assert list(surplus(wanted, [each.shard], givers={each.key: each.giver})) == []
    added = AddHolderAgain(
        shard=each.shard, epoch=each.epoch, holder=each.taker, version=wanted.version
    )
    listed = done(wanted, added)
    (goes,) = surplus(listed, [each.shard], givers={each.key: each.giver})
    assert goes.holder == each.giver
    return done(
        listed,
        ReleaseHolder(
            shard=each.shard, epoch=each.epoch, holder=goes.holder, confirmed=goes.others
        ),
    )


def wish(each: CopyMove) -> WantHolders:
    return WantHolders(shard=each.shard, epoch=each.epoch, holders=(each.taker,))


def settled(state: ClusterState, sizes: Sizes, **more: object) -> tuple[ClusterState, int, int]:
    """The state in which nothing is moved any more, the moves that it took, and their bytes."""
    count = size_bytes = 0
    for _ in range(20):
        found = ask(state, sizes, **more)
        if not found.moves:
            return state, count, size_bytes
        for each in found.moves:
            assert may_begin(state, each)
            state = move(state, each)
            count += 1
            size_bytes += each.size_bytes
        assert bytes_of(state, sizes) == found.after
    raise AssertionError("it does not come to rest")


def least_bytes(state: ClusterState, sizes: Sizes) -> float:
    """What must move at least until all store alike."""
    now = stored(state, sizes)
    return sum(max(0.0, now.even - each) for each in now.bytes_of.values())


# ---------------------------------------------------------------------------------- even
def test_three_empty_peers_take_their_part_and_nothing_moves_twice():
    state, sizes = fleet([8 * MIB] * 64)
    least = least_bytes(state, sizes)
    after, _, moved = settled(state, sizes)
    now = stored(after, sizes)
    assert not is_uneven(now, now.inner)
    assert moved <= 1.1 * least
    took = Counter(
        holder.peer
        for entry in after.shards.values()
        for segment in entry.shard.sealed
        for holder in segment.holders
    )
    assert took[name(6)] + took[name(7)] + took[name(8)] == moved // (8 * MIB)
    assert ask(after, sizes).moves == ()


def test_what_is_even_enough_is_left_alone():
    state, sizes = fleet([MIB] * 40, joined=0)
    assert ask(state, sizes).moves == ()
    now = Stored(bytes_of={name(1): 95, name(2): 105, name(3): 100}, band=0.1)
    assert (now.even, now.outer, now.inner) == (100, 10, 5)
    assert not is_uneven(now, now.outer)
    assert not is_uneven(now, now.inner)
    assert is_uneven(now, 4.9)
    assert Stored(bytes_of={}, bytes_min=7).outer == 7
    assert not is_uneven(Stored(bytes_of={}), 0)


def test_a_few_bytes_are_not_worth_a_move():
    state, sizes = fleet([MIB] * 40)
    assert ask(state, sizes).moves
    assert ask(state, sizes, bytes_min=100 * MIB).moves == ()


def test_a_segment_that_does_not_fit_stays():
    state, sizes = fleet([64 * MIB], peers=3, joined=1)
    # 64, 64, 64 and 0: who would take one would be where the giver was.
    assert ask(state, sizes).moves == ()


def test_what_fits_goes_before_what_would_pass_it():
    state, sizes = fleet([40 * MIB, 20 * MIB, 20 * MIB, 20 * MIB], peers=3, joined=1)
    # Each of three has 100; even is 75.
    found = ask(state, sizes)
    assert found.moves[0].size_bytes == 20 * MIB
    assert found.before[name(1)] == 100 * MIB
    assert found.moves[0].why == "peer-1 stores 105 MB and peer-4 0 MB, even is 79 MB"
    after, _, moved = settled(state, sizes)
    assert moved == 60 * MIB
    assert bytes_of(after, sizes)[name(4)] == 60 * MIB


def test_what_passes_it_a_little_goes_where_nothing_fits():
    state, sizes = fleet([60 * MIB, 60 * MIB], peers=2, joined=1, copies=2)
    # Two have 120, one none; even is 80. One segment brings 60, 120 and 60 at best.
    found = ask(state, sizes, band=0.5)
    assert [each.size_bytes for each in found.moves] == [60 * MIB]
    assert ask(state, sizes, band=0.1).moves == ()


def test_moves_are_counted_and_more_is_told():
    state, sizes = fleet([8 * MIB] * 64)
    found = ask(state, sizes, moves_max=5)
    assert len(found.moves) == 5
    assert found.more
    assert not ask(state, sizes).more
    assert ask(state, sizes, moves_max=0).more


def test_the_past_goes_to_who_votes_in_the_shard():
    state, sizes = fleet([8 * MIB] * 20, peers=4, joined=1)
    voted = []
    for shard, entry in list(state.shards.items())[3::4]:
        now = entry.shard.open.plan
        joins = replica(5)
        after = Plan(primary=now.primary, voters=(*now.voters[:-1], joins), acks=2)
        begin = Offset(2 * RECORDS)
        state = done(
            state,
            PrepareSegment(shard=shard, epoch=entry.shard.open.epoch, plan=after),
            SegmentOpened(
                shard=shard,
                epoch=Epoch(entry.shard.open.epoch + 1),
                begin=begin,
                holders=tuple(sorted(now.voters)),
            ),
        )
        voted.append(shard)
    moved = [each.shard for each in ask(state, sizes).moves]
    assert len(moved) < len(sizes)
    assert set(voted) <= set(moved)


# ---------------------------------------------------------------------------------- harm nothing
def test_never_two_copies_on_a_host():
    state, sizes = fleet([MIB] * 30, peers=3, joined=0)
    state = done(state, node(4, labels=(("host", "peer-1"),)))
    found = ask(state, sizes)
    assert found.moves
    assert {each.giver for each in found.moves} == {replica(1)}


@pytest.mark.parametrize("key", ["rack", "zone"])
def test_no_rack_or_zone_becomes_more_crowded(key):
    state, sizes = fleet([MIB] * 30, peers=3, joined=0)
    places = {1: "a", 2: "b", 3: "c", 4: "a"}
    labelled = (node(n, labels=(("host", f"h{n}"), (key, at))) for n, at in places.items())
    found = ask(done(state, *labelled), sizes)
    assert found.moves
    assert {each.giver for each in found.moves} == {replica(1)}


def spoilt(what: str) -> tuple[ClusterState, Sizes]:
    """Two segments of which nothing may be moved, and an empty peer."""
    state, sizes = fleet([10 * MIB] * 2, peers=3, joined=1)
    for shard, epoch in sizes:
        opened = state.shards[shard].shard.open.epoch
        commands = {
            "wanted": WantHolders(shard=shard, epoch=epoch, holders=(replica(4),)),
            "halted": HaltShard(shard=shard, epoch=Epoch(99), node=name(1), why="test"),
            "lost": DropHolder(shard=shard, epoch=epoch, holder=replica(2)),
            "down": SetNodeState(node=name(2), boot=process(2).boot, state=NodeState.DOWN),
            "at risk": SetAtRisk(node=name(2), at_risk=True),
            "draining taker": SetDraining(node=name(4), draining=True),
            "too many": SetCopies(log="orders", copies=2, acks=2),
            "trimmed": TrimShard(shard=shard, epoch=opened, trimmed_to=Offset(RECORDS)),
            "old taker": node(4, feature_level=RELEASED_FEATURE_LEVEL - 1),
        }
        if what in commands:
            state = done(state, commands[what])
    if what == "old giver":
        old = (node(each, feature_level=RELEASED_FEATURE_LEVEL - 1) for each in (1, 2, 3))
        state = done(state, *old)
    return state, sizes


@pytest.mark.parametrize(
    "what",
    [
        "wanted",
        "halted",
        "lost",
        "down",
        "at risk",
        "draining taker",
        "too many",
        "trimmed",
        "old taker",
        "old giver",
    ],
)
def test_a_segment_for_which_something_else_is_due_is_left_alone(what):
    good, sizes = spoilt("")
    assert ask(good, sizes, band=0.8).moves, "it would be moved"
    (found,) = ask(good, sizes, band=0.8, moves_max=1).moves
    state, sizes = spoilt(what)
    assert ask(state, sizes, band=0.8).moves == ()
    assert not may_begin(state, found)


def test_a_move_that_was_planned_is_made_only_while_it_may_be():
    state, sizes = spoilt("")
    (found,) = ask(state, sizes, band=0.8, moves_max=1).moves
    assert may_begin(state, found)
    assert not may_begin(state, replace(found, shard=ShardId(99)))
    assert not may_begin(state, replace(found, epoch=Epoch(99)))
    assert not may_begin(state, replace(found, giver=replica(4)))
    assert not may_begin(state, replace(found, taker=replica(2)))
    away = done(state, DropHolder(shard=found.shard, epoch=found.epoch, holder=found.giver))
    assert not may_begin(away, found)


def test_logs_with_one_copy_keep_theirs():
    state, sizes = fleet([10 * MIB] * 10, peers=3, joined=1, copies=1)
    assert ask(state, sizes).moves == ()


def test_what_rests_or_is_not_measured_is_left_alone():
    state, sizes = fleet([8 * MIB] * 64)
    resting = frozenset((*key, name(n)) for key in sizes for n in range(1, 9))
    assert ask(state, sizes, resting=resting).moves == ()
    new = frozenset(each for each in resting if each[2] in {name(6), name(7)})
    assert {each.taker for each in ask(state, sizes, resting=new).moves} == {replica(8)}
    now = stored(state, {})
    index = indexed(state)
    shards_of = {each: tuple(index.shards_of(each)) for each in givers(state, stored(state, sizes))}
    unmeasured = replace(now, bytes_of=bytes_of(state, sizes))
    found = copy_balance(state, VIEW, LIMITS, unmeasured, shards_of=shards_of, moves_max=9)
    assert found.moves == ()


def test_a_node_without_room_gets_no_more_than_fits():
    state, sizes = fleet([8 * MIB] * 64, joined=1)
    view = replace(VIEW, free_bytes={name(6): LIMITS.free_bytes_min + 20 * MIB})
    found = ask(state, sizes, view=view)
    assert [each.size_bytes for each in found.moves] == [8 * MIB] * 2


def test_zones_that_are_kept_apart_are_evened_out_each_by_itself():
    labels = {n: (("zone", f"zone-{n % 3}"),) for n in range(1, 12)}
    state, sizes = fleet([MIB] * 60, peers=3, joined=0)
    state = done(state, *(node(n, labels=labels[n]) for n in (1, 2, 3, 4, 7, 10, 5)))
    after, _, _ = settled(state, sizes)
    now = bytes_of(after, sizes)
    # 1, 4, 7 and 10 share a zone, 2 and 5 another; 3 is alone in its.
    assert now[name(3)] == 60 * MIB
    assert all(13 * MIB <= now[name(n)] <= 17 * MIB for n in (1, 4, 7, 10))
    assert all(28 * MIB <= now[name(n)] <= 32 * MIB for n in (2, 5))


def test_many_zones_are_weighed_together_beyond_the_bound():
    state, sizes = fleet([MIB] * 60, peers=12, joined=0)
    state = done(state, *(node(n, labels=(("zone", f"zone-{n}"),)) for n in range(1, 25)))
    after, _, _ = settled(state, sizes)
    assert min(bytes_of(after, sizes).values()) > 0


# ---------------------------------------------------------------------------------- beside others
def test_others_leave_a_move_alone_and_wait_for_repairs_only():
    state, sizes = fleet([MIB] * 30, peers=3, joined=1)
    found, *_ = ask(state, sizes).moves
    wanted = done(state, wish(found))
    moving = frozenset({(found.shard, found.epoch, found.taker)})
    assert plan(wanted, replace(VIEW, moving=moving), LIMITS) == []
    assert copies_of_moves(wanted, moving) == 1
    assert unrest(wanted, indexed(wanted)) == "1 copies are being made"
    assert unrest(wanted, indexed(wanted), 1) == ""
    (text,) = (
        fact
        for fact in explain_shard(
            wanted, replace(VIEW, moving=moving), LIMITS, found.shard, indexed(wanted)
        ).facts
        if "store alike" in fact
    )
    assert text.startswith("peer-4 fetches segment 1 so that nodes store alike")


def test_what_a_node_stores_is_listed_open_segments_first():
    state, sizes = fleet([MIB] * 3, peers=3, joined=1)
    shards = sorted(state.shards)
    keys = held(state, name(1), shards)
    assert keys[:3] == [(shard, state.shards[shard].shard.open.epoch) for shard in shards]
    assert keys[3:] == sorted(sizes)
    assert held(state, name(4), shards) == []


def test_a_new_leader_finds_the_wishes_of_moves():
    state, sizes = fleet([MIB] * 3, peers=3, joined=1)
    assert list(superfluous(state, indexed(state))) == []
    (shard, epoch), *_ = sorted(sizes)
    state = done(state, WantHolders(shard=shard, epoch=epoch, holders=(replica(4),)))
    assert list(superfluous(state, indexed(state))) == [(shard, epoch, replica(4))]
    needed = done(state, SetAtRisk(node=name(1), at_risk=True))
    assert list(superfluous(needed, indexed(needed))) == []
    assert copies_of_moves(state, {(ShardId(99), epoch, replica(4))}) == 0
    assert copies_of_moves(state, {(shard, Epoch(99), replica(4))}) == 0


def test_a_move_that_nobody_remembers_ends_as_a_release():
    state, sizes = fleet([MIB] * 30, peers=3, joined=1)
    (found, *_) = ask(state, sizes).moves
    listed = done(
        state, wish(found), AddHolder(shard=found.shard, epoch=found.epoch, holder=found.taker)
    )
    (goes,) = surplus(listed, stored_bytes=bytes_of(listed, sizes))
    assert goes.holder != found.taker


# ---------------------------------------------------------------------------------- properties
some_sizes = st.lists(st.integers(min_value=1, max_value=64), min_size=12, max_size=12)


@settings(max_examples=40)
@given(
    megabytes=some_sizes,
    peers=st.sampled_from([3, 5]),
    joined=st.sampled_from([0, 1, 3]),
    zones=st.integers(min_value=1, max_value=4),
    band=st.sampled_from([0.05, 0.1, 0.3]),
)
def test_it_comes_to_rest_and_every_step_may_be_taken(megabytes, peers, joined, zones, band):
    state, sizes = fleet([each * MIB for each in megabytes], peers=peers, joined=joined)
    state = done(
        state,
        *(node(n, labels=(("zone", f"zone-{n % zones}"),)) for n in range(1, peers + joined + 1)),
    )
    before = stored(state, sizes, band=band)
    squares = sum(each * each for each in before.bytes_of.values())
    for each in ask(state, sizes, band=band).moves:
        state = move(state, each)
        now = bytes_of(state, sizes)
        assert sum(value * value for value in now.values()) < squares
        squares = sum(value * value for value in now.values())
    state, moves, _ = settled(state, sizes, band=band)
    assert moves <= len(sizes) * 3
    for entry in state.shards.values():
        for segment in entry.shard.sealed:
            assert len({holder.peer for holder in segment.holders}) == 3
    assert plan(state, VIEW, LIMITS) == []


@settings(max_examples=40)
@given(
    megabytes=st.lists(st.integers(min_value=1, max_value=4), min_size=80, max_size=80),
    joined=st.integers(min_value=1, max_value=4),
)
def test_little_more_is_moved_than_must_be(megabytes, joined):
    state, sizes = fleet([each * MIB for each in megabytes], joined=joined)
    least = least_bytes(state, sizes)
    found = ask(state, sizes)
    assert sum(each.size_bytes for each in found.moves) <= 1.1 * least
    # No copy moves twice.
    came = {(each.key, each.taker) for each in found.moves}
    assert not came & {(each.key, each.giver) for each in found.moves}
    assert len(came) == len(found.moves)
    now = stored(state, sizes)
    assert not is_uneven(replace(now, bytes_of=found.after), now.outer)


def test_nobody_takes_a_copy_beside_a_holder_on_its_own_host_also_one_that_is_down():
    """It may come back, and then one host would have two of the copies."""
    state, sizes = fleet([8 * MIB] * 40, joined=0)
    there = (("host", state.nodes[name(1)].host),)
    down = SetNodeState(node=name(1), boot=process(1).boot, state=NodeState.DOWN)
    # With fewer copies to be kept, one that is down is one too many, and not let go.
    fewer = SetCopies(log="orders", copies=2, acks=2)
    state = done(state, down, fewer, node(6, labels=there), node(7, labels=there), node(8))
    assert {each.taker.peer for each in ask(state, sizes).moves} == {name(8)}
