"""gRPC channels to peers and LAS nodes: one for each address, kept and reused.

A channel keeps the certificate that it was made with for all connections that it will ever make.
So when the certificate was renewed (`Credentials`), the next `to` makes a new channel; the old one
stays for the calls that run on it and is closed `RETIRE_S` later.

Bounds: one channel for each address that the configuration or the map ever named, and for each the
retired ones of the last `RETIRE_S`.
"""

import asyncio

import grpc
import grpc.aio

from peerd.transport.credentials import Credentials
from peerd.transport.options import CHANNEL_OPTIONS

# Calls that run longer on a channel whose certificate was renewed end and begin anew.
RETIRE_S = 600.0
# gRPC tells once more of each call that ended with its channel; to a loop that is closed by then it
# does so with a traceback on stderr.
SETTLE_S = 0.02

_CONNECTING = frozenset({grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING})

Metadata = tuple[tuple[str, str], ...]


class Channels:
    """`credentials` None means plaintext, which the configuration allows on loopback alone.

    `metadata` goes with each call: under plaintext it names the caller.
    """

    def __init__(self, credentials: Credentials | None, metadata: Metadata = ()) -> None:
        self.metadata = metadata
        self._credentials = credentials
        self._channels: dict[str, tuple[int, grpc.aio.Channel]] = {}
        self._retired: set[asyncio.Task[None]] = set()

    def to(self, address: str) -> grpc.aio.Channel:
        """The channel to `address` (host:port). It connects, and connects again, by itself."""
        generation, credentials = (
            (0, None) if self._credentials is None else self._credentials.channel()
        )
        known = self._channels.get(address)
        if known is not None and known[0] == generation:
            return known[1]
        self.retire(address)
        channel = _make(address, credentials)
        self._channels[address] = generation, channel
        return channel

    def warm(self, address: str) -> None:
        """Begins to connect, so that the first call need not wait for it."""
        self.to(address).get_state(try_to_connect=True)

    async def answers(self, address: str, within_s: float) -> bool:
        """False if `address` neither takes nor refuses a connection in time: it hangs."""
        channel = self.to(address)
        try:
            async with asyncio.timeout(within_s):
                while (state := channel.get_state(try_to_connect=True)) in _CONNECTING:
                    await channel.wait_for_state_change(state)
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Close them all; calls on them end."""
        for task in list(self._retired):
            task.cancel()
        await asyncio.gather(*self._retired, return_exceptions=True)
        while self._channels:
            _, (_, channel) = self._channels.popitem()
            await channel.close()
        await asyncio.sleep(SETTLE_S)

    def retire(self, address: str) -> None:
        """Let the next `to` make a new channel, which has no back-off of an older connection."""
        known = self._channels.pop(address, None)
        if known is None:
            return
        task = asyncio.get_running_loop().create_task(_close_later(known[1]))
        self._retired.add(task)
        task.add_done_callback(self._retired.discard)


def make_channel(address: str, credentials: Credentials | None) -> grpc.aio.Channel:
    """One channel by itself, with the certificate of this moment; the caller closes it."""
    return _make(address, None if credentials is None else credentials.channel()[1])


def _make(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS)


async def _close_later(channel: grpc.aio.Channel) -> None:
    try:
        await asyncio.sleep(RETIRE_S)
    finally:
        await channel.close()
