"""The table of who may call what, and a real server that keeps to it."""

import datetime
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from las.v1 import fleet_pb2, fleet_pb2_grpc, shard_map_pb2, shard_map_pb2_grpc
from peerd.internal.v1 import replication_pb2, replication_pb2_grpc
from peerd.pki import Identity, Role, TlsFiles, create_authority
from peerd.transport.authz import ALLOWED_ROLES, AuthorizationInterceptor, allowed_roles
from peerd.transport.credentials import Credentials
from peerd.transport.options import CHANNEL_OPTIONS, SERVER_OPTIONS
from peerd.transport.tls import (
    identity_of,
    plaintext_metadata,
)
from peerd.v1 import log_pb2, log_pb2_grpc

PROTO_DIRECTORY = Path(__file__).parents[2] / "proto"


def methods_of_protos() -> list[str]:
    """Every rpc of every service, as gRPC names it, read from the .proto files themselves."""
    methods = []
    for path in sorted(PROTO_DIRECTORY.rglob("*.proto")):
        package = service = ""
        for line in path.read_text().splitlines():
            words = line.replace("(", " ").replace(";", " ").split()
            if words[:1] == ["package"]:
                package = words[1]
            elif words[:1] == ["service"]:
                service = words[1]
            elif words[:1] == ["rpc"]:
                methods.append(f"/{package}.{service}/{words[1]}")
    return methods


@pytest.mark.parametrize("method", methods_of_protos())
def test_every_call_of_the_protos_is_open_to_somebody(method):
    assert allowed_roles(method)


def test_the_table_names_only_what_exists():
    methods = methods_of_protos()
    services = {method.rpartition("/")[0] for method in methods}
    ours = {name for name in ALLOWED_ROLES if not name.startswith("/grpc.")}
    assert ours <= set(methods) | services


def test_nobody_may_call_what_is_not_in_the_table():
    assert allowed_roles("/peerd.v1.LogService/Burn") == frozenset()
    assert allowed_roles("/other.Service/Append") == frozenset()
    assert allowed_roles("") == frozenset()


@pytest.mark.parametrize(
    ("method", "roles"),
    [
        ("/peerd.v1.LogService/Append", {Role.APPENDER, Role.ADMIN, Role.PEER}),
        ("/peerd.v1.LogService/Read", {Role.READER, Role.ADMIN, Role.PEER}),
        ("/peerd.internal.v1.ReplicationService/Replicate", {Role.PEER}),
        ("/peerd.internal.v1.ReplicationService/Promise", {Role.LAS}),
        ("/las.v1.FleetService/Register", {Role.PEER}),
        ("/las.v1.FleetService/Drain", {Role.OPERATOR, Role.ADMIN}),
        ("/las.v1.LogAdminService/CreateLog", {Role.OPERATOR, Role.ADMIN}),
        ("/las.v1.LogAdminService/CreateInternalLog", {Role.PEER}),
        ("/peerd.v1.LogService/CommitPosition", {Role.READER, Role.ADMIN, Role.PEER}),
        (
            "/peerd.v1.LogService/GetPosition",
            {Role.READER, Role.OPERATOR, Role.ADMIN, Role.PEER},
        ),
        (
            "/peerd.v1.LogService/ListPositions",
            {Role.READER, Role.OPERATOR, Role.ADMIN, Role.PEER},
        ),
        ("/las.internal.v1.RaftService/Exchange", {Role.LAS}),
        ("/grpc.health.v1.Health/Check", set(Role)),
    ],
)
def test_the_table_says_what_was_decided(method, roles):
    assert allowed_roles(method) == roles


# ------------------------------------------------------------------------------ a real server


class EchoLog(log_pb2_grpc.LogServiceServicer):
    """Answers with the caller's name, over all four shapes of calls."""

    async def GetTail(self, request, context):
        return log_pb2.GetTailResponse()

    async def Append(self, request, context):
        return log_pb2.AppendResponse()

    async def Read(self, request, context):  # an async generator
        yield log_pb2.ReadResponse()
        yield log_pb2.ReadResponse()

    async def AppendStream(self, request_iterator, context):  # writes through its context
        async for _ in request_iterator:
            await context.write(log_pb2.AppendStreamResponse())


class EchoReplication(replication_pb2_grpc.ReplicationServiceServicer):
    async def Replicate(self, request_iterator, context):
        async for _ in request_iterator:
            yield replication_pb2.ReplicateResponse()


class NamingFleet(fleet_pb2_grpc.FleetServiceServicer):
    def __init__(self, plaintext: bool) -> None:
        self.plaintext = plaintext
        self.seen: list[Identity] = []

    async def Register(self, request, context):
        self.seen.append(identity_of(context, "shop", plaintext=self.plaintext))
        return fleet_pb2.RegisterResponse()


@asynccontextmanager
async def serving(files, cluster="shop") -> AsyncIterator[tuple[int, NamingFleet]]:
    plaintext = files is None
    server = grpc.aio.server(
        options=SERVER_OPTIONS,
        interceptors=[AuthorizationInterceptor(cluster, plaintext=plaintext)],
    )
    fleet = NamingFleet(plaintext)
    log_pb2_grpc.add_LogServiceServicer_to_server(EchoLog(), server)
    replication_pb2_grpc.add_ReplicationServiceServicer_to_server(EchoReplication(), server)
    fleet_pb2_grpc.add_FleetServiceServicer_to_server(fleet, server)
    if plaintext:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", Credentials(files).server())
    await server.start()
    try:
        yield port, fleet
    finally:
        await server.stop(None)


def dial(port, files) -> grpc.aio.Channel:
    target = f"127.0.0.1:{port}"
    if files is None:
        return grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(target, Credentials(files).channel()[1], options=CHANNEL_OPTIONS)


async def answered(begin) -> list[object]:
    """What a streaming call that `begin` makes ends with, by the word of the server.

    If a call ends under a write, grpc.aio makes up an INTERNAL in place of the status that the
    server gave: then another call has to ask for it.
    """
    while True:
        try:
            return await collect(begin())
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.INTERNAL or "execute_batch" not in str(error):
                raise


async def refusal(awaitable) -> tuple[grpc.StatusCode, str, str, str]:
    """Code, reason, taken and message of a refused call."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    status = rpc_status.from_call(caught.value)
    information = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(information)
    assert information.domain == "peerd"
    return (
        caught.value.code(),
        information.reason,
        information.metadata["taken"],
        caught.value.details(),
    )


async def requests(count):
    for _ in range(count):
        yield log_pb2.AppendStreamRequest()


async def collect(call):
    return [answer async for answer in call]


async def test_a_caller_of_the_right_role_passes_in_all_shapes(certificates):
    async with serving(certificates.of[Role.PEER]) as (port, fleet):
        async with dial(port, certificates.of[Role.ADMIN]) as channel:
            log = log_pb2_grpc.LogServiceStub(channel)
            await log.Append(log_pb2.AppendRequest())
            assert len(await collect(log.Read(log_pb2.ReadRequest()))) == 2
            assert len(await collect(log.AppendStream(requests(3)))) == 3
        async with dial(port, certificates.of[Role.PEER]) as channel:
            replication = replication_pb2_grpc.ReplicationServiceStub(channel)
            frames = (replication_pb2.ReplicateRequest() for _ in range(3))
            assert len(await collect(replication.Replicate(frames))) == 3
            await fleet_pb2_grpc.FleetServiceStub(channel).Register(fleet_pb2.RegisterRequest())
        assert fleet.seen == [Identity(cluster="shop", role=Role.PEER, name="peer-1")]


async def test_a_caller_of_another_role_is_refused_in_all_shapes(certificates):
    expected = (grpc.StatusCode.PERMISSION_DENIED, "ROLE_NOT_ALLOWED", "no")
    async with serving(certificates.of[Role.PEER]) as (port, fleet):
        async with dial(port, certificates.of[Role.OPERATOR]) as channel:
            log = log_pb2_grpc.LogServiceStub(channel)
            replication = replication_pb2_grpc.ReplicationServiceStub(channel)
            for call in (
                log.Append(log_pb2.AppendRequest()),
                collect(log.Read(log_pb2.ReadRequest())),
                answered(lambda: log.AppendStream(requests(1))),
                answered(lambda: replication.Replicate(iter([replication_pb2.ReplicateRequest()]))),
                fleet_pb2_grpc.FleetServiceStub(channel).Register(fleet_pb2.RegisterRequest()),
            ):
                *facts, message = await refusal(call)
                assert tuple(facts) == expected
                assert "spiffe://shop/operator/operator-1 may not call /" in message
        assert fleet.seen == []


async def test_an_administrator_is_no_peer(certificates):
    async with serving(certificates.of[Role.PEER]) as (port, _):
        async with dial(port, certificates.of[Role.ADMIN]) as channel:
            fleet = fleet_pb2_grpc.FleetServiceStub(channel)
            _, reason, *_ = await refusal(fleet.Register(fleet_pb2.RegisterRequest()))
            assert reason == "ROLE_NOT_ALLOWED"


async def test_a_caller_of_another_cluster_under_the_same_authority_is_refused(certificates):
    async with serving(certificates.of[Role.PEER], cluster="store") as (port, _):
        async with dial(port, certificates.of[Role.ADMIN]) as channel:
            log = log_pb2_grpc.LogServiceStub(channel)
            code, reason, taken, message = await refusal(log.Append(log_pb2.AppendRequest()))
            assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "WRONG_CLUSTER")
            assert taken == "no"
            assert "this is 'store'" in message


async def test_a_certificate_that_names_nobody_is_refused(tmp_path, monkeypatch, certificates):
    monkeypatch.setattr(Identity, "uri", property(lambda self: "https://example.org/me"))
    authority = create_authority(tmp_path / "ca", "shop")
    files = authority.issue(Role.PEER, "peer-1", ["127.0.0.1"], tmp_path / "peer", 7)
    monkeypatch.undo()
    async with serving(files) as (port, _), dial(port, files) as channel:
        log = log_pb2_grpc.LogServiceStub(channel)
        code, reason, _, message = await refusal(log.Append(log_pb2.AppendRequest()))
        assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "NO_IDENTITY")
        assert "carries no identity" in message


async def test_an_identity_counts_as_an_alternative_name_alone(tmp_path):
    authority = create_authority(tmp_path / "ca", "shop")
    files = authority.issue(Role.PEER, "peer-1", ["127.0.0.1"], tmp_path / "peer", 7)
    issuer = x509.load_pem_x509_certificate(files.ca.read_bytes())
    key = serialization.load_pem_private_key((tmp_path / "ca/ca-key.pem").read_bytes(), None)
    mine = ec.generate_private_key(ec.SECP256R1())
    uri = Identity(cluster="shop", role=Role.ADMIN, name="mallory").uri
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, uri)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(issuer.subject, name, mine.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    named = TlsFiles(ca=files.ca, certificate=tmp_path / "cn.pem", key=tmp_path / "cn.key")
    named.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    named.key.write_bytes(
        mine.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    async with serving(files) as (port, _), dial(port, named) as channel:
        log = log_pb2_grpc.LogServiceStub(channel)
        code, reason, _, message = await refusal(log.Append(log_pb2.AppendRequest()))
        assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "NO_IDENTITY")
        assert "without a certificate" in message


async def test_a_method_that_nobody_serves_stays_unimplemented(certificates):
    async with serving(certificates.of[Role.PEER]) as (port, _):
        async with dial(port, certificates.of[Role.ADMIN]) as channel:
            stub = shard_map_pb2_grpc.ShardMapServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GetMap(shard_map_pb2.GetMapRequest())
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_under_plaintext_a_caller_names_itself_or_is_an_administrator():
    peer = Identity(cluster="shop", role=Role.PEER, name="peer-7")
    async with serving(None) as (port, fleet), dial(port, None) as channel:
        stub = fleet_pb2_grpc.FleetServiceStub(channel)
        await stub.Register(fleet_pb2.RegisterRequest(), metadata=plaintext_metadata(peer))
        assert fleet.seen == [peer]
        _, reason, *_ = await refusal(stub.Register(fleet_pb2.RegisterRequest()))
        assert reason == "ROLE_NOT_ALLOWED"
        await log_pb2_grpc.LogServiceStub(channel).Append(log_pb2.AppendRequest())
        nonsense = (("peerd-plaintext-identity", "somebody"),)
        _, reason, *_ = await refusal(stub.Register(fleet_pb2.RegisterRequest(), metadata=nonsense))
        assert reason == "NO_IDENTITY"


async def test_under_tls_nobody_can_name_himself(certificates):
    peer = Identity(cluster="shop", role=Role.PEER, name="peer-7")
    async with serving(certificates.of[Role.PEER]) as (port, _):
        async with dial(port, certificates.of[Role.READER]) as channel:
            stub = fleet_pb2_grpc.FleetServiceStub(channel)
            _, reason, *_ = await refusal(
                stub.Register(fleet_pb2.RegisterRequest(), metadata=plaintext_metadata(peer))
            )
            assert reason == "ROLE_NOT_ALLOWED"
