"""`las.v1.ShardMapService` on a LAS node: the applied map, on the leader and on every other node.

A follower may lag; it says for how long it has known no leader. That is enough for clients, whose
calls are answered by peers that know better.
"""

from collections.abc import AsyncIterator

from las.core.state import ClusterState
from las.daemon.group import RETRY_AFTER_MS, Group
from las.daemon.map_feed import MapFeed, encode_part
from las.v1 import shard_map_pb2, shard_map_pb2_grpc
from peerd.core.errors import Reason
from peerd.transport.map_service import unknown_log
from peerd.transport.status import Context, Refused, refusal


class ShardMapServicer(shard_map_pb2_grpc.ShardMapServiceServicer):
    """Serves what `group` has applied."""

    def __init__(self, group: Group, feed: MapFeed) -> None:
        self._group = group
        self._feed = feed

    async def GetMap(
        self,
        request: shard_map_pb2.GetMapRequest,
        context: Context,
    ) -> shard_map_pb2.GetMapResponse:
        """The whole map, or what changed since the version that is known, or one log.

        Raises:
            Refused: MAP_UNKNOWN while this node has applied nothing and does not lead,
                UNKNOWN_LOG.
        """
        state = self._group.state
        if state.version == 0 and not self._group.is_leader:
            text = f"{self._group.name} has not heard the shard map yet: try again, or ask another"
            raise Refused(refusal(Reason.MAP_UNKNOWN, text, retry_after_ms=RETRY_AFTER_MS))
        if not request.log and _may_go_on(state, request.known_version):
            update = self._feed.since(state, request.known_version) or _nothing_since(state)
        elif not request.log:
            update = await self._feed.whole(state)
        else:
            log = state.logs.get(request.log)
            if log is None:
                raise Refused(refusal(Reason.UNKNOWN_LOG, unknown_log(request.log)))
            update = encode_part(state, log)
        return shard_map_pb2.GetMapResponse(map=update, age_ms=self._group.age_ms)

    async def WatchMap(
        self,
        request: shard_map_pb2.WatchMapRequest,
        context: Context,
    ) -> AsyncIterator[shard_map_pb2.WatchMapResponse]:
        """The whole map as soon as there is one, then each change. Ends with the call.

        Who has a version already gets what changed since, if that is remembered.
        """
        known = request.known_version
        version = known if _may_go_on(self._group.state, known) else 0
        with self._group.watch() as changed:
            while True:
                changed.clear()
                state = self._group.state
                update = None
                if version > 0:
                    update = self._feed.since(state, version)
                elif state.version > 0:
                    update = await self._feed.whole(state)
                if update is not None:
                    version = update.version
                    yield shard_map_pb2.WatchMapResponse(map=update)
                else:
                    await changed.wait()


def _may_go_on(state: ClusterState, version: int) -> bool:
    """Whether a reader that has `version` can be told just what changed since."""
    return version > 0 and state.changed_ids(version) is not None


def _nothing_since(state: ClusterState) -> shard_map_pb2.MapUpdate:
    return shard_map_pb2.MapUpdate(cluster_id=state.cluster_id, version=state.version)
