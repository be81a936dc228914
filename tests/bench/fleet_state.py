"""A committed state of a large fleet, for what is measured on one."""

from collections.abc import Sequence

from las.core.persistent import PersistentMap
from las.core.state import ClusterState, Log, Node, ShardEntry, key_range
from peerd.core.ids import (
    BootId,
    Epoch,
    NodeName,
    Offset,
    ShardId,
    StoreId,
)
from peerd.core.shard_map import Plan, Segment, Shard

NODES = 10_000
SHARDS = 100_000
LOG_SHARDS = 1_000


def node(number: int) -> Node:
    """A peer; twenty share a rack."""
    return Node(
        name=NodeName(f"peer-{number}"),
        store=StoreId(f"{number:032x}"),
        boot=BootId(f"{number + (1 << 64):032x}"),
        address=f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:7400",
        labels=(("host", f"host-{number}"), ("rack", f"rack-{number // 20}")),
        feature_level=2,
    )


def entry(number: int, nodes: Sequence[Node]) -> ShardEntry:
    """A shard with one sealed segment, its three copies in three racks."""
    low, high = key_range((number - 1) % LOG_SHARDS, LOG_SHARDS)
    three = [nodes[(number + step * 37) % len(nodes)] for step in range(3)]
    replicas = tuple(each.replica for each in three)
    plan_ = Plan(primary=three[0].process, voters=replicas, acks=2)
    sealed = Segment(
        epoch=Epoch(1),
        plan=plan_,
        begin=Offset(0),
        end=Offset(1_000),
        known_commit=Offset(1_000),
        holders=tuple(sorted(replicas)),
    )
    shard = Shard(
        shard=ShardId(number),
        log=f"log-{(number - 1) // LOG_SHARDS}",
        key_hash_low=low,
        key_hash_high=high,
        open=Segment(epoch=Epoch(2), plan=plan_, begin=Offset(1_000)),
        sealed=(sealed,),
    )
    return ShardEntry(shard=shard, drawn=Epoch(2))


def fleet(nodes: int, shards: int) -> ClusterState:
    """A committed state."""
    peers = [node(number) for number in range(nodes)]
    entries = [entry(number, peers) for number in range(1, shards + 1)]
    logs: dict[str, list[ShardId]] = {}
    for each in entries:
        logs.setdefault(each.shard.log, []).append(each.shard.shard)
    return ClusterState(
        cluster_id="00000000-0000-4000-8000-000000000001",
        version=1,
        next_shard=ShardId(shards + 1),
        nodes=PersistentMap((peer.name, peer) for peer in peers),
        logs=PersistentMap(
            (name, Log(name=name, copies=3, acks=2, shards=tuple(ids)))
            for name, ids in logs.items()
        ),
        shards=PersistentMap((each.shard.shard, each) for each in entries),
    )
