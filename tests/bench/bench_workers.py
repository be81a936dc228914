"""What one append of a small client costs, with front workers and without.

    python -m tests.bench.bench_workers --workers 0 1 2 --rounds 3

64 clients of another language (Node, grpc-js), each with a connection of its own and one append
under way, at one primary and one shadow, both with fsync, mutual TLS. Printed for each number of
workers, paired in rounds: appends a second, their p50 and p99, and microseconds of CPU an append of
the primary's workers and sequencer together, of the shadow, and of the clients, which share the
machine. Beside them stands the disk's own 4 KiB write and fdatasync. Every run is a JSON line on
stderr, the medians are a table on stdout. `npm` gets grpc-js once, into `build/bench`.
"""

import argparse
import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from peerd.client.blocking import connect
from peerd.testing.dev_cluster import DevCluster, Member, Shape
from peerd.v1 import batch_pb2, log_pb2

ROOT = Path(__file__).resolve().parents[2]
CLIENTS_PROGRAM = Path(__file__).with_name("small_clients.js")
GRPC_JS = "@grpc/grpc-js@1.14.7"
LOG = "orders"
PROBES = 200
PROBE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Result:
    """One run: microseconds are of CPU, an append."""

    workers: int
    appends_per_s: float
    p50_ms: float
    p99_ms: float
    workers_us: float
    sequencer_us: float
    shadow_us: float
    clients_us: float
    errors: int
    fdatasync_us: float


def grpc_js(directory: Path) -> Path:
    """The folder of the installed library, which is installed if it is not there."""
    library = directory / "node_modules" / "@grpc" / "grpc-js"
    if not library.exists():
        directory.mkdir(parents=True, exist_ok=True)
        command = ("npm", "install", "--no-audit", "--no-fund", "--prefix", directory, GRPC_JS)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return library


def request_of(size: int, *, stream: bool, shard: int) -> bytes:
    """The message that every client sends, again and again."""
    records = batch_pb2.Records(records=[batch_pb2.Record(value=os.urandom(size))])
    append = log_pb2.AppendRequest(log=LOG, batch=batch_pb2.Batch(record_count=1, records=records))
    if not stream:
        return append.SerializeToString()
    append.shard = shard
    one = log_pb2.StreamAppend(request_id=1, append=append)
    return log_pb2.AppendStreamRequest(appends=[one]).SerializeToString()


def probe_fdatasync_us(directory: Path) -> float:
    """Median of writing 4 KiB over and having them on disk."""
    durations = []
    path = directory / "probe"
    with path.open("wb", buffering=0) as file:
        for _ in range(PROBES):
            began = time.perf_counter()
            os.pwrite(file.fileno(), bytes(PROBE_BYTES), 0)
            os.fdatasync(file.fileno())
            durations.append(time.perf_counter() - began)
    path.unlink()
    return statistics.median(durations) * 1e6


class Cpu:
    """CPU seconds that a peer's processes have used: (its workers, itself)."""

    def __init__(self, member: Member) -> None:
        self._sequencer = psutil.Process(member.pid)
        self._workers = self._sequencer.children()

    def now(self) -> tuple[float, float]:
        """Of all threads of each."""
        return sum(map(_used_s, self._workers)), _used_s(self._sequencer)


def _used_s(process: psutil.Process) -> float:
    # The scheduler's own count, in nanoseconds: /proc/PID/stat counts ticks of 10 ms.
    total = 0
    for thread in Path(f"/proc/{process.pid}/task").iterdir():
        total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e9


def run(arguments: argparse.Namespace, workers: int, library: Path) -> Result:
    """One cluster, one load."""
    with tempfile.TemporaryDirectory(dir=arguments.dir) as folder:
        directory = Path(folder) / "dev"
        shape = Shape(peers=2, las=1, workers=workers)
        with DevCluster(directory, shape, port_base=None) as cluster:
            with connect(credentials=cluster.peerctl_toml) as client:
                client.create_log(LOG, shards=1, copies=2, acks=2)
                entry = client.describe_log(LOG)[1][0]
            primary = cluster.member(entry.open.plan.primary.peer)
            (shadow,) = (member for member in cluster.peers if member is not primary)
            probe_us = probe_fdatasync_us(Path(folder))
            tls = cluster.client_tls
            asked = {
                "grpc": str(library),
                "addresses": [primary.client_address or primary.address],
                "clients": arguments.clients,
                "seconds": arguments.seconds,
                "warm_s": arguments.warm_s,
                "stream": arguments.stream,
                "request": base64.b64encode(
                    request_of(arguments.size, stream=arguments.stream, shard=entry.shard)
                ).decode(),
                "tls": {name: str(getattr(tls, name)) for name in ("ca", "key", "certificate")},
            }
            return measured(asked, workers, Cpu(primary), Cpu(shadow), probe_us)


def measured(
    asked: dict[str, object], workers: int, primary: Cpu, shadow: Cpu, probe_us: float
) -> Result:
    """The load, and what it used from its beginning on."""
    clients = subprocess.Popen(
        ["node", CLIENTS_PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert clients.stdin is not None
    assert clients.stdout is not None
    clients.stdin.write(json.dumps(asked))
    clients.stdin.close()
    clients.stdout.readline()
    before, began = (*primary.now(), *shadow.now()), time.perf_counter()
    told = json.loads(clients.stdout.readline())
    used = [now - then for now, then in zip((*primary.now(), *shadow.now()), before, strict=True)]
    seconds = time.perf_counter() - began
    clients.wait()
    clients.stdout.close()
    per_s = told["appends"] / float(str(asked["seconds"]))
    # The counters run a little longer than the clients' clock.
    each = 1e6 / (per_s * seconds)
    all_clients = told["cpu_s"] * 1e6 / (per_s * (seconds + float(str(asked["warm_s"]))))
    return Result(
        workers=workers,
        appends_per_s=per_s,
        p50_ms=told["p50_ms"],
        p99_ms=told["p99_ms"],
        workers_us=used[0] * each,
        sequencer_us=used[1] * each,
        shadow_us=(used[2] + used[3]) * each,
        clients_us=all_clients,
        errors=sum(told["errors"].values()),
        fdatasync_us=probe_us,
    )


def shown(results: list[Result]) -> str:
    """Medians of each number of workers."""
    row = "{:>7}  {:>9}  {:>6}  {:>6}  {:>9}  {:>9}  {:>6}  {:>7}  {:>6}  {:>9}\n"
    text = "".ljust(35) + "CPU us an append\n"
    text += row.format(
        *("workers", "appends/s", "p50 ms", "p99 ms", "workers", "sequencer", "shadow", "clients"),
        *("errors", "fdatasync"),
    )
    for workers in sorted({result.workers for result in results}):
        mine = [asdict(result) for result in results if result.workers == workers]
        median = {key: statistics.median(one[key] for one in mine) for key in mine[0]}
        digits = [1 if key.endswith("_ms") else 0 for key in median]
        text += row.format(*(f"{v:.{d}f}" for v, d in zip(median.values(), digits, strict=True)))
    return text


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1], help="numbers to compare")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, interleaved")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0, help="measured, each run")
    parser.add_argument("--warm-s", type=float, default=2.0, help="seconds before that")
    parser.add_argument("--size", type=int, default=256, help="bytes of a value")
    parser.add_argument("--stream", action="store_true", help="AppendStream, one append a message")
    parser.add_argument("--dir", type=Path, help="where the stores lie; a disk, for real figures")
    arguments = parser.parse_args()
    library = grpc_js(ROOT / "build" / "bench")
    results = []
    for _ in range(arguments.rounds):
        for workers in arguments.workers:
            results.append(run(arguments, workers, library))
            sys.stderr.write(json.dumps(asdict(results[-1])) + "\n")
    sys.stdout.write(shown(results))


if __name__ == "__main__":
    main()
