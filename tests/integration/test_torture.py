"""kill -9 of loaded peers, again and again: nothing acknowledged is lost, nothing is there twice.

    python -m tests.integration.test_torture ROUNDS        (make torture)

Each round kills one peer, or now and then all of them, at any moment of a steady load, starts what
was killed again, and goes on once appends are acknowledged. At the end everything is read.
"""

import random
import sys
import tempfile
import time
from pathlib import Path

import pytest

from peerd.cli.demo.account import compare
from peerd.client.blocking import connect
from peerd.testing.dev_cluster import DevCluster, Shape
from tests.integration.load import DEADLINE_S, Load, tell

pytestmark = pytest.mark.timeout(300)
ROUNDS = 2
ACKED_PER_ROUND = 50
ALL_AT_ONCE = 0.2
# Appends a second. Not more than what the pauses leave time for: the load is open, and what waits
# in the client counts as without an answer.
RATE = 50.0
SEED = 5


def run(directory: Path, rounds: int) -> Load:
    """The load after the rounds. Raises if what was acknowledged is lost, twice or disordered."""
    cluster = DevCluster(directory / "dev", Shape(peers=3, las=1), port_base=None)
    draw = random.Random(SEED)
    with cluster:
        with connect(credentials=cluster.peerctl_toml) as client:
            client.create_log("orders", shards=4, copies=3, acks=2)
        with Load(cluster.peerctl_toml, "orders", rate=RATE) as load:
            for number in range(rounds):
                load.wait_acked(ACKED_PER_ROUND)
                time.sleep(draw.random() / 10)  # anywhere within a commit
                every = draw.random() < ALL_AT_ONCE
                killed = cluster.peers if every else (draw.choice(cluster.peers),)
                for member in killed:
                    member.kill()
                for member in killed:
                    member.start()
                for member in killed:
                    member.wait_ready()
                cluster.wait_whole()
                names = ", ".join(member.id for member in killed)
                tell(f"{number + 1}: {names}; {len(load.sent.acked_s)} acknowledged")
            load.wait_acked(ACKED_PER_ROUND)
            load.finish()
        with connect(credentials=cluster.peerctl_toml) as client:
            read = list(client.read("orders"))
        lost, twice, reordered = compare(load.rows, load.sent, read)
        assert (lost, twice, reordered) == (0, 0, 0)
    return load


def test_kills_under_load_lose_nothing(tmp_path):
    load = run(tmp_path, ROUNDS)
    assert not load.sent.failed, list(load.sent.failed.items())[:3]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="torture-") as scratch:
        load = run(Path(scratch), int(sys.argv[1]))
        tell(
            f"{len(load.sent.acked_s)} appends acknowledged over {sys.argv[1]} rounds of kill -9: "
            f"0 lost, 0 twice; {len(load.sent.failed)} without an answer in {DEADLINE_S:.0f} s; "
            f"longest pause {load.pause_ms():.0f} ms"
        )
