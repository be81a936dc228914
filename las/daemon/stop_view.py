"""The answer to "may I stop this node?": what each shard would lose, and in words what to do."""

from collections import defaultdict

from las.core.index import FleetIndex
from las.core.membership import StopCost, StopCostKind, stop_costs
from las.core.state import ClusterState
from las.v1 import fleet_pb2
from peerd.core.ids import NodeName

# limit: costs that one answer lists; the others are counted.
COSTS_LISTED_MAX = 1_000
# limit: shards that a line names; the others are counted.
SHARDS_NAMED_MAX = 3

_KINDS = {
    StopCostKind.UNREADABLE: fleet_pb2.STOP_COST_KIND_UNREADABLE,
    StopCostKind.PAUSE: fleet_pb2.STOP_COST_KIND_PAUSE,
    StopCostKind.FEWER_COPIES: fleet_pb2.STOP_COST_KIND_FEWER_COPIES,
}
_WORDS = {
    StopCostKind.UNREADABLE: "records of {shards} could not be read while it is away",
    StopCostKind.PAUSE: "appends to {shards} would pause until the LAS has replaced it",
    StopCostKind.FEWER_COPIES: "records of {shards} would be on fewer nodes than promised",
}


def stop_view(
    state: ClusterState, index: FleetIndex, node: NodeName
) -> fleet_pb2.CheckStopResponse:
    """What stopping `node` costs. `index` is an index of `state`."""
    costs = stop_costs(state, index, node)
    reasons = _reasons(costs)
    if costs and not state.nodes[node].draining:
        reasons.append(f"`peerctl node drain {node}` moves all of this elsewhere without a pause")
    elif costs:
        reasons.append("it is being drained: ask again, or watch `peerctl node list`")
    return fleet_pb2.CheckStopResponse(
        safe=not costs,
        reasons=reasons,
        costs=[
            fleet_pb2.StopCost(kind=_KINDS[cost.kind], log=cost.log, shard=cost.shard, why=cost.why)
            for cost in costs[:COSTS_LISTED_MAX]
        ],
        costs_total=len(costs),
    )


def _reasons(costs: list[StopCost]) -> list[str]:
    shards: dict[StopCostKind, dict[str, None]] = defaultdict(dict)
    for cost in costs:
        shards[cost.kind][f"{cost.log}/{cost.shard}"] = None
    lines = []
    for kind, names in shards.items():
        listed = ", ".join(list(names)[:SHARDS_NAMED_MAX])
        more = len(names) - SHARDS_NAMED_MAX
        lines.append(_WORDS[kind].format(shards=f"{listed} and {more} more" * (more > 0) or listed))
    return lines
