"""Is this directory a sound store? Looked into by a child process, which damage may kill.

A damaged file can kill whoever maps it (SIGBUS, SIGSEGV), so nobody but the child touches one that
is in doubt. The child is this module run as a program; it prints one JSON object.

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
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path

import lmdb

from peerd.core.durable import StoredSegment, StoredShard
from peerd.core.ids import Offset, ShardId
from peerd.storage.data_file import DataFileDamaged
from peerd.storage.directory import StoreDirectory, lock_directory
from peerd.storage.environment import Environment, check_data_file, walk_pages
from peerd.storage.errors import Corrupt, CorruptRow
from peerd.storage.reads import SegmentReader
from peerd.storage.rows import read_producers, read_state

# limit: bytes of a data file whose pages a quick look walks, too; at 0.2 to 1 GB/s that delays a
# start by 0.4 s at most.
QUICK_WALK_BYTES_MAX = 64 << 20

# limit: records that a quick look reads of each adopted segment: about what one commit writes.
QUICK_TAIL_RECORDS_MAX = 4_096

# A disk that has not answered a quick look by then is not one to open a store on.
QUICK_TIMEOUT_S = 120.0

# limit: findings that a report names one by one; the rest is counted.
FINDINGS_MAX = 100

_READ_SLICE_BYTES = 8 << 20


class Depth(Enum):
    """How much is looked at; see the module."""

    QUICK = "quick"
    FULL = "full"


@dataclass(slots=True, kw_only=True)
class VerifyReport:
    """What was looked at and found.

    `damage`: why the store must not be opened; one line each. `corrupt`: damaged batches, which
    another holder must replace; the first `FINDINGS_MAX` of `corrupt_batches`.
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


def verify_store(directory: Path) -> VerifyReport:
    """Look at everything in a store that is not open. Changes nothing.

    Raises `StoreLocked`, `NotAStore` or `StoreFormatUnknown`; all that is damaged is in the report.
    """
    with lock_directory(directory, create=False) as locked:
        return verify_locked(locked, Depth.FULL, timeout_s=None)


def verify_locked(
    directory: StoreDirectory, depth: Depth, *, timeout_s: float | None
) -> VerifyReport:
    """The same for a directory that the caller has locked."""
    manifest = directory.read_manifest()
    started_s = time.monotonic()
    report = _ask_child(directory.path, depth, timeout_s)
    if report.usable and report.store_id != manifest.store_id:
        report.damage.append(
            f"the data file is that of store {report.store_id}, the manifest of {manifest.store_id}"
        )
    report.store_id = manifest.store_id
    report.cluster_id = manifest.cluster_id
    report.duration_ms = round((time.monotonic() - started_s) * 1_000)
    return report


def _ask_child(directory: Path, depth: Depth, timeout_s: float | None) -> VerifyReport:
    report = VerifyReport(directory=str(directory), depth=depth.value)
    # -P: nothing is imported from wherever the process was started.
    command = [sys.executable, "-P", "-m", "peerd.storage.verify", str(directory), depth.value]
    try:
        child = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        report.damage.append(f"it could not be read within {timeout_s:.0f} s")
        return report
    if child.returncode != 0:
        last = child.stderr.decode(errors="replace").strip().splitlines()[-1:]
        report.damage.append(
            f"reading it ends a process with status {child.returncode} {' '.join(last)}".rstrip()
        )
        return report
    return VerifyReport(**json.loads(child.stdout))


# ------------------------------------------------------------------ child process
def examine(directory: Path, depth: Depth) -> VerifyReport:
    """Look at a store from inside this process, which may not survive it."""
    report = VerifyReport(directory=str(directory), depth=depth.value)
    data_file = StoreDirectory(directory).data_file
    try:
        check_data_file(data_file)
        report.file_bytes = data_file.stat().st_size
        if depth is Depth.FULL or report.file_bytes <= QUICK_WALK_BYTES_MAX:
            problems = walk_pages(data_file)
            if problems:
                report.damage.extend(problems[:FINDINGS_MAX])
                return report
        with closing(Environment(directory, map_bytes_max=1 << 46, read_only=True)) as environment:
            _examine_rows(environment, depth, report)
    except (DataFileDamaged, CorruptRow, lmdb.Error, OSError) as error:
        report.damage.append(str(error))
    return report


def _examine_rows(environment: Environment, depth: Depth, report: VerifyReport) -> None:
    with environment.read() as transaction:
        state = read_state(transaction, environment.tables)
        report.store_id = state.store.store_id
        if depth is Depth.FULL:
            for shard, mark in state.marks.items():
                for _ in read_producers(transaction, environment.tables, shard, mark):
                    pass  # reading checks
    report.shards = len(state.shards)
    for stored in state.shards.values():
        report.segments += len(stored.segments)
        for segment, begin in _ranges(stored, depth):
            _examine_batches(environment, stored.shard, segment, begin, report)


def _ranges(stored: StoredShard, depth: Depth) -> Iterable[tuple[StoredSegment, Offset]]:
    """(segment, first offset to look at)."""
    if depth is Depth.FULL:
        return [(segment, segment.begin) for segment in stored.segments.values()]
    segment = stored.segments.get(stored.adopted)
    if segment is None or segment.end == segment.begin:
        return []
    begin = max(segment.begin, segment.end - QUICK_TAIL_RECORDS_MAX)
    return [(segment, Offset(max(begin, min(segment.commit, segment.end - 1))))]


def _examine_batches(
    environment: Environment,
    shard: ShardId,
    segment: StoredSegment,
    begin: Offset,
    report: VerifyReport,
) -> None:
    at = begin
    while at < segment.end:
        with environment.read() as transaction:
            reader = SegmentReader(transaction, environment.tables.batches, shard, segment)
            read_bytes = 0
            try:
                for batch in reader.batches(at, segment.end):
                    at = batch.end
                    report.batches += 1
                    report.records += batch.header.record_count
                    report.payload_bytes += batch.header.payload_bytes
                    read_bytes += batch.header.payload_bytes
                    if read_bytes >= _READ_SLICE_BYTES:
                        break
            except Corrupt as error:
                report.corrupt_batches += 1
                if len(report.corrupt) < FINDINGS_MAX:
                    report.corrupt.append(str(error))
                at = reader.base_after(Offset(max(at, error.offset)))


def main(arguments: list[str]) -> None:
    """Print the report on DIRECTORY at DEPTH as JSON."""
    directory, depth = arguments
    report = examine(Path(directory), Depth(depth))
    sys.stdout.write(json.dumps(asdict(report)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
