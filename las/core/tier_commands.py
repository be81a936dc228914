"""The commands about the object tier; a part of `las.core.commands` (docs/tiers.md)."""

from dataclasses import dataclass

from peerd.core.ids import Epoch, Offset, ProcessId, ShardId


@dataclass(frozen=True, slots=True, kw_only=True)
class TierShard:
    """The primary `by` of the open `epoch` has put [begin, end) into the tier and verified it.

    `follows` is the manifest that the map names until then ("": none), `manifest` the one that
    lists all that is in the tier now.
    """

    shard: ShardId
    epoch: Epoch
    by: ProcessId
    follows: str
    begin: Offset
    end: Offset
    manifest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CoolShard:
    """No store keeps what lies below `cold_to` any more: the tier does. Who sends it was told the
    same as for a `TrimShard`.
    """

    shard: ShardId
    epoch: Epoch
    cold_to: Offset


@dataclass(frozen=True, slots=True, kw_only=True)
class SetTier:
    """Of each shard of a log the newest `hot_bytes` stay in stores, what is older goes to the tier
    alone; 0: nothing more goes there.
    """

    log: str
    hot_bytes: int
