"""Who should give which vote or lead to whom, so that the fleet's work lies evenly: pure.

A node that joins gets nothing by itself: the planner changes a plan only where something is wrong
with it. Here nothing is wrong, and a few shards are moved all the same. What is counted:

- *weight*: a vote weighs 1, and as much again as its shard's share of the writes, in times of a
  mean shard (with no writes, or even ones, it counts votes). It stands for disk, network and
  processor of what is appended from now on.
- *leads*: how many shards a node is primary of, among nodes that may lead.

Why it comes to rest, and moves little:

1. *Something is moved only out of a band*: while a node carries more than `band` above what is
   even, or less than `band` below it. Counts are not asked to be evener than whole numbers allow.
2. *No move overtakes*: what moves weighs at most half of the difference, so the giver stays at or
   above the taker. Each move therefore lowers the sum of the squares, of which there is a least.
3. *The heaviest gives to the lightest*, as much as fits, so no weight moves twice. A lead goes
   along with a vote where both are due; others go from voter to voter, by the shortest chain.

Protection never shrinks: a move replaces one healthy voter by another, on a host of its own and in
no more crowded a rack or zone. Nothing is moved of a shard that is not settled or whose plan is not
what its log asks for, and no vote or lead that was moved a short while ago.

Must not: look at a clock, or decide when (that is `las.daemon.rebalancer`).
"""

from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import ceil, floor

from las.core.index import FleetIndex
from las.core.network import LinkLoad, Network
from las.core.placement import FleetView, Limits
from las.core.state import (
    SEALED_EPOCHS_MAX,
    SEALED_SEGMENTS_MAX,
    ClusterState,
    Node,
    ShardEntry,
)
from peerd.core.ids import NO_EPOCH, Epoch, NodeName, ReplicaId, ShardId
from peerd.core.shard_map import Plan, entries_of

# limit: givers and takers of a zone that are weighed against each other for one move.
ENDS_WEIGHED_MAX = 6
# limit: zones whose ends are weighed apart; beyond, the others count as one.
ZONES_WEIGHED_MAX = 8
# limit: nodes through which a chain of leads is looked for.
CHAIN_NODES_MAX = 256
# limit: entries of sealed segments of a shard of which something is moved; a move adds one at most.
SEALED_MAX = SEALED_SEGMENTS_MAX // 2
# limit: sealed segments, joined or not, of a shard of which something is moved; each move adds one.
SEALED_MOVED_EPOCHS_MAX = SEALED_EPOCHS_MAX // 2
# A shard that weighs at least this share of the heaviest that fits is as good, if its lead fits.
AS_GOOD = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Uneven:
    """What may be uneven, and what is known of the shards.

    Attributes:
        band: share of what is even by which a node may lie above or below it.
        bytes_per_s: what is written to a shard, by its primary's word; missing = nothing.
        resting_votes: votes, by shard and node, that came to be, or would not, a short while ago.
        resting_leads: shards whose lead was moved a short while ago.
    """

    band: float = 0.05
    bytes_per_s: Mapping[ShardId, float] = field(default_factory=dict)
    resting_votes: frozenset[tuple[ShardId, NodeName]] = frozenset()
    resting_leads: frozenset[ShardId] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One planned change. `leaves` and `joins` are empty if only the lead goes elsewhere.

    `leads` is the primary that it makes; empty if that stays.
    """

    shard: ShardId
    epoch: Epoch
    plan: Plan
    leaves: NodeName
    joins: NodeName
    leads: NodeName
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a node carries."""

    node: NodeName
    weight: float
    votes: int
    leads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """What is to be moved, in order, and what healthy nodes carry before and after it.

    `more`: there is more to move than was asked for.
    """

    moves: tuple[Move, ...]
    before: tuple[Share, ...]
    after: tuple[Share, ...]
    even_weight: float
    even_leads: float
    more: bool


REBALANCED = "rebalance"
"""Kind of the events in a node's history that tell of moves."""
_NOBODY = NodeName("")


def unrest(state: ClusterState, index: FleetIndex, moved_copies: int = 0) -> str:
    """What is under way that goes first, in words; empty if nothing is.

    `moved_copies` of the copies that are wanted only make nodes store alike: nothing waits for
    them. How long nodes have been as they are is for the caller to know.
    """
    changing = sum(not state.shards[shard].halted for shard in index.unsettled)
    if changing:
        return f"{changing} shards are being changed"
    copies = index.fetching - moved_copies
    if copies > 0:
        return f"{copies} copies are being made"
    if state.recovery.unheard:
        return "the LAS began from older data, and not every node has been heard"
    return ""


def balance(
    state: ClusterState,
    view: FleetView,
    limits: Limits,
    uneven: Uneven,
    *,
    index: FleetIndex,
    moves_max: int,
) -> Balance:
    """The first `moves_max` moves towards an even fleet: votes first, then leads."""
    fleet = _Fleet(state, view, limits, uneven, index)
    before = fleet.shares()
    moves: list[Move] = []
    steps = [fleet.move_vote, fleet.move_lead]
    more = False
    while steps and not more:
        found = steps[0]()
        if found is None:
            del steps[0]
            continue
        # The far end of a chain is good by itself: what is left of it is shorter.
        part = found[: moves_max - len(moves)]
        more = len(part) < len(found)
        moves += part
        fleet.take(part)
    return Balance(
        moves=tuple(moves),
        before=before,
        after=fleet.shares(),
        even_weight=fleet.even_weight,
        even_leads=fleet.even_leads,
        more=more,
    )


class _Fleet:
    """The healthy nodes with what they carry, as of the moves that were taken."""

    def __init__(
        self,
        state: ClusterState,
        view: FleetView,
        limits: Limits,
        uneven: Uneven,
        index: FleetIndex,
    ) -> None:
        self._state = state
        self._index = index
        self._band = uneven.band
        self._resting_votes = set(uneven.resting_votes)
        self._resting_leads = set(uneven.resting_leads)
        self._nodes = {
            node.name: node
            for node in state.nodes.values()
            if node.is_healthy and node.name not in view.slow
        }
        self._full = {
            name for name, free in view.free_bytes.items() if free < limits.free_bytes_min
        }
        self._rates = uneven.bytes_per_s
        written = ((each, state.shards.get(each)) for each in uneven.bytes_per_s)
        self._links = LinkLoad(
            Network(capacity=view.network.capacity, writes=uneven.bytes_per_s),
            ((shard, entry.shard.open.plan) for shard, entry in written if entry is not None),
        )
        self._moved: dict[ShardId, Plan] = {}
        self._gained: dict[NodeName, set[ShardId]] = {}
        self._weights = _weights(state, uneven.bytes_per_s)
        self._votes = Counter({name: index.voting[name] for name in self._nodes})
        self._leads = Counter({name: index.leading[name] for name in self._nodes})
        carried: dict[NodeName, float] = {name: float(self._votes[name]) for name in self._nodes}
        for shard, weight in self._weights.items():
            for voter in state.shards[shard].shard.open.plan.voters:
                if voter.peer in carried:
                    carried[voter.peer] += weight - 1.0
        self._carried = carried
        self._queue = sorted((weight, name) for name, weight in carried.items())
        able = [name for name, node in self._nodes.items() if node.may_lead]
        self._able = sorted(able)
        self.even_weight = sum(carried.values()) / max(1, len(carried))
        self.even_leads = sum(self._leads[name] for name in able) / max(1, len(able))

    def shares(self) -> tuple[Share, ...]:
        """What each node carries now, by name."""
        return tuple(
            Share(
                node=name,
                weight=self._carried[name],
                votes=self._votes[name],
                leads=self._leads[name],
            )
            for name in sorted(self._nodes)
        )

    def take(self, moves: Iterable[Move]) -> None:
        """Count `moves` as made."""
        for move in moves:
            before = self._plan(move.shard)
            if move.joins:
                weight = self._weight(move.shard)
                self._carry(move.leaves, -weight, -1)
                self._carry(move.joins, weight, +1)
                self._gained.setdefault(move.joins, set()).add(move.shard)
                self._resting_votes.add((move.shard, move.joins))
            if move.leads:
                self._leads[before.primary.peer] -= 1
                self._leads[move.leads] += 1
                self._resting_leads.add(move.shard)
            rate = self._rates.get(move.shard, 0.0)
            self._links.count(before, -rate)
            self._links.count(move.plan, rate)
            self._moved[move.shard] = move.plan

    def _carry(self, name: NodeName, weight: float, votes: int) -> None:
        before = self._carried[name]
        del self._queue[bisect_left(self._queue, (before, name))]
        self._carried[name] = before + weight
        self._votes[name] += votes
        insort(self._queue, (before + weight, name))

    # ------------------------------------------------------------------ votes
    def move_vote(self) -> tuple[Move] | None:
        """The next vote to move; None if the votes lie evenly, or nothing that fits may move."""
        low = self.even_weight * (1 - self._band)
        high = self.even_weight * (1 + self._band)
        takers = self._ends(self._queue, self._full)
        for giver in self._ends(reversed(self._queue), set()):
            for taker in takers:
                if self._carried[giver] <= high and self._carried[taker] >= low:
                    break
                found = self._vote_between(giver, taker)
                if found is not None:
                    return (found,)
        return None

    def _ends(
        self, queue: Iterable[tuple[float, NodeName]], left_out: Container[NodeName]
    ) -> list[NodeName]:
        """The first of `queue`, some of each zone: zones that are kept apart may never be even."""
        taken: Counter[str] = Counter()
        ends = []
        for _, name in queue:
            zone = self._nodes[name].label("zone")
            if zone not in taken and len(taken) >= ZONES_WEIGHED_MAX:
                zone = ""
            if name not in left_out and taken[zone] < ENDS_WEIGHED_MAX:
                taken[zone] += 1
                ends.append(name)
        return ends

    def _vote_between(self, giver: NodeName, taker: NodeName) -> Move | None:
        above = self._carried[giver] - self.even_weight
        below = self.even_weight - self._carried[taker]
        room = min((above + below) / 2, max(above, below)) + 1e-9
        fitting = [
            (self._weight(entry.shard.shard), entry)
            for entry in self._entries(giver)
            if self._weight(entry.shard.shard) <= room and self._may_take(entry, giver, taker)
        ]
        if not fitting:
            return None
        heaviest = max(weight for weight, _ in fitting)

        def order(candidate: tuple[float, ShardEntry]) -> tuple[bool, bool, float, ShardId]:
            weight, entry = candidate
            wanted = self._is_lead_due(entry, giver, taker)
            return weight < AS_GOOD * heaviest, not wanted, -weight, entry.shard.shard

        _, entry = min(fitting, key=order)
        return self._vote_move(entry, giver, taker)

    def _is_lead_due(self, entry: ShardEntry, giver: NodeName, taker: NodeName) -> bool:
        """Whether the lead is where it should be after the move without a move of its own."""
        led = self._plan(entry.shard.shard).primary.peer == giver
        due = (
            self._nodes[taker].may_lead
            and self._leads[giver] > self.even_leads
            and self._leads[taker] + 1 <= self._leads[giver] - 1
        )
        return led == due

    def _vote_move(self, entry: ShardEntry, giver: NodeName, taker: NodeName) -> Move:
        before = self._plan(entry.shard.shard)
        joins = self._nodes[taker].replica
        voters = tuple(joins if each.peer == giver else each for each in before.voters)
        primary = before.primary
        if primary.peer == giver:
            primary = self._nodes[self._heir(voters)].process
        leads = primary.peer if primary != before.primary else _NOBODY
        why = (
            f"{giver} carries {self._carried[giver]:.1f} and {taker} {self._carried[taker]:.1f}, "
            f"even is {self.even_weight:.1f}"
        )
        return Move(
            shard=entry.shard.shard,
            epoch=entry.shard.open.epoch,
            plan=Plan(primary=primary, voters=voters, acks=before.acks),
            leaves=giver,
            joins=taker,
            leads=leads,
            why=why,
        )

    def _heir(self, voters: Iterable[ReplicaId]) -> NodeName:
        able = (each.peer for each in voters if self._nodes[each.peer].may_lead)
        return min(able, key=lambda name: (self._leads[name], name))

    def _may_take(self, entry: ShardEntry, giver: NodeName, taker: NodeName) -> bool:
        shard = entry.shard.shard
        resting = {(shard, giver), (shard, taker)} & self._resting_votes
        if resting or shard in self._moved:
            return False
        others = [self._nodes[each.peer] for each in self._plan(shard).voters if each.peer != giver]
        node = self._nodes[taker]
        if any(other.name == taker or other.host == node.host for other in others):
            return False
        if not node.may_lead and not any(other.may_lead for other in others):
            return False
        # It may come to lead what it votes in.
        rate = self._rates.get(shard, 0.0)
        if not self._links.bears(taker, received=rate, sent=rate * len(others)):
            return False
        return all(
            crowd(others, key, node) <= crowd(others, key, self._nodes[giver])
            for key in ("rack", "zone")
        )

    # ------------------------------------------------------------------ leads
    def move_lead(self) -> tuple[Move, ...] | None:
        """The next chain of hand-overs; None if the leads lie evenly, or none may move."""
        if not self._able:
            return None
        low = min(floor(self.even_leads), ceil(self.even_leads * (1 - self._band)))
        high = max(ceil(self.even_leads), floor(self.even_leads * (1 + self._band)))
        lightest = min(self._leads[name] for name in self._able)
        givers = sorted(self._able, key=lambda name: (-self._leads[name], name))
        for giver in givers[:CHAIN_NODES_MAX]:
            if self._leads[giver] <= high and lightest >= low:
                return None
            if self._leads[giver] < lightest + 2:
                return None
            # Above the band: to whoever is lighter. Else only to who is below it.
            least = self._leads[giver] - 2 if self._leads[giver] > high else low - 1
            chain = self._chain(giver, min(least, self._leads[giver] - 2))
            if chain:
                return tuple(self._lead_move(*link) for link in chain)
        return None

    def _chain(
        self, giver: NodeName, leads_max: int
    ) -> list[tuple[ShardEntry, NodeName, NodeName]]:
        """Hand-overs, each from a node to a voter, to the nearest node with so few leads; the
        lightest of the nearest.
        """
        came: dict[NodeName, tuple[ShardEntry, NodeName] | None] = {giver: None}
        ring: deque[NodeName] = deque([giver])
        while ring and len(came) <= CHAIN_NODES_MAX:
            found: list[NodeName] = []
            for _ in range(len(ring)):
                name = ring.popleft()
                for entry in self._entries(name):
                    for heir in self._heirs(entry, name):
                        if heir not in came:
                            came[heir] = entry, name
                            ring.append(heir)
                            found.append(heir)
            ends = [name for name in found if self._leads[name] <= leads_max]
            if ends:
                end = min(ends, key=lambda name: (self._leads[name], name))
                return _links(came, end)
        return []

    def _heirs(self, entry: ShardEntry, leader: NodeName) -> Iterator[NodeName]:
        plan = self._plan(entry.shard.shard)
        shard = entry.shard.shard
        if plan.primary.peer != leader or shard in self._resting_leads or shard in self._moved:
            return
        sent = self._rates.get(shard, 0.0) * (len(plan.replicas) - 1)
        for voter in plan.voters:
            may_lead = voter.peer != leader and self._nodes[voter.peer].may_lead
            if may_lead and self._links.bears(voter.peer, sent=sent):
                yield voter.peer

    def _lead_move(self, entry: ShardEntry, giver: NodeName, taker: NodeName) -> Move:
        before = self._plan(entry.shard.shard)
        why = (
            f"{giver} leads {self._leads[giver]} and {taker} {self._leads[taker]}, "
            f"even is {self.even_leads:.1f}"
        )
        return Move(
            shard=entry.shard.shard,
            epoch=entry.shard.open.epoch,
            plan=Plan(primary=self._nodes[taker].process, voters=before.voters, acks=before.acks),
            leaves=_NOBODY,
            joins=_NOBODY,
            leads=taker,
            why=why,
        )

    # ------------------------------------------------------------------ small facts
    def _plan(self, shard: ShardId) -> Plan:
        moved = self._moved.get(shard)
        return self._state.shards[shard].shard.open.plan if moved is None else moved

    def _weight(self, shard: ShardId) -> float:
        return self._weights.get(shard, 1.0)

    def _entries(self, name: NodeName) -> Iterator[ShardEntry]:
        """Shards in which a node votes and of which something may be moved, by id."""
        shards = {*self._index.shards_of(name), *self._gained.get(name, ())}
        for shard in sorted(shards):
            entry = self._state.shards[shard]
            votes = any(each.peer == name for each in self._plan(shard).voters)
            if votes and self._is_settled(entry):
                yield entry

    def _is_settled(self, entry: ShardEntry) -> bool:
        shard, log = entry.shard, self._state.logs[entry.shard.log]
        plan = shard.open.plan
        if entry.halted or shard.prepared is not None or shard.fence != NO_EPOCH:
            return False
        past = len(entries_of(shard.sealed)), len(shard.sealed)
        if shard.is_split or past[0] > SEALED_MAX or past[1] > SEALED_MOVED_EPOCHS_MAX:
            return False
        if plan.non_voters or (len(plan.voters), plan.acks) != (log.copies, log.acks):
            return False
        nodes = [self._nodes.get(each.peer) for each in plan.voters]
        known = all(
            node is not None and node.replica == each
            for node, each in zip(nodes, plan.voters, strict=True)
        )
        primary = self._nodes.get(plan.primary.peer)
        return known and primary is not None and primary.process == plan.primary


def _weights(state: ClusterState, bytes_per_s: Mapping[ShardId, float]) -> dict[ShardId, float]:
    """Of shards that are written to; all others weigh 1."""
    written = {
        shard: rate for shard, rate in bytes_per_s.items() if shard in state.shards and rate > 0.0
    }
    total = sum(written.values())
    if not total:
        return {}
    return {shard: 1.0 + rate * len(state.shards) / total for shard, rate in written.items()}


def crowd(others: Iterable[Node], key: str, node: Node) -> int:
    """How many of `others` share the place of `node` that the label `key` names."""
    place = node.label(key)
    return sum(other.label(key) == place for other in others) if place else 0


def _links(
    came: Mapping[NodeName, tuple[ShardEntry, NodeName] | None], end: NodeName
) -> list[tuple[ShardEntry, NodeName, NodeName]]:
    """The way to `end`, from its far end: who takes first has given nothing yet."""
    links = []
    step = came[end]
    while step is not None:
        entry, giver = step
        links.append((entry, giver, end))
        end, step = giver, came[giver]
    return links
