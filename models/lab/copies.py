"""How many living peers had each record, from the maps that were seen; and whether they agree.

A record of a sealed segment is held by the segment's holders; one of an open segment by all of its
replicas, each of which gets everything. A peer that has stopped holds nothing. Between two looks at
the map the earlier one stands.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from peerd.core.shard_map import Segment, Shard
from peerd.storage.environment import Environment
from peerd.storage.reads import SegmentReader
from peerd.storage.rows import read_state

_MAP_BYTES = 1 << 46

# (first offset, first after it or None while open, peers that have it)
Held = tuple[int, int | None, frozenset[str]]


def held(shard: Shard) -> list[Held]:
    """The segments of a shard, each with the peers that have it."""
    found: list[Held] = [
        (segment.begin, segment.end, _peers(segment))
        for segment in shard.sealed
        if segment.begin is not None and segment.end is not None
    ]
    if shard.open.begin is not None:
        everyone = frozenset(replica.peer for replica in shard.open.plan.replicas)
        found.append((shard.open.begin, None, everyone))
    return found


def _peers(segment: Segment) -> frozenset[str]:
    return frozenset(holder.peer for holder in segment.holders)


class Copies:
    """Looks at the map, one after the other."""

    def __init__(self, promised: int) -> None:
        self._promised = promised
        self._looks: list[tuple[float, dict[int, list[Held]]]] = []

    def see(self, now_s: float, shards: Iterable[Shard]) -> None:
        """A look at the map."""
        self._looks.append((now_s, {int(shard.shard): held(shard) for shard in shards}))

    def below_record_s(
        self, acked: Iterable[tuple[float, int, int]], stopped_s: Mapping[str, float]
    ) -> float:
        """Records × seconds in which fewer peers had them than promised, over all looks.

        Args:
            acked: (when, shard, offset) of what was acknowledged.
            stopped_s: When each peer stopped that did.
        """
        arrivals: dict[int, list[tuple[float, int]]] = defaultdict(list)
        for when_s, shard, offset in acked:
            arrivals[shard].append((when_s, offset))
        for each in arrivals.values():
            each.sort()
        tails = dict.fromkeys(arrivals, 0)
        places = dict.fromkeys(arrivals, 0)
        total = 0.0
        for (now_s, shards), (next_s, _) in zip(self._looks, self._looks[1:], strict=False):
            stopped = {peer for peer, at_s in stopped_s.items() if at_s <= now_s}
            for shard, segments in shards.items():
                mine = arrivals.get(shard, [])
                while places.get(shard, 0) < len(mine) and mine[places[shard]][0] <= now_s:
                    tails[shard] = max(tails[shard], mine[places[shard]][1] + 1)
                    places[shard] += 1
                for begin, end, peers in segments:
                    records = (tails.get(shard, 0) if end is None else end) - begin
                    if len(peers - stopped) < self._promised:
                        total += max(records, 0) * (next_s - now_s)
        return round(total, 1)


def unlike_segments(directories: Sequence[Path]) -> int:
    """Segments that two of these stores have with unlike bytes. The stores must be closed."""
    digests: dict[tuple[int, int, int, int], set[bytes]] = defaultdict(set)
    for directory in directories:
        for key, digest in _digests(directory):
            digests[key].add(digest)
    return sum(len(each) > 1 for each in digests.values())


def _digests(directory: Path) -> Iterable[tuple[tuple[int, int, int, int], bytes]]:
    """((shard, epoch, first, end), digest of all batches there) of each segment of a store.

    What reaches less far is another range, and is compared with no other.
    """
    with (
        closing(Environment(directory, map_bytes_max=_MAP_BYTES, read_only=True)) as environment,
        environment.read() as transaction,
    ):
        for stored in read_state(transaction, environment.tables).shards.values():
            for segment in stored.segments.values():
                reader = SegmentReader(
                    transaction, environment.tables.batches, stored.shard, segment
                )
                digest = hashlib.sha256()
                for batch in reader.batches(segment.first, segment.end):
                    digest.update(repr((batch.base, batch.header)).encode())
                    digest.update(batch.payload)
                key = (int(stored.shard), int(segment.epoch), int(segment.first), int(segment.end))
                yield key, digest.digest()
