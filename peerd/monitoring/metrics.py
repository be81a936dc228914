"""Every metric that a daemon exports, once: its kind, its labels and its meaning.

The exporters give values to these names and to no others; `docs/metrics.md`, the alert rules and
the dashboard are made of the same rows. A metric is absent, and not 0, while it is not known.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family


class Kind(StrEnum):
    """As Prometheus calls them."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One name. `name` is as it is scraped, `_total` and unit included."""

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Counts of one histogram, not yet summed up.

    `counts` has one more entry than `bounds_s`: what is above the last of them, in seconds.
    """

    bounds_s: Sequence[float]
    counts: Sequence[int]
    sum_s: float


def _gauges(*rows: tuple[str, str], labels: tuple[str, ...] = ()) -> tuple[Metric, ...]:
    return tuple(
        Metric(name=name, kind=Kind.GAUGE, meaning=meaning, labels=labels) for name, meaning in rows
    )


def _counters(*rows: tuple[str, str], labels: tuple[str, ...] = ()) -> tuple[Metric, ...]:
    return tuple(
        Metric(name=name, kind=Kind.COUNTER, meaning=meaning, labels=labels)
        for name, meaning in rows
    )


def _histograms(*rows: tuple[str, str]) -> tuple[Metric, ...]:
    return tuple(Metric(name=name, kind=Kind.HISTOGRAM, meaning=meaning) for name, meaning in rows)


PEER_METRICS = (
    *_gauges(
        ("peerd_shards", "Shards with a copy or a promise here"),
        ("peerd_primaries", "Shards that this process orders"),
        ("peerd_requests_unanswered", "Appends, promises and hand-overs that wait for an answer"),
        (
            "peerd_storage_writes_pending",
            "Operations given to the storage writer and not yet durable",
        ),
        ("peerd_storage_queued_bytes", "Bytes that wait for it"),
        ("peerd_storage_free_bytes", "Bytes that can still be stored"),
        ("peerd_storage_stored_bytes", "Bytes of pages in use"),
        ("peerd_storage_in_reserve", "1 while appends are refused for lack of space"),
        ("peerd_streams_in", "Streams of frames from other peers"),
        ("peerd_las_connected", "1 while a session with the LAS leader stands"),
        ("peerd_las_reports_waiting", "Reports not yet answered"),
        ("peerd_map_version", "Version of the shard map known here"),
        ("peerd_map_age_seconds", "Since the map was last heard to be current"),
        ("peerd_copies_wanted", "Sealed segments still to be copied here"),
        ("peerd_copies_wanted_records", "Records of them that are not here"),
        ("peerd_copies_bytes_per_s", "What arrives of them now; 0 while nothing is copied"),
        ("peerd_tasks", "Supervised tasks that run"),
        (
            "peerd_certificate_expiry_days",
            "Until this peer's certificate, or the last authority it trusts, expires",
        ),
    ),
    *_counters(
        ("peerd_las_reports_dropped_total", "Reports dropped because too many waited"),
        ("peerd_copied_bytes_total", "Bytes read for copies"),
        ("peerd_copied_segments_total", "Sealed segments copied here"),
        (
            "peerd_background_bytes_total",
            "Bytes of all background work: copies fetched and given, to the tier and back",
        ),
    ),
    *_histograms(
        ("peerd_append_seconds", "From a batch's arrival at its primary to its acknowledgement"),
        ("peerd_commit_seconds", "Write transactions of the store, until they were on the disk"),
        ("peerd_replication_ack_seconds", "From a frame to a shadow to its acknowledgement"),
    ),
    *_gauges(
        (
            "peerd_damaged_batches",
            "Stored batches known to be damaged and not repaired yet",
        ),
        (
            "peerd_scrub_pass_age_seconds",
            "Since the scrub last read all; absent before the first time",
        ),
    ),
    *_counters(
        ("peerd_damaged_batches_found_total", "Stored batches that failed their checksum"),
        (
            "peerd_damaged_batches_repaired_total",
            "Those that were written anew from another holder",
        ),
        (
            "peerd_scrubbed_bytes_total",
            "Bytes of stored batches read and checked by the scrub",
        ),
        ("peerd_scrub_passes_total", "Times that the scrub has read all"),
    ),
    *_gauges(
        (
            "peerd_tier_oldest_waiting_seconds",
            "Age of the oldest record that could be in the tier and is not yet",
        ),
        ("peerd_tier_lag_bytes", "Bytes that wait for the tier beyond the hot bytes"),
    ),
    *_gauges(
        ("peerd_access_version", "Version of the access table in force here"),
        ("peerd_access_age_seconds", "Since the LAS last said that it is current"),
        ("peerd_access_required", "1 while clients need grants"),
        ("peerd_access_grants", "Grants in it"),
        ("peerd_access_revoked", "Certificates that it refuses"),
    ),
    *_counters(
        ("peerd_calls_refused_total", "Calls refused for who made them, or for how many"),
        labels=("reason",),
    ),
    *_counters(
        ("peerd_tier_slowed_appends_total", "Appends told to wait for the tier"),
        ("peerd_tier_objects_total", "Objects put into the tier, verified"),
        ("peerd_tier_uploaded_bytes_total", "Payload bytes in them"),
        (
            "peerd_tier_removed_objects_total",
            "Objects and manifests removed that nobody needs",
        ),
    ),
    *_counters(
        ("peerd_tier_errors_total", "Uploads that failed and are tried again"),
        ("peerd_tier_read_errors_total", "Reads of what the tier did not give"),
        labels=("code",),
    ),
    *_gauges(
        ("peerd_link_up", "1 while its stream is open"),
        ("peerd_link_queued_bytes", "Bytes that wait for it"),
        (
            "peerd_link_round_trip_seconds",
            "Of the newest ping, or since then if it is not answered; absent before the first",
        ),
        (
            "peerd_link_lag_records",
            "Records of the shards ordered here that this replica has not acknowledged",
        ),
        labels=("peer",),
    ),
    *_counters(
        ("peerd_link_breaks_total", "Times that it broke"),
        ("peerd_link_overflows_total", "Times that it started over because too much waited"),
        labels=("peer",),
    ),
    *_gauges(
        ("peerd_worker_up", "1 while a front worker serves"),
        ("peerd_worker_unanswered_bytes", "Bytes of its appends without an answer"),
        ("peerd_worker_cpu_seconds", "CPU time of its present process"),
        labels=("worker",),
    ),
    *_counters(
        ("peerd_worker_starts_total", "Times that its process was started"),
        ("peerd_worker_appends_total", "Appends that it brought to the sequencer"),
        labels=("worker",),
    ),
    *_gauges(
        ("peerd_shard_appends_per_s", "Batches taken"),
        ("peerd_shard_records_per_s", "Records taken"),
        ("peerd_shard_bytes_per_s", "Payload bytes taken"),
        ("peerd_shard_records_per_batch", "Mean records of a batch"),
        ("peerd_shard_distinct_keys", "Distinct keys, estimated"),
        ("peerd_shard_hottest_key_share", "Share of the most frequent key"),
        (
            "peerd_shard_conditional_share",
            "Share of batches that name the offset they expect",
        ),
        ("peerd_shard_read_bytes_per_s", "Payload bytes that left for readers"),
        ("peerd_shard_cold_read_share", "Share of them that is older than a minute"),
        ("peerd_shard_readers", "Readers that follow"),
        ("peerd_shard_reader_lag_records", "Records that the last of them is behind"),
        labels=("shard",),
    ),
)
"""Of `peerd`. The samples of its machine's health are a table of their own (docs/telemetry.md)."""

LAS_METRICS = (
    *_gauges(
        ("las_raft_term", "Current term"),
        ("las_raft_is_leader", "1 on the leader"),
        ("las_raft_has_leader", "1 while a leader is known"),
        ("las_raft_commit_index", "Index up to which the log is committed"),
        ("las_raft_applied_index", "Index up to which it is applied"),
        ("las_raft_members_up", "Members in reach, this one included"),
        ("las_raft_members", "Members of the group"),
        ("las_raft_voting", "0 while this member rejoins"),
        ("las_map_version", "Version of the applied map"),
        ("las_logs", "Logs"),
        ("las_shards", "Shards"),
        ("las_shards_paused", "Shards that take no appends"),
        ("las_shards_halted", "Shards that wait for a person"),
        ("las_shards_unsettled", "Shards whose plan is being changed"),
        ("las_segments_short", "Sealed segments on fewer healthy nodes than promised"),
        (
            "las_at_stake_seconds",
            "How long the worst node has been the last that is up with what it has; leader",
        ),
        ("las_at_stake_shards", "Shards of which the worst node alone, of those up, has records"),
        ("las_copies_wanted", "Copies of sealed segments under way"),
        ("las_nodes_at_risk", "Nodes at risk"),
        ("las_nodes_draining", "Nodes being drained"),
        (
            "las_certificate_expiry_days",
            "Until this node's certificate, or the last authority it trusts, expires",
        ),
    ),
    *_gauges(
        ("las_access_version", "Version of the applied access table"),
        ("las_access_required", "1 while clients need grants"),
        ("las_access_grants", "Grants in it"),
        ("las_access_revoked", "Certificates that it refuses"),
    ),
    *_counters(
        (
            "las_calls_refused_total",
            "Calls refused for who made them: here, and on the leader what peers tell of theirs",
        ),
        labels=("reason",),
    ),
    *_gauges(("las_nodes", "Nodes by state"), labels=("state",)),
    *_gauges(("las_ledger_cases", "Cases in the ledger by outcome"), labels=("outcome",)),
    *_gauges(
        (
            "las_model_version",
            "Version of the forecast model that answers; 0: the shipped one",
        ),
        labels=("head",),
    ),
    *_gauges(
        (
            "las_forecast_failure_probability",
            "Probability of failing within 10 minutes; absent while it is not known",
        ),
        labels=("node",),
    ),
    *_gauges(("las_forecast_model", "1 for the model that answers"), labels=("id",)),
    *_gauges(
        ("las_shards_recovering", "Shards that are being recovered"),
        (
            "las_shards_without_place",
            "Shards that need a change for which too few nodes are left",
        ),
        ("las_forecast_evaluations", "Evaluations since this node leads"),
        (
            "las_forecast_breaker_open",
            "1 while the forecast is not believed and no node is moved for it",
        ),
        (
            "las_forecast_held_back",
            "Nodes that would be at risk if the budget were larger",
        ),
        (
            "las_nodes_without_telemetry",
            "Nodes that are up and of which Prometheus has no fresh sample",
        ),
    ),
    *_counters(
        (
            "las_rebalance_moves_total",
            "Moves that make nodes alike, since this node leads: votes, leads alone, and copies",
        ),
        labels=("what",),
    ),
    *_counters(
        ("las_shard_splits_total", "Hot shards split by the LAS itself, since this node leads"),
        (
            "las_released_copies_total",
            "Copies of sealed segments that were one too many and let go, since this node leads",
        ),
    ),
    *_counters(
        ("las_forecast_decisions_total", "Nodes judged since this node leads"),
        labels=("judgement",),
    ),
    *_counters(
        (
            "las_prometheus_rounds_total",
            "Rounds of queries to Prometheus since this node leads, by how they ended",
        ),
        labels=("outcome",),
    ),
)
"""Of a LAS node: consensus and map on each, nodes and forecasts on the leader alone."""

_BY_NAME = {metric.name: metric for metric in (*PEER_METRICS, *LAS_METRICS)}


def single(**values: float) -> Iterator[Family]:
    """One family for each metric without labels. Raises KeyError for a name of no row."""
    for name, value in values.items():
        metric = _BY_NAME[name]
        kind = GaugeMetricFamily if metric.kind is Kind.GAUGE else CounterMetricFamily
        yield kind(_family_name(metric), metric.meaning, value=value)


def labelled(name: str, values: Mapping[str, float] | Iterable[tuple[str, float]]) -> Family:
    """The family of a metric with one label. Raises KeyError for a name of no row."""
    metric = _BY_NAME[name]
    kind = GaugeMetricFamily if metric.kind is Kind.GAUGE else CounterMetricFamily
    family = kind(_family_name(metric), metric.meaning, labels=metric.labels)
    for label, value in values.items() if isinstance(values, Mapping) else values:
        family.add_metric([label], value)
    return family


def histogram(name: str, value: Histogram) -> Family:
    """The family of a histogram. Raises KeyError for a name of no row."""
    metric = _BY_NAME[name]
    total = 0
    buckets = []
    for bound, count in zip([*value.bounds_s, float("inf")], value.counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else f"{bound:g}", total))
    return HistogramMetricFamily(metric.name, metric.meaning, buckets, sum_value=value.sum_s)


def _family_name(metric: Metric) -> str:
    return metric.name.removesuffix("_total") if metric.kind is Kind.COUNTER else metric.name


def reference() -> str:
    """The tables as the Markdown page `docs/metrics.md`."""
    lines = [
        "# Metrics",
        "",
        "What the daemons export at `/metrics`. The alert rules and the dashboard are made of the",
        "same table (`peerctl monitoring`). A metric that is not known is absent, not 0. Printed",
        "from `peerd/monitoring/metrics.py` by `make docs`.",
        "",
        "A peer also exports the newest sample of its own health and its machine's:",
        "[telemetry.md](telemetry.md).",
    ]
    for title, metrics in (("peerd", PEER_METRICS), ("LAS", LAS_METRICS)):
        lines += ["", f"## {title}", "", "| metric | kind | labels | meaning |"]
        lines += ["| --- | --- | --- | --- |"]
        lines += [
            f"| `{m.name}` | {m.kind} | {', '.join(f'`{label}`' for label in m.labels)} | "
            f"{m.meaning} |"
            for m in metrics
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
