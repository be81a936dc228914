"""Files past the page cache, for objects: written once, compared once, and rarely looked at.

Why past it:

- *Read back* is to say what the disk has. Through the cache it says what this machine remembers.
- What goes to the tier is cold: in the cache it pushes out what is hot.
- It is cheap. An object of 16 MB that was written through the cache took 0.4 to 2.4 s of CPU a GB
  and as much again to be read back, this way 0.1 s both (docs/benchmarks.md).

How: `O_DIRECT` wants memory, places and lengths that are multiples of a disk's block. So all bytes
go through an aligned buffer, and the last block is filled up with zeros, which are cut off again.
A file system that has no such files says so (EINVAL), and gets the bytes through the cache.

Invariants:
- `write` returns when all bytes are in the file, no others, and flushed. What is there after an
  error is nothing: whoever called removes it.
- `holds` is True only if each byte of the range was read from the file and is the same.

Must not: name or remove anything but a file that `write` has begun.
"""

import errno
import mmap
import os
from pathlib import Path

# Multiple of the blocks of all disks that there are.
_BLOCK_BYTES = 4_096
# limit: bytes of memory of one call, and of one request to the disk
BUFFER_BYTES = 4 * 1024 * 1024
# limit: buffers that are kept for the next call
BUFFERS_KEPT_MAX = 2
_DIRECT = getattr(os, "O_DIRECT", 0)
_UNABLE = (errno.EINVAL, errno.EOPNOTSUPP)


class DirectFiles:
    """Writes and compares. Used from any thread; blocks."""

    def __init__(self) -> None:
        self._buffers: list[mmap.mmap] = []

    def write(self, path: Path, data: bytes | bytearray) -> None:
        """Make a file of these bytes, flushed. Raises `OSError`, also if there is one."""
        try:
            self._write(path, data, _DIRECT)
        except OSError as error:
            if error.errno not in _UNABLE or not _DIRECT:
                raise
            path.unlink(missing_ok=True)
            self._write(path, data, 0)

    def holds(self, path: Path, begin: int, end: int, data: bytes | bytearray) -> bool:
        """Whether bytes [begin, end) of a file are those of `data`. Raises `OSError`."""
        try:
            return self._holds(path, begin, end, data, _DIRECT)
        except OSError as error:
            if error.errno not in _UNABLE or not _DIRECT:
                raise
            return self._holds(path, begin, end, data, 0)

    def _write(self, path: Path, data: bytes | bytearray, flags: int) -> None:
        flags |= os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o666)
        buffer = self._taken()
        try:
            with memoryview(buffer) as filled, memoryview(data) as wanted:
                for begin in range(0, len(wanted), BUFFER_BYTES):
                    piece_bytes = min(BUFFER_BYTES, len(wanted) - begin)
                    padded_bytes = -(-piece_bytes // _BLOCK_BYTES) * _BLOCK_BYTES
                    filled[:piece_bytes] = wanted[begin : begin + piece_bytes]
                    filled[piece_bytes:padded_bytes] = bytes(padded_bytes - piece_bytes)
                    written_bytes = 0
                    while written_bytes < padded_bytes:
                        written_bytes += os.write(descriptor, filled[written_bytes:padded_bytes])
            os.ftruncate(descriptor, len(data))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
            self._give_back(buffer)

    def _holds(self, path: Path, begin: int, end: int, data: bytes | bytearray, flags: int) -> bool:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
        buffer = self._taken()
        try:
            with memoryview(buffer) as read:
                at = begin
                while at < end:
                    position = at - at % _BLOCK_BYTES
                    read_bytes = os.preadv(descriptor, [buffer], position)
                    piece = read[at - position : min(read_bytes, end - position)]
                    # Views are compared number by number; this compares memory.
                    if not piece or not data.startswith(piece, at):
                        return False
                    at += len(piece)
            return True
        finally:
            os.close(descriptor)
            self._give_back(buffer)

    def _taken(self) -> mmap.mmap:
        try:
            return self._buffers.pop()
        except IndexError:
            return mmap.mmap(-1, BUFFER_BYTES)

    def _give_back(self, buffer: mmap.mmap) -> None:
        if len(self._buffers) < BUFFERS_KEPT_MAX:
            self._buffers.append(buffer)
