"""Who leaves the fleet, and what that costs: removing a node, replacing its store, stopping it.

A node that is down still owns what its store has: its word may be needed to finish a fence, and its
copies may be the last ones. So a node leaves the map only when nothing there needs it, and a store
is given up only when its records are elsewhere, or a person accepts that they are not. Neither
command deletes anything: a node that comes back registers with what it has, and an old store can be
put in its place again.

`stop_costs` looks from the other side: what it would cost if a node stopped now.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from las.core import commands as c
from las.core.commands import Reason, Result
from las.core.index import FleetIndex
from las.core.segments import Applied, refuse
from las.core.state import ClusterState, NodeState, ShardEntry
from peerd.core.ids import BootId, NodeName, ReplicaId, ShardId
from peerd.core.shard_map import Segment

# limit: shards that a refusal names; the others are counted.
SHARDS_NAMED_MAX = 3


# ---------------------------------------------------------------------------------- commands
def remove_node(state: ClusterState, command: c.RemoveNode) -> Applied:
    """An operator takes a node out of the fleet.

    | `RemoveNode(node)` | the node is known and not up; it is no voter and no primary of an open or
    prepared segment; each sealed segment that lists it as a holder lists another node's store,
    whose storage did not fail | the node is gone from the map. |
    """
    node = state.nodes.get(command.node)
    if node is None:
        return refuse(state, Reason.UNKNOWN_NODE, f"no node is called {command.node}")
    if node.state is NodeState.UP:
        text = f"{node.name} is up: drain it (`peerctl node drain {node.name}`), then stop it first"
        return refuse(state, Reason.STATE_CHANGED, text)
    needed = [
        entry
        for entry in state.shards.values()
        if _needs(entry, node.name) or any(_last_holders(state, entry, node.name))
    ]
    if needed:
        text = f"{_listed(needed)} still need {node.name}: wait until other nodes have what it has"
        return refuse(state, Reason.STATE_CHANGED, text)
    return state.without_node(node.name), Result(ok=True, text="removed")


def replace_node(state: ClusterState, command: c.ReplaceNode) -> Applied:
    """An operator puts a new store in the place of the recorded one.

    | `ReplaceNode(node, store)` | the node is known and not up; no other node has the store; and,
    unless a person accepts the loss, each open segment keeps enough voters to be finished without
    it, each sealed one another holder | the node's recorded store is the new one, and its old
    process is proven dead. |
    """
    node = state.nodes.get(command.node)
    if node is None:
        return refuse(state, Reason.UNKNOWN_NODE, f"no node is called {command.node}")
    if node.store == command.store:
        return state, Result(ok=True, text="so it is already")
    if node.state is NodeState.UP:
        text = f"{node.name} is up with store {node.store}: stop it first"
        return refuse(state, Reason.STATE_CHANGED, text)
    if owner := next((each for each in state.nodes.values() if each.store == command.store), None):
        text = f"store {command.store} is that of {owner.name}: a store belongs to one node"
        return refuse(state, Reason.INVALID_ARGUMENT, text)
    lost = [
        entry
        for entry in state.shards.values()
        if _undecidable(state, entry, node.replica) or any(_last_holders(state, entry, node.name))
    ]
    if lost and not command.accept_loss:
        text = (
            f"without store {node.store} of {node.name}, records of {_listed(lost)} may be lost: "
            "bring it or other holders back, or accept the loss"
        )
        return refuse(state, Reason.STATE_CHANGED, text)
    after = replace(
        node,
        store=command.store,
        boot=BootId(""),
        state=NodeState.DOWN,
        at_risk=False,
        dead_boots=node.boots_dead_with_it,
    )
    return state.changed(nodes=(after,)), Result(ok=True, text="replaced")


def _needs(entry: ShardEntry, node: NodeName) -> bool:
    """Whether the open or the prepared segment may need the word of `node`: nobody waits for a
    replica without a vote (§1).
    """
    shard = entry.shard
    segments = (shard.open,) if shard.prepared is None else (shard.open, shard.prepared)
    return any(
        node in {each.plan.primary.peer, *(voter.peer for voter in each.plan.voters)}
        for each in segments
    )


def _last_holders(state: ClusterState, entry: ShardEntry, node: NodeName) -> Iterator[Segment]:
    """Sealed segments of which `node` is a holder and no other one is left."""
    for segment in entry.shard.sealed:
        if any(holder.peer == node for holder in segment.holders) and not any(
            holder.peer != node and _is_kept(state, holder) for holder in segment.holders
        ):
            yield segment


def _is_kept(state: ClusterState, replica: ReplicaId) -> bool:
    """Whether a store is the recorded one of a node and, as far as is known, whole."""
    node = state.node_of(replica)
    return node is not None and node.state is not NodeState.FAILED


def _undecidable(state: ClusterState, entry: ShardEntry, store: ReplicaId) -> bool:
    """Whether an open or prepared segment could not be ended without `store` (§4.2: n - acks + 1
    voters must answer).
    """
    for segment in (entry.shard.open, entry.shard.prepared):
        if segment is None or store not in segment.plan.voters:
            continue
        left = sum(each != store and _is_kept(state, each) for each in segment.plan.voters)
        if left < len(segment.plan.voters) - segment.plan.acks + 1:
            return True
    return False


def _listed(entries: Iterable[ShardEntry]) -> str:
    names = [f"{entry.shard.log}/{entry.shard.shard}" for entry in entries]
    more = len(names) - SHARDS_NAMED_MAX
    listed = ", ".join(sorted(names)[:SHARDS_NAMED_MAX])
    return f"{listed} and {more} more" if more > 0 else listed


# ---------------------------------------------------------------------------------- stopping
class StopCostKind(StrEnum):
    """What a shard loses when a node stops; the worst first."""

    UNREADABLE = "unreadable"
    """Sealed records are on no other node that is up."""
    PAUSE = "pause"
    """Appends wait until the LAS has replaced the node."""
    FEWER_COPIES = "fewer_copies"
    """Records are on fewer healthy nodes than the log's policy promises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopCost:
    """One cost for one shard, in words an operator reads."""

    kind: StopCostKind
    shard: ShardId
    log: str
    why: str


def stop_costs(state: ClusterState, index: FleetIndex, name: NodeName) -> list[StopCost]:
    """What each shard would lose if `name` stopped now, the worst first; none: it is safe.

    `index` is an index of `state`. The node itself may be up or not.
    """
    costs = [
        cost
        for shard in index.shards_of(name)
        for cost in _costs_of_shard(state, state.shards[shard], name)
    ]
    order = list(StopCostKind)
    return sorted(costs, key=lambda each: (order.index(each.kind), each.log, each.shard))


def _costs_of_shard(state: ClusterState, entry: ShardEntry, name: NodeName) -> Iterator[StopCost]:
    shard = entry.shard
    copies = state.logs[shard.log].copies

    def cost(kind: StopCostKind, why: str) -> StopCost:
        return StopCost(kind=kind, shard=shard.shard, log=shard.log, why=why)

    plan = shard.open.plan
    up = [each for each in plan.voters if each.peer != name and state.is_up(each)]
    if plan.primary.peer == name:
        yield cost(StopCostKind.PAUSE, "it is the primary")
    elif any(each.peer == name for each in plan.voters) and len(up) < plan.acks:
        yield cost(StopCostKind.PAUSE, f"{len(up)} voters would be up, {plan.acks} are needed")
    if any(each.peer == name for each in plan.voters):
        healthy = sum(state.is_healthy(each) for each in up)
        if healthy < copies:
            yield cost(
                StopCostKind.FEWER_COPIES,
                f"{healthy} healthy voters would be left of {copies} copies",
            )
    short: Counter[StopCostKind] = Counter()
    for segment in shard.sealed:
        if all(holder.peer != name for holder in segment.holders):
            continue
        others = [each for each in segment.holders if each.peer != name and state.is_up(each)]
        if not others:
            short[StopCostKind.UNREADABLE] += 1
        elif sum(state.is_healthy(each) for each in others) < copies:
            short[StopCostKind.FEWER_COPIES] += 1
    for kind, count in short.items():
        where = "on no other node that is up"
        if kind is StopCostKind.FEWER_COPIES:
            where = f"on fewer than {copies} other healthy nodes"
        yield cost(kind, f"{count} sealed segment{'s' * (count > 1)} {where}")
