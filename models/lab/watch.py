"""Sees when a peer stopped: the ground truth of the lab, from outside and from its recording.

*Stopped* (docs/decisions.md): its process is gone, its storage failed (which ends the process), or
no acknowledgement for 3 s under offered load. The last shows in the peer's own recording, which
goes on while its storage hangs: a commit that has been under way for 3 s; and in the recording's
silence: a process that takes no sample for 3 s acknowledges nothing either.

A peer in a room can stop in more ways, which show from outside: nothing comes back over its network
for 3 s, not even to a question that needs no disk; or its disk has less left than its reserve for
3 s, and it refuses all appends.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from models.lab.room import RESERVE_BYTES, Room
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA
from peerd.daemon.telemetry.window import RecordingUnreadable, read_recording

STOPPED_AFTER_S = 3.0
PROBE_PERIOD_S = 0.5
CONTROL_S_MAX = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class LabPeer:
    """What the lab knows of a peer's process."""

    name: str
    pid: int
    data_directory: Path
    record_file: Path
    faults_file: Path
    http_address: tuple[str, int] = ("", 0)
    control_address: tuple[str, int] | None = None
    room: Room | None = None


class AnswerProbe:
    """Asks a peer over its network, again and again, whether it lives. `close` ends it.

    What does not answer while `control` does not either is no sign: the machine is busy.
    """

    def __init__(self, address: tuple[str, int], control: tuple[str, int] | None = None) -> None:
        self._address = address
        self._control = control
        self._asked_s: float | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._ask_always, name="probe", daemon=True)
        self._thread.start()

    def silent_s(self) -> float:
        """For how long it has been silent, as far as questions that have ended tell."""
        asked_s = self._asked_s
        return 0.0 if asked_s is None else time.monotonic() - asked_s

    def close(self) -> None:
        """Ask no more."""
        self._ending.set()
        self._thread.join()

    def _ask_always(self) -> None:
        while not self._ending.wait(PROBE_PERIOD_S):
            begun_s = time.monotonic()
            if _answers(self._address, STOPPED_AFTER_S) or self._machine_is_busy():
                self._asked_s = None
            else:
                self._asked_s = self._asked_s or begun_s

    def _machine_is_busy(self) -> bool:
        return self._control is not None and not _answers(self._control, CONTROL_S_MAX)


def _answers(address: tuple[str, int], timeout_s: float) -> bool:
    try:
        with socket.create_connection(address, timeout=timeout_s) as asking:
            asking.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            return asking.recv(64).startswith(b"HTTP/1.")
    except OSError:
        return False


class PeerWatch:
    """Watches one process. `close()` releases its descriptor."""

    def __init__(self, peer: LabPeer) -> None:
        self.peer = peer
        self._descriptor = os.pidfd_open(peer.pid)
        self._probe = None
        if peer.room is not None:
            self._probe = AnswerProbe(peer.http_address, peer.control_address)
        self._reserve_since_s: float | None = None

    def close(self) -> None:
        """Watch no longer."""
        if self._probe is not None:
            self._probe.close()
        os.close(self._descriptor)

    def gone(self) -> bool:
        """Whether the process has ended."""
        return bool(select.select([self._descriptor], [], [], 0.0)[0])

    def stopped(self) -> str:
        """Why the peer counts as stopped now; empty while it does not."""
        if self.gone():
            return "its process is gone"
        if self._probe is not None:
            if (silent_s := self._probe.silent_s()) >= STOPPED_AFTER_S:
                return f"no answer for {silent_s:.1f} s"
            if self._in_reserve():
                return "its disk is in its reserve: it refuses appends"
        try:
            recording = read_recording(self.peer.record_file)
        except (OSError, RecordingUnreadable):
            return ""  # not begun yet
        if not len(recording.tick_ms):
            return ""
        silent_s = time.monotonic() - recording.tick_ms[-1] / 1000.0
        if silent_s >= STOPPED_AFTER_S + 1.0:  # a sample is due each second
            return f"no sample for {silent_s:.1f} s"
        age_ms = float(recording.values[-1, TELEMETRY_SCHEMA.positions["commit_age_ms"]])
        if age_ms >= STOPPED_AFTER_S * 1000.0:
            return f"a commit is under way for {age_ms / 1000.0:.1f} s"
        return ""

    def _in_reserve(self) -> bool:
        space = os.statvfs(self.peer.data_directory)
        now_s = time.monotonic()
        if space.f_bavail * space.f_frsize >= RESERVE_BYTES:
            self._reserve_since_s = None
        elif self._reserve_since_s is None:
            self._reserve_since_s = now_s
        return (
            self._reserve_since_s is not None and now_s - self._reserve_since_s >= STOPPED_AFTER_S
        )
