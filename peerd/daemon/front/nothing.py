"""The `ShardHost` of a front worker: a peer that stores nothing.

It is nobody's primary, so that `LogService` passes every call that needs a store on to a peer that
has it, one hop, by the rule that every peer follows. Its name is that of no peer: the own sequencer
is one more peer to it, dialled at the address in the map.
"""

import asyncio
from collections.abc import Callable

from peerd.core.batch import BatchHeader, PlacedBatch
from peerd.core.errors import Reason, Refusal
from peerd.core.ids import Epoch, NodeName, Offset, ProcessId, ReplicaId, ShardId
from peerd.transport.host_api import AppendOutcome, HolderUnavailable


class NothingHere:
    """A `peerd.transport.host_api.ShardHost` of a peer without shards."""

    def __init__(self, sequencer: ProcessId, worker: int) -> None:
        # No peer may be called like that, so it is equal to none.
        name = NodeName(f"{sequencer.peer}/worker-{worker}")
        self.me = ProcessId(name, sequencer.store, sequencer.boot)
        self._never = asyncio.Event()

    @property
    def space_in_reserve(self) -> bool:
        """False: it has no space at all."""
        return False

    def append(
        self,
        shard: ShardId,
        header: BatchHeader,
        payload: bytes,
        expected_offset: int | None,
        done: Callable[[AppendOutcome], None],
    ) -> None:
        """Refused."""
        done(self._not_here(shard))

    def _not_here(self, shard: ShardId) -> Refusal:
        return Refusal(
            reason=Reason.NOT_PRIMARY,
            message=f"{self.me.peer} stores nothing of shard {shard}: refresh the map",
        )

    def is_primary(self, shard: ShardId) -> bool:
        """False."""
        return False

    def committed(self, shard: ShardId) -> tuple[Epoch, Offset] | None:
        """None."""
        return None

    async def linearizable_tail(self, shard: ShardId) -> tuple[Epoch, Offset] | Refusal:
        """Refused."""
        return self._not_here(shard)

    def segment_begin(self, shard: ShardId, epoch: Epoch) -> Offset | None:
        """None."""
        return None

    def readable_limit(self, shard: ShardId, epoch: Epoch) -> Offset | None:
        """None."""
        return None

    def commit_changed(self, shard: ShardId) -> asyncio.Event:
        """An event that never comes: nothing commits here."""
        return self._never

    async def read(
        self, shard: ShardId, epoch: Epoch, from_offset: int, to_offset: int, bytes_max: int
    ) -> list[PlacedBatch]:
        """Nothing: `readable_limit` allows none of it."""
        raise HolderUnavailable(f"{self.me.peer} stores nothing of shard {shard}")

    async def fetch(  # noqa: PLR0917 - as the seam has it
        self,
        holder: ReplicaId,
        shard: ShardId,
        epoch: Epoch,
        from_offset: int,
        to_offset: int,
        bytes_max: int,
    ) -> list[PlacedBatch]:
        """Nothing: who reads is passed on to the primary, which fetches."""
        raise HolderUnavailable(f"{self.me.peer} fetches nothing of shard {shard}")

    async def find_time(self, shard: ShardId, epoch: Epoch, timestamp_ms: int) -> Offset:
        """Nothing, as `read`."""
        raise HolderUnavailable(f"{self.me.peer} stores nothing of shard {shard}")
