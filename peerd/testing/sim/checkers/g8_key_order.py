"""G8: records of one key keep the order in which a producer sent them."""

from peerd.core.batch import PlacedBatch
from peerd.core.ids import Epoch, Offset, ProducerId
from peerd.testing.sim.checkers.base import Checker, demand


class KeyOrder(Checker):
    """Reads the log as a consumer of one key does."""

    def finished(self, log: dict[Offset, tuple[Epoch, PlacedBatch]]) -> None:
        """Sequences of a producer grow along the log, for each key and so over all."""
        last: dict[tuple[ProducerId, int], int] = {}
        for base in sorted(log):
            header = log[base][1].header
            if not header.producer:
                continue
            key = (header.producer, header.key_hash_low)
            before = last.get(key, -1)
            text = f"sequence {header.first_sequence} of a key comes after {before}, at {base}"
            demand(header.first_sequence > before, "G8", text)
            last[key] = header.first_sequence
