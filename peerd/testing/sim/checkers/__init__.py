"""Checkers of the promises (docs/protocol.md §2), one in each file, and what calls them.

G9 and G11 are about progress: the simulation demands it, see `peerd.testing.sim.simulation`.
"""

from collections.abc import Callable, Sequence

from peerd.core.batch import PlacedBatch
from peerd.core.durable import Outcome, StoredShard
from peerd.core.effects import AppendAccepted
from peerd.core.ids import Epoch, Offset, ShardId
from peerd.core.shard_map import Shard
from peerd.testing.sim.checkers.base import Acked, Book, BrokenPromise, Checker, Sent, demand
from peerd.testing.sim.checkers.g1_durable import Durable
from peerd.testing.sim.checkers.g2_one_history import OneHistory
from peerd.testing.sim.checkers.g3_real_time import RealTime
from peerd.testing.sim.checkers.g4_exactly_once import ExactlyOnce
from peerd.testing.sim.checkers.g5_atomic import Atomic
from peerd.testing.sim.checkers.g6_fenced import Fenced
from peerd.testing.sim.checkers.g7_one_map import OneMap
from peerd.testing.sim.checkers.g8_key_order import KeyOrder
from peerd.testing.sim.checkers.g10_honest_end import HonestEnd
from peerd.testing.sim.checkers.g12_stable_reads import StableReads
from peerd.testing.sim.checkers.linearizable_tail import LinearizableTail
from peerd.testing.sim.checkers.replicas import Identical
from peerd.testing.sim.checkers.tables import Tables
from peerd.testing.sim.checkers.trims import MapFirst
from peerd.testing.sim.store import SimStore

__all__ = ["Acked", "Book", "BrokenPromise", "Checker", "Checks", "Sent", "demand"]

CHECKERS: tuple[type[Checker], ...] = (
    Durable,
    OneHistory,
    RealTime,
    ExactlyOnce,
    Atomic,
    Fenced,
    OneMap,
    KeyOrder,
    StableReads,
    Identical,
    Tables,
    MapFirst,
)


class Checks:
    """All checkers of one shard. Each hook calls only those that have it."""

    def __init__(self, shard: ShardId, acks: int) -> None:
        self.book = Book(shard, acks)
        self._honest_end = HonestEnd(self.book)
        self._tail = LinearizableTail(self.book)
        all_checkers = [*(kind(self.book) for kind in CHECKERS), self._honest_end, self._tail]
        self._acknowledged = [c.acknowledged for c in all_checkers if _has(c, "acknowledged")]
        self._stored = [c.stored for c in all_checkers if _has(c, "stored")]
        self._served = [c.served for c in all_checkers if _has(c, "served")]
        self._map = [c.map_committed for c in all_checkers if _has(c, "map_committed")]
        self._finished = [c.finished for c in all_checkers if _has(c, "finished")]
        said: list[Callable[..., None]] = [c.said for c in all_checkers if _has(c, "said")]
        demand(len(said) == 1, "checkers", "one of them listens to messages")
        self.said = said[0]
        """Called for each message, so without a loop."""

    def acknowledged(self, sent: Sent, receipt: AppendAccepted) -> None:
        """A process gave a receipt for `sent`."""
        base = receipt.base
        now = Acked(receipt.epoch, base, Offset(base + receipt.record_count), sent)
        for check in self._acknowledged:
            check(now, receipt)
        book = self.book
        book.acked.setdefault(base, now)
        book.acked_end = max(book.acked_end, now.end)

    def stored(self, store: SimStore, before: StoredShard, outcomes: Sequence[Outcome]) -> None:
        """A transaction committed."""
        for check in self._stored:
            check(store, before, outcomes)

    def read(self, epoch: Epoch, offset: Offset, batches: Sequence[PlacedBatch]) -> None:
        """A read from `offset` on was answered."""
        self._honest_end.read(offset, batches)
        for batch in batches:
            self.served(epoch, batch)

    def told_trimmed(self, first_offset: Offset) -> None:
        """A reader was told that nothing is kept below `first_offset`."""
        book = self.book
        kept_from = Offset(0) if book.map is None else book.map.kept_from
        text = f"a reader is sent to {first_offset}, kept is from {kept_from} on"
        demand(first_offset <= kept_from, "G10", text)

    def tail_answered(self, floor: Offset, epoch: Epoch, tail: Offset) -> None:
        """A linearizable tail was answered; `floor` was acknowledged before it was asked for."""
        self._tail.tail_answered(floor, epoch, tail)

    def served(self, epoch: Epoch, batch: PlacedBatch) -> None:
        """A reader got a batch."""
        for check in self._served:
            check(epoch, batch)

    def map_committed(self, after: Shard) -> None:
        """The entry changed."""
        if after.trimmed_to > self.book.trimmed_to:
            self.book.trim(after.trimmed_to)
        before, self.book.map = self.book.map, after
        for segment in after.sealed:
            self.book.sealed[segment.epoch] = segment
        for check in self._map:
            check(before, after)

    def finished(self) -> None:
        """All has settled."""
        log = self.book.log()
        for check in self._finished:
            check(log)


def _has(checker: Checker, hook: str) -> bool:
    return getattr(type(checker), hook) is not getattr(Checker, hook)
