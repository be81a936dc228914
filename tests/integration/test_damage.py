"""Bits flip in one replica's data file: found by reads and by the scrub, mended, never served."""

import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from peerd.client.blocking import connect
from peerd.testing.dev_cluster import DevCluster, Member, Shape
from peerd.v1 import log_pb2, log_pb2_grpc
from tests.integration.load import until
from tests.integration.test_bad_input import channel

pytestmark = pytest.mark.timeout(300)
ROWS = 40
SCRUB_OFF = {"PEERD_SCRUB_BYTES_PER_S_MAX": "0"}
SCRUB_ON = {"PEERD_SCRUB_BYTES_PER_S_MAX": "100000000", "PEERD_SCRUB_INTERVAL_S": "1"}


def value_of(row: int) -> bytes:
    """Longer than two parts of a stored batch, and found in a file by its beginning."""
    return (b"<row %06d>" % row) * 1_000


def flip(member: Member, rows: list[int]) -> None:
    """Flip one bit in each stored copy of these rows; the process is stopped."""
    path = member.data_dir / "data.mdb"
    data = bytearray(path.read_bytes())
    for row in rows:
        marker, at, flipped = b"<row %06d>" % row, 0, 0
        while (at := data.find(marker, at)) >= 0:
            if flipped % 300 == 0:
                data[at + 3] ^= 0x04
            flipped += 1
            at += len(marker)
        assert flipped >= 1_000 - 6, "the row is in the file"
    path.write_bytes(data)


def verify(member: Member) -> tuple[int, str]:
    """Exit status and last words of `peerd verify`."""
    done = subprocess.run(
        [sys.executable, "-m", "peerd.cli.peerd", "verify", str(member.data_dir)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout


def metric(member: Member, name: str) -> float:
    with urllib.request.urlopen(f"http://{member.metrics_address}/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
    return 0.0


def repaired(member: Member) -> float:
    damaged = metric(member, "peerd_damaged_batches")
    return 0.0 if damaged else metric(member, "peerd_damaged_batches_repaired_total")


def read_through(member: Member, cluster: DevCluster) -> list[bytes]:
    """All rows as this peer serves them."""
    values: list[bytes] = []
    with channel(member.address, cluster.client_tls) as opened:
        request = log_pb2.ReadRequest(log="orders", **{"from": log_pb2.READ_FROM_LOCAL})
        for response in log_pb2_grpc.LogServiceStub(opened).Read(request, timeout=60):
            for stored in response.batches:
                values += [record.value for record in stored.batch.records.records]
    return values


def read_right(member: Member, cluster: DevCluster, rows: list[bytes]) -> bool:
    """True; what this peer serves must be the rows, each time."""
    assert read_through(member, cluster) == rows
    return True


def stop(member: Member) -> None:
    member.process.terminate()
    assert member.wait(60) == 0


def test_flipped_bits_are_found_mended_and_never_served(tmp_path: Path):
    cluster = DevCluster(tmp_path / "dev", Shape(peers=2, las=1), port_base=None)
    rows = [value_of(row) for row in range(ROWS)]
    for member in cluster.peers:
        member.environment |= SCRUB_OFF
    with cluster:
        with connect(credentials=cluster.peerctl_toml) as client:
            client.create_log("orders", shards=1, copies=2, acks=2)
            for row in rows:
                client.append("orders", row)
        victim = cluster.peers[1]
        # Read: what is damaged comes from the other replica, and is mended behind the reader.
        stop(victim)
        flip(victim, [0, 17, 18, ROWS - 1])
        status, words = verify(victim)
        assert status == 1
        assert "4 batches must be fetched again" in words
        cluster.restart(victim.id)
        cluster.wait_whole()
        rows.append(value_of(ROWS))
        with connect(credentials=cluster.peerctl_toml) as client:
            client.append("orders", rows[-1])
        until(lambda: len(read_through(victim, cluster)) == len(rows), "it serves all rows")
        # What one holder gives behind a damaged batch is not read here: it takes some reads.
        until(lambda: read_right(victim, cluster, rows) and repaired(victim) == 4, "all are mended")
        # Scrub: nobody reads.
        stop(victim)
        flip(victim, [5, 20])
        victim.environment |= SCRUB_ON
        cluster.restart(victim.id)
        cluster.wait_whole()
        until(lambda: repaired(victim) == 2, "they are found and mended")
        until(lambda: metric(victim, "peerd_scrub_passes_total") > 0, "a pass is over")
        stop(victim)
        assert verify(victim)[0] == 0
