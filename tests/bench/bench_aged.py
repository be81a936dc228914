"""A store that has aged, and one that runs for ever: `python -m tests.bench.bench_aged [--help]`.

Ages a store: batches of mixed sizes up to `--gib`, then half of it trimmed or dropped, out of
order. Prints commits of fresh, dropping and aged store, in turns on the same disk; then kills -9 a
process that has the aged store open and tells how long the next one takes until it serves. Last it
appends for `--endless` seconds with a retention and shows that memory and file stay as they are.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from crc32c import crc32c

from peerd.core.batch import BatchHeader, PlacedBatch
from peerd.core.durable import (
    AdoptEpoch,
    AppendBatches,
    DropTrimmed,
    LearnMap,
    Outcome,
    Stored,
    StoreOperation,
)
from peerd.core.ids import Epoch, Offset, ShardId
from peerd.storage import StorageOptions, Store
from tests.bench.bench_storage import Commits, disk_us

EPOCH = Epoch(1)
SHARDS = 64
PAYLOAD_BYTES_MAX = 256 * 1024
GROUP_BYTES = 4 << 20
PROBE_BYTES = 64 * 1024
CHUNK_BYTES = 1 << 20
RETENTION_BYTES = 64 << 20
MIB = 1 << 20

HOLD = """
import sys, time
from pathlib import Path
from peerd.storage import StorageOptions, Store
Store.open(Path(sys.argv[1]), StorageOptions(), deliver=print, on_failure=print)
print("open", flush=True)
time.sleep(600)
"""


class Aged:
    """One store and what it has."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.commits = Commits()
        self.store = self._opened()
        self.ends: dict[ShardId, int] = {}
        self._draw = random.Random(1)

    def _opened(self) -> Store:
        return Store.open(
            self.directory,
            StorageOptions(chunk_bytes=CHUNK_BYTES),
            deliver=self._deliver,
            on_failure=lambda failure: sys.exit(str(failure)),
            metrics=self.commits,
        )

    def _deliver(self, outcomes: list[tuple[object, Outcome]]) -> None:
        for _, outcome in outcomes:
            if not isinstance(outcome, Stored):
                sys.stderr.write(f"refused: {outcome}\n")
                os._exit(1)
        self.commits.deliver(outcomes)

    def do(self, operations: list[StoreOperation]) -> None:
        """Submit these and wait for their outcomes."""
        for operation in operations:
            self.store.submit(operation, None)
        self.commits.wait(len(operations))

    def append(self, shard: ShardId, payload_bytes: int) -> AppendBatches:
        """The next batch of a shard, all of it committed."""
        payload = self._draw.randbytes(payload_bytes)
        end = self.ends[shard]
        header = BatchHeader(
            record_count=1, payload_crc=crc32c(payload), payload_bytes=len(payload)
        )
        self.ends[shard] = end + 1
        return AppendBatches(
            shard=shard,
            epoch=EPOCH,
            batches=(PlacedBatch(base=Offset(end), header=header, payload=payload),),
            commit=Offset(end + 1),
        )

    def begin(self, shard: ShardId) -> None:
        """Begin a shard's segment."""
        self.ends[shard] = 0
        self.do([AdoptEpoch(shard=shard, epoch=EPOCH, begin=Offset(0))])

    def fill(self, size_bytes: int) -> None:
        """Batches of mixed sizes, of all shards in turn."""
        for number in range(SHARDS):
            self.begin(ShardId(number + 1))
        filled = 0
        while filled < size_bytes:
            group: list[StoreOperation] = []
            group_bytes = 0
            while group_bytes < GROUP_BYTES:
                small = self._draw.random() < 0.5
                payload_bytes = self._draw.randrange(100, 2_000 if small else PAYLOAD_BYTES_MAX)
                shard = ShardId(self._draw.randrange(SHARDS) + 1)
                group.append(self.append(shard, payload_bytes))
                group_bytes += payload_bytes
            self.do(group)
            filled += group_bytes

    def drop_half(self) -> None:
        """Out of order: the front of some shards, the whole of others."""
        shards = [shard for shard in self.ends if shard <= SHARDS]
        self._draw.shuffle(shards)
        for index, shard in enumerate(shards):
            kind = index % 4
            end = self.ends[shard]
            if kind == 0:
                dead = LearnMap(
                    shard=shard, open_epoch=Epoch(2), dead=(EPOCH,), trimmed_to=Offset(end)
                )
                self.do([dead])
            elif kind in {1, 2}:
                at = Offset(end // 2)
                self.do([DropTrimmed(shard=shard, open_epoch=EPOCH, trimmed_to=at)])

    def drops_left(self) -> bool:
        """Whether dead batches are still to be deleted."""
        return bool(self.store._writer._state.drops)

    def probe(self, shard: ShardId, seconds: float) -> list[float]:
        """Durations of commits of 64 KiB, in milliseconds."""
        if shard not in self.ends:
            self.begin(shard)
        durations_ms = []
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            operation = self.append(shard, PROBE_BYTES)
            started_s = time.perf_counter()
            self.do([operation])
            durations_ms.append((time.perf_counter() - started_s) * 1_000)
        return durations_ms


def row(name: str, durations_ms: list[float]) -> str:
    """One line of the table."""
    ordered = sorted(durations_ms)
    p50, p99 = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
    return f"{name:<28} {len(ordered):>8} {p50:>9.2f} {p99:>9.2f} {ordered[-1]:>9.2f}"


def compare(directory: Path, size_bytes: int, seconds: float) -> Path:
    """Fresh, dropping, aged; the directory of the aged store, closed."""
    aged, fresh = Aged(directory / "aged"), Aged(directory / "fresh")
    started_s = time.perf_counter()
    aged.fill(size_bytes)
    tell(f"filled {size_bytes / MIB:.0f} MiB in {time.perf_counter() - started_s:.0f} s")
    tell(f"{'acknowledging 64 KiB':<28} {'appends':>8} {'p50 ms':>9} {'p99 ms':>9} {'max ms':>9}")
    probed = ShardId(1_000)
    tell(row("fresh store", fresh.probe(probed, seconds)))
    tell(row("filled store", aged.probe(probed, seconds)))
    aged.drop_half()
    dropping: list[float] = []
    while aged.drops_left():
        dropping += aged.probe(probed, 0.5)
    tell(row("while half is dropped", dropping))
    for turn in range(1, 3):
        tell(row(f"fresh store, turn {turn}", fresh.probe(probed, seconds)))
        tell(row(f"aged store, turn {turn}", aged.probe(probed, seconds)))
    tell(f"disk: a write of 4 KiB and fdatasync {disk_us(directory):.0f} us")
    fresh.store.close()
    aged.store.close()
    return aged.directory


def serve_after_kill(directory: Path) -> None:
    """Kill -9 who has the store open; how long the next opening takes."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    started_s = time.perf_counter()
    store = Store.open(
        directory, StorageOptions(), deliver=lambda _: None, on_failure=lambda _: None
    )
    took_s = time.perf_counter() - started_s
    file_bytes = (directory / "data.mdb").stat().st_size
    tell(f"kill -9: {file_bytes / MIB:.0f} MiB open again after {took_s:.2f} s")
    store.close()


def tell(text: str) -> None:
    """One line, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def rss_anon_bytes() -> int:
    """Memory of this process that no file backs."""
    for line in Path(f"/proc/{os.getpid()}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def endless(directory: Path, seconds: float) -> None:
    """Append for ever, with a retention; a line each tenth of the time."""
    forever = Aged(directory / "endless")
    shard = ShardId(1)
    forever.begin(shard)
    tell(f"{'appended MiB':>12} {'stored MiB':>11} {'file MiB':>9} {'RssAnon MiB':>12}")
    appended, until = 0, time.perf_counter()
    for _ in range(10):
        until += seconds / 10
        while time.perf_counter() < until:
            group: list[StoreOperation] = [forever.append(shard, PROBE_BYTES) for _ in range(16)]
            forever.do(group)
            appended += 16 * PROBE_BYTES
            cut = forever.store.find_cut(
                shard, EPOCH, before=Offset(1 << 60), keep_bytes=RETENTION_BYTES
            )
            if cut is not None and cut.offset > 0:
                trim = DropTrimmed(shard=shard, open_epoch=EPOCH, trimmed_to=cut.offset)
                forever.do([trim])
        stored = forever.store.space().stored_bytes
        file_bytes = (forever.directory / "data.mdb").stat().st_size
        tell(
            f"{appended / MIB:>12.0f} {stored / MIB:>11.0f} {file_bytes / MIB:>9.0f}"
            f" {rss_anon_bytes() / MIB:>12.1f}"
        )
    forever.store.close()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_aged", description=__doc__)
    parser.add_argument("--gib", type=float, default=2.0, help="how much is filled, e.g. 8")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--endless", type=float, default=30.0, help="seconds with a retention")
    parser.add_argument("--directory", type=Path, default=None, help="on the disk to measure")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.directory) as scratch:
        directory = Path(scratch)
        serve_after_kill(compare(directory, int(chosen.gib * (1 << 30)), chosen.seconds))
        endless(directory, chosen.endless)


if __name__ == "__main__":
    main()
