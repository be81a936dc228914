"""Why a node or shard is as it is: what the planner itself returns, and what it looked at."""

from dataclasses import replace

from las.core.commands import RecordEvent, SetAtRisk, SetDraining
from las.core.explain import explain_node, explain_shard
from las.core.index import indexed
from las.core.placement import FleetView, Limits
from las.core.planner import Prepare, Want, plan
from las.core.state import ClusterState
from peerd.core.ids import Epoch, Offset, ShardId, Tick
from peerd.core.shard_map import Segment
from tests.las_core.builders import SHARD, done, name, plan_of, replica, with_log

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


def past(state: ClusterState, shard: int, *holders: int, known: int = 10, wanted: int = 0):
    """Epoch 1 sealed at 10 on these holders, epoch 2 open with the same plan."""
    entry = state.shards[ShardId(shard)]
    segment = Segment(
        epoch=Epoch(1),
        plan=plan_of(1, 1, 2, 3, acks=3),
        begin=Offset(0),
        end=Offset(10),
        known_commit=Offset(known),
        holders=tuple(replica(each) for each in holders),
        wanted_holders=(replica(wanted),) if wanted else (),
    )
    opened = replace(entry.shard.open, epoch=Epoch(2), begin=Offset(10))
    after = replace(entry.shard, open=opened, sealed=(segment,))
    return state.changed(shards=(replace(entry, shard=after),))


def test_the_past_of_an_endangered_node_is_copied_worst_off_first():
    state = done(with_log(rows=((0, 1, 2),) * 5), SetAtRisk(node=name(1), at_risk=True))
    state = past(state, 1, 1, 2, 3)
    state = past(state, 2, 1, wanted=4)
    state = past(state, 3, 1, 2)
    state = past(state, 4, 1, 2, known=5)
    state = past(state, 5, 2, 3, 4)  # it has nothing of this one
    index = indexed(state)
    facts = list(explain_node(state, VIEW, LIMITS, name(1), index).facts)
    begin = facts.index("4 sealed segments that it holds lack healthy copies, worst-off first:")
    assert facts[begin + 1 : begin + 5] == [
        "  shard 4 segment 1: 1 of 3 healthy, with a kept tail; nobody copies it yet",
        "  shard 2 segment 1: 0 of 3 healthy; peer-4 copies it",
        "  shard 3 segment 1: 1 of 3 healthy; nobody copies it yet",
        "  shard 1 segment 1: 2 of 3 healthy; nobody copies it yet",
    ]
    # The planner asks for them in the same order; the one under way lacks two more.
    planned = [each for each in plan(state, VIEW, LIMITS, index=index) if isinstance(each, Want)]
    assert [each.shard for each in planned] == [4, 2, 3, 1]
    # And with room for one fetch alone, the worst-off has it.
    (first,) = [
        each
        for each in plan(state, VIEW, replace(LIMITS, copies_max=3), index=index)
        if isinstance(each, Want)
    ]
    assert first.shard == 4


def test_who_could_not_vote_is_counted_with_the_reason():
    state = done(with_log(nodes=6), SetDraining(node=name(4), draining=True))
    view = replace(VIEW, free_bytes={name(5): 0}, stalled=frozenset({(SHARD, replica(2))}))
    facts = explain_shard(state, view, LIMITS, SHARD, indexed(state)).facts
    assert "could vote beside them: peer-6" in facts
    assert "could not: 1 being drained, 1 without room" in facts
    assert "the acknowledgements of peer-2 stall" in facts


def test_who_stalls_as_primary_is_told_so():
    state = with_log(nodes=6)
    view = replace(VIEW, slow=frozenset({name(1), name(5)}))
    facts = explain_shard(state, view, LIMITS, SHARD, indexed(state)).facts
    assert "peer-1 stalls as primary: it alone says that others do" in facts
    assert "could not: 1 that stalls as primary" in facts
    facts = explain_node(state, view, LIMITS, name(1), indexed(state)).facts
    assert "it stalls as primary: it says that others stall, and nobody else does" in facts
    assert not any(
        "stalls" in each for each in explain_shard(state, VIEW, LIMITS, SHARD, indexed(state)).facts
    )


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
