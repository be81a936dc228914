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

from collections.abc import Iterator, Sequence

from las.core import segments
from las.core.commands import (
    ChangeShards,
    EndRow,
    FenceRow,
    FenceSegment,
    OpenRow,
    OpenSegment,
    Reason,
    RecoveredSegment,
    Result,
    ShardResult,
)
from las.core.segments import Applied, refuse
from las.core.state import ClusterState, ShardEntry
from peerd.core.check import InvariantViolation, invariant
from peerd.core.ids import ProcessId, ReplicaId
from peerd.core.shard_map import Plan

ShardChange = FenceSegment | OpenSegment

# limit: changes of one command.
CHANGES_MAX = 512
# limit: bytes after which a command takes no further change; the last one still fits its 64 KiB.
CHANGES_BYTES_MAX = 56 * 1024
# What JSON adds at most to the numbers of a row, to a place and to what a table names.
_ROW_BYTES = 12
_PLACE_BYTES = 5
_PLACES_MAX = 9_999
_NAME_BYTES = 14


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
    entries: list[ShardEntry] = []
    results: list[ShardResult] = []
    for change in changes:
        if isinstance(change, FenceSegment):
            entry, result = segments.fenced(state, change)
        else:
            entry, result = segments.reopened(state, change)
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
class _Joiner:
    """Tables and rows as they grow, and how many bytes of JSON they fill at most."""

    def __init__(self) -> None:
        self.bytes = 0
        self._whys: dict[str, int] = {}
        self._stores: dict[ReplicaId, int] = {}
        self._processes: dict[ProcessId, int] = {}
        self._fences: list[FenceRow] = []
        self._opens: list[OpenRow] = []

    def fence(self, change: FenceSegment) -> None:
        why = self._whys.get(change.why)
        if why is None:
            why = self._whys[change.why] = len(self._whys)
            self.bytes += 2 * len(change.why.encode()) + _NAME_BYTES
        self._count(change.shard, change.epoch, change.prepared, why)
        self._fences.append((change.shard, change.epoch, change.prepared, why))

    def open(self, change: OpenSegment) -> None:
        plan, prepared = change.plan, change.ended_prepared
        self._opens.append(
            (
                change.shard,
                change.fence,
                self._process(plan.primary),
                self._places(plan.voters),
                self._places(plan.non_voters),
                plan.acks,
                self._end(change.ended),
                None if prepared is None else self._end(prepared),
            )
        )
        self._count(change.shard, change.fence, plan.acks, _PLACES_MAX)

    def command(self) -> ChangeShards:
        return ChangeShards(
            whys=tuple(self._whys),
            stores=tuple((each.peer, each.store) for each in self._stores),
            processes=tuple((self._stores[each.replica], each.boot) for each in self._processes),
            fences=tuple(self._fences),
            opens=tuple(self._opens),
        )

    def _count(self, *numbers: int) -> None:
        self.bytes += _ROW_BYTES + sum([len(str(number)) for number in numbers])

    def _process(self, process: ProcessId) -> int:
        place = self._processes.get(process)
        if place is None:
            self._places((process.replica,))
            place = self._processes[process] = len(self._processes)
            self.bytes += len(process.boot) + _NAME_BYTES
        return place

    def _places(self, replicas: Sequence[ReplicaId]) -> tuple[int, ...]:
        for each in replicas:
            if each not in self._stores:
                self._stores[each] = len(self._stores)
                self.bytes += len(each.peer) + len(each.store) + _NAME_BYTES
        self.bytes += _PLACE_BYTES * len(replicas)
        return tuple([self._stores[each] for each in replicas])

    def _end(self, ended: RecoveredSegment) -> EndRow:
        self._count(ended.end, ended.known_commit)
        return ended.end, ended.known_commit, self._places(ended.holders)


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
    return [*_fences(command), *_opens(command)]


def _fences(command: ChangeShards) -> Iterator[FenceSegment]:
    for shard, epoch, prepared, why in command.fences:
        invariant(0 <= why < len(command.whys), "a reason is in its table", shard=shard)
        yield FenceSegment(shard=shard, epoch=epoch, prepared=prepared, why=command.whys[why])


def _opens(command: ChangeShards) -> Iterator[OpenSegment]:
    stores = [ReplicaId(peer, store) for peer, store in command.stores]

    def named(places: tuple[int, ...]) -> tuple[ReplicaId, ...]:
        for place in places:
            invariant(0 <= place < len(stores), "a store is in its table", place=place)
        return tuple([stores[place] for place in places])

    def ended(row: EndRow) -> RecoveredSegment:
        end, known_commit, holders = row
        return RecoveredSegment(end=end, known_commit=known_commit, holders=named(holders))

    processes = [
        ProcessId(replica.peer, replica.store, boot)
        for place, boot in command.processes
        for replica in named((place,))
    ]
    for shard, fence, primary, voters, non_voters, acks, end, end_prepared in command.opens:
        invariant(0 <= primary < len(processes), "a process is in its table", shard=shard)
        plan = Plan(
            primary=processes[primary],
            voters=named(voters),
            non_voters=named(non_voters),
            acks=acks,
        )
        yield OpenSegment(
            shard=shard,
            fence=fence,
            plan=plan,
            ended=ended(end),
            ended_prepared=None if end_prepared is None else ended(end_prepared),
        )
