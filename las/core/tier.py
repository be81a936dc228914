"""The object tier in the committed map: what is there, and what stores may drop for it.

Why nothing is lost:

- *Verified first.* `TierShard` is sent by the primary once it has read back and compared all of
  [begin, end) and the manifest that lists it. `CoolShard` is refused beyond that.
- *One after the other.* It names the manifest and the end that it goes on from, and the open epoch
  whose primary sends it. Of two that go on from the same one, one is refused; who was primary
  before, and does not know it, is refused. So what a manifest of the map lists was verified, all of
  it, whoever wrote it.
- *Only what is committed.* A primary tiers below its commit offset; of what is sealed no more than
  may be read is taken here. Ends of recovered segments never lie below a commit offset.
- *Stores drop as they do at a trim* (`las.core.trim`): to them, `trimmed_to` is where it is whether
  the tier has what lies below or nobody. So everything that holds of a trim holds of this: fences,
  copies, the producer table, stores that were away.
- *The chain stays.* Segments and gaps from `kept_from` on stay listed: they tell a reader the epoch
  in which the tier has an offset (G2), and what was lost (G10).
"""

from dataclasses import replace

from las.core.commands import Reason, Result
from las.core.segments import Applied, refuse, unless_free
from las.core.state import ClusterState
from las.core.tier_commands import CoolShard, SetTier, TierShard
from las.core.trim import left, offset_error
from peerd.core.ids import FIRST_OFFSET
from peerd.core.shard_map import Shard, Tiered, stable_end

TIER_LEVEL = 4
"""Feature level from which a node finds in the tier what stores do not keep."""

# limit: characters of the name of a manifest
MANIFEST_NAME_CHARACTERS_MAX = 80


def set_tier(state: ClusterState, command: SetTier) -> Applied:
    """Say how much of a log stays in stores.

    | `SetTier(log, bytes)` | the log is known; every node knows the tier | of each shard the newest
    bytes stay in stores, what is older goes to the tier alone; 0: nothing more goes there. |
    """
    log = state.logs.get(command.log)
    if log is None:
        return refuse(state, Reason.UNKNOWN_LOG, f"there is no log {command.log}")
    if command.hot_bytes < 0:
        return refuse(state, Reason.INVALID_ARGUMENT, "hot bytes are not negative; 0 is no tier")
    old = sorted(node.name for node in state.nodes.values() if node.feature_level < TIER_LEVEL)
    if command.hot_bytes and old:
        text = f"{', '.join(old[:5])} run a version that knows no tier: upgrade them first"
        return refuse(state, Reason.STATE_CHANGED, text)
    after = replace(log, hot_bytes=command.hot_bytes)
    if after == log:
        return state, Result(ok=True, text="so it is already")
    return state.changed(logs=(after,)), Result(ok=True)


def tier_shard(state: ClusterState, command: TierShard) -> Applied:
    """More of a shard is in the tier, and verified.

    | `TierShard(e, by, follows, [begin, end), manifest)` | e is open and `by` its primary; no
    fence; the map names the manifest that it follows, and what is in the tier ends at begin (or
    nothing is there, and trimmed-to is begin); end lies in the chain, not beyond what may be read |
    the tier ends at end, and manifest lists it |
    """
    entry = state.shards.get(command.shard)
    if entry is None:
        return refuse(state, Reason.UNKNOWN_SHARD, f"there is no shard {command.shard}")
    shard = entry.shard
    tier = shard.tier or Tiered(begin=shard.trimmed_to, end=shard.trimmed_to, manifest="")
    if (tier.end, tier.manifest) == (command.end, command.manifest):
        return state, Result(ok=True, text="tiered already", epoch=command.epoch)
    if (refused := unless_free(state, entry)) is not None:
        return refused
    if wrong := _tier_error(shard, tier, command):
        return refuse(state, Reason.STATE_CHANGED, wrong, shard.open.epoch)
    after = replace(
        shard, tier=Tiered(begin=tier.begin, end=command.end, manifest=command.manifest)
    )
    changed = state.changed(shards=(replace(entry, shard=after),))
    return changed, Result(ok=True, text=f"tiered to {command.end}", epoch=command.epoch)


def cool_shard(state: ClusterState, command: CoolShard) -> Applied:
    """Leave what lies below an offset to the tier alone.

    | `CoolShard(e, offset)` | as `TrimShard`; the tier has all below the offset that is kept |
    trimmed-to is the offset: stores drop what lies below, readers find it in the tier. |
    """
    entry = state.shards.get(command.shard)
    if entry is None:
        return refuse(state, Reason.UNKNOWN_SHARD, f"there is no shard {command.shard}")
    shard = entry.shard
    if command.cold_to <= shard.trimmed_to:
        return state, Result(ok=True, text="cold already", epoch=command.epoch)
    if (refused := unless_free(state, entry)) is not None:
        return refused
    if shard.tier is None or command.cold_to > shard.tier.end:
        text = f"the tier does not have all of shard {command.shard} below {command.cold_to}"
        return refuse(state, Reason.STATE_CHANGED, text, shard.open.epoch)
    if wrong := offset_error(shard, command.epoch, command.cold_to):
        return refuse(state, Reason.STATE_CHANGED, wrong, shard.open.epoch)
    after = left(replace(shard, trimmed_to=command.cold_to))
    changed = state.changed(shards=(replace(entry, shard=after),))
    return changed, Result(ok=True, text=f"cold to {command.cold_to}", epoch=command.epoch)


def registration_error(state: ClusterState, name: str, feature_level: int) -> str:
    """Why a node may not register because of the tier; empty if it may."""
    if feature_level >= TIER_LEVEL:
        return ""
    policies = any(log.hot_bytes for log in state.logs.values())
    if policies or any(each.shard.tier is not None for each in state.shards.values()):
        return f"{name} runs a version that knows no tier, and there are logs in it: upgrade it"
    return ""


def _tier_error(shard: Shard, tier: Tiered, command: TierShard) -> str:
    if shard.open.epoch != command.epoch or shard.open.plan.primary != command.by:
        return f"{command.by.peer} is not the primary of shard {shard.shard}"
    if (tier.end, tier.manifest) != (command.begin, command.follows):
        return f"the tier of shard {shard.shard} ends at {tier.end} by now"
    if not 1 <= len(command.manifest) <= MANIFEST_NAME_CHARACTERS_MAX or command.end < tier.end:
        return "a manifest has a name and takes nothing back"
    if command.manifest == tier.manifest:
        return "another end needs another manifest"
    readable = [
        (segment.begin or FIRST_OFFSET, stable_end(segment, FIRST_OFFSET))
        for segment in shard.sealed
    ]
    begin = shard.open.begin
    inside = any(first <= command.end <= end for first, end in readable)
    if not inside and (begin is None or command.end < begin) and command.end != tier.end:
        return f"{command.end} lies outside what may be read of shard {shard.shard}"
    return ""
