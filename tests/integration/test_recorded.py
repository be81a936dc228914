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
from peerd.core.primary import Primary
from peerd.testing.acceptor import Judge
from peerd.testing.dev_cluster import DevCluster, DevClusterError, Shape
from peerd.testing.replay import Different, Replay
from peerd.testing.replay import main as replay_main
from peerd.testing.trace import Died, Handled, MapCommitted
from tests.integration import broken_peer
from tests.integration.load import Load, assert_nothing_lost

# A test starts several processes, each of which takes seconds on a busy machine.
pytestmark = pytest.mark.timeout(300)
KILLS = 2
ACKED_BETWEEN = 100
ATTEMPTS_PER_RUN = 3


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
    """Replay, have it judged, and count."""
    replay, judge = Replay(out), Judge()
    counts = {"events": 0, "deaths": 0, "commands": 0}
    for record in replay.records():
        judge.take(record)
        counts["events"] += isinstance(record, Handled)
        counts["deaths"] += isinstance(record, Died)
        counts["commands"] += isinstance(record, MapCommitted)
    accounts = list(replay.accounts())
    partial = [account for account in accounts if not account.whole or account.skipped]
    assert not partial, f"not recorded whole: {partial}"
    notes = [note for account in accounts for note in account.notes]
    assert not notes, f"notes: {notes}"
    assert replay.has_map, "the map is in no recording"
    assert judge.verdict.accepted, judge.verdict
    counts["processes"] = len(accounts)
    return counts


def test_a_run_under_kill_9_replays_to_the_same_effects_and_is_accepted(tmp_path: Path):
    with DevCluster(tmp_path / "dev", Shape(peers=3, las=1), port_base=None) as cluster:
        run(cluster, "orders", seed=1)
        dead = cluster.peers[0].id
        cluster.member(dead).kill()
        table = save(cluster, tmp_path / "incident", dead)
        assert all(member.id in table for member in cluster.members)
    counts = replayed(tmp_path / "incident")
    assert counts["events"] > 500
    assert counts["commands"] > 0
    assert counts["deaths"] == KILLS
    assert counts["processes"] == len(cluster.members) + KILLS


def test_the_run_of_processes_with_a_broken_rule_is_refused(tmp_path: Path, monkeypatch, capsys):
    """By the replay, whose cores do otherwise; and by the acceptor, where they do the same."""
    with DevCluster(tmp_path / "dev", Shape(peers=3, las=1), port_base=None) as cluster:
        for peer in cluster.peers:
            peer.kill()
            peer.program = broken_peer.__name__
        for peer in cluster.peers:
            peer.start()
        for peer in cluster.peers:
            peer.wait_ready()
        with connect(credentials=cluster.peerctl_toml) as client:
            client.create_log("orders", shards=1, copies=3, acks=2)
            for row in range(50):
                client.append("orders", f"row {row}".encode())
        dead = cluster.peers[0].id
        cluster.member(dead).kill()
        save(cluster, tmp_path / "incident", dead)
    assert replay_main([str(tmp_path / "incident")]) == 1
    told = capsys.readouterr().err
    assert "the effects are not the recorded ones; now:" in told
    assert len(told.splitlines()) == 1

    monkeypatch.setattr(Primary, "_advance", broken_peer.advance_with_one)
    assert replay_main([str(tmp_path / "incident")]) == 1
    told = capsys.readouterr().out
    assert "the replay has the recorded effects" in told
    assert "acceptor: refused" in told


def record(directory: Path, seed: int) -> Path:
    """One run of a cluster of its own; where its recordings are."""
    out = directory / "incident"
    with DevCluster(directory / "dev", Shape(peers=3, las=1), port_base=None) as cluster:
        run(cluster, "orders", seed)
        dead = cluster.peers[seed % len(cluster.peers)].id
        cluster.member(dead).kill()
        save(cluster, out, dead)
    return out


def main(runs: int) -> int:
    """Record and replay so many runs; says how many gave the same effects and were accepted."""
    same = judged = attempts = 0
    while judged < runs and attempts < ATTEMPTS_PER_RUN * runs:
        seed, attempts = attempts, attempts + 1
        with tempfile.TemporaryDirectory(prefix="peerd-recorded-") as directory:
            try:
                out = record(Path(directory), seed)
            except DevClusterError as error:
                # For example a port that another program took: there is no run to be judged.
                told = f"run {seed} did not take place: {error}"
            else:
                judged += 1
                try:
                    told = f"run {seed}: {replayed(out)} the same effects, accepted"
                    same += 1
                except (AssertionError, Different) as error:
                    told = f"run {seed}: {error}"
        sys.stdout.write(told + "\n")
        sys.stdout.flush()
    told = f"{same} of {judged} recorded runs under kill -9 had the same effects and were accepted"
    sys.stdout.write(told + "\n")
    return 0 if same == judged == runs else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
