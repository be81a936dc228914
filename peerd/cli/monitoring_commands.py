"""`peerctl monitoring`: what Prometheus and Grafana need, made for the version that runs."""

from pathlib import Path
from typing import Annotated

import typer

from peerd.cli.output import (
    EXIT_USAGE,
    Format,
    FormatOption,
    fail,
    print_document,
    print_table,
)
from peerd.monitoring.alerts import ALERTS, rules_yaml
from peerd.monitoring.dashboard import dashboard_json
from peerd.monitoring.metrics import LAS_METRICS, PEER_METRICS

monitoring_app = typer.Typer(
    help="Metrics, alert rules and a dashboard of this version. Needs no cluster.",
    no_args_is_help=True,
)

Target = Annotated[
    Path | None, typer.Argument(help="File to write, replaced if it is there. Default: stdout.")
]


@monitoring_app.command()
def metrics(output: FormatOption = Format.TABLE) -> None:
    """Every metric that the daemons export: its kind, its labels and what it means."""
    rows = [
        {
            "daemon": daemon,
            "name": metric.name,
            "kind": metric.kind.value,
            "labels": list(metric.labels),
            "meaning": metric.meaning,
        }
        for daemon, table in (("peerd", PEER_METRICS), ("las", LAS_METRICS))
        for metric in table
    ]
    if output is not Format.TABLE:
        print_document(output, rows)
        return
    print_table(
        ("METRIC", "KIND", "LABELS", "MEANING"),
        [
            (metric.name, metric.kind.value, ", ".join(metric.labels), metric.meaning)
            for metric in (*PEER_METRICS, *LAS_METRICS)
        ],
    )


@monitoring_app.command()
def alerts(file: Target = None) -> None:
    """The alert rules for `rule_files` of prometheus.yml, each with what to do."""
    _write(file, rules_yaml(), f"{len(ALERTS)} alert rules")


@monitoring_app.command()
def dashboard(file: Target = None) -> None:
    """A dashboard for Grafana: Dashboards, New, Import."""
    _write(file, dashboard_json(), "the dashboard")


def _write(file: Path | None, text: str, what: str) -> None:
    if file is None:
        typer.echo(text, nl=False)
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        fail(f"{file}: {error.strerror or error}", EXIT_USAGE)
    typer.echo(f"wrote {what} to {file}", err=True)
