"""Snapshots: one file with a state and the log position that it belongs to.

Invariants:
- A snapshot is served, sent or restored only after its checksums were found right; one that is not
  right ends the process (own file) or is refused (received). There is no "start with less".
- The state is captured in one step of the raft thread and written by another thread; the raft
  thread renames the finished file, so a received snapshot and a written one never race.
- The file is durable under its name before the journal drops what it covers.

File: MAGIC, header size (u32), CRC-32C of the header (u32), state size (u64), CRC-32C of the state
(u32), all little-endian; the header as JSON (position, cluster, sessions); the state as the state
machine serialised it.

Must not: look into the state.
"""

import json
import logging
import struct
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path

import crc32c
from pysyncobj import SERIALIZER_STATE

from las.raft.codec import Entry, command_of, text_of
from las.raft.disk import Disk
from las.raft.errors import StoreCorrupt
from las.raft.journal import BEGIN_ENTRIES, LogEntry
from las.raft.sessions import SessionRow, Sessions

logger = logging.getLogger(__name__)

MAGIC = b"LASSNAP1"
# limit: bytes of a snapshot that is taken from a leader; ten times a map of 100,000 shards
SNAPSHOT_BYTES_MAX = 1024 * 1024 * 1024

_HEAD = struct.Struct("<8sIIQI")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A checked snapshot: the last two entries that it covers, and what they led to."""

    previous: LogEntry
    last: LogEntry
    cluster_id: str
    sessions: tuple[SessionRow, ...]
    state: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """A state at one log position, not yet serialised; made in the raft thread in one step."""

    previous: LogEntry
    last: LogEntry
    cluster_id: str
    sessions: tuple[SessionRow, ...]
    serialise: Callable[[], bytes]

    def to_parts(self) -> tuple[bytes, bytes]:
        """Returns head and state; runs outside the raft thread."""
        state = self.serialise()
        header = json.dumps(
            {
                "previous": _plain(self.previous),
                "last": _plain(self.last),
                "cluster_id": self.cluster_id,
                "sessions": self.sessions,
            },
            separators=(",", ":"),
        ).encode()
        head = _HEAD.pack(
            MAGIC, len(header), crc32c.crc32c(header), len(state), crc32c.crc32c(state)
        )
        return head + header, state


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """What a group begins with that is made from an older one: the same bytes on each member."""

    recovery: str
    state: bytes

    def snapshot_of(self, group_id: str) -> tuple[bytes, bytes]:
        """Head and state of its first snapshot."""
        previous, last = BEGIN_ENTRIES
        capture = Capture(
            previous=previous,
            last=last,
            cluster_id=group_id,
            sessions=(),
            serialise=lambda: self.state,
        )
        return capture.to_parts()


def parse_snapshot(data: bytes) -> Snapshot:
    """Checks and takes apart the bytes of a snapshot file.

    Raises:
        ValueError: they are not those that were written.
    """
    if len(data) < _HEAD.size:
        raise ValueError("too short for a snapshot")
    magic, header_bytes, header_crc, state_bytes, state_crc = _HEAD.unpack_from(data)
    header = data[_HEAD.size : _HEAD.size + header_bytes]
    state = data[_HEAD.size + header_bytes :]
    if magic != MAGIC:
        raise ValueError("not a snapshot of this format")
    if len(header) != header_bytes or crc32c.crc32c(header) != header_crc:
        raise ValueError("header is damaged")
    if len(state) != state_bytes or crc32c.crc32c(state) != state_crc:
        raise ValueError("state is damaged")
    fields = json.loads(header)
    rows = tuple((str(row[0]), int(row[1]), str(row[2])) for row in fields["sessions"])
    return Snapshot(
        previous=_entry(fields["previous"]),
        last=_entry(fields["last"]),
        cluster_id=str(fields["cluster_id"]),
        sessions=rows,
        state=state,
    )


def _plain(entry: LogEntry) -> list[str | int | None]:
    return [text_of(entry.command), entry.index, entry.term]


def _entry(fields: list[str | int | None]) -> LogEntry:
    text, index, term = fields
    if not isinstance(index, int) or not isinstance(term, int):
        raise ValueError("an entry without a position")
    return LogEntry(command_of(None if text is None else str(text)), index, term)


class SnapshotStore:
    """Takes the place of the library's serializer: writes, restores and installs snapshots.

    The methods in camelCase are those that the library calls. A follower that needs a snapshot is
    served by `las.raft.transfer`; to the library the transfer looks like one message (`TOKEN`).
    """

    # What the library passes to the transport in place of a snapshot's bytes.
    TOKEN = (b"", True, True)

    def __init__(
        self,
        path: Path,
        *,
        cluster_id: str,
        freeze: Callable[[], tuple[tuple[SessionRow, ...], Callable[[], bytes]]],
        restore: Callable[[Sessions, bytes], None],
        disk: Disk,
        background: Executor,
        fatal: Callable[[str], None],
    ) -> None:
        """
        Args:
            path: The snapshot's name; drafts stand beside it.
            cluster_id: Written into each snapshot and demanded of each.
            freeze: Captures sessions and state; called in the raft thread.
            restore: Replaces sessions and state; called in the raft thread.
            disk: Where durability comes from.
            background: Runs the writing.
            fatal: Ends the process.
        """
        self.path = path
        self._cluster_id = cluster_id
        self._freeze = freeze
        self._restore = restore
        self._disk = disk
        self._background = background
        self._fatal = fatal
        self._draft = path.with_name(path.name + ".own.draft")
        self._job: Future[None] | None = None
        self._job_index = 0
        self._job_void = False

    @property
    def is_writing(self) -> bool:
        """True while a snapshot is being written."""
        return self._job is not None

    def read(self) -> Snapshot | None:
        """Returns the snapshot on disk, or None if there is none.

        Raises:
            StoreCorrupt: it cannot be read, is damaged, or of another cluster.
        """
        if not self._disk.exists(self.path):
            return None
        try:
            snapshot = parse_snapshot(self._disk.read_file(self.path))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreCorrupt(
                f"{self.path}: {error}; this node has to rejoin (`las rejoin`)"
            ) from error
        if snapshot.cluster_id != self._cluster_id:
            raise StoreCorrupt(f"{self.path}: of another cluster ({snapshot.cluster_id})")
        return snapshot

    def install(self, received: Path) -> None:
        """Puts a received, checked and synced snapshot in the place of the own one, durably."""
        self._job_void = self._job is not None
        try:
            self._disk.replace(received, self.path)
        except OSError as error:
            self._fatal(f"snapshot {self.path}: cannot be installed: {error}")

    # ------------------------------------------------------------------ called by the library

    def serialize(
        self,
        data: tuple[object, Entry, Entry, object],
        id: int,  # noqa: A002  library's name
    ) -> None:
        """Captures the state now and starts writing it. `id` is the previous entry's index."""
        _, last, previous, _ = data
        sessions, serialise = self._freeze()
        capture = Capture(
            previous=LogEntry(*previous),
            last=LogEntry(*last),
            cluster_id=self._cluster_id,
            sessions=sessions,
            serialise=serialise,
        )
        self._job_index, self._job_void = id, False
        self._job = self._background.submit(self._write, capture)

    def checkSerializing(self) -> tuple[int, int | None]:  # noqa: N802  library's name
        """Tells the library how the writing goes; once it is done, makes the file the snapshot."""
        if self._job is None:
            return SERIALIZER_STATE.NOT_SERIALIZING, None
        if not self._job.done():
            return SERIALIZER_STATE.SERIALIZING, self._job_index
        job, self._job = self._job, None
        error = job.exception()
        if error is not None:
            self._fatal(f"snapshot {self.path}: cannot be written: {error!r}")
        if self._job_void:
            # A leader's snapshot came in the meantime; this one is older.
            self._disk.remove(self._draft)
            return SERIALIZER_STATE.NOT_SERIALIZING, None
        try:
            self._disk.replace(self._draft, self.path)
        except OSError as failure:
            self._fatal(f"snapshot {self.path}: cannot be renamed: {failure}")
        return SERIALIZER_STATE.SUCCESS, self._job_index

    def deserialize(self) -> tuple[None, LogEntry, LogEntry, frozenset[str]]:
        """Restores the state machine from the file. The library swallows errors; this does not."""
        try:
            snapshot = self.read()
            if snapshot is None:
                raise StoreCorrupt(f"{self.path}: is gone")
            self._restore(Sessions(snapshot.sessions), snapshot.state)
        except Exception as error:
            self._fatal(f"snapshot cannot be restored: {error!r}")
            raise
        return None, snapshot.last, snapshot.previous, frozenset()

    def getTransmissionData(self, transmissionID: object) -> tuple[bytes, bool, bool]:  # noqa: ARG002, N802, N803
        """A follower needs the snapshot: the transport will see the token and send it."""
        return self.TOKEN

    def setTransmissionData(self, data: tuple[bytes, bool, bool] | None) -> bool:  # noqa: N802
        """Tells the library whether a snapshot has been installed; it is durable before that."""
        return data == self.TOKEN

    def cancelTransmisstion(self, id: object) -> None:  # noqa: A002, N802  library's spelling
        """Transfers end with their link, see `las.raft.transfer`."""

    def _write(self, capture: Capture) -> None:
        self._disk.write_draft(self._draft, *capture.to_parts())
