"""G1: an acknowledged batch is on `acks` stores when it is acknowledged, and stays in the log."""

from collections.abc import Sequence

from peerd.core.batch import PlacedBatch
from peerd.core.durable import Outcome, StoredShard
from peerd.core.effects import AppendAccepted
from peerd.core.ids import Epoch, Offset
from peerd.core.shard_map import Gap, Shard
from peerd.testing.sim.checkers.base import Acked, Book, Checker, broken, demand
from peerd.testing.sim.store import SimStore


class Durable(Checker):
    """Counts copies at each receipt, and holds the receipts of an epoch against its seal."""

    def __init__(self, book: Book) -> None:
        super().__init__(book)
        self._unsealed: dict[Epoch, tuple[Offset, Offset]] = {}

    def acknowledged(self, now: Acked, receipt: AppendAccepted) -> None:
        """`acks` stores have exactly this batch on disk now, and the map has room for it."""
        epoch, base, payload = now.epoch, now.base, now.sent.payload
        if base < self.book.trimmed_to:
            return  # the retry of a batch that is not kept any more
        copies = 0
        for store in self.book.stores:
            content = store.batches.get(epoch)
            if content is not None:
                batch = content.get(base)
                if batch is not None and batch.payload == payload:
                    copies += 1
        if copies < self.book.acks:
            broken("G1", f"{now} was acknowledged with {copies} copies")
        if not receipt.duplicate and len(receipt.durable_on) < self.book.acks:
            broken("G1", f"the receipt of {now} names {len(receipt.durable_on)} voters")
        sealed = self.book.sealed.get(epoch)
        if sealed is not None:
            self._check_inside(epoch, base, now.end, sealed.begin, sealed.end)
            return
        first, last = self._unsealed.get(epoch, (base, now.end))
        self._unsealed[epoch] = (min(first, base), max(last, now.end))
        self._check_alive(epoch)

    def map_committed(self, before: Shard | None, after: Shard) -> None:
        """What was acknowledged lies in the segments that the map now seals or keeps, and whoever
        is listed as a holder has all of its segment on disk (§8).
        """
        self._check_holders(before, after)
        if before is not None:
            self._check_releases(before, after)
        if before is not None and len(after.gaps) > len(before.gaps):
            self._check_gap(before, after.gaps[-1])
        for epoch, (first, last) in list(self._unsealed.items()):
            sealed = self.book.sealed.get(epoch)
            if sealed is not None:
                self._check_inside(epoch, first, last, sealed.begin, sealed.end)
                del self._unsealed[epoch]
            else:
                self._check_alive(epoch)

    def _check_holders(self, before: Shard | None, after: Shard) -> None:
        known = before.sealed if before is not None else ()
        for segment in after.sealed:
            if any(segment is each for each in known):
                continue
            whole = 0
            for store in self.book.stores:
                here = store.state.segments.get(segment.epoch)
                whole += here is not None and here.end >= (segment.end or here.end)
            if whole < len(segment.holders):
                broken("G1", f"{len(segment.holders)} holders of {segment}, {whole} have it whole")

    def _check_releases(self, before: Shard, after: Shard) -> None:
        """A release leaves as many whole copies as the log has, and two (§8.4). What was in a
        directory that is lost counts: it was lost after it was asked.
        """
        known = {segment.epoch: segment for segment in before.sealed}
        for segment in after.sealed:
            was = known.get(segment.epoch)
            if was is None or was is segment or len(segment.released) <= len(was.released):
                continue
            whole = 0
            for store in self.book.stores:
                if self.book.owners.get(id(store)) in segment.holders:
                    here = store.state.segments.get(segment.epoch)
                    whole += here is not None and here.end >= (segment.end or here.end)
            if whole < max(self.book.copies, 2):
                broken("G1", f"a release leaves {whole} whole copies of {segment}")

    def stored(self, store: SimStore, before: StoredShard, _: Sequence[Outcome]) -> None:
        """No store drops a sealed segment that the map lists it for (§8.4)."""
        if len(store.state.segments) >= len(before.segments) or self.book.map is None:
            return
        owner = self.book.owners.get(id(store))
        for segment in self.book.map.sealed:
            gone = segment.epoch in before.segments and segment.epoch not in store.state.segments
            if gone and owner in segment.holders:
                broken("G1", f"{owner} drops {segment}, which it is listed for")

    def _check_gap(self, before: Shard, gap: Gap) -> None:
        """A person gave up what is nowhere any more: what a voter that is left has is kept (§4.2).

        Unless a segment was prepared that nobody who is left has begun, and that may have begun
        unseen: then what lies beyond the known commit may contradict what it acknowledged.
        """
        fenced = [before.open, *([before.prepared] if before.prepared is not None else [])]
        kept = self.book.kept_stores()
        if before.prepared is not None:
            prepared = before.prepared
            left = {self.book.owners[id(store)] for store in kept}
            begun = any(prepared.epoch in store.state.segments for store in kept)
            silent = len([voter for voter in prepared.plan.voters if voter not in left])
            if not begun and silent >= prepared.plan.acks:
                return
        for acked in self.book.acked.values():
            if acked.epoch not in gap.epochs or acked.base < gap.begin:
                continue
            voters = next(each.plan.voters for each in fenced if each.epoch == acked.epoch)
            for store in kept:
                if self.book.owners[id(store)] in voters:
                    has = acked.base in store.batches.get(acked.epoch, {})
                    demand(not has, "G1", f"{acked} is given up, and is on a store that is left")

    def _check_inside(
        self, epoch: Epoch, first: Offset, last: Offset, begin: Offset | None, end: Offset | None
    ) -> None:
        if begin is None or end is None or first < begin or end < last:
            inside = end is not None and begin is not None and begin <= first
            if inside and end is not None and self.book.is_given_up(epoch, end):
                return
            broken("G1", f"[{first}, {last}) of {epoch} was acknowledged, kept is [{begin}, {end})")

    def _check_alive(self, epoch: Epoch) -> None:
        shard = self.book.map
        if shard is None or self.book.is_given_up(epoch, self._unsealed[epoch][0]):
            return
        prepared = shard.prepared.epoch if shard.prepared is not None else None
        if epoch not in {shard.open.epoch, prepared}:
            broken("G1", f"epoch {epoch} acknowledged, but the map has left it out: {shard}")

    def finished(self, log: dict[Offset, tuple[Epoch, PlacedBatch]]) -> None:
        """Every acknowledged batch is there, under its epoch."""
        for acked in self.book.acked.values():
            there = log.get(acked.base)
            if there is None and self.book.is_given_up(acked.epoch, acked.base):
                continue
            if there is None and self.book.only_lost_had(acked.epoch, acked.base):
                continue
            demand(there is not None, "G1", f"{acked} is on no store")
            if there is not None:
                demand(there[0] == acked.epoch, "G1", f"{acked} is of epoch {there[0]}")
