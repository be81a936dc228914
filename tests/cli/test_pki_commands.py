"""`peerctl pki`: an authority once, certificates that the daemons accept, refusals in one line."""

import json

from typer.testing import CliRunner

from peerd.cli.peerctl import app


def peerctl(*arguments: str):
    return CliRunner().invoke(app, ["pki", *arguments])


def test_an_authority_is_made_once():
    first = peerctl("init", "shop")
    assert first.stdout == "authority of shop in pki; next: peerctl pki issue peer peer-1 …\n"
    again = peerctl("init", "shop")
    assert again.exit_code == 1
    assert len(again.stderr.strip().splitlines()) == 1


def test_what_is_issued_can_be_pasted_into_a_configuration(tmp_path):
    peerctl("init", "shop")
    issued = peerctl("issue", "peer", "peer-1", "--host", "10.0.0.1", "--to", "one")
    assert issued.stdout.splitlines() == [
        "[tls]",
        f'ca = "{tmp_path}/one/ca.pem"',
        f'certificate = "{tmp_path}/one/peer-1.cert.pem"',
        f'key = "{tmp_path}/one/peer-1.key.pem"',
    ]
    admin = json.loads(peerctl("issue", "admin", "alice", "-o", "json").stdout)
    assert admin.keys() == {"ca", "certificate", "key"}
    assert (tmp_path / "pki" / "alice.key.pem").stat().st_mode & 0o077 == 0


def test_mistakes_are_one_line():
    for arguments, status in (
        (("issue", "peer", "peer-1"), 1),
        (("init", "No Name"), 1),
    ):
        done = peerctl(*arguments)
        assert done.exit_code == status
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith("peerctl: ")
    assert peerctl("issue", "king", "arthur").exit_code == 2


def test_certificates_are_shown_and_renewed():
    peerctl("init", "shop")
    peerctl("issue", "peer", "peer-1", "--host", "10.0.0.1", "--days", "5")
    assert peerctl("issue", "peer", "peer-1", "--host", "10.0.0.1").exit_code == 1
    shown = json.loads(peerctl("show", "-o", "json").stdout)["certificates"]
    (peer,) = (row for row in shown if row["identity"] == "spiffe://shop/peer/peer-1")
    assert (peer["hosts"], peer["days_left"], peer["valid"]) == (["10.0.0.1"], 4, True)
    renewed = peerctl("issue", "peer", "peer-1", "--host", "10.0.0.1", "--days", "9", "--renew")
    assert renewed.exit_code == 0
    shown = json.loads(peerctl("show", "pki/peer-1.cert.pem", "-o", "json").stdout)
    assert [row["days_left"] for row in shown["certificates"]] == [8]
    assert "peer-1.cert.pem" in peerctl("show").stdout


def test_an_authority_is_replaced_step_by_step():
    peerctl("init", "shop")
    assert peerctl("rotate", "switch").exit_code == 1
    begun = peerctl("rotate", "begin")
    assert "trusts 2" in begun.stdout
    assert "next: bring ca.pem" in begun.stdout
    assert peerctl("rotate", "switch").exit_code == 0
    assert json.loads(peerctl("rotate", "finish", "-o", "json").stdout)["trusted"] == 1


def test_nothing_to_show_is_said():
    for arguments in (("show",), ("show", "no-such.pem")):
        done = peerctl(*arguments)
        assert done.exit_code == 1
        assert len(done.stderr.strip().splitlines()) == 1
