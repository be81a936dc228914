"""A group of members on one network: who runs, who is connected, who lost what.

`Host` is a machine: a disk, a clock, and the process on it. `RaftGroup` is what an operator and the
supervisors of the machines do: start, start again, and `las rejoin` where a directory was lost.
"""

import uuid
from collections.abc import Callable
from pathlib import Path

from las.raft.errors import DirectoryEmpty, RaftError
from las.raft.member import FailStop, Step, Timing
from las.raft.store import init_directory, rejoin_directory
from peerd.testing.sim.checkers import BrokenPromise
from peerd.testing.sim.network import Network
from peerd.testing.sim.raft.disk import Gone, SimDisk
from peerd.testing.sim.raft.history import History
from peerd.testing.sim.raft.links import Link
from peerd.testing.sim.raft.process import Process
from peerd.testing.sim.raft.record import Recorder
from peerd.testing.sim.world import World

CLUSTER = "simulation"
DIRECTORY = Path("las")
DOWN_MS = (5, 50, 300, 1_000)
"""How long a process stays away after it ended."""
CLOCK_S_MAX = 10_000.0
"""Monotonic clocks of machines begin somewhere up to here."""

OnStep = Callable[[Process, Step], None]
OnEnd = Callable[[Process], None]


class Host:
    """One machine. It outlives the processes on it."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.disk = SimDisk(world)
        self.directory = DIRECTORY / name
        self.process: Process | None = None
        self.clock_begins_s = world.rng.uniform(0.0, CLOCK_S_MAX)
        self.is_wiped = False
        """The directory was lost, and no process has run on the new one yet."""
        self.is_voting = True
        """Cleared when the directory is lost, until the rejoin is done."""
        self.stays_down = False
        self.cuts_power = False
        """Whether the crash to come, if one is, is a power cut."""


class RaftGroup:
    """See the module."""

    def __init__(
        self,
        world: World,
        network: Network,
        names: tuple[str, ...],
        history: History,
        recorder: Recorder | None = None,
        *,
        on_step: OnStep | None = None,
        on_end: OnEnd | None = None,
    ) -> None:
        """`on_step` is told of each step whose outcomes leave a member, `on_end` of each end."""
        self.world = world
        self.network = network
        self.history = history
        self.cluster = CLUSTER
        self.timing = timing_of(world)
        self.hosts = {name: Host(world, name) for name in names}
        self._recorder = recorder
        self._on_step = on_step
        self._on_end = on_end
        self._cluster_id = str(self._draw_id())
        self._links = {
            (source, target): Link(self, source, target)
            for source in names
            for target in names
            if source != target
        }

    def _draw_id(self) -> uuid.UUID:
        return uuid.UUID(int=self.world.rng.getrandbits(128))

    # ------------------------------------------------------------------ processes
    def start(self) -> None:
        """`las init` on each machine, and all processes run."""
        for host in self.hosts.values():
            init_directory(
                host.directory,
                CLUSTER,
                host.name,
                tuple(self.hosts),
                cluster_id=self._cluster_id,
                disk=host.disk,
                draw_id=self._draw_id,
            )
        for host in self.hosts.values():
            self.boot(host)

    def boot(self, host: Host) -> None:
        """A process starts; where there is no store any more, an operator has it rejoin first."""
        if host.process is not None or host.stays_down:
            return
        try:
            try:
                process = Process(self, host)
            except DirectoryEmpty:
                if not host.is_wiped:
                    raise
                self._rejoin(host)
                process = Process(self, host)
        except Gone:
            self._ended(host, "it is killed while it starts")
            return
        except (OSError, FailStop, RaftError) as error:
            if self.history.finding is not None:
                raise self.history.finding from error
            if not host.disk.has_failed:
                raise BrokenPromise(f"liveness: {host.name} cannot start: {error}") from error
            self._ended(host, f"it cannot start: {error}")
            return
        host.is_wiped = False
        host.process = process
        self._tell(host, f"starts, {process.status.applied_index} entries applied")
        for (source, _), link in self._links.items():
            if source == host.name:
                link.restart()

    def _rejoin(self, host: Host) -> None:
        rejoin_directory(
            host.directory,
            CLUSTER,
            host.name,
            tuple(self.hosts),
            cluster_id=self._cluster_id,
            disk=host.disk,
            draw_id=self._draw_id,
        )

    def crash(self, host: Host, why: str, *, power_cut: bool) -> None:
        """The process ends at once, and comes back."""
        if host.process is not None:
            host.cuts_power = power_cut
            self.end(host, why)

    def end(self, host: Host, why: str) -> None:
        """The process is gone."""
        process = host.process
        if process is None:
            return
        host.process = None
        process.end()
        for (_, target), link in self._links.items():
            if target == host.name:
                link.target_ended()
        if self._on_end is not None:
            self._on_end(process)
        self._ended(host, why)

    def _ended(self, host: Host, why: str) -> None:
        world = self.world
        world.events += 1
        power_cut, host.cuts_power = host.cuts_power, False
        host.disk.end_process(power_cut=power_cut)
        self._tell(host, f"ends{' in a power cut' if power_cut else ''}: {why}")
        world.clock.later(world.rng.choice(DOWN_MS), self.boot, host)

    def _tell(self, host: Host, what: str) -> None:
        self.world.tell(f"{host.name} {what}")
        if self._recorder is not None:
            self._recorder.changed(host.name, what)

    def may_wipe(self) -> bool:
        """One lost directory at a time is what a group of three or more survives."""
        return len(self.hosts) >= 3 and all(other.is_voting for other in self.hosts.values())

    def wipe(self, host: Host) -> None:
        """The data directory is gone."""
        host.is_voting = False
        host.is_wiped = True
        self.crash(host, "its data directory is lost", power_cut=False)
        host.disk.lose_all()

    # ------------------------------------------------------------------ what members do
    def process(self, name: str) -> Process | None:
        """What runs on a machine."""
        return self.hosts[name].process

    def stepped(self, process: Process, step: Step, position: int) -> None:
        """What a step set free leaves the member, whose machine was at `position` then."""
        self.history.stepped(process.name, position, step)
        host = process.host
        if step.status.voting and not host.is_wiped:
            host.is_voting = True
        for peer, frame in step.frames:
            self._links[process.name, peer].put(frame.SerializeToString(deterministic=True))
        if self._recorder is not None:
            self._recorder.stepped(process.name, step)
        if self._on_step is not None:
            self._on_step(process, step)

    def unsettled(self) -> str:
        """What members still have to do, in words; empty if nothing is."""
        for host in self.hosts.values():
            process = host.process
            if process is None:
                return f"{host.name} does not run"
            if not process.status.voting:
                return f"{host.name} does not vote"
            if process.machine.position < len(self.history.agreed):
                return f"{host.name} has {process.machine.position} commands"
        return ""

    def compare(self) -> None:
        """In the end all members have everything, and are equal."""
        for host in self.hosts.values():
            if host.process is not None:
                machine = host.process.machine
                self.history.compare(host.name, machine.position, machine.state)

    def refused(self, name: str, error: RaftError) -> None:
        """A member would not talk to another one: a Hello may be of a store that is no more."""
        self.world.tell(f"{name} refuses: {error}")


def timing_of(world: World) -> Timing:
    """The group's times; an election takes some heartbeats, as in production."""
    options = world.options
    heartbeat_s = options.las_heartbeat_ms / 1_000
    return Timing(
        heartbeat_s=heartbeat_s,
        election_timeout_s=(6 * heartbeat_s, 12 * heartbeat_s),
        leader_fallback_s=10 * heartbeat_s,
        compaction_entries=options.las_compaction_entries,
        compaction_interval_s=3_600.0,
    )
