"""Sees when a peer stopped: the ground truth of the lab, from outside and from its recording.

*Stopped* (docs/decisions.md): its process is gone, its storage failed (which ends the process), or
no acknowledgement for 3 s under offered load. The last shows in the peer's own recording, which
goes on while its storage hangs: a commit that has been under way for 3 s; and in the recording's
silence: a process that takes no sample for 3 s acknowledges nothing either.
"""

from __future__ import annotations

import os
import select
import time
from dataclasses import dataclass
from pathlib import Path

from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA
from peerd.daemon.telemetry.window import RecordingUnreadable, read_recording

STOPPED_AFTER_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LabPeer:
    """What the lab knows of a peer's process."""

    name: str
    pid: int
    data_directory: Path
    record_file: Path
    faults_file: Path


class PeerWatch:
    """Watches one process. `close()` releases its descriptor."""

    def __init__(self, peer: LabPeer) -> None:
        self.peer = peer
        self._descriptor = os.pidfd_open(peer.pid)

    def close(self) -> None:
        """Watch no longer."""
        os.close(self._descriptor)

    def gone(self) -> bool:
        """Whether the process has ended."""
        return bool(select.select([self._descriptor], [], [], 0.0)[0])

    def stopped(self) -> str:
        """Why the peer counts as stopped now; empty while it does not."""
        if self.gone():
            return "its process is gone"
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
