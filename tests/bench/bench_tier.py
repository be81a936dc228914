"""Much data through a cluster that keeps little of it: `make bench-tier SIZE_GB=5`.

Three peers with three copies and a tier, a directory or a real S3 server (SeaweedFS), mutual TLS.
A log is written as fast as it goes, with a hot limit; a log without a tier is written before and
after it, as much of it each time, so that both rates are of one run. Told are:

- the largest size of any peer's files, beside the hot limit (bar: 1.3 times);
- appends with the tier, of those without (bar: 80 %), and how many were told to wait;
- that every record comes back as it was written, from the tier and from disks;
- how fast what is in the tier alone is read, beside the same objects read by a plain client, in
  ranges of 2 MiB, one after the other (bar: 50 %).
"""

import argparse
import asyncio
import hashlib
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

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


def append(client: Client, log: str, seed: int, count: int) -> float:
    """Append so many records; returns bytes a second."""
    waiting, begun_s = [], time.monotonic()
    for number in range(count):
        payload = record(seed, number)
        waiting.append(client.append_nowait(log, payload, key=payload[:8]))
        if len(waiting) >= IN_FLIGHT:
            waiting.pop(0).result(APPEND_TIMEOUT_S)
    for each in waiting:
        each.result(APPEND_TIMEOUT_S)
    return count * RECORD_BYTES / (time.monotonic() - begun_s)


def plain(client: Client, log: str, count: int, shards: int) -> float:
    """The rate of a log without a tier, which is deleted again."""
    made = client.create_log(log, shards=shards, copies=3, acks=2)
    rate = append(client, log, 7, count)
    client.las.delete_log(log, accept_loss=True, shards=list(made.shards))
    return rate


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


def run(arguments: argparse.Namespace, directory: Path) -> dict[str, object]:
    count = int(arguments.gb * 1000 * MB) // RECORD_BYTES
    hot_bytes = int(arguments.hot_mb * MB) // arguments.shards
    plain_count = max(1, int(arguments.plain_mb * MB) // RECORD_BYTES)
    with ExitStack() as stack:
        latency_s = arguments.latency_s
        settings, proxy = stack.enter_context(tier_of(arguments.store, directory, latency_s))
        cluster = DevCluster(
            directory / "dev",
            Shape(peers=3, las=1, zones=("zone-a",), chunk_bytes=arguments.chunk_mib << 20),
            port_base=None,
            peer_settings={
                **settings,
                "tier.object_bytes": min(32, arguments.chunk_mib) << 20,
                "tier.lag_bytes_max": int(arguments.hot_mb * MB * arguments.lag_share),
            },
        )
        stack.enter_context(cluster)
        options = ClientOptions(append_timeout_s=APPEND_TIMEOUT_S)
        client = stack.enter_context(connect(credentials=cluster.peerctl_toml, options=options))
        load_before = os.getloadavg()[0]
        first = plain(client, "before", plain_count, arguments.shards)
        client.create_log("tiered", shards=arguments.shards, copies=3, acks=2)
        client.set_tier("tiered", hot_bytes)
        with Largest(cluster) as largest:
            rate = append(client, "tiered", 1, count)
            wait_cold(client, "tiered", hot_bytes, arguments.chunk_mib << 20)
        waiting_max = 0
        if proxy is not None:
            proxy.delay_s, waiting_max = 0.0, proxy.waiting_max
        after = plain(client, "after", plain_count, arguments.shards)
        cold_bytes, cold_rate = read_back(client, "tiered", 1, count)
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
        "records": count,
        "identical": True,
        "calls_at_a_time_max": waiting_max,
        "cold_mb": round(cold_bytes / MB, 1),
        "cold_read_mb_per_s": round(cold_rate / MB, 1),
        "plain_read_mb_per_s": round(plain_rate / MB, 1),
        "read_share": round(cold_rate / plain_rate, 2),
        "load_average": [round(load_before, 1), round(os.getloadavg()[0], 1)],
    }


def table(results: list[dict[str, object]]) -> str:
    """For people and docs/benchmarks.md."""
    columns = [
        *("tier", "written", "hot limit", "largest files", "of the limit", "appends", "untiered"),
        *("share", "read from the tier", "plain client", "share", "load average"),
    ]
    lines = [f"| {' | '.join(columns)} |", "| - " * len(columns) + "|"]
    for each in results:
        low, high = each["load_average"]
        before, after = each["untiered_mb_per_s"]
        lines.append(
            f"| {each['store']} | {each['gb']} GB | {each['hot_mb']} MB | {each['files_mb_max']} "
            f"MB | {each['files_of_limit']} | {each['append_mb_per_s']} MB/s | {before}, "
            f"{after} MB/s | {each['append_share']:.0%} | {each['cold_read_mb_per_s']} MB/s "
            f"| {each['plain_read_mb_per_s']} MB/s | {each['read_share']:.0%} | {low} to {high} |"
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
