"""One run: a whole cluster in one thread, from one seed.

First the trouble: faults of all kinds while clients append and read, and every promise that can be
broken at a moment (G1 to G8, G10, G12) is looked at in that moment. Then everything heals, and
progress is demanded (G11): what clients want gets done, each shard takes new appends, no change of
the map stands half done. In the end the stores are held against all that was shown.

In between there may be a quiet time without any LAS: each shard whose primary and `acks` voters
live must go on (G9).
"""

from peerd.core.ids import FIRST_OFFSET, NO_EPOCH, NodeName, Offset, ShardId
from peerd.core.shard_map import Segment, stable_end
from peerd.testing.sim.checkers import BrokenPromise, Checks
from peerd.testing.sim.clients import Clients, Producer
from peerd.testing.sim.disk import Disk
from peerd.testing.sim.faults import KINDS, Faults
from peerd.testing.sim.fleet import NAMES, Fleet
from peerd.testing.sim.las import Las
from peerd.testing.sim.network import Network
from peerd.testing.sim.options import Options
from peerd.testing.sim.process import Peer
from peerd.testing.sim.raft.faults import KINDS as RAFT_KINDS
from peerd.testing.sim.raft.faults import RaftFaults
from peerd.testing.sim.raft.las import RealRaft
from peerd.testing.sim.raft.record import OnMember
from peerd.testing.sim.raft.seams import quiet
from peerd.testing.sim.splits import Splits
from peerd.testing.sim.world import OnStory, World
from peerd.testing.trace import OnRecord

START_MS_MAX = 5_000
"""Until all have registered, and then until the log is created."""
ELECTED_MS_MAX = 20_000
"""The same where somebody has to be elected first, on a network with losses."""
PROBES = 2
"""Appends that each shard must take after the healing."""
READ_AGAIN_MS = 1_000
"""Between two reads of a log whose end is not readable yet."""
LOG = "log"


class Simulation:
    """One run; see the module. `run` raises `BrokenPromise` at the first thing that must not be."""

    def __init__(
        self,
        seed: int,
        options: Options,
        on_record: OnRecord | None = None,
        on_story: OnStory | None = None,
        on_member: OnMember | None = None,
    ) -> None:
        """`on_member` gets the trace of the LAS group, where that is the real Raft."""
        self.world = world = World(seed, options, on_record, on_story)
        self.options = options
        self.clock = world.clock
        self.shards = tuple(ShardId(number + 1) for number in range(options.shards))
        for shard in self.shards:
            world.checks[shard] = Checks(shard, options.acks)
            world.checks[shard].book.survives_all = options.gaps == 0
            world.checks[shard].book.copies = options.copies
        self.peers = {
            NodeName(name): Peer(world, NodeName(name)) for name in NAMES[: options.peers]
        }
        for peer in self.peers.values():
            for shard in self.shards:
                peer.disk.add_shard(shard)
                store = peer.disk.shards[shard]
                world.checks[shard].book.owners[id(store)] = peer.replica
        names = tuple(NodeName(f"las-{number + 1}") for number in range(options.las_nodes))
        self.las = Las(world, names)
        self.network = Network(world, self.peers, names)
        self.las.connect(self.peers, self.network)
        self.fleet = Fleet(world, self.las, self.network, self.peers)
        self.splits = Splits(world, self.las, self.peers)
        self.las.on_child = self.splits.child
        self.clients = Clients(world, self.fleet, self.network, self.splits)
        self.faults = Faults(world, self.fleet, self.network, self.las)
        self.raft_faults: RaftFaults | None = None
        if options.real_raft:
            self.las.group = group = RealRaft(self.las, on_member)
            self.raft_faults = RaftFaults(world, group.raft, self.faults.network)

    @property
    def events(self) -> int:
        """Deliveries, disk completions, client operations and crashes so far."""
        return self.world.events

    # -------------------------------------------------------------- a run
    def run(self) -> None:
        """Break things, heal them, check."""
        with quiet():
            self.begin()
            self._trouble()
            self.heal()
            self._demand_progress()
            self._finish()

    def begin(self) -> None:
        """All processes run, the log is there, clients append."""
        for peer in self.peers.values():
            self.fleet.boot(peer)
        self.las.start()
        most_ms = ELECTED_MS_MAX if self.options.real_raft else START_MS_MAX
        self.clock.run(most_ms, self.las.all_registered)
        self.las.create_log(LOG, self.shards)
        self.clock.run(self.clock.now + most_ms, self._is_created)
        if not self._is_created():
            raise BrokenPromise("G11: the log is not created")
        self.clients.start(self.shards)

    def _is_created(self) -> bool:
        return len(self.las.state.shards) >= len(self.shards)

    def _trouble(self) -> None:
        if self.raft_faults is None:
            self.faults.start(KINDS)
        else:
            self.faults.start({name: KINDS[name] for name in KINDS if name not in RAFT_KINDS})
            self.raft_faults.start(RAFT_KINDS)
        outage_ms, began = self.options.las_outage_ms, self.clock.now
        if outage_ms:
            self.clock.run(began + self.options.trouble_ms // 2)
            self._las_outage(outage_ms)
        self.clock.run(began + self.options.trouble_ms + outage_ms)

    def heal(self) -> None:
        """Nothing goes wrong any more."""
        self.world.tell("everything heals")
        if self.raft_faults is not None:
            self.raft_faults.heal()
        self.faults.heal()

    # -------------------------------------------------------------- G9
    def _las_outage(self, outage_ms: int) -> None:
        """§2: "With the LAS down, every shard whose primary *process* and `acks` voters live goes
        on appending and reading."
        """
        self._be_quiet(True)
        self.network.heal()
        before = {shard: self.world.checks[shard].book.acked_end for shard in self.all_shards()}
        self.clock.run(self.clock.now + outage_ms)
        serving = [
            shard
            for shard, end in before.items()
            if self._must_go_on(shard) and self.world.checks[shard].book.acked_end > end
        ]
        for node in self.las.nodes.values():
            self.las.crash(node)
        self.world.tell("no LAS node runs")
        ends = {shard: self.world.checks[shard].book.acked_end for shard in serving}
        probes = [self._probe(shard) for shard in serving]
        self.clock.run(self.clock.now + outage_ms)
        for probe in probes:
            shard = probe.shard
            # Who lost its own messages may still wait, while the shard goes on with others.
            waits = probe.outstanding and self.world.checks[shard].book.acked_end == ends[shard]
            if waits and self._must_go_on(shard):
                raise BrokenPromise(f"G9: shard {shard} stands still without the LAS")
        for node in self.las.nodes.values():
            self.las.boot(node)
        self._be_quiet(False)

    def _be_quiet(self, quiet: bool) -> None:
        self.faults.quiet = quiet
        if self.raft_faults is not None:
            self.raft_faults.quiet = quiet

    def _must_go_on(self, shard: ShardId) -> bool:
        """Whether the primary and `acks` voters of the newest segment live and hear each other."""
        now = self.clock.now
        for peer in self.peers.values():
            process = peer.process
            replica = process.replicas.get(shard) if process is not None else None
            if process is None or replica is None or not replica.is_primary:
                continue
            entry = process.maps.get(shard)
            if entry is None or entry.open.epoch != replica.epoch or entry.prepared is not None:
                continue
            if self.las.state.shards[shard].shard != entry or entry.fence != NO_EPOCH:
                continue
            if entry.split is not None:
                continue
            if any(each.full or each.hung_until > now for each in self._disks()):
                return False
            living = [
                voter
                for voter in entry.open.plan.voters
                if (other := self.peers[voter.peer].process) is not None
                and other.paused_until <= now
                and other.fuse is None
                and (held := other.replicas.get(shard)) is not None
                and held.stored.promised <= replica.epoch
            ]
            return len(living) >= entry.open.plan.acks and process.paused_until <= now
        return False

    def _disks(self) -> list[Disk]:
        return [peer.disk for peer in self.peers.values()]

    def _probe(self, shard: ShardId) -> Producer:
        """A new producer with one append."""
        number = 100 + len(self.clients.producers)
        producer = Producer(shard, number, anonymous=False)
        if self.options.splits:
            producer.key_hash = self.clients.key_in(shard, number)
        self.clients.producers.append(producer)
        self.clients.append(producer, probe=True)
        return producer

    # -------------------------------------------------------------- G11
    def _demand_progress(self) -> None:
        probes = [self._probe(shard) for shard in self.all_shards() for _ in range(PROBES)]
        self.clients.stop()
        until = self.clock.now + self.options.settle_ms
        self.clock.run(until, lambda: not self.unsettled())
        still = self.unsettled()
        if still:
            raise BrokenPromise(f"G11: {still} after {self.options.settle_ms} ms without a fault")
        taken = sum(not probe.outstanding for probe in probes)
        self.world.tell(f"all has settled; {taken} new appends were answered")

    def unsettled(self) -> str:
        """What is still to be done, in words; empty if nothing is."""
        stuck = {shard for shard in self.all_shards() if self._lacks_answers(shard)}
        waiting = self.clients.unanswered(but_of=stuck)
        if waiting:
            return waiting
        for shard in self.all_shards():
            if shard in stuck:
                continue
            entry = self.las.state.shards[shard].shard
            if entry.fence or entry.prepared is not None:
                prepared = entry.prepared.epoch if entry.prepared is not None else None
                return f"shard {shard}: fence {entry.fence}, prepared {prepared}"
            for segment in entry.sealed:
                if stable_end(segment, FIRST_OFFSET) != segment.end:
                    if self._tail_is_lost(shard, segment):
                        continue
                    return f"shard {shard}: the kept tail of {segment.epoch} is not copied"
        return self.las.group.unsettled()

    def _lacks_answers(self, shard: ShardId) -> bool:
        """Whether a fence stands that will never have its answers (§4.2): G11 is promised only if
        "enough replicas (4.2) of a shard can talk".

        Of `acks` voters whose directories are lost no n − acks + 1 are left to answer. Those of e
        are not needed where somebody who can talk adopted e′. A plan may name a store that was lost
        while it was being committed: so this happens within what §5 allows, too.
        """
        entry = self.las.state.shards[shard].shard
        if entry.fence == NO_EPOCH or entry.is_split or self.options.gaps:
            return False
        lost = {peer.replica for peer in self.peers.values() if peer.lost}
        following = entry.prepared
        if following is not None:
            if len(lost.intersection(following.plan.voters)) >= following.plan.acks:
                return True
            for voter in set(following.plan.voters) - lost:
                if following.epoch in self.peers[voter.peer].disk.state(shard).segments:
                    return False
        return len(lost.intersection(entry.open.plan.voters)) >= entry.open.plan.acks

    def _tail_is_lost(self, shard: ShardId, sealed: Segment) -> bool:
        """Whether some of a kept tail was on lost directories alone."""
        book = self.world.checks[shard].book
        book.log()
        return sealed.end in book.holes.values()

    def _finish(self) -> None:
        """The stores against all that was shown, and the whole log once more through readers."""
        self.clients.demand_answers()
        self.splits.finished()
        self.las.tier.finished()
        self.las.group.finished()
        for shard in self.all_shards():
            checks = self.world.checks[shard]
            checks.finished()
            end = self._read_to_the_end(shard)
            missing = checks.book.acked_end > end and not self._rots(shard)
            missing = missing and not self._lacks_answers(shard)
            if missing:
                text = f"readers of shard {shard} get to {end} of {checks.book.acked_end}"
                raise BrokenPromise(f"G10: {text}")

    def _read_to_the_end(self, shard: ShardId) -> Offset:
        """How far readers get, who wait as long as a follower would: a replica may not have heard
        of the newest commit yet, and the primary's own disk may be behind its voters'.
        """
        until = self.clock.now + self.options.settle_ms
        end = self.clients.read_all(shard)
        while end < self.world.checks[shard].book.acked_end and self.clock.now < until:
            self.clock.run(self.clock.now + READ_AGAIN_MS)
            end = self.clients.read_all(shard)
        return end

    def all_shards(self) -> tuple[ShardId, ...]:
        """Those of the log as it was made, and what came from them by splits."""
        return tuple(sorted(self.las.state.shards))

    def _rots(self, shard: ShardId) -> bool:
        return any(peer.disk.shards[shard].damaged for peer in self.peers.values())
