"""A primary to which all others seem to stall is left; those that it accuses are not.

It is impatient and the disks of its voters are slow, so what it reports is true. As with a primary
whose packets come late, nobody else says the same of them.
"""

import pytest

from peerd.client.blocking import Client, connect
from peerd.testing.dev_cluster import DevCluster, Shape
from peerd.testing.faults import FaultFile, Faults
from tests.integration.load import Load, assert_nothing_lost, until

pytestmark = pytest.mark.timeout(300)

LOG = "orders"
# The least and the most that may be configured: on a machine on which everybody is late, the others
# would say the same.
IMPATIENT_MS, PATIENT_MS = 50, 60_000
COMMIT_MS = 150


def leaders(client: Client) -> list[str]:
    return [str(each.open.plan.primary.peer) for each in client.describe_log(LOG)[1]]


def test_a_primary_that_alone_says_that_all_others_stall_is_left(tmp_path):
    cluster = DevCluster(
        tmp_path / "dev",
        Shape(peers=4, las=1),
        port_base=None,
        las_settings={"policy.rebalance": False},
        peer_settings={"stall_timeout_ms": PATIENT_MS},
    )
    sick, *others = cluster.peers
    text = sick.config.read_text()
    assert f"stall_timeout_ms = {PATIENT_MS}\n" in text
    sick.config.write_text(text.replace(f"= {PATIENT_MS}\n", f"= {IMPATIENT_MS}\n"))
    with cluster, connect(credentials=cluster.peerctl_toml) as client:
        client.create_log(LOG, shards=4, copies=3, acks=2)
        assert sick.id in leaders(client)
        with Load(cluster.peerctl_toml, LOG) as load:
            load.wait_acked(100)
            boot = next(each.boot_id for each in nodes(client) if each.name == sick.id)
            for each in others:
                FaultFile(each.faults_file).set(Faults(write_delay_ms=COMMIT_MS))
            until(lambda: sick.id not in leaders(client), "its shards are led elsewhere")
            facts = client.las.explain(sick.id).facts
            assert any(line.startswith("it stalls as primary") for line in facts), facts
            load.wait_acked(100)
            load.finish()
        # Nothing ended it, and of the others nobody is held for sick.
        assert boot == next(each.boot_id for each in nodes(client) if each.name == sick.id)
        for each in others:
            assert not any("stalls" in line for line in client.las.explain(each.id).facts)
        assert set(leaders(client)) <= {each.id for each in others}
        assert_nothing_lost(cluster, load)


def nodes(client: Client):
    return [each.node for each in client.las.status().nodes]
