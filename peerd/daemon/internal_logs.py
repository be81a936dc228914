"""Has the LAS create the system's own logs when this peer first needs one.

Must not: hold up anything but the call that needs the log; appends and reads never do.
"""

import asyncio
import time
from collections.abc import Sequence

import grpc.aio

from las.v1 import log_admin_pb2, log_admin_pb2_grpc
from peerd.core.errors import Reason
from peerd.daemon.channels import Channels
from peerd.transport.limits import RETRY_AFTER_MS, RETRY_STEP_MS
from peerd.transport.status import Refused, reason_of, refusal, refusal_of_error
from peerd.v1 import errors_pb2

# How long one LAS node may take before another one is asked; a commit takes milliseconds. Seconds.
TRY_TIMEOUT_S = 2.0

_TRY_AGAIN = frozenset({Reason.NOT_LAS_LEADER, Reason.LAS_UNAVAILABLE, Reason.SHUTTING_DOWN})


class LasCreates:
    """`peerd.transport.internal_logs.InternalLogs` by asking whichever LAS node leads."""

    def __init__(self, addresses: Sequence[str], channels: Channels) -> None:
        self._addresses = tuple(addresses)
        self._channels = channels

    async def create(self, name: str, timeout_s: float) -> None:
        """See `InternalLogs`."""
        deadline = time.monotonic() + timeout_s
        last = "no LAS node was asked"
        while True:
            for address in self._addresses:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    message = f"log {name!r} could not be created, which needs the LAS: {last}"
                    raise Refused(
                        refusal(Reason.LAS_UNAVAILABLE, message, retry_after_ms=RETRY_AFTER_MS)
                    )
                refused = await self._try(address, name, min(left_s, TRY_TIMEOUT_S))
                if refused is None:
                    return
                if reason_of(refused) not in _TRY_AGAIN:
                    raise Refused(refused)
                last = refused.message
            await asyncio.sleep(RETRY_STEP_MS / 1000)

    async def _try(self, address: str, name: str, timeout_s: float) -> errors_pb2.Refusal | None:
        """One node's refusal; None if the log is there now."""
        stub = log_admin_pb2_grpc.LogAdminServiceStub(self._channels.to(address))
        request = log_admin_pb2.CreateInternalLogRequest(name=name)
        try:
            await stub.CreateInternalLog(
                request, timeout=timeout_s, metadata=self._channels.metadata
            )
        except grpc.aio.AioRpcError as error:
            return refusal_of_error(error) or refusal(
                Reason.LAS_UNAVAILABLE, f"{address}: {error.code().name}"
            )
        return None
