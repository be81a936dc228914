"""Votes and leads come to lie evenly, by few moves that harm nothing; then nothing moves."""

from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from las.core.apply import apply
from las.core.commands import (
    CreateLog,
    PrepareSegment,
    SegmentOpened,
    SetAtRisk,
    SetCopies,
    SetDraining,
    SetNodeState,
    WantHolders,
)
from las.core.index import indexed
from las.core.placement import FleetView, Limits
from las.core.planner import initial_plans, plan
from las.core.rebalance import Balance, Uneven, balance, unrest
from las.core.state import HELD, ClusterState, NodeState, Recovery
from peerd.core.ids import Offset, ShardId, Tick
from peerd.core.shard_map import Split
from tests.las_core.builders import (
    SHARD,
    done,
    name,
    node_of,
    plan_of,
    process,
    register,
    replica,
    shard_of,
    with_log,
)

VIEW = FleetView(now=Tick(0))
LIMITS = Limits()
STILL = Uneven()


def fleet(nodes: int) -> ClusterState:
    """Peers on hosts of their own, without racks and zones."""
    return grown(ClusterState(cluster_id="cluster-1"), *range(1, nodes + 1))


def create(state: ClusterState, shards: int, copies: int = 3, log: str = "orders") -> ClusterState:
    """A log as the planner places it."""
    placed = initial_plans(state, VIEW, LIMITS, shards=shards, copies=copies)
    assert not isinstance(placed, str), placed
    return done(
        state,
        CreateLog(
            name=log, copies=copies, acks=min(2, copies), nodes=placed.nodes, rows=placed.rows
        ),
    )


def grown(state: ClusterState, *numbers: int, **changes: object) -> ClusterState:
    facts = {"labels": ()} | changes
    return done(state, *(register(each, **facts) for each in numbers))


def ask(
    state: ClusterState, uneven: Uneven = STILL, view: FleetView = VIEW, moves_max: int = 1_000
) -> Balance:
    return balance(state, view, LIMITS, uneven, index=indexed(state), moves_max=moves_max)


def make(state: ClusterState, found: Balance) -> ClusterState:
    """`state` after the moves, each a planned change whose segment began and got a record."""
    for move in found.moves:
        entry = state.shards[move.shard].shard
        sources = tuple(sorted(entry.open.plan.voters))
        prepare = PrepareSegment(shard=move.shard, epoch=move.epoch, plan=move.plan, why=move.why)
        state, result = apply(state, prepare)
        assert result.ok, result
        begin = Offset((entry.open.begin or 0) + 1)
        opened = SegmentOpened(shard=move.shard, epoch=result.epoch, begin=begin, holders=sources)
        state = done(state, opened)
    return state


def votes(state: ClusterState) -> Counter[str]:
    return +indexed(state).voting


def leads(state: ClusterState) -> Counter[str]:
    return +indexed(state).leading


def settled(state: ClusterState, uneven: Uneven = STILL) -> tuple[ClusterState, int]:
    """The state in which nothing is moved any more, and how many moves it took."""
    count = 0
    for _ in range(50):
        found = ask(state, uneven)
        if not found.moves:
            return state, count
        count += len(found.moves)
        state = make(state, found)
    raise AssertionError("it does not come to rest")


# ---------------------------------------------------------------------------------- counts
def test_three_empty_peers_take_their_part_by_the_fewest_moves():
    state = grown(create(fleet(5), shards=32), 6, 7, 8)
    after, moves = settled(state)
    assert set(votes(after).values()) == {12}
    assert set(leads(after).values()) == {4}
    # 36 votes must move; a lead that has to move goes along with one of them.
    assert moves <= 36 * 1.1
    assert plan(after, VIEW, LIMITS) == []


def test_what_is_even_is_left_alone():
    state = create(fleet(5), shards=32)
    assert ask(state).moves == ()


def test_leads_go_from_voter_to_voter_where_votes_lie_evenly():
    # Everybody votes in everything; peer-1 leads it all.
    state = with_log(nodes=3, rows=((0, 1, 2),) * 9)
    found = ask(state)
    assert all(not move.joins and not move.leaves for move in found.moves)
    after = make(state, found)
    assert set(leads(after).values()) == {3}
    assert len(found.moves) == 6
    assert found.moves[0].why == "peer-1 leads 9 and peer-2 0, even is 3.0"


def test_a_chain_of_leads_reaches_who_shares_no_shard_with_the_giver():
    # 1 and 2 share shards, 2 and 3 share shards; 1 and 3 share none.
    rows = ((0, 1), (0, 1), (0, 1), (1, 2), (2, 1), (1, 2))
    state = with_log(nodes=3, rows=rows, copies=2, acks=2)
    assert leads(state) == {name(1): 3, name(2): 2, name(3): 1}
    # Votes are moved first where they lie unevenly; here only leads are looked at.
    resting = frozenset((shard, node) for shard in state.shards for node in state.nodes)
    found = ask(state, Uneven(resting_votes=resting))
    assert [(move.leads, move.joins) for move in found.moves] == [(name(3), ""), (name(2), "")]
    assert leads(make(state, found)) == {name(1): 2, name(2): 2, name(3): 2}
    # Link by link, with fresh eyes in between, it comes to the same.
    for links_left in (1, 0):
        (link,) = ask(state, Uneven(resting_votes=resting), moves_max=1).moves
        state = make(state, ask(state, Uneven(resting_votes=resting), moves_max=1))
        assert link.leads == (name(3) if links_left else name(2))
    assert leads(state) == {name(1): 2, name(2): 2, name(3): 2}


def test_moves_are_counted_and_more_is_told():
    state = grown(create(fleet(5), shards=32), 6, 7, 8)
    found = ask(state, moves_max=5)
    assert len(found.moves) == 5
    assert found.more
    assert not ask(create(fleet(5), shards=32), moves_max=0).more


def test_shares_are_told_before_and_after():
    state = grown(create(fleet(3), shards=8), 4)
    found = ask(state)
    assert [share.votes for share in found.before] == [8, 8, 8, 0]
    assert [share.votes for share in found.after] == [6, 6, 6, 6]
    assert (found.even_weight, found.even_leads) == (6.0, 2.0)
    assert [share.leads for share in found.after] == [2, 2, 2, 2]


def test_an_empty_cluster_has_nothing_to_move():
    assert ask(ClusterState(cluster_id="cluster-1")).moves == ()
    assert ask(fleet(3)).moves == ()


# ---------------------------------------------------------------------------------- writes
def hot(state: ClusterState, share: float = 0.5) -> Uneven:
    """The first shard takes `share` of the writes, the others the rest."""
    rest = (1 - share) / (len(state.shards) - 1)
    rates = dict.fromkeys(state.shards, 1e6 * rest)
    rates[SHARD] = 1e6 * share
    return Uneven(bytes_per_s=rates)


def test_half_the_writes_on_one_shard_are_evened_out_by_the_others():
    state = grown(create(fleet(5), shards=32), 6, 7, 8)
    uneven = hot(state)
    after, moves = settled(state, uneven)
    shares = ask(after, uneven).after
    even = ask(after, uneven).even_weight
    assert all(abs(share.weight - even) <= 0.15 * even for share in shares)
    assert set(leads(after).values()) == {4}
    # The three nodes of the hot shard have fewer others.
    heavy = {voter.peer for voter in shard_of(after).open.plan.voters}
    assert max(votes(after)[each] for each in heavy) < min(
        count for each, count in votes(after).items() if each not in heavy
    )
    assert moves < 96


def test_a_shard_too_heavy_to_fit_stays_where_it_is():
    state = with_log(nodes=4, rows=((0, 1, 2),))
    assert ask(state, Uneven(bytes_per_s={SHARD: 5e6})).moves == ()


def test_writes_to_shards_that_are_gone_count_for_nothing():
    state = create(fleet(5), shards=32)
    assert ask(state, Uneven(bytes_per_s={ShardId(99): 1e9})).moves == ()
    assert ask(state, Uneven(bytes_per_s={SHARD: 0.0})).moves == ()


# ---------------------------------------------------------------------------------- harm nothing
def test_never_two_copies_on_a_host():
    labels = (("host", "peer-1"),)
    state = grown(create(fleet(3), shards=6), 4, labels=labels)
    found = ask(state)
    assert found.moves
    for move in found.moves:
        hosts = {node.host for node in map(state.node_of, move.plan.voters) if node}
        assert len(hosts) == 3
        assert move.leaves == name(1)


@pytest.mark.parametrize("key", ["rack", "zone"])
def test_no_rack_or_zone_becomes_more_crowded(key):
    places = {1: "a", 2: "b", 3: "c", 4: "a"}
    state = done(
        ClusterState(cluster_id="cluster-1"),
        *(
            register(each, labels=(("host", f"host-{each}"), (key, place)))
            for each, place in places.items()
        ),
    )
    rows = ((0, 1, 2),) * 6
    state = done(
        state,
        CreateLog(
            name="orders",
            copies=3,
            acks=2,
            nodes=tuple(name(each) for each in places),
            rows=rows,
        ),
    )
    found = ask(state)
    assert {move.leaves for move in found.moves if move.joins} == {name(1)}


def test_each_zone_is_evened_out_by_itself_where_copies_are_kept_apart():
    labels = {number: (("zone", f"zone-{number % 3}"),) for number in range(1, 10)}
    state = ClusterState(cluster_id="cluster-1")
    for number in (1, 2, 3, 4, 5):
        state = done(state, register(number, labels=labels[number]))
    state = create(state, shards=30)
    state = done(state, *(register(number, labels=labels[number]) for number in (7, 8)))
    after, _ = settled(state)
    # 1, 4 and 7 share a zone, and so do 2, 5 and 8; 3 is alone in its.
    assert votes(after) == {name(n): {1: 10, 2: 10, 0: 30}[n % 3] for n in (1, 2, 3, 4, 5, 7, 8)}


def test_who_stores_copies_only_gets_no_lead():
    state = grown(create(fleet(3), shards=6), 4, may_lead=False)
    after, _ = settled(state)
    assert leads(after)[name(4)] == 0
    assert votes(after)[name(4)] > 0


def test_the_last_that_may_lead_is_not_replaced_by_one_that_may_not():
    state = with_log(nodes=2, rows=((0, 1),) * 3, copies=2)
    state = done(
        state,
        register(2, boot=2, may_lead=False),
        register(3, may_lead=False),
        register(4, may_lead=False),
    )
    found = ask(state)
    assert {move.leaves for move in found.moves if move.joins} == {name(2)}


def test_a_node_without_room_gets_nothing():
    state = grown(create(fleet(5), shards=32), 6)
    view = FleetView(now=Tick(0), free_bytes={name(6): 1})
    assert ask(state, view=view).moves == ()


def test_who_stalls_as_primary_gets_nothing_back():
    state = grown(create(fleet(4), shards=24), 5, 6)
    slow = FleetView(now=Tick(0), slow=frozenset({name(5)}))
    taken = votes(make(state, ask(state, view=slow)))
    assert taken[name(6)] > 0
    assert taken[name(5)] == 0


def test_who_is_ill_neither_gives_nor_takes():
    state = grown(create(fleet(5), shards=32), 6, 7, 8)
    state = done(
        state,
        SetAtRisk(node=name(6), at_risk=True),
        SetDraining(node=name(7), draining=True),
        SetNodeState(node=name(8), boot=process(8).boot, state=NodeState.DOWN),
    )
    assert ask(state).moves == ()
    # A shard with a voter that is ill is for the planner.
    ill = done(state, SetAtRisk(node=name(1), at_risk=True), register(9))
    assert all(name(1) not in {voter.peer for voter in move.plan.voters} for move in ask(ill).moves)


def spoilt(what: str) -> ClusterState:
    """Two shards of which nothing may be moved, and an empty peer."""
    state = grown(with_log(nodes=3, rows=((0, 1, 2),) * 2), 4)
    entries = list(state.shards.values())
    if what == "prepared":
        for entry in entries:
            shard = entry.shard.shard
            plan_after = plan_of(2, 1, 2, 3)
            command = PrepareSegment(shard=shard, epoch=entry.shard.open.epoch, plan=plan_after)
            state = done(state, command)
    elif what == "halted":
        state = state.changed(shards=[replace(entry, halted=HELD) for entry in entries])
    elif what == "copies":
        state = done(state, SetCopies(log="orders", copies=2, acks=2))
    elif what == "restarted":
        state = done(state, register(1, boot=2))
    else:
        plan_after = plan_of(1, 1, 2, non=(3,))
        changed = [
            replace(
                entry,
                shard=replace(entry.shard, open=replace(entry.shard.open, plan=plan_after)),
            )
            for entry in entries
        ]
        state = state.changed(shards=changed)
    return state


@pytest.mark.parametrize("what", ["prepared", "halted", "copies", "restarted", "non-voters"])
def test_a_shard_that_is_not_as_it_should_be_is_left_alone(what):
    assert ask(spoilt(what)).moves == ()


def test_what_was_moved_a_short_while_ago_rests():
    state = grown(create(fleet(5), shards=32), 6, 7, 8)
    leads_rest = frozenset(state.shards)
    votes_rest = frozenset((shard, name(number)) for shard in state.shards for number in (6, 7, 8))
    assert ask(state, Uneven(resting_votes=votes_rest, resting_leads=leads_rest)).moves == ()
    # Only what came a short while ago stays; others of the same shard may go.
    after = make(state, ask(state, moves_max=20))
    came = frozenset(
        (entry.shard.shard, voter.peer)
        for entry in after.shards.values()
        for voter in entry.shard.open.plan.voters
        if voter.peer in {name(6), name(7), name(8)}
    )
    for move in ask(after, Uneven(resting_votes=came)).moves:
        assert (move.shard, move.leaves) not in came
    assert ask(after, Uneven(resting_votes=came)).moves


def test_a_shard_that_is_split_or_has_too_many_segments_is_left_alone():
    state = grown(with_log(nodes=3, rows=((0, 1, 2),) * 2), 4)
    entry = state.shards[SHARD]
    halves = Split(key_hash=1 << 62, end=Offset(0), children=(ShardId(8), ShardId(9)))
    opened = replace(entry.shard.open, plan=replace(entry.shard.open.plan, closed=True))
    split = replace(entry, shard=replace(entry.shard, split=halves, open=opened))
    found = ask(state.changed(shards=[split]))
    assert {move.shard for move in found.moves} == {ShardId(2)}


def test_leads_that_nobody_may_take_stay():
    state = with_log(nodes=3, rows=((0, 1, 2),) * 9)
    assert ask(state, Uneven(resting_leads=frozenset(state.shards))).moves == ()


def test_voters_that_are_ill_carry_nothing():
    state = done(create(fleet(4), shards=8), SetAtRisk(node=name(1), at_risk=True))
    found = ask(state, Uneven(bytes_per_s=dict.fromkeys(state.shards, 1e6)))
    assert {share.node for share in found.before} == {name(2), name(3), name(4)}


def test_many_zones_are_weighed_together_beyond_the_bound():
    state = ClusterState(cluster_id="cluster-1")
    for number in range(1, 13):
        labels = (("zone", f"zone-{number}"),)
        state = done(state, register(number, labels=labels))
    state = create(state, shards=24)
    labels = (("zone", "zone-13"),)
    after, _ = settled(grown(state, 13, labels=labels))
    assert votes(after)[name(13)] in {5, 6}


# ---------------------------------------------------------------------------------- unrest
def test_what_goes_first():
    state = with_log(nodes=4)
    assert unrest(state, indexed(state)) == ""
    command = PrepareSegment(
        shard=SHARD, epoch=shard_of(state).open.epoch, plan=plan_of(2, 1, 2, 3)
    )
    prepared = done(state, command)
    assert unrest(prepared, indexed(prepared)) == "1 shards are being changed"
    halted = prepared.changed(shards=[replace(prepared.shards[SHARD], halted="look")])
    assert unrest(halted, indexed(halted)) == ""
    opened = done(
        prepared,
        SegmentOpened(
            shard=SHARD,
            epoch=prepared.shards[SHARD].drawn,
            begin=Offset(5),
            holders=(replica(1), replica(2)),
        ),
    )
    sealed = shard_of(opened).sealed[0].epoch
    wanted = done(opened, WantHolders(shard=SHARD, epoch=sealed, holders=(replica(4),)))
    assert unrest(wanted, indexed(wanted)) == "1 copies are being made"
    begun = replace(state, recovery=Recovery(id="x", unheard=(name(1),)))
    assert "older data" in unrest(begun, indexed(begun))


# ---------------------------------------------------------------------------------- properties
rates = st.lists(st.floats(min_value=0, max_value=1e7), min_size=12, max_size=12)


@cache
def created(peers: int) -> ClusterState:
    return create(fleet(peers), shards=12)


@given(
    before=st.integers(min_value=3, max_value=6),
    added=st.integers(min_value=0, max_value=4),
    per_shard=rates,
)
def test_it_comes_to_rest_and_every_plan_may_be_opened(before, added, per_shard):
    state = created(before)
    state = grown(state, *range(before + 1, before + added + 1))
    uneven = Uneven(bytes_per_s=dict(zip(sorted(state.shards), per_shard, strict=True)))
    # `make` shows that the guards of the commands take each plan.
    after, moves = settled(state, uneven)
    assert moves <= 12 * 3 * 2
    counts = leads(after)
    assert max(counts.values()) - min(counts[name(n)] for n in range(1, before + added + 1)) <= 2
    assert node_of(after, 1).is_healthy
    assert plan(after, VIEW, LIMITS) == []


@given(per_shard=rates)
def test_a_move_never_makes_the_heaviest_heavier(per_shard):
    state = grown(created(4), 5, 6)
    uneven = Uneven(bytes_per_s=dict(zip(sorted(state.shards), per_shard, strict=True)))
    heaviest = max(share.weight for share in ask(state, uneven, moves_max=0).before)
    for count in (1, 2, 3, 6):
        found = ask(state, uneven, moves_max=count)
        now = max(share.weight for share in found.after)
        assert now <= heaviest + 1e-6
        heaviest = now
