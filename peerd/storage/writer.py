"""The storage writer: one thread that commits whatever has queued up, in order, as one transaction.

Invariants:
- Operations are applied, written and answered in the order of `submit`. So what was queued before a
  promise is inside its answer, and nothing after it is stored or acknowledged (§4.2).
- An outcome is delivered only after the commit of its transaction has returned.
- A failed write or commit is never retried: the writer ends, tells `on_failure` once, and delivers
  nothing more. An fsync that is tried again can claim success for pages that are lost.
- The queue is bounded in bytes. Operations without batches pass the bound by
  `CONTROL_BYTES_MAX`, so that a promise is not kept out by a flood of appends.

Must not: be given another thread that writes.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import cast

from peerd.core.durable import (
    AppendBatches,
    FillSealed,
    InstallTable,
    Outcome,
    StoreOperation,
)
from peerd.storage.environment import Environment, Transaction
from peerd.storage.errors import StorageFailed, StoreClosed, WriterOverloaded
from peerd.storage.group import WriteGroup
from peerd.storage.options import CommitMetrics, StorageOptions
from peerd.storage.repair import Repair, Repaired
from peerd.storage.rows import StoredState

Deliver = Callable[[list[tuple[object, Outcome]]], None]
OnRepaired = Callable[[Repaired], None]

# limit: operations of one transaction; the bookkeeping of one stays below 50 ms of Python.
COMMIT_OPERATIONS_MAX = 4_096

# limit: what operations without batches may queue beyond the bound: 16,384 promises.
CONTROL_BYTES_MAX = 8 << 20

# What an operation or a batch costs beside its payload: objects in the queue, rows on disk.
_OVERHEAD_BYTES = 512

# Pages that an operation may touch beside its payload, all trees and their splits counted; address
# space only, so it may be generous.
_PAGES_PER_OPERATION = 64
_TABLE_ENTRY_BYTES = 40


def operation_bytes(operation: StoreOperation | Repair) -> int:
    """About what an operation takes in the queue and on disk."""
    if isinstance(operation, AppendBatches | FillSealed | Repair):
        payload_bytes = sum(len(batch.payload) for batch in operation.batches)
        return payload_bytes + _OVERHEAD_BYTES * (1 + len(operation.batches))
    if isinstance(operation, InstallTable):
        rows = operation.table.producers.values()
        return _OVERHEAD_BYTES * (1 + len(rows)) + sum(map(len, rows)) * _TABLE_ENTRY_BYTES
    return _OVERHEAD_BYTES


class Writer:
    """Owns the state and the only write transaction of an environment."""

    def __init__(
        self,
        directory: Path,
        environment: Environment,
        state: StoredState,
        options: StorageOptions,
        *,
        stored_bytes: int,
        deliver: Deliver,
        on_failure: Callable[[StorageFailed], None],
        before_commit: Callable[[], None] | None,
        metrics: CommitMetrics | None,
    ) -> None:
        self._directory = directory
        self._environment = environment
        self._state = state
        self._options = options
        self._deliver = deliver
        self._on_failure = on_failure
        self._before_commit = before_commit
        self._metrics = metrics
        self._changed = threading.Condition()
        self._queue: deque[tuple[StoreOperation | Repair, object, int]] = deque()
        self._queued_bytes = 0
        self._closing = False
        self._failure: StorageFailed | None = None
        self.stored_bytes = stored_bytes
        """Bytes of pages in use as of the last commit."""
        # A daemon thread: a disk that hangs must not keep the process from exiting.
        self._thread = threading.Thread(target=self._run, name="storage-writer", daemon=True)

    def start(self) -> None:
        """Begin to take operations."""
        self._thread.start()

    @property
    def failure(self) -> StorageFailed | None:
        """Why the store is failed for good, if it is."""
        return self._failure

    @property
    def queued_bytes(self) -> int:
        """What waits to be written."""
        return self._queued_bytes

    def submit(self, operation: StoreOperation, token: object, *, wake: bool = True) -> None:
        """Queue an operation; `token` comes back beside its outcome. From any thread.

        Without `wake` a writer that is idle stays so until the next call that wakes it: `wake`.

        Raises `WriterOverloaded` (nothing was queued), `StorageFailed` or `StoreClosed`.
        """
        self._enqueue(operation, token, wake=wake)

    def wake(self) -> None:
        """Have it begin with what is queued."""
        with self._changed:
            self._changed.notify()

    def repair(self, repair: Repair, done: OnRepaired) -> None:
        """Queue a repair; `done` is called in the writer thread. Raises as `submit`."""
        self._enqueue(repair, done, wake=True)

    def _enqueue(self, operation: StoreOperation | Repair, token: object, *, wake: bool) -> None:
        size_bytes = operation_bytes(operation)
        bound_bytes = self._options.queue_bytes_max
        if size_bytes == _OVERHEAD_BYTES:
            bound_bytes += CONTROL_BYTES_MAX
        with self._changed:
            if self._failure is not None:
                raise self._failure
            if self._closing:
                raise StoreClosed(self._directory)
            if self._queue and self._queued_bytes + size_bytes > bound_bytes:
                raise WriterOverloaded(queued_bytes=self._queued_bytes, queue_bytes_max=bound_bytes)
            self._queue.append((operation, token, size_bytes))
            self._queued_bytes += size_bytes
            if wake:
                self._changed.notify()

    def close(self, timeout_s: float) -> bool:
        """Write and deliver what is queued, then end. False if the disk did not let it in time."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # -------------------------------------------------------------- writer thread
    def _run(self) -> None:
        try:
            while (taken := self._take()) is not None:
                self._commit(*taken)
        except Exception as error:  # noqa: BLE001 whatever it is, nothing may be written after it
            self._fail(error)

    def _take(self) -> tuple[list[tuple[StoreOperation | Repair, object]], int] | None:
        """All that is queued, within the bounds of a transaction; None to end.

        Nothing is waited for while dead batches are to be deleted: then the list may be empty.
        """
        taken: list[tuple[StoreOperation | Repair, object]] = []
        taken_bytes = 0
        with self._changed:
            if not self._state.drops:
                self._changed.wait_for(lambda: self._queue or self._closing)
            if self._closing and not self._queue:
                return None
            while self._queue and len(taken) < COMMIT_OPERATIONS_MAX:
                size_bytes = self._queue[0][2]
                if taken and taken_bytes + size_bytes > self._options.commit_bytes_max:
                    break
                operation, token, _ = self._queue.popleft()
                taken.append((operation, token))
                taken_bytes += size_bytes
            self._queued_bytes -= taken_bytes
        return taken, taken_bytes

    def _commit(
        self, taken: list[tuple[StoreOperation | Repair, object]], taken_bytes: int
    ) -> None:
        pages = _PAGES_PER_OPERATION * (1 + len(taken))
        self._environment.ensure_room(4 * taken_bytes + pages * self._environment.page_bytes)
        transaction = self._environment.begin_write()
        try:
            group = WriteGroup(
                transaction,
                self._environment.tables,
                self._state,
                self._environment.begin_nested,
                self._options.chunk_bytes,
            )
            outcomes: list[tuple[object, Outcome]] = []
            repaired: list[tuple[OnRepaired, Repaired]] = []
            for operation, token in taken:
                if isinstance(operation, Repair):
                    repaired.append((cast(OnRepaired, token), group.repair(operation)))
                else:
                    outcomes.append((token, group.apply(operation)))
            group.drop_slice()
            if group.finish():
                self.stored_bytes = self._environment.tree_bytes(transaction)
                self._make_durable(transaction, group.payload_bytes)
                group.take_over()
        finally:
            transaction.abort()  # does nothing after a commit
        if outcomes:
            self._deliver(outcomes)
        for done, result in repaired:
            done(result)

    def _make_durable(self, transaction: Transaction, payload_bytes: int) -> None:
        started_s = time.perf_counter()
        if self._metrics is not None:
            self._metrics.commit_begun()
        if self._before_commit is not None:
            self._before_commit()
        transaction.commit()
        if self._metrics is not None:
            self._metrics.record_commit((time.perf_counter() - started_s) * 1_000, payload_bytes)

    def _fail(self, error: Exception) -> None:
        failure = StorageFailed(self._directory, f"{type(error).__name__}: {error}")
        failure.__cause__ = error
        with self._changed:
            self._failure = failure
            self._queue.clear()
            self._queued_bytes = 0
        self._on_failure(failure)
