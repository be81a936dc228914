"""A primary that sees all its voters stall is the one that stalls."""

import pytest

from las.core import slow_primaries
from las.core.commands import FenceSegment, SetAtRisk
from las.core.index import indexed
from las.core.placement import FleetView, Limits, Placement
from las.core.planner import Prepare, Urgency, plan, recovery_plan
from las.core.slow_primaries import SlowPrimaries, SlowTiming
from peerd.core.ids import Epoch, NodeName, Tick
from peerd.core.shard_map import Plan
from tests.las_core.builders import SHARD, done, name, process, replica, with_log
from tests.las_core.test_planner import VIEW, down, recovered

TIMING = SlowTiming(believed_ms=5_000, lasting_ms=300, kept_ms=30_000)


class Told:
    """Accusations that are repeated until they are withdrawn: `ab` is a accusing b."""

    def __init__(self, *pairs: str) -> None:
        self.pairs = set(pairs)
        self.now = 1_000
        self.slow = SlowPrimaries(TIMING)
        self.spared: set[NodeName] = set()

    def after(self, ms: int) -> str:
        """The nodes that count as slow once so much time has passed."""
        until = self.now + ms
        while True:
            for accuser, node in self.pairs:
                self.slow.accused(NodeName(accuser), NodeName(node), Tick(self.now))
            self.slow.look(Tick(self.now), self.spared)
            if self.now == until:
                return "".join(sorted(self.slow.nodes))
            self.now = min(self.now + 100, until)


@pytest.mark.parametrize(
    ("pairs", "found"),
    [
        ((), ""),
        # Late packets: it accuses its voters, and is accused by who it votes for.
        (("ab", "ac", "ba", "ca", "da"), "a"),
        (("ab", "ba", "ca"), "a"),
        # It votes for nobody who appends.
        (("ab", "ac"), "a"),
        # A bad link between two.
        (("ab", "ba"), ""),
        # A sick disk: it accuses nobody.
        (("ba", "ca", "da"), ""),
        # One voter stalls, and one accuser tells.
        (("ab",), ""),
        # Two nodes stall, and more than one primary tells.
        (("ab", "ac", "db"), ""),
        # Everybody stalls.
        (("ab", "ac", "ba", "bc", "ca", "cb"), ""),
        # Of its own store it speaks rightly.
        (("aa", "ab"), ""),
        # Two that stall themselves, each towards others.
        (("ab", "ac", "xy", "xz"), "ax"),
    ],
)
def test_an_accuser_is_the_one_that_stalls(pairs, found):
    assert Told(*pairs).after(TIMING.lasting_ms) == found


def test_it_has_to_last_since_where_everybody_stalls_others_say_so_soon():
    told = Told("ab", "ac")
    assert told.after(TIMING.lasting_ms - 1) == ""
    told.pairs.add("db")
    assert told.after(10_000) == ""
    told.pairs.discard("db")
    assert told.after(TIMING.believed_ms) == "", "it is still believed"
    assert told.after(101 + TIMING.lasting_ms) == "a"


def test_it_is_kept_for_a_while_after_its_last_accusation():
    told = Told("ab", "ac")
    assert told.after(300) == "a"
    found = told.slow.nodes
    told.pairs.clear()
    assert told.after(TIMING.believed_ms + TIMING.kept_ms) == "a"
    assert told.slow.nodes is found
    assert told.after(1) == ""
    assert told.after(1_000) == ""


def test_an_accusation_that_is_not_repeated_is_forgotten():
    told = Told("ab", "ac")
    told.after(200)
    told.pairs.discard("ac")
    assert told.after(99) == ""
    told = Told("ab")
    told.after(0)
    told.pairs = {"ac"}
    told.now += TIMING.believed_ms + 1
    assert told.after(1_000) == "", "one at a time"


def test_who_has_just_taken_over_many_shards_is_spared():
    told = Told("ab", "ac", "xy", "xz")
    told.spared.add(NodeName("a"))
    assert told.after(1_000) == "x"
    told.spared.clear()
    assert told.after(TIMING.lasting_ms - 1) == "x", "it begins anew"
    assert told.after(1) == "ax"


def test_accusers_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(slow_primaries, "ACCUSERS_MAX", 2)
    told = Told("ab", "cb", "db", "eb")
    assert told.after(1_000) == ""
    assert len(told.slow._accusers[NodeName("b")]) == 2


# ---------------------------------------------------------------------------------- the planner
def test_a_node_that_stalls_as_primary_leads_elsewhere_and_gets_nothing_new():
    view = FleetView(now=Tick(0), slow=frozenset({name(1), name(4)}))
    (action,) = plan(with_log(), view, Limits())
    assert isinstance(action, Prepare)
    assert action.urgency is Urgency.STALLED
    assert action.why.startswith("peer-1 stalls as primary: peer-5 joins, peer-1 leaves")
    assert {each.peer for each in action.plan.voters} == set(map(name, (2, 3, 5)))
    assert action.plan.primary.peer != name(1)
    assert action.plan.non_voters == (replica(1),)
    as_voter = FleetView(now=Tick(0), slow=frozenset({name(2)}))
    assert plan(with_log(), as_voter, Limits()) == [], "where it only votes nobody waits for it"
    alone = FleetView(now=Tick(0), slow=frozenset({name(1)}))
    (action,) = plan(with_log(nodes=3), alone, Limits())
    assert isinstance(action, Prepare)
    assert {each.peer for each in action.plan.voters} == {name(2), name(3)}
    left = done(with_log(nodes=3), down(3))
    (action,) = [each for each in plan(left, alone, Limits()) if isinstance(each, Prepare)]
    assert {each.peer for each in action.plan.voters} == {name(1), name(2)}, "nobody else is left"
    assert action.plan.primary == process(2)


def test_one_that_stalls_as_primary_is_no_mirror():
    state = done(with_log(), SetAtRisk(node=name(1), at_risk=True))
    (action,) = plan(state, VIEW, Limits(mirror=True))
    assert isinstance(action, Prepare)
    assert action.plan.primary == process(1)
    view = FleetView(now=Tick(0), slow=frozenset({name(1)}))
    (action,) = plan(state, view, Limits(mirror=True))
    assert isinstance(action, Prepare)
    assert action.plan.primary != process(1)


def test_a_fence_that_it_answered_does_not_give_the_shard_back():
    state = done(with_log(), FenceSegment(shard=SHARD, epoch=Epoch(1)))

    def opened(slow: frozenset[NodeName]) -> Plan:
        view = FleetView(now=Tick(0), slow=slow)
        plan = recovery_plan(
            state,
            Placement(state, view, Limits(), indexed(state)),
            shard=SHARD,
            recovered=recovered(1, 2, 3),
            answered=frozenset(map(replica, (1, 2, 3))),
        )
        assert plan is not None
        return plan

    first = opened(frozenset()).primary
    found = opened(frozenset({first.peer}))
    assert found.primary != first
    assert first.replica not in found.voters
