"""One shard's appends on their way: joined into batches, sent in a window, again until answered.

Invariants:
- Per shard, records are appended in the order in which they were given to `add` (G8), each at most
  once (G4): every batch has a producer id and a sequence, kept over all its sendings.
- A batch gets a new sequence only if no earlier sending of it can be taken any more: each of them
  was answered with *taken = no*, and what it stood behind is missing under the old producer id.
- When the shard is split (docs/protocol.md §4.3), nothing of it goes to a child before each batch
  that was sent here has its answer; then what is left goes there in the old order (G8). Only
  SPLIT, which proves that a batch is not here, lets its records be sent anew.
- Every record ends once: with a receipt, with `NotAppended` or another refusal that says it was not
  taken, or with `OutcomeUnknown`. Which of them is never guessed: what was sent and not answered is
  unknown.

Must not: wait. It acts on records added, answers, map changes and ticks; all on one event loop.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from peerd.client.directory import Directory
from peerd.client.entries import Entry, Waiting
from peerd.client.errors import (
    ClientClosed,
    NotAppended,
    OffsetMismatch,
    OutcomeUnknown,
    PeerdError,
    error_of_refusal,
)
from peerd.client.options import (
    DAMAGED_TRIES_MAX,
    RETRY_STEP_S,
    SCAN_S,
    SLOW_RETRY_STEP_S,
    STUCK_S,
    ProducerOptions,
)
from peerd.client.payload import BATCH_OVERHEAD_BYTES, build_batch
from peerd.client.streams import Sent, Streams
from peerd.client.values import Receipt
from peerd.core.errors import Reason
from peerd.core.ids import NodeName, ProcessId, ShardId
from peerd.core.limits import PRODUCER_WINDOW_BATCHES
from peerd.core.shard_map import Compression
from peerd.internal.v1 import log_bytes_pb2
from peerd.transport.status import reason_of
from peerd.v1 import batch_pb2, errors_pb2, log_pb2

PRODUCER_ID_BYTES = 16

# `Receipt._make` without a call of Python's for each.
_RECEIPT: Callable[[Iterable[object]], Receipt] = partial(tuple.__new__, Receipt)

# Another primary, or the same one later, may take the batch.
_LOOK_FOR_PRIMARY = frozenset(
    {
        Reason.NOT_PRIMARY,
        Reason.MOVED,
        Reason.FENCED,
        Reason.OUTCOME_UNKNOWN,
        Reason.STORE_FAILED,
        Reason.SHUTTING_DOWN,
        Reason.MAP_UNKNOWN,
        # Our map has it, or it would not have been sent: the peer's map lags behind.
        Reason.UNKNOWN_LOG,
        Reason.UNKNOWN_SHARD,
    }
)
_WAIT = frozenset({Reason.OVERLOADED, Reason.PRODUCER_WINDOW_FULL})
_WAIT_LONG = frozenset({Reason.DISK_RESERVE, Reason.NOT_ENOUGH_PEERS})
# A stream that ends so was refused before any of its appends was looked at.
_STREAM_REFUSED = frozenset(
    {
        Reason.NO_IDENTITY,
        Reason.ROLE_NOT_ALLOWED,
        Reason.WRONG_CLUSTER,
        Reason.NOT_SERVED_YET,
        Reason.REVOKED,
    }
)


@dataclass(slots=True, kw_only=True)
class Batch:
    """What is sent as one. `sending` is the newest one, while it is unanswered."""

    entries: list[Entry]
    append: log_bytes_pb2.AppendRequestBytes
    """What is said of it to the primary; without its bytes."""
    payload: bytes
    record_count: int
    earliest_deadline: float
    sending: Sent | None = None
    was_sent: bool = False
    maybe_taken: bool = False
    """An earlier sending was lost on the way or ended as unknown."""
    done: bool = False
    is_split: bool = False
    """The shard was split and does not have it: its records go to the children."""
    damaged_tries: int = 0
    refusal: errors_pb2.Refusal | None = None
    number: int = 0
    """How many batches were formed before it, of this shard."""

    @property
    def in_doubt(self) -> bool:
        """Some sending of it may be taken, now or later."""
        return self.maybe_taken or (self.sending is not None and self.sending.has_left)


def keeps_window(formed: int, inflight: Sequence[Batch]) -> bool:
    """Whether one more batch, after `formed` ones, is less than W behind the oldest unanswered one
    (docs/protocol.md §3.1): beyond, a retry of that one would not find its entry any more.
    """
    return not inflight or formed - inflight[0].number < PRODUCER_WINDOW_BATCHES


@dataclass(frozen=True, slots=True)
class Target:
    """Where the batches of a shard go. `process` is None for a hint that the map does not show."""

    address: str
    process: ProcessId | None


@dataclass(slots=True)
class _Hint:
    address: str = ""
    epoch: int = 0


@dataclass(slots=True, kw_only=True)
class PipelineStatistics:
    """Counts since the client was opened."""

    batches_sent: int = 0
    batches_sent_again: int = 0
    batches_acknowledged: int = 0
    records_acknowledged: int = 0


class ShardPipeline:
    """The appends of one client to one shard."""

    def __init__(
        self,
        log: str,
        shard: ShardId,
        *,
        directory: Directory,
        streams: Streams,
        options: ProducerOptions,
        released: Callable[[int], None],
        reroute: Callable[[Entry], None],
        statistics: PipelineStatistics,
    ) -> None:
        """`released` gets the bytes of each entry that has ended, `reroute` each that is to go to a
        child of this shard.
        """
        self.log = log
        self.shard = shard
        self._directory = directory
        self._streams = streams
        self._options = options
        self._released = released
        self._reroute = reroute
        self._statistics = statistics
        self.loop = asyncio.get_running_loop()
        self._waiting = Waiting()
        self._inflight: deque[Batch] = deque()
        self._formed = 0
        self._producer = secrets.token_bytes(PRODUCER_ID_BYTES)
        self._next_sequence = 0
        self._hint = _Hint()
        self._target: Target | None = None
        self._pump_is_due = False
        # Due at `_retry_at_s` of the loop's clock: not every loop's handles tell when.
        self._retry: asyncio.Handle | None = None
        self._retry_at_s = 0.0
        # A sequence that will never be sent again is missing before the batches in flight.
        self._hole = False
        self._next_scan = 0.0
        self._progress_at = self.loop.time()

    @property
    def is_idle(self) -> bool:
        """Nothing waits and nothing is under way."""
        return not self._waiting.entries and not self._inflight

    @property
    def has_waiting(self) -> bool:
        """Records wait for room in the window."""
        return bool(self._waiting.entries)

    # -------------------------------------------------------------------------- records come in

    def add(self, entry: Entry) -> None:
        """Takes records; they leave when this turn of the loop is over, with what else came in."""
        waiting = self._waiting
        if not waiting.entries and not self._inflight:
            self._progress_at = self.loop.time()
        waiting.entries.append(entry)
        waiting.size_bytes += len(entry.serialized)
        if not self._pump_is_due:
            self._pump_soon()

    def _pump_soon(self) -> None:
        if not self._pump_is_due:
            self._pump_is_due = True
            self.loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Forms and sends batches while there is room in the window."""
        self._pump_is_due = False
        if self._is_split():
            self._hand_over()
            return
        if self._retry is not None or self._hole:
            return
        waiting = self._waiting.entries
        while waiting and self._has_room() and keeps_window(self._formed, self._inflight):
            # What depends on the end of the shard must know what stands before it.
            conditional = waiting[0].where.expected_offset is not None
            behind_conditional = bool(self._inflight) and self._inflight[-1].append.HasField(
                "expected_offset"
            )
            if self._inflight and (conditional or behind_conditional):
                return
            batch = self._form()
            if batch is None:
                return
            self._inflight.append(batch)
            if not self._send(batch):
                self._retry_in(RETRY_STEP_S)
                return

    def _has_room(self) -> bool:
        """Whether what waits may leave now."""
        options, under_way = self._options, len(self._inflight)
        if under_way < min(options.small_batches_inflight_max, options.batches_inflight_max):
            return True
        is_large = 2 * self._waiting.size_bytes >= options.batch_bytes_max
        return is_large and under_way < options.batches_inflight_max

    def _form(self) -> Batch | None:
        """The next batch; None if nobody wants what waits any more."""
        entries = self._take_all() or self._take_some()
        if not entries:
            return None
        # In a few passes, each without a call of Python's for an entry.
        record_count = sum([entry.record_count for entry in entries])
        for entry in entries:
            entry.is_formed = True
        built = build_batch(
            [entry.serialized for entry in entries], record_count, self._compression()
        )
        append = log_bytes_pb2.AppendRequestBytes(
            log=self.log,
            shard=self.shard,
            payload_crc=built.crc,
            producer_id=self._producer,
            first_sequence=self._next_sequence,
            expected_offset=entries[0].where.expected_offset,
        )
        self._next_sequence += record_count
        self._formed += 1
        return Batch(
            number=self._formed - 1,
            entries=entries,
            append=append,
            payload=built.payload,
            record_count=record_count,
            earliest_deadline=min([entry.deadline for entry in entries]),
        )

    def _take_all(self) -> list[Entry]:
        """All that waits, if that makes one batch as it is; else nothing, and it still waits."""
        waiting, options = self._waiting, self._options
        entries = waiting.entries
        if (
            waiting.size_bytes > options.batch_bytes_max - BATCH_OVERHEAD_BYTES
            or len(entries) > options.batch_records_max
            or sum([entry.record_count for entry in entries]) > options.batch_records_max
            or [e for e in entries if e.where.expected_offset is not None or e.future.cancelled()]
        ):
            return []
        return waiting.take_all()

    def _take_some(self) -> list[Entry]:
        """What makes the next batch, in order, from the first on that somebody still wants."""
        entries: list[Entry] = []
        record_count = taken_bytes = 0
        stands_alone = False
        records_max = self._options.batch_records_max
        bytes_max = self._options.batch_bytes_max - BATCH_OVERHEAD_BYTES
        queue = self._waiting.entries
        while queue:
            entry = queue[0]
            if entry.future.cancelled():
                # Whoever appended it was told that it was not sent.
                self._end(self._waiting.take(), NotAppended("cancelled", taken="no"))
                continue
            size, count = len(entry.serialized), entry.record_count
            if entry.where.expected_offset is not None:
                if entries:
                    break
                stands_alone = True
            elif entries and (
                stands_alone or taken_bytes + size > bytes_max or record_count + count > records_max
            ):
                break
            queue.popleft()
            taken_bytes += size
            record_count += count
            entries.append(entry)
        self._waiting.size_bytes -= taken_bytes
        return entries

    # -------------------------------------------------------------------------- sending

    def _compression(self) -> str:
        """As the producer says; else as the log does, as far as this client has heard."""
        if self._options.compression is not None:
            return self._options.compression
        log = self._directory.cache.logs.get(self.log)
        return Compression.NONE if log is None else log.compression

    def _send(self, batch: Batch) -> bool:
        """Sends a batch to where the shard is; False if nobody knows that."""
        target = self._find_target()
        if target is None:
            return False
        self._target = target
        # The earlier sending may still be taken; its answer, if it is a receipt, still counts.
        batch.maybe_taken = batch.in_doubt
        self._statistics.batches_sent += 1
        if batch.was_sent:
            self._statistics.batches_sent_again += 1
        batch.was_sent = True
        request_id = self._streams.next_request_id()
        sent = Sent(request_id, batch, self, batch.append, batch.payload)
        batch.sending = sent
        self._streams.to(target.address).send(sent)
        return True

    def _find_target(self) -> Target | None:
        entry = self._directory.cache.shards.get(self.shard)
        if entry is None:
            return None
        if self._hint.address and self._hint.epoch > entry.open.epoch:
            return Target(self._hint.address, None)
        primary = entry.open.plan.primary
        address = self._directory.cache.address_of(NodeName(primary.peer))
        return None if address is None else Target(address, primary)

    def _retry_in(self, delay_s: float) -> None:
        """Sends everything unanswered again after `delay_s`, unless that happens sooner anyway."""
        at_s = self.loop.time() + delay_s
        if self._retry is not None:
            if self._retry_at_s <= at_s:
                return
            self._retry.cancel()
        self._retry_at_s = at_s
        self._retry = self.loop.call_later(delay_s, self._resend)

    def _resend(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        for batch in self._inflight:
            if not batch.is_split and not self._send(batch):
                self._retry_in(RETRY_STEP_S)
                return
        self._pump()

    def map_changed(self) -> None:
        """The shard's entry moved, or a node's address did."""
        if self._is_split():
            self._hand_over()
        target = self._find_target()
        if target is None:
            return
        moved = self._target is None or (
            target.address != self._target.address
            # The process that a hint led to is now in the map: the batches are there already.
            or (self._target.process is not None and target.process != self._target.process)
        )
        if self._retry is not None or (self._inflight and moved):
            self._resend()

    # -------------------------------------------------------------------------- splits

    def _is_split(self) -> bool:
        """Whether the shard takes nothing more, by the map or by what its primary said."""
        entry = self._directory.cache.shards.get(self.shard)
        if entry is not None and entry.is_split:
            return True
        return any(batch.is_split for batch in self._inflight)

    def _hand_over(self) -> None:
        """Give the children what is left, once all that was sent here has its answer, and the map
        here has the children.
        """
        entry = self._directory.cache.shards.get(self.shard)
        if any(not batch.is_split for batch in self._inflight):
            return
        if entry is None or not entry.is_split:
            self._directory.refresh()
            return
        left = [entry for batch in self._inflight for entry in batch.entries]
        left += self._waiting.entries
        for batch in self._inflight:
            batch.done, batch.sending = True, None
        self._inflight.clear()
        self._waiting = Waiting()
        for each in left:
            if not each.ended:
                self._route_anew(each)

    def _route_anew(self, entry: Entry) -> None:
        where = f"{self.log}/{self.shard}"
        if entry.future.cancelled():
            self._end(entry, NotAppended("cancelled", taken="no"))
        elif entry.where.shard is not None or entry.where.expected_offset is not None:
            message = f"{where} was split, and the append was for that shard: nothing was appended"
            self._end(entry, NotAppended(message, reason="SPLIT", taken="no"))
        else:
            try:
                self._reroute(entry)
            except PeerdError as error:
                self._end(entry, error)

    # -------------------------------------------------------------------------- answers

    def is_current(self, sent: Sent) -> bool:
        """See `Sender`."""
        batch = sent.batch
        return isinstance(batch, Batch) and not batch.done and batch.sending is sent

    def answered(self, sent: Sent, result: log_pb2.AppendResult) -> None:
        """See `Sender`. A receipt is the truth whichever sending it answers."""
        batch = sent.batch
        if not isinstance(batch, Batch) or batch.done:
            return
        if result.WhichOneof("outcome") == "receipt":
            self._acknowledge(batch, result.receipt)
        elif self.is_current(sent):
            batch.sending = None
            self._refused(batch, result.refusal)

    def lost(self, sent: Sent, why: errors_pb2.Refusal | None) -> None:
        """See `Sender`."""
        batch = sent.batch
        if not isinstance(batch, Batch) or not self.is_current(sent):
            return
        batch.sending = None
        if why is not None:
            batch.refusal = why
            if reason_of(why) in _STREAM_REFUSED:
                self._fail(batch, error_of_refusal(why, is_append=True))
                return
        batch.maybe_taken |= sent.has_left
        self._retry_in(RETRY_STEP_S)

    def _acknowledge(self, batch: Batch, receipt: batch_pb2.Receipt) -> None:
        self._statistics.batches_acknowledged += 1
        self._statistics.records_acknowledged += batch.record_count
        self._progress_at = self.loop.time()
        log, shard, epoch, duplicate = self.log, self.shard, receipt.epoch, receipt.duplicate
        durable_on, timestamp_ms = tuple(receipt.durable_on), receipt.timestamp_ms
        offset = receipt.base_offset
        released = 0
        for entry in batch.entries:
            count, future = entry.record_count, entry.future
            if not entry.ended:
                entry.ended = True
                released += len(entry.serialized)
                if not future.done():
                    fields = (log, shard, epoch, offset, count, durable_on, duplicate, timestamp_ms)
                    future.set_result(_RECEIPT(fields))
            offset += count
        self._released(released)
        self._remove(batch)

    def _refused(self, batch: Batch, refusal: errors_pb2.Refusal) -> None:
        reason = reason_of(refusal)
        batch.refusal = refusal
        if refusal.taken != errors_pb2.TAKEN_NO:
            batch.maybe_taken = True
        if reason == Reason.SPLIT:
            # It proves that no sending of the batch was taken here, or will be.
            batch.is_split, batch.maybe_taken = True, False
            self._pump_soon()
        elif reason in _LOOK_FOR_PRIMARY:
            self._look_for_primary(refusal)
        elif reason in _WAIT:
            self._retry_in(max(RETRY_STEP_S, refusal.retry_after_ms / 1000))
        elif reason in _WAIT_LONG:
            self._retry_in(max(SLOW_RETRY_STEP_S, refusal.retry_after_ms / 1000))
        elif reason == Reason.SEQUENCE_GAP:
            self._gap(refusal)
        elif reason == Reason.PRODUCER_STATE_LOST:
            self._producer_lost(refusal)
        elif reason == Reason.CRC_MISMATCH and batch.damaged_tries < DAMAGED_TRIES_MAX:
            batch.damaged_tries += 1
            self._retry_in(RETRY_STEP_S)
        else:
            self._fail(batch, error_of_refusal(refusal, is_append=True))

    def _look_for_primary(self, refusal: errors_pb2.Refusal) -> None:
        before = self._target
        if refusal.leader:
            self._hint = _Hint(refusal.leader, refusal.epoch)
        target = self._find_target()
        goes_elsewhere = target is not None and (before is None or target.address != before.address)
        # Somebody named the new primary: there at once. Else the map will, or time does.
        self._retry_in(0.0 if goes_elsewhere else RETRY_STEP_S)

    def _gap(self, refusal: errors_pb2.Refusal) -> None:
        """The primary expects an earlier sequence: send again from there, or give the hole up."""
        self._hole |= refusal.next_sequence < self._inflight[0].append.first_sequence
        if not self._hole:
            self._retry_in(RETRY_STEP_S)
        elif all(batch.sending is None for batch in self._inflight):
            self._renumber()

    def _renumber(self) -> None:
        """What stood before these batches will never come: they go on under a new producer id.

        Only those that were answered *taken = no* each time; of the others nobody can be sure.
        """
        for batch in [batch for batch in self._inflight if batch.maybe_taken]:
            self._fail(batch, _unknown(batch))
        self._new_producer()
        for batch in self._inflight:
            batch.append.producer_id = self._producer
            batch.append.first_sequence = self._next_sequence
            self._next_sequence += batch.record_count
        self._retry_in(0.0)

    def _producer_lost(self, refusal: errors_pb2.Refusal) -> None:
        for batch in [batch for batch in self._inflight if not batch.is_split]:
            batch.maybe_taken = True
            self._fail(batch, error_of_refusal(refusal, is_append=True))
        self._new_producer()

    def _new_producer(self) -> None:
        self._producer = secrets.token_bytes(PRODUCER_ID_BYTES)
        self._next_sequence = 0
        self._hole = False

    # -------------------------------------------------------------------------- endings

    def tick(self, now: float) -> None:
        """Ends what is past its deadline, and asks for the map if nothing moves."""
        for batch in [batch for batch in self._inflight if batch.earliest_deadline <= now]:
            self._end_late(batch, now)
        if self._waiting.entries and now >= self._next_scan:
            self._next_scan = now + SCAN_S
            late = [
                entry
                for entry in self._waiting.entries
                if entry.deadline <= now or entry.future.cancelled()
            ]
            for entry in late:
                self._end(entry, NotAppended(self._never_sent(), taken="no"))
            if late:
                self._waiting.drop_ended()
        if self._inflight and now - self._progress_at > STUCK_S:
            self._progress_at = now
            self._directory.refresh()

    def _end_late(self, batch: Batch, now: float) -> None:
        """Ends the entries of `batch` that are past their deadline.

        While others of it are not, it is sent again, with the records of all: nobody can be told
        that his were not appended. Where that would be known a little later, he hears it then.
        """
        late = [entry for entry in batch.entries if entry.deadline <= now]
        if len(late) == len(batch.entries):
            self._fail(batch, self._too_late(batch))
        elif batch.in_doubt or now - batch.earliest_deadline > SCAN_S:
            for entry in late:
                self._end(entry, _unknown(batch))

    def abandon(self, message: str) -> None:
        """The client closes: everything that is unanswered ends, as what it is."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        for batch in tuple(self._inflight):
            taken = "unknown" if batch.in_doubt else "no"
            self._fail(batch, ClientClosed(message, taken=taken))
        while self._waiting.entries:
            self._end(self._waiting.take(), ClientClosed(message, taken="no"))

    def _fail(self, batch: Batch, error: PeerdError) -> None:
        """Ends a batch without a receipt; those behind it will be refused for the gap it leaves."""
        if batch.maybe_taken and error.taken == "no" and not isinstance(error, OffsetMismatch):
            error = _unknown(batch)
        for entry in batch.entries:
            self._end(entry, error)
        in_doubt = batch.in_doubt
        self._remove(batch)
        if not self._inflight:
            # Nobody stands behind it: its sequence can be given again, unless it may be taken.
            if self._hole or in_doubt:
                self._new_producer()
            else:
                self._next_sequence = batch.append.first_sequence

    def _remove(self, batch: Batch) -> None:
        batch.done = True
        # Each names the other: left so, payload and all would stay until the collector comes.
        batch.sending = None
        self._inflight.remove(batch)
        if self._waiting.entries or self._inflight:
            self._pump_soon()

    def _end(self, entry: Entry, error: PeerdError) -> None:
        """Ends an entry without a receipt."""
        if entry.ended:
            return
        entry.ended = True
        self._released(len(entry.serialized))
        # Else whoever appended does not wait any more.
        if not entry.future.done():
            entry.future.set_exception(error)

    def _too_late(self, batch: Batch) -> PeerdError:
        if batch.in_doubt:
            return _unknown(batch)
        if batch.refusal is not None:
            return error_of_refusal(batch.refusal, is_append=True)
        return NotAppended(self._never_sent(), taken="no")

    def _never_sent(self) -> str:
        where = f"at {self._target.address}" if self._target is not None else "anywhere"
        return (
            f"{self.log}/{self.shard}: no answer of a primary {where} in time; the record was not "
            "appended: check the cluster (`peerctl status`), then append it again"
        )


def _unknown(batch: Batch) -> OutcomeUnknown:
    last = f" (last answer: {batch.refusal.message})" if batch.refusal is not None else ""
    return OutcomeUnknown(
        f"{batch.append.log}/{batch.append.shard}: the batch was sent and not acknowledged in "
        f"time{last}: it may be in the log, read to know",
        reason="OUTCOME_UNKNOWN",
        taken="unknown",
    )
