"""Calls that any peer answers: asked of one after another until one does.

Only for calls that may be made twice.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc.aio

from peerd.client.directory import Directory
from peerd.client.errors import (
    OutcomeUnknown,
    PeerdError,
    Unavailable,
    UnknownLog,
    error_of_call,
)
from peerd.client.known_logs import KnownLogs
from peerd.client.las import TRY_TIMEOUT_S
from peerd.client.options import RETRY_STEP_S
from peerd.transport.channels import Channels
from peerd.v1 import log_pb2_grpc

Answer = TypeVar("Answer")
Call = Callable[["log_pb2_grpc.LogServiceAsyncStub", float], Awaitable[Answer]]

# Errors that another peer, or the same one later, may not have.
_PASSING = (Unavailable, OutcomeUnknown)


class AnyPeer:
    """The peers of the map, as those who answer a question."""

    def __init__(
        self,
        directory: Directory,
        channels: Channels,
        known_logs: KnownLogs,
        timeout_s: float,
        check_open: Callable[[], None],
    ) -> None:
        """`timeout_s` bounds each call, tries at several peers included; `check_open` raises when
        the client is closed.
        """
        self._directory = directory
        self._channels = channels
        self._known_logs = known_logs
        self._timeout_s = timeout_s
        self._check_open = check_open

    async def ask(self, log: str, what: str, call: Call[Answer]) -> Answer:
        """The answer of the first peer that gives one about `log`. `what` names the call in errors.

        Raises:
            UnknownLog: there is no such log.
            PeerdError: the refusal of a peer, unless another one may answer; the last one when
                nobody answered in time.
        """
        deadline = time.monotonic() + self._timeout_s
        await self._known_logs.require(log)
        last: PeerdError = Unavailable("no peer is up: check the cluster (`peerctl status`)")
        while (left_s := deadline - time.monotonic()) > 0:
            self._check_open()
            for address in self._addresses():
                stub = log_pb2_grpc.LogServiceStub(self._channels.to(address))
                try:
                    return await call(stub, min(left_s, TRY_TIMEOUT_S))
                except grpc.aio.AioRpcError as error:
                    last = error_of_call(error, f"{what} at {address}")
                    if isinstance(last, UnknownLog):
                        # The map here has it, so that peer's map lags, or the one here does.
                        await self._known_logs.exists(log)
                    elif not isinstance(last, _PASSING):
                        raise last from error
            await asyncio.sleep(RETRY_STEP_S)
        raise last

    def _addresses(self) -> list[str]:
        nodes = self._directory.cache.nodes.values()
        return [node.address for node in nodes if node.up and node.address]
