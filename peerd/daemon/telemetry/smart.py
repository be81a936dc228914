"""What a disk says of itself, asked of `smartctl --json` now and then.

A run takes a tenth of a second to some seconds, and the counters change over hours: so it has a
thread of its own, a pause of ten minutes between runs, a deadline, and a bound on what it prints.
A disk that sleeps is left asleep. The newest answer of each day is kept (`disk_days.py`).
Where there is no smartctl, no right to ask, or no disk that
answers (a virtual one, a network file system), everything is missing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from peerd.daemon.telemetry.disk_days import DAY_S, FILE_NAME, DiskDays, disk_day

PERIOD_S = 600.0
RUN_TIMEOUT_S = 20.0
# limit: bytes of smartctl's answer; that of a disk with many attributes has some 20 kB.
ANSWER_BYTES_MAX = 1 << 20

# ATA attributes by their number: what they count is the same at all vendors of these.
_REALLOCATED, _UNCORRECTABLE, _PENDING = 5, 187, 197
# Of raw values the lower 32 bits count; some vendors put other things above them.
_COUNT_MASK = 0xFFFFFFFF


class SmartReader:
    """Runs until `stop`; `values` is the newest answer, empty before the first.

    `days` are the readings of the last months. `device` is the disk to ask; None: the one that
    `directory` lies on. `wall_clock` gives seconds since 1970.
    """

    def __init__(
        self,
        directory: Path,
        *,
        device: Path | None = None,
        period_s: float = PERIOD_S,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._directory = directory
        self._device = device
        self._period_s = period_s
        self._wall_clock = wall_clock
        self.days = DiskDays(directory / FILE_NAME)
        self._values: Mapping[str, float] = {}
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="smart", daemon=True)

    @property
    def values(self) -> Mapping[str, float]:
        """By metric of the schema; what the disk does not say is not in it."""
        return self._values

    def start(self) -> None:
        """Begin, if there is anything to run; once."""
        if shutil.which("smartctl") is not None:
            self._thread.start()

    def stop(self) -> None:
        """End; a run under way is ended, too."""
        self._stopping.set()
        with self._lock:
            if self._process is not None:
                self._process.kill()
        if self._thread.is_alive():
            self._thread.join(RUN_TIMEOUT_S)

    def _run(self) -> None:
        self.days.load()
        while not self._stopping.is_set():
            self._values = self._ask()
            self._stopping.wait(self._period_s)

    def _ask(self) -> Mapping[str, float]:
        """Never raises: whatever goes wrong leaves the values missing."""
        device = self._device or device_of(self._directory)
        if device is None:
            return {}
        arguments = ["smartctl", "--json", "-n", "standby", "-i", "-H", "-A", str(device)]
        try:
            with self._lock:
                if self._stopping.is_set():
                    return {}
                self._process = process = subprocess.Popen(
                    arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
            with process:
                ending = threading.Timer(RUN_TIMEOUT_S, process.kill)
                ending.start()
                try:
                    assert process.stdout is not None
                    answer = process.stdout.read(ANSWER_BYTES_MAX)
                finally:
                    process.kill()
                    ending.cancel()
            whole = _table(json.loads(answer))
            self._keep(whole)
            return smart_values(whole)
        except (OSError, ValueError, RecursionError):
            return {}
        finally:
            self._process = None

    def _keep(self, answer: Mapping[str, Any]) -> None:
        """The reading of today, if the disk counts as SATA disks do."""
        raw = _raw_attributes(answer)
        if raw:
            serial = answer.get("serial_number")
            day = int(self._wall_clock()) // DAY_S
            self.days.add(serial if isinstance(serial, str) else "", disk_day(answer, raw, day))


def device_of(directory: Path) -> Path | None:
    """The disk that a directory lies on, below partitions and single-disk volumes; None: none."""
    try:
        number = directory.stat().st_dev
        place = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve(strict=True)
        if (place / "partition").exists():
            place = place.parent
        below = list((place / "slaves").iterdir()) if (place / "slaves").is_dir() else []
        if len(below) == 1:
            place = below[0].resolve(strict=True)
            place = place.parent if (place / "partition").exists() else place
        # Only a disk with a device behind it can be asked.
        return Path("/dev") / place.name if (place / "device").exists() else None
    except OSError:
        return None


def smart_values(answer: Any) -> dict[str, float]:
    """Metrics of smartctl's JSON; what has another form than expected is left out."""
    values: dict[str, float] = {}

    def put(metric: str, value: object, scale: float = 1.0) -> None:
        if isinstance(value, int | float) and not isinstance(value, bool):
            values[metric] = float(value) * scale

    whole = _table(answer)
    passed = _table(whole.get("smart_status")).get("passed")
    if isinstance(passed, bool):
        values["disk_smart_failed_share"] = float(not passed)
    put("disk_temperature_celsius", _table(whole.get("temperature")).get("current"))
    raw = _raw_attributes(whole)
    for metric, number in (
        ("disk_reallocated_sectors", _REALLOCATED),
        ("disk_pending_sectors", _PENDING),
        ("disk_media_errors", _UNCORRECTABLE),
    ):
        if number in raw:
            values[metric] = float(raw[number] & _COUNT_MASK)
    nvme = _table(whole.get("nvme_smart_health_information_log"))
    put("disk_media_errors", nvme.get("media_errors"))
    put("disk_wear_share", nvme.get("percentage_used"), 0.01)
    put("disk_spare_share", nvme.get("available_spare"), 0.01)
    if isinstance(nvme.get("critical_warning"), int) and nvme["critical_warning"] != 0:
        values["disk_smart_failed_share"] = 1.0
    return values


def _raw_attributes(whole: Mapping[str, Any]) -> dict[int, int]:
    rows = _table(whole.get("ata_smart_attributes")).get("table")
    found = {}
    for row in rows if isinstance(rows, list) else []:
        number, raw = _table(row).get("id"), _table(_table(row).get("raw")).get("value")
        if isinstance(number, int) and isinstance(raw, int) and raw >= 0:
            found[number] = raw
    return found


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
