"""The seam between the services that clients call and the peer that serves them.

`peerd.daemon.host.ShardHost` fulfils the protocols below; the services of this package know nothing
else of the daemon. In a front worker, `peerd.daemon.front.host` does. Everything here runs on the
event loop of the process.

Invariants of the seam:
- `append` calls `done` exactly once, on the event loop, for every append it was given.
- Whatever `read`, `fetch` and `readable_limit` hand out lies below a commit offset (G2, G12).
- A batch that fails its checksum is never handed out: `Corrupt` is raised instead.

Must not: know gRPC or protobuf.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from peerd.core.batch import BatchHeader, PlacedBatch
from peerd.core.effects import AppendAccepted
from peerd.core.errors import Refusal
from peerd.core.ids import Epoch, Offset, ProcessId, ReplicaId, ShardId
from peerd.storage.errors import Corrupt

__all__ = ["AppendHost", "AppendOutcome", "Corrupt", "HolderUnavailable", "ShardHost"]


AppendOutcome = AppendAccepted | Refusal
"""A batch that is durable on `acks` voters, or why it was refused; the core's own values."""


class HolderUnavailable(Exception):
    """Another peer could not give the batches: not reached, or without them. Try the next one."""


class AppendHost(Protocol):
    """Where appends go that are served without a hop: one peer's shards, or the way to them."""

    @property
    def space_in_reserve(self) -> bool:
        """True while the store has reached its space reserve: appends answer DISK_RESERVE."""

    def append(
        self,
        shard: ShardId,
        header: BatchHeader,
        payload: bytes,
        expected_offset: int | None,
        done: Callable[[AppendOutcome], None],
    ) -> None:
        """Takes one checked batch; `done` gets its receipt or refusal, now or later.

        `payload` is the serialized `peerd.v1.Batch`; `header` says what is in it, `timestamp_ms`
        excepted, which the primary sets. A shard that is not here is refused as NOT_PRIMARY.
        """

    def is_primary(self, shard: ShardId) -> bool:
        """Whether the shard's appends are ordered here, as far as is known now."""


class ShardHost(AppendHost, Protocol):
    """One peer's shards, as the services see them. No method blocks the event loop."""

    @property
    def me(self) -> ProcessId:
        """This process."""

    def committed(self, shard: ShardId) -> tuple[Epoch, Offset] | None:
        """The epoch that this store adopted last, and up to where it knows it to be committed.

        None if this peer has nothing of the shard.
        """

    async def linearizable_tail(self, shard: ShardId) -> tuple[Epoch, Offset] | Refusal:
        """The epoch that this peer orders, and its commit offset, confirmed after the call by
        `acks` voters: no batch acknowledged before the call lies at or beyond it. The refusal says
        why there is none; the wait is bounded by the core (`Limits.tail_timeout_ms`).
        """

    def segment_begin(self, shard: ShardId, epoch: Epoch) -> Offset | None:
        """First offset of `epoch` as this store adopted it; None if it has not.

        Tells where an epoch began that the committed map does not show as open yet.
        """

    def readable_limit(self, shard: ShardId, epoch: Epoch) -> Offset | None:
        """First offset of `epoch` that this store may not serve; None if it has none of it here.

        Of an epoch that is not sealed yet: the smaller of the stored end and the commit offset as
        heard. Of a kept tail: only what is known to be durable on enough stores (G12).
        """

    def commit_changed(self, shard: ShardId) -> asyncio.Event:
        """The event that is set at the next move of the commit offset or the map entry.

        Take it *before* looking at the state, look, then wait: each event is set once.
        """

    async def read(
        self, shard: ShardId, epoch: Epoch, from_offset: int, to_offset: int, bytes_max: int
    ) -> list[PlacedBatch]:
        """Batches of this store, the one that contains `from_offset` first, none beginning at or
        beyond `to_offset`; at least one if there is one, then up to `bytes_max` bytes of payload.

        Raises:
            Corrupt: a stored batch of the range fails its checksum.
        """

    async def fetch(  # noqa: PLR0917 - as `read`, with the holder in front
        self,
        holder: ReplicaId,
        shard: ShardId,
        epoch: Epoch,
        from_offset: int,
        to_offset: int,
        bytes_max: int,
    ) -> list[PlacedBatch]:
        """As `read`, from the store of another peer.

        Raises:
            HolderUnavailable: it cannot be reached, lacks the range, or its copy is damaged.
        """

    async def find_time(self, shard: ShardId, epoch: Epoch, timestamp_ms: int) -> Offset:
        """Base offset of this store's first batch of `epoch` whose time is not below
        `timestamp_ms`; the end of what is stored if there is none.

        Raises:
            Corrupt: a header that had to be read is damaged.
        """
