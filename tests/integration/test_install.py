"""docs/operations.md, followed by hand: certificates, settings, `las init`, two daemons, a log."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from peerd.testing.ports import free_port
from tests.integration.load import until

pytestmark = pytest.mark.timeout(300)

LAS = """
cluster = "shop"
name = "las-1"
members = {{ las-1 = "127.0.0.1:{las}" }}
data_dir = "data"
tls.ca = "ca.pem"
tls.certificate = "las-1.cert.pem"
tls.key = "las-1.key.pem"
listen = "127.0.0.1:{las}"
http_listen = "127.0.0.1:0"
"""
PEER = """
cluster = "shop"
name = "peer-1"
las = ["127.0.0.1:{las}"]
data_dir = "data"
tls.ca = "ca.pem"
tls.certificate = "peer-1.cert.pem"
tls.key = "peer-1.key.pem"
listen = "127.0.0.1:{peer}"
http_listen = "127.0.0.1:0"
"""
PEERCTL = """
cluster = "shop"
peers = ["127.0.0.1:{peer}"]
las = ["127.0.0.1:{las}"]

[tls]
ca = "ca.pem"
certificate = "alice.cert.pem"
key = "alice.key.pem"
"""


def ports_of_both() -> dict[str, int]:
    return {"las": free_port(), "peer": free_port()}


def command(name: str) -> Path:
    return Path(sys.executable).with_name(name)


def run(*words: object, directory: Path, status: int = 0) -> str:
    """What a command prints. In another directory, as installed."""
    environment = {key: value for key, value in os.environ.items() if key != "PEERCTL_CONFIG"}
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        cwd=directory,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


@contextmanager
def serving(program: str, config: Path):
    """A daemon, from the moment it serves until it has stopped as asked."""
    ready, log = config.parent / "ready.json", config.parent / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [command(program), "serve", "-c", config, "--ready-file", ready], stderr=out
        )
        try:
            until(lambda: ready.exists() or process.poll() is not None, f"{program} serves")
            assert process.poll() is None, log.read_text()
            yield
        finally:
            process.terminate()
            assert process.wait(60) == 0, log.read_text()


def test_a_cluster_set_up_by_hand_works(tmp_path):
    ports, peerctl = ports_of_both(), command("peerctl")
    assert "authority of shop" in run(peerctl, "pki", "init", "shop", directory=tmp_path)
    issue = (peerctl, "pki", "issue")
    run(*issue, "las", "las-1", "--host", "127.0.0.1", "--to", "las", directory=tmp_path)
    run(*issue, "peer", "peer-1", "--host", "127.0.0.1", "--to", "peer", directory=tmp_path)
    run(*issue, "admin", "alice", "--to", "alice", directory=tmp_path)
    files = {"las/las.toml": LAS, "peer/peerd.toml": PEER, "alice/peerctl.toml": PEERCTL}
    for name, text in files.items():
        (tmp_path / name).write_text(text.format(**ports))
    las, peer = tmp_path / "las" / "las.toml", tmp_path / "peer" / "peerd.toml"

    refused = run(command("las"), "serve", "-c", las, directory=tmp_path, status=2)
    assert "las init" in refused
    cluster_id = run(command("las"), "init", "-c", las, directory=tmp_path).strip()
    assert len(cluster_id) == 36
    assert "fit" in run(command("las"), "check", "-c", las, directory=tmp_path)
    assert "fit" in run(command("peerd"), "check", "-c", peer, directory=tmp_path)
    home = tmp_path / "alice"
    with serving("las", las), serving("peerd", peer):
        until(lambda: "1 of 1 peers up" in run(peerctl, "status", directory=home), "registered")
        assert "created orders" in run(
            peerctl, "log", "create", "orders", "--copies", "1", directory=home
        )
        receipt = json.loads(
            run(peerctl, "append", "orders", "hello", "--key", "k", "-o", "json", directory=home)
        )
        assert receipt["durable_on"] == ["peer-1"]
        assert run(peerctl, "read", "orders", directory=home).endswith("k  hello\n")
    assert "sound" in run(command("peerd"), "verify", tmp_path / "peer" / "data", directory=home)
