"""What waits for the tier beyond what may stay on disk, and when appends have to wait for it.

A log with hot bytes is promised a bound on its peers' disks; a tier that fails or is slow breaks
it, since nothing leaves a disk before it is in the tier (docs/tiers.md). So what waits is counted,
and beyond `tier.lag_bytes_max` appends are told to come again (`peerd.daemon.admission`), long
before the disk's reserve refuses them: they come as fast as the tier takes. Reads go on, and so
do what replicas write and appends to shards of which nothing waits, tiered or not.

What is counted: of each tiered shard that this process orders, the bytes that are not in the tier,
beyond its hot bytes. By whole chunks, so up to one chunk a shard too much. Looked at every
`LOOK_PERIOD_S`, apart from the uploads: one that hangs holds up no look. What is appended between
two looks comes on top.

Without a bound in the configuration it is half of the store's room: an operator who wants appends
to go on until the disk's reserve gives a number larger than the disk.

Must not: hold anything up for a shard that is in no tier, or that has none to wait for.
"""

import asyncio
from collections.abc import Callable

from peerd.core.ids import Offset, ProcessId, ShardId
from peerd.core.shard_map import Shard
from peerd.daemon.host import ShardHost
from peerd.storage.errors import StorageError
from peerd.storage.options import Space
from peerd.transport.map_cache import MapCache
from peerd.transport.status import Refused

LOOK_PERIOD_S = 0.25
# limit: segments of one shard that one look asks the store about, the newest; what waits in older
# ones waits for more than this
SEGMENTS_LOOKED_AT_MAX = 64
# What may wait where the configuration does not say: this share of the store's room.
ROOM_SHARE = 0.5


class TierLag:
    """One per process with a tier; `run` is its only task."""

    def __init__(
        self,
        *,
        me: ProcessId,
        host: ShardHost,
        map_cache: MapCache,
        space: Callable[[], Space],
        bytes_max: int | None,
    ) -> None:
        self._me = me
        self._host = host
        self._map = map_cache
        self._space = space
        self._bytes_max = bytes_max
        self.lag_bytes = 0
        """As of the last look."""
        self._lagging: frozenset[ShardId] = frozenset()

    def limit(self, bytes_max: int | None) -> None:
        """Another bound from now on."""
        self._bytes_max = bytes_max

    @property
    def bytes_max(self) -> int:
        """What may wait."""
        if self._bytes_max is not None:
            return self._bytes_max
        space = self._space()
        return int((space.stored_bytes + space.free_bytes) * ROOM_SHARE)

    @property
    def slows_appends(self) -> bool:
        """More waits than may."""
        return self.lag_bytes > self.bytes_max

    def why_wait(self, shard: ShardId) -> str | None:
        """Why appends to `shard` have to wait, for whoever sends them; None if they need not."""
        if shard not in self._lagging or not self.slows_appends:
            return None
        return (
            f"{self.lag_bytes} bytes of {self._me.peer} wait for the object tier, more than "
            f"tier.lag_bytes_max lets wait ({self.bytes_max}): send it again later; "
            "`peerctl status` says what is wrong with the tier"
        )

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_PERIOD_S)

    async def look(self) -> None:
        """Count anew. A shard that cannot be read now counts for nothing."""
        lag_bytes = 0
        lagging = set()
        for entry in self._host.map_entries():
            log = self._map.logs.get(entry.log)
            if log is None or not log.hot_bytes or entry.open.plan.primary != self._me:
                continue
            try:
                beyond_bytes = await self._waiting_bytes(entry) - log.hot_bytes
            except (StorageError, Refused):
                continue
            if beyond_bytes > 0:
                lag_bytes += beyond_bytes
                lagging.add(entry.shard)
        self.lag_bytes, self._lagging = lag_bytes, frozenset(lagging)

    async def _waiting_bytes(self, entry: Shard) -> int:
        """Bytes of a shard that are stored here and not in the tier. Raises what the store does."""
        begin = entry.trimmed_to if entry.tier is None else entry.tier.end
        waiting_bytes = 0
        for segment in reversed((*entry.sealed, entry.open)[-SEGMENTS_LOOKED_AT_MAX:]):
            if segment.end is not None and segment.end <= begin:
                break
            before = Offset(max(begin, segment.begin or 0))
            cut = await self._host.find_cut(entry.shard, segment.epoch, before=before, keep_bytes=0)
            waiting_bytes += 0 if cut is None else cut.kept_bytes
        return waiting_bytes
