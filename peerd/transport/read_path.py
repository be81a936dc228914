"""Reads: one shard from where it is, a whole log as the merge of its shards.

A read of one shard is served by the primary of its open segment (which fetches what it lacks of
the past), so a peer that is asked and is not the primary passes the answer on, one hop. When the
primary changes, the read goes on at the next one from where it stands.

Invariants:
- Per shard, batches leave in offset order without gap or repetition, across failovers too.
- A range that the map gives up for lost, or that is trimmed while it is read, leaves as a typed
  gap, in its place (G10). An offset that is asked for by number and trimmed is refused.
- A read that does not follow ends at the tail seen at its start. A shard that is split ends at X
  for every read; of a whole log, the parent is read before its children (G8).
- Memory is bounded: a read holds one message per shard that it has begun and a few that wait to be
  sent, and of a whole log at most `READ_SHARDS_AT_ONCE_MAX` shards are under way unless it follows.
  Messages of a whole log have `READ_MESSAGE_BYTES`; those of one shard, which has one message at a
  time, twice as many after each full one, up to `LONG_READ_MESSAGE_BYTES`: who wants few records
  causes little to be read, and who reads on pays for few messages. So do `LONG_READS_MAX` reads of
  a peer at most.
- `resume` after a message is where a new read goes on with what comes next, for all shards.

Must not: skip what cannot be read. After `no_primary_wait_ms` without progress the read ends with
RANGE_UNAVAILABLE (a following read that has reached the tail waits for ever). What begins an answer
is no progress.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import grpc.aio

from peerd.core.batch import PlacedBatch
from peerd.core.errors import Reason
from peerd.core.ids import NO_EPOCH, Epoch, ShardId
from peerd.internal.v1 import log_bytes_pb2
from peerd.transport.host_api import ShardHost
from peerd.transport.limits import (
    BESIDE_BATCH_BYTES,
    LONG_READ_BATCH_BYTES_MIN,
    LONG_READ_MESSAGE_BYTES,
    LONG_READS_MAX,
    READ_MESSAGE_BYTES,
    READ_MESSAGES_WAITING_MAX,
    READ_SHARDS_AT_ONCE_MAX,
    RETRY_AFTER_MS,
    RETRY_STEP_MS,
)
from peerd.transport.map_cache import MapCache
from peerd.transport.map_service import unknown_log
from peerd.transport.read_source import ReadSource, unavailable
from peerd.transport.router import Router, Target
from peerd.transport.status import Refused, reason_of, refusal, refusal_of_error
from peerd.transport.waiting import is_cancelled, wait_for
from peerd.transport.wire_form import sized_tag, varint
from peerd.transport.workload import Workload
from peerd.v1 import errors_pb2, log_pb2

Message = log_bytes_pb2.ReadResponseBytes
_BATCH_TAG = sized_tag(Message.BATCHES_FIELD_NUMBER)
_PAYLOAD_TAG = sized_tag(log_bytes_pb2.ReadBatchBytes.BATCH_FIELD_NUMBER)

# Refusals of a peer that was taken for the primary after which another look at the map may help.
_LOOK_AGAIN = frozenset(
    {
        Reason.NOT_PRIMARY,
        Reason.MOVED,
        Reason.MAP_UNKNOWN,
        Reason.SHUTTING_DOWN,
        Reason.RANGE_UNAVAILABLE,
        Reason.STORE_FAILED,
        Reason.OVERLOADED,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is served here, as a message whose batches stay as they are: a message object would copy
    each of them three times. It is used like one.
    """

    head: Message
    """The message without batches."""
    shard: ShardId
    epoch: Epoch
    batches: Sequence[PlacedBatch]

    @property
    def resume(self) -> log_pb2.ResumeToken:
        """As in the message."""
        return self.head.resume

    @property
    def gaps(self) -> Sequence[log_pb2.Gap]:
        """As in the message."""
        return self.head.gaps

    def ByteSize(self) -> int:
        """About what the message has: its batches, and what is said beside them."""
        return self.head.ByteSize() + sum(len(batch.payload) for batch in self.batches)

    def SerializeToString(self) -> bytes:
        """The wire form: fields of one message may stand in any order, one behind the other."""
        pieces: list[bytes | memoryview] = []
        for batch in self.batches:
            fields = log_bytes_pb2.ReadBatchBytes(
                shard=self.shard,
                epoch=self.epoch,
                base_offset=batch.base,
                timestamp_ms=batch.header.timestamp_ms,
                payload_crc=batch.header.payload_crc,
            ).SerializeToString()
            length = varint(len(batch.payload))
            size_bytes = len(fields) + len(_PAYLOAD_TAG) + len(length) + len(batch.payload)
            pieces += (_BATCH_TAG, varint(size_bytes), fields, _PAYLOAD_TAG, length, batch.payload)
        return b"".join((*pieces, self.head.SerializeToString()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a shard's read begins: an offset, a time, or the tail; all None = the earliest."""

    offset: int | None = None
    timestamp_ms: int | None = None
    latest: bool = False
    resumed: bool = False
    """The offset was handed out by an earlier read: it may lie beyond what is known here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadServices:
    """What reads are made of, shared by all of one peer."""

    host: ShardHost
    cache: MapCache
    source: ReadSource
    router: Router
    wait_ms: int
    workload: Workload = field(default_factory=Workload)
    long_reads: set[int] = field(default_factory=set)
    """Those whose messages have grown."""


@dataclass(slots=True, kw_only=True)
class ShardRead:
    """One shard's part of a read. `next` is the next offset to send, None until it is known."""

    services: ReadServices
    log: str
    shard: ShardId
    start: Start
    follow: bool
    local: bool
    may_forward: bool
    is_alone: bool = False
    """It is all that its call reads."""
    next: int | None = None
    tail: int | None = None
    _message_bytes: int = READ_MESSAGE_BYTES
    _hint: Target | None = None
    # What the primary said last, if it could not read what comes next.
    _refused: errors_pb2.Refusal | None = None
    _progress_s: float = field(default_factory=time.monotonic)

    async def messages(self) -> AsyncGenerator[Message | Answer, None]:
        """The answer: first a message that tells where it starts, then batches.

        Raises:
            Refused: OFFSET_BEYOND_TAIL, TRIMMED, NOT_PRIMARY, RANGE_UNAVAILABLE, CORRUPT,
                UNKNOWN_LOG (it was deleted meanwhile).
        """
        if self.follow:
            self.services.workload.reader_begins(id(self), self.shard, self._lag_records)
        try:
            async with contextlib.aclosing(self._messages()) as messages:
                async for message in messages:
                    yield message
        finally:
            self.services.workload.reader_ends(id(self))
            self.services.long_reads.discard(id(self))

    async def _messages(self) -> AsyncGenerator[Message | Answer, None]:
        while not self._is_done():
            changed = self.services.host.commit_changed(self.shard)
            self._check_replica()
            if self._is_ours():
                served = False
                async with contextlib.aclosing(self._serve()) as messages:
                    async for message in messages:
                        served = True
                        yield message
                if not served and not self._is_done():
                    await self._wait(changed)
            elif self.may_forward:
                async with contextlib.aclosing(self._pass_on()) as passed_on:
                    async for passed in passed_on:
                        yield passed
            else:
                raise Refused(self._not_primary())

    def _is_ours(self) -> bool:
        return self.local or self.services.host.is_primary(self.shard)

    def _is_done(self) -> bool:
        if self.next is None:
            return False
        end = self.split_end
        if end is not None and self.next >= end:
            return True
        return not self.follow and self.tail is not None and self.next >= self.tail

    @property
    def split_end(self) -> int | None:
        """X, if the shard is split: there is nothing beyond it and never will be."""
        entry = self.services.cache.shards.get(self.shard)
        return None if entry is None or entry.split is None else entry.split.end

    # -------------------------------------------------------------------------- from here

    async def _serve(self) -> AsyncGenerator[Answer, None]:
        """What can be served now; ends when there is nothing more at the moment."""
        if self.next is None:
            self.next = await self._begin()
            yield self._message(NO_EPOCH, ())
        while self._is_ours() and not self._is_done():
            gap = self._gap_here(self.next)
            if gap is not None:
                self.next = gap.next_offset
                self._progress_s = time.monotonic()
                yield self._message(NO_EPOCH, (), gap)
                continue
            span = self.services.source.span_at(self.shard, self.next)
            if span is None:
                return
            stop = self._known_end() if self.follow or self.tail is None else self.tail
            try:
                batches = await self.services.source.read(
                    self.shard, span, self.next, stop, self._message_bytes
                )
            except Refused:
                if self._gap_here(self.next) is None:
                    raise
                continue  # it was trimmed meanwhile
            if not batches:
                return
            batches = self._fitted(batches)
            self.next = batches[-1].end
            self._progress_s = time.monotonic()
            self._account(batches)
            yield self._message(span.epoch, batches)

    def _account(self, batches: Sequence[PlacedBatch]) -> None:
        age_ms = time.time_ns() // 1_000_000 - batches[0].header.timestamp_ms
        payload_bytes = sum(batch.header.payload_bytes for batch in batches)
        self.services.workload.read(self.shard, payload_bytes, age_ms=age_ms)
        is_full = 2 * payload_bytes >= self._message_bytes
        if self.is_alone and is_full and payload_bytes >= LONG_READ_BATCH_BYTES_MIN * len(batches):
            self._lengthen()

    def _fitted(self, batches: list[PlacedBatch]) -> list[PlacedBatch]:
        """Those that fit into a message that has grown; with more it is as short as at first."""
        count_max = self._message_bytes // 2 // BESIDE_BATCH_BYTES
        if self._message_bytes == READ_MESSAGE_BYTES or len(batches) <= count_max:
            return batches
        self._message_bytes = READ_MESSAGE_BYTES
        return batches[:count_max]

    def _lengthen(self) -> None:
        long_reads = self.services.long_reads
        if id(self) in long_reads or len(long_reads) < LONG_READS_MAX:
            long_reads.add(id(self))
            self._message_bytes = min(2 * self._message_bytes, LONG_READ_MESSAGE_BYTES)

    def _lag_records(self) -> int:
        """How far it is behind what is committed here; a gap on the way counts as nothing."""
        if self.next is None:
            return 0
        return self._known_end() - self.next if self._gap_here(self.next) is None else 0

    @property
    def _kept_from(self) -> int:
        entry = self.services.cache.shards.get(self.shard)
        return 0 if entry is None else entry.kept_from

    def _gap_here(self, offset: int) -> log_pb2.Gap | None:
        if offset < self._kept_from:
            return log_pb2.Gap(
                shard=self.shard,
                first_offset=offset,
                next_offset=self._kept_from,
                reason=errors_pb2.ERROR_REASON_TRIMMED,
                message="trimmed: not kept any more",
            )
        entry = self.services.cache.shards.get(self.shard)
        gap = None if entry is None else entry.gap_at(offset)
        if gap is None:
            return None
        return log_pb2.Gap(
            shard=self.shard,
            first_offset=gap.begin,
            next_offset=gap.end,
            reason=errors_pb2.ERROR_REASON_LOST,
            message=gap.why,
        )

    async def _begin(self) -> int:
        tail = self._known_end()
        if self.tail is None:
            self.tail = tail
        start = self.start
        if start.latest:
            return tail
        if start.timestamp_ms is not None:
            return await self.services.source.offset_at(self.shard, start.timestamp_ms, tail)
        if start.offset is None:
            return self._kept_from
        if start.offset < self._kept_from and not start.resumed:
            raise Refused(
                refusal(
                    Reason.TRIMMED,
                    f"offset {start.offset} of shard {self.shard} was trimmed: the first one left "
                    f"is {self._kept_from}",
                    first_offset=self._kept_from,
                )
            )
        if start.offset > tail and not start.resumed:
            raise Refused(
                refusal(
                    Reason.OFFSET_BEYOND_TAIL,
                    f"offset {start.offset} of shard {self.shard} lies beyond the committed tail "
                    f"{tail}: start at the tail, or later",
                    first_offset=tail,
                )
            )
        return start.offset

    def _known_end(self) -> int:
        """Up to where this peer knows the shard to be committed, by its store or by the map."""
        known = self.services.host.committed(self.shard)
        entry = self.services.cache.shards.get(self.shard)
        begin = 0 if entry is None else entry.open.begin or 0
        return begin if known is None else max(begin, known[1])

    def _message(
        self, epoch: Epoch, batches: Sequence[PlacedBatch], gap: log_pb2.Gap | None = None
    ) -> "Answer":
        head = Message(committed={self.shard: self._known_end()})
        if gap is not None:
            head.gaps.append(gap)
        head.resume.offsets[self.shard] = self.next or 0
        return Answer(head=head, shard=self.shard, epoch=epoch, batches=batches)

    async def _wait(self, changed: asyncio.Event) -> None:
        """Waits for the shard to move; what is committed but not readable yet is tried again."""
        if self.follow and self.next is not None and self.next >= self._known_end():
            await changed.wait()
            return
        await self._pause(changed)

    # -------------------------------------------------------------------------- from the primary

    async def _pass_on(self) -> AsyncGenerator[Message, None]:
        """The primary's answer, as far as it comes; ends when the map has to be looked at again."""
        router = self.services.router
        changed = self.services.cache.changed
        target = self._hint or router.primary_of(self.shard)
        self._hint = self._refused = None
        if target is None or not await router.connected(target.address, RETRY_STEP_MS / 1000):
            await self._pause(changed)
            return
        call = router.server_stream(target.address, "Read", Message.FromString)(
            self._request().SerializeToString(), metadata=router.forward_metadata
        )
        router.watch(self.shard, target, call)
        try:
            async for message in call:
                self._passed(message)
                yield message
                if self._is_done():
                    return
        except grpc.aio.AioRpcError as error:
            self._hint = self._judge(error)
        except asyncio.CancelledError:
            if not router.unwatch(self.shard, call) or is_cancelled():
                raise
        finally:
            router.unwatch(self.shard, call)
            call.cancel()
        if self._hint is None:
            await self._pause(changed)

    def _passed(self, message: Message) -> None:
        # Each answer begins with a message that has nothing but where it starts.
        if self.next != message.resume.offsets[self.shard]:
            self._progress_s = time.monotonic()
        self.next = message.resume.offsets[self.shard]
        if self.tail is None:
            self.tail = message.committed[self.shard]

    def _judge(self, error: grpc.aio.AioRpcError) -> Target | None:
        """Returns the peer to ask instead, if the refusal names one.

        Raises:
            Refused: asking again, here or elsewhere, would give the same answer.
        """
        refused = refusal_of_error(error)
        if refused is None:
            return None
        if reason_of(refused) not in _LOOK_AGAIN:
            raise Refused(refused)
        if reason_of(refused) is Reason.RANGE_UNAVAILABLE:
            self._refused = refused
        return self.services.router.target_at(self.shard, refused.leader)

    def _request(self) -> log_pb2.ReadRequest:
        request = log_pb2.ReadRequest(log=self.log, shard=self.shard, follow=self.follow)
        start = self.start
        if self.next is not None:
            request.resume.offsets[self.shard] = self.next
        elif start.latest:
            request.latest = True
        elif start.timestamp_ms is not None:
            request.timestamp_ms = start.timestamp_ms
        elif start.offset is not None and start.resumed:
            request.resume.offsets[self.shard] = start.offset
        elif start.offset is not None:
            request.offset = start.offset
        return request

    async def _pause(self, changed: asyncio.Event) -> None:
        """Waits a step, or until something changed.

        Raises:
            Refused: RANGE_UNAVAILABLE, if there was no progress for too long; as the primary said
                it, if it did.
        """
        idle_ms = (time.monotonic() - self._progress_s) * 1000
        if idle_ms > self.services.wait_ms and (not self.follow or self._refused is not None):
            if self._refused is not None:
                raise Refused(self._refused)
            message = unavailable(self.shard, self.next or 0)
            raise Refused(refusal(Reason.RANGE_UNAVAILABLE, message, retry_after_ms=RETRY_AFTER_MS))
        await wait_for(changed, RETRY_STEP_MS / 1000)

    def _check_replica(self) -> None:
        """A local read needs a store that goes on getting the shard's batches, and any a log.

        Raises:
            Refused: NOT_PRIMARY, if this one does not; UNKNOWN_LOG, if the log was deleted.
        """
        if self.services.cache.is_deleted(self.shard):
            raise Refused(refusal(Reason.UNKNOWN_LOG, unknown_log(self.log)))
        entry = self.services.cache.shards.get(self.shard)
        me = self.services.host.me.replica
        if self.local and (entry is None or me not in entry.open.plan.replicas):
            raise Refused(self._not_primary())

    def _not_primary(self) -> errors_pb2.Refusal:
        target = self.services.router.primary_of(self.shard)
        return refusal(
            Reason.NOT_PRIMARY,
            f"{self.services.host.me.peer} does not serve the newest part of shard {self.shard}: "
            "go to its primary, or refresh the map",
            leader="" if target is None else target.address,
        )


class _SplitMeanwhile(Exception):  # noqa: N818 - no error: a reason to end
    """A shard was split while it was followed: its children are not part of this read."""


class LogRead:
    """All shards of a log in one answer, parents before their children.

    A read that follows ends when one of its shards is split: the next one, from its token, has the
    children. They are not in the token, so they are read from their beginning.
    """

    def __init__(
        self, reads: Sequence[ShardRead], write: Callable[[Message | Answer], Awaitable[None]]
    ) -> None:
        """`reads` has each parent before its children. `write` sends one message to the client and
        returns when there is room for the next.
        """
        self._reads = reads
        self._read_whole = {read.shard: asyncio.Event() for read in reads}
        self._write = write
        self._messages: deque[Message | Answer] = deque()
        self._news = asyncio.Event()
        self._places = asyncio.Semaphore(READ_MESSAGES_WAITING_MAX)
        self._resolving = asyncio.Semaphore(READ_SHARDS_AT_ONCE_MAX)
        # A following read is under way in all shards for ever; another one takes them in turn.
        follows = bool(reads) and reads[0].follow
        at_once = len(reads) if follows else min(len(reads), READ_SHARDS_AT_ONCE_MAX)
        self._under_way = asyncio.Semaphore(max(1, at_once))
        self._positions: dict[int, int] = {}

    async def run(self) -> None:
        """Sends everything.

        Raises:
            ExceptionGroup: of the `Refused` of any shard; the others end with it.
        """
        # All positions and tails are known before the first batch leaves, so that every token
        # names every shard: one that it did not name would be read from its beginning.
        async with asyncio.TaskGroup() as group:
            for read in self._reads:
                group.create_task(self._resolve(read))
        first = Message()
        first.resume.offsets.update(self._positions)
        await self._write(first)
        pumping = asyncio.create_task(self._pump_all(), name="read of a whole log")
        pumping.add_done_callback(lambda _: self._news.set())
        try:
            # Written by this task alone, and never cancelled for a failure of another one: gRPC
            # cannot end a call properly while a write of it is under way.
            while not (pumping.done() and not self._messages):
                await self._news.wait()
                self._news.clear()
                await self._write_waiting()
            with contextlib.suppress(_SplitMeanwhile):
                _result_of(pumping)
        finally:
            pumping.cancel()
            await asyncio.gather(pumping, return_exceptions=True)

    async def _write_waiting(self) -> None:
        while self._messages:
            message = self._messages.popleft()
            self._places.release()
            self._positions.update(message.resume.offsets)
            message.resume.offsets.update(self._positions)
            await self._write(message)

    async def _pump_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for read in self._reads:
                group.create_task(self._pump(read))

    async def _resolve(self, read: ShardRead) -> None:
        async with self._resolving, contextlib.aclosing(read.messages()) as messages:
            async for message in messages:
                self._positions.update(message.resume.offsets)
                break

    async def _pump(self, read: ShardRead) -> None:
        entry = read.services.cache.shards.get(read.shard)
        if entry is not None and entry.parent is not None:
            before = self._read_whole.get(entry.parent.shard)
            if before is not None:
                await before.wait()
        async with self._under_way, contextlib.aclosing(read.messages()) as messages:
            async for message in messages:
                await self._places.acquire()
                self._messages.append(message)
                self._news.set()
        self._read_whole[read.shard].set()
        self._check_children(read)

    def _check_children(self, read: ShardRead) -> None:
        """Raises `_SplitMeanwhile` if a following read lacks the children of what it has read."""
        entry = read.services.cache.shards.get(read.shard)
        children = () if entry is None or entry.split is None else entry.split.children
        if read.follow and not set(children) <= self._read_whole.keys():
            raise _SplitMeanwhile


def _result_of(pumping: asyncio.Task[None]) -> None:
    """What ended the pumps of a read.

    Raises:
        _SplitMeanwhile: nothing else did.
        ExceptionGroup: of everything else.
    """
    try:
        pumping.result()
    except BaseExceptionGroup as group:
        _, others = group.split(_SplitMeanwhile)
        if others is not None:
            raise others from None
        raise _SplitMeanwhile from None
