"""Real processes whose forecast model is no model: all goes on, nothing is moved, it is said."""

from pathlib import Path

import pytest

from peerd.client.blocking import connect
from peerd.testing.dev_cluster import DevCluster, Shape
from tests.integration.load import Load, assert_nothing_lost, until

pytestmark = pytest.mark.timeout(180)

SPOILT = {"missing": None, "random bytes": bytes(range(256)) * 64}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_a_spoilt_model_costs_nothing(
    spoilt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    if (content := SPOILT[spoilt]) is not None:
        path.write_bytes(content)
    monkeypatch.setenv("LAS_MODEL_PATH", str(path))
    with (
        DevCluster(tmp_path / "dev", Shape(peers=4, las=1), port_base=None) as cluster,
        connect(credentials=cluster.peerctl_toml) as client,
    ):
        client.create_log("orders", shards=2, copies=3, acks=2)
        before = [shard.open.plan for shard in client.describe_log("orders")[1]]
        with Load(cluster.peerctl_toml, "orders") as load:
            load.wait_acked(500)

            def evaluated() -> bool:
                return bool(client.las.forecasts())

            until(evaluated, "a forecast of the rule that stands in")
            load.finish()
        assert_nothing_lost(cluster, load)
        status = client.las.status()
        assert any("stands in" in line for line in status.warnings), status.warnings
        assert not any(node.node.at_risk for node in status.nodes)
        assert [shard.open.plan for shard in client.describe_log("orders")[1]] == before
