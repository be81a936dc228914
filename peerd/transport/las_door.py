"""What a peer asks of the LAS for its clients."""

from typing import Protocol

from peerd.core.ids import ShardId
from peerd.transport.internal_logs import InternalLogs


class LasDoor(InternalLogs, Protocol):
    """Whoever asks the LAS: `peerd.daemon.las_door`."""

    async def trim(self, log: str, shard: ShardId, before: int, timeout_s: float) -> int:
        """Has a shard trimmed; its first offset left.

        Raises:
            Refused: as `las.v1.LogAdminService.TrimShard`; LAS_UNAVAILABLE.
        """
