"""The refusals that the core gives, in words: what was wrong, where, what to do.

One place, so that a reason always comes with the same `taken` and the same advice. The host knows
the shard of the request and need not hear it again.
"""

from peerd.core.errors import Reason, Refusal, Taken
from peerd.core.ids import Epoch, Offset, ProcessId
from peerd.core.shard_map import Split

RETRY_SOON_MS = 20
"""Advice where a bound was reached that the next commits free: a few group commits."""


def _named(leader: ProcessId | None) -> str:
    return f"go to {leader.peer}" if leader else "look at the shard map"


def not_primary(leader: ProcessId | None) -> Refusal:
    """This process does not order the shard."""
    return Refusal(
        reason=Reason.NOT_PRIMARY,
        message=f"this peer is not the shard's primary; {_named(leader)}, with the same sequence",
        leader=leader,
    )


def fenced(epoch: Epoch, promised: Epoch, leader: ProcessId | None) -> Refusal:
    """A higher epoch ended this one while the batch was in flight: its outcome is not known."""
    return Refusal(
        reason=Reason.FENCED,
        message=f"epoch {epoch} was fenced by epoch {promised} while the batch was in flight; "
        "refresh the map and send the same sequence again",
        taken=Taken.UNKNOWN,
        leader=leader,
        epoch=promised,
    )


def moved(leader: ProcessId, epoch: Epoch, taken: Taken) -> Refusal:
    """The shard went to `leader` by plan. `taken` is UNKNOWN for what was in flight: if the next
    segment never comes to life, recovery may keep it.
    """
    return Refusal(
        reason=Reason.MOVED,
        message=f"the shard moved to {leader.peer} under epoch {epoch}; "
        "send the same sequence there",
        taken=taken,
        leader=leader,
        epoch=epoch,
    )


def split(split: Split) -> Refusal:
    """The shard ended in favour of its children; the batch is not in it and never will be."""
    children = " and ".join(map(str, split.children))
    return Refusal(
        reason=Reason.SPLIT,
        message=f"the shard was split at offset {split.end} into shards {children}, and the batch "
        "is not in it; cut the batch by key and send the pieces there with new sequences",
        first_offset=split.end,
        children=split.children,
    )


def offset_mismatch(expected: Offset, end: Offset) -> Refusal:
    """A conditional append lost."""
    return Refusal(
        reason=Reason.OFFSET_MISMATCH,
        message=f"expected offset {expected}, but the shard ends at {end}; "
        "read what was appended, then decide",
        first_offset=end,
    )


def sequence_gap(sequence: int, expected: int) -> Refusal:
    """The producer skipped a sequence."""
    return Refusal(
        reason=Reason.SEQUENCE_GAP,
        message=f"sequence {sequence} came, but {expected} is next; send again from {expected}",
        next_sequence=expected,
    )


def sequence_too_old(sequence: int, following: int) -> Refusal:
    """The sequence is below the next one and is no batch that is remembered."""
    return Refusal(
        reason=Reason.SEQUENCE_TOO_OLD,
        message=f"sequence {sequence} is not the first of a batch that is still remembered "
        f"(next is {following}); whether it was taken is not known any more",
        taken=Taken.UNKNOWN,
        next_sequence=following,
    )


def producer_state_lost() -> Refusal:
    """The table misses some past and does not know the producer."""
    return Refusal(
        reason=Reason.PRODUCER_STATE_LOST,
        message="what this producer appended before is lost or forgotten; "
        "end what is outstanding as unknown and take a new producer id",
        taken=Taken.UNKNOWN,
    )


def producer_window_full(window: int) -> Refusal:
    """The producer has W unanswered batches."""
    return Refusal(
        reason=Reason.PRODUCER_WINDOW_FULL,
        message=f"the producer has {window} unanswered batches in this shard, the bound; "
        "wait for an answer",
        retry_after_ms=RETRY_SOON_MS,
    )


def too_many_producers(bound: int) -> Refusal:
    """The shard remembers as many producers as it may."""
    return Refusal(
        reason=Reason.LIMIT_REACHED,
        message=f"the shard knows {bound} producers, the bound; use one producer id per process, "
        "not one per append",
    )


def overloaded(what: str, taken: Taken = Taken.NO) -> Refusal:
    """A bound on what is in flight was reached."""
    return Refusal(
        reason=Reason.OVERLOADED,
        message=f"{what}; wait {RETRY_SOON_MS} ms, then send the same batch again",
        taken=taken,
        retry_after_ms=RETRY_SOON_MS,
    )


def tail_not_confirmed(acks: int) -> Refusal:
    """Not enough voters answered a round, or a kept tail is on too few stores, for too long."""
    return Refusal(
        reason=Reason.NOT_ENOUGH_PEERS,
        message=f"the tail was not confirmed by {acks} voters in time; ask again, "
        "or without `linearizable`",
        retry_after_ms=RETRY_SOON_MS,
    )


def empty_batch() -> Refusal:
    """A batch without records has no offset."""
    return Refusal(
        reason=Reason.INVALID_ARGUMENT,
        message="record_count is 0; a batch has at least one record",
    )
