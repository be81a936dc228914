"""Listening: gRPC says little about why it cannot, so the reason is looked up."""

import socket

import grpc.aio

from peerd.daemon.errors import PortInUse
from peerd.transport.credentials import Credentials


def split_address(address: str) -> tuple[str, int]:
    """Host and port of a checked `host:port`; brackets of an IPv6 address are taken off."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def bind_grpc(server: grpc.aio.Server, address: str, credentials: Credentials | None) -> int:
    """Listen on `address`; port 0 takes a free one. Returns the port. Raises `PortInUse`."""
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials.server())
    except RuntimeError as error:
        raise PortInUse.from_os_error("listen", address, _cause(address)) from error


def _cause(address: str) -> OSError:
    """What the system says about listening on `address`."""
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        return error
    return OSError("the gRPC library refuses it and does not say why")
