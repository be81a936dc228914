"""A run of real cores, read as actions of the model, shard by shard.

`Judge` takes the records of a trace one by one. Each is read as the abstract actions that it stands
for, and the acceptor judges these. The reading rests on effects alone:

- `Booted`, `Died`, `StoreLost`: `boot`, `crash`, `lose_store`. A process starts on what is durable.
- `Handled`, an own write of batches in the own epoch: `order`.
- `Handled`, a receipt: `acknowledge` or `answer_retry`; the refusal SPLIT: `answer_split`.
- `Handled`, the own adoption of an epoch: `become_primary`; before it `switch`, if the process
  follows itself. `Begin` sent: `switch` or `repeat_begin`. `Declined` said: `decline`.
- `Handled`, a request for the tail: `get_tail`; a voter's word: `confirm_epoch`; its answer:
  `answer_tail`.
- `Handled`, an `Ack` sent: `acked`; a promise answered: `answer`.
- `Stored`, an operation that was taken: `adopt`, `replicate`, `hear`, `promise`, `learn_open`,
  `drop_tail`, `fetch`. What the store then has is what the acceptor has.
- `MapCommitted`: the command's function in `planning`, and `list_holder` for each named holder.

In one step a core orders and acknowledges in its epoch, then stops, then begins another, then goes
on in that. Whatever repeats what was done already (a second `Adopt`, a committed command once more)
is no action.

Must not: decide what is allowed. What it cannot read is refused.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass

from las.core import commands as c
from las.core.holder_commands import ReleaseHolder
from las.core.tier_commands import CoolShard
from peerd.core import durable
from peerd.core import events as ev
from peerd.core.batch import BatchHeader, PlacedBatch
from peerd.core.effects import (
    AppendAccepted,
    AppendRefused,
    ConfirmAnswer,
    Declined,
    EpochAnswer,
    NoteKind,
    PromiseAnswered,
    Step,
    TailAnswered,
)
from peerd.core.errors import Reason
from peerd.core.ids import Epoch, ProcessId, ReplicaId, RequestId, ShardId
from peerd.core.messages import Ack, Begin
from peerd.core.shard_map import Parent, Shard
from peerd.core.shard_map import Plan as CorePlan
from peerd.testing import trace
from peerd.testing.acceptor import actions, planning
from peerd.testing.acceptor.state import NONE, Answer, Batch, Plan, State, Status, Switched

OK = actions.ACCEPTED
ASKING = frozenset({ev.AppendRequested, ev.TailAsked})
"""Events that are remembered until they are answered."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the acceptor says of a trace. If it refused: the number of the record, from 0, the
    shard, the broken guard in words and the record itself.
    """

    accepted: bool
    record_count: int
    number: int = -1
    shard: ShardId | None = None
    why: str = ""
    record: trace.Record | None = None

    def __str__(self) -> str:
        if self.accepted:
            return f"accepted: {self.record_count} records"
        return f"refused at record {self.number}, shard {self.shard}: {self.why}\n  {self.record}"


def judge(records: Iterable[trace.Record]) -> Verdict:
    """Judge a whole trace; reading stops at the first record that is refused."""
    judge_ = Judge()
    for record in records:
        if judge_.take(record):
            break
    return judge_.verdict


class Judge:
    """Takes a trace record by record; once it has refused it takes nothing any more."""

    def __init__(self) -> None:
        self.shards: dict[ShardId, Projection] = {}
        self._count = 0
        self._refusal: Verdict | None = None

    @property
    def verdict(self) -> Verdict:
        """On what was taken so far."""
        return self._refusal or Verdict(accepted=True, record_count=self._count)

    def take(self, record: trace.Record) -> str:
        """The broken guard in words; empty if the record is accepted."""
        if self._refusal is not None:
            return self._refusal.why
        number = self._count
        self._count += 1
        for shard, projection in self._concerned(record):
            if why := projection.take(record):
                self._refusal = Verdict(False, self._count, number, shard, why, record)
                return why
        return OK

    def hear(self, record: trace.Record) -> None:
        """`take`, for whoever reads `verdict` in the end."""
        self.take(record)

    def _concerned(self, record: trace.Record) -> Iterable[tuple[ShardId, "Projection"]]:
        if isinstance(record, trace.Handled):  # four of five records
            shard = record.shard
        elif isinstance(record, trace.Died | trace.StoreLost):
            return self.shards.items()
        else:
            shard = record.shard.shard if isinstance(record, trace.MapCommitted) else record.shard
        projection = self.shards.get(shard)
        if projection is None:
            projection = self.shards[shard] = Projection(self.shards)
        return ((shard, projection),)


def record_of(header: BatchHeader) -> Hashable:
    """Who sent the batch, the same for each retry; None if it has no producer."""
    return (header.producer, header.first_sequence) if header.producer else None


def _copy(batch: PlacedBatch) -> Batch:
    return Batch(batch.base, batch.base + batch.header.record_count, None, batch.header)


class Projection:
    """One shard; see the module."""

    def __init__(self, shards: "Mapping[ShardId, Projection]") -> None:
        self.state = State()
        self.is_beyond = False
        """Something was called lost, trimmed or deleted: what follows is beyond the model, and not
        judged.
        """
        self._shards = shards
        self._names: dict[ProcessId | ReplicaId, str] = {}
        self._requests: dict[tuple[str, RequestId], Hashable] = {}
        self._readers: dict[type, Callable[..., str]] = {
            trace.Handled: self._handled,
            trace.Stored: self._stored,
            trace.Booted: self._booted,
            trace.Died: self._died,
            trace.StoreLost: self._lost,
            trace.MapCommitted: self._committed,
        }
        self._operations: dict[type, Callable[..., str]] = {
            durable.AppendBatches: self._append,
            durable.AdoptEpoch: self._adopt,
            durable.PromiseEpoch: self._promise,
            durable.LearnMap: self._learn,
            durable.FillSealed: self._fill,
            durable.InstallTable: lambda _store, _operation: OK,
        }
        self._commands: dict[type, Callable[..., str]] = {
            c.CreateLog: self._create,
            c.PrepareSegment: self._prepare,
            c.PrepareSplit: self._prepare,
            c.SegmentOpened: self._opened,
            c.WithdrawSegment: self._withdraw,
            c.FenceSegment: self._fence,
            c.OpenSegment: self._open,
            c.AddHolder: self._add_holder,
        }

    def take(self, record: trace.Record) -> str:
        """Judge the actions of one record."""
        if isinstance(record, trace.Handled) and isinstance(record.event, ev.ShardDeleted):
            self.is_beyond = True
        if self.is_beyond:
            return OK
        return self._readers[type(record)](record)

    # -------------------------------------------------------------- names
    def _name(self, who: ProcessId | ReplicaId) -> str:
        name = self._names.get(who)
        if name is None:
            boot = f"/{who.boot}" if isinstance(who, ProcessId) else ""
            name = self._names[who] = f"{who.peer}/{who.store}{boot}"
        return name

    def _plan(self, plan: CorePlan) -> Plan:
        return Plan(
            primary=self._name(plan.primary),
            store=self._name(plan.primary.replica),
            voters=frozenset(map(self._name, plan.voters)),
            replicas=frozenset(map(self._name, plan.replicas)),
            acks=plan.acks,
            closed=plan.closed,
        )

    # -------------------------------------------------------------- processes
    def _booted(self, record: trace.Booted) -> str:
        process, store = self._name(record.process), self._name(record.process.replica)
        for other, home in list(self.state.lives.items()):
            if home == store and other != process:
                actions.crash(self.state, other)
        return self._differs(store, record.stored) or actions.boot(self.state, process, store)

    def _died(self, record: trace.Died) -> str:
        process = self._name(record.process)
        self._requests = {key: value for key, value in self._requests.items() if key[0] != process}
        return actions.crash(self.state, process) if process in self.state.lives else OK

    def _lost(self, record: trace.StoreLost) -> str:
        return actions.lose_store(self.state, self._name(record.replica))

    def _differs(self, name: str, stored: durable.StoredShard) -> str:
        """Whether what the store says it has is not what it made durable."""
        place = self.state.store(name)
        if (stored.promised, stored.adopted) != (place.promised, place.adopted):
            return "promises and adoptions are durable, and change by their actions alone"
        told = {
            epoch: (segment.begin, segment.end)
            for epoch, segment in stored.segments.items()
            if segment.end > segment.begin
        }
        known = {epoch: range_ for epoch, range_ in place.segments.items() if range_[0] < range_[1]}
        return OK if told == known else "batches are durable, and change by their actions alone"

    # -------------------------------------------------------------- what a core did
    def _handled(self, record: trace.Handled) -> str:
        event, step = record.event, record.step
        says_nothing = not (step.send or step.reply or step.report or step.note)
        if says_nothing and not step.persist and type(event) not in ASKING:
            return OK
        process = self._name(record.process)
        if isinstance(event, ev.AppendRequested):
            self._requests[process, event.request] = record_of(event.header)
        elif isinstance(event, ev.TailAsked):
            self._tail_asked(record, process, event.request)
        begun = self._begun(step) if not isinstance(event, ev.AdoptReceived) else None
        own = not isinstance(event, ev.FrameReceived)
        broken = OK
        if step.persist and own:
            broken = self._orders(process, step, begun, late=False)
        if step.reply and not broken:
            broken = self._replies(record, process, step, begun is not None)
        if not broken and (begun or step.report or step.note or step.send):
            broken = self._changes(record, process, begun)
        if begun and not broken:
            broken = self._orders(process, step, begun, late=True)
            self._reads_go_on(process, self._name(record.process.replica))
            broken = broken or self._late_replies(process, step, begun[0])
        return broken

    @staticmethod
    def _begun(step: Step) -> tuple[Epoch, int] | None:
        """The epoch and offset that the process begins as primary in this step."""
        for operation in step.persist:
            if isinstance(operation, durable.AdoptEpoch):
                return operation.epoch, operation.begin
        return None

    def _orders(
        self, process: str, step: Step, begun: tuple[Epoch, int] | None, *, late: bool
    ) -> str:
        """Batches that it orders; `late`: those of the epoch that it begins in this step."""
        for operation in step.persist:
            if not isinstance(operation, durable.AppendBatches) or not operation.batches:
                continue
            if late == (begun is not None and operation.epoch == begun[0]):
                for batch in operation.batches:
                    if broken := self._order(process, operation.epoch, batch):
                        return broken
        return OK

    def _order(self, process: str, epoch: int, batch: PlacedBatch) -> str:
        header = batch.header
        record = record_of(header) or (epoch, batch.base)
        placed = Batch(batch.base, batch.base + header.record_count, record, header)
        return actions.order(self.state, process, epoch, placed)

    def _replies(self, record: trace.Handled, process: str, step: Step, begins: bool) -> str:
        role = self.state.roles.get(process, NONE)
        for reply in step.reply:
            broken = OK
            if isinstance(reply, AppendAccepted):
                if reply.epoch == role or not begins:
                    broken = self._receipt(process, reply)
            elif isinstance(reply, PromiseAnswered) and reply.open is not None:
                store = self._name(record.process.replica)
                broken = self._answered(store, reply, reply.open)
            elif isinstance(reply, AppendRefused):
                broken = self._refused(process, reply)
            elif isinstance(reply, TailAnswered):
                if reply.tail is None or reply.epoch == role or not begins:
                    broken = self._tail_answered(process, reply)
            elif isinstance(reply, ConfirmAnswer):
                self._confirmed(record)
            if broken:
                return broken
        return OK

    def _tail_asked(self, record: trace.Handled, process: str, request: RequestId) -> None:
        """A primary takes a request for the tail; its own word counts from now on, if it votes."""
        key, role = (process, request), self.state.roles.get(process, NONE)
        if role != NONE and not actions.get_tail(self.state, process, role, key):
            actions.confirm_epoch(self.state, self._name(record.process.replica), key)

    def _confirmed(self, record: trace.Handled) -> None:
        """A voter has looked at its promise: that counts for every request that waits by now."""
        event, store = record.event, self._name(record.process.replica)
        if isinstance(event, ev.ConfirmReceived):
            for key, read in self.state.reads.items():
                if read.epoch == event.message.epoch:
                    actions.confirm_epoch(self.state, store, key)

    def _tail_answered(self, process: str, reply: TailAnswered) -> str:
        key = (process, reply.request)
        if reply.tail is None:
            self.state.reads.pop(key, None)
            return OK
        return actions.answer_tail(self.state, key, reply.tail)

    def _reads_go_on(self, process: str, store: str) -> None:
        """Requests for the tail that wait when a process follows itself are asked anew."""
        role = self.state.roles[process]
        for key, read in list(self.state.reads.items()):
            if read.process == process and read.epoch != role:
                del self.state.reads[key]
                actions.get_tail(self.state, process, role, key)
                actions.confirm_epoch(self.state, store, key)

    def _refused(self, process: str, reply: AppendRefused) -> str:
        record = self._requests.pop((process, reply.request), None)
        if reply.refusal.reason is Reason.SPLIT and not self._split_said_late(process, record):
            return actions.answer_split(self.state, process, record)
        return OK

    def _split_said_late(self, process: str, record: Hashable) -> bool:
        """Whether SPLIT comes from a closed segment that was open with the split, and is no more.

        Another closed segment has taken over, and this primary has not heard of it. The table of a
        closed segment never changes, so the answer is read as given while its segment was open.
        """
        role = self.state.roles.get(process, NONE)
        entry = self.state.epochs.get(role)
        if entry is None or entry.plan is None or entry.status is not Status.SEALED:
            return False
        is_of_the_split = entry.plan.closed and entry.begin == self.state.split
        return is_of_the_split and entry.was_open and self.state.place_in(role, record) is None

    def _late_replies(self, process: str, step: Step, epoch: Epoch) -> str:
        """Answers to retries, and to requests for the tail, that waited until the process had begun
        its next epoch.
        """
        for reply in step.reply:
            broken = OK
            if isinstance(reply, AppendAccepted) and (process, reply.request) in self._requests:
                broken = self._receipt(process, reply)
            elif isinstance(reply, TailAnswered) and reply.epoch == epoch:
                broken = self._tail_answered(process, reply)
            if broken:
                return broken
        return OK

    def _receipt(self, process: str, reply: AppendAccepted) -> str:
        entry = self.state.epochs.get(reply.epoch)
        batch = entry.log.get(reply.base) if entry is not None else None
        if entry is None or batch is None or batch.end != reply.base + reply.record_count:
            return "a receipt names a batch that was ordered"
        record = self._requests.pop((process, reply.request), None)
        if record is None:
            record = batch.record
        if reply.duplicate:
            return actions.answer_retry(self.state, process, reply.epoch, reply.base, record)
        for replica in reply.durable_on:
            if broken := actions.acked(self.state, self._name(replica), reply.epoch, batch.end):
                return broken
        return actions.acknowledge(self.state, process, reply.epoch, reply.base, record)

    def _answered(self, store: str, reply: PromiseAnswered, told: EpochAnswer) -> str:
        entry = self.state.epochs.get(reply.promised)
        if entry is None or entry.view_open != told.epoch:
            return "a fence asks about what was open and prepared when it was drawn"
        end = max(told.end, self.state.epochs[told.epoch].begin)
        following = reply.prepared
        if following is None or not following.adopted:
            given = Answer(end)
        else:
            given = Answer(end, True, following.begin, following.end)
        return actions.answer(self.state, store, reply.promised, given)

    def _changes(self, record: trace.Handled, process: str, begun: tuple[Epoch, int] | None) -> str:
        """What ends and begins in this step, and what is said."""
        step = record.step
        for note in step.note:
            if note.kind is NoteKind.STOPPED:
                actions.stop(self.state, process)
        for send in step.send:
            message = send.message
            broken = OK
            if isinstance(message, Ack):
                store = self._name(record.process.replica)
                broken = actions.acked(self.state, store, message.epoch, message.end)
            elif isinstance(message, Begin):
                broken = self._switch(process, message.epoch, message.begin)
            if broken:
                return broken
        for report in step.report:
            if isinstance(report, Declined) and not self._is_declined(report.prepared):
                broken = actions.decline(self.state, process, report.prepared)
                if broken:
                    return broken
        return self._begin(process, *begun) if begun else OK

    def _is_declined(self, prepared: int) -> bool:
        entry = self.state.epochs.get(prepared)
        return entry is not None and entry.switched is Switched.DECLINED

    def _switch(self, process: str, prepared: int, x: int) -> str:
        entry = self.state.epochs.get(prepared)
        if entry is not None and entry.switched is Switched.BEGIN_SENT:
            return actions.repeat_begin(self.state, prepared, x)
        return actions.switch(self.state, process, prepared, x)

    def _begin(self, process: str, epoch: int, begin: int) -> str:
        entry = self.state.epochs.get(epoch)
        role = self.state.roles.get(process, NONE)
        if entry is not None and role != NONE:
            follows_itself = entry.view_prepared == epoch and entry.view_open == role
            if follows_itself and entry.switched is Switched.NOT_YET:
                broken = actions.switch(self.state, process, epoch, begin)
                if broken:
                    return broken
        return actions.become_primary(self.state, process, epoch, begin)

    # -------------------------------------------------------------- what became durable
    def _stored(self, record: trace.Stored) -> str:
        store = self._name(record.process.replica)
        for outcome in record.outcomes:
            if not isinstance(outcome, durable.Stored):
                continue
            operation = outcome.operation
            reader = self._operations.get(type(operation))
            if reader is None:
                return f"{type(operation).__name__} has no reading"
            if broken := reader(store, operation):
                return broken
            place = self.state.stores[store]
            state = outcome.state
            if state.promised != place.promised or state.adopted != place.adopted:
                return "a store's promises change by their actions alone"
        return self._differs(store, outcome.state) if record.outcomes else OK

    def _append(self, store: str, operation: durable.AppendBatches) -> str:
        epoch = operation.epoch
        for batch in operation.batches:
            if broken := actions.replicate(self.state, store, epoch, _copy(batch)):
                return broken
        return actions.hear(self.state, epoch, operation.commit)

    def _adopt(self, store: str, operation: durable.AdoptEpoch) -> str:
        if self.state.store(store).adopted == operation.epoch:
            begin = self.state.epochs[operation.epoch].begin
            return OK if begin == operation.begin else "an epoch begins at one offset"
        return actions.adopt(self.state, store, operation.epoch, operation.begin)

    def _promise(self, store: str, operation: durable.PromiseEpoch) -> str:
        if self.state.store(store).promised == operation.fence:
            return OK
        return actions.promise(
            self.state, store, operation.fence, operation.epoch, operation.prepared
        )

    def _learn(self, store: str, operation: durable.LearnMap) -> str:
        broken = actions.learn_open(self.state, store, operation.open_epoch)
        for epoch, seal in operation.seals:
            broken = broken or actions.drop_tail(self.state, store, epoch, seal)
        for epoch in operation.dead:
            begin, _ = self.state.store(store).segments.get(epoch, (0, 0))
            broken = broken or actions.drop_tail(self.state, store, epoch, begin)
        return broken

    def _fill(self, store: str, operation: durable.FillSealed) -> str:
        epoch = operation.epoch
        entry = self.state.epochs.get(epoch)
        if entry is None or (entry.begin, entry.end) != (operation.begin, operation.end):
            return "a sealed segment is filled from its begin to its X"
        broken = actions.learn_open(self.state, store, operation.open_epoch)
        broken = broken or actions.drop_tail(self.state, store, epoch, operation.end)
        for batch in operation.batches:
            broken = broken or actions.fetch(
                self.state, store, epoch, operation.open_epoch, _copy(batch)
            )
        return broken

    # -------------------------------------------------------------- what the LAS committed
    def _committed(self, record: trace.MapCommitted) -> str:
        result, shard = record.result, record.shard
        if not isinstance(result, c.Result) or not result.ok:
            return OK
        if isinstance(record.command, c.RecoverWithGap | c.TrimShard | CoolShard | ReleaseHolder):
            self.is_beyond = True
            return OK
        if self.state.open == NONE and shard.parent is not None:
            return self._child(shard, shard.parent)
        reader = self._commands.get(type(record.command))
        broken = reader(record, record.command, result) if reader is not None else OK
        prepared = shard.prepared.epoch if shard.prepared is not None else NONE
        if not broken and (shard.open.epoch, prepared) != (self.state.open, self.state.prepared):
            return "the map changes by the commands of the protocol alone"
        return broken

    def _create(self, record: trace.MapCommitted, _command: c.CreateLog, _result: c.Result) -> str:
        if self.state.open != NONE:
            return OK
        opened = record.shard.open
        return planning.create(self.state, opened.epoch, self._plan(opened.plan))

    def _child(self, shard: Shard, parent: Parent) -> str:
        """A child begins with the commit of the split (§4.3), if the parent was judged, too."""
        known = self._shards.get(parent.shard)
        if known is not None and not known.is_beyond and known.state.split != parent.end:
            return "a child begins with the commit of the split, at its X"
        return planning.create(self.state, shard.open.epoch, self._plan(shard.open.plan))

    def _prepare(
        self,
        record: trace.MapCommitted,
        command: c.PrepareSegment | c.PrepareSplit,
        result: c.Result,
    ) -> str:
        prepared = record.shard.prepared
        if prepared is None or prepared.epoch != result.epoch:
            return "what was prepared is in the map"
        plan = self._plan(prepared.plan)
        return planning.prepare_segment(self.state, command.epoch, result.epoch, plan)

    def _opened(
        self, record: trace.MapCommitted, command: c.SegmentOpened, _result: c.Result
    ) -> str:
        if record.shard.shard != command.shard:
            return self._begin_child(record, command)
        if self.state.open == command.epoch:
            return OK
        ended = self.state.open
        broken = planning.segment_opened(self.state, command.epoch, command.begin)
        return broken or self._holders(ended, command.holders)

    def _begin_child(self, record: trace.MapCommitted, command: c.SegmentOpened) -> str:
        """The command that splits a shard opens its children, each at its own 0."""
        shard = record.shard
        if self.state.open != NONE:
            return OK
        parent = shard.parent
        if parent is None or (parent.shard, parent.end) != (command.shard, command.begin):
            return "a child begins when its parent is split, and with its X"
        if shard.open.epoch <= command.epoch:
            return "a child's epochs lie above its parent's"
        return planning.create(self.state, shard.open.epoch, self._plan(shard.open.plan))

    def _withdraw(
        self, _record: trace.MapCommitted, command: c.WithdrawSegment, _result: c.Result
    ) -> str:
        entry = self.state.epochs.get(command.epoch)
        if entry is not None and entry.status is Status.DEAD:
            return OK
        return planning.withdraw_segment(self.state, command.epoch)

    def _fence(self, _record: trace.MapCommitted, command: c.FenceSegment, result: c.Result) -> str:
        if result.epoch in self.state.epochs:
            return OK
        return planning.fence_segment(self.state, result.epoch, command.epoch, command.prepared)

    def _open(self, record: trace.MapCommitted, command: c.OpenSegment, _result: c.Result) -> str:
        if self.state.open == command.fence:
            return OK
        ended, prepared = self.state.open, self.state.prepared
        recovered = command.ended_prepared
        y = recovered.end if recovered is not None else None
        plan = self._plan(record.shard.open.plan)
        broken = planning.open_segment(self.state, command.fence, plan, command.ended.end, y)
        broken = broken or self._holders(ended, command.ended.holders)
        if recovered is not None:
            broken = broken or self._holders(prepared, recovered.holders)
        return broken

    def _add_holder(
        self, _record: trace.MapCommitted, command: c.AddHolder, _result: c.Result
    ) -> str:
        return self._holders(command.epoch, (command.holder,))

    def _holders(self, epoch: int, holders: tuple[ReplicaId, ...]) -> str:
        for holder in holders:
            if broken := planning.list_holder(self.state, epoch, self._name(holder)):
                return broken
        return OK


__all__ = ["Judge", "Projection", "Verdict", "judge"]
