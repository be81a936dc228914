"""What lies where and what is to be moved, as operators see it."""

from las.core.commands import RecordEvent
from las.core.rebalance import REBALANCED, Balance, Move
from las.core.state import ClusterState
from las.v1 import fleet_pb2


def rebalance_view(state: ClusterState, found: Balance, told: str) -> fleet_pb2.RebalanceResponse:
    """The answer to `Rebalance`; `told` is what the rebalancer does at the moment."""
    nodes = [
        fleet_pb2.NodeShare(
            node=before.node,
            weight=before.weight,
            votes=before.votes,
            leads=before.leads,
            weight_after=after.weight,
            votes_after=after.votes,
            leads_after=after.leads,
        )
        for before, after in zip(found.before, found.after, strict=True)
    ]
    return fleet_pb2.RebalanceResponse(
        state=told,
        nodes=nodes,
        even_weight=found.even_weight,
        even_leads=found.even_leads,
        moves=[_move(state, move) for move in found.moves],
        more=found.more,
    )


def asked_for(found: Balance, timestamp_ms: int) -> RecordEvent:
    """What is committed when somebody asks for the moves: a line at the node that gives first."""
    first = found.moves[0]
    several = f"{len(found.moves)}{' or more' if found.more else ''} moves"
    return RecordEvent(
        node=first.leaves or first.plan.primary.peer,
        kind=REBALANCED,
        text=f"asked for by an operator: {several}, the first for {first.why}",
        timestamp_ms=timestamp_ms,
    )


def _move(state: ClusterState, move: Move) -> fleet_pb2.RebalanceMove:
    return fleet_pb2.RebalanceMove(
        shard=move.shard,
        log=state.shards[move.shard].shard.log,
        leaves=move.leaves,
        joins=move.joins,
        leads=move.leads,
        why=move.why,
    )
