"""Consumers' positions over kills, failovers and a restart of everything, with real processes."""

import threading

import pytest

import peerd
from peerd.client.blocking import connect
from peerd.client.options import ClientOptions
from peerd.testing.dev_cluster import DevCluster, Shape
from tests.integration.load import DEADLINE_S, until

# A test starts several processes, each of which takes seconds on a busy machine.
pytestmark = pytest.mark.timeout(300)


class Consumers:
    """Commit growing positions, one after another each, until `finish`; read some back."""

    def __init__(self, credentials, log: str, shard: int, count: int) -> None:
        options = ClientOptions(call_timeout_s=DEADLINE_S)
        self.client = connect(credentials=credentials, options=options)
        self.acked = [0] * count
        self.wrong: list[str] = []
        self._log, self._shard = log, shard
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._commit_all, args=(number,)) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def wait_acked(self, count: int) -> None:
        wanted = sum(self.acked) + count
        until(lambda: sum(self.acked) >= wanted or self.wrong, f"{wanted} commits acknowledged")

    def finish(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def check(self, client) -> None:
        for number, acked in enumerate(self.acked):
            found = client.positions.get(self._log, f"consumer-{number}")
            assert found == peerd.Position({self._shard: acked})

    def _commit_all(self, number: int) -> None:
        try:
            while not self._ending.is_set():
                position = peerd.Position({self._shard: self.acked[number] + 1})
                self.client.positions.commit(self._log, f"consumer-{number}", position)
                self.acked[number] += 1
                if self.acked[number] % 10 == 0:
                    found = self.client.positions.get(self._log, f"consumer-{number}")
                    if found != position:
                        self.wrong.append(f"{found} instead of {position}")
        except peerd.PeerdError as error:
            self.wrong.append(str(error))


def primary_of_positions(client) -> str:
    return str(client.describe_log("_positions")[1][0].open.plan.primary.peer)


def test_an_acknowledged_position_survives_whatever_dies(tmp_path):
    with DevCluster(tmp_path / "dev", Shape(peers=4, las=3), port_base=None) as cluster:
        with connect(credentials=cluster.peerctl_toml) as client:
            shard = client.create_log("orders", shards=1).shards[0]
        consumers = Consumers(cluster.peerctl_toml, "orders", shard, count=4)
        try:
            consumers.wait_acked(100)
            for _ in range(3):
                victim = primary_of_positions(consumers.client)
                cluster.member(victim).kill()
                consumers.wait_acked(100)
                cluster.restart(victim)
            # Every peer at once: nobody hands anything over.
            for member in cluster.peers:
                member.kill()
            for member in cluster.peers:
                member.start()
            consumers.wait_acked(100)
        finally:
            consumers.finish()
        assert consumers.wrong == []
        with connect(credentials=cluster.peerctl_toml) as client:
            consumers.check(client)
        consumers.client.close()
