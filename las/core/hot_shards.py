"""Which shard takes more writes than one primary should, and where its key range is cut: pure.

A shard is *hot* while at least `bytes_per_s` are written to it. It is split in the middle of its
range (docs/protocol.md §4.3: keys keep their order), unless that would not help: where one key has
half of the batches, or keys are few, one of the children would be as hot. Nobody takes a split
back, so there are bounds: one at a time, the hottest first, and a log of `shards_max` is left
alone.

Must not: look at a clock, or carry anything out (that is `las.daemon.splitter`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from las.core.split import room_error
from las.core.state import ClusterState, ShardEntry
from peerd.core.ids import NO_EPOCH, Epoch, ShardId
from peerd.core.shard_map import Plan

HOTTEST_KEY_SHARE_MAX = 0.5
"""Share of the most frequent key from which a split would part little."""
KEYS_MIN = 16
"""Distinct keys below which a split would part little, or nothing: without keys there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heat:
    """What is written to a shard: payload bytes a second, and by how many keys."""

    bytes_per_s: float
    distinct_keys: int
    hottest_key_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HotShard:
    """A shard to be split at `key_hash`, the first of the upper child."""

    shard: ShardId
    epoch: Epoch
    key_hash: int
    plan: Plan
    why: str


def hot_shard(
    state: ClusterState, heats: Mapping[ShardId, Heat], *, bytes_per_s: float, shards_max: int
) -> HotShard | None:
    """The hottest shard that is to be split now; None if there is none."""
    hot = sorted(
        (shard for shard, heat in heats.items() if heat.bytes_per_s >= bytes_per_s),
        key=lambda shard: (-heats[shard].bytes_per_s, shard),
    )
    for entry in _known(state, hot):
        heat = heats[entry.shard.shard]
        if why_not(state, entry, heat, shards_max):
            continue
        shard = entry.shard
        return HotShard(
            shard=shard.shard,
            epoch=shard.open.epoch,
            key_hash=_middle(entry),
            plan=shard.open.plan,
            why=f"{_rate(heat.bytes_per_s)} are written to it, the line is {_rate(bytes_per_s)}",
        )
    return None


def why_not(state: ClusterState, entry: ShardEntry, heat: Heat, shards_max: int) -> str:
    """Why a hot shard is not split; empty if it is."""
    shard = entry.shard
    if entry.halted or shard.fence != NO_EPOCH or shard.prepared is not None or shard.is_split:
        return "something else is done to it"
    if shard.open.plan.primary.replica not in shard.open.plan.voters:
        return "its primary does not vote"
    if len(state.logs[shard.log].shards) >= shards_max:
        return f"its log has {shards_max} shards or more"
    if not heat.hottest_key_share < HOTTEST_KEY_SHARE_MAX:
        return f"one key has {heat.hottest_key_share:.0%} of its batches"
    if heat.distinct_keys < KEYS_MIN:
        return f"it has {heat.distinct_keys} keys"
    if not shard.key_hash_low < _middle(entry) <= shard.key_hash_high:
        return "its range cannot be cut"
    return room_error(state, shard)


def _known(state: ClusterState, shards: Iterable[ShardId]) -> Iterable[ShardEntry]:
    return (state.shards[shard] for shard in shards if shard in state.shards)


def _middle(entry: ShardEntry) -> int:
    return (entry.shard.key_hash_low + entry.shard.key_hash_high + 1) // 2


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e6:.1f} MB/s"
