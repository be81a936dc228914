"""A shard is split under load: nothing is lost, nothing is doubled, keys keep their order (G8)."""

import contextlib
import threading

import pytest

from peerd.client.blocking import connect
from peerd.client.values import Record
from peerd.testing.dev_cluster import DevCluster
from tests.integration.load import KEYS, Load, assert_nothing_lost, until
from tests.integration.test_planned import open_segments, peerctl

pytestmark = pytest.mark.timeout(300)


class Follower:
    """Follows a log from its beginning on a thread, until it is closed."""

    def __init__(self, cluster: DevCluster, log: str) -> None:
        self.records: list[Record] = []
        self._client = connect(credentials=cluster.peerctl_toml)
        self._stream = self._client.read(log, follow=True)
        self._thread = threading.Thread(target=self._follow, name="follower")

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._client.close()
        self._thread.join()

    def _follow(self) -> None:
        with contextlib.suppress(Exception):  # it ends with its client
            for record in self._stream:
                self.records.append(record)


def split(cluster: DevCluster, log: str, shard: int) -> list[int]:
    said = peerctl(cluster, "log", "split", f"{log}/{shard}")
    assert said.startswith(f"{log}/{shard} is split into {log}/")
    with connect(credentials=cluster.peerctl_toml) as client:
        shards = {each.shard: each for each in client.describe_log(log)[1]}
    return list(shards[shard].split.children)


def test_a_split_under_load_loses_nothing_and_keeps_the_order(
    cluster: DevCluster, log: str, record_property
):
    with Load(cluster.peerctl_toml, log) as load, Follower(cluster, log) as follower:
        load.wait_acked(200)
        parent = min(open_segments(cluster, log))
        lower, upper = split(cluster, log, parent)
        # Acknowledgements do not tell: they may all be of the other shard.
        until(lambda: min(tails(cluster, log, lower, upper)) > 0, "both children take appends")
        load.wait_acked(200)
        split(cluster, log, lower)
        load.wait_acked(200)
        load.finish()
        until(lambda: len(follower.records) >= len(load.rows), "the follower has everything")
    record_property("pause_ms", load.pause_ms())
    assert_nothing_lost(cluster, load)
    rows = [record.value for record in follower.records]
    assert sorted(rows) == sorted(row.value for row in load.rows)
    for number in range(KEYS):
        key = f"key-{number}".encode()
        followed = [record.value for record in follower.records if record.key == key]
        assert followed == [row.value for row in load.rows if row.key == key]


def tails(cluster: DevCluster, log: str, *shards: int) -> list[int]:
    """How far these shards are committed."""
    with connect(credentials=cluster.peerctl_toml) as client:
        committed = {tail.shard: tail.committed for tail in client.tail(log)}
    return [committed[shard] for shard in shards]


def test_a_split_shard_answers_and_is_read_after_its_primary_was_killed(
    cluster: DevCluster, log: str
):
    with Load(cluster.peerctl_toml, log) as load:
        load.wait_acked(100)
        parent, segment = min(open_segments(cluster, log).items())
        victim = str(segment.plan.primary.peer)
        split(cluster, log, parent)
        cluster.member(victim).kill()
        load.wait_acked(200)
        load.finish()
    until(lambda: open_segments(cluster, log)[parent].plan.primary.peer != victim, "failed over")
    assert open_segments(cluster, log)[parent].plan.closed
    assert_nothing_lost(cluster, load)
    cluster.restart(victim)
    cluster.wait_whole()
