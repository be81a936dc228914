"""Bad input, from settings to bytes: one line or a typed status, nothing written, all live on."""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from las.v1 import log_admin_pb2, log_admin_pb2_grpc
from peerd.client.blocking import connect
from peerd.core.errors import Reason
from peerd.pki import Role, TlsFiles, create_authority, load_authority
from peerd.testing.dev_cluster import DevCluster, Shape
from peerd.testing.ports import free_address
from peerd.transport.status import reason_of, refusal_of_error
from peerd.v1 import batch_pb2, log_pb2, log_pb2_grpc
from tests.integration.load import until

pytestmark = pytest.mark.timeout(300)
PROGRAMS = {"peerd": "peerd.cli.peerd", "las": "las.daemon.cli"}
ROLES = {"peerd": Role.PEER, "las": Role.LAS}
MIB = 1 << 20


# ---------------------------------------------------------------------------------- settings
def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", PROGRAMS[program], *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def write_config(path: Path, settings: dict[str, object]) -> Path:
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
    return path


def tls_settings(files: TlsFiles) -> dict[str, object]:
    return {
        "tls.ca": str(files.ca),
        "tls.certificate": str(files.certificate),
        "tls.key": str(files.key),
    }


def fit_settings(program: str, directory: Path) -> dict[str, object]:
    """Settings that nothing is wrong with; the authority is in `directory`/pki."""
    authority = create_authority(directory / "pki", "shop")
    files = authority.issue(ROLES[program], "node-1", ["127.0.0.1"], directory / "pki", 7)
    listen = free_address()
    settings: dict[str, object] = {
        "cluster": "shop",
        "name": "node-1",
        "listen": listen,
        "http_listen": "127.0.0.1:0",
        "data_dir": str(directory / "data"),
        **tls_settings(files),
    }
    if program == "las":
        return settings | {"members.node-1": listen}
    return settings | {"las": ["127.0.0.1:1"]}


def other_authority(program: str, directory: Path, settings: dict[str, object]) -> None:
    other = create_authority(directory / "other", "shop")
    other.issue(Role.PEER, "somebody", [], directory / "other", 7)
    settings["tls.ca"] = str(directory / "other" / "ca.pem")


def other_role(program: str, directory: Path, settings: dict[str, object]) -> None:
    role = Role.LAS if program == "peerd" else Role.PEER
    authority = create_authority(directory / "second", "shop")
    files = authority.issue(role, "node-1", ["127.0.0.1"], directory / "second", 7)
    settings.update(tls_settings(files))


def no_certificate(program: str, directory: Path, settings: dict[str, object]) -> None:
    Path(str(settings["tls.certificate"])).unlink()


def no_tls(program: str, directory: Path, settings: dict[str, object]) -> None:
    for key in ("tls.ca", "tls.certificate", "tls.key"):
        del settings[key]


def unknown_key(program: str, directory: Path, settings: dict[str, object]) -> None:
    settings["lisen"] = "127.0.0.1:1"


def wrong_type(program: str, directory: Path, settings: dict[str, object]) -> None:
    settings["listen"] = 7400


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (unknown_key, "lisen"),
        (wrong_type, "listen"),
        (no_tls, "tls"),
        (no_certificate, "node-1.cert.pem"),
        (other_authority, "node-1.cert.pem"),
        (other_role, "node-1.cert.pem"),
    ],
)
def test_a_wrong_setting_is_one_line(tmp_path, program, spoil, words):
    settings = fit_settings(program, tmp_path)
    spoil(program, tmp_path, settings)
    done = run(program, "serve", "-c", write_config(tmp_path / "config.toml", settings))
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"{program}: ")
    assert words in line
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_port_in_use_is_told_and_nothing_is_written(tmp_path, program):
    settings = fit_settings(program, tmp_path)
    config = write_config(tmp_path / "config.toml", settings)
    if program == "las":
        assert run("las", "init", "-c", config).returncode == 0
    before = listing(tmp_path / "data")
    host, _, port = str(settings["listen"]).rpartition(":")
    with socket.socket() as taken:
        taken.bind((host, int(port)))
        taken.listen()
        done = run(program, "serve", "-c", config)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert f"listen: {settings['listen']} is in use by another process" in last
    assert "Traceback" not in done.stderr
    assert listing(tmp_path / "data") == before


def listing(directory: Path) -> dict[str, bytes]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in files if path.name != "lock"}


def test_data_of_another_cluster_is_refused(tmp_path, small: DevCluster):
    with DevCluster(tmp_path / "other", Shape(peers=1, las=1), port_base=None) as other:
        (peer,) = other.peers
        peer.signal(15)
        peer.wait()
        foreign = tmp_path / "foreign"
        shutil.copytree(small.peers[0].data_dir, foreign)
        manifest = (foreign / "manifest.json").read_bytes()
        text = peer.config.read_text("utf-8").replace(str(peer.data_dir), str(foreign))
        config = tmp_path / "foreign.toml"
        config.write_text(text, "utf-8")
        done = run("peerd", "serve", "-c", config)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert f"belongs to cluster {small.cluster_id}" in last
    assert "Traceback" not in done.stderr
    assert (foreign / "manifest.json").read_bytes() == manifest


def test_a_peer_of_another_authority_does_not_get_in(tmp_path, small: DevCluster):
    """Its own files fit each other, so it starts; it says why nobody talks to it, and waits."""
    authority = create_authority(tmp_path / "pki", "dev")
    files = authority.issue(Role.PEER, "peer-9", ["127.0.0.1"], tmp_path / "pki", 7)
    settings = fit_settings("peerd", tmp_path / "unused") | tls_settings(files)
    settings |= {"cluster": "dev", "name": "peer-9", "las": [small.las[0].address]}
    settings["data_dir"] = str(tmp_path / "data")
    config = write_config(tmp_path / "config.toml", settings)
    log = tmp_path / "peer-9.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "peerd.cli.peerd", "serve", "-c", str(config)], stderr=out
        )
    try:
        until(lambda: "is not accepted" in log.read_text() or process.poll() is not None, "it says")
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(60)
    assert "Traceback" not in log.read_text()
    with connect(credentials=small.peerctl_toml) as client:
        assert [each.node.name for each in client.las.status().nodes] == ["peer-1"]


# ---------------------------------------------------------------------------------- calls
def channel(address: str, files: TlsFiles) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(
        files.ca.read_bytes(), files.key.read_bytes(), files.certificate.read_bytes()
    )
    return grpc.secure_channel(address, credentials)


@pytest.fixture(scope="module")
def orders(small: DevCluster) -> str:
    with connect(credentials=small.peerctl_toml) as client:
        client.create_log("orders", shards=2, copies=1)
    return "orders"


@pytest.fixture
def peer(small: DevCluster):
    with channel(small.peers[0].address, small.client_tls) as opened:
        yield opened


@pytest.fixture(autouse=True)
def nothing_written(request):
    """Around each test of calls: the log has not grown, and takes appends."""
    if "orders" not in request.fixturenames:
        yield
        return
    small = request.getfixturevalue("small")
    with connect(credentials=small.peerctl_toml) as client:
        before = client.tail("orders")
        yield
        assert client.tail("orders") == before
        assert client.append("orders", b"fine", key=b"k").durable_on == ("peer-1",)
    assert all(member.running for member in small.members)


def append(log: str = "orders", value: bytes = b"x", **fields) -> log_pb2.AppendRequest:
    records = batch_pb2.Records(records=[batch_pb2.Record(key=b"k", value=value)])
    count = fields.pop("record_count", 1)
    batch = batch_pb2.Batch(record_count=count, records=records)
    return log_pb2.AppendRequest(log=log, batch=batch, **fields)


def refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, Reason | None, str]:
    """How a call that must fail failed: in one line."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error = caught.value
    assert len(error.details().splitlines()) == 1
    assert "Traceback" not in error.details()
    refusal = refusal_of_error(error)
    return error.code(), None if refusal is None else reason_of(refusal), error.details()


@pytest.mark.parametrize(
    ("request_", "code", "reason", "words"),
    [
        (append(value=b"x" * MIB), "INVALID_ARGUMENT", Reason.BATCH_TOO_LARGE, "the limit is"),
        (append(payload_crc=1), "DATA_LOSS", Reason.CRC_MISMATCH, "0x00000001"),
        (
            append(record_count=2),
            "INVALID_ARGUMENT",
            Reason.RECORD_COUNT_MISMATCH,
            "holds 1 records",
        ),
        (append(log="nothing"), "NOT_FOUND", Reason.UNKNOWN_LOG, "peerctl log create"),
        (append(log="no/name"), "INVALID_ARGUMENT", Reason.INVALID_ARGUMENT, "must match"),
        (append(shard=99), "NOT_FOUND", Reason.UNKNOWN_SHARD, "no shard 99"),
        (
            log_pb2.AppendRequest(log="orders"),
            "INVALID_ARGUMENT",
            Reason.INVALID_ARGUMENT,
            "batch is missing",
        ),
    ],
    ids=["too-large", "crc", "count", "log", "name", "shard", "no-batch"],
)
def test_a_wrong_append_is_a_typed_status(peer, orders, request_, code, reason, words):
    got = refused(lambda: log_pb2_grpc.LogServiceStub(peer).Append(request_))
    assert got[:2] == (grpc.StatusCode[code], reason)
    assert words in got[2]


def test_a_message_beyond_every_bound_is_refused(peer, orders):
    request = append(value=b"x" * (16 * MIB))
    got = refused(lambda: log_pb2_grpc.LogServiceStub(peer).Append(request))
    assert got[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_bytes_that_are_no_message_are_refused(peer, orders):
    def same(data: bytes) -> bytes:
        return data

    calls = {
        "Append": lambda to: peer.unary_unary(to, same, same)(b"\xff\xff\xff"),
        "Read": lambda to: list(peer.unary_stream(to, same, same)(b"\xff\xff\xff")),
        "AppendStream": lambda to: list(peer.stream_stream(to, same, same)(iter([b"\xff\xff"]))),
    }
    for method, call in calls.items():
        code, _, words = refused(lambda m=method, c=call: c(f"/peerd.v1.LogService/{m}"))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "not the protobuf message" in words


def test_bytes_that_are_no_grpc_harm_neither_daemon(small, orders):
    for member in small.members:
        for junk in (b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 4_096, b"\x16\x03\x01\xff\xff" * 100):
            with socket.create_connection(("127.0.0.1", int(member.address.split(":")[1]))) as to:
                to.sendall(junk)


def test_the_las_answers_wrong_calls_alike(small, orders):
    with channel(small.las[0].address, small.client_tls) as las:
        raw = las.unary_unary("/las.v1.LogAdminService/CreateLog", bytes, bytes)
        assert refused(lambda: raw(b"\xff\xff"))[0] is grpc.StatusCode.INVALID_ARGUMENT
        stub = log_admin_pb2_grpc.LogAdminServiceStub(las)
        exists = log_admin_pb2.CreateLogRequest(name="orders", shards=3, copies=1)
        assert refused(lambda: stub.CreateLog(exists))[1] is Reason.LOG_EXISTS
        # An administrator is neither a peer nor a LAS node.
        for method in ("/las.v1.FleetService/Register", "/las.internal.v1.RaftService/Exchange"):
            call = las.stream_stream(method, bytes, bytes)
            got = refused(lambda call=call: list(call(iter([b""]))))
            assert got[0] is grpc.StatusCode.PERMISSION_DENIED


def test_who_has_no_certificate_of_this_cluster_is_turned_away(tmp_path, small, orders):
    address = small.peers[0].address
    ca = small.client_tls.ca.read_bytes()
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(ca)) as nobody:
        stub = log_pb2_grpc.LogServiceStub(nobody)
        assert refused(lambda: stub.Append(append()))[0] is grpc.StatusCode.UNAVAILABLE
    foreign = create_authority(tmp_path / "pki", "dev")
    files = foreign.issue(Role.ADMIN, "dev-admin", [], tmp_path / "pki", 7)
    mixed = TlsFiles(ca=small.client_tls.ca, certificate=files.certificate, key=files.key)
    with channel(address, mixed) as stranger:
        stub = log_pb2_grpc.LogServiceStub(stranger)
        assert refused(lambda: stub.Append(append()))[0] is grpc.StatusCode.UNAVAILABLE


def test_a_reader_may_not_append(tmp_path, small, orders):
    authority = load_authority(small.directory / "pki")
    files = authority.issue(Role.READER, "auditor", [], tmp_path / "auditor", 7)
    with channel(small.peers[0].address, files) as reading:
        stub = log_pb2_grpc.LogServiceStub(reading)
        got = refused(lambda: stub.Append(append()))
    assert got[:2] == (grpc.StatusCode.PERMISSION_DENIED, Reason.ROLE_NOT_ALLOWED)
