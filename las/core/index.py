"""Who takes part in what: the committed map turned round, kept up to date from its changes.

A planner that went through 100,000 shards for each question about a node would not keep its
interval. `FleetIndex.update` goes through what changed since the last one only, or through all when
that is not remembered any more. It holds nothing that does not follow from the state it was updated
to, so throwing it away and building it anew gives an equal one (there is a test for that).
"""

from collections import Counter
from collections.abc import Iterable

from las.core.persistent import PersistentMap
from las.core.state import Change, ClusterState, ShardEntry
from peerd.core.ids import NO_EPOCH, NodeName, ReplicaId, ShardId
from peerd.core.shard_map import count_of, entries_of, newest_of

_NOTHING: frozenset[ShardId] = frozenset()
_NO_CHANGE = Change()


class FleetIndex:
    """Counts and shard sets per node, as of `version`.

    Attributes:
        version: version of the map that it was updated to; -1 before the first.
        voting: open segments in which a node votes.
        leading: open segments of which a node is the primary.
        holding: sealed segments that a store holds or shall fetch. By store: that of a node that
            got another one still stands in the map for a while, and the node has nothing of it.
        unsettled: shards with a prepared segment or a standing fence.
        fetching: sealed segments that some store shall fetch, counted once per store.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.version = -1
        self.voting: Counter[NodeName] = Counter()
        self.leading: Counter[NodeName] = Counter()
        self.holding: Counter[ReplicaId] = Counter()
        self.unsettled: set[ShardId] = set()
        self.fetching = 0
        self._shards_of: dict[NodeName, set[ShardId]] = {}
        self._seen: PersistentMap[ShardId, ShardEntry] = PersistentMap()

    def update(self, state: ClusterState) -> Change:
        """Follow `state`; what changed since the last update, or everything in it."""
        if state.version == self.version:
            return _NO_CHANGE
        change = state.changed_ids(self.version)
        if change is None:
            self._clear()
            change = Change(
                nodes=tuple(sorted(state.nodes)),
                logs=tuple(sorted(state.logs)),
                shards=tuple(sorted(state.shards)),
            )
        for shard in change.shards:
            before = self._seen.get(shard)
            if before is not None:
                self._count(before, -1)
            entry = state.shards.get(shard)
            if entry is not None:
                self._count(entry, +1)
        self._seen = state.shards
        self.version = state.version
        return change

    def shards_of(self, node: NodeName) -> Iterable[ShardId]:
        """Shards in which `node` is a replica of the open or prepared segment, or a holder."""
        return self._shards_of.get(node, _NOTHING)

    def _count(self, entry: ShardEntry, sign: int) -> None:
        shard = entry.shard
        members: set[NodeName] = set()
        for replica in shard.open.plan.voters:
            self.voting[replica.peer] += sign
        self.leading[shard.open.plan.primary.peer] += sign
        for segment in (shard.open, shard.prepared):
            if segment is not None:
                members.update(replica.peer for replica in segment.plan.replicas)
        for shared in entries_of(shard.sealed):
            segment, count = newest_of(shared), count_of(shared)
            self.fetching += sign * count * len(segment.wanted_holders)
            for replica in (*segment.holders, *segment.wanted_holders):
                self.holding[replica] += sign * count
                members.add(replica.peer)
        settled = shard.prepared is None and shard.fence == NO_EPOCH
        for node in members:
            if sign > 0:
                self._shards_of.setdefault(node, set()).add(shard.shard)
            else:
                self._shards_of[node].discard(shard.shard)
        if settled or sign < 0:
            self.unsettled.discard(shard.shard)
        else:
            self.unsettled.add(shard.shard)


def indexed(state: ClusterState) -> FleetIndex:
    """An index of `state`, built anew."""
    index = FleetIndex()
    index.update(state)
    return index
