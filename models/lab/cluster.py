"""Starts a throw-away cluster for one run with `peerd dev`, and ends it.

The LAS of a lab cluster fails shards over when a peer dies but never acts on a forecast
(`policy.threshold` is 1, which no forecast reaches): a recording must show what a sickness does,
not what was done about it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from models.lab.plan import PEERS
from models.lab.watch import LabPeer

READY_S_MAX = 90.0
STOP_S_MAX = 30.0
_POLL_S = 0.1


class ClusterFailed(Exception):
    """The cluster did not start; the message says where its output is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabCluster:
    """A running cluster: its peers, where clients connect, and with which credentials."""

    process: subprocess.Popen[bytes]
    peers: tuple[LabPeer, ...]
    addresses: list[str]
    credentials: Path

    def stop(self) -> None:
        """End all of it, within `STOP_S_MAX`."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start_cluster(directory: Path, port_base: int) -> LabCluster:
    """Start `PEERS` peers and one LAS node below `directory`. Raises `ClusterFailed`."""
    output = directory.with_suffix(".log")
    command = [sys.executable, "-m", "peerd.cli.peerd", "dev", "--record"]
    command += ["--peers", str(PEERS), "--las", "1", "--dir", str(directory)]
    command += ["--port-base", str(port_base)]
    with output.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"LAS_POLICY_THRESHOLD": "1.0"},
            start_new_session=True,  # a Ctrl-C for the lab is not one for its peers
        )
    description = directory / "cluster.json"
    until_s = time.monotonic() + READY_S_MAX
    while not description.exists():
        if process.poll() is not None or time.monotonic() > until_s:
            process.kill()
            process.wait()
            raise ClusterFailed(f"the cluster did not start; see {output}")
        time.sleep(_POLL_S)
    content = json.loads(description.read_text())
    members = [member for member in content["processes"] if member["role"] == "peer"]
    return LabCluster(
        process=process,
        peers=tuple(_peer(member) for member in members),
        addresses=[member["address"] for member in members],
        credentials=directory / "peerctl.toml",
    )


def _peer(member: dict[str, object]) -> LabPeer:
    return LabPeer(
        name=str(member["id"]),
        pid=int(str(member["pid"])),
        data_directory=Path(str(member["data_dir"])),
        record_file=Path(str(member["record_file"])),
        faults_file=Path(str(member["faults_file"])),
    )
