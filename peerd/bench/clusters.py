"""A throw-away cluster on this machine for a benchmark: one LAS node, peers as many as asked."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peerd.bench.machines import Machines
from peerd.testing.dev_cluster import DevCluster, Shape

# On the disk of the working directory: temporary directories are often memory, which flushes free.
PLACE = Path("build/bench")


@contextmanager
def throw_away(
    peers: int,
    *,
    tls: bool = True,
    las: int = 1,
    machines: Machines | None = None,
) -> Iterator[DevCluster]:
    """Start it, on `machines` if there are some, and remove it with all its data.

    Raises:
        DevClusterError: it cannot be started.
    """
    PLACE.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="cluster-", dir=PLACE))
    try:
        names = [
            *(f"las-{at + 1}" for at in range(las)),
            *(f"peer-{at + 1}" for at in range(peers)),
        ]
        hosts = {} if machines is None else {name: machines.host(name) for name in names}
        settings = {} if machines is None else {"http_off_loopback": True}
        cluster = DevCluster(
            directory / "dev",
            Shape(peers=peers, las=las),
            port_base=None,
            tls=tls,
            las_settings=settings,
            peer_settings=settings,
            hosts=hosts,
        )
        if machines is not None:
            for member in cluster.members:
                member.prefix = machines.prefix(member.id)
        with cluster:
            yield cluster
    finally:
        shutil.rmtree(directory, ignore_errors=True)
