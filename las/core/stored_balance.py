"""Which copies of sealed segments should go to whom, so that nodes store alike: pure.

A node that joins gets votes (`las.core.rebalance`), and with them what is appended from then on.
The past stays where it is until its holders are changed. A move of a copy is two steps that exist
anyhow: a store is *wanted* for a sealed segment though it has holders enough, fetches and verifies
it and is listed; then the one that gives is *released* (docs/protocol.md §8.4). Nothing is taken
from anybody before, so there is always one copy too many, never one too few.

Why it comes to rest, and moves little:

1. *Something is moved only out of a band*: while a node stores `outer` more than is even, or as
   much less; then all of it is planned at once, until every node is within `inner`, half of that.
2. *Roles are fixed.* Who stores more than is even gives, who stores less takes; nobody ends more
   than `inner` on the other side. So no node both takes and gives, no copy moves twice, and each
   node gets no more than it lacks, and `inner`. Only where copies are kept apart by zones may that
   leave nodes of a zone uneven; they are evened out among themselves then.
3. *No move overtakes*: what moves is at most half of the difference, so each move lowers the sum
   of the squares, of which there is a least.

What fits into what one lacks and the other has too much of goes before what would pass it.

Protection never shrinks: a move replaces one healthy holder by another on a host of its own, in no
more crowded a rack or zone. Nothing is moved of a segment that lacks copies, has some too many, or
is wanted by somebody: that is for repair and for releases.

Must not: look at a clock, ask anybody, or decide when (that is `las.daemon.copy_moves`).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from las.core.holders import RELEASED_FEATURE_LEVEL, kept_at_least
from las.core.index import FleetIndex
from las.core.placement import FleetView, Limits
from las.core.rebalance import SEALED_MAX, crowd
from las.core.state import RELEASES_MAX, ClusterState, Node, ShardEntry
from peerd.core.check import InvariantViolation
from peerd.core.ids import Epoch, NodeName, ReplicaId, ShardId
from peerd.core.shard_map import Segment, entries_of, segment_with

SegmentKey = tuple[ShardId, Epoch]

# limit: sealed segments of a node that are weighed, those with the most records first.
CANDIDATES_MAX = 512
# limit: segments of a node whose size is asked for: all of most nodes.
HELD_MAX = 1_024
# limit: nodes that give in one plan, those that store most first; the others come with the next.
GIVERS_MAX = 16
# limit: takers that are weighed against a giver for one move, those of a zone that store least.
TAKERS_WEIGHED_MAX = 6
# limit: zones whose takers are weighed apart; beyond, the others count as one.
ZONES_WEIGHED_MAX = 8
# A segment of at least this share of the largest that fits is as good, if its taker votes there.
AS_GOOD = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What nodes store, and when that is uneven.

    Attributes:
        bytes_of: by healthy node; one that is missing here neither gives nor takes.
        band: share of what is even by which a node may lie above or below it.
        bytes_min: and at least so many bytes.
        sizes: bytes on disk by sealed segment; one that is missing here is not moved.
        resting: copies that came, went, or would not a short while ago, by segment and node.
    """

    bytes_of: Mapping[NodeName, int]
    band: float = 0.1
    bytes_min: int = 0
    sizes: Mapping[SegmentKey, int] = field(default_factory=dict)
    resting: Collection[tuple[ShardId, Epoch, NodeName]] = frozenset()

    @property
    def even(self) -> float:
        """What each node would store if all stored alike."""
        return sum(self.bytes_of.values()) / max(1, len(self.bytes_of))

    @property
    def outer(self) -> float:
        """So far from even a node must be before anything is moved."""
        return max(self.band * self.even, self.bytes_min)

    @property
    def inner(self) -> float:
        """So near to even nodes are brought then."""
        return self.outer / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyMove:
    """`taker` becomes a holder of a sealed segment, and `giver` lets it go then."""

    shard: ShardId
    epoch: Epoch
    giver: ReplicaId
    taker: ReplicaId
    size_bytes: int
    why: str

    @property
    def key(self) -> SegmentKey:
        """Which segment."""
        return self.shard, self.epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyBalance:
    """What is to be moved, in order, and what nodes store before and after it.

    `more`: there is more to move than was asked for.
    """

    moves: tuple[CopyMove, ...]
    before: Mapping[NodeName, int]
    after: Mapping[NodeName, int]
    even_bytes: float
    more: bool


def is_uneven(stored: Stored, edge_bytes: float) -> bool:
    """Whether some node is further from even than that."""
    even = stored.even
    return any(abs(each - even) > edge_bytes for each in stored.bytes_of.values())


def givers(state: ClusterState, stored: Stored) -> list[NodeName]:
    """Who has something to give, to all or to others of its zone, who stores most first."""
    carried = {name: float(each) for name, each in stored.bytes_of.items()}
    above = {name for scope in _scopes(state, carried) for name in scope.givers}
    return sorted(above, key=lambda name: (-carried[name], name))[:GIVERS_MAX]


def held(state: ClusterState, node: NodeName, shards: Iterable[ShardId]) -> list[SegmentKey]:
    """Segments of `shards` that `node` stores: open ones, then those with the most records."""
    found = []
    for shard in shards:
        entry = state.shards[shard].shard
        if any(each.peer == node for each in entry.open.plan.replicas):
            found.append((False, 0, shard, entry.open.epoch))
        for segment in entry.sealed:
            if any(each.peer == node for each in segment.holders):
                records = (segment.end or 0) - max(segment.begin or 0, entry.trimmed_to)
                found.append((True, -records, shard, segment.epoch))
    found.sort()
    return [(shard, epoch) for _, _, shard, epoch in found[:HELD_MAX]]


def candidates(state: ClusterState, node: NodeName, shards: Iterable[ShardId]) -> list[SegmentKey]:
    """Sealed segments of `shards` that `node` might give, those with the most records first."""
    found = []
    for shard in shards:
        entry = state.shards[shard]
        for segment in entry.shard.sealed:
            if any(each.peer == node for each in segment.holders) and _is_settled(
                state, entry, segment
            ):
                records = (segment.end or 0) - max(segment.begin or 0, entry.shard.trimmed_to)
                found.append((-records, shard, segment.epoch))
    found.sort()
    return [(shard, epoch) for _, shard, epoch in found[:CANDIDATES_MAX]]


def copy_balance(
    state: ClusterState,
    view: FleetView,
    limits: Limits,
    stored: Stored,
    *,
    shards_of: Mapping[NodeName, Collection[ShardId]],
    moves_max: int,
) -> CopyBalance:
    """The first `moves_max` moves that bring nodes within `stored.inner` of even.

    `shards_of` gives the shards in which each of `givers` has a part.
    """
    plan = _Plan(state, view, limits, stored, shards_of)
    moves: list[CopyMove] = []
    more = False
    while (found := plan.next_move()) is not None:
        if len(moves) == moves_max:
            more = True
            break
        moves.append(found)
        plan.take(found)
    return CopyBalance(
        moves=tuple(moves),
        before=dict(stored.bytes_of),
        after={name: round(each) for name, each in plan.carried.items()},
        even_bytes=stored.even,
        more=more,
    )


def may_begin(state: ClusterState, move: CopyMove) -> bool:
    """Whether a move that was planned a while ago may still be made."""
    entry = state.shards.get(move.shard)
    segment = None if entry is None else segment_with(entry.shard.sealed, move.epoch)
    if entry is None or segment is None:
        return False
    settled = _is_settled(state, entry, segment)
    return settled and _may_take(state, entry, segment, move.giver, move.taker)


def copies_of_moves(
    state: ClusterState, moving: Collection[tuple[ShardId, Epoch, ReplicaId]]
) -> int:
    """How many of the copies that are wanted now are wanted by moves."""
    return sum(_is_wanted(state, *each) for each in moving)


def superfluous(
    state: ClusterState, index: FleetIndex
) -> Iterator[tuple[ShardId, Epoch, ReplicaId]]:
    """Who is wanted for a sealed segment that has healthy holders enough: moves of another leader,
    or repairs that nobody needs any more.
    """
    if not index.fetching:
        return
    for entry in state.shards.values():
        copies = state.logs[entry.shard.log].copies
        for each in entries_of(entry.shard.sealed):
            segments = (each,) if isinstance(each, Segment) else tuple(each.segments())
            for segment in segments if segments[-1].wanted_holders else ():
                if sum(map(state.is_healthy, segment.holders)) >= copies:
                    for wanted in segment.wanted_holders:
                        yield entry.shard.shard, segment.epoch, wanted


@dataclass(frozen=True, slots=True)
class _Scope:
    """Nodes that are to store alike: who stores more than `even` gives, who stores less takes."""

    even: float
    givers: tuple[NodeName, ...]
    takers: tuple[NodeName, ...]


def _scope(carried: Mapping[NodeName, float], names: Collection[NodeName]) -> _Scope:
    even = sum(carried[name] for name in names) / max(1, len(names))
    return _Scope(
        even=even,
        givers=tuple(name for name in names if carried[name] > even),
        takers=tuple(name for name in names if carried[name] < even),
    )


def _scopes(state: ClusterState, carried: Mapping[NodeName, float]) -> Iterator[_Scope]:
    """All nodes, and then those of each zone (of each rack, where there are no zones): where copies
    are kept apart a small zone stores more than others, and only within one it can be even.
    """
    yield _scope(carried, sorted(carried))
    places: dict[tuple[str, str], list[NodeName]] = {}
    for name in sorted(carried):
        node = state.nodes[name]
        zone, rack = node.label("zone"), node.label("rack")
        if zone or rack:
            places.setdefault((zone, "" if zone else rack), []).append(name)
    for _, names in sorted(places.items()):
        if 1 < len(names) < len(carried):
            yield _scope(carried, names)


class _Plan:
    """What each node stores, as of the moves that were taken."""

    def __init__(
        self,
        state: ClusterState,
        view: FleetView,
        limits: Limits,
        stored: Stored,
        shards_of: Mapping[NodeName, Collection[ShardId]],
    ) -> None:
        self._state = state
        self._outer, self._inner = stored.outer, stored.inner
        self._sizes = stored.sizes
        self.carried = {name: float(each) for name, each in stored.bytes_of.items()}
        self._room = {name: free - limits.free_bytes_min for name, free in view.free_bytes.items()}
        self._resting = stored.resting
        self._holders: dict[SegmentKey, tuple[ReplicaId, ...]] = {}
        """Of segments of which a copy was moved: of others of its copies more may be."""
        self._moved: set[tuple[SegmentKey, NodeName]] = set()
        """Who gave or took which: it does neither of that one again."""
        self._moves_of: Counter[ShardId] = Counter()
        self._has = {
            name: [
                key
                for key in candidates(state, name, shards_of.get(name, ()))
                if stored.sizes.get(key, 0) > 0
            ]
            for name in givers(state, stored)
        }
        self._scopes = _scopes(state, self.carried)
        self._scope: _Scope | None = next(self._scopes)

    def take(self, move: CopyMove) -> None:
        """Count a move as made."""
        giver, taker = move.giver.peer, move.taker.peer
        self.carried[giver] -= move.size_bytes
        self.carried[taker] += move.size_bytes
        if taker in self._room:
            self._room[taker] -= move.size_bytes
        holders = self._holders.get(move.key) or self._segment(move.key).holders
        others = (each for each in holders if each != move.giver)
        self._holders[move.key] = (*others, move.taker)
        self._moved |= {(move.key, giver), (move.key, taker)}
        self._moves_of[move.shard] += 1

    def _segment(self, key: SegmentKey) -> Segment:
        segment = segment_with(self._state.shards[key[0]].shard.sealed, key[1])
        if segment is None:
            raise InvariantViolation(f"shard {key[0]} has no sealed segment {key[1]}")
        return segment

    def next_move(self) -> CopyMove | None:
        """The next move within all nodes, and when there is none any more, within each zone."""
        while self._scope is not None:
            found = self._next_in(self._scope)
            if found is not None:
                return found
            # What is not out of the band there is left alone.
            self._scope = next(filter(self._is_uneven, self._scopes), None)
        return None

    def _is_uneven(self, scope: _Scope) -> bool:
        names = (*scope.givers, *scope.takers)
        return any(abs(self.carried[name] - scope.even) > self._outer for name in names)

    def _next_in(self, scope: _Scope) -> CopyMove | None:
        """From who stores most to who stores least, as far as anything fits there."""
        takers = self._lightest(scope)
        able = (name for name in scope.givers if name in self._has)
        for giver in sorted(able, key=lambda name: (-self.carried[name], name)):
            for taker in takers:
                above = self.carried[giver] - scope.even
                below = scope.even - self.carried[taker]
                if above <= self._inner and below <= self._inner:
                    break
                key = self._between(giver, taker, above, below)
                if key is not None:
                    return self._move(key, giver, taker, scope.even)
        return None

    def _lightest(self, scope: _Scope) -> list[NodeName]:
        """Who stores least, some of each zone: zones that are kept apart may never be even."""
        taken: Counter[str] = Counter()
        found = []
        for name in sorted(scope.takers, key=lambda name: (self.carried[name], name)):
            zone = self._state.nodes[name].label("zone")
            if zone not in taken and len(taken) >= ZONES_WEIGHED_MAX:
                zone = ""
            if taken[zone] < TAKERS_WEIGHED_MAX:
                taken[zone] += 1
                found.append(name)
        return found

    def _between(
        self, giver: NodeName, taker: NodeName, above: float, below: float
    ) -> SegmentKey | None:
        """The segment that fits best between the two."""
        room = min((above + below) / 2, above + self._inner, below + self._inner)
        room = min(room, self._room.get(taker, room))
        fitting = [
            (self._sizes[key], key)
            for key in self._has[giver]
            if self._sizes[key] <= room and self._may(key, giver, taker)
        ]
        plain = min(above, below)
        largest = max((size for size, _ in fitting if size <= plain), default=0)

        def order(each: tuple[int, SegmentKey]) -> tuple[bool, bool, bool, int, SegmentKey]:
            size_bytes, key = each
            if size_bytes > plain:
                return True, False, False, size_bytes, key
            voters = self._state.shards[key[0]].shard.open.plan.voters
            # Who votes in the shard serves its readers, who find the past there, too.
            strange = all(voter.peer != taker for voter in voters)
            return False, size_bytes < AS_GOOD * largest, strange, -size_bytes, key

        return min(fitting, key=order)[1] if fitting else None

    def _may(self, key: SegmentKey, giver: NodeName, taker: NodeName) -> bool:
        shard, epoch = key
        if (key, giver) in self._moved or (key, taker) in self._moved:
            return False
        if (shard, epoch, giver) in self._resting or (shard, epoch, taker) in self._resting:
            return False
        entry, segment = self._state.shards[shard], self._segment(key)
        if key in self._holders:
            segment = replace(segment, holders=self._holders[key])
        # Each move takes a segment out of an entry that it may share with both its neighbours.
        entries = len(entries_of(entry.shard.sealed)) + 2 * (1 + self._moves_of[shard])
        if entries > SEALED_MAX:
            return False
        nodes = self._state.nodes
        return _may_take(self._state, entry, segment, nodes[giver].replica, nodes[taker].replica)

    def _move(
        self, key: SegmentKey, giver: NodeName, taker: NodeName, even_bytes: float
    ) -> CopyMove:
        gives, takes, even = (
            f"{each / 1e6:.0f} MB"
            for each in (self.carried[giver], self.carried[taker], even_bytes)
        )
        return CopyMove(
            shard=key[0],
            epoch=key[1],
            giver=self._state.nodes[giver].replica,
            taker=self._state.nodes[taker].replica,
            size_bytes=self._sizes[key],
            why=f"{giver} stores {gives} and {taker} {takes}, even is {even}",
        )


# ---------------------------------------------------------------------------------- small facts
def _is_settled(state: ClusterState, entry: ShardEntry, segment: Segment) -> bool:
    """Whether nothing else is to be done about the holders of a segment."""
    if entry.halted or segment.wanted_holders or len(segment.released) >= RELEASES_MAX - 1:
        return False
    if (segment.end or 0) <= entry.shard.trimmed_to:
        return False
    healthy = {state.nodes[each.peer].host for each in segment.holders if state.is_healthy(each)}
    return len(healthy) == kept_at_least(state.logs[entry.shard.log], segment)


def _may_take(
    state: ClusterState, entry: ShardEntry, segment: Segment, giver: ReplicaId, taker: ReplicaId
) -> bool:
    """Whether `taker` may hold the segment in the place of `giver`."""
    if giver not in segment.holders or not (state.is_healthy(giver) and state.is_healthy(taker)):
        return False
    leaves, comes = state.nodes[giver.peer], state.nodes[taker.peer]
    if min(leaves.feature_level, comes.feature_level) < RELEASED_FEATURE_LEVEL:
        return False
    others = list(_nodes_of(state, (each for each in segment.holders if each != giver)))
    if any(other.host == comes.host for other in others):
        return False
    healthy = {other.host for other in others if other.is_healthy} | {comes.host}
    if len(healthy) < kept_at_least(state.logs[entry.shard.log], segment):
        return False
    return all(crowd(others, key, comes) <= crowd(others, key, leaves) for key in ("rack", "zone"))


def _nodes_of(state: ClusterState, replicas: Iterable[ReplicaId]) -> Iterator[Node]:
    """Their nodes, also of those that are down and may come back."""
    for each in replicas:
        node = state.node_of(each)
        if node is not None:
            yield node


def _is_wanted(state: ClusterState, shard: ShardId, epoch: Epoch, store: ReplicaId) -> bool:
    entry = state.shards.get(shard)
    segment = None if entry is None else segment_with(entry.shard.sealed, epoch)
    return segment is not None and store in segment.wanted_holders
