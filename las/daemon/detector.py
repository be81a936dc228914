"""Who seems dead: leases, accusations and witnesses, weighed as docs/protocol.md §6 says.

Safety does not rest on this. A wrong suspicion costs a pause, never a record, so the rules are
about not moving data for nothing: one sick link, one sick accuser or the leader's own pause must
not look like a dying fleet.

- *Silence* beyond the lease makes a suspect, and so do two neighbours that miss four frames of it.
  Before silence alone is acted on, its neighbours are asked whether they still hear it.
- *A refused connection* is strong evidence: with the node's stream to the LAS broken as well, or
  from two accusers, it is acted on at once; from one alone the neighbours are asked, for 300 ms.
- *An accuser of two or more nodes whom nobody else accuses* is not believed; others are asked
  whether they hear the accuser itself.
- *One accuser alone* causes at most one replacement in five seconds.
- *A primary that says of all its voters that they stall* is the one that does
  (`las.core.slow_primaries`): its word on them counts for nothing.
- *The leader's own pause* (it was stopped, or its loop hung) is given back to every lease.
- *If more than half of the fleet falls silent at once* the leader is likely the one that is cut
  off: then a lease alone, without the word of a witness, is believed only after half a minute.

The clock is passed in with each call. Used by one event loop; must not do IO and not wait.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice

from las.core.index import FleetIndex
from las.core.network import Network
from las.core.placement import FleetView
from las.core.slow_primaries import SlowPrimaries, SlowTiming
from las.core.state import ClusterState, Node, NodeState
from peerd.core.ids import BootId, Epoch, NodeName, ReplicaId, ShardId, Tick

# limit: neighbours asked about one suspect; more would answer the same.
WITNESSES_MAX = 5
# limit: shards looked at to find a suspect's neighbours.
WITNESS_SHARDS_MAX = 64
# limit: accusations kept against one node, one for each accuser.
ACCUSERS_MAX = 16
# limit: stalled voters kept; beyond it the oldest are forgotten and reported again.
STALLS_MAX = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorTiming:
    """All in milliseconds.

    Attributes:
        lease_ms: silence towards the LAS that makes a suspect; three heartbeats. Longer in a large
            fleet, see `fleet_lease_ms`.
        silence_ms: silence towards a neighbour that counts; four frames of 250 ms.
        refused_silence_ms: the same when a connection was refused: one frame and a little.
        accusation_ms: how long an accusation or a stall is believed without being repeated.
        accuser_ms: time in which one accuser alone causes at most one replacement.
        ask_again_ms: pause between two rounds of questions about the same suspect.
        vouched_ms: the same after a neighbour said that it hears it: the link to the LAS is sick.
        unanswered_leases: leases of silence after which no witness is waited for any more.
        isolated_leases: the same while more than half of the fleet is silent at once.
        pause_ms: time between two looks from which the leader counts as having been stopped.
    """

    lease_ms: int = 1_500
    silence_ms: int = 1_000
    refused_silence_ms: int = 300
    accusation_ms: int = 5_000
    accuser_ms: int = 5_000
    ask_again_ms: int = 100
    vouched_ms: int = 1_000
    unanswered_leases: int = 3
    isolated_leases: int = 20
    pause_ms: int = 750


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The state of the process `boot` of a node should be committed as `state`.

    `refused`: its port is closed. `silent_ms` is for how long it was down, if it is up again.
    """

    node: NodeName
    boot: BootId
    state: NodeState
    why: str
    refused: bool = False
    silent_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Ask `witnesses` whether they still hear the suspect, and hand back `answered`."""

    node: NodeName
    boot: BootId
    witnesses: tuple[NodeName, ...]


Verdict = Judged | Ask


class _Evidence(Enum):
    """How much speaks against a node, by what follows from it."""

    NONE = "nothing"
    SILENCE = "ask; a neighbour that missed four frames agrees"
    REFUSED = "ask; a neighbour that missed one frame agrees"
    STRONG = "act at once"


@dataclass(slots=True)
class _Accusation:
    refused: bool
    at: Tick


@dataclass(slots=True)
class _Watched:
    """What is known of one node's process. `broken`: its stream ended and nothing came since."""

    boot: BootId
    heard_at: Tick
    broken: bool = False
    free_bytes: int | None = None
    network_bytes_per_s: int = 0
    accusations: dict[NodeName, _Accusation] = field(default_factory=dict)
    asking: bool = False
    ask_after: Tick | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stall:
    accuser: NodeName
    epoch: Epoch
    at: Tick


# limit: heartbeats a second that all peers together send the leader; half of one core.
HEARTBEATS_PER_S_MAX = 2_000


def fleet_heartbeat_ms(heartbeat_ms: int, nodes: int) -> int:
    """Time between two heartbeats of a peer in a fleet of `nodes`; `heartbeat_ms` in a small one.

    In a large one they come less often, so that the leader bears them.
    """
    return max(heartbeat_ms, 1000 * nodes // HEARTBEATS_PER_S_MAX)


def fleet_lease_ms(lease_ms: int, nodes: int) -> int:
    """The lease in a fleet of `nodes`: three such heartbeats at least."""
    return max(lease_ms, 3 * fleet_heartbeat_ms(0, nodes))


class Detector:
    """Collects what is heard of nodes; `judge` says what follows."""

    def __init__(self, timing: DetectorTiming, now: Tick) -> None:
        """A new leader believes everybody alive for one lease from `now` on."""
        self.writes: Mapping[ShardId, float] = {}
        """What is written to each shard, in bytes a second, as its primary told last."""
        self.moving: Callable[[], Collection[tuple[ShardId, Epoch, ReplicaId]]] = frozenset
        """Tells the copies that are made so that nodes store alike."""
        self.busy: Callable[[int], Collection[NodeName]] = lambda _: ()
        """Tells who has just taken over many shards, as `las.core.patience.TakeOvers.busy`."""
        self._timing = timing
        self._lease_ms = timing.lease_ms
        self._judged_at = now
        self._nodes: dict[NodeName, _Watched] = {}
        self._known_nodes: Mapping[NodeName, Node] = {}
        self._down_since: dict[NodeName, Tick] = {}
        self._stalls: dict[tuple[ShardId, ReplicaId], _Stall] = {}
        self._slow = SlowPrimaries(SlowTiming(believed_ms=timing.accusation_ms))
        self._acted_for: dict[NodeName, tuple[NodeName, Tick]] = {}

    # ------------------------------------------------------------------ what is heard
    def heard(
        self,
        node: NodeName,
        boot: BootId,
        now: Tick,
        free_bytes: int | None = None,
        network_bytes_per_s: int = 0,
    ) -> None:
        """A registration or heartbeat of `boot`, the registered process of `node`, arrived."""
        watched = self._watched(node, boot, now)
        watched.heard_at = now
        watched.broken = False
        if free_bytes is not None:
            watched.free_bytes = free_bytes
            watched.network_bytes_per_s = network_bytes_per_s

    def stream_broken(self, node: NodeName, boot: BootId) -> None:
        """The heartbeat stream of the process ended, and it was not the LAS that closed it."""
        watched = self._nodes.get(node)
        if watched is not None and watched.boot == boot:
            watched.broken = True

    def suspected(
        self, accuser: NodeName, node: NodeName, boot: BootId, *, refused: bool, now: Tick
    ) -> None:
        """`accuser` cannot hear the process `boot` of `node`; `refused`: its port is closed."""
        watched = self._nodes.get(node)
        if watched is None or watched.boot != boot or accuser == node:
            return
        before = watched.accusations.get(accuser)
        if before is not None:
            before.refused, before.at = before.refused or refused, now
        elif len(watched.accusations) < ACCUSERS_MAX:
            watched.accusations[accuser] = _Accusation(refused=refused, at=now)

    def stalled(
        self, accuser: NodeName, shard: ShardId, epoch: Epoch, voter: ReplicaId, now: Tick
    ) -> bool:
        """The acks of a voter stall in `epoch`; False if its accuser has to wait."""
        self._slow.accused(accuser, voter.peer, now)
        if not self._may_act_for(accuser, voter.peer, now):
            return False
        self._acted_for[accuser] = (voter.peer, now)
        self._stalls.pop((shard, voter), None)
        self._stalls[shard, voter] = _Stall(accuser=accuser, epoch=epoch, at=now)
        if len(self._stalls) > STALLS_MAX:
            del self._stalls[next(iter(self._stalls))]
        return True

    def answered(
        self, ask: Ask, silences: Mapping[NodeName, int | None], now: Tick
    ) -> Judged | None:
        """What the witnesses said: for how many ms they have not heard it; None: no stream to it.

        A witness that gave no answer is not in `silences`. Returns the verdict, if there is one.
        """
        watched = self._nodes.get(ask.node)
        if watched is None or watched.boot != ask.boot:
            return None
        watched.asking = False
        watched.ask_after = Tick(now + self._timing.ask_again_ms)
        refused = any(each.refused for each in watched.accusations.values())
        enough = self._timing.refused_silence_ms if refused else self._timing.silence_ms
        heard_at = [now - each for each in silences.values() if each is not None]
        if silences and all(now - each >= enough for each in heard_at):
            return self._down(ask, watched, refused=refused, witnesses=sorted(silences), now=now)
        accused_at = max((each.at for each in watched.accusations.values()), default=None)
        if heard_at and (accused_at is None or max(heard_at) > accused_at):
            # Somebody hears it since: a link is sick, not the node, and nothing moves.
            watched.accusations.clear()
            watched.ask_after = Tick(now + self._timing.vouched_ms)
        return None

    # ------------------------------------------------------------------ what follows
    def judge(self, state: ClusterState, index: FleetIndex, now: Tick) -> list[Verdict]:
        """What should be committed or asked now. A verdict is repeated until the state has it."""
        self._lease_ms = fleet_lease_ms(self._timing.lease_ms, len(state.nodes))
        self._give_back_own_pause(now)
        self._forget(state, now)
        self._slow.look(now, self.busy(now))
        verdicts: list[Verdict] = []
        liars = self._unbelievable(now)
        isolated = self._is_isolated(state, now)
        for name, node in state.nodes.items():
            watched = self._watched(name, node.boot, now)
            is_up = node.state is NodeState.UP
            if is_up and self._nothing_against(watched, now) and name not in liars:
                # True of nearly all of them, and there is nothing else to find out.
                self._down_since.pop(name, None)
                continue
            if is_up:
                self._down_since.pop(name, None)
                found = self._judge_up(state, index, node, liars, isolated)
            else:
                self._down_since.setdefault(name, now)
                found = self._judge_down(node, watched)
            if found is not None:
                verdicts.append(found)
        return verdicts

    def view(self, state: ClusterState, now: Tick) -> FleetView:
        """What the planner should know beside the committed state."""
        stalled = frozenset(
            stall
            for stall, told in self._stalls.items()
            if (entry := state.shards.get(stall[0])) is not None
            and entry.shard.open.epoch == told.epoch
            and (told.accuser not in self.slow or told.accuser == stall[1].peer)
        )
        free_bytes = {
            name: watched.free_bytes
            for name, watched in self._nodes.items()
            if watched.free_bytes is not None
        }
        capacity = {
            name: watched.network_bytes_per_s
            for name, watched in self._nodes.items()
            if watched.network_bytes_per_s
        }
        return FleetView(
            now=now,
            free_bytes=free_bytes,
            down_since=dict(self._down_since),
            stalled=stalled,
            slow=self.slow,
            network=Network(capacity=capacity, writes=dict(self.writes) if capacity else {}),
            moving=frozenset(self.moving()),
        )

    @property
    def slow(self) -> frozenset[NodeName]:
        """Nodes that stall as primaries; the same object until that changes."""
        return self._slow.nodes

    def stalled_shards(self) -> set[ShardId]:
        """Shards with a voter that was reported to stall."""
        return {shard for shard, _ in self._stalls}

    def silent_ms(self, node: NodeName, now: Tick) -> int:
        """Milliseconds since something was heard of the node; 0 if it was never looked for."""
        watched = self._nodes.get(node)
        return 0 if watched is None else now - watched.heard_at

    def _judge_up(
        self,
        state: ClusterState,
        index: FleetIndex,
        node: Node,
        liars: set[NodeName],
        isolated: bool,
    ) -> Verdict | None:
        now, watched = self._judged_at, self._nodes[node.name]
        evidence = self._evidence(node.name, watched, liars, now)
        if evidence is _Evidence.STRONG:
            accusers = sorted(watched.accusations)
            return Judged(
                node=node.name,
                boot=node.boot,
                state=NodeState.DOWN,
                why=f"connections refused, say {_listed(accusers)}",
                refused=True,
            )
        if evidence is _Evidence.NONE or watched.asking:
            return None
        if watched.ask_after is not None and now < watched.ask_after:
            return None
        witnesses = _witnesses(state, index, node.name, set(watched.accusations))
        silent_ms = now - watched.heard_at
        leases = self._timing.unanswered_leases if witnesses else 1
        leases = self._timing.isolated_leases if isolated else leases
        if silent_ms > leases * self._lease_ms:
            why = f"silent for {silent_ms} ms, and nobody answers who could hear it"
            return Judged(node=node.name, boot=node.boot, state=NodeState.DOWN, why=why)
        if not witnesses:
            return None
        watched.asking = True
        return Ask(node=node.name, boot=node.boot, witnesses=witnesses)

    def _nothing_against(self, watched: _Watched, now: Tick) -> bool:
        """Nobody accuses it, its stream stands, and it was heard within the lease."""
        return (
            not watched.accusations
            and not watched.broken
            and now - watched.heard_at <= self._lease_ms
        )

    def _judge_down(self, node: Node, watched: _Watched) -> Judged | None:
        """A node that is down but is heard, and whom nobody accuses any more, is up."""
        again = watched.heard_at > self._down_since[node.name] and not watched.broken
        if node.state is not NodeState.DOWN or not again or watched.accusations:
            return None
        return Judged(
            node=node.name,
            boot=node.boot,
            state=NodeState.UP,
            why="heartbeats come again",
            silent_ms=self._judged_at - self._down_since[node.name],
        )

    def _evidence(
        self, name: NodeName, watched: _Watched, liars: set[NodeName], now: Tick
    ) -> _Evidence:
        believed = {
            accuser: each for accuser, each in watched.accusations.items() if accuser not in liars
        }
        refusals = sum(each.refused for each in believed.values())
        if refusals >= 2 or (refusals and watched.broken):
            return _Evidence.STRONG
        if refusals:
            return _Evidence.REFUSED
        if len(believed) >= 2 or name in liars or self._lease_over(watched, now):
            return _Evidence.SILENCE
        return _Evidence.NONE

    def _unbelievable(self, now: Tick) -> set[NodeName]:
        """Accusers of two or more nodes against none of which anything else speaks."""
        accused: dict[NodeName, list[NodeName]] = {}
        for name, watched in self._nodes.items():
            for accuser in watched.accusations:
                accused.setdefault(accuser, []).append(name)
        return {
            accuser
            for accuser, names in accused.items()
            if len(names) >= 2 and not any(self._is_confirmed(name, now) for name in names)
        }

    def _is_confirmed(self, name: NodeName, now: Tick) -> bool:
        """Whether more than one accuser speaks against a node."""
        watched = self._nodes[name]
        return len(watched.accusations) > 1 or watched.broken or self._lease_over(watched, now)

    def _down(
        self,
        ask: Ask,
        watched: _Watched,
        *,
        refused: bool,
        witnesses: list[NodeName],
        now: Tick,
    ) -> Judged | None:
        """The verdict, unless it would rest on an accuser who had one in the last seconds."""
        accusers = sorted(watched.accusations)
        if len(accusers) == 1 and not watched.broken and not self._lease_over(watched, now):
            if not self._may_act_for(accusers[0], ask.node, now):
                return None
            self._acted_for[accusers[0]] = (ask.node, now)
        told = "refuses connections" if refused else "is silent"
        return Judged(
            node=ask.node,
            boot=ask.boot,
            state=NodeState.DOWN,
            why=f"{told}, and {_listed(witnesses)} cannot hear it",
            refused=refused,
        )

    def _may_act_for(self, accuser: NodeName, node: NodeName, now: Tick) -> bool:
        last = self._acted_for.get(accuser)
        return last is None or last[0] == node or now - last[1] >= self._timing.accuser_ms

    def _is_isolated(self, state: ClusterState, now: Tick) -> bool:
        """Whether more than half of the nodes that are up fell silent, so that it may be us."""
        oldest = now - self._lease_ms
        silent = {name for name, watched in self._nodes.items() if watched.heard_at < oldest}
        if not silent:
            return False
        up = [name for name, node in state.nodes.items() if node.state is NodeState.UP]
        return 2 * len(silent.intersection(up)) > len(up)

    def _lease_over(self, watched: _Watched, now: Tick) -> bool:
        return now - watched.heard_at > self._lease_ms

    # ------------------------------------------------------------------ upkeep
    def _watched(self, node: NodeName, boot: BootId, now: Tick) -> _Watched:
        """The record of the process `boot`; a new process has a whole lease from now on."""
        watched = self._nodes.get(node)
        if watched is None or watched.boot != boot:
            free_bytes = None if watched is None else watched.free_bytes
            network = 0 if watched is None else watched.network_bytes_per_s
            watched = _Watched(
                boot=boot, heard_at=now, free_bytes=free_bytes, network_bytes_per_s=network
            )
            self._nodes[node] = watched
        return watched

    def _give_back_own_pause(self, now: Tick) -> None:
        """If nobody judged for long it was the leader that was away, and it heard nobody."""
        pause_ms = now - self._judged_at
        if pause_ms >= self._timing.pause_ms:
            for watched in self._nodes.values():
                watched.heard_at = Tick(min(now, watched.heard_at + pause_ms))
        self._judged_at = now

    def _forget(self, state: ClusterState, now: Tick) -> None:
        oldest = now - self._timing.accusation_ms
        if state.nodes is not self._known_nodes or len(self._nodes) > len(state.nodes):
            self._known_nodes = state.nodes
            for name in [name for name in self._nodes if name not in state.nodes]:
                del self._nodes[name]
        for watched in [each for each in self._nodes.values() if each.accusations]:
            for accuser in [each for each, told in watched.accusations.items() if told.at < oldest]:
                del watched.accusations[accuser]
        for stall in [each for each, told in self._stalls.items() if told.at < oldest]:
            del self._stalls[stall]
        for accuser in [each for each in self._acted_for if each not in state.nodes]:
            del self._acted_for[accuser]


def _witnesses(
    state: ClusterState, index: FleetIndex, suspect: NodeName, accusers: Iterable[NodeName]
) -> tuple[NodeName, ...]:
    """Nodes that are up and share a segment with the suspect; its accusers only if there are none.

    Who accuses has spoken already; somebody else's word is worth more.
    """
    near: dict[NodeName, None] = {}
    for shard in islice(index.shards_of(suspect), WITNESS_SHARDS_MAX):
        entry = state.shards[shard].shard
        for segment in (entry.open, entry.prepared):
            if segment is not None and suspect in {each.peer for each in segment.plan.replicas}:
                near.update(dict.fromkeys(each.peer for each in segment.plan.replicas))
    near.pop(suspect, None)
    up = [each for each in near if (node := state.nodes.get(each)) and node.state is NodeState.UP]
    others = [each for each in up if each not in accusers]
    return tuple((others or up)[:WITNESSES_MAX])


def _listed(names: Iterable[str]) -> str:
    return " and ".join(names)
