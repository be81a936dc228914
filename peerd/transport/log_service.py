"""`peerd.v1.LogService` on a peer: translates, bounds, and hands on to the parts that do the work.

The service is registered with byte-passing twins of the public messages: a batch is looked at once,
where it is checked, and travels as the bytes that it came in. Errors leave through
`peerd.transport.typed_errors`, which every server has in front of its services.
"""

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, cast

import grpc
import grpc.aio

from peerd.core.access import Right
from peerd.core.errors import Reason
from peerd.core.ids import ShardId
from peerd.internal.v1 import log_bytes_pb2
from peerd.transport.access import Access, Caller
from peerd.transport.append_edge import AppendEdge, unknown_shard
from peerd.transport.append_router import AppendRouter
from peerd.transport.append_stream import AppendStream, overloaded
from peerd.transport.caller_limits import CallerUse
from peerd.transport.host_api import AppendHost, ShardHost
from peerd.transport.joining import AppendJoiner
from peerd.transport.las_door import LasDoor
from peerd.transport.limits import (
    ANSWER_RESERVE_MS,
    CALL_WAIT_MS_MAX,
    RETRY_AFTER_MS,
    ByteBudget,
    EdgeLimits,
)
from peerd.transport.map_cache import MapCache
from peerd.transport.options import STREAM_TAKEN
from peerd.transport.position_service import PositionService
from peerd.transport.read_path import Answer, LogRead, ReadServices, ShardRead, Start
from peerd.transport.read_source import ColdSource, ReadSource
from peerd.transport.router import FORWARDED_KEY, ChannelSource, Router
from peerd.transport.status import Context, Refused, refusal
from peerd.transport.tail_service import TailService
from peerd.transport.workload import Workload
from peerd.v1 import log_pb2

SERVICE = "peerd.v1.LogService"


class LogService:
    """The data path of one peer, for clients and for peers that forward their calls."""

    def __init__(
        self,
        host: ShardHost,
        cache: MapCache,
        channels: ChannelSource,
        limits: EdgeLimits,
        las: LasDoor,
        *,
        append_host: AppendHost | None = None,
        budget: ByteBudget | None = None,
        cold: ColdSource | None = None,
        cores_are_scarce: Callable[[], bool] = lambda: False,
        workload: Workload | None = None,
        access: Access | None = None,
        use: CallerUse | None = None,
    ) -> None:
        """Serves over `host`.

        Args:
            host: The shards of this process.
            cache: The map.
            channels: To other peers.
            limits: Bounds.
            las: Asks the LAS for what clients want.
            append_host: Takes the appends in place of `host`: in a front worker, the sequencer.
            budget: Of unanswered bytes, if it is shared; one of the limits' size otherwise.
            cold: The tier, if this peer has one.
            cores_are_scarce: Whether work waits for a core here; asked for each batch.
            workload: Gets what is read; its owner gives it what is appended.
            access: Who may do what to which log; everything is open without it.
            use: Counts what callers ask for, and bounds it; nothing does without it.
        """
        self._access = access or Access("")
        self._use = use if use is not None and use.limits.are_set else None
        self._append_host: AppendHost = append_host or host
        self._cache = cache
        self._limits = limits
        self._router = Router(host, cache, channels)
        self._joiner = AppendJoiner(
            self._append_host, limits.batch_bytes_max, cores_are_scarce=cores_are_scarce
        )
        self._edge = AppendEdge(cache, limits, self._append_host.is_primary)
        self._appends = AppendRouter(self._append_host, self._joiner, cache, self._router)
        self._tails = TailService(host, cache, self._router)
        self._budget = budget or ByteBudget("this peer", limits.inflight_bytes_max)
        self._reads_open = 0
        self._read_services = ReadServices(
            host=host,
            cache=cache,
            source=ReadSource(host, cache, cold),
            router=self._router,
            wait_ms=limits.no_primary_wait_ms,
            workload=workload or Workload(),
        )
        self._las = las
        self._positions = PositionService(self._read_services, las)

    def close(self) -> None:
        """Lets go of the map, and of what waits."""
        self._positions.close()
        self._router.close()

    # -------------------------------------------------------------------------- appending

    async def Append(
        self, request: log_bytes_pb2.AppendRequestBytes, context: Context
    ) -> log_pb2.AppendResponse:
        """One batch, forwarded one hop if another peer is primary.

        Raises:
            Refused: as docs/errors.md says.
        """
        self._access.require(context, request.log, Right.APPEND)
        if self._use is not None:
            self._caller(context).take(len(request.batch))
        append = self._edge.check(request, request.batch)
        if not self._budget.take(len(append.payload)):
            raise Refused(overloaded(self._budget))
        try:
            receipt = await self._appends.append(
                append,
                timeout_s=self._timeout_s(context),
                is_forwarded=partial(_is_forwarded, context),
            )
        finally:
            self._budget.give(len(append.payload))
        return log_pb2.AppendResponse(receipt=receipt)

    async def AppendStream(
        self,
        requests: AsyncIterator[log_bytes_pb2.AppendStreamRequestBytes],
        context: Context,
    ) -> None:
        """Many batches, to shards whose primary this peer is."""
        caller = self._caller(context)
        stream = AppendStream(
            self._append_host,
            self._joiner,
            self._edge,
            self._router,
            peer_budget=self._budget,
            stream_budget=ByteBudget("this stream", self._limits.stream_inflight_bytes_max),
            caller=caller,
        )
        with caller.streaming():
            await context.send_initial_metadata((STREAM_TAKEN,))
            await stream.serve(requests, context)

    def _caller(self, context: Context) -> Caller:
        return Caller(self._access, context, self._use)

    def _admit(self, context: Context, log: str, *rights: Right) -> None:
        """Raises `Refused`: NOT_GRANTED, OVERLOADED."""
        self._access.require(context, log, *rights)
        if self._use is not None:
            self._caller(context).take(0)

    def _timeout_s(self, context: Context) -> float:
        # None without a deadline, which grpc's types do not say.
        left_s = cast("float | None", context.time_remaining())
        if left_s is None:
            return self._limits.no_primary_wait_ms / 1000
        return min(max(0.0, left_s - ANSWER_RESERVE_MS / 1000), CALL_WAIT_MS_MAX / 1000)

    # -------------------------------------------------------------------------- reading

    async def Read(self, request: log_pb2.ReadRequest, context: Context) -> None:
        """One shard, or all of a log.

        Raises:
            Refused: as docs/errors.md says.
        """
        if self._reads_open >= self._limits.reads_max:
            raise Refused(
                refusal(
                    Reason.OVERLOADED,
                    f"{self._reads_open} reads are open on this peer, the bound: try another peer",
                    retry_after_ms=RETRY_AFTER_MS,
                )
            )
        caller = self._caller(context)
        caller.require(request.log, Right.READ)
        caller.take(0)
        self._reads_open += 1
        try:
            with caller.watching(request.log, Right.READ), caller.streaming():
                await self._read(request, context, caller)
        finally:
            self._reads_open -= 1

    async def _read(self, request: log_pb2.ReadRequest, context: Context, caller: Caller) -> None:
        async def write(answer: log_bytes_pb2.ReadResponseBytes | Answer) -> None:
            await context.write(answer)
            if self._use is not None:
                await caller.sent(answer.ByteSize())

        shards = self._tails.shards_of(request.log)
        if not request.HasField("shard"):
            if request.WhichOneof("start") == "offset":
                message = "start.offset needs a shard: offsets count within one"
                raise Refused(refusal(Reason.INVALID_ARGUMENT, message))
            reads = [self._shard_read(request, shard, context) for shard in shards]
            await LogRead(reads, write).run()
            return
        shard = ShardId(request.shard)
        if shard not in shards:
            raise Refused(refusal(Reason.UNKNOWN_SHARD, unknown_shard(request.log, shard)))
        read = self._shard_read(request, shard, context)
        read.is_alone = True
        async for answer in read.messages():
            await write(answer)

    def _shard_read(
        self, request: log_pb2.ReadRequest, shard: ShardId, context: Context
    ) -> ShardRead:
        return ShardRead(
            services=self._read_services,
            log=request.log,
            shard=shard,
            start=_start(request, shard),
            follow=request.follow,
            local=getattr(request, "from") == log_pb2.READ_FROM_LOCAL,
            may_forward=not _is_forwarded(context),
        )

    async def GetTail(
        self, request: log_pb2.GetTailRequest, context: Context
    ) -> log_pb2.GetTailResponse:
        """The committed end of one shard or of all.

        Raises:
            Refused: UNKNOWN_LOG, UNKNOWN_SHARD; a linearizable tail that nobody confirms in time:
                NOT_ENOUGH_PEERS.
        """
        self._admit(context, request.log, Right.READ, Right.APPEND, Right.ADMINISTER)
        return await self._tails.tails(
            request,
            timeout_s=self._timeout_s(context),
            may_forward=not _is_forwarded(context),
        )

    # -------------------------------------------------------------------------- trimming

    async def Trim(self, request: log_pb2.TrimRequest, context: Context) -> log_pb2.TrimResponse:
        """Has the LAS forget what lies below an offset.

        Raises:
            Refused: UNKNOWN_LOG, UNKNOWN_SHARD, INVALID_ARGUMENT, STATE_CHANGED, RANGE_UNAVAILABLE,
                LAS_UNAVAILABLE.
        """
        self._admit(context, request.log, Right.ADMINISTER)
        first_offset = await self._las.trim(
            request.log,
            ShardId(request.shard),
            request.before_offset,
            self._timeout_s(context),
        )
        return log_pb2.TrimResponse(first_offset=first_offset)

    # -------------------------------------------------------------------------- positions

    async def CommitPosition(
        self, request: log_pb2.CommitPositionRequest, context: Context
    ) -> log_pb2.CommitPositionResponse:
        """Stores a consumer's position.

        Raises:
            Refused: UNKNOWN_LOG, UNKNOWN_SHARD, INVALID_ARGUMENT, LIMIT_REACHED, OUTCOME_UNKNOWN.
        """
        self._admit(context, request.log, Right.READ)
        return await self._positions.commit(
            request,
            timeout_s=self._timeout_s(context),
            may_forward=not _is_forwarded(context),
        )

    async def GetPosition(
        self, request: log_pb2.GetPositionRequest, context: Context
    ) -> log_pb2.GetPositionResponse:
        """Reads a consumer's position.

        Raises:
            Refused: UNKNOWN_LOG, INVALID_ARGUMENT, NOT_ENOUGH_PEERS, RANGE_UNAVAILABLE.
        """
        self._admit(context, request.log, Right.READ, Right.ADMINISTER)
        return await self._positions.get(
            request,
            timeout_s=self._timeout_s(context),
            may_forward=not _is_forwarded(context),
        )

    async def ListPositions(
        self, request: log_pb2.ListPositionsRequest, context: Context
    ) -> log_pb2.ListPositionsResponse:
        """Lists the consumers of a log.

        Raises:
            Refused: UNKNOWN_LOG, INVALID_ARGUMENT, NOT_ENOUGH_PEERS, RANGE_UNAVAILABLE.
        """
        self._admit(context, request.log, Right.READ, Right.ADMINISTER)
        return await self._positions.page(
            request,
            timeout_s=self._timeout_s(context),
            may_forward=not _is_forwarded(context),
        )


def add_log_service(server: grpc.aio.Server, service: LogService) -> None:
    """Registers the service with the twins of its messages, which have the same wire form."""
    unary, stream = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Append": unary(
            _any(service.Append),
            log_bytes_pb2.AppendRequestBytes.FromString,
            log_pb2.AppendResponse.SerializeToString,
        ),
        "AppendStream": stream(
            _any(service.AppendStream),
            log_bytes_pb2.AppendStreamRequestBytes.FromString,
            log_pb2.AppendStreamResponse.SerializeToString,
        ),
        "Read": grpc.unary_stream_rpc_method_handler(
            _any(service.Read),
            log_pb2.ReadRequest.FromString,
            lambda answer: answer.SerializeToString(),
        ),
        "GetTail": unary(
            _any(service.GetTail),
            log_pb2.GetTailRequest.FromString,
            log_pb2.GetTailResponse.SerializeToString,
        ),
        "Trim": unary(
            _any(service.Trim),
            log_pb2.TrimRequest.FromString,
            log_pb2.TrimResponse.SerializeToString,
        ),
        "CommitPosition": unary(
            _any(service.CommitPosition),
            log_pb2.CommitPositionRequest.FromString,
            log_pb2.CommitPositionResponse.SerializeToString,
        ),
        "GetPosition": unary(
            _any(service.GetPosition),
            log_pb2.GetPositionRequest.FromString,
            log_pb2.GetPositionResponse.SerializeToString,
        ),
        "ListPositions": unary(
            _any(service.ListPositions),
            log_pb2.ListPositionsRequest.FromString,
            log_pb2.ListPositionsResponse.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def _any(behaviour: Callable[..., Any]) -> Callable[..., Any]:
    """The method without its type: grpc's types know servers that block, not those that await."""
    return behaviour


def _start(request: log_pb2.ReadRequest, shard: ShardId) -> Start:
    kind = request.WhichOneof("start")
    if kind == "offset":
        return Start(offset=request.offset)
    if kind == "timestamp_ms":
        return Start(timestamp_ms=request.timestamp_ms)
    if kind == "latest" and request.latest:
        return Start(latest=True)
    if kind == "resume" and shard in request.resume.offsets:
        return Start(offset=request.resume.offsets[shard], resumed=True)
    return Start()


def _is_forwarded(context: Context) -> bool:
    return any(key == FORWARDED_KEY for key, _ in context.invocation_metadata() or ())
