"""What a peer's memory is made of: `python -m tests.bench.bench_memory [--shards 1000]`.

One peer and one LAS node. Prints anonymous memory (RssAnon, what the kernel cannot take back) of
both: with nothing, with so many idle shards, with twice as many, after a record in each of the
first ones, and after `--bytes` of records in one of them. The shards of a log have one copy, so
that the peer hosts all.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from peerd.client.blocking import Client, connect
from peerd.client.values import NewRecord
from peerd.testing.dev_cluster import DevCluster, Shape
from tests.bench.bench_soak import anonymous_bytes

VALUE_BYTES = 64 * 1024
BATCH_RECORDS = 15
# What was allocated for a while is given back some time after it was used.
SETTLE_S = 5.0


def tell(cluster: DevCluster, what: str) -> None:
    """One line: what there is, and the memory of the peer and of the LAS node."""
    time.sleep(SETTLE_S)
    (peer,), (las,) = cluster.peers, cluster.las
    told = f"{anonymous_bytes(peer) / 1e6:8.1f} MB  {anonymous_bytes(las) / 1e6:8.1f} MB"
    sys.stdout.write(f"{told}  {what}\n")
    sys.stdout.flush()


def fill(client: Client, log: str, total_bytes: int) -> None:
    """Append so many bytes to one shard."""
    records = [NewRecord(value=b"x" * VALUE_BYTES, key=b"one")] * BATCH_RECORDS
    for _ in range(total_bytes // (VALUE_BYTES * BATCH_RECORDS)):
        client.append_batch(log, records)


def measure(cluster: DevCluster, shards: int, total_bytes: int) -> None:
    """All steps."""
    with connect(credentials=cluster.peerctl_toml) as client:
        tell(cluster, "nothing (peer, LAS node)")
        for number in (1, 2):
            client.create_log(f"idle-{number}", shards=shards, copies=1, acks=1)
            tell(cluster, f"{number * shards} idle shards")
        hosted = client.describe_log("idle-1")[1]
        for number in range(4 * len(hosted)):
            client.append("idle-1", b"one", key=b"key %d" % number)
        tell(cluster, "a record in nearly each of the first")
        client.create_log("full", shards=1, copies=1, acks=1)
        fill(client, "full", total_bytes)
        tell(cluster, f"{total_bytes / 1e6:.0f} MB in one more shard")


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=1_000)
    parser.add_argument("--bytes", type=int, default=500_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="peerd-memory-") as directory:
        shape = Shape(peers=1, las=1)
        with DevCluster(Path(directory) / "dev", shape, port_base=None) as cluster:
            measure(cluster, options.shards, options.bytes)


if __name__ == "__main__":
    main()
