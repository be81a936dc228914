"""The hot one of many shards splits by itself: nothing is lost, keys keep their order, readers
follow.

Peers and LAS are the real programs but for their patience: they look each second, not each ten.
"""

from itertools import count, islice

import pytest

from las.v1 import shard_map_pb2
from peerd.client.blocking import Client, connect
from peerd.testing.dev_cluster import DevCluster, Shape
from peerd.transport.append_edge import key_hash
from tests.integration import hasty_las, hasty_peer
from tests.integration.load import KEYS, Load, assert_nothing_lost, until
from tests.integration.test_split import Follower

pytestmark = pytest.mark.timeout(300)

LOG = "orders"
# Keys of one of so many have the same first five bits of hash.
SHARDS = 32
# 100 appends a second of a few bytes each: half of what is sent.
LINE_BYTES_PER_S = 500


def children(client: Client) -> list[int]:
    """Shards that come from a split and take appends."""
    shards = client.describe_log(LOG)[1]
    return [each.shard for each in shards if each.parent and not each.open.plan.closed]


def tails(client: Client, shards: list[int]) -> list[int]:
    """How far these shards are committed."""
    committed = {tail.shard: tail.committed for tail in client.tail(LOG)}
    return [committed.get(shard, 0) for shard in shards]


def keys_of(shard: shard_map_pb2.Shard) -> list[bytes]:
    """The first `KEYS` keys that belong to a shard."""
    keys = (f"key-{number}".encode() for number in count())
    there = (key for key in keys if shard.key_hash_low <= key_hash(key) <= shard.key_hash_high)
    return list(islice(there, KEYS))


def test_the_hot_one_of_many_shards_splits_by_itself_and_nothing_is_lost(tmp_path):
    cluster = DevCluster(
        tmp_path / "dev",
        Shape(peers=3, las=1),
        port_base=None,
        las_settings={
            "policy.split_bytes_per_s": LINE_BYTES_PER_S,
            "policy.split_shards_max": SHARDS + 1,
            "policy.rebalance": False,
        },
    )
    for peer in cluster.peers:
        peer.program = hasty_peer.__name__
    for each in cluster.las:
        each.program = hasty_las.__name__
    with cluster, connect(credentials=cluster.peerctl_toml) as client:
        client.create_log(LOG, shards=SHARDS, copies=3, acks=2)
        hot = client.describe_log(LOG)[1][SHARDS // 2]
        with (
            Load(cluster.peerctl_toml, LOG, keys=keys_of(hot)) as load,
            Follower(cluster, LOG) as follower,
        ):
            until(lambda: len(children(client)) == 2, "the shard has split")
            until(lambda: min(tails(client, children(client))) > 0, "both children take appends")
            load.finish()
            until(lambda: len(follower.records) >= len(load.rows), "the follower has everything")
        (parent,) = (each for each in client.describe_log(LOG)[1] if each.split)
        assert parent.shard == hot.shard
        primary = parent.open.plan.primary.peer
        told = [event.text for event in client.las.explain(primary).events]
        assert any("is split: " in text and "the line is" in text for text in told)
        assert_nothing_lost(cluster, load)
    for key in load.keys:
        followed = [record.value for record in follower.records if record.key == key]
        assert followed == [row.value for row in load.rows if row.key == key]
