"""gRPC channels from this process to peers and LAS nodes: one for each address, kept and reused.

Bound: one channel per member of the cluster and LAS address; `keep_only` closes the others.
"""

from collections.abc import Iterable

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

    async def keep_only(self, addresses: Iterable[str]) -> None:
        """Close the channels to all other addresses; calls on them end."""
        kept = set(addresses)
        for address in [known for known in self._channels if known not in kept]:
            await self._channels.pop(address).close()

    async def close(self) -> None:
        """Close them all."""
        await self.keep_only(())
