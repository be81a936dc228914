"""The few file operations that durability rests on, in one place so that tests can break them.

Invariants:
- After `sync` returned, everything written to the descriptor survives a power cut.
- After `replace` returned, the new content is under the name even after a power cut, and at every
  moment before it the name held the old content or the new one, whole.
- A failed sync is never tried again: the kernel may have dropped the pages that it could not write,
  and the second call would say success. The caller stops the process.
"""

import os
from pathlib import Path


class Disk:
    """The real disk. Tests use a subclass that cuts power, fails or fills up."""

    def write(self, descriptor: int, data: bytes) -> None:
        """Writes all of `data`.

        Raises:
            OSError: the disk failed or is full; how much was written is not known.
        """
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    def sync(self, descriptor: int) -> None:
        """Makes the content of a file durable. Raises OSError; see the module's last invariant."""
        os.fdatasync(descriptor)

    def sync_directory(self, directory: Path) -> None:
        """Makes the names in a directory durable. Raises OSError."""
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def replace(self, source: Path, target: Path) -> None:
        """Moves a synced file to its final name, durably. Raises OSError."""
        source.replace(target)
        self.sync_directory(target.parent)

    def write_file(self, path: Path, *parts: bytes) -> None:
        """Makes `path` hold exactly `parts`, atomically and durably. Raises OSError."""
        draft = path.with_name(path.name + DRAFT_SUFFIX)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            for part in parts:
                self.write(descriptor, part)
            self.sync(descriptor)
        finally:
            os.close(descriptor)
        self.replace(draft, path)


# Files with this end are drafts of something that was never finished; removed at start.
DRAFT_SUFFIX = ".draft"


def remove_drafts(directory: Path) -> None:
    """Removes what an interrupted write left behind."""
    for draft in directory.glob(f"*{DRAFT_SUFFIX}"):
        draft.unlink()
