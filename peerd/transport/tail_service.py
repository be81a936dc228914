"""`GetTail`: up to where shards are committed, as their primaries know it, or else as we do.

A tail that is answered is a lower bound that was true: everything below it is committed (G2). It is
the newest only as far as the peer that answered knows; `peer` names it.

A linearizable tail comes from the primary alone, which has its epoch confirmed by `acks` voters
after the call came in (docs/protocol.md §7): no batch acknowledged before the call lies at or
beyond it. While no primary can give one, the call waits for it, as an append does.
"""

import asyncio
import time

import grpc.aio

from peerd.core.errors import Reason, Refusal
from peerd.core.ids import NodeName, ShardId
from peerd.core.shard_map import Shard
from peerd.transport.append_edge import unknown_shard
from peerd.transport.host_api import ShardHost
from peerd.transport.limits import (
    MAP_UNKNOWN_RETRY_MS,
    RETRY_AFTER_MS,
    RETRY_STEP_MS,
    TAIL_FORWARD_TIMEOUT_MS,
    TAIL_SHARDS_AT_ONCE_MAX,
)
from peerd.transport.map_cache import MapCache
from peerd.transport.map_service import unknown_log
from peerd.transport.router import Router, Target
from peerd.transport.status import (
    Refused,
    encode_refusal,
    reason_of,
    refusal,
    refusal_of_error,
)
from peerd.transport.waiting import is_cancelled, wait_for
from peerd.v1 import errors_pb2, log_pb2

# What another try, here or elsewhere, may cure: a tail is not stored, so trying again is harmless.
_TRY_AGAIN = frozenset(
    {
        Reason.NOT_PRIMARY,
        Reason.MOVED,
        Reason.FENCED,
        Reason.MAP_UNKNOWN,
        Reason.NOT_ENOUGH_PEERS,
        Reason.STORE_FAILED,
        Reason.SHUTTING_DOWN,
    }
)


class TailService:
    """Answers GetTail on one peer."""

    def __init__(self, host: ShardHost, cache: MapCache, router: Router) -> None:
        self._host = host
        self._cache = cache
        self._router = router

    def shards_of(self, log: str) -> tuple[ShardId, ...]:
        """The log's shards, each after the one that it came from by a split.

        Raises:
            Refused: UNKNOWN_LOG, or MAP_UNKNOWN while nothing was heard yet.
        """
        shards = self._cache.family_of(log)
        if shards:
            return shards
        if self._cache.version == 0:
            message = "this peer has not heard the shard map yet: try again, or another peer"
            raise Refused(refusal(Reason.MAP_UNKNOWN, message, retry_after_ms=MAP_UNKNOWN_RETRY_MS))
        raise Refused(refusal(Reason.UNKNOWN_LOG, unknown_log(log)))

    async def tails(
        self, request: log_pb2.GetTailRequest, *, timeout_s: float, may_forward: bool
    ) -> log_pb2.GetTailResponse:
        """The tails that were asked for, by shard id.

        Args:
            request: Which.
            timeout_s: How long to wait for primaries that confirm a linearizable tail.
            may_forward: False for a call that was forwarded: one try, here.

        Raises:
            Refused: UNKNOWN_LOG, UNKNOWN_SHARD, MAP_UNKNOWN; a linearizable tail also NOT_PRIMARY,
                NOT_ENOUGH_PEERS, OVERLOADED and what else docs/errors.md marks as worth a retry.
        """
        if request.consistency == log_pb2.TAIL_CONSISTENCY_OWN:
            may_forward = False
        linearizable = request.consistency == log_pb2.TAIL_CONSISTENCY_LINEARIZABLE
        deadline = time.monotonic() + timeout_s
        shards = self.shards_of(request.log)
        if request.HasField("shard"):
            if request.shard not in shards:
                message = unknown_shard(request.log, request.shard)
                raise Refused(refusal(Reason.UNKNOWN_SHARD, message))
            shards = (ShardId(request.shard),)
        at_once = asyncio.Semaphore(TAIL_SHARDS_AT_ONCE_MAX)

        async def one(shard: ShardId) -> log_pb2.ShardTail:
            async with at_once:
                if linearizable:
                    return await self._linearizable(
                        request.log, shard, deadline, may_forward=may_forward
                    )
                return await self._tail(request.log, shard, may_forward=may_forward)

        try:
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(one(shard)) for shard in sorted(shards)]
        except* Refused as errors:
            # One shard's refusal is the call's: a tail of a log is one of all its shards.
            raise _first(errors) from None
        return log_pb2.GetTailResponse(tails=[task.result() for task in asked])

    async def _tail(self, log: str, shard: ShardId, *, may_forward: bool) -> log_pb2.ShardTail:
        target = self._router.primary_of(shard)
        if may_forward and target is not None and not self._host.is_primary(shard):
            tail = await self._ask(log, shard, target)
            if tail is not None:
                return tail
        return self._own_tail(log, shard)

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

    def _entry(self, log: str, shard: ShardId) -> Shard:
        """The shard's entry of the map. Raises `Refused`: UNKNOWN_LOG, deleted meanwhile."""
        entry = self._cache.shards.get(shard)
        if entry is None:
            raise Refused(refusal(Reason.UNKNOWN_LOG, unknown_log(log)))
        return entry

    def _own_tail(self, log: str, shard: ShardId) -> log_pb2.ShardTail:
        entry = self._entry(log, shard)
        known = self._host.committed(shard)
        # What lies below the open segment is committed, whether this store has it or not.
        epoch, committed = entry.open.epoch, entry.open.begin or 0
        if known is not None and known[1] >= committed:
            epoch, committed = known
        return log_pb2.ShardTail(
            shard=shard,
            epoch=epoch,
            committed=committed,
            first_offset=entry.kept_from,
            peer=self._host.me.peer,
        )

    # -------------------------------------------------------------------------- linearizable

    async def _linearizable(
        self, log: str, shard: ShardId, deadline: float, *, may_forward: bool
    ) -> log_pb2.ShardTail:
        """The primary's confirmed tail; tried again until `deadline` (of `time.monotonic`)."""
        while True:
            changed = self._cache.changed
            left_s = max(0.0, deadline - time.monotonic())
            target = self._router.primary_of(shard)
            if not may_forward or target is None or self._host.is_primary(shard):
                answer = await self._confirmed_here(log, shard, left_s)
            else:
                answer = await self._confirmed_there(log, shard, target, left_s)
            if isinstance(answer, log_pb2.ShardTail):
                return answer
            left_s = deadline - time.monotonic()
            if not may_forward or left_s <= 0 or reason_of(answer) not in _TRY_AGAIN:
                raise Refused(answer)
            await wait_for(changed, min(left_s, RETRY_STEP_MS / 1000))

    async def _confirmed_here(
        self, log: str, shard: ShardId, timeout_s: float
    ) -> log_pb2.ShardTail | errors_pb2.Refusal:
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._host.linearizable_tail(shard)
        except TimeoutError:
            return _not_confirmed(shard, self._host.me.peer)
        if isinstance(answer, Refusal):
            return encode_refusal(answer, self._router.address_of)
        epoch, committed = answer
        return log_pb2.ShardTail(
            shard=shard,
            epoch=epoch,
            committed=committed,
            first_offset=self._entry(log, shard).kept_from,
            peer=self._host.me.peer,
        )

    async def _confirmed_there(
        self, log: str, shard: ShardId, target: Target, timeout_s: float
    ) -> log_pb2.ShardTail | errors_pb2.Refusal:
        """Asked of the primary as the map has it; left when the map names another."""
        peer = target.process.peer
        if not await self._router.connected(target.address, min(timeout_s, RETRY_STEP_MS / 1000)):
            return _not_confirmed(shard, peer)
        request = log_pb2.GetTailRequest(
            log=log, shard=shard, consistency=log_pb2.TAIL_CONSISTENCY_LINEARIZABLE
        )
        call = self._router.unary(target.address, "GetTail", log_pb2.GetTailResponse.FromString)(
            request.SerializeToString(),
            timeout=timeout_s,
            metadata=self._router.forward_metadata,
        )
        self._router.watch(shard, target, call)
        try:
            response: log_pb2.GetTailResponse = await call
        except grpc.aio.AioRpcError as error:
            return refusal_of_error(error) or _not_confirmed(shard, peer)
        except asyncio.CancelledError:
            if not self._router.unwatch(shard, call) or is_cancelled():
                raise
            return _not_confirmed(shard, peer)
        finally:
            self._router.unwatch(shard, call)
        return response.tails[0] if response.tails else _not_confirmed(shard, peer)


def _not_confirmed(shard: ShardId, peer: NodeName) -> errors_pb2.Refusal:
    return refusal(
        Reason.NOT_ENOUGH_PEERS,
        f"{peer} did not confirm the tail of shard {shard} in time: ask again, or without "
        "`consistency`",
        retry_after_ms=RETRY_AFTER_MS,
    )


def _first(errors: BaseExceptionGroup[Refused]) -> Refused:
    """One of the refusals of a group."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, Refused):
        raise error
    return error
