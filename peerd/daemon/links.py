"""The outgoing replication streams: one to each peer that this one sends frames to, or may soon.

Invariants:
- A link carries messages in the order in which they were given, and loses none without telling:
  whatever breaks or overflows ends the stream, the cores hear `link_down`, and start over from
  what the replica says when `link_up` follows.
- What the replica has not written yet, and what waits behind it, is bounded (`LinkLimits`).
  Whatever comes while messages are under way travels in the next one: batching grows with load
  and adds no delay.
- The first message names cluster, sender and the store that is meant; the first answer names the
  process at the other end. Another store than the one meant ends the stream.
- `alive` frames are sent by the event loop: if it hangs, they stop, and others notice.

Must not: decide what to send, or remember what was sent before the stream broke.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc
import grpc.aio

from peerd.core.ids import NodeName, ProcessId, ReplicaId, ShardId
from peerd.core.messages import Ack, Adopt, Expect, Frame
from peerd.daemon.logging import get_logger
from peerd.daemon.neighbours import Neighbours
from peerd.daemon.supervisor import Supervisor
from peerd.internal.v1 import replication_pb2
from peerd.transport.channels import Channels
from peerd.transport.concurrency import CallOver, first_ended, write_to
from peerd.transport.map_codec import decode_process, encode_process
from peerd.transport.replication_codec import (
    decode_ack,
    decode_expect,
    encode_adopt,
    frame_parts,
    size_bytes,
)

# Frame periods of 250 ms between two pings whose way there and back is measured: one a second is as
# often as samples are taken.
PULSES_PER_MEASURED_PING = 4
# The other end has this long to name itself. Seconds.
HELLO_TIMEOUT_S = 2.0
# The second pause before dialling again (the first is none); it doubles with each attempt.
RETRY_DELAY_S_MIN = 0.05
# limit: seconds between attempts; a peer that comes back is needed again within about a second
RETRY_DELAY_S_MAX = 1.0

_METHOD = "/peerd.internal.v1.ReplicationService/Replicate"

Request = replication_pb2.ReplicateRequest | bytes
"""Bytes are a message that is serialized already."""
ReplicateCall = grpc.aio.StreamStreamCall[Request, replication_pb2.ReplicateResponse]

_log = get_logger("links")


class LinkEvents(Protocol):
    """What a link tells. All calls come on the event loop."""

    def link_up(self, process: ProcessId) -> None:
        """Messages to `process.replica` travel from now on."""

    def link_down(self, replica: ReplicaId) -> None:
        """Nothing travels any more, and what was under way may be lost."""

    def answered(self, replica: ReplicaId, acks: Sequence[Ack], expects: Sequence[Expect]) -> None:
        """Answers of the replica."""

    def frame_taken(self, duration_ms: float) -> None:
        """A message was written at the other end, this long after it was sent."""

    def round_trip(self, duration_ms: float) -> None:
        """A ping was answered after so long; or is not yet, and is so old."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkLimits:
    """Bounds of one link."""

    under_way_messages_max: int = 2
    """Messages beyond what the replica has written: two keep the wire busy while the other end
    commits, more would only queue there."""
    message_bytes_max: int = 1024 * 1024
    """Joined into one message; a single batch may exceed it. Larger messages gain nothing, and
    delay the acknowledgement of what they begin with."""
    queue_bytes_max: int = 64 * 1024 * 1024
    """Waiting for one peer. The cores stop far below it for each shard, this bounds the sum:
    beyond it the stream starts over, and what the peer lacks is read from the store."""


class LinkBroken(Exception):
    """The stream is over; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkStatistics:
    """One link, for metrics."""

    peer: NodeName
    up: bool
    queued_messages: int
    queued_bytes: int
    under_way: int
    breaks: int
    overflows: int
    round_trip_ms: float | None


class Link:
    """The stream to one replica. Give it messages only between `link_up` and `link_down`."""

    def __init__(
        self,
        *,
        me: ProcessId,
        cluster_id: str,
        target: ReplicaId,
        address: str,
        channels: Channels,
        events: LinkEvents,
        limits: LinkLimits,
        neighbours: Neighbours,
        now_s: Callable[[], float],
    ) -> None:
        self.target = target
        self.address = address
        self._me = me
        self._cluster_id = cluster_id
        self._channels = channels
        self._events = events
        self._limits = limits
        self._neighbours = neighbours
        self._now_s = now_s
        self._queue: deque[tuple[Adopt | Frame, int]] = deque()
        self._queued_bytes = 0
        self._under_way: deque[tuple[int, float]] = deque()
        self._number = 0
        self._process: ProcessId | None = None
        self._last_process: ProcessId | None = None
        self._wake = asyncio.Event()
        self._pulse_due = False
        self._wrote = False
        self._pulses = 0
        self._ping = 0
        self._measured_ping = 0
        self._measure_due = False
        self._pinged_s: float | None = None
        self._round_trip_ms: float | None = None
        self._overflowed = False
        self._breaks = 0
        self._overflows = 0

    def send(self, message: Adopt | Frame) -> None:
        """Queue `message`. Dropped while the link is down: the core was told, and starts over."""
        if self._process is None or self._overflowed:
            return
        size = size_bytes(message)
        if self._queued_bytes + size > self._limits.queue_bytes_max:
            self._overflowed = True
            self._overflows += 1
        else:
            self._queue.append((message, size))
            self._queued_bytes += size
        self._wake.set()

    def pulse(self) -> None:
        """A frame period has passed: ask whether the other end hears, unless frames do."""
        self._pulse_due = not self._wrote
        self._wrote = False
        self._pulses += 1
        if self._pulses % PULSES_PER_MEASURED_PING == 0 and self._process is not None:
            if self._pinged_s is None:
                self._measure_due = True
            elif self._round_trip_ms is not None:
                # It knows pings, and this one is late: the wait itself is worth telling.
                self._took((self._now_s() - self._pinged_s) * 1000.0)
        self._wake.set()

    def statistics(self) -> LinkStatistics:
        """State and counts."""
        return LinkStatistics(
            peer=self.target.peer,
            up=self._process is not None,
            queued_messages=len(self._queue),
            queued_bytes=self._queued_bytes,
            under_way=len(self._under_way),
            breaks=self._breaks,
            overflows=self._overflows,
            round_trip_ms=self._round_trip_ms,
        )

    async def run(self) -> None:
        """Keep the stream open for ever; ends by cancellation."""
        delay_s = 0.0
        while True:
            breaks_before = self._breaks
            try:
                await self._stream()
            except (LinkBroken, CallOver, grpc.aio.AioRpcError) as error:
                why = _one_line(error)
            if self._breaks > breaks_before:
                delay_s = 0.0
                _log.warning("link broke", to=self.target.peer, why=why)
            if self._last_process is not None:
                self._neighbours.stream_broke(self._last_process)
            await asyncio.sleep(delay_s)
            delay_s = min(max(2 * delay_s, RETRY_DELAY_S_MIN), RETRY_DELAY_S_MAX)

    async def _stream(self) -> None:
        """One stream from dialling to its end, which is always an exception."""
        call: ReplicateCall = self._channels.to(self.address).stream_stream(
            _METHOD, _serialized, replication_pb2.ReplicateResponse.FromString
        )(metadata=self._channels.metadata)
        try:
            process = await self._greet(call)
            self._process = self._last_process = process
            self._neighbours.heard(process)
            self._events.link_up(process)
            try:
                await first_ended(self._write(call), self._read(call, process))
            finally:
                self._forget()
                self._events.link_down(self.target)
        finally:
            call.cancel()

    async def _greet(self, call: ReplicateCall) -> ProcessId:
        """Say who calls whom; returns the process that answers."""
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                await write_to(
                    call,
                    replication_pb2.ReplicateRequest(
                        cluster_id=self._cluster_id,
                        sender=encode_process(self._me),
                        target_store_id=self.target.store,
                    ),
                )
                answer = await self._next(call)
        except TimeoutError as error:
            raise LinkBroken(f"no answer within {HELLO_TIMEOUT_S:.0f} s") from error
        process = decode_process(answer.receiver)
        if process.replica != self.target:
            raise LinkBroken(f"{self.address} is {process.peer} with store {process.store}")
        return process

    async def _write(self, call: ReplicateCall) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._overflowed:
                raise LinkBroken(f"{self._limits.queue_bytes_max} bytes wait for it: starting over")
            while self._queue and len(self._under_way) < self._limits.under_way_messages_max:
                await write_to(call, self._next_message())
                self._wrote = True
            if self._measure_due or self._pulse_due:
                self._ping += 1
                if self._measure_due:
                    self._measured_ping, self._pinged_s = self._ping, self._now_s()
                self._measure_due = self._pulse_due = False
                await write_to(call, replication_pb2.ReplicateRequest(alive=True, ping=self._ping))

    def _next_message(self) -> bytes:
        """Join what waits, in order, up to `message_bytes_max`; a serialized message."""
        self._number += 1
        message = replication_pb2.ReplicateRequest(number=self._number)
        frames: list[bytes | memoryview] = []
        framed: set[ShardId] = set()
        joined_bytes = 0
        while self._queue:
            item, size = self._queue[0]
            # The other end takes the adoptions of a message before its frames.
            overtakes = isinstance(item, Adopt) and item.shard in framed
            if joined_bytes and (joined_bytes + size > self._limits.message_bytes_max or overtakes):
                break
            self._queue.popleft()
            self._queued_bytes -= size
            joined_bytes += size
            if isinstance(item, Adopt):
                message.adopts.append(encode_adopt(item))
            else:
                frames += frame_parts(item)
                framed.add(item.shard)
        self._under_way.append((self._number, self._now_s()))
        return b"".join((message.SerializeToString(), *frames))

    async def _read(self, call: ReplicateCall, process: ProcessId) -> None:
        while True:
            answer = await self._next(call)
            if answer.pong or answer.taken or answer.acks or answer.expects:
                self._neighbours.answered(process, a_ping=answer.pong > 0)
            else:
                self._neighbours.heard(process)
            if answer.pong >= self._measured_ping and self._pinged_s is not None:
                self._took((self._now_s() - self._pinged_s) * 1000.0)
                self._pinged_s = None
            if answer.taken:
                self._taken(answer.taken)
            if answer.acks or answer.expects:
                self._events.answered(
                    self.target,
                    [decode_ack(ack) for ack in answer.acks],
                    [decode_expect(expect) for expect in answer.expects],
                )

    async def _next(self, call: ReplicateCall) -> replication_pb2.ReplicateResponse:
        answer = await call.read()
        if isinstance(answer, replication_pb2.ReplicateResponse):
            return answer
        # Any other end than a friendly one raises.
        raise LinkBroken("the other end closed the stream")

    def _taken(self, number: int) -> None:
        now_s = self._now_s()
        while self._under_way and self._under_way[0][0] <= number:
            _, sent_s = self._under_way.popleft()
            self._events.frame_taken((now_s - sent_s) * 1000.0)
        if self._queue:
            self._wake.set()

    def _took(self, duration_ms: float) -> None:
        self._round_trip_ms = duration_ms
        self._events.round_trip(duration_ms)

    def _forget(self) -> None:
        """The stream is over: nothing of it may reach the next one."""
        self._measure_due = False
        self._pinged_s = self._round_trip_ms = None
        self._process = None
        self._breaks += 1
        self._queue.clear()
        self._queued_bytes = 0
        self._under_way.clear()
        self._number = 0
        self._overflowed = False


class Links:
    """All links of the process. `want` says which there should be."""

    def __init__(
        self,
        *,
        me: ProcessId,
        channels: Channels,
        events: LinkEvents,
        limits: LinkLimits,
        neighbours: Neighbours,
        supervisor: Supervisor,
        now_s: Callable[[], float],
    ) -> None:
        self._me = me
        self._channels = channels
        self._events = events
        self._limits = limits
        self._neighbours = neighbours
        self._supervisor = supervisor
        self._now_s = now_s
        self._links: dict[NodeName, tuple[Link, asyncio.Task[None]]] = {}

    def want(self, targets: Mapping[ReplicaId, str], cluster_id: str) -> None:
        """Have links to exactly these replicas, at these addresses."""
        by_peer = {target.peer: (target, address) for target, address in targets.items()}
        for peer, (link, task) in list(self._links.items()):
            if by_peer.get(peer) != (link.target, link.address):
                task.cancel()
                del self._links[peer]
        for peer, (target, address) in by_peer.items():
            if peer in self._links:
                continue
            link = Link(
                me=self._me,
                cluster_id=cluster_id,
                target=target,
                address=address,
                channels=self._channels,
                events=self._events,
                limits=self._limits,
                neighbours=self._neighbours,
                now_s=self._now_s,
            )
            self._links[peer] = (link, self._supervisor.start(f"link to {peer}", link.run()))

    def send(self, to: ReplicaId, message: Adopt | Frame) -> None:
        """Send on the link to `to`; dropped if there is none, which the core knows by then."""
        known = self._links.get(to.peer)
        if known is not None and known[0].target == to:
            known[0].send(message)

    def pulse(self) -> None:
        """A frame period has passed."""
        for link, _ in self._links.values():
            link.pulse()

    def statistics(self) -> list[LinkStatistics]:
        """One entry a link."""
        return [link.statistics() for link, _ in self._links.values()]


def _serialized(message: Request) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def _one_line(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name} {error.details() or ''}".strip()
    return str(error)
