"""The LAS of a run: its nodes, their consensus, and their calls from and to peers.

Their consensus is behind a door (`Group`). Here it is a linearizable register: a command is
committed the moment it is applied, and anybody who believes that he leads may command. In the
second mode the real Raft takes its place (`peerd.testing.sim.raft.las`).
"""

from collections.abc import Callable
from typing import Protocol, cast

from las.core import apply as las_apply
from las.core import commands as c
from las.core.state import JOINING_LEVEL, ClusterState
from las.core.tier_commands import TierShard
from peerd.core import events as ev
from peerd.core.effects import Reply, Report
from peerd.core.ids import Epoch, NodeName, ProcessId, ReplicaId, ShardId
from peerd.core.shard_map import Plan, Shard
from peerd.testing import trace
from peerd.testing.sim.checkers import BrokenPromise
from peerd.testing.sim.las_node import LasNode, OnResult
from peerd.testing.sim.network import Network
from peerd.testing.sim.process import Peer, Process
from peerd.testing.sim.releases import Releases
from peerd.testing.sim.tier import SimTier
from peerd.testing.sim.trims import Trims
from peerd.testing.sim.world import World

NO_OUTCOME_MS = 200
"""A command without an outcome is given up after this; it may be committed all the same."""
LAG_MS = (0, 1, 3, 20, 60)
"""How long after a commit a node has applied it."""

Asked = Callable[[Process], ev.Event]


class Group(Protocol):
    """What a consensus must do."""

    def submit(self, node: LasNode, command: c.Command, done: OnResult) -> None:
        """Have `node` commit a command; `done` is called once."""

    def start(self) -> None:
        """All nodes run."""

    def crash(self, node: LasNode) -> None:
        """A node ends."""

    def boot(self, node: LasNode) -> None:
        """It starts again."""

    def coup(self) -> None:
        """Somebody else takes the lead."""

    def unsettled(self) -> str:
        """What it still has to do after the healing, in words; empty if nothing."""

    def finished(self) -> None:
        """In the end: look whether all is as it should be."""


class Las:
    """See the module. `state` is what is committed, whether or not any node knows it."""

    def __init__(self, world: World, names: tuple[NodeName, ...]) -> None:
        self.world = world
        self.options = world.options
        self.state = ClusterState(cluster_id="simulation", command_level=JOINING_LEVEL)
        self.nodes = {name: LasNode(self, name) for name in names}
        self.trims = Trims(world, self)
        self.releases = Releases(world, self)
        self.tier = SimTier(world, self)
        self.peers: dict[NodeName, Peer] = {}
        self.group: Group = RegisterGroup(self)
        self.on_child: Callable[[Shard], None] | None = None
        """Gets the entry of each shard that comes from a split."""
        self._network: Network | None = None

    def connect(self, peers: dict[NodeName, Peer], network: Network) -> None:
        """The nodes can reach these peers."""
        self.peers = peers
        self._network = network

    def start(self) -> None:
        """The nodes run."""
        self.group.start()
        self.tier.start()
        for node in self.nodes.values():
            node.look()

    @property
    def network(self) -> Network:
        """The network, once connected."""
        if self._network is None:
            raise BrokenPromise("simulator: the LAS is connected before it is used")
        return self._network

    # -------------------------------------------------------------- committing
    def committed(self, command: c.Command, state: ClusterState, result: c.Result) -> None:
        """A command was committed: the one place where the map changes."""
        before, self.state = self.state, state
        if state is before:
            return
        for shard in self._changed(before, state):
            entry = state.shards[shard]
            if entry.halted:
                raise BrokenPromise(f"G7: the LAS halted shard {shard}: {entry.halted}")
            if self.world.on_record is not None:
                record = trace.MapCommitted(self.world.clock.now, entry.shard, command, result)
                self.world.on_record(record)
            if shard not in self.world.checks and self.on_child is not None:
                self.on_child(entry.shard)
            checks = self.world.checks.get(shard)
            if checks is None:
                continue
            if self.world.has_listener and checks.book.map is not None:
                self.world.tell(_told(command, entry.shard))
            known = checks.book.map
            checks.map_committed(entry.shard)
            self.tier.committed(known, entry.shard)

    def _changed(self, before: ClusterState, after: ClusterState) -> list[ShardId]:
        return [
            shard
            for shard in sorted(after.shards)
            if shard not in before.shards
            or before.shards[shard].shard is not after.shards[shard].shard
            or before.shards[shard].halted != after.shards[shard].halted
        ]

    def all_registered(self) -> bool:
        """Whether every peer is known."""
        return len(self.state.nodes) == len(self.peers)

    def create_log(self, name: str, shards: tuple[ShardId, ...]) -> None:
        """Some leader is told to create the log, again and again until it is there."""
        if self.state.shards:
            return
        nodes, copies = tuple(self.peers), self.options.copies
        rows = tuple(
            tuple((number + at) % len(nodes) for at in range(copies))
            for number in range(len(shards))
        )
        for node in self.leaders()[:1]:
            create = c.CreateLog(
                name=name, copies=copies, acks=self.options.acks, nodes=nodes, rows=rows
            )
            node.command(create, "create")
        self.world.clock.later(300, lambda again: self.create_log(*again), (name, shards))

    # -------------------------------------------------------------- nodes
    def leaders(self) -> list[LasNode]:
        """Nodes that believe that they lead."""
        return [node for node in self.nodes.values() if node.alive and node.leading]

    def crash(self, node: LasNode) -> None:
        """A node ends."""
        if node.alive:
            node.alive = False
            node.restart()
            self.group.crash(node)

    def boot(self, node: LasNode) -> None:
        """It starts again."""
        if not node.alive:
            node.alive = True
            self.group.boot(node)

    def silent_ms(self, node: NodeName, peer: NodeName) -> int | None:
        """For how long `node` has not heard `peer`; None: nobody of that name ever came."""
        known = self.peers.get(peer)
        if known is None:
            return None
        silent = 0
        if known.silent_since is not None:
            silent = self.world.clock.now - known.silent_since
        elif known.process is not None and known.process.paused_until > self.world.clock.now:
            silent = known.process.paused_until - self.world.clock.now
        if self.network.links[peer, node].cut:
            silent = max(silent, self.world.clock.now - self.network.cut_since)
        return silent

    def random_plan(self, node: LasNode, shard: ShardId) -> Plan | None:
        """Some plan of peers that seem healthy, good or bad."""
        rng = self.world.rng
        log = node.state.logs[node.state.shards[shard].shard.log]
        healthy = [
            each.process
            for each in node.state.nodes.values()
            if (self.silent_ms(node.name, each.name) or 0) < 50
        ]
        if len(healthy) < log.acks:
            return None
        rng.shuffle(healthy)
        first = healthy[0]
        now = node.state.shards[shard].shard.open.plan.primary
        if now in healthy and rng.random() < 0.3:
            first = now
        others = [process.replica for process in healthy if process != first]
        voters = rng.randint(max(0, log.acks - 1), max(log.copies, log.acks) - 1)
        extra = others[voters : voters + rng.randint(0, 1)]
        mirrors = self.world.options.mirrors
        if mirrors and node.state.nodes[first.peer].at_risk and rng.random() < mirrors:
            chosen, extra = tuple(others[: max(voters, log.acks)]), [first.replica]
        else:
            chosen = (first.replica, *others[:voters])
        if len(chosen) < log.acks:
            return None
        return Plan(primary=first, voters=chosen, non_voters=tuple(extra), acks=log.acks)

    # -------------------------------------------------------------- calls to peers
    def call(
        self,
        node: LasNode,
        to: ReplicaId,
        shard: ShardId,
        asked: Asked,
        *,
        boot: ProcessId | None = None,
    ) -> bool:
        """Ask the core of a peer; False: nothing of that name runs there at all."""
        process = self.peers[to.peer].process if to.peer in self.peers else None
        if process is None or process.id.replica != to or (boot and process.id != boot):
            return False
        delay_ms = self.network.transit_ms(node.name, to.peer)
        if delay_ms is not None:
            self.world.clock.later(delay_ms, self._call_arrives, (process, shard, asked))
        return True

    def _call_arrives(self, call: tuple[Process, ShardId, Asked]) -> None:
        process, shard, asked = call
        if not process.dead:
            self.world.events += 1
            process.take(shard, asked(process))

    def reply_to(self, caller: object, reply: Reply) -> None:
        """The answer of a core travels back."""
        node, process, answered = cast(tuple[LasNode, Process, Callable[[Reply], None]], caller)
        delay_ms = self.network.transit_ms(process.id.peer, node.name)
        if delay_ms is not None and node.alive:
            self.world.clock.later(delay_ms, self._reply_arrives, (node, answered, reply))

    def _reply_arrives(self, arrived: tuple[LasNode, Callable[[Reply], None], Reply]) -> None:
        node, answered, reply = arrived
        if node.alive and node.leading:
            self.world.events += 1
            answered(reply)

    def tell_map(self, node: LasNode, process: Process, entry: Shard, version: int) -> None:
        """Push an entry of the map to a process."""
        delay_ms = self.network.transit_ms(node.name, process.id.peer)
        if delay_ms is not None:
            self.world.clock.later(delay_ms, process.learn, (entry, version))

    # -------------------------------------------------------------- calls from peers
    def _to_leader(self, process: Process, tell: Callable[[LasNode], None]) -> None:
        leaders = self.leaders()
        if not leaders or process.dead:
            return
        node = leaders[int(self.world.random() * len(leaders))]
        delay_ms = self.network.transit_ms(process.id.peer, node.name)
        if delay_ms is not None:
            self.world.clock.later(delay_ms, self._told, (node, tell))

    def _told(self, told: tuple[LasNode, Callable[[LasNode], None]]) -> None:
        node, tell = told
        if node.alive and node.leading:
            self.world.events += 1
            tell(node)

    def report(self, process: Process, report: Report) -> None:
        """See `LasDoor`."""
        self._to_leader(process, lambda node: node.reported(report))

    def holder(self, process: Process, shard: ShardId, epoch: Epoch, *, whole: bool) -> None:
        """See `LasDoor`."""
        mine = process.id.replica
        entry = process.maps.get(shard)
        sealed = () if entry is None else entry.sealed
        if any(each.epoch == epoch and (whole or mine in each.holders) for each in sealed):
            version = process.looked(shard, epoch)
            self._to_leader(
                process, lambda node: node.holder(shard, epoch, mine, whole=whole, version=version)
            )

    def tiered(self, process: Process, report: TierShard) -> None:
        """A primary says what it put into the tier."""
        self._to_leader(process, lambda node: node.command(report, (report.shard, "tier")))

    def register(self, process: Process) -> None:
        """A process announces itself until it is known."""
        if not process.dead and not process.registered:
            self._to_leader(process, lambda node: node.registered(process))
            self.world.clock.later(150, self.register, process)


def _told(command: c.Command, entry: Shard) -> str:
    """A commit in the words of the protocol page."""
    text = f"the map of shard {entry.shard}: {type(command).__name__}"
    text += f"; open {entry.open.epoch} from {entry.open.begin}"
    text += f", primary {entry.open.plan.primary.peer}"
    text += f", voters {' '.join(each.peer for each in entry.open.plan.voters)}"
    if entry.split is not None:
        text += f"; split at {entry.split.end} into {entry.split.children or 'nothing yet'}"
    if entry.prepared is not None:
        text += f"; prepared {entry.prepared.epoch} of {entry.prepared.plan.primary.peer}"
    return text + (f"; fence {entry.fence}" if entry.fence else "")


class RegisterGroup:
    """A linearizable register: a command is committed when it is applied, by whoever leads.

    A node needs a majority of nodes alive and in reach. Several may lead at once, each with an old
    state; what they command finds what it expects, or changes nothing.
    """

    def __init__(self, las: Las) -> None:
        self._las = las
        self._world = las.world

    def start(self) -> None:
        """The first node leads."""
        next(iter(self._las.nodes.values())).leading = True
        self._elect(None)

    def _elect(self, _: None) -> None:
        """If nobody has led for a while, somebody does."""
        self._world.clock.later(120, self._elect, None)
        if not self._las.leaders():
            able = [node for node in self._las.nodes.values() if self._has_majority(node)]
            if able:
                node = self._world.rng.choice(able)
                node.state = self._las.state
                node.leading = True
                self._world.tell(f"{node.name} leads the LAS")

    def _has_majority(self, node: LasNode) -> bool:
        links = self._las.network.links
        reached = sum(
            other is node
            or (
                other.alive
                and not links[node.name, other.name].cut
                and not links[other.name, node.name].cut
            )
            for other in self._las.nodes.values()
        )
        return node.alive and 2 * reached > len(self._las.nodes)

    def coup(self) -> None:
        """Another node leads too; the old one finds out a while later."""
        old = self._las.leaders()
        able = [
            node
            for node in self._las.nodes.values()
            if node not in old and self._has_majority(node)
        ]
        if able:
            node = self._world.rng.choice(able)
            node.leading = True
            self._world.tell(f"{node.name} leads the LAS, while the old leader goes on")
            self._world.clock.later(self._world.rng.choice((50, 300, 900)), self._depose, old)

    def _depose(self, old: list[LasNode]) -> None:
        if any(node not in old for node in self._las.leaders()):
            for node in old:
                if node.leading:
                    node.restart()

    def unsettled(self) -> str:
        """Nothing ever."""
        return ""

    def finished(self) -> None:
        """There is one state only."""

    def crash(self, node: LasNode) -> None:
        """Nothing more than the node itself does."""

    def boot(self, node: LasNode) -> None:
        """It applies what it missed."""
        self._world.clock.later(10, self._catch_up, node)

    def submit(self, node: LasNode, command: c.Command, done: OnResult) -> None:
        """See `Group`."""
        delay_ms = self._las.network.delay_ms()
        self._world.clock.later(delay_ms, self._apply, (node, command, done))

    def _apply(self, submitted: tuple[LasNode, c.Command, OnResult]) -> None:
        node, command, done = submitted
        if not node.alive:
            return
        if not self._has_majority(node):
            self._world.clock.later(NO_OUTCOME_MS, _unknown, (node, done))
            return
        state, result = las_apply.apply(self._las.state, command)
        self._world.events += 1
        self._las.committed(command, state, result)
        rng = self._world.rng
        for other in self._las.nodes.values():
            if other is not node:
                self._world.clock.later(rng.choice(LAG_MS), self._catch_up, other)
        if self._world.draws(self._las.options.loss):
            self._world.clock.later(NO_OUTCOME_MS, _unknown, (node, done))
            self._world.clock.later(rng.choice(LAG_MS), self._catch_up, node)
            return
        delay_ms = self._las.network.delay_ms()
        self._world.clock.later(delay_ms, self._answer, (node, done, result))

    def _answer(self, answer: tuple[LasNode, OnResult, c.Result]) -> None:
        node, done, result = answer
        if node.alive:
            self._catch_up(node)
            done(result)
            node.push()

    def _catch_up(self, node: LasNode) -> None:
        """What is committed is applied, if the node is in reach of the others."""
        if node.alive and self._has_majority(node):
            node.state = self._las.state


def _unknown(given_up: tuple[LasNode, OnResult]) -> None:
    node, done = given_up
    if node.alive:
        done(None)
