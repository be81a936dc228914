"""A run of a LAS group alone: members, clients, trouble; then everything heals, and is looked at.

First the trouble, in which `history` looks at each command, vote and answer. After the healing
progress is demanded: every client is answered, new commands are taken, every member votes again and
has everything, and all are equal.
"""

from peerd.core.ids import NodeName
from peerd.testing.sim.checkers import BrokenPromise
from peerd.testing.sim.network import Network
from peerd.testing.sim.network_faults import NetworkFaults
from peerd.testing.sim.options import Options
from peerd.testing.sim.raft.clients import Clients
from peerd.testing.sim.raft.faults import ALONE, KINDS, RaftFaults
from peerd.testing.sim.raft.group import RaftGroup
from peerd.testing.sim.raft.history import History
from peerd.testing.sim.raft.record import OnMember, Recorder
from peerd.testing.sim.raft.seams import quiet
from peerd.testing.sim.world import OnStory, World


class GroupSimulation:
    """One run; `run` raises `BrokenPromise` at the first thing that must not be."""

    def __init__(
        self,
        seed: int,
        options: Options,
        on_record: OnMember | None = None,
        on_story: OnStory | None = None,
    ) -> None:
        self.world = world = World(seed, options, on_story=on_story)
        self.options = options
        self.clock = world.clock
        names = tuple(NodeName(f"las-{number + 1}") for number in range(options.las_nodes))
        self.network = Network(world, {}, names)
        self.history = History(unique=True)
        recorder = Recorder(world, on_record) if on_record is not None else None
        self.group = RaftGroup(world, self.network, names, self.history, recorder)
        self.clients = Clients(world, self.group)
        self.faults = RaftFaults(world, self.group, NetworkFaults(world, self.network))

    @property
    def events(self) -> int:
        """Deliveries, disk completions, client operations and crashes so far."""
        return self.world.events

    def run(self) -> None:
        """Break things, heal them, check."""
        with quiet():
            self.group.start()
            self.clients.start()
            self.faults.start(KINDS | ALONE)
            self.clock.run(self.options.trouble_ms)
            self._heal()
            self._demand_progress()

    def _heal(self) -> None:
        world = self.world
        world.tell("everything heals")
        world.troubled = False
        self.network.heal()
        self.faults.heal()
        for host in self.group.hosts.values():
            self.group.boot(host)

    def _demand_progress(self) -> None:
        self.clients.stop()
        self.clients.probe()
        until = self.clock.now + self.options.settle_ms
        self.clock.run(until, lambda: not self.unsettled())
        if still := self.unsettled():
            raise BrokenPromise(f"liveness: {still} after {self.options.settle_ms} ms")
        self.group.compare()
        self.world.tell(f"all has settled; {len(self.history.agreed)} commands were applied")

    def unsettled(self) -> str:
        """What is still to be done, in words; empty if nothing is."""
        for client in self.clients.all:
            if client.waits_for:
                return f"{client.name} waits for {client.waits_for}"
        return self.group.unsettled()
