"""Splits of a run (docs/protocol.md §4.3): children as they come, clients that follow, and what
must hold over parent and children together.

G4 and G8 reach over shards here: each record is in one of them at most, a record that was refused
with SPLIT is not in the parent, and the records of a key, read parent first, are in the order in
which their producer made them.
"""

from collections.abc import Iterator

from peerd.core.ids import NodeName, Offset, ShardId
from peerd.core.shard_map import Shard
from peerd.testing.sim.checkers import Checks, demand
from peerd.testing.sim.las import Las
from peerd.testing.sim.process import Peer
from peerd.testing.sim.world import World

KEY_HASHES = 1 << 64


def key_of(number: int) -> int:
    """The hash of the one key that all records of a producer have; spread over all hashes."""
    return number * 0x9E3779B97F4A7C15 % KEY_HASHES


def maker(payload: bytes) -> tuple[bytes, int]:
    """Who made a record first, in whichever shard, and as the how manieth."""
    name, _, made = payload.partition(b":")
    return name, int(made)


class Splits:
    """Makes room for children, and looks at families in the end."""

    def __init__(self, world: World, las: Las, peers: dict[NodeName, Peer]) -> None:
        self._world = world
        self._las = las
        self._peers = peers
        self.refused: dict[ShardId, set[bytes]] = {}
        """Payloads that a parent refused with SPLIT."""

    def child(self, entry: Shard) -> None:
        """A shard came into being: stores and checkers for it."""
        world = self._world
        checks = world.checks[entry.shard] = Checks(entry.shard, world.options.acks)
        checks.book.copies = world.options.copies
        for peer in self._peers.values():
            peer.disk.add_shard(entry.shard)
            checks.book.owners[id(peer.disk.shards[entry.shard])] = peer.replica
            if peer.lost:
                checks.book.lost.add(id(peer.disk.shards[entry.shard]))

    def note_refused(self, shard: ShardId, payload: bytes) -> None:
        """A producer was told SPLIT: the record is not in the shard and never will be."""
        self.refused.setdefault(shard, set()).add(payload)

    def home_of(self, entry: Shard, key_hash: int) -> ShardId | None:
        """The child that owns a key by the committed map; None: the shard is not split."""
        if entry.split is None or not entry.split.is_committed:
            return None
        return entry.split.children[key_hash >= entry.split.key_hash]

    # -------------------------------------------------------------- the end
    def finished(self) -> None:
        """Hold families together."""
        shards = self._las.state.shards
        for shard, payloads in self.refused.items():
            for payload in self._payloads(shard):
                text = f"{payload.decode()} was refused with SPLIT and is in shard {shard}"
                demand(payload not in payloads, "G4", text)
        for entry in shards.values():
            line = [entry.shard]
            while (parent := line[0].parent) is not None:
                line.insert(0, shards[parent.shard].shard)
            if entry.shard.split is None and len(line) > 1:
                self._check_line(line)

    def _check_line(self, line: list[Shard]) -> None:
        """One key at a time, from the first ancestor to its last child."""
        last: dict[bytes, int] = {}
        leaf = line[-1]
        for shard in line:
            if shard.split is not None:
                end = self._world.checks[shard.shard].book.acked_end
                text = f"shard {shard.shard} was split at {shard.split.end} and acknowledged {end}"
                demand(end <= (shard.split.end or Offset(0)), "G8", text)
            for name, made in self._made(shard.shard, leaf):
                before = last.get(name, -1)
                text = f"record {made} of {name.decode()} comes after {before} in {shard.shard}"
                demand(made > before, "G8", text)
                last[name] = made

    def _made(self, shard: ShardId, leaf: Shard) -> Iterator[tuple[bytes, int]]:
        """Records of producers whose key is the leaf's, by offset."""
        book = self._world.checks[shard].book
        for _, batch in book.log().values():
            header = batch.header
            if header.producer and leaf.key_hash_low <= header.key_hash_low <= leaf.key_hash_high:
                yield maker(bytes(batch.payload))

    def _payloads(self, shard: ShardId) -> Iterator[bytes]:
        for _, batch in self._world.checks[shard].book.log().values():
            yield bytes(batch.payload)
