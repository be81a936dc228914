"""The LMDB store of a peer: batches, promises, producer tables, durable before they are told.

`Store` is the way in. `verify_store` looks into a store that no process has open.
"""

from peerd.storage.errors import (
    Corrupt,
    CorruptRow,
    NotAStore,
    StorageError,
    StorageFailed,
    StoreClosed,
    StoreDamaged,
    StoreFormatUnknown,
    StoreLocked,
    WriterOverloaded,
    WrongCluster,
)
from peerd.storage.options import CommitMetrics, Space, StorageOptions
from peerd.storage.repair import Repair, Repaired
from peerd.storage.store import Store
from peerd.storage.verify import VerifyReport, verify_store

__all__ = [
    "CommitMetrics",
    "Corrupt",
    "CorruptRow",
    "NotAStore",
    "Repair",
    "Repaired",
    "Space",
    "StorageError",
    "StorageFailed",
    "StorageOptions",
    "Store",
    "StoreClosed",
    "StoreDamaged",
    "StoreFormatUnknown",
    "StoreLocked",
    "VerifyReport",
    "WriterOverloaded",
    "WrongCluster",
    "verify_store",
]
