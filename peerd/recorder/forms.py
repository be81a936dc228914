"""The records of a flight recording: their kinds, and what is encoded of each.

An event is encoded as it is but for `WriteDone`: its operation is the one whose outcome the core
waits for, which a replay has already, and the state that came with it differs from the one before
in one segment only. So of an append's outcome a few numbers are enough (`StateChange`); every other
outcome is encoded whole (`WholeOutcome`).
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import get_args

from peerd.core import durable, effects, events, messages
from peerd.core.durable import StoredSegment, StoredShard, StoreOperation
from peerd.core.ids import Epoch, ProcessId
from peerd.core.limits import Limits
from peerd.recorder.codec import Compiler, Decode, Names

# Kinds of records below the events.
PROCESS, NAME, BOOT, CHECKPOINT, NO_CHECKPOINT, GAP, BROKE = range(1, 8)
# Of a LAS node: a committed command, and the state of the map.
COMMAND, MAP_STATE = 8, 9
STATE_CHANGE, WHOLE_OUTCOME = 14, 15
FIRST_EVENT = 16

HEAD = struct.Struct("<BQQI")
"""What begins every record but `PROCESS` and `NAME`: kind, shard, monotonic nanoseconds, and the
digest of all effects of the shard up to and with this record."""
NAME_HEAD = struct.Struct("<BI")
"""Kind and number of a name; its text follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """Who writes, from here on. Names and shards' numbers begin anew with each of these.

    `machine` is the boot id of the operating system: monotonic times of the same machine compare.
    `wall_ns` and `monotonic_ns` were read together. `software` names the sources of the core.
    """

    peer: str
    store: str
    boot: str
    machine: str
    software: str
    wall_ns: int
    monotonic_ns: int
    limits: Limits

    @property
    def process(self) -> ProcessId:
        """The process as the cores know it."""
        return ProcessId(self.peer, self.store, self.boot)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeOutcome:
    """An outcome: `operation` None stands for the one that the core waits for, `why` None for
    "stored".
    """

    operation: StoreOperation | None
    state: StoredShard
    why: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChange:
    """The outcome of an append that was stored: what the state is now, but for other segments."""

    rest: dict[str, object]
    segment: StoredSegment
    segment_count: int

    def state(self, before: StoredShard) -> StoredShard:
        """The state, from the one before."""
        segments: dict[Epoch, StoredSegment] = {**before.segments}
        segments[self.segment.epoch] = self.segment
        if len(segments) != self.segment_count:
            raise ValueError(f"{self.segment_count} segments were stored, not {len(segments)}")
        return StoredShard(segments=segments, **self.rest)  # type: ignore[arg-type]


class Forms:
    """All functions of the codec by what they are for. Made once per process."""

    def __init__(self) -> None:
        self._compiler = compiler = Compiler()
        self.event_types: tuple[type, ...] = get_args(events.Event)
        self.events = {
            kind: compiler.event(kind, FIRST_EVENT + at)
            for at, kind in enumerate(self.event_types)
            if kind is not events.WriteDone
        }
        self.whole_outcome = compiler.event(WholeOutcome, WHOLE_OUTCOME)
        self.state_change = self._write_state_change(compiler)
        self.process = compiler.of(Process)
        self.stored = compiler.of(StoredShard)
        # Effects by field of a step, each with its tag: they are only encoded, for their digest.
        self.effects: dict[str, dict[type, int]] = {}
        for each in fields(effects.Step):
            self.effects[each.name] = {}
        for name, union in EFFECTS.items():
            for tag, kind in enumerate(get_args(union) or (union,)):
                self.effects[name][kind] = compiler.tagged(kind, tag)
        # What a checkpoint holds as plain values: everything that was compiled so far.
        self.values = {kind: compiler.of(kind) for kind in tuple(compiler.dataclasses)}
        order = " ".join(kind.__name__ for kind in self.event_types)
        self.fingerprint = compiler.fingerprint(order)

    @staticmethod
    def _write_state_change(compiler: Compiler) -> int:
        number = compiler.number(StateChange)
        function = compiler.event_head(STATE_CHANGE)
        function.before += [
            "outcome = v.outcome",
            "state = outcome.state",
            "segments = state.segments",
        ]
        rest = compiler.add_fields(StoredShard, "state", function, without=frozenset({"segments"}))
        count = function.fixed("I", "len(segments)")
        segment = compiler.add(StoredSegment, "segments[outcome.operation.epoch]", function)
        made = compiler.constant("StateChange", StateChange)
        result = f"{made}(rest=dict({rest}), segment={segment}, segment_count={count})"
        compiler.define(number, function, result, "shard, stamp, digest, v")
        return number

    def encoders(self, names: Names) -> dict[int, Callable[..., bytes]]:
        """Encoding functions by number."""
        return self._compiler.bind_encoders(names)

    def decoders(self, names: list[str]) -> dict[int, Decode]:
        """Decoding functions by number."""
        return self._compiler.bind_decoders(names)


EFFECTS: dict[str, object] = {
    "persist": durable.StoreOperation,
    "send": messages.Message,
    "load": effects.Load,
    "reply": effects.Reply,
    "report": effects.Report,
    "note": effects.Note,
}
"""Fields of a step and what they hold; of `send` the message, its address is encoded apart."""
