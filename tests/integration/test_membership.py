"""Nodes that leave the fleet, and one that lost its disk, in a cluster of real processes."""

import json
import shutil
import subprocess
import sys

import pytest

from peerd.client.blocking import connect
from peerd.testing.dev_cluster import DevCluster
from tests.integration.load import Load, assert_nothing_lost, until

pytestmark = pytest.mark.timeout(300)


def peerctl(cluster: DevCluster, *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "peerd.cli.peerctl", *arguments, "-c", str(cluster.peerctl_toml)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def primary_of(cluster: DevCluster, log: str) -> str:
    with connect(credentials=cluster.peerctl_toml) as client:
        return str(client.describe_log(log)[1][0].open.plan.primary.peer)


def node_names(cluster: DevCluster) -> set[str]:
    return {
        row["node"]["name"] for row in json.loads(peerctl(cluster, "node", "list", "-o", "json")[1])
    }


def wait_down(cluster: DevCluster, name: str) -> None:
    with connect(credentials=cluster.peerctl_toml) as client:
        until(
            lambda: any(
                each.node.name == name and each.node.state == 2
                for each in client.las.status().nodes
            ),
            f"{name} is down",
        )


def test_a_drained_node_is_safe_to_stop_and_removed(cluster: DevCluster, log: str):
    with Load(cluster.peerctl_toml, log) as load:
        load.wait_acked(200)
        victim = primary_of(cluster, log)
        status, said, _ = peerctl(cluster, "safe-to-stop", victim)
        assert status == 1
        assert f"appends to {log}/" in said
        assert peerctl(cluster, "node", "remove", victim)[0] == 1
        assert peerctl(cluster, "node", "drain", victim)[0] == 0
        assert peerctl(cluster, "safe-to-stop", victim) == (
            0,
            f"{victim} may be stopped: no shard pauses, every record keeps its copies\n",
            "",
        )
        cluster.member(victim).kill()
        wait_down(cluster, victim)
        status, said, told = peerctl(cluster, "node", "remove", victim)
        assert (status, said) == (0, f"{victim} is no node of the fleet any more\n"), told
        assert victim not in node_names(cluster)
        load.wait_acked(200)
        load.finish()
    assert_nothing_lost(cluster, load)
    cluster.restart(victim)
    cluster.wait_whole()
    assert victim in node_names(cluster)


def test_a_peer_that_lost_its_disk_comes_back_with_a_new_one(cluster: DevCluster, log: str):
    with Load(cluster.peerctl_toml, log) as load:
        load.wait_acked(200)
        victim = primary_of(cluster, log)
        member = cluster.member(victim)
        member.kill()
        shutil.rmtree(member.data_dir)
        load.wait_acked(200)
        wait_down(cluster, victim)
        member.start()
        assert member.wait() == 2
        words = member.log.read_text()
        assert f"peerctl node replace {victim} --store " in words
        store = words.rpartition(f"peerctl node replace {victim} --store ")[2][:32]
        status, said, told = peerctl(cluster, "node", "replace", victim, "--store", store)
        assert (status, said) == (0, f"{victim} may start with store {store}\n"), told
        cluster.restart(victim)
        cluster.wait_whole()
        load.wait_acked(200)
        load.finish()
    assert_nothing_lost(cluster, load)
