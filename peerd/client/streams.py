"""One `AppendStream` per peer: what shards send there is joined, what comes back is handed out.

Invariants:
- A batch that was given to `send` is answered once: by `answered`, or by `lost` when the stream
  breaks. `has_left` says whether it may have arrived.
- Nothing is written before the connection is up: until then it is certain that nothing was sent.
- What its pipeline has meanwhile sent elsewhere (another request id) is not written any more.

Must not: decide where a batch goes, or send it again.
"""

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import grpc
import grpc.aio

from peerd.client.directory import ClientChannels
from peerd.client.options import APPENDS_PER_MESSAGE_MAX, MESSAGE_BYTES_MAX, RETRY_STEP_S
from peerd.internal.v1 import log_bytes_pb2
from peerd.transport.status import refusal_of_error
from peerd.v1 import errors_pb2, log_pb2

_METHOD = "/peerd.v1.LogService/AppendStream"


class Sender(Protocol):
    """Who gave a batch to a stream."""

    def is_current(self, sent: "Sent") -> bool:
        """Whether this sending still counts."""

    def answered(self, sent: "Sent", result: log_pb2.AppendResult) -> None:
        """The peer answered."""

    def lost(self, sent: "Sent", why: errors_pb2.Refusal | None) -> None:
        """The stream broke before the answer; `why` if the peer said so."""


@dataclass(slots=True, eq=False)
class Sent:
    """One sending of a batch. A later one of the same batch has another id."""

    request_id: int
    batch: object
    sender: Sender
    append: log_bytes_pb2.AppendRequestBytes
    has_left: bool = False
    """It was given to the connection: from here on it may arrive."""


class PeerStream:
    """The stream to one address. It opens when there is something to send, again and again."""

    def __init__(self, address: str, channels: ClientChannels) -> None:
        self.address = address
        self._channel = channels.to(address)
        self._outbox: deque[Sent] = deque()
        self._unanswered: dict[int, Sent] = {}
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"peerd stream to {address}")

    def send(self, sent: Sent) -> None:
        """Queues one sending. What bounds the queue is the client's byte budget."""
        self._outbox.append(sent)
        self._news.set()

    async def close(self) -> None:
        """Ends the stream; what is unanswered stays so."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        while True:
            await self._news.wait()
            await self._connected()
            why: errors_pb2.Refusal | None = None
            try:
                await self._converse()
            except grpc.aio.AioRpcError as error:
                why = refusal_of_error(error)
            self._lose_all(why)
            # A peer that accepts streams and ends them at once must not be asked without a pause.
            await asyncio.sleep(RETRY_STEP_S)

    async def _connected(self) -> None:
        state = self._channel.get_state(try_to_connect=True)
        while state is not grpc.ChannelConnectivity.READY:
            await self._channel.wait_for_state_change(state)
            state = self._channel.get_state(try_to_connect=True)

    async def _converse(self) -> None:
        """Writes and reads until the stream breaks.

        Raises:
            grpc.aio.AioRpcError: how it ended.
        """
        call = self._channel.stream_stream(
            _METHOD,
            log_bytes_pb2.AppendStreamRequestBytes.SerializeToString,
            log_pb2.AppendStreamResponse.FromString,
        )()
        writing = asyncio.create_task(self._write_all(call))
        try:
            async for response in call:
                for result in response.results:
                    sent = self._unanswered.pop(result.request_id, None)
                    if sent is not None:
                        sent.sender.answered(sent, result)
        finally:
            writing.cancel()
            call.cancel()
            # Its failure is the stream's, which the reading side reports.
            await asyncio.gather(writing, return_exceptions=True)

    async def _write_all(self, call: grpc.aio.StreamStreamCall) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._outbox:
                message = self._take()
                if message.appends:
                    await call.write(message)

    def _take(self) -> log_bytes_pb2.AppendStreamRequestBytes:
        """The next message; its appends count as sent from here on."""
        message = log_bytes_pb2.AppendStreamRequestBytes()
        appends = message.appends
        size = 0
        while self._outbox and len(appends) < APPENDS_PER_MESSAGE_MAX:
            sent = self._outbox[0]
            # Each look at the bytes of a message copies them.
            batch_bytes = len(sent.append.batch)
            if appends and size + batch_bytes > MESSAGE_BYTES_MAX:
                break
            self._outbox.popleft()
            if not sent.sender.is_current(sent):
                continue
            size += batch_bytes
            sent.has_left = True
            self._unanswered[sent.request_id] = sent
            # In place: a message that is made apart and then put into another is copied once more.
            appends.add(request_id=sent.request_id, append=sent.append)
        return message

    def _lose_all(self, why: errors_pb2.Refusal | None) -> None:
        unanswered, self._unanswered = self._unanswered, {}
        waiting, self._outbox = self._outbox, deque()
        self._news.clear()
        for sent in (*unanswered.values(), *waiting):
            sent.sender.lost(sent, why)


class Streams:
    """The streams of a client, by address."""

    def __init__(self, channels: ClientChannels) -> None:
        self._channels = channels
        self._streams: dict[str, PeerStream] = {}
        self.next_request_id: Callable[[], int] = itertools.count(1).__next__

    def to(self, address: str) -> PeerStream:
        """The stream to `address`."""
        stream = self._streams.get(address)
        if stream is None:
            stream = PeerStream(address, self._channels)
            self._streams[address] = stream
        return stream

    async def close(self) -> None:
        """Ends them all."""
        for stream in self._streams.values():
            await stream.close()
