"""What a peer wrote to its data file and what of it was durable when, through `disk_watch.c`.

From that follow two things: whether an acknowledgement came before its bytes were durable, and all
the contents that a power cut may leave in the file (`after_power_cut`):

- Durable is what was there when the process started, each write that a later successful sync
  followed, and each write through a descriptor that is synchronous by itself.
- Of everything else each sector of 512 bytes is there or not, one by one: the kernel and the disk
  may write it at any time, in any order, and tear it anywhere between sectors.

What this does not model: the file system's own metadata, beyond the length of the file, and a disk
that loses what it called durable.
"""

import os
import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from peerd.testing.dev_cluster import Member

SECTOR_BYTES = 512
_RECORD = struct.Struct("=IiQQQ")
COMPILER = shutil.which("cc")


class Kind(IntEnum):
    """As in disk_watch.c."""

    WRITE = 1
    WRITE_DONE = 2
    SYNC = 3
    SYNC_DONE = 4
    TRUNCATE = 5


@dataclass(frozen=True, slots=True)
class Call:
    """One record; `at_s` on the monotonic clock that all processes share."""

    kind: Kind
    durable: bool
    offset: int
    at_s: float
    data: bytes


class DiskWatch:
    """Watches the data file of one peer, from its next start on."""

    def __init__(self, member: Member, library: Path, directory: Path, delay_ms: int = 0) -> None:
        self.data_file = member.data_dir / "data.mdb"
        self._log = directory / f"{member.id}.writes"
        self._base = b""
        member.environment |= {"LD_PRELOAD": str(library), "DISK_WATCH_LOG": str(self._log)}
        if delay_ms:
            member.environment["DISK_WATCH_DELAY_MS"] = str(delay_ms)

    def begin(self) -> None:
        """Before each start: what is in the file now is durable."""
        self._base = self.data_file.read_bytes() if self.data_file.exists() else b""
        self._log.unlink(missing_ok=True)

    def calls(self) -> Iterator[Call]:
        """Everything since the start of the process, in order. A torn last record is left out."""
        if not self._log.exists():
            return
        with self._log.open("rb") as log:
            while len(head := log.read(_RECORD.size)) == _RECORD.size:
                kind, durable, offset, length, at_ns = _RECORD.unpack(head)
                data = log.read(length)
                if len(data) < length:
                    return
                yield Call(Kind(kind), bool(durable), offset, at_ns / 1e9, data)

    def durable_from_s(self, marker: bytes) -> float | None:
        """When what holds `marker` was durable and, by the meta page behind it, part of the store.

        LMDB's order: pages, sync, then the meta page through a synchronous descriptor. None: never.
        """
        state = "pages"
        for call in self.calls():
            if state == "pages" and call.kind is Kind.WRITE and marker in call.data:
                state = "sync"
            elif state == "sync" and call.kind is Kind.SYNC_DONE and call.durable:
                state = "meta"
            elif state == "meta" and call.kind is Kind.WRITE_DONE and call.durable:
                return call.at_s
        return None

    def after_power_cut(self, draw: random.Random) -> bytes:
        """A content that a power cut at the moment of the process's end may leave."""
        calls = list(self.calls())
        done_behind: dict[int, bool] = {}
        synced = False
        for number in range(len(calls) - 1, -1, -1):
            call = calls[number]
            if call.kind is Kind.SYNC_DONE and call.durable:
                synced = True
            done_behind[number] = synced
        image = bytearray(self._base)
        for number, call in enumerate(calls):
            if call.kind is Kind.TRUNCATE:
                raise AssertionError("the store does not truncate its file")
            if call.kind is not Kind.WRITE:
                continue
            finished = number + 1 < len(calls) and calls[number + 1].kind is Kind.WRITE_DONE
            is_durable = finished and (call.durable or done_behind[number])
            for start in range(0, len(call.data), SECTOR_BYTES):
                if is_durable or draw.random() < 0.5:
                    _put(image, call.offset + start, call.data[start : start + SECTOR_BYTES])
        return bytes(image)

    def cut(self, draw: random.Random) -> None:
        """Make the file what a power cut leaves; the process has ended."""
        self.data_file.write_bytes(self.after_power_cut(draw))


def _put(image: bytearray, offset: int, data: bytes) -> None:
    if len(image) < offset:
        image.extend(bytes(offset - len(image)))
    image[offset : offset + len(data)] = data


def build(directory: Path) -> Path:
    """Compile the library that is preloaded. Raises `subprocess.CalledProcessError`."""
    library = directory / "disk_watch.so"
    source = Path(__file__).with_name("disk_watch.c")
    assert COMPILER is not None, "no C compiler (cc): install one"
    command = [COMPILER, "-O2", "-shared", "-fPIC", "-o", str(library), str(source)]
    subprocess.run([*command, "-ldl", "-lpthread"], check=True, env=os.environ)
    return library
