"""How the LAS's own commands write the history of failures.

An outage is written by the very command that says so: `SetNodeState` begins and ends it, and
`RegisterNode` ends it, or writes one of no length where a process was replaced before anybody
missed it. So none is missed when the leader changes, and each is written once.

Invariants:
- A command without a wall time (`at_s` 0) writes nothing.
- Whom an operator was draining went by that operator's wish, whatever it looked like.
- What a later look disproves is put right: a process that is heard again did not crash.
"""

from dataclasses import replace

from las.core import commands as c
from las.core.commands import Result
from las.core.history import OUTAGE_NAME_CHARS_MAX, TIME_S_MAX, Cause, Outage
from las.core.segments import Applied
from las.core.state import ClusterState, Node, NodeState

_GUESSED = frozenset({Cause.CRASH, Cause.UNKNOWN})
"""Causes that the return of the same process disproves, or may name better."""


def judged(state: ClusterState, before: Node, after: Node, command: c.SetNodeState) -> ClusterState:
    """`state` with what `command`, which made `after` of `before`, says for the history."""
    if not command.at_s or before.state is after.state:
        return state
    if after.state is NodeState.UP:
        return _returned(state, after, command)
    cause = Cause.OPERATOR if before.draining else command.cause
    goes_on = None if before.state is NodeState.UP else state.history.still_down(after.name)
    outage = goes_on or _outage(after, command.at_s)
    return _with(state, replace(outage, cause=cause))


def registered(
    state: ClusterState, before: Node | None, after: Node, command: c.RegisterNode
) -> ClusterState:
    """`state` with what a registration, which made `after` of `before`, says for the history."""
    if not command.at_s or before is None or before.boot == after.boot:
        return state
    if before.state is not NodeState.UP:
        return replace(state, history=state.history.ended(after.name, _bounded(command.at_s)))
    cause = Cause.OPERATOR if before.draining else command.ended_by
    outage = _outage(after, command.at_s)
    return _with(state, replace(outage, end_s=outage.begin_s, cause=cause))


def record_outages(state: ClusterState, command: c.RecordOutages) -> Applied:
    """Outages that were seen elsewhere.

    | `RecordOutages(rows)` | always | rows of the history of failures, each once: node and begin
    name it, the last word on one stands; the oldest make room. No change of the map. |
    """
    history, taken = state.history.with_outages(command.outages)
    return replace(state, history=history), Result(
        ok=True, text=f"{taken.added} added, {taken.changed} changed", taken=taken
    )


def _returned(state: ClusterState, node: Node, command: c.SetNodeState) -> ClusterState:
    """The same process is heard again: it never ended."""
    outage = state.history.still_down(node.name)
    if outage is None:
        return state
    cause = command.cause if outage.cause in _GUESSED else outage.cause
    end_s = max(outage.begin_s, _bounded(command.at_s))
    return _with(state, replace(outage, end_s=end_s, cause=cause))


def _outage(node: Node, at_s: int) -> Outage:
    begin_s = _bounded(at_s)
    known = 0 < node.in_service_s <= begin_s
    return Outage(
        node=node.name[:OUTAGE_NAME_CHARS_MAX],
        host=node.host[:OUTAGE_NAME_CHARS_MAX],
        rack=node.label("rack")[:OUTAGE_NAME_CHARS_MAX],
        begin_s=begin_s,
        end_s=None,
        cause=Cause.UNKNOWN,
        in_service_s=node.in_service_s if known else None,
    )


def _bounded(at_s: int) -> int:
    return max(0, min(at_s, TIME_S_MAX))


def _with(state: ClusterState, outage: Outage) -> ClusterState:
    return replace(state, history=state.history.with_outages([outage])[0])
