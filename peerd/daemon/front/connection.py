"""One end of the socket between a sequencer and a front worker.

Invariants:
- Frames arrive in the order in which they were sent, each once: a stream pair does not do less.
- What is sent in one turn of the event loop leaves in one write.
- After the end (`is_open` false) nothing is taken and nothing sent; `ended` was called, once.

Must not: know what a frame means.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Self, cast

from peerd.daemon.front.frames import FrameMalformed, Kind, Splitter

# limit: bytes that wait until the other process reads; answers are some 100 bytes and a map some
# 300 a shard, so that one which has not read so much does not read at all
UNREAD_BYTES_MAX = 64 * 1024 * 1024

Take = Callable[[Kind, memoryview], None]


class Connection(asyncio.Protocol):
    """Made by `open_on`."""

    def __init__(self, take: Take, ended: Callable[[str], None]) -> None:
        """Use `open_on`."""
        self._take = take
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._splitter = Splitter()
        self._waiting: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._over = False

    @classmethod
    async def open_on(cls, end: socket.socket, take: Take, ended: Callable[[str], None]) -> Self:
        """Use `end` of a socketpair from now on, and own it.

        Args:
            end: The socket.
            take: Gets each frame; a `FrameMalformed` that it raises ends the connection.
            ended: Gets one line that says why, when the connection is over; not after `close`.
        """
        end.setblocking(False)
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_unix_connection(lambda: cls(take, ended), sock=end)
        return connection

    @property
    def is_open(self) -> bool:
        """Whether what is sent may still arrive."""
        return not self._over

    def send(self, whole: bytes) -> None:
        """Send one frame, with all others of this turn; nothing after the end."""
        if self._over:
            return
        if not self._waiting:
            self._loop.call_soon(self._write)
        self._waiting.append(whole)

    def close(self) -> None:
        """Send what waits, and end."""
        self._write()
        self._over = True
        if self._transport is not None:
            self._transport.close()

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, []
        if self._over or self._transport is None or not waiting:
            return
        self._transport.write(b"".join(waiting))
        if self._transport.get_write_buffer_size() > UNREAD_BYTES_MAX:
            self._end(f"the other process has not read {UNREAD_BYTES_MAX} bytes")

    def _end(self, why: str) -> None:
        if self._over:
            return
        self._over = True
        if self._transport is not None:
            self._transport.abort()
        self._ended(why)

    # ------------------------------------------------------------------ asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        # uvloop's transports are none by their class, though by what they do.
        self._transport = cast("asyncio.Transport", transport)
        self._write()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        try:
            for kind, body in self._splitter.feed(data):
                if self._over:
                    return
                self._take(kind, body)
        except FrameMalformed as error:
            self._end(f"malformed frame: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._end("the other process has ended" if error is None else str(error))
