"""Offers the latest sample at `/metrics`, one gauge a row of the schema, labelled by nothing.

Missing values are left out, as Prometheus expects of what is not there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector as PrometheusCollector

from peerd.daemon.telemetry.collector import Sample
from peerd.daemon.telemetry.schema import EXPORTED_PREFIX, TELEMETRY_SCHEMA

# Not in the schema: a heartbeat carries the age beside the sample, and so must a scrape.
SAMPLE_AGE_NAME = EXPORTED_PREFIX + "sample_age_seconds"


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
                yield GaugeMetricFamily(metric.exported_name, text, value=value)
        age_s = max(0.0, time.monotonic() - sample.tick_ms / 1000)
        yield GaugeMetricFamily(SAMPLE_AGE_NAME, "Since the sample was taken", value=age_s)
