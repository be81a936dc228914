"""A server whose services are registered together answers, and looks at one task a call."""

import asyncio

import grpc
import grpc.aio

from peerd.transport.registration import together
from peerd.v1 import log_pb2, log_pb2_grpc


class Log(log_pb2_grpc.LogServiceServicer):
    async def Append(self, request, context):
        return log_pb2.AppendResponse()


async def tasks_while_serving(register):
    """How many more tasks there are while a server waits for calls, after it has answered one."""
    before = len(asyncio.all_tasks())
    server = grpc.aio.server()
    register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        append = channel.unary_unary(
            "/peerd.v1.LogService/Append",
            log_pb2.AppendRequest.SerializeToString,
            log_pb2.AppendResponse.FromString,
        )
        assert await append(log_pb2.AppendRequest()) == log_pb2.AppendResponse()
        waiting = len(asyncio.all_tasks()) - before
    await server.stop(0)
    return waiting


async def test_no_task_is_there_for_each_method():
    methods = len(log_pb2.DESCRIPTOR.services_by_name["LogService"].methods)

    def by_name(server):
        log_pb2_grpc.add_LogServiceServicer_to_server(Log(), server)

    def all_together(server):
        log_pb2_grpc.add_LogServiceServicer_to_server(Log(), together(server))

    # Those of the server itself and of the call that is just over, which are fewer.
    assert await tasks_while_serving(all_together) < methods
    assert await tasks_while_serving(by_name) >= methods
