"""How long this machine's disk stalls by itself: a 4 KiB fdatasync every 10 ms, beside the demo.

A pause is only worth telling beside it: what the disk did to everybody is no fault of the log.
"""

import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

PERIOD_S = 0.010
BLOCK = bytes(4096)


class DiskProbe:
    """A context; `stall_ms_max` is the longest write and fdatasync so far."""

    def __init__(self, directory: Path) -> None:
        self.stall_ms_max = 0.0
        self._path = directory / "disk-probe"
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="disk probe", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ending.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        descriptor = os.open(self._path, os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            while not self._ending.wait(PERIOD_S):
                begun = time.monotonic()
                os.pwrite(descriptor, BLOCK, 0)
                os.fdatasync(descriptor)
                self.stall_ms_max = max(self.stall_ms_max, (time.monotonic() - begun) * 1000.0)
        finally:
            os.close(descriptor)
