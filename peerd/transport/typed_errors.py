"""The last line of every service: whatever goes wrong inside leaves as a typed status.

A `Refused` becomes its google.rpc.Status. A request that cannot be parsed becomes INVALID_ARGUMENT
(grpcio alone would answer INTERNAL). Anything else is a bug: it is logged with its traceback here,
and the caller gets INTERNAL with one line and no traceback.

Must not: swallow an `InvariantViolation`. It is told to `on_bug` as well, because a process with a
broken invariant has to stop.
"""

import asyncio
import contextlib
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from peerd.core.errors import Reason, Taken
from peerd.transport.status import Context, Refused, refusal, refuse
from peerd.v1 import errors_pb2

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
MaybeHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
Behaviour = Callable[..., Any]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Unparsable:
    """Stands in for a request whose bytes are not the message that they should be."""

    why: str


class TypedErrors(grpc.aio.ServerInterceptor):
    """Wraps every method of a server. Stands behind `AuthorizationInterceptor` in its list."""

    def __init__(self, on_bug: Callable[[Exception], None]) -> None:
        """`on_bug` gets each exception that no service expected, after it was logged."""
        self._on_bug = on_bug
        # By method: its handler, and that inside the wrapping.
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[MaybeHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> MaybeHandler:
        """Called by grpc.aio for each call; returns its handler inside the wrapping."""
        handler = await continuation(handler_call_details)
        # Without a handler grpc.aio answers UNIMPLEMENTED by itself.
        if handler is None:
            return None
        method = handler_call_details.method
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = self._wrapped[method] = (handler, self._wrap(handler, method))
        return known[1]

    def _wrap(self, handler: Handler, method: str) -> Handler:
        inner: Behaviour | None
        if handler.request_streaming:
            inner = handler.stream_stream if handler.response_streaming else handler.stream_unary
        else:
            inner = handler.unary_stream if handler.response_streaming else handler.unary_unary
        if inner is None:
            raise TypeError(f"{method} was registered without a function")
        checked = _checked_stream if handler.request_streaming else _checked
        if inspect.isasyncgenfunction(inner):
            behaviour = self._generator(inner, method, checked)
        else:
            behaviour = self._coroutine(inner, method, checked)
        return _MAKERS[handler.request_streaming, handler.response_streaming](
            behaviour, _lenient(handler.request_deserializer), handler.response_serializer
        )

    def _coroutine(self, inner: Behaviour, method: str, checked: "_Check") -> Behaviour:
        async def behave(request: object, context: Context) -> object:
            try:
                return await inner(checked(request, method), context)
            except Exception as error:  # noqa: BLE001 - the one place where every error ends
                return await self._end(error, context, method)

        return behave

    def _generator(self, inner: Behaviour, method: str, checked: "_Check") -> Behaviour:
        # Written here, not yielded to grpc.aio: that logs a trace for each caller that has left.
        async def behave(request: object, context: Context) -> None:
            try:
                async with contextlib.aclosing(inner(checked(request, method), context)) as answers:
                    async for answer in answers:
                        await context.write(answer)
            except Exception as error:  # noqa: BLE001 - the one place where every error ends
                await self._end(error, context, method)

        return behave

    async def _end(self, error: Exception, context: Context, method: str) -> NoReturn:
        ended = _call_end_in(error)
        if ended is not None:
            raise ended
        if isinstance(error, grpc.aio.InternalError):
            raise asyncio.CancelledError(_GONE) from error
        refused = _refused_in(error)
        if refused is not None:
            await _refuse(context, refused.refusal)
        _LOG.error("%s failed unexpectedly", method, exc_info=error)
        self._on_bug(error)
        message = (
            f"{method} failed for a reason that nobody foresaw ({type(error).__name__}); "
            "the log of this process tells more"
        )
        await _refuse(context, refusal(Reason.INTERNAL, message, taken=Taken.UNKNOWN))


# What grpc.aio takes for the ordinary end of a call whose caller went away. It raises its own
# InternalError where a connection broke while something was being written to it.
_GONE = "the caller has gone"


async def _refuse(context: Context, wire: errors_pb2.Refusal) -> NoReturn:
    try:
        await refuse(context, wire)
    except grpc.aio.InternalError as error:
        raise asyncio.CancelledError(_GONE) from error


_Check = Callable[[Any, str], Any]


def _call_end_in(error: Exception) -> Exception | None:
    """What gRPC raises in a handler whose call has ended: by `abort`, or since the server stops."""
    if isinstance(error, ExceptionGroup):
        ends = [_call_end_in(inner) for inner in error.exceptions]
        return ends[0] if all(ends) else None
    misused = isinstance(error, grpc.aio.UsageError | grpc.aio.InternalError)
    return error if isinstance(error, grpc.aio.BaseError) and not misused else None


def _refused_in(error: Exception) -> Refused | None:
    """The refusal that `error` is, or that it carries out of a group of tasks."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, ExceptionGroup):
        for inner in error.exceptions:
            found = _refused_in(inner)
            if found is not None:
                return found
    return None


def _lenient(deserializer: Callable[[bytes], object] | None) -> Callable[[bytes], object] | None:
    """A deserializer that does not raise, so that the answer can be ours."""
    if deserializer is None:
        return None

    def parse(data: bytes) -> object:
        try:
            return deserializer(data)
        except DecodeError as error:
            return _Unparsable(str(error))

    return parse


def _checked(request: object, method: str) -> object:
    """The request, unless it could not be parsed.

    Raises:
        Refused: MALFORMED_BATCH for an append, INVALID_ARGUMENT for any other call.
    """
    if not isinstance(request, _Unparsable):
        return request
    is_append = method.startswith("/peerd.v1.LogService/Append")
    reason = Reason.MALFORMED_BATCH if is_append else Reason.INVALID_ARGUMENT
    raise Refused(
        refusal(
            reason,
            f"the request of {method} is not the protobuf message that it should be "
            f"({request.why}): compare the client's .proto with this version's",
        )
    )


async def _checked_stream(requests: AsyncIterator[object], method: str) -> AsyncIterator[object]:
    async for request in requests:
        yield _checked(request, method)


_MAKERS: Mapping[tuple[bool, bool], Callable[..., Handler]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
