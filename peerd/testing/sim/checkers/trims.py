"""Trims: the map comes first, never goes back, and passes no replica of the open segment (§8.1).

That nothing at or above the trim is missing, and that nothing else is read in the place of what is
gone, is looked at by the checkers of G1, G2, G10 and G12.
"""

from collections.abc import Sequence

from peerd.core.durable import Outcome, StoredShard
from peerd.core.shard_map import Shard
from peerd.testing.sim.checkers.base import Checker, broken
from peerd.testing.sim.store import SimStore


class MapFirst(Checker):
    """Compares what stores dropped in front with what is committed."""

    def stored(self, store: SimStore, before: StoredShard, outcomes: Sequence[Outcome]) -> None:  # noqa: ARG002
        """No store is ahead of the map."""
        trimmed_to = self.book.trimmed_to
        for segment in store.state.segments.values():
            if segment.trimmed_to > trimmed_to:
                broken("G1", f"{segment} is trimmed, the map only to {trimmed_to}")

    def map_committed(self, before: Shard | None, after: Shard) -> None:
        """It grows, and every replica of the open segment had all of it."""
        if before is None or after.trimmed_to == before.trimmed_to:
            return
        if after.trimmed_to < before.trimmed_to:
            broken("G10", f"the trim went from {before.trimmed_to} back to {after.trimmed_to}")
        begin, epoch = after.open.begin, after.open.epoch
        if begin is None or after.trimmed_to <= begin:
            return
        reached = 0
        for store in self.book.stores:
            here = store.state.segments.get(epoch)
            reached += here is not None and here.end >= after.trimmed_to
        if reached < len(after.open.plan.replicas):
            broken("G1", f"trimmed to {after.trimmed_to}, where {reached} replicas have come")
