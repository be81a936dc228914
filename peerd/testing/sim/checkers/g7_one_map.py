"""G7: one open segment, segments that tile [0, end), epochs that only grow, seals that stay."""

from peerd.core.ids import Epoch, Offset
from peerd.core.shard_map import Shard
from peerd.testing.sim.checkers.base import Book, Checker, demand


class OneMap(Checker):
    """Compares each version of the entry with the one before. `Shard` itself checks the tiling."""

    def __init__(self, book: Book) -> None:
        super().__init__(book)
        self._seals: dict[Epoch, tuple[Offset | None, Offset | None]] = {}
        self._highest = Epoch(0)

    def map_committed(self, before: Shard | None, after: Shard) -> None:
        """Nothing that was committed is taken back."""
        drawn = [after.open.epoch, after.fence]
        if after.prepared is not None:
            drawn.append(after.prepared.epoch)
            new = after.prepared.epoch > after.open.epoch
            demand(new, "G7", f"prepared {after.prepared.epoch} is not above the open epoch")
        if before is not None:
            grown = after.open.epoch >= before.open.epoch
            demand(grown, "G7", f"open went from {before.open.epoch} to {after.open.epoch}")
            known = {before.open.epoch, before.fence}
            if before.prepared is not None:
                known.add(before.prepared.epoch)
            for epoch in drawn:
                fresh = epoch in known or epoch > self._highest or epoch == 0
                demand(fresh, "G7", f"epoch {epoch} was drawn a second time")
        self._highest = max(self._highest, *drawn)
        for segment in after.sealed:
            range_ = (segment.begin, segment.end)
            first = self._seals.setdefault(segment.epoch, range_)
            text = f"sealed segment {segment.epoch} was {first} and is {range_}"
            demand(first == range_, "G7", text)
