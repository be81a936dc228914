"""Channels from this LAS node to the other members and to peers."""

from collections.abc import AsyncIterable, Callable, Iterable
from typing import Any

import grpc
import grpc.aio

from las.raft.links import ChannelFactory
from peerd.transport.options import CHANNEL_OPTIONS
from peerd.transport.tls import Identity, TlsFiles, channel_credentials, plaintext_metadata

Requests = AsyncIterable[Any] | Iterable[Any]
Continuation = Callable[[grpc.aio.ClientCallDetails, Requests], Any]


def member_channels(identity: Identity, tls: TlsFiles | None) -> ChannelFactory:
    """Makes channels that show who this member is; `tls` None means plaintext on loopback."""
    if tls is None:
        naming = _NamesItself(identity)
        return lambda address: grpc.aio.insecure_channel(
            address, options=CHANNEL_OPTIONS, interceptors=[naming]
        )
    credentials = channel_credentials(tls)
    return lambda address: grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS)


class _NamesItself(grpc.aio.StreamStreamClientInterceptor):  # type: ignore[misc]
    """Says who calls where no certificate does."""

    def __init__(self, identity: Identity) -> None:
        self._metadata = plaintext_metadata(identity)

    async def intercept_stream_stream(
        self,
        continuation: Continuation,
        client_call_details: grpc.aio.ClientCallDetails,
        request_iterator: Requests,
    ) -> Any:
        """Called by grpc.aio for each stream."""
        details = grpc.aio.ClientCallDetails(
            method=client_call_details.method,
            timeout=client_call_details.timeout,
            metadata=grpc.aio.Metadata(*self._metadata),
            credentials=client_call_details.credentials,
            wait_for_ready=client_call_details.wait_for_ready,
        )
        return await continuation(details, request_iterator)
