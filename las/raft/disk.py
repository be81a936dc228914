"""All file operations of a member, in one place: what is durable when, and a seam for other disks.

Nothing else in `las.raft` touches a file. So tests break the few operations that durability rests
on, and the simulator gives a member a disk of its own that loses what was not synced.

Invariants:
- After `sync` returned, everything written to the descriptor survives a power cut.
- After `replace` returned, the new content is under the name even after a power cut, and at every
  moment before it the name held the old content or the new one, whole.
- A failed sync is never tried again: the kernel may have dropped the pages that it could not write,
  and the second call would say success. The caller stops the process.
- A lock ends with its descriptor, so it never outlives the process.
"""

import fcntl
import os
from pathlib import Path


class Disk:
    """The real disk. All methods raise OSError. Descriptors are the process's own."""

    # ------------------------------------------------------------------ descriptors

    def open_to_read(self, path: Path) -> int:
        """Opens a file at its beginning."""
        return os.open(path, os.O_RDONLY)

    def open_to_append(self, path: Path) -> int:
        """Opens an existing file; each write goes to its end."""
        return os.open(path, os.O_WRONLY | os.O_APPEND)

    def create(self, path: Path) -> int:
        """Opens a file to write, empty."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)

    def close(self, descriptor: int) -> None:
        """Releases a descriptor."""
        os.close(descriptor)

    def size_bytes(self, descriptor: int) -> int:
        """Returns the size of an open file."""
        return os.fstat(descriptor).st_size

    def read_at(self, descriptor: int, size_bytes: int, offset_bytes: int) -> bytes:
        """Returns at most `size_bytes` from `offset_bytes` on; nothing at the end."""
        return os.pread(descriptor, size_bytes, offset_bytes)

    def write(self, descriptor: int, data: bytes) -> None:
        """Writes all of `data`. After an error it is not known how much was written."""
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    def sync(self, descriptor: int) -> None:
        """Makes the content of a file durable; see the module's third invariant."""
        os.fdatasync(descriptor)

    # ------------------------------------------------------------------ names

    def read_file(self, path: Path) -> bytes:
        """Returns the whole content."""
        return path.read_bytes()

    def exists(self, path: Path) -> bool:
        """Tells whether there is a file or directory of this name."""
        return path.exists()

    def list_directory(self, directory: Path) -> list[str]:
        """Returns the names in a directory, sorted."""
        return sorted(path.name for path in directory.iterdir())

    def make_directory(self, directory: Path) -> None:
        """Makes a directory and those above it, unless it is there."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def remove(self, path: Path) -> None:
        """Removes a file if it is there."""
        path.unlink(missing_ok=True)

    def rename(self, source: Path, target: Path) -> None:
        """Gives a file another name; durable after `sync_directory`."""
        source.replace(target)

    def sync_directory(self, directory: Path) -> None:
        """Makes the names in a directory durable."""
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def lock(self, path: Path) -> int:
        """Makes `path` if it is missing and locks it. Raises OSError if another process did."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    # ------------------------------------------------------------------ made of these

    def replace(self, source: Path, target: Path) -> None:
        """Moves a synced file to its final name, durably."""
        self.rename(source, target)
        self.sync_directory(target.parent)

    def write_file(self, path: Path, *parts: bytes) -> None:
        """Makes `path` hold exactly `parts`, atomically and durably."""
        draft = path.with_name(path.name + DRAFT_SUFFIX)
        self.write_draft(draft, *parts)
        self.replace(draft, path)

    def write_draft(self, draft: Path, *parts: bytes) -> None:
        """Makes a synced file that `replace` can move to its name."""
        descriptor = self.create(draft)
        try:
            for part in parts:
                self.write(descriptor, part)
            self.sync(descriptor)
        finally:
            self.close(descriptor)

    def remove_drafts(self, directory: Path) -> None:
        """Removes what an interrupted write left behind."""
        for name in self.list_directory(directory):
            if name.endswith(DRAFT_SUFFIX):
                self.remove(directory / name)


# Files with this end are drafts of something that was never finished; removed at start.
DRAFT_SUFFIX = ".draft"
