"""Trims of a run: some LAS node asks where a shard may be cut, and has it committed (§8.1).

As in `las.daemon.trimmer`, the answer comes from the primary of the open segment, or from a holder
of a sealed one, and takes its time; meanwhile the shard may have moved on. Any batch may end a
chunk here, so that cuts lie everywhere.
"""

from typing import TYPE_CHECKING

from las.core import commands as c
from las.core.tier_commands import CoolShard
from peerd.core.ids import FIRST_OFFSET, Epoch, Offset, ReplicaId, ShardId
from peerd.core.shard_map import Segment, Shard, stable_end
from peerd.testing.sim.process import Process
from peerd.testing.sim.world import World

if TYPE_CHECKING:
    from peerd.testing.sim.las import Las
    from peerd.testing.sim.las_node import LasNode


class Trims:
    """Asks, and commits."""

    def __init__(self, world: World, las: "Las") -> None:
        self._world = world
        self._las = las

    def look(self, node: "LasNode", rate: float) -> None:
        """Sometimes trim some segment of some shard."""
        if not self._world.draws(rate) or not node.state.shards:
            return
        rng = self._world.rng
        shard = rng.choice(sorted(node.state.shards))
        entry = node.state.shards[shard].shard
        if self._trims_the_tier(node, entry):
            return
        segment = rng.choice((*entry.sealed, entry.open))
        whole = segment.end is not None and segment.end == stable_end(segment, FIRST_OFFSET)
        if whole and rng.random() < 0.5:
            self._commit(node, entry, segment.epoch, segment.end or FIRST_OFFSET)
            return
        source = self._source(segment)
        process = self._las.peers[source.peer].process if source is not None else None
        delay_ms = self._las.network.transit_ms(node.name, source.peer) if source else None
        if process is None or process.id.replica != source or delay_ms is None:
            return
        self._world.clock.later(delay_ms, self._asked, (node, process, entry, segment.epoch))

    def _trims_the_tier(self, node: "LasNode", entry: Shard) -> bool:
        """Within the tier a trim ends where an object does."""
        options, rng = self._world.options, self._world.rng
        if not (options.tier and options.trims_per_s) or rng.random() < 0.7:
            return False
        ends = self._las.tier.object_ends(entry)
        if ends:
            epoch, offset = rng.choice(ends)
            trim = c.TrimShard(shard=entry.shard, epoch=epoch, trimmed_to=offset)
            node.command(trim, (entry.shard, "trim"))
        return bool(ends)

    def _source(self, segment: Segment) -> ReplicaId | None:
        if segment.end is None:
            return segment.plan.primary.replica
        return self._world.rng.choice(segment.holders) if segment.holders else None

    def _asked(self, call: tuple["LasNode", Process, Shard, Epoch]) -> None:
        """The question arrives; the answer travels back."""
        node, process, entry, epoch = call
        replica = process.replicas.get(entry.shard)
        if process.dead or replica is None or process.paused_until > self._world.clock.now:
            return
        self._world.events += 1
        cut = self._cut(process, entry.shard, epoch, replica.trim_limit(epoch))
        delay_ms = self._las.network.transit_ms(process.id.peer, node.name)
        if cut is not None and delay_ms is not None:
            self._world.clock.later(delay_ms, self._answered, (node, entry, epoch, cut))

    def _cut(
        self, process: Process, shard: ShardId, epoch: Epoch, limit: Offset | None
    ) -> Offset | None:
        content = process.peer.disk.shards[shard].batches.get(epoch)
        if limit is None or not content:
            return None
        ends = [batch.end for batch in content.values() if batch.end <= limit]
        return self._world.rng.choice(ends) if ends else None

    def _answered(self, answer: tuple["LasNode", Shard, Epoch, Offset]) -> None:
        node, entry, epoch, cut = answer
        if node.alive and node.leading:
            self._commit(node, entry, epoch, cut)

    def _commit(self, node: "LasNode", entry: Shard, epoch: Epoch, offset: Offset) -> None:
        options = self._world.options
        if options.tier and (not options.trims_per_s or self._world.rng.random() < 0.7):
            # Also beyond what the tier has: then it is refused.
            cool = CoolShard(shard=entry.shard, epoch=epoch, cold_to=offset)
            node.command(cool, (entry.shard, "trim"))
            return
        trim = c.TrimShard(shard=entry.shard, epoch=epoch, trimmed_to=offset)
        node.command(trim, (entry.shard, "trim"))
