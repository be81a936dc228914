"""The ring: a file of fixed size that is mapped into memory and survives its process.

    file     = header page, then `SEGMENT_COUNT` segments of equal size
    segment  = its header (generation, fingerprint of the types), then records, then a zero
    record   = length, CRC, body

Segments are filled one after the other; the one with the lowest generation is overwritten next. So
all but one are always history, and each can be read by itself.

Why what is read was written: the CRC of a record continues that of the record before it, and the
first one that of the segment's header with its generation. So a record of an earlier lap, a torn
one, a damaged one, and one behind any of these never pass; a reader stops there. The zero behind
the newest record is written with it, so that an end can be told from damage.

Durability: pages of a shared mapping belong to the file once they are stored to; the kernel writes
them though the process was killed. A machine that loses power may lose them; nothing depends on it.
The whole file is allocated when it is made: a store to a mapped page must not find a full disk.

Must not: raise into its caller after `open` for anything that a disk does.
"""

import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FILE_NAME = "flight.ring"
# limit: segments of a ring; each begins with a checkpoint of every core, so more of them keep more
# of the history and cost more checkpoints
SEGMENT_COUNT = 4
# limit: bytes that a ring has at least; below it a segment would hold little but checkpoints
RING_BYTES_MIN = 1024 * 1024
# limit: bytes of a ring at most; a reader holds one segment in memory
RING_BYTES_MAX = 4 * 1024 * 1024 * 1024

_MAGIC = b"PEERDFLT"
_VERSION = 1
_FILE_HEADER = struct.Struct("<8sIIQ")
_SEGMENT_HEADER = struct.Struct("<4sQ16s")
_SEGMENT_MAGIC = b"SEGM"
_CRC = struct.Struct("<I")
_RECORD_HEAD = struct.Struct("<II")
_END = bytes(4)
_PAGE_BYTES = 4096
_SEGMENT_HEADER_BYTES = _SEGMENT_HEADER.size + _CRC.size


class RingError(Exception):
    """A ring that cannot be used; one line that says which file and why."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment as it was read: bodies of its records in order, and where they end.

    `cut` says why reading stopped, if not at the end that the writer left.
    """

    generation: int
    fingerprint: bytes
    records: list[bytes]
    end_bytes: int
    crc: int
    cut: str | None


class Ring:
    """The writer's side. Made by `Ring.open`."""

    def __init__(self, file_map: mmap.mmap, segment_bytes: int) -> None:
        """Use `Ring.open`."""
        self._map = file_map
        self._segment_bytes = segment_bytes
        self._segment = 0
        self._generation = 0
        self._at = 0
        self._end = 0
        self._crc = 0

    @classmethod
    def open(cls, path: Path, size_bytes: int, fingerprint: bytes) -> "Ring":
        """Open or make the file, and go on behind its newest record if the types are the same.

        A file of another size or format is made anew. Raises `RingError` if that fails.
        """
        segment_bytes = (size_bytes - _PAGE_BYTES) // SEGMENT_COUNT
        try:
            if not _is_ring(path, size_bytes, segment_bytes):
                _make(path, size_bytes, segment_bytes)
            with path.open("r+b") as file:
                ring = cls(mmap.mmap(file.fileno(), size_bytes), segment_bytes)
        except OSError as error:
            raise RingError(f"{path}: {error.strerror or error}") from error
        ring._resume(fingerprint)
        return ring

    def _resume(self, fingerprint: bytes) -> None:
        newest = None
        for number in range(SEGMENT_COUNT):
            header = _segment_header(self._map, _begin(number, self._segment_bytes))
            if header is not None and (newest is None or header[0] > newest[0]):
                newest = (*header, number)
        if newest is None:
            self._segment = SEGMENT_COUNT - 1
            self.advance(fingerprint)
            return
        self._generation, known, self._segment = newest
        if known != fingerprint:
            self.advance(fingerprint)
            return
        segment = _read_segment(self._map, self._segment, self._segment_bytes)
        if segment is None or segment.cut is not None:
            self.advance(fingerprint)
            return
        begin = _begin(self._segment, self._segment_bytes)
        self._at = begin + segment.end_bytes
        self._end = begin + self._segment_bytes
        self._crc = segment.crc

    def advance(self, fingerprint: bytes) -> None:
        """Begin the next segment, over what is oldest."""
        self._segment = (self._segment + 1) % SEGMENT_COUNT
        self._generation += 1
        begin = _begin(self._segment, self._segment_bytes)
        header = _SEGMENT_HEADER.pack(_SEGMENT_MAGIC, self._generation, fingerprint)
        self._crc = zlib.crc32(header)
        packed = header + _CRC.pack(self._crc) + _END
        self._map[begin : begin + len(packed)] = packed
        self._at = begin + _SEGMENT_HEADER_BYTES
        self._end = begin + self._segment_bytes

    def append(self, body: bytes) -> bool:
        """Write one record; False if this segment has no room for it."""
        at = self._at
        size = len(body)
        end = at + size + 12
        if end > self._end:
            return False
        self._crc = crc = zlib.crc32(body, self._crc)
        self._map[at:end] = _RECORD_HEAD.pack(size, crc) + body + _END
        self._at = end - 4
        return True

    @property
    def room_bytes(self) -> int:
        """Largest body that the current segment still takes."""
        return self._end - self._at - _RECORD_HEAD.size - len(_END)

    @property
    def record_bytes_max(self) -> int:
        """Largest body that an empty segment takes, with room for what begins each segment."""
        return self._segment_bytes // 2

    def close(self) -> None:
        """Give the mapping back; the file stays."""
        self._map.close()


# ------------------------------------------------------------------ the file
def _begin(number: int, segment_bytes: int) -> int:
    return _PAGE_BYTES + number * segment_bytes


def _is_ring(path: Path, size_bytes: int, segment_bytes: int) -> bool:
    if not path.exists() or path.stat().st_size != size_bytes:
        return False
    with path.open("rb") as file:
        wanted = _FILE_HEADER.pack(_MAGIC, _VERSION, SEGMENT_COUNT, segment_bytes)
        return file.read(_FILE_HEADER.size) == wanted


def _make(path: Path, size_bytes: int, segment_bytes: int) -> None:
    """A new file, whole before it gets its name."""
    fresh = path.with_name(path.name + ".new")
    with fresh.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size_bytes)
        file.write(_FILE_HEADER.pack(_MAGIC, _VERSION, SEGMENT_COUNT, segment_bytes))
    fresh.replace(path)


def _segment_header(data: mmap.mmap | bytes, begin: int) -> tuple[int, bytes] | None:
    """Generation and fingerprint of a segment; None if it was never begun or its header is torn."""
    header = data[begin : begin + _SEGMENT_HEADER.size]
    if len(header) < _SEGMENT_HEADER.size or not header.startswith(_SEGMENT_MAGIC):
        return None
    crc = data[begin + _SEGMENT_HEADER.size : begin + _SEGMENT_HEADER_BYTES]
    if crc != _CRC.pack(zlib.crc32(header)):
        return None
    _, generation, fingerprint = _SEGMENT_HEADER.unpack(header)
    return generation, fingerprint


def _read_segment(data: mmap.mmap | bytes, number: int, segment_bytes: int) -> Segment | None:
    """Read one segment up to its end or to the first record that does not pass."""
    begin = _begin(number, segment_bytes)
    header = _segment_header(data, begin)
    if header is None:
        return None
    whole = bytes(data[begin : begin + segment_bytes])
    crc = zlib.crc32(whole[: _SEGMENT_HEADER.size])
    at = _SEGMENT_HEADER_BYTES
    records: list[bytes] = []
    cut = None
    while at + _RECORD_HEAD.size <= len(whole):
        size, written_crc = _RECORD_HEAD.unpack_from(whole, at)
        if size == 0:
            break
        body = whole[at + _RECORD_HEAD.size : at + _RECORD_HEAD.size + size]
        if len(body) != size or zlib.crc32(body, crc) != written_crc:
            cut = f"cut at byte {begin + at}: bad CRC, what follows is not used"
            break
        crc = written_crc
        records.append(body)
        at += _RECORD_HEAD.size + size
    return Segment(header[0], header[1], records, at, crc, cut)


def read_segments(path: Path) -> Iterator[Segment]:
    """The segments of a ring file, oldest first. Safe while its process writes: a segment that is
    overwritten meanwhile ends at its first record that does not pass.

    Raises `RingError` if the file is no ring, or one of another version.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_FILE_HEADER.size)
            if len(head) < _FILE_HEADER.size or not head.startswith(_MAGIC):
                raise RingError(f"{path}: is no flight recording")
            _, version, count, segment_bytes = _FILE_HEADER.unpack(head)
            size_bytes = os.fstat(file.fileno()).st_size
            if version != _VERSION or not 0 < count <= SEGMENT_COUNT:
                raise RingError(f"{path}: version {version} is not read here, only {_VERSION}")
            if size_bytes < _PAGE_BYTES + count * segment_bytes or size_bytes > RING_BYTES_MAX:
                raise RingError(f"{path}: {size_bytes} bytes are not what its header says")
            with mmap.mmap(file.fileno(), size_bytes, access=mmap.ACCESS_READ) as data:
                generations = [
                    (header[0], number)
                    for number in range(count)
                    if (header := _segment_header(data, _begin(number, segment_bytes)))
                ]
                for _, number in sorted(generations):
                    segment = _read_segment(data, number, segment_bytes)
                    if segment is not None:
                        yield segment
    except OSError as error:
        raise RingError(f"{path}: {error.strerror or error}") from error
