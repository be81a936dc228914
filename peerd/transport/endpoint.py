"""The settings that every daemon has: who it is, where it listens, with which certificate.

Invariants, checked before a port is opened:
- Without certificates a daemon speaks to its own host only, and only when told so.
- The certificate is for this daemon: its role, its cluster, its name.
"""

import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from peerd.pki import Identity, Role, TlsFiles, check_cluster_name, check_name
from peerd.settings import Address, ConfigError, Section, is_loopback
from peerd.transport.options import Options, guarded
from peerd.transport.tls import TlsError, validate

WILDCARDS = frozenset({"0.0.0.0", "[::]", "::", "*"})  # noqa: S104 -- recognised, not bound


def advertised(listen: str) -> str:
    """The address that others dial when none was given: this host's name in place of a wildcard."""
    host, _, port = listen.rpartition(":")
    return f"{socket.gethostname()}:{port}" if host in WILDCARDS else listen


def _advertise_default(data: dict[str, Any]) -> str:
    return advertised(data["listen"])


class TlsSection(Section):
    """Certificates of a daemon; `peerctl pki` makes them."""

    ca: Path = Field(
        description="Certificates of the authority that signs everybody in the cluster, PEM"
    )
    certificate: Path = Field(
        description="Certificate of this daemon with its identity, PEM, chain below it"
    )
    key: Path = Field(description="Private key of the certificate, PEM, no passphrase, mode 0600")

    def files(self) -> TlsFiles:
        """The same three paths as the transport takes them."""
        return TlsFiles(ca=self.ca, certificate=self.certificate, key=self.key)


class ConnectionLimits(Section):
    """What strangers and callers may cost."""

    metadata_bytes_max: int = Field(
        default=8 * 1024,
        ge=1024,
        le=1024 * 1024,
        description="Size of a call's metadata (its headers). A call with more is refused with "
        "`RESOURCE_EXHAUSTED` before anything looks at it",
    )
    handshake_timeout_ms: int = Field(
        default=10_000,
        ge=100,
        le=600_000,
        description="Time in which a new connection has to have made itself known. One that has "
        "not is closed",
    )
    idle_timeout_s: int = Field(
        default=3_600,
        ge=1,
        le=1_000_000,
        description="A connection without any call for so long is closed; its client opens "
        "another one when it needs it",
    )


class Endpoint(Section):
    """Base of a daemon's settings. A daemon declares its own `listen` ports."""

    cluster: Annotated[str, AfterValidator(check_cluster_name)] = Field(
        description="Name of the cluster, the trust domain of its certificates. "
        "1 to 63 of `a-z 0-9 . _ -`"
    )
    name: Annotated[str, AfterValidator(check_name)] = Field(
        description="Name of this daemon, unique in the cluster and the last part of its "
        "certificate's identity. 1 to 63 of `A-Z a-z 0-9 . _ -`"
    )
    listen: Address = Field(description="Address for gRPC, `host:port`. Port 0 takes a free one")
    advertise: Address = Field(
        default_factory=_advertise_default,
        description="Address at which the others dial this daemon; its certificate must name that "
        "host. By default `listen`, with this host's name in place of a wildcard",
    )
    http_listen: Address = Field(
        description="Address for plain HTTP: `/metrics`, `/healthz`. Port 0 takes a free one"
    )
    http_off_loopback: bool = Field(
        default=False,
        description="Allow `http_listen` beyond this host, unencrypted and unauthenticated, for a "
        "Prometheus server elsewhere",
    )
    data_dir: Path = Field(
        description="Directory of everything this daemon keeps; its own, on one disk"
    )
    insecure_loopback: bool = Field(
        default=False,
        description="Speak plaintext without certificates, on loopback addresses only, for "
        "experiments. Excludes `[tls]`",
    )
    tls: TlsSection | None = Field(
        default=None, description="Certificates; required unless `insecure_loopback`"
    )

    limits: ConnectionLimits = Field(default_factory=ConnectionLimits)

    def server_options(self, options: Options) -> Options:
        """`options` of a server with what is set about its connections."""
        return guarded(
            options,
            metadata_bytes_max=self.limits.metadata_bytes_max,
            handshake_timeout_ms=self.limits.handshake_timeout_ms,
            idle_timeout_s=self.limits.idle_timeout_s,
        )

    def tls_files(self) -> TlsFiles | None:
        """The certificates to use; None for plaintext on loopback."""
        return self.tls.files() if self.tls is not None else None


def endpoint_mistakes(
    endpoint: Endpoint, dialled: Iterable[tuple[str, str]]
) -> Iterator[tuple[str, str]]:
    """Yields (key, what is wrong) for what concerns several keys at once.

    Args:
        endpoint: The settings.
        dialled: (key, address) of everything that this daemon dials.
    """
    if endpoint.tls is not None and endpoint.insecure_loopback:
        yield "insecure_loopback", "excludes the certificates in [tls]: remove one of them"
    if endpoint.tls is None and not endpoint.insecure_loopback:
        yield (
            "tls",
            (
                "is missing: name ca, certificate and key (`peerctl pki issue` makes them); "
                "insecure_loopback = true allows plaintext on this host alone"
            ),
        )
    if endpoint.tls is None:
        for key, address in (("listen", endpoint.listen), *dialled):
            if not is_loopback(address):
                yield key, f"{address} is off loopback, where plaintext is refused: set [tls]"
    if not endpoint.http_off_loopback and not is_loopback(endpoint.http_listen):
        yield (
            "http_listen",
            (
                f"{endpoint.http_listen} is off loopback: metrics would be open to everybody "
                "who reaches it; http_off_loopback = true allows that"
            ),
        )
    if endpoint.advertise.rpartition(":")[0] in WILDCARDS:
        yield "advertise", f"{endpoint.advertise} cannot be dialled: name a host or an address"


def verify_identity(endpoint: Endpoint, role: Role) -> Identity:
    """Judges the certificates, and that they are those of this very daemon.

    Returns:
        The daemon's identity; without certificates, the one that its settings claim.

    Raises:
        ConfigError: a file is wrong, or is another daemon's; the message begins with the key.
    """
    files = endpoint.tls_files()
    if files is None:
        return Identity(cluster=endpoint.cluster, role=role, name=endpoint.name)
    try:
        identity = validate(files, role, endpoint.cluster)
    except TlsError as error:
        raise ConfigError(str(error)) from error
    if identity.name != endpoint.name:
        raise ConfigError(
            f"tls.certificate: {files.certificate} is for {identity.uri}: "
            f"this daemon's name is {endpoint.name!r}"
        )
    return identity
