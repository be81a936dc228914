"""Where copies and primaries go: the rules of docs/anticipation.md §4, and nothing about when.

Hard rules: only the recorded store of a node that is up, never two replicas on a host, a primary
that may lead, never fewer voters than the log's `acks`, no new place behind a link that would not
bear what is written to the shard (`las.core.network`). Preferences, in this order: what is there
already, healthy before endangered, racks apart, zones apart, few votes, few primaries, name. The
last makes every choice the same on every run.

A node at risk or being drained is *endangered*: it keeps getting everything as a non-voter, so that
its copy stays good while nobody waits for it. It votes or leads only where too few others can.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from las.core.index import FleetIndex
from las.core.network import LinkLoad, Network
from las.core.state import ClusterState, Log, Node, NodeState
from peerd.core.ids import Epoch, NodeName, ProcessId, ReplicaId, ShardId, Tick
from peerd.core.shard_map import Plan

# limit: non-voters of one plan; each costs the primary a stream of everything.
NON_VOTERS_MAX = 3
# limit: nodes that are weighed for one place, least used first; more would not place it better.
CANDIDATES_MAX = 64


class Health(Enum):
    """What may be built on a replica."""

    HEALTHY = "healthy"
    ENDANGERED = "endangered"
    """Up, but at risk or being drained."""
    GONE = "gone"
    """Down, failed, or another store than the recorded one of its node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetView:
    """What the leader sees beside the committed state. Times are of its own clock.

    Attributes:
        now: the time of this view.
        free_bytes: bytes free for data as last heard; a node that is missing here has enough.
        down_since: when the leader saw a node down first; missing = long ago.
        stalled: voters whose acknowledgements stall, by the shard in which they do.
        slow: nodes that stall as primaries (`las.core.slow_primaries`).
        network: what links bear, and what is written.
        moving: who is wanted for a sealed segment though it has holders enough (a move of bytes).
    """

    now: Tick
    free_bytes: Mapping[NodeName, int] = field(default_factory=dict)
    down_since: Mapping[NodeName, Tick] = field(default_factory=dict)
    stalled: frozenset[tuple[ShardId, ReplicaId]] = frozenset()
    slow: frozenset[NodeName] = frozenset()
    network: Network = field(default_factory=Network)
    moving: frozenset[tuple[ShardId, Epoch, ReplicaId]] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much the planner may have under way at once, and how long it waits.

    Attributes:
        changes_max: segments prepared at once; each is a switch that costs its primary a drain.
        copies_max: fetches wanted at once over the whole fleet.
        copies_per_segment_max: fetches of one segment wanted at once.
        free_bytes_min: a node with less free is given nothing new.
        mirror: a primary that comes to be at risk goes on ordering without a vote, if enough others
            that are healthy can vote; else it hands over.
        repair_delay_ms: how long a dead node's copies are waited for before they are made anew.
        yielding: shards without a primary are being opened elsewhere: beside them only what pauses
            appends, too, is changed, and only kept tails are copied; the rest comes later.
    """

    changes_max: int = 64
    copies_max: int = 256
    copies_per_segment_max: int = 3
    free_bytes_min: int = 1 << 30
    mirror: bool = False
    repair_delay_ms: int = 600_000
    yielding: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a new plan should keep.

    Attributes:
        log: whose policy it follows.
        kept: replicas to keep, best first.
        shunned: replicas that vote only if too few others can: they stall, or did not answer.
        primary: the process that should go on, if it is healthy and votes.
        heirs: who should lead otherwise: stores that have what came before.
        closed: the segment takes no batch (docs/protocol.md §4.3): only a voter leads it.
        bytes_per_s: what is written to the shard, and will cross the links of its voters.
    """

    log: Log
    kept: tuple[ReplicaId, ...]
    shunned: frozenset[ReplicaId] = frozenset()
    primary: ProcessId | None = None
    heirs: frozenset[ReplicaId] = frozenset()
    closed: bool = False
    bytes_per_s: float = 0.0


class _Judged:
    """A node with what is asked of it for each shard."""

    __slots__ = ("health", "host", "node", "rack", "store", "zone")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.store = node.store
        self.host = node.host
        self.rack, self.zone = node.label("rack"), node.label("zone")
        if node.state is not NodeState.UP:
            self.health = Health.GONE
        else:
            endangered = node.at_risk or node.draining
            self.health = Health.ENDANGERED if endangered else Health.HEALTHY


class Placement:
    """One round of choices. Each choice counts as load for the next, so a round spreads itself."""

    def __init__(
        self, state: ClusterState, view: FleetView, limits: Limits, index: FleetIndex
    ) -> None:
        self._view = view
        self._limits = limits
        self._votes: Counter[NodeName] = Counter(index.voting)
        self._leads: Counter[NodeName] = Counter(index.leading)
        self._copies: Counter[NodeName] = Counter(
            {name: index.holding[node.replica] for name, node in state.nodes.items()}
        )
        written = ((each, state.shards.get(each)) for each in view.network.writes)
        self._links = LinkLoad(
            view.network,
            ((shard, entry.shard.open.plan) for shard, entry in written if entry is not None),
        )
        self._nodes = {node.name: _Judged(node) for node in state.nodes.values()}
        self._queue = sorted(
            (self._load(name), name)
            for name, judged in self._nodes.items()
            if judged.health is Health.HEALTHY and self._has_room(judged.node)
        )

    def refresh(self, node: Node) -> None:
        """A node has become another: take it as it is now."""
        name, load = node.name, self._load(node.name)
        at = bisect_left(self._queue, (load, name))
        if at < len(self._queue) and self._queue[at] == (load, name):
            del self._queue[at]
        judged = self._nodes[name] = _Judged(node)
        if judged.health is Health.HEALTHY and self._has_room(node):
            insort(self._queue, (load, name))

    def health(self, replica: ReplicaId) -> Health:
        """What may be built on `replica`."""
        judged = self._nodes.get(replica.peer)
        return Health.GONE if judged is None or judged.store != replica.store else judged.health

    def host(self, replica: ReplicaId) -> str:
        """The host of a replica's node."""
        return self._nodes[replica.peer].host

    # ------------------------------------------------------------------ plans
    def compose(self, wish: Wish) -> Plan | None:
        """The best plan for `wish`; None if too few nodes could vote, or none of them may lead."""
        alive = [each for each in wish.kept if self.health(each) is not Health.GONE]
        slow = [each for each in alive if each.peer in self._view.slow]
        wish = replace(wish, shunned=wish.shunned.union(slow))
        steady = [
            each
            for each in alive
            if self.health(each) is Health.HEALTHY and each not in wish.shunned
        ]
        others = [each for each in alive if each not in steady]
        voters = self._voters(wish, steady, self._hosts(others))
        if len(voters) < wish.log.copies:  # the hosts of endangered replicas are needed
            voters = self._voters(wish, steady, set())
        if len(voters) < wish.log.acks and wish.bytes_per_s:
            # A narrow link is better than no voter.
            voters = self._voters(replace(wish, bytes_per_s=0.0), steady, set())
        if len(voters) < wish.log.acks:
            # Of those that should not vote the least bad first: endangered, then shunned.
            shunned = [each for each in others if each in wish.shunned]
            endangered = [each for each in others if each not in wish.shunned]
            for each in (*endangered, *self._other_endangered(wish), *shunned):
                if len(voters) < wish.log.acks and self.host(each) not in self._hosts(voters):
                    voters.append(each)
        mirror = None if wish.closed else self.mirror(wish.primary, voters)
        primary = mirror or self._primary(wish, voters)
        if len(voters) < wish.log.acks or primary is None:
            return None
        hosts = self._hosts(voters)
        non_voters: list[ReplicaId] = []
        for each in others:
            if self.host(each) not in hosts and len(non_voters) < NON_VOTERS_MAX:
                non_voters.append(each)
                hosts.add(self.host(each))
        return Plan(
            primary=primary,
            voters=tuple(voters),
            non_voters=tuple(non_voters),
            acks=wish.log.acks,
        )

    def rate(self, shard: ShardId) -> float:
        """What is written to a shard, bytes a second."""
        return self._view.network.rate(shard)

    def commit(self, plan: Plan, before: Plan | None = None, *, bytes_per_s: float = 0.0) -> None:
        """Count `plan`, in place of `before`, as load for the choices that follow."""
        self._links.count(plan, bytes_per_s)
        if before is not None:
            self._links.count(before, -bytes_per_s)
        for old in before.voters if before is not None else ():
            self._use(old.peer, -1)
        for new in plan.voters:
            self._use(new.peer, +1)
        if before is not None:
            self._leads[before.primary.peer] -= 1
        self._leads[plan.primary.peer] += 1

    def _voters(
        self, wish: Wish, steady: Iterable[ReplicaId], blocked: set[str]
    ) -> list[ReplicaId]:
        """Up to `copies` healthy voters: the steady ones, then others on hosts not `blocked`."""
        voters: list[ReplicaId] = []
        for each in steady:
            if len(voters) < wish.log.copies and self.host(each) not in self._hosts(voters):
                voters.append(each)
        if len(voters) == wish.log.copies and not any(map(self._may_lead, voters)):
            voters.pop()  # room for one that may lead
        while len(voters) < wish.log.copies:
            last = len(voters) == wish.log.copies - 1
            leader_needed = last and not any(map(self._may_lead, voters))
            added = self.pick(
                voters,
                blocked,
                wish.shunned,
                may_lead=leader_needed,
                bytes_per_s=wish.bytes_per_s,
            )
            if added is None:
                break
            voters.append(added)
        return voters

    def pick(
        self,
        beside: Iterable[ReplicaId],
        blocked: set[str],
        shunned: Iterable[ReplicaId] = (),
        *,
        may_lead: bool = False,
        bytes_per_s: float = 0.0,
    ) -> ReplicaId | None:
        """The healthy store that fits best beside others, on no host of theirs or `blocked`, and
        behind a link that bears `bytes_per_s` more.
        """
        others = [self._nodes[each.peer] for each in beside]
        hosts = {other.host for other in others} | blocked
        racks = Counter(other.rack for other in others if other.rack)
        zones = Counter(other.zone for other in others if other.zone)
        refused = {each.peer for each in shunned}
        best: tuple[tuple[int, int, int, NodeName], Node] | None = None
        weighed = 0
        for load, name in self._queue:
            judged = self._nodes[name]
            node = judged.node
            if judged.host in hosts or name in refused or (may_lead and not node.may_lead):
                continue
            if name in self._view.slow:
                continue
            if not self._links.bears(name, received=bytes_per_s):
                continue
            score = (racks[judged.rack], zones[judged.zone], load, name)
            if best is None or score < best[0]:
                best = score, node
            weighed += 1
            # The queue is in the order of load: behind one that is apart from all none is better.
            if weighed == CANDIDATES_MAX or not (score[0] or score[1]):
                break
        return None if best is None else best[1].replica

    def use_for_copy(self, replica: ReplicaId) -> None:
        """Count a wanted copy as load."""
        before = self._load(replica.peer)
        self._copies[replica.peer] += 1
        self._requeue(replica.peer, before)

    def _other_endangered(self, wish: Wish) -> list[ReplicaId]:
        """Endangered nodes with room that have no part yet: draining before at risk, least used."""
        names = sorted(
            (judged.node.at_risk, self._load(name), name)
            for name, judged in self._nodes.items()
            if judged.health is Health.ENDANGERED and self._has_room(judged.node)
        )
        replicas = (self._nodes[name].node.replica for _, _, name in names)
        return [each for each in replicas if each not in wish.kept]

    def mirror(self, primary: ProcessId | None, voters: Sequence[ReplicaId]) -> ProcessId | None:
        """`primary`, if it is to order for `voters` without a vote of its own (`Limits.mirror`).

        It is at risk and up, its disk has room, nothing else is wrong with it, and the voters are
        healthy and on other hosts, one of which may lead when it dies.
        """
        if (
            not self._limits.mirror
            or primary is None
            or self.health(primary.replica) is Health.GONE
        ):
            return None
        node = self._nodes[primary.peer].node
        sick = node.process != primary or not node.at_risk or node.draining or not node.may_lead
        # A full disk refuses appends, whoever else would keep them.
        sick |= node.name in self._view.slow or not self._has_room(node)
        healthy = all(self.health(each) is Health.HEALTHY for each in voters)
        if sick or not healthy or node.host in self._hosts(voters):
            return None
        return primary if any(map(self._may_lead, voters)) else None

    def _primary(self, wish: Wish, voters: list[ReplicaId]) -> ProcessId | None:
        """Who leads: the one who does, if it is healthy; else the healthiest heir, least used."""
        able = [each for each in voters if self._may_lead(each)]
        if not able:
            return None

        def order(each: ReplicaId) -> tuple[bool, bool, bool, int, NodeName]:
            stays = wish.primary is not None and wish.primary == self._process(each)
            weak = self.health(each) is not Health.HEALTHY or each in wish.shunned
            # What goes on as it is needs no room; a new primary sends to all others.
            sent = wish.bytes_per_s * (len(voters) - 1) * (not stays)
            weak = weak or not self._links.bears(each.peer, sent=sent)
            return weak, not stays, each not in wish.heirs, self._leads[each.peer], each.peer

        return self._process(min(able, key=order))

    # ------------------------------------------------------------------ small facts
    def _process(self, replica: ReplicaId) -> ProcessId:
        return self._nodes[replica.peer].node.process

    def _may_lead(self, replica: ReplicaId) -> bool:
        return self._nodes[replica.peer].node.may_lead

    def _hosts(self, replicas: Iterable[ReplicaId]) -> set[str]:
        return {self.host(each) for each in replicas}

    def _has_room(self, node: Node) -> bool:
        free = self._view.free_bytes.get(node.name)
        return free is None or free >= self._limits.free_bytes_min

    def _load(self, name: NodeName) -> int:
        return self._votes[name] + self._copies[name]

    def _use(self, name: NodeName, change: int) -> None:
        before = self._load(name)
        self._votes[name] += change
        self._requeue(name, before)

    def _requeue(self, name: NodeName, load_before: int) -> None:
        at = bisect_left(self._queue, (load_before, name))
        if at < len(self._queue) and self._queue[at] == (load_before, name):  # else not healthy
            del self._queue[at]
            insort(self._queue, (self._load(name), name))
