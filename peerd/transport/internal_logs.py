"""Logs that belong to the system: what they are called, and how a peer gets one.

Clients neither create nor append to them, and lists leave them out. Each is created when it is
first needed, by the LAS, for a peer that asks.
"""

from typing import Protocol

INTERNAL_PREFIX = "_"
"""Names that begin like this belong to the system."""

POSITIONS_LOG = "_positions"
"""What consumers have committed: `peerd.transport.position_log`."""

INTERNAL_LOGS = frozenset({POSITIONS_LOG})


def is_internal(log: str) -> bool:
    """Whether the name is one of the system's own."""
    return log.startswith(INTERNAL_PREFIX)


class InternalLogs(Protocol):
    """Who creates them: `peerd.daemon.internal_logs` asks the LAS."""

    async def create(self, name: str, timeout_s: float) -> None:
        """Returns when the committed map has the log; it may have had it before.

        Raises:
            Refused: LAS_UNAVAILABLE, NOT_ENOUGH_PEERS, LIMIT_REACHED.
        """
