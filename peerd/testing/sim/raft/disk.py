"""The disk of a simulated member: files in memory, and what a crash or a power cut leaves of them.

What is written is in the page cache until it is synced; a name is where it was until its directory
is synced. A killed process loses its descriptors only. A power cut takes back what was not synced:
of each file some beginning of the unsynced bytes is left, perhaps with zeros behind it, and of the
changes of names the first few.

After a failed sync the unsynced bytes stay readable, another sync says success, and yet a power cut
takes them: that is what kernels do. Writing to the file again makes its pages dirty again.

Not modelled: pages of one unsynced write that become durable out of order. The journal takes them
for damage and refuses to start.
"""

import errno
import random
from pathlib import Path

from las.raft.disk import Disk
from peerd.testing.sim.world import World

SYNC_MS = (1, 1, 1, 2, 2, 3, 5, 12)
"""How long a sync usually takes."""
SLOW_FACTOR = 30
ZEROS = 0.2
"""Share of torn tails that have zeros behind them."""


class Gone(BaseException):
    """The process ends here, in the middle of what it does; nobody may catch it and go on."""


class _File:
    """`content` is what a process reads; its first `durable_bytes` survive a power cut."""

    __slots__ = ("content", "durable_bytes", "is_dropped", "whole")

    def __init__(self) -> None:
        self.content = bytearray()
        self.durable_bytes = 0
        self.whole: bytes | None = None
        """The durable content before the file was emptied, if that is not synced."""
        self.is_dropped = False
        """A sync has failed: what it should have written is never written by another one."""

    def sync(self) -> None:
        if not self.is_dropped:
            self.durable_bytes = len(self.content)
            self.whole = None

    def lose_power(self, rng: random.Random) -> None:
        if self.whole is not None and rng.random() < 0.5:
            self.content = bytearray(self.whole)
            self.durable_bytes = len(self.content)
        unsynced = len(self.content) - self.durable_bytes
        kept = 0 if self.is_dropped else rng.choice((0, unsynced, rng.randint(0, unsynced)))
        del self.content[self.durable_bytes + kept :]
        if kept < unsynced and rng.random() < ZEROS:
            self.content += bytes(rng.randint(0, unsynced - kept))
        self.durable_bytes = len(self.content)
        self.whole = None
        self.is_dropped = False


class SimDisk(Disk):
    """One member's disk. It outlives processes."""

    def __init__(self, world: World) -> None:
        self.fuse: int | None = None
        """After so many more effects the process ends."""
        self.fails_next = ""
        """Which operation fails next: `sync`, `write`, or none."""
        self.has_failed = False
        """An operation has failed in this life of the process."""
        self.slow = False
        self.busy_ms = 0
        """How long the operations since the last look took."""
        self._world = world
        self._rng = world.rng
        self._is_gone = False
        self._names: dict[Path, _File] = {}
        self._durable: dict[Path, _File] = {}
        self._changes: list[tuple[Path | None, Path | None, _File]] = []
        self._directories: set[Path] = set()
        self._open: dict[int, _File] = {}
        self._locks: dict[int, Path] = {}
        self._descriptor = 0

    # ------------------------------------------------------------------ what happens to it
    def end_process(self, *, power_cut: bool) -> None:
        """The process is gone, and perhaps the machine's power with it."""
        self._open.clear()
        self._locks.clear()
        self._is_gone = self.has_failed = False
        self.fuse = None
        self.fails_next = ""
        self.busy_ms = 0
        if not power_cut:
            return
        survived = self._rng.randint(0, len(self._changes))
        for change in self._changes[:survived]:
            _move(self._durable, *change)
        self._changes.clear()
        self._names = dict(self._durable)
        for file in dict.fromkeys(self._names.values()):
            file.lose_power(self._rng)

    def lose_all(self) -> None:
        """Another, empty disk is in its place."""
        self._names.clear()
        self._durable.clear()
        self._changes.clear()
        self._directories.clear()

    def take_busy_ms(self) -> int:
        """How long the operations since the last call took."""
        busy_ms, self.busy_ms = self.busy_ms, 0
        return busy_ms

    def _effect(self) -> None:
        """Something is about to change: perhaps the process does not live to see it."""
        if self.fuse is not None:
            self.fuse -= 1
            self._is_gone = self._is_gone or self.fuse < 0
        self._look()

    def _look(self) -> None:
        if self._is_gone:
            raise Gone

    def _wait(self) -> None:
        self._world.events += 1
        delay_ms = SYNC_MS[int(self._rng.random() * len(SYNC_MS))]
        self.busy_ms += delay_ms * (SLOW_FACTOR if self.slow else 1)

    def _fail_if_due(self, operation: str) -> bool:
        if self.fails_next != operation:
            return False
        self.fails_next = ""
        self.has_failed = True
        return True

    def _file(self, path: Path) -> _File:
        self._look()
        file = self._names.get(path)
        if file is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return file

    def _opened(self, file: _File) -> int:
        self._descriptor += 1
        self._open[self._descriptor] = file
        return self._descriptor

    def _change(self, source: Path | None, target: Path | None, file: _File) -> None:
        _move(self._names, source, target, file)
        self._changes.append((source, target, file))

    # ------------------------------------------------------------------ descriptors
    def open_to_read(self, path: Path) -> int:
        """See `Disk`."""
        return self._opened(self._file(path))

    def open_to_append(self, path: Path) -> int:
        """See `Disk`."""
        return self._opened(self._file(path))

    def create(self, path: Path) -> int:
        """See `Disk`."""
        self._effect()
        file = self._names.get(path)
        if file is None:
            file = _File()
            self._change(None, path, file)
        descriptor = self._opened(file)
        if file.whole is None:
            file.whole = bytes(file.content[: file.durable_bytes])
        file.durable_bytes = 0
        file.content.clear()
        return descriptor

    def close(self, descriptor: int) -> None:
        """See `Disk`."""
        self._open.pop(descriptor, None)
        self._locks.pop(descriptor, None)

    def size_bytes(self, descriptor: int) -> int:
        """See `Disk`."""
        self._look()
        return len(self._open[descriptor].content)

    def read_at(self, descriptor: int, size_bytes: int, offset_bytes: int) -> bytes:
        """See `Disk`."""
        self._look()
        return bytes(self._open[descriptor].content[offset_bytes : offset_bytes + size_bytes])

    def write(self, descriptor: int, data: bytes) -> None:
        """See `Disk`."""
        self._effect()
        file = self._open[descriptor]
        if data:
            file.is_dropped = False
        if self._fail_if_due("write"):
            file.content += data[: self._rng.randint(0, len(data))]
            raise OSError(errno.ENOSPC, "the disk is full")
        file.content += data

    def sync(self, descriptor: int) -> None:
        """See `Disk`."""
        self._effect()
        self._wait()
        file = self._open[descriptor]
        if self._fail_if_due("sync"):
            file.is_dropped = True
            raise OSError(errno.EIO, "the disk has failed")
        file.sync()

    # ------------------------------------------------------------------ names
    def read_file(self, path: Path) -> bytes:
        """See `Disk`."""
        return bytes(self._file(path).content)

    def exists(self, path: Path) -> bool:
        """See `Disk`."""
        self._look()
        return path in self._names or path in self._directories

    def list_directory(self, directory: Path) -> list[str]:
        """See `Disk`."""
        self._look()
        found = {path.name for path in self._names if path.parent == directory}
        return sorted(found | {path.name for path in self._directories if path.parent == directory})

    def make_directory(self, directory: Path) -> None:
        """See `Disk`."""
        self._effect()
        self._directories.update((directory, *directory.parents))

    def remove(self, path: Path) -> None:
        """See `Disk`."""
        self._effect()
        if path in self._names:
            self._change(path, None, self._names[path])

    def rename(self, source: Path, target: Path) -> None:
        """See `Disk`."""
        self._effect()
        self._change(source, target, self._file(source))

    def sync_directory(self, directory: Path) -> None:  # noqa: ARG002 - as a journal of names does
        """Makes all changes of names durable."""
        self._effect()
        self._wait()
        if self._fail_if_due("sync"):
            raise OSError(errno.EIO, "the disk has failed")
        for change in self._changes:
            _move(self._durable, *change)
        self._changes.clear()

    def lock(self, path: Path) -> int:
        """See `Disk`."""
        self._look()
        if path in self._locks.values():
            raise BlockingIOError(errno.EAGAIN, "locked")
        if path not in self._names:
            self._change(None, path, _File())
        descriptor = self._opened(self._names[path])
        self._locks[descriptor] = path
        return descriptor


def _move(names: dict[Path, _File], source: Path | None, target: Path | None, file: _File) -> None:
    if source is not None:
        names.pop(source, None)
    if target is not None:
        names[target] = file
