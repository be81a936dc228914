"""A run as one stream of records: what each core was given, what it answered, what became durable.

The simulator produces it, a recorder of real processes writes the same to files, and whoever judges
a run (an acceptor of the protocol, a replay, a checker) reads it. The order of records is the order
in which things happened; of one process it is exact, of different processes it is an order that
keeps cause before effect.

`trace_hash` names a trace: two runs are the same run if their hashes are equal. It rests on a
canonical encoding of every value, in which neither the order of a set or dictionary nor
PYTHONHASHSEED shows.
"""

import hashlib
import struct
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from enum import Enum

from peerd.core.batch import PlacedBatch
from peerd.core.durable import Outcome, StoredShard
from peerd.core.effects import Step
from peerd.core.events import Event
from peerd.core.ids import ProcessId, ReplicaId, ShardId
from peerd.core.producer import TableSnapshot
from peerd.core.shard_map import Chain, Plan, Shard
from peerd.core.value import value


# ------------------------------------------------------------------ records
@value(frozen=True, slots=True)
class Booted:
    """A process made its core of a shard on this durable state. `at_ms` is virtual or monotonic."""

    at_ms: int
    process: ProcessId
    shard: ShardId
    stored: StoredShard


@value(frozen=True, slots=True)
class Handled:
    """`Replica.handle(event)` returned `step`."""

    at_ms: int
    process: ProcessId
    shard: ShardId
    event: Event
    step: Step


@value(frozen=True, slots=True)
class Stored:
    """One transaction of the process's store committed; of this shard it held these, in order.

    They are durable from now on; the core hears of each by a later `Handled`, if the process lives.
    """

    at_ms: int
    process: ProcessId
    shard: ShardId
    outcomes: tuple[Outcome, ...]


@value(frozen=True, slots=True)
class Died:
    """The process ended: all that was volatile is gone."""

    at_ms: int
    process: ProcessId


@value(frozen=True, slots=True)
class StoreLost:
    """A data directory is gone for good."""

    at_ms: int
    replica: ReplicaId


@value(frozen=True, slots=True)
class MapCommitted:
    """The LAS committed a command; `shard` is the entry that it left, `result` what it answered."""

    at_ms: int
    shard: Shard
    command: object
    result: object


Record = Booted | Handled | Stored | Died | StoreLost | MapCommitted
OnRecord = Callable[[Record], None]
"""Gets each record when it happens."""


# ------------------------------------------------------------------ the canonical encoding
_LENGTH = struct.Struct(">cI")


def _framed(kind: bytes, body: bytes) -> bytes:
    return _LENGTH.pack(kind, len(body)) + body


def _of_object(value: object) -> bytes:
    """Large values come again and again as the same object: they are encoded once."""
    if type(value) not in _SHARED:
        return _of_fields(value)
    known = _shared.get(id(value))
    if known is not None and known[0] is value:
        return known[1]
    if len(_shared) >= SHARED_VALUES_MAX:
        _shared.clear()
    encoded = _of_fields(value)
    _shared[id(value)] = (value, encoded)
    return encoded


def _of_fields(value: object) -> bytes:
    names = _FIELDS.get(type(value))
    if names is None:
        if not is_dataclass(value):
            raise TypeError(f"a trace has no encoding for {type(value).__name__}: {value!r}")
        names = _FIELDS[type(value)] = tuple(each.name for each in fields(value))
    parts = [encode(type(value).__name__), *(encode(getattr(value, name)) for name in names)]
    return _framed(b"o", b"".join(parts))


_FIELDS: dict[type, tuple[str, ...]] = {}
_SHARED = frozenset({Shard, StoredShard, Plan, TableSnapshot, PlacedBatch})
# limit: values whose encoding is kept; a run has some hundred at a time
SHARED_VALUES_MAX = 4_096
# The value itself is kept too, so that no other can have its id.
_shared: dict[int, tuple[object, bytes]] = {}


def encode(value: object) -> bytes:
    """Bytes that are equal for equal values of equal types, and for no others.

    Takes what events, effects and commands are made of: dataclasses, enumerations, numbers, text,
    bytes, tuples, lists, sets and mappings. Raises `TypeError` for anything else.
    """
    if value is None:
        return b"n"
    if isinstance(value, Enum):
        return _framed(b"e", f"{type(value).__name__}.{value.name}".encode())
    if isinstance(value, bool):
        return b"t" if value else b"f"
    if isinstance(value, int):
        return _framed(b"i", str(value).encode())
    if isinstance(value, str):
        return _framed(b"s", value.encode())
    if isinstance(value, bytes | memoryview):
        return _framed(b"b", bytes(value))
    if isinstance(value, float):
        return _framed(b"d", value.hex().encode())
    if isinstance(value, tuple | list | Chain):
        return _framed(b"l", b"".join(map(encode, value)))
    if isinstance(value, set | frozenset):
        return _framed(b"u", b"".join(sorted(map(encode, value))))
    if isinstance(value, dict):
        return _framed(b"m", b"".join(sorted(encode(k) + encode(v) for k, v in value.items())))
    return _of_object(value)


class TraceHash:
    """The hash of a trace while it happens."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, record: object) -> None:
        """The next record: a `Record`, or what another trace is made of."""
        self._hash.update(encode(record))

    def hexdigest(self) -> str:
        """64 hexadecimal digits: the hash of all records so far."""
        return self._hash.hexdigest()


def trace_hash(records: Iterable[Record]) -> str:
    """SHA-256 over the canonical encoding of `records`, in order; 64 hexadecimal digits."""
    running = TraceHash()
    for record in records:
        running.add(record)
    return running.hexdigest()
