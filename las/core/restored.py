"""What a group begins with when nothing is left of a cluster but its tier (docs/backup.md, §4.6).

Every process and every disk is gone. There is a committed state of some time before that, and of
each shard a range [B, X) of offsets in the tier, verified. Why a group may begin from these:

1. *Nothing is drawn twice.* It begins anew like any group with older data: version, epochs and ids
   of shards are skipped (`las.core.recovered`). There is nobody to wait for: no node is known.
2. *The tier alone has the past.* Of the chain [B, X) stays as it was, with its epochs and its gaps
   (G2, G10). Trimmed-to is X, so no store is asked for any of it.
3. *No offset is given to two records.* Beyond X the cluster may have acknowledged what no backup
   has. The shard goes on `GAP_OFFSETS_MIN` further than anything that the state knows of, behind a
   gap that every reader is told of, and with a producer table that does not guess (G2, G4, G10).
4. *Nobody has the open segment.* Its epoch was never told to any process, so nothing can have been
   acknowledged in it, and its standing fence needs no answers (`las.core.recovery`). It is finished
   as soon as enough nodes are there, by a plan of these.

5. *Nothing that turns up is dropped.* Epochs that began behind X count as skipped: should a disk
   of the old cluster be left after all, what it has of them is kept, and halts the shard until a
   person has looked. A store that knows a commit offset beyond X in an epoch that ends there
   contradicts the map, and stops.

6. *It is another cluster.* Its id is new. So no process, store or LAS member of the one before is
   ever taken for its own, nor, in the tier, an object (`peerd.tier.heirs`); should that one live
   after all, there are two clusters that know of each other, and not two halves of one.

A shard that was split has no gap behind its end, where its children begin.

Must not: decide what is in the tier.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

from las.core.commands import Caller
from las.core.persistent import PersistentMap
from las.core.recovered import begun_anew
from las.core.state import GAP_OFFSETS_MIN, ClusterState, ShardEntry
from peerd.core.ids import FIRST_OFFSET, Epoch, Offset, ShardId
from peerd.core.shard_map import Gap, Segment, Shard, SkippedEpochs, Tiered, plan_of_nobody


def restored(
    state: ClusterState,
    tiers: Mapping[ShardId, Tiered],
    *,
    forgotten: Collection[str],
    why: str,
    recovery_id: str,
    caller: Caller,
    told: str,
    cluster_id: str,
) -> ClusterState:
    """The state that a new group begins with.

    Args:
        state: what was committed when the backup was made.
        tiers: of each shard what is in the tier, and the manifest that lists it; a shard that is
            not here has lost all its records.
        forgotten: logs that are left out, with their shards.
        why: one line for readers of what is lost.
        recovery_id: a UUID that no other group has.
        caller: who decided it, for the audit record.
        told: what is known of the loss, in a line.
        cluster_id: a UUID that no other cluster has.

    Raises:
        TooManyRecoveries: this cluster has begun anew too often.
    """
    for name in sorted(forgotten):
        shards = [each.shard.shard for each in state.shards.values() if each.shard.log == name]
        state = state.without_log(name, tuple(shards))
    without_nodes = replace(
        state, cluster_id=cluster_id, nodes=PersistentMap(), events=PersistentMap()
    )
    anew = begun_anew(without_nodes, recovery_id=recovery_id, caller=caller, told=told)
    entries = [_restored(entry, tiers.get(shard), why) for shard, entry in anew.shards.items()]
    return anew.changed(shards=entries)


def _restored(entry: ShardEntry, tier: Tiered | None, why: str) -> ShardEntry:
    shard = entry.shard
    begin = shard.kept_from if tier is None else tier.begin
    end = begin if tier is None else tier.end
    resumes = shard.open.begin or FIRST_OFFSET
    if not shard.is_split:
        resumes = Offset(max(resumes, end) + GAP_OFFSETS_MIN)
    gaps = [gap for gap in shard.gaps if begin < gap.end and gap.begin < end]
    if end < resumes:
        # No epochs: no store is told to drop what it has of them.
        gaps.append(Gap(begin=end, end=resumes, epochs=(), why=why))
    nobody = plan_of_nobody(closed=shard.is_split)
    after = replace(
        shard,
        open=Segment(epoch=Epoch(entry.drawn + 1), plan=nobody, begin=resumes),
        sealed=_kept(shard, begin, end),
        prepared=None,
        fence=Epoch(entry.drawn + 2),
        split=shard.split if shard.is_split else None,
        gaps=tuple(gaps),
        trimmed_to=end,
        skipped=_skipped(shard, end),
        tier=tier,
    )
    ages = tuple(mark for mark in entry.ages if mark.offset <= end)
    return replace(
        entry, shard=after, drawn=Epoch(entry.drawn + 2), halted="", ages=ages, gap_why=""
    )


def _kept(shard: Shard, begin: Offset, end: Offset) -> tuple[Segment, ...]:
    """The chain from `begin` to `end`, as it was, without a store that would have it."""
    found = []
    for segment in (*shard.sealed, shard.open):
        first = segment.begin or FIRST_OFFSET
        last = end if segment.end is None else min(segment.end, end)
        if first < last and begin < last:
            found.append(
                Segment(
                    epoch=segment.epoch,
                    plan=plan_of_nobody(),
                    begin=first,
                    end=last,
                    known_commit=last,
                )
            )
    return tuple(found)


def _skipped(shard: Shard, end: Offset) -> tuple[SkippedEpochs, ...]:
    """What `begun_anew` skipped just now, and the epochs that began at `end` or behind it."""
    *before, last = shard.skipped
    lost = [each.epoch for each in (*shard.sealed, shard.open) if (each.begin or 0) >= end]
    if shard.prepared is not None:
        lost.append(shard.prepared.epoch)
    return (*before, replace(last, first=min([last.first, *lost])))
