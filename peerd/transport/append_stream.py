"""`AppendStream`: many appends on one stream, with no task and no future per append.

Requests go straight from the message into the host; the host's answers gather in an outbox, and
whatever is in it when the writer comes round leaves as one message. So a busy stream costs a few
messages a second, not a few per append.

Invariants:
- Every append of the stream is answered exactly once, unless the stream ends first; then the client
  knows that what was not answered is unknown.
- Receipts of one shard leave in offset order: the order in which the host gives them.
- Unanswered bytes are bounded per stream and per peer; beyond that an append is refused with
  OVERLOADED at once, taken = no.
"""

import asyncio
from collections.abc import AsyncIterator
from functools import partial

from peerd.core.access import Right
from peerd.core.effects import AppendAccepted
from peerd.core.errors import Reason
from peerd.internal.v1 import log_bytes_pb2
from peerd.transport.access import Caller
from peerd.transport.append_edge import AppendEdge, invalid
from peerd.transport.append_router import disk_reserve, encode_receipt
from peerd.transport.host_api import AppendHost, AppendOutcome
from peerd.transport.joining import AppendJoiner
from peerd.transport.limits import (
    APPENDS_PER_MESSAGE_MAX,
    RESULTS_PER_MESSAGE_MAX,
    RETRY_AFTER_MS,
    ByteBudget,
)
from peerd.transport.router import Router
from peerd.transport.status import Context, Refused, encode_refusal, refusal
from peerd.v1 import errors_pb2, log_pb2


class AppendStream:
    """One call of `AppendStream`."""

    def __init__(
        self,
        host: AppendHost,
        joiner: AppendJoiner,
        edge: AppendEdge,
        router: Router,
        *,
        peer_budget: ByteBudget,
        stream_budget: ByteBudget,
        caller: Caller,
    ) -> None:
        self._host = host
        self._joiner = joiner
        self._edge = edge
        self._router = router
        self._caller = caller
        self._budgets = (stream_budget, peer_budget)
        self._outbox: list[log_pb2.AppendResult] = []
        self._news = asyncio.Event()
        self._unanswered = 0

    async def serve(
        self,
        requests: AsyncIterator[log_bytes_pb2.AppendStreamRequestBytes],
        context: Context,
    ) -> None:
        """Takes and answers until the client has ended its side and everything is answered.

        Raises:
            Refused: the stream as a whole cannot go on: INVALID_ARGUMENT, MALFORMED_BATCH.
        """
        taking = asyncio.create_task(self._take_all(requests), name="append stream requests")
        taking.add_done_callback(lambda _: self._news.set())
        try:
            # Written by this task alone, and never cancelled for a failure of the other one: gRPC
            # cannot end a call properly while a write of it is under way.
            await self._answer_all(context, taking)
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)

    # -------------------------------------------------------------------------- requests

    async def _take_all(
        self, requests: AsyncIterator[log_bytes_pb2.AppendStreamRequestBytes]
    ) -> None:
        async for request in requests:
            if len(request.appends) > APPENDS_PER_MESSAGE_MAX:
                raise invalid("appends", f"has more than {APPENDS_PER_MESSAGE_MAX} entries")
            for append in request.appends:
                self._take(append)

    def _take(self, stream_append: log_bytes_pb2.StreamAppendBytes) -> None:
        request_id, request = stream_append.request_id, stream_append.append
        payload = request.batch
        size = len(payload)
        self._unanswered += 1
        for index, budget in enumerate(self._budgets):
            if not budget.take(size):
                for taken in self._budgets[:index]:
                    taken.give(size)
                self._put(request_id, refusal=overloaded(budget))
                return
        try:
            self._caller.require(request.log, Right.APPEND)
            self._caller.take(size)
            if not request.HasField("shard"):
                raise invalid("shard", "is required on a stream: use Append to be routed")
            append = self._edge.check(request, payload)
            if self._host.space_in_reserve and self._host.is_primary(append.shard):
                raise Refused(disk_reserve())
        except Refused as refused:
            self._give_back(size)
            self._put(request_id, refusal=refused.refusal)
            return
        self._joiner.append(append, partial(self._done, request_id, append.log, size))

    # -------------------------------------------------------------------------- answers

    def _done(self, request_id: int, log: str, size: int, outcome: AppendOutcome) -> None:
        """Called by the host, on the event loop, also after the stream has ended."""
        self._give_back(size)
        if isinstance(outcome, AppendAccepted):
            self._outbox.append(
                log_pb2.AppendResult(request_id=request_id, receipt=encode_receipt(log, outcome))
            )
            self._news.set()
        else:
            self._put(request_id, refusal=encode_refusal(outcome, self._router.address_of))

    def _put(self, request_id: int, *, refusal: errors_pb2.Refusal) -> None:
        self._outbox.append(log_pb2.AppendResult(request_id=request_id, refusal=refusal))
        self._news.set()

    def _give_back(self, size: int) -> None:
        for budget in self._budgets:
            budget.give(size)

    async def _answer_all(self, context: Context, taking: "asyncio.Task[None]") -> None:
        while not (taking.done() and self._unanswered == 0):
            await self._news.wait()
            self._news.clear()
            results, self._outbox = self._outbox, []
            self._unanswered -= len(results)
            for start in range(0, len(results), RESULTS_PER_MESSAGE_MAX):
                part = results[start : start + RESULTS_PER_MESSAGE_MAX]
                await context.write(log_pb2.AppendStreamResponse(results=part))
            if taking.done():
                # Raises what ended it; what is still unanswered stays so.
                taking.result()


def overloaded(budget: ByteBudget) -> errors_pb2.Refusal:
    """OVERLOADED for a budget that has no room."""
    return refusal(
        Reason.OVERLOADED,
        f"{budget.used_bytes} of {budget.bytes_max} bytes of {budget.whose} are unanswered: "
        f"wait {RETRY_AFTER_MS} ms and send it again",
        retry_after_ms=RETRY_AFTER_MS,
    )
