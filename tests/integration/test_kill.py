"""kill -9 of any one process during appends, back on its directory after 2 s: nothing is lost."""

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence

import pytest

from peerd.client.blocking import connect
from peerd.client.errors import PeerdError
from peerd.testing.conformance_kit import real
from peerd.testing.dev_cluster import DevCluster, Member
from tests.integration.load import Load, assert_nothing_lost, until

# A test starts several processes, each of which takes seconds on a busy machine.
pytestmark = pytest.mark.timeout(300)
AWAY_S = 2.0
# A peer that lives is heard several times in this time, however busy the machine is.
HEARD_WITHIN_S = 5.0


def primary(cluster: DevCluster, log: str) -> str:
    with connect(credentials=cluster.peerctl_toml) as client:
        return str(client.describe_log(log)[1][0].open.plan.primary.peer)


def shadow(cluster: DevCluster, log: str) -> str:
    """A voter that orders no shard of the log: two shards, so one of three voters is free."""
    with connect(credentials=cluster.peerctl_toml) as client:
        shards = client.describe_log(log)[1]
    primaries = {shard.open.plan.primary.peer for shard in shards}
    voters = {voter.peer for shard in shards for voter in shard.open.plan.voters}
    return str(min(voters - primaries))


def leader(cluster: DevCluster, log: str) -> str:
    found = ""
    with connect(credentials=cluster.peerctl_toml) as client:

        def elected() -> str:
            nonlocal found
            found = client.las.status().las_leader
            return found

        until(elected, "the LAS has a leader")
    return found


def follower(cluster: DevCluster, log: str) -> str:
    leads = leader(cluster, log)
    return min(member.id for member in cluster.las if member.id != leads)


def group_whole(cluster: DevCluster) -> bool:
    with connect(credentials=cluster.peerctl_toml) as client:
        try:
            members = client.las.status().las
        except PeerdError:
            return False
    return sum(member.up for member in members) == len(cluster.las)


def restart_all(members: Sequence[Member]) -> None:
    for member in members:
        member.start()
    for member in members:
        member.wait_ready()


@pytest.mark.parametrize("choose", [primary, shadow, leader, follower])
def test_a_killed_process_costs_nothing(cluster: DevCluster, log: str, choose, record_property):
    with Load(cluster.peerctl_toml, log) as load:
        for _ in range(2):
            load.wait_acked(200)
            victim = choose(cluster, log)
            cluster.member(victim).kill()
            time.sleep(AWAY_S)  # what the promise is about, not a wait for something
            cluster.restart(victim)
        load.finish()
    record_property("pause_ms", load.pause_ms())
    assert_nothing_lost(cluster, load)
    cluster.wait_whole()
    until(lambda: group_whole(cluster), "every LAS node is back")


def test_a_program_of_the_client_kit_meets_a_real_cluster(cluster: DevCluster):
    """What `make client-kit` does at its end, with this cluster: kill -9, TLS, disks."""
    with connect(credentials=cluster.peerctl_toml) as client:
        client.create_log(real.LOG, shards=3, copies=3, acks=2)
    ours = [sys.executable, "-m", "peerd.testing.conformance_kit.python_client"]
    try:
        assert asyncio.run(real.judge(ours, cluster)) == ""
    finally:
        cluster.restart(cluster.peers[0].id)
    cluster.wait_whole()


def test_two_deaths_in_a_row_cost_nothing(cluster: DevCluster, log: str):
    with Load(cluster.peerctl_toml, log) as load:
        load.wait_acked(200)
        first = primary(cluster, log)
        cluster.member(first).kill()
        # Acknowledgements do not tell: they may all be of the other shard.
        until(lambda: primary(cluster, log) != first, "it has been replaced")
        load.wait_acked(200)
        second = primary(cluster, log)
        assert second != first
        cluster.restart(first)
        cluster.wait_whole()
        cluster.member(second).kill()
        time.sleep(AWAY_S)
        cluster.restart(second)
        load.finish()
    assert_nothing_lost(cluster, load)
    cluster.wait_whole()


def test_appends_and_reads_go_on_without_any_las(cluster: DevCluster, log: str):
    with Load(cluster.peerctl_toml, log) as load:
        load.wait_acked(200)
        for member in cluster.las:
            member.kill()
        load.wait_acked(600)
        with connect(credentials=cluster.peerctl_toml) as client:
            assert len(list(client.read(log))) >= 800
        restart_all(cluster.las)
        load.finish()
    assert_nothing_lost(cluster, load)
    cluster.wait_whole()
    with connect(credentials=cluster.peerctl_toml) as client:
        client.create_log(f"{log}.after", shards=1)
        assert client.append(f"{log}.after", b"still here").offset == 0


def at_stake(cluster: DevCluster) -> dict[str, str]:
    """What `peerctl status -o json` says of the worst node; empty if nothing is at stake."""
    command = [sys.executable, "-m", "peerd.cli.peerctl", "-c", str(cluster.peerctl_toml)]
    done = subprocess.run(
        [*command, "status", "-o", "json"], check=True, capture_output=True, timeout=60
    )
    worst = json.loads(done.stdout).get("worst", {})
    return dict(worst) if worst.get("node") else {}


def leader_metrics(cluster: DevCluster) -> dict[str, float]:
    """What the leader of the LAS group exports of what is at stake."""
    with connect(credentials=cluster.peerctl_toml) as client:
        member = cluster.member(client.las.status().las_leader)
    with urllib.request.urlopen(f"http://{member.metrics_address}/metrics", timeout=10) as page:
        rows = [line.split() for line in page.read().decode().splitlines()]
    return {row[0]: float(row[1]) for row in rows if row[0].startswith("las_at_stake_")}


def the_seconds_at_stake_are_true(cluster: DevCluster, alone: str) -> None:
    """All peers but one die: what it has is at stake, since the last of the others was heard."""
    before_s = time.monotonic()
    for member in cluster.peers:
        if member.id != alone:
            member.kill()
    killed_s = time.monotonic()
    until(lambda: at_stake(cluster).get("node") == alone, "it is known to be alone")
    asked_s = time.monotonic()
    told_s = int(at_stake(cluster)["exposed_ms"]) / 1000
    # The last heartbeat came before the kill, and not long before.
    assert asked_s - killed_s - 0.1 <= told_s <= time.monotonic() - before_s + HEARD_WITHIN_S
    metrics = leader_metrics(cluster)
    assert metrics["las_at_stake_shards"] >= 1
    assert told_s <= metrics["las_at_stake_seconds"]
    assert metrics["las_at_stake_seconds"] <= time.monotonic() - before_s + HEARD_WITHIN_S
    assert int(at_stake(cluster)["exposed_ms"]) / 1000 > metrics["las_at_stake_seconds"]


def test_every_process_killed_at_once_comes_back_with_everything(cluster: DevCluster, log: str):
    with connect(credentials=cluster.peerctl_toml) as client:
        for row in range(100):
            client.append(log, f"row {row}".encode(), key=b"one")
    the_seconds_at_stake_are_true(cluster, primary(cluster, log))
    for member in cluster.members:
        member.kill()
    restart_all(cluster.members)
    cluster.wait_whole()
    until(lambda: not at_stake(cluster), "nothing is at stake")
    assert leader_metrics(cluster)["las_at_stake_seconds"] == 0.0
    with connect(credentials=cluster.peerctl_toml) as client:
        values = [record.value for record in client.read(log)]
        assert values == [f"row {row}".encode() for row in range(100)]
        assert not client.append(log, b"more", key=b"one").duplicate
