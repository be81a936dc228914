"""How long records are kept: the policy of a log, and what is remembered of the age of its records.

Age is counted by `ClusterState.clock_ms`, which is committed and which only a leader moves, by the
time that it has itself seen pass. So no wall clock has a part in it, and what passed while nobody
led, or since the last commit of a leader that is gone, makes records seem younger, never older. By
the same clock a drain with a deadline ends: never too early, and by whichever leader comes by.

A mark of a shard says: when the clock stood there, everything below this offset was committed. So
it is at least as old as the mark. An idle shard gets none; a mark more only where the committed
offset has moved.
"""

from dataclasses import replace

from las.core.commands import MarkAges, Reason, Result, SetRetention
from las.core.segments import Applied, refuse
from las.core.state import AGE_MARKS_MAX, AgeMark, ClusterState, ShardEntry
from peerd.core.ids import Offset


def set_retention(state: ClusterState, command: SetRetention) -> Applied:
    """Say how long the records of a log are kept.

    | `SetRetention(log, bytes, ms)` | the log is known | each of its shards may lose what lies
    beyond so many bytes, or is older; 0: for ever. |
    """
    log = state.logs.get(command.log)
    if log is None:
        return refuse(state, Reason.UNKNOWN_LOG, f"there is no log {command.log}")
    if command.retention_bytes < 0 or command.retention_ms < 0:
        return refuse(state, Reason.INVALID_ARGUMENT, "retention is not negative; 0 is for ever")
    after = replace(log, retention_bytes=command.retention_bytes, retention_ms=command.retention_ms)
    if after == log:
        return state, Result(ok=True, text="so it is already")
    return state.changed(logs=(after,)), Result(ok=True)


def mark_ages(state: ClusterState, command: MarkAges) -> Applied:
    """Move the clock, and note what is committed by now.

    | `MarkAges(clock, marks)` | the clock does not go back | marks that grow are noted with it, of
    shards whose log has a retention by time; the map's version stays. |
    """
    if command.clock_ms < state.clock_ms:
        text = f"the clock stands at {state.clock_ms}, later than {command.clock_ms}"
        return refuse(state, Reason.STATE_CHANGED, text)
    entries = []
    for shard, offset in command.marks:
        entry = state.shards.get(shard)
        if entry is not None:
            marked = _marked(state, entry, AgeMark(clock_ms=command.clock_ms, offset=offset))
            if marked != entry:
                entries.append((shard, marked))
    after = replace(state, shards=state.shards.with_items(entries) if entries else state.shards)
    return advanced(after, command.clock_ms), Result(ok=True)


def advanced(state: ClusterState, clock_ms: int) -> ClusterState:
    """The state when the committed clock has come to `clock_ms`, never back; what was to end by
    then has ended.
    """
    if clock_ms <= state.clock_ms:
        return state
    over = [
        replace(node, draining=False)
        for node in state.nodes.values()
        if node.draining and 0 < node.drain_until_ms <= clock_ms
    ]
    after = replace(state, clock_ms=clock_ms)
    return after.changed(nodes=sorted(over, key=lambda node: node.name)) if over else after


def _marked(state: ClusterState, entry: ShardEntry, mark: AgeMark) -> ShardEntry:
    log = state.logs.get(entry.shard.log)
    if log is None or log.retention_ms == 0:
        return replace(entry, ages=())
    ages = entry.ages
    last = ages[-1].offset if ages else entry.shard.trimmed_to
    if mark.offset > last:
        ages = (*ages, mark)
    # Of the marks that are old enough the newest one says all.
    while len(ages) > 1 and mark.clock_ms - ages[1].clock_ms >= log.retention_ms:
        ages = ages[1:]
    return replace(entry, ages=ages[-AGE_MARKS_MAX:])


def expired(entry: ShardEntry, clock_ms: int, retention_ms: int) -> Offset | None:
    """The offset below which everything is older than `retention_ms`; None if nothing is."""
    for mark in reversed(entry.ages):
        if clock_ms - mark.clock_ms >= retention_ms:
            return mark.offset
    return None
