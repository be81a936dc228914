"""G3: what was acknowledged before an append was sent lies below it; conditions are kept."""

from peerd.core.batch import PlacedBatch
from peerd.core.effects import AppendAccepted
from peerd.core.ids import Epoch, Offset
from peerd.testing.sim.checkers.base import Acked, Checker, broken, demand


class RealTime(Checker):
    """Compares each receipt with what its client could know when it sent the append."""

    def acknowledged(self, now: Acked, receipt: AppendAccepted) -> None:  # noqa: ARG002
        """Above the floor, and where a conditional append wanted to be."""
        sent = now.sent
        if now.base < sent.floor:
            broken("G3", f"{now} was sent when {sent.floor} was acknowledged")
        if sent.expected and now.base not in sent.expected:
            broken("G3", f"{now} was to go to one of {sent.expected} alone")

    def finished(self, log: dict[Offset, tuple[Epoch, PlacedBatch]]) -> None:
        """The time of a batch never decreases within a shard."""
        times = [log[base][1].header.timestamp_ms for base in sorted(log)]
        demand(times == sorted(times), "G3", "the time of a batch decreases within the shard")
