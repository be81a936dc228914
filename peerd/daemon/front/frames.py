"""The frames between a sequencer and its front workers: bytes to values and back.

A frame is `u32 length, u8 kind, body`, little-endian; `length` counts the body. The bodies of
`APPEND`, `ACCEPTED` and `PULSE` are fixed structures with bytes behind them, since there is one for
each append; the others, which are rare, are protobuf (proto/peerd/internal/v1/front.proto).

Invariants:
- Each `decode_…` gives back what its `encode_…` was given, and raises `FrameMalformed` for anything
  that no `encode_…` makes: nothing is guessed, and nothing is executed.
- A `Splitter` holds at most one unfinished frame, of a length that was checked as it began.

Must not: read or write a socket.
"""

import functools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from google.protobuf.message import DecodeError

from peerd.core.batch import HEADER_BYTES, BatchHeader
from peerd.core.effects import AppendAccepted
from peerd.core.errors import Reason, Refusal, Taken
from peerd.core.ids import Epoch, Offset, ProcessId, ReplicaId, RequestId, ShardId
from peerd.core.value import value
from peerd.internal.v1.front_pb2 import FrontRefusal, FrontSettings, FrontVoters
from peerd.transport.map_codec import (
    decode_process,
    decode_replica,
    encode_process,
    encode_replica,
)
from peerd.transport.options import MESSAGE_BYTES_MAX
from peerd.transport.status import encode_refusal

# limit: bytes of one frame's body; the largest are a batch, which came in one gRPC message, and a
# whole shard map, which did, too
FRAME_BYTES_MAX = MESSAGE_BYTES_MAX
# limit: sets of voters whose encoding is remembered; a peer orders some hundred shards, each with
# one or two sets at a time
VOTERS_REMEMBERED_MAX = 1024

_PREFIX = struct.Struct("<IB")
_APPEND = struct.Struct("<QQBQ")
"""request, shard, whether an offset is expected, that offset."""
_ACCEPTED = struct.Struct("<QQQQIqB")
"""request, shard, epoch, base, record_count, timestamp_ms, duplicate; then the voters."""
_NUMBER = struct.Struct("<Q")
_APPEND_BYTES = _APPEND.size + HEADER_BYTES


class FrameMalformed(ValueError):
    """Bytes that the other process cannot have meant: the connection is over."""


class Kind(IntEnum):
    """What a frame says; docs/architecture.md has the table."""

    SETTINGS = 1
    MAP = 2
    MAP_AGE = 3
    ACCEPTED = 4
    REFUSED = 5
    STOP = 6
    SERVING = 7
    APPEND = 8
    PULSE = 9
    ACCESS = 10
    REFUSED_CALLS = 11


Frame = tuple[Kind, memoryview]


def frame(kind: Kind, *parts: bytes | memoryview) -> bytes:
    """One frame with the joined `parts` as its body.

    Raises:
        FrameMalformed: the body is longer than `FRAME_BYTES_MAX`.
    """
    size = sum(map(len, parts))
    if size > FRAME_BYTES_MAX:
        raise FrameMalformed(f"a {kind.name} of {size} bytes, the limit is {FRAME_BYTES_MAX}")
    return b"".join((_PREFIX.pack(size, kind), *parts))


class Splitter:
    """Cuts what a socket gives into frames."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are whole after `data`; their bodies are views into it.

        Raises:
            FrameMalformed: no frame begins like that. Nothing after it can be read.
        """
        data = self._rest + data if self._rest else data
        view = memoryview(data)
        at = 0
        while len(data) - at >= _PREFIX.size:
            size, number = _PREFIX.unpack_from(data, at)
            kind = _KINDS.get(number)
            if kind is None or size > FRAME_BYTES_MAX:
                raise FrameMalformed(f"a frame of kind {number} with {size} bytes")
            end = at + _PREFIX.size + size
            if end > len(data):
                break
            yield kind, view[at + _PREFIX.size : end]
            at = end
        self._rest = data[at:]


_KINDS = {int(kind): kind for kind in Kind}


# ------------------------------------------------------------------------------ appends


@value(frozen=True, slots=True)
class FrontAppend:
    """An append that a worker has checked. `request` is the worker's own number."""

    request: int
    shard: ShardId
    header: BatchHeader
    payload: bytes
    expected_offset: int | None


def encode_append(append: FrontAppend) -> bytes:
    """An `APPEND`, as a frame."""
    expected = append.expected_offset
    fields = _APPEND.pack(append.request, append.shard, expected is not None, expected or 0)
    return frame(Kind.APPEND, fields, append.header.pack(), append.payload)


def decode_append(body: memoryview) -> FrontAppend:
    """Inverse of `encode_append`, for the body of the frame.

    Raises:
        FrameMalformed: it is cut, or its length is not what its header says.
    """
    if len(body) < _APPEND_BYTES:
        raise FrameMalformed(f"an append of {len(body)} bytes")
    request, shard, expects, expected = _APPEND.unpack_from(body)
    header = BatchHeader.unpack(body[_APPEND.size : _APPEND_BYTES])
    payload = bytes(body[_APPEND_BYTES:])
    if expects > 1 or (expected and not expects) or header.payload_bytes != len(payload):
        raise FrameMalformed(f"an append whose {len(payload)} bytes are not as its header says")
    return FrontAppend(request, ShardId(shard), header, payload, expected if expects else None)


def encode_accepted(request: int, accepted: AppendAccepted) -> bytes:
    """An `ACCEPTED` for the worker's `request`, as a frame."""
    fields = _ACCEPTED.pack(
        request,
        accepted.shard,
        accepted.epoch,
        accepted.base,
        accepted.record_count,
        accepted.timestamp_ms,
        accepted.duplicate,
    )
    return frame(Kind.ACCEPTED, fields, _encode_voters(accepted.durable_on))


def decode_accepted(body: memoryview) -> AppendAccepted:
    """Inverse of `encode_accepted`; the receipt's `request` is the worker's.

    Raises:
        FrameMalformed: it is cut, or names no stores where it should.
    """
    if len(body) < _ACCEPTED.size:
        raise FrameMalformed(f"a receipt of {len(body)} bytes")
    request, shard, epoch, base, count, timestamp_ms, duplicate = _ACCEPTED.unpack_from(body)
    if duplicate > 1:
        raise FrameMalformed(f"a receipt that is neither new nor repeated: {duplicate}")
    return AppendAccepted(
        request=RequestId(request),
        shard=ShardId(shard),
        epoch=Epoch(epoch),
        base=Offset(base),
        record_count=count,
        timestamp_ms=timestamp_ms,
        durable_on=_decode_voters(bytes(body[_ACCEPTED.size :])),
        duplicate=bool(duplicate),
    )


@functools.lru_cache(VOTERS_REMEMBERED_MAX)
def _encode_voters(voters: tuple[ReplicaId, ...]) -> bytes:
    return FrontVoters(durable_on=map(encode_replica, voters)).SerializeToString()


@functools.lru_cache(VOTERS_REMEMBERED_MAX)
def _decode_voters(data: bytes) -> tuple[ReplicaId, ...]:
    try:
        return tuple(map(decode_replica, FrontVoters.FromString(data).durable_on))
    except DecodeError as error:
        raise FrameMalformed(f"a receipt without its voters: {error}") from error


# ------------------------------------------------------------------------------ refusals


def encode_refused(request: int, refusal: Refusal) -> bytes:
    """A `REFUSED` for the worker's `request`, as a frame."""
    wire = FrontRefusal(
        refusal=encode_refusal(refusal, lambda _: None),
        leader=None if refusal.leader is None else encode_process(refusal.leader),
    )
    return frame(Kind.REFUSED, _NUMBER.pack(request), wire.SerializeToString())


def decode_refused(body: memoryview) -> tuple[int, Refusal]:
    """Inverse of `encode_refused`: the worker's request, and why.

    Raises:
        FrameMalformed: it is no refusal.
    """
    request = decode_number(body[: _NUMBER.size])
    try:
        message = FrontRefusal.FromString(bytes(body[_NUMBER.size :]))
        wire = message.refusal
        return request, Refusal(
            reason=Reason(wire.reason),
            message=wire.message,
            taken=Taken(wire.taken),
            leader=decode_process(message.leader) if message.HasField("leader") else None,
            epoch=Epoch(wire.epoch),
            retry_after_ms=wire.retry_after_ms,
            first_offset=Offset(wire.first_offset) if wire.HasField("first_offset") else None,
            next_sequence=wire.next_sequence if wire.HasField("next_sequence") else None,
            children=tuple(map(ShardId, wire.children)),
        )
    except (DecodeError, ValueError) as error:
        raise FrameMalformed(f"a refusal that cannot be read: {error}") from error


# ------------------------------------------------------------------------------ the rest


def encode_number(kind: Kind, number: int) -> bytes:
    """A frame that holds one number: `MAP_AGE` (milliseconds), `PULSE` (CPU microseconds)."""
    return frame(kind, _NUMBER.pack(number))


def decode_number(body: memoryview) -> int:
    """Inverse of `encode_number`. Raises `FrameMalformed`."""
    if len(body) != _NUMBER.size:
        raise FrameMalformed(f"a number of {len(body)} bytes")
    (number,) = _NUMBER.unpack(body)
    return int(number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a worker is told as it begins. `config` is the peer's whole configuration as JSON."""

    worker: int
    listen: str
    sequencer: ProcessId
    config: str


def encode_settings(settings: Settings) -> bytes:
    """A `SETTINGS`, as a frame."""
    wire = FrontSettings(
        worker=settings.worker,
        listen=settings.listen,
        sequencer=encode_process(settings.sequencer),
        config=settings.config,
    )
    return frame(Kind.SETTINGS, wire.SerializeToString())


def decode_settings(body: memoryview) -> Settings:
    """Inverse of `encode_settings`. Raises `FrameMalformed`."""
    try:
        wire = FrontSettings.FromString(bytes(body))
    except DecodeError as error:
        raise FrameMalformed(f"settings that cannot be read: {error}") from error
    return Settings(
        worker=wire.worker,
        listen=wire.listen,
        sequencer=decode_process(wire.sequencer),
        config=wire.config,
    )
