"""The client port: held by the sequencer, listened on by its workers.

SO_REUSEPORT lets any number of sockets of one user share a port. For the workers of one peer that
is the point; two peers that were given one port by mistake would take each other's clients.

Invariants:
- While a `ClientPort` is open no other one can be opened on its port, and none can be while a
  worker of another listens there; the second fails with `PortInUse`.
- The holder never listens, so the kernel gives it no connection.
"""

import socket

from peerd.daemon.errors import PortInUse
from peerd.daemon.ports import split_address


class ClientPort:
    """Holds `address` (host:port) from its creation to `close`; port 0 takes a free one."""

    def __init__(self, address: str) -> None:
        """Raises `PortInUse`."""
        host, port = split_address(address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            # Exclusive while it is bound, but for connections of an earlier process that linger;
            # then open to sockets that share, and closed to the next holder.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, port))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        except OSError as error:
            self._socket.close()
            raise PortInUse.from_os_error("client_listen", address, error) from error
        self.port = int(self._socket.getsockname()[1])
        self.address = f"{address.rpartition(':')[0]}:{self.port}"

    def close(self) -> None:
        """Let go of it."""
        self._socket.close()
