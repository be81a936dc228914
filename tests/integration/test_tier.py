"""The tier with real processes: what is old goes there, and is read back as if it were here."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from peerd.client.blocking import Client, connect
from peerd.client.errors import Trimmed
from peerd.testing.dev_cluster import DevCluster, Member, Shape
from peerd.v1 import log_pb2, log_pb2_grpc
from tests.integration.load import until
from tests.integration.test_bad_input import channel
from tests.integration.test_planned import peerctl

pytestmark = pytest.mark.timeout(300)

CHUNK_BYTES = 64 * 1024
HOT_BYTES = 2 * CHUNK_BYTES
VALUE_BYTES = 8_000


def started(directory: Path, tier: Path, key: Path) -> DevCluster:
    return DevCluster(
        directory,
        Shape(peers=3, las=1, chunk_bytes=CHUNK_BYTES),
        port_base=None,
        peer_settings={
            "tier.url": f"file://{tier}",
            "tier.key_files": [str(key)],
            "tier.object_bytes": 2 * CHUNK_BYTES,
            "tier.remove_after_s": 0,
        },
        las_settings={"policy.retention_period_ms": 200},
    )


@pytest.fixture(scope="module")
def tier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tier")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, tier: Path) -> Iterator[DevCluster]:
    """Three peers that share a directory as their tier, and encrypt what lies there."""
    directory = tmp_path_factory.mktemp("cluster")
    key = directory / "key"
    key.write_text("ab" * 32)
    with started(directory / "dev", tier, key) as running:
        yield running


@pytest.fixture
def client(cluster: DevCluster) -> Iterator[Client]:
    with connect(credentials=cluster.peerctl_toml) as connected:
        yield connected


def row(number: int) -> bytes:
    return f"{number} ".encode().ljust(VALUE_BYTES, b".")


def fill(client: Client, log: str, shard: int, count: int) -> int:
    """Append `count` records to the shard; returns its end."""
    first = client.tail(log, shard)[0].committed
    for number in range(first, first + count):
        client.append(log, row(number), shard=shard)
    return first + count


def values(client: Client, log: str, **how) -> list[tuple[int, bytes]]:
    with client.read(log, **how) as records:
        return [(record.offset, record.value) for record in records]


def entry_of(client: Client, log: str):
    return client.describe_log(log)[1][0]


def cold_log(client: Client, name: str, count: int = 100) -> tuple[int, int]:
    """A tiered log of which most is in the tier alone; its shard and end."""
    shard = client.create_log(name, shards=1, copies=3, acks=2).shards[0]
    client.set_tier(name, HOT_BYTES)
    end = fill(client, name, shard, count)
    wait_until_cold(client, name, end)
    return shard, end


def wait_until_cold(client: Client, name: str, end: int) -> None:
    """Until all but the hot bytes, and what is no whole chunk, is in the tier alone."""
    most = HOT_BYTES + 2 * CHUNK_BYTES
    until(
        lambda: (end - entry_of(client, name).trimmed_to) * VALUE_BYTES <= most,
        "what is not hot is in the tier alone",
    )


def test_what_is_old_goes_to_the_tier_and_readers_do_not_notice(
    cluster: DevCluster, client: Client, tier: Path
):
    shard, end = cold_log(client, "orders")
    entry = entry_of(client, "orders")
    hot = (end - entry.trimmed_to) * VALUE_BYTES
    assert hot >= HOT_BYTES
    assert client.tail("orders", shard)[0].first_offset == 0
    assert values(client, "orders") == [(number, row(number)) for number in range(end)]
    assert values(client, "orders", shard=shard, start=17)[:2] == [(17, row(17)), (18, row(18))]
    objects = list(tier.rglob("*.chunk"))
    assert objects
    assert not any(row(0)[:200] in path.read_bytes() for path in objects)
    told = json.loads(peerctl(cluster, "log", "describe", "orders", "-o", "json"))["shards"][0]
    assert told["first_offset"] == 0 < entry.trimmed_to <= told["stored_from"]
    assert told["tier"]["end"] >= entry.trimmed_to


def test_kill_9_of_primaries_and_moves_lose_nothing(cluster: DevCluster, client: Client):
    shard, end = cold_log(client, "moved")
    for _ in range(2):
        member = cluster.member(entry_of(client, "moved").open.plan.primary.peer)
        member.kill()
        end = fill(client, "moved", shard, 30)
        member.start()
        member.wait_ready()
    assert values(client, "moved") == [(number, row(number)) for number in range(end)]
    wait_until_cold(client, "moved", end)
    assert values(client, "moved") == [(number, row(number)) for number in range(end)]


def test_trims_reach_into_the_tier_and_its_objects_go(
    cluster: DevCluster, client: Client, tier: Path
):
    shard, end = cold_log(client, "trimmed")
    objects = len(list(tier.rglob(f"log-trimmed/shard-{shard:020d}/*.chunk")))
    first = client.trim("trimmed", shard, 45)
    assert 20 < first <= 45
    until(lambda: client.tail("trimmed", shard)[0].first_offset == first, "its primary has heard")
    assert values(client, "trimmed") == [(number, row(number)) for number in range(first, end)]
    with pytest.raises(Trimmed):
        values(client, "trimmed", shard=shard, start=3)
    until(
        lambda: len(list(tier.rglob(f"log-trimmed/shard-{shard:020d}/*.chunk"))) < objects,
        "objects of what was trimmed are removed",
    )
    assert values(client, "trimmed") == [(number, row(number)) for number in range(first, end)]
    client.set_retention("trimmed", retention_bytes=4 * CHUNK_BYTES)
    until(lambda: entry_of(client, "trimmed").kept_from > first, "retention reaches it, too")
    kept = entry_of(client, "trimmed").kept_from
    assert (end - kept) * VALUE_BYTES >= 4 * CHUNK_BYTES


def refused(cluster: DevCluster, client: Client, log: str, member: Member | None = None) -> str:
    """Why the log's primary, or another one, does not give its first records. (The library would
    try for long.)
    """
    shard = entry_of(client, log)
    serving = member or cluster.member(shard.open.plan.primary.peer)
    request = log_pb2.ReadRequest(log=log, shard=shard.shard, offset=0)
    if member is not None:
        setattr(request, "from", log_pb2.READ_FROM_LOCAL)
    with channel(serving.address, cluster.client_tls) as opened:
        call = log_pb2_grpc.LogServiceStub(opened).Read(request, timeout=30)
        with pytest.raises(grpc.RpcError) as error:
            list(call)
    return str(error.value.details())


def test_what_the_tier_does_not_give_is_told_and_the_rest_goes_on(
    cluster: DevCluster, client: Client, tier: Path
):
    shard, end = cold_log(client, "spoilt")
    folder = next(tier.rglob(f"log-spoilt/shard-{shard:020d}"))
    path = min(folder.glob("*.chunk"))
    sound = path.read_bytes()
    flipped = bytearray(sound)
    flipped[len(sound) // 2] ^= 1
    path.write_bytes(flipped)
    assert "DAMAGED_OBJECT" in refused(cluster, client, "spoilt")
    path.unlink()
    assert "MISSING_OBJECT" in refused(cluster, client, "spoilt")
    later = entry_of(client, "spoilt").trimmed_to
    assert values(client, "spoilt", shard=shard, start=later)[0] == (later, row(later))
    end = fill(client, "spoilt", shard, 3)
    path.write_bytes(sound)
    assert values(client, "spoilt") == [(number, row(number)) for number in range(end)]


def test_strange_objects_old_manifests_and_other_keys_are_told(
    cluster: DevCluster, client: Client, tier: Path
):
    shard, end = cold_log(client, "strange", 60)
    other, other_end = cold_log(client, "stranger", 60)
    folder, others = (
        next(tier.rglob(f"log-{log}/shard-{number:020d}"))
        for log, number in (("strange", shard), ("stranger", other))
    )
    path = min(folder.glob("*.chunk"))
    sound = path.read_bytes()
    path.write_bytes(min(others.glob("*.chunk")).read_bytes())
    assert "FOREIGN_OBJECT" in refused(cluster, client, "strange")
    assert values(client, "stranger") == [(number, row(number)) for number in range(other_end)]
    path.write_bytes(sound)

    entry = entry_of(client, "strange")
    away = next(each for each in cluster.peers if each.id != entry.open.plan.primary.peer)
    listed = folder / entry.tier.manifest
    newest = listed.read_bytes()
    listed.write_bytes(newest.replace(b'"generation":', b'"generation": 0'))
    assert "DAMAGED_OBJECT" in refused(cluster, client, "strange", away)
    listed.write_bytes(newest)

    config = away.config.read_text()
    (away.directory / "other").write_text("cd" * 32)
    key = re.search(r'key_files = \["([^"]*)"\]', config) or re.search(r'"([^"]*/key)"', config)
    away.kill()
    away.config.write_text(config.replace(key[1], str(away.directory / "other")))
    said = subprocess.run(
        [sys.executable, "-m", "peerd.cli.peerd", "check", "-c", str(away.config)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (said.returncode, "WRONG_KEY" in said.stderr) == (2, True), said
    cluster.restart(away.id)
    cluster.wait_whole()
    # While it is no replica again yet, it sends readers to the primary.
    until(lambda: "WRONG_KEY" in refused(cluster, client, "strange", away), "it lacks the key")
    away.kill()
    away.config.write_text(config)
    cluster.restart(away.id)
    cluster.wait_whole()
    assert values(client, "strange") == [(number, row(number)) for number in range(end)]


def test_what_lies_there_of_a_deleted_log_goes(client: Client, tier: Path):
    dropped, _ = cold_log(client, "dropped", 60)
    shard, end = cold_log(client, "kept", 60)
    assert list(tier.rglob("log-dropped/*/*.chunk"))
    client.las.delete_log("dropped", accept_loss=True, shards=[dropped])
    until(lambda: not list(tier.rglob("log-dropped/*/*")), "nothing of it is left in the tier")
    assert values(client, "kept") == [(number, row(number)) for number in range(end)]
    assert client.tail("kept", shard)[0].first_offset == 0
