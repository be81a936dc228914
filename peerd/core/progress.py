"""How far one replica is, as its primary sees it: probe → stream → catch up.

    PROBE ──Ack──▶ STREAM ──fell behind what is in memory──▶ CATCH_UP
      ▲               │  ▲                                     │
      └──Expect, silence, stream up──┘  └──reached memory──────┘

- PROBE: `Adopt` was sent and says what the replica has; nothing else is sent until it answers.
- STREAM: frames go out as batches are ordered, as long as the bounds allow.
- CATCH_UP: frames are loaded from the own store, one at a time.

Invariant: `durable_end` <= `next`; it only grows, and only by acks of this epoch and store id.
"""

from collections import deque
from enum import Enum

from peerd.core.ids import FIRST_OFFSET, Offset, ReplicaId, Tick
from peerd.core.limits import Limits


class Way(Enum):
    """How batches reach the replica now."""

    PROBE = "probe"
    STREAM = "stream"
    CATCH_UP = "catch up"


PROBE_REPEATS = (4, 8, 16)
"""A probe that is not answered is repeated after so many times `repeat_ms`, the last of these for
ever: after 1, 2 and 4 s. Streams lose nothing without telling, so what is not answered mostly waits
its turn, and each repetition is one more message, and one more write, that waits."""

STALL_LOOK_MS = 50
"""While something is to be acked, stalls are looked for this often: `stall_timeout_ms` / 10. What
has stood still for longer is looked at less often: a move is noticed late by as much as it had
stood still before, at most by half of `stall_timeout_ms`."""


class StallWatch:
    """How long a durable end stands still while there is something to make durable."""

    __slots__ = ("_idle", "_moved_at", "_seen_end", "stalled_ms")

    def __init__(self) -> None:
        self.stalled_ms = 0
        self._idle = True
        self._moved_at = Tick(0)
        self._seen_end = FIRST_OFFSET

    def look(self, durable_end: Offset, end: Offset, now: Tick) -> None:
        """On each tick. Ticks come often while there is something to make durable."""
        if durable_end >= end:
            self._idle = True
        elif self._idle or durable_end != self._seen_end:
            self._idle = False
            self._seen_end = durable_end
            self._moved_at = now
        self.stalled_ms = 0 if self._idle else now - self._moved_at

    def next_look_ms(self, stall_timeout_ms: int, repeat_ms: int) -> int:
        """When to look again: soon after a move, and when the stall is to be reported."""
        stalled_ms = self.stalled_ms
        if stalled_ms >= stall_timeout_ms:
            return repeat_ms
        return max(STALL_LOOK_MS, min(stalled_ms, stall_timeout_ms - stalled_ms))


class Progress:
    """One remote replica of a primary's segment."""

    __slots__ = (
        "_sent",
        "adopted",
        "answered_at",
        "connected",
        "durable_end",
        "in_flight_bytes",
        "loading",
        "next",
        "probed_by_silence",
        "probes_unanswered",
        "replica",
        "told_at",
        "told_commit",
        "watch",
        "way",
    )

    def __init__(self, replica: ReplicaId, begin: Offset, now: Tick, connected: bool) -> None:
        """A replica of a segment that begins at `begin`. It has nothing of it yet, so frames may
        follow its `Adopt` at once, without a round trip.
        """
        self.replica = replica
        self.way = Way.STREAM
        self.connected = connected
        self.adopted = False
        self.durable_end = begin
        self.next = begin
        self.told_commit = begin
        self.told_at = now
        self.in_flight_bytes = 0
        self.loading = False
        self.probed_by_silence = False
        self.probes_unanswered = 0
        self.answered_at = now
        self.watch = StallWatch()
        self._sent: deque[tuple[Offset, int]] = deque()

    # -------------------------------------------------------------- sending
    def takes(self, base: Offset, limits: Limits) -> bool:
        """Whether a frame that begins at `base` may be sent now."""
        return (
            self.way is Way.STREAM
            and self.next == base
            and self.in_flight_bytes < limits.stream_bytes_max
            and len(self._sent) < limits.stream_frames_max
        )

    def takes_load(self, limits: Limits) -> bool:
        """Whether the next load may begin: one at a time, at most half of the stream's bound."""
        return (
            self.way is Way.CATCH_UP
            and not self.loading
            and self.in_flight_bytes * 2 <= limits.stream_bytes_max
        )

    def sent(self, end: Offset, size_bytes: int, commit: Offset, now: Tick) -> None:
        """A frame that ends at `end` went out."""
        self.next = end
        self.told(commit, now)
        self.in_flight_bytes += size_bytes
        self._sent.append((end, size_bytes))

    def told(self, commit: Offset, now: Tick) -> None:
        """The replica was told the commit offset."""
        self.told_commit = commit
        self.told_at = now

    # -------------------------------------------------------------- answers
    def probe(self, now: Tick, *, by_silence: bool = False) -> None:
        """An `Adopt` goes out as a question; nothing else until its answer."""
        self.way = Way.PROBE
        self.loading = False
        self.probed_by_silence = by_silence
        self.answered_at = now

    def repeat_after_ms(self, repeat_ms: int) -> int:
        """How long to wait for the answer to a probe before it is said again."""
        return repeat_ms * PROBE_REPEATS[min(self.probes_unanswered, len(PROBE_REPEATS) - 1)]

    def acked(self, end: Offset, now: Tick) -> bool:
        """Everything below `end` is durable there. True if the durable end moved."""
        self.connected = True
        self.adopted = True
        self.probes_unanswered = 0
        self.answered_at = now
        moved = end > self.durable_end
        if moved:
            self.durable_end = end
            while self._sent and self._sent[0][0] <= end:
                self.in_flight_bytes -= self._sent.popleft()[1]
        if self.way is Way.PROBE:
            self._resume(moved)
        self.next = max(self.next, self.durable_end)
        return moved

    def _resume(self, moved: bool) -> None:
        """The probe is answered. Silence was mere slowness if the end moved: what is under way
        still counts. Else it was lost, and is sent again from what the replica has.
        """
        self.way = Way.STREAM
        if not (self.probed_by_silence and moved):
            self.next = self.durable_end
            self._sent.clear()
            self.in_flight_bytes = 0
