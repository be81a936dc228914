"""gRPC channels from this process to peers and LAS nodes: one for each address, kept and reused.

Bound: one channel for each address that the configuration or the map ever named.
"""

import grpc
import grpc.aio

from peerd.transport.options import CHANNEL_OPTIONS
from peerd.transport.tls import Identity, TlsFiles, channel_credentials, plaintext_metadata

Metadata = tuple[tuple[str, str], ...]


class Channels:
    """`tls` None means plaintext, which the configuration allows on loopback alone."""

    def __init__(self, identity: Identity, tls: TlsFiles | None) -> None:
        self._credentials = channel_credentials(tls) if tls is not None else None
        self._channels: dict[str, grpc.aio.Channel] = {}
        self.metadata: Metadata = plaintext_metadata(identity) if tls is None else ()

    def to(self, address: str) -> grpc.aio.Channel:
        """The channel to `address` (host:port). It connects, and connects again, by itself."""
        channel = self._channels.get(address)
        if channel is None:
            if self._credentials is None:
                channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
            else:
                channel = grpc.aio.secure_channel(
                    address, self._credentials, options=CHANNEL_OPTIONS
                )
            self._channels[address] = channel
        return channel

    async def close(self) -> None:
        """Close them all; calls on them end."""
        while self._channels:
            _, channel = self._channels.popitem()
            await channel.close()
