"""The primary's part: order batches, stream them, count acks, acknowledge (docs/protocol.md §3).

A batch is acknowledged when it is durable on `acks` voters. Why what is said to be durable is:
- A voter's end is taken from its `Ack` of this epoch and this store id, or, for the own store, from
  the outcome of the own write; nothing else moves the commit offset, and it moves nowhere else than
  in `_advance`, which alone gives receipts.
- A primary without a vote (*mirror*, §1) has no end of its own among them: "neither its own fsync
  nor its own word counts anywhere". Its own store gets everything like that of any non-voter.
- Batches lie without gap from the begin of the segment on, so an end stands for all below it.

Memory: what is not committed is bounded by `Limits.in_flight_*`; what is committed is kept only
until it is in the own store and has gone out to the replicas that keep up, at most
`recent_bytes_max` of it. A replica that lags further is served from the store.

Must not: decide that a segment ends (`Replica` does), or open a payload.
"""

from collections import OrderedDict, deque
from collections.abc import Callable

from peerd.core import refusals
from peerd.core.batch import BatchHeader, PlacedBatch
from peerd.core.check import InvariantViolation, invariant
from peerd.core.confirm import TailRounds
from peerd.core.durable import AdoptEpoch, AppendBatches, Outcome, Refused
from peerd.core.effects import (
    AppendAccepted,
    Effects,
    LoadBatches,
    Note,
    NoteKind,
    Send,
    Stall,
)
from peerd.core.errors import Refusal, Taken
from peerd.core.events import AppendRequested, EpochConfirmed, TailAsked
from peerd.core.forgetting import Forgetting
from peerd.core.ids import FIRST_OFFSET, NO_EPOCH, Epoch, Offset, ReplicaId, RequestId, Tick
from peerd.core.limits import KEPT_TAIL_WAITERS_MAX, PRODUCERS_PER_SHARD_MAX, RETRIES_PER_BATCH_MAX
from peerd.core.messages import Ack, Adopt, Expect, Frame
from peerd.core.producer import ProducerTable, TableBatch
from peerd.core.progress import Progress, StallWatch, Way
from peerd.core.shard_map import Plan
from peerd.core.situation import Situation, sooner
from peerd.core.split import Closing

HELD_LOOK_MS = 5
"""While a switch waits for what is in flight, its time is looked at this often."""


class Ordered:
    """A batch that has its place and is not committed yet, and who waits for it."""

    __slots__ = ("batch", "event", "retries")

    def __init__(self, event: AppendRequested, batch: PlacedBatch) -> None:
        self.event = event
        self.batch = batch
        self.retries: list[RequestId] = []

    @property
    def requests(self) -> tuple[RequestId, ...]:
        """Everyone who is to be answered."""
        return (self.event.request, *self.retries)


class Primary:
    """The primary of one epoch. It lives until its process learns that the epoch ended."""

    def __init__(
        self, situation: Situation, epoch: Epoch, begin: Offset, plan: Plan, timestamp_ms: int = 0
    ) -> None:
        """Takes no append before `table_found`. `timestamp_ms`: no batch gets an earlier time."""
        self.epoch = epoch
        self.begin = begin
        self.plan = plan
        self.end = begin
        self.commit = begin
        self.own_end = begin
        self.table: ProducerTable | None = None
        self.held = False
        self.higher_promise = NO_EPOCH
        self.timestamp_ms = timestamp_ms
        self._s = situation
        self._over = False
        self._closing = Closing(situation, epoch) if plan.closed else None
        self._uncommitted: OrderedDict[Offset, Ordered] = OrderedDict()
        self._uncommitted_bytes = 0
        self._recent: OrderedDict[Offset, PlacedBatch] = OrderedDict()
        self._recent_bytes = 0
        self._queue: deque[AppendRequested] = deque()
        self._queue_bytes = 0
        self._kept: list[tuple[RequestId, TableBatch]] = []
        self._tails = TailRounds(situation, epoch, plan)
        self._forgetting = Forgetting(situation.limits)
        own = situation.me.replica
        self._ends = dict.fromkeys(plan.voters, begin)
        self._progress = {
            replica: Progress(replica, begin, situation.now, replica in situation.connected)
            for replica in plan.replicas
            if replica != own
        }
        self._own_watch = StallWatch()
        self._reported_at: dict[ReplicaId, Tick] = {}
        self._commit_written = begin
        self._commit_moved_at = situation.now

    def start(self, out: Effects) -> None:
        """Adopt the epoch here and everywhere. Frames follow without waiting for the answers."""
        operation = AdoptEpoch(shard=self._s.shard, epoch=self.epoch, begin=self.begin)
        self._s.submit(operation, self._written, out)
        for progress in self._progress.values():
            self._send_adopt(progress, out)

    # -------------------------------------------------------------- appends
    def append(self, event: AppendRequested, out: Effects) -> None:
        """Order a batch, answer it, or let it wait for the table or for the switch."""
        if self.table is None or self.held:
            self._wait(event, out)
        else:
            self._order(event, self.table, out)

    def table_found(self, table: ProducerTable, out: Effects) -> None:
        """The producer table as of the begin of the segment is here: appends are taken from now on.

        §3.1: "A primary takes its first append only with the table **as of the begin of its
        segment**." (spec mutant `table-not-carried`)
        """
        invariant(table.as_of == self.begin, "table as of the begin", as_of=table.as_of)
        self.table = table
        self.timestamp_ms = max(self.timestamp_ms, table.timestamp_ms)
        while self._queue and not self.held:
            self._order(self._queue.popleft(), table, out)
        self._queue_bytes = sum(len(event.payload) for event in self._queue)

    def known_table(self) -> ProducerTable:
        """The producer table; nothing is ordered, and no switch begins, before it is here."""
        if self.table is None:
            raise InvariantViolation(f"epoch {self.epoch} has no producer table yet")
        return self.table

    def _wait(self, event: AppendRequested, out: Effects) -> None:
        limits = self._s.limits
        full = len(self._queue) >= limits.queued_requests_max
        if full or self._queue_bytes + len(event.payload) > limits.queued_bytes_max:
            refusal = refusals.overloaded("too many appends wait for a change of the shard")
            out.refuse(event.request, refusal)
            return
        self._queue.append(event)
        self._queue_bytes += len(event.payload)

    def _order(self, event: AppendRequested, table: ProducerTable, out: Effects) -> None:
        """§3, steps 2 and 3: refuse what must be refused, or give the batch its place, and hand it
        to the own store and to every replica's stream at the same time.
        """
        header = event.header
        table.pass_time(self._s.now, self._s.limits.pause_ms_max)
        verdict = None
        if header.producer:
            silent = self._forgetting.past_is_silent(table, header.producer)
            verdict = table.judge(header, past_is_silent=silent)
        if isinstance(verdict, TableBatch):
            self._repeat(event, verdict, out)
            return
        if self._closing is not None:
            self._closing.take(event, verdict, out)
            return
        refusal = verdict or self._refusal_of(event)
        forget_before = FIRST_OFFSET
        if refusal is None:
            log_ms = max(self.timestamp_ms, event.now_ms)
            forget_before = self._forgetting.offset_for(table, header.producer, log_ms)
            if not self._forgetting.admit(table, header.producer):
                refusal = refusals.too_many_producers(PRODUCERS_PER_SHARD_MAX)
        if refusal is not None:
            out.refuse(event.request, refusal)
            return
        self._place(event, table, forget_before, out)

    def _place(
        self, event: AppendRequested, table: ProducerTable, forget_before: Offset, out: Effects
    ) -> None:
        header = self._stamped(event, forget_before)
        base, size_bytes = self.end, len(event.payload)
        batch = PlacedBatch(base=base, header=header, payload=event.payload)
        self.end = batch.end
        if header.producer:
            table.order(self.epoch, base, batch.header)
        self._uncommitted[base] = Ordered(event, batch)
        self._uncommitted_bytes += size_bytes
        self._recent[base] = batch
        self._recent_bytes += size_bytes
        self._write((batch,), out)
        frame: Frame | None = None
        for progress in self._progress.values():
            if progress.takes(base, self._s.limits):
                frame = frame or self._frame((batch,))
                progress.sent(self.end, size_bytes, self.commit, self._s.now)
                out.send.append(Send(to=progress.replica, message=frame))

    def _refusal_of(self, event: AppendRequested) -> Refusal | None:
        if event.header.record_count < 1:
            return refusals.empty_batch()
        if event.expected_offset is not None and event.expected_offset != self.end:
            return refusals.offset_mismatch(event.expected_offset, self.end)
        limits = self._s.limits
        too_many = len(self._uncommitted) >= limits.in_flight_batches_max
        if too_many or self._uncommitted_bytes + len(event.payload) > limits.in_flight_bytes_max:
            return refusals.overloaded("the shard has as much in flight as it may")
        return None

    def _stamped(self, event: AppendRequested, forget_before: Offset) -> BatchHeader:
        """The header with what the primary gives: its time, which never decreases within a shard,
        and whom to forget.
        """
        header = event.header
        self.timestamp_ms = max(self.timestamp_ms, event.now_ms)
        return BatchHeader(
            record_count=header.record_count,
            payload_crc=header.payload_crc,
            key_hash_low=header.key_hash_low,
            key_hash_high=header.key_hash_high,
            producer=header.producer,
            first_sequence=header.first_sequence,
            timestamp_ms=self.timestamp_ms,
            payload_bytes=header.payload_bytes,
            forget_before=forget_before,
        )

    # -------------------------------------------------------------- retries
    def _repeat(self, event: AppendRequested, entry: TableBatch, out: Effects) -> None:
        """A retry: "A duplicate gets the first answer again, or waits for it." (§3, G4)"""
        ordered = self._uncommitted.get(entry.base) if entry.epoch == self.epoch else None
        if ordered is not None:
            if len(ordered.retries) < RETRIES_PER_BATCH_MAX:
                ordered.retries.append(event.request)
            else:
                refusal = refusals.overloaded("too many retries of one batch", Taken.UNKNOWN)
                out.refuse(event.request, refusal)
        elif self._is_answerable(entry):
            self._accept(event.request, entry, out)
        elif len(self._kept) < KEPT_TAIL_WAITERS_MAX:
            self._kept.append((event.request, entry))
        else:
            refusal = refusals.overloaded("too many retries wait for copies", Taken.UNKNOWN)
            out.refuse(event.request, refusal)

    def _is_answerable(self, entry: TableBatch) -> bool:
        """§4.2: "The new primary answers a retry of a batch below its begin only when it lies below
        a commit offset that was named in an answer, or when as many stores as the `acks` of its own
        segment have it durably." (spec mutant `retry-answered-early`)

        Only recovery keeps a tail, and it shows in the map from which this primary began; a segment
        that the map has not sealed yet ended by a switch, at its commit offset.
        """
        sealed = self._s.sealed(entry.epoch)
        if sealed is None:
            return True
        known = sealed.known_commit is not None and entry.end <= sealed.known_commit
        return known or len(sealed.holders) >= self.plan.acks

    def _accept(self, request: RequestId, entry: TableBatch, out: Effects) -> None:
        """The first answer again."""
        if entry.epoch == self.epoch:
            durable_on = self._durable_on(entry.end)
        else:
            sealed = self._s.sealed(entry.epoch)
            durable_on = sealed.holders if sealed is not None else ()
        out.reply.append(
            AppendAccepted(
                request=request,
                shard=self._s.shard,
                epoch=entry.epoch,
                base=entry.base,
                record_count=entry.record_count,
                timestamp_ms=entry.timestamp_ms,
                durable_on=durable_on,
                duplicate=True,
            )
        )

    def map_learned(self, out: Effects) -> None:
        """The kept tail may have got more holders; or the map has the split."""
        if self._closing is not None:
            self._closing.map_learned(out)
        waiting, self._kept = self._kept, []
        for request, entry in waiting:
            if self._is_answerable(entry):
                self._accept(request, entry, out)
            else:
                self._kept.append((request, entry))
        self._tails.map_learned(out)

    # -------------------------------------------------------------- the linearizable tail
    def tail(self, event: TailAsked, out: Effects) -> None:
        """Confirm the epoch, then tell the commit offset (`confirm`)."""
        self._tails.ask(event, self.commit, out)

    def epoch_confirmed(self, event: EpochConfirmed, out: Effects) -> None:
        """A voter's answer; a higher promise ends this primary."""
        if event.epoch == self.epoch:
            self.higher_promise = max(self.higher_promise, event.promised)
        self._tails.confirmed(event, self.commit, out)

    # -------------------------------------------------------------- durability
    def _write(self, batches: tuple[PlacedBatch, ...], out: Effects) -> None:
        self._commit_written = self.commit
        operation = AppendBatches(
            shard=self._s.shard, epoch=self.epoch, batches=batches, commit=self.commit
        )
        self._s.submit(operation, self._written, out)

    def _written(self, outcome: Outcome, out: Effects) -> None:
        """An own write returned: the own end counts from now on, if the own store votes.

        Once this primary is over, nothing is acknowledged any more, whatever still becomes durable
        (spec mutant `primary-does-not-stop`).
        """
        if self._over:
            return
        if isinstance(outcome, Refused):
            # What this process orders is refused for a higher promise alone.
            promised = outcome.state.promised
            invariant(promised > self.epoch, "own writes are in order", outcome=outcome)
            self.higher_promise = promised
            return
        self.own_end = outcome.state.segments[self.epoch].end
        self._durable(self._s.me.replica, self.own_end, out)
        self._release()

    def acked(self, sender: ReplicaId, ack: Ack, out: Effects) -> None:
        """§3: "Acks are cumulative … an ack of another epoch or store id counts for nothing."

        (spec mutant `ack-without-epoch`)
        """
        progress = self._progress.get(sender)
        if progress is None or ack.epoch != self.epoch:
            return
        invariant(ack.end <= self.end, "nobody has more than was ordered", ack=ack, end=self.end)
        if progress.acked(ack.end, self._s.now):
            self._durable(sender, progress.durable_end, out)
            self._release()
        self._pump(progress, out)

    def _durable(self, replica: ReplicaId, end: Offset, out: Effects) -> None:
        if end > self._ends.get(replica, end):
            self._ends[replica] = end
            if end > self.commit:
                self._advance(out)

    def _advance(self, out: Effects) -> None:
        """§3, step 5: "The commit offset is the `acks`-th largest of them. Batches below it are
        acknowledged to their clients, in order."
        """
        commit = sorted(self._ends.values(), reverse=True)[self.plan.acks - 1]
        if commit <= self.commit:
            return
        self.commit = commit
        self._commit_moved_at = self._s.now
        table = self.known_table()
        while self._uncommitted:
            ordered = next(iter(self._uncommitted.values()))
            batch = ordered.batch
            if batch.end > commit:
                break
            self._uncommitted.popitem(last=False)
            self._uncommitted_bytes -= len(batch.payload)
            table.commit(batch.end, batch.header)
            durable_on = self._durable_on(batch.end)
            for number, request in enumerate(ordered.requests):
                out.reply.append(
                    AppendAccepted(
                        request=request,
                        shard=self._s.shard,
                        epoch=self.epoch,
                        base=batch.base,
                        record_count=batch.header.record_count,
                        timestamp_ms=batch.header.timestamp_ms,
                        durable_on=durable_on,
                        duplicate=number > 0,
                    )
                )

    def _durable_on(self, end: Offset) -> tuple[ReplicaId, ...]:
        """§3, step 6: the voters that have everything below `end` on disk."""
        return tuple(replica for replica, durable in self._ends.items() if durable >= end)

    @property
    def durable_everywhere(self) -> Offset:
        """Below this all is committed, and on stable storage of every replica of this epoch."""
        ends = [progress.durable_end for progress in self._progress.values()]
        return min(self.commit, self.own_end, *ends)

    def holders(self) -> tuple[ReplicaId, ...]:
        """Replicas that are durable up to the commit offset; a mirror does not name itself."""
        votes = self._s.me.replica in self._ends
        own = (self._s.me.replica,) if votes and self.own_end >= self.commit else ()
        return own + tuple(
            progress.replica
            for progress in self._progress.values()
            if progress.adopted and progress.durable_end >= self.commit
        )

    def lags(self) -> dict[ReplicaId, int]:
        """Records that each other replica has not acknowledged yet."""
        return {each.replica: self.end - each.durable_end for each in self._progress.values()}

    # -------------------------------------------------------------- streams
    def expected(self, sender: ReplicaId, expect: Expect, out: Effects) -> None:
        """§3: the replica "answers with what it expects, and the primary goes back … or, if the
        answer names a higher epoch, stops being primary".
        """
        progress = self._progress.get(sender)
        if progress is None or expect.refused_epoch != self.epoch:
            return
        progress.connected = True
        progress.probes_unanswered = 0
        if expect.promised > self.epoch:
            self.higher_promise = max(self.higher_promise, expect.promised)
        elif progress.way is not Way.PROBE:
            # While a probe is under way its answer decides: the refusals of frames sent before it
            # are many and say nothing new.
            self._probe(progress, out)

    def stream_up(self, replica: ReplicaId, out: Effects) -> None:
        """What was sent before may be lost."""
        progress = self._progress.get(replica)
        if progress is not None:
            progress.connected = True
            progress.probes_unanswered = 0
            self._probe(progress, out)

    def stream_down(self, replica: ReplicaId) -> None:
        """Nothing goes out until the stream is up or an answer comes."""
        progress = self._progress.get(replica)
        if progress is not None:
            progress.connected = False
            progress.probe(self._s.now)

    def batches_loaded(
        self, replica: ReplicaId, begin: Offset, batches: tuple[PlacedBatch, ...], out: Effects
    ) -> None:
        """Batches for a replica that is caught up from the store."""
        progress = self._progress.get(replica)
        if progress is None or progress.way is not Way.CATCH_UP or progress.next != begin:
            return
        progress.loading = False
        if batches:
            size_bytes = sum(len(batch.payload) for batch in batches)
            progress.sent(batches[-1].end, size_bytes, self.commit, self._s.now)
            out.send.append(Send(to=replica, message=self._frame(batches)))
            self._pump(progress, out)

    def batches_unavailable(self, replica: ReplicaId, begin: Offset, out: Effects) -> None:
        """The own copy is damaged: the replica cannot be served from here. Tried again later."""
        progress = self._progress.get(replica)
        if progress is not None and progress.way is Way.CATCH_UP and progress.next == begin:
            progress.probe(self._s.now)
            message = f"{replica.peer} cannot be caught up from offset {begin}: own copy is damaged"
            out.note.append(self._note(NoteKind.BATCHES_DAMAGED, message))

    def _probe(self, progress: Progress, out: Effects, *, by_silence: bool = False) -> None:
        progress.probe(self._s.now, by_silence=by_silence)
        self._send_adopt(progress, out)

    def _send_adopt(self, progress: Progress, out: Effects) -> None:
        adopt = Adopt(shard=self._s.shard, epoch=self.epoch, begin=self.begin, plan=self.plan)
        out.send.append(Send(to=progress.replica, message=adopt))

    def _frame(self, batches: tuple[PlacedBatch, ...]) -> Frame:
        return Frame(shard=self._s.shard, epoch=self.epoch, commit=self.commit, batches=batches)

    def _pump(self, progress: Progress, out: Effects) -> None:
        """Send what the replica lacks: from memory if it is there, else from the store."""
        limits = self._s.limits
        if progress.way is Way.CATCH_UP and progress.next >= self._recent_begin:
            progress.way = Way.STREAM
        while progress.next < self.end and progress.takes(progress.next, limits):
            if progress.next < self._recent_begin:
                progress.way = Way.CATCH_UP
                lag = f"{progress.replica.peer} lags by {self.end - progress.next} records"
                out.note.append(self._note(NoteKind.CATCH_UP, lag))
                break
            batches = self._recent_from(progress.next)
            size_bytes = sum(len(batch.payload) for batch in batches)
            progress.sent(batches[-1].end, size_bytes, self.commit, self._s.now)
            out.send.append(Send(to=progress.replica, message=self._frame(batches)))
        if progress.takes_load(limits) and progress.next < self.own_end:
            progress.loading = True
            out.load.append(
                LoadBatches(
                    shard=self._s.shard,
                    replica=progress.replica,
                    epoch=self.epoch,
                    begin=progress.next,
                    end=self.own_end,
                    bytes_max=limits.catch_up_bytes,
                )
            )

    @property
    def _recent_begin(self) -> Offset:
        """First offset that is in memory; at most `own_end`, so that the store has all below."""
        return next(iter(self._recent)) if self._recent else self.end

    def _recent_from(self, begin: Offset) -> tuple[PlacedBatch, ...]:
        """Batches in memory from `begin` on, at least one, about `catch_up_bytes` of them."""
        batches: list[PlacedBatch] = []
        size_bytes = 0
        while begin < self.end and size_bytes < self._s.limits.catch_up_bytes:
            batch = self._recent[begin]
            batches.append(batch)
            size_bytes += len(batch.payload)
            begin = batch.end
        return tuple(batches)

    def _release(self) -> None:
        """Forget batches that the own store has and nobody who keeps up still needs from memory."""
        if self._recent_begin >= self.own_end:
            return
        limit = self._s.limits.recent_bytes_max
        needed = self.end
        for progress in self._progress.values():
            if progress.way is not Way.PROBE and progress.next < needed:
                needed = progress.next
        while self._recent:
            base, batch = next(iter(self._recent.items()))
            wanted = base >= needed and self._recent_bytes <= limit
            if wanted or batch.end > self.own_end:
                return
            del self._recent[base]
            self._recent_bytes -= len(batch.payload)

    # -------------------------------------------------------------- time
    def tick(self, out: Effects) -> None:
        """Repeat what is unanswered, tell the commit offset, look for stalls."""
        now, limits = self._s.now, self._s.limits
        for progress in self._progress.values():
            progress.watch.look(progress.durable_end, self.end, now)
            self._tick_progress(progress, out)
            self._report_stall(progress.replica, progress.watch, out)
        self._own_watch.look(self.own_end, self.end, now)
        self._report_stall(self._s.me.replica, self._own_watch, out)
        self._tails.tick(self.commit, out)
        idle_ms = now - self._commit_moved_at
        if self._commit_written < self.commit and idle_ms >= limits.commit_persist_ms:
            self._write((), out)

    def _tick_progress(self, progress: Progress, out: Effects) -> None:
        """Nothing is said to a replica without a stream: it would be lost, and `stream_up` says it
        anyway. (A peer that dies leaves hundreds of primaries behind that miss it as a shadow.)
        """
        if not progress.connected:
            return
        now, limits = self._s.now, self._s.limits
        silent_ms = now - progress.answered_at
        unanswered = progress.way is Way.PROBE or not progress.adopted
        if unanswered:
            if silent_ms >= progress.repeat_after_ms(limits.repeat_ms):
                progress.probes_unanswered += 1
                self._probe(progress, out, by_silence=progress.probed_by_silence)
        elif min(silent_ms, progress.watch.stalled_ms) >= 2 * limits.stall_timeout_ms:
            self._probe(progress, out, by_silence=True)
        if (
            progress.way is Way.STREAM
            and progress.told_commit < self.commit
            and now - progress.told_at >= limits.commit_notice_ms
        ):
            progress.told(self.commit, now)
            out.send.append(Send(to=progress.replica, message=self._frame(())))
        if progress.way is not Way.PROBE:
            self._pump(progress, out)

    def _report_stall(self, replica: ReplicaId, watch: StallWatch, out: Effects) -> None:
        if replica not in self._ends or watch.stalled_ms < self._s.limits.stall_timeout_ms:
            return
        now = self._s.now
        if (
            now - self._reported_at.get(replica, -self._s.limits.repeat_ms)
            < self._s.limits.repeat_ms
        ):
            return
        self._reported_at[replica] = now
        out.report.append(
            Stall(
                shard=self._s.shard,
                epoch=self.epoch,
                replica=replica,
                stalled_ms=watch.stalled_ms,
            )
        )

    def wake_in_ms(self) -> int | None:
        """When the next tick is due, counted from the last `now`."""
        return sooner(self._streams_wake_in_ms(), self._tails.wake_in_ms())

    def _streams_wake_in_ms(self) -> int | None:
        limits, commit, end = self._s.limits, self.commit, self.end
        if self.held:
            return HELD_LOOK_MS
        is_behind = False
        for progress in self._progress.values():
            if not progress.connected:
                # All that a tick can do for it is to report that it stalls.
                is_behind |= progress.replica in self._ends and progress.durable_end < end
                continue
            streams = progress.way is Way.STREAM
            if streams and progress.told_commit < commit:
                return limits.commit_notice_ms
            if not streams or not progress.adopted or progress.next < end:
                is_behind = True
        if self._uncommitted or self.own_end < end:
            return self._stall_look_in_ms()
        if is_behind:
            return limits.repeat_ms
        return limits.commit_persist_ms if self._commit_written < self.commit else None

    def _stall_look_in_ms(self) -> int:
        timeout_ms, repeat_ms = self._s.limits.stall_timeout_ms, self._s.limits.repeat_ms
        behind = [each.watch for each in self._progress.values() if each.durable_end < self.end]
        if self.own_end < self.end:
            behind.append(self._own_watch)
        return min(watch.next_look_ms(timeout_ms, repeat_ms) for watch in behind)

    # -------------------------------------------------------------- the end
    def hold(self) -> None:
        """A switch begins: new batches queue, they are not refused."""
        self.held = True

    @property
    def is_drained(self) -> bool:
        """Whether everything that was ordered is committed."""
        return not self._uncommitted

    @property
    def is_impaired(self) -> bool:
        """Whether a voter is gone or stalls: then draining may take for ever. The own store counts
        if it votes: a mirror on a sick disk drains as fast as its voters.
        """
        stalled = any(
            progress.watch.stalled_ms >= self._s.limits.stall_timeout_ms or not progress.connected
            for progress in self._progress.values()
            if progress.replica in self._ends
        )
        own_votes = self._s.me.replica in self._ends
        own_stalls = self._own_watch.stalled_ms >= self._s.limits.stall_timeout_ms
        return stalled or (own_votes and own_stalls)

    def refuse_all(
        self, refusal: Callable[[Taken], Refusal], queued: Callable[[], Refusal], out: Effects
    ) -> None:
        """Answer everyone who still waits; this primary is over."""
        self._over = True
        for ordered in self._uncommitted.values():
            for request in ordered.requests:
                out.refuse(request, refusal(Taken.UNKNOWN))
        for request, _ in self._kept:
            out.refuse(request, refusal(Taken.UNKNOWN))
        for event in self._queue:
            out.refuse(event.request, queued())
        if self._closing is not None:
            self._closing.refuse_all(refusal, queued, out)
        self._tails.refuse_all(queued(), out)
        self._uncommitted.clear()
        self._kept.clear()
        self._queue.clear()

    def continue_in(self, successor: "Primary", out: Effects) -> None:
        """§4.1: "If N is P, it orders that tail again in e′ itself and no client notices."

        The tail begins at `successor.begin`, in the same order: each batch gets its offset again.
        A closed successor orders nothing: who waits for the tail waits there for the split.
        """
        self._over = True
        table = self.known_table()
        table.drop_pending()
        successor.table_found(table, out)
        successor._kept = self._kept
        self._tails.continue_in(successor._tails, successor.commit, out)
        for ordered in self._uncommitted.values():
            if successor._closing is not None:
                successor._closing.inherit(ordered.requests)
                continue
            # They were judged once, in this order; nothing may refuse them now.
            successor._place(ordered.event, table, FIRST_OFFSET, out)
            again = successor._uncommitted[ordered.batch.base]
            again.retries = ordered.retries
        for event in self._queue:
            successor.append(event, out)

    def _note(self, kind: NoteKind, message: str) -> Note:
        return Note(shard=self._s.shard, kind=kind, epoch=self.epoch, message=message)
