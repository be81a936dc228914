"""Each alert fires on the trouble that it names, stays quiet without it, and asks for real series.

Where Prometheus is installed, its own `promtool` judges the rules and drives them.
"""

import shutil
import subprocess

import pytest
import yaml

from peerd.monitoring.alerts import (
    ALERTS,
    PAGE,
    TICKET,
    exported_series,
    names_in,
    rules,
    rules_yaml,
)

INSTANCE = 'instance="host:7401"'
# By alert: series that fire it, and the same that do not. A list is one value each minute.
CASES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "PeerdShardsPaused": ({"las_shards_paused": "2x120"}, {"las_shards_paused": "0x120"}),
    "PeerdShardsHalted": ({"las_shards_halted": "1x120"}, {"las_shards_halted": "0x120"}),
    "PeerdLasWithoutLeader": (
        {"las_raft_has_leader": "0x120"},
        {"las_raft_has_leader": "1x120"},
    ),
    "PeerdLasMemberDown": (
        {"las_raft_members": "3x120", "las_raft_members_up": "2x120"},
        {"las_raft_members": "3x120", "las_raft_members_up": "3x120"},
    ),
    "PeerdLasMemberRejoins": ({"las_raft_voting": "0x120"}, {"las_raft_voting": "1x120"}),
    "PeerdNodeDown": ({'las_nodes{state="down"}': "1x120"}, {'las_nodes{state="down"}': "0x120"}),
    "PeerdNodeAtRisk": ({"las_nodes_at_risk": "1x120"}, {"las_nodes_at_risk": "0x120"}),
    "PeerdForecastNotBelieved": (
        {"las_forecast_breaker_open": "1x120"},
        {"las_forecast_breaker_open": "0x120"},
    ),
    "PeerdCopiesMissing": ({"las_segments_short": "4x120"}, {"las_segments_short": "0x120"}),
    "PeerdNoPlaceForShards": (
        {"las_shards_without_place": "4x120"},
        {"las_shards_without_place": "0x120"},
    ),
    "PeerdDiskReserve": (
        {"peerd_storage_in_reserve": "1x120"},
        {"peerd_storage_in_reserve": "0x120"},
    ),
    "PeerdDiskFills": (
        {"peerd_storage_free_bytes": "10x120", "peerd_storage_stored_bytes": "90x120"},
        {"peerd_storage_free_bytes": "20x120", "peerd_storage_stored_bytes": "80x120"},
    ),
    "PeerdSlowCommits": (
        {
            'peerd_commit_seconds_bucket{le="0.128"}': "0x120",
            'peerd_commit_seconds_bucket{le="0.5"}': "0+60x120",
            'peerd_commit_seconds_bucket{le="+Inf"}': "0+60x120",
        },
        {
            'peerd_commit_seconds_bucket{le="0.064"}': "0+60x120",
            'peerd_commit_seconds_bucket{le="0.5"}': "0+60x120",
            'peerd_commit_seconds_bucket{le="+Inf"}': "0+60x120",
        },
    ),
    "PeerdSlowAppends": (
        {
            'peerd_append_seconds_bucket{le="0.25"}': "0x120",
            'peerd_append_seconds_bucket{le="1"}': "0+60x120",
            'peerd_append_seconds_bucket{le="+Inf"}': "0+60x120",
        },
        {
            'peerd_append_seconds_bucket{le="0.128"}': "0+60x120",
            'peerd_append_seconds_bucket{le="1"}': "0+60x120",
            'peerd_append_seconds_bucket{le="+Inf"}': "0+60x120",
        },
    ),
    "PeerdReplicaLags": (
        {'peerd_link_lag_records{peer="peer-2"}': "200000x120"},
        {'peerd_link_lag_records{peer="peer-2"}': "200x120"},
    ),
    "PeerdLasNotReached": ({"peerd_las_connected": "0x120"}, {"peerd_las_connected": "1x120"}),
    "PeerdDamageNotRepaired": (
        {"peerd_damaged_batches": "1x120"},
        {"peerd_damaged_batches": "0x120"},
    ),
    "PeerdDiskDamagesData": (
        {"peerd_damaged_batches_found_total": "0+1x120"},
        {"peerd_damaged_batches_found_total": "7x120"},
    ),
    "PeerdTierBehind": (
        {"peerd_tier_oldest_waiting_seconds": "4000x120"},
        {"peerd_tier_oldest_waiting_seconds": "600x120"},
    ),
    "PeerdTierNotRead": (
        {'peerd_tier_read_errors_total{code="WRONG_KEY"}': "0+3x120"},
        {'peerd_tier_read_errors_total{code="TIER_UNAVAILABLE"}': "0+1x2 3x118"},
    ),
    "PeerdWorkerDown": (
        {'peerd_worker_up{worker="1"}': "0x120"},
        {'peerd_worker_up{worker="1"}': "1x120"},
    ),
    "PeerdCertificateExpires": (
        {"las_certificate_expiry_days": "10x120"},
        {"las_certificate_expiry_days": "90x120"},
    ),
    "PeerdCertificateExpiresNow": (
        {"peerd_certificate_expiry_days": "1x120"},
        {"peerd_certificate_expiry_days": "10x120"},
    ),
    "PeerdNoTelemetry": (
        {"las_nodes_without_telemetry": "1x120"},
        {"las_nodes_without_telemetry": "0x120"},
    ),
}


def test_every_alert_asks_for_what_is_exported_and_tells_what_to_do():
    assert len({alert.name for alert in ALERTS}) == len(ALERTS)
    for alert in ALERTS:
        assert alert.severity in {PAGE, TICKET}
        assert names_in(alert.expression) <= exported_series(), alert.name
        assert names_in(alert.expression)
        assert alert.advice


def test_every_alert_is_tried_below():
    assert set(CASES) == {alert.name for alert in ALERTS}


def test_the_file_is_what_it_is_made_of():
    assert yaml.safe_load(rules_yaml()) == rules()


def with_instance(series: str) -> str:
    name, _, labels = series.partition("{")
    return f"{name}{{{INSTANCE}}}" if not labels else f"{name}{{{INSTANCE},{labels}"


def drive(series: dict[str, str], alert: str, fires: bool) -> dict[str, object]:
    """One test of `promtool`: what holds after 100 minutes of these values."""
    expected = [{"exp_labels": {}}] if fires else []
    return {
        "interval": "1m",
        "input_series": [
            {"series": with_instance(name), "values": values} for name, values in series.items()
        ],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})',
                "eval_time": "100m",
                "exp_samples": [{"labels": "{}", "value": len(expected)}] if fires else [],
            }
        ],
    }


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")
def test_each_fires_on_its_trouble_alone(tmp_path):
    rule_file = tmp_path / "rules.yml"
    rule_file.write_text(rules_yaml())
    tests = [
        drive(series, alert, fires)
        for alert, (trouble, calm) in CASES.items()
        for series, fires in ((trouble, True), (calm, False))
    ]
    test_file = tmp_path / "tests.yml"
    test_file.write_text(
        yaml.safe_dump(
            {"rule_files": [str(rule_file)], "evaluation_interval": "1m", "tests": tests}
        )
    )
    for arguments in (("check", "rules", rule_file), ("test", "rules", test_file)):
        done = subprocess.run(
            ["promtool", *map(str, arguments)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
