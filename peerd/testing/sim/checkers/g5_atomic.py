"""G5: a reader sees all records of a batch or none, and nothing that nobody sent (G10)."""

from peerd.core.batch import PlacedBatch
from peerd.core.effects import AppendAccepted
from peerd.core.ids import Epoch, Offset
from peerd.testing.sim.checkers.base import Acked, Checker, broken


class Atomic(Checker):
    """Compares what was read, acknowledged and kept with what was sent."""

    def acknowledged(self, now: Acked, receipt: AppendAccepted) -> None:
        """The receipt covers all records."""
        if receipt.record_count != now.sent.record_count:
            broken("G5", f"the receipt of {now} is for {receipt.record_count} records")

    def served(self, epoch: Epoch, batch: PlacedBatch) -> None:  # noqa: ARG002
        """All of it, as sent."""
        sent = self.book.sent.get(bytes(batch.payload))
        if sent is None:
            broken("G10", f"{batch} was read, and nobody sent it")
        if sent.record_count != batch.header.record_count:
            broken("G5", f"{batch.header.record_count} records of {sent} were read")

    def finished(self, log: dict[Offset, tuple[Epoch, PlacedBatch]]) -> None:
        """All of the log was sent, and is whole."""
        for epoch, batch in log.values():
            self.served(epoch, batch)
