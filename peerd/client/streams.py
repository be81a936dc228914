"""One `AppendStream` per peer: what shards send there is joined, what comes back is handed out.

Invariants:
- A batch that was given to `send` is answered once: by `answered`, or by `lost` when the stream
  breaks. `has_left` says whether it may have arrived.
- Nothing is written before the connection is up: until then it is certain that nothing was sent.
- Nothing is written before the peer has let the stream in. Where a call ends while something is
  written into it, grpc.aio reports an INTERNAL of its own in place of the peer's refusal, and a
  batch that was surely not taken would end as unknown.
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

from peerd.client.options import (
    APPENDS_PER_MESSAGE_MAX,
    MESSAGE_BYTES_MAX,
    RETRY_STEP_S,
    STREAM_TAKEN_WAIT_S,
)
from peerd.internal.v1 import log_bytes_pb2
from peerd.transport.channels import Channels
from peerd.transport.options import STREAM_TAKEN
from peerd.transport.status import refusal_of_error
from peerd.transport.wire_form import sized_tag, varint
from peerd.v1 import errors_pb2, log_pb2

_METHOD = "/peerd.v1.LogService/AppendStream"
_APPENDS_TAG = sized_tag(log_bytes_pb2.AppendStreamRequestBytes.APPENDS_FIELD_NUMBER)
_APPEND_TAG = sized_tag(log_bytes_pb2.StreamAppendBytes.APPEND_FIELD_NUMBER)
_BATCH_TAG = sized_tag(log_bytes_pb2.AppendRequestBytes.BATCH_FIELD_NUMBER)

AppendCall = grpc.aio.StreamStreamCall[bytes, log_pb2.AppendStreamResponse]


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
    """What is said of the batch; its bytes stand apart."""
    payload: bytes
    has_left: bool = False
    """It was given to the connection: from here on it may arrive."""


def _serialized(sent: Sent) -> tuple[bytes, ...]:
    """An append as an element of a serialized `AppendStreamRequest`: what comes before the batch,
    and the batch.
    """
    append = sent.append.SerializeToString() + _BATCH_TAG + varint(len(sent.payload))
    stream_append = (
        log_bytes_pb2.StreamAppendBytes(request_id=sent.request_id).SerializeToString()
        + _APPEND_TAG
        + varint(len(append) + len(sent.payload))
        + append
    )
    length = varint(len(stream_append) + len(sent.payload))
    return _APPENDS_TAG, length, stream_append, sent.payload


class PeerStream:
    """The stream to one address. It opens when there is something to send, again and again."""

    def __init__(self, address: str, channels: Channels) -> None:
        self.address = address
        self._channels = channels
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
        # Anew each time: the certificate may have been renewed meanwhile.
        self._channel = self._channels.to(self.address)
        state = self._channel.get_state(try_to_connect=True)
        while state is not grpc.ChannelConnectivity.READY:
            await self._channel.wait_for_state_change(state)
            self._channel = self._channels.to(self.address)
            state = self._channel.get_state(try_to_connect=True)

    async def _converse(self) -> None:
        """Writes and reads until the stream breaks.

        Raises:
            grpc.aio.AioRpcError: how it ended.
        """
        call: AppendCall = self._channel.stream_stream(
            _METHOD,
            None,
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

    async def _write_all(self, call: AppendCall) -> None:
        await _taken(call)
        while True:
            await self._news.wait()
            self._news.clear()
            while self._outbox:
                message = self._take()
                if message:
                    await call.write(message)

    def _take(self) -> bytes:
        """The next message, serialized; its appends count as sent from here on. Empty if nothing of
        the outbox is worth sending any more.
        """
        parts: list[bytes] = []
        appends = size = 0
        while self._outbox and appends < APPENDS_PER_MESSAGE_MAX:
            sent = self._outbox[0]
            if appends and size + len(sent.payload) > MESSAGE_BYTES_MAX:
                break
            self._outbox.popleft()
            if not sent.sender.is_current(sent):
                continue
            appends += 1
            size += len(sent.payload)
            sent.has_left = True
            self._unanswered[sent.request_id] = sent
            parts += _serialized(sent)
        return b"".join(parts)

    def _lose_all(self, why: errors_pb2.Refusal | None) -> None:
        unanswered, self._unanswered = self._unanswered, {}
        waiting, self._outbox = self._outbox, deque()
        self._news.clear()
        for sent in (*unanswered.values(), *waiting):
            sent.sender.lost(sent, why)


async def _taken(call: AppendCall) -> None:
    """Returns when the peer has let the stream in, or the call has ended; for a peer of a version
    that does not say so, after `STREAM_TAKEN_WAIT_S`.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(STREAM_TAKEN_WAIT_S):
            key, taken = STREAM_TAKEN
            if (await call.initial_metadata()).get(key) != taken:
                await call.code()


class Streams:
    """The streams of a client, by address."""

    def __init__(self, channels: Channels) -> None:
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
