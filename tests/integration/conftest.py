"""One cluster of real processes for a module; each test leaves it whole."""

from collections.abc import Iterator

import pytest

from peerd.client.blocking import connect
from peerd.testing.dev_cluster import DevCluster, Shape


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevCluster]:
    """Three LAS nodes and four peers, on free ports."""
    directory = tmp_path_factory.mktemp("cluster") / "dev"
    # What a test put somewhere stays there, however long the others take.
    still = {"policy.rebalance": False}
    shape = Shape(peers=4, las=3)
    with DevCluster(directory, shape, port_base=None, las_settings=still) as running:
        yield running


@pytest.fixture
def log(cluster: DevCluster, request: pytest.FixtureRequest) -> str:
    """A log of its own for the test: two shards, three copies, two of them for a receipt."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name.lower()).strip("-")
    with connect(credentials=cluster.peerctl_toml) as client:
        client.create_log(name, shards=2, copies=3, acks=2)
    return name


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevCluster]:
    """One LAS node and one peer, for tests that harm neither."""
    directory = tmp_path_factory.mktemp("small") / "dev"
    with DevCluster(directory, Shape(peers=1, las=1), port_base=None) as running:
        yield running
