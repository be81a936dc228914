"""Reads as a peer serves them: which epoch an offset has, and how far that may be read (§7, G12).

"A batch is served only from the epoch that the map (or, in the open segment, the adopted epoch)
gives for its offset."
"""

from itertools import islice

from peerd.core.batch import PlacedBatch
from peerd.core.ids import FIRST_OFFSET, Epoch, Offset, ShardId
from peerd.core.shard_map import stable_end
from peerd.testing.sim.process import Process

# limit: batches of one answer, so that reads of long shards come in several
READ_BATCHES_MAX = 16


def span_at(process: Process, shard: ShardId, offset: Offset) -> tuple[Epoch, Offset | None] | None:
    """The epoch in which `offset` lies, as this process knows it, and how far that may be read.

    None where the map alone says; the core has its own word in any case.
    """
    entry, replica = process.maps.get(shard), process.replicas.get(shard)
    if entry is None or replica is None:
        return None
    if offset < entry.trimmed_to:
        return None
    for segment in entry.sealed:
        end = segment.end or segment.begin
        if segment.begin is not None and end is not None and segment.begin <= offset < end:
            return segment.epoch, stable_end(segment, FIRST_OFFSET)
    begin = entry.open.begin
    if begin is None or offset < begin:
        return None
    newest = replica.epoch
    if newest > entry.open.epoch:
        stored = replica.stored.segments.get(newest)
        if stored is not None:
            if offset >= stored.begin:
                return newest, None
            return entry.open.epoch, stored.begin
    return entry.open.epoch, None


def read(
    process: Process, shard: ShardId, offset: Offset
) -> tuple[Epoch, tuple[PlacedBatch, ...]] | None:
    """Committed batches of one epoch from `offset` on, from this process's store; None: it cannot
    give any now.
    """
    span = span_at(process, shard, offset)
    if span is None:
        return None
    epoch, stop = span
    limit = process.replicas[shard].readable_limit(epoch)
    if limit is None:
        return None
    end = limit if stop is None else min(limit, stop)
    if offset >= end:
        return None
    store = process.peer.disk.shards[shard]
    batches = store.read(epoch, offset, end, batches_max=READ_BATCHES_MAX)
    if not batches:
        process.found_damage(shard, epoch)
        return None
    fitting = tuple(batch for batch in batches if batch.end <= end)
    return (epoch, fitting) if fitting else None


def read_epoch(
    process: Process, shard: ShardId, epoch: Epoch
) -> tuple[Offset, tuple[PlacedBatch, ...]] | None:
    """The newest committed batches of a stored epoch, as others may fetch them for readers."""
    replica = process.replicas.get(shard)
    if replica is None:
        return None
    limit = replica.readable_limit(epoch)
    content = process.peer.disk.shards[shard].batches.get(epoch)
    if limit is None or not content:
        return None
    newest = [*islice(reversed(content.values()), READ_BATCHES_MAX // 2)]
    found = tuple(batch for batch in reversed(newest) if batch.end <= limit)
    return (found[0].base, found) if found else None
