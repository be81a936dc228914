"""A small real cluster that the tests of a module share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from peerd.testing.dev_cluster import DevCluster, Shape


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevCluster]:
    """One LAS node and three peers, on free ports."""
    directory = tmp_path_factory.mktemp("cli") / "dev"
    # What a test put somewhere stays there, however long the others take.
    still = {"policy.rebalance": False}
    shape = Shape(peers=3, las=1)
    with DevCluster(directory, shape, port_base=None, las_settings=still) as running:
        yield running


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration of the machine or the checkout is found by accident."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PEERCTL_CONFIG", raising=False)
