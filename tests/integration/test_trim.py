"""Trims with real processes: what goes, what stays, what readers are told; also across kill -9."""

import contextlib
import datetime
import json
from collections.abc import Iterator

import pytest

from peerd.client.blocking import Client, connect
from peerd.client.errors import RecordsMissing, Trimmed
from peerd.testing.dev_cluster import DevCluster, Shape
from tests.integration.load import until
from tests.integration.test_planned import peerctl

pytestmark = pytest.mark.timeout(300)

CHUNK_BYTES = 64 * 1024
VALUE_BYTES = 8_000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevCluster]:
    """Three peers that cut chunks of 64 KiB."""
    directory = tmp_path_factory.mktemp("cluster") / "dev"
    shape = Shape(peers=3, las=1, chunk_bytes=CHUNK_BYTES)
    with DevCluster(directory, shape, port_base=None) as running:
        yield running


@pytest.fixture
def client(cluster: DevCluster) -> Iterator[Client]:
    with connect(credentials=cluster.peerctl_toml) as connected:
        yield connected


def fill(client: Client, log: str, shard: int, count: int) -> int:
    """Append `count` records to the shard, one after the other; returns its end."""
    first = client.tail(log, shard)[0].committed
    for number in range(first, first + count):
        client.append(log, row(number), shard=shard)
    return first + count


def row(number: int) -> bytes:
    return f"{number} ".encode().ljust(VALUE_BYTES, b".")


def values(client: Client, log: str, **how) -> list[tuple[int, bytes]]:
    with client.read(log, **how) as records:
        return [(record.offset, record.value) for record in records]


def new_log(client: Client, name: str) -> int:
    return client.create_log(name, shards=1, copies=3, acks=2).shards[0]


def trimmed(
    client: Client, log: str, shard: int, before: int | datetime.datetime, *, beyond: int = 0
) -> int:
    """The first offset left, once every replica has what may go and the primary knows it.

    A replica that has not got all yet holds up a part, so it is `beyond` where the test says.
    """
    found = 0

    def enough() -> bool:
        nonlocal found
        found = client.trim(log, shard, before)
        return found > beyond

    until(enough, "what may go is trimmed")
    until(lambda: client.tail(log, shard)[0].first_offset == found, "its primary has heard")
    return found


def test_a_trim_drops_whole_chunks_and_readers_are_told(cluster: DevCluster, client: Client):
    shard = new_log(client, "told")
    end = fill(client, "told", shard, 60)
    with client.read("told", shard=shard) as records:
        before = next(records)
        position = records.position
        first = trimmed(client, "told", shard, 40, beyond=30)
    assert before.offset == 0
    assert 30 < first <= 40
    assert values(client, "told") == [(number, row(number)) for number in range(first, end)]
    assert values(client, "told", shard=shard, start=first)[0][0] == first
    with pytest.raises(Trimmed, match="first one left") as error:
        values(client, "told", shard=shard, start=first - 1)
    assert error.value.first_offset == first
    with pytest.raises(RecordsMissing) as missing:
        values(client, "told", start=position)
    assert (missing.value.next_offset, missing.value.reason) == (first, "TRIMMED")
    assert client.tail("told", shard)[0].first_offset == first
    described = json.loads(peerctl(cluster, "log", "describe", "told", "-o", "json"))
    assert described["shards"][0]["first_offset"] == first
    assert client.trim("told", shard, 5) == first, "it never goes back"


def test_peerctl_trims_before_a_time(cluster: DevCluster, client: Client):
    shard = new_log(client, "timed")
    fill(client, "timed", shard, 40)
    with client.read("timed") as records:
        last = [record.appended_ms for record in records][-1]
    time = datetime.datetime.fromtimestamp((last + 1) / 1000, datetime.UTC).isoformat()
    trimmed(client, "timed", shard, 20)

    def further() -> bool:
        said = json.loads(peerctl(cluster, "log", "trim", "timed", "--before", time, "-o", "json"))
        return bool(said[0]["first_offset"] > 20)

    until(further, "all that every replica has by then")


def test_retention_by_bytes_and_by_age(cluster: DevCluster, client: Client):
    shard = new_log(client, "kept")
    said = peerctl(cluster, "log", "retain", "kept", "--bytes", str(2 * CHUNK_BYTES))
    assert said == f"kept: keeps the newest {2 * CHUNK_BYTES} bytes of each shard\n"
    end = fill(client, "kept", shard, 60)

    def first() -> int:
        return client.tail("kept", shard)[0].first_offset

    # Nothing less: it may have looked while the log was being filled.
    until(
        lambda: (end - first()) * VALUE_BYTES <= 3 * CHUNK_BYTES + VALUE_BYTES,
        "old bytes are trimmed",
    )
    before = first()
    assert (end - before) * VALUE_BYTES >= 2 * CHUNK_BYTES
    assert values(client, "kept") == [(number, row(number)) for number in range(before, end)]
    client.set_retention("kept", retention_bytes=0, retention_ms=500)
    until(lambda: first() > before, "old records are trimmed, also of an idle shard")
    fill(client, "kept", shard, 1)


@pytest.mark.parametrize("victim", ["primary", "shadow"])
def test_kill_9_during_a_trim_loses_nothing_that_is_kept(
    cluster: DevCluster, client: Client, victim: str
):
    log = f"killed-{victim}"
    shard = new_log(client, log)
    end = fill(client, log, shard, 120)
    _, (entry,) = client.describe_log(log)
    primary = entry.open.plan.primary.peer
    shadows = [replica.peer for replica in entry.open.plan.voters if replica.peer != primary]
    name = primary if victim == "primary" else shadows[0]
    first = trimmed(client, log, shard, 100)
    cluster.member(name).kill()
    end = fill(client, log, shard, 20)
    cluster.restart(name)
    cluster.wait_whole()
    assert client.tail(log, shard)[0].first_offset == first
    assert values(client, log) == [(number, row(number)) for number in range(first, end)]
    # Also from the store that came back, once it has what it missed.
    later = []

    def goes_on() -> bool:
        with contextlib.suppress(Exception):
            later.append(client.trim(log, shard, end))
        return bool(later) and later[-1] > first

    until(goes_on, "trims go on when everybody is back")
    until(lambda: client.tail(log, shard)[0].first_offset == later[-1], "its primary has heard")
    assert values(client, log) == [(number, row(number)) for number in range(later[-1], end)]
