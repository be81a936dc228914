"""Rules of the protocol, broken on purpose: each mutant patches one rule and must be caught.

The names are those of the formal model where it has the same mutant. A mutant is a function that
takes pytest's `monkeypatch`. Random runs catch those of `MUTANTS`; those of `RARE` need so many
things to happen in one order that only a literal test catches them.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest

from peerd.core import durable
from peerd.core import table_search as search
from peerd.core.durable import (
    AdoptEpoch,
    AppendBatches,
    FillSealed,
    LearnMap,
    StoredSegment,
    StoredShard,
)
from peerd.core.effects import Effects, EpochAnswer
from peerd.core.ids import Epoch, Offset
from peerd.core.primary import Primary
from peerd.core.producer import ProducerTable, TableBatch, TableSnapshot
from peerd.core.replica import Replica
from peerd.testing.sim.disk import Disk

Mutant = Callable[[pytest.MonkeyPatch], None]


def promise_overtakes_queue(patch: pytest.MonkeyPatch) -> None:
    """Batches queued before a promise are stored, and acknowledged, after it."""

    def append(state: StoredShard, operation: AppendBatches) -> StoredShard | str:
        unpromised = replace(
            state, promised=min(state.promised, max(state.adopted, operation.epoch))
        )
        changed = original(unpromised, operation)
        return changed if isinstance(changed, str) else replace(changed, promised=state.promised)

    original = durable._append
    patch.setattr(durable, "_append", append)
    apply = Disk.apply

    def promises_first(disk: Disk, operations: list[durable.StoreOperation]):
        order = sorted(operations, key=lambda each: not isinstance(each, durable.PromiseEpoch))
        outcomes = {id(outcome.operation): outcome for outcome in apply(disk, order)}
        return [outcomes[id(operation)] for operation in operations]

    patch.setattr(Disk, "apply", promises_first)


def adopt_below_promise(patch: pytest.MonkeyPatch) -> None:
    """A replica adopts an epoch below its promise."""

    def adopt(state: StoredShard, operation: AdoptEpoch) -> StoredShard | str:
        if operation.epoch < state.adopted:
            return "older than adopted"
        return original(replace(state, promised=state.adopted), operation)

    original = durable._adopt
    patch.setattr(durable, "_adopt", adopt)


def ack_without_epoch(patch: pytest.MonkeyPatch) -> None:
    """Acks of another epoch are counted."""

    def acked(primary: Primary, sender, ack, out) -> None:
        end = min(ack.end, primary.end)
        original(primary, sender, replace(ack, epoch=primary.epoch, end=end), out)

    original = Primary.acked
    patch.setattr(Primary, "acked", acked)


def restart_resumes(patch: pytest.MonkeyPatch) -> None:
    """A restarted primary goes on in its epoch from its own end."""

    def may_begin(replica: Replica, epoch: Epoch, plan) -> bool:
        return original(replica, epoch, replace_boot(plan, replica))

    def replace_boot(plan, replica: Replica):
        same = plan.primary.replica == replica._s.me.replica
        return replace(plan, primary=replica._s.me) if same else plan

    def become(replica: Replica, epoch, begin, plan, timestamp_ms, out) -> Primary:
        stored = replica._s.stored.segments.get(epoch)
        primary = becomes(replica, epoch, begin, plan, timestamp_ms, out)
        if stored is not None:
            primary.end = primary.own_end = stored.end
            primary._ends[replica._s.me.replica] = stored.end
        return primary

    original, becomes = Replica._may_begin, Replica._become_primary
    patch.setattr(Replica, "_may_begin", may_begin)
    patch.setattr(Replica, "_become_primary", become)


def table_not_carried(patch: pytest.MonkeyPatch) -> None:
    """The new primary starts with an empty producer table."""

    def found(primary: Primary, _table: ProducerTable, out: Effects) -> None:
        empty = TableSnapshot(as_of=primary.begin)
        original(primary, ProducerTable(empty), out)

    original = Primary.table_found
    patch.setattr(Primary, "table_found", found)


def table_keeps_tail(patch: pytest.MonkeyPatch) -> None:
    """The producer table that goes to the next primary is not cut back to X."""

    def snapshot(table: ProducerTable, since: Offset = Offset(0)) -> TableSnapshot:
        whole = original(table, since)
        producers = dict(whole.producers)
        for name, producer in table._producers.items():
            if producer.pending:
                producers[name] = (*producer.committed, *producer.pending)
        return replace(whole, producers=producers)

    original = ProducerTable.snapshot
    patch.setattr(ProducerTable, "snapshot", snapshot)


def retry_answered_early(patch: pytest.MonkeyPatch) -> None:
    """A retry of a kept batch is answered at once."""

    def answerable(_primary: Primary, _entry: TableBatch) -> bool:
        return True

    patch.setattr(Primary, "_is_answerable", answerable)


def x_is_end(patch: pytest.MonkeyPatch) -> None:
    """P's X is its end in memory, not its commit offset."""

    def finish(replica: Replica, primary: Primary, switch, out) -> None:
        for ordered in primary._uncommitted.values():
            primary.table.commit(ordered.batch.end, ordered.batch.header)
        primary.commit = primary.end
        original(replica, primary, switch, out)

    original = Replica._finish_switch
    patch.setattr(Replica, "_finish_switch", finish)


def primary_does_not_stop(patch: pytest.MonkeyPatch) -> None:
    """N begins before P has stopped: P goes on acknowledging in e."""

    def finish(replica: Replica, primary: Primary, switch, out) -> None:
        if switch.prepared.plan.primary == replica._s.me:
            original(replica, primary, switch, out)
            return
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Primary, "refuse_all", lambda *_: None)
            original(replica, primary, switch, out)
        replica._primary = primary
        primary.held = False
        while primary._queue:
            primary.append(primary._queue.popleft(), out)

    original = Replica._finish_switch
    patch.setattr(Replica, "_finish_switch", finish)


def begin_twice(patch: pytest.MonkeyPatch) -> None:
    """A restarted process begins its epoch a second time, when `Begin` comes again."""

    def begin(replica: Replica, event, out) -> None:
        message = event.message
        if message.plan.primary.replica == replica._s.me.replica:
            plan = replace(message.plan, primary=replica._s.me)
            message = replace(message, boot=replica._s.me.boot, plan=plan)
        original(replica, replace(event, message=message), out)

    original = Replica._begin
    patch.setattr(Replica, "_begin", begin)


def adoption_drops_tail(patch: pytest.MonkeyPatch) -> None:
    """Adopting e′ at X drops older batches at or beyond X."""

    def adopt(state: StoredShard, operation: AdoptEpoch) -> StoredShard | str:
        changed = original(state, operation)
        if isinstance(changed, str) or changed is state:
            return changed
        segments = {
            epoch: cut(segment, operation.begin) if epoch < operation.epoch else segment
            for epoch, segment in changed.segments.items()
        }
        return replace(changed, segments=segments)

    def cut(segment: StoredSegment, begin: Offset) -> StoredSegment:
        end = max(segment.begin, min(segment.end, begin))
        return replace(segment, end=end, commit=min(segment.commit, end))

    original = durable._adopt
    patch.setattr(durable, "_adopt", adopt)


def fetch_without_promise(patch: pytest.MonkeyPatch) -> None:
    """Neither filling a sealed segment nor the map raises the promise."""

    def fill(state: StoredShard, operation: FillSealed) -> StoredShard | str:
        changed = filled(state, operation)
        return changed if isinstance(changed, str) else replace(changed, promised=state.promised)

    def learn(state: StoredShard, operation: LearnMap) -> StoredShard:
        return replace(learned(state, operation), promised=state.promised)

    filled, learned = durable._fill, durable._learn
    patch.setattr(durable, "_fill", fill)
    patch.setattr(durable, "_learn", learn)


def end_without_epoch(patch: pytest.MonkeyPatch) -> None:
    """A voter answers with the end of whatever it has, also an older tail."""

    def answer(replica: Replica, stored: StoredShard, epoch: Epoch) -> EpochAnswer:
        told = original(replica, stored, epoch)
        older = [segment for segment in stored.segments.values() if segment.epoch < epoch]
        if told.adopted or not older or replica._s.map is None:
            return told
        begin = replica._s.map.open.begin or Offset(0)
        end = max(segment.end for segment in older)
        return EpochAnswer(epoch=epoch, adopted=True, begin=begin, end=end, commit=begin)

    original = Replica._epoch_answer
    patch.setattr(Replica, "_epoch_answer", answer)


def non_voters_counted(patch: pytest.MonkeyPatch) -> None:
    """A non-voter's durable end counts like a voter's."""

    def init(primary: Primary, *args, **kwargs) -> None:
        original(primary, *args, **kwargs)
        primary._ends = dict.fromkeys(primary.plan.replicas, primary.begin)

    original = Primary.__init__
    patch.setattr(Primary, "__init__", init)


def acked_before_fsync(patch: pytest.MonkeyPatch) -> None:
    """The primary counts itself when it has handed the batch to its store."""

    def write(primary: Primary, batches, out) -> None:
        original(primary, batches, out)
        primary._durable(primary._s.me.replica, primary.end, out)

    original = Primary._write
    patch.setattr(Primary, "_write", write)


def repeats_taken_anew(patch: pytest.MonkeyPatch) -> None:
    """A retry is ordered once more."""

    def judge(table: ProducerTable, header):
        verdict = original(table, header)
        return None if isinstance(verdict, TableBatch) else verdict

    original = ProducerTable.judge
    patch.setattr(ProducerTable, "judge", judge)


def table_of_old_tail(patch: pytest.MonkeyPatch) -> None:
    """The table is extended over the newest batches at an offset, whatever the map says."""

    def part(state: StoredShard, begin: Offset):
        found = [s for s in state.segments.values() if s.begin <= begin < s.end]
        if not found:
            return None
        newest = max(found, key=lambda segment: segment.epoch)
        return durable.TableRange(epoch=newest.epoch, begin=begin, end=newest.end)

    patch.setattr(durable, "_log_part", part)


def incomplete_is_empty(patch: pytest.MonkeyPatch) -> None:
    """A primary that lacks the past takes what it has for the whole table."""

    def start(self: search.TableSearch, _out: Effects) -> None:
        self.found = TableSnapshot(as_of=self._as_of)

    patch.setattr(search.TableSearch, "start", start)


MUTANTS: tuple[Mutant, ...] = (
    promise_overtakes_queue,
    adopt_below_promise,
    ack_without_epoch,
    restart_resumes,
    table_not_carried,
    table_keeps_tail,
    x_is_end,
    primary_does_not_stop,
    fetch_without_promise,
    end_without_epoch,
    acked_before_fsync,
    repeats_taken_anew,
    table_of_old_tail,
    incomplete_is_empty,
)

RARE: tuple[Mutant, ...] = (
    begin_twice,
    adoption_drops_tail,
    retry_answered_early,
    non_voters_counted,
)
