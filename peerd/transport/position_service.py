"""`CommitPosition`, `GetPosition`, `ListPositions` on any peer: checks, and the way to the keeper.

The log is created when somebody first commits or asks; only that needs the LAS. "No position" is
thereby never said by a peer whose map merely lags: it knows the log, or has it created, first.

While no primary can be reached a call waits for one, as an append does. A commit that is sent
again, within its call or by its client, may arrive twice, and late: what its client committed
afterwards holds, since commits are numbered (`position_table`). A client that does not number them
is promised nothing of the order in which the tries of a call come.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import grpc.aio

from peerd.core.errors import Reason, Taken
from peerd.core.ids import ShardId
from peerd.internal.v1 import positions_pb2
from peerd.transport.append_edge import LOG_NAME, invalid, unknown_shard
from peerd.transport.internal_logs import POSITIONS_LOG, InternalLogs, is_internal
from peerd.transport.limits import (
    COMMITTER_BYTES,
    MAP_UNKNOWN_RETRY_MS,
    POSITION_SHARDS_MAX,
    RETRY_AFTER_MS,
    RETRY_STEP_MS,
)
from peerd.transport.map_service import unknown_log
from peerd.transport.position_log import PositionLog
from peerd.transport.read_path import ReadServices
from peerd.transport.router import Target
from peerd.transport.status import Refused, reason_of, refusal, refusal_of_error
from peerd.transport.waiting import is_cancelled, wait_for
from peerd.v1 import errors_pb2, log_pb2

# What another try, here or elsewhere, may cure.
_TRY_AGAIN = frozenset(
    {
        Reason.NOT_PRIMARY,
        Reason.MOVED,
        Reason.FENCED,
        Reason.MAP_UNKNOWN,
        Reason.NOT_ENOUGH_PEERS,
        Reason.RANGE_UNAVAILABLE,
        Reason.OUTCOME_UNKNOWN,
        Reason.STORE_FAILED,
        Reason.SHUTTING_DOWN,
        Reason.LAS_UNAVAILABLE,
    }
)

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call(Generic[Answer]):
    """One call, and how it is answered: `here` by the primary's log within some seconds, or by
    another peer's answer, which `parse` reads. `stores` tells a commit from a question.
    """

    method: str
    request: bytes
    here: Callable[[PositionLog, float], Awaitable[Answer]]
    parse: Callable[[bytes], Answer]
    stores: bool


class PositionService:
    """Consumers' positions, as one peer serves them."""

    def __init__(self, services: ReadServices, internal_logs: InternalLogs) -> None:
        self._services = services
        self._host = services.host
        self._cache = services.cache
        self._router = services.router
        self._internal_logs = internal_logs
        self._logs: dict[ShardId, PositionLog] = {}

    def close(self) -> None:
        """End what waits."""
        for log in self._logs.values():
            log.close()

    # -------------------------------------------------------------------------- the calls

    async def commit(
        self, request: log_pb2.CommitPositionRequest, *, timeout_s: float, may_forward: bool
    ) -> log_pb2.CommitPositionResponse:
        """Returns when the position holds.

        Args:
            request: The position.
            timeout_s: How long to try.
            may_forward: False for a call that was forwarded: one try, here.

        Raises:
            Refused: with what is known of the outcome in `taken`.
        """
        deadline = time.monotonic() + timeout_s
        stored = positions_pb2.StoredPosition(
            log=request.log, consumer=request.consumer, position=request.position
        )

        async def here(log: PositionLog, left_s: float) -> log_pb2.CommitPositionResponse:
            await log.commit(stored, left_s)
            return log_pb2.CommitPositionResponse()

        if request.committer:
            stored.commits.add(committer=request.committer, sequence=request.sequence)
        if may_forward:
            self._check(request.log, request.consumer)
            _check_committer(request.committer)
            await self._check_shards(request, deadline)
        call = _Call(
            method="CommitPosition",
            request=request.SerializeToString(),
            here=here,
            parse=log_pb2.CommitPositionResponse.FromString,
            stores=True,
        )
        return await self._at_primary(call, deadline, may_forward=may_forward)

    async def get(
        self, request: log_pb2.GetPositionRequest, *, timeout_s: float, may_forward: bool
    ) -> log_pb2.GetPositionResponse:
        """The position that holds; arguments as for `commit`.

        Raises:
            Refused: UNKNOWN_LOG, INVALID_ARGUMENT, NOT_ENOUGH_PEERS, LAS_UNAVAILABLE and others.
        """

        async def here(log: PositionLog, left_s: float) -> log_pb2.GetPositionResponse:
            position = await log.get(request.log, request.consumer, left_s)
            return log_pb2.GetPositionResponse(position=position)

        if may_forward:
            self._check(request.log, request.consumer)
        call = _Call(
            method="GetPosition",
            request=request.SerializeToString(),
            here=here,
            parse=log_pb2.GetPositionResponse.FromString,
            stores=False,
        )
        deadline = time.monotonic() + timeout_s
        return await self._at_primary(call, deadline, may_forward=may_forward)

    async def page(
        self, request: log_pb2.ListPositionsRequest, *, timeout_s: float, may_forward: bool
    ) -> log_pb2.ListPositionsResponse:
        """A page of a log's consumers; arguments as for `commit`, refusals as of `get`."""

        async def here(log: PositionLog, left_s: float) -> log_pb2.ListPositionsResponse:
            return await log.page(request.log, request.after, left_s)

        if may_forward:
            if request.after:
                _check_consumer("after", request.after)
            self._check_log(request.log)
        call = _Call(
            method="ListPositions",
            request=request.SerializeToString(),
            here=here,
            parse=log_pb2.ListPositionsResponse.FromString,
            stores=False,
        )
        deadline = time.monotonic() + timeout_s
        return await self._at_primary(call, deadline, may_forward=may_forward)

    # -------------------------------------------------------------------------- checks

    def _check(self, log: str, consumer: str) -> None:
        """Checks the names.

        Raises:
            Refused: INVALID_ARGUMENT, UNKNOWN_LOG, MAP_UNKNOWN.
        """
        _check_consumer("consumer", consumer)
        self._check_log(log)

    def _check_log(self, log: str) -> None:
        if is_internal(log):
            raise invalid("log", f"is {log!r}, a log of the system's own: nobody consumes it")
        if self._cache.shards_of(log):
            return
        if self._cache.version == 0:
            message = "this peer has not heard the shard map yet: try again, or another peer"
            raise Refused(refusal(Reason.MAP_UNKNOWN, message, retry_after_ms=MAP_UNKNOWN_RETRY_MS))
        raise Refused(refusal(Reason.UNKNOWN_LOG, unknown_log(log)))

    async def _check_shards(self, request: log_pb2.CommitPositionRequest, deadline: float) -> None:
        """Waits for the map to have the shards that the position names: it may lag behind a split.

        Raises:
            Refused: INVALID_ARGUMENT, UNKNOWN_SHARD.
        """
        offsets = request.position.offsets
        if len(offsets) > POSITION_SHARDS_MAX:
            raise invalid("position", f"names {len(offsets)} shards, at most {POSITION_SHARDS_MAX}")
        while True:
            changed = self._cache.changed
            unknown = [shard for shard in offsets if not self._cache.is_part(request.log, shard)]
            if not unknown:
                return
            left_s = min(deadline - time.monotonic(), MAP_UNKNOWN_RETRY_MS / 1000)
            deadline -= left_s
            if left_s <= 0:
                message = unknown_shard(request.log, unknown[0])
                raise Refused(refusal(Reason.UNKNOWN_SHARD, message))
            await wait_for(changed, left_s)

    # -------------------------------------------------------------------------- to the primary

    async def _at_primary(
        self, call: _Call[Answer], deadline: float, *, may_forward: bool
    ) -> Answer:
        """The primary's answer; tried again until `deadline` (of `time.monotonic`)."""
        in_doubt = False
        while True:
            changed = self._cache.changed
            try:
                return await self._try(call, deadline, may_forward=may_forward)
            except Refused as error:
                refused = error.refusal
            if not may_forward or reason_of(refused) not in _TRY_AGAIN:
                raise Refused(refused)
            in_doubt |= call.stores and refused.taken != errors_pb2.TAKEN_NO
            left_s = max(0.0, deadline - time.monotonic())
            await wait_for(changed, min(left_s, RETRY_STEP_MS / 1000))
            if time.monotonic() >= deadline:
                raise Refused(_told(refused, in_doubt=in_doubt))

    async def _try(self, call: _Call[Answer], deadline: float, *, may_forward: bool) -> Answer:
        shard = await self._shard(deadline, may_forward=may_forward)
        left_s = max(0.0, deadline - time.monotonic())
        target = self._router.primary_of(shard)
        if not may_forward or target is None or self._host.is_primary(shard):
            return await call.here(self._log(shard), left_s)
        return await self._there(call, shard, target, left_s)

    async def _shard(self, deadline: float, *, may_forward: bool) -> ShardId:
        """The shard of `_positions`, which is created if the map has none.

        Raises:
            Refused: MAP_UNKNOWN; LAS_UNAVAILABLE and what else its creation is refused with.
        """
        shards = self._cache.shards_of(POSITIONS_LOG)
        if not shards and may_forward:
            await self._internal_logs.create(POSITIONS_LOG, max(0.0, deadline - time.monotonic()))
            shards = self._cache.shards_of(POSITIONS_LOG)
        if not shards:
            message = f"this peer's map has no log {POSITIONS_LOG!r} yet: try again"
            raise Refused(refusal(Reason.MAP_UNKNOWN, message, retry_after_ms=MAP_UNKNOWN_RETRY_MS))
        return shards[0]

    def _log(self, shard: ShardId) -> PositionLog:
        log = self._logs.get(shard)
        if log is None:
            log = self._logs[shard] = PositionLog(shard, self._services)
        return log

    async def _there(
        self, call: _Call[Answer], shard: ShardId, target: Target, timeout_s: float
    ) -> Answer:
        """Asked of the primary as the map has it; left when the map names another.

        Raises:
            Refused: its refusal, or that nothing is known.
        """
        router = self._router
        if not await router.connected(target.address, min(timeout_s, RETRY_STEP_MS / 1000)):
            raise Refused(_not_reached(target, Taken.NO))
        under_way = router.unary(target.address, call.method, call.parse)(
            call.request, timeout=timeout_s, metadata=router.forward_metadata
        )
        router.watch(shard, target, under_way)
        try:
            answer: Answer = await under_way
        except grpc.aio.AioRpcError as error:
            refused = refusal_of_error(error) or _not_reached(target, Taken.UNKNOWN)
            raise Refused(refused) from error
        except asyncio.CancelledError:
            if not router.unwatch(shard, under_way) or is_cancelled():
                raise
            raise Refused(_not_reached(target, Taken.UNKNOWN)) from None
        finally:
            router.unwatch(shard, under_way)
        return answer


def _check_consumer(field: str, consumer: str) -> None:
    """Checks the name of a consumer.

    Raises:
        Refused: INVALID_ARGUMENT.
    """
    if not LOG_NAME.fullmatch(consumer):
        raise invalid(field, f"is {consumer!r}, must match {LOG_NAME.pattern}")


def _check_committer(committer: bytes) -> None:
    """Checks the name of who commits.

    Raises:
        Refused: INVALID_ARGUMENT.
    """
    if len(committer) not in {0, COMMITTER_BYTES}:
        raise invalid("committer", f"has {len(committer)} bytes, must have {COMMITTER_BYTES}")


def _not_reached(target: Target, taken: Taken) -> errors_pb2.Refusal:
    return refusal(
        Reason.RANGE_UNAVAILABLE,
        f"{target.process.peer} ({target.address}), which keeps the positions, does not answer: "
        "try again",
        taken=taken,
        retry_after_ms=RETRY_AFTER_MS,
    )


def _told(last: errors_pb2.Refusal, *, in_doubt: bool) -> errors_pb2.Refusal:
    """The last refusal as the client gets it, with what is known over all tries."""
    if in_doubt:
        return refusal(
            Reason.OUTCOME_UNKNOWN,
            f"the position may hold, or hold later ({last.message}): commit it again",
            taken=Taken.UNKNOWN,
            retry_after_ms=RETRY_AFTER_MS,
        )
    if reason_of(last) in {Reason.NOT_ENOUGH_PEERS, Reason.LAS_UNAVAILABLE}:
        return last
    return refusal(Reason.RANGE_UNAVAILABLE, last.message, retry_after_ms=RETRY_AFTER_MS)
