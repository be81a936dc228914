"""Runs of real processes under kill -9, replayed from what they recorded.

python -m tests.integration.test_recorded RUNS     (`make recorded RUNS=20`)
"""

import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from peerd.client.blocking import connect
from peerd.testing.dev_cluster import DevCluster, Shape
from peerd.testing.replay import Replay
from peerd.testing.trace import Died, Handled
from tests.integration.load import Load, assert_nothing_lost

# A test starts several processes, each of which takes seconds on a busy machine.
pytestmark = pytest.mark.timeout(300)
KILLS = 2
ACKED_BETWEEN = 100


def peerctl(cluster: DevCluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "peerd.cli.peerctl", *arguments]
    return subprocess.run(
        [*command, "-c", str(cluster.peerctl_toml)], capture_output=True, text=True, check=False
    )


def run(cluster: DevCluster, log: str, seed: int) -> None:
    """Appends, and peers that are killed and come back; in the end one stays dead."""
    rng = random.Random(seed)
    with connect(credentials=cluster.peerctl_toml) as client:
        client.create_log(log, shards=2, copies=3, acks=2)
    with Load(cluster.peerctl_toml, log) as load:
        for _ in range(KILLS):
            load.wait_acked(ACKED_BETWEEN)
            victim = rng.choice([peer.id for peer in cluster.peers])
            cluster.member(victim).kill()
            load.wait_acked(ACKED_BETWEEN // 2)
            cluster.restart(victim)
        load.wait_acked(ACKED_BETWEEN)
        load.finish()
    assert_nothing_lost(cluster, load)


def save(cluster: DevCluster, out: Path, dead: str) -> str:
    """Collect from those that live and from the directory of the one that does not."""
    data_dir = cluster.member(dead).data_dir
    saved = peerctl(
        cluster, "incident", "save", "--out", str(out), "--data-dir", f"{dead}={data_dir}"
    )
    assert saved.returncode == 0, saved.stderr
    return saved.stdout


def replayed(out: Path) -> dict[str, int]:
    """Replay, and count."""
    replay = Replay(out)
    counts = {"events": 0, "deaths": 0}
    for record in replay.records():
        counts["events"] += isinstance(record, Handled)
        counts["deaths"] += isinstance(record, Died)
    accounts = list(replay.accounts())
    assert all(account.whole and not account.skipped for account in accounts)
    assert not [note for account in accounts for note in account.notes]
    counts["processes"] = len(accounts)
    return counts


def test_a_run_under_kill_9_replays_to_the_same_effects(tmp_path: Path):
    with DevCluster(tmp_path / "dev", Shape(peers=3, las=1), port_base=None) as cluster:
        run(cluster, "orders", seed=1)
        dead = cluster.peers[0].id
        cluster.member(dead).kill()
        table = save(cluster, tmp_path / "incident", dead)
        assert all(peer.id in table for peer in cluster.peers)
    counts = replayed(tmp_path / "incident")
    assert counts["events"] > 500
    assert counts["deaths"] == KILLS
    assert counts["processes"] == len(cluster.peers) + KILLS


def main(runs: int) -> int:
    """Record and replay so many runs; says how many gave the same effects."""
    same = 0
    for seed in range(runs):
        with tempfile.TemporaryDirectory(prefix="peerd-recorded-") as directory:
            out = Path(directory) / "incident"
            with DevCluster(
                Path(directory) / "dev", Shape(peers=3, las=1), port_base=None
            ) as cluster:
                run(cluster, "orders", seed)
                dead = cluster.peers[seed % len(cluster.peers)].id
                cluster.member(dead).kill()
                save(cluster, out, dead)
            counts = replayed(out)
            same += 1
            sys.stdout.write(f"run {seed}: {counts} replayed to the same effects" + "\n")
            sys.stdout.flush()
    sys.stdout.write(
        f"{same} of {runs} recorded runs under kill -9 replayed to the same effects" + "\n"
    )
    return 0 if same == runs else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
