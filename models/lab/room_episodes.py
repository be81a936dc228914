"""What is done to a peer through its room: by the kernel, from outside, to that peer alone.

kind                what grows or happens                                     by
disk_slow           writes a second that its disk takes fall                  blkio/io control group
disk_stalls         its file system takes no writes for longer and longer     FIFREEZE, FITHAW
disk_full           something else fills its disk                             fallocate
disk_failure        its file system fails every request (abrupt)              EXT4_IOC_SHUTDOWN
cpu_quota           the processor time that it may use falls                  cpu control group
memory_leak         it takes memory until the kernel ends it (OOM)            memory control group
packet_loss, _delay what it sends is lost, or late                            models/lab/link.py
descriptors         clients open connections and leave them open              RLIMIT_NOFILE
killed              SIGKILL (abrupt)                                          SIGKILL

The look-alikes use the same means, mildly and for a while, or steadily from the start.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import socket
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from models.lab.link import SickLink
from models.lab.room import RESERVE_BYTES, Limits, Room
from models.lab.watch import LabPeer, PeerWatch
from peerd.testing.faults import FaultFile, Faults

if TYPE_CHECKING:
    from models.lab.episodes import EpisodeThread

_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878
_EXT4_IOC_SHUTDOWN = 0x8004587D
_SHUTDOWN_NOLOGFLUSH = struct.pack("I", 2)
_BLOCK_BYTES = 1 << 20
_LEAK_BYTES = 600_000_000  # more than any room has
_STALL_STEP_S = 0.05
_CONNECT_S_MAX = 1.0
# What a peer still opens by itself: a burst of connections must leave it that.
_OWN_DESCRIPTORS = 60


def _limits(room: Room) -> Limits:
    assert room.limits is not None
    return room.limits


def _disk_slow(thread: EpisodeThread, watch: PeerWatch, room: Room) -> None:
    limits = _limits(room)
    ramp = thread.ramp(thread.number("start_per_s"), thread.number("end_per_s"))
    thread.grow(watch, limits.set_writes, ramp)
    thread.finish(watch)
    limits.set_writes(None)


def _cpu_quota(thread: EpisodeThread, watch: PeerWatch, room: Room) -> None:
    limits = _limits(room)
    ramp = thread.ramp(thread.number("start_cores"), thread.number("end_cores"))
    thread.grow(watch, limits.set_cpu, ramp)
    thread.finish(watch)
    limits.set_cpu(None)


class _Freezer:
    """Stops all writes to a file system; `thaw` lets them go on."""

    def __init__(self, directory: Path) -> None:
        self._descriptor = os.open(directory, os.O_RDONLY)
        self._frozen = False

    def freeze(self) -> None:
        if not self._frozen:
            fcntl.ioctl(self._descriptor, _FIFREEZE, 0)
            self._frozen = True

    def thaw(self) -> None:
        if self._frozen:
            fcntl.ioctl(self._descriptor, _FITHAW, 0)
            self._frozen = False

    def close(self) -> None:
        self.thaw()
        os.close(self._descriptor)


def _disk_stalls(thread: EpisodeThread, watch: PeerWatch, room: Room) -> None:
    period_s = thread.number("period_s")
    ramp = thread.ramp(thread.number("start_share"), thread.number("end_share"))
    until_s = ramp.onset_s + thread.episode.duration_s
    freezer = _Freezer(room.disk)
    try:
        while (now_s := time.monotonic()) < until_s:
            stalled_s = period_s * ramp.value(now_s)
            freezer.freeze()
            if _wait(thread, watch, stalled_s):
                break
            freezer.thaw()
            if _wait(thread, watch, period_s - stalled_s):
                break
        if thread.outcome.stopped_s is None and not thread.ending.is_set():
            freezer.freeze()
        # Killed while frozen it would stay until the thaw: seen first, then thawed.
        thread.see_end(watch)
    finally:
        freezer.close()
    thread.finish(watch)


def _wait(thread: EpisodeThread, watch: PeerWatch, seconds: float) -> bool:
    """Wait; True when the peer stopped or the run ends meanwhile."""
    until_s = time.monotonic() + seconds
    while (left_s := until_s - time.monotonic()) > 0.0:
        if thread.follow(watch, min(left_s, 4 * _STALL_STEP_S)):
            return True
    return False


class _Filler:
    """A file of something else on the peer's disk, of any size at once."""

    def __init__(self, room: Room) -> None:
        self._path = room.disk / "other.bin"
        self._file = self._path.open("wb")
        space = os.statvfs(room.disk)
        self.free_bytes = space.f_bavail * space.f_frsize
        self._bytes = 0

    def fill(self, size_bytes: float) -> None:
        grown = int(size_bytes) // _BLOCK_BYTES * _BLOCK_BYTES
        if grown > self._bytes:
            with suppress(OSError):  # the disk is full
                os.posix_fallocate(self._file.fileno(), self._bytes, grown - self._bytes)
                self._bytes = grown

    def remove(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)


def _disk_full(thread: EpisodeThread, watch: PeerWatch, room: Room) -> None:
    filler = _Filler(room)
    end = filler.free_bytes - RESERVE_BYTES / 2
    thread.grow(watch, filler.fill, thread.ramp(1.0, float(end)))
    thread.finish(watch)
    filler.remove()


def _disk_failure(thread: EpisodeThread, watch: PeerWatch, room: Room) -> None:
    descriptor = os.open(room.disk, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _EXT4_IOC_SHUTDOWN, _SHUTDOWN_NOLOGFLUSH)
    finally:
        os.close(descriptor)
    thread.finish(watch)


def _killed(thread: EpisodeThread, watch: PeerWatch, _room: Room) -> None:
    os.kill(thread.peer.pid, signal.SIGKILL)
    thread.finish(watch)


def _memory_leak(thread: EpisodeThread, watch: PeerWatch, _room: Room) -> None:
    leak_bytes_per_s = _LEAK_BYTES / thread.episode.duration_s
    FaultFile(thread.peer.faults_file).set(Faults(leak_bytes_per_s=leak_bytes_per_s))
    thread.grow(watch, lambda _: None, thread.ramp(0.0, 1.0))
    thread.finish(watch)


def _packet_loss(thread: EpisodeThread, watch: PeerWatch, room: Room) -> None:
    link = SickLink(room)
    ramp = thread.ramp(thread.number("start_share"), thread.number("end_share"))
    thread.grow(watch, lambda share: link.set(delay_ms=0.0, loss_share=share), ramp)
    if thread.outcome.stopped_s is None:
        link.set(delay_ms=0.0, loss_share=1.0)
    thread.finish(watch)
    link.close()


def _packet_delay(thread: EpisodeThread, watch: PeerWatch, room: Room) -> None:
    link = SickLink(room)
    ramp = thread.ramp(thread.number("start_ms"), thread.number("end_ms"))
    thread.grow(watch, lambda ms: link.set(delay_ms=ms, loss_share=0.0), ramp)
    if thread.outcome.stopped_s is None:
        link.set(delay_ms=10_000.0, loss_share=0.0)
    thread.finish(watch)
    link.close()


class _Connections:
    """Connections that a client opens to a peer and leaves open."""

    def __init__(self, peer: LabPeer) -> None:
        self._peer = peer
        self._open = ExitStack()
        self._count = 0

    def open(self, count: float) -> None:
        """Have so many open."""
        while self._count < int(count):
            try:
                connection = socket.create_connection(self._peer.http_address, _CONNECT_S_MAX)
            except OSError:
                return  # its queue is full, or it is gone
            self._open.enter_context(connection)
            self._count += 1

    def close(self) -> None:
        self._open.close()


def _descriptors(thread: EpisodeThread, watch: PeerWatch, room: Room) -> None:
    connections = _Connections(thread.peer)
    # A few more than it has left, so that the last ones wait in vain.
    thread.grow(watch, connections.open, thread.ramp(0.0, float(room.descriptors_max)))
    thread.finish(watch)
    connections.close()


# ---------------------------------------------------------------------- look-alikes
def _stay(thread: EpisodeThread) -> None:
    thread.ending.wait(thread.episode.duration_s)


def _slow_disk(thread: EpisodeThread, _watch: PeerWatch, room: Room) -> None:
    _limits(room).set_writes(thread.number("writes_per_s"))
    _stay(thread)
    _limits(room).set_writes(None)


def _cpu_capped(thread: EpisodeThread, _watch: PeerWatch, room: Room) -> None:
    _limits(room).set_cpu(thread.number("cores"))
    _stay(thread)
    _limits(room).set_cpu(None)


def _sick_link_for_a_while(thread: EpisodeThread, delay_ms: float, loss: float) -> None:
    assert thread.peer.room is not None
    link = SickLink(thread.peer.room)
    link.set(delay_ms=delay_ms, loss_share=loss)
    _stay(thread)
    link.close()


def _far(thread: EpisodeThread, _watch: PeerWatch, _room: Room) -> None:
    _sick_link_for_a_while(thread, thread.number("delay_ms"), 0.0)


def _lossy(thread: EpisodeThread, _watch: PeerWatch, _room: Room) -> None:
    _sick_link_for_a_while(thread, 0.0, thread.number("loss_share"))


def _spell(thread: EpisodeThread, apply: Callable[[float], None], end: float) -> None:
    """Grow over the first half of the time, then stay."""
    begun_s, grow_s = time.monotonic(), thread.episode.duration_s / 2.0
    while (now_s := time.monotonic()) < begun_s + 2.0 * grow_s:
        apply(end * min((now_s - begun_s) / grow_s, 1.0))
        if thread.ending.wait(4 * _STALL_STEP_S):
            break


def _temporary_file(thread: EpisodeThread, _watch: PeerWatch, room: Room) -> None:
    filler = _Filler(room)
    _spell(thread, filler.fill, filler.free_bytes * thread.number("share"))
    filler.remove()


def _connection_burst(thread: EpisodeThread, _watch: PeerWatch, room: Room) -> None:
    connections = _Connections(thread.peer)
    most = max(room.descriptors_max * thread.number("share") - _OWN_DESCRIPTORS, 10.0)
    _spell(thread, connections.open, most)
    connections.close()


def _memory_step(thread: EpisodeThread, _watch: PeerWatch, _room: Room) -> None:
    """It takes memory, as a cache that fills does, and keeps it."""
    file = FaultFile(thread.peer.faults_file)
    grow_s = thread.episode.duration_s / 2.0
    file.set(Faults(leak_bytes_per_s=_LEAK_BYTES / 2 * thread.number("share") / grow_s))
    thread.ending.wait(grow_s)
    file.clear()


def _scrub(thread: EpisodeThread, _watch: PeerWatch, room: Room) -> None:
    """Read all that is on its disk, from the disk, and sum it up."""
    until_s = time.monotonic() + thread.episode.duration_s
    while time.monotonic() < until_s and not thread.ending.is_set():
        for path in [each for each in room.disk.rglob("*") if each.is_file()]:
            with suppress(FileNotFoundError), path.open("rb") as source:
                os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                digest = hashlib.sha256()
                while block := source.read(_BLOCK_BYTES):
                    digest.update(block)
                    if time.monotonic() > until_s or thread.ending.is_set():
                        return
        thread.ending.wait(4 * _STALL_STEP_S)


ROOM_EPISODES: dict[str, Callable[[EpisodeThread, PeerWatch, Room], None]] = {
    "disk_slow": _disk_slow,
    "disk_stalls": _disk_stalls,
    "disk_full": _disk_full,
    "disk_failure": _disk_failure,
    "cpu_quota": _cpu_quota,
    "memory_leak": _memory_leak,
    "packet_loss": _packet_loss,
    "packet_delay": _packet_delay,
    "descriptors": _descriptors,
    "killed": _killed,
    "slow_disk": _slow_disk,
    "cpu_capped": _cpu_capped,
    "far": _far,
    "lossy": _lossy,
    "temporary_file": _temporary_file,
    "connection_burst": _connection_burst,
    "memory_step": _memory_step,
    "scrub": _scrub,
}
