"""A Grafana dashboard of the exported metrics, to be imported as it is.

Its first row answers "is everything well", the rows below "what are clients given", "what is being
foreseen and moved", "how are disks, links and the LAS". Each panel's text is the metric's meaning.
"""

import json
from dataclasses import dataclass

from peerd.monitoring.alerts import names_in
from peerd.monitoring.metrics import LAS_METRICS, PEER_METRICS

_WIDTH = 24
_MEANING = {metric.name: metric.meaning for metric in (*PEER_METRICS, *LAS_METRICS)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One picture. `unit` is Grafana's name of it; `legend` names each curve."""

    title: str
    expression: str
    unit: str = "short"
    legend: str = "{{instance}}"
    is_number: bool = False
    """One number now, red above 0, in place of curves."""


def _number(title: str, expression: str) -> Panel:
    return Panel(title=title, expression=expression, is_number=True)


def _quantile(metric: str, fraction: float) -> str:
    return f"histogram_quantile({fraction}, rate({metric}_bucket[$__rate_interval]))"


ROWS: dict[str, tuple[Panel, ...]] = {
    "Is everything well?": (
        _number("Shards paused", "max(las_shards_paused)"),
        _number("Shards that wait for a person", "max(las_shards_halted)"),
        _number("Nodes down", 'max(las_nodes{state="down"})'),
        _number("Nodes at risk", "max(las_nodes_at_risk)"),
        _number("Segments with too few copies", "max(las_segments_short)"),
        _number("LAS members missing", "max(las_raft_members) - max(las_raft_members_up)"),
    ),
    "Clients": (
        Panel(
            title="Appends",
            expression="sum by (instance) (peerd_shard_records_per_s)",
            unit="rowsps",
        ),
        Panel(
            title="Bytes appended",
            expression="sum by (instance) (peerd_shard_bytes_per_s)",
            unit="Bps",
        ),
        Panel(
            title="Append to acknowledgement, p99",
            expression=_quantile("peerd_append_seconds", 0.99),
            unit="s",
        ),
        Panel(
            title="Append to acknowledgement, p50",
            expression=_quantile("peerd_append_seconds", 0.5),
            unit="s",
        ),
        Panel(title="Requests unanswered", expression="peerd_requests_unanswered"),
        Panel(
            title="Followers' lag",
            expression="max by (shard) (peerd_shard_reader_lag_records)",
            legend="shard {{shard}}",
        ),
    ),
    "Anticipation": (
        Panel(
            title="Probability of failing within 10 minutes",
            expression="max by (node) (las_forecast_failure_probability)",
            unit="percentunit",
            legend="{{node}}",
        ),
        Panel(
            title="Alarms by how they ended",
            expression="max by (outcome) (las_ledger_cases)",
            legend="{{outcome}}",
        ),
        Panel(
            title="Shards changing", expression="max(las_shards_unsettled)", legend="being changed"
        ),
        Panel(title="Copies under way", expression="max(las_copies_wanted)", legend="copies"),
        Panel(
            title="Bytes copied",
            expression="rate(peerd_copied_bytes_total[$__rate_interval])",
            unit="Bps",
        ),
        Panel(
            title="Moves to carry alike",
            expression="max by (what) (las_rebalance_moves_total)",
            legend="{{what}}",
        ),
    ),
    "Disks": (
        Panel(title="Commits, p99", expression=_quantile("peerd_commit_seconds", 0.99), unit="s"),
        Panel(title="Stored", expression="peerd_storage_stored_bytes", unit="bytes"),
        Panel(title="Free", expression="peerd_storage_free_bytes", unit="bytes"),
        Panel(title="Damaged batches not repaired", expression="peerd_damaged_batches"),
        Panel(
            title="Oldest record that waits for the tier",
            expression="peerd_tier_oldest_waiting_seconds",
            unit="s",
        ),
        Panel(
            title="Since the last whole scrub", expression="peerd_scrub_pass_age_seconds", unit="s"
        ),
    ),
    "Links": (
        Panel(
            title="Records not acknowledged by replicas",
            expression="peerd_link_lag_records",
            legend="{{instance}} → {{peer}}",
        ),
        Panel(
            title="Round trips",
            expression="peerd_link_round_trip_seconds",
            unit="s",
            legend="{{instance}} → {{peer}}",
        ),
        Panel(
            title="Frame to acknowledgement, p99",
            expression=_quantile("peerd_replication_ack_seconds", 0.99),
            unit="s",
        ),
        Panel(
            title="Links broken",
            expression="rate(peerd_link_breaks_total[$__rate_interval])",
            legend="{{instance}} → {{peer}}",
        ),
    ),
    "LAS": (
        Panel(title="Leader", expression="las_raft_is_leader"),
        Panel(
            title="Commits", expression="rate(las_raft_commit_index[$__rate_interval])", unit="ops"
        ),
        Panel(title="Version of the map", expression="las_map_version"),
        Panel(
            title="Certificates expire in",
            expression="peerd_certificate_expiry_days or las_certificate_expiry_days",
            unit="d",
        ),
    ),
}


def dashboard() -> dict[str, object]:
    """The dashboard as a document; its data source is asked for when it is imported."""
    panels: list[dict[str, object]] = []
    top = 0
    for title, row in ROWS.items():
        panels.append(
            {
                "type": "row",
                "title": title,
                "id": len(panels) + 1,
                "gridPos": {"h": 1, "w": _WIDTH, "x": 0, "y": top},
            }
        )
        top += 1
        width, height = (4, 4) if row[0].is_number else (8, 8)
        for place, panel in enumerate(row):
            line, column = divmod(place * width, _WIDTH)
            grid = {"h": height, "w": width, "x": column, "y": top + line * height}
            panels.append(_panel(panel, len(panels) + 1, grid))
        top += height * -(-len(row) * width // _WIDTH)
    return {
        "__inputs": [
            {"name": "DS_PROMETHEUS", "label": "Prometheus", "type": "datasource",
             "pluginId": "prometheus"}
        ],
        "title": "peerd",
        "uid": "peerd",
        "tags": ["peerd"],
        "editable": True,
        "refresh": "10s",
        "schemaVersion": 39,
        "time": {"from": "now-1h", "to": "now"},
        "panels": panels,
    }  # fmt: skip


def _panel(panel: Panel, number: int, grid: dict[str, int]) -> dict[str, object]:
    source = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
    defaults: dict[str, object] = {"unit": panel.unit}
    if panel.is_number:
        steps = [{"color": "green", "value": None}, {"color": "red", "value": 1}]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    return {
        "type": "stat" if panel.is_number else "timeseries",
        "id": number,
        "title": panel.title,
        "description": "\n\n".join(_meanings(panel.expression)),
        "gridPos": grid,
        "datasource": source,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {
                "refId": "A",
                "datasource": source,
                "expr": panel.expression,
                "legendFormat": panel.legend,
            }
        ],
    }


def _meanings(expression: str) -> list[str]:
    names = sorted(name.removesuffix("_bucket") for name in names_in(expression))
    return [f"`{name}`: {_MEANING[name]}" for name in names]


def dashboard_json() -> str:
    """The file that Grafana imports."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"
