"""Releases and moves of bytes in a run: some LAS node lets surplus holders go (§8.4).

As in `las.daemon.surplus`: the other holders are asked first, each answer takes its time, and the
command is given with those that said that they have the segment. Moves are those that would make
nodes store alike (`las.core.stored_balance`), or come without any reason: somebody who has no copy
is wanted for one, and one of the holders gives its own.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from las.core import commands as c
from las.core import stored_balance
from las.core.holder_commands import ReleaseHolder
from las.core.index import indexed
from las.core.placement import FleetView, Limits
from las.core.state import ClusterState
from las.core.surplus import Surplus, surplus
from peerd.core import holding
from peerd.core.ids import NodeName, ReplicaId, Tick
from peerd.testing.sim.process import Process
from peerd.testing.sim.world import World

if TYPE_CHECKING:
    from peerd.testing.sim.las import Las
    from peerd.testing.sim.las_node import LasNode

LOOKS_PER_S = 20.0
# limit: releases of one look; few, so that other steps come in between.
RELEASES_PER_LOOK_MAX = 2
ANSWERS_MS = 80
"""So long the others have for their answers."""
BALANCED = 0.5
"""Share of the moves that make nodes store alike."""


@dataclass(slots=True)
class _Asked:
    """One release that waits for answers."""

    node: "LasNode"
    found: Surplus
    confirmed: set[ReplicaId] = field(default_factory=set)


class Releases:
    """Asks, and commits."""

    def __init__(self, world: World, las: "Las") -> None:
        self._world = world
        self._las = las

    def look(self, node: "LasNode") -> None:
        """Release what is too many; sometimes begin a move."""
        if self._world.troubled and self._world.draws(
            self._las.options.releases_per_s / LOOKS_PER_S
        ):
            self._move(node)
        for number, found in enumerate(surplus(node.state, givers=node.givers)):
            if number >= RELEASES_PER_LOOK_MAX:
                break
            self._ask(_Asked(node, found))

    def _move(self, node: "LasNode") -> None:
        if self._world.rng.random() < BALANCED:
            found = _balanced(node.state)
            if found is not None:
                node.givers[found.key] = found.giver
                node.moving.add((found.shard, found.epoch, found.taker))
                want = c.WantHolders(shard=found.shard, epoch=found.epoch, holders=(found.taker,))
                node.command(want, found.key)
                return
        self._move_anything(node)

    def _move_anything(self, node: "LasNode") -> None:
        rng = self._world.rng
        sealed = [
            (entry.shard.shard, segment)
            for entry in node.state.shards.values()
            for segment in entry.shard.sealed
            if not segment.wanted_holders
        ]
        if not sealed:
            return
        shard, segment = rng.choice(sealed)
        able = [
            each.replica
            for each in node.state.nodes.values()
            if each.is_healthy and each.replica not in segment.holders
        ]
        if able:
            taker = rng.choice(able)
            if segment.holders:
                node.givers[shard, segment.epoch] = rng.choice(segment.holders)
            node.moving.add((shard, segment.epoch, taker))
            want = c.WantHolders(shard=shard, epoch=segment.epoch, holders=(taker,))
            node.command(want, (shard, segment.epoch))

    def _ask(self, asked: _Asked) -> None:
        for other in asked.found.others:
            process = self._las.peers[other.peer].process
            delay_ms = self._las.network.transit_ms(asked.node.name, other.peer)
            if process is not None and process.id.replica == other and delay_ms is not None:
                self._world.clock.later(delay_ms, self._asked, (asked, process))
        self._world.clock.later(ANSWERS_MS, self._commit, asked)

    def _asked(self, call: tuple[_Asked, Process]) -> None:
        """The question arrives; the answer travels back."""
        asked, process = call
        shard = asked.found.shard
        replica, entry = process.replicas.get(shard), process.maps.get(shard)
        if process.dead or replica is None or entry is None:
            return
        if process.paused_until > self._world.clock.now:
            return
        self._world.events += 1
        if not holding.holds(entry, replica.stored, process.id.replica, asked.found.epoch):
            return
        delay_ms = self._las.network.transit_ms(process.id.peer, asked.node.name)
        if delay_ms is not None:
            self._world.clock.later(delay_ms, self._answered, (asked, process.id.replica))

    def _answered(self, answer: tuple[_Asked, ReplicaId]) -> None:
        asked, replica = answer
        asked.confirmed.add(replica)

    def _commit(self, asked: _Asked) -> None:
        node, found = asked.node, asked.found
        if node.alive and node.leading and asked.confirmed:
            release = ReleaseHolder(
                shard=found.shard,
                epoch=found.epoch,
                holder=found.holder,
                confirmed=tuple(sorted(asked.confirmed)),
                why=found.why,
            )
            node.command(release, (found.shard, found.epoch, "release"))


def _balanced(state: ClusterState) -> stored_balance.CopyMove | None:
    """A move that makes nodes store alike, where each record is a byte."""
    sizes: dict[stored_balance.SegmentKey, int] = {}
    stored: dict[NodeName, int] = {name: 0 for name, node in state.nodes.items() if node.is_healthy}
    for shard, entry in state.shards.items():
        for segment in entry.shard.sealed:
            size = (segment.end or 0) - max(segment.begin or 0, entry.shard.trimmed_to)
            sizes[shard, segment.epoch] = max(0, size)
            for holder in segment.holders:
                if holder.peer in stored:
                    stored[holder.peer] += max(0, size)
    uneven = stored_balance.Stored(bytes_of=stored, band=0.01, sizes=sizes)
    index = indexed(state)
    found = stored_balance.copy_balance(
        state,
        FleetView(now=Tick(0)),
        Limits(),
        uneven,
        shards_of={
            name: tuple(index.shards_of(name)) for name in stored_balance.givers(state, uneven)
        },
        moves_max=1,
    )
    return found.moves[0] if found.moves else None
