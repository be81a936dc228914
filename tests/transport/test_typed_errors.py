"""What ends a call in gRPC itself is no bug; what nobody foresaw is one, told in one line."""

import asyncio

import grpc.aio
import pytest
from grpc._cython import cygrpc

from peerd.transport.typed_errors import TypedErrors


class Aborting:
    """A context that keeps what the caller would get."""

    def __init__(self) -> None:
        self.status: grpc.Status | None = None

    async def abort_with_status(self, status):
        self.status = status
        raise grpc.aio.AbortError(status.details)


def behaviour(error: Exception, bugs: list[Exception]):
    async def serve(request, context):
        raise error

    handler = grpc.unary_unary_rpc_method_handler(serve)
    return TypedErrors(bugs.append)._wrap(handler, "/test/Call").unary_unary


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("end", [cygrpc._ServerStoppedError, grpc.aio.AbortError])
async def test_a_call_that_ends_with_its_server_is_no_bug(end, grouped, caplog):
    bugs: list[Exception] = []
    error = end("Server already stopped.")
    raised = ExceptionGroup("tasks", [error]) if grouped else error
    with pytest.raises(end):
        await behaviour(raised, bugs)(b"", Aborting())
    assert not bugs
    assert not caplog.records


async def test_a_misuse_of_grpc_is_a_bug():
    bugs: list[Exception] = []
    context = Aborting()
    with pytest.raises(grpc.aio.AbortError):
        await behaviour(grpc.aio.UsageError("no"), bugs)(b"", context)
    assert len(bugs) == 1
    assert context.status is not None
    assert "the log of this process tells more" in context.status.details


async def test_a_caller_that_leaves_in_the_middle_of_a_stream_is_no_error(caplog):
    """Written by grpc.aio itself, an answer to nobody would be logged with a trace."""
    bugs: list[Exception] = []
    written: list[object] = []
    closed: list[bool] = []

    async def answers(_request, _context):
        try:
            for number in range(10):
                yield number
        finally:
            closed.append(True)

    class Leaving(Aborting):
        async def write(self, answer):
            written.append(answer)
            if answer == 3:
                raise grpc.aio.InternalError("the connection broke")

    handler = grpc.unary_stream_rpc_method_handler(answers)
    behave = TypedErrors(bugs.append)._wrap(handler, "/test/Read").unary_stream
    with pytest.raises(asyncio.CancelledError):
        await behave(b"", Leaving())
    assert written == [0, 1, 2, 3]
    assert closed == [True]
    assert not bugs
    assert not caplog.records
