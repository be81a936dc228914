"""Mutual TLS: files that are judged, the caller's identity, and words for what went wrong.

Both ends present a certificate of the cluster's authority. A server learns from it who calls
(`identity_of`); a client verifies that the server's certificate carries the host name or address
that it dialled.

Invariants:
- An identity comes from a verified certificate, or, on a server that was told to speak plaintext
  on loopback, from the caller's word; never from the caller's word under TLS.
- A check that fails says which file, what is wrong with it, and what to do, in one line.

Must not: decide what a caller may do (`authz`), or keep a private key in memory beyond the call
that reads it.
"""

import datetime
import functools
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path

import grpc.aio
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from peerd.pki import (
    Identity,
    IdentityError,
    PkiError,
    Role,
    TlsFiles,
    identity_among,
    read_certificates,
    read_key,
    uris_of,
)

__all__ = [
    "ForeignClusterError",
    "Identity",
    "IdentityError",
    "Role",
    "TlsError",
    "TlsFiles",
    "explain_connect_failure",
    "identity_of",
    "plaintext_metadata",
    "read_tls_file",
    "validate",
]

# Under plaintext on loopback a caller names itself here; absent, it is an administrator.
PLAINTEXT_IDENTITY_KEY = "peerd-plaintext-identity"
PLAINTEXT_NAME = "loopback"
# What gRPC calls a certificate's alternative names.
ALTERNATIVE_NAMES = "x509_subject_alternative_name"
# limit: callers whose names are remembered as read; a certificate's names cost some 300 bytes
IDENTITIES_KEPT_MAX = 4096
# How long the search for the cause of a failed connection may take, per step.
EXPLAIN_TIMEOUT_S = 2.0
# How every HTTP/2 client begins (RFC 9113, 3.4), with an empty SETTINGS frame.
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


class TlsError(PkiError):
    """TLS files cannot be used; the message is one line that names the file and what to do."""


class ForeignClusterError(IdentityError):
    """The caller is known, but belongs to another cluster."""


def validate(files: TlsFiles, role: Role | None = None, cluster: str | None = None) -> Identity:
    """Judges TLS files before anything is started with them, and returns whom they name.

    Args:
        files: The three files.
        role: The role that the certificate has to carry; any if None.
        cluster: The cluster that it has to belong to; any if None.

    Raises:
        TlsError: a file is missing, unreadable or not what its name says, the key belongs to
            another certificate, the certificate is expired, not valid yet or not of the
            authority, carries no identity, or another role or cluster than asked for.
    """
    authorities = _certificates(files.ca, "tls.ca")
    chain = _certificates(files.certificate, "tls.certificate")
    certificate = chain[0]
    if _key(files.key).public_key() != certificate.public_key():
        raise TlsError(f"tls.key: {files.key} is not the key of {files.certificate}")
    _check_dates(certificate, files.certificate)
    _check_signed(chain, authorities, files)
    try:
        identity = identity_among(uris_of(certificate))
    except IdentityError as error:
        raise TlsError(f"tls.certificate: {files.certificate}: {error}") from error
    if role is not None and identity.role != role:
        raise TlsError(
            f"tls.certificate: {files.certificate} is for {identity.uri}: "
            f"role {role.value!r} is needed here, issue another one"
        )
    if cluster is not None and identity.cluster != cluster:
        raise TlsError(
            f"tls.certificate: {files.certificate} is for {identity.uri}: "
            f"this is cluster {cluster!r}"
        )
    return identity


def identity_of(
    context: "grpc.aio.ServicerContext[object, object]",
    cluster: str | None = None,
    *,
    plaintext: bool = False,
) -> Identity:
    """Returns who calls.

    Args:
        context: The call.
        cluster: The cluster that the caller has to belong to; any if None.
        plaintext: The server speaks plaintext on loopback: take the caller's word.

    Raises:
        IdentityError: the caller has no certificate, or it carries no identity.
        ForeignClusterError: it is of another cluster.
    """
    if plaintext:
        identity = _claimed_identity(context, cluster)
    else:
        # Of a certificate without alternative names gRPC takes the common name for the identity.
        named = context.peer_identity_key() == ALTERNATIVE_NAMES
        identity = _identity_among(tuple(context.peer_identities() or ()) if named else ())
    if cluster is not None and identity.cluster != cluster:
        raise ForeignClusterError(f"{identity.uri} is of another cluster: this is {cluster!r}")
    return identity


@functools.lru_cache(IDENTITIES_KEPT_MAX)
def _identity_among(names: tuple[bytes, ...]) -> Identity:
    """The identity among a caller's alternative names; the same for each of its calls."""
    if not names:
        raise IdentityError(
            "the call comes without a certificate: connect with mutual TLS, "
            "with files made by `peerctl pki issue`"
        )
    return identity_among([name.decode("utf-8", "replace") for name in names])


def plaintext_metadata(identity: Identity) -> tuple[tuple[str, str], ...]:
    """Returns the call metadata by which a caller names itself to a plaintext server."""
    return ((PLAINTEXT_IDENTITY_KEY, identity.uri),)


def _claimed_identity(
    context: "grpc.aio.ServicerContext[object, object]", cluster: str | None
) -> Identity:
    for key, value in context.invocation_metadata() or ():
        if key == PLAINTEXT_IDENTITY_KEY:
            text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
            return Identity.parse(text)
    return Identity(cluster=cluster or PLAINTEXT_NAME, role=Role.ADMIN, name=PLAINTEXT_NAME)


# ------------------------------------------------------------------------------ checks of files


def read_tls_file(path: Path, key: str) -> bytes:
    """The contents of a file of the setting `key`. Raises TlsError: it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise TlsError(f"{key}: {path} does not exist") from error
    except OSError as error:
        raise TlsError(f"{key}: cannot read {path}: {error.strerror or error}") from error


def _certificates(path: Path, key: str) -> list[x509.Certificate]:
    try:
        return read_certificates(path)
    except PkiError as error:
        raise TlsError(f"{key}: {error}") from error


def _key(path: Path) -> PrivateKeyTypes:
    try:
        return read_key(path)
    except PkiError as error:
        raise TlsError(f"tls.key: {error}") from error


def _check_dates(certificate: x509.Certificate, path: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begin:
        raise TlsError(
            f"tls.certificate: {path} is valid only from {begin:%Y-%m-%d %H:%M} UTC on: "
            "check this host's clock"
        )
    if now > end:
        raise TlsError(f"tls.certificate: {path} expired {end:%Y-%m-%d %H:%M} UTC: issue a new one")


def _check_signed(
    chain: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate], files: TlsFiles
) -> None:
    """Walks from the holder's certificate over those sent with it to one of the authorities."""
    signed = chain[0]
    for issuer in chain[1:]:
        if not _is_issued_by(signed, issuer):
            break
        signed = issuer
    if not any(_is_issued_by(signed, authority) for authority in authorities):
        raise TlsError(
            f"tls.certificate: {files.certificate} is not signed by {files.ca}: "
            "use the authority that issued it, or issue another certificate"
        )


def _is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


# ------------------------------------------------------------------------------ failed connections


def explain_connect_failure(target: str, tls: TlsFiles | None) -> str:
    """Finds out why `target` cannot be reached, which gRPC reports as a bare UNAVAILABLE.

    Blocks up to three times `EXPLAIN_TIMEOUT_S`: call it outside the event loop. Never raises.

    Args:
        target: `host:port` as it was dialled.
        tls: The files that were used; None if the attempt was made in plaintext.

    Returns:
        One line: what is wrong, where, and what to do.
    """
    host, separator, port = target.removeprefix("dns:///").rpartition(":")
    host = host.strip("[]")
    if not separator or not host or not (port.isdigit() and 1 <= int(port) <= 65535):
        return f"{target!r} is no address: expected host:port"
    if tls is not None:
        try:
            validate(tls)
        except TlsError as error:
            return str(error)
    try:
        with socket.create_connection((host, int(port)), timeout=EXPLAIN_TIMEOUT_S) as connection:
            if tls is None:
                failure = _probe_plaintext(connection)
            else:
                failure = _probe_tls(connection, host, tls)
    except (OSError, UnicodeError) as error:
        failure = _connect_words(error)
    if failure is None:
        return f"{target} answers now: the failure has passed, try again"
    return f"{target}: {failure}"


def _connect_words(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there (connection refused): is the daemon running?"
    # A UnicodeError comes from a name that cannot even be asked for.
    if isinstance(error, socket.gaierror | UnicodeError):
        return "the host name is not known: check its spelling or the name service"
    if isinstance(error, TimeoutError):
        return f"no answer within {EXPLAIN_TIMEOUT_S:.0f} s: host down or blocked by a firewall"
    if isinstance(error, ConnectionResetError):
        return "the connection was closed by the other side: is the port that of a daemon?"
    return f"cannot connect: {error}"


def _probe_plaintext(connection: socket.socket) -> str | None:
    """Returns what is wrong with speaking plaintext on this connection, None if nothing is."""
    connection.sendall(HTTP2_PREFACE)
    # A TLS server answers plaintext by an alert record (type 21) or by closing.
    if connection.recv(1) in {b"", b"\x15"}:
        return (
            "the server wants mutual TLS and the call came without a certificate: "
            "give the TLS files of a client (`peerctl pki issue` makes them)"
        )
    return None


def _probe_tls(connection: socket.socket, host: str, files: TlsFiles) -> str | None:
    """Returns what is wrong with speaking TLS on this connection, None if nothing is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=files.ca)
    context.load_cert_chain(files.certificate, files.key)
    context.set_alpn_protocols(["h2"])
    try:
        with context.wrap_socket(connection, server_hostname=host) as secured:
            # With TLS 1.3 a refusal of our certificate arrives only with the first read, as an
            # alert or as the end; a server that accepts it sends its HTTP/2 settings.
            refusal = None if secured.recv(1) else "it closed the connection"
    except ssl.SSLCertVerificationError as error:
        return (
            f"the server's certificate is not accepted ({error.verify_message}): it must be "
            f"signed by {files.ca} and carry {host!r} among its names"
        )
    except ssl.SSLError as error:
        if error.reason in {"WRONG_VERSION_NUMBER", "UNEXPECTED_EOF_WHILE_READING"}:
            return "the server does not speak TLS there: is it the right port?"
        refusal = str(error.reason)
    if refusal is None:
        return None
    return (
        f"the server refuses our certificate {files.certificate} ({refusal}): "
        "it must be signed by the authority that the server trusts"
    )
