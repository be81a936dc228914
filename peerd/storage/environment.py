"""The LMDB environment of a store: options, tables, growth of the map, short read transactions.

Invariants:
- `sync=True`, metasync on, no writemap: the only mode that lost nothing in simulated power cuts.
- The map is resized only while no transaction of this process is open: a resize unmaps the pages
  that readers look at. `_Gate` keeps readers out for that moment.
- The file is never mapped before `check_data_file` has seen that it is as long as its meta page
  says: touching a mapped page beyond the end of the file kills the process (SIGBUS).
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import lmdb
import lmdb.verify

from peerd.storage.data_file import DataFileDamaged, read_data_file
from peerd.storage.errors import StoreClosed

if TYPE_CHECKING:
    from lmdb import _Database

    Database: TypeAlias = _Database
    Transaction: TypeAlias = lmdb.Transaction[memoryview]
else:
    Database = object
    Transaction = lmdb.Transaction

# limit: read transactions at a time, of all threads: LMDB's reader table has that many slots. Later
# ones wait.
READERS_MAX = 126

# Where the map begins. Address space, which costs nothing; the file grows with what is written.
MAP_BYTES_MIN = 1 << 30

# limit: bytes by which the map exceeds what is stored at most; so it is resized, which makes
# readers wait for a moment, only a few times in the life of a store.
MAP_GROWTH_BYTES_MAX = 64 << 30

_TABLES = ("shards", "segments", "batches", "producers", "drops")


@dataclass(frozen=True, slots=True)
class Tables:
    """Handles of the named databases; valid as long as the environment is open."""

    shards: Database
    segments: Database
    batches: Database
    producers: Database
    drops: Database


class _Gate:
    """Up to `READERS_MAX` readers, or one resize. A waiting resize lets no new reader in."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._changed = threading.Condition()
        self._readers = 0
        self._held = False
        self._closed = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or (not self._held and self._readers < READERS_MAX)
            )
            if self._closed:
                raise StoreClosed(self._directory)
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._held)
            self._held = True
            self._changed.wait_for(lambda: self._readers == 0)
        try:
            yield
        finally:
            with self._changed:
                self._held = False
                self._changed.notify_all()

    def close(self) -> None:
        """From now on every reader is turned away."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def check_data_file(path: Path) -> None:
    """Make sure that mapping the file is safe. Raises `DataFileDamaged`.

    A file may rightly be shorter than its meta page says by pages that were allocated and freed
    in one transaction. Then the walk over all pages decides, which reads the file without LMDB.
    """
    facts = read_data_file(path)
    if facts.file_bytes < facts.needed_bytes:
        problems = walk_pages(path)
        if problems:
            raise DataFileDamaged(
                f"{path.name} has {facts.file_bytes} bytes where {facts.needed_bytes} are in use:"
                f" {problems[0]}"
            )


def walk_pages(path: Path) -> list[str]:
    """Every structural problem of the file, found without mapping it; empty if it is sound."""
    try:
        return [str(problem) for problem in lmdb.verify.verify(os.fspath(path))]
    except lmdb.verify.VerifyError as error:
        return [str(error)]


class Environment:
    """An open environment. One thread writes; any thread reads."""

    def __init__(
        self, directory: Path, *, map_bytes_max: int, create: bool = False, read_only: bool = False
    ) -> None:
        """Open the environment. The caller holds the directory's lock.

        Raises `lmdb.Error`, also if a table is missing and it is not to `create` them: a damaged
        name of a table must not look like a store with nothing in it.
        """
        self._path = directory / "data.mdb"
        self._map_bytes_max = map_bytes_max
        self._gate = _Gate(directory)
        self._map_bytes = self._map_bytes_for(self.file_bytes())
        self._lmdb = lmdb.open(
            os.fspath(directory),
            map_size=self._map_bytes,
            max_dbs=len(_TABLES),
            max_readers=READERS_MAX,
            subdir=True,
            readonly=read_only,
            create=create,
            # The directory's own lock keeps other processes out; a checker must leave no traces.
            lock=not read_only,
            sync=True,
            metasync=True,
            writemap=False,
            # Batches are read in order, but of many shards in turn.
            readahead=False,
            mode=0o600,
        )
        try:
            self.tables = Tables(
                *(self._lmdb.open_db(name.encode(), create=create) for name in _TABLES)
            )
        except lmdb.Error:
            self._lmdb.close()
            raise
        self.page_bytes: int = self._lmdb.stat()["psize"]

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A read transaction. Keep it short: pages that were freed meanwhile cannot be reused.

        Raises `StoreClosed`.
        """
        with self._gate.reading(), self._lmdb.begin(buffers=True) as transaction:
            yield transaction

    def begin_write(self) -> Transaction:
        """The write transaction; bound to the calling thread, which commits or aborts it."""
        return self._lmdb.begin(write=True, buffers=True)

    def begin_nested(self, parent: Transaction) -> Transaction:
        """A part of a write transaction that can be undone alone; `parent` rests meanwhile."""
        return self._lmdb.begin(write=True, buffers=True, parent=parent)

    def ensure_room(self, need_bytes: int) -> None:
        """Make the map large enough for `need_bytes` of new pages. No transaction may be open.

        At `map_bytes_max` the map stays as it is; a transaction that needs more then fails.
        """
        used_bytes = (self._lmdb.info()["last_pgno"] + 1) * self.page_bytes
        wanted_bytes = self._map_bytes_for(used_bytes + need_bytes)
        if wanted_bytes > self._map_bytes:
            with self._gate.alone():
                self._lmdb.set_mapsize(wanted_bytes)
            self._map_bytes = wanted_bytes

    def tree_bytes(self, transaction: Transaction) -> int:
        """Bytes of the pages that hold rows; the rest of the file is free to be written again."""
        tables = self.tables
        pages = 0
        for table in (tables.batches, tables.producers, tables.segments, tables.shards):
            stat = transaction.stat(table)
            pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return pages * self.page_bytes

    def file_bytes(self) -> int:
        """Length of the data file; 0 if there is none yet."""
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    def close(self) -> None:
        """Close once the readers of now are done; later ones get `StoreClosed`."""
        with self._gate.alone():
            self._gate.close()
            self._lmdb.close()

    def _map_bytes_for(self, content_bytes: int) -> int:
        """A map with at least as much again as the content, in few, growing steps."""
        size_bytes = MAP_BYTES_MIN
        while size_bytes < 2 * content_bytes and size_bytes < content_bytes + MAP_GROWTH_BYTES_MAX:
            size_bytes *= 2
        return min(size_bytes, self._map_bytes_max)
