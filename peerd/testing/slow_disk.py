"""A disk that falls sick on command: a directory seen through FUSE, for root.

`python -m peerd.testing.slow_disk MOUNT BACKING FAULTS_FILE` shows BACKING at MOUNT until it gets
SIGTERM. Whenever the kernel asks it to make something durable (fsync, fdatasync, each write to a
file that was opened for synchronous writes), it suffers first what FAULTS_FILE says (see
`peerd.testing.faults`): the storage that uses it knows nothing, links nothing and is told nothing.

Requests are served one after the other, as a disk with one head does: a read that comes behind a
slow flush waits for it.

Needs root, /dev/fuse and libfuse (Debian: libfuse2); `why_not` says which is missing.
"""

import ctypes.util
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from peerd.testing.faults import StorageFaults

MOUNT_TIMEOUT_S = 10.0
END_TIMEOUT_S = 10.0
_POLL_S = 0.01
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1
_STATUS = ("gid", "mode", "nlink", "size", "uid")
_SPACE = ("bavail", "bfree", "blocks", "bsize", "favail", "ffree", "files", "flag", "frsize")


class SlowDiskError(Exception):
    """The disk cannot be had here; one line says why."""


def why_not() -> str:
    """Why this machine cannot have such a disk; empty if it can."""
    if os.geteuid() != 0:
        return "it needs root, to mount a file system"
    if not Path("/dev/fuse").exists():
        return "this kernel has no /dev/fuse"
    if ctypes.util.find_library("fuse") is None and ctypes.util.find_library("fuse3") is None:
        return "libfuse is not installed (Debian: apt install libfuse2)"
    return ""


class SlowDisk:
    """One such disk, run by a process of its own. A context manager: leaving it unmounts."""

    def __init__(self, mount: Path, backing: Path, faults_file: Path) -> None:
        """Shows `backing` at `mount`; both are made if they are missing."""
        self.mount = mount
        self._backing = backing
        self._faults_file = faults_file
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Mount it. Raises `SlowDiskError`."""
        if wrong := why_not():
            raise SlowDiskError(wrong)
        self.mount.mkdir(parents=True, exist_ok=True)
        self._backing.mkdir(parents=True, exist_ok=True)
        program = [sys.executable, "-m", "peerd.testing.slow_disk"]
        self._process = subprocess.Popen(
            [*program, str(self.mount), str(self._backing), str(self._faults_file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        deadline = time.monotonic() + MOUNT_TIMEOUT_S
        while not self.mount.is_mount():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.end()
                raise SlowDiskError(f"{self.mount}: could not be mounted")
            time.sleep(_POLL_S)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """Unmount, also under files that are open still, and end the process."""
        if self._process is None:
            return
        libc = ctypes.CDLL(None, use_errno=True)
        if self.mount.is_mount():
            libc.umount2(os.fsencode(self.mount), _MNT_DETACH)
        self._process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_TIMEOUT_S)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()
        self._process = None


class _Mirror:
    """The operations of FUSE, as its library calls them, on a backing directory."""

    use_ns = True

    def __init__(self, backing: Path, faults: StorageFaults) -> None:
        self._backing = str(backing)
        self._faults = faults
        self._synchronous: set[int] = set()

    def _at(self, path: str) -> Path:
        """`path` is absolute within the mount."""
        return Path(self._backing + path)

    # ------------------------------------------------------------------ what is slow
    def fsync(self, _path: str, datasync: int, handle: int) -> None:
        self._faults.before_commit()
        if datasync:
            os.fdatasync(handle)
        else:
            os.fsync(handle)

    def fsyncdir(self, path: str, _datasync: int, _handle: int) -> None:
        descriptor = os.open(self._at(path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._faults.before_commit()
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def write(self, _path: str, data: bytes, offset: int, handle: int) -> int:
        if handle in self._synchronous:
            self._faults.before_commit()
        return os.pwrite(handle, data, offset)

    # ------------------------------------------------------------------ what is not
    def open(self, path: str, flags: int) -> int:
        # The kernel keeps the place of appending writes itself.
        handle = os.open(self._at(path), flags & ~os.O_APPEND)
        if flags & (os.O_DSYNC | os.O_SYNC):
            self._synchronous.add(handle)
        return handle

    def create(self, path: str, mode: int, _info: object = None) -> int:
        return os.open(self._at(path), os.O_RDWR | os.O_CREAT, mode)

    def read(self, _path: str, size: int, offset: int, handle: int) -> bytes:
        return os.pread(handle, size, offset)

    def release(self, _path: str, handle: int) -> None:
        self._synchronous.discard(handle)
        os.close(handle)

    def getattr(self, path: str, _handle: int | None = None) -> dict[str, int]:
        status = self._at(path).lstat()
        times = {f"st_{name}time": getattr(status, f"st_{name}time_ns") for name in "acm"}
        return {f"st_{name}": getattr(status, f"st_{name}") for name in _STATUS} | times

    def readdir(self, path: str, _handle: int) -> list[str]:
        return [".", "..", *(each.name for each in self._at(path).iterdir())]

    def statfs(self, path: str) -> dict[str, int]:
        space = os.statvfs(self._at(path))
        return {f"f_{name}": getattr(space, f"f_{name}") for name in _SPACE}

    def truncate(self, path: str, length: int, handle: int | None = None) -> None:
        os.truncate(self._at(path) if handle is None else handle, length)

    def chmod(self, path: str, mode: int) -> None:
        self._at(path).chmod(mode)

    def mkdir(self, path: str, mode: int) -> None:
        self._at(path).mkdir(mode)

    def rmdir(self, path: str) -> None:
        self._at(path).rmdir()

    def unlink(self, path: str) -> None:
        self._at(path).unlink()

    def rename(self, old: str, new: str) -> None:
        self._at(old).rename(self._at(new))

    def utimens(self, path: str, times: tuple[int, int]) -> None:
        os.utime(self._at(path), ns=times)


def main() -> int:
    """Mount until SIGTERM, or until whoever started it has gone."""
    # Only here: importing it needs libfuse.
    import mfusepy

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    mount, backing, faults_file = map(Path, sys.argv[1:4])
    operations = type("Mirror", (_Mirror, mfusepy.Operations), {})
    mfusepy.FUSE(
        operations(backing, StorageFaults(faults_file)),
        str(mount),
        foreground=True,
        nothreads=True,
        fsname="slow-disk",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
