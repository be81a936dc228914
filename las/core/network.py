"""What a node's link bears, and what its shards send over it: a bound for choices, not a measure.

A voter receives everything that is written to its shards. A primary receives it from clients and
sends it to each other replica. A link carries both directions at once, so the fuller one counts.
Only nodes that told their capacity are bound; rates are those that the primaries told last.

What is here already is never moved for this: a shard that grows busy stays where it is until
something else moves it. It is about where nothing of it is yet.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from peerd.core.ids import NodeName, ShardId
from peerd.core.shard_map import Plan

# Share of a link that choices may fill: retries, reads, copies and bursts need the rest.
USABLE_SHARE = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What the leader knows of links, all in bytes a second.

    Attributes:
        capacity: by node, of one direction; a node that is missing here bears everything.
        writes: payload by shard; missing = nothing.
    """

    capacity: Mapping[NodeName, int] = field(default_factory=dict)
    writes: Mapping[ShardId, float] = field(default_factory=dict)

    def rate(self, shard: ShardId) -> float:
        """What is written to a shard."""
        return self.writes.get(shard, 0.0)


class LinkLoad:
    """What the links of nodes with a known capacity carry, as choices are made."""

    def __init__(self, network: Network, plans: Iterable[tuple[ShardId, Plan]]) -> None:
        """`plans` are those in force of the shards that are written to."""
        self._capacity = network.capacity
        self._received: defaultdict[NodeName, float] = defaultdict(float)
        self._sent: defaultdict[NodeName, float] = defaultdict(float)
        for shard, plan in plans if network.capacity else ():
            self.count(plan, network.rate(shard))

    def count(self, plan: Plan, bytes_per_s: float) -> None:
        """Add what a plan costs links; a negative rate takes it away again."""
        if not self._capacity or not bytes_per_s:
            return
        for replica in plan.replicas:
            self._received[replica.peer] += bytes_per_s
        self._sent[plan.primary.peer] += bytes_per_s * (len(plan.replicas) - 1)

    def bears(self, node: NodeName, *, received: float = 0.0, sent: float = 0.0) -> bool:
        """Whether a node's link would bear so much more, in bytes a second of each direction."""
        capacity = self._capacity.get(node)
        if capacity is None or not (received or sent):
            return True
        fuller = max(self._received[node] + received, self._sent[node] + sent)
        return fuller <= USABLE_SHARE * capacity
