"""Replays what a LAS node recorded: its commands on the state that it began with.

Every node of the group applies the same commands, and a node that starts again applies those of its
journal once more; so what is told of the map is told once, by the version that it leads to.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from las.core import snapshot
from las.core.apply import apply
from las.core.codec import CodecError
from las.core.commands import (
    Audited,
    Command,
    Result,
    command_from_json,
)
from las.core.many_shards import changes_of, result_of
from las.core.many_steps import steps_of
from las.core.rows import ChangeShards, StepShards
from las.core.state import ClusterState
from peerd.core.ids import ShardId
from peerd.testing.trace import MapCommitted


@dataclass(frozen=True, slots=True)
class MapChanged:
    """One command that led to `version`: the entries of the map that it changed."""

    version: int
    records: tuple[MapCommitted, ...]


class MapReplay:
    """The map of one LAS node. Nothing is told before a state was given."""

    def __init__(self) -> None:
        self.state: ClusterState | None = None

    def begin(self, data: bytes) -> None:
        """The recorded state. Raises `CodecError` if it is none."""
        self.state = snapshot.restore(data)

    def command(self, at_ms: int, text: str) -> MapChanged | None:
        """A committed command; what it changed, if it did. Raises `CodecError` if it is none."""
        before = self.state
        if before is None:
            return None
        try:
            command = command_from_json(text)
        except CodecError:
            return None  # every node answered it `malformed`, and nothing changed
        after, result = apply(before, command)
        self.state = after
        told = command.command if isinstance(command, Audited) else command
        parts = _parts(told, result)
        changed = tuple(
            MapCommitted(at_ms, after.shards[shard].shard, *parts.get(shard, (told, result)))
            for shard in _changed(before, after)
        )
        return MapChanged(after.version, changed) if changed else None


def _parts(command: Command, result: Result) -> dict[ShardId, tuple[Command, Result]]:
    """What a command for many shards does to each: as much as the plain command for it alone."""
    if not isinstance(command, ChangeShards | StepShards) or not result.ok:
        return {}
    each_of = changes_of(command) if isinstance(command, ChangeShards) else steps_of(command)
    return {
        change.shard: (change, result_of(each))
        for change, each in zip(each_of, result.each, strict=True)
    }


def _changed(before: ClusterState, after: ClusterState) -> Iterator[ShardId]:
    for shard in sorted(after.shards):
        entry = before.shards.get(shard)
        if entry is None or entry.shard is not after.shards[shard].shard:
            yield shard
