"""`GetTail`: up to where shards are committed, as their primaries know it, or else as we do.

A tail that is answered is a lower bound that was true: everything below it is committed (G2). It is
the newest only as far as the peer that answered knows; `peer` names it.
"""

import asyncio

import grpc.aio

from peerd.core.errors import Reason
from peerd.core.ids import ShardId
from peerd.transport.append_edge import unknown_shard
from peerd.transport.host_api import ShardHost
from peerd.transport.limits import (
    MAP_UNKNOWN_RETRY_MS,
    TAIL_FORWARD_TIMEOUT_MS,
    TAIL_SHARDS_AT_ONCE_MAX,
)
from peerd.transport.map_cache import MapCache
from peerd.transport.map_service import unknown_log
from peerd.transport.router import Router, Target
from peerd.transport.status import Refused, refusal
from peerd.v1 import log_pb2


class TailService:
    """Answers GetTail on one peer."""

    def __init__(self, host: ShardHost, cache: MapCache, router: Router) -> None:
        self._host = host
        self._cache = cache
        self._router = router

    def shards_of(self, log: str) -> tuple[ShardId, ...]:
        """The log's shards by key range.

        Raises:
            Refused: UNKNOWN_LOG, or MAP_UNKNOWN while nothing was heard yet.
        """
        shards = self._cache.shards_of(log)
        if shards:
            return shards
        if self._cache.version == 0:
            message = "this peer has not heard the shard map yet: try again, or another peer"
            raise Refused(refusal(Reason.MAP_UNKNOWN, message, retry_after_ms=MAP_UNKNOWN_RETRY_MS))
        raise Refused(refusal(Reason.UNKNOWN_LOG, unknown_log(log)))

    async def tails(
        self, request: log_pb2.GetTailRequest, *, may_forward: bool
    ) -> log_pb2.GetTailResponse:
        """The tails that were asked for, by shard id.

        Raises:
            Refused: UNKNOWN_LOG, UNKNOWN_SHARD, MAP_UNKNOWN, NOT_SERVED_YET.
        """
        if request.consistency == log_pb2.TAIL_CONSISTENCY_LINEARIZABLE:
            message = "a linearizable tail is not served yet: ask without `consistency`"
            raise Refused(refusal(Reason.NOT_SERVED_YET, message))
        shards = self.shards_of(request.log)
        if request.HasField("shard"):
            if request.shard not in shards:
                message = unknown_shard(request.log, request.shard)
                raise Refused(refusal(Reason.UNKNOWN_SHARD, message))
            shards = (ShardId(request.shard),)
        at_once = asyncio.Semaphore(TAIL_SHARDS_AT_ONCE_MAX)

        async def one(shard: ShardId) -> log_pb2.ShardTail:
            async with at_once:
                return await self._tail(request.log, shard, may_forward=may_forward)

        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(one(shard)) for shard in sorted(shards)]
        return log_pb2.GetTailResponse(tails=[task.result() for task in asked])

    async def _tail(self, log: str, shard: ShardId, *, may_forward: bool) -> log_pb2.ShardTail:
        target = self._router.primary_of(shard)
        if may_forward and target is not None and not self._host.is_primary(shard):
            tail = await self._ask(log, shard, target)
            if tail is not None:
                return tail
        return self._own_tail(shard)

    async def _ask(self, log: str, shard: ShardId, target: Target) -> log_pb2.ShardTail | None:
        """The primary's answer; None if it does not come soon."""
        timeout_s = TAIL_FORWARD_TIMEOUT_MS / 1000
        if not await self._router.connected(target.address, timeout_s):
            return None
        call = self._router.unary(target.address, "GetTail", log_pb2.GetTailResponse.FromString)(
            log_pb2.GetTailRequest(log=log, shard=shard).SerializeToString(),
            timeout=timeout_s,
            metadata=self._router.forward_metadata,
        )
        try:
            response: log_pb2.GetTailResponse = await call
        except grpc.aio.AioRpcError:
            # It answers nothing, or is not primary any more: what we know is true as well.
            return None
        return response.tails[0] if response.tails else None

    def _own_tail(self, shard: ShardId) -> log_pb2.ShardTail:
        entry = self._cache.shards[shard]
        known = self._host.committed(shard)
        # What lies below the open segment is committed, whether this store has it or not.
        epoch, committed = entry.open.epoch, entry.open.begin or 0
        if known is not None and known[1] >= committed:
            epoch, committed = known
        return log_pb2.ShardTail(
            shard=shard,
            epoch=epoch,
            committed=committed,
            first_offset=0,
            peer=self._host.me.peer,
        )
