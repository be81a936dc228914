"""Channels from this LAS node to the other members and to peers."""

from las.raft.links import ChannelFactory
from peerd.transport.channels import make_channel
from peerd.transport.credentials import Credentials


def member_channels(credentials: Credentials | None) -> ChannelFactory:
    """Makes channels that show who this node is; `credentials` None: plaintext on loopback.

    Under plaintext each call names the caller in its metadata (`plaintext_metadata`).
    """
    return lambda address: make_channel(address, credentials)
