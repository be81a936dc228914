"""What the storage writer costs: `python -m tests.bench.bench_storage [--help]`.

For each batch size and number of batches that are queued at a time: commits and batches a second,
microseconds of wall clock and of CPU per batch, and the commit's p50 and p99. Beside them stands
the disk's own 4 KiB write and fdatasync: figures of two runs can be compared only if that is alike.
`--aged` first fills the store and drops every other segment of it.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from crc32c import crc32c

from peerd.core.batch import BatchHeader, PlacedBatch
from peerd.core.durable import AdoptEpoch, AppendBatches, LearnMap, Outcome, StoreOperation
from peerd.core.ids import Epoch, Offset, ProducerId, ShardId
from peerd.storage import StorageOptions, Store

SHARDS = 16
EPOCH = Epoch(1)
QUEUED = (1, 16, 256)
PAYLOAD_BYTES = (256, 4_096, 65_536)
AGED_SEGMENTS = 400
AGED_BATCHES = 16
READ_BYTES = 1 << 20


class Commits:
    """Durations of commits, and when what was submitted is done."""

    def __init__(self) -> None:
        self.durations_ms: list[float] = []
        self._free = threading.Semaphore(0)

    def commit_begun(self) -> None:
        """Nothing is to be noted."""

    def record_commit(self, duration_ms: float, payload_bytes: int, /) -> None:
        """One commit is done."""
        del payload_bytes
        self.durations_ms.append(duration_ms)

    def deliver(self, outcomes: list[tuple[object, Outcome]]) -> None:
        """Outcomes of one commit."""
        self._free.release(len(outcomes))

    def wait(self, count: int) -> None:
        """Until so many more outcomes were delivered."""
        for _ in range(count):
            self._free.acquire()


class Load:
    """Appends to all shards in turn, with a producer each."""

    def __init__(self, store: Store, commits: Commits) -> None:
        self._store = store
        self._commits = commits
        self._ends = [0] * SHARDS
        self._next = 0
        self.do([AdoptEpoch(shard=ShardId(n), epoch=EPOCH, begin=Offset(0)) for n in range(SHARDS)])

    def do(self, operations: list[StoreOperation]) -> None:
        """Submit these and wait for their outcomes."""
        for operation in operations:
            self._store.submit(operation, None)
        self._commits.wait(len(operations))

    def append(self, count: int, payload: bytes) -> None:
        """One round: `count` batches queued at once."""
        self.do([self._batch(payload) for _ in range(count)])

    def _batch(self, payload: bytes) -> AppendBatches:
        shard = self._next % SHARDS
        self._next += 1
        end = self._ends[shard]
        self._ends[shard] += 1
        header = BatchHeader(
            record_count=1,
            payload_crc=crc32c(payload),
            producer=ProducerId(shard.to_bytes(16, "big") if shard else b"x" * 16),
            first_sequence=end,
            payload_bytes=len(payload),
        )
        batch = PlacedBatch(base=Offset(end), header=header, payload=payload)
        return AppendBatches(
            shard=ShardId(shard), epoch=EPOCH, batches=(batch,), commit=Offset(end)
        )


def age(load: Load) -> None:
    """Fill the store with batches of mixed sizes, and drop every other segment, out of order."""
    draw = random.Random(0)
    shards = [ShardId(1_000 + number) for number in range(AGED_SEGMENTS)]
    for shard in shards:
        load.do([AdoptEpoch(shard=shard, epoch=EPOCH, begin=Offset(0))])
        for base in range(AGED_BATCHES):
            payload = draw.randbytes(draw.randrange(100, 120_000))
            header = BatchHeader(
                record_count=1, payload_crc=crc32c(payload), payload_bytes=len(payload)
            )
            batch = PlacedBatch(base=Offset(base), header=header, payload=payload)
            load.do([AppendBatches(shard=shard, epoch=EPOCH, batches=(batch,), commit=Offset(0))])
    draw.shuffle(shards)
    for shard in shards[::2]:
        load.do([LearnMap(shard=shard, open_epoch=Epoch(2), dead=(EPOCH,))])


def disk_us(directory: Path) -> float:
    """Median of 50 small writes, each made durable."""
    durations_us = []
    with tempfile.TemporaryFile(dir=directory) as file:
        for _ in range(50):
            started_s = time.perf_counter()
            os.pwrite(file.fileno(), bytes(4_096), 0)
            os.fdatasync(file.fileno())
            durations_us.append((time.perf_counter() - started_s) * 1e6)
    return statistics.median(durations_us)


def measure(load: Load, commits: Commits, *, queued: int, payload: bytes, seconds: float) -> str:
    """One line of the table."""
    commits.durations_ms.clear()
    started_s, cpu_s, batches = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - started_s < seconds:
        load.append(queued, payload)
        batches += queued
    wall_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    ordered = sorted(commits.durations_ms)
    return (
        f"{len(payload):>9} {queued:>7} {len(ordered) / wall_s:>10.0f} {batches / wall_s:>10.0f}"
        f" {wall_s / batches * 1e6:>9.1f} {cpu_s / batches * 1e6:>9.1f}"
        f" {ordered[len(ordered) // 2]:>9.2f} {ordered[len(ordered) * 99 // 100]:>9.2f}"
    )


def measure_reads(store: Store, seconds: float) -> str:
    """How fast one shard is read back, both checksums compared."""
    started_s, read_bytes, batches, at = time.perf_counter(), 0, 0, Offset(0)
    while time.perf_counter() - started_s < seconds:
        read = store.read_batches(ShardId(1), EPOCH, at, Offset(1 << 60), READ_BYTES)
        at = read[-1].end if read else Offset(0)
        batches += len(read)
        read_bytes += sum(len(batch.payload) for batch in read)
    wall_s = time.perf_counter() - started_s
    return f"reads: {batches / wall_s:.0f} batches/s, {read_bytes / wall_s / 1e6:.0f} MB/s"


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="of each line")
    parser.add_argument("--directory", type=Path, help="on the disk to measure; default: temporary")
    parser.add_argument("--aged", action="store_true", help="fill and half empty the store first")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
        commits = Commits()
        store = Store.open(
            Path(scratch) / "store",
            StorageOptions(queue_bytes_max=1 << 30),
            deliver=commits.deliver,
            on_failure=lambda failure: sys.exit(str(failure)),
            metrics=commits,
        )
        load = Load(store, commits)
        if arguments.aged:
            age(load)
        say(f"disk: 4 KiB write and fdatasync {disk_us(Path(scratch)):.0f} µs p50")
        say("  payload  queued  commits/s  batches/s  µs/batch    CPU µs    p50 ms    p99 ms")
        for payload_bytes in PAYLOAD_BYTES:
            for queued in QUEUED:
                payload = random.Random(1).randbytes(payload_bytes)
                say(
                    measure(
                        load, commits, queued=queued, payload=payload, seconds=arguments.seconds
                    ),
                )
        say(measure_reads(store, arguments.seconds))
        store.close()


if __name__ == "__main__":
    main()
