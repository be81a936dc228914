"""What is told beside each result: how fast the disk is by itself, and the CPU of each server.

A result says little without the first: every append waits for two flushes.
"""

import json
import math
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

_BLOCK = bytes(4096)
_FILE_BYTES = 8 * 1024 * 1024
# limit: writes of one calibration, which takes some 50 ms on a good disk
WRITES_MAX = 200
# limit: seconds that a calibration of a slow disk takes
CALIBRATION_S_MAX = 2.0


def calibrate(directory: Path) -> list[float]:
    """Milliseconds of each of up to 200 4 KiB overwrites with fdatasync in `directory`.

    Raises:
        OSError: nothing can be written there.
    """
    path = directory / f"disk-calibration-{os.getpid()}"
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        os.pwrite(descriptor, bytes(_FILE_BYTES), 0)
        os.fsync(descriptor)
        times_ms: list[float] = []
        begun_s = time.perf_counter()
        while len(times_ms) < WRITES_MAX and time.perf_counter() - begun_s < CALIBRATION_S_MAX:
            write_s = time.perf_counter()
            os.pwrite(descriptor, _BLOCK, len(times_ms) * len(_BLOCK) % _FILE_BYTES)
            os.fdatasync(descriptor)
            times_ms.append((time.perf_counter() - write_s) * 1000.0)
        return times_ms
    finally:
        os.close(descriptor)
        path.unlink()


def percentiles_ms(times_ms: Sequence[float]) -> dict[str, float]:
    """p50 and p99 of a calibration; NaN without values."""
    if len(times_ms) < 2:
        return {"p50": math.nan, "p99": math.nan}
    cuts = statistics.quantiles(times_ms, n=100)
    return {"p50": cuts[49], "p99": cuts[98]}


class Servers:
    """The processes of a cluster on this machine, as its `cluster.json` lists them."""

    def __init__(self, directory: Path) -> None:
        """`directory` is that of `peerctl.toml`; without a `cluster.json` the cluster is remote."""
        self._pids: dict[str, int] = {}
        try:
            listed = json.loads((directory / "cluster.json").read_text("utf-8"))
        except (OSError, ValueError):
            return
        for process in listed["processes"]:
            if process["pid"] is not None:
                self._pids[process["id"]] = process["pid"]

    def cpu_s(self) -> dict[str, float] | None:
        """User and system seconds of each server and its children so far; None if not here."""
        if not self._pids:
            return None
        return {name: _cpu_s(pid) for name, pid in self._pids.items()}


def _cpu_s(pid: int) -> float:
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        times = [each.cpu_times() for each in family]
    except psutil.Error:
        # It has ended, or a child has at this moment: what is gone cannot be asked any more.
        return 0.0
    return sum(each.user + each.system for each in times)
