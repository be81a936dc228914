"""A cluster over a real S3 server that fails in every way that it knows: nothing is lost."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from peerd.client.blocking import Client, connect
from peerd.client.errors import Overloaded
from peerd.client.options import ClientOptions
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
    VALUE_BYTES,
    entry_of,
    fill,
    row,
    values,
    wait_until_cold,
)

pytestmark = pytest.mark.timeout(300)

LAG_BYTES_MAX = 1 << 20


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
        "tier.lag_bytes_max": LAG_BYTES_MAX,
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
    return tiered(client, "orders")


def tiered(client: Client, log: str) -> int:
    tier = entry_of(client, log).tier
    return 0 if tier is None else tier.end


def test_appends_wait_for_a_tier_that_hangs_and_go_on_with_it(
    cluster: DevCluster, client: Client, proxy: SpoilingProxy
):
    shard = client.create_log("waiting", shards=1, copies=3, acks=2).shards[0]
    client.set_tier("waiting", HOT_BYTES)
    proxy.hang = True
    told, count = "", 0
    # Up to here nobody has to wait, and an append may take its time.
    while count * VALUE_BYTES <= LAG_BYTES_MAX + HOT_BYTES - CHUNK_BYTES:
        assert client.append("waiting", row(count), shard=shard).offset == count
        count += 1
    options = ClientOptions(append_timeout_s=1.0)
    with connect(credentials=cluster.peerctl_toml, options=options) as hasty:
        while not told:
            try:
                hasty.append("waiting", row(count), shard=shard)
                count += 1
            except Overloaded as error:
                told = str(error)
            assert count * VALUE_BYTES < 8 * LAG_BYTES_MAX
    assert "wait for the object tier" in told
    assert "tier.lag_bytes_max" in told
    member = cluster.member(entry_of(client, "waiting").open.plan.primary.peer)
    until(
        lambda: any(f"appends on {member.id} wait" in w for w in client.las.status().warnings),
        "the status says so",
    )
    # What is there is read, other logs go on, and nothing was dropped.
    other = client.create_log("untiered", shards=1, copies=3, acks=2).shards[0]
    client.append("untiered", b"goes on", shard=other)
    assert entry_of(client, "waiting").trimmed_to == 0
    proxy.hang = False
    end = client.append("waiting", row(count), shard=shard).offset + 1
    assert end == count + 1  # what was refused was not taken
    wait_until_cold(client, "waiting", end)
    assert values(client, "waiting") == [(number, row(number)) for number in range(end)]


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


def test_a_store_that_answers_late_holds_up_nothing_but_the_tier(
    cluster: DevCluster, client: Client, proxy: SpoilingProxy
):
    """Each call takes most of its deadline, then longer than it: as 10 s beside 30 s, in short."""
    shard = client.create_log("late", shards=1, copies=3, acks=2).shards[0]
    client.set_tier("late", HOT_BYTES)
    for delay_s in (0.6, 1.5):
        proxy.delay_s, proxy.waiting_max = delay_s, 0
        requests, before = proxy.requests, tiered(client, "late")
        took = []
        for _ in range(25):
            begun_s = time.monotonic()
            end = fill(client, "late", shard, 1)
            hot = values(client, "late", shard=shard, start=end - 1)
            took.append(time.monotonic() - begun_s)
            assert hot == [(end - 1, row(end - 1))]
        # Whoever waited for the store would have waited at least so long.
        assert sorted(took)[len(took) // 2] < delay_s / 2
        until(lambda: proxy.requests > requests + 3, "it is tried on")  # noqa: B023
        if delay_s < 1:
            until(lambda: tiered(client, "late") > before, "uploads go on")  # noqa: B023
        # Each of three peers has one call for an upload under way, however much waits, and one for
        # what deleted logs left. The proxy holds on to what was given up, beside the next try.
        assert proxy.waiting_max <= (6 if delay_s < 1 else 12)
        entry = entry_of(client, "late")
        assert entry.trimmed_to <= (0 if entry.tier is None else entry.tier.end)
    proxy.delay_s = 0
    wait_until_cold(client, "late", end)
    assert values(client, "late") == [(number, row(number)) for number in range(end)]
