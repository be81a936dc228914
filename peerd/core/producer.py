"""Who appended what last: the producer table (docs/protocol.md §3.1, G4).

The table maps (producer, sequence) to (epoch, base offset) for the last W batches of each producer.
Sequences number records: a batch with `first_sequence` s and n records is followed by s + n. A
retry is the same (s, n) again; it gets the first answer again. A producer sends nothing
that is W batches or more behind its oldest unanswered one, so a retry always finds its entry.

Invariants:
- A `TableSnapshot` is exact as of `as_of`: it covers the batches of the log below that offset and
  none at or beyond it. So all tables as of the same offset are equal, and none is ever undone.
- A table that is not `complete` misses some past: what it has is true, but a producer that it does
  not know may have written there, and is refused. It does not guess.
- A producer is forgotten by an entry in the stream alone: `forget_before` in a batch's header. A
  table drops, at that batch and before the batch's own entry, every row whose newest batch ends at
  or below it; `forgotten_before` is the largest so far. So tables as of one offset stay equal.
- A table that is not complete becomes so by an entry that reaches up to where it began: then who is
  not known is forgotten, whatever the past was.
- Of a producer that a table with `forgotten_before` does not know, only a batch with sequence 0 is
  taken for a new one (`forgetting` says why it is one); another is refused.
- `ProducerTable` keeps what is committed and what is only ordered apart, so that the table as of
  the commit offset can be read off at any time, without what may be cut off (spec mutant
  `table-keeps-tail`).

Must not: forget a producer by itself (a clock would make tables differ). When a primary writes such
an entry is decided in `forgetting`.
"""

import struct
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import field

from peerd.core import refusals
from peerd.core.batch import BatchHeader
from peerd.core.check import invariant
from peerd.core.errors import Refusal
from peerd.core.ids import FIRST_OFFSET, Epoch, Offset, ProducerId, Tick
from peerd.core.limits import PRODUCER_WINDOW_BATCHES, PRODUCERS_PER_SHARD_MAX
from peerd.core.value import value

_ROW_ENTRY = struct.Struct(">QIQQq")
"""first_sequence, record_count, epoch, base, timestamp_ms."""


# ------------------------------------------------------------------ plain values
@value(frozen=True, slots=True)
class TableBatch:
    """One remembered batch of a producer."""

    first_sequence: int
    record_count: int
    epoch: Epoch
    base: Offset
    timestamp_ms: int

    @property
    def end(self) -> Offset:
        """First offset after the batch."""
        return Offset(self.base + self.record_count)

    @property
    def next_sequence(self) -> int:
        """The sequence that follows the batch."""
        return self.first_sequence + self.record_count


Row = tuple[TableBatch, ...]
"""One producer's batches, oldest first, at most `PRODUCER_WINDOW_BATCHES`."""


@value(frozen=True, slots=True, kw_only=True)
class TableSnapshot:
    """The table exactly as of `as_of`, but for producers that did not change at or after `since`.

    `since` 0: the whole table. `timestamp_ms` is the largest time of all batches below `as_of`,
    below which no later batch may fall (0: none is known). Every row's newest batch ends beyond
    `forgotten_before` (0: nobody was ever forgotten). `producers` must not be changed by whoever
    holds the snapshot.
    """

    as_of: Offset
    complete: bool = True
    timestamp_ms: int = 0
    producers: Mapping[ProducerId, Row] = field(default_factory=dict)
    since: Offset = FIRST_OFFSET
    forgotten_before: Offset = FIRST_OFFSET


def empty_table(as_of: Offset = FIRST_OFFSET, *, complete: bool = True) -> TableSnapshot:
    """The table of a log that begins at 0; or, not `complete`, of one whose past below `as_of` is
    lost.
    """
    invariant(
        as_of == 0 or not complete, "a complete table below batches is not empty", as_of=as_of
    )
    return TableSnapshot(as_of=as_of, complete=complete)


def entry_of(epoch: Epoch, base: Offset, header: BatchHeader) -> TableBatch:
    """What the table remembers of a batch."""
    return TableBatch(header.first_sequence, header.record_count, epoch, base, header.timestamp_ms)


def remembered(row: Row, entry: TableBatch) -> Row:
    """`row` with `entry` as its newest, cut to the window: what a store does per batch."""
    return (*row, entry)[-PRODUCER_WINDOW_BATCHES:]


def kept(producers: Mapping[ProducerId, Row], forget_before: Offset) -> dict[ProducerId, Row]:
    """`producers` without those that an entry with `forget_before` makes forgotten."""
    return {name: row for name, row in producers.items() if row[-1].end > forget_before}


def extended(
    table: TableSnapshot, epoch: Epoch, headers: Iterable[tuple[Offset, BatchHeader]]
) -> TableSnapshot:
    """`table` moved over consecutive batches (base, header) of `epoch` from its `as_of` on."""
    producers = dict(table.producers)
    as_of = table.as_of
    timestamp_ms = table.timestamp_ms
    forgotten_before = table.forgotten_before
    began = as_of
    for base, header in headers:
        invariant(base == as_of, "table is extended without gap", as_of=as_of, base=base)
        as_of = Offset(base + header.record_count)
        timestamp_ms = max(timestamp_ms, header.timestamp_ms)
        if header.forget_before > forgotten_before:
            forgotten_before = header.forget_before
            producers = kept(producers, forgotten_before)
        if header.producer:
            row = producers.get(header.producer, ())
            producers[header.producer] = remembered(row, entry_of(epoch, base, header))
    return TableSnapshot(
        as_of=as_of,
        complete=table.complete or forgotten_before >= began > 0,
        timestamp_ms=timestamp_ms,
        producers=producers,
        since=table.since,
        forgotten_before=forgotten_before,
    )


def merged(base: TableSnapshot, changes: TableSnapshot) -> TableSnapshot | None:
    """`base` brought forward by `changes`; None if they do not meet (`changes.since` beyond
    `base`).
    """
    if changes.since == 0 or base.as_of > changes.as_of:
        return changes if changes.since == 0 else None
    if base.as_of < changes.since or not base.complete or base.since:
        return None
    forgotten_before = max(base.forgotten_before, changes.forgotten_before)
    return TableSnapshot(
        as_of=changes.as_of,
        complete=changes.complete,
        timestamp_ms=max(base.timestamp_ms, changes.timestamp_ms),
        producers=kept({**base.producers, **changes.producers}, forgotten_before),
        forgotten_before=forgotten_before,
    )


def changed_since(table: TableSnapshot, since: Offset) -> TableSnapshot:
    """What of a whole `table` changed at or after offset `since`; the inverse of `merged`."""
    if since == 0:
        return table
    invariant(table.since == 0, "changes are taken from a whole table", since=table.since)
    return TableSnapshot(
        as_of=table.as_of,
        complete=table.complete,
        timestamp_ms=table.timestamp_ms,
        producers={
            producer: row for producer, row in table.producers.items() if row[-1].end > since
        },
        since=since,
        forgotten_before=table.forgotten_before,
    )


def pack_row(row: Row) -> bytes:
    """One row as bytes for a store; `unpack_row` gives it back."""
    return b"".join(
        _ROW_ENTRY.pack(
            entry.first_sequence, entry.record_count, entry.epoch, entry.base, entry.timestamp_ms
        )
        for entry in row
    )


def unpack_row(data: bytes | memoryview) -> Row:
    """Inverse of `pack_row`. Raises `struct.error` on a wrong length."""
    return tuple(
        TableBatch(sequence, count, Epoch(epoch), Offset(base), timestamp_ms)
        for sequence, count, epoch, base, timestamp_ms in _ROW_ENTRY.iter_unpack(data)
    )


def packed_end(data: bytes) -> Offset:
    """First offset after the newest batch of a packed row, which is not empty."""
    _, count, _, base, _ = _ROW_ENTRY.unpack_from(data, len(data) - _ROW_ENTRY.size)
    return Offset(base + count)


# ------------------------------------------------------------------ the primary's table
class _Producer:
    """One producer as its primary sees it: what is committed, and what is only ordered."""

    __slots__ = ("committed", "heard_ms", "pending")

    def __init__(self, row: Row = (), heard_ms: int = 0) -> None:
        self.heard_ms = heard_ms
        self.committed: deque[TableBatch] = deque(row, maxlen=PRODUCER_WINDOW_BATCHES)
        self.pending: deque[TableBatch] = deque()


class ProducerTable:
    """The table of a primary: as of the commit offset, and beside it what is ordered since.

    Bounds: `PRODUCER_WINDOW_BATCHES` committed and as many pending batches per producer; who may
    come when it `is_full` is decided in `forgetting`. `active_ms` is the time that was seen to pass
    since the primary began.
    """

    __slots__ = (
        "_incomplete_before",
        "_now",
        "_producers",
        "active_ms",
        "as_of",
        "forgotten_before",
        "timestamp_ms",
    )

    def __init__(self, table: TableSnapshot) -> None:
        """Takes over from `table`, the table as of the begin of the primary's segment."""
        invariant(table.since == 0, "a primary begins with a whole table", since=table.since)
        self.as_of = table.as_of
        self.timestamp_ms = table.timestamp_ms
        self.forgotten_before = table.forgotten_before
        self.active_ms = 0
        self._now: Tick | None = None
        self._incomplete_before = None if table.complete else table.as_of
        # In the order of their last committed batch, so that what changed lately is found fast.
        self._producers: OrderedDict[ProducerId, _Producer] = OrderedDict(
            (producer, _Producer(row))
            for producer, row in sorted(table.producers.items(), key=lambda item: item[1][-1].end)
        )

    def judge(
        self, header: BatchHeader, *, past_is_silent: bool = False
    ) -> TableBatch | Refusal | None:
        """What a batch of a producer is: None if it is the next one and may be ordered, the entry
        of the batch that it repeats, or why it is refused.

        `past_is_silent`: the entry that comes with the batch would make the table whole.
        """
        producer = self._producers.get(header.producer)
        sequence = header.first_sequence
        if producer is None:
            some_forgotten = not self.complete or self.forgotten_before > 0
            if not (self.complete or past_is_silent) or (some_forgotten and sequence != 0):
                return refusals.producer_state_lost()
            return refusals.sequence_gap(sequence, 0) if sequence != 0 else None
        producer.heard_ms = self.active_ms
        newest = producer.pending[-1] if producer.pending else producer.committed[-1]
        following = newest.next_sequence
        if sequence == following:
            if len(producer.pending) >= PRODUCER_WINDOW_BATCHES:
                return refusals.producer_window_full(PRODUCER_WINDOW_BATCHES)
            return None
        if sequence > following:
            return refusals.sequence_gap(sequence, following)
        for entries in (producer.pending, producer.committed):
            for entry in reversed(entries):
                if entry.first_sequence == sequence and entry.record_count == header.record_count:
                    return entry
        return refusals.sequence_too_old(sequence, following)

    def order(self, epoch: Epoch, base: Offset, header: BatchHeader) -> None:
        """The batch, judged None, was given its place."""
        producer = self._producers.get(header.producer)
        if producer is None:
            producer = self._producers[header.producer] = _Producer(heard_ms=self.active_ms)
        producer.pending.append(entry_of(epoch, base, header))

    def commit(self, end: Offset, header: BatchHeader) -> None:
        """The next ordered batch, which ends at `end`, is committed. In offset order."""
        self.as_of = end
        self.timestamp_ms = max(self.timestamp_ms, header.timestamp_ms)
        if header.forget_before > self.forgotten_before:
            self._forget(header.forget_before)
        if header.producer:
            producer = self._producers[header.producer]
            entry = producer.pending.popleft()
            invariant(entry.end == end, "producers commit in offset order", entry=entry, end=end)
            producer.committed.append(entry)
            self._producers.move_to_end(header.producer)

    def _forget(self, forget_before: Offset) -> None:
        self.forgotten_before = forget_before
        if self._incomplete_before is not None and forget_before >= self._incomplete_before:
            self._incomplete_before = None
        for name, producer in self._committed_before(forget_before):
            producer.committed.clear()
            if not producer.pending:
                del self._producers[name]

    def _committed_before(self, end: Offset) -> list[tuple[ProducerId, _Producer]]:
        """Whose newest committed batch ends at or below `end`, least recently used first."""
        found = []
        for name, producer in self._producers.items():
            if producer.committed:
                if producer.committed[-1].end > end:
                    break
                found.append((name, producer))
        return found

    def drop_pending(self) -> None:
        """Back to the table as of the commit offset: what was only ordered is ordered anew."""
        for name, producer in list(self._producers.items()):
            producer.pending.clear()
            if not producer.committed:
                del self._producers[name]

    def snapshot(self, since: Offset = FIRST_OFFSET) -> TableSnapshot:
        """The table as of the commit offset, but for producers unchanged at or after `since`."""
        producers: dict[ProducerId, Row] = {}
        for name, producer in reversed(self._producers.items()):
            if producer.committed:
                if producer.committed[-1].end <= since:
                    break
                producers[name] = tuple(producer.committed)
        return TableSnapshot(
            as_of=self.as_of,
            complete=self.complete,
            timestamp_ms=self.timestamp_ms,
            producers=producers,
            since=since,
            forgotten_before=self.forgotten_before,
        )

    @property
    def complete(self) -> bool:
        """Whether it covers the whole past."""
        return self._incomplete_before is None

    # -------------------------------------------------------------- who may be forgotten
    def pass_time(self, now: Tick, step_ms_max: int) -> None:
        """Time was seen to pass, at most `step_ms_max` since the last call."""
        if self._now is not None:
            self.active_ms += min(max(0, now - self._now), step_ms_max)
        self._now = max(now, self._now) if self._now is not None else now

    def __contains__(self, producer: ProducerId) -> bool:
        return producer in self._producers

    @property
    def is_full(self) -> bool:
        """Whether it remembers as many producers as it may."""
        return len(self._producers) >= PRODUCERS_PER_SHARD_MAX

    def silent_until(
        self,
        *,
        but: ProducerId,
        heard_before_ms: int,
        used_before_ms: int | None,
        count_max: int,
    ) -> tuple[Offset, int]:
        """The end of the newest batch of the longest run of least recently used producers that are
        all silent, and their number, at most `count_max`; (0, 0) if there is none.

        Silent is who is not `but`, has nothing under way, was not heard at or after
        `heard_before_ms` of `active_ms`, and whose newest batch is older than `used_before_ms`.
        """
        end, count = FIRST_OFFSET, 0
        for name, producer in self._producers.items():
            if not producer.committed:
                continue
            newest = producer.committed[-1]
            used = used_before_ms is not None and newest.timestamp_ms >= used_before_ms
            heard = producer.heard_ms >= heard_before_ms
            if count == count_max or name == but or producer.pending or heard or used:
                break
            end, count = newest.end, count + 1
        return end, count

    def silent_past(self, *, but: ProducerId, heard_before_ms: int) -> Offset:
        """Where a table that is not complete began, if all whom it knows from before are silent as
        in `silent_until`; 0 otherwise.
        """
        end = self._incomplete_before
        if end is None or heard_before_ms <= 0:
            return FIRST_OFFSET
        for name, producer in self._committed_before(end):
            if name == but or producer.pending or producer.heard_ms >= heard_before_ms:
                return FIRST_OFFSET
        return end
