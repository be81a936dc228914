"""What a store has to say about its copies of sealed segments, unasked (docs/protocol.md §8.4).

The LAS counts on its list of holders, so the list must not say more than is there, and should say
what is there. It can be wrong either way where the LAS began from older data (§4.6), or where a
word came late. A store compares the committed map with what it has, and says:

- *lacking*: it is listed, and does not have the segment whole. It is no holder then.
- *unlisted*: it has the segment whole, is not listed, was not told to let it go, and fewer stores
  are listed than voted in the segment. It is listed once it has read all of it.

Must not: do IO. Whether the batches are sound is for the caller to find out.
"""

from collections.abc import Iterator

from peerd.core.durable import StoredShard
from peerd.core.ids import FIRST_OFFSET, Epoch, Offset, ReplicaId
from peerd.core.shard_map import Segment, Shard, segment_with


def has_whole(shard: Shard, segment: Segment, stored: StoredShard) -> bool:
    """Whether a store has all of a sealed segment that is kept."""
    end = segment.end or FIRST_OFFSET
    first = max(segment.begin or FIRST_OFFSET, shard.trimmed_to)
    here = stored.segments.get(segment.epoch)
    if here is None:
        return end <= first
    return here.first <= first and here.end >= end


def lacking(shard: Shard, stored: StoredShard, me: ReplicaId) -> Iterator[Epoch]:
    """Segments that the map says this store holds, and that it has not whole."""
    for segment in shard.sealed:
        if me in segment.holders and not has_whole(shard, segment, stored):
            yield segment.epoch


def unlisted(shard: Shard, stored: StoredShard, me: ReplicaId) -> Iterator[Segment]:
    """Segments that this store has whole, and that the map does not say it holds, though it should
    be glad of every holder.
    """
    for segment in shard.sealed:
        if me in segment.holders or segment.release_of(me) is not None:
            continue
        short = len(segment.holders) < len(segment.plan.voters)
        kept = (segment.end or Offset(0)) > shard.trimmed_to
        if short and kept and has_whole(shard, segment, stored):
            yield segment


def holds(shard: Shard | None, stored: StoredShard, me: ReplicaId, epoch: Epoch) -> bool:
    """Whether a store has a sealed segment whole, and is not about to drop it: what it answers when
    another one is to let it go.
    """
    if shard is None:
        return False
    segment = segment_with(shard.sealed, epoch)
    if segment is None or segment.lets_go(me):
        return False
    return has_whole(shard, segment, stored)
