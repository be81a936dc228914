"""What the death of a node would meet, by the committed map: nothing, a pause, or records.

mirrored    no open or prepared segment counts its vote, but of some it is the primary
            (`policy.at_risk_action = "mirror"`): its death pauses those, no record depends on it
shielded    none counts its vote, and of none is it the primary: its death is no event for appends
expendable  shielded, and each sealed segment that it holds has `copies` other healthy holders:
            its death costs nothing

Correctness: an append is acknowledged by voters of its segment alone (docs/protocol.md §3), so a
node that votes nowhere has no record that another one needs, whether it orders them or not.
Prepared segments count, since one may be opened at any moment. Pure.
"""

from collections.abc import Iterable

from las.core.index import FleetIndex
from las.core.state import ClusterState
from peerd.core.ids import NodeName, ShardId
from peerd.core.shard_map import Segment


def is_mirrored(state: ClusterState, node: NodeName, index: FleetIndex | None = None) -> bool:
    """No open or prepared segment counts its vote, and of at least one it is the primary."""
    segments = list(_due_segments(state, _shards(state, node, index)))
    leads = any(segment.plan.primary.peer == node for segment in segments)
    return leads and not any(_votes(segment, node) for segment in segments)


def is_shielded(state: ClusterState, node: NodeName, index: FleetIndex | None = None) -> bool:
    """No open or prepared segment needs the node, neither as voter nor as primary."""
    return not any(
        segment.plan.primary.peer == node or _votes(segment, node)
        for segment in _due_segments(state, _shards(state, node, index))
    )


def is_expendable(state: ClusterState, node: NodeName, index: FleetIndex | None = None) -> bool:
    """Shielded, and its sealed past is elsewhere, too."""
    return is_shielded(state, node, index) and is_copied(state, node, index)


def is_copied(state: ClusterState, node: NodeName, index: FleetIndex | None = None) -> bool:
    """Each sealed segment that the node holds has `copies` other healthy holders."""
    for shard in _shards(state, node, index):
        entry = state.shards[shard].shard
        copies = state.logs[entry.log].copies
        for segment in entry.sealed:
            if not any(holder.peer == node for holder in segment.holders):
                continue
            others = [
                each for each in segment.holders if each.peer != node and state.is_healthy(each)
            ]
            if len(others) < copies:
                return False
    return True


def is_spared(state: ClusterState, node: NodeName, index: FleetIndex | None = None) -> bool:
    """Expendable, or would be if it were no mirror: nothing of it is left to be copied."""
    safe = is_shielded(state, node, index) or is_mirrored(state, node, index)
    return safe and is_copied(state, node, index)


def _shards(state: ClusterState, node: NodeName, index: FleetIndex | None) -> Iterable[ShardId]:
    return state.shards if index is None else index.shards_of(node)


def _due_segments(state: ClusterState, shards: Iterable[ShardId]) -> Iterable[Segment]:
    for shard in shards:
        entry = state.shards[shard].shard
        yield from (each for each in (entry.open, entry.prepared) if each is not None)


def _votes(segment: Segment, node: NodeName) -> bool:
    return any(voter.peer == node for voter in segment.plan.voters)
