"""What can go wrong with a store: one class per reason a caller would act on.

Every message is one line: what was wrong, where, what to do. `Corrupt` is about bytes that were
stored and are damaged now; it is never used for what was not stored.
"""

from pathlib import Path

from peerd.core.ids import Epoch, Offset, ShardId


class StorageError(Exception):
    """Base of all errors of this package."""


class NotAStore(StorageError):
    """The directory holds other things, or only a part of a store. Nothing in it was changed."""

    def __init__(self, directory: Path, why: str) -> None:
        super().__init__(
            f"{directory} is not a peerd data directory: {why};"
            " name an empty directory or the peer's own"
        )


class StoreFormatUnknown(StorageError):
    """The store was written by a newer version, or by another LMDB engine. Nothing was changed."""

    def __init__(self, directory: Path, why: str) -> None:
        super().__init__(f"{directory}: {why}; start it with the version that wrote it, or newer")


class StoreLocked(StorageError):
    """Another process has the directory open."""

    def __init__(self, directory: Path) -> None:
        super().__init__(f"{directory} is in use by another process; stop that one first")


class WrongCluster(StorageError):
    """The store belongs to another cluster. Its batches mean nothing in this one."""

    def __init__(self, directory: Path, *, ours: str, theirs: str) -> None:
        super().__init__(
            f"{directory} belongs to cluster {ours}, not to {theirs};"
            " name another data directory, or the other cluster's LAS"
        )


class StoreDamaged(StorageError):
    """Verification failed: this store must not be opened. Replace it by a new, empty directory."""

    def __init__(self, directory: Path, why: str) -> None:
        super().__init__(
            f"{directory} is damaged: {why};"
            " move it away and start the peer with an empty directory"
        )


class StorageFailed(StorageError):
    """A write or a commit failed. The store is failed for good: nothing is retried, ever.

    A retried fsync can claim success for pages that the kernel has dropped already.
    """

    def __init__(self, directory: Path, why: str) -> None:
        super().__init__(
            f"storage in {directory} failed: {why}; check the disk, then start the peer again"
        )


class StoreClosed(StorageError):
    """The store takes nothing any more because it was closed."""

    def __init__(self, directory: Path) -> None:
        super().__init__(f"{directory} is closed")


class WriterOverloaded(StorageError):
    """The writer's queue is full. Nothing was queued; send it again later."""

    def __init__(self, *, queued_bytes: int, queue_bytes_max: int) -> None:
        super().__init__(
            f"the storage writer has {queued_bytes} of {queue_bytes_max} bytes queued;"
            " wait for outcomes before submitting more"
        )
        self.queued_bytes = queued_bytes
        self.queue_bytes_max = queue_bytes_max


class Corrupt(StorageError):
    """Stored bytes are damaged at `offset`: read them from another holder, and repair this copy."""

    def __init__(self, shard: ShardId, epoch: Epoch, offset: Offset, why: str) -> None:
        super().__init__(
            f"shard {shard} epoch {epoch} offset {offset} is damaged in this store: {why};"
            " another holder has it"
        )
        self.shard = shard
        self.epoch = epoch
        self.offset = offset


class CorruptRow(StorageError):
    """A row other than a batch is damaged. The store as a whole cannot be trusted."""

    def __init__(self, table: str, key: bytes, why: str) -> None:
        super().__init__(f"row {key.hex()} of table {table} is damaged: {why}")
