"""The store of one peer: one directory, one LMDB environment, one writer, any number of readers.

Invariants:
- Whatever was delivered as `Stored` is on stable storage and stays so (G1); what was not delivered
  may or may not be there after a restart, whole operations at a time.
- A directory is opened by one process at a time, and after an unclean stop only once a child
  process has found it sound.
- Reads see what is durable, and are checked against both checksums.

Must not: decide. The rules are `peerd.core.durable.apply`; who may read what is the caller's.
"""

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Self

import lmdb

from peerd.core.batch import BatchHeader, PlacedBatch
from peerd.core.chunks import Cut, find_cut
from peerd.core.durable import StoredSegment, StoredShard, StoreOperation, TableRange
from peerd.core.ids import Epoch, Offset, ShardId
from peerd.core.producer import TableSnapshot, empty_table, extended, unpack_row
from peerd.storage.data_file import DataFileDamaged
from peerd.storage.directory import (
    StoreDirectory,
    StoreManifest,
    lock_directory,
    new_manifest,
)
from peerd.storage.environment import Environment, Transaction, check_data_file
from peerd.storage.errors import (
    Corrupt,
    CorruptRow,
    NotAStore,
    StorageFailed,
    StoreDamaged,
)
from peerd.storage.layout import shard_key
from peerd.storage.options import CommitMetrics, Space, StorageOptions
from peerd.storage.reads import SegmentReader, find_time
from peerd.storage.repair import Repair
from peerd.storage.rows import (
    StoredState,
    StoreMark,
    put_store,
    read_chunks_backwards,
    read_producers,
    read_segment,
    read_shard,
    read_state,
)
from peerd.storage.verify import QUICK_TIMEOUT_S, Depth, VerifyReport, verify_locked
from peerd.storage.writer import Deliver, OnRepaired, Writer

# The free space of the file system is asked for this often at most: other processes fill it, too.
_SPACE_AGE_MS_MAX = 100.0

# limit: headers that one call gives at most; 4,096 of them are read in about 20 ms.
HEADERS_MAX = 4_096


class Store:
    """Made by `Store.open`. All methods may be called from any thread."""

    def __init__(
        self,
        *,
        directory: StoreDirectory,
        manifest: StoreManifest,
        environment: Environment,
        state: StoredState,
        options: StorageOptions,
        writer: Writer,
        verified: VerifyReport | None,
    ) -> None:
        """Use `Store.open`."""
        self._directory = directory
        self._manifest = manifest
        self._environment = environment
        self._options = options
        self._writer = writer
        # What `close` gives back: the environment, then the lock of the directory.
        self._resources = ExitStack()
        self._space_lock = threading.Lock()
        self._space: Space | None = None
        self._space_at_s = 0.0
        self.shards: dict[ShardId, StoredShard] = dict(state.shards)
        """What was stored when the store was opened; later states come with the outcomes."""
        self.verified = verified
        """What verification found, if the stop before was unclean. Damaged batches may be in it."""

    @classmethod
    def open(
        cls,
        directory: Path,
        options: StorageOptions,
        *,
        deliver: Deliver,
        on_failure: Callable[[StorageFailed], None],
        before_commit: Callable[[], None] | None = None,
        metrics: CommitMetrics | None = None,
    ) -> Self:
        """Open the store in `directory`; an empty or absent directory becomes a new store.

        `deliver` gets (token, outcome) pairs in the order of `submit`, one call per commit, in the
        writer thread. `on_failure` is called once, there too, if the store fails for good.
        `before_commit` runs inside what is timed as a commit; if it raises, the commit failed.

        Raises `StoreLocked`, `NotAStore`, `StoreFormatUnknown`, `StoreDamaged`, `StorageFailed`.
        """
        with ExitStack() as stack:
            locked = stack.enter_context(lock_directory(directory, create=True))
            try:
                if locked.is_new():
                    _create(locked, options)
                manifest = locked.read_manifest()
                locked.clear_creation()
                verified = _verify_if_unclean(locked)
                environment, state, stored_bytes = _open_environment(locked, manifest, options)
                stack.callback(environment.close)
                locked.mark_running()
            except OSError as error:
                raise StorageFailed(directory, str(error)) from error
            writer = Writer(
                directory,
                environment,
                state,
                options,
                stored_bytes=stored_bytes,
                deliver=deliver,
                on_failure=on_failure,
                before_commit=before_commit,
                metrics=metrics,
            )
            store = cls(
                directory=locked,
                manifest=manifest,
                environment=environment,
                state=state,
                options=options,
                writer=writer,
                verified=verified,
            )
            writer.start()
            store._resources = stack.pop_all()
            return store

    # -------------------------------------------------------------- identity
    @property
    def manifest(self) -> StoreManifest:
        """Who this store is."""
        return self._manifest

    def adopt_cluster(self, cluster_id: str) -> None:
        """Write once, durably, to which cluster the store belongs. Raises `WrongCluster`."""
        self._manifest = self._directory.adopt_cluster(self._manifest, cluster_id)

    # -------------------------------------------------------------- writing
    def submit(self, operation: StoreOperation, token: object, *, wake: bool = True) -> None:
        """Queue an operation; its outcome is delivered with `token`.

        Without `wake` it may wait until `wake_writer` is called.

        Raises `WriterOverloaded` (nothing was queued), `StorageFailed` or `StoreClosed`.
        """
        self._writer.submit(operation, token, wake=wake)

    def wake_writer(self) -> None:
        """Have the writer begin with what is queued."""
        self._writer.wake()

    def repair(self, repair: Repair, done: OnRepaired) -> None:
        """Queue the repair of damaged batches (see `peerd.storage.repair`).

        `done` is called in the writer thread once the result is durable, and never if the store
        fails before. Raises as `submit`.
        """
        self._writer.repair(repair, done)

    @property
    def failure(self) -> StorageFailed | None:
        """Why the store is failed for good, if it is."""
        return self._writer.failure

    @property
    def queued_bytes(self) -> int:
        """What waits for the writer, for metrics."""
        return self._writer.queued_bytes

    def space(self) -> Space:
        """Room for batches. Cheap: the file system is asked every 100 ms at most."""
        with self._space_lock:
            now_s = time.monotonic()
            if self._space is None or now_s - self._space_at_s > _SPACE_AGE_MS_MAX / 1_000:
                self._space = self._measure_space()
                self._space_at_s = now_s
            return self._space

    def _measure_space(self) -> Space:
        stored_bytes = self._writer.stored_bytes
        in_file_bytes = max(0, self._environment.file_bytes() - stored_bytes)
        disk_bytes = self._directory.free_bytes() + in_file_bytes
        free_bytes = max(0, min(disk_bytes, self._options.map_size_bytes_max - stored_bytes))
        return Space(
            free_bytes=free_bytes,
            stored_bytes=stored_bytes,
            in_reserve=free_bytes < self._options.reserve_bytes,
        )

    # -------------------------------------------------------------- reading
    def read_batches(
        self,
        shard: ShardId,
        epoch: Epoch,
        from_offset: Offset,
        to_offset: Offset,
        bytes_max: int,
    ) -> list[PlacedBatch]:
        """Consecutive batches, from the one that contains `from_offset`, based below `to_offset`.

        At most `bytes_max` of payload, but at least one batch. Empty only if nothing of the range
        is stored under `epoch`. Raises `Corrupt` if the *first* batch is damaged; a damaged one
        further on ends the list before it.
        """
        batches: list[PlacedBatch] = []
        taken_bytes = 0
        with self._environment.read() as transaction:
            reader = self._reader(transaction, shard, epoch, from_offset)
            if reader is None:
                return batches
            try:
                for batch in reader.batches(from_offset, to_offset):
                    taken_bytes += batch.header.payload_bytes
                    if batches and taken_bytes > bytes_max:
                        break
                    batches.append(batch)
            except Corrupt:
                if not batches:
                    raise
        return batches

    def read_headers(
        self, shard: ShardId, epoch: Epoch, from_offset: Offset, to_offset: Offset
    ) -> list[tuple[Offset, BatchHeader]]:
        """(base, header) of at most `HEADERS_MAX` batches, as `read_batches` without payloads.

        Raises `Corrupt` likewise; payload checksums are not compared.
        """
        headers: list[tuple[Offset, BatchHeader]] = []
        with self._environment.read() as transaction:
            reader = self._reader(transaction, shard, epoch, from_offset)
            if reader is None:
                return headers
            try:
                for header in reader.headers(from_offset, to_offset):
                    headers.append(header)
                    if len(headers) == HEADERS_MAX:
                        break
            except Corrupt:
                if not headers:
                    raise
        return headers

    def base_after(self, shard: ShardId, epoch: Epoch, offset: Offset) -> Offset | None:
        """Where to go on behind a damaged batch: the next base beyond `offset` that has a row, or
        the segment's end. None if nothing is stored under `epoch`. Raises `Corrupt`.
        """
        with self._environment.read() as transaction:
            reader = self._reader(transaction, shard, epoch, offset)
            return None if reader is None else reader.base_after(offset)

    def find_time(self, shard: ShardId, epoch: Epoch, timestamp_ms: int) -> Offset | None:
        """Base of the segment's first batch with at least this time; its end if there is none.

        None if nothing is stored under `epoch`. Raises `Corrupt`.
        """
        with self._environment.read() as transaction:
            segment = self._segment(transaction, shard, epoch, Offset(0))
            if segment is None:
                return None
            reader = SegmentReader(transaction, self._environment.tables.batches, shard, segment)
            return find_time(reader, segment, timestamp_ms)

    def find_cut(
        self, shard: ShardId, epoch: Epoch, *, before: Offset, keep_bytes: int
    ) -> Cut | None:
        """Where the segment may be cut at or below `before` so that `keep_bytes` stay behind.

        None if nothing is stored under `epoch`. Raises `Corrupt`.
        """
        with self._environment.read() as transaction:
            segment = self._segment(transaction, shard, epoch, before)
            if segment is None:
                return None
            try:
                return find_cut(
                    read_chunks_backwards(transaction, self._environment.tables, shard, epoch),
                    first=segment.first,
                    uncut_bytes=segment.uncut_bytes,
                    before=before,
                    keep_bytes=keep_bytes,
                )
            except (CorruptRow, lmdb.Error) as error:
                raise Corrupt(shard, epoch, before, str(error)) from error

    def read_table(self, shard: ShardId) -> TableSnapshot:
        """The durable producer table. Raises `CorruptRow` unless every row of it is sound."""
        with self._environment.read() as transaction:
            return self._table(transaction, shard)

    def load_table(
        self,
        shard: ShardId,
        *,
        from_store: bool,
        ranges: tuple[TableRange, ...],
        as_of: Offset,
        or_later: bool,
    ) -> TableSnapshot | None:
        """Carry out a `LoadTable` of the core; None stands for "this store cannot give it".

        That is so if the durable table is beyond `as_of` and not `or_later`, or if rows or headers
        that it needs are damaged.
        """
        try:
            with self._environment.read() as transaction:
                if from_store:
                    table = self._table(transaction, shard)
                    if table.as_of > as_of:
                        return table if or_later else None
                else:
                    table = empty_table(ranges[0].begin, complete=False)
                for part in ranges:
                    begin = max(part.begin, table.as_of)
                    reader = self._reader(transaction, shard, part.epoch, begin)
                    if reader is not None and begin < part.end:
                        table = extended(table, part.epoch, reader.headers(begin, part.end))
                return table
        except (Corrupt, CorruptRow):
            return None

    def _reader(
        self, transaction: Transaction, shard: ShardId, epoch: Epoch, at: Offset
    ) -> SegmentReader | None:
        segment = self._segment(transaction, shard, epoch, at)
        if segment is None:
            return None
        return SegmentReader(transaction, self._environment.tables.batches, shard, segment)

    def _segment(
        self, transaction: Transaction, shard: ShardId, epoch: Epoch, at: Offset
    ) -> StoredSegment | None:
        try:
            return read_segment(transaction, self._environment.tables, shard, epoch)
        except (CorruptRow, lmdb.Error) as error:
            raise Corrupt(shard, epoch, at, str(error)) from error

    def _table(self, transaction: Transaction, shard: ShardId) -> TableSnapshot:
        tables = self._environment.tables
        try:
            row = read_shard(transaction, tables, shard)
            if row is None:
                return empty_table()
            state, mark = row
            producers = {
                producer: unpack_row(packed)
                for producer, packed in read_producers(transaction, tables, shard, mark)
            }
        except lmdb.Error as error:
            raise CorruptRow("producers", shard_key(shard), str(error)) from error
        return TableSnapshot(
            as_of=state.table_as_of,
            complete=mark.complete,
            timestamp_ms=mark.timestamp_ms,
            producers=producers,
            forgotten_before=mark.forgotten_before,
        )

    # -------------------------------------------------------------- the end
    def close(self, timeout_s: float = 10.0) -> bool:
        """Write and deliver what is queued, then close. False if the disk did not let it in time.

        Without a clean end (a failed store, a disk that hangs) the next open verifies first.
        """
        if not self._writer.close(timeout_s):
            return False
        if self._writer.failure is None:
            self._directory.mark_clean()
        self._resources.close()
        return True


# ------------------------------------------------------------------ opening
def _create(directory: StoreDirectory, options: StorageOptions) -> None:
    manifest = new_manifest()
    directory.begin_creation()
    try:
        with closing(
            Environment(directory.path, map_bytes_max=options.map_size_bytes_max, create=True)
        ) as environment:
            transaction = environment.begin_write()
            put_store(transaction, StoreMark(manifest.store_id, manifest.format_version))
            transaction.commit()
    except lmdb.Error as error:
        raise StorageFailed(directory.path, str(error)) from error
    directory.end_creation(manifest)


def _verify_if_unclean(directory: StoreDirectory) -> VerifyReport | None:
    if not directory.was_stopped_uncleanly():
        return None
    report = verify_locked(directory, Depth.QUICK, timeout_s=QUICK_TIMEOUT_S)
    if not report.usable:
        raise StoreDamaged(directory.path, report.damage[0])
    return report


def _open_environment(
    directory: StoreDirectory, manifest: StoreManifest, options: StorageOptions
) -> tuple[Environment, StoredState, int]:
    """Map the file, once that is known to be safe; read the small rows and the bytes in use."""
    try:
        check_data_file(directory.data_file)
        environment = Environment(directory.path, map_bytes_max=options.map_size_bytes_max)
    except (DataFileDamaged, lmdb.Error) as error:
        raise StoreDamaged(directory.path, str(error)) from error
    try:
        with environment.read() as transaction:
            state = read_state(transaction, environment.tables)
            stored_bytes = environment.tree_bytes(transaction)
    except (CorruptRow, lmdb.Error) as error:
        environment.close()
        raise StoreDamaged(directory.path, str(error)) from error
    if state.store.store_id != manifest.store_id:
        environment.close()
        raise NotAStore(
            directory.path,
            f"data.mdb is that of store {state.store.store_id},"
            f" the manifest of {manifest.store_id}",
        )
    return environment, state, stored_bytes
