"""The committed map in its wire form, encoded once for all who need the same part of it.

Invariant: `since(v)` brings a reader that has version `v` to the newest one; a reader that has
nothing (version 0) gets the whole map, marked `full`.

Bound: one whole map and one delta for each version that readers lag by, all of the newest version.

A whole map of thousands of shards takes a tenth of a second and more. `whole` gives the event loop
back in between: heartbeats of the consensus group travel through the same loop, and a node that
keeps it for the length of an election timeout costs the group its leader.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import replace

from las.core.state import (
    SHARED_ENTRY_LEVEL,
    ClusterState,
    Log,
    MapDelta,
    Node,
    NodeState,
    ShardEntry,
)
from las.v1 import shard_map_pb2
from peerd.core.ids import ShardId
from peerd.transport.map_codec import (
    LogEntry,
    NodeEntry,
    encode_log,
    encode_node,
    encode_shard,
)

# limit: deltas kept encoded for readers of different versions; most readers have the last one.
DELTAS_KEPT_MAX = 64
# limit: shards encoded in one go, some 5 ms of the event loop.
SLICE_SHARDS_MAX = 128
# No reader has this version, so what changed since is everything.
_NOTHING = -1


class MapFeed:
    """Encodes for many readers. Used on one event loop."""

    def __init__(self) -> None:
        self._version = _NOTHING
        self._updates: dict[int, shard_map_pb2.MapUpdate] = {}
        self._whole: shard_map_pb2.MapUpdate | None = None
        self._encoding = asyncio.Lock()

    def since(self, state: ClusterState, version: int) -> shard_map_pb2.MapUpdate | None:
        """What a reader with `version` (0: nothing) lacks of `state`; None if nothing."""
        if version == state.version and version > 0:
            return None
        if state.version != self._version:
            self._updates.clear()
            self._version = state.version
            self._whole = None
        key = version if 0 < version < state.version else _NOTHING
        update = self._updates.get(key)
        if update is None:
            update = encode_delta(
                state.cluster_id, state.changes_since(key), share=_all_share(state)
            )
            if len(self._updates) < DELTAS_KEPT_MAX:
                self._updates[key] = update
        return update

    async def whole(self, state: ClusterState) -> shard_map_pb2.MapUpdate:
        """The whole map of `state`, or a newer one that another reader has just been given."""
        async with self._encoding:
            known = self._whole
            if known is None or known.version < state.version:
                known = self._whole = await _encode_whole(state)
            return known


async def _encode_whole(state: ClusterState) -> shard_map_pb2.MapUpdate:
    everything, share = state.changes_since(_NOTHING), _all_share(state)
    update = encode_delta(state.cluster_id, replace(everything, shards=()))
    for begin in range(0, len(everything.shards), SLICE_SHARDS_MAX):
        part = everything.shards[begin : begin + SLICE_SHARDS_MAX]
        update.shards.extend([encode_entry(each, share=share) for each in part])
        await asyncio.sleep(0)
    return update


def encode_delta(
    cluster_id: str, delta: MapDelta, *, share: bool = True
) -> shard_map_pb2.MapUpdate:
    """A part of the map, or all of it. `share`: as for `encode_shard`."""
    return shard_map_pb2.MapUpdate(
        cluster_id=cluster_id,
        version=delta.version,
        full=delta.full,
        nodes=map(encode_las_node, delta.nodes),
        logs=map(encode_las_log, delta.logs),
        shards=[encode_entry(each, share=share) for each in delta.shards],
        removed_nodes=delta.removed_nodes,
        removed_logs=delta.removed_logs,
        removed_shards=delta.removed_shards,
        next_shard=delta.next_shard,
        skipped_shards=[
            shard_map_pb2.SkippedShards(first=first, last=last)
            for first, last in delta.skipped_shards
        ],
    )


def _all_share(state: ClusterState) -> bool:
    """Whether every node knows entries that several sealed segments share (§8)."""
    return all(node.feature_level >= SHARED_ENTRY_LEVEL for node in state.nodes.values())


def encode_part(state: ClusterState, log: Log) -> shard_map_pb2.MapUpdate:
    """One log with its shards, and all nodes."""
    return encode_delta(
        state.cluster_id,
        MapDelta(
            version=state.version,
            full=True,
            nodes=tuple(state.nodes.values()),
            logs=(log,),
            shards=tuple(shards_of(state, log)),
        ),
        share=_all_share(state),
    )


def shards_of(state: ClusterState, log: Log) -> Iterable[ShardEntry]:
    """A log's shards in the order of their key ranges, each after those that it came from."""
    found: dict[ShardId, ShardEntry] = {}
    for shard in log.shards:
        line: list[ShardEntry] = []
        at: ShardId | None = shard
        while at is not None and at not in found:
            line.append(state.shards[at])
            parent = line[-1].shard.parent
            at = None if parent is None else parent.shard
        found.update((entry.shard.shard, entry) for entry in reversed(line))
    return found.values()


def encode_las_node(node: Node) -> shard_map_pb2.Node:
    """A node as clients and peers see it; one whose storage failed is down to them."""
    return encode_node(
        NodeEntry(
            name=node.name,
            address=node.address,
            store=node.store,
            boot=node.boot,
            labels=dict(node.labels),
            may_lead=node.may_lead,
            up=node.state is NodeState.UP,
            at_risk=node.at_risk,
            draining=node.draining,
        )
    )


def encode_las_log(log: Log) -> shard_map_pb2.Log:
    """A log's entry."""
    return encode_log(
        LogEntry(
            name=log.name,
            copies=log.copies,
            acks=log.acks,
            shards=log.shards,
            retention_bytes=log.retention_bytes,
            retention_ms=log.retention_ms,
            compression=log.compression,
            hot_bytes=log.hot_bytes,
        )
    )


def encode_entry(entry: ShardEntry, *, share: bool = True) -> shard_map_pb2.Shard:
    """A shard's entry; what only the LAS needs stays here."""
    return encode_shard(entry.shard, share=share)
