"""A peer that lost its disk comes back: `make bench-repair`, real processes, mutual TLS.

Three peers hold a log with three copies. One is killed, its data directory removed, the new store
accepted (docs/operations.md), and the peer started again, once without load and once beside
appends of a given share of what the cluster can take. Told are: how long the LAS takes from the
registration to wanting the first copy, how long until every segment has its copies again, the
bytes that this is a second, and what appends see before, while the peer is away (two copies are
left then, and both have to flush), while it copies, and afterwards.

All processes share one machine, so that a second of the three peers is a second of one. What is
asked of the LAS to see how far it is costs this process and the LAS as much as the copies do, so it
is asked in every phase alike. Also told is what the two peers that stay say of themselves in each
phase: the p99 of their commits, and the processor time that they take, in cores.
"""

import argparse
import json
import os
import random
import re
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.request import urlopen

from peerd.client.blocking import Client, connect
from peerd.client.options import ClientOptions
from peerd.testing.dev_cluster import DevCluster, Member, Shape

LOG = "orders"
BATCH_BYTES = 256 * 1024
IN_FLIGHT = 48
APPEND_TIMEOUT_S = 60.0
CAPACITY_S = 3.0
POLL_S = 0.02
# Beside load, where the asking is felt.
LOADED_POLL_S = 0.1
LIMIT_S = 300.0


class Load:
    """Appends of small records, open loop: each is due at a time, whatever the others do."""

    def __init__(self, client: Client, shards: list[int], rate: float, record_bytes: int) -> None:
        self._client = client
        self._shards = shards
        self._rate = rate
        self._payload = random.Random(1).randbytes(record_bytes)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load")
        self.took: list[tuple[float, float]] = []
        """When each was due, and how long it took. Seconds."""
        self.errors = 0

    def __enter__(self) -> "Load":
        if self._rate:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        if self._rate:
            self._thread.join()

    def _run(self) -> None:
        begun_s, sent = time.monotonic(), 0
        while not self._ending.wait(0.002):
            due = int((time.monotonic() - begun_s) * self._rate)
            for number in range(sent, due):
                due_s = begun_s + number / self._rate
                shard = self._shards[number % len(self._shards)]
                future = self._client.append_nowait(LOG, self._payload, shard=shard)
                future.add_done_callback(lambda ended, due_s=due_s: self._note(ended, due_s))
            sent = max(sent, due)

    def _note(self, ended, due_s: float) -> None:
        if ended.exception() is None:
            self.took.append((due_s, time.monotonic() - due_s))
        else:
            self.errors += 1

    def quantiles_ms(self, begin_s: float, end_s: float) -> dict[str, float]:
        """Of what was due in this time."""
        took = sorted(1000 * took for due_s, took in tuple(self.took) if begin_s <= due_s < end_s)
        if not took:
            return {}
        return {
            "appends": len(took),
            "p50_ms": round(took[len(took) // 2], 2),
            "p99_ms": round(took[len(took) * 99 // 100], 2),
        }


def fill(client: Client, shards: list[int], size_bytes: int) -> None:
    """Write so many bytes of payload, spread evenly."""
    draw, waiting = random.Random(2), []
    payloads = [draw.randbytes(BATCH_BYTES) for _ in range(8)]
    for number in range(size_bytes // BATCH_BYTES):
        shard = shards[number % len(shards)]
        waiting.append(client.append_nowait(LOG, payloads[number % 8], shard=shard))
        if len(waiting) >= IN_FLIGHT:
            waiting.pop(0).result(APPEND_TIMEOUT_S)
    for each in waiting:
        each.result(APPEND_TIMEOUT_S)


def capacity(client: Client, shards: list[int], record_bytes: int) -> float:
    """Appends a second with `IN_FLIGHT` under way."""
    payload = random.Random(1).randbytes(record_bytes)
    waiting, done, begun_s = [], 0, time.monotonic()
    while time.monotonic() - begun_s < CAPACITY_S:
        shard = shards[done % len(shards)]
        waiting.append(client.append_nowait(LOG, payload, shard=shard))
        if len(waiting) >= IN_FLIGHT:
            waiting.pop(0).result(APPEND_TIMEOUT_S)
        done += 1
    for each in waiting:
        each.result(APPEND_TIMEOUT_S)
    return done / (time.monotonic() - begun_s)


def lose(cluster: DevCluster, client: Client, name: str) -> None:
    """Kill a peer, remove what it had, and have its new store accepted. It is not started again."""
    member = cluster.member(name)
    member.kill()
    shutil.rmtree(member.data_dir)
    asked = f"peerctl node replace {name} --store "
    said = member.log.read_text().count(asked)
    deadline_s = time.monotonic() + LIMIT_S
    while member.log.read_text().count(asked) == said:
        if not member.running:
            member.start()
        time.sleep(POLL_S)
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{name} was not told how to come back")
    member.wait()
    client.las.replace_node(name, member.log.read_text().rpartition(asked)[2][:32])


def segments_of(client: Client):
    """All sealed segments of the log with records in them."""
    return [
        segment
        for shard in client.describe_log(LOG)[1]
        for segment in shard.sealed
        if (segment.end or 0) > (segment.begin or 0)
    ]


def rest(client: Client, rest_s: float) -> None:
    """Let time pass, and ask the LAS meanwhile as `repaired` does."""
    until_s = time.monotonic() + rest_s
    while time.monotonic() < until_s:
        client.las.status()
        segments_of(client)
        time.sleep(LOADED_POLL_S)


def repaired(
    client: Client, name: str, boot_before: str, begun_s: float, poll_s: float
) -> dict[str, float]:
    """Wait until `name` holds every segment; when what happened, in seconds from `begun_s`."""
    told: dict[str, float] = {}
    rate = 0.0
    while time.monotonic() - begun_s < LIMIT_S:
        now_s = time.monotonic() - begun_s
        store = next((n for n in client.las.status().nodes if n.node.name == name), None)
        if store is not None and store.node.state == 1 and store.node.boot_id != boot_before:
            told.setdefault("registered_s", now_s)
        if "registered_s" in told and store is not None and store.HasField("copying"):
            rate = max(rate, store.copying.bytes_per_s)
        segments = segments_of(client)
        wanted = [s for s in segments if any(h.peer == name for h in s.wanted_holders)]
        held = [
            s
            for s in segments
            if any(
                h.peer == name and store is not None and h.store == store.node.store_id
                for h in s.holders
            )
        ]
        if wanted and "registered_s" in told:
            told.setdefault("wanted_s", now_s)
        if "registered_s" in told and segments and len(held) == len(segments):
            told["whole_s"] = now_s
            told["told_bytes_per_s"] = round(rate)
            return told
        time.sleep(poll_s)
    raise TimeoutError(f"not whole after {LIMIT_S:.0f} s")


class Inside:
    """What peers say of themselves between two moments."""

    def __init__(self, members: list[Member]) -> None:
        self._members = members
        self._begun_s = time.monotonic()
        self._before = [self._read(member) for member in members]

    def _read(self, member: Member) -> tuple[float, Counter[float]]:
        """Processor time in seconds, and commits by the bound of their bucket, in seconds."""
        fields = Path(f"/proc/{member.pid}/stat").read_text().rpartition(")")[2].split()
        with urlopen(f"http://{member.metrics_address}/metrics", timeout=APPEND_TIMEOUT_S) as page:
            text = page.read().decode()
        found = re.findall(r'peerd_commit_seconds_bucket\{.*?le="([^"]+)"\} (\S+)', text)
        cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return cpu_s, Counter({float(bound): float(count) for bound, count in found})

    def told(self) -> dict[str, float]:
        """Of all of them, since this was made."""
        cpu_s, commits = 0.0, Counter[float]()
        for member, (cpu_before_s, before) in zip(self._members, self._before, strict=True):
            cpu_now_s, now = self._read(member)
            cpu_s += cpu_now_s - cpu_before_s
            now.subtract(before)
            commits.update(now)
        most = max(commits.values(), default=0.0)
        bounds_s = sorted(bound for bound, count in commits.items() if count >= 0.99 * most)
        return {
            "commits_p99_ms_max": 1000 * bounds_s[0] if most else 0.0,
            "cores": round(cpu_s / (time.monotonic() - self._begun_s), 2),
        }


def round_of(
    arguments: argparse.Namespace,
    cluster: DevCluster,
    client: Client,
    shards: list[int],
    rate: float,
) -> dict[str, object]:
    """Lose a peer beside `rate` appends a second, and tell what came of it."""
    name = cluster.peers[-1].id
    staying = [member for member in cluster.peers if member.id != name]
    size_bytes = int(arguments.gib * (1 << 30))
    calm_s = arguments.calm_s if rate else 0
    with Load(client, shards, rate, arguments.record_bytes) as load:
        inside, begun_s = Inside(staying), time.monotonic()
        rest(client, calm_s)
        phases = {"before": (begun_s, time.monotonic(), inside.told())}
        lose(cluster, client, name)
        boot = next(n.node.boot_id for n in client.las.status().nodes if n.node.name == name)
        begun_s, inside = time.monotonic(), Inside(staying)
        rest(client, calm_s)
        phases["without_it"] = (begun_s, time.monotonic(), inside.told())
        begun_s, inside = time.monotonic(), Inside(staying)
        cluster.member(name).start()
        told = repaired(client, name, boot, begun_s, LOADED_POLL_S if rate else POLL_S)
        copying_s = begun_s + told.get("wanted_s", told["registered_s"])
        phases["during"] = (copying_s, time.monotonic(), inside.told())
        begun_s, inside = time.monotonic(), Inside(staying)
        rest(client, calm_s)
        phases["after"] = (begun_s, time.monotonic(), inside.told())
        seen = {
            phase: load.quantiles_ms(*times) | about
            for phase, (*times, about) in phases.items()
            if rate
        }
    copied_s = told["whole_s"] - told.get("wanted_s", told["registered_s"])
    found: dict[str, object] = {
        "appends_per_s": round(rate),
        "las_s": round(told.get("wanted_s", told["registered_s"]) - told["registered_s"], 2),
        "copied_s": round(copied_s, 2),
        "whole_s": round(told["whole_s"] - told["registered_s"], 2),
        "mib_per_s": round(size_bytes / (1 << 20) / copied_s, 1),
        "told_mib_per_s": round(told["told_bytes_per_s"] / (1 << 20), 1),
        "errors": load.errors,
    }
    if rate:
        calm_ms = [seen[phase]["p99_ms"] for phase in ("before", "after")]
        found |= seen
        found["p99_ratio"] = round(seen["during"]["p99_ms"] / (sum(calm_ms) / len(calm_ms)), 2)
    return found


def run(arguments: argparse.Namespace, directory: Path) -> list[dict[str, object]]:
    settings: dict[str, object] = {}
    if arguments.busy_mib_per_s:
        settings["copier.busy_bytes_per_s_max"] = arguments.busy_mib_per_s << 20
    if arguments.mib_per_s:
        settings["copier.bytes_per_s_max"] = arguments.mib_per_s << 20
    cluster = DevCluster(
        directory,
        Shape(peers=3, las=1, zones=("zone-a",)),
        port_base=None,
        peer_settings=settings,
    )
    results = []
    with cluster:
        options = ClientOptions(append_timeout_s=APPEND_TIMEOUT_S)
        with connect(credentials=cluster.peerctl_toml, options=options) as client:
            client.create_log(LOG, shards=arguments.shards, copies=3, acks=2)
            shards = [each.shard for each in client.describe_log(LOG)[1]]
            fill(client, shards, int(arguments.gib * (1 << 30)))
            most = capacity(client, shards, arguments.record_bytes)
            for share in (0.0, arguments.load_share):
                load_before = os.getloadavg()[0]
                found = round_of(arguments, cluster, client, shards, share * most)
                found |= {
                    "share": share,
                    "gib": arguments.gib,
                    "load_average": [round(load_before, 1), round(os.getloadavg()[0], 1)],
                }
                results.append(found)
                sys.stdout.write(json.dumps(found) + "\n")
                sys.stdout.flush()
    return results


def table(results: list[dict[str, object]]) -> str:
    """For people and docs/benchmarks.md."""
    columns = [
        *("load", "LAS wants it after", "copied in", "MiB/s", "whole after"),
        *("p99 before", "without it", "copying", "afterwards", "times", "load average"),
    ]
    lines = [f"| {' | '.join(columns)} |", "| - " * len(columns) + "|"]
    for each in results:
        p99 = {
            phase: each.get(phase, {}).get("p99_ms", "–")
            for phase in ("before", "without_it", "during", "after")
        }
        low, high = each["load_average"]
        lines.append(
            f"| {each['share']:.0%} ({each['appends_per_s']}/s) | {each['las_s']} s | "
            f"{each['copied_s']} s | {each['mib_per_s']} | {each['whole_s']} s | "
            f"{p99['before']} ms | {p99['without_it']} ms | {p99['during']} ms "
            f"| {p99['after']} ms | {each.get('p99_ratio', '–')} | {low} to {high} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=1.0, help="payload that the lost peer had")
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--record-bytes", type=int, default=1024)
    parser.add_argument("--load-share", type=float, default=0.3, help="of what the cluster takes")
    parser.add_argument("--calm-s", type=float, default=5.0, help="measured before the loss")
    parser.add_argument("--mib-per-s", type=int, default=0, help="`copier.bytes_per_s_max`")
    parser.add_argument("--busy-mib-per-s", type=int, default=0, help="the same beside appends")
    parser.add_argument("--directory", type=Path, help="default: a temporary one")
    arguments = parser.parse_args()
    if arguments.directory is not None:
        results = run(arguments, arguments.directory)
    else:
        with tempfile.TemporaryDirectory(prefix="peerd-repair-") as directory:
            results = run(arguments, Path(directory))
    sys.stdout.write("\n" + table(results))


if __name__ == "__main__":
    main()
