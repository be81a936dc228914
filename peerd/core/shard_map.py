"""One shard's entry of the committed map, as plain values (docs/protocol.md §4).

Both sides use them: the LAS core commits them, the peer core reacts to them. Invariants that
`Shard` checks when it is built (G7): sealed segments, with the gaps between them, tile
[0, begin of the open one) in epoch order. Of what is not kept any more the oldest ones are left
out; those that are listed tile from some offset that is not above `kept_from`.
"""

from enum import StrEnum

from peerd.core.check import invariant
from peerd.core.ids import (
    FIRST_OFFSET,
    NO_EPOCH,
    BootId,
    Epoch,
    NodeName,
    Offset,
    ProcessId,
    ReplicaId,
    ShardId,
    StoreId,
)
from peerd.core.value import value


class Compression(StrEnum):
    """How clients pack a log's batches, unless a producer says otherwise. Servers do not look."""

    NONE = "none"
    ZSTD = "zstd"


@value(frozen=True, slots=True, kw_only=True)
class Plan:
    """Who does what in one segment. The primary may be a voter or not (*mirror*).

    `closed`: the segment takes no batch, ever; such a one ends a shard that is split (§4.3).
    """

    primary: ProcessId
    voters: tuple[ReplicaId, ...]
    non_voters: tuple[ReplicaId, ...] = ()
    acks: int
    closed: bool = False

    def __post_init__(self) -> None:
        invariant(1 <= self.acks <= len(self.voters), "acks within the voters", plan=self)
        everyone = self.voters + self.non_voters
        invariant(len(set(everyone)) == len(everyone), "each replica once", plan=self)
        invariant(self.primary.replica in everyone, "the primary is a replica", plan=self)

    @property
    def replicas(self) -> tuple[ReplicaId, ...]:
        """Everyone who gets the batches, the primary's own store included."""
        return self.voters + self.non_voters

    @property
    def is_nobodys(self) -> bool:
        """Whether no process was ever told of it; see `plan_of_nobody`."""
        return not self.primary.peer


def plan_of_nobody(*, closed: bool = False) -> Plan:
    """The plan of a segment that only the tier has, or nobody: a restore begins with such ones
    (docs/backup.md). Nodes have names, and nobody has none.
    """
    nobody = ProcessId(NodeName(""), StoreId(""), BootId(""))
    return Plan(primary=nobody, voters=(nobody.replica,), acks=1, closed=closed)


@value(frozen=True, slots=True, kw_only=True)
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


def stable_end(sealed: Segment, heard: Offset) -> Offset:
    """Up to where a sealed segment survives what an acknowledged batch survives (G12, §7).

    "Of a kept tail only what lies below a commit offset that was named in an answer, or what is
    known to be durable on `acks` stores": the listed holders have all of it. `heard` is a commit
    offset of the segment that was heard otherwise (0: none).
    """
    if sealed.end is not None and len(sealed.holders) >= sealed.plan.acks:
        return sealed.end
    return max(sealed.known_commit or sealed.begin or FIRST_OFFSET, heard)


@value(frozen=True, slots=True, kw_only=True)
class Gap:
    """Offsets [begin, end) that are lost for good: no store has them and none ever will (G10).

    `epochs` are those whose records were cut off there; a store that comes back with some of them
    drops them. `why` is one line for a reader.
    """

    begin: Offset
    end: Offset
    epochs: tuple[Epoch, ...]
    why: str

    def __post_init__(self) -> None:
        invariant(self.begin < self.end, "a gap is not empty", gap=self)


@value(frozen=True, slots=True, kw_only=True)
class SkippedEpochs:
    """Epochs [first, last] that the LAS skipped when it began from older data (§4.6): commits that
    were lost may have drawn them. `given_up`: a person said that stores may drop what they have.
    """

    first: Epoch
    last: Epoch
    given_up: bool = False

    def __post_init__(self) -> None:
        invariant(self.first <= self.last, "a range of epochs is not empty", skipped=self)


@value(frozen=True, slots=True, kw_only=True)
class Split:
    """A split of a shard: pending while its closed segment is prepared, then for good (§4.3).

    `key_hash` is the first of the upper child. `end` is X and `children` are the lower and the
    upper child, both once it is committed.
    """

    key_hash: int
    end: Offset | None = None
    children: tuple[ShardId, ...] = ()

    def __post_init__(self) -> None:
        invariant(len(self.children) in (0, 2), "two children or none yet", split=self)
        invariant(bool(self.children) == (self.end is not None), "children and X", split=self)

    @property
    def is_committed(self) -> bool:
        """Whether the children exist: then the shard takes nothing more."""
        return bool(self.children)


@value(frozen=True, slots=True, kw_only=True)
class Parent:
    """The shard that a child came from by a split; its records end at `end` and come first."""

    shard: ShardId
    end: Offset


@value(frozen=True, slots=True, kw_only=True)
class Tiered:
    """Offsets [begin, end) are in the object tier, read back and verified (docs/tiers.md).

    `manifest` is the name of the list of their objects. A lost range may lie between them.
    """

    begin: Offset
    end: Offset
    manifest: str

    def __post_init__(self) -> None:
        invariant(self.begin <= self.end, "the tier ends where it begins or later", tier=self)


@value(frozen=True, slots=True, kw_only=True)
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
    split: Split | None = None
    parent: Parent | None = None
    gaps: tuple[Gap, ...] = ()
    trimmed_to: Offset = FIRST_OFFSET
    skipped: tuple[SkippedEpochs, ...] = ()
    tier: Tiered | None = None

    @property
    def kept_from(self) -> Offset:
        """The first offset that may be read. Below `trimmed_to` no store keeps anything: what lies
        between the two is in the tier alone.
        """
        return self.trimmed_to if self.tier is None else self.tier.begin

    def skipped_with(self, epoch: Epoch) -> SkippedEpochs | None:
        """The skipped range that `epoch` lies in: nobody here knows what it was drawn for."""
        return next((each for each in self.skipped if each.first <= epoch <= each.last), None)

    def gap_at(self, offset: int) -> Gap | None:
        """The gap that `offset` lies in."""
        return next((gap for gap in self.gaps if gap.begin <= offset < gap.end), None)

    @property
    def _listed_from(self) -> Offset:
        """Where the oldest segment or gap that is listed begins."""
        first = self.sealed[0] if self.sealed else self.open
        begin = FIRST_OFFSET if first.begin is None else first.begin
        return min([begin, *(gap.begin for gap in self.gaps)])

    @property
    def is_split(self) -> bool:
        """Whether the shard has ended in favour of its children."""
        return self.split is not None and self.split.is_committed

    def __post_init__(self) -> None:
        gaps = {gap.begin: gap.end for gap in self.gaps}
        at, epoch = self._listed_from, 0
        invariant(at <= self.kept_from, "segments tile from what is kept on", shard=self)
        if self.tier is not None:
            inside = self.tier.begin <= self.trimmed_to <= self.tier.end
            invariant(inside, "stores keep what the tier does not have", shard=self)
        for segment in (*self.sealed, self.open):
            # A quorum may be lost again before a record was taken: then one gap follows another.
            while at in gaps:
                at = gaps.pop(at)
            invariant(segment.begin == at, "segments tile without gap or overlap", shard=self)
            invariant(segment.epoch > epoch, "epochs grow along the chain", shard=self)
            epoch = segment.epoch
            if segment is not self.open:
                invariant(
                    segment.end is not None and segment.end > at, "sealed and not empty", shard=self
                )
                at = segment.end if segment.end is not None else at
        invariant(not gaps, "gaps lie between segments", shard=self)
        invariant(self.open.end is None, "the last segment is open", shard=self)
        invariant(self.open.plan.closed == self.is_split, "closed if it is split", shard=self)
        if self.split is not None and self.split.is_committed:
            invariant(self.split.end == self.open.begin, "a split shard ends at X", shard=self)
            if self.prepared is not None:
                invariant(self.prepared.plan.closed, "what is split stays closed", shard=self)
