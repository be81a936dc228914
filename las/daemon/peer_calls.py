"""Calls of the leader to peers: promise, have you begun, do you still hear it.

Invariants:
- Each call has a deadline and raises nothing: None is *no usable answer*.
- An answer counts only if it comes from the store that was asked (docs/protocol.md §4.5).
- A channel belongs to one process: who restarted is dialled anew, without an old back-off.

Bound: one channel for each node of the committed map.
"""

from collections.abc import Sequence

import grpc
import grpc.aio

from las.core.recovery import EpochAnswer
from las.daemon.group import Group
from las.daemon.reconcile import Begun, Heard, Promised, PromiseOrder
from las.daemon.trimmer import CutOrder, FoundCut
from peerd.core.ids import BootId, Epoch, NodeName, Offset, ProcessId, ReplicaId, ShardId
from peerd.daemon.logging import get_logger
from peerd.internal.v1 import replication_pb2, replication_pb2_grpc
from peerd.transport.channels import Channels
from peerd.transport.map_codec import decode_replica

# A promise needs an fsync of the store, which a sick disk may hold up; who asks goes on with
# the others' answers meanwhile.
PROMISE_TIMEOUT_S = 2.0
# Answered from memory: later than this it is no answer.
BEGUN_TIMEOUT_S = 1.0
HEARS_TIMEOUT_S = 0.3
# Reads a few rows for each of some hundred segments.
CUTS_TIMEOUT_S = 3.0

_log = get_logger("peers")


class GrpcPeerCalls:
    """Fulfils `las.daemon.reconcile.PeerCalls`. Used on the event loop."""

    def __init__(self, group: Group, channels: Channels) -> None:
        """Ends with `close`, which also closes the channels."""
        self._group = group
        self._channels = channels
        self._metadata = channels.metadata
        self._dialled: dict[NodeName, tuple[str, BootId]] = {}
        self._silent: dict[ReplicaId, grpc.StatusCode] = {}

    async def promise(
        self, target: ReplicaId, orders: Sequence[PromiseOrder]
    ) -> Sequence[Promised] | None:
        """See `PeerCalls`."""
        request = replication_pb2.PromiseRequest(
            cluster_id=self._group.state.cluster_id,
            target_store_id=target.store,
            orders=[
                replication_pb2.PromiseOrder(
                    shard=order.shard,
                    fence=order.fence,
                    epoch=order.epoch,
                    prepared=order.prepared,
                )
                for order in orders
            ],
        )
        try:
            stub = self._stub(target.peer)
            answer = await stub.Promise(request, timeout=PROMISE_TIMEOUT_S, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            self._note_silence(target, error)
            return None
        self._silent.pop(target, None)
        if answer.store_id != target.store:
            _log.error("another store answers", node=target.peer, store=answer.store_id)
            return None
        return [_promised(each) for each in answer.promised]

    async def has_begun(self, target: ProcessId, shard: ShardId, epoch: Epoch) -> Begun | None:
        """See `PeerCalls`."""
        request = replication_pb2.HasBegunRequest(
            cluster_id=self._group.state.cluster_id,
            target_store_id=target.store,
            shard=shard,
            epoch=epoch,
        )
        try:
            stub = self._stub(target.peer)
            answer = await stub.HasBegun(request, timeout=BEGUN_TIMEOUT_S, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            _log.info("no answer", node=target.peer, shard=shard, why=_words(error))
            return None
        return Begun(
            begun=answer.begun,
            begin=Offset(answer.begin),
            holders=tuple(sorted(map(decode_replica, answer.holders))),
        )

    async def find_cuts(
        self, target: ReplicaId, orders: Sequence[CutOrder]
    ) -> Sequence[FoundCut | None] | None:
        """See `las.daemon.trimmer.CutCalls`."""
        request = replication_pb2.FindCutsRequest(
            cluster_id=self._group.state.cluster_id,
            target_store_id=target.store,
            orders=[
                replication_pb2.CutOrder(
                    shard=order.shard,
                    epoch=order.epoch,
                    before_offset=order.before,
                    keep_bytes=order.keep_bytes,
                )
                for order in orders
            ],
        )
        try:
            stub = self._stub(target.peer)
            answer = await stub.FindCuts(request, timeout=CUTS_TIMEOUT_S, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            _log.info("no cuts", node=target.peer, why=_words(error))
            return None
        if answer.store_id != target.store or len(answer.cuts) != len(orders):
            return None
        return [
            FoundCut(offset=Offset(cut.offset), kept_bytes=cut.kept_bytes, limit=Offset(cut.limit))
            if cut.known
            else None
            for cut in answer.cuts
        ]

    async def led(
        self, target: ReplicaId, segments: Sequence[tuple[ShardId, Epoch]]
    ) -> frozenset[ShardId]:
        """See `las.daemon.release.LeadCalls`."""
        cuts = await self._ask_about(target, _orders(segments), "does not say what it leads")
        told = zip(segments, cuts, strict=False)
        return frozenset(shard for (shard, _), cut in told if cut.leads)

    async def holds(
        self, target: ReplicaId, segments: Sequence[tuple[ShardId, Epoch]]
    ) -> Sequence[bool]:
        """See `las.daemon.surplus.HolderCalls`."""
        cuts = await self._ask_about(target, _orders(segments), "does not say what it holds")
        return [cut.whole for cut in cuts]

    async def sizes(
        self, target: ReplicaId, segments: Sequence[tuple[ShardId, Epoch]]
    ) -> Sequence[int]:
        """See `las.daemon.copy_moves.SizeCalls`."""
        orders = _orders(segments, size=True)
        cuts = await self._ask_about(target, orders, "does not say how much it stores")
        return [cut.stored_bytes for cut in cuts]

    async def _ask_about(
        self, target: ReplicaId, orders: Sequence[replication_pb2.CutOrder], silent: str
    ) -> Sequence[replication_pb2.FoundCut]:
        """What the store answers to each order; nothing, and `silent` in the log, if it does not
        answer.
        """
        request = replication_pb2.FindCutsRequest(
            cluster_id=self._group.state.cluster_id,
            target_store_id=target.store,
            orders=orders,
        )
        try:
            stub = self._stub(target.peer)
            answer = await stub.FindCuts(request, timeout=CUTS_TIMEOUT_S, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            _log.info(silent, node=target.peer, why=_words(error))
            return ()
        if answer.store_id != target.store or len(answer.cuts) != len(orders):
            return ()
        return answer.cuts

    async def hears(self, witness: NodeName, suspect: NodeName) -> Heard | None:
        """See `PeerCalls`."""
        try:
            stub = self._stub(witness)
            answer = await stub.Hears(
                replication_pb2.HearsRequest(peer=suspect),
                timeout=HEARS_TIMEOUT_S,
                metadata=self._metadata,
            )
        except grpc.aio.AioRpcError:
            return None
        return Heard(silent_ms=answer.silent_ms if answer.neighbour else None)

    async def responds(self, target: ProcessId, within_ms: int) -> bool:
        """See `PeerCalls`."""
        node = self._group.state.nodes.get(target.peer)
        if node is None or node.process != target:
            return False
        try:
            await self._stub(target.peer).Hears(
                replication_pb2.HearsRequest(peer=target.peer),
                timeout=within_ms / 1000,
                metadata=self._metadata,
            )
        except grpc.aio.AioRpcError as error:
            _log.info("no answer", node=target.peer, within_ms=within_ms, why=_words(error))
            return False
        return True

    async def close(self) -> None:
        """End all channels."""
        await self._channels.close()

    def _note_silence(self, target: ReplicaId, error: grpc.aio.AioRpcError) -> None:
        """Log that a store makes no promise: once, not each time that it is asked again."""
        if self._silent.get(target) != error.code():
            self._silent[target] = error.code()
            _log.info("no promise", store=target.store, node=target.peer, why=_words(error))

    def _stub(self, name: NodeName) -> "replication_pb2_grpc.ReplicationServiceAsyncStub":
        """Of the process of `name` that registered last."""
        node = self._group.state.nodes[name]
        dialled = self._dialled.get(name)
        if dialled != (node.address, node.boot):
            self._channels.retire(node.address)
            self._dialled[name] = node.address, node.boot
        return replication_pb2_grpc.ReplicationServiceStub(self._channels.to(node.address))


def _orders(
    segments: Sequence[tuple[ShardId, Epoch]], *, size: bool = False
) -> list[replication_pb2.CutOrder]:
    return [
        replication_pb2.CutOrder(shard=shard, epoch=epoch, size=size) for shard, epoch in segments
    ]


def _promised(message: replication_pb2.Promised) -> Promised:
    return Promised(
        shard=ShardId(message.shard),
        promised=Epoch(message.promised),
        open=_epoch_answer(message.open),
        prepared=_epoch_answer(message.prepared),
    )


def _epoch_answer(message: replication_pb2.EpochState) -> EpochAnswer:
    return EpochAnswer(
        adopted=message.adopted,
        begin=Offset(message.begin),
        end=Offset(message.end),
        commit=Offset(message.commit_offset),
    )


def _words(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name} {error.details() or ''}".strip()
