"""A store's directory: manifest, lock, and the marker of an unclean stop.

    manifest.json   who this store is; written last when a store is created
    data.mdb        the LMDB environment (lock.mdb beside it is LMDB's own, and worthless at rest)
    lock            held by flock for as long as a process has the store open
    creating        there only while a store is being created
    running         there from opening to a clean close: found at opening, the last stop was unclean

Invariants:
- The manifest is the last thing that creation writes, and it is replaced as a whole: a directory
  with a manifest is a complete store; one with `creating` holds nothing that anyone relies on.
- A manifest without data is never filled with new, empty data: that would be the same store id
  with less in it, and the protocol relies on stores that never go back (docs/protocol.md §4.4).
- Store id and format never change; the cluster id is written once.

This module never opens the LMDB environment.
"""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from peerd.core.ids import StoreId
from peerd.storage.errors import (
    NotAStore,
    StoreFormatUnknown,
    StoreLocked,
    WrongCluster,
)

FORMAT_VERSION = 2
"""Of the directory and of its tables. A store of a higher version is refused."""

LMDB_ENGINE = "0.9"
"""The data format of the LMDB engine that writes `data.mdb`; its 1.0 format differs."""

MANIFEST = "manifest.json"
DATA = "data.mdb"
_LMDB_LOCK = "lock.mdb"
_LOCK = "lock"
_CREATING = "creating"
_RUNNING = "running"
_OURS = frozenset({MANIFEST, DATA, _LMDB_LOCK, _LOCK, _CREATING, _RUNNING})
# What a fresh file system puts into its root.
_NOT_COUNTED = frozenset({"lost+found", _LOCK})


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreManifest:
    """Who a store is. `cluster_id` is empty until the peer has registered once."""

    store_id: StoreId
    format_version: int
    lmdb_engine: str
    created: str
    cluster_id: str = ""


def new_manifest() -> StoreManifest:
    """The manifest of a store that begins now, with an id never drawn before."""
    return StoreManifest(
        store_id=StoreId(secrets.token_hex(16)),
        format_version=FORMAT_VERSION,
        lmdb_engine=LMDB_ENGINE,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def sync_directory(directory: Path) -> None:
    """Make created, renamed and removed names durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file_durably(path: Path, content: bytes) -> None:
    """Replace `path` as a whole: after a crash it holds the old content or all of the new."""
    beside = path.with_name(f".{path.name}.new")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    sync_directory(path.parent)


class StoreDirectory:
    """A locked directory. Made by `lock_directory`; valid while that context lasts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def data_file(self) -> Path:
        """LMDB's data file."""
        return self.path / DATA

    def is_new(self) -> bool:
        """True if a store may be created here. Raises `NotAStore` on anything foreign."""
        if (self.path / MANIFEST).exists():
            return False
        names = {entry.name for entry in self.path.iterdir()} - _NOT_COUNTED
        if names and (_CREATING not in names or not names <= _OURS | {f".{MANIFEST}.new"}):
            raise NotAStore(self.path, f"it has no {MANIFEST} but holds {min(names)}")
        return True

    def begin_creation(self) -> None:
        """Mark the directory as half made, and clear what an interrupted creation left."""
        write_file_durably(self.path / _CREATING, b"")
        for name in (DATA, _LMDB_LOCK, _RUNNING):
            (self.path / name).unlink(missing_ok=True)
        sync_directory(self.path)

    def end_creation(self, manifest: StoreManifest) -> None:
        """The data is there and durable: make the directory a store."""
        sync_directory(self.path)
        self._write_manifest(manifest)
        self.clear_creation()

    def clear_creation(self) -> None:
        """Remove the mark of creation, also one left between manifest and removal."""
        if (self.path / _CREATING).exists():
            (self.path / _CREATING).unlink()
            sync_directory(self.path)

    def read_manifest(self) -> StoreManifest:
        """The manifest. Raises `NotAStore` or `StoreFormatUnknown`; then nothing may be opened."""
        try:
            fields = json.loads((self.path / MANIFEST).read_bytes())
            manifest = StoreManifest(
                store_id=StoreId(str(fields["store_id"])),
                format_version=int(fields["format_version"]),
                lmdb_engine=str(fields["lmdb_engine"]),
                created=str(fields["created"]),
                cluster_id=str(fields["cluster_id"]),
            )
        except OSError as error:
            raise NotAStore(self.path, f"{MANIFEST}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise NotAStore(self.path, f"{MANIFEST} cannot be read ({error!r})") from error
        if manifest.format_version != FORMAT_VERSION:
            raise StoreFormatUnknown(
                self.path,
                f"it has format version {manifest.format_version},"
                f" this peerd reads and writes {FORMAT_VERSION} alone: let it begin with an empty"
                " directory under a new node name, and the copies are fetched anew",
            )
        if manifest.lmdb_engine != LMDB_ENGINE:
            raise StoreFormatUnknown(
                self.path,
                f"it was written by LMDB engine {manifest.lmdb_engine},"
                f" this peerd uses {LMDB_ENGINE}",
            )
        if not self.data_file.exists():
            raise NotAStore(self.path, f"{DATA} is missing beside {MANIFEST}")
        return manifest

    def adopt_cluster(self, manifest: StoreManifest, cluster_id: str) -> StoreManifest:
        """Write the cluster id for good, durably. Raises `WrongCluster` if another one is there."""
        if manifest.cluster_id == cluster_id:
            return manifest
        if manifest.cluster_id:
            raise WrongCluster(self.path, ours=manifest.cluster_id, theirs=cluster_id)
        adopted = replace(manifest, cluster_id=cluster_id)
        self._write_manifest(adopted)
        return adopted

    def was_stopped_uncleanly(self) -> bool:
        """True if the last process that had the store open did not close it."""
        return (self.path / _RUNNING).exists()

    def mark_running(self) -> None:
        """From now on every stop but a clean close counts as unclean."""
        if not self.was_stopped_uncleanly():
            write_file_durably(self.path / _RUNNING, b"")

    def mark_clean(self) -> None:
        """Everything in the store is durable, and nothing will be written to it any more."""
        (self.path / _RUNNING).unlink(missing_ok=True)
        sync_directory(self.path)

    def free_bytes(self) -> int:
        """What the file system still has for us."""
        facts = os.statvfs(self.path)
        return facts.f_bavail * facts.f_frsize

    def _write_manifest(self, manifest: StoreManifest) -> None:
        text = json.dumps(asdict(manifest), indent=2) + "\n"
        write_file_durably(self.path / MANIFEST, text.encode())


@contextmanager
def lock_directory(path: Path, *, create: bool) -> Iterator[StoreDirectory]:
    """Hold the directory's lock. Raises `StoreLocked`, or `NotAStore` if there is no directory.

    The lock belongs to the open file: it ends with the process however that ends, so a lock file
    that is lying about means nothing.
    """
    directory = StoreDirectory(path)
    try:
        if create:
            path.mkdir(parents=True, exist_ok=True)
        directory.is_new()  # refuses a foreign directory before a lock file is put into it
        descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise NotAStore(path, f"it cannot be opened ({error.strerror})") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreLocked(path) from error
        yield directory
    finally:
        os.close(descriptor)
