"""The peers of a run: processes start, end and start again; directories are lost."""

from peerd.core.ids import NodeName, ShardId
from peerd.core.shard_map import Shard
from peerd.testing import trace
from peerd.testing.sim.las import Las
from peerd.testing.sim.network import Network
from peerd.testing.sim.process import Peer, Process
from peerd.testing.sim.tier import SimTier
from peerd.testing.sim.world import World

NAMES = "abcdefghijkl"
DOWN_MS = (5, 50, 300, 1_000)
"""How long a process stays away after a crash."""


class Fleet:
    """All peers, and what may happen to their processes."""

    def __init__(
        self, world: World, las: Las, network: Network, peers: dict[NodeName, Peer]
    ) -> None:
        self.peers = peers
        self._world = world
        self._las = las
        self._network = network

    def boot(self, peer: Peer) -> None:
        """A process starts on what the directory has, is reached by the others, and registers."""
        if peer.lost or peer.process is not None:
            return
        world = self._world
        process = Process(world, peer, self.peers, self._network, self._las, self.ended)
        peer.process = process
        peer.silent_since = None
        if world.has_listener:
            world.tell(f"{peer.name} starts, its process is {process.id.boot}")
        process.start()
        for link in peer.links.values():
            self._network.break_stream(link)
            if link.receiver is not None:
                self._network.break_stream(link.receiver.links[peer.name])
        world.clock.later(5, self._las.register, process)

    def ended(self, peer: Peer, why: str) -> None:
        """A process ends by itself, and comes back."""
        self.kill(peer, why)
        self.boot_later(peer)

    def kill(self, peer: Peer, why: str) -> None:
        """The process is gone at once."""
        process = peer.process
        if process is None:
            return
        world = self._world
        world.events += 1
        world.tell(f"{peer.name} ends: {why}")
        process.end()
        peer.process = None
        peer.disk.crash()
        peer.silent_since = world.clock.now
        for link in peer.links.values():
            self._network.break_stream(link)
            if link.receiver is not None:
                self._network.break_stream(link.receiver.links[peer.name])

    def boot_later(self, peer: Peer) -> None:
        """It starts again after a while."""
        self._world.clock.later(self._world.rng.choice(DOWN_MS), self.boot, peer)

    def lose(self, peer: Peer) -> None:
        """A data directory is gone for good, and its process with it."""
        self.kill(peer, "its data directory is lost")
        peer.lost = True
        for shard, store in peer.disk.shards.items():
            self._world.checks[shard].book.lost.add(id(store))
        if self._world.on_record is not None:
            self._world.on_record(trace.StoreLost(self._world.clock.now, peer.replica))

    def map_of(self, shard: ShardId) -> Shard:
        """The committed entry of a shard."""
        return self._las.state.shards[shard].shard

    @property
    def tier(self) -> SimTier:
        """The object store of the run."""
        return self._las.tier

    def alive(self) -> list[Peer]:
        """Peers on which a process runs."""
        return [peer for peer in self.peers.values() if peer.process is not None]
