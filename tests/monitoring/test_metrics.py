"""The table of metrics: names by Prometheus' rules, a true page, right families."""

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from peerd.monitoring.metrics import (
    LAS_METRICS,
    PEER_METRICS,
    Histogram,
    Kind,
    histogram,
    labelled,
    reference,
    single,
)

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
ALL = (*PEER_METRICS, *LAS_METRICS)


def exposed(*families) -> list[str]:
    registry = CollectorRegistry()

    class Once:
        def collect(self):
            return iter(families)

    registry.register(Once())
    text = generate_latest(registry).decode()
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_a_name_is_there_once_and_says_whose_it_is():
    assert len({metric.name for metric in ALL}) == len(ALL)
    for metrics, prefix in ((PEER_METRICS, "peerd_"), (LAS_METRICS, "las_")):
        for metric in metrics:
            assert re.fullmatch(prefix + "[a-z0-9_]+", metric.name)
            assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER), metric.name
            assert metric.meaning


def test_the_page_is_printed_from_the_table():
    assert PAGE.read_text() == reference(), "run: make docs"


def test_values_are_given_by_name():
    lines = exposed(
        *single(peerd_shards=3, peerd_copied_bytes_total=7),
        labelled("peerd_link_up", {"peer-2": 1}),
        labelled("peerd_tier_errors_total", [("timeout", 2)]),
    )
    assert lines == [
        "peerd_shards 3.0",
        "peerd_copied_bytes_total 7.0",
        'peerd_link_up{peer="peer-2"} 1.0',
        'peerd_tier_errors_total{code="timeout"} 2.0',
    ]


def test_a_histogram_sums_up_what_it_counted():
    value = Histogram(bounds_s=(0.001, 0.5), counts=(2, 3, 1), sum_s=4.5)
    assert exposed(histogram("peerd_append_seconds", value)) == [
        'peerd_append_seconds_bucket{le="0.001"} 2.0',
        'peerd_append_seconds_bucket{le="0.5"} 5.0',
        'peerd_append_seconds_bucket{le="+Inf"} 6.0',
        "peerd_append_seconds_count 6.0",
        "peerd_append_seconds_sum 4.5",
    ]


def test_what_is_not_in_the_table_cannot_be_exported():
    for make in (
        lambda: list(single(peerd_unheard_of=1)),
        lambda: labelled("peerd_unheard_of", {}),
        lambda: histogram("peerd_unheard_of", Histogram(bounds_s=(), counts=(0,), sum_s=0)),
    ):
        with pytest.raises(KeyError):
            make()
