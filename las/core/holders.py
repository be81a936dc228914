"""The commands that say who holds a sealed segment (docs/protocol.md §4).

The list of a sealed segment's holders is what the LAS relies on when it counts copies. So a store
comes onto it only by its own word that it has the segment whole and verified, and leaves it by its
own word that its copy is damaged. Such commands touch the sealed past alone and never the epochs,
the plans or the fence, so they may come between the steps of any other change of the shard. A
halted shard (§4.4) is changed by nothing.

**Releases (§8.4).** A holder that is one too many may let the segment go. The list keeps at least
`copies` others, and never fewer than two or than `acks`, on hosts of their own, that are healthy
and that *just said* that they have it whole. Why no release ever makes them fewer:

- *Two releases at once.* Each is judged on the list as it is when it is committed. What the other
  one took off the list does not count any more, whoever confirmed it before.
- *A copy that is lost meanwhile.* A store that finds its copy damaged or gone leaves the list by
  `DropHolder`. Before the release it is not counted; after it, it is a loss like any other, of one
  of `copies`, and is repaired. A store that is gone, at risk or drained is not counted either.
- *A word that comes late.* That a store has the segment may have been said before it let it go. So
  the release stays on the map, and `AddHolder` of that store is refused. Who is wanted again says
  with which map it has looked (`AddHolderAgain`), and only a look after the release counts.
  A store that is wanted no more lets go once more, so its release is renewed then.
- *Repair, fences, halts.* Nothing is released while stores are wanted for the segment. A fence
  asks what stores have of the open and the prepared epoch, never of a sealed one. Of a halted shard
  nothing is released, which covers a LAS that began from older data until it knows (§4.6); it also
  forgets all releases then, since stores that were listed after them would still obey them.
- *A peer with an old map* drops nothing that a newer one lists: a process begins with the map of
  its registration, and takes newer ones only (§4.4).

`wanted`, `added` and `dropped` say what becomes of one shard and touch nothing else, so that one
command may do it for many (`las.core.many_steps`).
"""

from collections.abc import Callable
from dataclasses import replace

from las.core.commands import AddHolder, DropHolder, Reason, Result, WantHolders
from las.core.holder_commands import AddHolderAgain, ReleaseHolder
from las.core.segments import (
    Applied,
    NextEntry,
    applied,
    kept_as_it_is,
    refuse,
    refused_halted,
    replica_error,
    unknown_shard,
)
from las.core.state import RELEASES_MAX, WANTED_HOLDERS_MAX, ClusterState, Log
from peerd.core.ids import Epoch, ReplicaId, ShardId
from peerd.core.shard_map import Release, Segment, segment_with, with_segment


def want_holders(state: ClusterState, command: WantHolders) -> Applied:
    """Say who shall fetch a sealed segment.

    | `WantHolders(e, stores)` | e is sealed and in the chain; each store is the recorded one of its
    node and no holder | these stores shall fetch e. |
    """
    return applied(state, wanted(state, command))


def wanted(state: ClusterState, command: WantHolders) -> NextEntry:
    """What `WantHolders` makes of its shard; it also reads the nodes."""

    def with_wanted(segment: Segment) -> Segment | str:
        if len(set(command.holders)) != len(command.holders):
            return "a store is named twice"
        if len(command.holders) > WANTED_HOLDERS_MAX:
            return f"more than {WANTED_HOLDERS_MAX} stores at once"
        for holder in command.holders:
            if holder in segment.holders:
                return f"{holder.peer} holds it already"
            if wrong := replica_error(state, holder):
                return wrong
        taken_back = set(segment.wanted_holders) - set(command.holders)
        return replace(
            segment,
            wanted_holders=command.holders,
            released=tuple(
                replace(each, version=state.version + 1) if each.holder in taken_back else each
                for each in segment.released
            ),
        )

    return _change_sealed(state, command.shard, command.epoch, with_wanted)


def add_holder(state: ClusterState, command: AddHolder) -> Applied:
    """A store has a sealed segment whole.

    | `AddHolder(e, store)` | e is sealed and in the chain; the store is the recorded one of its
    node | the store is a holder of e and not wanted any more. |
    """
    return applied(state, added(state, command))


def added(state: ClusterState, command: AddHolder) -> NextEntry:
    """What `AddHolder` makes of its shard; it also reads the nodes."""

    def with_holder(segment: Segment) -> Segment | str:
        if wrong := replica_error(state, command.holder):
            return wrong
        if segment.release_of(command.holder) is not None:
            return f"{command.holder.peer} was told to let it go, and does not say when it looked"
        return _with_holder(segment, command.holder)

    return _change_sealed(state, command.shard, command.epoch, with_holder)


def add_holder_again(state: ClusterState, command: AddHolderAgain) -> Applied:
    """A store that let a segment go, and was wanted again, has it whole.

    | `AddHolderAgain(e, store, version)` | as `AddHolder`; if the store was told to let e go, it is
    wanted again, and the version of its map is not older than the release | the store is a holder
    of e, not wanted any more, and its release is forgotten |
    """

    def with_holder(segment: Segment) -> Segment | str:
        if wrong := replica_error(state, command.holder):
            return wrong
        release = segment.release_of(command.holder)
        if release is not None and segment.lets_go(command.holder):
            return f"{command.holder.peer} was told to let it go, and is not wanted again"
        if release is not None and command.version < release.version:
            return f"{command.holder.peer} looked before it was told to let it go"
        return _with_holder(segment, command.holder)

    return applied(state, _change_sealed(state, command.shard, command.epoch, with_holder))


def _with_holder(segment: Segment, holder: ReplicaId) -> Segment:
    others = tuple(each for each in segment.holders if each != holder)
    return replace(
        segment,
        holders=tuple(sorted((*others, holder))),
        wanted_holders=tuple(each for each in segment.wanted_holders if each != holder),
        released=tuple(each for each in segment.released if each.holder != holder),
    )


def drop_holder(state: ClusterState, command: DropHolder) -> Applied:
    """A store's copy of a sealed segment is damaged or gone.

    | `DropHolder(e, store)` | e is sealed and in the chain, and the store itself says that its copy
    is damaged | the store is no holder of e. |
    """
    return applied(state, dropped(state, command))


def dropped(state: ClusterState, command: DropHolder) -> NextEntry:
    """What `DropHolder` makes of its shard; it reads nothing else of `state`."""

    def without_holder(segment: Segment) -> Segment | str:
        return replace(
            segment, holders=tuple(each for each in segment.holders if each != command.holder)
        )

    return _change_sealed(state, command.shard, command.epoch, without_holder)


# ---------------------------------------------------------------------------------- releases
RELEASED_FEATURE_LEVEL = 6
"""Peers below it drop nothing that they were told to let go, and do not say when they looked."""


def kept_at_least(log: Log, segment: Segment) -> int:
    """How many healthy holders on hosts of their own a release leaves a sealed segment at least."""
    return max(log.copies, log.acks, segment.plan.acks, 2)


def release_holder(state: ClusterState, command: ReleaseHolder) -> Applied:
    """A holder that is one too many may let a sealed segment go.

    | `ReleaseHolder(e, store, confirmed)` | e is sealed and in the chain, nobody is wanted for it;
    the store is a holder; `copies` other holders at least, and two, and `acks`, are healthy, on
    hosts of their own, and among the confirmed | the store is no holder of e; the map tells it to
    drop e, until it is wanted for it again |
    """
    entry = state.shards.get(command.shard)
    if entry is None:
        return unknown_shard(state, command.shard)
    log = state.logs[entry.shard.log]

    def without_holder(segment: Segment) -> Segment | str:
        if command.holder not in segment.holders:
            told = segment.release_of(command.holder) is not None
            return segment if told else f"{command.holder.peer} does not hold it"
        if segment.wanted_holders:
            return "stores are wanted for it: copies first"
        if wrong := _too_few(state, log, segment, command):
            return wrong
        known = [each for each in segment.released if not replica_error(state, each.holder)]
        if len(known) >= RELEASES_MAX:
            return f"{RELEASES_MAX} stores were told to let it go, the bound"
        release = Release(holder=command.holder, version=state.version + 1)
        return replace(
            segment,
            holders=tuple(each for each in segment.holders if each != command.holder),
            released=(*known, release),
        )

    return applied(state, _change_sealed(state, command.shard, command.epoch, without_holder))


def _too_few(state: ClusterState, log: Log, segment: Segment, command: ReleaseHolder) -> str:
    """Why what is left without the holder would be too few; empty if it is enough."""
    node = state.nodes.get(command.holder.peer)
    if node is not None and node.feature_level < RELEASED_FEATURE_LEVEL:
        return f"{node.name} runs a version that lets nothing go: upgrade it first"
    others = {
        state.nodes[each.peer].host
        for each in segment.holders
        if each != command.holder and each in command.confirmed and state.is_healthy(each)
    }
    least = kept_at_least(log, segment)
    if len(others) < least:
        return (
            f"{len(others)} other healthy holders confirmed it, on hosts of their own: not {least}"
        )
    return ""


def _change_sealed(
    state: ClusterState,
    shard: ShardId,
    epoch: Epoch,
    change: Callable[[Segment], Segment | str],
) -> NextEntry:
    """Apply `change` to the sealed segment `epoch`; a text from it is why it may not change.

    Holders may change while a segment is prepared or fenced: they concern the sealed past alone.
    """
    entry = state.shards.get(shard)
    if entry is None:
        return unknown_shard(None, shard)
    if entry.halted:
        return refused_halted(None, entry)
    segment = segment_with(entry.shard.sealed, epoch)
    if segment is None:
        return refuse(None, Reason.UNKNOWN_SEGMENT, f"shard {shard} has no sealed segment {epoch}")
    after = change(segment)
    if isinstance(after, str):
        return refuse(None, Reason.INVALID_ARGUMENT, after, epoch)
    if after == segment:
        return kept_as_it_is(None, "so it is already", epoch)
    sealed = with_segment(entry.shard.sealed, after)
    changed = replace(entry, shard=replace(entry.shard, sealed=sealed))
    return changed, Result(ok=True, text="changed", epoch=epoch)
