"""The real Raft as the consensus of a simulated cluster: what `las.daemon` does between the two.

A node acts from what its member has applied. It leads from a barrier after its election on, until
its member says that it leads no more (`las.daemon.leader`), and then forgets all that is not
committed. What is committed is what any member applies first. As in the daemon a new group begins
at the first command level, and whoever leads raises it (`las.daemon.term`).
"""

from typing import TYPE_CHECKING

from las.core import apply as las_apply
from las.core import commands as c
from las.core.commands import command_from_json, command_to_json, result_from_json
from las.core.levels import COMMAND_LEVEL
from las.core.state import ClusterState
from las.raft.member import Outcome, Step
from las.raft.sessions import Envelope
from peerd.core.ids import NodeName
from peerd.testing.sim.checkers import BrokenPromise
from peerd.testing.sim.las_node import LasNode, OnResult
from peerd.testing.sim.raft.group import RaftGroup
from peerd.testing.sim.raft.history import Agreed, History
from peerd.testing.sim.raft.machine import CLUSTER_ID
from peerd.testing.sim.raft.process import Process
from peerd.testing.sim.raft.record import OnMember, Recorder

if TYPE_CHECKING:
    from peerd.testing.sim.las import Las

COMMAND_TIMEOUT_MS = 1_800
"""After this a command has no outcome, as in production."""
BARRIER_AGAIN_MS = 100
"""A leader whose barrier failed tries again after this."""
COUP_MS = (300, 900, 2_000)


class RealRaft:
    """See the module; `sim.las.Group`."""

    def __init__(self, las: "Las", on_member: OnMember | None) -> None:
        self._las = las
        self._world = las.world
        las.state = ClusterState(cluster_id=CLUSTER_ID)
        for node in las.nodes.values():
            node.state = las.state
        self.history = History(unique=False, on_agreed=self._agreed)
        self.raft = RaftGroup(
            las.world,
            las.network,
            tuple(las.nodes),
            self.history,
            Recorder(las.world, on_member) if on_member is not None else None,
            on_step=self._stepped,
            on_end=self._ended,
        )
        self._sequence = 0
        self._confirming: dict[str, Process] = {}
        """Members whose leadership a barrier is under way for."""
        self._terms: dict[str, int] = {}
        """The term in which a node leads."""

    # ------------------------------------------------------------------ sim.las.Group
    def start(self) -> None:
        """See `Group`."""
        self.raft.start()

    def crash(self, node: LasNode) -> None:
        """The process ends, and stays away until `boot`."""
        host = self.raft.hosts[node.name]
        host.stays_down = True
        power_cut = self._world.rng.random() < self._world.options.las_power_cuts
        self.raft.crash(host, "it is killed", power_cut=power_cut)

    def boot(self, node: LasNode) -> None:
        """See `Group`."""
        host = self.raft.hosts[node.name]
        host.stays_down = False
        self.raft.boot(host)

    def coup(self) -> None:
        """Who leads stops for a while, or is cut off from the other nodes, and goes on leading."""
        leaders = self._las.leaders()
        if not leaders:
            return
        name = leaders[0].name
        for_ms = self._world.rng.choice(COUP_MS)
        process = self.raft.process(name)
        if process is not None and self._world.rng.random() < 0.5:
            self._world.tell(f"fault: {name} stops for {for_ms} ms")
            process.paused_until = self._world.clock.now + for_ms
            return
        self._world.tell(f"fault: {name} is cut off from the other LAS nodes for {for_ms} ms")
        network, others = self._las.network, [other for other in self._las.nodes if other != name]
        links = [network.links[pair] for other in others for pair in ((name, other), (other, name))]
        network.cut(links)
        self._world.clock.later(for_ms, network.mend, links)

    def submit(self, node: LasNode, command: c.Command, done: OnResult) -> None:
        """See `Group`."""
        process = self.raft.process(node.name)
        if process is None:
            return
        self._sequence += 1
        client = f"{node.name} since {process.began_at}"
        envelope = Envelope(client=client, sequence=self._sequence, body=command_to_json(command))
        is_open = True

        def told(outcome: Outcome) -> None:
            nonlocal is_open
            if not is_open or process.is_over:
                return
            is_open = False
            done(result_from_json(outcome) if isinstance(outcome, str) else None)
            if isinstance(outcome, str):
                node.push()

        process.submit(envelope, told)
        self._world.clock.later(COMMAND_TIMEOUT_MS, told, None)

    def unsettled(self) -> str:
        """See `Group`."""
        return self.raft.unsettled()

    def finished(self) -> None:
        """See `Group`."""
        self.raft.compare()

    # ------------------------------------------------------------------ what members do
    def _agreed(self, agreed: Agreed) -> None:
        """Some member has applied a command first: it is committed."""
        command = command_from_json(agreed.command)
        state, result = las_apply.apply(self._las.state, command)
        if result != result_from_json(agreed.result):
            raise BrokenPromise(f"one order: {agreed.command} came to {agreed.result}")
        agreed.state = state
        self._las.committed(command, state, result)

    def _stepped(self, process: Process, step: Step) -> None:
        node, status = self._las.nodes[NodeName(process.name)], step.status
        node.alive = True
        node.state = process.machine.state
        if self._terms.get(node.name, status.term) != status.term or not status.is_leader:
            if node.leading:
                self._world.tell(f"{node.name} leads the LAS no more")
                node.restart()
            self._terms.pop(node.name, None)
        if status.is_leader and not node.leading:
            self._confirm(process, status.term)

    def _confirm(self, process: Process, term: int) -> None:
        """A barrier: only then the first look shows all that was ever acknowledged."""
        name = process.name
        if self._confirming.get(name) is process:
            return
        self._confirming[name] = process

        def confirmed(outcome: Outcome) -> None:
            status = process.status
            if outcome is not None or not status.is_leader or status.term != term:
                self._world.clock.later(BARRIER_AGAIN_MS, again, None)
                return
            self._confirming.pop(name, None)
            node = self._las.nodes[NodeName(name)]
            node.leading = True
            self._terms[name] = term
            self._world.tell(f"{name} leads the LAS in term {term}")
            if node.state.command_level < COMMAND_LEVEL:
                self.submit(node, c.RaiseCommandLevel(level=COMMAND_LEVEL), lambda _: None)

        def again(_: None) -> None:
            if self._confirming.get(name) is process:
                self._confirming.pop(name)

        process.barrier(confirmed)

    def _ended(self, process: Process) -> None:
        node = self._las.nodes[NodeName(process.name)]
        node.alive = False
        node.restart()
        self._confirming.pop(process.name, None)
        self._terms.pop(process.name, None)
