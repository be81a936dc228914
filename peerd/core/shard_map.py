"""One shard's entry of the committed map, as plain values (docs/protocol.md §4).

Both sides use them: the LAS core commits them, the peer core reacts to them. Invariants that
`Shard` checks when it is built (G7): sealed segments tile [0, begin of the open one) in epoch
order.
"""

from dataclasses import dataclass

from peerd.core.check import invariant
from peerd.core.ids import NO_EPOCH, Epoch, Offset, ProcessId, ReplicaId, ShardId


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Who does what in one segment. The primary may be a voter or not (*mirror*)."""

    primary: ProcessId
    voters: tuple[ReplicaId, ...]
    non_voters: tuple[ReplicaId, ...] = ()
    acks: int

    def __post_init__(self) -> None:
        invariant(1 <= self.acks <= len(self.voters), "acks within the voters", plan=self)
        everyone = self.voters + self.non_voters
        invariant(len(set(everyone)) == len(everyone), "each replica once", plan=self)
        invariant(self.primary.replica in everyone, "the primary is a replica", plan=self)

    @property
    def replicas(self) -> tuple[ReplicaId, ...]:
        """Everyone who gets the batches, the primary's own store included."""
        return self.voters + self.non_voters


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A range of offsets written under one epoch.

    `begin` is None while only prepared; `end` once sealed. Offsets in [known_commit, end) are the
    kept tail (§4.2): readable, and retries answered, once `plan.acks` holders are listed.
    """

    epoch: Epoch
    plan: Plan
    begin: Offset | None = None
    end: Offset | None = None
    known_commit: Offset | None = None
    holders: tuple[ReplicaId, ...] = ()
    wanted_holders: tuple[ReplicaId, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A chain of sealed segments and the open one; see `las.v1.Shard` for the same on the wire."""

    shard: ShardId
    log: str
    key_hash_low: int
    key_hash_high: int
    open: Segment
    sealed: tuple[Segment, ...] = ()
    prepared: Segment | None = None
    fence: Epoch = NO_EPOCH
    dead_epochs: tuple[Epoch, ...] = ()

    def __post_init__(self) -> None:
        at, epoch = 0, 0
        for segment in (*self.sealed, self.open):
            invariant(segment.begin == at, "segments tile without gap or overlap", shard=self)
            invariant(segment.epoch > epoch, "epochs grow along the chain", shard=self)
            epoch = segment.epoch
            if segment is not self.open:
                invariant(
                    segment.end is not None and segment.end > at, "sealed and not empty", shard=self
                )
                at = segment.end if segment.end is not None else at
        invariant(self.open.end is None, "the last segment is open", shard=self)
