"""Is this directory a sound store? Looked into by a child process, which damage may kill.

A damaged file can kill whoever maps it (SIGBUS, SIGSEGV), so nobody but the child touches one that
is in doubt. The child is `peerd.storage.examine`.

Two depths:
- `QUICK`, before a store is opened after an unclean stop: file length, both meta pages, all small
  rows, and what the last transactions wrote: the uncommitted end and the last batch of each adopted
  segment. In a small file also all pages.
- `FULL`, for `peerd verify`: all pages, all rows, all batches with their payloads.

Invariant: a damaged *batch* does not make a store unusable. It keeps its offset and is read from
another holder (docs/protocol.md §4.4, rule 2); damage of anything else ends the store.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from peerd.storage.directory import StoreDirectory, lock_directory
from peerd.storage.errors import StorageFailed

# A disk that has not answered a quick look by then is not one to open a store on.
QUICK_TIMEOUT_S = 120.0


# What begins a line of the child that tells how far it is: bytes read, length of the file.
PROGRESS = "progress"


class Depth(Enum):
    """How much is looked at; see the module."""

    QUICK = "quick"
    FULL = "full"


@dataclass(slots=True, kw_only=True)
class VerifyReport:
    """What was looked at and found.

    `damage`: why the store must not be opened; one line each. `corrupt`: damaged batches, which
    another holder must replace; the first hundred of `corrupt_batches`.
    """

    directory: str
    depth: str
    store_id: str = ""
    cluster_id: str = ""
    shards: int = 0
    segments: int = 0
    batches: int = 0
    records: int = 0
    payload_bytes: int = 0
    file_bytes: int = 0
    duration_ms: int = 0
    damage: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    corrupt_batches: int = 0

    @property
    def usable(self) -> bool:
        """True if the store may be opened."""
        return not self.damage

    @property
    def sound(self) -> bool:
        """True if nothing at all was found."""
        return not self.damage and not self.corrupt_batches


def verify_store(
    directory: Path, on_progress: Callable[[int, int], None] | None = None
) -> VerifyReport:
    """Look at everything in a store that is not open. Changes nothing.

    `on_progress` gets (bytes of batches that were read, length of the data file) every some
    seconds, first with 0 once the pages were walked.

    Raises `StoreLocked`, `NotAStore` or `StoreFormatUnknown`; all that is damaged is in the report.
    """
    with lock_directory(directory, create=False) as locked:
        return verify_locked(locked, Depth.FULL, timeout_s=None, on_progress=on_progress)


def verify_locked(
    directory: StoreDirectory,
    depth: Depth,
    *,
    timeout_s: float | None,
    on_progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """The same for a directory that the caller has locked. Raises `StorageFailed` on a time-out."""
    manifest = directory.read_manifest()
    started_s = time.monotonic()
    report = _ask_child(directory.path, depth, timeout_s, on_progress)
    if report.usable and report.store_id != manifest.store_id:
        report.damage.append(
            f"the data file is that of store {report.store_id}, the manifest of {manifest.store_id}"
        )
    report.store_id = manifest.store_id
    report.cluster_id = manifest.cluster_id
    report.duration_ms = round((time.monotonic() - started_s) * 1_000)
    return report


def _ask_child(
    directory: Path,
    depth: Depth,
    timeout_s: float | None,
    on_progress: Callable[[int, int], None] | None,
) -> VerifyReport:
    report = VerifyReport(directory=str(directory), depth=depth.value)
    # -P: nothing is imported from wherever the process was started.
    command = [sys.executable, "-P", "-m", "peerd.storage.examine", str(directory), depth.value]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        try:
            if on_progress is None:
                said, errors = child.communicate(timeout=timeout_s)
            else:
                said, errors = _listen(child, on_progress)
        except subprocess.TimeoutExpired as error:
            child.kill()
            # A slow disk is no damage: the store may be as good as ever.
            raise StorageFailed(directory, f"it could not be read within {timeout_s} s") from error
    if child.returncode != 0:
        last = errors.decode(errors="replace").strip().splitlines()[-1:]
        report.damage.append(
            f"reading it ends a process with status {child.returncode} {' '.join(last)}".rstrip()
        )
        return report
    return VerifyReport(**json.loads(said.splitlines()[-1]))


def _listen(
    child: "subprocess.Popen[bytes]", on_progress: Callable[[int, int], None]
) -> tuple[bytes, bytes]:
    """The child's last line and its errors; the lines before tell how far it is."""
    assert child.stdout is not None
    assert child.stderr is not None
    said = b""
    for said in child.stdout:
        word, *numbers = said.split()
        if word == PROGRESS.encode():
            read_bytes, file_bytes = map(int, numbers)
            on_progress(read_bytes, file_bytes)
    return said, child.stderr.read()
