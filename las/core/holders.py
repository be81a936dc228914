"""The commands that say who holds a sealed segment (docs/protocol.md §4).

The list of a sealed segment's holders is what the LAS relies on when it counts copies. So a store
comes onto it only by its own word that it has the segment whole and verified, and leaves it by its
own word that its copy is damaged. Such commands touch the sealed past alone and never the epochs,
the plans or the fence, so they may come between the steps of any other change of the shard. A
halted shard (§4.4) is changed by nothing.

`wanted`, `added` and `dropped` say what becomes of one shard and touch nothing else, so that one
command may do it for many (`las.core.many_steps`).
"""

from collections.abc import Callable
from dataclasses import replace

from las.core.commands import AddHolder, DropHolder, Reason, Result, WantHolders
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
from las.core.state import WANTED_HOLDERS_MAX, ClusterState
from peerd.core.ids import Epoch, ShardId
from peerd.core.shard_map import Segment, segment_with, with_segment


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
        return replace(segment, wanted_holders=command.holders)

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
        others = tuple(each for each in segment.holders if each != command.holder)
        still = tuple(each for each in segment.wanted_holders if each != command.holder)
        return replace(
            segment, holders=tuple(sorted((*others, command.holder))), wanted_holders=still
        )

    return _change_sealed(state, command.shard, command.epoch, with_holder)


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
