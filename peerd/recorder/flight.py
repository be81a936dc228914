"""The recorder of one process: each event of each core, and a digest of what the core made of it.

`ShardHost` tells what it gives to its cores, right after the core took it and before any effect is
carried out. So when the process is killed, everything that anybody can have seen of an event comes
from an event that is recorded, but for the one that was being written.

What a replay rests on:
- A core is a pure function of its first state and its events. The first state is recorded when the
  core is made (`BOOT`), and again when the ring begins a new segment, after the shard's first event
  there (`CHECKPOINT`): so a segment can be read without those before it.
- What cannot be recorded is said (`GAP`, `NO_CHECKPOINT`), never left out in silence.
- The digest of an event covers every effect of the shard up to then, in order.

Recording never fails its process: what has no encoding becomes a gap.
"""

import hashlib
import struct
import time
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import peerd.core
from peerd.core.durable import AppendBatches, FillSealed, Stored
from peerd.core.effects import Send, Step
from peerd.core.events import Event, WriteDone
from peerd.core.ids import ProcessId, ShardId
from peerd.core.limits import Limits
from peerd.core.replica import Replica
from peerd.recorder.codec import MALFORMED, Names
from peerd.recorder.forms import (
    BOOT,
    BROKE,
    CHECKPOINT,
    GAP,
    HEAD,
    NAME,
    NAME_HEAD,
    NO_CHECKPOINT,
    PROCESS,
    Forms,
    Process,
    WholeOutcome,
)
from peerd.recorder.graph import GraphWriter, NotCheckpointed
from peerd.recorder.ring import Ring

# limit: names that one segment numbers; a process meets a few per peer and boot, and beyond this
# the next segment begins
NAMES_PER_SEGMENT_MAX = 10_000

_ADDRESS = struct.Struct("<II")
_MACHINE = Path("/proc/sys/kernel/random/boot_id")


@cache
def forms() -> Forms:
    """The codec of this process."""
    return Forms()


@cache
def software() -> str:
    """Names the sources of the cores: a replay with others may differ by right."""
    digest = hashlib.sha256()
    for path in sorted(Path(peerd.core.__path__[0]).glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def machine() -> str:
    """The boot id of the operating system, or nothing if it has none."""
    try:
        return _MACHINE.read_text("ascii").strip()
    except OSError:
        return ""


def process_record(
    me: ProcessId, limits: Limits, encoders: dict[int, Callable[..., bytes]]
) -> bytes:
    """What says who writes, and what its clocks read now."""
    process = Process(
        peer=me.peer,
        store=me.store,
        boot=me.boot,
        machine=machine(),
        software=software(),
        wall_ns=time.time_ns(),
        monotonic_ns=time.monotonic_ns(),
        limits=limits,
    )
    return bytes((PROCESS,)) + encoders[forms().process](process)


class Digests:
    """Digests steps; the same for the recorder and for its replay."""

    def __init__(
        self, known: Forms, encoders: dict[int, Callable[..., bytes]], names: Names
    ) -> None:
        def bound(field: str) -> dict[type, Callable[..., bytes]]:
            return {kind: encoders[number] for kind, number in known.effects[field].items()}

        self._names = names
        self._persist, self._message, self._reply = bound("persist"), bound("send"), bound("reply")
        self._others = [
            (field, bound(field))
            for field in known.effects
            if field not in {"persist", "send", "reply"}
        ]

    def after(self, step: Step, digest: int) -> int:
        """The digest after `step`, from that before it."""
        parts: list[bytes] = []
        if step.persist:
            persist = self._persist
            parts += [persist[type(operation)](operation) for operation in step.persist]
        if step.send:
            self._add_sends(step.send, parts)
        if step.reply:
            replies = self._reply
            parts += [replies[type(reply)](reply) for reply in step.reply]
        if step.load or step.report or step.note:
            for field, encoders in self._others:
                parts += [encoders[type(effect)](effect) for effect in getattr(step, field)]
        return zlib.crc32(b"".join(parts), digest) if parts else digest

    def _add_sends(self, sends: tuple[Send, ...], parts: list[bytes]) -> None:
        names, encoders = self._names, self._message
        last: object = None
        for send in sends:
            message, to = send.message, send.to
            # One frame goes to every replica: it is encoded once.
            if message is not last:
                parts.append(encoders[type(message)](message))
                last = message
            parts.append(_ADDRESS.pack(names[to.peer], names[to.store]))


class FlightRecorder:
    """Records; all methods are for the event loop. See the module."""

    def __init__(self, path: Path, size_bytes: int, me: ProcessId, limits: Limits) -> None:
        """Go on in the ring at `path`, or make it. Raises `RingError`."""
        self.path = path
        self._forms = forms()
        self._me = me
        self._limits = limits
        self._names = Names(self._on_new_name)
        self._new_names: list[bytes] = []
        encoders = self._encoders = self._forms.encoders(self._names)
        self._encode = {kind: encoders[number] for kind, number in self._forms.events.items()}
        self._encode[WriteDone] = self._encode_outcome
        self._state_change = encoders[self._forms.state_change]
        self._digests = Digests(self._forms, encoders, self._names)
        self._replicas: dict[ShardId, Replica] = {}
        # Shards that this segment can be replayed for, or has an event of, with their digests.
        self._here: dict[ShardId, int] = {}
        self._before: dict[ShardId, int] = {}
        self._ring = Ring.open(path, size_bytes, self._forms.fingerprint)
        self._closed = False
        if not self._ring.append(self._process()):
            self._advance()

    # ------------------------------------------------------------------ what the host tells
    def booted(self, shard: ShardId, replica: Replica) -> None:
        """A core was made; nothing was given to it yet."""
        self._replicas[shard] = replica
        stored = self._encoders[self._forms.stored]
        self._write(lambda: HEAD.pack(BOOT, shard, time.monotonic_ns(), 0) + stored(replica.stored))
        self._before.pop(shard, None)
        self._here[shard] = 0

    def handled(self, shard: ShardId, event: Event, step: Step) -> None:
        """The core of `shard` made `step` of `event`; nothing of it is carried out yet."""
        if self._closed:
            return
        digest = self._here.get(shard)
        if digest is None:
            self._first_here(shard, event, step)
            return
        try:
            digest = self._digests.after(step, digest)
            body = self._encode[type(event)](shard, time.monotonic_ns(), digest, event)
        except MALFORMED as error:
            self._gap(shard, f"{type(event).__name__} has no encoding: {error}")
            return
        if (not self._new_names or self._write_names()) and self._ring.append(body):
            self._here[shard] = digest
        else:
            self._advance()
            self._first_here(shard, event, step)

    def broke(self, shard: ShardId, event: Event, why: str) -> None:
        """The core found a broken invariant in `event`; the process ends."""
        stamp = time.monotonic_ns()

        def body() -> bytes:
            told = why.encode()[:1024]
            head = HEAD.pack(BROKE, shard, stamp, len(told))
            return head + told + self._encode[type(event)](shard, stamp, 0, event)

        self._write(body)

    def close(self) -> None:
        """Record no more."""
        if not self._closed:
            self._closed = True
            self._ring.close()

    # ------------------------------------------------------------------ the way of a new segment
    def _first_here(self, shard: ShardId, event: Event, step: Step) -> None:
        """The first event of a shard in this segment: written for those who read the one before,
        and then the state, for those who do not.
        """
        before = self._before.get(shard, 0)
        digest = before

        def body() -> bytes:
            nonlocal digest
            digest = self._digests.after(step, before)
            return self._encode[type(event)](shard, time.monotonic_ns(), digest, event)

        if not self._write(body):
            self._gap(shard, f"{type(event).__name__} is too large for a segment")
            return
        self._here[shard] = self._before[shard] = digest
        self._checkpoint(shard, digest)

    def _checkpoint(self, shard: ShardId, digest: int) -> None:
        stamp = time.monotonic_ns()

        def body() -> bytes:
            graph = GraphWriter(self._forms, self._encoders).write(self._replicas[shard])
            return HEAD.pack(CHECKPOINT, shard, stamp, digest) + graph

        try:
            written = self._write(body)
            why = "its state is larger than a segment"
        except NotCheckpointed as error:
            written, why = False, str(error)
        if not written:
            self._write(lambda: HEAD.pack(NO_CHECKPOINT, shard, stamp, digest) + why.encode())

    def _gap(self, shard: ShardId, why: str) -> None:
        """An event is missing: the shard can be replayed from its next checkpoint on."""
        stamp = time.monotonic_ns()
        self._here.pop(shard, None)
        self._write(lambda: HEAD.pack(GAP, shard, stamp, 0) + why.encode())

    def _write(self, body: Callable[[], bytes]) -> bool:
        """Write what `body` gives; in a new segment if need be, where names are numbered anew.

        False if it has no encoding or is too large for a segment.
        """
        if self._closed:
            return True
        for _ in range(2):
            try:
                written = body()
            except MALFORMED:
                return False
            if len(written) > self._ring.record_bytes_max:
                return False
            if self._write_names() and self._ring.append(written):
                return True
            self._advance()
        return False

    def _advance(self) -> None:
        """Begin a segment: who writes, and numbers from 0."""
        self._before.update(self._here)
        self._here.clear()
        self._ring.advance(self._forms.fingerprint)
        self._names.clear()
        self._new_names.clear()
        self._ring.append(self._process())

    def _process(self) -> bytes:
        return process_record(self._me, self._limits, self._encoders)

    # ------------------------------------------------------------------ names and outcomes
    def _on_new_name(self, number: int, name: str) -> None:
        self._new_names.append(NAME_HEAD.pack(NAME, number) + name.encode())

    def _write_names(self) -> bool:
        """Names before the record that uses them; False if this segment has no room for them."""
        if len(self._names) > NAMES_PER_SEGMENT_MAX:
            return False
        while self._new_names:
            if not self._ring.append(self._new_names[0]):
                return False
            self._new_names.pop(0)
        return True

    def _encode_outcome(self, shard: ShardId, stamp: int, digest: int, event: WriteDone) -> bytes:
        outcome = event.outcome
        operation = outcome.operation
        if type(outcome) is Stored and type(operation) is AppendBatches:
            return self._state_change(shard, stamp, digest, event)
        whole = WholeOutcome(
            operation=operation if isinstance(operation, FillSealed) else None,
            state=outcome.state,
            why=None if isinstance(outcome, Stored) else outcome.why,
        )
        return self._encoders[self._forms.whole_outcome](shard, stamp, digest, whole)
