"""One shard on one peer: the protocol without IO (docs/protocol.md §3, §4).

Rules, in the manner of the page:
1. Everything that changes a shard's state is decided here or in the roles that this module holds
   (`Primary`, `Shadow`, `Candidate`, `Switch`, `Handed`). IO layers translate; they never decide.
2. What a store takes is decided by `durable.apply`, at the place in the queue where the write
   happens. A reply or an `Ack` that says *durable* comes from a `WriteDone` and, at the primary,
   from acks of the current epoch alone.
3. Being primary is not durable. A process "starts as primary only from a committed `OpenSegment` or
   from a `Begin` that names its boot id, and once per epoch" (spec mutants `restart-resumes`,
   `begin-twice`): `_last_begun` grows, and nothing in the store makes a primary.
4. A shadow is a role, not a class of peer: every replica stores what its adopted epoch sends.
5. Time is `Ticked`. Nothing here can block, and nothing here is random. Shards are not merged.
"""

from collections.abc import Callable

from peerd.core import events as ev
from peerd.core import handover, refusals
from peerd.core.durable import (
    AdoptEpoch,
    DropShard,
    FillSealed,
    InstallTable,
    Outcome,
    PromiseEpoch,
    Stored,
    StoredShard,
    StoreOperation,
)
from peerd.core.effects import (
    BeginAnswer,
    ConfirmAnswer,
    Declined,
    Effects,
    EpochAnswer,
    HasBegunAnswer,
    Note,
    NoteKind,
    PromiseAnswered,
    SegmentOpened,
    Step,
    TableAnswer,
    TailAnswered,
)
from peerd.core.errors import Refusal, Taken
from peerd.core.ids import (
    DELETED_EPOCH,
    FIRST_OFFSET,
    NO_EPOCH,
    Epoch,
    Offset,
    ProcessId,
    ReplicaId,
    Tick,
)
from peerd.core.learning import learned
from peerd.core.limits import Limits
from peerd.core.messages import Begin, Ready
from peerd.core.primary import Primary
from peerd.core.producer import ProducerTable, TableSnapshot
from peerd.core.reports import Reports
from peerd.core.shadow import Shadow
from peerd.core.shard_map import Plan, Segment, Shard, stable_end
from peerd.core.situation import Situation, sooner
from peerd.core.table_search import TableSearch, serve_table, sources_of


class Replica:
    """Decides for one shard on one peer. Events in, effects out: `core.events`, `core.effects`."""

    def __init__(self, me: ProcessId, stored: StoredShard, limits: Limits) -> None:
        """`stored` is what the store has when the process starts, or a new `StoredShard`."""
        self._s = Situation(me, stored, limits)
        self._reports = Reports(self._s)
        self._shadow = Shadow(self._s, self._reports.met_higher)
        self._primary: Primary | None = None
        self._search: TableSearch | None = None
        self._switch: handover.Switch | None = None
        self._handed: handover.Handed | None = None
        self._candidate: handover.Candidate | None = None
        self._last_begun = NO_EPOCH
        self._ready_early: Ready | None = None
        self._handlers: dict[type, Callable[..., None]] = {
            ev.AppendRequested: self._append,
            ev.WriteDone: self._write_done,
            ev.AckReceived: self._ack,
            ev.FrameReceived: self._frame,
            ev.Ticked: self._tick,
            ev.AdoptReceived: self._adopt,
            ev.ExpectReceived: self._expect,
            ev.StreamUp: self._stream_up,
            ev.StreamDown: self._stream_down,
            ev.MapLearned: self._map_learned,
            ev.ShardDeleted: self._deleted,
            ev.PromiseReceived: self._promise,
            ev.ReadyReceived: self._ready,
            ev.BeginReceived: self._begin,
            ev.BeginAnswered: self._begin_answered,
            ev.HasBegunAsked: self._has_begun,
            ev.BatchesLoaded: self._batches_loaded,
            ev.BatchesUnavailable: self._batches_unavailable,
            ev.TableLoaded: self._table_arrived,
            ev.TableFetched: self._table_arrived,
            ev.TableUnavailable: self._table_unavailable,
            ev.TableAsked: self._table_asked,
            ev.TailAsked: self._tail_asked,
            ev.ConfirmReceived: self._confirm,
            ev.EpochConfirmed: self._epoch_confirmed,
        }

    def handle(self, event: ev.Event) -> Step:
        """Take one event, return all that it causes.

        Raises `InvariantViolation` if the store or a peer contradicts the protocol: the process
        must stop. It stops nothing else; a refusal is a reply.
        """
        out = Effects()
        self._handlers[type(event)](event, out)
        if self._primary is not None:
            self._look_after_primary(self._primary, out)
        return out.step()

    # ------------------------------------------------------------------ what the host may ask
    @property
    def is_primary(self) -> bool:
        """Whether this process orders the shard's appends now."""
        return self._primary is not None

    def leads(self, epoch: Epoch) -> bool:
        """Whether this process orders `epoch`, and is not just handing the shard over."""
        primary, switch = self._primary, self._switch
        return primary is not None and primary.epoch == epoch and not (switch and switch.draining)

    @property
    def lags(self) -> dict[ReplicaId, int]:
        """Records that each other replica of an own open segment has not acknowledged."""
        return {} if self._primary is None else self._primary.lags()

    @property
    def epoch(self) -> Epoch:
        """The own epoch as primary, else the adopted one; 0 if none."""
        return self._primary.epoch if self._primary is not None else self._s.stored.adopted

    @property
    def committed(self) -> Offset:
        """Largest offset known here to be committed in `epoch`; a replica may lag behind it."""
        if self._primary is not None:
            return self._primary.commit
        return self._shadow.committed(self._s.stored.adopted)

    @property
    def leader_hint(self) -> ProcessId | None:
        """The process that most likely is primary, as far as it is not a dead one of this store."""
        if self._primary is not None:
            return self._s.me
        epoch, leader = NO_EPOCH, None
        if self._s.map is not None:
            epoch, leader = self._s.map.open.epoch, self._s.map.open.plan.primary
        if self._shadow.plan is not None and self._s.stored.adopted > epoch:
            epoch, leader = self._s.stored.adopted, self._shadow.plan.primary
        if self._handed is not None and self._handed.begin.epoch > epoch:
            leader = self._handed.begin.plan.primary
        return leader if leader is None or leader.replica != self._s.me.replica else None

    @property
    def stored(self) -> StoredShard:
        """The durable state as of the last `WriteDone`."""
        return self._s.stored

    @property
    def under_way(self) -> tuple[StoreOperation, ...]:
        """Operations that were handed to the store and whose outcome has not come, in order."""
        return self._s.under_way

    @property
    def wake_at(self) -> Tick | None:
        """When a `Ticked` is due; None: only after another event."""
        role = self._shadow if self._primary is None else self._primary
        wait_ms = sooner(role.wake_in_ms(), self._reports.wake_in_ms())
        is_begin_open = self._handed is not None and not self._handed.answered
        if is_begin_open or self._candidate or self._switch or self._search:
            wait_ms = sooner(wait_ms, self._s.limits.repeat_ms)
        return None if wait_ms is None else Tick(self._s.now + wait_ms)

    def readable_limit(self, epoch: Epoch) -> Offset | None:
        """First offset of `epoch` that this store may not serve; None: nothing of it is here.

        §7: "Any holder of a sealed segment serves it up to its X, but of a kept tail only what lies
        below a commit offset that was named in an answer, or what is known to be durable on `acks`
        stores … Any replica of the open one serves up to the smaller of its end and the commit
        offset that it heard in its adopted epoch." (G12; spec mutants `kept-tail-read-early`,
        `old-tail-read`, `own-end-read`)
        """
        segment = self._s.stored.segments.get(epoch)
        if segment is None:
            return None
        sealed = self._s.sealed(epoch)
        if sealed is None:
            if self._primary is not None and epoch == self._primary.epoch:
                return min(segment.end, self._primary.commit)
            return min(segment.end, self._shadow.committed(epoch))
        return min(segment.end, stable_end(sealed, segment.commit))

    def trim_limit(self, epoch: Epoch) -> Offset | None:
        """Up to where `epoch` may be trimmed as far as this process can tell; None: it cannot.

        §8: of a sealed segment what may be read; of the open one what is committed and durable on
        every replica, which its primary alone can tell.
        """
        if self._s.sealed(epoch) is not None:
            return self.readable_limit(epoch)
        primary = self._primary
        if primary is None or primary.epoch != epoch or self._s.map_open != epoch:
            return None
        return primary.durable_everywhere

    # ------------------------------------------------------------------ the linearizable tail
    def _tail_asked(self, event: ev.TailAsked, out: Effects) -> None:
        self._s.now = event.now
        if self._primary is not None:
            self._primary.tail(event, out)
        else:
            out.reply.append(TailAnswered(request=event.request, refusal=self._elsewhere()))

    def _confirm(self, event: ev.ConfirmReceived, out: Effects) -> None:
        """§4.5: "round, and the epoch it has promised". Only what is durable is a promise; one that
        is still on its way to the store has not been answered, so no fence rests on it yet.
        """
        promised = self._s.stored.promised
        out.reply.append(
            ConfirmAnswer(request=event.request, round=event.message.round, promised=promised)
        )

    def _epoch_confirmed(self, event: ev.EpochConfirmed, out: Effects) -> None:
        self._s.now = event.now
        if self._primary is not None:
            self._primary.epoch_confirmed(event, out)

    # ------------------------------------------------------------------ appends and streams
    def _append(self, event: ev.AppendRequested, out: Effects) -> None:
        self._s.now = event.now
        if self._primary is not None:
            self._primary.append(event, out)
        else:
            out.refuse(event.request, self._elsewhere())

    def _elsewhere(self) -> Refusal:
        """Why this process, which is not primary, takes nothing, and where to go."""
        if self._handed is not None and self._handed.begin.epoch > self._s.map_open:
            begin = self._handed.begin
            return refusals.moved(begin.plan.primary, begin.epoch, Taken.NO)
        return refusals.not_primary(self.leader_hint)

    def _write_done(self, event: ev.WriteDone, out: Effects) -> None:
        operation = event.outcome.operation
        if isinstance(operation, FillSealed):
            self._s.stored = event.outcome.state
            return
        self._s.next_outcome(event.outcome, out)
        if isinstance(operation, AdoptEpoch) and self._s.map is not None:
            # The map may have sealed the epoch while its adoption was on its way to the store.
            self._learn(self._s.map, out)

    def _adopt(self, event: ev.AdoptReceived, out: Effects) -> None:
        self._shadow.adopt(event.sender, event.message, out)

    def _frame(self, event: ev.FrameReceived, out: Effects) -> None:
        self._shadow.frame(event.sender, event.message, out)

    def _ack(self, event: ev.AckReceived, out: Effects) -> None:
        if self._primary is not None:
            self._primary.acked(event.sender, event.message, out)

    def _expect(self, event: ev.ExpectReceived, out: Effects) -> None:
        if self._primary is not None:
            self._primary.expected(event.sender, event.message, out)

    def _stream_up(self, event: ev.StreamUp, out: Effects) -> None:
        self._s.connected.add(event.replica)
        if self._primary is not None:
            self._primary.stream_up(event.replica, out)

    def _stream_down(self, event: ev.StreamDown, _out: Effects) -> None:
        self._s.connected.discard(event.replica)
        if self._primary is not None:
            self._primary.stream_down(event.replica)

    def _batches_loaded(self, event: ev.BatchesLoaded, out: Effects) -> None:
        if self._primary is not None and event.epoch == self._primary.epoch:
            self._primary.batches_loaded(event.replica, event.begin, event.batches, out)

    def _batches_unavailable(self, event: ev.BatchesUnavailable, out: Effects) -> None:
        if self._primary is not None and event.epoch == self._primary.epoch:
            self._primary.batches_unavailable(event.replica, event.begin, out)

    def _look_after_primary(self, primary: Primary, out: Effects) -> None:
        """What follows from any event: being refused, a table found, a drain that is over."""
        if primary.higher_promise > primary.epoch:
            self._reports.met_higher(primary.epoch, primary.higher_promise)
            self._stop(primary.higher_promise, out)
            return
        if primary.table is None:
            self._look_for_table(primary, out)
        switch = self._switch
        if switch is not None and switch.draining and (primary.is_drained or switch.is_over):
            self._finish_switch(primary, switch, out)

    # ------------------------------------------------------------------ becoming primary
    def _may_begin(self, epoch: Epoch, plan: Plan) -> bool:
        """Once per epoch, not below a promise, and only by a plan that names this very process."""
        if plan.primary != self._s.me or epoch <= self._last_begun:
            return False
        if self._s.promised > epoch:
            self._reports.met_higher(epoch, self._s.promised)
            return False
        return True

    def _become_primary(
        self, epoch: Epoch, begin: Offset, plan: Plan, timestamp_ms: int, out: Effects
    ) -> Primary:
        """From here on this process orders `epoch`; the table may still be missing."""
        if self._primary is not None:
            self._stop(epoch, out)
        self._last_begun = epoch
        self._candidate = None
        self._search = None
        self._switch = None
        primary = Primary(self._s, epoch, begin, plan, timestamp_ms)
        self._primary = primary
        primary.start(out)
        message = f"from offset {begin} with {len(plan.voters)} voters, {plan.acks} acks"
        out.note.append(self._note(NoteKind.BECAME_PRIMARY, epoch, message))
        return primary

    def _look_for_table(self, primary: Primary, out: Effects) -> None:
        """§3.1: the table as of the begin, from the own store or a holder. The search begins when
        the adoption is durable: then the own store has heard where the segment before was sealed.
        """
        if self._search is None and (
            self._s.stored.adopted == primary.epoch or primary.begin == FIRST_OFFSET
        ):
            sources = sources_of(self._s.map, self._s.me.replica) if self._s.map else ()
            self._search = TableSearch(self._s, primary.begin, sources)
            self._search.start(out)
        if self._search is None or self._search.found is None:
            return
        table = self._search.found
        self._search = None
        if not table.complete:
            message = "nobody has its past: producers that are not known will be refused"
            out.note.append(self._note(NoteKind.TABLE_INCOMPLETE, primary.epoch, message))
        primary.table_found(ProducerTable(table), out)

    def _begin(self, event: ev.BeginReceived, out: Effects) -> None:
        """§4.1: "N is primary of e′ from the moment it has `Begin`, unless it has promised more
        than e′." Repeated, it is answered again; it names a boot id, so a restarted process never
        takes it (spec mutant `begin-twice`).
        """
        self._s.now = event.now
        begin = event.message
        if begin.boot == self._s.me.boot and self._may_begin(begin.epoch, begin.plan):
            candidate = self._candidate
            table: TableSnapshot | None = begin.table if begin.table.since == 0 else None
            if candidate is not None and candidate.prepared.epoch == begin.epoch:
                table = candidate.whole_table(begin.table)
            if table is not None:
                self._begin_with(begin, table, out)
        out.reply.append(
            BeginAnswer(
                request=event.request,
                epoch=begin.epoch,
                begun=begin.epoch == self._last_begun,
                promised=self._s.promised,
            )
        )

    def _begin_with(self, begin: Begin, table: TableSnapshot, out: Effects) -> None:
        primary = self._become_primary(
            begin.epoch, begin.begin, begin.plan, begin.timestamp_ms, out
        )
        if table.complete:
            operation = InstallTable(shard=self._s.shard, table=begin.table)
            self._s.submit(operation, _ignore, out)
        primary.table_found(ProducerTable(table), out)
        self._report_opened(begin.epoch, begin.begin, begin.holders, out)

    def _report_opened(
        self, epoch: Epoch, begin: Offset, holders: tuple[ReplicaId, ...], out: Effects
    ) -> None:
        opened = SegmentOpened(shard=self._s.shard, epoch=epoch, begin=begin, holders=holders)
        self._reports.opened = opened
        out.report.append(opened)

    def _has_begun(self, event: ev.HasBegunAsked, out: Effects) -> None:
        opened = self._reports.opened
        if opened is not None and opened.epoch == event.epoch:
            answer = HasBegunAnswer(
                request=event.request, begun=True, begin=opened.begin, holders=opened.holders
            )
        else:
            answer = HasBegunAnswer(request=event.request, begun=False)
        out.reply.append(answer)

    # ------------------------------------------------------------------ ceasing to be primary
    def _stop(self, promised: Epoch, out: Effects) -> None:
        """A higher epoch ended the own one: nobody here knows what of the rest was taken."""
        primary = self._primary
        if primary is None:
            return
        self._primary = None
        self._search = None
        self._switch = None
        self._shadow.hear(primary.epoch, primary.commit)
        hint = self.leader_hint
        primary.refuse_all(
            lambda _taken: refusals.fenced(primary.epoch, promised, hint),
            lambda: refusals.not_primary(hint),
            out,
        )
        message = f"epoch {promised} was promised; committed up to {primary.commit}"
        out.note.append(self._note(NoteKind.STOPPED, primary.epoch, message))

    def _promise(self, event: ev.PromiseReceived, out: Effects) -> None:
        """§4.2: a replica makes the promise durable "**through the same writer queue as its
        batches** (so that what it acknowledged before is inside the answer, and nothing after it is
        stored or acknowledged), stops being primary of any older epoch, and answers **per epoch**".
        """
        operation = PromiseEpoch(
            shard=self._s.shard, fence=event.fence, epoch=event.epoch, prepared=event.prepared
        )
        self._s.promise_queued = max(self._s.promise_queued, event.fence)

        def told(outcome: Outcome, out: Effects) -> None:
            if not isinstance(outcome, Stored):
                out.reply.append(
                    PromiseAnswered(
                        request=event.request,
                        promised=outcome.state.promised,
                        open=None,
                        prepared=None,
                    )
                )
                return
            if self._primary is not None and self._primary.epoch < event.fence:
                self._stop(event.fence, out)
            answer = PromiseAnswered(
                request=event.request,
                promised=outcome.state.promised,
                open=self._epoch_answer(outcome.state, event.epoch),
                prepared=self._epoch_answer(outcome.state, event.prepared)
                if event.prepared != NO_EPOCH
                else None,
            )
            out.reply.append(answer)

        self._s.submit(operation, told, out)

    def _epoch_answer(self, stored: StoredShard, epoch: Epoch) -> EpochAnswer:
        """§4.2: "for e its end in e, or "not adopted", which counts as e's begin whatever older
        tail it has" (spec mutant `end-without-epoch`).
        """
        segment = stored.segments.get(epoch)
        if segment is None:
            return EpochAnswer(epoch=epoch, adopted=False)
        heard = self._shadow.committed(epoch)
        return EpochAnswer(
            epoch=epoch,
            adopted=True,
            begin=segment.begin,
            end=segment.end,
            commit=max(segment.commit, min(heard, segment.end)),
        )

    # ------------------------------------------------------------------ the map
    def _map_learned(self, event: ev.MapLearned, out: Effects) -> None:
        self._s.now = event.now
        shard, known = event.shard, self._s.map
        if known is not None and shard.open.epoch < known.open.epoch:
            return
        self._s.learn_map(shard)
        opened = shard.open
        self._learn(shard, out)
        self._reports.learned(shard)
        if self._primary is not None and self._primary.epoch < opened.epoch:
            self._stop(opened.epoch, out)
        if self._handed is not None and self._handed.begin.epoch <= opened.epoch:
            self._handed = None
        if opened.begin is not None and self._may_begin(opened.epoch, opened.plan):
            self._become_primary(opened.epoch, opened.begin, opened.plan, 0, out)
        if self._primary is not None:
            self._primary.map_learned(out)
        self._prepared_learned(shard, out)

    def _deleted(self, event: ev.ShardDeleted, out: Effects) -> None:
        """§8.2: "A primary that hears of it stops", and the store drops all of it. What waits is
        answered as when a fence ends an epoch: nobody here knows what of it was taken.
        """
        self._s.now = event.now
        self._s.promise_queued = DELETED_EPOCH
        self._s.forget_map()
        self._stop(DELETED_EPOCH, out)
        self._candidate = self._handed = self._ready_early = None
        self._reports = Reports(self._s)
        self._s.submit(DropShard(shard=self._s.shard), _ignore, out)

    def _learn(self, shard: Shard, out: Effects) -> None:
        """Tell the store what the map says of its segments (§3: only the map lets it drop)."""
        for operation in learned(shard, self._s.stored, self._s.me.replica):
            self._s.submit(operation, _ignore, out)

    def _prepared_learned(self, shard: Shard, out: Effects) -> None:
        """Become the candidate, or prepare to hand over (§4.1, step 1)."""
        prepared, primary = shard.prepared, self._primary
        self._decline_lost(shard, out)
        candidate = self._candidate
        if candidate is not None and (
            candidate.prepared.epoch <= shard.open.epoch
            or candidate.prepared.epoch in shard.dead_epochs
        ):
            self._candidate = candidate = None
        if prepared is None or prepared.epoch <= self._last_begun:
            return
        if primary is not None and shard.open.epoch == primary.epoch:
            self._prepare_switch(primary, prepared)
            return
        is_known = candidate is not None and candidate.prepared.epoch >= prepared.epoch
        if not is_known and self._may_begin(prepared.epoch, prepared.plan):
            self._candidate = handover.Candidate(self._s, prepared, shard)
            self._candidate.start(out)

    # ------------------------------------------------------------------ the switch at P
    def _prepare_switch(self, primary: Primary, prepared: Segment) -> None:
        """P learned of e′; it will switch once, and never to what it declined."""
        switch, declined = self._switch, self._reports.declined
        if switch is not None and switch.prepared.epoch >= prepared.epoch:
            return
        if declined is not None and declined.prepared >= prepared.epoch:
            return
        self._switch = switch = handover.Switch(prepared, self._s.now)
        if prepared.plan.primary == self._s.me:
            if primary.table is not None:
                self._drain(primary, switch)
        elif self._ready_early is not None:
            self._take_ready(self._ready_early)

    def _decline_lost(self, shard: Shard, out: Effects) -> None:
        """§4.6: what a lost commit prepared is not switched to any more by who has the new map, so
        that it can say that it leads.
        """
        primary, switch = self._primary, self._switch
        if primary is None or switch is None or switch.draining or shard.prepared is not None:
            return
        if shard.skipped_with(switch.prepared.epoch) is not None:
            self._decline(primary, switch.prepared, "the commit that prepared it is lost", out)

    def _ready(self, event: ev.ReadyReceived, _out: Effects) -> None:
        self._ready_early = event.message
        self._take_ready(event.message)

    def _take_ready(self, ready: Ready) -> None:
        """N can take over, if it is the one that the map names."""
        switch, primary = self._switch, self._primary
        if switch is None or primary is None or primary.table is None or switch.draining:
            return
        prepared = switch.prepared
        if ready.epoch == prepared.epoch and ready.sender == prepared.plan.primary:
            switch.table_as_of = ready.table_as_of
            self._drain(primary, switch)

    def _drain(self, primary: Primary, switch: handover.Switch) -> None:
        """§4.1, step 2: "P stops new batches (they queue, they are not refused) and gives those in
        flight `drain_timeout` to commit (none if a voter is gone or stalls)."
        """
        primary.hold()
        switch.draining = True
        switch.is_over = primary.is_impaired

    def _finish_switch(self, primary: Primary, switch: handover.Switch, out: Effects) -> None:
        """§4.1, step 2: "Then it **stops being primary of e, for good**, and only then reads X: X
        is its commit offset. It sends N `Begin(e′, X)`, acknowledges what lies below X, and answers
        everything at or beyond X, queued or in flight, with `MOVED(N, e′)`."

        What lies below X was acknowledged when the commit offset moved; once `_primary` is gone
        nothing of e is acknowledged any more (spec mutants `primary-does-not-stop`, `x-is-end`).
        """
        prepared, table = switch.prepared, primary.known_table()
        if prepared.plan.primary == self._s.me and self._s.promised > prepared.epoch:
            self._stop(self._s.promised, out)
            return
        self._primary = None
        self._switch = None
        self._shadow.hear(primary.epoch, primary.commit)
        begin, holders = primary.commit, primary.holders()
        message = f"to epoch {prepared.epoch} of {prepared.plan.primary.peer} at offset {begin}"
        out.note.append(self._note(NoteKind.SWITCHED, primary.epoch, message))
        if prepared.plan.primary == self._s.me:
            successor = self._become_primary(
                prepared.epoch, begin, prepared.plan, primary.timestamp_ms, out
            )
            primary.continue_in(successor, out)
            self._report_opened(prepared.epoch, begin, holders, out)
            return
        to = prepared.plan.primary
        self._handed = handover.Handed(
            Begin(
                shard=self._s.shard,
                old_epoch=primary.epoch,
                epoch=prepared.epoch,
                boot=to.boot,
                begin=begin,
                plan=prepared.plan,
                table=table.snapshot(switch.table_as_of),
                holders=holders,
                timestamp_ms=primary.timestamp_ms,
            ),
            to.replica,
        )
        self._handed.tick(self._s, out)

        def moved(taken: Taken) -> Refusal:
            return refusals.moved(to, prepared.epoch, taken)

        primary.refuse_all(moved, lambda: moved(Taken.NO), out)

    def _begin_answered(self, event: ev.BeginAnswered, _out: Effects) -> None:
        """N has begun; or it has promised more, and the LAS must fence: P stays stopped."""
        handed = self._handed
        if handed is None or event.epoch != handed.begin.epoch or event.sender != handed.to:
            return
        handed.answered = True
        if not event.begun and event.promised > event.epoch:
            self._reports.met_higher(event.epoch, event.promised)

    def _decline(self, primary: Primary, prepared: Segment, why: str, out: Effects) -> None:
        """§4.1: "If that does not come in time, P declines e′"; §4.5: "it will never switch to e′
        and remembers that while it lives" (spec mutant `decline-forgotten`). Epochs grow, so the
        newest one that was declined stands for all before it.
        """
        self._switch = None
        declined = Declined(
            shard=self._s.shard,
            epoch=primary.epoch,
            prepared=prepared.epoch,
            process=self._s.me,
            why=why,
        )
        self._reports.declined = declined
        out.report.append(declined)
        out.note.append(self._note(NoteKind.DECLINED, prepared.epoch, why))

    # ------------------------------------------------------------------ the producer table
    def _table_arrived(self, event: ev.TableLoaded | ev.TableFetched, out: Effects) -> None:
        self._s.table_answered(event.token, event.table, True, out)

    def _table_unavailable(self, event: ev.TableUnavailable, out: Effects) -> None:
        self._s.table_answered(event.token, None, event.answered, out)

    def _table_asked(self, event: ev.TableAsked, out: Effects) -> None:
        """The primary has it in memory as of its commit offset; else the own store may have it."""
        primary = self._primary
        table = primary.table if primary is not None else None
        if event.or_later and table is not None and table.as_of >= event.as_of:
            answer = TableAnswer(request=event.request, table=table.snapshot(event.since))
            out.reply.append(answer)
        else:
            serve_table(self._s, event, out)

    # ------------------------------------------------------------------ time and reports
    def _tick(self, event: ev.Ticked, out: Effects) -> None:
        self._s.now = event.now
        primary, switch = self._primary, self._switch
        if primary is not None:
            primary.tick(out)
            if self._search is not None:
                self._search.tick(out)
            if switch is not None:
                self._tick_switch(primary, switch, out)
        else:
            self._shadow.tick(out)
        if self._candidate is not None:
            self._candidate.tick(out)
        if self._handed is not None:
            self._handed.tick(self._s, out)
        self._reports.tick(out)

    def _tick_switch(self, primary: Primary, switch: handover.Switch, out: Effects) -> None:
        if switch.draining:
            switch.tick(self._s.now, self._s.limits)
        elif switch.prepared.plan.primary == self._s.me and primary.table is not None:
            self._drain(primary, switch)
        elif self._s.now - switch.learned_at >= self._s.limits.ready_timeout_ms:
            self._decline(primary, switch.prepared, "the next primary was not ready in time", out)

    def _note(self, kind: NoteKind, epoch: Epoch, message: str) -> Note:
        return Note(shard=self._s.shard, kind=kind, epoch=epoch, message=message)


def _ignore(_outcome: Outcome, _out: Effects) -> None:
    """For writes whose outcome shows in the stored state alone."""
