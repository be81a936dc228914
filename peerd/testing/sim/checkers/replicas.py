"""Replicas are byte-identical: one epoch orders one batch at one offset, on every store."""

from collections.abc import Sequence

from peerd.core.batch import PlacedBatch
from peerd.core.durable import AppendBatches, FillSealed, Outcome, Stored, StoredShard
from peerd.core.ids import Epoch, Offset
from peerd.testing.sim.checkers.base import Book, Checker, broken
from peerd.testing.sim.store import SimStore


class Identical(Checker):
    """Remembers the first batch that any store had at (epoch, offset)."""

    def __init__(self, book: Book) -> None:
        super().__init__(book)
        self._first: dict[tuple[Epoch, Offset], PlacedBatch] = {}

    def stored(self, store: SimStore, before: StoredShard, outcomes: Sequence[Outcome]) -> None:  # noqa: ARG002
        """The same as on all other stores, committed or not."""
        for outcome in outcomes:
            operation = outcome.operation
            if not isinstance(operation, AppendBatches | FillSealed):
                continue
            if operation.batches and isinstance(outcome, Stored):
                epoch = operation.epoch
                for batch in operation.batches:
                    first = self._first.setdefault((epoch, batch.base), batch)
                    if first is not batch and first != batch:
                        broken("G2", f"stores differ in epoch {epoch}: {first} and {batch}")
