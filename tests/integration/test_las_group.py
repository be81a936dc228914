"""A LAS group as an operator runs it: three processes, mutual TLS, and one of them dies."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import grpc
import pytest

from las.v1 import fleet_pb2, fleet_pb2_grpc, log_admin_pb2, log_admin_pb2_grpc
from peerd.pki import Authority, Role, TlsFiles, create_authority
from peerd.testing.ports import free_port
from peerd.transport.credentials import Credentials
from peerd.transport.options import CHANNEL_OPTIONS
from peerd.transport.status import name_of, refusal_of_error

pytestmark = pytest.mark.timeout(300)

T = TypeVar("T")
NAMES = ("las-1", "las-2", "las-3")
# A process starts within two seconds of its own time; on a machine that others use, much later.
DEADLINE_S = 90.0
HOSTS = ["127.0.0.1", "localhost"]


def until(call: Callable[[], T | None], what: str) -> T:
    """The first result of `call` that is not None; refusals and failures are tried again."""
    deadline = time.monotonic() + DEADLINE_S
    error: Exception | None = None
    while time.monotonic() < deadline:
        try:
            found = call()
        except grpc.RpcError as failed:
            error = failed
        else:
            if found is not None:
                return found
        time.sleep(0.05)
    raise AssertionError(f"not within {DEADLINE_S} s: {what}; last failure: {error}")


class Group:
    """Members with their files and processes."""

    def __init__(self, directory: Path, names: tuple[str, ...] = NAMES) -> None:
        self.directory = directory
        self.names = names
        self.authority: Authority = create_authority(directory / "ca", "shop")
        self.members = {name: f"127.0.0.1:{free_port()}" for name in names}
        self.admin = self.authority.issue(Role.ADMIN, "ann", HOSTS, directory / "ann", 7)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._channels: dict[str, grpc.Channel] = {}
        for name in names:
            files = self.authority.issue(Role.LAS, name, HOSTS, directory / name, 7)
            self.write_config(name, files)

    def write_config(self, name: str, files: TlsFiles) -> None:
        settings = {
            "cluster": "shop",
            "name": name,
            "listen": self.members[name],
            "http_listen": "127.0.0.1:0",
            "data_dir": str(self.directory / name / "data"),
            "tls.ca": str(files.ca),
            "tls.certificate": str(files.certificate),
            "tls.key": str(files.key),
            **{f"members.{each}": at for each, at in self.members.items()},
        }
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in settings.items()]
        self.config(name).write_text("".join(lines))

    def config(self, name: str) -> Path:
        return self.directory / f"{name}.toml"

    def las(self, command: str, name: str, *more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "las.daemon.cli", command, "-c", self.config(name), *more],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def init(self) -> str:
        """Make all directories as the README says: the others take the id of the first."""
        first, *others = self.names
        cluster_id = self.las("init", first).stdout.strip()
        for name in others:
            done = self.las("init", name, "--cluster-id", cluster_id)
            assert done.returncode == 0, done.stderr
        return cluster_id

    def serve(self, *names: str) -> None:
        """Start members, all of them if none is named, and wait until they serve."""
        names = names or self.names
        for name in names:
            self.start(name)
        for name in names:
            facts = until(lambda name=name: self.ready(name), f"{name} serves")
            assert facts["pid"] == self.running[name].pid
            assert facts["address"] == self.members[name]

    def start(self, name: str) -> None:
        ready = self.directory / f"{name}.ready"
        ready.unlink(missing_ok=True)
        with (self.directory / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [
                    *(sys.executable, "-m", "las.daemon.cli", "serve"),
                    *("-c", self.config(name), "--ready-file", ready),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def ready(self, name: str) -> dict[str, object] | None:
        path = self.directory / f"{name}.ready"
        assert self.running[name].poll() is None, (self.directory / f"{name}.log").read_text()
        return json.loads(path.read_text()) if path.exists() else None

    def end(self, name: str, number: signal.Signals) -> int:
        process = self.running.pop(name)
        process.send_signal(number)
        return process.wait(DEADLINE_S)

    def channel(self, name: str) -> grpc.Channel:
        if name not in self._channels:
            self._channels[name] = grpc.secure_channel(
                self.members[name], Credentials(self.admin).channel()[1], options=CHANNEL_OPTIONS
            )
        return self._channels[name]

    def leader(self, among: tuple[str, ...] = ()) -> str:
        """The name that a running member gives as the leader's, once that one answers."""

        def find() -> str | None:
            for name in among or self.names:
                stub = fleet_pb2_grpc.FleetServiceStub(self.channel(name))
                try:
                    status = stub.GetStatus(fleet_pb2.GetStatusRequest(), timeout=2)
                except grpc.RpcError:
                    continue
                if status.las_leader == name:
                    return name
            return None

        return until(find, "a leader")

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()
        for name in list(self.running):
            self.end(name, signal.SIGKILL)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    made = Group(tmp_path)
    try:
        yield made
    finally:
        made.close()


def register(group: Group, leader: str, number: int) -> None:
    """A peer's registration, by a client with a peer's certificate."""
    directory = group.directory / f"peer-{number}"
    files = group.authority.issue(Role.PEER, f"peer-{number}", HOSTS, directory, 7, overwrite=True)
    with grpc.secure_channel(
        group.members[leader], Credentials(files).channel()[1], options=CHANNEL_OPTIONS
    ) as channel:
        answer = fleet_pb2_grpc.FleetServiceStub(channel).Register(
            fleet_pb2.RegisterRequest(
                store_id=f"{number:032x}",
                boot_id=f"{number:032x}",
                address=f"127.0.0.1:{free_port()}",
                labels={"host": f"host-{number}"},
                may_lead=True,
            ),
            timeout=30,
        )
    assert f"peer-{number}" in {node.name for node in answer.map.nodes}


def create_log(group: Group, leader: str, name: str) -> log_admin_pb2.CreateLogResponse:
    return log_admin_pb2_grpc.LogAdminServiceStub(group.channel(leader)).CreateLog(
        log_admin_pb2.CreateLogRequest(name=name, shards=2, copies=1), timeout=5
    )


def create_on_a_node(group: Group, number: int, log: str, among: tuple[str, ...] = ()) -> None:
    """A log on a node of which nothing is heard: it counts as down after a lease, and the leader
    may change, so it registers anew until the log is there.
    """

    def created() -> bool:
        leader = group.leader(among)
        if log not in logs(group, leader):
            register(group, leader, number)
            create_log(group, leader, log)
        return True

    until(created, f"{log} is created")


def logs(group: Group, leader: str) -> list[str]:
    stub = log_admin_pb2_grpc.LogAdminServiceStub(group.channel(leader))
    return [log.name for log in stub.ListLogs(log_admin_pb2.ListLogsRequest(), timeout=30).logs]


def test_a_killed_leader_is_replaced_and_nothing_committed_is_lost(group):
    cluster_id = group.init()
    group.serve()
    create_on_a_node(group, 1, "before")
    first = group.leader()
    group.end(first, signal.SIGKILL)
    survivors = tuple(name for name in NAMES if name != first)
    create_on_a_node(group, 2, "after", among=survivors)
    second = group.leader(survivors)
    assert logs(group, second) == ["after", "before"]
    status = fleet_pb2_grpc.FleetServiceStub(group.channel(second)).GetStatus(
        fleet_pb2.GetStatusRequest(), timeout=5
    )
    assert status.cluster_id == cluster_id
    assert any(first in line and "cannot be reached" in line for line in status.warnings)
    group.serve(first)
    for name in survivors:
        assert group.end(name, signal.SIGTERM) == 0
        group.serve(name)
    assert logs(group, group.leader()) == ["after", "before"]


def rejoins(group: Group, leader: str) -> list[str]:
    """Who came back by `las rejoin`, as the audit has it."""
    stub = fleet_pb2_grpc.FleetServiceStub(group.channel(leader))
    records = stub.ListAudit(fleet_pb2.ListAuditRequest(), timeout=30).records
    return [record.who for record in records if record.what == "las rejoin"]


def test_a_wiped_directory_is_refused_and_comes_back_by_rejoining(group):
    cluster_id = group.init()
    group.serve()
    create_on_a_node(group, 1, "orders")
    leader = group.leader()
    victim = next(name for name in NAMES if name != leader)
    group.end(victim, signal.SIGKILL)
    data = group.directory / victim / "data"
    data.rename(data.with_name("lost"))
    refused = group.las("serve", victim)
    assert refused.returncode == 2
    assert "las rejoin" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    again = group.las("rejoin", victim, "--cluster-id", cluster_id)
    assert again.returncode == 0, again.stderr
    group.serve(victim)
    third = next(name for name in NAMES if name not in (leader, victim))

    def votes_again() -> bool | None:
        manifest = json.loads((data / "manifest.json").read_text())
        return True if not manifest["rejoining"] else None

    until(votes_again, f"{victim} votes again")
    until(lambda: rejoins(group, leader) == [victim] or None, "it is in the audit, once")
    group.end(third, signal.SIGKILL)
    assert logs(group, group.leader((leader, victim))) == ["orders"]


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Group]:
    """A group of one, served."""
    made = Group(tmp_path, NAMES[:1])
    try:
        made.init()
        made.serve()
        yield made
    finally:
        made.close()


def test_settings_are_taken_on_sighup_as_a_whole_or_not_at_all(alone):
    (name,) = alone.names
    before = alone.config(name).read_text()

    def reloaded(text: str) -> dict[str, object]:
        """What the log says of it; the process goes on."""
        log = alone.directory / f"{name}.log"
        known = len(log.read_text())
        alone.config(name).write_text(text)
        alone.running[name].send_signal(signal.SIGHUP)

        def told() -> dict[str, object] | None:
            lines = (
                json.loads(line)
                for line in log.read_text()[known:].splitlines(keepends=True)
                if line.endswith("\n")
            )
            return next((line for line in lines if "reloaded" in line["event"]), None)

        return until(told, "the log tells of it")

    taken = reloaded(before + "policy.interval_ms = 1500\n")
    assert taken["event"] == "reloaded", taken
    assert taken["keys"] == ["policy.interval_ms"]
    fixed = reloaded(before + "web_page = false\n")
    assert (fixed["event"], fixed["keys"]) == ("not reloaded", ["web_page"])
    wrong = reloaded(before + "policy.interval_ms = 'soon'\n")
    assert wrong["event"] == "not reloaded"
    assert "policy.interval_ms" in wrong["why"]
    # What was refused changed nothing: this sets back what the first one set.
    assert reloaded(before)["keys"] == ["policy.interval_ms"]
    assert alone.leader() == name


def test_a_stranger_gets_nothing_and_others_only_what_is_theirs(alone):
    leader = alone.leader()
    stranger = create_authority(alone.directory / "other", "shop")
    files = stranger.issue(Role.ADMIN, "eve", HOSTS, alone.directory / "eve", 7)
    mixed = TlsFiles(ca=alone.admin.ca, certificate=files.certificate, key=files.key)
    with grpc.secure_channel(
        alone.members[leader], Credentials(mixed).channel()[1], options=CHANNEL_OPTIONS
    ) as channel:
        stub = log_admin_pb2_grpc.LogAdminServiceStub(channel)
        with pytest.raises(grpc.RpcError) as failure:
            stub.ListLogs(log_admin_pb2.ListLogsRequest(), timeout=30)
        assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    reader = alone.authority.issue(Role.READER, "rob", HOSTS, alone.directory / "rob", 7)
    with grpc.secure_channel(
        alone.members[leader], Credentials(reader).channel()[1], options=CHANNEL_OPTIONS
    ) as channel:
        stub = log_admin_pb2_grpc.LogAdminServiceStub(channel)
        assert list(stub.ListLogs(log_admin_pb2.ListLogsRequest(), timeout=30).logs) == []
        with pytest.raises(grpc.RpcError) as failure:
            stub.CreateLog(log_admin_pb2.CreateLogRequest(name="a", shards=1), timeout=30)
        assert name_of(refusal_of_error(failure.value)) == "ROLE_NOT_ALLOWED"


def refused_line(group: Group) -> str:
    """The one line that a second `las serve` ends with."""
    refused = group.las("serve", "las-1")
    assert refused.returncode == 2, refused.stderr
    (line,) = refused.stderr.strip().splitlines()
    return line.removeprefix("las: ")


def test_what_cannot_be_served_is_one_line(alone):
    assert refused_line(alone).startswith(f"listen: {alone.members['las-1']} is in use")
    text = alone.config("las-1").read_text()
    listen = f'listen = "{alone.members["las-1"]}"'
    alone.config("las-1").write_text(text.replace(listen, 'listen = "127.0.0.1:0"'))
    assert "in use by another process" in refused_line(alone)
    # A peer's certificate does not make a LAS node.
    wrong = alone.authority.issue(Role.PEER, "las-1", HOSTS, alone.directory / "wrong", 7)
    alone.write_config("las-1", wrong)
    assert "'las' is needed" in refused_line(alone)
    assert alone.end("las-1", signal.SIGTERM) == 0
