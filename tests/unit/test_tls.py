"""Judging TLS files, and explaining connections that fail."""

import asyncio
import datetime
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from peerd import pki
from peerd.pki import Identity, Role, TlsFiles, create_authority
from peerd.transport.credentials import Credentials
from peerd.transport.options import CHANNEL_OPTIONS, SERVER_OPTIONS
from peerd.transport.tls import (
    TlsError,
    explain_connect_failure,
    validate,
)


def but(files: TlsFiles, **changes) -> TlsFiles:
    values = {"ca": files.ca, "certificate": files.certificate, "key": files.key}
    return TlsFiles(**{**values, **changes})


def test_good_files_name_their_holder(certificates):
    identity = validate(certificates.of[Role.PEER], Role.PEER, "shop")
    assert identity == Identity(cluster="shop", role=Role.PEER, name="peer-1")


@pytest.mark.parametrize("which", ["ca", "certificate", "key"])
def test_a_missing_file_is_named_with_its_key(certificates, tmp_path, which):
    files = but(certificates.of[Role.PEER], **{which: tmp_path / "absent.pem"})
    with pytest.raises(TlsError, match=rf"^tls\.{which}: .*absent\.pem does not exist$"):
        validate(files)


@pytest.mark.parametrize("which", ["ca", "certificate", "key"])
def test_a_file_that_is_none_of_its_kind_is_named(certificates, tmp_path, which):
    path = tmp_path / "odd.pem"
    path.write_text("-----BEGIN NOTHING-----\n")
    with pytest.raises(TlsError, match=rf"^tls\.{which}: .*odd\.pem holds no "):
        validate(but(certificates.of[Role.PEER], **{which: path}))
    with pytest.raises(TlsError, match="cannot read"):
        validate(but(certificates.of[Role.PEER], **{which: tmp_path}))


def test_an_encrypted_key_is_named(certificates, tmp_path):
    path = tmp_path / "key.pem"
    path.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(TlsError, match="is encrypted"):
        validate(but(certificates.of[Role.PEER], key=path))


def test_a_key_of_another_certificate_is_refused(certificates):
    files = but(certificates.of[Role.PEER], key=certificates.of[Role.LAS].key)
    with pytest.raises(TlsError, match="is not the key of"):
        validate(files)


def test_a_certificate_of_another_authority_is_refused(certificates):
    files = but(certificates.stranger, ca=certificates.of[Role.PEER].ca)
    with pytest.raises(TlsError, match="is not signed by"):
        validate(files)


def test_a_wrong_role_or_cluster_is_refused(certificates):
    with pytest.raises(TlsError, match="role 'las' is needed here"):
        validate(certificates.of[Role.PEER], Role.LAS)
    with pytest.raises(TlsError, match="this is cluster 'other'"):
        validate(certificates.of[Role.PEER], Role.PEER, "other")


@pytest.mark.parametrize(
    ("shift_days", "words"), [(-30, "expired"), (30, "valid only from .* check this host's clock")]
)
def test_dates_are_checked(tmp_path, monkeypatch, shift_days, words):
    authority = create_authority(tmp_path, "shop")
    shifted = pki._now() + datetime.timedelta(days=shift_days)
    monkeypatch.setattr(pki, "_now", lambda: shifted)
    files = authority.issue(Role.PEER, "peer-1", [], tmp_path, 7)
    with pytest.raises(TlsError, match=words):
        validate(files)


def test_a_certificate_without_identity_is_refused(certificates, tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "web")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path, key_path = tmp_path / "web.pem", tmp_path / "key.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    with pytest.raises(TlsError, match="carries no identity"):
        validate(TlsFiles(ca=path, certificate=path, key=key_path))


# ------------------------------------------------------------------------------ connections


@asynccontextmanager
async def serving(files: TlsFiles | None) -> AsyncIterator[int]:
    """A real server that answers health checks; yields its port."""
    server = grpc.aio.server(options=SERVER_OPTIONS)
    health_pb2_grpc.add_HealthServicer_to_server(health_aio.HealthServicer(), server)
    if files is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", Credentials(files).server())
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def check_health(port: int, files: TlsFiles | None) -> health_pb2.HealthCheckResponse:
    target = f"127.0.0.1:{port}"
    if files is None:
        channel = grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
    else:
        channel = grpc.aio.secure_channel(
            target, Credentials(files).channel()[1], options=CHANNEL_OPTIONS
        )
    async with channel:
        return await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=10
        )


async def explain(port: int, files: TlsFiles | None) -> str:
    return await asyncio.to_thread(explain_connect_failure, f"127.0.0.1:{port}", files)


async def test_both_ends_with_good_files_talk(certificates):
    async with serving(certificates.of[Role.PEER]) as port:
        answer = await check_health(port, certificates.of[Role.READER])
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert "answers now" in await explain(port, certificates.of[Role.READER])


async def test_a_client_without_certificate_is_told_so(certificates):
    async with serving(certificates.of[Role.PEER]) as port:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check_health(port, None)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "wants mutual TLS" in await explain(port, None)


async def test_a_client_of_another_authority_is_told_so(certificates):
    async with serving(certificates.of[Role.PEER]) as port:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check_health(port, certificates.stranger)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "server's certificate is not accepted" in await explain(port, certificates.stranger)


async def test_a_client_that_the_server_does_not_trust_is_told_so(certificates, tmp_path):
    # It trusts both authorities, the server only its own.
    bundle = tmp_path / "both.pem"
    own = certificates.of[Role.PEER]
    bundle.write_bytes(own.ca.read_bytes() + certificates.stranger.ca.read_bytes())
    files = but(certificates.stranger, ca=bundle)
    async with serving(own) as port:
        with pytest.raises(grpc.aio.AioRpcError):
            await check_health(port, files)
        assert "server refuses our certificate" in await explain(port, files)


async def test_a_server_that_presents_a_clients_certificate_is_not_believed(certificates):
    async with serving(certificates.of[Role.APPENDER]) as port:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check_health(port, certificates.of[Role.READER])
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_a_server_under_another_name_is_not_believed(certificates, tmp_path):
    files = certificates.authority.issue(Role.PEER, "peer-9", ["peer-9.example"], tmp_path, 7)
    async with serving(files) as port:
        with pytest.raises(grpc.aio.AioRpcError):
            await check_health(port, certificates.of[Role.READER])
        words = await explain(port, certificates.of[Role.READER])
        assert "127.0.0.1" in words
        assert "among its names" in words


async def test_tls_to_a_plaintext_server_is_told_so(certificates):
    async with serving(None) as port:
        assert "does not speak TLS" in await explain(port, certificates.of[Role.READER])


async def test_a_broken_file_of_the_client_comes_first(certificates, tmp_path):
    files = but(certificates.of[Role.READER], key=tmp_path / "absent.pem")
    assert "absent.pem does not exist" in await explain(1, files)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("", "is no address"),
        ("localhost", "is no address"),
        ("localhost:http", "is no address"),
        (":7400", "is no address"),
        ("127.0.0.1:65536", "is no address"),
        ("bad..name:7400", "host name is not known"),
        ("x" * 300 + ":7400", "host name is not known"),
    ],
)
def test_a_bad_target_is_told_so(target, words):
    assert words in explain_connect_failure(target, None)


def test_an_unknown_host_is_told_so(monkeypatch):
    def fail(*arguments, **keywords):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)  # a real look-up would leave this host
    words = explain_connect_failure("peer-1.example:7400", None)
    assert words.startswith("peer-1.example:7400: the host name is not known")


def test_nobody_listening_is_told_so():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: refuses, and stays ours
        port = taken.getsockname()[1]
        assert "nothing listens" in explain_connect_failure(f"127.0.0.1:{port}", None)


async def test_a_second_server_on_a_port_fails():
    async with serving(None) as port:
        server = grpc.aio.server(options=SERVER_OPTIONS)
        with pytest.raises(RuntimeError, match="Failed to bind"):
            server.add_insecure_port(f"127.0.0.1:{port}")
        await server.stop(None)
