"""Clients of a LAS group that is alone: they give commands until they are answered, and read.

A client has one command at a time, and gives it again with the same id until there is an outcome:
to whom it is sent, or to anybody. Now and then it loses patience and goes on with the next one.
"""

from collections.abc import Callable

from las.core import commands as c
from las.core.commands import command_to_json
from las.raft.errors import NotLeader, OutcomeUnknown, RaftError
from las.raft.member import Outcome
from las.raft.sessions import Envelope
from peerd.core.ids import BootId, Epoch, NodeName, ShardId, StoreId
from peerd.testing.sim.checkers.base import broken
from peerd.testing.sim.raft.group import RaftGroup
from peerd.testing.sim.world import World

PATIENCE_MS = (150, 600, 1_800)
"""How long a client waits for an outcome before it asks again."""
AGAIN_MS = (1, 20, 100)
"""Pause before it asks again."""
GIVE_UP = 0.2
"""Share of unanswered attempts after which a client goes on with another command."""
NODES = 5
"""Names of peers that commands speak of: few, so that they meet each other's."""


class Client:
    """One client. `waits_for` is the command that it wants answered, empty if there is none."""

    def __init__(self, clients: "Clients", number: int) -> None:
        self.name = f"client-{number}"
        self.waits_for = ""
        self.reads = False
        self._clients = clients
        self._world = clients.world
        self._group = clients.group
        self._sequence = 0
        self._above = 0
        self._attempt = 0
        self._all_refused = True
        self._believes_in: str | None = None

    # ------------------------------------------------------------------ commands
    def command(self, _: None = None) -> None:
        """Begin with the next command, unless the last one is still open."""
        if self.waits_for or self.reads:
            return
        self._sequence += 1
        self.waits_for = self._draw()
        self._group.history.given(self.waits_for, self.name, self._sequence)
        self._above = self._group.history.shown
        self._all_refused = True
        self._world.events += 1
        self._try()

    def _draw(self) -> str:
        """A command whose text no other has."""
        rng, mark = self._world.rng, f"{self.name}-{self._sequence}"
        node = NodeName(f"peer-{rng.randrange(NODES)}")
        kind = rng.choice(("register", "register", "event", "event", "log", "fence"))
        command: c.Command
        if kind == "register":
            command = c.RegisterNode(
                name=node,
                store=StoreId(f"store of {node}"),
                boot=BootId(mark),
                address=f"{node}:7400",
                labels=(("host", node),),
            )
        elif kind == "event":
            command = c.RecordEvent(node=node, kind="note", text=mark, timestamp_ms=1)
        elif kind == "log":
            nodes = tuple(NodeName(f"peer-{number}") for number in range(NODES))
            command = c.CreateLog(name=mark, copies=1, acks=1, nodes=nodes, rows=((0,),))
        else:
            command = c.FenceSegment(shard=ShardId(1), epoch=Epoch(rng.randint(1, 3)), why=mark)
        return command_to_json(command)

    def _try(self, _: None = None) -> None:
        self._attempt += 1
        attempt, name = self._attempt, self._whom()
        envelope = Envelope(client=self.name, sequence=self._sequence, body=self.waits_for)
        refused = self._all_refused
        self._all_refused = False

        def told(outcome: Outcome) -> None:
            if attempt == self._attempt:
                self._all_refused = refused and _is_refusal(outcome)
                self._told(outcome)

        def ask() -> None:
            process = self._group.process(name)
            if process is not None:
                process.submit(envelope, lambda outcome: self._clients.carry(told, outcome))

        self._clients.carry(lambda _: ask(), None)
        patience_ms = self._world.rng.choice(PATIENCE_MS)
        self._world.clock.later(patience_ms, self._tired, attempt)

    def _tired(self, attempt: int) -> None:
        if attempt == self._attempt:
            self._told(OutcomeUnknown("no answer"))

    def _told(self, outcome: Outcome) -> None:
        self._attempt += 1
        if isinstance(outcome, str):
            self._group.history.acknowledged(self.waits_for, outcome, self._above)
            self.waits_for = ""
            return
        self._judge(outcome)
        if self._world.draws(GIVE_UP):
            if self._all_refused:
                self._group.history.refused(self.waits_for)
            self.waits_for = ""
            return
        self._world.clock.later(self._world.rng.choice(AGAIN_MS), self._again, self._attempt)

    def _again(self, attempt: int) -> None:
        if attempt == self._attempt:
            self._try()

    def _judge(self, outcome: Outcome) -> None:
        """Learn from an error. What only several commands at a time could give is a finding."""
        if isinstance(outcome, NotLeader):
            self._believes_in = outcome.leader
        elif isinstance(outcome, OutcomeUnknown):
            self._believes_in = None
        else:
            broken("exactly once", f"{self.name} was answered {outcome!r} for {self.waits_for}")

    def _whom(self) -> str:
        if self._believes_in is not None and self._world.rng.random() < 0.9:
            return self._believes_in
        return self._world.rng.choice(list(self._group.hosts))

    # ------------------------------------------------------------------ reads
    def read(self, _: None = None) -> None:
        """Read the state of whoever leads, once."""
        if self.waits_for or self.reads:
            return
        self.reads = True
        self._world.events += 1
        self._attempt += 1
        attempt, name, at_least = self._attempt, self._whom(), self._group.history.shown

        def told(answer: tuple[Outcome, int]) -> None:
            outcome, position = answer
            if outcome is None:
                self._group.history.read(name, position, at_least)
            if attempt == self._attempt:
                self.reads = False
                self._attempt += 1
                if outcome is not None:
                    self._judge(outcome)

        def ask() -> None:
            process = self._group.process(name)
            if process is not None:
                process.barrier(
                    lambda outcome: self._clients.carry(told, (outcome, process.machine.position))
                )

        self._clients.carry(lambda _: ask(), None)
        self._world.clock.later(self._world.rng.choice(PATIENCE_MS), self._read_tired, attempt)

    def _read_tired(self, attempt: int) -> None:
        if attempt == self._attempt:
            self.reads = False
            self._believes_in = None


class Clients:
    """All clients of a run."""

    def __init__(self, world: World, group: RaftGroup) -> None:
        self.world = world
        self.group = group
        self.all = [Client(self, number) for number in range(world.options.producers)]
        self._stopped = False

    def start(self) -> None:
        """From now on commands and reads come at random times."""
        self._later(self.world.options.appends_per_s, Client.command)
        self._later(self.world.options.reads_per_s, Client.read)

    def stop(self) -> None:
        """No new ones; what is open goes on."""
        self._stopped = True

    def _later(self, rate: float, begin: Callable[[Client], None]) -> None:
        delay_ms = int(self.world.rng.expovariate(rate) * 1_000) + 1
        self.world.clock.later(delay_ms, self._begin, (rate, begin))

    def _begin(self, due: tuple[float, Callable[[Client], None]]) -> None:
        if not self._stopped:
            due[1](self.world.rng.choice(self.all))
            self._later(*due)

    def carry(self, then: Callable[..., None], what: object) -> None:
        """Between a client and a member, as anything on a network."""
        delay_ms = self.group.network.client_transit_ms()
        if delay_ms is not None:
            self.world.clock.later(delay_ms, then, what)

    def probe(self) -> list[Client]:
        """New clients with one command each."""
        first = len(self.all)
        probes = [Client(self, first + number) for number in range(2)]
        self.all.extend(probes)
        for client in probes:
            client.command()
        return probes


def _is_refusal(outcome: Outcome) -> bool:
    return isinstance(outcome, RaftError) and not isinstance(outcome, OutcomeUnknown)
