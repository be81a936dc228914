"""Malformed calls, half-open connections and slow ones against a peer, a front worker and a LAS.

Nothing ends, memory stays, and who means no harm goes on. `make hostile` runs it long, and prints
what healthy clients felt; the small form below judges the rest.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from peerd.client.blocking import connect
from peerd.pki import Role, load_authority
from peerd.testing.dev_cluster import DevCluster, Shape

pytestmark = pytest.mark.timeout(300)
HANDSHAKE_TIMEOUT_MS = 2_000
LIMITS = {"limits.handshake_timeout_ms": HANDSHAKE_TIMEOUT_MS}
MEMORY_MB_MAX = 20
PATIENCE_S = 15.0


@dataclass
class Felt:
    """What a healthy client felt: seconds for each append, and what failed."""

    latencies_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def p99_ms(self) -> float:
        if len(self.latencies_s) < 2:
            return float("nan")
        return statistics.quantiles(self.latencies_s, n=100)[98] * 1000


@contextmanager
def healthy(cluster: DevCluster) -> Iterator[Felt]:
    """Appends one after the other, for as long as the block lasts."""
    felt, over = Felt(), threading.Event()

    def run() -> None:
        with connect(credentials=cluster.peerctl_toml) as client:
            client.append("orders", b"first")
            while not over.wait(0.01):
                began_s = time.monotonic()
                try:
                    client.append("orders", b"healthy")
                except Exception as error:  # noqa: BLE001 - whatever it is, it is told
                    felt.failures.append(repr(error))
                felt.latencies_s.append(time.monotonic() - began_s)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield felt
    finally:
        over.set()
        thread.join()


def processes(cluster: DevCluster) -> dict[str, psutil.Process]:
    """Those under attack: a peer, the front worker of another one, and the LAS node."""
    first, second = cluster.peers
    (worker,) = [
        each
        for each in psutil.Process(second.pid).children()
        if "worker" in " ".join(each.cmdline())
    ]
    return {
        "peer": psutil.Process(first.pid),
        "front worker": worker,
        "LAS": psutil.Process(cluster.las[0].pid),
    }


def anonymous_mb(process: psutil.Process) -> float:
    """Memory that is nobody else's and no file's."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no RssAnon")


def attacked(cluster: DevCluster, rpcs: int, connections: int) -> dict[str, object]:
    """What the attacker tells."""
    name = f"eve-{time.monotonic_ns()}"
    authority = load_authority(cluster.directory / "pki")
    files = authority.issue(Role.ADMIN, name, [], cluster.directory / "eve", 1)
    first, second = cluster.peers
    spec = {
        "addresses": [first.address, second.client_address, cluster.las[0].address],
        "files": {name: str(getattr(files, name)) for name in ("ca", "certificate", "key")},
        "rpcs": rpcs,
        "connections": connections,
        "seed": 7,
        "patience_s": PATIENCE_S,
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.hostile", json.dumps(spec)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"GRPC_VERBOSITY": "NONE"},
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


@contextmanager
def cluster_at(directory: Path) -> Iterator[DevCluster]:
    shape = Shape(peers=2, las=1, workers=1)
    with DevCluster(
        directory, shape, port_base=None, las_settings=LIMITS, peer_settings=LIMITS
    ) as cluster:
        with connect(credentials=cluster.peerctl_toml) as client:
            client.create_log("orders", shards=2, copies=2, acks=2)
        yield cluster


@dataclass
class Account:
    """What an attack did."""

    told: dict[str, object]
    grown_mb: dict[str, float]
    calm: Felt
    meanwhile: Felt


def attack(cluster: DevCluster, rpcs: int, connections: int, calm_s: float) -> Account:
    """Attack once for warmth, measure, attack, measure again. Nothing may end by it."""
    before = processes(cluster)
    attacked(cluster, max(60, rpcs // 10), max(3, connections // 10))
    with healthy(cluster) as calm:
        time.sleep(calm_s)
    memory = {name: anonymous_mb(process) for name, process in before.items()}
    with healthy(cluster) as meanwhile:
        told = attacked(cluster, rpcs, connections)
    assert processes(cluster) == before, "a process ended"
    grown = {name: anonymous_mb(process) - memory[name] for name, process in before.items()}
    return Account(told=told, grown_mb=grown, calm=calm, meanwhile=meanwhile)


def test_nothing_ends_and_memory_stays(tmp_path: Path):
    with cluster_at(tmp_path / "dev") as cluster:
        account = attack(cluster, rpcs=600, connections=30, calm_s=0.2)
        for member in cluster.members:
            log = member.log.read_text()
            assert "Traceback" not in log, f"{member.id}: {log[-3_000:]}"
    assert account.told["half_open_closed"] == account.told["half_open"] == 30
    outcomes = account.told["outcomes"]
    assert isinstance(outcomes, dict)
    assert outcomes["RESOURCE_EXHAUSTED"] > 0, "oversized metadata"
    assert account.meanwhile.failures == []
    assert all(grown <= MEMORY_MB_MAX for grown in account.grown_mb.values()), account.grown_mb


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def main() -> None:
    """The long form, for `make hostile`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rpcs", type=int, default=200_000)
    parser.add_argument("--connections", type=int, default=1_000)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as directory,
        cluster_at(Path(directory) / "dev") as cluster,
    ):
        account = attack(cluster, options.rpcs, options.connections, calm_s=10.0)
    say(f"  {options.rpcs} malformed calls: {account.told['outcomes']}")
    say(
        f"  {account.told['half_open']} half-open connections, "
        f"{account.told['half_open_closed']} closed after {HANDSHAKE_TIMEOUT_MS / 1000:.0f} s; "
        f"{account.told['slow']} slow ones with a certificate"
    )
    for name, grown_mb in account.grown_mb.items():
        say(f"  {name}: the same process, {grown_mb:+.1f} MB of memory")
    say(
        f"  healthy appends: p99 {account.calm.p99_ms:.1f} ms before, "
        f"{account.meanwhile.p99_ms:.1f} ms meanwhile, {len(account.meanwhile.failures)} failed"
    )
    if account.meanwhile.failures or max(account.grown_mb.values()) > MEMORY_MB_MAX:
        sys.exit(1)


if __name__ == "__main__":
    main()
