"""Planned changes under load, by an operator: nothing is lost, the pause is recorded."""

import signal
import subprocess
import sys

import pytest

from peerd.client.blocking import connect
from peerd.testing.dev_cluster import DevCluster
from tests.integration.load import Load, assert_nothing_lost, until

pytestmark = pytest.mark.timeout(300)
# Far above what a hand-over takes, and below what a death costs on a busy machine.
PAUSE_MS_MAX = 5_000.0


def peerctl(cluster: DevCluster, *arguments: str) -> str:
    """What a command that must succeed prints."""
    done = subprocess.run(
        [sys.executable, "-m", "peerd.cli.peerctl", *arguments, "-c", str(cluster.peerctl_toml)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def open_segments(cluster: DevCluster, log: str):
    with connect(credentials=cluster.peerctl_toml) as client:
        return {shard.shard: shard.open for shard in client.describe_log(log)[1]}


def test_a_switch_under_load_costs_nothing(cluster: DevCluster, log: str, record_property):
    with Load(cluster.peerctl_toml, log) as load:
        load.wait_acked(200)
        shard, before = min(open_segments(cluster, log).items())
        target = next(v.peer for v in before.plan.voters if v.peer != before.plan.primary.peer)
        said = peerctl(cluster, "shard", "switch", f"{log}/{shard}", target)
        assert f"{log}/{shard} is being handed over to {target}" in said
        until(lambda: open_segments(cluster, log)[shard].plan.primary.peer == target, "handed over")
        load.wait_acked(200)
        load.finish()
    record_property("pause_ms", load.pause_ms())
    assert load.pause_ms() < PAUSE_MS_MAX
    assert open_segments(cluster, log)[shard].epoch > before.epoch
    assert_nothing_lost(cluster, load)


def test_a_drained_node_can_be_unplugged_under_load(cluster: DevCluster, log: str, record_property):
    with Load(cluster.peerctl_toml, log) as load:
        load.wait_acked(200)
        victim = str(min(open_segments(cluster, log).items())[1].plan.primary.peer)
        said = peerctl(cluster, "node", "drain", victim)
        assert said == f"{victim} is expendable: it is safe to pull the plug\n"
        record_property("pause_ms", load.pause_ms())
        for segment in open_segments(cluster, log).values():
            assert victim not in {voter.peer for voter in segment.plan.voters}
        cluster.member(victim).kill()
        load.wait_acked(400)
        load.finish()
    assert_nothing_lost(cluster, load)  # with the victim gone
    cluster.restart(victim)
    cluster.wait_whole()
    assert peerctl(cluster, "node", "undrain", victim) == f"{victim} may be used again\n"


def test_a_drained_primary_that_stands_still_is_not_waited_for(
    cluster: DevCluster, log: str, record_property
):
    """It leads on for all that it knows when it goes on, and acknowledges nothing any more."""

    def leaders():
        return {str(each.plan.primary.peer) for each in open_segments(cluster, log).values()}

    with (
        connect(credentials=cluster.peerctl_toml) as client,
        Load(cluster.peerctl_toml, log) as load,
    ):
        load.wait_acked(100)
        victim = str(min(open_segments(cluster, log).items())[1].plan.primary.peer)
        cluster.member(victim).signal(signal.SIGSTOP)
        try:
            client.las.drain(victim)
            until(lambda: victim not in leaders(), "led elsewhere")
            load.wait_acked(100)
        finally:
            cluster.member(victim).signal(signal.SIGCONT)
        load.wait_acked(100)
        load.finish()
    record_property("pause_ms", load.pause_ms())
    assert load.pause_ms() < PAUSE_MS_MAX
    assert_nothing_lost(cluster, load)
    cluster.wait_whole()
    assert peerctl(cluster, "node", "undrain", victim) == f"{victim} may be used again\n"
