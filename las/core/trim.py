"""Trimming a shard: what lies below an offset is not kept any more (docs/protocol.md §8).

Why nothing is lost that should be kept, and nothing is needed that is gone:

- *The map first.* A store drops below `trimmed_to` of a committed map and of nothing else.
- *Only what is committed.* The offset is a cut between batches that the primary of the open
  segment, or a holder of a sealed one, told to be readable; a kept tail is not until it is copied
  (§4.2).
- *Never past a replica.* In the open segment every replica had all below durable. Its end never
  falls, so whatever it promises later, recovery ends the segment at or beyond the trim, and no
  replica ever asks for a batch that is gone.
- *The past that proves.* The newest sealed segment stays listed when all of it is trimmed: its
  holders, and their producer tables as of its end, are where the next primary looks (§3.1).
- *In the tier, too.* What is trimmed is kept nowhere: the primary removes its objects from the
  tier once the map says so.
"""

from dataclasses import replace

from las.core.commands import Reason, Result, TrimShard
from las.core.segments import Applied, refuse, unless_free
from las.core.state import ClusterState
from peerd.core.ids import FIRST_OFFSET, Epoch, Offset
from peerd.core.shard_map import (
    Shard,
    chain_behind,
    entries_of,
    segment_with,
    span_of,
    stable_end,
)


def trim_shard(state: ClusterState, command: TrimShard) -> Applied:
    """Forget what lies below an offset.

    | `TrimShard(e, offset)` | e is open or sealed and in the chain; no fence; the offset lies in
    e, not beyond what may be read of it |
    trimmed-to is the offset; sealed segments and gaps that end there or before are left out, but
    for the newest sealed one. |
    """
    entry = state.shards.get(command.shard)
    if entry is None:
        return refuse(state, Reason.UNKNOWN_SHARD, f"there is no shard {command.shard}")
    shard = entry.shard
    if command.trimmed_to <= shard.kept_from:
        return state, Result(ok=True, text="trimmed already", epoch=command.epoch)
    if (refused := unless_free(state, entry)) is not None:
        return refused
    if wrong := offset_error(shard, command.epoch, command.trimmed_to):
        return refuse(state, Reason.STATE_CHANGED, wrong, shard.open.epoch)
    after = left(_trimmed(shard, command.trimmed_to))
    ages = tuple(mark for mark in entry.ages if mark.offset > command.trimmed_to)
    changed = state.changed(shards=(replace(entry, shard=after, ages=ages),))
    return changed, Result(ok=True, text=f"trimmed to {command.trimmed_to}", epoch=command.epoch)


def _trimmed(shard: Shard, offset: Offset) -> Shard:
    """`shard` without what lies below `offset`, in stores and in the tier."""
    tier = shard.tier
    if tier is not None:
        tier = replace(tier, begin=offset, end=max(tier.end, offset))
    return replace(shard, trimmed_to=max(shard.trimmed_to, offset), tier=tier)


def offset_error(shard: Shard, epoch: Epoch, offset: Offset) -> str:
    """Why `offset` is no place of segment `epoch` below which all may go; empty if it is."""
    segment = shard.open if shard.open.epoch == epoch else segment_with(shard.sealed, epoch)
    if segment is None or segment.begin is None:
        return f"shard {shard.shard} has no segment {epoch} in its chain"
    # What the open segment may lose its primary has told; of a sealed one the map tells it, too.
    bound = None if segment.end is None else stable_end(segment, FIRST_OFFSET)
    if offset < segment.begin or (bound is not None and offset > bound):
        return f"{offset} lies outside what may be read of segment {epoch}"
    return ""


def left(shard: Shard) -> Shard:
    """`shard` without the segments and gaps of which nothing is kept."""
    sealed = chain_behind(shard.sealed, shard.kept_from)
    # Without a sealed segment the gaps tell that nobody has the table as of the open one's begin.
    entries = entries_of(sealed)
    first = span_of(entries[0])[1] if entries else FIRST_OFFSET
    gaps = tuple(
        gap
        for gap in shard.gaps
        if gap.end > shard.kept_from or (first is not None and gap.begin >= first)
    )
    return replace(shard, sealed=sealed, gaps=gaps)
