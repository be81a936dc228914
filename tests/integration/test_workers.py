"""Front workers: many independent clients, and the deaths of workers and of their sequencer."""

import os
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import grpc
import psutil
import pytest

from peerd.client.blocking import connect
from peerd.testing.dev_cluster import DevCluster, Member, Shape
from peerd.v1 import batch_pb2, log_pb2, log_pb2_grpc
from tests.integration.load import DEADLINE_S, until

# A test starts several processes, each of which takes seconds on a busy machine.
pytestmark = pytest.mark.timeout(300)
WORKERS = 2
CLIENTS = 16
CALL_TIMEOUT_S = 20.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevCluster]:
    directory = tmp_path_factory.mktemp("workers") / "dev"
    shape = Shape(peers=3, las=1, workers=WORKERS)
    with DevCluster(directory, shape, port_base=None) as running:
        yield running


@pytest.fixture
def log(cluster: DevCluster, request: pytest.FixtureRequest) -> str:
    name = "".join(c if c.isalnum() else "-" for c in request.node.name.lower()).strip("-")
    with connect(credentials=cluster.peerctl_toml) as client:
        client.create_log(name, shards=2, copies=3, acks=2)
    return name


class SmallClient(threading.Thread):
    """One append at a time on a connection of its own; repeated until it is acknowledged.

    Every other one has a producer id, and by that each of its appends once; nothing else of a
    client library. The appends of those without one are joined.
    """

    def __init__(self, cluster: DevCluster, log: str, number: int) -> None:
        super().__init__(name=f"client {number}")
        self.number = number
        self.values: list[bytes] = []
        """Acknowledged, in order."""
        self.errors: list[grpc.RpcError] = []
        self._addresses = [member.client_address for member in cluster.peers]
        self._at = number
        self._log = log
        self.producer = os.urandom(16) if number % 2 else b""
        self._credentials = credentials_of(cluster)
        self._ending = threading.Event()
        self._channel: grpc.Channel | None = None

    def run(self) -> None:
        try:
            while not self._ending.is_set():
                value = f"{self.number}:{len(self.values)}".encode()
                request = append_of(self._log, value)
                if self.producer:
                    request.producer_id, request.first_sequence = self.producer, len(self.values)
                self._until_acked(request)
                self.values.append(value)
        finally:
            self._hang_up()

    def _until_acked(self, request: log_pb2.AppendRequest) -> None:
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            try:
                self._stub().Append(request, timeout=CALL_TIMEOUT_S)
            except grpc.RpcError as error:
                self.errors.append(error)
                self._hang_up()
                continue
            return
        raise AssertionError(f"never acknowledged: {self.errors[-1]}")

    def _stub(self) -> log_pb2_grpc.LogServiceStub:
        """On the connection; if there is none, on a new one to the next peer."""
        if self._channel is None:
            self._at += 1
            address = self._addresses[self._at % len(self._addresses)]
            options = [("grpc.use_local_subchannel_pool", 1)]
            self._channel = grpc.secure_channel(address, self._credentials, options)
        return log_pb2_grpc.LogServiceStub(self._channel)

    def _hang_up(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def finish(self) -> None:
        self._ending.set()
        self.join(2 * DEADLINE_S)
        assert not self.is_alive()


def credentials_of(cluster: DevCluster) -> grpc.ChannelCredentials:
    tls = cluster.client_tls
    files = (tls.ca, tls.key, tls.certificate)
    return grpc.ssl_channel_credentials(*(file.read_bytes() for file in files))


def append_of(log: str, value: bytes) -> log_pb2.AppendRequest:
    records = batch_pb2.Records(records=[batch_pb2.Record(value=value)])
    return log_pb2.AppendRequest(log=log, batch=batch_pb2.Batch(record_count=1, records=records))


class Crowd:
    """A context: so many small clients at once."""

    def __init__(self, cluster: DevCluster, log: str) -> None:
        self.clients = [SmallClient(cluster, log, number) for number in range(CLIENTS)]

    def __enter__(self):
        for client in self.clients:
            client.start()
        return self

    def __exit__(self, *_):
        for client in self.clients:
            client.finish()

    def wait_acked(self, count: int) -> None:
        """Return once every client has `count` more acknowledgements."""
        wanted = [len(client.values) + count for client in self.clients]
        until(
            lambda: all(
                len(client.values) >= enough
                for client, enough in zip(self.clients, wanted, strict=True)
            ),
            f"{count} acknowledged appends of each client",
        )

    def assert_stored_once(self, cluster: DevCluster, log: str) -> None:
        """Every acknowledged append is read, in order, and nothing else; once, with a producer."""
        with connect(credentials=cluster.peerctl_toml) as client:
            read = [record.value for record in client.read(log)]
        by_client: dict[bytes, list[bytes]] = {}
        for value in read:
            by_client.setdefault(value.partition(b":")[0], []).append(value)
        for one in self.clients:
            mine = by_client.get(str(one.number).encode(), [])
            if one.producer:
                assert mine == one.values
            else:
                # Sent again where the outcome was not known, it may be there twice, in any shard.
                assert sorted(set(mine)) == sorted(one.values)
                assert len(mine) - len(one.values) <= len(one.errors)


def workers_of(member: Member) -> list[psutil.Process]:
    """The processes that a peer has started and that live."""
    return [
        child
        for child in psutil.Process(member.pid).children()
        if "peerd.daemon.front.worker" in child.cmdline()
    ]


def is_whole(member: Member) -> bool:
    return metric(member, "peerd_worker_up") == WORKERS == len(workers_of(member))


def test_a_worker_killed_under_load_costs_its_clients_a_retry(cluster, log):
    with Crowd(cluster, log) as crowd:
        crowd.wait_acked(5)
        for member in cluster.peers:
            victim = workers_of(member)[0]
            victim.kill()
            crowd.wait_acked(5)
            until(partial(is_whole, member), "another worker serves")
            assert metric(member, "peerd_worker_starts_total") == WORKERS + 1
        crowd.wait_acked(5)
    crowd.assert_stored_once(cluster, log)


def test_a_sequencer_killed_under_load_leaves_no_worker_behind(cluster, log):
    with Crowd(cluster, log) as crowd:
        crowd.wait_acked(5)
        victim = cluster.peers[0]
        workers = workers_of(victim)
        assert len(workers) == WORKERS
        victim.kill()
        until(lambda: not any(lives(worker) for worker in workers), "the workers have ended")
        crowd.wait_acked(5)
        cluster.restart(victim.id)
        crowd.wait_acked(5)
    crowd.assert_stored_once(cluster, log)


def test_a_hung_worker_does_not_outlive_its_sequencer(cluster):
    victim = cluster.peers[2]
    workers = workers_of(victim)
    workers[0].suspend()
    victim.kill()
    until(lambda: not any(lives(worker) for worker in workers), "the workers have ended")
    cluster.restart(victim.id)


def test_a_drain_answers_every_append_and_ends_every_worker(cluster, log):
    with Crowd(cluster, log) as crowd:
        crowd.wait_acked(5)
        member = cluster.peers[1]
        workers = workers_of(member)
        # As a process manager does it: the whole group.
        os.killpg(member.pid, signal.SIGTERM)
        assert member.wait() == 0
        assert not any(lives(worker) for worker in workers)
        crowd.wait_acked(5)
        cluster.restart(member.id)
        crowd.wait_acked(5)
    crowd.assert_stored_once(cluster, log)


def test_whatever_needs_a_store_is_passed_on(cluster, log):
    credentials = credentials_of(cluster)
    for member in cluster.peers:
        with grpc.secure_channel(member.client_address, credentials) as channel:
            stub = log_pb2_grpc.LogServiceStub(channel)
            for number in range(4):
                stub.Append(append_of(log, f"{member.id} {number}".encode()), timeout=DEADLINE_S)
            tails = stub.GetTail(log_pb2.GetTailRequest(log=log), timeout=DEADLINE_S).tails
            read = [
                batch
                for answer in stub.Read(log_pb2.ReadRequest(log=log), timeout=DEADLINE_S)
                for batch in answer.batches
            ]
        assert sum(tail.committed for tail in tails) == len(read)
    assert len(read) == 4 * len(cluster.peers)


def test_a_worker_holds_no_file_of_its_sequencer(cluster):
    for member in cluster.peers:
        for worker in workers_of(member):
            # `open_files` names regular files, of which a worker has its log alone.
            assert {Path(file.path) for file in worker.open_files()} <= {member.log}


def test_a_caller_without_a_certificate_of_the_cluster_is_refused(cluster, log):
    address = cluster.peers[0].client_address
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as refused:
        log_pb2_grpc.LogServiceStub(channel).Append(append_of(log, b"v"), timeout=5.0)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def metric(member: Member, name: str) -> float:
    """The sum of a metric over its labels."""
    with urllib.request.urlopen(f"http://{member.metrics_address}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
