"""G4: a (producer, sequence) is in the shard at most once, and a retry gets the same answer."""

from peerd.core.batch import PlacedBatch
from peerd.core.effects import AppendAccepted
from peerd.core.ids import Epoch, Offset, ProducerId
from peerd.testing.sim.checkers.base import Acked, Book, Checker, broken, demand


class ExactlyOnce(Checker):
    """Remembers the first answer of each sequence."""

    def __init__(self, book: Book) -> None:
        super().__init__(book)
        self._answers: dict[tuple[ProducerId, int], tuple[Epoch, Offset]] = {}

    def acknowledged(self, now: Acked, receipt: AppendAccepted) -> None:  # noqa: ARG002
        """The same shard, epoch and offset as ever."""
        sent = now.sent
        if sent.producer:
            answer = (now.epoch, now.base)
            first = self._answers.setdefault((sent.producer, sent.first_sequence), answer)
            if first != answer:
                broken("G4", f"{now} was acknowledged before at {first[1]} of epoch {first[0]}")

    def finished(self, log: dict[Offset, tuple[Epoch, PlacedBatch]]) -> None:
        """No sequence is in the log twice, no payload is, and nothing of which it was told that it
        was not taken.
        """
        places: dict[bytes, Offset] = {}
        seen: dict[tuple[ProducerId, int], Offset] = {}
        for base in sorted(log):
            header, payload = log[base][1].header, bytes(log[base][1].payload)
            place = places.setdefault(payload, base)
            demand(place == base, "G4", f"{payload!r} is at {place} and at {base}")
            sent = self.book.sent.get(payload)
            if sent is not None and 0 < sent.attempts == sent.not_taken:
                broken("G4", f"{sent} at {base} was said not to be taken")
            if header.producer:
                first = seen.setdefault((header.producer, header.first_sequence), base)
                text = f"sequence {header.first_sequence} is at {first} and at {base}"
                demand(first == base, "G4", text)
