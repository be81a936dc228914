"""`ReplicationService`: what other peers and the LAS call on this peer (docs/protocol.md §4.5).

Invariants:
- A call is looked at only if it names this cluster and this store, and if the caller's certificate
  is that of the peer it says it is. Anything else gets a typed refusal.
- One stream per sender: a newer one ends the older. Its answers (acks, refusals) are merged while
  they wait, so what waits is bounded by the number of shards.
- A promise is answered when it is durable, also for a shard that was never heard of here.

Must not: decide. The cores do; this translates and bounds.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from typing import Any, Protocol

import grpc
import grpc.aio

from peerd.core.batch import PlacedBatch
from peerd.core.chunks import Cut
from peerd.core.effects import BeginAnswer, ConfirmAnswer, HasBegunAnswer, PromiseAnswered
from peerd.core.errors import Reason
from peerd.core.ids import Epoch, NodeName, Offset, ProcessId, ReplicaId, ShardId
from peerd.core.messages import Ack, Adopt, Begin, ConfirmEpoch, Expect, Frame, Ready
from peerd.core.producer import TableSnapshot
from peerd.internal.v1 import replication_pb2, replication_pb2_grpc
from peerd.pki import Role
from peerd.storage.errors import Corrupt
from peerd.transport.access import Access
from peerd.transport.concurrency import first_ended
from peerd.transport.map_codec import decode_process, encode_process, encode_replica
from peerd.transport.replication_codec import (
    MessageMalformed,
    add_batch,
    decode_adopt,
    decode_begin,
    decode_frame,
    decode_ready,
    encode_ack,
    encode_epoch,
    encode_expect,
    encode_table,
)
from peerd.transport.status import Refused, one_line, refusal
from peerd.transport.tls import IdentityError, identity_of

Context = grpc.aio.ServicerContext[Any, Any]

# limit: promises of one call; the LAS splits what it asks of one peer
PROMISES_PER_CALL_MAX = 4_096
# limit: cuts of one call; each reads some rows of the store
CUTS_PER_CALL_MAX = 512
# limit: payload bytes of one message of a fetch, but for a single larger batch
FETCH_MESSAGE_BYTES = 1024 * 1024
# limit: payload bytes of a copy's whole answer while appends are written here, but for a single
# larger batch: reading and sending hold up what is appended for a millisecond or two. The rest is
# asked for again, and waits for its turn then
BUSY_COPY_BYTES = 256 * 1024
# limit: bytes of a producer table that travels in one message; below what gRPC takes
TABLE_BYTES_MAX = 7 * 1024 * 1024
# limit: of these, fetches of copies, which wait for the budget of this peer's background work
COPIES_MAX = 8
# limit: of these, copies that are not urgent: they wait longer, and must not keep urgent ones out
UNHURRIED_COPIES_MAX = 6
# limit: seconds that one message of a copy waits for that budget; beyond it the caller is told to
# come again. A fetch has a deadline, and what waits here keeps others out
COPY_WAIT_S_MAX = 2.0
# limit: fetches served at a time to all peers together; each holds one message, and they share
# the disk with the appends
FETCHES_MAX = 16

_ALIVE = replication_pb2.ReplicateResponse(alive=True)


class IncomingStream:
    """The answering side of one peer's stream of frames. Used on the event loop alone."""

    def __init__(self, sender: ProcessId) -> None:
        self.sender = sender
        self._acks: dict[tuple[ShardId, Epoch], Ack] = {}
        self._expects: dict[ShardId, Expect] = {}
        self._taken = 0
        self._taken_told = 0
        self._pong = 0
        self._pulse_due = False
        self._wrote = False
        self._closed = False
        self._wake = asyncio.Event()

    def answer(self, message: Ack | Expect) -> None:
        """Send `message` back, merged with what waits: acks are cumulative."""
        if isinstance(message, Ack):
            self._acks[message.shard, message.epoch] = message
        else:
            self._expects[message.shard] = message
        self._wake.set()

    def taken(self, number: int) -> None:
        """The contents of all messages up to `number` were written or refused."""
        self._taken = max(self._taken, number)
        self._wake.set()

    def pinged(self, ping: int) -> None:
        """The other end measures the way here and back."""
        self._pong = ping
        self._wake.set()

    def pulse(self) -> None:
        """A frame period has passed: say that this process lives, unless answers said so."""
        self._pulse_due = not self._wrote
        self._wrote = False
        self._wake.set()

    def close(self) -> None:
        """End the stream: another one replaces it, or the peer stops."""
        self._closed = True
        self._wake.set()

    async def write_to(self, context: Context) -> None:
        """Write answers until the stream is closed."""
        while not self._closed:
            message = self._next_message()
            if message is not None:
                self._wrote = True
                await context.write(message)
            elif self._pulse_due:
                self._pulse_due = False
                await context.write(_ALIVE)
            else:
                self._wake.clear()
                await self._wake.wait()

    def _next_message(self) -> replication_pb2.ReplicateResponse | None:
        nothing = not (self._acks or self._expects or self._pong)
        if nothing and self._taken == self._taken_told:
            return None
        message = replication_pb2.ReplicateResponse(
            acks=[encode_ack(ack) for ack in self._acks.values()],
            expects=[encode_expect(expect) for expect in self._expects.values()],
            taken=self._taken,
            pong=self._pong,
        )
        self._pong = 0
        self._acks.clear()
        self._expects.clear()
        self._taken_told = self._taken
        return message


class ReplicationHost(Protocol):
    """What the service asks of the peer. No method blocks the event loop."""

    me: ProcessId

    @property
    def cluster_id(self) -> str:
        """The cluster's id; "" until this peer has registered for the first time."""

    def stream_opened(self, stream: IncomingStream) -> None:
        """A stream of frames begins."""

    def stream_closed(self, stream: IncomingStream) -> None:
        """It is over."""

    def stream_received(
        self, stream: IncomingStream, number: int, adopts: Sequence[Adopt], frames: Sequence[Frame]
    ) -> None:
        """One message of it; `stream.taken(number)` is called when its contents are settled."""

    def stream_heard(self, stream: IncomingStream) -> None:
        """A message without content."""

    def promise(
        self, shard: ShardId, fence: Epoch, epoch: Epoch, prepared: Epoch
    ) -> Awaitable[PromiseAnswered]:
        """Make a promise; answered when it is durable."""

    def begin(self, sender: ReplicaId, begin: Begin) -> Awaitable[BeginAnswer]:
        """The prepared segment begins here."""

    def ready(self, sender: ReplicaId, ready: Ready) -> None:
        """The next primary is ready."""

    def leads(self, shard: ShardId, epoch: Epoch) -> bool:
        """Whether this process orders the epoch, and is not just handing the shard over."""

    def trim_limit(self, shard: ShardId, epoch: Epoch) -> Offset | None:
        """Up to where the epoch may be trimmed as far as this process can tell; None: it cannot."""

    def holds(self, shard: ShardId, epoch: Epoch) -> bool:
        """Whether the store has a sealed segment whole, and is not about to drop it."""

    async def find_cut(
        self, shard: ShardId, epoch: Epoch, *, before: Offset, keep_bytes: int
    ) -> Cut | None:
        """Where the epoch may be cut at or below `before` so that `keep_bytes` stay behind.

        None if nothing of it is stored here. Raises `Corrupt`.
        """

    async def size(self, shard: ShardId, epoch: Epoch) -> int:
        """Payload bytes of the epoch that are stored here. Raises `Corrupt`."""

    def has_begun(self, shard: ShardId, epoch: Epoch) -> Awaitable[HasBegunAnswer]:
        """Whether the prepared segment has begun here."""

    def confirm(self, message: ConfirmEpoch) -> Awaitable[ConfirmAnswer]:
        """The epoch that is promised here."""

    def silent_ms(self, peer: NodeName) -> int | None:
        """Since when `peer` was not heard; None if it is no neighbour."""

    def fetch_limit(self, shard: ShardId, epoch: Epoch, *, copy: bool) -> Offset | None:
        """First offset of `epoch` that may not be given away; None: nothing of it is here."""

    async def read(
        self, shard: ShardId, epoch: Epoch, from_offset: int, to_offset: int, bytes_max: int
    ) -> list[PlacedBatch]:
        """As `ShardHost.read`."""

    def table(
        self, shard: ShardId, as_of: Offset, since: Offset, *, or_later: bool
    ) -> Awaitable[TableSnapshot | None]:
        """The producer table as asked for, or None."""


class CopyBudget(Protocol):
    """What copies that are given to other peers may take of this one."""

    @property
    def is_busy(self) -> bool:
        """Appends are written here."""

    def copy_debt_s(self, *, urgent: bool) -> float:
        """How long who copies now would wait for those before."""

    def spend_copy(self, size_bytes: int, *, urgent: bool) -> float:
        """Take `size_bytes`; returns how many seconds to wait before the next."""


class ReplicationService(replication_pb2_grpc.ReplicationServiceServicer):
    """Register with the server behind `AuthorizationInterceptor`, which checks roles."""

    def __init__(
        self,
        host: ReplicationHost,
        *,
        plaintext: bool = False,
        access: Access | None = None,
        budget: CopyBudget | None = None,
    ) -> None:
        """`plaintext` as in `identity_of`; `access` is told who speaks in another one's name;
        `budget` is what copies draw on.
        """
        self._budget = budget
        self._copies = self._unhurried = 0
        self._access = access
        self._host = host
        self._plaintext = plaintext
        self._streams: dict[NodeName, IncomingStream] = {}
        self._fetches = 0

    def pulse(self) -> None:
        """A frame period has passed."""
        for stream in self._streams.values():
            stream.pulse()

    def close(self) -> None:
        """End all streams: the peer stops."""
        for stream in tuple(self._streams.values()):
            stream.close()

    # -------------------------------------------------------------------------- frames

    # grpc.aio takes coroutines that write to the context as well, which its types do not say.
    async def Replicate(  # type: ignore[override]
        self, requests: AsyncIterator[replication_pb2.ReplicateRequest], context: Context
    ) -> None:
        """See the proto."""
        first = await anext(requests, None)
        if first is None:
            return
        self._check_target(first.cluster_id, first.target_store_id)
        sender = decode_process(first.sender)
        self._check_caller(context, sender.peer)
        stream = IncomingStream(sender)
        older = self._streams.get(sender.peer)
        if older is not None:
            older.close()
        self._streams[sender.peer] = stream
        await context.write(
            replication_pb2.ReplicateResponse(receiver=encode_process(self._host.me))
        )
        self._host.stream_opened(stream)
        try:
            await first_ended(self._read_stream(stream, first, requests), stream.write_to(context))
        except MessageMalformed as error:
            raise Refused(refusal(Reason.CRC_MISMATCH, f"stream dropped: {error}")) from error
        finally:
            if self._streams.get(sender.peer) is stream:
                del self._streams[sender.peer]
            self._host.stream_closed(stream)

    async def _read_stream(
        self,
        stream: IncomingStream,
        first: replication_pb2.ReplicateRequest,
        requests: AsyncIterator[replication_pb2.ReplicateRequest],
    ) -> None:
        message: replication_pb2.ReplicateRequest | None = first
        while message is not None:
            if message.ping:
                stream.pinged(message.ping)
            if message.number:
                self._host.stream_received(
                    stream,
                    message.number,
                    [decode_adopt(adopt) for adopt in message.adopts],
                    [decode_frame(frame) for frame in message.frames],
                )
            else:
                self._host.stream_heard(stream)
            message = await anext(requests, None)

    # -------------------------------------------------------------------------- fences

    async def Promise(
        self, request: replication_pb2.PromiseRequest, _context: Context
    ) -> replication_pb2.PromiseResponse:
        """See the proto."""
        self._check_target(request.cluster_id, request.target_store_id)
        if len(request.orders) > PROMISES_PER_CALL_MAX:
            raise _bad_argument(
                f"{len(request.orders)} orders: at most {PROMISES_PER_CALL_MAX} a call"
            )
        asked = [
            self._host.promise(
                ShardId(order.shard),
                Epoch(order.fence),
                Epoch(order.epoch),
                Epoch(order.prepared),
            )
            for order in request.orders
        ]
        answers = await asyncio.gather(*asked)
        return replication_pb2.PromiseResponse(
            store_id=self._host.me.store,
            promised=[
                replication_pb2.Promised(
                    shard=order.shard,
                    promised=answer.promised,
                    open=encode_epoch(answer.open),
                    prepared=encode_epoch(answer.prepared),
                )
                for order, answer in zip(request.orders, answers, strict=True)
            ],
        )

    async def ConfirmEpoch(
        self, request: replication_pb2.ConfirmEpochRequest, _context: Context
    ) -> replication_pb2.ConfirmEpochResponse:
        """See the proto."""
        self._check_target(request.cluster_id, request.target_store_id)
        message = ConfirmEpoch(
            shard=ShardId(request.shard), epoch=Epoch(request.epoch), round=request.round
        )
        answer = await self._host.confirm(message)
        return replication_pb2.ConfirmEpochResponse(round=answer.round, promised=answer.promised)

    # -------------------------------------------------------------------------- hand-over

    async def Ready(
        self, request: replication_pb2.ReadyRequest, context: Context
    ) -> replication_pb2.ReadyResponse:
        """See the proto."""
        self._check_target(request.cluster_id, request.target_store_id)
        ready = decode_ready(request)
        self._check_caller(context, ready.sender.peer)
        self._host.ready(ready.sender.replica, ready)
        return replication_pb2.ReadyResponse()

    async def Begin(
        self, request: replication_pb2.BeginRequest, context: Context
    ) -> replication_pb2.BeginResponse:
        """See the proto."""
        self._check_target(request.cluster_id, request.target_store_id)
        sender = decode_process(request.sender)
        self._check_caller(context, sender.peer)
        try:
            begin = decode_begin(request)
        except MessageMalformed as error:
            raise _bad_argument(str(error)) from error
        answer = await self._host.begin(sender.replica, begin)
        return replication_pb2.BeginResponse(begun=answer.begun, promised=answer.promised)

    async def HasBegun(
        self, request: replication_pb2.HasBegunRequest, _context: Context
    ) -> replication_pb2.HasBegunResponse:
        """See the proto."""
        self._check_target(request.cluster_id, request.target_store_id)
        answer = await self._host.has_begun(ShardId(request.shard), Epoch(request.epoch))
        return replication_pb2.HasBegunResponse(
            begun=answer.begun,
            begin=answer.begin,
            holders=[encode_replica(replica) for replica in answer.holders],
        )

    async def FindCuts(
        self, request: replication_pb2.FindCutsRequest, _context: Context
    ) -> replication_pb2.FindCutsResponse:
        """See the proto."""
        self._check_target(request.cluster_id, request.target_store_id)
        if len(request.orders) > CUTS_PER_CALL_MAX:
            raise _bad_argument(f"{len(request.orders)} orders: at most {CUTS_PER_CALL_MAX} a call")
        return replication_pb2.FindCutsResponse(
            store_id=self._host.me.store, cuts=[await self._cut(each) for each in request.orders]
        )

    async def _cut(self, order: replication_pb2.CutOrder) -> replication_pb2.FoundCut:
        shard, epoch = ShardId(order.shard), Epoch(order.epoch)
        if order.size:
            return replication_pb2.FoundCut(stored_bytes=await self._size(shard, epoch))
        answer = replication_pb2.FoundCut(
            leads=self._host.leads(shard, epoch), whole=self._host.holds(shard, epoch)
        )
        limit = self._host.trim_limit(shard, epoch)
        if limit is None:
            return answer
        before = min(limit, Offset(order.before_offset))
        try:
            cut = await self._host.find_cut(
                shard, epoch, before=before, keep_bytes=order.keep_bytes
            )
        except Corrupt as error:
            raise Refused(refusal(Reason.CORRUPT, str(error))) from error
        if cut is not None:
            answer.known = True
            answer.offset, answer.kept_bytes, answer.limit = cut.offset, cut.kept_bytes, limit
        return answer

    async def _size(self, shard: ShardId, epoch: Epoch) -> int:
        try:
            return await self._host.size(shard, epoch)
        except Corrupt:
            return 0  # nobody moves what cannot be measured; the scrub finds it

    async def Hears(
        self, request: replication_pb2.HearsRequest, _context: Context
    ) -> replication_pb2.HearsResponse:
        """See the proto."""
        silent_ms = self._host.silent_ms(NodeName(request.peer))
        if silent_ms is None:
            return replication_pb2.HearsResponse(neighbour=False)
        return replication_pb2.HearsResponse(neighbour=True, silent_ms=silent_ms)

    # -------------------------------------------------------------------------- fetches

    async def FetchBatches(
        self, request: replication_pb2.FetchBatchesRequest, _context: Context
    ) -> AsyncIterator[replication_pb2.FetchBatchesResponse]:
        """See the proto."""
        self._check_target(request.cluster_id, request.target_store_id)
        # Who mends a damaged batch asks for that one alone, and is not kept waiting.
        is_copy = request.copy and request.bytes_max != 1
        is_unhurried = is_copy and not request.urgent
        if (
            self._fetches >= FETCHES_MAX
            or (is_copy and self._copies >= COPIES_MAX)
            or (is_unhurried and self._unhurried >= UNHURRIED_COPIES_MAX)
        ):
            raise _too_many("as many fetches as may be are served here already")
        self._fetches += 1
        self._copies += is_copy
        self._unhurried += is_unhurried
        try:
            if is_copy and self._budget is not None:
                debt_s = self._budget.copy_debt_s(urgent=request.urgent)
                if debt_s > COPY_WAIT_S_MAX:
                    raise _too_many("this peer has no bytes to spare for copies")
                await asyncio.sleep(debt_s)
            async with contextlib.aclosing(self._fetched(request)) as responses:
                async for response in responses:
                    yield response
        finally:
            self._fetches -= 1
            self._copies -= is_copy
            self._unhurried -= is_unhurried

    async def _fetched(
        self, request: replication_pb2.FetchBatchesRequest
    ) -> AsyncGenerator[replication_pb2.FetchBatchesResponse, None]:
        shard, epoch = ShardId(request.shard), Epoch(request.epoch)
        limit = self._host.fetch_limit(shard, epoch, copy=request.copy)
        if limit is None or request.from_offset >= limit:
            raise Refused(
                refusal(
                    Reason.RANGE_UNAVAILABLE,
                    f"offset {request.from_offset} of shard {shard} epoch {epoch} is not served "
                    "here: ask another holder",
                ),
            )
        at, end = request.from_offset, min(request.to_offset, limit)
        left_bytes = request.bytes_max or None
        if request.copy and self._budget is not None and self._budget.is_busy:
            left_bytes = min(left_bytes or BUSY_COPY_BYTES, BUSY_COPY_BYTES)
        while at < end and (left_bytes is None or left_bytes > 0):
            wanted_bytes = min(FETCH_MESSAGE_BYTES, left_bytes or FETCH_MESSAGE_BYTES)
            try:
                batches = await self._host.read(shard, epoch, at, end, wanted_bytes)
            except Corrupt as error:
                raise Refused(refusal(Reason.CORRUPT, str(error))) from error
            if not batches:
                return
            response = replication_pb2.FetchBatchesResponse(store_id=self._host.me.store)
            for batch in batches:
                add_batch(response, batch, epoch)
            yield response
            at = batches[-1].end
            size_bytes = sum(len(batch.payload) for batch in batches)
            if request.copy and self._budget is not None:
                self._budget.spend_copy(size_bytes, urgent=request.urgent)
            if left_bytes is not None:
                left_bytes -= size_bytes

    async def FetchTable(
        self, request: replication_pb2.FetchTableRequest, _context: Context
    ) -> replication_pb2.FetchTableResponse:
        """See the proto."""
        self._check_target(request.cluster_id, request.target_store_id)
        table = await self._host.table(
            ShardId(request.shard),
            Offset(request.as_of),
            Offset(request.since),
            or_later=request.or_later,
        )
        response = replication_pb2.FetchTableResponse(store_id=self._host.me.store)
        if table is not None:
            encoded = encode_table(table)
            if encoded.ByteSize() <= TABLE_BYTES_MAX:
                response.available = True
                response.table.CopyFrom(encoded)
        return response

    # -------------------------------------------------------------------------- checks

    def _check_target(self, cluster_id: str, store_id: str) -> None:
        """Refuse what is meant for another cluster or another store."""
        ours = self._host.cluster_id
        if not ours:
            raise Refused(
                refusal(
                    Reason.MAP_UNKNOWN,
                    f"{self._host.me.peer} has not registered yet: try again",
                    retry_after_ms=100,
                ),
            )
        if cluster_id != ours:
            raise Refused(
                refusal(
                    Reason.WRONG_CLUSTER,
                    f"the call is for cluster {cluster_id or '(none)'}, this is {ours}",
                ),
            )
        if store_id != self._host.me.store:
            raise Refused(
                refusal(
                    Reason.WRONG_STORE,
                    f"the call is for store {store_id or '(none)'}, "
                    f"{self._host.me.peer} has {self._host.me.store}: refresh the map",
                ),
            )

    def _check_caller(self, context: Context, peer: NodeName) -> None:
        """Refuse a caller whose certificate is not that of `peer`."""
        try:
            identity = identity_of(context, plaintext=self._plaintext)
        except IdentityError as error:
            raise Refused(refusal(Reason.NO_IDENTITY, str(error))) from error
        if identity.role != Role.PEER or identity.name != peer:
            wire = refusal(
                Reason.ROLE_NOT_ALLOWED,
                f"the call says it comes from peer {peer!r}, its certificate {identity.uri}",
            )
            if self._access is not None:
                self._access.note(identity, f"as peer {one_line(peer)}", wire)
            raise Refused(wire)


def _too_many(what: str) -> Refused:
    message = f"{what}: ask another holder"
    return Refused(refusal(Reason.OVERLOADED, message, retry_after_ms=100))


def _bad_argument(message: str) -> Refused:
    return Refused(refusal(Reason.INVALID_ARGUMENT, message))
