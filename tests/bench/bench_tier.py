"""Much data through a cluster that keeps little of it: `make bench-tier SIZE_GB=5`.

Three peers with three copies and a tier, a directory or a real S3 server (SeaweedFS), mutual TLS.
A log is written as fast as it goes, with a hot limit; a log without a tier is written before and
after it, as much of it each time, so that both rates are of one run. Told are:

- the largest size of any peer's files, beside the hot limit (bar: 1.3 times);
- appends with the tier, of those without (bar: 80 %);
- CPU seconds a GB of all peers, the LAS and the client, with the tier and without, and of the S3
  server: it has a share of the same cores, and the log without a tier has no server beside it;
- so, with the server, also appends to a log without a tier while a plain client (obstore) puts as
  many bytes as are appended, one object after the other: what the tier costs beside its store;
- that every record comes back as it was written, from the tier and from disks;
- how fast what is in the tier alone is read, beside the same objects read by a plain client, in
  ranges of 2 MiB, one after the other (bar: 50 %); both from the disk, not from the page cache, and
  both only counted: how fast it is with each byte compared is told beside it. Both are one process,
  whose allocator keeps freed memory as docs/client.md advises.
"""

import argparse
import asyncio
import hashlib
import json
import os
import queue
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from peerd.allocator import keep_freed_memory
from peerd.client.blocking import Client, connect
from peerd.client.options import ClientOptions
from peerd.testing.dev_cluster import DevCluster, Shape
from tests.integration.object_store import (
    ACCESS_KEY,
    BUCKET,
    SECRET_KEY,
    SpoilingProxy,
    s3_server,
)

if TYPE_CHECKING:
    from obstore.store import LocalStore, S3Store

RECORD_BYTES = 64 * 1024
IN_FLIGHT = 64
RANGE_BYTES = 2 << 20
APPEND_TIMEOUT_S = 120.0
COLD_TIMEOUT_S = 600.0
SAMPLE_S = 0.1
MB = 1_000_000


_BLOCK = random.Random(3).randbytes(RECORD_BYTES)


def record(seed: int, number: int) -> bytes:
    """The same bytes each time, other ones for each number, nothing that can be packed."""
    mark = hashlib.sha256(b"%d %d" % (seed, number)).digest()
    turn = int.from_bytes(mark[:2], "big")
    return number.to_bytes(8, "big") + mark + _BLOCK[40 + turn :] + _BLOCK[:turn]


class Largest:
    """The largest that any peer's files were, by the blocks that they take."""

    def __init__(self, cluster: DevCluster) -> None:
        self._directories = [member.data_dir for member in cluster.peers]
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sizes")
        self.size_bytes = 0

    def __enter__(self) -> "Largest":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.wait(SAMPLE_S):
            for directory in self._directories:
                self.size_bytes = max(self.size_bytes, store_bytes(directory))


def store_bytes(directory: Path) -> int:
    """What the batches of one peer take on its disk."""
    return 512 * (directory / "data.mdb").stat().st_blocks


@dataclass(frozen=True, slots=True)
class Spent:
    """CPU seconds of the cluster and its client, and of the S3 server, since they were started."""

    peerd_s: float
    server_s: float

    @classmethod
    def now(cls) -> "Spent":
        """Until now."""
        spent_s = {True: 0.0, False: 0.0}
        me = psutil.Process()
        for process in (me, *me.children(recursive=True)):
            times = process.cpu_times()
            spent_s[process.name() == "weed"] += times.user + times.system
        return cls(spent_s[False], spent_s[True])

    def until(self, later: "Spent", size_bytes: int) -> tuple[float, float]:
        """What a GB of so many bytes took since."""
        size_gb = size_bytes / 1000 / MB
        took = (later.peerd_s - self.peerd_s, later.server_s - self.server_s)
        return round(took[0] / size_gb, 1), round(took[1] / size_gb, 1)


class PlainPuts:
    """A plain client that puts as many bytes as it is told were appended, as objects of one size.

    At most one waits while one is put, so that what is appended waits for a store that is slower,
    as it waits for the tier.
    """

    def __init__(self, store: "LocalStore | S3Store", object_bytes: int) -> None:
        self._store = store
        self._object = random.Random(5).randbytes(object_bytes)
        self._due: queue.Queue[str | None] = queue.Queue(maxsize=1)
        self._due_bytes = 0
        self._thread = threading.Thread(target=self._run, name="plain puts")

    def __enter__(self) -> "PlainPuts":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._due.put(None, timeout=APPEND_TIMEOUT_S)
        self._thread.join()

    def appended(self, size_bytes: int) -> None:
        """So many more."""
        before = self._due_bytes // len(self._object)
        self._due_bytes += size_bytes
        for number in range(before, self._due_bytes // len(self._object)):
            self._due.put(f"beside/{number}", timeout=APPEND_TIMEOUT_S)

    def _run(self) -> None:
        import obstore

        while (name := self._due.get()) is not None:
            obstore.put(self._store, name, self._object, use_multipart=False)


def append(
    client: Client, log: str, seed: int, count: int, beside: PlainPuts | None = None
) -> float:
    """Append so many records; returns bytes a second."""
    waiting, begun_s = [], time.monotonic()
    for number in range(count):
        payload = record(seed, number)
        waiting.append(client.append_nowait(log, payload, key=payload[:8]))
        if len(waiting) >= IN_FLIGHT:
            waiting.pop(0).result(APPEND_TIMEOUT_S)
        if beside is not None:
            beside.appended(RECORD_BYTES)
    for each in waiting:
        each.result(APPEND_TIMEOUT_S)
    return count * RECORD_BYTES / (time.monotonic() - begun_s)


def plain(
    client: Client, log: str, count: int, shards: int, puts: PlainPuts | None = None
) -> tuple[float, float]:
    """The rate of a log without a tier, which is deleted again, and CPU seconds a GB without the
    server's; beside plain puts, if there are any.
    """
    made = client.create_log(log, shards=shards, copies=3, acks=2)
    before = Spent.now()
    beside: AbstractContextManager[object] = nullcontext() if puts is None else puts
    with beside:
        rate = append(client, log, 7, count, puts)
    spent = before.until(Spent.now(), count * RECORD_BYTES)
    client.las.delete_log(log, accept_loss=True, shards=list(made.shards))
    return rate, spent[0]


def wait_cold(client: Client, log: str, hot_bytes: int, chunk_bytes: int) -> None:
    """Until each shard has no more on disks than it should, but for chunks that are not whole."""
    deadline_s = time.monotonic() + COLD_TIMEOUT_S
    while time.monotonic() < deadline_s:
        tails = {tail.shard: tail.committed for tail in client.tail(log)}
        kept = [
            (tails[shard.shard] - shard.trimmed_to) * RECORD_BYTES
            for shard in client.describe_log(log)[1]
        ]
        if max(kept) <= hot_bytes + 2 * chunk_bytes:
            return
        time.sleep(0.2)
    raise TimeoutError(f"not cold after {COLD_TIMEOUT_S:.0f} s")


def read_back(client: Client, log: str, seed: int, count: int) -> tuple[int, float]:
    """Read all of a log and compare every byte; bytes of what is in the tier alone, and how many of
    them came a second.
    """
    size_bytes, took_s, seen = 0, 0.0, set()
    for shard in client.describe_log(log)[1]:
        begun_s, cold_bytes, cold_s = time.monotonic(), 0, 0.0
        with client.read(log, shard=shard.shard) as stream:
            for each in stream:
                number = int.from_bytes(each.value[:8], "big")
                if each.value != record(seed, number):
                    raise AssertionError(f"record {number} came back changed")
                seen.add(number)
                if each.offset < shard.trimmed_to:
                    cold_bytes += len(each.value)
                    cold_s = time.monotonic() - begun_s
        size_bytes, took_s = size_bytes + cold_bytes, took_s + cold_s
    if seen != set(range(count)):
        raise AssertionError(f"{count - len(seen)} of {count} records are not there")
    return size_bytes, size_bytes / took_s if took_s else 0.0


def read_cold(client: Client, log: str) -> float:
    """Bytes a second of what is in the tier alone, which is counted and not looked at, as
    `read_plainly` does.
    """
    size_bytes, took_s = 0, 0.0
    for shard in client.describe_log(log)[1]:
        begun_s = time.monotonic()
        with client.read(log, shard=shard.shard) as stream:
            for each in stream:
                if each.offset >= shard.trimmed_to:
                    break
                size_bytes += len(each.value)
        took_s += time.monotonic() - begun_s
    return size_bytes / took_s if took_s else 0.0


async def read_plainly(store: "LocalStore | S3Store") -> float:
    """Bytes a second of the same objects, read by ranges, one after the other."""
    import obstore

    found = [
        each
        async for page in obstore.list(store)
        for each in page
        if each["path"].endswith(".chunk")
    ]
    size_bytes, begun_s = 0, time.monotonic()
    for each in found:
        for begin in range(0, each["size"], RANGE_BYTES):
            end = min(begin + RANGE_BYTES, each["size"])
            data = await obstore.get_range_async(store, each["path"], start=begin, end=end)
            size_bytes += len(bytes(data))
    return size_bytes / (time.monotonic() - begun_s)


@contextmanager
def tier_of(
    store: str, directory: Path, latency_s: float
) -> Iterator[tuple[dict[str, object], SpoilingProxy | None]]:
    """The settings of a tier: a directory, or a server that runs meanwhile; each call to it takes
    `latency_s` until that is changed at the proxy.
    """
    if store == "directory":
        yield {"tier.url": f"file://{directory / 'cold'}"}, None
        return
    for name, secret in (("id", ACCESS_KEY), ("secret", SECRET_KEY)):
        (directory / name).write_text(secret)
    with ExitStack() as stack:
        proxy = None
        url = stack.enter_context(s3_server(directory / "s3"))
        if latency_s:
            proxy = stack.enter_context(SpoilingProxy(url, delay_s=latency_s).in_a_thread())
            url = proxy.url
        settings: dict[str, object] = {
            "tier.url": f"s3://{BUCKET}/cold",
            "tier.endpoint": url,
            "tier.access_key_id_file": str(directory / "id"),
            "tier.secret_access_key_file": str(directory / "secret"),
        }
        yield settings, proxy


def plain_client(settings: dict[str, object]) -> "LocalStore | S3Store":
    """What reads the objects without peerd: obstore, on the same directory or server."""
    from obstore.store import LocalStore, S3Store

    url = str(settings["tier.url"])
    store: LocalStore | S3Store
    if url.startswith("file://"):
        store = LocalStore(url.removeprefix("file://"))
    else:
        endpoint = str(settings["tier.endpoint"])
        store = S3Store(
            BUCKET,
            prefix="cold",
            config={
                "endpoint": endpoint,
                "region": "us-east-1",
                "access_key_id": ACCESS_KEY,
                "secret_access_key": SECRET_KEY,
            },
            client_options={"allow_http": True},
            virtual_hosted_style_request=False,
        )
    return store


def cluster_of(
    arguments: argparse.Namespace, directory: Path, settings: dict[str, object]
) -> DevCluster:
    """Three peers with this tier, not started."""
    return DevCluster(
        directory,
        Shape(peers=3, las=1, zones=("zone-a",), chunk_bytes=arguments.chunk_mib << 20),
        port_base=None,
        peer_settings={
            **settings,
            "tier.object_bytes": min(32, arguments.chunk_mib) << 20,
            "tier.lag_bytes_max": int(arguments.hot_mb * MB * arguments.lag_share),
        },
    )


def forget(directory: Path) -> None:
    """Have the page cache forget these files, so that who reads them next reads the disk."""
    os.sync()
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(arguments: argparse.Namespace, directory: Path) -> dict[str, object]:
    count = int(arguments.gb * 1000 * MB) // RECORD_BYTES
    hot_bytes = int(arguments.hot_mb * MB) // arguments.shards
    plain_count = max(1, int(arguments.plain_mb * MB) // RECORD_BYTES)
    with ExitStack() as stack:
        latency_s = arguments.latency_s
        settings, proxy = stack.enter_context(tier_of(arguments.store, directory, latency_s))
        cluster = stack.enter_context(cluster_of(arguments, directory / "dev", settings))
        options = ClientOptions(append_timeout_s=APPEND_TIMEOUT_S)
        client = stack.enter_context(connect(credentials=cluster.peerctl_toml, options=options))
        load_before = os.getloadavg()[0]
        first, first_cpu_s = plain(client, "before", plain_count, arguments.shards)
        client.create_log("tiered", shards=arguments.shards, copies=3, acks=2)
        client.set_tier("tiered", hot_bytes)
        before = Spent.now()
        with Largest(cluster) as largest:
            rate = append(client, "tiered", 1, count)
            wait_cold(client, "tiered", hot_bytes, arguments.chunk_mib << 20)
        tiered_cpu_s, server_cpu_s = before.until(Spent.now(), count * RECORD_BYTES)
        waiting_max = 0
        if proxy is not None:
            proxy.delay_s, waiting_max = 0.0, proxy.waiting_max
        after, after_cpu_s = plain(client, "after", plain_count, arguments.shards)
        beside = 0.0
        if arguments.store == "s3":
            puts = PlainPuts(plain_client(settings), min(32, arguments.chunk_mib) << 20)
            beside, _ = plain(client, "beside", plain_count, arguments.shards, puts)
        objects = directory / ("cold" if arguments.store == "directory" else "s3")
        forget(objects)
        cold_bytes, compared_rate = read_back(client, "tiered", 1, count)
        forget(objects)
        before = Spent.now()
        cold_rate = read_cold(client, "tiered")
        read_cpu_s, _ = before.until(Spent.now(), cold_bytes)
        forget(objects)
        plain_rate = asyncio.run(read_plainly(plain_client(settings)))
    untiered = (first + after) / 2
    return {
        "store": arguments.store,
        "gb": arguments.gb,
        "hot_mb": arguments.hot_mb,
        "files_mb_max": round(largest.size_bytes / MB, 1),
        "files_of_limit": round(largest.size_bytes / (hot_bytes * arguments.shards), 2),
        "append_mb_per_s": round(rate / MB, 1),
        "untiered_mb_per_s": [round(first / MB, 1), round(after / MB, 1)],
        "append_share": round(rate / untiered, 2),
        "beside_plain_puts_mb_per_s": round(beside / MB, 1),
        "share_of_that": round(rate / beside, 2) if beside else None,
        "cpu_s_per_gb": {
            "tiered": tiered_cpu_s,
            "untiered": [first_cpu_s, after_cpu_s],
            "server": server_cpu_s,
        },
        "records": count,
        "identical": True,
        "calls_at_a_time_max": waiting_max,
        "cold_mb": round(cold_bytes / MB, 1),
        "cold_read_mb_per_s": round(cold_rate / MB, 1),
        "compared_read_mb_per_s": round(compared_rate / MB, 1),
        "read_cpu_s_per_gb": read_cpu_s,
        "plain_read_mb_per_s": round(plain_rate / MB, 1),
        "read_share": round(cold_rate / plain_rate, 2),
        "load_average": [round(load_before, 1), round(os.getloadavg()[0], 1)],
    }


def table(results: list[dict[str, object]]) -> str:
    """For people and docs/benchmarks.md."""
    columns = [
        *("tier", "written", "hot limit", "largest files", "of the limit", "appends", "untiered"),
        *("share", "beside plain puts", "share", "CPU a GB, of untiered, of the server"),
        *("read from the tier", "compared", "plain client", "share", "CPU a GB read"),
        "load average",
    ]
    lines = [f"| {' | '.join(columns)} |", "| - " * len(columns) + "|"]
    for each in results:
        low, high = each["load_average"]
        before, after = each["untiered_mb_per_s"]
        cpu, beside = each["cpu_s_per_gb"], "– | –"
        if each["share_of_that"] is not None:
            beside = f"{each['beside_plain_puts_mb_per_s']} MB/s | {each['share_of_that']:.0%}"
        lines.append(
            f"| {each['store']} | {each['gb']} GB | {each['hot_mb']} MB | {each['files_mb_max']} "
            f"MB | {each['files_of_limit']} | {each['append_mb_per_s']} MB/s | {before}, "
            f"{after} MB/s | {each['append_share']:.0%} | {beside} "
            f"| {cpu['tiered']} s, {cpu['untiered']} s, {cpu['server']} s "
            f"| {each['cold_read_mb_per_s']} MB/s | {each['compared_read_mb_per_s']} MB/s "
            f"| {each['plain_read_mb_per_s']} MB/s | {each['read_share']:.0%} "
            f"| {each['read_cpu_s_per_gb']} s | {low} to {high} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=5.0, help="written to the log with a tier")
    parser.add_argument("--hot-mb", type=float, default=0, help="default: a tenth of that")
    parser.add_argument("--plain-mb", type=float, default=0, help="written without a tier, twice")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--chunk-mib", type=int, default=0, help="default: by the hot limit")
    parser.add_argument("--lag-share", type=float, default=0.15, help="`tier.lag_bytes_max`, of it")
    parser.add_argument(
        "--latency-s",
        type=float,
        default=0.0,
        help="seconds that each call to the S3 server takes, until all is in the tier",
    )
    parser.add_argument("--store", choices=("directory", "s3", "both"), default="both")
    parser.add_argument("--directory", type=Path, help="where; default: a temporary one")
    arguments = parser.parse_args()
    keep_freed_memory()
    arguments.hot_mb = arguments.hot_mb or 100 * arguments.gb
    arguments.plain_mb = arguments.plain_mb or arguments.hot_mb / 2
    arguments.chunk_mib = arguments.chunk_mib or max(
        1, int(arguments.hot_mb / arguments.shards) // 32
    )
    results = []
    for store in ("directory", "s3") if arguments.store == "both" else (arguments.store,):
        arguments.store = store
        with tempfile.TemporaryDirectory(prefix="peerd-tier-", dir=arguments.directory) as path:
            results.append(run(arguments, Path(path)))
        sys.stdout.write(json.dumps(results[-1]) + "\n")
        sys.stdout.flush()
    sys.stdout.write("\n" + table(results))


if __name__ == "__main__":
    main()
