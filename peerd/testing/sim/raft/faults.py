"""What goes wrong in a LAS group: `KINDS` has one entry for each kind of fault, as `sim.faults`.

A directory is lost only while all others vote: a group is promised to survive one at a time.
"""

from collections.abc import Callable, Mapping
from typing import Self

from peerd.testing.sim.network_faults import NetworkFaults
from peerd.testing.sim.raft.group import Host, RaftGroup
from peerd.testing.sim.striker import Striker
from peerd.testing.sim.world import World

FUSE_EFFECTS_MAX = 10
"""A crash in the middle of a step comes at most so many disk operations later."""


class RaftFaults(Striker):
    """Strikes at random until the world is not troubled any more."""

    def __init__(self, world: World, group: RaftGroup, network: NetworkFaults) -> None:
        self.network = network
        super().__init__(world)
        self._group = group

    def start(self, kinds: Mapping[str, Callable[[Self], None]]) -> None:
        """From now on."""
        super().start(kinds)
        options = self._world.options
        for _ in range(options.las_lost_directories):
            at_ms = self._rng.randint(options.trouble_ms // 4, options.trouble_ms)
            self._world.clock.later(at_ms, self._lose, None)

    def _some_host(self) -> Host:
        """Anybody; the leader as often as all others together, since there most is at stake."""
        hosts = list(self._group.hosts.values())
        leaders = [host for host in hosts if host.process and host.process.status.is_leader]
        return self._rng.choice(leaders if leaders and self._rng.random() < 0.5 else hosts)

    def crash(self) -> None:
        """A process ends, now or between two disk operations to come."""
        options, host = self._world.options, self._some_host()
        power_cut = self._rng.random() < options.las_power_cuts
        if host.process is None:
            return
        if self._rng.random() < options.boundary_crashes:
            host.cuts_power = power_cut
            host.disk.fuse = self._rng.randrange(FUSE_EFFECTS_MAX)
        else:
            self._group.crash(host, "it is killed", power_cut=power_cut)

    def blackout(self) -> None:
        """All machines lose power at once."""
        for host in self._group.hosts.values():
            self._group.crash(host, "all lose power", power_cut=True)

    def pause(self) -> None:
        """A process stops, and goes on later as if nothing had happened."""
        host = self._some_host()
        if host.process is not None:
            for_ms = self._rng.choice((30, 200, 800, 2_000))
            self._tell(f"{host.name} stops for {for_ms} ms")
            host.process.paused_until = self._world.clock.now + for_ms

    def slow_disk(self) -> None:
        """A disk takes long."""
        host = self._some_host()
        self._tell(f"the disk of {host.name} is slow")
        host.disk.slow = True
        self._world.clock.later(self._rng.choice((200, 1_000, 3_000)), self._fast_disk, host)

    def _fast_disk(self, host: Host) -> None:
        host.disk.slow = False

    def failed_disk(self) -> None:
        """The next sync or write fails."""
        host = self._some_host()
        host.disk.fails_next = self._rng.choice(("sync", "sync", "write"))
        self._tell(f"the next {host.disk.fails_next} of {host.name} fails")

    def _lose(self, _: None) -> None:
        host = self._some_host()
        if self._world.troubled and not self.quiet and self._group.may_wipe():
            self._world.faults += 1
            self._group.wipe(host)

    def heal(self) -> None:
        """Everything is well from now on; a lost directory has to be filled by the others."""
        for host in self._group.hosts.values():
            host.disk.fuse = None
            host.disk.fails_next = ""
            host.disk.slow = False
            host.cuts_power = False


ALONE: dict[str, Callable[[RaftFaults], None]] = {
    "partitions_per_s": lambda faults: faults.network.partition(),
    "slow_links_per_s": lambda faults: faults.network.slow_link(),
}
"""What else strikes a group that is alone; in a whole cluster `sim.faults` does this."""
KINDS: dict[str, Callable[[RaftFaults], None]] = {
    "las_crashes_per_s": RaftFaults.crash,
    "las_blackouts_per_s": RaftFaults.blackout,
    "las_pauses_per_s": RaftFaults.pause,
    "las_slow_disks_per_s": RaftFaults.slow_disk,
    "las_failed_disks_per_s": RaftFaults.failed_disk,
}
