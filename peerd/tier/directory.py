"""A directory as an object store: a mount of a large disk, or of a network file system.

An object is written to a file of its own name in `tmp`, flushed, and then linked to its name, which
fails if there is one: so a name appears with all its bytes or not at all, also at a power cut. The
directory is flushed before anybody is told. It is written and read back past the page cache
(`peerd.tier.direct`), and read through it.

What root makes belongs to whom the directory does: peers, which run as somebody else, go on in the
folders that a command of an operator, such as a restore, has begun.

Calls run in a few threads, since a file system may hang: the event loop never waits for it, nor
does the end of the process. A thread that hangs keeps its place until it comes back, whoever gave
up waiting for it. Threads are kept for the next call: the loop waits until a new one runs, which
takes as long as the machine is busy.
"""

import asyncio
import contextlib
import errno
import os
import queue
import secrets
import threading
import weakref
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar, cast

from peerd.tier.direct import DirectFiles
from peerd.tier.errors import MissingObject, NoCredentials, TierError, TierUnavailable
from peerd.tier.store import LISTED_MAX, Listed

# limit: calls to the file system at a time; a hanging one keeps a thread until it ends
THREADS_MAX = 8
_TEMPORARY = "tmp"
# Names of threads.
_AT_WORK, _IDLE = "tier", "tier, idle"

T = TypeVar("T")


class DirectoryBackend:
    """Objects as files below `root`, which is made if it is not there."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files = DirectFiles()
        self._places = asyncio.Semaphore(THREADS_MAX)
        self._idle: list[_Works] = []
        # Whoever is idle by then ends with the backend.
        weakref.finalize(self, _dismiss, self._idle)

    @property
    def name(self) -> str:
        """What people call it."""
        return str(self._root)

    async def create(self, key: str, data: bytes | bytearray) -> bool:
        """See `Backend`."""
        return await self._threaded(lambda: self._create(self._path(key), data))

    async def read(self, key: str, begin: int, end: int) -> bytes:
        """See `Backend`."""

        def read() -> bytes:
            with self._path(key).open("rb") as file:
                file.seek(begin)
                return file.read(end - begin)

        return await self._threaded(read)

    async def holds(self, key: str, begin: int, end: int, data: bytes | bytearray) -> bool:
        """See `Backend`."""
        return await self._threaded(lambda: self._files.holds(self._path(key), begin, end, data))

    async def size_bytes(self, key: str) -> int:
        """See `Backend`."""
        return await self._threaded(lambda: self._path(key).stat().st_size)

    async def listed(self, prefix: str) -> list[Listed]:
        """See `Backend`."""
        return await self._threaded(lambda: self._listed(self._path(prefix)))

    async def folders(self, prefix: str) -> list[str]:
        """See `Backend`."""

        def folders() -> list[str]:
            folder = self._path(prefix)
            if not folder.is_dir():
                return []
            found = islice((path for path in folder.iterdir() if path.is_dir()), LISTED_MAX)
            return [path.relative_to(self._root).as_posix() for path in found]

        return await self._threaded(folders)

    async def remove(self, keys: Sequence[str]) -> None:
        """See `Backend`."""

        def remove() -> None:
            for key in keys:
                self._path(key).unlink(missing_ok=True)

        await self._threaded(remove)

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if not all(parts) or not {".", ".."}.isdisjoint(parts):
            raise TierError(f"{key!r:.80} is no name of an object")
        return self._root.joinpath(*parts)

    def _create(self, path: Path, data: bytes | bytearray) -> bool:
        temporary = self._root / _TEMPORARY / f"{secrets.token_hex(8)}.part"
        _make_durably(temporary.parent, self._root)
        _make_durably(path.parent, self._root)
        try:
            self._files.write(temporary, data)
            _hand_over(temporary, self._root)
            try:
                path.hardlink_to(temporary)
            except FileExistsError:
                return False
            _flush(path.parent)
            return True
        finally:
            temporary.unlink(missing_ok=True)

    def _listed(self, folder: Path) -> list[Listed]:
        found: list[Listed] = []
        if not folder.is_dir():
            return found
        for path in folder.rglob("*"):
            if path.is_file() and len(found) < LISTED_MAX:
                key = path.relative_to(self._root).as_posix()
                found.append(Listed(key=key, size_bytes=path.stat().st_size))
        return found

    async def _threaded(self, call: Callable[[], T]) -> T:
        await self._places.acquire()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        works = self._idle.pop() if self._idle else _begin_thread()

        def answered(result: T | None, error: Exception | None) -> None:
            self._idle.append(works)
            self._places.release()
            if answer.done():
                return  # nobody waits for it any more
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(cast(T, result))

        def run() -> None:
            result, failure = None, None
            try:
                result = call()
            except Exception as error:  # noqa: BLE001 - raised where it is awaited
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop ended meanwhile
                loop.call_soon_threadsafe(answered, result, failure)

        works.put(run)
        try:
            return await answer
        except FileNotFoundError as error:
            raise MissingObject(f"{error.filename} is not there") from error
        except PermissionError as error:
            raise NoCredentials(f"{error.filename}: {error.strerror}") from error
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "")
            raise TierUnavailable(f"{self.name}: {error.strerror} {name}") from error


_Works = queue.SimpleQueue[Callable[[], None] | None]


def _begin_thread() -> _Works:
    """A thread that does what is put into the queue; None ends it."""
    works: _Works = queue.SimpleQueue()

    def serve() -> None:
        while (work := works.get()) is not None:
            thread.name = _AT_WORK
            work()
            thread.name = _IDLE
            del work  # it holds the backend, whose end is that of this thread

    thread = threading.Thread(target=serve, name=_IDLE, daemon=True)
    thread.start()
    return works


def _dismiss(idle: list[_Works]) -> None:
    for works in idle:
        works.put(None)


def _make_durably(folder: Path, root: Path) -> None:
    """Make a folder below `root`, and each that it lies in, so that a power cut leaves them."""
    if folder.is_dir():
        return
    if folder != root:
        _make_durably(folder.parent, root)
    folder.mkdir(parents=folder == root, exist_ok=True)
    if folder != root:
        _hand_over(folder, root)
    _flush(folder.parent)


def _hand_over(path: Path, root: Path) -> None:
    """Give what root has made to the owner of the directory, where its file system lets root."""
    if os.geteuid() == 0:
        owner = root.stat()
        with contextlib.suppress(PermissionError):
            os.chown(path, owner.st_uid, owner.st_gid)


def _flush(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
