"""A log is deleted in a cluster of real processes: also for a primary that slept through it, for
readers and producers that are at work, and for the next log of the same name.
"""

import json
import signal
import threading

import pytest

from peerd.client.blocking import Client, connect
from peerd.client.errors import PeerdError, UnknownLog
from peerd.testing.dev_cluster import DevCluster
from tests.integration.load import until
from tests.integration.test_membership import peerctl, primary_of

pytestmark = pytest.mark.timeout(300)

VALUE = b"x" * 10_000


def fill(client: Client, log: str, count: int = 40) -> None:
    for number in range(count):
        client.append(log, VALUE, key=str(number).encode())


def stored_bytes(cluster: DevCluster, name: str) -> int:
    """What a peer says that it stores; 0 before its first heartbeat."""
    with connect(credentials=cluster.peerctl_toml) as client:
        found = {each.node.name: each.stored_bytes for each in client.las.status().nodes}
        return found[name]


def fill_until_told(cluster: DevCluster, client: Client, log: str, victim: str) -> int:
    """Fill the log; what the victim stores when it has told so, half of the new bytes off."""
    before = stored_bytes(cluster, victim)
    fill(client, log)
    half = before + 40 * len(VALUE) // 4
    until(lambda: stored_bytes(cluster, victim) > half, f"{victim} tells what it stores")
    return half


def test_everybody_is_told_and_the_next_log_of_that_name_is_empty(cluster: DevCluster, log: str):
    ends: list[BaseException] = []

    def follow() -> None:
        with connect(credentials=cluster.peerctl_toml) as reader:
            try:
                for _ in reader.read(log, follow=True):
                    pass
            except BaseException as error:  # noqa: BLE001 - judged below
                ends.append(error)

    with connect(credentials=cluster.peerctl_toml) as client:
        fill(client, log)
        reading = threading.Thread(target=follow)
        reading.start()
        status, said, _ = peerctl(cluster, "log", "delete", log)
        assert status == 0
        assert said.startswith(f"{log} would be deleted for good: 2 shards with 40 records, on ")
        fill(client, log, 1)
        status, said, _ = peerctl(cluster, "log", "delete", log, "--accept-data-loss")
        assert status == 0
        assert said.startswith(f"{log} is deleted: 2 shards with 41 records, on ")
        assert "not heard" not in said
        for call in (
            lambda: client.append(log, b"late", key=b"k"),
            lambda: client.tail(log),
            lambda: list(client.read(log)),
            lambda: client.describe_log(log),
        ):
            with pytest.raises(UnknownLog):
                call()
        reading.join(60)
        assert not reading.is_alive()
        assert isinstance(ends[0], UnknownLog)
        client.create_log(log, shards=2)
        client.append(log, b"new", key=b"k")
        with client.read(log, start="earliest") as records:
            assert [record.value for record in records] == [b"new"]
        told = json.loads(peerctl(cluster, "audit", "--log", log, "-o", "json")[1])
        assert [each["what"] for each in told["records"]] == [
            "log create",
            "log delete",
            "log create",
        ]


def test_a_primary_that_slept_through_it_serves_and_resurrects_nothing(
    cluster: DevCluster, log: str
):
    victim = primary_of(cluster, log)
    with connect(credentials=cluster.peerctl_toml) as client:
        half = fill_until_told(cluster, client, log, victim)
        old = {shard.shard for shard in client.describe_log(log)[1]}
        cluster.member(victim).signal(signal.SIGSTOP)
        try:
            status, said, _ = peerctl(cluster, "log", "delete", log, "--accept-data-loss")
            assert status == 0, said
            assert f"not heard of it yet: {victim}" in said
            client.create_log(log, shards=1, copies=2, acks=2)
        finally:
            cluster.member(victim).signal(signal.SIGCONT)
        until(lambda: 0 < stored_bytes(cluster, victim) < half, f"{victim} gives the space back")
        for shard in old:
            with pytest.raises(PeerdError):
                client.append(log, b"late", shard=shard)
        client.append(log, b"new")
        with client.read(log, start="earliest") as records:
            assert [record.value for record in records] == [b"new"]


def test_a_peer_that_was_down_drops_it_when_it_is_back(cluster: DevCluster, log: str):
    victim = primary_of(cluster, log)
    with connect(credentials=cluster.peerctl_toml) as client:
        half = fill_until_told(cluster, client, log, victim)
        cluster.member(victim).kill()
        assert peerctl(cluster, "log", "delete", log, "--accept-data-loss")[0] == 0
        cluster.restart(victim)
        until(lambda: 0 < stored_bytes(cluster, victim) < half, f"{victim} gives the space back")
