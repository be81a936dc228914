"""A shard is not put behind a link that would not bear it, while others would."""

from las.core.commands import SetAtRisk
from las.core.network import USABLE_SHARE, LinkLoad, Network
from las.core.placement import FleetView, Limits
from las.core.planner import Prepare, Shortage, plan
from las.core.rebalance import Uneven
from las.core.state import ClusterState
from peerd.core.ids import ShardId, Tick
from tests.las_core.builders import SHARD, done, name, plan_of, with_log
from tests.las_core.test_planner import down, numbers
from tests.las_core.test_rebalance import ask, create, fleet, grown

SLOW = 2_500_000  # 20 Mbit/s
BUSY = 5_000_000.0
LIMITS = Limits()


def view(rate: float = BUSY, **capacity: int) -> FleetView:
    """`p4=…` is the capacity of peer-4; the first hundred shards are written to at `rate`."""
    told = {name(int(number[1:])): value for number, value in capacity.items()}
    writes = {ShardId(shard): rate for shard in range(1, 101)} if rate else {}
    return FleetView(now=Tick(0), network=Network(capacity=told, writes=writes))


def voters(state: ClusterState, seen: FleetView) -> set[int]:
    (action,) = plan(state, seen, LIMITS)
    assert isinstance(action, Prepare)
    return numbers(action.plan.voters)


def test_both_directions_count_and_the_fuller_one_decides():
    plans = [(SHARD, plan_of(1, 1, 2, 3))]
    load = LinkLoad(Network(capacity={name(1): 100, name(2): 100}, writes={SHARD: 30.0}), plans)
    # Peer 1 sends 60 and receives 30, peer 2 receives 30.
    assert load.bears(name(1), sent=20)
    assert not load.bears(name(1), sent=21)
    assert load.bears(name(1), received=20)
    assert not load.bears(name(1), received=51)
    assert load.bears(name(2), received=50)
    assert not load.bears(name(2), received=51)
    assert load.bears(name(3), received=1e12), "what is not known bears everything"
    assert USABLE_SHARE == 0.8


def test_what_a_plan_leaves_is_free_again():
    load = LinkLoad(Network(capacity={name(2): 100}, writes={SHARD: 80.0}), [])
    load.count(plan_of(1, 1, 2, 3), 80.0)
    assert not load.bears(name(2), received=1)
    load.count(plan_of(1, 1, 2, 3), -80.0)
    assert load.bears(name(2), received=80)


def test_a_narrow_link_is_passed_over_for_a_busy_shard():
    state = done(with_log(), down(3))
    assert voters(state, view(rate=0.0, p4=SLOW)) == {1, 2, 4}
    assert voters(state, view(p4=SLOW)) == {1, 2, 5}
    assert voters(state, view(rate=1_000.0, p4=SLOW)) == {1, 2, 4}


def test_a_narrow_link_is_better_than_no_voter():
    state = done(with_log(nodes=4, rows=((0, 1, 2),)), down(2), down(3))
    (action,) = plan(state, view(p4=SLOW), LIMITS)
    assert not isinstance(action, Shortage)
    assert numbers(action.plan.voters) == {1, 4}


def test_choices_of_one_round_fill_a_link_together():
    # Room for one shard of this rate on peer 4, and for no second.
    state = done(with_log(nodes=5, rows=((0, 1, 2), (0, 1, 2))), down(3))
    chosen = [numbers(action.plan.voters) for action in plan(state, view(p4=8_000_000), LIMITS)]
    assert sorted(map(sorted, chosen)) == [[1, 2, 4], [1, 2, 5]]


def test_who_leads_next_has_a_link_that_bears_it():
    state = done(with_log(), SetAtRisk(node=name(1), at_risk=True))
    (action,) = plan(state, view(p2=12_000_000), LIMITS)
    # Peer 2 votes already; to lead it would send 10 MB/s of the 9.6 that its link may carry.
    assert action.plan.primary.peer != name(2)
    assert name(2) in {voter.peer for voter in action.plan.voters}


def test_even_nodes_are_not_made_at_the_cost_of_a_link():
    state = grown(create(fleet(5), shards=32), 6)
    rates = {ShardId(shard): BUSY for shard in range(1, 33)}
    narrow = FleetView(now=Tick(0), network=Network(capacity={name(6): SLOW}))
    found = ask(state, Uneven(bytes_per_s=rates), view=narrow)
    assert not any(move.joins == name(6) or move.leads == name(6) for move in found.moves)
    wide = FleetView(now=Tick(0), network=Network(capacity={name(6): 1_000_000_000}))
    found = ask(state, Uneven(bytes_per_s=rates), view=wide)
    assert any(move.joins == name(6) for move in found.moves)


def test_leads_stay_where_the_link_bears_them():
    # Four leads too many on peer 1, which peers 2 and 3 would share; peer 2 cannot send so much.
    state = with_log(nodes=3, rows=((0, 1, 2),) * 6)
    rates = {ShardId(shard): BUSY for shard in range(1, 7)}
    # It receives 30 MB/s, and could send 38 at most.
    narrow = FleetView(now=Tick(0), network=Network(capacity={name(2): 12_000_000}))
    found = ask(state, Uneven(bytes_per_s=rates), view=narrow)
    assert {move.leads for move in found.moves} == {name(3)}
