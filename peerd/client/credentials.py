"""Where a cluster is and how to show who one is: `peerctl.toml`, TLS files, or loopback plaintext.

A `peerctl.toml` looks like this (paths are taken from the file's own directory):

    cluster = "dev"
    peers = ["127.0.0.1:7400", "127.0.0.1:7410"]
    las = ["127.0.0.1:7500"]

    [tls]
    ca = "ca.pem"
    certificate = "client.pem"
    key = "client.key"

Must not: keep a private key; the TLS library reads the files.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from peerd.client.errors import CredentialsError
from peerd.pki import TlsFiles

_KEYS = {"cluster": str, "peers": list, "las": list, "tls": dict}
_TLS_KEYS = ("ca", "certificate", "key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to reach a cluster.

    Attributes:
        addresses: `host:port` of peers or LAS nodes that serve the shard map, in order of trial.
        las: `host:port` of LAS nodes, as far as known.
        tls: Files of this client; None = plaintext, which servers accept on loopback alone.
        cluster: Name of the cluster, if it is known.
    """

    addresses: tuple[str, ...]
    las: tuple[str, ...] = ()
    tls: TlsFiles | None = None
    cluster: str | None = None


def access(
    addresses: str | Sequence[str] | None, credentials: str | Path | TlsFiles | None
) -> Access:
    """Joins what `connect` was given.

    Args:
        addresses: One or more `host:port`; None takes those of the credentials file.
        credentials: Path of a `peerctl.toml`, TLS files, or None for plaintext on loopback.

    Raises:
        CredentialsError: the file cannot be used, or there is no address; one line that says what
            is wrong and where.
    """
    given = (addresses,) if isinstance(addresses, str) else tuple(addresses or ())
    for address in given:
        _check_address(address, "connect")
    if isinstance(credentials, TlsFiles) or credentials is None:
        found = Access(addresses=given, tls=credentials)
    else:
        found = read_peerctl(Path(credentials))
        # What was named comes first; the file's other addresses are there when it does not answer.
        rest = tuple(address for address in found.addresses if address not in given)
        found = replace(found, addresses=given + rest)
    if not found.addresses:
        raise CredentialsError(
            "no address to connect to: give one (host:port), or peers = [...] in peerctl.toml"
        )
    return found


def read_peerctl(path: Path) -> Access:
    """Reads a `peerctl.toml`.

    Raises:
        CredentialsError: it is missing, no TOML, or a key is unknown, missing or of a wrong type.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise CredentialsError(f"{path} does not exist: `peerd dev` writes one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CredentialsError(f"cannot read {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise CredentialsError(f"{path} is no TOML: {error}") from error
    for key, value in content.items():
        if key not in _KEYS:
            raise CredentialsError(f"{path}: unknown key {key!r}; known are {', '.join(_KEYS)}")
        if not isinstance(value, _KEYS[key]):
            raise CredentialsError(f"{path}: {key} must be a {_KEYS[key].__name__}")
    peers = _addresses(content.get("peers", []), path, "peers")
    las = _addresses(content.get("las", []), path, "las")
    return Access(
        addresses=peers + las,
        las=las,
        tls=_tls_files(content["tls"], path) if "tls" in content else None,
        cluster=content.get("cluster"),
    )


def _addresses(values: Sequence[object], path: Path, key: str) -> tuple[str, ...]:
    for value in values:
        if not isinstance(value, str):
            raise CredentialsError(f"{path}: {key} must be a list of host:port")
        _check_address(value, f"{path}: {key}")
    return tuple(str(value) for value in values)


def _check_address(address: str, where: str) -> None:
    host, separator, port = address.rpartition(":")
    if not (host and separator and port.isdigit()):
        raise CredentialsError(f"{where}: {address!r} is no address, expected host:port")


def _tls_files(section: dict[str, object], path: Path) -> TlsFiles:
    files: dict[str, Path] = {}
    for key in _TLS_KEYS:
        value = section.get(key)
        if not isinstance(value, str):
            raise CredentialsError(f"{path}: tls.{key} is missing: name a file")
        files[key] = path.parent / value
    unknown = sorted(section.keys() - set(_TLS_KEYS))
    if unknown:
        raise CredentialsError(f"{path}: unknown key tls.{unknown[0]}; known are {_TLS_KEYS}")
    return TlsFiles(ca=files["ca"], certificate=files["certificate"], key=files["key"])
