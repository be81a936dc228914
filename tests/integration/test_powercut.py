"""Power cuts: every peer loses power under load, at once; nothing acknowledged is lost.

    python -m tests.integration.test_powercut ROUNDS        (make powercut)

Each round kills all peers without a warning and makes their data files what a power cut may have
left of them (`disk_watch`): durable writes, and half of the other sectors. LAS nodes live on.
"""

import random
import sys
import tempfile
import time
from pathlib import Path

import pytest

from peerd.client.blocking import connect
from peerd.testing.dev_cluster import DevCluster, DevClusterError, Shape
from tests.integration.disk_watch import COMPILER, DiskWatch, build
from tests.integration.load import Load, assert_nothing_lost, tell

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(COMPILER is None, reason="needs a C compiler (cc) to watch the disk"),
]
ROUNDS = 2
ACKED_PER_ROUND = 60
SEED = 11


def run(directory: Path, rounds: int, *, program: str | None = None) -> int:
    """Cut the power `rounds` times; how many appends were acknowledged. Raises if one is lost."""
    cluster = DevCluster(directory / "dev", Shape(peers=3, las=1), port_base=None)
    library = build(directory)
    watches = [DiskWatch(member, library, directory) for member in cluster.peers]
    for member in cluster.peers:
        member.program = program or member.program
        # What is examined at a start is the store alone, and each round begins with fresh records.
        member.environment["PEERD_FLIGHT_RECORDER_BYTES"] = "0"
    draw = random.Random(SEED)
    with cluster:
        with connect(credentials=cluster.peerctl_toml) as client:
            client.create_log("orders", shards=2, copies=3, acks=2)
        with Load(cluster.peerctl_toml, "orders") as load:
            for number in range(rounds):
                load.wait_acked(ACKED_PER_ROUND)
                time.sleep(draw.random() / 10)  # anywhere within a commit
                for member in cluster.peers:
                    member.kill()
                for member, watch in zip(cluster.peers, watches, strict=True):
                    watch.cut(draw)
                    watch.begin()
                    member.start()
                for member in cluster.peers:
                    member.wait_ready()
                cluster.wait_whole()
                tell(f"cut {number + 1}: {len(load.sent.acked_s)} acknowledged")
            load.wait_acked(ACKED_PER_ROUND)
            load.finish()
        assert_nothing_lost(cluster, load)
    return len(load.sent.acked_s)


def test_power_cuts_of_all_peers_lose_nothing(tmp_path):
    assert run(tmp_path, ROUNDS) > 0


def test_a_store_that_does_not_sync_is_found_out(tmp_path):
    with pytest.raises((AssertionError, DevClusterError)):
        run(tmp_path, 1, program="tests.integration.unsynced_peer")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="powercut-") as scratch:
        acked = run(Path(scratch), int(sys.argv[1]))
        tell(f"{acked} appends acknowledged over {sys.argv[1]} power cuts: 0 lost, 0 twice")
