"""G2: nobody ever reads, or is told, two different records at the same offset."""

from peerd.core.batch import PlacedBatch
from peerd.core.effects import AppendAccepted
from peerd.core.ids import Epoch, Offset
from peerd.testing.sim.checkers.base import Acked, Book, Checker, broken, demand


class OneHistory(Checker):
    """Remembers what was shown at each offset: by a receipt, or by a read."""

    def __init__(self, book: Book) -> None:
        super().__init__(book)
        self._shown: dict[Offset, tuple[Epoch, PlacedBatch]] = {}

    def acknowledged(self, now: Acked, receipt: AppendAccepted) -> None:  # noqa: ARG002
        """No other batch was acknowledged, or read, there."""
        there = self.book.acked.get(now.base)
        if there is not None and (there.sent is not now.sent or there.epoch != now.epoch):
            broken("G2", f"{now} was acknowledged where {there} is")
        shown = self._shown.get(now.base)
        if shown is not None and (shown[0], shown[1].payload) != (now.epoch, now.sent.payload):
            broken("G2", f"{now} was acknowledged where {shown} was read")

    def served(self, epoch: Epoch, batch: PlacedBatch) -> None:
        """The same was read before, and it is what was acknowledged there."""
        known = self._shown.get(batch.base)
        if known is not None:
            if known[0] != epoch or (known[1] is not batch and known[1] != batch):
                broken("G2", f"{batch} of epoch {epoch} was read where {known} was read before")
            return
        self._shown[batch.base] = (epoch, batch)
        acked = self.book.acked.get(batch.base)
        if acked is not None:
            same = acked.epoch == epoch and acked.sent.payload == batch.payload
            demand(same, "G2", f"{batch} of epoch {epoch} was read where {acked} was acknowledged")

    def finished(self, log: dict[Offset, tuple[Epoch, PlacedBatch]]) -> None:
        """What the stores have in the end is what was acknowledged."""
        for acked in self.book.acked.values():
            there = log.get(acked.base)
            if there is not None:
                same = there[1].payload == acked.sent.payload
                demand(same, "G2", f"{acked} reads as {bytes(there[1].payload)!r}")
