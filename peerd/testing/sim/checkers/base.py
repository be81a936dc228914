"""What checkers share: the book of one shard, and the hooks that a run calls.

A checker looks at what clients, stores and the map show, never at how it came to be. It raises
`BrokenPromise` at the first thing that must not be. Each keeps what it needs and no more, and its
hooks cost about a dictionary look-up: a run calls them some ten thousand times a second.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from peerd.core.batch import PlacedBatch
from peerd.core.durable import Outcome, StoredShard
from peerd.core.effects import AppendAccepted
from peerd.core.ids import Epoch, Offset, ProducerId, ReplicaId, ShardId
from peerd.core.messages import Message
from peerd.core.shard_map import Segment, Shard
from peerd.testing.sim.store import SimStore


class BrokenPromise(AssertionError):
    """A promise of the protocol does not hold. The text begins with its name, e.g. ``G1``."""


def broken(promise: str, text: str) -> NoReturn:
    """Raise `BrokenPromise`. The text is made only then: a run asks ten thousand times a second."""
    raise BrokenPromise(f"{promise}: {text}")


def demand(holds: bool, promise: str, text: str) -> None:
    """Raise `BrokenPromise` unless `holds`; for what is asked seldom."""
    if not holds:
        broken(promise, text)


@dataclass(slots=True, eq=False, kw_only=True)
class Sent:
    """One append as its client knows it.

    `floor` is the end of what was acknowledged when it was first sent; `expected` are the offsets
    that its attempts named, the newest last, empty if it is not conditional. `not_taken` are the
    attempts of which the client was told that nothing was taken. `silent_ms`: for how long its
    producer had sent nothing when it was first sent.
    """

    shard: ShardId
    producer: ProducerId
    first_sequence: int
    record_count: int
    payload: bytes
    key_hash: int
    floor: Offset
    expected: list[Offset] = field(default_factory=list)
    attempts: int = 0
    not_taken: int = 0
    silent_ms: int = 0

    def __str__(self) -> str:
        return f"{self.payload.decode()} ({self.record_count} records)"


@dataclass(slots=True, eq=False)
class Acked:
    """One acknowledged batch at its place."""

    epoch: Epoch
    base: Offset
    end: Offset
    sent: Sent

    def __str__(self) -> str:
        return f"{self.sent} at {self.base} of epoch {self.epoch}"


class Book:
    """What happened to one shard, as the outside sees it.

    `stores` are the shard's parts of all data directories, the lost ones too, and `owners` whose
    they are, by `id`; `copies` are what the log has (0: not known); `survives_all` is False in runs
    that lose more than §5 allows; `acked` is by offset; `sent` is by payload, each of which is sent
    once; `sealed` are all sealed segments ever seen.
    """

    def __init__(self, shard: ShardId, acks: int) -> None:
        self.shard = shard
        self.acks = acks
        self.stores: list[SimStore] = []
        self.owners: dict[int, ReplicaId] = {}
        self.survives_all = True
        self.lost: set[int] = set()
        self.copies = 0
        self.acked: dict[Offset, Acked] = {}
        self.acked_end = Offset(0)
        self.sent: dict[bytes, Sent] = {}
        self.map: Shard | None = None
        self.sealed: dict[Epoch, Segment] = {}
        self.holes: dict[Offset, Offset] = {}
        """Kept tails that are lost, and gaps, as of the last `log`: where each begins and ends."""
        self._trimmed: dict[Offset, tuple[Epoch, PlacedBatch]] = {}
        self._trimmed_holes: dict[Offset, Offset] = {}

    @property
    def trimmed_to(self) -> Offset:
        """Below this nothing is kept, as is committed."""
        return Offset(0) if self.map is None else self.map.trimmed_to

    def kept_stores(self) -> list[SimStore]:
        """Stores whose directory is still there."""
        return [store for store in self.stores if id(store) not in self.lost]

    def log(self) -> dict[Offset, tuple[Epoch, PlacedBatch]]:
        """What the stores have of the chain of the map, by offset, behind what they had of it when
        it was trimmed; ends at the first hole that is neither a lost kept tail nor a gap.
        """
        log = dict(self._trimmed)
        at = self.trimmed_to
        self.holes = dict(self._trimmed_holes)
        gaps = {gap.begin: gap.end for gap in self.map.gaps} if self.map is not None else {}
        for segment in (*self.map.sealed, self.map.open) if self.map is not None else ():
            lost_from = at
            while at in gaps:
                at = self.holes[lost_from] = gaps[at]
            while segment.end is None or at < segment.end:
                batch = self._found(segment.epoch, at)
                if batch is not None:
                    log[at] = (segment.epoch, batch)
                    at = batch.end
                elif segment.end is not None and self.tail_is_lost(segment, at):
                    self.holes[at] = segment.end
                    at = segment.end
                else:
                    return log
        return log

    def trim(self, trimmed_to: Offset) -> None:
        """The map is about to say that nothing is kept below: note what the stores have there."""
        for base, there in self.log().items():
            if base < trimmed_to:
                self._trimmed[base] = there
        for begin, end in self.holes.items():
            if end <= trimmed_to:
                self._trimmed_holes[begin] = end

    def left_behind(
        self, first: Offset, trimmed_to: Offset
    ) -> list[tuple[Offset, tuple[Epoch, PlacedBatch]]]:
        """What the stores had in [first, trimmed_to) when the map let them drop it, by offset."""
        return sorted(
            (base, there) for base, there in self._trimmed.items() if first <= base < trimmed_to
        )

    def tail_is_lost(self, sealed: Segment, at: Offset) -> bool:
        """Whether `at` lies in a kept tail that only lost directories had: §5 promises nothing of
        what was never acknowledged. (If it was acknowledged all the same, G1 misses it.)
        """
        if self.survives_all and at < (sealed.known_commit or Offset(0)):
            return False
        had = [store for store in self.stores if at in store.batches.get(sealed.epoch, {})]
        return bool(had) and all(id(store) in self.lost for store in had)

    def is_given_up(self, epoch: Epoch, at: Offset) -> bool:
        """Whether a gap of the map names `epoch` and begins at `at` or before it: what was
        acknowledged or read there is lost, and the map says so (G10).
        """
        gaps = self.map.gaps if self.map is not None else ()
        return any(epoch in gap.epochs and gap.begin <= at for gap in gaps)

    def only_lost_had(self, epoch: Epoch, base: Offset) -> bool:
        """Whether all stores that have a batch are lost, in a run in which that may be."""
        had = [store for store in self.stores if base in store.batches.get(epoch, {})]
        return not self.survives_all and all(id(store) in self.lost for store in had)

    def _found(self, epoch: Epoch, base: Offset) -> PlacedBatch | None:
        for store in self.kept_stores():
            segment = store.state.segments.get(epoch)
            if segment is not None and segment.begin <= base < segment.end:
                batch = store.batches.get(epoch, {}).get(base)
                if batch is not None and (epoch, base) not in store.damaged:
                    return batch
        return None


class Checker:
    """The hooks; each does nothing here. One instance per shard."""

    def __init__(self, book: Book) -> None:
        self.book = book

    def acknowledged(self, now: Acked, receipt: AppendAccepted) -> None:
        """A process gave a receipt; the client may never get it."""

    def stored(self, store: SimStore, before: StoredShard, outcomes: Sequence[Outcome]) -> None:
        """A transaction of a store committed; `before` is the shard's state before it."""

    def said(self, stored: StoredShard, message: Message) -> None:
        """A core sent a message; `stored` is the durable state that it knew."""

    def served(self, epoch: Epoch, batch: PlacedBatch) -> None:
        """A reader got a batch as committed."""

    def map_committed(self, before: Shard | None, after: Shard) -> None:
        """The shard's entry of the map changed."""

    def finished(self, log: dict[Offset, tuple[Epoch, PlacedBatch]]) -> None:
        """The run is over and everything has settled; `log` is what the stores have."""
