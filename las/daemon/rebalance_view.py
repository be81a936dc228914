"""What lies where and what is to be moved, as operators see it."""

from las.core.commands import RecordEvent
from las.core.rebalance import REBALANCED, Balance, Move
from las.core.state import ClusterState
from las.core.stored_balance import CopyBalance, CopyMove
from las.v1 import fleet_pb2

# limit: moves of each kind in one answer, as many as an operator reads.
TOLD_MAX = 256


def rebalance_view(
    state: ClusterState, found: Balance, copies: CopyBalance, told: str
) -> fleet_pb2.RebalanceResponse:
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
            stored_bytes=copies.before.get(before.node, 0),
            stored_bytes_after=copies.after.get(before.node, 0),
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
        even_bytes=round(copies.even_bytes),
        copies=[
            _copy(state, move) for move in copies.moves[:TOLD_MAX] if move.shard in state.shards
        ],
        more_copies=copies.more or len(copies.moves) > TOLD_MAX,
    )


def asked_for(found: Balance, copies: CopyBalance, timestamp_ms: int) -> RecordEvent:
    """What is committed when somebody asks for the moves: a line at the node that gives first."""
    several = f"{len(found.moves)}{' or more' if found.more else ''} moves"
    if copies.moves:
        several += f" and {len(copies.moves)}{' or more' if copies.more else ''} copies"
    if found.moves:
        node, why = found.moves[0].leaves or found.moves[0].plan.primary.peer, found.moves[0].why
    else:
        node, why = copies.moves[0].giver.peer, copies.moves[0].why
    return RecordEvent(
        node=node,
        kind=REBALANCED,
        text=f"asked for by an operator: {several}, the first for {why}",
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


def _copy(state: ClusterState, move: CopyMove) -> fleet_pb2.CopyMove:
    return fleet_pb2.CopyMove(
        shard=move.shard,
        log=state.shards[move.shard].shard.log,
        epoch=move.epoch,
        giver=move.giver.peer,
        taker=move.taker.peer,
        size_bytes=move.size_bytes,
        why=move.why,
    )
