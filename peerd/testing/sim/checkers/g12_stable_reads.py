"""G12: what a reader was served survives."""

from peerd.core.batch import PlacedBatch
from peerd.core.ids import Epoch, Offset
from peerd.core.shard_map import Shard
from peerd.testing.sim.checkers.base import Book, Checker, broken, demand


class StableReads(Checker):
    """Holds what was served of an epoch against its seal, and against the log in the end."""

    def __init__(self, book: Book) -> None:
        super().__init__(book)
        self._unsealed: dict[Epoch, Offset] = {}
        self._served: dict[Offset, Epoch] = {}

    def served(self, epoch: Epoch, batch: PlacedBatch) -> None:
        """Inside what the map keeps of the epoch, and on as many stores as if acknowledged."""
        if self._served.get(batch.base) == epoch:
            return
        self._served[batch.base] = epoch
        copies = sum(batch.base in store.batches.get(epoch, {}) for store in self.book.stores)
        if copies < self.book.acks and batch.base >= self.book.trimmed_to:
            broken("G12", f"offset {batch.base} of {epoch} was read, {copies} stores have it")
        sealed = self.book.sealed.get(epoch)
        if sealed is not None:
            self._check(epoch, batch.end, sealed.end)
        elif batch.end > self._unsealed.get(epoch, 0):
            self._unsealed[epoch] = batch.end

    def map_committed(self, before: Shard | None, after: Shard) -> None:  # noqa: ARG002
        """Nothing that was served is cut off, and no epoch that served is dead."""
        prepared = after.prepared.epoch if after.prepared is not None else None
        for epoch, end in list(self._unsealed.items()):
            sealed = self.book.sealed.get(epoch)
            if sealed is not None:
                self._check(epoch, end, sealed.end)
                del self._unsealed[epoch]
            else:
                alive = epoch in {after.open.epoch, prepared}
                alive = alive or self.book.is_given_up(epoch, end)
                demand(alive, "G12", f"epoch {epoch} was read up to {end}, and is dead")

    def _check(self, epoch: Epoch, served_end: Offset, end: Offset | None) -> None:
        if end is None or (served_end > end and not self.book.is_given_up(epoch, end)):
            broken("G12", f"epoch {epoch} was read up to {served_end}, it ends at {end}")

    def finished(self, log: dict[Offset, tuple[Epoch, PlacedBatch]]) -> None:
        """It is in the log in the end."""
        for base, epoch in self._served.items():
            there = log.get(base)
            kept = there is not None and there[0] == epoch
            kept = kept or self.book.is_given_up(epoch, base)
            kept = kept or (there is None and self.book.only_lost_had(epoch, base))
            demand(kept, "G12", f"offset {base} of epoch {epoch} was read, and is not in the log")
