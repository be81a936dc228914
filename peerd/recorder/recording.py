"""Reads a flight recording: the file of a ring as the things that were recorded, oldest first.

What the types of the installed `peerd.core` do not fit is refused whole; what is damaged is cut at
the first record that does not pass, and the reading says so in one line.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from peerd.core.check import InvariantViolation
from peerd.core.durable import StoredShard
from peerd.core.events import Event
from peerd.core.ids import ShardId
from peerd.core.replica import Replica
from peerd.recorder.codec import MALFORMED, Decode, Names
from peerd.recorder.flight import Digests, forms
from peerd.recorder.forms import (
    BOOT,
    BROKE,
    CHECKPOINT,
    COMMAND,
    FIRST_EVENT,
    GAP,
    HEAD,
    MAP_STATE,
    NAME,
    NAME_HEAD,
    NO_CHECKPOINT,
    PROCESS,
    STATE_CHANGE,
    WHOLE_OUTCOME,
    Process,
    StateChange,
    WholeOutcome,
)
from peerd.recorder.graph import GraphReader, GraphWriter
from peerd.recorder.ring import read_segments

Taken = Event | StateChange | WholeOutcome


class RecordingRefused(Exception):
    """This recording cannot be read here; one line says why and what to do."""


@dataclass(frozen=True, slots=True)
class Began:
    """From here on this process writes; also at the begin of each segment."""

    process: Process


@dataclass(frozen=True, slots=True)
class Boot:
    """A core was made on this durable state."""

    shard: ShardId
    at_ns: int
    stored: StoredShard


@dataclass(frozen=True, slots=True)
class Took:
    """A core took an event; `digest` covers all effects of the shard up to those of this event.

    An outcome of the store stands for the `WriteDone` that a replay makes of it.
    """

    shard: ShardId
    at_ns: int
    digest: int
    event: Taken


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a core after the event before; `replica` reads it."""

    shard: ShardId
    at_ns: int
    digest: int
    graph: bytes


@dataclass(frozen=True, slots=True)
class NoCheckpoint:
    """There is none, since: only a reader of what was before can go on."""

    shard: ShardId
    at_ns: int
    why: str


@dataclass(frozen=True, slots=True)
class Gap:
    """Something of the shard is missing here."""

    shard: ShardId | None
    at_ns: int
    why: str


@dataclass(frozen=True, slots=True)
class Broke:
    """The core found a broken invariant in this event."""

    shard: ShardId
    at_ns: int
    why: str
    event: Taken


@dataclass(frozen=True, slots=True)
class Committed:
    """A LAS node applied a command, given as its JSON text."""

    at_ns: int
    command: str


@dataclass(frozen=True, slots=True)
class MapState:
    """The state of the map at a LAS node, as its snapshot."""

    at_ns: int
    snapshot: bytes


Item = Committed | MapState | Began | Boot | Took | Checkpoint | NoCheckpoint | Gap | Broke


class Recording:
    """One ring file. `items` may be walked once; digests and checkpoints are judged while it is."""

    def __init__(self, path: Path) -> None:
        """Nothing is read before `items`."""
        self.path = path
        self.cuts: list[str] = []
        self._forms = forms()
        self._texts: list[str] = []
        self._names = Names()
        self._decoders = self._forms.decoders(self._texts)
        self._encoders = self._forms.encoders(self._names)
        self._digests = Digests(self._forms, self._encoders, self._names)
        self._events: dict[int, Decode] = {
            FIRST_EVENT + at: self._decoders[self._forms.events[kind]]
            for at, kind in enumerate(self._forms.event_types)
            if kind in self._forms.events
        }
        self._events[STATE_CHANGE] = self._decoders[self._forms.state_change]
        self._events[WHOLE_OUTCOME] = self._decoders[self._forms.whole_outcome]

    @property
    def digests(self) -> Digests:
        """Digests steps as the recorder did at the place that `items` has reached."""
        return self._digests

    def replica(self, checkpoint: Checkpoint) -> Replica:
        """The core of a checkpoint. Raises `NotCheckpointed`."""
        return GraphReader(self._forms, self._decoders, checkpoint.graph).read()

    def is_state_of(self, checkpoint: Checkpoint, replica: Replica) -> bool:
        """Whether `replica` is in the state that was recorded here. Raises `NotCheckpointed`."""
        return GraphWriter(self._forms, self._encoders).write(replica) == checkpoint.graph

    def items(self) -> Iterator[Item]:
        """What was recorded, oldest first. Raises `RingError` or `RecordingRefused`."""
        generation = None
        for segment in read_segments(self.path):
            if segment.fingerprint != self._forms.fingerprint:
                # What an older version left; what this one wrote may follow.
                self.cuts.append(f"{self.path}: a part was written by another version of peerd")
                continue
            if generation is not None and segment.generation != generation + 1:
                yield Gap(None, 0, "a segment of the recording is missing")
            generation = segment.generation
            for body in segment.records:
                yield from self._item(body)
            if segment.cut is not None:
                self.cuts.append(f"{self.path}: {segment.cut}")
                yield Gap(None, 0, segment.cut)
        if generation is None:
            why = self.cuts[-1] if self.cuts else f"{self.path}: nothing was recorded yet"
            raise RecordingRefused(f"{why}: read it with the version that wrote it")

    def _item(self, body: bytes) -> Iterator[Item]:
        try:
            kind = body[0]
            if kind == NAME:
                self._name(body)
            elif kind == PROCESS:
                yield self._began(body)
            elif kind in self._events:
                yield self._took(body)
            else:
                yield self._other(kind, body)
        except (InvariantViolation, *MALFORMED) as error:
            raise RecordingRefused(
                f"{self.path}: a record is not what peerd writes: {error}"
            ) from error

    def _name(self, body: bytes) -> None:
        _, number = NAME_HEAD.unpack_from(body)
        if number != len(self._texts):
            raise ValueError(f"name {number} comes after {len(self._texts)} names")
        text = body[NAME_HEAD.size :].decode()
        self._texts.append(text)
        self._names[text] = number

    def _began(self, body: bytes) -> Began:
        self._texts.clear()
        self._names.clear()
        process, _ = self._decoders[self._forms.process](body, 1)
        if not isinstance(process, Process):
            raise TypeError("no process")
        return Began(process)

    def _took(self, body: bytes, at: int = 0) -> Took:
        _, shard, at_ns, digest = HEAD.unpack_from(body, at)
        event, end = self._events[body[at]](body, at)
        if end != len(body):
            raise ValueError(f"{len(body) - end} bytes behind an event")
        return Took(ShardId(shard), at_ns, digest, event)  # type: ignore[arg-type]

    def _other(self, kind: int, body: bytes) -> Item:
        _, number, at_ns, digest = HEAD.unpack_from(body)
        shard, rest = ShardId(number), body[HEAD.size :]
        if kind == BOOT:
            stored, _ = self._decoders[self._forms.stored](rest, 0)
            if not isinstance(stored, StoredShard):
                raise TypeError("no state of a store")
            return Boot(shard, at_ns, stored)
        if kind == CHECKPOINT:
            return Checkpoint(shard, at_ns, digest, rest)
        if kind == COMMAND:
            return Committed(at_ns, rest.decode())
        if kind == MAP_STATE:
            return MapState(at_ns, rest)
        if kind == NO_CHECKPOINT:
            return NoCheckpoint(shard, at_ns, rest.decode())
        if kind == GAP:
            return Gap(shard, at_ns, rest.decode())
        if kind == BROKE:
            # `digest` is the length of the reason here.
            why = rest[:digest].decode(errors="replace")
            return Broke(shard, at_ns, why, self._took(body, HEAD.size + digest).event)
        raise ValueError(f"kind {kind}")
