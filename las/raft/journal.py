"""The durable log of one member: entries, term and vote in one append-only file.

Invariants, on which the safety of the group rests:
- Nothing leaves this member before `sync` returned: `las.raft.member` syncs once per tick, after
  the tick and before its frames and answers go out. So whatever another member or a client has
  heard of is on this disk.
- An entry at or below the highest index known to be committed is never removed, whatever the
  library asks for: that would be a lost command, so the process ends instead.
- Terms never go back and a vote never changes within a term.
- The file changes by appending, or as a whole by an atomic replacement; a crash at any byte leaves
  a file from which the synced prefix comes back.
- A torn tail (an unfinished write, which nobody has heard of) is left out at start. Anything else
  that does not check is corruption and refuses to start: a forgotten entry may be an acknowledged
  one.

File: MAGIC, the size of what was written together with the file (u64) and its CRC-32C (u32), then
records. A record is payload length, CRC-32C of the payload, CRC-32C of these two (each u32), and
the payload: kind (u8), fields, END. All numbers are little-endian. A torn tail cannot begin before
the size in the header; the record header's own CRC tells a flipped length from a torn record, and
END (never zero) tells a flipped payload from one whose end was never written.

Must not: interpret commands, or decide when to sync.
"""

import logging
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, overload

import crc32c
from pysyncobj.journal import Journal as LibraryJournal

from las.raft.codec import NO_OP, command_of, text_of
from las.raft.disk import Disk
from las.raft.errors import StoreCorrupt

logger = logging.getLogger(__name__)

MAGIC = b"LASJRNL1"
END = b"\xa5"
# limit: bytes of one record; the largest command with its id and JSON-free envelope is 65 KiB, and
# a length above this is no length
RECORD_BYTES_MAX = 128 * 1024
# limit: bytes of records that wait for one write; bounds memory while a tick takes many commands
BUFFER_BYTES_MAX = 1024 * 1024

_FILE_HEADER = struct.Struct("<8sQI")
_HEADER = struct.Struct("<III")
_KIND = struct.Struct("<B")
_ENTRY = struct.Struct("<BQQ")
_TRUNCATE = struct.Struct("<BQ")
_VOTE = struct.Struct("<BQ")
_NO_OP_KIND, _COMMAND_KIND, _TRUNCATE_KIND, _VOTE_KIND = 1, 2, 3, 4


class LogEntry(NamedTuple):
    """One entry, in the order of fields that the library expects."""

    command: bytes
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    term: int


BEGIN_ENTRIES = (LogEntry(NO_OP, 1, 0), LogEntry(NO_OP, 2, 1))
"""What the first snapshot of a group covers that begins with one: the initial no-op and one more.
"""


@dataclass(slots=True)
class JournalContent:
    """What the file of a journal holds. Filled by `read_journal`."""

    path: Path
    entries: list[LogEntry] = field(default_factory=list)
    current_term: int = 0
    voted_for: str | None = None

    def take(self, payload: bytes, position: int) -> None:
        """Replays one record whose checksum is right. Raises StoreCorrupt."""
        try:
            (kind,) = _KIND.unpack_from(payload)
            if kind in (_NO_OP_KIND, _COMMAND_KIND):
                entry = _entry_of(kind, payload)
                if self.entries and entry.index != self.entries[-1].index + 1:
                    raise ValueError(f"entry {entry.index} after {self.entries[-1].index}")
                self.entries.append(entry)
            elif kind == _TRUNCATE_KIND:
                _, index = _TRUNCATE.unpack(payload)
                del self.entries[max(0, index - self.entries[0].index) :]
            elif kind == _VOTE_KIND:
                _, self.current_term = _VOTE.unpack_from(payload)
                self.voted_for = payload[_VOTE.size :].decode() or None
            else:
                raise ValueError(f"kind {kind}")
        except (ValueError, struct.error, IndexError) as error:
            raise StoreCorrupt(
                f"{self.path}: record at byte {position} makes no sense: {error}; `las rejoin`"
            ) from error

    def term_at(self, index: int) -> int | None:
        """The term of an entry, or None if it is not here."""
        position = index - self.entries[0].index
        return self.entries[position].term if 0 <= position < len(self.entries) else None

    def reconcile(self, covered: tuple[LogEntry, LogEntry] | None) -> None:
        """Lets the log begin with the two last entries of the snapshot, and keeps what follows.

        A crash between the snapshot's replacement and the journal's leaves the old journal; the
        library would throw all of it away. Raises StoreCorrupt.
        """
        if not self.entries:
            raise StoreCorrupt(f"{self.path}: holds no entry; `las rejoin`")
        first = self.entries[0].index
        if covered is None:
            if first != 1:
                raise StoreCorrupt(
                    f"{self.path}: begins at entry {first} and the snapshot before it is gone; "
                    "`las rejoin`"
                )
            return
        previous, last = covered
        if first > last.index:
            raise StoreCorrupt(
                f"{self.path}: begins at entry {first}, the snapshot ends at {last.index}; "
                "`las rejoin`"
            )
        if self.term_at(last.index) == last.term:
            self.entries = [previous, *self.entries[last.index - first :]]
        else:
            # A snapshot that was received: what was here before is behind it or in conflict.
            self.entries = [previous, last]


def read_journal(path: Path, disk: Disk) -> JournalContent:
    """What was written to the journal at `path`, without changing it.

    Raises:
        StoreCorrupt: the file is missing, or its bytes are not those that were written.
    """
    try:
        data = disk.read_file(path)
    except OSError as error:
        raise StoreCorrupt(
            f"{path}: cannot be read ({error.strerror}); this node has to rejoin (`las rejoin`)"
        ) from error
    complete_bytes = _complete_bytes_of(data)
    if complete_bytes is None:
        raise StoreCorrupt(f"{path}: not a journal of this format; `las rejoin`")
    content = JournalContent(path)
    position = _FILE_HEADER.size
    while position < max(len(data), complete_bytes):
        payload = _payload_at(data, position)
        if payload is None:
            if position < complete_bytes or not _is_torn(data, position):
                raise StoreCorrupt(
                    f"{path}: damaged at byte {position} of {len(data)}; what follows may have "
                    "been acknowledged, so this node has to rejoin (`las rejoin`)"
                )
            # Nothing of it is kept: what was taken so far is written anew.
            size = len(data) - position
            logger.warning("%s: leaving out %d unfinished bytes", path, size)
            break
        content.take(payload, position)
        position += _HEADER.size + len(payload) + len(END)
    return content


class Journal(LibraryJournal):  # type: ignore[misc]
    """The log as the library sees it (`raftLog`), and what the guard asks about it."""

    def __init__(
        self,
        path: Path,
        *,
        covered: tuple[LogEntry, LogEntry] | None,
        disk: Disk,
        fatal: Callable[[str], None],
    ) -> None:
        """Opens an existing journal and brings it in line with the snapshot beside it.

        Args:
            path: The file; `create_journal` made it.
            covered: The last two entries that the snapshot covers, or None without a snapshot.
            disk: Where durability comes from.
            fatal: Ends the process; called when going on could break an invariant.

        Raises:
            StoreCorrupt: the file is missing, or its bytes are not those that were written.
        """
        self._path = path
        self._disk = disk
        self._fatal = fatal
        content = read_journal(path, disk)
        content.reconcile(covered)
        self._entries = content.entries
        self.current_term = content.current_term
        self.voted_for = content.voted_for
        # The highest index known to be committed: it only grows while the process lives.
        self.commit_floor = covered[1].index if covered else 1
        self.size_bytes = 0
        self.syncs = 0
        self._buffer = bytearray()
        self._unsynced = False
        self._replacement_due = False
        self._descriptor = disk.open_to_append(path)
        try:
            # From here on this member speaks of what it has read, so that has to be on the disk. It
            # may be in the page cache only, and a sync is no proof: where one failed in an earlier
            # process, the next says success and writes nothing. So all is written anew.
            self._replace()
        except BaseException:
            disk.close(self._descriptor)
            raise
        # A received snapshot may have become durable before the term that its leader brought; no
        # vote of that term had left.
        last_term = self._entries[-1].term
        if self.current_term < last_term:
            self.current_term, self.voted_for = last_term, None

    # ------------------------------------------------------------------ what the guard asks

    def first(self) -> LogEntry:
        """The oldest entry that is kept; everything up to it is committed or the initial no-op."""
        return self._entries[0]

    def last(self) -> LogEntry:
        """The newest entry."""
        return self._entries[-1]

    def term_at(self, index: int) -> int | None:
        """Returns the term of an entry, or None if it was compacted away or does not exist."""
        position = index - self._entries[0].index
        return self._entries[position].term if 0 <= position < len(self._entries) else None

    # ------------------------------------------------------------------ durability

    def sync(self) -> None:
        """Makes everything durable that was changed since the last call; one fdatasync at most."""
        if self._replacement_due:
            self._replace()
        elif self._unsynced:
            self._write_buffer()
            self._attempt(lambda: self._disk.sync(self._descriptor), "sync")
            self._unsynced = False
            self.syncs += 1

    def close(self) -> None:
        """Releases the file without writing anything: what was not synced was not promised."""
        self._disk.close(self._descriptor)

    def _attempt(self, action: Callable[[], None], what: str) -> None:
        try:
            action()
        except OSError as error:
            self._fatal(f"journal {self._path}: cannot {what}: {error}")

    def _append(self, record: bytes) -> None:
        if self._replacement_due:
            return
        self._buffer += record
        self._unsynced = True
        if len(self._buffer) >= BUFFER_BYTES_MAX:
            self._write_buffer()

    def _write_buffer(self) -> None:
        data = bytes(self._buffer)
        self._buffer.clear()
        self._attempt(lambda: self._disk.write(self._descriptor, data), "write")
        self.size_bytes += len(data)

    def _replace(self) -> None:
        content = _content_of(self._entries, self.current_term, self.voted_for)
        self._attempt(lambda: self._disk.write_file(self._path, content), "replace")
        self._disk.close(self._descriptor)
        self._descriptor = self._disk.open_to_append(self._path)
        self.size_bytes = len(content)
        self._buffer.clear()
        self._unsynced = self._replacement_due = False
        self.syncs += 1

    # ------------------------------------------------------------------ called by the library

    def add(self, command: bytes, idx: int, term: int) -> None:
        """Appends an entry."""
        self._append(_record_of_entry(LogEntry(command, idx, term)))
        self._entries.append(LogEntry(command, idx, term))

    def clear(self) -> None:
        """Empties the log; only while a snapshot is installed, which is durable by then."""
        self._entries = []
        self._replacement_due = True

    def deleteEntriesFrom(self, entryFrom: int) -> None:  # noqa: N802, N803  library's names
        """Removes a tail that is in conflict with the leader's log."""
        if entryFrom >= len(self._entries):
            return
        index = self._entries[entryFrom].index
        if index <= self.commit_floor:
            self._fatal(
                f"entry {index} is committed (up to {self.commit_floor}) and was to be removed"
            )
        self._append(_framed(_TRUNCATE.pack(_TRUNCATE_KIND, index)))
        del self._entries[entryFrom:]

    def deleteEntriesTo(self, entryTo: int) -> None:  # noqa: N802, N803  library's names
        """Removes the head that a durable snapshot covers."""
        self._entries = self._entries[entryTo:]
        self._replacement_due = True
        self.sync()

    @overload
    def __getitem__(self, item: int) -> LogEntry: ...
    @overload
    def __getitem__(self, item: slice) -> list[LogEntry]: ...
    def __getitem__(self, item: int | slice) -> LogEntry | list[LogEntry]:
        return self._entries[item]

    def __len__(self) -> int:
        return len(self._entries)

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:  # noqa: N802, N803  library's names
        """Remembers how far the log is committed; volatile in Raft."""
        self.commit_floor = max(self.commit_floor, raftCommitIndex)

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:  # noqa: N802, N803
        """Records term and vote; they are durable before any frame that speaks of them."""
        again = term == self.current_term and self.voted_for is not None
        if term < self.current_term or (again and votedForNodeId != self.voted_for):
            self._fatal(
                f"term and vote ({self.current_term}, {self.voted_for}) were to become "
                f"({term}, {votedForNodeId})"
            )
        self._append(_record_of_vote(term, votedForNodeId))
        self.current_term, self.voted_for = term, votedForNodeId


def create_journal(path: Path, disk: Disk, *, begun: bool = False) -> None:
    """Writes the journal of a member that has promised nothing yet: the initial no-op, term 0.

    `begun`: a snapshot that covers `BEGIN_ENTRIES` stands beside it.
    """
    entries = list(BEGIN_ENTRIES) if begun else [LogEntry(NO_OP, 1, 0)]
    disk.write_file(path, _content_of(entries, entries[-1].term, None))


def _content_of(entries: list[LogEntry], term: int, voted_for: str | None) -> bytes:
    records = [_record_of_vote(term, voted_for), *map(_record_of_entry, entries)]
    size = _FILE_HEADER.size + sum(map(len, records))
    head = _FILE_HEADER.pack(MAGIC, size, crc32c.crc32c(struct.pack("<8sQ", MAGIC, size)))
    return b"".join([head, *records])


def _complete_bytes_of(data: bytes) -> int | None:
    """Returns the size that the file was written with as a whole; None if it is no journal."""
    if len(data) < _FILE_HEADER.size:
        return None
    magic, size, crc = _FILE_HEADER.unpack_from(data)
    whole = magic == MAGIC and crc == crc32c.crc32c(data[: _FILE_HEADER.size - 4])
    return int(size) if whole else None


def _framed(payload: bytes) -> bytes:
    body = payload + END
    sizes = struct.pack("<II", len(payload), crc32c.crc32c(body))
    return sizes + struct.pack("<I", crc32c.crc32c(sizes)) + body


def _record_of_entry(entry: LogEntry) -> bytes:
    text = text_of(entry.command)
    if text is None:
        return _framed(_ENTRY.pack(_NO_OP_KIND, entry.index, entry.term))
    return _framed(_ENTRY.pack(_COMMAND_KIND, entry.index, entry.term) + text.encode())


def _record_of_vote(term: int, voted_for: str | None) -> bytes:
    return _framed(_VOTE.pack(_VOTE_KIND, term) + (voted_for or "").encode())


def _entry_of(kind: int, payload: bytes) -> LogEntry:
    _, index, term = _ENTRY.unpack_from(payload)
    text = payload[_ENTRY.size :].decode() if kind == _COMMAND_KIND else None
    return LogEntry(command_of(text), index, term)


def _payload_at(data: bytes, position: int) -> bytes | None:
    """Returns the payload of the record at `position` if it is whole and right."""
    body = position + _HEADER.size
    if body > len(data):
        return None
    size, payload_crc, header_crc = _HEADER.unpack_from(data, position)
    if crc32c.crc32c(data[position : body - 4]) != header_crc or size > RECORD_BYTES_MAX:
        return None
    content = data[body : body + size + len(END)]
    if len(content) != size + len(END) or crc32c.crc32c(content) != payload_crc:
        return None
    return content[:-1]


def _is_torn(data: bytes, position: int) -> bool:
    """Tells whether the bad record at `position` is an unfinished write at the end of the file.

    It is if the file ends inside it, or if its end and all that follows are zeros (a file system
    may record a file's new size before its content).
    """
    rest = data[position:]
    if len(rest.rstrip(b"\0")) < _HEADER.size:
        return True
    sizes, header_crc = rest[: _HEADER.size - 4], rest[_HEADER.size - 4 : _HEADER.size]
    if crc32c.crc32c(sizes) != int.from_bytes(header_crc, "little"):
        return False
    last = _HEADER.size + int.from_bytes(sizes[:4], "little")
    return not any(rest[last:])
