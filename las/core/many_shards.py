"""Changes of many shards in one command: a peer that dies is one event, not a thousand.

`ChangeShards` is its fences and opens, each by itself: in one entry of the consensus log, with one
flush of the journals, and one version of the map for all who follow it.

Why it is the same as one command after another (there is a test for that):

- *None sees another.* The changes of one command are of different shards. Each reads the nodes, the
  logs and the entry of its own shard (`segments.fenced`, `segments.reopened`) and replaces that
  entry alone. So their order is of no matter, and all may look at the state before the command.
- *One that is refused leaves the others alone.* Each has the guards of its own kind, and a result
  of its own. There is no state of the command as a whole that anything could rest on: a leader that
  takes over finds some fences standing and finishes them, as ever.
- *Repeated it changes nothing*, since each change repeated is answered with success.

What no change can be read from (a place outside a table, a shard named twice, a plan that is none)
refuses the command as a whole.
"""

from collections.abc import Iterable, Iterator, Sequence

from las.core import segments
from las.core.commands import (
    FenceSegment,
    OpenSegment,
    Reason,
    RecoveredSegment,
    Result,
    ShardResult,
)
from las.core.rows import (
    CHANGES_BYTES_MAX,
    CHANGES_MAX,
    PLACES_MAX,
    ChangeShards,
    EndRow,
    FenceRow,
    Names,
    OpenRow,
    Tables,
)
from las.core.segments import Applied, NextEntry, refuse
from las.core.state import ClusterState, ShardEntry
from peerd.core.check import InvariantViolation
from peerd.core.shard_map import Plan

ShardChange = FenceSegment | OpenSegment


def change_shards(state: ClusterState, command: ChangeShards) -> Applied:
    """Change many shards.

    | `ChangeShards(changes)` | the changes are `FenceSegment` and `OpenSegment`, each of another
    shard | each as by itself: made if it finds what it expects, and with a result of its own |
    """
    try:
        changes = changes_of(command)
    except InvariantViolation as error:
        return refuse(state, Reason.INVALID_ARGUMENT, f"no change of shards: {error}")
    if len({each.shard for each in changes}) != len(changes) or len(changes) > CHANGES_MAX:
        text = f"at most {CHANGES_MAX} changes, each of another shard"
        return refuse(state, Reason.INVALID_ARGUMENT, text)
    return all_changed(state, (_changed(state, change) for change in changes))


def _changed(state: ClusterState, change: ShardChange) -> NextEntry:
    if isinstance(change, FenceSegment):
        return segments.fenced(state, change)
    return segments.reopened(state, change)


def all_changed(state: ClusterState, changes: Iterable[NextEntry]) -> Applied:
    """The version in which each of the changes is made that was not refused; a result for each."""
    entries: list[ShardEntry] = []
    results: list[ShardResult] = []
    for entry, result in changes:
        if entry is not None:
            entries.append(entry)
        text = "" if result.ok else result.text
        results.append(
            ShardResult(ok=result.ok, reason=result.reason, text=text, epoch=result.epoch)
        )
    after = state.changed(shards=entries) if entries else state
    return after, Result(ok=True, each=tuple(results))


def result_of(each: ShardResult) -> Result:
    """The outcome of one change as that of the plain command."""
    return Result(ok=each.ok, reason=each.reason, text=each.text, epoch=each.epoch)


# ---------------------------------------------------------------------------------- to rows
class _Joiner(Tables):
    """Rows as they grow, with their tables."""

    def __init__(self) -> None:
        super().__init__()
        self._fences: list[FenceRow] = []
        self._opens: list[OpenRow] = []

    def fence(self, change: FenceSegment) -> None:
        why = self.why(change.why)
        self.row(change.shard, change.epoch, change.prepared, why)
        self._fences.append((change.shard, change.epoch, change.prepared, why))

    def open(self, change: OpenSegment) -> None:
        plan, prepared = change.plan, change.ended_prepared
        self._opens.append(
            (
                change.shard,
                change.fence,
                self.process(plan.primary),
                self.places(plan.voters),
                self.places(plan.non_voters),
                plan.acks,
                self._end(change.ended),
                None if prepared is None else self._end(prepared),
            )
        )
        self.row(change.shard, change.fence, plan.acks, PLACES_MAX)

    def command(self) -> ChangeShards:
        return ChangeShards(
            whys=self.whys,
            stores=self.stores,
            processes=self.processes,
            fences=tuple(self._fences),
            opens=tuple(self._opens),
        )

    def _end(self, ended: RecoveredSegment) -> EndRow:
        self.row(ended.end, ended.known_commit)
        return ended.end, ended.known_commit, self.places(ended.holders)


def joined(changes: Sequence[ShardChange]) -> tuple[ChangeShards, int]:
    """One command for the first of `changes`, as many as it has room for; and how many these are.

    They are of different shards and of one kind: fences, or opens.
    """
    joiner, taken = _Joiner(), 0
    for change in changes[:CHANGES_MAX]:
        if isinstance(change, FenceSegment):
            joiner.fence(change)
        else:
            joiner.open(change)
        taken += 1
        if joiner.bytes > CHANGES_BYTES_MAX:
            break
    return joiner.command(), taken


# ---------------------------------------------------------------------------------- from rows
def changes_of(command: ChangeShards) -> list[ShardChange]:
    """The changes, the fences first.

    Raises:
        InvariantViolation: a row is none.
    """
    names = Names(command)
    return [*_fences(command, names), *_opens(command, names)]


def _fences(command: ChangeShards, names: Names) -> Iterator[FenceSegment]:
    for shard, epoch, prepared, why in command.fences:
        yield FenceSegment(shard=shard, epoch=epoch, prepared=prepared, why=names.why(why))


def _opens(command: ChangeShards, names: Names) -> Iterator[OpenSegment]:
    def ended(row: EndRow) -> RecoveredSegment:
        end, known_commit, holders = row
        return RecoveredSegment(end=end, known_commit=known_commit, holders=names.stores(holders))

    for shard, fence, primary, voters, non_voters, acks, end, end_prepared in command.opens:
        plan = Plan(
            primary=names.process(primary),
            voters=names.stores(voters),
            non_voters=names.stores(non_voters),
            acks=acks,
        )
        yield OpenSegment(
            shard=shard,
            fence=fence,
            plan=plan,
            ended=ended(end),
            ended_prepared=None if end_prepared is None else ended(end_prepared),
        )
