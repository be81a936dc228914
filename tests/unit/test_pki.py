"""The authority, what it issues, and what it refuses to overwrite."""

import os
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from peerd.pki import (
    AUTHORITY_DAYS,
    CERTIFICATE_DAYS_MAX,
    Identity,
    IdentityError,
    PkiError,
    Role,
    begin_rotation,
    create_authority,
    finish_rotation,
    load_authority,
    read_certificates,
    switch_rotation,
    uris_of,
    write_atomically,
)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_an_identity_survives_its_written_form():
    identity = Identity(cluster="shop-1", role=Role.PEER, name="peer-3")
    assert identity.uri == "spiffe://shop-1/peer/peer-3"
    assert Identity.parse(identity.uri) == identity


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "peer-3",
        "https://shop/peer/peer-3",
        "spiffe://shop/peer",
        "spiffe://shop/peer/a/b",
        "spiffe://shop/king/peer-3",
        "spiffe://shop/peer/",
        "spiffe:///peer/peer-3",
        "spiffe://Shop/peer/peer-3",
        "spiffe://shop/peer/peer 3",
        "spiffe://shop/peer/..",
        "spiffe://shop/peer/peer-3\n",
    ],
)
def test_what_is_no_identity_is_refused(uri):
    with pytest.raises(IdentityError):
        Identity.parse(uri)


def test_an_issued_certificate_says_who_and_where(tmp_path):
    authority = create_authority(tmp_path / "ca", "shop")
    files = authority.issue(
        Role.PEER, "peer-1", ["127.0.0.1", "::1", "localhost"], tmp_path / "peer-1", 30
    )
    certificate = read_certificates(files.certificate)[0]
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert uris_of(certificate) == ["spiffe://shop/peer/peer-1"]
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    certificate.verify_directly_issued_by(read_certificates(files.ca)[0])
    assert mode_of(files.key) == 0o600
    assert mode_of(files.key.parent) == 0o700
    assert sorted(path.name for path in files.key.parent.iterdir()) == [
        "ca.pem",
        "peer-1.cert.pem",
        "peer-1.key.pem",
    ]


@pytest.mark.parametrize("role", list(Role))
def test_only_peers_and_las_nodes_may_serve(tmp_path, role):
    authority = create_authority(tmp_path / "ca", "shop")
    files = authority.issue(role, "one", [], tmp_path, 1)
    purposes = (
        read_certificates(files.certificate)[0]
        .extensions.get_extension_for_class(x509.ExtendedKeyUsage)
        .value
    )
    assert ExtendedKeyUsageOID.CLIENT_AUTH in purposes
    assert (ExtendedKeyUsageOID.SERVER_AUTH in purposes) == (role in {Role.PEER, Role.LAS})


def test_a_key_is_never_readable_by_others_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        authority = create_authority(tmp_path / "ca", "shop")
        files = authority.issue(Role.ADMIN, "me", [], tmp_path / "me", 1)
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "ca" / "ca-key.pem") == 0o600
    assert mode_of(files.key) == 0o600


def test_an_authority_is_read_back_and_goes_on_issuing(tmp_path):
    create_authority(tmp_path, "shop")
    authority = load_authority(tmp_path)
    assert authority.cluster == "shop"
    first = authority.issue(Role.LAS, "las-1", ["localhost"], tmp_path / "both", 7)
    second = authority.issue(Role.LAS, "las-2", ["localhost"], tmp_path / "both", 7)
    assert first.ca == second.ca


def test_nothing_is_replaced_without_being_told(tmp_path):
    authority = create_authority(tmp_path, "shop")
    authority_key = (tmp_path / "ca-key.pem").read_bytes()
    with pytest.raises(PkiError, match=r"ca-key\.pem exists already"):
        create_authority(tmp_path, "shop")
    assert (tmp_path / "ca-key.pem").read_bytes() == authority_key

    files = authority.issue(Role.PEER, "peer-1", [], tmp_path, 7)
    key = files.key.read_bytes()
    with pytest.raises(PkiError, match=r"peer-1\.key\.pem exists already"):
        authority.issue(Role.PEER, "peer-1", [], tmp_path, 7)
    assert files.key.read_bytes() == key
    authority.issue(Role.PEER, "peer-1", [], tmp_path, 7, overwrite=True)
    assert files.key.read_bytes() != key


def test_a_directory_of_another_authority_is_not_mixed(tmp_path):
    create_authority(tmp_path / "a", "shop").issue(Role.PEER, "peer-1", [], tmp_path / "tls", 7)
    other = create_authority(tmp_path / "b", "shop")
    with pytest.raises(PkiError, match="another authority"):
        other.issue(Role.PEER, "peer-2", [], tmp_path / "tls", 7)
    assert not (tmp_path / "tls" / "peer-2.key.pem").exists()


@pytest.mark.parametrize("days", [0, -1, CERTIFICATE_DAYS_MAX + 1])
def test_days_out_of_range_are_refused(tmp_path, days):
    authority = create_authority(tmp_path, "shop")
    with pytest.raises(PkiError, match="out of range"):
        authority.issue(Role.PEER, "peer-1", [], tmp_path, days)


def test_a_certificate_never_outlives_its_authority(tmp_path, monkeypatch):
    monkeypatch.setattr("peerd.pki.AUTHORITY_DAYS", 30)
    authority = create_authority(tmp_path, "shop")
    with pytest.raises(PkiError, match="outlive its authority"):
        authority.issue(Role.PEER, "peer-1", [], tmp_path, 31)
    assert AUTHORITY_DAYS > CERTIFICATE_DAYS_MAX


@pytest.mark.parametrize("host", ["", "localhost:7400", "http://x", "a b", "-x", "x-"])
def test_what_is_no_host_is_refused(tmp_path, host):
    authority = create_authority(tmp_path, "shop")
    with pytest.raises(PkiError, match="neither an IP address nor a DNS name"):
        authority.issue(Role.PEER, "peer-1", [host], tmp_path, 7)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 64, "ca\n"])
def test_a_name_cannot_leave_its_directory(tmp_path, name):
    authority = create_authority(tmp_path, "shop")
    with pytest.raises(IdentityError):
        authority.issue(Role.PEER, name, [], tmp_path / "out", 7)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["ca", "ca-key", "peer-1.key", "peer-1.cert"])
def test_a_name_cannot_take_the_place_of_another_file(tmp_path, name):
    authority = create_authority(tmp_path, "shop")
    authority.issue(Role.PEER, "peer-1", [], tmp_path, 7)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    authority.issue(Role.PEER, name, [], tmp_path, 7, overwrite=True)
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize("cluster", ["", "Shop", "a b", "-x", "x" * 64, "x/y"])
def test_cluster_names_are_checked(tmp_path, cluster):
    with pytest.raises(IdentityError, match="cluster name"):
        create_authority(tmp_path, cluster)


def test_a_missing_or_foreign_authority_is_named(tmp_path):
    with pytest.raises(PkiError, match=r"ca\.pem does not exist"):
        load_authority(tmp_path)
    create_authority(tmp_path / "a", "shop")
    create_authority(tmp_path / "b", "shop")
    (tmp_path / "a" / "ca-key.pem").write_bytes((tmp_path / "b" / "ca-key.pem").read_bytes())
    with pytest.raises(PkiError, match="is not the key of"):
        load_authority(tmp_path / "a")
    (tmp_path / "b" / "ca.pem").write_text("not a certificate")
    with pytest.raises(PkiError, match="holds no certificate"):
        load_authority(tmp_path / "b")


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    target = tmp_path / "here"
    target.mkdir()
    with pytest.raises(PkiError, match="cannot write"):
        write_atomically(target, b"x", 0o600, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_two_writers_of_one_file_cannot_both_win(tmp_path):
    write_atomically(tmp_path / "key", b"first", 0o600)
    with pytest.raises(PkiError, match="exists already"):
        write_atomically(tmp_path / "key", b"second", 0o600)
    assert (tmp_path / "key").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_an_authority_is_replaced_in_three_steps(tmp_path):
    old = create_authority(tmp_path, "shop")
    begun = begin_rotation(tmp_path)
    assert begun.certificate == old.certificate
    assert len(begun.trusted) == 2
    assert len(read_certificates(begun.issue(Role.PEER, "a", [], tmp_path / "a", 1).ca)) == 2
    switched = switch_rotation(tmp_path)
    assert switched.certificate != old.certificate
    assert switched.certificate.subject != old.certificate.subject
    assert set(switched.trusted) == set(begun.trusted)
    finished = finish_rotation(tmp_path)
    assert finished.trusted == (switched.certificate,)
    renewed = finished.issue(Role.PEER, "a", [], tmp_path / "a", 1, overwrite=True)
    assert read_certificates(renewed.ca) == [finished.certificate]
    assert mode_of(tmp_path / "ca-key.pem") == 0o600


def test_a_step_out_of_order_changes_nothing(tmp_path):
    create_authority(tmp_path, "shop")
    for step in (switch_rotation, finish_rotation):
        with pytest.raises(PkiError):
            step(tmp_path)
    begin_rotation(tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(PkiError, match="end that rotation first"):
        begin_rotation(tmp_path)
    with pytest.raises(PkiError, match="switch"):
        finish_rotation(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_a_rotation_that_was_interrupted_goes_on(tmp_path):
    create_authority(tmp_path, "shop")
    before = (tmp_path / "ca.pem").read_bytes()
    begin_rotation(tmp_path)
    key = (tmp_path / "next-ca-key.pem").read_bytes()
    (tmp_path / "ca.pem").write_bytes(before)
    assert len(begin_rotation(tmp_path).trusted) == 2
    assert (tmp_path / "next-ca-key.pem").read_bytes() == key
    switch_rotation(tmp_path)


def test_names_of_any_allowed_length_have_an_authority(tmp_path):
    create_authority(tmp_path, "c" * 63).issue(Role.PEER, "n" * 63, [], tmp_path, 1)
