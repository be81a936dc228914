"""A whole cluster of real processes on loopback, with throw-away certificates.

`peerd dev`, the demo, the fault lab and the integration tests run on it. Each LAS node and each
peer is the same daemon as in production, started by its command line with a TOML file:

    DIR/cluster.json      every process: id, role, addresses, pid, data_dir, config
    DIR/peerctl.toml      a client with full rights, for `peerctl` and `peerd.connect`
    DIR/pki/              authority, certificates, keys
    DIR/<id>/             config.toml, faults.json, ready.json, data/
    DIR/logs/<id>.log     stderr and stdout of the process

Invariants:
- A process is only ever ended by the handle that started it, never by a pid read from a file.
- A directory whose processes may still live is refused, so that two clusters never share a store.
- `cluster.json` is replaced as a whole: a reader never sees half of one.

Must not: reach into a process in any way that an operator could not.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from las.v1.shard_map_pb2 import NODE_STATE_UP
from peerd.client.blocking import Client, connect
from peerd.client.errors import PeerdError
from peerd.core.chunks import CHUNK_BYTES
from peerd.pki import Authority, Role, TlsFiles, create_authority, load_authority
from peerd.testing.ports import free_ports

LOOPBACK = "127.0.0.1"
# Ports of decisions.md: a peer's gRPC and HTTP, a LAS node's a hundred above, ten between nodes.
PORT_BASE = 7400
LAS_PORT_OFFSET = 100
PORT_STEP = 10
# limit: peers of one cluster on one machine; beyond it the daemons starve each other
PEERS_MAX = 32
LAS_SIZES = (1, 3, 5)
CERTIFICATE_DAYS = 30
# A daemon starts in about 2 s on a quiet core; a loaded test machine takes several times that.
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
_POLL_S = 0.02
_PAPER_TRAIL_BYTES = 2_000


class DevClusterError(Exception):
    """The cluster cannot be started or used like that; one line with advice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a cluster consists of. Peers get a made-up host each, spread over `zones` in turn."""

    peers: int = 5
    las: int = 3
    zones: tuple[str, ...] = ("zone-a", "zone-b", "zone-c")
    workers: int = 0
    """Front workers of each peer."""
    chunk_bytes: int = CHUNK_BYTES
    """Payload of a chunk, the unit of trims."""

    def __post_init__(self) -> None:
        if not 1 <= self.peers <= PEERS_MAX:
            raise DevClusterError(f"{self.peers} peers: choose 1 to {PEERS_MAX}")
        if self.las not in LAS_SIZES:
            raise DevClusterError(f"{self.las} LAS nodes: a group has 1, 3 or 5")
        if not self.zones or not all(self.zones):
            raise DevClusterError("zones: name at least one, as in --zones a,b,c")


class Member:
    """One process of the cluster: what it is, and how to start, end and watch it."""

    def __init__(
        self,
        cluster: Path,
        name: str,
        role: Role,
        ports: tuple[int, int, int],
        *,
        workers: int,
        host: str = LOOPBACK,
    ) -> None:
        grpc_port, http_port, client_port = ports
        self.host = host
        self.id = name
        self.role = role
        self.workers = workers if role is Role.PEER else 0
        self.address = f"{host}:{grpc_port}"
        # Of its front workers, which a LAS node has not.
        self.client_address = f"{host}:{client_port}" if self.workers else None
        self.metrics_address = f"{host}:{http_port}"
        self.directory = cluster / name
        self.config = self.directory / "config.toml"
        self.data_dir = self.directory / "data"
        self.faults_file = self.directory / "faults.json" if role is Role.PEER else None
        self.log = cluster / "logs" / f"{name}.log"
        # The module that is run; a test may name one with a fault of its own.
        self.program = "peerd.cli.peerd" if role is Role.PEER else "las.daemon.cli"
        # A command that ends in becoming the daemon, such as `nsenter`; from the next start on.
        self.prefix: tuple[str, ...] = ()
        # Beside the environment of this process, from the next start on.
        self.environment: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self._ready = self.directory / "ready.json"

    @property
    def pid(self) -> int | None:
        """Process id while it runs under this handle."""
        return self.process.pid if self.process is not None and self.running else None

    @property
    def running(self) -> bool:
        """Whether the process that this handle started last still lives."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start the daemon; `wait_ready` tells when it serves."""
        if self.running:
            raise DevClusterError(f"{self.id} is running already")
        self._ready.unlink(missing_ok=True)
        command = [*self.prefix, sys.executable, "-m", self.program, "serve"]
        command += ["-c", str(self.config)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--ready-file", str(self._ready)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once the daemon serves. Raises `DevClusterError` with the end of its log."""
        deadline = time.monotonic() + timeout_s
        while not self._ready.exists():
            if not self.running:
                raise DevClusterError(f"{self.id} ended before it served: {self._last_words()}")
            if time.monotonic() > deadline:
                raise DevClusterError(
                    f"{self.id} did not serve within {timeout_s:.0f} s: {self._last_words()}"
                )
            time.sleep(_POLL_S)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it lives."""
        if self.process is not None and self.running:
            self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self.wait()

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int | None:
        """Wait for the end of the process; its exit status, None if it never ran.

        Raises:
            subprocess.TimeoutExpired: it still lives.
        """
        return self.process.wait(timeout_s) if self.process is not None else None

    def _last_words(self) -> str:
        try:
            tail = self.log.read_bytes()[-_PAPER_TRAIL_BYTES:].decode("utf-8", "replace")
        except OSError as error:
            return f"and its log cannot be read: {error}"
        lines = [line for line in tail.splitlines() if line.strip()]
        return f"{lines[-1] if lines else 'without a word'} (log: {self.log})"


class DevCluster:
    """A cluster of processes. A context manager: leaving it stops them all."""

    def __init__(
        self,
        directory: Path,
        shape: Shape | None = None,
        *,
        port_base: int | None = PORT_BASE,
        record_samples: bool = False,
        tls: bool = True,
        las_settings: Mapping[str, object] | None = None,
        peer_settings: Mapping[str, object] | None = None,
        hosts: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare the directory; nothing runs yet.

        Args:
            directory: Of this cluster; an earlier stopped cluster of the same shape goes on.
            shape: How many of what.
            port_base: First port; None takes free ones (tests).
            record_samples: Each peer keeps its health samples in DIR/<id>/samples.jsonl, too.
            tls: False: plaintext, to measure what TLS costs.
            las_settings: Further settings of each LAS node, by dotted key.
            peer_settings: Further settings of each peer, by dotted key.
            hosts: IP address that a process listens at, by its id; loopback where none is given.

        Raises:
            DevClusterError: the directory is another cluster's, or its processes still live.
        """
        self.directory = directory.absolute()
        self.shape = shape or Shape()
        self._record_samples = record_samples
        self._tls = tls
        self._las_settings = dict(las_settings or {})
        self._peer_settings = dict(peer_settings or {})
        self._hosts = dict(hosts or {})
        earlier = self._read_earlier()
        self.cluster_id = earlier["cluster_id"] if earlier else str(uuid.uuid4())
        self.las, self.peers = self._members(earlier, port_base)
        if earlier is None:
            self._write_everything()
        else:
            self.client_tls = self._client_files()

    # ------------------------------------------------------------------ running
    @property
    def members(self) -> tuple[Member, ...]:
        """LAS nodes, then peers."""
        return (*self.las, *self.peers)

    @property
    def peerctl_toml(self) -> Path:
        """The client configuration with full rights."""
        return self.directory / "peerctl.toml"

    def member(self, name: str) -> Member:
        """The process called `name`. Raises `KeyError`."""
        return {member.id: member for member in self.members}[name]

    def start(self) -> Self:
        """Start every process and return once all serve and the LAS counts every peer as up."""
        for member in self.members:
            for address in (member.address, member.metrics_address, member.client_address):
                # An address of another network can be bound there alone.
                if address is not None and member.host == LOOPBACK:
                    _check_free(address, member.id)
        try:
            for member in self.members:
                member.start()
            for member in self.members:
                member.wait_ready()
            self.wait_whole()
        except BaseException:
            self.stop()
            raise
        self.write_description()
        return self

    def wait_whole(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once the LAS has a leader that counts every peer as up."""
        deadline = time.monotonic() + timeout_s
        missing = "the LAS does not answer"
        while time.monotonic() < deadline:
            try:
                # A client that finds no peer with a map yet does not come to be: ask anew.
                with connect(credentials=self.peerctl_toml) as client:
                    while time.monotonic() < deadline:
                        absent = self._absent(client)
                        if not absent:
                            return
                        missing = f"not registered: {', '.join(absent)}"
                        time.sleep(_POLL_S)
            except PeerdError as error:
                missing = str(error)
            time.sleep(_POLL_S)
        raise DevClusterError(f"the cluster is not whole after {timeout_s:.0f} s: {missing}")

    def _absent(self, client: Client) -> list[str]:
        """Peers that the LAS does not count as up. Raises `PeerdError`."""
        nodes = client.las.status().nodes
        up = {each.node.name for each in nodes if each.node.state == NODE_STATE_UP}
        return [member.id for member in self.peers if member.id not in up]

    def restart(self, name: str) -> None:
        """Start a process again that has ended, on its own directory, and wait until it serves."""
        member = self.member(name)
        member.start()
        member.wait_ready()
        self.write_description()

    def stop(self) -> None:
        """Stop every process: SIGTERM (after SIGCONT), SIGKILL after the bound, or at once if this
        is broken off, as by Ctrl-C or the time limit of a test.
        """
        try:
            self._stop_in_order()
        finally:
            for member in self.members:
                if member.running:
                    member.kill()
        if (self.directory / "cluster.json").exists():
            self.write_description()

    def _stop_in_order(self) -> None:
        """The LAS goes first: it would take peers that stop for dead ones, and change the map."""
        for group in (self.las, self.peers):
            for member in group:
                member.signal(signal.SIGCONT)
                member.signal(signal.SIGTERM)
            deadline = time.monotonic() + STOP_TIMEOUT_S
            for member in group:
                try:
                    member.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    member.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def write_description(self) -> None:
        """Write `cluster.json` as the cluster is now."""
        client = self.client_tls
        description = {
            "cluster": "dev",
            "cluster_id": self.cluster_id,
            "zones": list(self.shape.zones),
            "workers": self.shape.workers,
            "processes": [_describe(member) for member in self.members],
            "client_tls": {
                "ca": str(client.ca),
                "certificate": str(client.certificate),
                "key": str(client.key),
            },
        }
        _replace(self.directory / "cluster.json", json.dumps(description, indent=2) + "\n")

    # ------------------------------------------------------------------ preparing
    @staticmethod
    def refuse_living(directory: Path) -> None:
        """Raise `DevClusterError` if processes of the cluster in `directory` still live."""
        path = directory / "cluster.json"
        if not path.exists():
            return
        try:
            processes = json.loads(path.read_text("utf-8"))["processes"]
            living = [p["id"] for p in processes if _lives(p["pid"], p["config"])]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DevClusterError(f"{path} cannot be read ({error}): remove {directory}") from None
        if living:
            raise DevClusterError(
                f"{directory} is in use: {', '.join(living)} still running; stop it first, "
                "or name another directory"
            )

    def _read_earlier(self) -> dict[str, object] | None:
        path = self.directory / "cluster.json"
        if not path.exists():
            if self.directory.exists() and any(self.directory.iterdir()):
                raise DevClusterError(
                    f"{self.directory} is not empty and has no cluster.json: name another directory"
                )
            return None
        self.refuse_living(self.directory)
        try:
            earlier = json.loads(path.read_text("utf-8"))
            processes = earlier["processes"]
            count = {role: sum(p["role"] == role for p in processes) for role in ("las", "peer")}
            zones = tuple(earlier["zones"])
            workers = earlier.get("workers", 0)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DevClusterError(
                f"{path} cannot be read ({error}): remove {self.directory}"
            ) from None
        wanted = (self.shape.las, self.shape.peers, self.shape.zones, self.shape.workers)
        if (count["las"], count["peer"], zones, workers) != wanted:
            raise DevClusterError(
                f"{self.directory} holds a cluster of {count['las']} LAS nodes and "
                f"{count['peer']} peers in zones {','.join(zones)}, {workers} workers each: start "
                "it like that, "
                "name another directory, or remove this one"
            )
        return dict(earlier)

    def _members(
        self, earlier: dict[str, object] | None, port_base: int | None
    ) -> tuple[tuple[Member, ...], tuple[Member, ...]]:
        names = [(f"las-{i + 1}", Role.LAS) for i in range(self.shape.las)]
        names += [(f"peer-{i + 1}", Role.PEER) for i in range(self.shape.peers)]
        if earlier is not None:
            processes = earlier["processes"]
            assert isinstance(processes, list)
            ports = [
                (_port(p["address"]), _port(p["metrics_address"]), _port(p.get("client_address")))
                for p in processes
            ]
        elif port_base is None:
            ports = _free_ports(len(names))
        else:
            offset = max(LAS_PORT_OFFSET, PORT_STEP * self.shape.peers)
            starts = [port_base + offset + PORT_STEP * i for i in range(self.shape.las)]
            starts += [port_base + PORT_STEP * i for i in range(self.shape.peers)]
            ports = [(start, start + 1, start + 2) for start in starts]
        members = tuple(
            Member(
                self.directory,
                name,
                role,
                each,
                workers=self.shape.workers,
                host=self._hosts.get(name, LOOPBACK),
            )
            for (name, role), each in zip(names, ports, strict=True)
        )
        return members[: self.shape.las], members[self.shape.las :]

    def _write_everything(self) -> None:
        for member in self.members:
            member.directory.mkdir(parents=True)
        (self.directory / "logs").mkdir()
        authority = create_authority(self.directory / "pki", "dev")
        for member in self.members:
            self._write_config(authority, member)
        self.client_tls = self._client_files(authority)
        self._write_peerctl()
        self._init_las()
        self.write_description()

    def _client_files(self, authority: Authority | None = None) -> TlsFiles:
        pki = self.directory / "pki"
        if authority is not None:
            return authority.issue(Role.ADMIN, "dev-admin", [], pki, CERTIFICATE_DAYS)
        load_authority(pki)
        return TlsFiles(
            ca=pki / "ca.pem",
            certificate=pki / "dev-admin.cert.pem",
            key=pki / "dev-admin.key.pem",
        )

    def _write_config(self, authority: Authority, member: Member) -> None:
        pki = self.directory / "pki"
        names = list(dict.fromkeys([member.host, LOOPBACK, "localhost"]))
        files = authority.issue(member.role, member.id, names, pki, CERTIFICATE_DAYS)
        settings: dict[str, object] = {
            "cluster": "dev",
            "name": member.id,
            "listen": member.address,
            "http_listen": member.metrics_address,
            "data_dir": str(member.data_dir),
        }
        if self._tls:
            settings |= {
                "tls.ca": str(files.ca),
                "tls.certificate": str(files.certificate),
                "tls.key": str(files.key),
            }
        else:
            settings["insecure_loopback"] = True
        if member.role is Role.LAS:
            settings |= {f"members.{node.id}": node.address for node in self.las}
            settings["policy.holdout"] = 0.0  # a demonstration leaves nothing to chance
            settings |= self._las_settings
        else:
            index = self.peers.index(member)
            settings |= {
                "las": [node.address for node in self.las],
                "failure_domain.host": f"host-{index + 1}",
                "failure_domain.zone": self.shape.zones[index % len(self.shape.zones)],
                "testing.faults_file": str(member.faults_file),
                "workers": member.workers,
                "storage.chunk_bytes": self.shape.chunk_bytes,
            }
            if member.client_address is not None:
                settings["client_listen"] = member.client_address
            if self._record_samples:
                settings["telemetry.record_file"] = str(member.directory / "samples.jsonl")
            settings |= self._peer_settings
        # JSON strings, booleans and lists of strings are TOML, too.
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
        _replace(member.config, text)

    def _write_peerctl(self) -> None:
        tls = self.client_tls
        lines = [
            'cluster = "dev"',
            f"peers = {json.dumps([member.address for member in self.peers])}",
            f"las = {json.dumps([member.address for member in self.las])}",
        ]
        if self._tls:
            lines += [
                "",
                "[tls]",
                f"ca = {json.dumps(str(tls.ca.relative_to(self.directory)))}",
                f"certificate = {json.dumps(str(tls.certificate.relative_to(self.directory)))}",
                f"key = {json.dumps(str(tls.key.relative_to(self.directory)))}",
            ]
        _replace(self.peerctl_toml, "\n".join(lines) + "\n")

    def _init_las(self) -> None:
        """`las init` on every LAS node, all at once: each is a process that mostly starts up."""
        started = {
            member.id: subprocess.Popen(
                [
                    *(sys.executable, "-m", "las.daemon.cli", "init", "-c", str(member.config)),
                    *("--cluster-id", str(self.cluster_id)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for member in self.las
        }
        failures = []
        for name, process in started.items():
            said, _ = process.communicate(timeout=START_TIMEOUT_S)
            if process.returncode != 0:
                failures.append(f"{name}: {said.strip()}")
        if failures:
            raise DevClusterError("; ".join(failures))


def _describe(member: Member) -> dict[str, object]:
    return {
        "id": member.id,
        "role": str(member.role),
        "address": member.address,
        "metrics_address": member.metrics_address,
        "client_address": member.client_address,
        "pid": member.pid,
        "data_dir": str(member.data_dir),
        "config": str(member.config),
        "log": str(member.log),
        "faults_file": str(member.faults_file) if member.faults_file is not None else None,
    }


def _lives(pid: int | None, config: str) -> bool:
    """Whether `pid` is still the daemon of `config`; the number may be another process's by now."""
    if pid is None:
        return False
    try:
        return config in psutil.Process(pid).cmdline()
    except psutil.Error:
        return False


def _port(address: str | None) -> int:
    return 0 if address is None else int(address.rpartition(":")[2])


def _check_free(address: str, name: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, _port(address)))
        except OSError as error:
            raise DevClusterError(
                f"port {_port(address)} for {name} is taken ({error.strerror}): stop what uses it, "
                "or choose other ports with --port-base"
            ) from None


def _free_ports(count: int) -> list[tuple[int, int, int]]:
    ports = free_ports(3 * count)
    return list(zip(ports[::3], ports[1::3], ports[2::3], strict=True))


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)
