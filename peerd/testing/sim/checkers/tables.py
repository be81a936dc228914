"""§3.1: all producer tables as of X are equal, namely to what the log below X says (G4)."""

from peerd.core.batch import PlacedBatch
from peerd.core.ids import Epoch, Offset
from peerd.core.producer import empty_table, extended
from peerd.testing.sim.checkers.base import Checker, demand


class Tables(Checker):
    """Builds the table anew from the log, at the end of a run."""

    def finished(self, log: dict[Offset, tuple[Epoch, PlacedBatch]]) -> None:
        """Each store's table is that of the log below its `as_of`."""
        told = sorted(
            (store.table() for store in self.book.kept_stores()), key=lambda each: each.as_of
        )
        gaps = self.book.map.gaps if self.book.map is not None else ()
        # Behind a gap a table is not what the log says: of what was lost it knows nothing.
        told = [each for each in told if all(each.as_of <= gap.begin for gap in gaps)]
        table, bases = empty_table(), sorted(log)
        at = 0
        for each in told:
            while at < len(bases) and bases[at] < each.as_of:
                epoch, batch = log[bases[at]]
                table = extended(table, epoch, [(batch.base, batch.header)])
                at += 1
            if table.as_of != each.as_of:
                return  # the log itself has a hole, of which others speak
            same = dict(table.producers) == dict(each.producers)
            demand(same, "G4", f"a table as of {each.as_of} is not what the log says")
