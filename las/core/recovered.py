"""A group that begins from older data: what is skipped, what is held, what frees it (§4.6).

The state of such a group may be older than what peers know: the newest commits are lost. Records
are in no LAS, so the one thing that can lose an acknowledged record is a decision about a shard of
which the state has forgotten what a lost commit opened. Why no such decision is made:

1. *Nothing is drawn twice.* Version, shard ids and the epochs of each shard go on `SKIPPED`
   further, more than a group can have drawn since its newest export. So an epoch of a lost commit
   lies in a range that the state remembers, and never names a second plan.
2. *Every shard is halted* (`HELD`) from the first moment, so no fence, plan or end is decided.
3. *It is freed by proof only.* Either the leader of the group was told by the primary process that
   it leads the open segment, with the new map before it (from then on it switches to nothing that a
   lost commit prepared), and `acks` voters were heard (`may_be_freed`): a finished fence of a
   lost commit has promises of n - acks + 1 voters, so one of those that were heard would have shown
   it, and a planned change would have ended the lead. Or every node was heard and none shows
   anything: an acknowledged record of a lost segment lies on `acks` stores, which would show it.
4. *What a store shows halts for good*, also a shard that was freed. `_shows` says what counts: an
   epoch that was skipped, unless the chain has it; a known segment that was sealed by a commit that
   is not known; a standing fence that somebody adopted, so that it was opened.
5. *Stores keep* what they have of skipped epochs and ids until a person has given it up
   (`peerd.core.learning`, `peerd.transport.map_cache`), and the gap that is then made leaves room
   for every offset that may have been given out there.
"""

from collections.abc import Iterable
from dataclasses import replace

from las.core import audit
from las.core.commands import (
    Caller,
    GiveUpSkipped,
    Reason,
    RegisterNode,
    ReleaseShards,
    Result,
)
from las.core.persistent import PersistentMap
from las.core.segments import Applied, refuse
from las.core.state import (
    GAPS_MAX,
    HELD,
    RECOVERIES_MAX,
    STRAYS_MAX,
    ClusterState,
    Recovery,
    ShardEntry,
)
from peerd.core.ids import DELETED_EPOCH, NO_EPOCH, Epoch, ShardId
from peerd.core.shard_map import SkippedEpochs

SKIPPED = 1 << 32
"""How much of everything that is drawn in order is skipped: more than a group draws in a lifetime,
at a thousand a second for 49 days without an export.
"""
RECOVERED_LEVEL = 3
"""Feature level from which a peer keeps what it has of skipped epochs and ids."""


class TooManyRecoveries(Exception):
    """The state remembers as many skipped ranges as it can."""


# ---------------------------------------------------------------------------------- the beginning
def begun_anew(state: ClusterState, *, recovery_id: str, caller: Caller, told: str) -> ClusterState:
    """The state that a new group begins with, from one that may be older than what peers know.

    Args:
        state: the newest that is left.
        recovery_id: a UUID that no other group has.
        caller: who decided it, for the audit record.
        told: what is known of the loss, in a line.

    Raises:
        TooManyRecoveries: this cluster has begun anew `RECOVERIES_MAX` times.
    """
    if len(state.recovery.skipped_shards) >= RECOVERIES_MAX:
        raise TooManyRecoveries(f"the state has begun anew {RECOVERIES_MAX} times, the bound")
    entries = [_held(entry) for entry in state.shards.values()]
    first = state.next_shard
    recovery = Recovery(
        id=recovery_id,
        version=state.version + SKIPPED,
        unheard=tuple(sorted(state.nodes)),
        skipped_shards=(*state.recovery.skipped_shards, (first, ShardId(first + SKIPPED - 1))),
    )
    after = replace(
        state,
        version=recovery.version,
        next_shard=ShardId(first + SKIPPED),
        shards=state.shards.with_items((entry.shard.shard, entry) for entry in entries),
        recovery=recovery,
        changes=PersistentMap(),
    )
    after = audit.recorded(after, caller, told)
    # Who has nothing of it frees it: without nodes nobody can have outlived the state.
    return after if recovery.unheard else after.changed(shards=freed(after))


def _held(entry: ShardEntry) -> ShardEntry:
    shard = entry.shard
    first = shard.fence if shard.fence != NO_EPOCH else Epoch(entry.drawn + 1)
    drawn = Epoch(entry.drawn + SKIPPED)
    skipped = (*shard.skipped, SkippedEpochs(first=first, last=drawn))
    # Stores that lost commits listed again would still obey an older release (§8.4).
    sealed = tuple(replace(each, released=()) if each.released else each for each in shard.sealed)
    return replace(
        entry,
        shard=replace(shard, skipped=skipped, sealed=sealed),
        drawn=drawn,
        halted=entry.halted or HELD,
    )


# ---------------------------------------------------------------------------------- what is shown
def was_deleted(state: ClusterState, shard: ShardId) -> bool:
    """Whether the shard's log was deleted: drawn, not on the map, and not skipped."""
    known = shard in state.shards or shard >= state.next_shard
    return not (known or is_stray(state, shard))


def is_stray(state: ClusterState, shard: ShardId) -> bool:
    """Whether only a lost commit can have created the shard."""
    ranges = state.recovery.skipped_shards
    return shard not in state.shards and any(first <= shard <= last for first, last in ranges)


def _shows(state: ClusterState, shard: ShardId, epoch: Epoch) -> bool:
    """Whether an epoch in a store is one that only lost commits can have drawn for the shard."""
    entry = state.shards.get(shard)
    if entry is None:
        return shard >= state.next_shard or is_stray(state, shard)
    return epoch > entry.drawn or entry.shows_skipped(epoch)


def _is_outlived(state: ClusterState, shard: ShardId, epoch: Epoch) -> bool:
    """Whether what a store has of a known epoch was made so by a commit that is not known.

    The open segment with nothing prepared, or the prepared one, that is sealed there; a fence that
    is adopted there (`Registration.outlived` tells these apart from what is usual).
    """
    entry = state.shards.get(shard)
    if entry is None or all(skipped.given_up for skipped in entry.shard.skipped):
        return False
    prepared = entry.shard.prepared
    last = entry.shard.open.epoch if prepared is None else prepared.epoch
    return epoch == last or epoch == entry.shard.fence != NO_EPOCH


def suspicious(
    state: ClusterState, stored: Iterable[tuple[ShardId, Epoch]]
) -> tuple[tuple[ShardId, Epoch], ...]:
    """What of a store's (shard, epoch) the LAS cannot have drawn, as far as `state` knows; of each
    shard the highest.

    To be sent with `RegisterNode.stored`, which looks again: `state` may lag what is committed.
    """
    found: dict[ShardId, Epoch] = {}
    for shard, epoch in stored:
        if epoch > found.get(shard, NO_EPOCH) and _shows(state, shard, epoch):
            found[shard] = epoch
    return tuple(found.items())


def outlived(
    state: ClusterState,
    sealed: Iterable[tuple[ShardId, Epoch]],
    adopted: Iterable[tuple[ShardId, Epoch]],
) -> tuple[tuple[ShardId, Epoch], ...]:
    """For `RegisterNode.outlived`: of what is sealed in a store, and of what it has adopted or
    stored, what only a lost commit can have made so.
    """
    if not state.recovery.id:
        return ()
    ended = [pair for pair in sealed if _is_outlived(state, *pair) and not _is_fence(state, *pair)]
    opened = [pair for pair in adopted if _is_fence(state, *pair) and _is_outlived(state, *pair)]
    return (*ended, *opened)


def _is_fence(state: ClusterState, shard: ShardId, epoch: Epoch) -> bool:
    entry = state.shards.get(shard)
    return entry is not None and entry.shard.fence == epoch


# ---------------------------------------------------------------------------------- registration
def registration_error(state: ClusterState, command: RegisterNode) -> str:
    """Why the store cannot be one of this LAS's; empty if it can."""
    for shard, _ in command.stored:
        if shard >= state.next_shard:
            return (
                f"the store has shard {shard}, which this LAS never created: it lost its past. "
                "Keep the store, and give the LAS nodes their newest data back"
            )
    if state.recovery.id and command.feature_level < RECOVERED_LEVEL:
        return (
            f"{command.name} runs a version that would drop what commits created that this LAS has "
            "lost: upgrade it"
        )
    return ""


def heard(state: ClusterState, command: RegisterNode) -> tuple[list[ShardEntry], Recovery]:
    """What a registration tells: shards that it halts or frees, and who is unheard still."""
    changed = {
        shard: replace(
            state.shards[shard],
            halted=f"{command.name} knows what became of epoch {epoch} by a commit that is lost",
        )
        for shard, epoch in command.outlived
        if _may_be_halted(state, shard) and _is_outlived(state, shard, epoch)
    }
    changed |= {
        shard: replace(state.shards[shard], halted=_words(command.name, epoch, state.shards[shard]))
        for shard, epoch in command.stored
        if _may_be_halted(state, shard) and _shows(state, shard, epoch)
    }
    recovery = state.recovery
    if not recovery.id:
        return list(changed.values()), recovery
    strays = [pair for pair in recovery.strays if pair[1] != command.name]
    strays += [(shard, command.name) for shard, _ in command.stored if is_stray(state, shard)]
    unheard = tuple(name for name in recovery.unheard if name != command.name)
    recovery = replace(
        recovery,
        strays=tuple(sorted(strays)[:STRAYS_MAX]),
        unheard=unheard if command.told_all else recovery.unheard,
    )
    if state.recovery.unheard and not recovery.unheard:
        free = {entry.shard.shard: entry for entry in freed(state)}
        changed = free | changed
    return list(changed.values()), recovery


def _may_be_halted(state: ClusterState, shard: ShardId) -> bool:
    """Whether the shard is on the map and not halted for something worse than being held."""
    entry = state.shards.get(shard)
    return entry is not None and entry.halted in ("", HELD)


def _words(node: str, epoch: Epoch, entry: ShardEntry) -> str:
    """Why a shard is halted for an epoch that a store of `node` has."""
    if epoch == DELETED_EPOCH and entry.shard.skipped:
        return f"{node} was told by a commit that is lost that its log was deleted: delete it again"
    if epoch > entry.drawn:
        return f"{node} has epoch {epoch}, above all that was drawn"
    return f"{node} has epoch {epoch}, which was drawn by a commit that is lost"


# ---------------------------------------------------------------------------------- freeing
def freed(state: ClusterState) -> list[ShardEntry]:
    """All shards that are only held, free."""
    return [replace(entry, halted="") for entry in state.shards.values() if entry.is_held]


def may_be_freed(state: ClusterState, entry: ShardEntry) -> bool:
    """Whether a held shard is free once its primary process says that it leads the open segment."""
    plan = entry.shard.open.plan
    unheard = set(state.recovery.unheard)
    node = state.nodes.get(plan.primary.peer)
    if not entry.is_held or node is None or node.process != plan.primary:
        return False
    known = [each for each in plan.voters if each.peer not in unheard]
    return node.name not in unheard and len(known) >= plan.acks


def release_shards(state: ClusterState, command: ReleaseShards) -> Applied:
    """The leader was told that nothing became of these shards in what was lost.

    | `ReleaseShards(shards)` | – | those that are only held are free. |
    """
    entries = [state.shards[shard] for shard in command.shards if shard in state.shards]
    free = [replace(entry, halted="") for entry in entries if entry.is_held]
    if not free:
        return state, Result(ok=True, text="none of them is held")
    return state.changed(shards=free), Result(ok=True, text=f"{len(free)} shards are free")


def give_up_skipped(state: ClusterState, command: GiveUpSkipped) -> Applied:
    """A person lets a shard go on without what lost commits may have opened.

    | `GiveUpSkipped(shard, why)` | the shard is halted and has skipped epochs that are not given up
    | they are; a fence stands; not halted. When it is finished the shard goes on behind a gap. |

    A fence that stood already may have been opened, and is one of the epochs that are given up.
    """
    entry = state.shards.get(command.shard)
    if entry is None:
        return refuse(state, Reason.UNKNOWN_SHARD, f"there is no shard {command.shard}")
    shard = entry.shard
    if not command.why.strip() or "\n" in command.why:
        text = "readers need one line that says why the range is lost"
        return refuse(state, Reason.INVALID_ARGUMENT, text)
    if not can_give_up(entry):
        text = f"shard {shard.shard} is not halted for what lost commits may have opened"
        return refuse(state, Reason.STATE_CHANGED, text)
    if len(shard.gaps) >= GAPS_MAX:
        return refuse(state, Reason.LIMIT_REACHED, f"the shard has {GAPS_MAX} gaps, the bound")
    drawn = Epoch(entry.drawn + 1)
    given_up = tuple(replace(each, given_up=True) for each in shard.skipped)
    after = replace(
        entry,
        shard=replace(shard, fence=drawn, skipped=given_up),
        drawn=drawn,
        halted="",
        gap_why=command.why,
    )
    text = f"given up; fenced with {drawn}"
    return state.changed(shards=(after,)), Result(ok=True, text=text, epoch=drawn)


def can_give_up(entry: ShardEntry) -> bool:
    """Whether the shard waits for a person because of lost commits."""
    return bool(entry.halted) and not all(each.given_up for each in entry.shard.skipped)
