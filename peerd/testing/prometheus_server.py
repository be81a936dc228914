"""A real Prometheus server on loopback that scrapes what it is told, for tests and the demo.

Debian: `apt install prometheus prometheus-node-exporter`; `why_not` says if it is missing.
"""

import http.client
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from peerd.testing.dev_cluster import DevCluster
from peerd.testing.ports import free_address

START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 10.0
_POLL_S = 0.05


class PrometheusServerError(Exception):
    """It does not run; one line says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What to scrape: `host:port`, and the labels that its series get."""

    address: str
    labels: dict[str, str] = field(default_factory=dict)


def why_not() -> str:
    """Why there can be no such server here; empty if there can."""
    if shutil.which("prometheus") is None:
        return "no prometheus on the PATH (Debian: apt install prometheus)"
    return ""


class PrometheusServer:
    """One server. A context manager: leaving it stops it."""

    def __init__(
        self,
        directory: Path,
        targets: Sequence[Target],
        *,
        address: str = "",
        interval_ms: int,
        web_config: str = "",
    ) -> None:
        """Prepare it below `directory`; `web_config` is the text of its web configuration file."""
        self.directory = directory
        self.address = address or free_address()
        self._interval_ms = interval_ms
        self._targets = targets
        self._web_config = web_config
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it answers, if it does so without TLS."""
        return f"http://{self.address}"

    def __enter__(self) -> Self:
        if why := why_not():
            raise PrometheusServerError(why)
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "prometheus.yml"
        config.write_text(self._config())  # JSON is YAML
        arguments = [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={self.directory / 'data'}",
            f"--web.listen-address={self.address}",
        ]
        if self._web_config:
            (self.directory / "web.yml").write_text(self._web_config)
            arguments.append(f"--web.config.file={self.directory / 'web.yml'}")
        with (self.directory / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self._wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End it: SIGTERM, SIGKILL after the bound."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _config(self) -> str:
        interval = f"{self._interval_ms}ms"
        return json.dumps(
            {
                "global": {"scrape_interval": interval, "scrape_timeout": interval},
                "scrape_configs": [
                    {
                        "job_name": "fleet",
                        "static_configs": [
                            {"targets": [each.address], "labels": each.labels}
                            for each in self._targets
                        ],
                    }
                ],
            }
        )

    def _wait_ready(self) -> None:
        """Until it listens; with a web configuration nothing but its port can be asked."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process is not None and self._process.poll() is not None:
                words = (self.directory / "prometheus.log").read_text(errors="replace")
                raise PrometheusServerError(f"it ended: {words.strip().splitlines()[-1:]}")
            if self._is_ready():
                return
            time.sleep(_POLL_S)
        raise PrometheusServerError(f"it is not ready after {START_TIMEOUT_S:.0f} s")

    def _is_ready(self) -> bool:
        try:
            if self._web_config:
                host, port = self.address.rsplit(":", 1)
                socket.create_connection((host, int(port)), timeout=1).close()
                return True
            with closing(http.client.HTTPConnection(self.address, timeout=1)) as connection:
                connection.request("GET", "/-/ready")
                return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False


def prometheus_settings(address: str, *, interval_ms: int) -> dict[str, object]:
    """Settings of LAS nodes that ask the server at `address`."""
    return {
        "telemetry.source": "prometheus",
        "telemetry.url": f"http://{address}",
        "telemetry.interval_ms": interval_ms,
        "telemetry.staleness_ms": 3 * interval_ms,
    }


def targets_of(cluster: DevCluster) -> list[Target]:
    """The peers of a cluster, labelled as the LAS looks for them."""
    return [
        Target(address=member.metrics_address, labels={"node": member.id})
        for member in cluster.peers
        if member.metrics_address is not None
    ]
