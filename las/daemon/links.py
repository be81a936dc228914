"""Channels from this LAS node to the other members and to peers."""

import grpc.aio

from las.raft.links import ChannelFactory
from peerd.transport.options import CHANNEL_OPTIONS
from peerd.transport.tls import TlsFiles, channel_credentials


def member_channels(tls: TlsFiles | None) -> ChannelFactory:
    """Makes channels that show who this node is; `tls` None means plaintext on loopback.

    Under plaintext each call names the caller in its metadata (`plaintext_metadata`).
    """
    if tls is None:
        return lambda address: grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    credentials = channel_credentials(tls)
    return lambda address: grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS)
