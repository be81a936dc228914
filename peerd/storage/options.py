"""What an operator may tune of a store, and what a store tells about itself."""

from dataclasses import dataclass
from typing import Protocol

from peerd.core.chunks import CHUNK_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageOptions:
    """Bounds of a store, all in bytes."""

    map_size_bytes_max: int = 1 << 40
    """Largest size of the data file. Address space, not memory and not disk: 1 TiB."""
    reserve_bytes: int = 256 << 20
    """Below this much free space appends are refused at the edge, so that promises, adoptions and
    drops still find room: 100,000 of them fit into a tenth of it."""
    commit_bytes_max: int = 8 << 20
    """Payload of one transaction: some 10 ms of a disk, the most that a batch waits for others."""
    queue_bytes_max: int = 64 << 20
    """Payload that waits for the writer: eight full transactions."""
    chunk_bytes: int = CHUNK_BYTES
    """Payload of a chunk; the same in all stores of a cluster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Room for batches: bytes that can still be stored, and bytes of pages in use.

    `in_reserve`: less than `reserve_bytes` is free; take no appends (DISK_RESERVE).
    """

    free_bytes: int
    stored_bytes: int
    in_reserve: bool


class CommitMetrics(Protocol):
    """Where the writer tells how long its commits take. Called in the writer thread; quick."""

    def commit_begun(self) -> None:
        """A transaction is about to be made durable; without this a hung disk would look idle."""

    def record_commit(self, duration_ms: float, payload_bytes: int, /) -> None:
        """It is durable, `duration_ms` later."""
