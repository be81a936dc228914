"""What all roles of one replica look at: who it is, what its store has, what the map says.

Invariants:
- `stored` is the durable state as of the last outcome of the store; `promise_queued` is the highest
  fence that is on its way to the store, so that no role begins below it.
- Operations are submitted and their outcomes taken in one order: the context of each waits in
  `_queue` until its outcome comes.

Must not: decide anything.
"""

from collections import deque
from collections.abc import Callable

from peerd.core.check import invariant
from peerd.core.durable import Outcome, StoredShard, StoreOperation
from peerd.core.effects import Effects
from peerd.core.ids import (
    FIRST_OFFSET,
    NO_EPOCH,
    Epoch,
    Offset,
    ProcessId,
    ReplicaId,
    RequestId,
    ShardId,
    Tick,
)
from peerd.core.limits import Limits
from peerd.core.producer import TableSnapshot
from peerd.core.shard_map import Segment, Shard, stable_end

TableHandler = Callable[[TableSnapshot | None, bool, Effects], None]
"""Gets the table that was asked for; or None, and whether the source answered at all."""

OutcomeHandler = Callable[[Outcome, Effects], None]
"""Gets the outcome of one operation."""


def sooner(one_ms: int | None, other_ms: int | None) -> int | None:
    """The shorter of two waits; None waits for ever. Asked after almost every event."""
    if one_ms is None:
        return other_ms
    return one_ms if other_ms is None or one_ms <= other_ms else other_ms


class Situation:
    """Shared by the roles of one replica; see the module."""

    __slots__ = (
        "_queue",
        "_sealed",
        "_token_last",
        "connected",
        "limits",
        "map",
        "me",
        "now",
        "promise_queued",
        "shard",
        "stored",
        "tables_awaited",
    )

    def __init__(self, me: ProcessId, stored: StoredShard, limits: Limits) -> None:
        self.me = me
        self.shard: ShardId = stored.shard
        self.limits = limits
        self.stored = stored
        self.map: Shard | None = None
        self._sealed: dict[Epoch, Segment] = {}
        self.now = Tick(0)
        self.connected: set[ReplicaId] = set()
        self.promise_queued = NO_EPOCH
        self.tables_awaited: dict[RequestId, TableHandler] = {}
        self._queue: deque[tuple[StoreOperation, OutcomeHandler]] = deque()
        self._token_last = 0

    @property
    def promised(self) -> Epoch:
        """The highest epoch promised, on disk or on its way there."""
        return max(self.stored.promised, self.promise_queued)

    @property
    def map_open(self) -> Epoch:
        """The open epoch of the committed map; 0 if no map was learned."""
        return self.map.open.epoch if self.map is not None else NO_EPOCH

    @property
    def unstable_from(self) -> Offset | None:
        """First offset of a kept tail that may not be served yet; None: there is none (G12)."""
        if self.map is None:
            return None
        for segment in self.map.sealed:
            stored = self.stored.segments.get(segment.epoch)
            limit = stable_end(segment, stored.commit if stored is not None else FIRST_OFFSET)
            if segment.end is not None and limit < segment.end:
                return limit
        return None

    def learn_map(self, shard: Shard) -> None:
        """Take the committed map's entry of the shard."""
        self.map = shard
        self._sealed = {segment.epoch: segment for segment in shard.sealed}

    def forget_map(self) -> None:
        """The shard is on the map no more, and never will be again."""
        self.map = None
        self._sealed = {}

    def sealed(self, epoch: Epoch) -> Segment | None:
        """The map's sealed segment of `epoch`."""
        return self._sealed.get(epoch)

    def submit(self, operation: StoreOperation, handler: OutcomeHandler, out: Effects) -> None:
        """Hand `operation` to the store; `handler` gets its outcome."""
        out.persist.append(operation)
        self._queue.append((operation, handler))

    @property
    def under_way(self) -> tuple[StoreOperation, ...]:
        """Operations whose outcome is awaited, in the order in which the outcomes will come."""
        return tuple(operation for operation, _ in self._queue)

    def next_outcome(self, outcome: Outcome, out: Effects) -> None:
        """Take the outcome of the oldest operation under way."""
        invariant(bool(self._queue), "an outcome answers an operation", outcome=outcome)
        operation, handler = self._queue.popleft()
        invariant(operation is outcome.operation, "outcomes come in order", outcome=outcome)
        self.stored = outcome.state
        handler(outcome, out)

    def await_table(self, handler: TableHandler) -> RequestId:
        """A token for `LoadTable` or `FetchTable`; `handler` gets the answer, once."""
        self._token_last += 1
        token = RequestId(self._token_last)
        self.tables_awaited[token] = handler
        return token

    def table_answered(
        self, token: RequestId, table: TableSnapshot | None, answered: bool, out: Effects
    ) -> None:
        """The answer to a token; one that nobody waits for any more is dropped."""
        handler = self.tables_awaited.pop(token, None)
        if handler is not None:
            handler(table, answered, out)
