"""Replays a flight recording: the same cores on the same inputs must have the same effects.

    python -m peerd.testing.replay DIR      (every *.ring below DIR; also `make sim TRACE=DIR`)

A core is a pure function, so a recorded event has one outcome. Each one is handled again, and the
digest of all effects so far is compared with the recorded one. A difference means that the running
code is not the installed one, that the recording was changed, or that a core is not pure.

The replay gives the run as a stream of records (`peerd.testing.trace`), which the acceptor of the
protocol judges: that the cores did the same again says nothing about whether it was right.

What a store made durable and nobody heard of, since the process was killed, shows in the state with
which the next process of that store began; it is told as `Stored` before `Died`.
"""

import heapq
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from las.core.codec import CodecError
from peerd.core.check import InvariantViolation
from peerd.core.durable import Outcome, Refused, StoredShard, apply
from peerd.core.durable import Stored as StoredOutcome
from peerd.core.effects import Step
from peerd.core.events import Event, WriteDone
from peerd.core.ids import ProcessId, ShardId
from peerd.core.replica import Replica
from peerd.recorder.forms import Process, StateChange, WholeOutcome
from peerd.recorder.graph import NotCheckpointed
from peerd.recorder.recording import (
    Began,
    Boot,
    Broke,
    Checkpoint,
    Committed,
    Gap,
    Item,
    MapState,
    NoCheckpoint,
    Recording,
    RecordingRefused,
    Took,
)
from peerd.recorder.ring import RingError
from peerd.testing.acceptor import Judge, Verdict
from peerd.testing.replay_map import MapChanged, MapReplay
from peerd.testing.trace import Booted, Died, Handled, Record, Stored

# limit: characters of an event or a step that a difference is told with
TOLD_CHARACTERS = 600
NS_PER_MS = 1_000_000


@dataclass(slots=True)
class Account:
    """What became of one process of a recording."""

    process: ProcessId
    software: str
    shards: set[ShardId] = field(default_factory=set)
    events: int = 0
    skipped: int = 0
    checkpoints: int = 0
    whole: bool = True
    notes: list[str] = field(default_factory=list)


class Different(Exception):
    """The replay is not the recorded run; one line says where, and what was different."""


class RingReplay:
    """Replays one ring file. `records` may be walked once; `accounts` is filled while it is."""

    def __init__(self, recording: Recording, offsets_ns: dict[str, int]) -> None:
        """`offsets_ns` turns monotonic time of a machine into the common one; shared by rings."""
        self.recording = recording
        self.accounts: list[Account] = []
        self._offsets_ns = offsets_ns
        self._offset_ns = 0
        self._process: Process | None = None
        self._cores: dict[ShardId, Replica] = {}
        self._digests: dict[ShardId, int] = {}
        self._map = MapReplay()
        self._ended: dict[ShardId, Replica] = {}
        self._dead: ProcessId | None = None
        self._last_ns = 0

    def records(self) -> Iterator[tuple[int, Record | MapChanged]]:
        """The run of this ring's processes, each record with its time in ns.

        Raises `Different`, `RecordingRefused` or `RingError`.
        """
        boots: list[Boot] = []
        for item in self.recording.items():
            if isinstance(item, Boot):
                boots.append(item)
                continue
            yield from self._booted(boots)
            yield from self._item(item)
        yield from self._booted(boots)

    @property
    def has_map(self) -> bool:
        """Whether a LAS node wrote this ring."""
        return self._map.state is not None

    def _at(self, at_ns: int) -> int:
        """The common time, in ns; it never goes back within a ring."""
        self._last_ns = max(self._last_ns, at_ns + self._offset_ns)
        return self._last_ns

    @property
    def _account(self) -> Account:
        return self.accounts[-1]

    def _me(self) -> Process:
        if self._process is None:
            raise RecordingRefused(f"{self.recording.path}: nobody says who wrote it")
        return self._process

    def _item(self, item: Item) -> Iterator[tuple[int, Record | MapChanged]]:
        if isinstance(item, Took):
            yield from self._took(item)
        elif isinstance(item, Began):
            self._began(item.process)
        elif isinstance(item, Committed | MapState):
            yield from self._map_item(item)
        elif isinstance(item, Checkpoint):
            self._checkpoint(item)
        elif isinstance(item, NoCheckpoint):
            if item.shard not in self._cores:
                self._account.notes.append(f"shard {item.shard} cannot be replayed: {item.why}")
        elif isinstance(item, Gap):
            self._gap(item)
        elif isinstance(item, Broke):
            self._broke(item)

    def _map_item(self, item: Committed | MapState) -> Iterator[tuple[int, Record | MapChanged]]:
        """What a LAS node recorded."""
        now = self._at(item.at_ns)
        try:
            if isinstance(item, MapState):
                self._map.begin(item.snapshot)
                return
            self._account.events += 1
            changed = self._map.command(now // NS_PER_MS, item.command)
        except CodecError as error:
            raise RecordingRefused(f"{self.recording.path}: {error}") from error
        if changed is not None:
            yield now, changed

    # ------------------------------------------------------------------ begins and ends
    def _began(self, process: Process) -> None:
        """A process, or another segment of the same one."""
        before = self._process
        self._process = process
        own = process.wall_ns - process.monotonic_ns
        self._offset_ns = self._offsets_ns.setdefault(process.machine, own)
        if before is not None and before.boot == process.boot:
            return
        if before is not None and before.store:
            # A LAS node has no store, and no core that could end.
            self._dead, self._ended, self._cores = before.process, self._cores, {}
        self.accounts.append(Account(process.process, process.software))

    def _booted(self, boots: list[Boot]) -> Iterator[tuple[int, Record]]:
        """Cores that were made together; first the end of the process before."""
        if not boots and self._dead is None:
            return
        process = self._me()
        if self._dead is not None:
            now = self._at(boots[0].at_ns if boots else process.monotonic_ns)
            for boot in boots:
                yield from self._unheard(boot, self._dead, now)
            yield now, Died(now // NS_PER_MS, self._dead)
            self._dead = None
            self._ended = {}
        for boot in boots:
            now = self._at(boot.at_ns)
            self._account.shards.add(boot.shard)
            self._digests[boot.shard] = 0
            self._cores[boot.shard] = Replica(process.process, boot.stored, process.limits)
            yield now, Booted(now // NS_PER_MS, process.process, boot.shard, boot.stored)
        boots.clear()

    def _unheard(self, boot: Boot, dead: ProcessId, now: int) -> Iterator[tuple[int, Record]]:
        """What the dead process's store wrote though its core heard nothing of it any more."""
        core = self._ended.get(boot.shard)
        if core is None:
            return
        outcomes = unheard(core, boot.stored)
        if outcomes is None:
            self._account.notes.append(
                f"shard {boot.shard} came back with a state that its writes under way do not give"
            )
        elif outcomes:
            yield now, Stored(now // NS_PER_MS, dead, boot.shard, outcomes)

    def _gap(self, gap: Gap) -> None:
        lost = list(self._cores) if gap.shard is None else [gap.shard]
        for shard in lost:
            self._cores.pop(shard, None)
        if self.accounts:
            self._account.whole = False
            what = "every shard" if gap.shard is None else f"shard {gap.shard}"
            self._account.notes.append(f"{what}: replay begins anew after a gap: {gap.why}")

    # ------------------------------------------------------------------ events
    def _took(self, item: Took) -> Iterator[tuple[int, Record]]:
        process, account = self._me(), self._account
        core = self._cores.get(item.shard)
        account.shards.add(item.shard)
        if core is None:
            account.skipped += 1
            account.whole = False
            return
        account.events += 1
        event = self._event(core, item)
        before = self._digests[item.shard]
        try:
            step = core.handle(event)
        except InvariantViolation as error:
            raise self._different(item, f"the replay found a broken invariant: {error}") from error
        self._digests[item.shard] = digest = self.recording.digests.after(step, before)
        if digest != item.digest:
            raise self._different(item, f"the effects are not the recorded ones; now: {told(step)}")
        now = self._at(item.at_ns)
        at_ms = now // NS_PER_MS
        if isinstance(event, WriteDone):
            yield now, Stored(at_ms, process.process, item.shard, (event.outcome,))
        yield now, Handled(at_ms, process.process, item.shard, event, step)

    @staticmethod
    def _event(core: Replica, item: Took | Broke) -> Event:
        """The event; an outcome of the store gets its operation, and its state."""
        taken = item.event
        if not isinstance(taken, StateChange | WholeOutcome):
            return taken
        outcome: Outcome
        operation = taken.operation if isinstance(taken, WholeOutcome) else None
        if operation is None:
            if not core.under_way:
                raise Different(f"shard {item.shard}: an outcome was recorded that nothing awaits")
            operation = core.under_way[0]
        if isinstance(taken, StateChange):
            outcome = StoredOutcome(operation=operation, state=taken.state(core.stored))
        elif taken.why is None:
            outcome = StoredOutcome(operation=operation, state=taken.state)
        else:
            outcome = Refused(operation=operation, state=taken.state, why=taken.why)
        return WriteDone(outcome=outcome)

    def _checkpoint(self, item: Checkpoint) -> None:
        """Begin here if nothing of the shard was replayed so far; else the states must agree."""
        core, account = self._cores.get(item.shard), self._account
        account.shards.add(item.shard)
        try:
            if core is None:
                self._cores[item.shard] = self.recording.replica(item)
                self._digests[item.shard] = item.digest
                account.whole = False
                return
            account.checkpoints += 1
            if not self.recording.is_state_of(item, core):
                raise self._different(item, "the state of the core is not the recorded one")
        except NotCheckpointed as error:
            account.notes.append(f"shard {item.shard}: no use of a checkpoint: {error}")

    def _broke(self, item: Broke) -> None:
        """The process ended of this: so must the replay."""
        core = self._cores.get(item.shard)
        if core is None:
            return
        self._account.notes.append(f"shard {item.shard} ended its process: {item.why}")
        try:
            core.handle(self._event(core, item))
        except InvariantViolation:
            return
        raise self._different(
            item, "the recorded process found a broken invariant, the replay none"
        )

    def _different(self, item: Took | Broke | Checkpoint, why: str) -> Different:
        account, process = self._account, self._me()
        at_s = (item.at_ns - process.monotonic_ns) / 1e9
        what = "checkpoint" if isinstance(item, Checkpoint) else cut(repr(item.event))
        return Different(
            f"{process.peer} (boot {process.boot[:8]}), shard {item.shard}, "
            f"event {account.events} at {at_s:+.3f} s: {why}; given: {what}"
        )


def unheard(core: Replica, came_back: StoredShard) -> tuple[Outcome, ...] | None:
    """Outcomes that lead from what `core` knew its store to have to what came back, if any do."""
    state, outcomes = core.stored, []
    for operation in core.under_way:
        if state == came_back:
            break
        try:
            outcome, state = apply(state, operation)
        except InvariantViolation:
            return None
        outcomes.append(outcome)
    return tuple(outcomes) if state == came_back else None


def cut(text: str) -> str:
    """One line of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= TOLD_CHARACTERS else line[:TOLD_CHARACTERS] + " …"


def told(step: Step) -> str:
    """The effects of a step, in words of bounded length."""
    kinds = ("persist", "send", "load", "reply", "report", "note")
    effects = [f"{kind} {effect!r}" for kind in kinds for effect in getattr(step, kind)]
    return cut("; ".join(effects) or "none")


class Replay:
    """Replays all rings of a directory as one run."""

    def __init__(self, directory: Path) -> None:
        """Raises `RecordingRefused` if there is none."""
        paths = sorted(directory.rglob("*.ring")) if directory.is_dir() else []
        if not paths:
            raise RecordingRefused(
                f"{directory}: no *.ring below it; `peerctl incident save` writes them"
            )
        offsets_ns: dict[str, int] = {}
        self.rings = [RingReplay(Recording(path), offsets_ns) for path in paths]

    def records(self) -> Iterator[Record]:
        """All records, in the order of their time. Raises as `RingReplay.records`."""
        streams = [
            ((at_ns, number, record) for at_ns, record in ring.records())
            for number, ring in enumerate(self.rings)
        ]
        version = 0
        for _, _, record in heapq.merge(*streams, key=lambda item: item[:2]):
            if not isinstance(record, MapChanged):
                yield record
            elif record.version > version:
                version = record.version
                yield from record.records

    @property
    def has_map(self) -> bool:
        """Whether the commands of the LAS are among the recordings."""
        return any(ring.has_map for ring in self.rings)

    def accounts(self) -> Iterator[Account]:
        """What became of each process, once `records` was walked."""
        return chain.from_iterable(ring.accounts for ring in self.rings)


def main(arguments: list[str]) -> int:
    """Replay a directory; prints a table, and the first difference in words. 0 = the same run."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m peerd.testing.replay DIR\n")
        return 2
    judge, count = Judge(), 0
    try:
        replay = Replay(Path(arguments[0]))
        for record in replay.records():
            count += 1
            judge.take(record)
    except (Different, RecordingRefused, RingError) as error:
        sys.stderr.write(f"replay: {error}\n")
        return 1
    write = sys.stdout.write
    write(f"{'process':<34} {'shards':>6} {'events':>9} {'skipped':>8} {'checkpoints':>11}  from\n")
    for account in replay.accounts():
        me = account.process
        begin = "its start" if account.whole else "a checkpoint"
        write(
            f"{me.peer + ' boot ' + me.boot[:8]:<34} {len(account.shards):>6} {account.events:>9} "
            f"{account.skipped:>8} {account.checkpoints:>11}  {begin}\n"
        )
        for note in account.notes:
            write(f"  {note}\n")
    for ring in replay.rings:
        for line in ring.recording.cuts:
            write(f"  {line}\n")
    write(f"{count} records: the replay has the recorded effects\n")
    return _judged(replay, judge.verdict)


def _judged(replay: Replay, verdict: Verdict) -> int:
    """Say what the acceptor of the protocol says, if it saw the run from its begin."""
    whole = all(account.whole for account in replay.accounts())
    if not whole or not replay.has_map:
        why = "a part of the run" if not whole else "no LAS node's recording"
        sys.stdout.write(f"acceptor: not asked, since there is {why}\n")
        return 0
    sys.stdout.write(f"acceptor: {cut(str(verdict))}\n")
    return 0 if verdict.accepted else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
