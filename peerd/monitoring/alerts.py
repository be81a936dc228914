"""What should wake whom: the alert rules for Prometheus, made of the exported metrics.

Two severities: `page` for what loses time or safety now, `ticket` for what will. Each alert names
what is wrong and the next step, as an error of the command line would. A rule holds for a while
before it fires, longer than what the fleet mends by itself.
"""

import re
from dataclasses import dataclass

import yaml

from peerd.monitoring.metrics import LAS_METRICS, PEER_METRICS, Kind

PAGE = "page"
TICKET = "ticket"


@dataclass(frozen=True, slots=True)
class Alert:
    """One rule. `hold` is how long it holds before somebody is told; `expression` is PromQL."""

    name: str
    severity: str
    hold: str
    expression: str
    summary: str
    advice: str


ALERTS = (
    Alert(
        "PeerdShardsPaused",
        PAGE,
        "30s",
        "max(las_shards_paused) > 0",
        "{{ $value }} shards take no appends",
        "`peerctl status` says which, why, and what would help.",
    ),
    Alert(
        "PeerdShardsHalted",
        PAGE,
        "0s",
        "max(las_shards_halted) > 0",
        "{{ $value }} shards wait for a person",
        "Bring a voter of theirs back; only if none can come: `peerctl recover shard`.",
    ),
    Alert(
        "PeerdLasWithoutLeader",
        PAGE,
        "30s",
        "max(las_raft_has_leader) < 1 or absent(las_raft_has_leader)",
        "no LAS node knows a leader",
        "Appends go on, but nothing is decided: no fail-over, no new logs. Start LAS nodes until "
        "a majority is up.",
    ),
    Alert(
        "PeerdLasMemberDown",
        TICKET,
        "5m",
        "max(las_raft_members) - max(las_raft_members_up) > 0",
        "{{ $value }} LAS nodes are not in reach",
        "Start them, or replace a lost one with `las rejoin`; one more loss may stop decisions.",
    ),
    Alert(
        "PeerdLasMemberRejoins",
        TICKET,
        "10m",
        "las_raft_voting < 1",
        "{{ $labels.instance }} has had no vote for ten minutes",
        "It rejoins until the others have told it what it had promised: are they up?",
    ),
    Alert(
        "PeerdNodeDown",
        TICKET,
        "5m",
        'max(las_nodes{state="down"}) > 0',
        "{{ $value }} nodes are down",
        "`peerctl node list` names them. After `policy.repair_delay_s` their copies are made anew; "
        "one that will not come back: `peerctl node remove`.",
    ),
    Alert(
        "PeerdNodeAtRisk",
        TICKET,
        "0s",
        "max(las_nodes_at_risk) > 0",
        "{{ $value }} nodes are expected to fail",
        "Their data is being moved. `peerctl forecast` says which and why: look at them in time.",
    ),
    Alert(
        "PeerdForecastNotBelieved",
        TICKET,
        "5m",
        "max(las_forecast_breaker_open) > 0",
        "the forecast is not believed; no node is moved for it",
        "Too many nodes were called sick at once. `peerctl status` says why; is the model right "
        "for this fleet (`peerctl model list`)?",
    ),
    Alert(
        "PeerdCopiesMissing",
        TICKET,
        "30m",
        "max(las_segments_short) > 0",
        "{{ $value }} sealed segments have fewer healthy copies than promised",
        "Repair waits for nodes or room: `peerctl status`, `peerctl node list`.",
    ),
    Alert(
        "PeerdNoPlaceForShards",
        TICKET,
        "5m",
        "max(las_shards_without_place) > 0",
        "{{ $value }} shards need a change for which too few nodes are left",
        "Add nodes, or end drains with `peerctl node undrain`.",
    ),
    Alert(
        "PeerdDiskReserve",
        PAGE,
        "0s",
        "peerd_storage_in_reserve > 0",
        "{{ $labels.instance }} refuses appends for lack of space",
        "Trim, shorten a retention, or give the data directory more room; it goes on by itself.",
    ),
    Alert(
        "PeerdDiskFills",
        TICKET,
        "15m",
        "peerd_storage_free_bytes < 0.15 * (peerd_storage_free_bytes + peerd_storage_stored_bytes)",
        "{{ $labels.instance }} has less than 15 % of its space left",
        "Add nodes (rebalancing moves votes), shorten a retention, or use a tier.",
    ),
    Alert(
        "PeerdSlowCommits",
        TICKET,
        "5m",
        "histogram_quantile(0.99, rate(peerd_commit_seconds_bucket[5m])) > 0.1",
        "one commit of a hundred of {{ $labels.instance }} takes {{ $value }} s",
        "Look at its disk; `peerctl explain node` says what the forecast sees.",
    ),
    Alert(
        "PeerdSlowAppends",
        TICKET,
        "5m",
        "histogram_quantile(0.99, rate(peerd_append_seconds_bucket[5m])) > 0.25",
        "one append of a hundred at {{ $labels.instance }} takes {{ $value }} s",
        "A slow disk or link of a primary or its shadows: `peerctl status`, `peerctl workload`.",
    ),
    Alert(
        "PeerdReplicaLags",
        TICKET,
        "5m",
        "peerd_link_lag_records > 100000",
        "{{ $labels.peer }} lags {{ $value }} records behind {{ $labels.instance }}",
        "Its disk or its link does not keep up; a stalled voter is replaced by itself.",
    ),
    Alert(
        "PeerdLasNotReached",
        TICKET,
        "2m",
        "peerd_las_connected < 1",
        "{{ $labels.instance }} has had no session with the LAS for two minutes",
        "Appends go on by the map that it knows. Look at its link to the LAS nodes.",
    ),
    Alert(
        "PeerdDamageNotRepaired",
        PAGE,
        "10m",
        "peerd_damaged_batches > 0",
        "{{ $value }} damaged batches at {{ $labels.instance }} find no whole copy",
        "Bring the nodes back that hold the others; `peerctl status` names the shards.",
    ),
    Alert(
        "PeerdDiskDamagesData",
        TICKET,
        "0s",
        "increase(peerd_damaged_batches_found_total[1d]) > 1",
        "{{ $labels.instance }} has met damaged batches more than once in a day",
        "They were repaired from other copies. Replace the disk.",
    ),
    Alert(
        "PeerdTierBehind",
        TICKET,
        "10m",
        "peerd_tier_oldest_waiting_seconds > 3600",
        "{{ $labels.instance }} has records that wait to go to the tier for over an hour",
        "`peerd_tier_errors_total` says what fails. Nothing is dropped here before it is there.",
    ),
    Alert(
        "PeerdTierNotRead",
        TICKET,
        "0s",
        "increase(peerd_tier_read_errors_total[10m]) > 10",
        "{{ $labels.instance }} gets {{ $labels.code }} of the tier for what readers ask for",
        "Readers are refused with this code: docs/tiers.md says of each what to do. No record is "
        "given up for it.",
    ),
    Alert(
        "PeerdWorkerDown",
        TICKET,
        "1m",
        "peerd_worker_up < 1",
        "front worker {{ $labels.worker }} of {{ $labels.instance }} does not come up",
        "The peer's log says why it ends.",
    ),
    Alert(
        "PeerdCertificateExpires",
        TICKET,
        "1h",
        "peerd_certificate_expiry_days < 14 or las_certificate_expiry_days < 14",
        "the certificate of {{ $labels.instance }} expires in {{ $value }} days",
        "`peerctl pki issue … --renew` and put the files in place; no restart is needed.",
    ),
    Alert(
        "PeerdCertificateExpiresNow",
        PAGE,
        "0s",
        "peerd_certificate_expiry_days < 2 or las_certificate_expiry_days < 2",
        "the certificate of {{ $labels.instance }} expires in {{ $value }} days",
        "Renew it now: at its end nobody talks to this node any more.",
    ),
    Alert(
        "PeerdNoTelemetry",
        TICKET,
        "5m",
        "max(las_nodes_without_telemetry) > 0",
        "Prometheus has no fresh sample of {{ $value }} nodes that are up",
        "They cannot be foreseen to fail. Is their /metrics scraped?",
    ),
)


def rules() -> dict[str, object]:
    """The rule file as a document."""
    return {
        "groups": [
            {
                "name": "peerd",
                "rules": [
                    {
                        "alert": each.name,
                        "expr": each.expression,
                        "for": each.hold,
                        "labels": {"severity": each.severity},
                        "annotations": {"summary": each.summary, "description": each.advice},
                    }
                    for each in ALERTS
                ],
            }
        ]
    }


def rules_yaml() -> str:
    """The rule file, as `rule_files` of prometheus.yml takes it."""
    return "# Written by `peerctl monitoring alerts`.\n" + yaml.safe_dump(
        rules(), sort_keys=False, allow_unicode=True, width=100
    )


def names_in(expression: str) -> set[str]:
    """The series that an expression asks for."""
    return set(re.findall(r"\b(?:peerd|las)_[a-z0-9_]+", expression))


def exported_series() -> set[str]:
    """Every series that a daemon exports by these tables; a histogram has three."""
    series = set()
    for metric in (*PEER_METRICS, *LAS_METRICS):
        if metric.kind is Kind.HISTOGRAM:
            series |= {metric.name + suffix for suffix in ("_bucket", "_sum", "_count")}
        else:
            series.add(metric.name)
    return series
