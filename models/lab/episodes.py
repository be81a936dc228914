"""Does to one peer, or to the whole machine, what a plan says. One thread an episode.

A fault ends with the peer stopped: when it does not end by itself soon after its last stage, the
peer is killed, since it no longer acknowledges (`watch.stopped`). Look-alikes end as they came.
Every helper that an episode starts is ended with it, whatever happens.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from models.lab.plan import Episode, Shared
from models.lab.room_episodes import ROOM_EPISODES
from models.lab.watch import LabPeer, PeerWatch
from peerd.testing.faults import DutyCycle, FaultFile, Faults, Ramp, Shape

STEP_S = 0.2
# What a peer gets to end by itself once its fault is complete, before it is killed.
LAST_STAGE_S_MAX = 20.0
GIVEN_UP = "killed at the end of its fault"
_HANG_MS = 60_000.0
_BACKUP_BLOCK_BYTES = 1 << 20


@dataclass(slots=True)
class Outcome:
    """What became of an episode, in seconds of the monotonic clock."""

    begun_s: float | None = None
    stopped_s: float | None = None
    why: str = ""
    error: Exception | None = None


@dataclass(slots=True, kw_only=True)
class EpisodeThread:
    """Runs one episode on a peer. `start`, then `join`; `outcome` is complete after that."""

    episode: Episode
    peer: LabPeer
    run_begun_s: float
    ending: threading.Event
    restart: Callable[[str], None]
    outcome: Outcome = field(default_factory=Outcome)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; the episode waits for its onset by itself."""
        self._thread = threading.Thread(target=self._run, name=self.episode.kind, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for its end."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        onset_s = self.run_begun_s + self.episode.onset_s
        if self.ending.wait(max(onset_s - time.monotonic(), 0.0)):
            return
        self.outcome.begun_s = time.monotonic()
        watch = PeerWatch(self.peer)
        in_rooms = ROOM_EPISODES.get(self.episode.kind)
        try:
            if in_rooms is not None and self.peer.room is not None:
                in_rooms(self, watch, self.peer.room)
                return
            {
                "storage_delay": self._storage_delay,
                "pauses": self._pauses,
                "memory_leak": self._memory_leak,
                "slow_stable": self._slow,
                "slow_step": self._slow,
                "slow_spell": self._slow,
                "single_pause": self._single_pause,
                "restart": self._restart,
            }[self.episode.kind](watch)
        except Exception as error:  # noqa: BLE001 whatever it is, the run must not count
            self.outcome.error = error
        finally:
            watch.close()

    def number(self, name: str) -> float:
        """A parameter of the episode."""
        return float(self.episode.parameters[name])

    def ramp(self, start: float, end: float) -> Ramp:
        """What grows from `start` to `end` over the episode's time to grow."""
        begun_s = cast(float, self.outcome.begun_s)
        shape = cast(Shape, self.episode.parameters["shape"])
        grow_s = self.episode.grow_s
        return Ramp(onset_s=begun_s, start=start, end=end, duration_s=grow_s, shape=shape)

    def follow(self, watch: PeerWatch, seconds: float) -> bool:
        """Wait a step; True when the peer stopped or the run ends."""
        why = watch.stopped()
        if why:
            self.outcome.stopped_s, self.outcome.why = time.monotonic(), why
        return bool(why) or self.ending.wait(seconds)

    def grow(self, watch: PeerWatch, apply: Callable[[float], None], ramp: Ramp) -> None:
        """Apply what the ramp says until the episode's time is over or the peer stopped."""
        until_s = ramp.onset_s + self.episode.duration_s
        while time.monotonic() < until_s:
            apply(ramp.value(time.monotonic()))
            if self.follow(watch, STEP_S):
                return

    def see_end(self, watch: PeerWatch) -> None:
        """The last stage has begun: see the peer stop, or give it up as one that does not."""
        until_s = time.monotonic() + LAST_STAGE_S_MAX
        while self.outcome.stopped_s is None and time.monotonic() < until_s:
            if self.follow(watch, STEP_S):
                break
        if self.outcome.stopped_s is None:
            self.outcome.stopped_s = time.monotonic()
            self.outcome.why = GIVEN_UP

    def finish(self, watch: PeerWatch) -> None:
        """See the peer stop, and kill what no longer acknowledges."""
        self.see_end(watch)
        if not watch.gone():
            os.kill(self.peer.pid, signal.SIGKILL)

    def _storage_delay(self, watch: PeerWatch) -> None:
        file = FaultFile(self.peer.faults_file)
        ramp = self.ramp(self.number("start_ms"), self.number("end_ms"))
        until_s = ramp.onset_s + self.episode.duration_s
        while time.monotonic() < until_s:
            delay_ms = ramp.value(time.monotonic())
            jitter_ms = delay_ms * self.number("jitter_share")
            file.set(Faults(write_delay_ms=delay_ms, write_delay_jitter_ms=jitter_ms))
            if self.follow(watch, STEP_S):
                break
        else:
            fails = self.episode.parameters["ends_by"] == "failed_write"
            file.set(Faults(fail=True) if fails else Faults(write_delay_ms=_HANG_MS))
        self.finish(watch)

    def _pauses(self, watch: PeerWatch) -> None:
        ramp = self.ramp(self.number("start_share"), self.number("end_share"))
        period_ms = self.number("period_ms")
        cycle = DutyCycle(self.peer.pid, stopped_ms=0.0, running_ms=period_ms)
        cycle.start()
        until_s = ramp.onset_s + self.episode.duration_s
        while time.monotonic() < until_s:
            stopped_ms = period_ms * ramp.value(time.monotonic())
            cycle.set(stopped_ms=stopped_ms, running_ms=period_ms - stopped_ms)
            if self.follow(watch, STEP_S):
                break
        cycle.stop()
        if self.outcome.stopped_s is None and not watch.gone():
            os.kill(self.peer.pid, signal.SIGSTOP)
        self.finish(watch)

    def _memory_leak(self, watch: PeerWatch) -> None:
        leak_bytes_per_s = self.number("leak_bytes") / self.episode.duration_s
        FaultFile(self.peer.faults_file).set(Faults(leak_bytes_per_s=leak_bytes_per_s))
        until_s = time.monotonic() + self.episode.duration_s
        while time.monotonic() < until_s and not self.follow(watch, STEP_S):
            pass
        self.finish(watch)

    def _slow(self, watch: PeerWatch) -> None:
        file = FaultFile(self.peer.faults_file)
        delay_ms = self.number("delay_ms")
        jitter_ms = delay_ms * self.number("jitter_share")
        file.set(Faults(write_delay_ms=delay_ms, write_delay_jitter_ms=jitter_ms))
        until_s = time.monotonic() + self.episode.duration_s
        while time.monotonic() < until_s and not watch.gone():
            if self.ending.wait(STEP_S):
                break
        file.clear()

    def _single_pause(self, watch: PeerWatch) -> None:
        if watch.gone():
            return
        os.kill(self.peer.pid, signal.SIGSTOP)
        try:
            self.ending.wait(self.number("stopped_ms") / 1000.0)
        finally:
            os.kill(self.peer.pid, signal.SIGCONT)

    def _restart(self, watch: PeerWatch) -> None:
        """A peer that dies of nothing that was to be seen, and comes back."""
        os.kill(self.peer.pid, signal.SIGKILL)
        while not watch.gone():
            time.sleep(STEP_S)
        self.ending.wait(self.episode.duration_s)
        self.restart(self.peer.name)


def limit_memory(peer: LabPeer, headroom_bytes: int) -> None:
    """Let the process have this much more data memory than it has now, and no more, for good."""
    for line in Path(f"/proc/{peer.pid}/status").read_text().splitlines():
        if line.startswith("VmData:"):
            limit = int(line.split()[1]) * 1024 + headroom_bytes
            resource.prlimit(peer.pid, resource.RLIMIT_DATA, (limit, limit))


def run_shared(
    event: Shared, directories: list[Path], scratch: Path, ending: threading.Event
) -> None:
    """Do a shared event that needs no client; blocks for as long as it lasts."""
    until_s = time.monotonic() + event.duration_s
    if event.kind == "cpu_hog":
        command = [sys.executable, "-c", "while True: pass"]
        hogs = [subprocess.Popen(command) for _ in range(round(event.strength))]
        try:
            ending.wait(event.duration_s)
        finally:
            for hog in hogs:
                hog.kill()
                hog.wait()
    elif event.kind == "backup":
        while time.monotonic() < until_s and not ending.is_set():
            _copy_all(directories, scratch, until_s, ending)
            ending.wait(STEP_S)


def _copy_all(
    directories: list[Path], scratch: Path, until_s: float, ending: threading.Event
) -> None:
    """Read everything that the peers have stored, and write it elsewhere, once."""
    target = scratch / "backup"
    with target.open("wb") as copy:
        for path in (p for d in directories for p in sorted(d.rglob("*")) if p.is_file()):
            try:
                with path.open("rb") as source:
                    os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    while block := source.read(_BACKUP_BLOCK_BYTES):
                        copy.write(block)
                        if time.monotonic() > until_s or ending.is_set():
                            return
            except FileNotFoundError:
                continue  # a file that a peer removed meanwhile
        copy.flush()
        os.fsync(copy.fileno())
    target.unlink()
