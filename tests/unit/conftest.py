"""Certificates that several tests share; making keys is slow enough to do it once a session."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from peerd.pki import Authority, Role, TlsFiles, create_authority

HOSTS = ("127.0.0.1", "localhost")


@dataclass(frozen=True)
class Certificates:
    """One authority, one certificate per role, and one certificate of another authority."""

    authority: Authority
    of: dict[Role, TlsFiles]
    stranger: TlsFiles


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    directory: Path = tmp_path_factory.mktemp("tls")
    authority = create_authority(directory / "ca", "shop")
    stranger = create_authority(directory / "other", "shop")
    return Certificates(
        authority=authority,
        of={
            role: authority.issue(role, f"{role.value}-1", HOSTS, directory / role.value, 7)
            for role in Role
        },
        stranger=stranger.issue(Role.PEER, "peer-1", HOSTS, directory / "stranger", 7),
    )
