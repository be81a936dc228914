"""When a primary forgets producers (docs/protocol.md §3.1).

"A producer is forgotten only by an entry in the stream, never by a replica's own clock, so all
tables as of X are equal." The entry is one number in the header of a batch, `forget_before`: from
this batch on, producers whose newest batch ends at or below that offset are not remembered. What it
does to a table stands in `producer`; here is only when it is written.

G4 does not rest on a clock of the wall. A producer is forgotten only if this primary, too, has not
heard it for `retry_silence_ms`, measured by time that the primary has seen pass: a jump of a clock,
or a pause of the process after which old requests wait in its sockets, counts for `pause_ms_max` at
most. No sender sends a batch again after so long; so what is sent by an unknown producer from its
sequence 0 on is new, and what begins later gets `PRODUCER_STATE_LOST`, which the client recovers
from by a new producer id.

A table whose past is lost (a gap, or no holder left) refuses every producer that it does not know:
each may have written there. After `retry_silence_ms` nobody sends again what was sent before, so an
entry up to where the table began makes it whole, and new producers are taken.

Bounds: a shard remembers `PRODUCERS_PER_SHARD_MAX` producers, and at most `FORGET_AT_ONCE_MAX` more
that come in place of producers whose forgetting is on its way to being committed.
"""

from peerd.core.ids import FIRST_OFFSET, Offset, ProducerId
from peerd.core.limits import Limits
from peerd.core.producer import ProducerTable

LOOKS_PER_SILENCE = 10
"""How often expired producers are looked for in one `retry_silence_ms`: each minute, far below any
sensible expiry."""

FORGET_AT_ONCE_MAX = 256
"""Producers that one entry makes forgotten: keeps what one commit does with them below 1 ms."""


class Forgetting:
    """The decisions of one primary."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._look_at_ms = 0
        self._ordered = FIRST_OFFSET
        self._room = 0

    def offset_for(self, table: ProducerTable, producer: ProducerId, log_ms: int) -> Offset:
        """`forget_before` for the batch of `producer` that is about to be ordered; 0: none.

        `log_ms` is the time of the batch. The least recently used go first: those that are expired,
        or where the table is full whoever is silent. One entry at a time is on its way.
        """
        if self._ordered > table.forgotten_before:
            return FIRST_OFFSET
        self._room = 0
        if not table.complete:
            # Whatever the lost past was, nobody sends it again: from here on the table is whole.
            self._ordered = self._silent_past(table, producer)
            return self._ordered
        heard_before_ms = table.active_ms - self._limits.retry_silence_ms
        full = table.is_full
        if not full and table.active_ms < self._look_at_ms:
            return FIRST_OFFSET
        look_ms = self._limits.retry_silence_ms // LOOKS_PER_SILENCE
        self._look_at_ms = table.active_ms + look_ms
        self._ordered, self._room = table.silent_until(
            but=producer,
            heard_before_ms=heard_before_ms,
            used_before_ms=None if full else log_ms - self._limits.producer_expiry_ms,
            count_max=FORGET_AT_ONCE_MAX,
        )
        return self._ordered

    def past_is_silent(self, table: ProducerTable, producer: ProducerId) -> bool:
        """Whether the entry that comes with the next batch makes a table whole that is not."""
        under_way = self._ordered > table.forgotten_before
        return not table.complete and not under_way and self._silent_past(table, producer) > 0

    def _silent_past(self, table: ProducerTable, producer: ProducerId) -> Offset:
        heard_before_ms = table.active_ms - self._limits.retry_silence_ms
        return table.silent_past(but=producer, heard_before_ms=heard_before_ms)

    def admit(self, table: ProducerTable, producer: ProducerId) -> bool:
        """Whether a batch of `producer` may be ordered: it is known, or there is room for it."""
        if not producer or producer in table or not table.is_full:
            return True
        if self._room == 0:
            return False
        self._room -= 1
        return True
