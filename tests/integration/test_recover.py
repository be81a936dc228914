"""A shard whose quorum is lost for good goes on by a person's word, in real processes."""

import json
import shutil
from pathlib import Path

import pytest

from peerd.client.blocking import Client, connect
from peerd.client.errors import RecordsMissing
from peerd.testing.dev_cluster import DevCluster, Shape
from peerd.v1 import batch_pb2, log_pb2, log_pb2_grpc
from tests.integration.load import until
from tests.integration.test_bad_input import channel
from tests.integration.test_damage import read_through
from tests.integration.test_membership import peerctl, wait_down

pytestmark = pytest.mark.timeout(300)

LOG = "orders"
NAME = f"{LOG}/1"


def lose_the_quorum(cluster: DevCluster, client: Client) -> list[str]:
    """The disks of two of three voters, with 20 records; the names of their nodes."""
    client.create_log(LOG, shards=1, copies=3, acks=2)
    for number in range(20):
        client.append(LOG, b"%d" % number)
    plan = client.describe_log(LOG)[1][0].open.plan
    lost = [plan.primary.peer, *(each.peer for each in plan.voters if each != plan.primary.replica)]
    # Two of three are enough for a receipt, and these two go.
    kept = cluster.member(lost[2])
    until(lambda: len(read_through(kept, cluster)) == 20, f"{kept.id} has all of it")
    for victim in lost[:2]:
        cluster.member(victim).kill()
    for victim in lost[:2]:
        shutil.rmtree(cluster.member(victim).data_dir)
        wait_down(cluster, victim)
    return sorted(lost[:2])


def append_without_producer(cluster: DevCluster, value: bytes) -> int:
    """The offset of a record of a client that has no past: others may have one in the gap."""
    records = batch_pb2.Records(records=[batch_pb2.Record(value=value)])
    request = log_pb2.AppendRequest(log=LOG, batch=batch_pb2.Batch(record_count=1, records=records))
    up = next(each for each in cluster.peers if each.running)
    with channel(up.address, cluster.client_tls) as opened:
        answer = log_pb2_grpc.LogServiceStub(opened).Append(request, timeout=60)
    return int(answer.receipt.base_offset)


def test_a_shard_goes_on_behind_a_gap_that_every_reader_is_told_of(tmp_path: Path):
    with (
        DevCluster(tmp_path / "dev", Shape(peers=5, las=1), port_base=None) as cluster,
        connect(credentials=cluster.peerctl_toml) as client,
    ):
        lost = lose_the_quorum(cluster, client)
        until(
            lambda: "`peerctl recover shard`" in peerctl(cluster, "status")[1],
            "the status names the last resort",
        )
        status, said, told = peerctl(cluster, "recover", "shard", NAME)
        assert status == 0, told
        assert said.startswith("nothing was changed")
        assert ", ".join(lost) in said
        word = ("--why", "both burned", "--accept-data-loss", "-o", "json")
        status, said, told = peerctl(cluster, "recover", "shard", NAME, *word)
        assert status == 0, told
        answer = json.loads(said)
        assert (answer["recovered"], answer["given_up"]) == (True, lost)
        assert append_without_producer(cluster, b"after") == int(answer["resume_at"])
        reader = client.read(LOG, start="earliest")
        seen: list[bytes] = []
        with pytest.raises(RecordsMissing, match="both burned") as told_of:
            seen.extend(record.value for record in reader)
        assert seen == [b"%d" % number for number in range(20)]
        with client.read(LOG, start=told_of.value.next_offset, shard=1) as rest:
            assert [record.value for record in rest] == [b"after"]
        status, said, told = peerctl(cluster, "read", LOG, "-o", "json")
        assert status == 1
        assert [json.loads(line)["value"] for line in said.splitlines()] == [
            *map(str, range(20)),
            "after",
        ]
        gap = told_of.value
        assert f"offsets {gap.first_offset} to {gap.next_offset - 1} cannot be read" in told
        assert "both burned" in told
        # What nobody can lose any more is not given up again.
        assert peerctl(cluster, "recover", "shard", NAME, *word)[0] == 1
