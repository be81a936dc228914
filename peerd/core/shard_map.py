"""One shard's entry of the committed map, as plain values (docs/protocol.md §4).

Both sides use them: the LAS core commits them, the peer core reacts to them. Invariants that
`Shard` checks when it is built (G7): sealed segments, with the gaps between them, tile
[0, begin of the open one) in epoch order. Of what is not kept any more the oldest ones are left
out; those that are listed tile from some offset that is not above `kept_from`.

*Neighbours may share an entry* (`Run`, §8). An entry of a sealed segment says who has it, and in
which epoch which of its offsets were written. If it has no kept tail, or one that was on enough
stores once and so is known for good, its plan says nothing any more. So neighbours of which the
same stores have and want all, and between which no gap lies, are one entry with the list of their
epochs. That is a form and no statement: who walks a `Chain` sees each segment as ever, and one that
changes leaves its run. `joined` makes the shortest form.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace
from enum import StrEnum
from struct import Struct
from typing import overload

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
class Release:
    """A store that was a holder of a sealed segment and was told to let it go (§8.4).

    `version` is that of the first map that says so: what the store said of its copy with an older
    map before it counts for nothing.
    """

    holder: ReplicaId
    version: int


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
    released: tuple[Release, ...] = ()

    def release_of(self, store: ReplicaId) -> Release | None:
        """The standing release of a store, which ends when it is listed again."""
        return next((each for each in self.released if each.holder == store), None)

    def lets_go(self, store: ReplicaId) -> bool:
        """Whether the map tells a store to drop what it has of this segment (§8.4)."""
        told = self.release_of(store) is not None
        return told and store not in self.holders and store not in self.wanted_holders


_PART = Struct("<QQ")


@value(frozen=True, slots=True, kw_only=True)
class Run:
    """Neighbouring sealed segments that differ in their epoch and range alone, as one entry.

    `newest` is the last of them, as it would be by itself. `earlier` is the epoch and the begin of
    each of the others, oldest first, packed, 16 bytes each. All have the plan of the newest: it is
    that of nobody for all or for none, and nothing else of the plan of such a segment is asked for.
    """

    newest: Segment
    earlier: bytes

    def __post_init__(self) -> None:
        invariant(bool(self.earlier), "a run has two segments at least", run=self)
        begin, epoch = -1, 0
        for part_epoch, part_begin in (*_PART.iter_unpack(self.earlier), self._newest_part):
            invariant(epoch < part_epoch, "epochs grow along a run", run=self)
            invariant(begin < part_begin, "no segment of a run is empty", run=self)
            epoch, begin = part_epoch, part_begin

    @property
    def _newest_part(self) -> tuple[int, int]:
        return self.newest.epoch, self.newest.begin or FIRST_OFFSET

    @property
    def begin(self) -> Offset:
        """Where the oldest begins."""
        return Offset(_PART.unpack_from(self.earlier)[1])

    @property
    def first_epoch(self) -> Epoch:
        """The epoch of the oldest."""
        return Epoch(_PART.unpack_from(self.earlier)[0])

    def __len__(self) -> int:
        return len(self.earlier) // _PART.size + 1

    def parts(self) -> Iterator[tuple[Epoch, Offset]]:
        """Epoch and begin of each but the newest, oldest first."""
        for epoch, begin in _PART.iter_unpack(self.earlier):
            yield Epoch(epoch), Offset(begin)

    def segments(self) -> Iterator[Segment]:
        """Each of them by itself, oldest first."""
        newest = self.newest
        begins = [begin for _, begin in self.parts()]
        ends = [*begins[1:], newest.begin]
        for (epoch, begin), end in zip(self.parts(), ends, strict=True):
            yield Segment(
                epoch=epoch,
                plan=newest.plan,
                begin=begin,
                end=end,
                known_commit=end,
                holders=newest.holders,
                wanted_holders=newest.wanted_holders,
            )
        yield newest


ChainEntry = Segment | Run


class Chain(Sequence[Segment]):
    """Sealed segments, oldest first, of which some share an entry. Equal to the same as a tuple."""

    __slots__ = ("_count", "entries")

    def __init__(self, entries: Sequence[ChainEntry]) -> None:
        self.entries = tuple(entries)
        self._count = sum(map(count_of, self.entries))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Segment]:
        for entry in self.entries:
            if isinstance(entry, Segment):
                yield entry
            else:
                yield from entry.segments()

    def __reversed__(self) -> Iterator[Segment]:
        for entry in reversed(self.entries):
            if isinstance(entry, Segment):
                yield entry
            else:
                yield entry.newest
                yield from reversed(tuple(entry.segments())[:-1])

    @overload
    def __getitem__(self, index: int) -> Segment: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Segment, ...]: ...

    def __getitem__(self, index: int | slice) -> Segment | tuple[Segment, ...]:
        if index == -1 and self.entries:
            last = self.entries[-1]
            return last if isinstance(last, Segment) else last.newest
        return tuple(self)[index]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Chain) and self.entries == other.entries:
            return True
        return isinstance(other, Chain | tuple) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"Chain({self.entries!r})"


def entries_of(sealed: Sequence[Segment]) -> tuple[ChainEntry, ...]:
    """The entries of a shard's sealed segments: fewer than these where some share one."""
    return sealed.entries if isinstance(sealed, Chain) else tuple(sealed)


def newest_of(entry: ChainEntry) -> Segment:
    """What holds of all segments of an entry but for epoch and range, and the last one's range."""
    return entry if isinstance(entry, Segment) else entry.newest


def count_of(entry: ChainEntry) -> int:
    """How many segments share the entry."""
    return 1 if isinstance(entry, Segment) else len(entry)


def span_of(entry: ChainEntry) -> tuple[Epoch, Offset | None]:
    """Epoch and begin of the oldest segment of an entry."""
    return (
        (entry.epoch, entry.begin)
        if isinstance(entry, Segment)
        else (entry.first_epoch, entry.begin)
    )


def joined(sealed: Sequence[Segment]) -> Sequence[Segment]:
    """The same segments in as few entries as can be."""
    found: list[ChainEntry] = []
    group: list[ChainEntry] = []
    for entry in (*entries_of(sealed), None):
        if group and (entry is None or not _are_alike(group[-1], entry)):
            found.append(group[0] if len(group) == 1 else _run_of(group))
            group = []
        if entry is not None:
            group.append(entry)
    if len(found) == len(entries_of(sealed)):
        return sealed
    return Chain(found)


def _are_alike(before: ChainEntry, after: ChainEntry) -> bool:
    """Whether two neighbours may share an entry."""
    one, other = newest_of(before), newest_of(after)
    begin = span_of(after)[1]
    return (
        one.end == begin
        and _has_no_tail(one)
        and _has_no_tail(other)
        and (one.holders, one.wanted_holders) == (other.holders, other.wanted_holders)
        and not (one.released or other.released)
        and one.plan.is_nobodys == other.plan.is_nobodys
    )


def _has_no_tail(sealed: Segment) -> bool:
    """Whether nothing of it is a kept tail: what holders were listed for is known for good."""
    return sealed.known_commit == sealed.end or len(sealed.holders) >= sealed.plan.acks


def _run_of(entries: Sequence[ChainEntry]) -> Run:
    parts = bytearray()
    for entry in entries:
        if isinstance(entry, Run):
            parts += entry.earlier
        parts += _part_of(newest_of(entry))
    newest = newest_of(entries[-1])
    newest = replace(newest, known_commit=newest.end)
    return Run(newest=newest, earlier=bytes(parts[: -_PART.size]))


def _part_of(segment: Segment) -> bytes:
    return _PART.pack(segment.epoch, segment.begin or FIRST_OFFSET)


def run_of(newest: Segment, parts: Sequence[tuple[int, int]]) -> ChainEntry:
    """The entry of `newest` and of earlier ones, given by epoch and begin, oldest first."""
    if not parts:
        return newest
    return Run(newest=newest, earlier=b"".join(_PART.pack(*part) for part in parts))


def chain_of(entries: Sequence[ChainEntry]) -> Sequence[Segment]:
    """Sealed segments by their entries."""
    plain = [each for each in entries if isinstance(each, Segment)]
    return tuple(plain) if len(plain) == len(entries) else Chain(entries)


def segment_with(sealed: Sequence[Segment], epoch: Epoch) -> Segment | None:
    """The sealed segment of `epoch`."""
    entries = entries_of(sealed)
    at = bisect_left(entries, epoch, key=lambda entry: newest_of(entry).epoch)
    if at == len(entries):
        return None
    entry = entries[at]
    if isinstance(entry, Segment):
        return entry if entry.epoch == epoch else None
    return next((each for each in entry.segments() if each.epoch == epoch), None)


def with_segment(sealed: Sequence[Segment], after: Segment) -> Sequence[Segment]:
    """The chain in which `after` stands in the place of the segment of its epoch, by itself."""
    found: list[ChainEntry] = []
    for entry in entries_of(sealed):
        first, last = span_of(entry)[0], newest_of(entry).epoch
        if isinstance(entry, Segment) or not first <= after.epoch <= last:
            found.append(after if last == after.epoch else entry)
            continue
        segments = list(entry.segments())
        at = next(at for at, each in enumerate(segments) if each.epoch == after.epoch)
        found += [_entry_of(segments[:at])] if at else []
        found.append(after)
        found += [_entry_of(segments[at + 1 :])] if segments[at + 1 :] else []
    return chain_of(found)


def chain_behind(sealed: Sequence[Segment], offset: Offset) -> Sequence[Segment]:
    """The chain without segments that end at `offset` or before; the newest one stays."""
    entries = entries_of(sealed)
    found: list[ChainEntry] = []
    for at, entry in enumerate(entries, 1):
        newest = newest_of(entry)
        stays = at == len(entries) or newest.end is None or newest.end > offset
        if isinstance(entry, Run) and stays:
            left = [
                each
                for each in entry.segments()
                if each is newest or each.end is None or each.end > offset
            ]
            found.append(entry if len(left) == len(entry) else _entry_of(left))
        elif stays:
            found.append(entry)
    return chain_of(found)


def _entry_of(segments: Sequence[Segment]) -> ChainEntry:
    return segments[0] if len(segments) == 1 else _run_of(segments)


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
    sealed: Sequence[Segment] = ()
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
        entries = entries_of(self.sealed)
        first = span_of(entries[0])[1] if entries else self.open.begin
        begin = FIRST_OFFSET if first is None else first
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
        for entry in (*entries_of(self.sealed), self.open):
            segment, (first_epoch, begin) = newest_of(entry), span_of(entry)
            # A quorum may be lost again before a record was taken: then one gap follows another.
            while at in gaps:
                at = gaps.pop(at)
            invariant(begin == at, "segments tile without gap or overlap", shard=self)
            invariant(first_epoch > epoch, "epochs grow along the chain", shard=self)
            epoch = segment.epoch
            if segment is not self.open:
                held = segment.end is not None and segment.end > (segment.begin or 0)
                invariant(held, "sealed and not empty", shard=self)
                at = segment.end if segment.end is not None else at
        invariant(not gaps, "gaps lie between segments", shard=self)
        invariant(self.open.end is None, "the last segment is open", shard=self)
        invariant(self.open.plan.closed == self.is_split, "closed if it is split", shard=self)
        if self.split is not None and self.split.is_committed:
            invariant(self.split.end == self.open.begin, "a split shard ends at X", shard=self)
            if self.prepared is not None:
                invariant(self.prepared.plan.closed, "what is split stays closed", shard=self)
