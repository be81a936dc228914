"""What the planner sees of a node or a shard, and what it would do now: its own return value.

`plan` is pure, so the answer to "why" is what it returns for that shard, with the facts that it
looked at. Nothing here decides.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from las.core import planner, protection
from las.core.index import FleetIndex
from las.core.placement import FleetView, Health, Limits, Placement
from las.core.planner import Action
from las.core.rebalance import REBALANCED
from las.core.state import ClusterState, Node, NodeState, ShardEntry
from peerd.core.ids import NO_EPOCH, NodeName, ShardId
from peerd.core.shard_map import Plan

# limit: shards of a node for which an explanation plans; the first ones by id.
SHARDS_EXPLAINED_MAX = 1_000
# limit: nodes that an explanation names as considered for a place; the others are counted.
CONSIDERED_MAX = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """`facts` are lines for people; `actions` is what `plan` returns, the most urgent first."""

    facts: tuple[str, ...]
    actions: tuple[Action, ...]


def explain_node(
    state: ClusterState, view: FleetView, limits: Limits, name: NodeName, index: FleetIndex
) -> Explanation:
    """Why a node has the part that it has. `name` is a node of `state`."""
    node = state.nodes[name]
    facts = [
        f"it is {_standing(node)}",
        (
            f"leads {index.leading[name]} shards, votes in {index.voting[name]}, "
            f"holds {index.holding[node.replica]} sealed segments"
        ),
    ]
    if name in view.slow:
        facts.append("it stalls as primary: it says that others stall, and nobody else does")
    if node.at_risk or node.draining:
        if protection.is_expendable(state, name, index):
            facts.append("expendable: all that it has is on enough healthy nodes, too")
        elif protection.is_shielded(state, name, index):
            facts.append("shielded: no open segment needs it; its past is being copied")
        elif protection.is_mirrored(state, name, index):
            facts.append(
                f"mirrored: no record needs it; it orders {index.leading[name]} shards, whose "
                "appends wait for another primary when it dies"
            )
        else:
            facts.append("not yet shielded: open segments still need it")
    shards = sorted(index.shards_of(name))
    if len(shards) > SHARDS_EXPLAINED_MAX:
        facts.append(f"planned for the first {SHARDS_EXPLAINED_MAX} of its {len(shards)} shards")
    shards = shards[:SHARDS_EXPLAINED_MAX]
    if node.at_risk or node.draining:
        placement = Placement(state, view, limits, index)
        facts += _prefetch(planner.lacking_copies(state, placement, name, shards))
    actions = planner.plan(state, view, limits, index=index, shards=shards)
    return Explanation(facts=tuple(facts), actions=tuple(actions))


def explain_shard(
    state: ClusterState, view: FleetView, limits: Limits, shard: ShardId, index: FleetIndex
) -> Explanation:
    """Why a shard is where it is. `shard` is one of `state`."""
    entry = state.shards[shard]
    log = state.logs[entry.shard.log]
    placement = Placement(state, view, limits, index)
    plan = entry.shard.open.plan
    actions = planner.plan(state, view, limits, index=index, shards=[shard])
    facts = [*_about_plan(state, view, entry, plan, log.copies)]
    if entry.halted:
        facts.append(f"halted, nothing is changed until a person has looked: {entry.halted}")
    if entry.shard.prepared is not None:
        after = entry.shard.prepared.plan
        facts.append(f"segment {entry.shard.prepared.epoch} is prepared: {_voters(state, after)}")
    if entry.shard.fence != NO_EPOCH:
        facts.append(f"fence {entry.shard.fence} stands: its end is being found out")
    short = sum(
        sum(placement.health(each) is Health.HEALTHY for each in segment.holders) < log.copies
        for segment in entry.shard.sealed
    )
    facts.append(f"{short} of {len(entry.shard.sealed)} sealed segments lack healthy copies")
    facts += _moved(state, entry)
    facts += _moving(view, shard)
    facts += _considered(state, view, limits, plan)
    if not actions:
        facts.append("nothing is to be changed, or what is needed is under way")
    return Explanation(facts=tuple(facts), actions=tuple(actions))


def _prefetch(lacking: list[planner.Lacking]) -> Iterable[str]:
    """In which order the past of an endangered node is copied."""
    if not lacking:
        return
    yield f"{len(lacking)} sealed segments that it holds lack healthy copies, worst-off first:"
    for each in lacking[:CONSIDERED_MAX]:
        tail = ", with a kept tail" if each.kept_tail else ""
        who = f"{', '.join(each.wanted)} copies it" if each.wanted else "nobody copies it yet"
        yield (
            f"  shard {each.shard} segment {each.epoch}: {each.healthy} of {each.copies} "
            f"healthy{tail}; {who}"
        )
    if len(lacking) > CONSIDERED_MAX:
        yield f"  and {len(lacking) - CONSIDERED_MAX} more"


def _about_plan(
    state: ClusterState, view: FleetView, entry: ShardEntry, plan: Plan, copies: int
) -> Iterable[str]:
    yield (
        f"segment {entry.shard.open.epoch} is open: {_voters(state, plan)}; {plan.acks} of them "
        f"acknowledge, {copies} copies are promised"
    )
    for voter in plan.voters:
        if (entry.shard.shard, voter) in view.stalled:
            yield f"the acknowledgements of {voter.peer} stall"
    if plan.primary.peer in view.slow:
        yield f"{plan.primary.peer} stalls as primary: it alone says that others do"
    if plan.non_voters:
        names = ", ".join(each.peer for each in plan.non_voters)
        yield f"{names} get everything, and nobody waits for them"


def _moved(state: ClusterState, entry: ShardEntry) -> Iterable[str]:
    """Why the shard was moved to where it is, if that is remembered of one of its voters."""
    begin = f"shard {entry.shard.shard}: "
    told = [
        event
        for voter in entry.shard.open.plan.voters
        for event in state.events.get(voter.peer, ())
        if event.kind == REBALANCED and event.text.startswith(begin)
    ]
    if told:
        last = max(told, key=lambda event: event.timestamp_ms)
        yield f"moved so that nodes carry alike: {last.text.removeprefix(begin)}"


def _moving(view: FleetView, shard: ShardId) -> Iterable[str]:
    """Which copies of the shard are made though there are enough: another one goes then."""
    for _, epoch, store in sorted(each for each in view.moving if each[0] == shard):
        yield (
            f"{store.peer} fetches segment {epoch} so that nodes store alike; when it has it, "
            "another holder lets it go"
        )


def _voters(state: ClusterState, plan: Plan) -> str:
    told = []
    for voter in plan.voters:
        node = state.nodes.get(voter.peer)
        standing = "unknown" if node is None else _standing(node)
        told.append(f"{voter.peer} ({standing})")
    return f"{plan.primary.peer} leads, {', '.join(told)} vote"


def _standing(node: Node) -> str:
    if node.state is not NodeState.UP:
        return "down" if node.state is NodeState.DOWN else "failed"
    words = ["at risk"] * node.at_risk + ["being drained"] * node.draining
    return " and ".join(words) or "healthy"


def _considered(state: ClusterState, view: FleetView, limits: Limits, plan: Plan) -> Iterable[str]:
    """Who could be one more voter of `plan`, and why others could not."""
    hosts = {state.nodes[each.peer].host for each in plan.voters if each.peer in state.nodes}
    voters = {each.peer for each in plan.voters}
    fit: list[NodeName] = []
    unfit: Counter[str] = Counter()
    for name in sorted(state.nodes.keys() - voters):
        node = state.nodes[name]
        free = view.free_bytes.get(name)
        if not node.is_healthy:
            unfit[_standing(node)] += 1
        elif name in view.slow:
            unfit["that stalls as primary"] += 1
        elif node.host in hosts:
            unfit["on a host of a voter"] += 1
        elif free is not None and free < limits.free_bytes_min:
            unfit["without room"] += 1
        else:
            fit.append(name)
    named = ", ".join(fit[:CONSIDERED_MAX])
    more = f" and {len(fit) - CONSIDERED_MAX} more" if len(fit) > CONSIDERED_MAX else ""
    yield f"could vote beside them: {named or 'nobody'}{more}"
    if unfit:
        yield "could not: " + ", ".join(f"{count} {why}" for why, count in unfit.most_common())
