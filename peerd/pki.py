"""Identities, and the certificate authority that vouches for them.

An identity is `spiffe://<cluster>/<role>/<name>`, carried as the only SPIFFE URI among a
certificate's subject alternative names. `peerctl pki` uses this module for a lasting authority,
`peerd dev` for a throw-away one; a cluster may as well bring certificates of its own authority,
as long as they carry such an identity.

Invariants:
- A private key is created with mode 0600 and is never readable by others, not for a moment.
- A file appears whole or not at all, and an existing one is replaced only when the caller says so.
- An issued certificate never outlives its authority.

Must not: start other programs, read a configuration, or log.
"""

import contextlib
import datetime
import ipaddress
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_CERTIFICATE = "ca.pem"
AUTHORITY_KEY = "ca-key.pem"
NEXT_AUTHORITY_KEY = "next-ca-key.pem"
# A throw-away cluster forgets its authority with its directory; a lasting one renews it in time.
AUTHORITY_DAYS = 3650
# limit: days a certificate may be valid; longer ones are refused by some TLS stacks
CERTIFICATE_DAYS_MAX = 825
# Clocks of a fleet differ: a fresh certificate is valid on a host that is a little behind.
BACKDATE = datetime.timedelta(minutes=5)
KEY_MODE = 0o600
CERTIFICATE_MODE = 0o644

_CLUSTER = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SCHEME = "spiffe://"


class PkiError(Exception):
    """A certificate, key or authority cannot be made or used; the message is one line of advice."""


class IdentityError(PkiError, ValueError):
    """A name is no identity of this project, or of another cluster than expected."""


class Role(StrEnum):
    """What the holder of a certificate is; peerd.transport.authz says what each may call."""

    PEER = "peer"
    LAS = "las"
    ADMIN = "admin"
    OPERATOR = "operator"
    APPENDER = "appender"
    READER = "reader"
    FORECASTER = "forecaster"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who someone is: a name within a role within a cluster. Valid once it exists.

    Raises:
        IdentityError: a part has characters that an identity must not have.
    """

    cluster: str
    role: Role
    name: str

    def __post_init__(self) -> None:
        check_cluster_name(self.cluster)
        check_name(self.name)

    @property
    def uri(self) -> str:
        """The form in certificates: `spiffe://<cluster>/<role>/<name>`."""
        return f"{_SCHEME}{self.cluster}/{self.role.value}/{self.name}"

    @classmethod
    def parse(cls, uri: str) -> "Identity":
        """Reads the form in certificates.

        Raises:
            IdentityError: `uri` does not have that form, or names a role that does not exist.
        """
        parts = uri.removeprefix(_SCHEME).split("/")
        if not uri.startswith(_SCHEME) or len(parts) != 3:
            raise IdentityError(
                f"{uri!r} is no identity: expected spiffe://<cluster>/<role>/<name>"
            )
        cluster, role, name = parts
        if role not in set(Role):
            raise IdentityError(f"{uri!r} names no known role: expected one of {', '.join(Role)}")
        return cls(cluster=cluster, role=Role(role), name=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """The three PEM files that one end of a mutual TLS connection needs."""

    ca: Path
    certificate: Path
    key: Path


class Authority:
    """A certificate authority of one cluster. Made by `create_authority` or `load_authority`."""

    def __init__(
        self,
        *,
        cluster: str,
        certificate: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
        trusted: Sequence[x509.Certificate],
    ) -> None:
        """`certificate` is of `key` and signs; `trusted` are all that are to be trusted now."""
        self.cluster = cluster
        self.certificate = certificate
        self.trusted = tuple(trusted)
        self._key = key

    def issue(
        self,
        role: Role,
        name: str,
        hosts: Sequence[str],
        directory: Path,
        days: int,
        *,
        overwrite: bool = False,
    ) -> TlsFiles:
        """Makes a key and a certificate for `spiffe://<cluster>/<role>/<name>`.

        Writes `<name>.cert.pem`, `<name>.key.pem` and the authority's `ca.pem` into `directory`
        (created with mode 0700 if it is not there). No name can take the place of another file.

        Args:
            role: What the holder is.
            name: The holder's name, unique within its role.
            hosts: DNS names and IP addresses at which the holder is dialled; clients verify them.
                Empty for those that only dial.
            directory: Where the three files go.
            days: How long the certificate is valid, 1 to `CERTIFICATE_DAYS_MAX`.
            overwrite: Whether an existing certificate and key are replaced.

        Raises:
            IdentityError: `name` cannot be part of an identity.
            PkiError: a host is neither DNS name nor address, `days` is out of its range or beyond
                the authority's end, or a file exists already. Then no file was written but,
                where the last one existed, those before it.
        """
        identity = Identity(cluster=self.cluster, role=role, name=name)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(identity, key.public_key(), hosts, days)
        _make_directory(directory)
        files = TlsFiles(
            ca=directory / AUTHORITY_CERTIFICATE,
            certificate=directory / f"{name}.cert.pem",
            key=directory / f"{name}.key.pem",
        )
        if not overwrite:
            _refuse_existing(files.key, files.certificate)
        self._write_trusted(files.ca)
        write_atomically(files.key, _key_pem(key), KEY_MODE, overwrite=overwrite)
        write_atomically(
            files.certificate, _certificate_pem(certificate), CERTIFICATE_MODE, overwrite=overwrite
        )
        return files

    def _sign(
        self,
        identity: Identity,
        public_key: ec.EllipticCurvePublicKey,
        hosts: Sequence[str],
        days: int,
    ) -> x509.Certificate:
        now = _now()
        if not 1 <= days <= CERTIFICATE_DAYS_MAX:
            raise PkiError(f"{days} days is out of range: ask for 1 to {CERTIFICATE_DAYS_MAX}")
        end = now + datetime.timedelta(days=days)
        authority_end = self.certificate.not_valid_after_utc
        if end > authority_end:
            raise PkiError(
                f"the certificate would outlive its authority (ends {authority_end:%Y-%m-%d}): "
                f"ask for at most {max(0, (authority_end - now).days)} days or renew the authority"
            )
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.name)])
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.uri)]
        names += [_host_name(host) for host in dict.fromkeys(hosts)]
        return (
            _builder(subject, self.certificate.subject, public_key, now, end)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(_purposes(identity.role)), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )

    def _write_trusted(self, path: Path) -> None:
        """Writes or replaces what the holder trusts; not what another authority left there."""
        content = _bundle_pem(self.trusted)
        if path.exists():
            if path.read_bytes() == content:
                return
            if not set(read_certificates(path)) & set(self.trusted):
                raise PkiError(
                    f"{path} is the certificate of another authority: use another directory"
                )
        # Two issuers may meet here; both write the same bytes, so the later one may replace.
        write_atomically(path, content, CERTIFICATE_MODE, overwrite=True)


def create_authority(directory: Path, cluster: str) -> Authority:
    """Makes the authority of a new cluster: `ca.pem` and `ca-key.pem` in `directory`.

    Raises:
        IdentityError: `cluster` cannot be a cluster's name.
        PkiError: an authority is there already (it is never replaced).
    """
    check_cluster_name(cluster)
    _make_directory(directory)
    _refuse_existing(directory / AUTHORITY_KEY, directory / AUTHORITY_CERTIFICATE)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _authority_certificate(cluster, key)
    write_atomically(directory / AUTHORITY_KEY, _key_pem(key), KEY_MODE)
    write_atomically(
        directory / AUTHORITY_CERTIFICATE, _certificate_pem(certificate), CERTIFICATE_MODE
    )
    return Authority(cluster=cluster, certificate=certificate, key=key, trusted=[certificate])


def _authority_certificate(cluster: str, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    now = _now()
    # Two authorities of one cluster must have two names: some TLS stacks look an issuer up by it.
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, cluster),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "authority"),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, secrets.token_hex(8)),
        ]
    )
    return (
        _builder(
            subject,
            subject,
            key.public_key(),
            now,
            now + datetime.timedelta(days=AUTHORITY_DAYS),
        )
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(_SCHEME + cluster)]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def load_authority(directory: Path) -> Authority:
    """Reads the authority that `create_authority` left in `directory`.

    While it is being replaced (`begin_rotation`) two certificates are there; the one that belongs
    to the key signs, both are trusted.

    Raises:
        PkiError: a file is missing or unreadable, they do not belong together, the certificate
            has expired, or it was not made by `create_authority`.
    """
    certificate_path = directory / AUTHORITY_CERTIFICATE
    trusted = read_certificates(certificate_path)
    key = _read_authority_key(directory / AUTHORITY_KEY)
    certificate = _certificate_of(key, trusted)
    if certificate is None:
        raise PkiError(f"{directory / AUTHORITY_KEY} is not the key of {certificate_path}")
    if certificate.not_valid_after_utc <= _now():
        raise PkiError(
            f"{certificate_path} expired {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC: "
            "make a new authority in another directory"
        )
    uris = [uri for uri in uris_of(certificate) if uri.startswith(_SCHEME)]
    if len(uris) != 1:
        raise PkiError(f"{certificate_path} names no cluster: was it made by `peerctl pki init`?")
    cluster = uris[0].removeprefix(_SCHEME)
    check_cluster_name(cluster)
    return Authority(cluster=cluster, certificate=certificate, key=key, trusted=trusted)


def begin_rotation(directory: Path) -> Authority:
    """Makes the next authority and trusts it beside the present one, which goes on signing.

    Interrupted and called again, it goes on.

    Raises:
        PkiError: as `load_authority`, or a rotation has begun already.
    """
    present = load_authority(directory)
    path = directory / NEXT_AUTHORITY_KEY
    if len(present.trusted) > 1:
        raise PkiError(
            f"{directory} trusts {len(present.trusted)} authorities: end that rotation first "
            "(`peerctl pki rotate switch`, then `finish`)"
        )
    if not path.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        write_atomically(path, _key_pem(key), KEY_MODE)
    upcoming = _authority_certificate(present.cluster, _read_authority_key(path))
    _replace_trusted(directory, [present.certificate, upcoming])
    return load_authority(directory)


def switch_rotation(directory: Path) -> Authority:
    """From here on the next authority signs. All hosts have to trust it by now.

    Raises:
        PkiError: as `load_authority`, or no rotation has begun.
    """
    present = load_authority(directory)
    path = directory / NEXT_AUTHORITY_KEY
    if len(present.trusted) < 2 or not path.exists():
        raise PkiError(f"{directory} has no next authority: `peerctl pki rotate begin` makes one")
    if _certificate_of(_read_authority_key(path), present.trusted) is None:
        raise PkiError(f"{path} is the key of none that {AUTHORITY_CERTIFICATE} trusts")
    try:
        path.replace(directory / AUTHORITY_KEY)
    except OSError as error:
        raise PkiError(f"cannot replace {AUTHORITY_KEY}: {error.strerror or error}") from error
    _sync_directory(directory)
    return load_authority(directory)


def finish_rotation(directory: Path) -> Authority:
    """Trusts the authority that signs alone; all certificates have to be of it by now.

    Raises:
        PkiError: as `load_authority`, or there is nothing to finish.
    """
    present = load_authority(directory)
    if (directory / NEXT_AUTHORITY_KEY).exists():
        raise PkiError("the next authority does not sign yet: `peerctl pki rotate switch` first")
    if len(present.trusted) < 2:
        raise PkiError(f"{directory} trusts one authority alone: there is nothing to finish")
    _replace_trusted(directory, [present.certificate])
    return load_authority(directory)


def _replace_trusted(directory: Path, trusted: Sequence[x509.Certificate]) -> None:
    write_atomically(
        directory / AUTHORITY_CERTIFICATE, _bundle_pem(trusted), CERTIFICATE_MODE, overwrite=True
    )


def _read_authority_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = read_key(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise PkiError(f"{path} is no key of an authority made by `peerctl pki init`")
    return key


def _certificate_of(
    key: ec.EllipticCurvePrivateKey, certificates: Sequence[x509.Certificate]
) -> x509.Certificate | None:
    public = key.public_key()
    return next((each for each in certificates if each.public_key() == public), None)


def check_cluster_name(cluster: str) -> str:
    """Returns a cluster's name, which is also the trust domain of its identities.

    Raises:
        IdentityError: it has other characters or another length than allowed.
    """
    if not _CLUSTER.fullmatch(cluster):
        raise IdentityError(
            f"cluster name {cluster!r} is not usable: take 1 to 63 of a-z 0-9 . _ - "
            "and begin with a letter or digit"
        )
    return cluster


def check_name(name: str) -> str:
    """Returns the name of a process or person, the last part of an identity.

    Raises:
        IdentityError: it has other characters or another length than allowed.
    """
    if not _NAME.fullmatch(name):
        raise IdentityError(
            f"name {name!r} is not usable: take 1 to 63 of A-Z a-z 0-9 . _ - "
            "and begin with a letter or digit"
        )
    return name


def uris_of(certificate: x509.Certificate) -> list[str]:
    """Returns all URIs among the subject alternative names."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return extension.value.get_values_for_type(x509.UniformResourceIdentifier)


def hosts_of(certificate: x509.Certificate) -> list[str]:
    """Returns the DNS names and IP addresses at which its holder may be dialled."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = names.get_values_for_type(x509.IPAddress)
    return [*names.get_values_for_type(x509.DNSName), *map(str, addresses)]


def identity_among(names: Sequence[str]) -> Identity:
    """Picks the one SPIFFE identity among a certificate's alternative names.

    Raises:
        IdentityError: there is none, there are several, or it is not of our form.
    """
    found = [name for name in names if name.startswith(_SCHEME)]
    if len(found) != 1:
        count = "no" if not found else "more than one"
        raise IdentityError(
            f"the certificate carries {count} identity: expected exactly one URI "
            "spiffe://<cluster>/<role>/<name> among its alternative names"
        )
    return Identity.parse(found[0])


def read_certificates(path: Path) -> list[x509.Certificate]:
    """Reads one or more certificates of a PEM file, the holder's own first.

    Raises:
        PkiError: the file is missing, unreadable or holds no certificate.
    """
    try:
        return x509.load_pem_x509_certificates(_read(path))
    except ValueError as error:
        raise PkiError(f"{path} holds no certificate in PEM form") from error


def read_key(path: Path) -> PrivateKeyTypes:
    """Reads a private key without a passphrase.

    Raises:
        PkiError: the file is missing, unreadable, encrypted, or holds no key.
    """
    try:
        return serialization.load_pem_private_key(_read(path), password=None)
    except TypeError as error:
        raise PkiError(f"{path} is encrypted: store the key without a passphrase") from error
    except ValueError as error:
        raise PkiError(f"{path} holds no private key in PEM form") from error


def write_atomically(path: Path, content: bytes, mode: int, *, overwrite: bool = False) -> None:
    """Writes a file durably so that it appears whole or not at all.

    Raises:
        PkiError: the file exists and `overwrite` is false, or it cannot be written.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            draft.replace(path)
        else:
            # Unlike a rename, a link fails when the name is taken.
            path.hardlink_to(draft)
        _sync_directory(path.parent)
    except FileExistsError as error:
        raise _already_exists(path) from error
    except OSError as error:
        raise PkiError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise PkiError(f"{path} does not exist") from error
    except OSError as error:
        raise PkiError(f"cannot read {path}: {error.strerror or error}") from error


def _refuse_existing(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise _already_exists(path)


def _already_exists(path: Path) -> PkiError:
    return PkiError(f"{path} exists already and is kept: remove it or use another directory")


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise PkiError(f"cannot make {directory}: {error.strerror or error}") from error


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass  # not an address, so it has to be a DNS name
    if not re.fullmatch(r"[A-Za-z0-9_*]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?", host):
        raise PkiError(f"host {host!r} is neither an IP address nor a DNS name without port")
    return x509.DNSName(host)


def _purposes(role: Role) -> list[x509.ObjectIdentifier]:
    # Peers and LAS nodes dial each other; everybody else only dials.
    dials = [ExtendedKeyUsageOID.CLIENT_AUTH]
    serves = [ExtendedKeyUsageOID.SERVER_AUTH]
    return dials + serves if role in {Role.PEER, Role.LAS} else dials


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _bundle_pem(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(map(_certificate_pem, certificates))


def _certificate_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
