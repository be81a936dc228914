"""Who may call what: one table for all services of peerd and the LAS, and its enforcement.

The table is data. A method that is not in it is refused to everybody, and a test compares it with
the protos, so that a new call cannot be served before it was thought of here.

Must not: look into requests. What depends on contents (a peer reports only about itself, a
member list names the LAS nodes) is checked by the service that understands them.
"""

import contextlib
import inspect
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NoReturn, Protocol, TypeAlias

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from peerd.transport.tls import (
    ForeignClusterError,
    Identity,
    IdentityError,
    Role,
    identity_of,
)
from peerd.v1 import errors_pb2

ERROR_DOMAIN = "peerd"

Roles = frozenset[Role]

_EVERYBODY = frozenset(Role)
_ADMIN = frozenset({Role.ADMIN})
_PEERS = frozenset({Role.PEER})
_LAS = frozenset({Role.LAS})
# A peer that is not the primary passes a client's call on under its own name.
_APPENDERS = _ADMIN | {Role.APPENDER, Role.PEER}
_READERS = _ADMIN | {Role.READER, Role.PEER}
_OPERATORS = _ADMIN | {Role.OPERATOR}
_FORECASTERS = _ADMIN | {Role.FORECASTER}

# Full method or service name -> roles that may call it; a method's entry overrides its service's.
# The calls between processes are closed to administrators as well: they act in the name of the
# caller's certificate, and no person is a peer.
ALLOWED_ROLES: Mapping[str, Roles] = {
    "/peerd.v1.LogService/Append": _APPENDERS,
    "/peerd.v1.LogService/AppendStream": _APPENDERS,
    "/peerd.v1.LogService/Read": _READERS,
    "/peerd.v1.LogService/GetTail": _READERS | _APPENDERS | _OPERATORS,
    "/peerd.v1.LogService/Trim": _OPERATORS,
    "/peerd.v1.LogService/CommitPosition": _READERS,
    "/peerd.v1.LogService/GetPosition": _READERS | _OPERATORS,
    "/peerd.v1.LogService/ListPositions": _READERS | _OPERATORS,
    "/peerd.v1.IncidentService": _OPERATORS,
    "/peerd.internal.v1.ReplicationService": _PEERS,
    "/peerd.internal.v1.ReplicationService/Promise": _LAS,
    "/peerd.internal.v1.ReplicationService/HasBegun": _LAS,
    "/peerd.internal.v1.ReplicationService/FindCuts": _LAS,
    "/peerd.internal.v1.ReplicationService/Hears": _LAS,
    "/las.v1.ShardMapService": _EVERYBODY,
    "/las.v1.FleetService/Register": _PEERS,
    "/las.v1.FleetService/Heartbeat": _PEERS,
    "/las.v1.FleetService/Report": _PEERS,
    "/las.v1.FleetService/GetStatus": _EVERYBODY,
    "/las.v1.FleetService": _OPERATORS,
    "/las.v1.AccessService": _ADMIN,
    "/las.v1.AccessService/GetAccess": _OPERATORS,
    "/las.v1.ForecastService": _OPERATORS,
    "/las.v1.ForecastService/GetForecast": _EVERYBODY,
    "/las.v1.ForecastService/WatchForecast": _EVERYBODY,
    "/las.v1.ForecastService/ReportForecast": _FORECASTERS,
    "/las.v1.HistoryService": _OPERATORS,
    "/las.v1.ModelService": _OPERATORS,
    "/las.v1.LogAdminService": _OPERATORS,
    "/las.v1.LogAdminService/CreateInternalLog": _PEERS,
    # A peer passes an operator's Trim on under its own name.
    "/las.v1.LogAdminService/TrimShard": _OPERATORS | _PEERS,
    "/las.v1.LogAdminService/ListLogs": _EVERYBODY,
    "/las.v1.LogAdminService/DescribeLog": _EVERYBODY,
    "/las.internal.v1.RaftService": _LAS,
    "/grpc.health.v1.Health": _EVERYBODY,
    "/grpc.reflection.v1alpha.ServerReflection": _EVERYBODY,
    "/grpc.reflection.v1.ServerReflection": _EVERYBODY,
}

# In quotes: these classes take type arguments only in their stubs.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
MaybeHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Behaviour: TypeAlias = Callable[[Any, Any], Any]


class Guard(Protocol):
    """What is asked about callers beyond their role (`peerd.transport.access.Access`)."""

    def revocation(self, identity: Identity, context: Context) -> errors_pb2.Refusal | None:
        """Why this caller is refused everywhere; None if it is not."""

    async def run(
        self,
        call: Behaviour,
        request: object,
        context: Context,
        identity: Identity,
        method: str,
    ) -> None:
        """A streaming call, which ends when its caller is refused."""

    def told(self, who: str, role: str, reason: str, method: str, text: str) -> None:
        """A call was refused here."""


def allowed_roles(method: str) -> Roles:
    """Returns who may call `method` (`/package.Service/Method`); nobody if it is not known."""
    service = method.rpartition("/")[0]
    return ALLOWED_ROLES.get(method, ALLOWED_ROLES.get(service, frozenset()))


class AuthorizationInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls of strangers and of roles that may not make them, before a servicer sees them.

    Answers UNAUTHENTICATED (`NO_IDENTITY`), or PERMISSION_DENIED (`WRONG_CLUSTER`,
    `ROLE_NOT_ALLOWED`, `REVOKED`), each as google.rpc.Status with ErrorInfo.
    """

    def __init__(
        self, cluster: str, *, plaintext: bool = False, guard: Guard | None = None
    ) -> None:
        """Guards a server of `cluster`; `plaintext` as in `identity_of`; `guard` knows more."""
        self._cluster = cluster
        self._plaintext = plaintext
        self._guard_of_callers = guard
        # By method: its handler, and that behind the check. What is served is known at the start.
        self._guarded: dict[str, tuple[Handler, Handler]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[MaybeHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> MaybeHandler:
        """Called by grpc.aio for each call; returns its handler behind the check."""
        handler = await continuation(handler_call_details)
        # Without a handler grpc.aio answers UNIMPLEMENTED by itself.
        if handler is None:
            return handler
        method = handler_call_details.method
        known = self._guarded.get(method)
        if known is None or known[0] is not handler:
            known = self._guarded[method] = (handler, self._guard(handler, method))
        return known[1]

    def _guard(self, handler: Handler, method: str) -> Handler:
        """Rebuilds a handler so that the check runs first, whatever the shape of the call."""
        inner: Behaviour | None
        if handler.request_streaming:
            inner = handler.stream_stream if handler.response_streaming else handler.stream_unary
        else:
            inner = handler.unary_stream if handler.response_streaming else handler.unary_unary
        if inner is None:
            raise TypeError(f"{method} was registered without a function")
        # grpc.aio treats an async generator unlike a coroutine that calls context.write().
        if inspect.isasyncgenfunction(inner):
            guarded = self._guarded_generator(inner, method)
        else:
            streaming = handler.request_streaming or handler.response_streaming
            guarded = self._guarded_coroutine(inner, method, streaming=bool(streaming))
        return _MAKERS[handler.request_streaming, handler.response_streaming](
            guarded, handler.request_deserializer, handler.response_serializer
        )

    def _guarded_coroutine(self, inner: Behaviour, method: str, *, streaming: bool) -> Behaviour:
        roles, guard = allowed_roles(method), self._guard_of_callers

        async def guarded(request: object, context: Context) -> object:
            try:
                identity = self._known(context, roles)
                if identity is None:
                    identity = await self._authorize(context, method)
                if streaming and guard is not None:
                    await guard.run(inner, request, context, identity, method)
                    return None
                return await inner(request, context)
            except BaseException as error:
                forget_frames(error)
                del request, context
                raise

        return guarded

    def _guarded_generator(self, inner: Behaviour, method: str) -> Behaviour:
        async def guarded(request: object, context: Context) -> AsyncIterator[object]:
            await self._authorize(context, method)
            async with contextlib.aclosing(inner(request, context)) as answers:
                async for answer in answers:
                    yield answer

        return guarded

    def _known(self, context: Context, roles: Roles) -> Identity | None:
        """The caller, if it has one of `roles` and was not revoked; if not, `_authorize` says what
        is wrong.
        """
        try:
            identity = identity_of(context, self._cluster, plaintext=self._plaintext)
        except IdentityError:
            return None
        guard = self._guard_of_callers
        if guard is not None and guard.revocation(identity, context) is not None:
            return None
        return identity if identity.role in roles else None

    async def _authorize(self, context: Context, method: str) -> Identity:
        """The caller if it may go on; else ends the call (by raising grpcio's abort)."""
        denied, guard = grpc.StatusCode.PERMISSION_DENIED, self._guard_of_callers
        identity: Identity | None = None
        code, reason, why = denied, errors_pb2.ERROR_REASON_UNSPECIFIED, ""
        try:
            identity = identity_of(context, self._cluster, plaintext=self._plaintext)
        except ForeignClusterError as error:
            reason, why = errors_pb2.ERROR_REASON_WRONG_CLUSTER, str(error)
        except IdentityError as error:
            code = grpc.StatusCode.UNAUTHENTICATED
            reason, why = errors_pb2.ERROR_REASON_NO_IDENTITY, str(error)
        else:
            revoked = None if guard is None else guard.revocation(identity, context)
            if revoked is not None:
                reason, why = revoked.reason, revoked.message
            elif identity.role not in allowed_roles(method):
                reason = errors_pb2.ERROR_REASON_ROLE_NOT_ALLOWED
                why = _role_words(identity, method)
            else:
                return identity
        if guard is not None:
            who, role = ("", "") if identity is None else (identity.name, identity.role.value)
            guard.told(who, role, _reason_name(reason), method, why)
        return await _refuse(context, code, reason, why)


def forget_frames(error: BaseException) -> None:
    """Let go of what the frames below hold that `error` came through; those that run keep theirs.

    grpc.aio keeps the exception of an aborted call with the call, and the exception's traceback
    names frames that hold the call: garbage that names itself, up to 2 KB a call, of which the
    collector sees 10 MB before it looks, and what has an asynchronous generator in it even later.
    """
    todo, seen = [error], {id(error)}
    while todo:
        one = todo.pop()
        traceback.clear_frames(one.__traceback__)
        one.__traceback__ = None
        inner = one.exceptions if isinstance(one, BaseExceptionGroup) else ()
        for other in (one.__context__, one.__cause__, *inner):
            if other is not None and id(other) not in seen:
                seen.add(id(other))
                todo.append(other)


def _role_words(identity: Identity, method: str) -> str:
    allowed = sorted(role.value for role in allowed_roles(method))
    if not allowed:
        return f"{method} is open to nobody: this version does not know it"
    return f"{identity.uri} may not call {method}: it is open to {', '.join(allowed)}"


def _reason_name(reason: errors_pb2.ErrorReason.ValueType) -> str:
    return errors_pb2.ErrorReason.Name(reason).removeprefix("ERROR_REASON_")


async def _refuse(
    context: Context, code: grpc.StatusCode, reason: errors_pb2.ErrorReason.ValueType, message: str
) -> NoReturn:
    information = error_details_pb2.ErrorInfo(
        reason=_reason_name(reason),
        domain=ERROR_DOMAIN,
        # Nothing of a refused call was looked at.
        metadata={"taken": "no"},
    )
    status = status_pb2.Status(code=code.value[0], message=message)
    status.details.add().Pack(information)
    await context.abort_with_status(rpc_status.to_status(status))
    raise RuntimeError("abort_with_status returned")


_MAKERS: Mapping[tuple[bool, bool], Callable[..., Handler]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
