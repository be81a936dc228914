"""How services are registered with a server, so that a call costs the same however many there are.

Generated code registers each method by its name as well as all of a service together. grpc.aio then
has a task for each such method that waits for its next call, and at every call of any method it
looks at all of these tasks: with the eight methods of a front worker a sixth of its Python, and a
LAS node has five times as many. Registered together alone, one task waits for all of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import grpc
import grpc.aio


class _Together:
    """Takes what generated code registers, and leaves out the methods by their names."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: "Sequence[grpc.GenericRpcHandler]") -> None:
        """All methods of a service."""
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(
        self, service: str, handlers: "Mapping[str, grpc.RpcMethodHandler[Any, Any]]"
    ) -> None:
        """The same methods, one by one: not needed."""


def together(server: grpc.aio.Server) -> grpc.aio.Server:
    """What is to be given to generated `add_…_to_server` in place of `server`."""
    return cast(grpc.aio.Server, _Together(server))
