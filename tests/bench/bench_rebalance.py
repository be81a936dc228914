"""A fleet that grows: `python -m tests.bench.bench_rebalance [--help]`, real processes, TLS.

Five of eight peers have a log of 32 shards with as many bytes each; half of the load goes to one of
them, and three empty peers join. Tells how long votes, leads and stored bytes take to lie evenly,
how many bytes moved for it, what appends see meanwhile, that nothing moves afterwards, that the hot
shard splits and each key keeps its order, and what is left where two peers are drained. Each bar is
told with what was found. All on one machine, so latencies beside those of the same run alone mean
something.
"""

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.request import urlopen

from peerd.client.blocking import Client, connect
from peerd.client.options import ClientOptions
from peerd.testing.dev_cluster import DevCluster, Shape
from peerd.transport.append_edge import key_hash

LOG = "orders"
PEERS = 5
JOIN = 3
PAYLOAD_BYTES = 16 * 1024
FILL_BYTES = 256 * 1024
KEYS = 256
EVEN_TIMEOUT_S = 600.0
DRAIN_TIMEOUT_S = 120.0
# A lead that was moved rests for half a minute; what rests for longer is a vote.
RESTS_S = 40.0
SPLIT_TIMEOUT_S = 180.0
APPEND_TIMEOUT_S = 30.0
MIB = 1 << 20

# The bars.
EVEN_S_MAX = 300.0
OFF_EVEN_MAX = 0.15
MOVED_MAX = 1.1
SLOWER_MAX = 1.5


class Appender:
    """Appends records with keys at a constant rate, half of them to one shard's keys; open loop."""

    def __init__(self, client: Client, keys: list[list[bytes]], rate: float) -> None:
        """`keys` are those of each shard, the hot one first."""
        self._client = client
        self._keys = keys
        self._rate = rate
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="appender")
        self.done: list[tuple[float, float]] = []
        """When each append was due, in seconds of the monotonic clock, and how long it took."""
        self.acked: Counter[bytes] = Counter()
        self.errors: Counter[str] = Counter()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        draw = random.Random(1)
        begin_s, count = time.monotonic(), 0
        sent: Counter[bytes] = Counter()
        while not self._ending.wait(0.002):
            due = int((time.monotonic() - begin_s) * self._rate)
            for number in range(count, due):
                keys = self._keys[0] if number % 2 else draw.choice(self._keys[1:])
                key = draw.choice(keys)
                payload = sent[key].to_bytes(8, "big") + bytes(PAYLOAD_BYTES - 8)
                sent[key] += 1
                due_s = begin_s + number / self._rate
                future = self._client.append_nowait(LOG, payload, key=key)
                future.add_done_callback(
                    lambda ended, due_s=due_s, key=key: self._note(ended, due_s, key)
                )
            count = max(count, due)

    def _note(self, ended, due_s: float, key: bytes) -> None:
        error = ended.exception()
        if error is None:
            self.done.append((due_s, time.monotonic() - due_s))
            self.acked[key] += 1
        else:
            self.errors[str(error)[:80]] += 1

    def quantiles_ms(self, begin_s: float, end_s: float) -> dict[str, float]:
        """Of appends that were due in this time: number, median, p99 and longest."""
        took = sorted(1000 * took for due, took in self.done if begin_s <= due < end_s)
        if not took:
            return {"appends": 0}
        return {
            "appends": len(took),
            "p50_ms": round(took[len(took) // 2], 1),
            "p99_ms": round(took[len(took) * 99 // 100], 1),
            "max_ms": round(took[-1], 1),
        }


def tell(what: str, **facts: object) -> None:
    sys.stdout.write(json.dumps({"what": what, **facts}) + "\n")
    sys.stdout.flush()


def bar(what: str, found: float, most: float) -> None:
    """One bar: what was found, what it may be at most."""
    tell("bar", bar=what, found=round(found, 3), most=most, reached=found <= most)


def keys_of(client: Client) -> list[list[bytes]]:
    """`KEYS` keys of each shard, by shard."""
    shards = client.describe_log(LOG)[1]
    found: list[list[bytes]] = [[] for _ in shards]
    number = 0
    while min(map(len, found)) < KEYS:
        key = b"key-%d" % number
        number += 1
        hashed = key_hash(key)
        at = next(i for i, s in enumerate(shards) if s.key_hash_low <= hashed <= s.key_hash_high)
        if len(found[at]) < KEYS:
            found[at].append(key)
    return found


def shares(client: Client) -> dict[str, tuple[float, int, int, int]]:
    """Weight, votes, leads and MiB stored of each peer that is up and healthy."""
    answer = client.las.rebalance(dry_run=True)
    return {
        each.node: (round(each.weight, 1), each.votes, each.leads, each.stored_bytes // MIB)
        for each in answer.nodes
    }


def off_even(counts: list[float]) -> float:
    """By which share of what is even the farthest is off."""
    even = sum(counts) / len(counts)
    return max(abs(count - even) for count in counts) / even


def fill(client: Client, shards: list[int], size_bytes: int) -> None:
    """As many bytes to each shard."""
    payload = random.Random(2).randbytes(FILL_BYTES)
    waiting = []
    for number in range(size_bytes // FILL_BYTES):
        shard = shards[number % len(shards)]
        waiting.append(client.append_nowait(LOG, payload, shard=shard))
        if len(waiting) == 32:
            for each in waiting:
                each.result(APPEND_TIMEOUT_S)
            waiting.clear()
    for each in waiting:
        each.result(APPEND_TIMEOUT_S)


def settle(client: Client, deadline_s: float) -> tuple[float, str]:
    """Wait until nothing is to be moved; how long it took, and what the LAS says then."""
    begin_s = still_s = time.monotonic()
    while time.monotonic() - begin_s < deadline_s:
        told = client.las.status().rebalance
        if not told.startswith("rests"):
            still_s = time.monotonic()
        if told.startswith("even") or time.monotonic() - still_s > RESTS_S:
            break
        time.sleep(0.5)
    return time.monotonic() - begin_s, told


def moves_of(client: Client) -> int:
    """Open segments' epochs in sum: each planned change draws one."""
    return sum(shard.open.epoch for shard in client.describe_log(LOG)[1])


def metric_of(member, name: str) -> float:
    """The sum of a metric's values at a daemon's `/metrics`."""
    with urlopen(f"http://{member.metrics_address}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found = [line.rsplit(" ", 1)[1] for line in lines if line.startswith((name + " ", name + "{"))]
    return sum(map(float, found))


def copied_bytes(cluster: DevCluster) -> float:
    """Payload that peers have fetched as copies since they started."""
    return sum(
        metric_of(peer, "peerd_copied_bytes_total") for peer in cluster.peers if peer.running
    )


def run(arguments: argparse.Namespace, directory: Path) -> None:
    split = {"policy.split_bytes_per_s": arguments.split} if arguments.split else {}
    cluster = DevCluster(
        directory,
        Shape(peers=PEERS + JOIN, zones=("zone-a",)),
        port_base=None,
        las_settings={
            "policy.rebalance_after_s": arguments.after_s,
            "policy.rebalance_bytes_min": arguments.bytes_min_mib * MIB,
            **split,
        },
    )
    with cluster:
        late = [member.id for member in cluster.peers[-JOIN:]]
        for name in late:
            cluster.member(name).kill()
        options = ClientOptions(append_timeout_s=APPEND_TIMEOUT_S)
        with connect(credentials=cluster.peerctl_toml, options=options) as client:
            while sum(each.node.state == 1 for each in client.las.status().nodes) != PEERS:
                time.sleep(0.2)
            client.create_log(LOG, shards=arguments.shards, copies=3, acks=2)
            fill(client, [s.shard for s in client.describe_log(LOG)[1]], int(arguments.gib * 2**30))
            appender = Appender(client, keys_of(client), arguments.rate)
            appender.start()
            try:
                measure(arguments, cluster, client, appender, late)
                if arguments.split:
                    watch_split(client, appender)
                drain(client, appender, late[:2])
            finally:
                appender.stop()
            tell("errors", **appender.errors)
            bar("errors", sum(appender.errors.values()), 0)
            check_order(client, appender)


def measure(
    arguments: argparse.Namespace,
    cluster: DevCluster,
    client: Client,
    appender: Appender,
    late: list[str],
) -> None:
    calm_s = time.monotonic()
    time.sleep(arguments.calm_s)
    joined_s = time.monotonic()
    calm = appender.quantiles_ms(calm_s, joined_s)
    tell("before", shares=shares(client), **calm)
    before = moves_of(client)
    for name in late:
        cluster.restart(name)
    stored = [mib for _, _, _, mib in shares(client).values()]
    even_mib = sum(stored) / len(cluster.peers)
    least_mib = sum(max(0.0, even_mib - mib) for mib in stored)
    least_mib += even_mib * (len(cluster.peers) - len(stored))
    tell("joined", shares=shares(client), least_mib=round(least_mib))
    took_s, said = settle(client, EVEN_TIMEOUT_S)
    even_s = time.monotonic()
    after = list(zip(*shares(client).values(), strict=True))
    meanwhile = appender.quantiles_ms(joined_s, even_s)
    moved_mib = copied_bytes(cluster) / MIB
    tell(
        "even",
        took_s=round(took_s, 1),
        said=said,
        moves=moves_of(client) - before,
        moved_mib=round(moved_mib),
        weight_off=round(off_even(list(after[0])), 3),
        shares=shares(client),
        **meanwhile,
    )
    bar("seconds until all is even", took_s, EVEN_S_MAX)
    bar("leads, off even", off_even(list(after[2])), OFF_EVEN_MAX)
    bar("stored bytes, off even", off_even(list(after[3])), OFF_EVEN_MAX)
    bar("bytes moved, of the least", moved_mib / least_mib, MOVED_MAX)
    bar("p99 of appends, of that before", meanwhile["p99_ms"] / calm["p99_ms"], SLOWER_MAX)
    still, copied = moves_of(client), copied_bytes(cluster)
    splits = len(client.describe_log(LOG)[1])
    time.sleep(arguments.still_s)
    if len(client.describe_log(LOG)[1]) == splits:
        bar(f"moves in {arguments.still_s:.0f} s after that", moves_of(client) - still, 0)
    bar("MiB copied in that time", (copied_bytes(cluster) - copied) / MIB, 0)


def watch_split(client: Client, appender: Appender) -> None:
    """Wait until the hot shard has children."""
    begin_s = time.monotonic()
    while time.monotonic() - begin_s < SPLIT_TIMEOUT_S:
        if any(shard.parent is not None for shard in client.describe_log(LOG)[1]):
            break
        time.sleep(0.5)
    shards = client.describe_log(LOG)[1]
    children = sum(shard.parent is not None for shard in shards)
    tell("split", children=children, shards=len(shards))
    bar("the hot shard did not split", float(children < 2), 0)


def drain(client: Client, appender: Appender, names: list[str]) -> None:
    for name in names:
        client.las.drain(name)
    drained_s = time.monotonic()
    while any(shares_left(client, names)) and time.monotonic() - drained_s < DRAIN_TIMEOUT_S:
        time.sleep(0.2)
    tell(
        "drained",
        took_s=round(time.monotonic() - drained_s, 1),
        shares=shares(client),
        **appender.quantiles_ms(drained_s, time.monotonic()),
    )


def shares_left(client: Client, names: list[str]) -> list[int]:
    """Votes and leads that these nodes have still."""
    nodes = {each.node.name: each for each in client.las.status().nodes}
    return [nodes[name].voting + nodes[name].primaries for name in names]


def check_order(client: Client, appender: Appender) -> None:
    """Read the log as a whole: of each key what was acknowledged is there, in order, once."""
    seen: Counter[bytes] = Counter()
    wrong = 0
    for record in client.read(LOG):
        if record.key:
            number = int.from_bytes(record.value[:8], "big")
            wrong += number != seen[record.key]
            seen[record.key] += 1
    lost = sum(max(0, count - seen[key]) for key, count in appender.acked.items())
    tell("read", records=sum(seen.values()), keys=len(seen))
    bar("records out of order", wrong, 0)
    bar("records lost", lost, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=4.0, help="payload before the load begins")
    parser.add_argument("--shards", type=int, default=32)
    parser.add_argument("--rate", type=float, default=40.0, help="appends of 16 KiB a second")
    parser.add_argument(
        "--calm-s",
        type=float,
        default=240.0,
        help="measured before peers join; rates are smoothed, and the filling has to fade",
    )
    parser.add_argument("--still-s", type=float, default=600.0, help="watched after all is even")
    parser.add_argument("--after-s", type=int, default=10, help="`policy.rebalance_after_s`")
    parser.add_argument(
        "--bytes-min-mib", type=int, default=64, help="`policy.rebalance_bytes_min` in MiB"
    )
    parser.add_argument(
        "--split", type=int, default=0, help="`policy.split_bytes_per_s`; 0: nothing splits"
    )
    parser.add_argument("--directory", type=Path, help="default: a temporary one")
    arguments = parser.parse_args()
    if arguments.directory is not None:
        run(arguments, arguments.directory)
        return
    with tempfile.TemporaryDirectory(prefix="peerd-rebalance-") as directory:
        run(arguments, Path(directory))


if __name__ == "__main__":
    main()
