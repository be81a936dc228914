"""Whether a peer has room for what clients append; a refusal tells them when to come again.

The order of the bounds is the order in which they should be met: first the tier that lags, which
passes; then the writer's queue, which passes sooner; and only at last the disk, which stays full
until somebody makes room. Nothing that is refused here was taken: it may be sent again.

Must not: look at who appends what (`peerd.core` does), or refuse anything but appends of clients.
"""

from collections.abc import Callable

from peerd.core.errors import Reason, Refusal
from peerd.core.ids import NodeName, ShardId
from peerd.daemon.write_queue import WriteQueue
from peerd.storage.store import Store

# limit: share of the storage writer's queue that appends of clients may fill; the rest is for what
# other peers send, which they bound themselves
APPENDS_QUEUE_SHARE = 0.5
# Advice to a client when the queue is full: a few group commits.
RETRY_AFTER_MS = 20
# The same when the tier lags: about what an object takes on its way.
LAG_RETRY_AFTER_MS = 250


class Admission:
    """One per peer. `tier_lag` tells why appends to a shard wait for the tier, in words."""

    def __init__(
        self, peer: NodeName, store: Store, writes: WriteQueue, queue_bytes_max: int
    ) -> None:
        self._peer = peer
        self._store = store
        self._writes = writes
        self._queue_bytes_max = queue_bytes_max
        self.tier_lag: Callable[[ShardId], str | None] = lambda _: None
        """Why appends wait for the tier; None while they need not. Set by whoever has one."""
        self.slowed_appends = 0
        """Appends that were told to wait for the tier."""

    def why_no_room(self, shard: ShardId) -> Refusal | None:
        """Why no append to `shard` is taken now; None if there is room."""
        if self._store.space().in_reserve:
            return Refusal(
                reason=Reason.DISK_RESERVE,
                message=f"the store of {self._peer} has reached its space reserve: "
                "appends resume when space is freed",
            )
        queued_bytes = self._store.queued_bytes
        if self._writes.is_full or queued_bytes > self._queue_bytes_max * APPENDS_QUEUE_SHARE:
            return Refusal(
                reason=Reason.OVERLOADED,
                message=f"the storage writer of {self._peer} has {queued_bytes} bytes to write: "
                "send it again later",
                retry_after_ms=RETRY_AFTER_MS,
            )
        why = self.tier_lag(shard)
        if why is None:
            return None
        self.slowed_appends += 1
        return Refusal(reason=Reason.OVERLOADED, message=why, retry_after_ms=LAG_RETRY_AFTER_MS)
