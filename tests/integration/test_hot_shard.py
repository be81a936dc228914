"""A hot shard splits by itself under load: nothing is lost, keys keep their order, readers follow.

Peers and LAS are the real programs but for their patience: they look each second, not each ten.
"""

import pytest

from peerd.client.blocking import Client, connect
from peerd.testing.dev_cluster import DevCluster, Shape
from tests.integration import hasty_las, hasty_peer
from tests.integration.load import KEYS, Load, assert_nothing_lost, until
from tests.integration.test_split import Follower

pytestmark = pytest.mark.timeout(120)

LOG = "orders"
# 100 appends a second of a few bytes each: half of what is sent.
LINE_BYTES_PER_S = 500


def children(client: Client) -> list[int]:
    """Shards that come from a split and take appends."""
    shards = client.describe_log(LOG)[1]
    return [each.shard for each in shards if each.parent and not each.open.plan.closed]


def test_a_hot_shard_splits_by_itself_and_nothing_is_lost(tmp_path):
    cluster = DevCluster(
        tmp_path / "dev",
        Shape(peers=3, las=1),
        port_base=None,
        las_settings={
            "policy.split_bytes_per_s": LINE_BYTES_PER_S,
            "policy.split_shards_max": 2,
            "policy.rebalance": False,
        },
    )
    for peer in cluster.peers:
        peer.program = hasty_peer.__name__
    for each in cluster.las:
        each.program = hasty_las.__name__
    with cluster, connect(credentials=cluster.peerctl_toml) as client:
        client.create_log(LOG, shards=1, copies=3, acks=2)
        with Load(cluster.peerctl_toml, LOG) as load, Follower(cluster, LOG) as follower:
            until(lambda: len(children(client)) == 2, "the shard has split")
            lower, upper = children(client)
            load.wait_acked(100)
            tails = {tail.shard: tail.committed for tail in client.tail(LOG)}
            assert min(tails[lower], tails[upper]) > 0, "both children take appends"
            load.finish()
            until(lambda: len(follower.records) >= len(load.rows), "the follower has everything")
        (primary,) = (
            each.open.plan.primary.peer for each in client.describe_log(LOG)[1] if each.split
        )
        told = [event.text for event in client.las.explain(primary).events]
        assert any("is split: " in text and "the line is" in text for text in told)
        assert_nothing_lost(cluster, load)
    for number in range(KEYS):
        key = f"key-{number}".encode()
        followed = [record.value for record in follower.records if record.key == key]
        assert followed == [row.value for row in load.rows if row.key == key]
