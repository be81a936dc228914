"""Calls from this peer to others beside the streams of frames: hand-over and fetching.

Invariants:
- Each call has a deadline. Whoever needs the answer repeats the call; nothing is repeated here.
- What was fetched has passed its checksum, belongs to the epoch asked for, and is consecutive.

Must not: choose whom to ask.
"""

import grpc
import grpc.aio

from peerd.core.batch import PlacedBatch
from peerd.core.events import BeginAnswered
from peerd.core.ids import Epoch, NodeName, Offset, ProcessId, ReplicaId, ShardId
from peerd.core.messages import Begin, ConfirmEpoch, Ready
from peerd.core.producer import TableSnapshot
from peerd.internal.v1 import replication_pb2, replication_pb2_grpc
from peerd.transport.channels import Channels
from peerd.transport.host_api import HolderUnavailable
from peerd.transport.map_cache import MapCache
from peerd.transport.replication_codec import (
    MessageMalformed,
    decode_batches,
    decode_table,
    encode_begin,
    encode_ready,
)

HAND_OVER_TIMEOUT_S = 2.0
# As long as a request for a linearizable tail waits at most: one that comes later serves nobody.
CONFIRM_TIMEOUT_S = 2.0
FETCH_TIMEOUT_S = 5.0
TABLE_TIMEOUT_S = 3.0


class PeerUnreachable(Exception):
    """The call failed or was refused; the message says how."""


class PeerCalls:
    """Used on the event loop."""

    def __init__(self, *, me: ProcessId, channels: Channels, map_cache: MapCache) -> None:
        self._me = me
        self._channels = channels
        self._map = map_cache

    async def ready(self, to: ReplicaId, ready: Ready) -> None:
        """Tell the old primary. Raises `PeerUnreachable`."""
        request = encode_ready(ready, self._map.cluster_id, to.store)
        try:
            await self._stub(to.peer).Ready(
                request, timeout=HAND_OVER_TIMEOUT_S, metadata=self._channels.metadata
            )
        except grpc.aio.AioRpcError as error:
            raise _unreachable(to, error) from error

    async def begin(self, to: ReplicaId, begin: Begin) -> BeginAnswered:
        """Hand over to the new primary. Raises `PeerUnreachable`."""
        request = encode_begin(begin, self._me, self._map.cluster_id, to.store)
        try:
            answer = await self._stub(to.peer).Begin(
                request, timeout=HAND_OVER_TIMEOUT_S, metadata=self._channels.metadata
            )
        except grpc.aio.AioRpcError as error:
            raise _unreachable(to, error) from error
        return BeginAnswered(
            sender=to, epoch=begin.epoch, begun=answer.begun, promised=Epoch(answer.promised)
        )

    async def confirm(self, to: ReplicaId, message: ConfirmEpoch) -> Epoch:
        """What a voter has promised. Raises `PeerUnreachable`."""
        request = replication_pb2.ConfirmEpochRequest(
            cluster_id=self._map.cluster_id,
            target_store_id=to.store,
            shard=message.shard,
            epoch=message.epoch,
            round=message.round,
        )
        try:
            answer = await self._stub(to.peer).ConfirmEpoch(
                request, timeout=CONFIRM_TIMEOUT_S, metadata=self._channels.metadata
            )
        except grpc.aio.AioRpcError as error:
            raise _unreachable(to, error) from error
        if answer.round != message.round:
            raise PeerUnreachable(f"{to.peer} answers round {answer.round}")
        return Epoch(answer.promised)

    async def fetch_table(
        self, source: ReplicaId, shard: ShardId, as_of: Offset, since: Offset, *, or_later: bool
    ) -> TableSnapshot | None:
        """The producer table as `source` has it; None if it has not got it as asked for.

        Raises:
            PeerUnreachable: no usable answer.
        """
        request = replication_pb2.FetchTableRequest(
            cluster_id=self._map.cluster_id,
            target_store_id=source.store,
            shard=shard,
            as_of=as_of,
            or_later=or_later,
            since=since,
        )
        try:
            answer = await self._stub(source.peer).FetchTable(
                request, timeout=TABLE_TIMEOUT_S, metadata=self._channels.metadata
            )
            return decode_table(answer.table) if answer.available else None
        except grpc.aio.AioRpcError as error:
            raise _unreachable(source, error) from error
        except MessageMalformed as error:
            raise PeerUnreachable(f"{source.peer}: {error}") from error

    async def fetch(  # noqa: PLR0917 - as `host_api.ShardHost`
        self,
        holder: ReplicaId,
        shard: ShardId,
        epoch: Epoch,
        from_offset: int,
        to_offset: int,
        bytes_max: int,
        *,
        copy: bool = False,
        urgent: bool = False,
    ) -> list[PlacedBatch]:
        """See `peerd.transport.host_api.ShardHost.fetch`; `copy` also gets a kept tail, `urgent` at
        the faster pace.
        """
        request = replication_pb2.FetchBatchesRequest(
            cluster_id=self._map.cluster_id,
            target_store_id=holder.store,
            shard=shard,
            epoch=epoch,
            from_offset=from_offset,
            to_offset=to_offset,
            bytes_max=bytes_max,
            copy=copy,
            urgent=urgent,
        )
        batches: list[PlacedBatch] = []
        try:
            call = self._stub(holder.peer).FetchBatches(
                request, timeout=FETCH_TIMEOUT_S, metadata=self._channels.metadata
            )
            async for response in call:
                if any(batch.epoch != epoch for batch in response.batches):
                    raise HolderUnavailable(f"{holder.peer} answers with another epoch")
                batches.extend(decode_batches(response.batches))
        except (grpc.aio.AioRpcError, PeerUnreachable) as error:
            raise HolderUnavailable(f"{holder.peer}: {_words(error)}") from error
        except MessageMalformed as error:
            raise HolderUnavailable(f"{holder.peer}: {error}") from error
        if not batches or not batches[0].base <= from_offset < batches[0].end:
            raise HolderUnavailable(f"{holder.peer} does not give offset {from_offset}")
        return batches

    def _stub(self, peer: NodeName) -> "replication_pb2_grpc.ReplicationServiceAsyncStub":
        address = self._map.address_of(peer)
        if address is None:
            raise PeerUnreachable(f"the map has no address of {peer}")
        return replication_pb2_grpc.ReplicationServiceStub(self._channels.to(address))


def _unreachable(peer: ReplicaId, error: grpc.aio.AioRpcError) -> PeerUnreachable:
    return PeerUnreachable(f"{peer.peer}: {_words(error)}")


def _words(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name} {error.details() or ''}".strip()
    return str(error)
