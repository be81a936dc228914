"""A peer that joins takes its part of votes, leads and copies, under load; nothing is lost."""

import pytest

from las.v1.shard_map_pb2 import NODE_STATE_UP
from peerd.client.blocking import Client, connect
from peerd.testing.dev_cluster import DevCluster, Shape
from tests.integration.load import Load, assert_nothing_lost, until

pytestmark = pytest.mark.timeout(180)

LOGS = ("orders", "past")
SHARDS = 16
MIB = 1 << 20


def carried(client: Client) -> dict[str, tuple[int, int]]:
    """Votes and leads of each node that is up."""
    nodes = client.las.status().nodes
    return {
        each.node.name: (each.voting, each.primaries)
        for each in nodes
        if each.node.state == NODE_STATE_UP
    }


def is_even(client: Client, late: str) -> bool:
    """Whether the peer has about its part, and leads as many as the others."""
    found = carried(client)
    leads = [leads for _, leads in found.values()]
    return found.get(late, (0, 0))[0] >= 3 * SHARDS // 4 - 1 and max(leads) - min(leads) <= 1


def stored(client: Client, late: str) -> float:
    """What the peer stores, in shares of what is even."""
    found = {each.node.name: each.stored_bytes for each in client.las.status().nodes}
    return len(found) * found[late] / sum(found.values())


def all_have(client: Client, count: int) -> bool:
    """Whether each sealed segment has so many holders, and nobody is wanted for one."""
    shards = [shard for log in LOGS for shard in client.describe_log(log)[1]]
    sealed = [each for shard in shards for each in shard.sealed]
    return all(len(each.holders) == count and not each.wanted_holders for each in sealed)


def test_a_peer_that_joins_takes_its_part(tmp_path):
    shape = Shape(peers=4, las=1, zones=("zone-a",))
    settings = {
        "policy.rebalance_after_s": 0,
        "policy.rebalance_moves_per_s": 8,
        "policy.rebalance_bytes_min": MIB // 2,
    }
    with (
        DevCluster(tmp_path / "dev", shape, port_base=None, las_settings=settings) as cluster,
        connect(credentials=cluster.peerctl_toml) as client,
    ):
        late = cluster.peers[-1]
        late.kill()
        until(lambda: len(carried(client)) == 3, "the fourth peer is down")
        for log in LOGS:
            client.create_log(log, shards=SHARDS // 2, copies=3, acks=2)
        assert {votes for votes, _ in carried(client).values()} == {SHARDS}
        _, shards = client.describe_log("past")
        for each in (*shards, *shards):
            client.append("past", bytes(MIB // 2), shard=each.shard)
        with Load(cluster.peerctl_toml, "orders") as load:
            load.wait_acked(50)
            cluster.restart(late.id)
            until(lambda: is_even(client, late.id), "votes and leads lie evenly")
            # What its votes have sealed can be moved: half of the past at least.
            until(lambda: stored(client, late.id) > 0.4, "it stores its part of the past")
            until(lambda: all_have(client, 3), "who gave has let go")
            load.wait_acked(50)
            load.finish()
        # What moves on counts twice meanwhile.
        until(
            lambda: sum(votes for votes, _ in carried(client).values()) == 3 * SHARDS,
            "every vote is one peer's",
        )
        told = [event.text for event in client.las.explain(late.id).events]
        assert any(f"{late.id} votes in place of" in text for text in told)
        assert any(f"{late.id} holds in place of" in text for text in told)
        assert len(list(client.read("past"))) == SHARDS
        assert_nothing_lost(cluster, load)
