"""`ShardHost`: one peer's shards: moves events into the cores, and carries out what they want.

One `Replica` (peerd.core) for each shard; whatever changes a shard's state is decided there. This
module is the only one that calls `Replica.handle`, always on the event loop.

Invariants:
- Effects of a step are carried out in the order persist, send, load, reply, report, and steps in
  the order of their events. What says *durable* comes only from a `WriteDone`.
- Outcomes come from the storage writer with one call into the loop per group commit, in the order
  of submission; no task and no timer exists per append.
- Every append gets exactly one answer, also when the store fails or the peer stops.
- A broken invariant ends the process (`fatal`); after it no event is taken any more.
- A message of a stream is *taken* when everything that was to be written up to it has been written
  or refused. So what waits for the store is bounded by what senders may have under way, by what
  clients may have unanswered, and by the bounds of the cores.

Must not: decide anything about a shard, read or write a socket, or block the event loop.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from peerd.core import effects, events, holding
from peerd.core.batch import BatchHeader, PlacedBatch
from peerd.core.check import InvariantViolation
from peerd.core.chunks import Cut
from peerd.core.durable import Outcome, StoredShard, StoreOperation
from peerd.core.errors import Reason, Refusal, Taken
from peerd.core.ids import (
    DELETED_EPOCH,
    NO_EPOCH,
    Epoch,
    NodeName,
    Offset,
    ProcessId,
    ReplicaId,
    RequestId,
    ShardId,
    Tick,
)
from peerd.core.limits import Limits
from peerd.core.messages import Ack, Adopt, Begin, ConfirmEpoch, Expect, Frame, Message, Ready
from peerd.core.producer import TableSnapshot
from peerd.core.replica import Replica
from peerd.core.shard_map import Shard
from peerd.daemon.admission import Admission
from peerd.daemon.host_seam import Outside
from peerd.daemon.logging import get_logger
from peerd.daemon.notes import flush_notes, log_note
from peerd.daemon.telemetry.own import OwnMetrics
from peerd.daemon.timetable import Timetable
from peerd.daemon.write_queue import OnOutcome, WriteQueue
from peerd.recorder.flight import FlightRecorder
from peerd.storage.errors import StorageFailed, StoreClosed
from peerd.storage.options import Space
from peerd.storage.store import Store
from peerd.transport.host_api import AppendOutcome
from peerd.transport.map_cache import MapCache, MapChange
from peerd.transport.replication_service import IncomingStream
from peerd.transport.status import Refused, refusal

# An event may hold payloads; its beginning tells what it is.
EVENT_CHARACTERS_LOGGED = 500

Answer = TypeVar("Answer")
Loaded = (
    events.BatchesLoaded
    | events.BatchesUnavailable
    | events.TableLoaded
    | events.TableFetched
    | events.TableUnavailable
)
_log = get_logger("host")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStatistics:
    """Counts for metrics: replicas by role, and what waits."""

    shards: int
    primaries: int
    unanswered_requests: int
    writes_pending: int
    streams_in: int
    lag_records: dict[NodeName, int]


class ShardHost:
    """Fulfils `peerd.transport.host_api.ShardHost` but for its IO (`peerd.daemon.peer.Peer`)."""

    def __init__(
        self,
        *,
        me: ProcessId,
        store: Store,
        map_cache: MapCache,
        queue_bytes_max: int,
        limits: Limits,
        own: OwnMetrics,
        fatal: Callable[[InvariantViolation], None],
        recorder: FlightRecorder | None = None,
    ) -> None:
        self.me = me
        self._recorder = recorder
        self._store = store
        self._map = map_cache
        self._limits = limits
        self._own = own
        self.frame_taken = own.record_replication_ack
        self.round_trip = own.record_round_trip
        self._fatal = fatal
        self._loop = asyncio.get_running_loop()
        self._outside: Outside | None = None
        self._replicas: dict[ShardId, Replica] = {}
        self._seen: dict[ShardId, tuple[Epoch, Offset]] = {}
        self._changed: dict[ShardId, asyncio.Event] = {}
        self._streams_up: dict[ReplicaId, ProcessId] = {}
        self._incoming: dict[NodeName, IncomingStream] = {}
        self._next_request = 0
        self._waiting: dict[RequestId, Callable[[effects.Reply], None]] = {}
        self._answered_all = asyncio.Event()
        self._refusing: Refusal | None = None
        self._broken = False
        self._writes = WriteQueue(store, self._loop)
        self.admission = Admission(me.peer, store, self._writes, queue_bytes_max)
        self._untaken: deque[tuple[int, IncomingStream, int]] = deque()
        self._timetable = Timetable(self._ring)

    def connect(self, outside: Outside) -> None:
        """Give the host its outside, and begin: replicas of the store, then the map."""
        self._outside = outside
        for shard in self._store.shards:
            self._replica(shard)
        self._map.subscribe(self._map_changed)

    # ------------------------------------------------------------------ clients

    def append(
        self,
        shard: ShardId,
        header: BatchHeader,
        payload: bytes,
        expected_offset: int | None,
        done: Callable[[AppendOutcome], None],
    ) -> None:
        """See `peerd.transport.host_api.ShardHost.append`."""
        refused = self._why_no_append(shard)
        if refused is not None:
            done(refused)
            return
        begun_s = self._loop.time()

        def answered(reply: effects.Reply) -> None:
            if isinstance(reply, effects.AppendAccepted):
                self._own.appends.add(self._loop.time() - begun_s)
            done(_append_outcome(reply))

        self._own.record_append(header.record_count, len(payload))
        self._own.workload.appended(shard, header, conditional=expected_offset is not None)
        self._handle(
            shard,
            events.AppendRequested(
                request=self._await_reply(answered),
                header=header,
                payload=payload,
                expected_offset=None if expected_offset is None else Offset(expected_offset),
                now_ms=time.time_ns() // 1_000_000,
                now=self._timetable.now(),
            ),
        )

    def _why_no_append(self, shard: ShardId) -> Refusal | None:
        if self._refusing is not None:
            return self._refusing
        if shard not in self._replicas:
            return self._not_here(shard)
        return self.admission.why_no_room(shard)

    def _not_here(self, shard: ShardId) -> Refusal:
        message = f"{self.me.peer} stores nothing of shard {shard}: refresh the map"
        return Refusal(reason=Reason.NOT_PRIMARY, message=message)

    @property
    def space_in_reserve(self) -> bool:
        """See `peerd.transport.host_api.ShardHost`."""
        return self._store.space().in_reserve

    def space(self) -> Space:
        """Room for batches."""
        return self._store.space()

    @property
    def user_writes(self) -> int:
        """Writes of appends so far, of clients here and of primaries elsewhere."""
        return self._writes.user_writes

    @property
    def storage_queued_bytes(self) -> int:
        """What waits for the storage writer."""
        return self._store.queued_bytes

    def is_primary(self, shard: ShardId) -> bool:
        """See `peerd.transport.host_api.ShardHost`."""
        replica = self._replicas.get(shard)
        return replica is not None and replica.is_primary

    def committed(self, shard: ShardId) -> tuple[Epoch, Offset] | None:
        """See `peerd.transport.host_api.ShardHost`."""
        replica = self._replicas.get(shard)
        if replica is None or replica.epoch == NO_EPOCH:
            return None
        return replica.epoch, replica.committed

    async def linearizable_tail(self, shard: ShardId) -> tuple[Epoch, Offset] | Refusal:
        """See `peerd.transport.host_api.ShardHost`."""
        if shard not in self._replicas:
            return self._not_here(shard)
        answer = await self._ask(
            shard,
            effects.TailAnswered,
            lambda request: events.TailAsked(request=request, now=self._timetable.now()),
        )
        if answer.tail is not None:
            return answer.epoch, answer.tail
        return answer.refusal or self._not_here(shard)

    def segment_begin(self, shard: ShardId, epoch: Epoch) -> Offset | None:
        """See `peerd.transport.host_api.ShardHost`."""
        segment = self.stored(shard).segments.get(epoch)
        return None if segment is None else segment.begin

    def readable_limit(self, shard: ShardId, epoch: Epoch) -> Offset | None:
        """See `peerd.transport.host_api.ShardHost`."""
        replica = self._replicas.get(shard)
        return None if replica is None else replica.readable_limit(epoch)

    def leads(self, shard: ShardId, epoch: Epoch) -> bool:
        """See `ReplicationHost`."""
        return shard in self._replicas and self._replicas[shard].leads(epoch)

    def trim_limit(self, shard: ShardId, epoch: Epoch) -> Offset | None:
        """See `ReplicationHost`."""
        return self._replicas[shard].trim_limit(epoch) if shard in self._replicas else None

    def holds(self, shard: ShardId, epoch: Epoch) -> bool:
        """See `ReplicationHost`."""
        entry = self._map.shards.get(shard)
        return holding.holds(entry, self.stored(shard), self.me.replica, epoch)

    async def find_cut(
        self, shard: ShardId, epoch: Epoch, *, before: Offset, keep_bytes: int
    ) -> Cut | None:
        """See `ReplicationHost`."""
        outside = self._tell_outside()
        return await outside.find_cut(shard, epoch, before=before, keep_bytes=keep_bytes)

    async def size(self, shard: ShardId, epoch: Epoch) -> int:
        """See `ReplicationHost`."""
        return await self._tell_outside().size(shard, epoch)

    def commit_changed(self, shard: ShardId) -> asyncio.Event:
        """See `peerd.transport.host_api.ShardHost`."""
        return self._changed.setdefault(shard, asyncio.Event())

    async def read(
        self, shard: ShardId, epoch: Epoch, from_offset: int, to_offset: int, bytes_max: int
    ) -> list[PlacedBatch]:
        """See `peerd.transport.host_api.ShardHost`."""
        return await self._tell_outside().read(shard, epoch, from_offset, to_offset, bytes_max)

    async def fetch(  # noqa: PLR0917 - as `host_api.ShardHost`
        self,
        holder: ReplicaId,
        shard: ShardId,
        epoch: Epoch,
        from_offset: int,
        to_offset: int,
        bytes_max: int,
    ) -> list[PlacedBatch]:
        """See `peerd.transport.host_api.ShardHost`."""
        outside = self._tell_outside()
        return await outside.fetch(holder, shard, epoch, from_offset, to_offset, bytes_max)

    async def find_time(self, shard: ShardId, epoch: Epoch, timestamp_ms: int) -> Offset:
        """See `peerd.transport.host_api.ShardHost`."""
        return await self._tell_outside().find_time(shard, epoch, timestamp_ms)

    async def drain(self, reason: Refusal, *, timeout_s: float) -> None:
        """Take no append any more, and give those under way `timeout_s` to be acknowledged."""
        self._refusing = reason
        try:
            async with asyncio.timeout(timeout_s):
                while self._waiting:
                    self._answered_all.clear()
                    await self._answered_all.wait()
        except TimeoutError:
            self.refuse_all(reason)

    def refuse_all(self, reason: Refusal) -> None:
        """Take no append any more, and answer those that wait: their outcome is not known."""
        self._refusing = reason
        unknown = replace(reason, taken=Taken.UNKNOWN)
        for request in tuple(self._waiting):
            self._reply(effects.AppendRefused(request=request, refusal=unknown))

    # ------------------------------------------------------------------ other peers

    @property
    def cluster_id(self) -> str:
        """See `ReplicationHost`."""
        return self._store.manifest.cluster_id

    def silent_ms(self, peer: NodeName) -> int | None:
        """See `ReplicationHost`."""
        return self._tell_outside().silent_ms(peer)

    def stream_opened(self, stream: IncomingStream) -> None:
        """See `ReplicationHost`."""
        self._incoming[stream.sender.peer] = stream
        self.stream_heard(stream)

    def stream_heard(self, stream: IncomingStream) -> None:
        """See `ReplicationHost`."""
        self._tell_outside().heard(stream.sender)

    def stream_closed(self, stream: IncomingStream) -> None:
        """See `ReplicationHost`."""
        if self._incoming.get(stream.sender.peer) is stream:
            del self._incoming[stream.sender.peer]
            self._tell_outside().stream_broke(stream.sender)

    def stream_received(
        self, stream: IncomingStream, number: int, adopts: Sequence[Adopt], frames: Sequence[Frame]
    ) -> None:
        """See `ReplicationHost`."""
        self.stream_heard(stream)
        sender = stream.sender.replica
        for adopt in adopts:
            self._handle(adopt.shard, events.AdoptReceived(sender=sender, message=adopt))
        for frame in frames:
            self._handle(frame.shard, events.FrameReceived(sender=sender, message=frame))
        if self._writes.completed == self._writes.submitted:
            stream.taken(number)
        else:
            self._untaken.append((self._writes.submitted, stream, number))

    def link_up(self, process: ProcessId) -> None:
        """The outgoing stream to `process` is open."""
        self._streams_up[process.replica] = process
        for shard in tuple(self._replicas):
            self._handle(shard, events.StreamUp(replica=process.replica))

    def link_down(self, replica: ReplicaId) -> None:
        """It broke."""
        if self._streams_up.pop(replica, None) is not None:
            for shard in tuple(self._replicas):
                self._handle(shard, events.StreamDown(replica=replica))

    def answered(self, replica: ReplicaId, acks: Sequence[Ack], expects: Sequence[Expect]) -> None:
        """Answers to frames."""
        for ack in acks:
            self._handle(ack.shard, events.AckReceived(sender=replica, message=ack))
        for expect in expects:
            self._handle(expect.shard, events.ExpectReceived(sender=replica, message=expect))

    def promise(
        self, shard: ShardId, fence: Epoch, epoch: Epoch, prepared: Epoch
    ) -> Awaitable[effects.PromiseAnswered]:
        """See `ReplicationHost`."""
        return self._ask(
            shard,
            effects.PromiseAnswered,
            lambda request: events.PromiseReceived(
                request=request, fence=fence, epoch=epoch, prepared=prepared
            ),
        )

    def begin(self, sender: ReplicaId, begin: Begin) -> Awaitable[effects.BeginAnswer]:
        """See `ReplicationHost`."""
        return self._ask(
            begin.shard,
            effects.BeginAnswer,
            lambda request: events.BeginReceived(
                request=request, sender=sender, message=begin, now=self._timetable.now()
            ),
        )

    def begin_answered(self, shard: ShardId, answer: events.BeginAnswered) -> None:
        """The answer to a `Begin` of this peer."""
        self._handle(shard, answer)

    def ready(self, sender: ReplicaId, ready: Ready) -> None:
        """See `ReplicationHost`."""
        self._handle(ready.shard, events.ReadyReceived(sender=sender, message=ready))

    def has_begun(self, shard: ShardId, epoch: Epoch) -> Awaitable[effects.HasBegunAnswer]:
        """See `ReplicationHost`."""
        return self._ask(
            shard,
            effects.HasBegunAnswer,
            lambda request: events.HasBegunAsked(request=request, epoch=epoch),
        )

    def confirm(self, message: ConfirmEpoch) -> Awaitable[effects.ConfirmAnswer]:
        """See `ReplicationHost`."""
        return self._ask(
            message.shard,
            effects.ConfirmAnswer,
            lambda request: events.ConfirmReceived(request=request, message=message),
        )

    def epoch_confirmed(
        self, shard: ShardId, sender: ReplicaId, epoch: Epoch, round_number: int, promised: Epoch
    ) -> None:
        """The answer to a `ConfirmEpoch` of this peer."""
        self._handle(
            shard,
            events.EpochConfirmed(
                sender=sender,
                epoch=epoch,
                round=round_number,
                promised=promised,
                now=self._timetable.now(),
            ),
        )

    async def table(
        self, shard: ShardId, as_of: Offset, since: Offset, *, or_later: bool
    ) -> TableSnapshot | None:
        """See `ReplicationHost`."""
        answer = await self._ask(
            shard,
            effects.TableAnswer,
            lambda request: events.TableAsked(
                request=request, as_of=as_of, or_later=or_later, since=since
            ),
        )
        return answer.table

    def fetch_limit(self, shard: ShardId, epoch: Epoch, *, copy: bool) -> Offset | None:
        """See `ReplicationHost`: a copy gets all of a sealed segment, a reader what is readable."""
        segment = self.stored(shard).segments.get(epoch)
        if copy and segment is not None and segment.seal is not None:
            return min(segment.seal, segment.end)
        return self.readable_limit(shard, epoch)

    def loaded(
        self,
        shard: ShardId,
        event: Loaded,
    ) -> None:
        """The answer to a `Load`."""
        self._handle(shard, event)

    # ------------------------------------------------------------------ map

    def _map_changed(self, change: MapChange) -> None:
        for shard in tuple(self._replicas) if change.is_whole else change.removed_shards:
            if shard in self._replicas:
                self._delete_if_told(shard)
        for shard in change.shards:
            entry = self._map.shards.get(shard)
            if entry is not None and shard in self._replicas:
                self._handle(shard, events.MapLearned(shard=entry, now=self._timetable.now()))
            elif entry is not None and self._concerns_me(entry):
                self._replica(shard)  # learns the map as it is created
            self._notify(shard)
        self._tell_outside().neighbours_changed()

    def _delete_if_told(self, shard: ShardId) -> None:
        """Whether or not it was ever here: what comes late must not bring it to life."""
        if self._map.is_deleted(shard) and self.stored(shard).promised != DELETED_EPOCH:
            self._handle(shard, events.ShardDeleted(now=self._timetable.now()))
        self._notify(shard)

    def map_entries(self) -> list[Shard]:
        """The map's entries of all shards that concern this peer."""
        return [self._map.shards[each] for each in self._replicas if each in self._map.shards]

    def _concerns_me(self, entry: Shard) -> bool:
        mine = self.me.replica
        segments = (*entry.sealed, entry.open, *((entry.prepared,) if entry.prepared else ()))
        return any(
            mine in (*each.plan.replicas, *each.holders, *each.wanted_holders) for each in segments
        )

    # ------------------------------------------------------------------ store

    def stored(self, shard: ShardId) -> StoredShard:
        """What the store has of `shard`, as of the last write that was delivered."""
        replica = self._replicas.get(shard)
        return StoredShard(shard=shard) if replica is None else replica.stored

    def stored_shards(self) -> list[StoredShard]:
        """The same of every shard."""
        return [replica.stored for replica in self._replicas.values()]

    def submit(self, operation: StoreOperation, on_outcome: OnOutcome | None = None) -> None:
        """Have `operation` written after all that came before; its shard's core hears the outcome,
        then `on_outcome`.
        """
        self._writes.submit(operation, on_outcome)

    def deliver(self, outcomes: Sequence[tuple[object, Outcome]]) -> None:
        """Outcomes of one group commit, in order. Called by the storage writer's thread."""
        self._loop.call_soon_threadsafe(self._written, outcomes)

    def _written(self, outcomes: Sequence[tuple[object, Outcome]]) -> None:
        for token, outcome in outcomes:
            self._writes.completed += 1
            self._handle(outcome.operation.shard, events.WriteDone(outcome=outcome))
            if callable(token):
                token(outcome)
        try:
            self._writes.submit_again()
        except (StorageFailed, StoreClosed):
            self._broken = True
        while self._untaken and self._untaken[0][0] <= self._writes.completed:
            _, stream, number = self._untaken.popleft()
            stream.taken(number)

    # ------------------------------------------------------------------ the cores

    def _replica(self, shard: ShardId) -> Replica:
        """The shard's core; a new one is told what is known already."""
        replica = self._replicas.get(shard)
        if replica is not None:
            return replica
        stored = self._store.shards.get(shard, StoredShard(shard=shard))
        replica = self._replicas[shard] = Replica(self.me, stored, self._limits)
        if self._recorder is not None:
            self._recorder.booted(shard, replica)
        for reachable in tuple(self._streams_up):
            self._handle(shard, events.StreamUp(replica=reachable))
        entry = self._map.shards.get(shard)
        if entry is not None:
            self._handle(shard, events.MapLearned(shard=entry, now=self._timetable.now()))
        self._delete_if_told(shard)
        return replica

    def _handle(self, shard: ShardId, event: events.Event) -> None:
        """Give the shard's core one event, and carry out what it wants."""
        if self._broken:
            return
        replica = self._replica(shard)
        try:
            step = replica.handle(event)
            if self._recorder is not None:
                self._recorder.handled(shard, event, step)
            self._carry_out(step)
        except InvariantViolation as error:
            self._broken = True
            if self._recorder is not None:
                self._recorder.broke(shard, event, str(error))
            at = repr(event)[:EVENT_CHARACTERS_LOGGED]
            _log.critical("invariant violated", shard=shard, why=str(error), at=at)
            self._fatal(error)
            raise
        except (StorageFailed, StoreClosed):
            # Whoever owns the store was told, and ends the process; nothing is acknowledged here.
            self._broken = True
            return
        self._timetable.wake(shard, replica.wake_at)
        seen = (replica.epoch, replica.committed)
        if self._seen.get(shard) != seen:
            self._seen[shard] = seen
            self._notify(shard)

    def _carry_out(self, step: effects.Step) -> None:
        frames_first = bool(step.send)
        for operation in step.persist:
            self._writes.submit(operation, None, frames_first=frames_first)
        for send in step.send:
            self._send(send.to, send.message)
        outside = self._tell_outside()
        for load in step.load:
            outside.load(load)
        for reply in step.reply:
            self._reply(reply)
        for report in step.report:
            outside.report(report)
        for note in step.note:
            log_note(note)

    def _send(self, to: ReplicaId, message: Message) -> None:
        if isinstance(message, Adopt | Frame):
            self._tell_outside().send_frame(to, message)
        elif isinstance(message, Ack | Expect):
            stream = self._incoming.get(to.peer)
            # Without the stream the sender asks anew when it has dialled again.
            if stream is not None and stream.sender.replica == to:
                stream.answer(message)
        else:
            self._tell_outside().call(to, message)

    def _tell_outside(self) -> Outside:
        if self._outside is None:
            raise InvariantViolation("the host is connected before it is used")
        return self._outside

    def _notify(self, shard: ShardId) -> None:
        event = self._changed.pop(shard, None)
        if event is not None:
            event.set()

    # ------------------------------------------------------------------ replies

    def _draw_request(self) -> RequestId:
        self._next_request += 1
        return RequestId(self._next_request)

    def _await_reply(self, on_reply: Callable[[effects.Reply], None]) -> RequestId:
        request = self._draw_request()
        self._waiting[request] = on_reply
        return request

    def _reply(self, reply: effects.Reply) -> None:
        on_reply = self._waiting.pop(reply.request, None)
        if on_reply is not None:
            on_reply(reply)
        if not self._waiting:
            self._answered_all.set()

    def _ask(
        self,
        shard: ShardId,
        kind: type[Answer],
        event: Callable[[RequestId], events.Event],
    ) -> "asyncio.Future[Answer]":
        """Give the core an event that it answers; the future ends with the answer."""
        future: asyncio.Future[Answer] = self._loop.create_future()

        def on_reply(reply: effects.Reply) -> None:
            if future.done():
                return
            if isinstance(reply, kind):
                future.set_result(reply)
            else:
                future.set_exception(
                    Refused(refusal(Reason.STORE_FAILED, f"{self.me.peer} serves nothing any more"))
                )

        request = self._await_reply(on_reply)
        # A caller that gave up is not remembered; a late reply then finds nobody.
        future.add_done_callback(lambda _: self._waiting.pop(request, None))
        self._handle(shard, event(request))
        return future

    # ------------------------------------------------------------------ time

    def _ring(self, shard: ShardId, now: Tick) -> None:
        """An appointment has come. It is kept even if the core wishes a later one meanwhile: each
        append moves that wish, so under a steady load no tick would ever come, and with it no
        repetition, no report of a stall and no end of a search.
        """
        if self._replicas[shard].wake_at is not None:
            self._handle(shard, events.Ticked(now=now))

    def stop(self) -> None:
        """Ring no more."""
        self._timetable.stop()
        flush_notes()

    def statistics(self) -> HostStatistics:
        """Counts, now."""
        lags: Counter[NodeName] = Counter()
        for each in self._replicas.values():
            lags.update({replica.peer: lag for replica, lag in each.lags.items()})
        return HostStatistics(
            shards=len(self._replicas),
            primaries=sum(replica.is_primary for replica in self._replicas.values()),
            unanswered_requests=len(self._waiting),
            writes_pending=self._writes.submitted - self._writes.completed,
            streams_in=len(self._incoming),
            lag_records=dict(lags),
        )


def _append_outcome(reply: effects.Reply) -> AppendOutcome:
    """A core's reply to an append as the services know it."""
    if isinstance(reply, effects.AppendRefused):
        return reply.refusal
    if isinstance(reply, effects.AppendAccepted):
        return reply
    raise InvariantViolation(f"an append was answered by {reply!r}")
