"""A throw-away cluster on this machine for a benchmark: one LAS node, peers as many as asked."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peerd.testing.dev_cluster import DevCluster, Shape

# On the disk of the working directory: temporary directories are often memory, which flushes free.
PLACE = Path("build/bench")


@contextmanager
def throw_away(peers: int, *, tls: bool = True, las: int = 1) -> Iterator[DevCluster]:
    """Start it, and remove it with all its data.

    Raises:
        DevClusterError: it cannot be started.
    """
    PLACE.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="cluster-", dir=PLACE))
    try:
        shape = Shape(peers=peers, las=las)
        with DevCluster(directory / "dev", shape, port_base=None, tls=tls) as cluster:
            yield cluster
    finally:
        shutil.rmtree(directory, ignore_errors=True)
