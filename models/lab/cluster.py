"""A throw-away cluster for one run: the daemons of production on loopback, samples recorded.

The LAS of a lab cluster fails shards over when a peer dies but never acts on a forecast
(`policy.threshold` is 1, which no forecast reaches): a recording must show what a sickness does,
not what was done about it.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from models.lab.plan import PEERS
from models.lab.watch import LabPeer
from peerd.testing.dev_cluster import DevCluster, DevClusterError, Member, Shape


def lab_cluster(directory: Path) -> DevCluster:
    """A cluster of `PEERS` peers and one LAS node, not yet started. Raises `DevClusterError`."""
    os.environ["LAS_POLICY_THRESHOLD"] = "1.0"
    shape = Shape(peers=PEERS, las=1)
    return DevCluster(directory, shape, port_base=None, record_samples=True)


def lab_peers(cluster: DevCluster) -> tuple[LabPeer, ...]:
    """The peers of a started cluster as the lab knows them."""
    return tuple(_peer(member) for member in cluster.peers)


def _peer(member: Member) -> LabPeer:
    settings = tomllib.loads(member.config.read_text())
    if member.pid is None:
        raise DevClusterError(f"{member.id} is not running; see {member.log}")
    return LabPeer(
        name=member.id,
        pid=member.pid,
        data_directory=member.data_dir,
        record_file=Path(settings["telemetry"]["record_file"]),
        faults_file=Path(settings["testing"]["faults_file"]),
    )
