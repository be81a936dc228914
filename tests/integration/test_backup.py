"""A restore drill: every process and every disk is gone, and the tier gives the cluster back."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from las.core.state import GAP_OFFSETS_MIN
from peerd import Position
from peerd.client.blocking import Client, connect
from peerd.client.errors import RecordsMissing
from peerd.testing.dev_cluster import DevCluster, Shape
from peerd.tier.keys import ring_of
from peerd.v1 import batch_pb2, log_pb2, log_pb2_grpc
from tests.integration.load import until
from tests.integration.test_bad_input import channel

pytestmark = pytest.mark.timeout(300)

CHUNK_BYTES = 64 * 1024
VALUE_BYTES = 4_000
COUNT = 60
HEADERS = (("trace", b"\x00\xff"),)


def cluster_at(directory: Path, tier: Path, key: Path) -> DevCluster:
    return DevCluster(
        directory,
        Shape(peers=3, las=1, chunk_bytes=CHUNK_BYTES),
        port_base=None,
        peer_settings={
            "tier.url": f"file://{tier}",
            "tier.key_files": [str(key)],
            "tier.object_bytes": CHUNK_BYTES,
        },
        las_settings={"policy.retention_period_ms": 200},
    )


def value_of(number: int) -> bytes:
    return f"{number} ".encode().ljust(VALUE_BYTES, b".")


def filled(client: Client) -> None:
    """Two logs: one in the tier, one that is not; the first has a shard that was split."""
    client.create_log("orders", shards=2, copies=3, acks=2)
    client.create_log("scratch", shards=1, copies=3, acks=2)
    client.set_tier("orders", CHUNK_BYTES)
    client.append("scratch", b"lost")
    for number in range(3):
        client.positions.commit("scratch", "billing", Position({3: number}))
    for number in range(COUNT):
        key = b"key %d" % (number % 7)
        client.append("orders", value_of(number), key=key, headers=HEADERS)
    client.split_shard(client.describe_log("orders")[1][0].shard)
    until(lambda: len(client.describe_log("orders")[0].shards) == 3, "a shard is split")
    for number in range(COUNT, 2 * COUNT):
        key = b"key %d" % (number % 7)
        client.append("orders", value_of(number), key=key, headers=HEADERS)


def all_of(client: Client, log: str) -> dict[int, list[tuple]]:
    """Every record that can be read, by shard, with all that is known of it."""
    found: dict[int, list[tuple]] = {}
    for shard in client.describe_log(log)[1]:
        records = found.setdefault(shard.shard, [])
        try:
            with client.read(log, shard=shard.shard, start=0) as reader:
                records.extend(tuple(record) for record in reader)
        except RecordsMissing as error:
            if "restored from backup" not in str(error):
                raise
    return found


def append_anew(cluster: DevCluster, client: Client, log: str, value: bytes) -> int:
    """A record of a client that has no past: others may have one in what is lost."""
    shard = client.describe_log(log)[1][-1].shard
    records = batch_pb2.Records(records=[batch_pb2.Record(value=value)])
    batch = batch_pb2.Batch(record_count=1, records=records)
    request = log_pb2.AppendRequest(log=log, shard=shard, batch=batch)
    with channel(cluster.peers[0].address, cluster.client_tls) as opened:
        answer = log_pb2_grpc.LogServiceStub(opened).Append(request, timeout=60)
    return int(answer.receipt.base_offset)


def run(*arguments: object, status: int = 0) -> Any:
    """What `peerctl` says, as JSON."""
    command = [sys.executable, "-m", "peerd.cli.peerctl", *map(str, arguments), "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == status, done
    return json.loads(done.stdout)


def begin_anew(cluster: DevCluster, file: Path) -> None:
    """`las init --import` in place of the directory that a new cluster would begin with."""
    las = cluster.las[0]
    shutil.rmtree(las.data_dir)
    subprocess.run(
        [sys.executable, "-m", "las.daemon.cli", "init", "--import", file, "-c", las.config],
        check=True,
        capture_output=True,
        timeout=60,
    )


def shard_warnings(client: Client) -> list[str]:
    return [line for line in client.las.status().warnings if "shard" in line]


def test_all_is_gone_and_the_tier_gives_it_back(tmp_path: Path):
    tier, key = tmp_path / "tier", tmp_path / "key"
    key.write_text("ab" * 32)
    with (
        cluster_at(tmp_path / "old", tier, key) as old,
        connect(credentials=old.peerctl_toml) as client,
    ):
        filled(client)
        before = all_of(client, "orders")
        read_to = Position({shard: len(records) for shard, records in before.items()})
        client.positions.commit("orders", "billing", read_to)
        client.positions.commit("orders", "gone", read_to)
        client.positions.forget("orders", "gone")
        config = tmp_path / "peerd.toml"
        shutil.copy(old.peers[0].config, config)
        made = run("-c", old.peerctl_toml, "backup", "create", "--tier", config, status=1)
        lies_there(old, config, ring_of([bytes.fromhex(key.read_text())]).writing, before)
        lost = client.append("orders", value_of(0), key=b"key 1")
        client.positions.commit("orders", "late", read_to)
        for member in old.members:
            member.kill()
    shutil.rmtree(tmp_path / "old")
    assert {each["log"] for each in made["shards"] if each["end"] < each["committed"]} == {
        "scratch"
    }
    assert not any(value_of(1)[:200] in path.read_bytes() for path in tier.rglob("backups/**/s*"))

    new = cluster_at(tmp_path / "new", tier, key)
    begin = tmp_path / "begin.las"
    look = run("restore", made["id"], begin, "--tier", config)
    assert not begin.exists()
    ends = {each["shard"]: each["end"] for each in look["shards"]}
    run("restore", made["id"], begin, "--tier", config, "--old-cluster-is-gone")
    begin_anew(new, begin)
    with new, connect(credentials=new.peerctl_toml) as client:
        after = all_of(client, "orders")
        assert after == before
        assert sum(map(len, after.values())) == 2 * COUNT
        positions = client.positions
        assert positions.get("orders", "billing") == read_to
        assert positions.get("scratch", "billing") == Position({3: 2})
        assert positions.get("orders", "gone") == positions.get("orders", "late") == Position()
        positions.commit("orders", "billing", Position({1: 7}))
        assert positions.get("orders", "billing") == Position({1: 7})
        offset = append_anew(new, client, "orders", b"after")
        shard = client.describe_log("orders")[1][-1].shard
        assert offset >= ends[shard] + GAP_OFFSETS_MIN > lost.offset
        with client.read("orders", shard=shard, start=offset) as reader:
            assert [record.value for record in reader] == [b"after"]
        assert client.describe_log("scratch")[1][0].gaps
        # Who came last may have been too late for a vote in the first plans.
        until(lambda: not shard_warnings(client), "nothing is wrong with any shard")
        again = run("-c", new.peerctl_toml, "backup", "create", "--tier", config)
        assert again["id"] > made["id"]
        assert {each["shard"]: each["end"] for each in again["shards"]}[shard] == offset + 1
        tells_that_it_lost_the_tier(new, client, config, again["id"])


def lies_there(
    cluster: DevCluster, config: Path, key_id: str, before: dict[int, list[tuple]]
) -> None:
    """What `peerctl log tier` lists is what readers found."""
    listing = run("-c", cluster.peerctl_toml, "log", "tier", "orders", "--tier", config)
    for each in listing:
        assert (each["begin"], each["end"]) == (0, len(before[each["shard"]]))
        assert each["key_ids"] == [key_id]
        assert each["payload_bytes"] > VALUE_BYTES * each["end"] > each["stored_bytes"]
        assert each["objects"] >= 1
        assert (each["waiting_records"], each["error"]) == (0, "")


def tells_that_it_lost_the_tier(
    cluster: DevCluster, client: Client, config: Path, backup: str
) -> None:
    """Somebody restores its backup while it lives: it keeps off the tier, and says why."""
    file = config.with_name("third.las")
    heir = run("restore", backup, file, "--tier", config, "--old-cluster-is-gone")
    assert heir["restored_as"] == ""
    there = set((config.parent / "tier").rglob("*.chunk"))
    for number in range(COUNT):
        append_anew(cluster, client, "orders", value_of(number))
    until(
        lambda: any("INHERITED" in line for line in client.las.status().warnings),
        "the one that lives is told",
        120,
    )
    told = next(line for line in client.las.status().warnings if "INHERITED" in line)
    waits = run("-c", cluster.peerctl_toml, "log", "tier", "orders", "--tier", config)
    assert max(each["waiting_records"] for each in waits) == COUNT
    assert max(each["waiting_age_ms"] or 0 for each in waits) > 0
    assert "stop that cluster for good and remove clusters/" in told
    assert set((config.parent / "tier").rglob("*.chunk")) <= there
    check = [sys.executable, "-m", "peerd.cli.peerd", "check", "-c", cluster.peers[0].config]
    done = subprocess.run(check, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "INHERITED" in done.stderr
    assert "Traceback" not in done.stderr
