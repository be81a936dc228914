"""Where the effects of the cores go that are neither for the store nor for a client.

`peerd.daemon.outside.Outside` fulfils the protocol; `ShardHost` uses it and knows nothing of links,
calls and the LAS session.
"""

from typing import Protocol

from peerd.core import effects
from peerd.core.batch import PlacedBatch
from peerd.core.chunks import Cut
from peerd.core.ids import Epoch, NodeName, Offset, ProcessId, ReplicaId, ShardId
from peerd.core.messages import Adopt, Begin, ConfirmEpoch, Frame, Ready

Call = Ready | Begin | ConfirmEpoch


class Outside(Protocol):
    """Where the effects of the cores go that are neither for the store nor for a client."""

    def send_frame(self, to: ReplicaId, message: Adopt | Frame) -> None:
        """Over the outgoing stream to `to`."""

    def call(self, to: ReplicaId, message: Call) -> None:
        """One call to `to`. The answer to `Begin` comes back as `ShardHost.begin_answered`, that to
        `ConfirmEpoch` as `ShardHost.epoch_confirmed`.
        """

    def load(self, load: effects.Load) -> None:
        """Read from the own store, or ask another; `ShardHost.loaded` gets the answer."""

    def report(self, report: effects.Report) -> None:
        """Tell the LAS."""

    def neighbours_changed(self) -> None:
        """The map moved: look again whom this peer talks to."""

    def heard(self, process: ProcessId) -> None:
        """A message came from `process`."""

    def stream_broke(self, process: ProcessId) -> None:
        """A stream from `process` ended."""

    def silent_ms(self, peer: NodeName) -> int | None:
        """Since when `peer` was not heard; None if it is no neighbour."""

    async def read(
        self, shard: ShardId, epoch: Epoch, from_offset: int, to_offset: int, bytes_max: int
    ) -> list[PlacedBatch]:
        """From the own store."""

    async def fetch(  # noqa: PLR0917 - as `host_api.ShardHost`
        self,
        holder: ReplicaId,
        shard: ShardId,
        epoch: Epoch,
        from_offset: int,
        to_offset: int,
        bytes_max: int,
    ) -> list[PlacedBatch]:
        """From the store of another peer."""

    async def find_time(self, shard: ShardId, epoch: Epoch, timestamp_ms: int) -> Offset:
        """In the own store."""

    async def find_cut(
        self, shard: ShardId, epoch: Epoch, *, before: Offset, keep_bytes: int
    ) -> Cut | None:
        """In the own store."""

    async def size(self, shard: ShardId, epoch: Epoch) -> int:
        """Payload bytes in the own store."""
