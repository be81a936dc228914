"""Shards that wait for room, the most urgent first.

Invariant: a shard waits once, with the order that it was given last. Bound: the shards there are.
"""

import heapq

from peerd.core.ids import ShardId

Order = tuple[int, ...]

# Entries beyond twice the shards that wait are swept out.
_STALE_MAX = 64


class Backlog:
    """A queue of shards by order, then by id."""

    def __init__(self) -> None:
        self._orders: dict[ShardId, Order] = {}
        # May also hold entries that `_orders` does not have any more.
        self._heap: list[tuple[Order, ShardId]] = []

    def __len__(self) -> int:
        return len(self._orders)

    def add(self, shard: ShardId, order: Order) -> None:
        """Let `shard` wait, or wait in another place; lower orders go first."""
        if self._orders.get(shard) != order:
            self._orders[shard] = order
            heapq.heappush(self._heap, (order, shard))
            if len(self._heap) > 2 * len(self._orders) + _STALE_MAX:
                self._heap = [(order, shard) for shard, order in self._orders.items()]
                heapq.heapify(self._heap)

    def take(self, count: int, *, below: Order | None = None) -> list[ShardId]:
        """The first `count` of them, none if it is negative; they wait no longer.

        `below`: only those whose order is lower.
        """
        taken: list[ShardId] = []
        while self._heap and len(taken) < count:
            if below is not None and self._heap[0][0] >= below:
                break
            order, shard = heapq.heappop(self._heap)
            if self._orders.get(shard) == order:
                del self._orders[shard]
                taken.append(shard)
        return taken
