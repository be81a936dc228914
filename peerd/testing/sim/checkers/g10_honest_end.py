"""G10: what cannot be given is said: a read has no silent hole, at its front or inside."""

from collections.abc import Sequence

from peerd.core.batch import PlacedBatch
from peerd.core.ids import Epoch, Offset
from peerd.testing.sim.checkers.base import Checker, broken, demand


class HonestEnd(Checker):
    """Looks at whole answers; what is in them is looked at by others."""

    def read(self, offset: Offset, batches: Sequence[PlacedBatch]) -> None:
        """An answer to a read from `offset` on."""
        at = offset
        for number, batch in enumerate(batches):
            if batch.base != at and (number > 0 or not batch.base <= at < batch.end):
                broken("G10", f"a read from {offset} jumps from {at} to {batch.base}")
            at = batch.end

    def finished(self, log: dict[Offset, tuple[Epoch, PlacedBatch]]) -> None:
        """The log has no hole below what was acknowledged, but for a lost kept tail."""
        end = Offset(0)
        for base in sorted(log):
            end = self.book.holes.get(end, end)
            demand(base == end, "G10", f"the log jumps from {end} to {base}")
            end = log[base][1].end
        end = self.book.holes.get(end, end)
        text = f"the log ends at {end}, {self.book.acked_end} was acknowledged"
        demand(end >= self.book.acked_end, "G10", text)
