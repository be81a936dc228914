"""What a store is told of a committed map: seals, dead epochs, trims (docs/protocol.md §3, §8.1).

"Only the committed map lets a store drop batches." An epoch below the open one that the map does
not list holds no record that is kept: it is dead, ended without records, or lies wholly below
trimmed-to. "The map fences too": whoever is listed or drops something promises the open epoch.

A sealed segment that others hold is let go when the map tells this very store so (§8.4), and for no
other reason: that others are listed, or that this store is not, lets it drop nothing.

"Skipped is not dead" (§4.6): what is stored of an epoch that a LAS skipped when it began from older
data may be acknowledged, so it is kept until a person has given it up.
"""

from peerd.core.durable import DropTrimmed, LearnMap, StoredShard
from peerd.core.ids import Epoch, ReplicaId
from peerd.core.shard_map import Segment, Shard


def learned(shard: Shard, stored: StoredShard, me: ReplicaId) -> tuple[LearnMap | DropTrimmed, ...]:
    """What of `shard` the store of `me` does not know yet, in the order in which it must learn."""
    sealed = {segment.epoch: segment for segment in shard.sealed}
    seals, dead = [], []
    cut = [epoch for gap in shard.gaps for epoch in gap.epochs]
    for epoch, segment in stored.segments.items():
        entry = sealed.get(epoch)
        if entry is not None and entry.end is not None:
            if segment.seal is None or (segment.seal != entry.end and epoch in cut):
                seals.append((epoch, entry.end))
        elif (skipped := shard.skipped_with(epoch)) is not None:
            if skipped.given_up and epoch < shard.open.epoch:
                dead.append(epoch)
                cut.append(epoch)
        elif epoch < shard.open.epoch or epoch in shard.dead_epochs:
            dead.append(epoch)
    listed = any(me in segment.holders for segment in shard.sealed)
    listed = listed or me in shard.open.plan.replicas
    operations: list[LearnMap | DropTrimmed] = []
    if seals or dead or (listed and stored.promised < shard.open.epoch):
        learn = LearnMap(
            shard=shard.shard,
            open_epoch=shard.open.epoch,
            seals=tuple(seals),
            dead=tuple(dead),
            cut=tuple(cut),
            trimmed_to=shard.trimmed_to,
        )
        operations.append(learn)
    released = tuple(
        epoch for epoch in stored.segments if epoch in sealed and sealed[epoch].lets_go(me)
    )
    if released:
        # Behind what seals them: the table goes over them while their batches are here.
        operations.append(
            LearnMap(shard=shard.shard, open_epoch=shard.open.epoch, released=released)
        )
    if _has_trimmed(shard, sealed, stored):
        drop = DropTrimmed(
            shard=shard.shard, open_epoch=shard.open.epoch, trimmed_to=shard.trimmed_to
        )
        operations.append(drop)
    return tuple(operations)


def _has_trimmed(shard: Shard, sealed: dict[Epoch, Segment], stored: StoredShard) -> bool:
    """Whether something is stored of a listed segment that lies below trimmed-to."""
    if shard.trimmed_to == 0:
        return False
    for epoch, segment in stored.segments.items():
        entry = shard.open if epoch == shard.open.epoch else sealed.get(epoch)
        if entry is None:
            continue
        end = shard.trimmed_to if entry.end is None else min(entry.end, shard.trimmed_to)
        if segment.first < end:
            return True
    return False
