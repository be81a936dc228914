"""A log gets more copies, and fewer, under load."""

import pytest

from peerd.client.blocking import connect
from peerd.testing.dev_cluster import DevCluster
from tests.integration.load import Load, assert_nothing_lost, until
from tests.integration.test_membership import peerctl

pytestmark = pytest.mark.timeout(300)


def test_shards_follow_a_changed_policy_under_load(cluster: DevCluster, log: str):
    with (
        Load(cluster.peerctl_toml, log) as load,
        connect(credentials=cluster.peerctl_toml) as client,
    ):
        load.wait_acked(200)
        for copies, acks in ((4, 3), (2, 2), (3, 2)):
            wanted = ("log", "alter", log, "--copies", str(copies), "--acks", str(acks))
            status, said, told = peerctl(cluster, *wanted)
            assert (status, f"{copies} copies" in said) == (0, True), told

            def follows(copies: int = copies, acks: int = acks) -> bool:
                plans = [shard.open.plan for shard in client.describe_log(log)[1]]
                return all((len(each.voters), each.acks) == (copies, acks) for each in plans)

            until(follows, f"{copies} copies, {acks} acks")
            load.wait_acked(200)
        assert peerctl(cluster, "log", "alter", log, "--copies", "5")[0] == 1
        load.finish()
    assert_nothing_lost(cluster, load)
