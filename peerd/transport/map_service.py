"""`las.v1.ShardMapService`: hands on the map that this process knows, with version and age.

Served by peers from what they heard and by LAS nodes from what is committed, so that a client can
start with any address and while the LAS is down.
"""

from collections.abc import AsyncIterator

import grpc.aio

from las.v1 import shard_map_pb2, shard_map_pb2_grpc
from peerd.core.errors import Reason
from peerd.transport.limits import MAP_UNKNOWN_RETRY_MS
from peerd.transport.map_cache import MapCache
from peerd.transport.status import Context, Refused, refusal


class ShardMapServicer(shard_map_pb2_grpc.ShardMapServiceServicer):
    """Serves one `MapCache`."""

    def __init__(self, cache: MapCache) -> None:
        self._cache = cache

    async def GetMap(
        self,
        request: shard_map_pb2.GetMapRequest,
        context: Context,  # noqa: ARG002 - the shape of a servicer's method
    ) -> shard_map_pb2.GetMapResponse:
        """The whole map, or what changed since the version that is known, or one log.

        Raises:
            Refused: MAP_UNKNOWN while nothing was heard yet, UNKNOWN_LOG.
        """
        cache = self._cache
        if cache.version == 0:
            raise Refused(
                refusal(
                    Reason.MAP_UNKNOWN,
                    "this process has not heard the shard map yet: try again, or another address",
                    retry_after_ms=MAP_UNKNOWN_RETRY_MS,
                )
            )
        if request.log and request.log not in cache.logs:
            raise Refused(refusal(Reason.UNKNOWN_LOG, unknown_log(request.log)))
        update = None if request.log else cache.change_since(request.known_version)
        if update is None:
            update = await cache.whole_in_slices(request.log)
        return shard_map_pb2.GetMapResponse(map=update, age_ms=cache.age_ms)

    async def WatchMap(
        self,
        request: shard_map_pb2.WatchMapRequest,
        context: Context,  # noqa: ARG002 - the shape of a servicer's method
    ) -> AsyncIterator[shard_map_pb2.WatchMapResponse]:
        """The whole map as soon as there is one, then each change. Ends with the call.

        Who has a version already gets what changed since, if that is remembered.
        """
        known = request.known_version
        version = known if self._cache.remembers(known) else 0
        while True:
            changed = self._cache.changed
            first = version == 0 and self._cache.version > 0
            updates = [await self._cache.whole_in_slices()] if first else None
            for update in updates or self._cache.updates_since(version):
                version = update.version
                yield shard_map_pb2.WatchMapResponse(map=update)
            await changed.wait()


def unknown_log(log: str) -> str:
    """The message for a log that the map does not know."""
    return f"there is no log {log!r}: create it first (`peerctl log create`), or check its name"


def add_map_service(server: grpc.aio.Server, cache: MapCache) -> None:
    """Makes `server` serve `cache`."""
    shard_map_pb2_grpc.add_ShardMapServiceServicer_to_server(ShardMapServicer(cache), server)
