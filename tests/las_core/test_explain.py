"""Why a node or shard is as it is: what the planner itself returns, and what it looked at."""

from dataclasses import replace

from las.core.commands import RecordEvent, SetAtRisk, SetDraining
from las.core.explain import explain_node, explain_shard
from las.core.index import indexed
from las.core.placement import FleetView, Limits
from las.core.planner import Prepare, plan
from peerd.core.ids import Tick
from tests.las_core.builders import SHARD, done, name, replica, with_log

VIEW, LIMITS = FleetView(now=Tick(0)), Limits()


def test_a_calm_shard_says_who_could_vote_and_that_nothing_is_to_be_done():
    state = with_log()
    seen = explain_shard(state, VIEW, LIMITS, SHARD, indexed(state))
    assert seen.actions == ()
    assert seen.facts == (
        (
            "segment 1 is open: peer-1 leads, peer-1 (healthy), peer-2 (healthy), peer-3 (healthy) "
            "vote; 2 of them acknowledge, 3 copies are promised"
        ),
        "0 of 0 sealed segments lack healthy copies",
        "could vote beside them: peer-4, peer-5",
        "nothing is to be changed, or what is needed is under way",
    )


def test_what_is_told_is_what_the_planner_returns():
    state = done(with_log(), SetAtRisk(node=name(1), at_risk=True))
    index = indexed(state)
    planned = tuple(plan(state, VIEW, LIMITS, index=index))
    assert isinstance(planned[0], Prepare)
    assert explain_shard(state, VIEW, LIMITS, SHARD, index).actions == planned
    seen = explain_node(state, VIEW, LIMITS, name(1), index)
    assert seen.actions == planned
    assert seen.facts[0] == "it is at risk"
    assert seen.facts[-1] == "not yet shielded: open segments still need it"


def test_who_could_not_vote_is_counted_with_the_reason():
    state = done(with_log(nodes=6), SetDraining(node=name(4), draining=True))
    view = replace(VIEW, free_bytes={name(5): 0}, stalled=frozenset({(SHARD, replica(2))}))
    facts = explain_shard(state, view, LIMITS, SHARD, indexed(state)).facts
    assert "could vote beside them: peer-6" in facts
    assert "could not: 1 being drained, 1 without room" in facts
    assert "the acknowledgements of peer-2 stall" in facts


def test_a_node_that_nothing_needs_is_expendable():
    state = done(with_log(), SetAtRisk(node=name(5), at_risk=True))
    facts = explain_node(state, VIEW, LIMITS, name(5), indexed(state)).facts
    assert facts[1] == "leads 0 shards, votes in 0, holds 0 sealed segments"
    assert facts[2].startswith("expendable")


def test_why_a_shard_was_moved_is_told_as_long_as_a_voter_remembers():
    def told(number: int, text: str, at: int) -> RecordEvent:
        return RecordEvent(node=name(number), kind="rebalance", text=text, timestamp_ms=at)

    state = done(
        with_log(),
        told(2, "shard 1: peer-2 votes in place of peer-4; for a reason", 5),
        told(3, "shard 1: peer-3 votes in place of peer-5; for another", 4),
        told(2, "shard 11: peer-2 votes in place of peer-4; for a third", 9),
    )
    facts = explain_shard(state, VIEW, LIMITS, SHARD, indexed(state)).facts
    moved = [fact for fact in facts if fact.startswith("moved")]
    assert moved == [
        "moved so that nodes carry alike: peer-2 votes in place of peer-4; for a reason"
    ]
