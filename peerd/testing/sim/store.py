"""A store in memory that keeps exactly what a real one keeps, and loses what a real one may lose.

Operations queue up; `commit` takes all that is queued, runs `durable.apply` on each in order and
makes the results durable at once, like one group commit. What was queued and not committed is lost
when the process dies (`crash`), what was committed never is.

Invariant: after every commit the content agrees with `state`: the batches of each epoch fill its
[first, end), and the rows are the producer table as of `table_as_of`.

Bytes may rot: a batch whose place is in `damaged` is never given out, as a real store gives out
none that fails its checksum; it keeps its place.

It is the plain model against which other stores can be compared; it must stay simple.
"""

from peerd.core import durable, producer
from peerd.core.batch import BatchHeader, PlacedBatch
from peerd.core.durable import (
    AppendBatches,
    DropShard,
    DropTrimmed,
    FillSealed,
    InstallTable,
    LearnMap,
    Outcome,
    Stored,
    StoredShard,
    StoreOperation,
)
from peerd.core.effects import LoadTable
from peerd.core.ids import FIRST_OFFSET, Epoch, Offset, ProducerId, ShardId
from peerd.core.producer import Row, TableSnapshot


class SimStore:
    """One shard of one store."""

    def __init__(self, shard: ShardId) -> None:
        self.state = StoredShard(shard=shard)
        self.batches: dict[Epoch, dict[Offset, PlacedBatch]] = {}
        self.damaged: set[tuple[Epoch, Offset]] = set()
        self.queue: list[StoreOperation] = []
        self._rows: dict[ProducerId, Row] = {}
        self._timestamp_ms = 0
        self._forgotten_before = FIRST_OFFSET

    def submit(self, operation: StoreOperation) -> None:
        """Queue one operation."""
        self.queue.append(operation)

    def crash(self) -> None:
        """The process died: what was not committed is gone."""
        self.queue.clear()

    def commit(self) -> list[Outcome]:
        """Make everything that is queued durable; the outcomes in order."""
        taken, self.queue = self.queue, []
        return [self.write(operation) for operation in taken]

    # -------------------------------------------------------------- writing
    def write(self, operation: StoreOperation) -> Outcome:
        """Make one operation durable, if the rules allow it."""
        before = self.state
        outcome, after = durable.apply(before, operation)
        if not isinstance(outcome, Stored):
            return outcome
        if isinstance(operation, AppendBatches | FillSealed):
            content = self.batches.get(operation.epoch)
            if content is None:
                content = self.batches[operation.epoch] = {}
            for batch in operation.batches:
                content[batch.base] = batch
                if self.damaged:
                    self.damaged.discard((operation.epoch, batch.base))
        table_from = before.table_as_of
        if isinstance(operation, InstallTable) and table_from < operation.table.as_of:
            self._install(operation.table)
            table_from = operation.table.as_of
        self.state = after
        if table_from < after.table_as_of:
            told = after
            if isinstance(operation, DropTrimmed):
                told = durable.before_drop(before, operation)
            for part in durable.table_ranges(told, table_from, after.table_as_of):
                for base, header in self.headers(part.epoch, part.begin, part.end):
                    self._remember(part.epoch, base, header)
        if isinstance(operation, LearnMap | DropTrimmed | FillSealed | DropShard):
            self._drop()
        return outcome

    def _drop(self) -> None:
        """Only what the state still has stays."""
        for epoch, content in list(self.batches.items()):
            segment = self.state.segments.get(epoch)
            if segment is None:
                del self.batches[epoch]
            elif content and (
                next(reversed(content)) >= segment.end or next(iter(content)) < segment.first
            ):
                self.batches[epoch] = {
                    base: batch
                    for base, batch in content.items()
                    if segment.first <= base < segment.end
                }

    def _install(self, table: TableSnapshot) -> None:
        if table.since == 0:
            self._rows.clear()
        self._rows.update(table.producers)
        self._forget(table.forgotten_before)
        self._timestamp_ms = max(self._timestamp_ms, table.timestamp_ms)

    def _forget(self, forget_before: Offset) -> None:
        self._forgotten_before = max(self._forgotten_before, forget_before)
        self._rows = producer.kept(self._rows, self._forgotten_before)

    def _remember(self, epoch: Epoch, base: Offset, header: BatchHeader) -> None:
        self._timestamp_ms = max(self._timestamp_ms, header.timestamp_ms)
        if header.forget_before > self._forgotten_before:
            self._forget(header.forget_before)
        if header.producer:
            entry = producer.entry_of(epoch, base, header)
            row = self._rows.get(header.producer, ())
            self._rows[header.producer] = producer.remembered(row, entry)

    # -------------------------------------------------------------- reading
    def headers(self, epoch: Epoch, begin: Offset, end: Offset) -> list[tuple[Offset, BatchHeader]]:
        """(base, header) of the batches of `epoch` in [begin, end), in order. Headers never rot."""
        found: list[tuple[Offset, BatchHeader]] = []
        content = self.batches.get(epoch, {})
        while begin < end and begin in content:
            batch = content[begin]
            found.append((begin, batch.header))
            begin = batch.end
        return found

    def read(
        self,
        epoch: Epoch,
        begin: Offset,
        end: Offset,
        bytes_max: int | None = None,
        batches_max: int | None = None,
    ) -> tuple[PlacedBatch, ...]:
        """Batches of `epoch` in [begin, end), at least one if there is one, about `bytes_max` and
        not more than `batches_max` of them.

        Ends before a damaged one.
        """
        found: list[PlacedBatch] = []
        size_bytes = 0
        content = self.batches.get(epoch, {})
        while begin < end and begin in content:
            if bytes_max is not None and found and size_bytes >= bytes_max:
                break
            if batches_max is not None and len(found) >= batches_max:
                break
            if self.damaged and (epoch, begin) in self.damaged:
                break
            batch = content[begin]
            found.append(batch)
            size_bytes += len(batch.payload)
            begin = batch.end
        return tuple(found)

    def table(self) -> TableSnapshot:
        """The durable producer table."""
        return TableSnapshot(
            as_of=self.state.table_as_of,
            timestamp_ms=self._timestamp_ms,
            producers=dict(self._rows),
            forgotten_before=self._forgotten_before,
        )

    def load_table(self, load: LoadTable) -> TableSnapshot | None:
        """What a host answers to `LoadTable`."""
        if load.from_store:
            table = self.table()
        else:
            table = producer.empty_table(load.ranges[0].begin, complete=False)
        if table.as_of > load.as_of:
            return table if load.or_later else None
        for part in load.ranges:
            begin = max(part.begin, table.as_of)
            if begin < part.end:
                headers = self.headers(part.epoch, begin, part.end)
                table = producer.extended(table, part.epoch, headers)
        return table
