"""A cluster over a real S3 server that fails in every way that it knows: nothing is lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from peerd.client.blocking import Client, connect
from peerd.testing.dev_cluster import DevCluster, Member, Shape
from tests.integration.load import until
from tests.integration.object_store import (
    ACCESS_KEY,
    BUCKET,
    SECRET_KEY,
    SpoilingProxy,
    s3_server,
)
from tests.integration.test_tier import (
    CHUNK_BYTES,
    HOT_BYTES,
    entry_of,
    fill,
    row,
    values,
    wait_until_cold,
)

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpoilingProxy]:
    with (
        s3_server(tmp_path_factory.mktemp("s3")) as url,
        SpoilingProxy(url).in_a_thread() as running,
    ):
        yield running


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, proxy: SpoilingProxy) -> Iterator[DevCluster]:
    directory: Path = tmp_path_factory.mktemp("cluster")
    (directory / "id").write_text(ACCESS_KEY)
    (directory / "secret").write_text(SECRET_KEY + "\n")
    settings = {
        "tier.url": f"s3://{BUCKET}/cold",
        "tier.endpoint": proxy.url,
        "tier.access_key_id_file": str(directory / "id"),
        "tier.secret_access_key_file": str(directory / "secret"),
        "tier.object_bytes": 2 * CHUNK_BYTES,
        "tier.deadline_ms": 1_000,
        "tier.attempts": 3,
    }
    with DevCluster(
        directory / "dev",
        Shape(peers=3, las=1, chunk_bytes=CHUNK_BYTES),
        port_base=None,
        peer_settings=settings,
        las_settings={"policy.retention_period_ms": 200},
    ) as running:
        yield running


@pytest.fixture
def client(cluster: DevCluster) -> Iterator[Client]:
    with connect(credentials=cluster.peerctl_toml) as connected:
        yield connected


def primary_of(cluster: DevCluster, client: Client) -> Member:
    return cluster.member(entry_of(client, "orders").open.plan.primary.peer)


def tiered_to(client: Client) -> int:
    tier = entry_of(client, "orders").tier
    return 0 if tier is None else tier.end


def test_a_store_that_spoils_every_way_loses_nothing(
    cluster: DevCluster, client: Client, proxy: SpoilingProxy
):
    shard = client.create_log("orders", shards=1, copies=3, acks=2).shards[0]
    client.set_tier("orders", HOT_BYTES)

    proxy.hang = True
    end = fill(client, "orders", shard, 60)
    assert (tiered_to(client), entry_of(client, "orders").trimmed_to) == (0, 0)
    proxy.hang = False

    proxy.fail_every, proxy.lose_puts = 3, 2
    requests = proxy.requests
    until(lambda: proxy.requests > requests + 2, "uploads go on")
    member = primary_of(cluster, client)
    member.kill()
    end = fill(client, "orders", shard, 60)
    member.start()
    member.wait_ready()
    wait_until_cold(client, "orders", end)
    assert proxy.lose_puts == 0
    assert values(client, "orders") == [(number, row(number)) for number in range(end)]

    # While nobody answers nothing more is dropped, and everything else goes on.
    proxy.fail_every, proxy.hang = 0, True
    end = fill(client, "orders", shard, 40)
    before = tiered_to(client)
    assert values(client, "orders", shard=shard, start=before) == [
        (number, row(number)) for number in range(before, end)
    ]
    assert entry_of(client, "orders").trimmed_to <= before
    proxy.hang = False
    wait_until_cold(client, "orders", end)
    assert values(client, "orders") == [(number, row(number)) for number in range(end)]
