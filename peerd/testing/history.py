"""What clients saw, and whether it keeps the promises (docs/protocol.md §2).

A `History` is told every acknowledgement, every committed map and, in the end, what the stores
have. It raises `BrokenPromise` at the first thing that must not be; it never looks at how it came
to be.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from peerd.core.batch import PlacedBatch
from peerd.core.durable import AdoptEpoch, AppendBatches, Outcome, Stored, StoredShard
from peerd.core.effects import AppendAccepted
from peerd.core.ids import Epoch, Offset, ProducerId
from peerd.core.producer import TableSnapshot, empty_table, extended
from peerd.core.shard_map import Segment, Shard
from peerd.testing.sim_store import SimStore


class BrokenPromise(AssertionError):
    """A promise of the protocol does not hold. The text begins with its name, e.g. ``G1``."""


def demand(holds: bool, promise: str, text: str) -> None:
    """Raise `BrokenPromise` unless `holds`."""
    if not holds:
        raise BrokenPromise(f"{promise}: {text}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One append as its client knows it. `floor`: what was acknowledged when it was first sent."""

    producer: ProducerId
    first_sequence: int
    record_count: int
    payload: bytes
    floor: Offset


@dataclass(frozen=True, slots=True, kw_only=True)
class Acked:
    """One acknowledged batch at its place."""

    epoch: Epoch
    base: Offset
    end: Offset
    sent: Sent


class History:
    """Collects and checks; see the module."""

    def __init__(self, acks: int) -> None:
        self.acked_end = Offset(0)
        self.acked: dict[Offset, Acked] = {}
        self._acks = acks
        self._served: dict[Offset, tuple[Epoch, PlacedBatch]] = {}
        self._by_sequence: dict[tuple[ProducerId, int], Acked] = {}
        self._map: Shard | None = None
        self._sealed: dict[Epoch, Segment] = {}

    # -------------------------------------------------------------- acknowledgements
    def acknowledged(self, sent: Sent, receipt: AppendAccepted, copies: int) -> None:
        """A receipt was given; `copies` stores had the batch on disk at that moment."""
        end = Offset(receipt.base + receipt.record_count)
        now = Acked(epoch=receipt.epoch, base=receipt.base, end=end, sent=sent)
        text = f"{sent.payload!r} at {receipt.base} of epoch {receipt.epoch}"
        demand(copies >= self._acks, "G1", f"{text} was acknowledged with {copies} copies")
        if not receipt.duplicate:
            named = len(receipt.durable_on)
            demand(named >= self._acks, "G1", f"the receipt of {text} names {named} voters")
        demand(receipt.record_count == sent.record_count, "G5", f"{text} has another size")
        if sent.producer:
            first = self._by_sequence.setdefault((sent.producer, sent.first_sequence), now)
            same = (first.epoch, first.base) == (now.epoch, now.base)
            demand(same, "G4", f"{text} was acknowledged before at {first.base} of {first.epoch}")
        there = self.acked.setdefault(now.base, now)
        demand(there.sent.payload == sent.payload, "G2", f"{text} where {there} is")
        demand(now.base >= sent.floor, "G3", f"{text} was sent after {sent.floor} was acknowledged")
        if self._map is not None:
            self._check_place(self._map, now)
        self.acked_end = max(self.acked_end, end)

    def check_fence(self, before: StoredShard, outcomes: Iterable[Outcome]) -> None:
        """G6: after a store has promised f, no older epoch changes it."""
        for outcome in outcomes:
            operation = outcome.operation
            if isinstance(operation, AdoptEpoch | AppendBatches) and isinstance(outcome, Stored):
                fenced = operation.epoch < before.promised
                demand(not fenced, "G6", f"{operation} was taken after {before.promised}")
            before = outcome.state

    def served(self, epoch: Epoch, batch: PlacedBatch) -> None:
        """A reader got a batch: what it saw must never turn out otherwise (G2, G12)."""
        known = self._served.setdefault(batch.base, (epoch, batch))
        text = f"{bytes(batch.payload)!r} at {batch.base} of epoch {epoch}"
        same = known[0] == epoch and known[1].payload == batch.payload
        demand(same, "G2", f"{text} was read where {known} was read before")
        acked = self.acked.get(batch.base)
        same = acked is None or acked.sent.payload == batch.payload
        demand(same, "G2", f"{text} was read where {acked} was acknowledged")

    # -------------------------------------------------------------- the map
    def map_committed(self, shard: Shard) -> None:
        """A new version of the map was committed."""
        known, self._map = self._map, shard
        if known is not None:
            grown = shard.open.epoch >= known.open.epoch
            demand(grown, "G7", f"open went from {known.open.epoch} to {shard.open.epoch}")
        for segment in shard.sealed:
            before = self._sealed.setdefault(segment.epoch, segment)
            same = (before.begin, before.end) == (segment.begin, segment.end)
            demand(same, "G7", f"sealed segment {segment.epoch} changed")
        for acked in self.acked.values():
            self._check_place(shard, acked)

    def _check_place(self, shard: Shard, acked: Acked) -> None:
        """G1: an acknowledged batch is inside the log that the map defines."""
        text = f"{acked.sent.payload!r} at {acked.base} of epoch {acked.epoch}"
        for segment in shard.sealed:
            begin, end = segment.begin or 0, segment.end or 0
            if begin <= acked.base < end:
                inside = segment.epoch == acked.epoch and acked.end <= end
                demand(inside, "G1", f"{text} is outside the log: {segment.epoch} ends at {end}")
                return
        alive = {shard.open.epoch}
        if shard.prepared is not None:
            alive.add(shard.prepared.epoch)
        demand(acked.epoch in alive, "G1", f"{text} is outside the log: open is {shard.open.epoch}")

    # -------------------------------------------------------------- the end
    def check_stores(self, shard: Shard, stores: Iterable[SimStore]) -> None:
        """After everything has settled: what is acknowledged is there, once, in order, whole."""
        kept = list(stores)
        log: dict[Offset, tuple[Epoch, PlacedBatch]] = {}
        for segment in (*shard.sealed, shard.open):
            self._check_segment(segment, kept, log)
        for acked in self.acked.values():
            text = f"{acked.sent.payload!r} at {acked.base} of epoch {acked.epoch}"
            there = log.get(acked.base)
            demand(there is not None, "G1", f"{text} is on no store")
            if there is not None:
                demand(there[0] == acked.epoch, "G1", f"{text} is of epoch {there[0]}")
                reads = bytes(there[1].payload)
                demand(reads == acked.sent.payload, "G2", f"{text} reads as {reads!r}")
        for base, (epoch, batch) in self._served.items():
            there = log.get(base)
            survived = there is not None and there[0] == epoch
            demand(survived, "G12", f"{batch} of epoch {epoch} was read, and is not in the log")
        headers = [log[base][1].header for base in sorted(log)]
        times = [header.timestamp_ms for header in headers]
        demand(times == sorted(times), "time", "the time of a batch decreases within the shard")
        sequences = [(each.producer, each.first_sequence) for each in headers if each.producer]
        demand(len(sequences) == len(set(sequences)), "G4", "a sequence is in the log twice")
        self._check_tables(shard, kept)

    def _check_segment(
        self, segment: Segment, stores: list[SimStore], log: dict[Offset, tuple[Epoch, PlacedBatch]]
    ) -> None:
        at = segment.begin or Offset(0)
        epoch, end = segment.epoch, segment.end
        while end is None or at < end:
            found = [
                store.batches[epoch][at]
                for store in stores
                if at in store.batches.get(epoch, {}) and store.state.segments[epoch].end > at
            ]
            if not found:
                known = end is None
                demand(known, "G1", f"sealed segment {epoch} is whole on no store, lacks {at}")
                return
            payloads = {bytes(batch.payload) for batch in found}
            demand(len(payloads) == 1, "G2", f"stores disagree at {at} of epoch {epoch}: {found}")
            batch = found[0]
            log[at] = (epoch, batch)
            at = batch.end

    def _check_tables(self, shard: Shard, stores: list[SimStore]) -> None:
        """§3.1: "all tables as of X are equal" — to what the log below X says."""
        for store in stores:
            told, expected = store.table(), empty_table()
            for segment in (*shard.sealed, shard.open):
                begin = max(expected.as_of, segment.begin or 0)
                end = min(told.as_of, segment.end if segment.end is not None else told.as_of)
                if begin < end:
                    expected = _extended(expected, segment.epoch, Offset(begin), end, stores)
            same = expected.as_of == told.as_of and expected.producers == told.producers
            demand(same, "G4", f"a table as of {told.as_of} is not what the log says")


def _extended(
    table: TableSnapshot, epoch: Epoch, begin: Offset, end: Offset, stores: list[SimStore]
) -> TableSnapshot:
    """`table` over [begin, end) of `epoch`, from whichever stores have it."""
    at = begin
    while at < end:
        found = next((s.headers(epoch, at, end) for s in stores if s.headers(epoch, at, end)), None)
        if not found:
            return table
        table = extended(table, epoch, found)
        at = table.as_of
    return table
