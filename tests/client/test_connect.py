"""How a client finds its cluster, what it says when it does not, and its blocking face."""

import asyncio
import concurrent.futures
import math
import socket
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager
from types import SimpleNamespace

import grpc.aio
import pytest

import peerd
import peerd.aio
from peerd import pki
from peerd.client import directory
from peerd.client.credentials import access, read_peerctl
from peerd.client.errors import CLASSES, InvalidRequest, error_of_refusal
from peerd.core.errors import Reason, Taken
from peerd.testing.memory import CLUSTER, MemoryCluster
from peerd.transport.authz import AuthorizationInterceptor
from peerd.transport.credentials import Credentials
from peerd.transport.map_service import add_map_service
from peerd.transport.options import SERVER_OPTIONS
from peerd.transport.status import Refused, refusal
from peerd.transport.typed_errors import TypedErrors

PEERCTL = """\
cluster = "dev"
peers = ["127.0.0.1:7400"]
las = ["127.0.0.1:7500"]

[tls]
ca = "tls/ca.pem"
certificate = "tls/client.pem"
key = "/elsewhere/client.key"
"""


# ---------------------------------------------------------------------------- credentials


def test_peerctl_toml_names_addresses_and_files(tmp_path):
    path = tmp_path / "peerctl.toml"
    path.write_text(PEERCTL)
    found = read_peerctl(path)
    assert (found.cluster, found.las) == ("dev", ("127.0.0.1:7500",))
    assert found.addresses == ("127.0.0.1:7400", "127.0.0.1:7500")
    assert found.tls.ca == tmp_path / "tls/ca.pem"
    assert str(found.tls.key) == "/elsewhere/client.key"
    joined = access("localhost:7410", path)
    assert joined.addresses == ("localhost:7410", "127.0.0.1:7400", "127.0.0.1:7500")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "does not exist"),
        ("peers = [", "no TOML"),
        ("pears = []", "unknown key 'pears'"),
        ('peers = "127.0.0.1:1"', "peers must be a list"),
        ("peers = [7400]", "list of host:port"),
        ('peers = ["localhost"]', "expected host:port"),
        ('peers = ["a:1"]\n[tls]\nca = "x"', "tls.certificate is missing"),
        ('peers = ["a:1"]\n[tls]\nca="x"\ncertificate="x"\nkey="x"\ncrl="x"', "tls.crl"),
        ("", "no address"),
    ],
)
def test_a_bad_peerctl_toml_is_told_in_one_line(tmp_path, text, says):
    path = tmp_path / "peerctl.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(peerd.CredentialsError, match=says) as caught:
        access(None, path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["localhost", ":7400", "host:port"])
def test_a_bad_address_is_told(address):
    with pytest.raises(peerd.CredentialsError, match="expected host:port"):
        peerd.connect(address)


# ---------------------------------------------------------------------------- connecting


async def test_any_address_will_do(cluster, connect):
    cluster.create_log("orders")
    for address in (*cluster.addresses, cluster.las_address):
        client = await connect(address)
        await client.append("orders", b"v")


async def test_dead_addresses_are_passed_over(cluster, connect, unused_tcp_port):
    cluster.create_log("orders")
    client = await connect(f"127.0.0.1:{unused_tcp_port}", cluster.addresses[1])
    await client.append("orders", b"v")


async def test_nobody_there_is_told_with_the_reason(connect, unused_tcp_port):
    with pytest.raises(peerd.ConnectFailed, match="nothing listens there"):
        await connect(f"127.0.0.1:{unused_tcp_port}", connect_timeout_s=0.2)


async def test_what_is_wrong_at_several_addresses_is_told_once(connect, unused_tcp_port_factory):
    first, second = (f"127.0.0.1:{unused_tcp_port_factory()}" for _ in range(2))
    with pytest.raises(peerd.ConnectFailed) as caught:
        await connect(first, second, "nowhere.invalid:1", connect_timeout_s=0.2)
    says = str(caught.value)
    assert says.startswith(f"cannot connect: {first}, {second}: nothing listens there")
    assert says.count("; nowhere.invalid:1: ") == 1


@asynccontextmanager
async def serving_map(get_map):
    """The port of a server that has this one call."""
    server = grpc.aio.server(interceptors=[TypedErrors(print)], options=SERVER_OPTIONS)
    handlers = {"GetMap": grpc.unary_unary_rpc_method_handler(get_map)}
    name = "las.v1.ShardMapService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


@pytest.fixture
def pass_by(monkeypatch):
    """Makes time pass for who connects: the end of its time comes when the test is there."""
    passed_s = [0.0]

    def clock():
        return time.monotonic() + passed_s[0]

    monkeypatch.setattr(
        directory, "time", SimpleNamespace(monotonic=clock, monotonic_ns=time.monotonic_ns)
    )

    def pass_by(seconds):
        passed_s[0] += seconds

    return pass_by


async def test_who_answers_and_refuses_is_told_in_its_own_words(connect, pass_by):
    async def get_map(request, context):
        pass_by(60.0)
        raise Refused(refusal(Reason.MAP_UNKNOWN, "not heard the map yet"))

    async with serving_map(get_map) as port:
        with pytest.raises(peerd.ConnectFailed, match=f"127.0.0.1:{port}: not heard the map yet"):
            await connect(f"127.0.0.1:{port}", connect_timeout_s=60.0)


async def test_words_count_more_than_the_try_that_the_end_of_the_time_cut_off(connect, pass_by):
    asked = []

    async def get_map(request, context):
        asked.append(request)
        if len(asked) > 1:
            await asyncio.Event().wait()
        pass_by(59.0)
        raise Refused(refusal(Reason.MAP_UNKNOWN, "not heard the map yet"))

    async with serving_map(get_map) as port:
        with pytest.raises(peerd.ConnectFailed, match=f"127.0.0.1:{port}: not heard the map yet"):
            await connect(f"127.0.0.1:{port}", connect_timeout_s=60.0)
    assert len(asked) == 2


@pytest.fixture
def unused_tcp_port(unused_tcp_port_factory):
    return unused_tcp_port_factory()


@pytest.fixture
async def tls_cluster(tmp_path):
    """The map of a cluster behind mutual TLS, and files of a client of it and of a stranger."""
    authority = pki.create_authority(tmp_path / "ca", CLUSTER)
    server_files = authority.issue(pki.Role.PEER, "peer-1", ["127.0.0.1"], tmp_path / "peer", 1)
    client_files = authority.issue(pki.Role.ADMIN, "ann", [], tmp_path / "ann", 1)
    other = pki.create_authority(tmp_path / "other", "other")
    stranger_files = other.issue(pki.Role.ADMIN, "eve", [], tmp_path / "eve", 1)
    async with MemoryCluster(peers=1) as cluster:
        guards = [AuthorizationInterceptor(CLUSTER), TypedErrors(cluster.bugs.append)]
        server = grpc.aio.server(interceptors=guards, options=SERVER_OPTIONS)
        add_map_service(server, cluster.hosts["peer-1"].cache)
        port = server.add_secure_port("127.0.0.1:0", Credentials(server_files).server())
        await server.start()
        yield f"127.0.0.1:{port}", client_files, stranger_files
        await server.stop(None)


async def test_certificates_open_the_door_and_their_absence_is_explained(tls_cluster, tmp_path):
    address, mine, strange = tls_cluster
    options = peerd.ClientOptions(connect_timeout_s=0.3)
    async with peerd.aio.connect(address, credentials=mine):
        pass
    with pytest.raises(peerd.ConnectFailed, match="without a certificate"):
        await peerd.aio.connect(address, options=options).__aenter__()
    with pytest.raises(peerd.ConnectFailed, match=r"not accepted|refuses our certificate"):
        await peerd.aio.connect(address, credentials=strange, options=options).__aenter__()
    gone = peerd.TlsFiles(ca=tmp_path / "none", certificate=mine.certificate, key=mine.key)
    with pytest.raises(peerd.ConnectFailed, match="does not exist"):
        peerd.aio.connect(address, credentials=gone)


async def test_a_role_that_may_not_append_is_told_so(cluster, connect, monkeypatch):
    cluster.create_log("orders")
    monkeypatch.setitem(
        __import__("peerd.transport.authz").transport.authz.ALLOWED_ROLES,
        "/peerd.v1.LogService/AppendStream",
        frozenset(),
    )
    client = await connect()
    with pytest.raises(peerd.AccessDenied, match="AppendStream") as caught:
        await client.append("orders", b"v")
    assert caught.value.taken == "no"


# ---------------------------------------------------------------------------- logs


async def test_logs_are_created_listed_and_described(cluster, client):
    created = await client.create_log("orders", shards=3)
    assert (created.name, len(created.shards)) == ("orders", 3)
    await client.append("orders", b"v")
    assert [log.name for log in await client.list_logs()] == ["orders"]
    log, shards = await client.describe_log("orders")
    assert (log, len(shards)) == (created, 3)
    with pytest.raises(peerd.LogExists):
        await client.create_log("orders", shards=3)
    with pytest.raises(peerd.UnknownLog):
        await client.describe_log("nowhere")


async def test_the_leader_of_the_las_is_found(cluster, client):
    cluster.las.refuse_next.append(
        Refused(refusal(Reason.NOT_LAS_LEADER, "not me", leader=cluster.las_address))
    )
    cluster.las.refuse_next.append(Refused(refusal(Reason.LAS_UNAVAILABLE, "electing")))
    assert (await client.create_log("orders")).name == "orders"


def unreached(error):
    raise AssertionError(error)


async def test_one_that_hangs_is_not_waited_for_while_another_may_answer(cluster, connect):
    cluster.create_log("orders")
    with socket.socket() as hangs:
        hangs.bind(("127.0.0.1", 0))
        hangs.listen()  # the kernel takes the connection; nobody says anything
        address = f"127.0.0.1:{hangs.getsockname()[1]}"
        client = await connect(*cluster.addresses, cluster.las_address)
        client.las._leader, client.las._addresses = address, [address, cluster.las_address]
        client.las._find_another = unreached  # it was not even called
        assert [log.name for log in await client.list_logs()] == ["orders"]
        # A port that refuses is an answer.
        assert await client.las._channels.answers("127.0.0.1:1", 20.0)


async def test_a_log_created_by_a_try_that_was_lost_is_ours(cluster, client):
    cluster.create_log("orders", shards=2)
    cluster.las.refuse_next.append(
        Refused(refusal(Reason.LAS_UNAVAILABLE, "in doubt", taken=Taken.UNKNOWN))
    )
    assert (await client.create_log("orders", shards=2)).name == "orders"


async def test_without_a_las_the_error_says_so(cluster, connect):
    client = await connect(*cluster.addresses, call_timeout_s=0.3)
    with pytest.raises(peerd.LasUnavailable, match="appends and reads go on"):
        await client.create_log("orders")


# ---------------------------------------------------------------------------- the blocking face


def test_the_first_ten_minutes(running_cluster):
    with peerd.connect([running_cluster.addresses[0], running_cluster.las_address]) as client:
        client.create_log("orders", shards=4)
        receipt = client.append("orders", b'{"basket": 31198570044}', key=b"household-900")
        assert str(receipt) == "orders/4 offset 0, epoch 1, on disk at peer-1, peer-2"
        records = list(client.read("orders", start="earliest"))
        assert [(one.offset, one.key, one.value) for one in records] == [
            (0, b"household-900", b'{"basket": 31198570044}')
        ]


def test_blocking_appends_and_reads(running_cluster):
    client = peerd.connect([*running_cluster.addresses, running_cluster.las_address])
    with client:
        client.create_log("orders")
        futures = [client.append_nowait("orders", b"%d" % number) for number in range(50)]
        offsets = [future.result(30).offset for future in futures]
        assert offsets == list(range(50))
        assert len(client.append_many("orders", [b"a", b"b"])) == 2
        assert client.append_batch("orders", [peerd.NewRecord(value=b"c")]).offset == 52
        client.flush()
        assert [tail.committed for tail in client.tail("orders")] == [53]
        with client.read("orders", start=50, shard=1, follow=True) as stream:
            assert [next(stream).value for _ in range(3)] == [b"a", b"b", b"c"]
            assert stream.position.offsets == {1: 53}
        partial = client.read("orders")
        assert next(partial).value == b"0"
        assert partial.position.offsets == {1: 1}
        partial.close()
        assert [log.name for log in client.list_logs()] == ["orders"]
        assert client.describe_log("orders")[0].name == "orders"
        assert client.statistics().records_acknowledged == 53
        with pytest.raises(peerd.UnknownLog):
            client.append("nowhere", b"v")
        wrong = client.append_nowait("nowhere", b"v")
        assert isinstance(wrong.exception(30), peerd.UnknownLog)
    client.close()
    for call in (
        lambda: client.append("orders", b"v"),
        lambda: client.append_nowait("orders", b"v"),
    ):
        with pytest.raises(peerd.ClientClosed):
            call()


def test_several_threads_share_a_client(running_cluster):
    with peerd.connect([*running_cluster.addresses, running_cluster.las_address]) as client:
        client.create_log("orders")

        def work(number):
            return [client.append("orders", b"%d" % number).offset for _ in range(20)]

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            offsets = [offset for found in pool.map(work, range(4)) for offset in found]
        assert sorted(offsets) == list(range(80))


def test_a_failed_connect_leaves_no_thread_behind(unused_tcp_port):
    before = set(threading.enumerate())
    options = peerd.ClientOptions(connect_timeout_s=0.1)
    with pytest.raises(peerd.ConnectFailed):
        peerd.connect(f"127.0.0.1:{unused_tcp_port}", options=options)
    # Others that are left are of the process: grpc's poller, who looked for the cause.
    assert "peerd client" not in {each.name for each in set(threading.enumerate()) - before}


# ---------------------------------------------------------------------------- the package


def test_importing_the_package_imports_no_grpc():
    code = "import sys, peerd; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_can_be_imported():
    for name in peerd.__all__:
        assert getattr(peerd, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = peerd.nonsense


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_a_class(reason):
    error = error_of_refusal(refusal(reason, "why"), is_append=True)
    assert type(error) is CLASSES[reason.name]
    assert (error.reason, error.taken, str(error)) == (reason.name, "no", "why")
    unknown = error_of_refusal(refusal(reason, "why", taken=Taken.UNKNOWN), is_append=True)
    assert not isinstance(unknown, peerd.NotAppended)


def test_loops_that_end_leave_no_traceback_behind(running_cluster):
    code = f"""
import asyncio, peerd, peerd.aio

addresses = {[*running_cluster.addresses, running_cluster.las_address]!r}
with peerd.connect(addresses) as client:
    client.create_log("orders")
    client.append("orders", b"v")

async def main():
    async with peerd.aio.connect(addresses) as client:
        await client.append("orders", b"v")
        stream = client.read("orders", follow=True)
        await stream.take(1)

for _ in range(3):
    asyncio.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr == ""


@pytest.mark.parametrize(
    ("probabilities", "age_s"),
    [({-1: 0.5}, 0.0), ({600: "much"}, 0.0), ({600: 0.5}, -1.0), ({600: 0.5}, math.nan)],
)
async def test_what_is_no_forecast_at_all_is_a_typed_error(cluster, client, probabilities, age_s):
    client.las._find_another = unreached
    with pytest.raises(InvalidRequest, match="this is no forecast of peer-1: "):
        await client.las.report_forecast("peer-1", probabilities, age_s=age_s)
