"""A throw-away cluster for one run: the daemons of production on loopback, samples recorded.

The LAS of a lab cluster fails shards over when a peer dies but never acts on a forecast
(`policy.threshold` is 1, which no forecast reaches): a recording must show what a sickness does,
not what was done about it.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from models.lab.plan import PEERS
from models.lab.room import BRIDGE_HOST, Room, Rooms, host
from models.lab.watch import LabPeer
from peerd.testing.dev_cluster import DevCluster, DevClusterError, Member, Shape


def lab_cluster(
    directory: Path, *, in_rooms: bool = False, settings: Mapping[str, object] | None = None
) -> DevCluster:
    """A cluster of `PEERS` peers and one LAS node, not yet started. Raises `DevClusterError`.

    With `settings`, further ones of the LAS by dotted key, it acts as they say.
    """
    if settings is None:
        os.environ["LAS_POLICY_THRESHOLD"] = "1.0"
    shape = Shape(peers=PEERS, las=1)
    if not in_rooms:
        return DevCluster(directory, shape, port_base=None, record_samples=True)
    return DevCluster(
        directory,
        shape,
        port_base=None,
        record_samples=True,
        # Nobody else is in the network of a run.
        las_settings={"http_off_loopback": True, **(settings or {})},
        peer_settings={
            "http_off_loopback": True,
        },
        hosts={"las-1": BRIDGE_HOST} | {f"peer-{i + 1}": host(i) for i in range(PEERS)},
    )


@contextmanager
def peers_rooms(cluster: DevCluster, scratch: Path, descriptors_max: int) -> Iterator[list[Room]]:
    """A room for each peer of a cluster that is not started yet. Raises `RoomError`."""
    with Rooms([member.data_dir for member in cluster.peers], scratch) as rooms:
        for member, room in zip(cluster.peers, rooms.rooms, strict=True):
            room.descriptors_max = descriptors_max
            member.prefix = room.prefix
        yield rooms.rooms


def lab_peers(cluster: DevCluster, rooms: Sequence[Room] = ()) -> tuple[LabPeer, ...]:
    """The peers of a started cluster as the lab knows them."""
    housed: Sequence[Room | None] = rooms or [None] * len(cluster.peers)
    control = _host_and_port(cluster.las[0].metrics_address)
    return tuple(
        _peer(member, control, room) for member, room in zip(cluster.peers, housed, strict=True)
    )


def _host_and_port(address: str) -> tuple[str, int]:
    host_part, _, port = address.rpartition(":")
    return host_part, int(port)


def _peer(member: Member, control: tuple[str, int], room: Room | None) -> LabPeer:
    settings = tomllib.loads(member.config.read_text())
    if member.pid is None:
        raise DevClusterError(f"{member.id} is not running; see {member.log}")
    return LabPeer(
        name=member.id,
        pid=member.pid,
        data_directory=member.data_dir,
        record_file=Path(settings["telemetry"]["record_file"]),
        faults_file=Path(settings["testing"]["faults_file"]),
        http_address=_host_and_port(member.metrics_address),
        control_address=control,
        room=room,
    )
