"""What a drained node held is held by others, and it lets it go; nothing is lost by that."""

import pytest

from peerd.client.blocking import Client, connect
from peerd.testing.dev_cluster import DevCluster, Shape
from tests.integration.load import Load, assert_nothing_lost, until

pytestmark = pytest.mark.timeout(120)


def holders(client: Client) -> list[set[str]]:
    """The nodes that are listed for each sealed segment."""
    _, shards = client.describe_log("orders")
    return [{each.peer for each in segment.holders} for shard in shards for segment in shard.sealed]


def test_a_drained_node_lets_go_what_others_hold(tmp_path):
    settings = {"policy.rebalance_after_s": 0, "policy.rebalance": False}
    with (
        DevCluster(
            tmp_path / "dev", Shape(peers=4, las=1), port_base=None, las_settings=settings
        ) as cluster,
        connect(credentials=cluster.peerctl_toml) as client,
    ):
        client.create_log("orders", shards=2, copies=3, acks=2)
        with Load(cluster.peerctl_toml, "orders") as load:
            load.wait_acked(100)
            _, shards = client.describe_log("orders")
            leaving = shards[0].open.plan.primary.peer
            client.las.drain(leaving)
            until(lambda: holders(client), "a shard of it was handed over")
            load.wait_acked(100)
            until(
                lambda: all(len(each - {leaving}) == 3 for each in holders(client)),
                "three others hold the past",
            )
            until(
                lambda: all(leaving not in each for each in holders(client)),
                "it was told to let it go",
            )
            client.las.undrain(leaving)
            load.wait_acked(100)
            load.finish()
        assert all(len(each) == 3 for each in holders(client))
        # Whoever is asked: what this node does not have any more it gets from others.
        assert_nothing_lost(cluster, load)
