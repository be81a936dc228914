"""Makes the victim sick and kills it, each by a clock of its own that nothing else can move."""

import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from peerd.cli.demo.scenario import Fault, Scenario
from peerd.testing.dev_cluster import DevCluster, Member
from peerd.testing.faults import DutyCycle, FaultFile, Ramp, drive_delay
from peerd.testing.slow_disk import SlowDisk

DELAY_MS_FIRST = 1.0
DELAY_MS_WORST = 180.0
# A commit flushes its disk twice.
FLUSH_DELAY_SHARE = 0.5
STOP_MS_FIRST = 5.0
STOP_MS_WORST = 350.0
RUN_MS = 250.0
_STEP_S = 0.25


def disks(cluster: DevCluster) -> ExitStack:
    """A context: inside it every peer's data lies on a disk of its own that can fall sick.

    All of them, since nobody knows yet who will be the victim. Raises `SlowDiskError`.
    """
    with ExitStack() as stack:
        for member in cluster.peers:
            backing = member.directory / "disk"
            stack.enter_context(SlowDisk(member.data_dir, backing, _disk_faults(member)))
        return stack.pop_all()


def _disk_faults(member: Member) -> Path:
    return member.directory / "disk-faults.json"


class Trouble:
    """A context: inside it the fault plays from now on. `kill_at` arms the kill beforehand."""

    def __init__(self, scenario: Scenario, victim: Member) -> None:
        self._scenario = scenario
        self._victim = victim
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._play, name="fault", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """Stop playing; a stopped process is left running."""
        self._stopping.set()
        self._thread.join()

    def _play(self) -> None:
        on_disk = self._scenario.fault is Fault.SLOW_DISK
        share = FLUSH_DELAY_SHARE if on_disk else 1.0
        ramp = Ramp(
            onset_s=time.monotonic(),
            start=DELAY_MS_FIRST * share,
            end=DELAY_MS_WORST * share,
            duration_s=self._scenario.grow_s,
        )
        if on_disk:
            drive_delay(FaultFile(_disk_faults(self._victim)), ramp, self._stopping)
        elif self._scenario.fault is Fault.SLOW_STORAGE:
            assert self._victim.faults_file is not None
            drive_delay(FaultFile(self._victim.faults_file), ramp, self._stopping)
        elif self._scenario.fault is Fault.PAUSES:
            self._pause(ramp)

    def _pause(self, ramp: Ramp) -> None:
        pid = self._victim.pid
        if pid is None:
            return
        share = (STOP_MS_WORST / STOP_MS_FIRST) / (DELAY_MS_WORST / DELAY_MS_FIRST)
        cycle = DutyCycle(pid, stopped_ms=STOP_MS_FIRST, running_ms=RUN_MS)
        cycle.start()
        while not self._stopping.wait(_STEP_S):
            stopped_ms = STOP_MS_FIRST * max(1.0, ramp.value(time.monotonic()) * share)
            cycle.set(stopped_ms=stopped_ms, running_ms=RUN_MS)
        cycle.stop()


class Kill:
    """SIGKILL at a time of the monotonic clock, fixed before; `done_at` tells when it was."""

    def __init__(self, victim: Member, at: float) -> None:
        self._victim = victim
        self.done_at: float | None = None
        self._timer = threading.Timer(at - time.monotonic(), self._kill)
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        """Do not kill any more (the demo is being broken off)."""
        self._timer.cancel()

    def _kill(self) -> None:
        if self._victim.process is not None:
            self._victim.process.kill()
            self.done_at = time.monotonic()
