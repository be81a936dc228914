"""Reading records: one stream from any peer, taken up again at another one where it broke off.

Invariants:
- Per shard, every record from the start on is given once and in offset order, whatever peers the
  answers came from; the position is kept per record, not per message.
- A gap that a server tells is raised (`RecordsMissing`), never passed over in silence (G10).
"""

import asyncio
import datetime
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Literal, Self

import grpc.aio

from peerd.client.directory import Directory
from peerd.client.errors import (
    CorruptData,
    InvalidRequest,
    PeerdError,
    RecordsMissing,
    Unavailable,
    UnknownLog,
    error_of_call,
)
from peerd.client.known_logs import KnownLogs
from peerd.client.options import READ_RETRY_S, RETRY_STEP_S, SLOW_RETRY_STEP_S
from peerd.client.payload import records_of
from peerd.client.positions import KeptPosition
from peerd.client.values import Position, Record
from peerd.core.ids import ShardId
from peerd.internal.v1 import log_bytes_pb2
from peerd.transport.channels import Channels
from peerd.v1 import errors_pb2, log_pb2

StartAt = Literal["earliest", "latest"] | int | datetime.datetime | Position
"""Where a read begins: "earliest", "latest", an offset (of one shard), a time, or a position."""

_METHOD = "/peerd.v1.LogService/Read"
_Message = log_bytes_pb2.ReadResponseBytes
# Errors that another peer, or the same one later, may not have.
_PASSING = (Unavailable, CorruptData)


class RecordStream:
    """An asynchronous iterator of `Record`. Made by `Client.read`; close it if it is left early."""

    def __init__(
        self,
        directory: Directory,
        channels: Channels,
        known_logs: KnownLogs,
        *,
        log: str,
        shard: int | None,
        start: StartAt,
        follow: bool,
        local: bool,
        kept: KeptPosition | None = None,
    ) -> None:
        """`kept` is of the consumer that reads, if it has a name."""
        self._directory = directory
        self._channels = channels
        self._known_logs = known_logs
        self._log = log
        self._shard = shard
        self._follow = follow
        self._local = local
        self._first_request = _request(log, shard, start, follow=follow, local=local)
        self._kept = kept
        self._is_loaded = kept is None
        self._next: dict[int, int] | None = None
        self._records: deque[Record] = deque()
        self._call: grpc.aio.UnaryStreamCall[Any, _Message] | None = None
        self._ended = False
        self._turn = 0
        # When the present run of failures began, and when the last one was.
        self._trouble_began_s: float | None = None
        self._failed_s = 0.0

    @property
    def position(self) -> Position:
        """Where a new read goes on with what comes after the last record that was given out.

        Empty until the first answer has come.
        """
        behind: dict[int, int] = dict(self._next or {})
        for record in reversed(self._records):
            behind[record.shard] = record.offset
        return Position(behind)

    def __aiter__(self) -> AsyncIterator[Record]:
        return self

    async def __anext__(self) -> Record:
        """The next record.

        Raises:
            StopAsyncIteration: everything up to the tail seen at the start was given.
            PeerdError: the read cannot go on; `position` says where it stands.
        """
        # Whoever asks for more has done with what was given out.
        if self._kept is not None and self._kept.is_due:
            await self._kept.commit(self.position)
        while not self._records:
            if self._ended:
                await self._commit_at_the_end()
                raise StopAsyncIteration
            await self._receive()
        return self._records.popleft()

    async def begin(self) -> int:
        """Where the read of one shard begins: its first offset, whether there is a record or not.

        Raises as `__anext__`.
        """
        while self._next is None and not self._ended:
            await self._receive()
        return next(iter((self._next or {}).values()), 0)

    async def take(self, count_max: int) -> list[Record]:
        """The next records, at least one and at most `count_max`; none at the end.

        Raises as `__anext__`.
        """
        # Whoever asks for more has done with what was given out.
        if self._kept is not None and self._kept.is_due:
            await self._kept.commit(self.position)
        while not self._records and not self._ended:
            await self._receive()
        if not self._records:
            await self._commit_at_the_end()
        count = min(count_max, len(self._records))
        return [self._records.popleft() for _ in range(count)]

    async def commit(self, position: Position | None = None) -> None:
        """Commits `position` for the consumer that this read is for; None: where it stands, after
        the last record that was given out.

        Raises:
            InvalidRequest: the read is for no consumer. Else as `Positions.commit`.
        """
        if self._kept is None:
            raise InvalidRequest("the read has no consumer to commit for: read(…, consumer=NAME)")
        await self._kept.commit(self.position if position is None else position)

    @property
    def commit_is_due(self) -> bool:
        """Whether it is time to commit, for a consumer with a name."""
        return self._kept is not None and self._kept.is_due

    async def _commit_at_the_end(self) -> None:
        if self._kept is not None:
            await self._kept.commit(self.position)

    async def aclose(self) -> None:
        """Ends the read, without a commit: the last record may not be done with."""
        self._ended = True
        if self._next is not None:
            self._next = dict(self.position.offsets)
        self._records.clear()
        self._hang_up()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # -------------------------------------------------------------------------- one message

    async def _receive(self) -> None:
        """Gets the next message, from another peer if need be; notes the end."""
        if self._next is None:
            await self._known_logs.require(self._log)
        if not self._is_loaded and self._kept is not None:
            committed = await self._kept.load()
            self._is_loaded = True
            if committed.offsets:
                self._first_request.resume.offsets.update(committed.offsets)
        try:
            if self._call is None:
                self._call = self._open()
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            self._hang_up()
            await self._pause(error_of_call(error, f"reading {self._log!r}"))
            return
        if not isinstance(message, _Message):
            # grpc.aio.EOF: the server has said everything.
            self._hang_up()
            if self._first_request.follow and self._shard is None and self._next is not None:
                # A shard was split: a new read has its children, from their beginning.
                self._directory.refresh()
                await asyncio.sleep(RETRY_STEP_S)
                return
            self._ended = True
            return
        try:
            self._take(message)
        except CorruptData as error:
            # What was damaged on the way to us is whole elsewhere, or on the way again.
            self._hang_up()
            await self._pause(error)

    def _open(self) -> "grpc.aio.UnaryStreamCall[Any, _Message]":
        request = self._first_request
        if self._next is not None:
            request = log_pb2.ReadRequest()
            request.CopyFrom(self._first_request)
            request.resume.offsets.update(self._next)
        address = self._address()
        return self._channels.to(address).unary_stream(
            _METHOD, log_pb2.ReadRequest.SerializeToString, _Message.FromString
        )(request)

    def _address(self) -> str:
        """The primary of a shard at first; any peer in turn for a whole log, or after a failure."""
        cache = self._directory.cache
        if self._shard is not None and self._turn == 0:
            entry = cache.shards.get(ShardId(self._shard))
            address = None if entry is None else cache.address_of(entry.open.plan.primary.peer)
            if address is not None:
                return address
        nodes = [node.address for node in cache.nodes.values() if node.up and node.address]
        if not nodes:
            raise Unavailable("no peer is up: check the cluster (`peerctl status`), read again")
        return nodes[self._turn % len(nodes)]

    async def _pause(self, error: PeerdError) -> None:
        """Waits before the next peer is asked.

        Raises:
            PeerdError: `error`, if it will not pass, or nothing came for too long.
        """
        now_s = time.monotonic()
        # A following stream that has been quiet and whole for long begins a new run of failures.
        # Another one has been waiting all the while for what it was not given.
        was_whole = self._follow and now_s - self._failed_s > READ_RETRY_S
        if self._trouble_began_s is None or was_whole:
            self._trouble_began_s = now_s
        self._failed_s = now_s
        if isinstance(error, UnknownLog):
            # The map here has it, so the peer's map lags, or the one here does.
            await self._known_logs.exists(self._log)
        elif not isinstance(error, _PASSING):
            self._ended = True
            raise error
        if now_s - self._trouble_began_s > READ_RETRY_S:
            self._ended = True
            raise error
        self._turn += 1
        self._directory.refresh()
        await asyncio.sleep(SLOW_RETRY_STEP_S if isinstance(error, CorruptData) else RETRY_STEP_S)

    def _hang_up(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _take(self, message: _Message) -> None:
        if self._next is None:
            self._next = dict(message.resume.offsets)
        for gap in message.gaps:
            self._gap(gap)
        for batch in message.batches:
            begin = self._next.get(batch.shard, 0)
            records = records_of(self._log, batch, begin)
            self._records.extend(records)
            if records:
                self._next[batch.shard] = records[-1].offset + 1
                self._trouble_began_s = None

    def _gap(self, gap: log_pb2.Gap) -> None:
        reason = errors_pb2.ErrorReason.Name(gap.reason).removeprefix("ERROR_REASON_")
        error = RecordsMissing(
            f"{self._log}/{gap.shard}: offsets {gap.first_offset} to {gap.next_offset - 1} cannot "
            f"be read ({gap.message}): go on at {gap.next_offset}",
            reason=reason,
        )
        error.shard = gap.shard
        error.first_offset, error.next_offset = gap.first_offset, gap.next_offset
        self._ended = True
        self._hang_up()
        raise error


def _request(
    log: str, shard: int | None, start: StartAt, *, follow: bool, local: bool
) -> log_pb2.ReadRequest:
    """The request of a read.

    Raises:
        InvalidRequest: `start` is none, or needs a shard.
    """
    request = log_pb2.ReadRequest(log=log, shard=shard, follow=follow)
    if local:
        # The field's name is a word of Python's.
        setattr(request, "from", log_pb2.READ_FROM_LOCAL)
    if isinstance(start, Position):
        request.resume.offsets.update(start.offsets)
    elif isinstance(start, datetime.datetime):
        if start.tzinfo is None:
            raise InvalidRequest("start: a time without a time zone; give one, such as UTC")
        request.timestamp_ms = int(start.timestamp() * 1000)
    elif start == "latest":
        request.latest = True
    elif isinstance(start, int):
        if shard is None:
            raise InvalidRequest("start: an offset counts within a shard; name the shard")
        request.offset = start
    elif start != "earliest":
        raise InvalidRequest(
            f"start: {start!r} is not 'earliest', 'latest', an offset, a datetime or a Position"
        )
    return request
