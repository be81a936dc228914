"""The flight recorder of a LAS node: the commands that were committed, in their order.

The map changes by commands alone and `las.core.apply` is a pure function, so the commands and the
state before the first of them are the whole history of the map. The state is recorded when the node
starts, when a snapshot replaces it, and behind the first command of each segment of the ring; a map
of more than `STATE_SHARDS_MAX` shards is not; then only a reader of what was before can go on.

Forecast models are megabytes that the map does not depend on: their pieces are left out, and so
they are of the states. A reader finds the same map, and `PromoteModel` refused.

Used by the consensus thread alone. Recording never fails its node.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from las.core import snapshot
from las.core.cluster import Cluster
from las.core.commands import StoreModelPiece, command_to_json
from las.core.model_registry import NO_MODELS
from peerd.core.ids import BootId, NodeName, ProcessId, StoreId
from peerd.core.limits import Limits
from peerd.recorder.codec import Names
from peerd.recorder.flight import forms, process_record
from peerd.recorder.forms import COMMAND, HEAD, MAP_STATE
from peerd.recorder.ring import Ring

# limit: shards of a map whose state is recorded with each segment; writing it holds the consensus
# thread up by some 20 µs a shard
STATE_SHARDS_MAX = 1_000
# How the text of a piece begins.
_PIECE = command_to_json(StoreModelPiece(digest="", number=0, piece="")).partition(",")[0]


class RecordedMachine:
    """The committed state as the group's state machine, with a record of what is applied to it."""

    def __init__(self, machine: Cluster, path: Path, size_bytes: int, name: str) -> None:
        """Go on in the ring at `path`, or make it. Raises `RingError`."""
        self._machine = machine
        self._me = ProcessId(NodeName(name), StoreId(""), BootId(secrets.token_hex(16)))
        self._fingerprint = forms().fingerprint
        self._ring = Ring.open(path, size_bytes, self._fingerprint)
        if not self._ring.append(self._process()):
            self._advance()
        self._write_state()

    def apply(self, command: str) -> str:
        """See `las.raft.StateMachine`."""
        result = self._machine.apply(command)
        if command.startswith(_PIECE):
            return result
        body = HEAD.pack(COMMAND, 0, time.monotonic_ns(), 0) + command.encode()
        if not self._ring.append(body):
            self._advance()
            self._ring.append(body)
            self._write_state()
        return result

    def freeze(self) -> Callable[[], bytes]:
        """See `las.raft.StateMachine`."""
        return self._machine.freeze()

    def restore(self, data: bytes) -> None:
        """See `las.raft.StateMachine`."""
        self._machine.restore(data)
        self._write_state()

    def _advance(self) -> None:
        self._ring.advance(self._fingerprint)
        self._ring.append(self._process())

    def _process(self) -> bytes:
        return process_record(self._me, Limits(), forms().encoders(Names()))

    def _write_state(self) -> None:
        if len(self._machine.state.shards) > STATE_SHARDS_MAX:
            return
        state = snapshot.snapshot(replace(self._machine.state, models=NO_MODELS))
        body = HEAD.pack(MAP_STATE, 0, time.monotonic_ns(), 0) + state
        if len(body) <= self._ring.record_bytes_max and not self._ring.append(body):
            self._advance()
            self._ring.append(body)
