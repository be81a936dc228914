"""A model on real LAS nodes: installed, compared in shadow, promoted, kept by the next leader."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from las.core.model_registry import digest_of
from las.forecast.heads import SHIPPED
from las.training.windows import WindowWriter
from peerd.client.blocking import connect
from peerd.client.errors import StateConflict
from peerd.testing.dev_cluster import DevCluster, Shape
from tests.forecast.made_models import incident_model
from tests.integration.load import until

pytestmark = pytest.mark.timeout(180)


def las_model(cluster, *words):
    """What `las model …` prints and its exit status, as its user sees it."""
    return las("model", *words, "-c", cluster.peerctl_toml)


def las(*words):
    """Exit status, stdout and stderr of `las …`."""
    ended = subprocess.run(
        [Path(sys.executable).with_name("las"), *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ended.returncode, ended.stdout, ended.stderr


class Watched:
    """A cluster and what its leader says of the incident head."""

    def __init__(self, cluster, client):
        self.cluster = cluster
        self.client = client

    def incident(self):
        return next(each for each in self.client.las.models() if each.head == "incident")

    def wait_answering(self, model_id):
        """Until every forecast is of that model."""

        def answers():
            return {each.model_id for each in self.client.las.forecasts()} == {model_id}

        until(answers, f"forecasts of {model_id}")

    def wait_compared(self):
        """Until the one in shadow was seen beside the other, which says something else."""

        def compared():
            (seen,) = [e.comparison for e in self.incident().models if e.state == "shadow"]
            return seen.rounds >= 3 and seen.difference_mean > 0.1

        until(compared, "rounds in shadow")

    def kill_leader(self):
        leader = self.client.las.status().las_leader
        self.cluster.member(leader).kill()
        until(lambda: self.client.las.status().las_leader not in {"", leader}, "another leader")


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    with (
        DevCluster(tmp_path / "dev", Shape(peers=1, las=3), port_base=None) as cluster,
        connect(credentials=cluster.peerctl_toml) as client,
    ):
        seen = Watched(cluster, client)
        until(lambda: seen.incident().answering.startswith("incident-"), "a leader with a model")
        yield seen


def test_a_second_model_is_compared_promoted_and_rolled_back(
    watched: Watched, tmp_path: Path
) -> None:
    cluster, client = watched.cluster, watched.client
    # As large as a real one: several commands carry it.
    content = incident_model("second-1", weight=0.001, padding_bytes=150_000)
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    good.write_bytes(content)
    bad.write_bytes((SHIPPED / "incident.onnx").read_bytes()[:-1_000])
    shipped = watched.incident().answering
    watched.wait_answering(shipped)
    leader = client.las.status().las_leader
    asleep = next(each.id for each in cluster.las if each.id != leader)
    cluster.member(asleep).kill()

    status, _, told = las_model(cluster, "install", str(bad))
    assert status == 1
    assert "the model is refused" in told
    assert "nothing is changed" in told
    assert [each.version for each in watched.incident().models] == [0]

    status, told, _ = las_model(cluster, "install", str(good))
    assert status == 0
    assert told.startswith("version 1: incident model second-1, in shadow")
    watched.wait_compared()
    status, told, _ = las_model(cluster, "list")
    assert status == 0
    assert "version 1 in shadow" in told
    watched.wait_answering(shipped)

    assert las_model(cluster, "promote", "1")[0] == 0
    watched.wait_answering("second-1")
    # Those that are left are a majority only together with the one that slept.
    cluster.restart(asleep)
    watched.kill_leader()
    watched.wait_answering("second-1")
    assert watched.incident().models[1].digest == digest_of(content)

    assert client.las.get_model(1).content == content
    # The live model is what recalibration begins with; of no data comes no model.
    with WindowWriter(tmp_path / "nothing.parquet"):
        pass
    made = tmp_path / "made.onnx"
    ended = las(
        "train",
        "fit",
        tmp_path / "nothing.parquet",
        "--out",
        made,
        "--peerctl",
        cluster.peerctl_toml,
    )
    assert "refused (TOO_FEW_FAILURES)" in ended[2]
    assert not made.exists()

    status, told, _ = las_model(cluster, "rollback", "-o", "json")
    assert (status, json.loads(told)["version"]) == (0, 0)
    watched.wait_answering(shipped)
    with pytest.raises(StateConflict, match="none before it"):
        client.las.roll_back_model("incident", 0)
    assert [(each.what, each.ok) for each in client.las.audit().records] == [
        ("model install", False),
        ("model install", True),
        ("model promote", True),
        ("model rollback", True),
        ("model rollback", False),
    ]
