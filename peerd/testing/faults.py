"""Makes real processes really sick, without root and without telling anyone.

Two ways in:
- A *faults file* named by the peer's configuration (`testing.faults_file`). The storage writer
  calls `StorageFaults.before_commit()` inside what it times as a commit; whoever holds the
  `FaultFile` decides what happens there: delays, one stall, a memory leak, a failed write.
- Signals: `DutyCycle` stops and continues a process in turn, as a starved or swapping host would.

Invariants:
- The sick process learns nothing but the effects. Nothing here feeds a metric, a log line or a
  message to the collector or the LAS.
- A fault ends no later than `FAULTS_POLL_MS` after the file says so, even inside a delay.
- A process is signalled by a descriptor bound to it (pidfd): a pid that was taken over by another
  process is never hit. `DutyCycle.stop()` always leaves the process running.

A production peer has no faults file; then none of this is called.
"""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

# How old a reading of the faults file may be, and the length of one slice of a delay.
FAULTS_POLL_MS = 100.0

# limit: what a leak may take before it stops growing by itself, should nothing else end it: 4 GiB.
LEAK_BYTES_MAX = 4 << 30

# What is shorter than this is not slept for: no clock would show it.
_SLICE_S_MIN = 1e-6

# The leak is taken in steps of a MiB: large enough to come from fresh pages.
_LEAK_STEP_BYTES = 1 << 20


class FaultsFileInvalid(Exception):
    """The faults file holds something that is no fault; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What a commit suffers. All zero: nothing.

    `write_delay_ms` on each commit, plus or minus up to `write_delay_jitter_ms`; `stall_ms` once,
    on the first commit after the file was written; `leak_bytes_per_s` of memory that is never
    given back; `fail`: the commit fails as if the device had answered EIO.
    """

    write_delay_ms: float = 0.0
    write_delay_jitter_ms: float = 0.0
    stall_ms: float = 0.0
    leak_bytes_per_s: float = 0.0
    fail: bool = False


class FaultFile:
    """The writing end: replaces the file as a whole, so that a reader never sees half of it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def set(self, faults: Faults) -> None:
        """From now on, this."""
        beside = self.path.with_name(f".{self.path.name}.new")
        beside.write_text(json.dumps(asdict(faults)))
        beside.replace(self.path)

    def clear(self) -> None:
        """From now on, nothing."""
        self.path.unlink(missing_ok=True)


def read_faults(path: Path) -> Faults:
    """The faults that the file asks for; none when there is no file. `FaultsFileInvalid`."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return Faults()
    except ValueError as error:
        raise FaultsFileInvalid(f"{path}: not JSON: {error}") from error
    known = {field.name for field in fields(Faults)}
    if not isinstance(content, dict) or not content.keys() <= known:
        raise FaultsFileInvalid(f"{path}: only {', '.join(sorted(known))} may stand here")
    if not all(isinstance(value, bool | int | float) for value in content.values()):
        raise FaultsFileInvalid(f"{path}: each value is a number, fail is true or false")
    return Faults(**content)


class StorageFaults:
    """The suffering end: the storage writer's hook. Used by one thread.

    `clock` gives monotonic seconds, `sleep` waits that long; both real unless a test says else.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        seed: int = 0,
    ) -> None:
        self._path = path
        self._clock = clock
        self._sleep = sleep
        self._random = random.Random(seed)
        self._faults = Faults()
        self._stall_due = False
        self._read_at_s = -FAULTS_POLL_MS
        self._version: tuple[int, int] | None = None
        self._leaked: list[bytearray] = []
        self._leak_from_s = clock()
        self._leak_due_bytes = 0.0

    def before_commit(self) -> None:
        """Suffer what the file says. Raises `OSError` (EIO) for `fail`, `FaultsFileInvalid`."""
        begun_s = self._clock()
        self._refresh(begun_s)
        if self._faults.leak_bytes_per_s > 0.0:
            self._leak(begun_s)
        self._fail_if_told()
        jitter_ms = self._faults.write_delay_jitter_ms
        stray_ms = self._random.uniform(-jitter_ms, jitter_ms) if jitter_ms else 0.0
        while True:
            now_s = self._clock()
            self._refresh(now_s)
            self._fail_if_told()
            due_ms = self._faults.write_delay_ms + stray_ms
            if self._stall_due:
                due_ms += self._faults.stall_ms
            left_s = due_ms / 1000.0 - (now_s - begun_s)
            if left_s < _SLICE_S_MIN:
                break
            self._sleep(min(left_s, FAULTS_POLL_MS / 1000.0))
        self._stall_due = False

    def _refresh(self, now_s: float) -> None:
        if (now_s - self._read_at_s) * 1000.0 < FAULTS_POLL_MS:
            return
        self._read_at_s = now_s
        try:
            status = self._path.stat()
            version = (status.st_mtime_ns, status.st_ino)
        except FileNotFoundError:
            version = None
        if version == self._version:
            return
        before = self._faults
        self._faults = read_faults(self._path)
        self._version = version
        self._stall_due = self._faults.stall_ms > 0.0
        if before.leak_bytes_per_s == 0.0:
            self._leak_from_s = now_s

    def _leak(self, now_s: float) -> None:
        elapsed_s, self._leak_from_s = now_s - self._leak_from_s, now_s
        self._leak_due_bytes += elapsed_s * self._faults.leak_bytes_per_s
        due_bytes = min(self._leak_due_bytes, LEAK_BYTES_MAX)
        while (len(self._leaked) + 1) * _LEAK_STEP_BYTES <= due_bytes:
            # Written, not just asked for: untouched pages would cost nothing.
            self._leaked.append(bytearray(b"leaked  ") * (_LEAK_STEP_BYTES // 8))

    def _fail_if_told(self) -> None:
        if self._faults.fail:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self._path.parent))


Shape = Literal["linear", "exponential", "quadratic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ramp:
    """A quantity that grows from `start` to `end` over `duration_s`, beginning at `onset_s`.

    Before the onset it is 0 (no fault), after the end it stays at `end`. Times are of the clock
    that `value` is asked with.
    """

    onset_s: float
    start: float
    end: float
    duration_s: float
    shape: Shape = "exponential"

    def value(self, now_s: float) -> float:
        """The quantity at `now_s`."""
        if now_s < self.onset_s:
            return 0.0
        done = min((now_s - self.onset_s) / self.duration_s, 1.0)
        match self.shape:
            case "linear":
                return self.start + (self.end - self.start) * done
            case "quadratic":
                return self.start + (self.end - self.start) * done * done
            case "exponential":
                return float(self.start * (self.end / self.start) ** done)


# How often a driven fault is brought up to date: finer than the one-second samples see.
DRIVE_PERIOD_S = 0.2


def drive_delay(
    file: FaultFile,
    ramp: Ramp,
    stopping: threading.Event,
    *,
    jitter_share: float = 0.2,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Let the write delay (ms) follow the ramp until `stopping` is set; blocks; then clear."""
    while not stopping.is_set():
        delay_ms = ramp.value(clock())
        if delay_ms > 0.0:
            file.set(Faults(write_delay_ms=delay_ms, write_delay_jitter_ms=delay_ms * jitter_share))
        stopping.wait(DRIVE_PERIOD_S)
    file.clear()


class DutyCycle:
    """Stops and continues a process in turn, in a thread of its own, until `stop()`.

    Ends by itself when the process is gone. `set` changes the two lengths from the next turn on.
    """

    def __init__(self, pid: int, *, stopped_ms: float, running_ms: float) -> None:
        self._descriptor = os.pidfd_open(pid)
        self._lengths_s = (stopped_ms / 1000.0, running_ms / 1000.0)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"duty-cycle-{pid}", daemon=True)

    def start(self) -> None:
        """Begin; once."""
        self._thread.start()

    def set(self, *, stopped_ms: float, running_ms: float) -> None:
        """Change the lengths of a turn."""
        self._lengths_s = (stopped_ms / 1000.0, running_ms / 1000.0)

    def stop(self) -> None:
        """End, and leave the process running (when it still exists)."""
        self._ending.set()
        self._thread.join()
        os.close(self._descriptor)

    def _run(self) -> None:
        while not self._ending.is_set():
            stopped_s, running_s = self._lengths_s
            if stopped_s > 0.0:
                if not self._signal(signal.SIGSTOP):
                    return
                self._ending.wait(stopped_s)
                if not self._signal(signal.SIGCONT):
                    return
            self._ending.wait(running_s)

    def _signal(self, number: signal.Signals) -> bool:
        try:
            signal.pidfd_send_signal(self._descriptor, number)
        except ProcessLookupError:
            return False
        return True
