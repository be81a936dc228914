"""Offers the latest sample at `/metrics`, one gauge a row of the schema, labelled by nothing.

Missing values are left out, as Prometheus expects of what is not there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector as PrometheusCollector

from peerd.daemon.telemetry.collector import Sample
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA

METRIC_PREFIX = "peerd_"


class TelemetryExporter(PrometheusCollector):
    """Register with a `CollectorRegistry`; `latest` is usually `Window.latest`."""

    def __init__(self, latest: Callable[[], Sample | None]) -> None:
        self._latest = latest

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges of the newest sample; none before the first."""
        sample = self._latest()
        if sample is None:
            return
        for metric, value in zip(TELEMETRY_SCHEMA, sample.values.tolist(), strict=True):
            if not math.isnan(value):
                text = f"{metric.meaning} [{metric.unit}, {metric.scope.value}]"
                yield GaugeMetricFamily(METRIC_PREFIX + metric.name, text, value=value)
