"""A real Prometheus server scrapes real peers, and the LAS knows their health from it alone."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from las.training.windows import read_moments
from peerd.client.blocking import connect
from peerd.daemon.telemetry.schema import ALWAYS_PRESENT, TELEMETRY_SCHEMA
from peerd.pki import Role, create_authority
from peerd.testing.dev_cluster import DevCluster, Shape
from peerd.testing.ports import free_address
from peerd.testing.prometheus_server import (
    PrometheusServer,
    Target,
    prometheus_settings,
    targets_of,
    why_not,
)
from tests.integration.load import until

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can be had"),
]


def test_the_fleet_is_known_from_scrapes_alone_over_mutual_tls(tmp_path):
    authority = create_authority(tmp_path / "pki", "dev")
    server_files = authority.issue(Role.LAS, "prom", ["127.0.0.1"], tmp_path / "pki", 1)
    client_files = authority.issue(Role.LAS, "las-1", ["127.0.0.1"], tmp_path / "pki", 1)
    web_config = {
        "tls_server_config": {
            "cert_file": str(server_files.certificate),
            "key_file": str(server_files.key),
            "client_auth_type": "RequireAndVerifyClientCert",
            "client_ca_file": str(server_files.ca),
        }
    }
    address = free_address()
    settings = prometheus_settings(address, interval_ms=1_000) | {
        "telemetry.url": f"https://{address}",
        "telemetry.ca_file": str(client_files.ca),
        "telemetry.certificate_file": str(client_files.certificate),
        "telemetry.key_file": str(client_files.key),
    }
    shape = Shape(peers=3, las=1)
    with (
        DevCluster(tmp_path / "dev", shape, port_base=None, las_settings=settings) as cluster,
        connect(credentials=cluster.peerctl_toml) as client,
    ):

        def warnings() -> str:
            return " ".join(client.las.status().warnings)

        until(lambda: "no telemetry" in warnings(), "that the server is away is told")
        with PrometheusServer(
            tmp_path / "prometheus",
            targets_of(cluster),
            address=address,
            interval_ms=1_000,
            web_config=json.dumps(web_config),
        ):
            until(lambda: all(each.known for each in client.las.forecasts()), "all are known")
            until(lambda: "telemetry" not in warnings(), "nothing is wrong")
            assert_exported(cluster, tmp_path / "fleet.parquet")
        until(lambda: "no telemetry" in warnings(), "that it is away again is told")
        until(
            lambda: all(each.input_age_ms > 3_000 for each in client.las.forecasts()),
            "what is stale is not fresh",
        )


def assert_exported(cluster, path):
    """`las train export` has the last two minutes of all peers, with mutual TLS on both ways."""
    config, peerctl = cluster.las[0].config, cluster.peerctl_toml
    words = ["train", "export", path, "-c", config, "--peerctl", peerctl, "--since", "122s"]
    program = Path(sys.executable).with_name("las")
    ended = subprocess.run(
        [program, *words], timeout=60, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    (moment,) = read_moments([path])
    assert moment.nodes == tuple(sorted(member.id for member in cluster.peers))
    assert (moment.labels == -1).all()  # nobody knows yet what becomes of them
    present = moment.windows[:, -1, TELEMETRY_SCHEMA.positions[ALWAYS_PRESENT]]
    assert not np.isnan(present).any()


@pytest.mark.skipif(
    shutil.which("prometheus-node-exporter") is None, reason="no prometheus-node-exporter"
)
def test_every_expression_for_node_exporter_is_answered(tmp_path):
    """Each one gives a number, but for swap, pressure and memory errors where there are none."""
    import asyncio
    import time

    from las.daemon.config import Telemetry
    from las.daemon.prometheus import PrometheusClient
    from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA

    exporter = free_address()
    process = subprocess.Popen(
        ["prometheus-node-exporter", f"--web.listen-address={exporter}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    target = Target(address=exporter, labels={"host": "h1"})
    metrics = [metric for metric in TELEMETRY_SCHEMA if metric.node_exporter]
    queries = [
        metric.node_exporter.replace("$by", "by (node, host)").replace("$range", "[10s]")
        for metric in metrics
    ]
    try:
        with PrometheusServer(tmp_path / "p", [target], interval_ms=1_000) as server:

            async def answered() -> dict[str, bool]:
                client = PrometheusClient(
                    Telemetry(source="prometheus", url=server.url, timeout_ms=30_000)
                )
                now_s = int(time.time())
                answers = await client.query_range(queries, begin_s=now_s - 1, end_s=now_s)
                await client.close()
                return {
                    metric.name: any(each.labels == {"host": "h1"} for each in series)
                    for metric, series in zip(metrics, answers, strict=True)
                }

            may_lack = {
                m.name
                for m in metrics
                if m.name.startswith(("pressure_", "swap_", "memory_errors_"))
            }

            def whole() -> bool:
                found = asyncio.run(answered())
                return not {name for name, there in found.items() if not there} - may_lack

            until(whole, "all expressions")
    finally:
        process.terminate()
        process.wait(10)
