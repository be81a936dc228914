"""A fleet that grows: `python -m tests.bench.bench_rebalance [--help]`, real processes, TLS.

Five of eight peers have a log, half of whose writes go to one shard; three empty ones join. Tells
how long votes and leads take to lie evenly, by how many moves, what appends see meanwhile, that
nothing moves afterwards, and what is left where two peers are drained. All on one machine, so
latencies beside those of the same run alone mean something.
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

from peerd.client.blocking import Client, connect
from peerd.client.options import ClientOptions
from peerd.testing.dev_cluster import DevCluster, Shape

LOG = "orders"
JOIN = 3
PAYLOAD_BYTES = 16 * 1024
EVEN_TIMEOUT_S = 300.0
DRAIN_TIMEOUT_S = 120.0
APPEND_TIMEOUT_S = 30.0


class Appender:
    """Appends at a constant rate, half of it to one shard; open loop."""

    def __init__(self, client: Client, shards: list[int], rate: float) -> None:
        self._client = client
        self._shards = shards
        self._rate = rate
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="appender")
        self.done: list[tuple[float, float]] = []
        """When each append was due, in seconds of the monotonic clock, and how long it took."""
        self.errors: Counter[str] = Counter()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        draw = random.Random(1)
        begin_s, count = time.monotonic(), 0
        payload = bytes(PAYLOAD_BYTES)
        while not self._ending.wait(0.002):
            due = int((time.monotonic() - begin_s) * self._rate)
            for number in range(count, due):
                shard = self._shards[0] if number % 2 else draw.choice(self._shards[1:])
                due_s = begin_s + number / self._rate
                future = self._client.append_nowait(LOG, payload, shard=shard)
                future.add_done_callback(lambda ended, due_s=due_s: self._note(ended, due_s))
            count = max(count, due)

    def _note(self, ended, due_s: float) -> None:
        error = ended.exception()
        if error is None:
            self.done.append((due_s, time.monotonic() - due_s))
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


def shares(client: Client) -> dict[str, tuple[float, int, int]]:
    """Weight, votes and leads of each peer that is up and healthy."""
    answer = client.las.rebalance(dry_run=True)
    return {each.node: (round(each.weight, 1), each.votes, each.leads) for each in answer.nodes}


def off_even(counts: list[float]) -> float:
    """By which share of what is even the farthest is off."""
    even = sum(counts) / len(counts)
    return max(abs(count - even) for count in counts) / even


def wait_for_room(client: Client, shards: list[int], size_bytes: int) -> None:
    """Fill the log, half of it in one shard."""
    payload = bytes(256 * 1024)
    waiting = []
    for number in range(size_bytes // len(payload)):
        shard = shards[0] if number % 2 else shards[1 + number // 2 % (len(shards) - 1)]
        waiting.append(client.append_nowait(LOG, payload, shard=shard))
        if len(waiting) == 32:
            for each in waiting:
                each.result(APPEND_TIMEOUT_S)
            waiting.clear()
    for each in waiting:
        each.result(APPEND_TIMEOUT_S)


def settle(client: Client, deadline_s: float) -> tuple[float, str]:
    """Wait until nothing is to be moved; how long it took, and what the LAS says then."""
    begin_s = time.monotonic()
    while time.monotonic() - begin_s < deadline_s:
        answer = client.las.status()
        if answer.rebalance.startswith(("even", "rests")):
            break
        time.sleep(0.5)
    return time.monotonic() - begin_s, client.las.status().rebalance


def moves_of(client: Client) -> int:
    """Open segments' epochs in sum: each planned change draws one."""
    return sum(shard.open.epoch for shard in client.describe_log(LOG)[1])


def run(arguments: argparse.Namespace, directory: Path) -> None:
    cluster = DevCluster(
        directory,
        Shape(peers=5 + JOIN, zones=("zone-a",)),
        port_base=None,
        las_settings={"policy.rebalance_after_s": arguments.after_s},
    )
    with cluster:
        late = [member.id for member in cluster.peers[-JOIN:]]
        for name in late:
            cluster.member(name).kill()
        options = ClientOptions(append_timeout_s=APPEND_TIMEOUT_S)
        with connect(credentials=cluster.peerctl_toml, options=options) as client:
            while sum(each.node.state == 1 for each in client.las.status().nodes) != 5:
                time.sleep(0.2)
            client.create_log(LOG, shards=arguments.shards, copies=3, acks=2)
            shards = [each.shard for each in client.describe_log(LOG)[1]]
            wait_for_room(client, shards, int(arguments.gib * (1 << 30)))
            appender = Appender(client, shards, arguments.rate)
            appender.start()
            try:
                measure(arguments, cluster, client, appender, late)
            finally:
                appender.stop()


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
    tell("before", shares=shares(client), **appender.quantiles_ms(calm_s, joined_s))
    before = moves_of(client)
    for name in late:
        cluster.restart(name)
    tell("joined", shares=shares(client))
    took_s, said = settle(client, EVEN_TIMEOUT_S)
    even_s = time.monotonic()
    after = shares(client)
    tell(
        "even",
        took_s=round(took_s, 1),
        said=said,
        moves=moves_of(client) - before,
        shares=after,
        leads_off=round(off_even([leads for _, _, leads in after.values()]), 3),
        weight_off=round(off_even([weight for weight, _, _ in after.values()]), 3),
        **appender.quantiles_ms(joined_s, even_s),
    )
    still = moves_of(client)
    time.sleep(arguments.still_s)
    tell("still", seconds=arguments.still_s, moves=moves_of(client) - still)
    for name in late[:2]:
        client.las.drain(name)
    drained_s = time.monotonic()
    while any(shares_left(client, late[:2])) and time.monotonic() - drained_s < DRAIN_TIMEOUT_S:
        time.sleep(0.2)
    tell(
        "drained",
        took_s=round(time.monotonic() - drained_s, 1),
        shares=shares(client),
        **appender.quantiles_ms(drained_s, time.monotonic()),
    )
    tell("errors", **appender.errors)


def shares_left(client: Client, names: list[str]) -> list[int]:
    """Votes and leads that these nodes have still."""
    nodes = {each.node.name: each for each in client.las.status().nodes}
    return [nodes[name].voting + nodes[name].primaries for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=0.25, help="payload before the load begins")
    parser.add_argument("--shards", type=int, default=32)
    parser.add_argument("--rate", type=float, default=60.0, help="appends of 16 KiB a second")
    parser.add_argument("--calm-s", type=float, default=30.0, help="measured before peers join")
    parser.add_argument("--still-s", type=float, default=60.0, help="watched after all is even")
    parser.add_argument("--after-s", type=int, default=10, help="`policy.rebalance_after_s`")
    parser.add_argument("--directory", type=Path, help="default: a temporary one")
    arguments = parser.parse_args()
    if arguments.directory is not None:
        run(arguments, arguments.directory)
        return
    with tempfile.TemporaryDirectory(prefix="peerd-rebalance-") as directory:
        run(arguments, Path(directory))


if __name__ == "__main__":
    main()
