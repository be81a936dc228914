"""When a primary forgets producers (docs/protocol.md §3.1).

"A producer is forgotten only by an entry in the stream, never by a replica's own clock, so all
tables as of X are equal." The entry is one number in the header of a batch, `forget_before`: from
this batch on, producers whose newest batch ends at or below that offset are not remembered. What it
does to a table stands in `producer`; here is only when it is written.

G4 does not rest on a clock of the wall. A producer is forgotten only if this primary, too, has not
heard it for `RETRY_SILENCE_MS`, measured by time that the primary has seen pass: a jump of a clock,
or a pause of the process after which old requests wait in its sockets, counts for `PAUSE_MS_MAX` at
most. No sender sends a batch again after so long; so what is sent by an unknown producer from its
sequence 0 on is new, and what begins later gets `PRODUCER_STATE_LOST`, which the client recovers
from by a new producer id.

A table whose past is lost (a gap, or no holder left) refuses every producer that it does not know:
each may have written there. After `RETRY_SILENCE_MS` nobody sends again what was sent before, so an
entry up to where the table began makes it whole, and new producers are taken.

Bounds: a shard remembers `PRODUCERS_PER_SHARD_MAX` producers, and at most `FORGET_AT_ONCE_MAX` more
that come in place of producers whose forgetting is on its way to being committed.
"""

from peerd.core.ids import FIRST_OFFSET, Offset, ProducerId
from peerd.core.limits import Limits
from peerd.core.producer import ProducerTable

RETRY_SILENCE_MS = 10 * 60 * 1_000
"""A producer that was heard within this time is never forgotten: many times longer than any client
goes on sending a batch."""

PAUSE_MS_MAX = 60 * 1_000
"""A longer time between two events counts as this much: nobody can tell it from a pause."""

LOOK_MS = 60 * 1_000
"""How often expired producers are looked for: far below any sensible expiry."""

FORGET_AT_ONCE_MAX = 256
"""Producers that one entry makes forgotten: keeps what one commit does with them below 1 ms."""


class Forgetting:
    """The decisions of one primary."""

    def __init__(self, limits: Limits) -> None:
        self._expiry_ms = limits.producer_expiry_ms
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
        heard_before_ms = table.active_ms - RETRY_SILENCE_MS
        if not table.complete:
            # Whatever the lost past was, nobody sends it again: from here on the table is whole.
            self._ordered = table.silent_past(but=producer, heard_before_ms=heard_before_ms)
            return self._ordered
        full = table.is_full
        if not full and table.active_ms < self._look_at_ms:
            return FIRST_OFFSET
        self._look_at_ms = table.active_ms + LOOK_MS
        self._ordered, self._room = table.silent_until(
            but=producer,
            heard_before_ms=heard_before_ms,
            used_before_ms=None if full else log_ms - self._expiry_ms,
            count_max=FORGET_AT_ONCE_MAX,
        )
        return self._ordered

    def admit(self, table: ProducerTable, producer: ProducerId) -> bool:
        """Whether a batch of `producer` may be ordered: it is known, or there is room for it."""
        if not producer or producer in table or not table.is_full:
            return True
        if self._room == 0:
            return False
        self._room -= 1
        return True
