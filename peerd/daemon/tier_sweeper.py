"""Removes from the tier what lies there of logs that were deleted (docs/tiers.md).

Every peer with a tier does it, and nobody needs to be chosen: what is removed twice is removed.

Why nothing is removed that somebody needs:

- A shard is deleted if its id was drawn and the whole map does not have it, nor skips it
  (docs/protocol.md §8.2, §4.6). That is so for ever, so an old map is as good as a new one: what it
  lacks is not known to be deleted, and is kept.
- The folder names the cluster, and the id is never that of another shard, whatever log has the
  name by now. In the folder of a cluster that this one was restored from the ids are its own up to
  the backup; those drawn behind it are skipped.
- A cluster from whose tier another one was restored removes nothing (`peerd.tier.heirs`).
- It goes `remove_after_s` after this process first saw it deleted, at the earliest.

Bounds: one look in `LOOK_PERIOD_S`, or as often as `remove_after_s` says; the folders of a look;
`REMOVED_AT_ONCE_MAX` objects a shard and look.

Must not: touch a shard that the map has; `peerd.daemon.uploader` does that.
"""

import asyncio
import re
from collections.abc import Callable

from peerd.core.ids import ShardId
from peerd.daemon.logging import get_logger
from peerd.daemon.tier import Tier
from peerd.tier.errors import TierError
from peerd.tier.manifest import cluster_folder
from peerd.transport.map_cache import MapCache

LOOK_PERIOD_S = 60.0
SHORTEST_PERIOD_S = 1.0
# limit: objects of one shard that one look removes; the others come in the next ones
REMOVED_AT_ONCE_MAX = 1_000
_SHARD_FOLDER = re.compile(r"shard-(\d{20})")

_log = get_logger("tier")


class TierSweeper:
    """One per process with a tier; `run` is its only task."""

    def __init__(
        self,
        *,
        tier: Tier,
        map_cache: MapCache,
        remove_after_s: float,
        removed: Callable[[int], None],
        now_s: Callable[[], float],
    ) -> None:
        """`removed` is told how many objects were removed, `now_s` is a monotonic clock."""
        self._tier = tier
        self._map = map_cache
        self._remove_after_s = remove_after_s
        self._removed = removed
        self._now_s = now_s
        self._deleted_since_s: dict[str, float] = {}

    async def run(self) -> None:
        """Look for what nobody needs, for ever."""
        period_s = max(SHORTEST_PERIOD_S, min(self._remove_after_s, LOOK_PERIOD_S))
        while True:
            await asyncio.sleep(period_s)
            try:
                await self.look()
            except TierError as error:
                _log.warning("the tier is swept later", code=error.code, why=str(error))

    async def look(self) -> None:
        """Remove what is due of deleted logs. Raises `TierError`."""
        if not self._tier.cluster_id:
            return
        deleted = await self._deleted()
        now_s = self._now_s()
        self._deleted_since_s = {
            folder: self._deleted_since_s.get(folder, now_s) for folder in deleted
        }
        for folder, since_s in self._deleted_since_s.items():
            if now_s - since_s < self._remove_after_s:
                continue
            names = [each.key for each in await self._tier.store.listed(folder)]
            gone = names[:REMOVED_AT_ONCE_MAX]
            if gone:
                await self._tier.owned()
                await self._tier.store.remove(gone)
                self._removed(len(gone))
                _log.info("removed of a deleted log", folder=folder, objects=len(gone))

    async def _deleted(self) -> list[str]:
        """The folders of shards whose logs were deleted."""
        found = []
        for cluster in (self._tier.cluster_id, *await self._tier.owned()):
            for log in await self._tier.store.folders(cluster_folder(cluster)):
                for folder in await self._tier.store.folders(log):
                    number = _SHARD_FOLDER.fullmatch(folder.rsplit("/", 1)[1])
                    if number is not None and self._map.is_deleted(ShardId(int(number[1]))):
                        found.append(folder)
        return found
