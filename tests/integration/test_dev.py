"""`peerd dev` as a developer runs it: one command, a described cluster, Ctrl-C, and on again."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import peerd
from tests.integration.load import until

pytestmark = pytest.mark.timeout(300)
SHAPE = ("--peers", "1", "--las", "1", "--zones", "a")


def free_base() -> int:
    """A port with the ones that a 1 + 1 cluster takes from it on being free, too."""
    for base in range(20_000, 60_000, 1_000):
        if all(_is_free(base + offset) for offset in (0, 1, 100, 101)):
            return base
    raise AssertionError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def is_known(directory: Path, node: str) -> bool:
    """Whether the LAS judges the node from its samples, not from the base rate."""
    command = [sys.executable, "-m", "peerd.cli.peerctl", "forecast", "-o", "json"]
    answer = subprocess.run(
        [*command, "-c", str(directory / "peerctl.toml")], capture_output=True, check=True
    )
    return any(each["node"] == node and each["known"] for each in json.loads(answer.stdout))


class Dev:
    """`peerd dev` in a directory; its stdout and stderr in one file."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.directory = directory
        self.out = directory.parent / f"out-{time.monotonic_ns()}"
        command = [sys.executable, "-m", "peerd.cli.peerd", "dev", "--dir", str(directory)]
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                [*command, *arguments], stdout=out, stderr=subprocess.STDOUT, cwd=directory.parent
            )

    def started(self) -> "Dev":
        until(lambda: "Ctrl-C stops" in self.said or self.process.poll() is not None, "it starts")
        assert self.process.poll() is None, self.said
        return self

    @property
    def said(self) -> str:
        return self.out.read_text("utf-8")

    def ended(self) -> int:
        return self.process.wait(60)

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)
        assert self.ended() == 0, self.said

    def description(self) -> dict:
        return json.loads((self.directory / "cluster.json").read_text("utf-8"))


@pytest.fixture
def start():
    running: list[Dev] = []

    def begin(directory: Path, *arguments: str) -> Dev:
        running.append(Dev(directory, *arguments))
        return running[-1]

    yield begin
    for dev in running:
        if dev.process.poll() is None:
            dev.process.send_signal(signal.SIGTERM)
            dev.ended()


def test_it_starts_describes_itself_stops_and_goes_on(tmp_path, start):
    directory, base = tmp_path / "dev", str(free_base())
    first = start(directory, *SHAPE, "--port-base", base).started()
    described = first.description()
    las, peer = described["processes"]
    assert [las["id"], las["role"], peer["id"], peer["role"]] == ["las-1", "las", "peer-1", "peer"]
    assert peer["address"] == f"127.0.0.1:{base}"
    assert las["address"] == f"127.0.0.1:{int(base) + 100}"
    for process in described["processes"]:
        assert psutil.pid_exists(process["pid"])
        assert process["metrics_address"].startswith("127.0.0.1:")
        assert Path(process["config"]).is_file()
        assert Path(process["data_dir"]).is_dir()
    assert all(Path(path).is_file() for path in described["client_tls"].values())
    # Exactly what it printed as advice.
    with peerd.connect(peer["address"], credentials=directory / "peerctl.toml") as client:
        client.create_log("orders", shards=2, copies=1)
        client.append("orders", b"hello", key=b"k")
    (advised,) = [line.split() for line in first.said.splitlines() if " peerctl " in line]
    command = [sys.executable, "-m", "peerd.cli.peerctl", *advised[1:]]
    assert (
        "1 of 1 peers up"
        in subprocess.run(command, check=True, capture_output=True, text=True).stdout
    )
    until(lambda: is_known(directory, "peer-1"), "the forecast has seen enough of the peer")

    second = start(directory, *SHAPE)
    assert second.ended() == 2
    assert "in use: las-1, peer-1 still running; stop it first" in second.said
    assert all(psutil.pid_exists(process["pid"]) for process in described["processes"])

    first.interrupt()
    assert not any(psutil.pid_exists(process["pid"]) for process in described["processes"])
    assert {process["pid"] for process in first.description()["processes"]} == {None}

    again = start(directory, *SHAPE).started()
    assert [each["address"] for each in again.description()["processes"]] == [
        las["address"],
        peer["address"],
    ]
    with peerd.connect(credentials=directory / "peerctl.toml") as client:
        assert [record.value for record in client.read("orders")] == [b"hello"]
        assert client.append("orders", b"more", key=b"k").offset == 1
    os.kill(again.description()["processes"][1]["pid"], signal.SIGKILL)
    until(lambda: "peer-1 ended, status -9" in again.said, "it tells that a process ended")
    again.interrupt()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--las", "2"), "a group has 1, 3 or 5"),
        (("--peers", "0"), "choose 1 to 32"),
        (("--zones", ""), "zones: name at least one"),
    ],
)
def test_a_shape_that_cannot_be_is_one_line(tmp_path, start, arguments, words):
    dev = start(tmp_path / "dev", *arguments)
    assert dev.ended() == 2
    assert words in dev.said
    assert dev.said.count("\n") == 1
    assert not (tmp_path / "dev").exists()


def test_a_port_in_use_is_one_line_and_starts_nothing(tmp_path, start):
    base = free_base()
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", base))
        taken.listen()
        dev = start(tmp_path / "dev", *SHAPE, "--port-base", str(base))
        assert dev.ended() == 2
    assert f"port {base} for peer-1 is taken" in dev.said
    assert {each["pid"] for each in dev.description()["processes"]} == {None}


def test_another_directory_is_not_taken_over(tmp_path, start):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "thesis.txt").write_text("mine")
    dev = start(tmp_path / "dev", *SHAPE)
    assert dev.ended() == 2
    assert "is not empty and has no cluster.json" in dev.said
    assert (tmp_path / "dev" / "thesis.txt").read_text() == "mine"
