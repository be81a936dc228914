"""Asks whichever LAS node leads for what clients want of a peer: internal logs, trims.

Must not: hold up anything but the call that needs it; appends and reads never do.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import grpc.aio

from las.v1 import log_admin_pb2, log_admin_pb2_grpc
from peerd.core.errors import Reason
from peerd.core.ids import ShardId
from peerd.transport.channels import Channels
from peerd.transport.limits import RETRY_AFTER_MS, RETRY_STEP_MS
from peerd.transport.status import Refused, reason_of, refusal, refusal_of_error

# How long one LAS node may take before another one is asked; a commit takes milliseconds. Seconds.
TRY_TIMEOUT_S = 2.0

_TRY_AGAIN = frozenset({Reason.NOT_LAS_LEADER, Reason.LAS_UNAVAILABLE, Reason.SHUTTING_DOWN})

Answer = TypeVar("Answer")
Call = Callable[["log_admin_pb2_grpc.LogAdminServiceAsyncStub", float], Awaitable[Answer]]
"""Makes a call at one LAS node, with a timeout in seconds."""


class LasDoor:
    """Fulfils `peerd.transport.las_door.LasDoor`."""

    def __init__(self, addresses: Sequence[str], channels: Channels) -> None:
        self._addresses = tuple(addresses)
        self._channels = channels

    async def create(self, name: str, timeout_s: float) -> None:
        """See `InternalLogs`."""
        request = log_admin_pb2.CreateInternalLogRequest(name=name)
        await self._ask(
            lambda stub, left_s: stub.CreateInternalLog(
                request, timeout=left_s, metadata=self._channels.metadata
            ),
            f"log {name!r} could not be created",
            timeout_s,
        )

    async def trim(self, log: str, shard: ShardId, before: int, timeout_s: float) -> int:
        """See `LasDoor`. A trim that was committed and is asked for again changes nothing."""
        request = log_admin_pb2.TrimShardRequest(log=log, shard=shard, before_offset=before)
        answer = await self._ask(
            lambda stub, left_s: stub.TrimShard(
                request, timeout=left_s, metadata=self._channels.metadata
            ),
            f"shard {shard} could not be trimmed",
            timeout_s,
        )
        return answer.first_offset

    async def _ask(self, call: Call[Answer], failed: str, timeout_s: float) -> Answer:
        """The leader's answer. Raises `Refused`: its refusal, or LAS_UNAVAILABLE in the end."""
        deadline = time.monotonic() + timeout_s
        last = "no LAS node was asked"
        while True:
            for address in self._addresses:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    message = f"{failed}, which needs the LAS: {last}"
                    raise Refused(
                        refusal(Reason.LAS_UNAVAILABLE, message, retry_after_ms=RETRY_AFTER_MS)
                    )
                stub = log_admin_pb2_grpc.LogAdminServiceStub(self._channels.to(address))
                try:
                    return await call(stub, min(left_s, TRY_TIMEOUT_S))
                except grpc.aio.AioRpcError as error:
                    refused = refusal_of_error(error)
                    if refused is not None and reason_of(refused) not in _TRY_AGAIN:
                        raise Refused(refused) from error
                    last = f"{address}: {error.code().name}" if refused is None else refused.message
            await asyncio.sleep(RETRY_STEP_MS / 1000)
