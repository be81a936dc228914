"""Looks into a store that is in doubt, in a process that may die of it: the child of `verify`.

    python -m peerd.storage.examine DIRECTORY quick|full

Its last line is one JSON object, the fields of `VerifyReport`. Nothing is changed. Batches are read
in slices, so a large store needs no more memory than a small one.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import lmdb

from peerd.core.durable import StoredSegment, StoredShard
from peerd.core.ids import Offset, ShardId
from peerd.storage.data_file import DataFileDamaged
from peerd.storage.directory import StoreDirectory
from peerd.storage.environment import Environment, check_data_file, walk_pages
from peerd.storage.errors import Corrupt, CorruptRow
from peerd.storage.reads import SegmentReader
from peerd.storage.rows import read_producers, read_state
from peerd.storage.verify import PROGRESS, Depth, VerifyReport

# limit: bytes of a data file whose pages a quick look walks, too; at 0.2 to 1 GB/s that delays a
# start by 0.4 s at most.
QUICK_WALK_BYTES_MAX = 64 << 20

# limit: records that a quick look reads of each adopted segment: about what one commit writes.
QUICK_TAIL_RECORDS_MAX = 4_096

# limit: findings that a report names one by one; the rest is counted.
FINDINGS_MAX = 100

PROGRESS_PERIOD_S = 5.0

Tell = Callable[[VerifyReport], None]

# What one read transaction goes through, and the address space that a store of any size needs.
_READ_SLICE_BYTES = 8 << 20
_MAP_BYTES = 1 << 46


def examine(directory: Path, depth: Depth, tell: Tell = lambda _: None) -> VerifyReport:
    """Look at a store from inside this process, which may not survive it.

    `tell` gets the report as far as it is, after each slice of batches.
    """
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
        with closing(
            Environment(directory, map_bytes_max=_MAP_BYTES, read_only=True)
        ) as environment:
            _examine_rows(environment, depth, report, tell)
    except (DataFileDamaged, CorruptRow, lmdb.Error, OSError) as error:
        report.damage.append(str(error))
    return report


def _examine_rows(environment: Environment, depth: Depth, report: VerifyReport, tell: Tell) -> None:
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
            _examine_batches(environment, stored.shard, segment, begin, report, tell=tell)


def _ranges(stored: StoredShard, depth: Depth) -> Iterable[tuple[StoredSegment, Offset]]:
    """(segment, first offset to look at)."""
    if depth is Depth.FULL:
        return [(segment, segment.first) for segment in stored.segments.values()]
    segment = stored.segments.get(stored.adopted)
    if segment is None or segment.end == segment.first:
        return []
    begin = max(segment.first, segment.end - QUICK_TAIL_RECORDS_MAX)
    return [(segment, Offset(max(begin, min(segment.commit, segment.end - 1))))]


def _examine_batches(
    environment: Environment,
    shard: ShardId,
    segment: StoredSegment,
    begin: Offset,
    report: VerifyReport,
    *,
    tell: Tell,
) -> None:
    at = begin
    while at < segment.end:
        tell(report)
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


class _Progress:
    """Prints how far a full look is, every some seconds."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def __call__(self, report: VerifyReport) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + PROGRESS_PERIOD_S
            sys.stdout.write(f"{PROGRESS} {report.payload_bytes} {report.file_bytes}\n")
            sys.stdout.flush()


def main(arguments: list[str]) -> None:
    """Print the report on DIRECTORY at DEPTH as JSON, after lines that tell how far it is."""
    directory, depth = arguments
    report = examine(Path(directory), Depth(depth), _Progress())
    sys.stdout.write(json.dumps(asdict(report)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
