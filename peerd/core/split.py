"""The primary of a closed segment: it ends a shard that is split (docs/protocol.md §4.3).

It orders nothing, ever. It is there for retries: a batch that the parent has is answered from the
producer table as of X, as at any primary, before it comes here. To everything else it says
`SPLIT(children, X)`, which proves that the batch never will be in the parent:

- Not below X: X is this segment's begin, the table is the one as of X, and the batch is not in it
  (spec mutants `split-without-table`, `table-not-carried`). Where the table cannot tell, its own
  refusal is given, and none of those says *taken = no*.
- Not at or beyond X: the map has this very segment open and the split committed, so e ended at X,
  and no segment of the parent takes a batch again. Before the map says so a fence may still recover
  e beyond X with this very batch, so it waits (spec mutants `split-answered-early`,
  `split-answered-by-dead`).

Bounds: who waits is bounded by `Limits.queued_*`, and what was in flight in e by what was allowed
to be in flight there.
"""

from collections import deque
from collections.abc import Callable, Iterable

from peerd.core import refusals
from peerd.core.effects import Effects
from peerd.core.errors import Reason, Refusal, Taken
from peerd.core.events import AppendRequested
from peerd.core.ids import Epoch, RequestId
from peerd.core.shard_map import Split
from peerd.core.situation import Situation

_TABLE_CANNOT_TELL = frozenset({Reason.PRODUCER_STATE_LOST, Reason.SEQUENCE_TOO_OLD})
"""Refusals of the table for batches that may well be in the parent."""


class Closing:
    """Appends at the primary of one closed segment."""

    def __init__(self, situation: Situation, epoch: Epoch) -> None:
        self._s = situation
        self._epoch = epoch
        self._waiting: deque[AppendRequested] = deque()
        self._waiting_bytes = 0
        self._in_doubt: list[RequestId] = []

    def take(self, event: AppendRequested, verdict: Refusal | None, out: Effects) -> None:
        """An append that the table does not have. `verdict` is what the table says of it."""
        if verdict is not None and verdict.reason in _TABLE_CANNOT_TELL:
            out.refuse(event.request, verdict)
            return
        split = self._committed()
        if split is not None:
            out.refuse(event.request, refusals.split(split))
            return
        limits, size_bytes = self._s.limits, len(event.payload)
        full = len(self._waiting) >= limits.queued_requests_max
        if full or self._waiting_bytes + size_bytes > limits.queued_bytes_max:
            what = "too many appends wait for the shard to be split"
            out.refuse(event.request, refusals.overloaded(what))
            return
        self._waiting.append(event)
        self._waiting_bytes += size_bytes

    def inherit(self, requests: Iterable[RequestId]) -> None:
        """Those that wait for what was in flight at or beyond X when the segment before ended.

        Until the split is committed nobody knows whether that will be in the log.
        """
        self._in_doubt.extend(requests)

    def map_learned(self, out: Effects) -> None:
        """The map may have the split now: then everyone who waits has an answer."""
        split = self._committed()
        if split is not None:
            self._refuse(lambda _taken: refusals.split(split), lambda: refusals.split(split), out)

    def refuse_all(
        self, refusal: Callable[[Taken], Refusal], queued: Callable[[], Refusal], out: Effects
    ) -> None:
        """The primary is over before the split was committed."""
        self._refuse(refusal, queued, out)

    def _refuse(
        self, refusal: Callable[[Taken], Refusal], queued: Callable[[], Refusal], out: Effects
    ) -> None:
        for request in self._in_doubt:
            out.refuse(request, refusal(Taken.UNKNOWN))
        for event in self._waiting:
            out.refuse(event.request, queued())
        self._in_doubt.clear()
        self._waiting.clear()
        self._waiting_bytes = 0

    def _committed(self) -> Split | None:
        """The split, once the map has it and this segment is the open one."""
        shard = self._s.map
        if shard is None or shard.open.epoch != self._epoch or not shard.is_split:
            return None
        return shard.split
