"""What goes wrong, and when: each kind of fault strikes at its own rate until all is healed.

Only what the protocol must survive (§9) is done: a directory is lost, or a copy rots, only while
what it holds can be had elsewhere, as §5 promises. But in runs with gaps a quorum is lost.

`KINDS` has one entry for each kind of fault: the option that is its rate, and what it does.
"""

from collections.abc import Callable, Mapping
from typing import Self

from peerd.core.ids import ShardId
from peerd.core.shard_map import Segment
from peerd.testing.sim.fleet import Fleet
from peerd.testing.sim.las import Las
from peerd.testing.sim.network import Network
from peerd.testing.sim.network_faults import NetworkFaults
from peerd.testing.sim.process import Peer
from peerd.testing.sim.striker import Striker
from peerd.testing.sim.world import World

FUSE_EFFECTS_MAX = 12
"""A boundary crash comes at most so many effects later."""


class Faults(Striker):
    """Strikes at random until the world is not troubled any more."""

    def __init__(self, world: World, fleet: Fleet, network: Network, las: Las) -> None:
        super().__init__(world)
        self._fleet = fleet
        self._network = network
        self._las = las
        self.network = NetworkFaults(world, network)

    def start(self, kinds: Mapping[str, Callable[[Self], None]]) -> None:
        """From now on."""
        super().start(kinds)
        options = self._world.options
        for _ in range(options.lost_stores):
            at_ms = self._rng.randint(options.trouble_ms // 4, options.trouble_ms)
            self._world.clock.later(at_ms, self._lose, None)
        for _ in range(options.gaps):
            at_ms = self._rng.randint(options.trouble_ms // 4, options.trouble_ms * 3 // 4)
            self._world.clock.later(at_ms, self._lose_quorum, None)

    def _some_peer(self) -> Peer:
        return self._rng.choice(list(self._fleet.peers.values()))

    # -------------------------------------------------------------- processes
    def crash(self) -> None:
        """A process ends, now or between two effects of a step to come."""
        peer = self._some_peer()
        if peer.process is None:
            return
        if self._rng.random() < self._world.options.boundary_crashes:
            peer.process.fuse = self._rng.randrange(FUSE_EFFECTS_MAX)
        else:
            self._fleet.ended(peer, "it is killed")

    def pause(self) -> None:
        """A process stops, and goes on later as if nothing had happened."""
        peer = self._some_peer()
        if peer.process is not None:
            for_ms = self._rng.choice((30, 200, 800, 2_000))
            self._tell(f"{peer.name} stops for {for_ms} ms")
            peer.process.pause(self._world.clock.now + for_ms)

    def jump_clock(self) -> None:
        """A wall clock is set, or a monotonic one jumps ahead."""
        peer = self._some_peer()
        if peer.process is not None:
            wall_ms = self._rng.choice((-60_000, -500, 500, 60_000))
            ahead_ms = self._rng.choice((0, 0, 100, 3_000))
            self._tell(f"the clocks of {peer.name} jump by {wall_ms} and {ahead_ms} ms")
            peer.process.jump(wall_ms, ahead_ms)

    def _lose(self, _: None) -> None:
        peer = self._some_peer()
        if not self.quiet and self._world.troubled and self._may_lose(peer):
            self._world.faults += 1
            self._fleet.lose(peer)

    def _lose_quorum(self, _: None) -> None:
        """So many voters of an open segment lose their directories that a fence of it lacks
        answers, while each sealed segment keeps a holder.
        """
        shards = self._las.state.shards
        shard = shards[self._rng.choice(sorted(shards))].shard
        alive = {peer.replica for peer in self._fleet.peers.values() if not peer.lost}
        voters = sorted(alive.intersection(shard.open.plan.voters))
        if len(voters) < shard.open.plan.acks:
            return
        gone = set(self._rng.sample(voters, shard.open.plan.acks))
        for entry in shards.values():
            if any(not alive.intersection(each.holders) - gone for each in entry.shard.sealed):
                return
        self._world.faults += 1
        for replica in sorted(gone):
            self._fleet.lose(self._fleet.peers[replica.peer])

    def _may_lose(self, peer: Peer) -> bool:
        """§5: "a batch survives the loss of any `acks` − 1 of the stores that had it"."""
        if peer.lost or self._world.options.bit_flips_per_s:
            return False
        able = [each for each in self._fleet.peers.values() if not each.lost and each is not peer]
        if len(able) < self._world.options.copies:
            return False
        gone = {each.replica for each in self._fleet.peers.values() if each.lost}
        gone.add(peer.replica)
        for entry in self._las.state.shards.values():
            shard = entry.shard
            prepared = (shard.prepared,) if shard.prepared is not None else ()
            for segment in (shard.open, *prepared):
                if len(gone.intersection(segment.plan.voters)) >= segment.plan.acks:
                    return False
            for segment in shard.sealed:
                if len(set(segment.holders) - gone) < 1:
                    return False
        return True

    # -------------------------------------------------------------- disks
    def slow_disk(self) -> None:
        """A disk takes long."""
        peer = self._some_peer()
        self._tell(f"the disk of {peer.name} is slow")
        peer.disk.slow_until = self._world.clock.now + self._rng.choice((200, 1_000, 3_000))

    def hung_disk(self) -> None:
        """A disk does nothing at all."""
        peer = self._some_peer()
        self._tell(f"the disk of {peer.name} hangs")
        peer.disk.hung_until = self._world.clock.now + self._rng.choice((100, 600, 3_000))

    def full_disk(self) -> None:
        """A disk reaches its reserve: appends are refused, promises have room."""
        peer = self._some_peer()
        self._tell(f"the disk of {peer.name} reaches its reserve")
        peer.disk.full = True
        self._world.clock.later(self._rng.choice((100, 800)), self._free, peer)

    def _free(self, peer: Peer) -> None:
        peer.disk.full = False

    def failed_disk(self) -> None:
        """The next fsync fails."""
        peer = self._some_peer()
        if peer.process is not None:
            self._tell(f"the next fsync of {peer.name} fails")
            peer.disk.fails_next = True

    def bit_flip(self) -> None:
        """A stored batch rots, if another store has it whole."""
        peer = self._some_peer()
        shard = self._rng.choice(sorted(peer.disk.shards))
        store = peer.disk.shards[shard]
        if peer.lost or not store.batches:
            return
        epoch = self._rng.choice(sorted(store.batches))
        content = store.batches[epoch]
        if not content:
            return
        base = self._rng.choice(list(content))
        segment = self._sealed(shard, epoch)
        if segment is None or segment.known_commit != segment.end:
            return  # of a kept tail fewer copies may be there than are needed
        others = [
            other.disk.shards[shard]
            for other in self._fleet.peers.values()
            if other is not peer and not other.lost and other.replica in segment.holders
        ]
        sound = [each for each in others if base in each.batches.get(epoch, {})]
        sound = [each for each in sound if not each.damaged]
        # The sound one may be let go unread, if two others are left: one of them is sound, then.
        enough = len(others) if self._world.options.releases_per_s else 1
        if sound and len(sound) >= enough:
            self._tell(f"a bit of {peer.name}'s copy of offset {base}, epoch {epoch}, flips")
            store.damaged.add((epoch, base))

    def _sealed(self, shard: ShardId, epoch: int) -> Segment | None:
        entry = self._las.state.shards[shard].shard
        return next((each for each in entry.sealed if each.epoch == epoch), None)

    # -------------------------------------------------------------- the LAS
    def crash_las(self) -> None:
        """A LAS node ends, and comes back."""
        node = self._rng.choice(list(self._las.nodes.values()))
        self._tell(f"{node.name} ends")
        self._las.crash(node)
        self._world.clock.later(self._rng.choice((50, 300, 1_000)), self._las.boot, node)

    def coup(self) -> None:
        """Somebody else leads the LAS."""
        self._las.group.coup()

    # -------------------------------------------------------------- the end
    def heal(self) -> None:
        """Everything is well from now on; directories that are lost stay lost."""
        self._world.troubled = False
        self._network.heal()
        now = self._world.clock.now
        for peer in self._fleet.peers.values():
            disk = peer.disk
            disk.full = disk.fails_next = False
            disk.slow_until = 0
            disk.hung_until = min(disk.hung_until, now + 1)
            if peer.process is not None:
                peer.process.fuse = None
            self._fleet.boot(peer)
        for node in self._las.nodes.values():
            self._las.boot(node)


KINDS: dict[str, Callable[[Faults], None]] = {
    "crashes_per_s": Faults.crash,
    "pauses_per_s": Faults.pause,
    "clock_jumps_per_s": Faults.jump_clock,
    "partitions_per_s": lambda faults: faults.network.partition(),
    "slow_links_per_s": lambda faults: faults.network.slow_link(),
    "slow_disks_per_s": Faults.slow_disk,
    "hung_disks_per_s": Faults.hung_disk,
    "full_disks_per_s": Faults.full_disk,
    "failed_disks_per_s": Faults.failed_disk,
    "bit_flips_per_s": Faults.bit_flip,
    "las_crashes_per_s": Faults.crash_las,
    "las_coups_per_s": Faults.coup,
}
