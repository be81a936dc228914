"""One group of operations as one write transaction: the rules, then the rows they mean.

Invariants:
- Operations are judged by `durable.apply` in queue order, each on the state that the ones before it
  left, and their rows go into the one transaction that the writer commits: all of the group becomes
  durable, or nothing of it.
- What is written follows from the state before and after alone: batches that fill what an end grew
  by, rows of what changed, a drop for what a segment lost. A refused operation writes nothing.
- Producer rows change in the same transaction as `table_as_of` (docs/protocol.md §3.1), and are
  built from the headers as they are stored.

Must not: commit, read a clock, or change the writer's state; `changed` is taken over after the
commit, by the writer.
"""

from collections.abc import Callable, Iterator

from peerd.core import durable
from peerd.core.batch import BatchHeader, PlacedBatch
from peerd.core.check import invariant
from peerd.core.chunks import cut
from peerd.core.durable import (
    AppendBatches,
    DropShard,
    DropTrimmed,
    FillSealed,
    InstallTable,
    Outcome,
    Refused,
    StoredShard,
    StoreOperation,
)
from peerd.core.ids import FIRST_OFFSET, Epoch, Offset, ProducerId, ShardId
from peerd.core.limits import PRODUCER_WINDOW_BATCHES
from peerd.core.producer import TableSnapshot, entry_of, pack_row, packed_end
from peerd.storage.environment import Tables, Transaction
from peerd.storage.errors import Corrupt, CorruptRow
from peerd.storage.layout import Bytes, batch_key, batch_rows
from peerd.storage.reads import SegmentReader
from peerd.storage.repair import Repair, Repaired, mend
from peerd.storage.rows import (
    DropRange,
    StoredState,
    TableMark,
    delete_chunks,
    delete_drop,
    delete_producers,
    delete_segment,
    get_producer,
    put_chunk,
    put_drop,
    put_producer,
    put_segment,
    put_shard,
    put_store,
    sweep_producers,
)

# limit: producer rows that are looked at when producers are forgotten: four for each that one entry
# forgets, so that dead rows stay fewer than half of the live ones; about a millisecond
SWEEP_ROWS_PER_COMMIT = 1_024
# Rows that one transaction deletes of dead batches, beside as many as it writes: a millisecond,
# so that appends that share the transaction do not feel it, and still 1 MiB of space a commit; and
# where much is appended, as much is dropped.
DROP_ROWS_PER_COMMIT = 256


class WriteGroup:
    """Collects operations into a write transaction of the caller."""

    def __init__(
        self,
        transaction: Transaction,
        tables: Tables,
        state: StoredState,
        begin_nested: Callable[[Transaction], Transaction],
        chunk_bytes: int,
    ) -> None:
        self._transaction = transaction
        self._tables = tables
        self._state = state
        self._begin_nested = begin_nested
        self._has_repaired = False
        self._chunk_bytes = chunk_bytes
        self._shards: dict[ShardId, StoredShard] = {}
        self._drops = list(state.drops)
        self._rows_written = 0
        self._tables_changed: dict[ShardId, _TableRows] = {}
        self.payload_bytes = 0
        """Payload that the group stores."""

    def apply(self, operation: StoreOperation) -> Outcome:
        """Judge one operation and write its batches. The outcome holds once all is durable."""
        shard = operation.shard
        before = self._shards.get(shard) or self._state.shards.get(shard)
        if before is None:
            before = StoredShard(shard=shard)
        outcome, after = durable.apply(before, operation, self._chunk_bytes)
        if isinstance(outcome, Refused):
            return outcome
        if isinstance(operation, AppendBatches):
            self._store_batches(before, after, operation.epoch, operation.batches)
        else:
            self._drop_what_is_gone(before, after)
            if isinstance(operation, FillSealed):
                self._store_batches(before, after, operation.epoch, operation.batches)
        if isinstance(operation, DropShard) and after != before:
            self._table(shard).forget()
        table_from = before.table_as_of
        if isinstance(operation, InstallTable) and after.table_as_of > table_from:
            self._table(shard).install(operation.table)
            table_from = operation.table.as_of
        if after.table_as_of > table_from:
            # What a trim drops is there until the transaction ends, and the table needs it first.
            told = (
                durable.before_drop(before, operation)
                if isinstance(operation, DropTrimmed)
                else after
            )
            self._extend_table(told, table_from)
        if after != before:
            self._shards[shard] = after
        return outcome

    def repair(self, repair: Repair) -> Repaired:
        """Carry out a repair, all of it or nothing. The result holds once all is durable."""
        state = self._shards.get(repair.shard) or self._state.shards.get(repair.shard)
        nested = self._begin_nested(self._transaction)
        try:
            result = mend(nested, self._tables.batches, state, repair)
            if result.rewritten:
                nested.commit()
                self._has_repaired = True
        finally:
            nested.abort()  # does nothing after a commit
        return result

    def drop_slice(self) -> None:
        """Delete some dead batches, and the mark of a drop that is done."""
        if self._drops:
            drop = self._drops[0]
            if self._delete_batches(drop, DROP_ROWS_PER_COMMIT + self._rows_written):
                self._end_drop(drop)

    def finish(self) -> bool:
        """Write the rows of all that changed. False if there is nothing to commit."""
        for rows in self._tables_changed.values():
            rows.write()
        for shard, after in self._shards.items():
            self._write_shard(self._state.shards.get(shard), after)
        if not self._shards and not self._state.drops and not self._has_repaired:
            return False
        put_store(self._transaction, self._state.store)
        return True

    def take_over(self) -> None:
        """The group is durable: from now on it is the state."""
        self._state.shards.update(self._shards)
        for shard in self._shards:
            self._state.marks[shard] = self._mark(shard)
        self._state.drops[:] = self._drops

    # -------------------------------------------------------------- batches
    def _store_batches(
        self,
        before: StoredShard,
        after: StoredShard,
        epoch: Epoch,
        batches: tuple[PlacedBatch, ...],
    ) -> None:
        """Write the batches; they fill exactly what the segment's end grew by."""
        grown = after.segments[epoch]
        was = before.segments.get(epoch)
        if not batches:
            return
        at = batches[0].base
        # A copy that lay below a trim begins there.
        begins = at == grown.first if was is None else at in (was.end, grown.first)
        invariant(begins, "batches follow what is here", shard=after, epoch=epoch, at=at)
        self._finish_drops(after.shard, epoch, at, grown.end)
        rows: list[tuple[bytes, Bytes]] = []
        for batch in batches:
            invariant(batch.base == at, "batches follow each other", epoch=epoch, at=at)
            rows.extend(batch_rows(after.shard, epoch, batch))
            self.payload_bytes += batch.header.payload_bytes
            at = batch.end
        invariant(at == grown.end, "batches fill the segment", shard=after, epoch=epoch, at=at)
        self._transaction.cursor(self._tables.batches).putmulti(rows)
        self._rows_written += len(rows)
        uncut_bytes = was.uncut_bytes if was is not None and was.end == batches[0].base else 0
        chunks, _ = cut(uncut_bytes, batches, self._chunk_bytes)
        for chunk in chunks:
            put_chunk(self._transaction, self._tables, after.shard, epoch, chunk)

    def _drop_what_is_gone(self, before: StoredShard, after: StoredShard) -> None:
        for epoch, was in before.segments.items():
            now = after.segments.get(epoch)
            if now is was:
                continue
            if now is None:
                self._drop(DropRange(after.shard, epoch, was.first, was.end))
                continue
            if was.first < now.first:
                self._drop(DropRange(after.shard, epoch, was.first, min(now.first, was.end)))
                self._delete_chunks(after.shard, epoch, was.first, now.first)
            if now.end < was.end:
                self._drop(DropRange(after.shard, epoch, now.end, was.end))
                self._delete_chunks(after.shard, epoch, Offset(now.end + 1), was.end)

    # -------------------------------------------------------------- drops
    def _drop(self, drop: DropRange) -> None:
        if drop.begin < drop.end:
            put_drop(self._transaction, self._tables, drop)
            self._drops.append(drop)

    def _delete_chunks(self, shard: ShardId, epoch: Epoch, begin: Offset, end: Offset) -> None:
        delete_chunks(self._transaction, self._tables, shard, epoch, begin, end)

    def _finish_drops(self, shard: ShardId, epoch: Epoch, begin: Offset, end: Offset) -> None:
        """Where batches are stored now nothing dead may lie, and nothing may be dropped later."""
        for drop in list(self._drops):
            same = (drop.shard, drop.epoch) == (shard, epoch)
            if same and drop.begin < end and begin < drop.end:
                self._delete_batches(drop, None)
                self._end_drop(drop)

    def _end_drop(self, drop: DropRange) -> None:
        delete_drop(self._transaction, self._tables, drop)
        self._drops.remove(drop)

    def _delete_batches(self, drop: DropRange, rows_max: int | None) -> bool:
        """Delete up to `rows_max` rows of the range; True if none is left."""
        cursor = self._transaction.cursor(self._tables.batches)
        beyond = batch_key(drop.shard, drop.epoch, drop.end)
        found = cursor.set_range(batch_key(drop.shard, drop.epoch, drop.begin))
        deleted = 0
        while found and bytes(cursor.key()) < beyond:
            if deleted == rows_max:
                return False
            cursor.delete()  # moves on to the next row
            found = bool(cursor.key())
            deleted += 1
        return True

    # -------------------------------------------------------------- producers
    def _extend_table(self, after: StoredShard, begin: Offset) -> None:
        rows = self._table(after.shard)
        try:
            for base, epoch, header in self._headers(after, begin):
                rows.remember(epoch, base, header)
        except (Corrupt, CorruptRow):
            # A row that misses a batch would let that batch in a second time (G4). Without rows
            # this store says that it does not know, and the table is fetched from another.
            rows.forget()

    def _headers(
        self, after: StoredShard, begin: Offset
    ) -> Iterator[tuple[Offset, Epoch, BatchHeader]]:
        for part in durable.table_ranges(after, begin, after.table_as_of):
            reader = SegmentReader(
                self._transaction, self._tables.batches, after.shard, after.segments[part.epoch]
            )
            for base, header in reader.headers(part.begin, part.end):
                yield base, part.epoch, header

    def _table(self, shard: ShardId) -> "_TableRows":
        rows = self._tables_changed.get(shard)
        if rows is None:
            rows = _TableRows(
                self._transaction, self._tables, shard, self._state, self._mark(shard)
            )
            self._tables_changed[shard] = rows
        return rows

    def _mark(self, shard: ShardId) -> TableMark:
        rows = self._tables_changed.get(shard)
        return rows.mark if rows else self._state.marks.get(shard, TableMark())

    # -------------------------------------------------------------- rows
    def _write_shard(self, was: StoredShard | None, now: StoredShard) -> None:
        transaction, tables = self._transaction, self._tables
        mark = self._mark(now.shard)
        if was is None or (
            (was.promised, was.adopted, was.table_as_of, self._state.marks.get(now.shard))
            != (now.promised, now.adopted, now.table_as_of, mark)
        ):
            put_shard(transaction, tables, now, mark)
        old = was.segments if was else {}
        for epoch, segment in now.segments.items():
            if old.get(epoch) != segment:
                put_segment(transaction, tables, now.shard, segment)
        for epoch in old.keys() - now.segments.keys():
            delete_segment(transaction, tables, now.shard, epoch)


class _TableRows:
    """The producer rows of one shard that a group changes; each is written once a group."""

    def __init__(
        self,
        transaction: Transaction,
        tables: Tables,
        shard: ShardId,
        state: StoredState,
        mark: TableMark,
    ) -> None:
        self._transaction = transaction
        self._tables = tables
        self._shard = shard
        self._complete = mark.complete
        self._timestamp_ms = mark.timestamp_ms
        self._digest = mark.digest
        self._forgotten_before = mark.forgotten_before
        self._sweeps = state.sweeps
        self._sweep_due = False
        self._changed: dict[ProducerId, bytes] = {}

    @property
    def mark(self) -> TableMark:
        """What the shard's row is to say, after `write`."""
        return TableMark(self._complete, self._timestamp_ms, self._digest, self._forgotten_before)

    def remember(self, epoch: Epoch, base: Offset, header: BatchHeader) -> None:
        """`producer.remembered` on the packed row, which is neither unpacked nor packed again."""
        self._timestamp_ms = max(self._timestamp_ms, header.timestamp_ms)
        if header.forget_before > self._forgotten_before:
            # Rows up to there count for nothing from now on; they are deleted by and by.
            self._forgotten_before = header.forget_before
            self._sweep_due = True
        if not header.producer:
            return
        row = self._changed.get(header.producer)
        if row is None:
            row, crc = self._stored(header.producer)
            self._digest ^= crc
        if row and packed_end(row) <= self._forgotten_before:
            row = b""
        entry = pack_row((entry_of(epoch, base, header),))
        self._changed[header.producer] = (row + entry)[-PRODUCER_WINDOW_BATCHES * len(entry) :]

    def install(self, table: TableSnapshot) -> None:
        """Take the rows of a table: in place of all, or of those that changed since its `since`."""
        if table.since == 0:
            self.forget()
            self._complete = table.complete
            self._timestamp_ms = 0
            self._forgotten_before = FIRST_OFFSET
        self._forgotten_before = max(self._forgotten_before, table.forgotten_before)
        self._timestamp_ms = max(self._timestamp_ms, table.timestamp_ms)
        for producer, row in table.producers.items():
            if table.since and producer not in self._changed:
                self._digest ^= self._stored(producer)[1]
            self._changed[producer] = pack_row(row)

    def forget(self) -> None:
        """Drop all rows; from now on the table says of itself that it misses some past."""
        delete_producers(self._transaction, self._tables, self._shard)
        self._complete = False
        self._digest = 0
        self._changed = {}
        self._sweep_due = False

    def _stored(self, producer: ProducerId) -> tuple[bytes, int]:
        return get_producer(self._transaction, self._tables, self._shard, producer)

    def write(self) -> None:
        """Put the rows that changed."""
        for producer, row in self._changed.items():
            self._digest ^= put_producer(
                self._transaction, self._tables, self._shard, producer, row
            )
        self._changed = {}
        if self._sweep_due:
            self._sweep()

    def _sweep(self) -> None:
        """Delete some rows of forgotten producers."""
        self._sweep_due = False
        beyond, digest = sweep_producers(
            self._transaction,
            self._tables,
            self._shard,
            forgotten_before=self._forgotten_before,
            begin=self._sweeps.get(self._shard, b""),
            rows_max=SWEEP_ROWS_PER_COMMIT,
        )
        self._sweeps[self._shard] = beyond
        self._digest ^= digest
