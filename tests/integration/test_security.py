"""Who gets in, with real processes and TLS: at peers, at front workers, and at the LAS.

One cluster for all of it: two peers with a front worker each, and one LAS node.
"""

import datetime
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner

from las.v1 import fleet_pb2, fleet_pb2_grpc, shard_map_pb2
from peerd import pki
from peerd.cli.peerctl import app
from peerd.client.blocking import Client, connect
from peerd.client.errors import PeerdError
from peerd.client.options import ClientOptions
from peerd.daemon.heartbeat import FEATURE_LEVEL
from peerd.pki import Authority, Role, TlsFiles, create_authority, load_authority
from peerd.testing.dev_cluster import DevCluster, Member, Shape
from peerd.transport.status import refusal_of_error
from peerd.v1 import batch_pb2, errors_pb2, log_pb2, log_pb2_grpc
from tests.integration.load import until

# The module's cluster starts within the first test's time; a busy machine takes its time for that.
pytestmark = pytest.mark.timeout(300)
CALL_TIMEOUT_S = 20.0
QUICK = ClientOptions(connect_timeout_s=10.0)
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevCluster]:
    directory = tmp_path_factory.mktemp("security") / "dev"
    with DevCluster(directory, Shape(peers=2, las=1, workers=1), port_base=None) as running:
        with connect(credentials=running.peerctl_toml) as client:
            for name in ("orders", "payments"):
                client.create_log(name, shards=1, copies=2, acks=2)
        yield running


@pytest.fixture
def admin(cluster: DevCluster) -> Iterator[Client]:
    with connect(credentials=cluster.peerctl_toml) as client:
        yield client


@pytest.fixture
def authority(cluster: DevCluster) -> Authority:
    return load_authority(cluster.directory / "pki")


def issue(authority: Authority, role: Role, name: str, directory: Path) -> TlsFiles:
    return authority.issue(role, name, [], directory, 1)


def channel(address: str, files: TlsFiles | None, ca: Path) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(
        ca.read_bytes(),
        files.key.read_bytes() if files else None,
        files.certificate.read_bytes() if files else None,
    )
    return grpc.secure_channel(address, credentials, options=OPTIONS)


def peerctl(cluster: DevCluster, *words: str) -> str:
    result = CliRunner().invoke(app, [*words, "-c", str(cluster.peerctl_toml)])
    assert result.exit_code == 0, result.output
    return result.output


def outcome(call: Callable[[], object]) -> str:
    """ "ok", or the reason of a refusal, or the code of what is none of ours."""
    try:
        call()
    except grpc.RpcError as error:
        refusal = refusal_of_error(error)
        if refusal is None:
            return error.code().name
        return errors_pb2.ErrorReason.Name(refusal.reason).removeprefix("ERROR_REASON_")
    return "ok"


def append(address: str, files: TlsFiles | None, ca: Path, log: str = "orders") -> str:
    record = batch_pb2.Record(value=b"v")
    batch = batch_pb2.Batch(record_count=1, records=batch_pb2.Records(records=[record]))
    request = log_pb2.AppendRequest(log=log, batch=batch)
    with channel(address, files, ca) as dialled:
        stub = log_pb2_grpc.LogServiceStub(dialled)
        return outcome(lambda: stub.Append(request, timeout=CALL_TIMEOUT_S))


def tail(address: str, files: TlsFiles, ca: Path) -> str:
    """What a peer answers by itself, also while there is no primary."""
    with channel(address, files, ca) as dialled:
        stub = log_pb2_grpc.LogServiceStub(dialled)
        request = log_pb2.GetTailRequest(log="orders")
        return outcome(lambda: stub.GetTail(request, timeout=CALL_TIMEOUT_S))


def status(address: str, files: TlsFiles | None, ca: Path) -> str:
    with channel(address, files, ca) as dialled:
        stub = fleet_pb2_grpc.FleetServiceStub(dialled)
        return outcome(lambda: stub.GetStatus(fleet_pb2.GetStatusRequest(), timeout=CALL_TIMEOUT_S))


def doors(cluster: DevCluster) -> list[str]:
    """A peer's port and one of front workers."""
    first, second = cluster.peers
    return [first.address, str(second.client_address)]


def everywhere(cluster: DevCluster, files: TlsFiles | None) -> set[str]:
    """What appends at both doors and a question to the LAS come to."""
    ca = cluster.directory / "pki" / "ca.pem"
    found = {append(address, files, ca) for address in doors(cluster)}
    return found | {status(cluster.las[0].address, files, ca)}


def metric(member: Member, name: str) -> float:
    with urllib.request.urlopen(f"http://{member.metrics_address}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def test_without_a_good_certificate_there_is_no_connection(
    cluster: DevCluster, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def told(files: TlsFiles | None) -> str:
        """What a person is told who tries the peer with these files."""
        with pytest.raises(PeerdError) as error:
            connect(cluster.peers[0].address, credentials=files, options=QUICK).close()
        return str(error.value)

    assert everywhere(cluster, None) == {"UNAVAILABLE"}
    assert "the call came without a certificate" in told(None)
    strangers = create_authority(tmp_path / "strangers", "dev")
    eve = issue(strangers, Role.ADMIN, "eve", tmp_path / "eve")
    assert everywhere(cluster, eve) == {"UNAVAILABLE"}
    assert "server's certificate is not accepted" in told(eve)
    mixed = TlsFiles(ca=cluster.client_tls.ca, certificate=eve.certificate, key=eve.key)
    assert "not signed by" in told(mixed)
    long_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=10)
    monkeypatch.setattr(pki, "_now", lambda: long_ago)
    expired = issue(authority, Role.ADMIN, "alice", tmp_path / "expired")
    monkeypatch.undo()
    assert everywhere(cluster, expired) == {"UNAVAILABLE"}
    assert "expired" in told(expired)
    assert everywhere(cluster, issue(authority, Role.ADMIN, "al", tmp_path / "al")) == {"ok"}


def test_a_wrong_role_and_another_cluster_are_refused_and_told(
    cluster: DevCluster, authority: Authority, admin: Client, tmp_path: Path
):
    reader = issue(authority, Role.READER, "rita", tmp_path / "rita")
    assert everywhere(cluster, reader) == {"ROLE_NOT_ALLOWED", "ok"}
    foreign = Authority(
        cluster="other",
        certificate=authority.certificate,
        key=authority._key,
        trusted=authority.trusted,
    )
    assert everywhere(cluster, issue(foreign, Role.ADMIN, "eve", tmp_path / "eve")) == {
        "WRONG_CLUSTER"
    }

    def told() -> bool:
        records = admin.las.audit().records
        found = {(each.who, each.reason) for each in records}
        return found >= {("rita", "role_not_allowed"), ("somebody", "wrong_cluster")}

    until(told, "both are in the audit")


def test_a_registration_that_is_sent_again_is_refused_and_told(
    cluster: DevCluster, authority: Authority, admin: Client, tmp_path: Path
):
    """What a peer sent when it began is worth nothing once it has begun anew."""
    name = cluster.peers[1].id
    ca, copied = cluster.directory / "pki" / "ca.pem", issue(authority, Role.PEER, name, tmp_path)

    def node() -> shard_map_pb2.Node:
        return next(each.node for each in admin.las.status().nodes if each.node.name == name)

    def sent(request: fleet_pb2.RegisterRequest) -> tuple[str, str]:
        with channel(cluster.las[0].address, copied, ca) as dialled:
            stub = fleet_pb2_grpc.FleetServiceStub(dialled)
            with pytest.raises(grpc.RpcError) as refused:
                stub.Register(request, timeout=CALL_TIMEOUT_S)
        told = refusal_of_error(refused.value)
        return errors_pb2.ErrorReason.Name(told.reason), told.message

    was = node()
    recorded = fleet_pb2.RegisterRequest(
        cluster_id=admin.las.status().cluster_id,
        store_id=was.store_id,
        boot_id=was.boot_id,
        address=was.address,
        labels=was.labels,
        may_lead=was.may_lead,
        feature_level=FEATURE_LEVEL,
    )
    cluster.member(name).kill()
    cluster.restart(name)
    until(lambda: node().boot_id != was.boot_id, "its new process has registered")
    now = node()
    reason, message = sent(recorded)
    assert reason == "ERROR_REASON_PROCESS_SUPERSEDED"
    assert message == "a newer process of this node has registered"
    recorded.store_id = "f" * 32
    recorded.boot_id = "e" * 32
    reason, message = sent(recorded)
    assert reason == "ERROR_REASON_STORE_ID_CHANGED"
    assert was.store_id in message
    assert (node().store_id, node().boot_id) == (now.store_id, now.boot_id)

    def told() -> bool:
        records = [each for each in admin.las.audit().records if each.who == name and not each.ok]
        return {each.reason for each in records} >= {"process_superseded", "store_id_changed"}

    until(told, "both are in the audit")


def test_clients_need_grants_once_they_are_required(
    cluster: DevCluster, authority: Authority, admin: Client, tmp_path: Path
):
    ca = cluster.directory / "pki" / "ca.pem"
    shop = issue(authority, Role.APPENDER, "shop-1", tmp_path / "shop")
    peerctl(cluster, "grant", "add", "shop-*", "orders", "append")
    assert "clients need grants" in peerctl(cluster, "grant", "require")
    try:
        for address in doors(cluster):
            assert append(address, shop, ca) == "ok"
            assert append(address, shop, ca, "payments") == "NOT_GRANTED"
        assert "shop-*" in peerctl(cluster, "grant", "list")
        until(
            lambda: (
                sum(
                    metric(peer, 'peerd_calls_refused_total{reason="NOT_GRANTED"}')
                    for peer in cluster.peers
                )
                == 2
            ),
            "both refusals are counted, that of the front worker by its peer",
        )
        assert metric(cluster.peers[0], "peerd_access_required") == 1
        until(
            lambda: any(each.reason == "not_granted" for each in admin.las.audit().records),
            "it is in the audit",
        )
    finally:
        peerctl(cluster, "grant", "require", "--off")
    assert append(doors(cluster)[0], shop, ca, "payments") == "ok"


def test_who_is_revoked_stays_out_while_the_las_is_down(
    cluster: DevCluster, authority: Authority, tmp_path: Path
):
    thief = issue(authority, Role.APPENDER, "thief", tmp_path / "thief")
    twin = issue(authority, Role.APPENDER, "twin", tmp_path / "twin")
    other = issue(authority, Role.APPENDER, "twin", tmp_path / "other")
    ca, first = cluster.directory / "pki" / "ca.pem", cluster.peers[0]
    serial = f"{pki.read_certificates(twin.certificate)[0].serial_number:x}"
    ended, hold = threading.Event(), threading.Event()
    codes: list[str] = []

    def requests() -> Iterator[log_pb2.AppendStreamRequest]:
        yield log_pb2.AppendStreamRequest()
        hold.wait()

    with channel(first.address, thief, ca) as dialled:
        call = log_pb2_grpc.LogServiceStub(dialled).AppendStream(requests())
        call.add_callback(ended.set)
        assert append(first.address, thief, ca) == "ok"
        peerctl(cluster, "revoke", "appender/thief", "--why", "its key was copied")
        assert ended.wait(CALL_TIMEOUT_S)
        codes.append(call.code().name)
        hold.set()
    assert codes == ["PERMISSION_DENIED"]
    peerctl(cluster, "revoke", "--serial", serial)
    (las,) = cluster.las
    las.kill()
    try:
        # A process that begins while nobody could tell it anything.
        first.kill()
        first.start()
        first.wait_ready()
        for address in (first.address, str(cluster.peers[1].client_address)):
            assert tail(address, thief, ca) == "REVOKED"
            assert tail(address, twin, ca) == "REVOKED"
            assert tail(address, other, ca) in {"ok", "MAP_UNKNOWN"}
        assert metric(first, "peerd_access_version") == metric(
            cluster.peers[1], "peerd_access_version"
        )
    finally:
        cluster.restart(las.id)
    until(lambda: status(las.address, thief, ca) == "REVOKED", "the LAS refuses it, too")
    peerctl(cluster, "revoke", "appender/thief", "--undo")
    until(lambda: append(first.address, thief, ca) == "ok", "it gets in again")
    assert append(first.address, twin, ca) == "REVOKED"
