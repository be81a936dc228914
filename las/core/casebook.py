"""The commands of the ledger, and what of the map decides whether a case joins the experiment."""

from dataclasses import replace

from las.core import commands as c
from las.core.commands import Reason, Result
from las.core.index import FleetIndex
from las.core.ledger import CASE_TEXT_MAX, CASES_MAX, Case, Outcome
from las.core.segments import Applied, refuse
from las.core.state import ClusterState
from peerd.core.ids import NodeName


def open_case(state: ClusterState, command: c.OpenCase) -> Applied:
    """An alarm, or a failure without one.

    | `OpenCase(case)` | the node is known | the newest 4096 cases are kept; a node has one open
    case, whose response may change. |
    """
    case = command.case
    if case.node not in state.nodes:
        return refuse(state, Reason.UNKNOWN_NODE, f"no node is called {case.node}")
    known = open_case_of(state, case.node)
    if known is None:
        number = state.next_case
        kept = state.cases.without(number - CASES_MAX)
        taken = replace(case, number=number, outcome=Outcome.OPEN, why=case.why[:CASE_TEXT_MAX])
        after = replace(state, cases=kept.with_item(number, taken), next_case=number + 1)
        return after, Result(ok=True)
    if known.response is case.response:
        return state, Result(ok=True, text="so it is already")
    changed = replace(known, response=case.response, eligible=case.eligible)
    return replace(state, cases=state.cases.with_item(known.number, changed)), Result(ok=True)


def close_case(state: ClusterState, command: c.CloseCase) -> Applied:
    """How a case ended.

    | `CloseCase(number, outcome)` | the case is open | it is closed for good. |
    """
    case = state.cases.get(command.number)
    if case is None or not case.is_open:
        return state, Result(ok=True, text="it is closed already, or forgotten")
    if command.outcome is Outcome.OPEN:
        return refuse(state, Reason.INVALID_ARGUMENT, "a case is closed with an outcome")
    closed = replace(
        case,
        outcome=command.outcome,
        closed_ms=command.closed_ms,
        lead_ms=command.lead_ms,
        shielded_ms=command.shielded_ms,
        expendable_ms=command.expendable_ms,
        pause_ms=command.pause_ms,
        told=command.told[:CASE_TEXT_MAX],
    )
    return replace(state, cases=state.cases.with_item(case.number, closed)), Result(ok=True)


def open_case_of(state: ClusterState, node: NodeName) -> Case | None:
    """The open case of a node."""
    return next((case for case in state.cases.values() if case.is_open and case.node == node), None)


def open_cases(state: ClusterState) -> dict[NodeName, Case]:
    """The open cases by node."""
    return {case.node: case for case in state.cases.values() if case.is_open}


def costs_only_a_pause(state: ClusterState, index: FleetIndex, node: NodeName) -> bool:
    """Whether the node's failure would leave each record on at least two healthy nodes.

    Open segments keep `acks` healthy voters without it, sealed ones two healthy holders: nothing
    waits for its return, and one more failure loses nothing.
    """
    for shard in index.shards_of(node):
        entry = state.shards[shard].shard
        if entry.prepared is not None:
            return False
        voters = [each for each in entry.open.plan.voters if each.peer != node]
        healthy = sum(state.is_healthy(each) for each in voters)
        if len(voters) < len(entry.open.plan.voters) and healthy < max(2, entry.open.plan.acks):
            return False
        for segment in entry.sealed:
            others = [each for each in segment.holders if each.peer != node]
            if len(others) < len(segment.holders) and sum(map(state.is_healthy, others)) < 2:
                return False
    return True
