"""§7: a linearizable tail covers what was acknowledged before the question, and it stays."""

from peerd.core.ids import Epoch, Offset
from peerd.core.shard_map import Shard
from peerd.testing.sim.checkers.base import Book, Checker, broken


class LinearizableTail(Checker):
    """Holds each answer against what was acknowledged, and against the seal of its epoch."""

    def __init__(self, book: Book) -> None:
        super().__init__(book)
        self._unsealed: dict[Epoch, Offset] = {}

    def tail_answered(self, floor: Offset, epoch: Epoch, tail: Offset) -> None:
        """Not below what was acknowledged before the question."""
        if tail < floor:
            broken("G3", f"a linearizable tail is {tail}, {floor} was acknowledged before")
        sealed = self.book.sealed.get(epoch)
        if sealed is not None:
            self._check(epoch, tail, sealed.end)
        else:
            self._unsealed[epoch] = max(self._unsealed.get(epoch, tail), tail)

    def map_committed(self, before: Shard | None, after: Shard) -> None:  # noqa: ARG002
        """What was told as committed is not cut off."""
        for epoch, tail in list(self._unsealed.items()):
            sealed = self.book.sealed.get(epoch)
            if sealed is not None:
                self._check(epoch, tail, sealed.end)
                del self._unsealed[epoch]

    def _check(self, epoch: Epoch, tail: Offset, end: Offset | None) -> None:
        if end is None or (tail > end and not self.book.is_given_up(epoch, end)):
            broken("G12", f"the tail of epoch {epoch} was {tail}, it ends at {end}")
