"""`peerctl`: everything that people do to a cluster, from one command line.

Exit statuses: 0 done; 1 the cluster refused or failed; 2 used or configured wrongly; 130 Ctrl-C.
"""

import os

from peerd.grpc_core import EXPERIMENTS

# Before grpc is imported: nothing forks once it is up; its free text would be noise on a terminal.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_EXPERIMENTS", EXPERIMENTS)
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import typer

from peerd.cli import (
    access_commands,
    audit_commands,
    backup_commands,
    bench_commands,
    cluster_commands,
    drill_commands,
    fleet_commands,
    history_commands,
    incident_commands,
    log_commands,
    model_commands,
    monitoring_commands,
    node_commands,
    output,
    pki_commands,
    position_commands,
    rebalance_commands,
    recover_commands,
    top_commands,
    workload_commands,
)

app = typer.Typer(
    name="peerctl",
    help="Look at a peerd cluster and work with it. Every command takes -o json or yaml. "
    "Exit status: 0 done, 1 refused or failed, 2 used or configured wrongly.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.callback()(output.before_command)
app.command()(fleet_commands.status)
app.command()(top_commands.top)
app.command()(workload_commands.workload)
app.command()(rebalance_commands.rebalance)
app.command()(log_commands.append)
app.command()(log_commands.read)
app.command()(log_commands.tail)
app.command()(audit_commands.audit)
app.command()(access_commands.revoke)
app.command("export")(recover_commands.export)
app.command("restore")(backup_commands.restore)
app.command("safe-to-stop")(node_commands.safe_to_stop)
app.command()(drill_commands.drill)
app.add_typer(log_commands.log_app, name="log")
app.add_typer(access_commands.grant_app, name="grant")
app.add_typer(position_commands.position_app, name="position")
app.add_typer(node_commands.node_app, name="node")
app.add_typer(cluster_commands.cluster_app, name="cluster")
app.add_typer(fleet_commands.shard_app, name="shard")
app.add_typer(fleet_commands.forecast_app, name="forecast")
app.add_typer(fleet_commands.explain_app, name="explain")
app.add_typer(history_commands.history_app, name="history")
app.add_typer(model_commands.model_app, name="model")
app.add_typer(monitoring_commands.monitoring_app, name="monitoring")
app.add_typer(recover_commands.recover_app, name="recover")
app.add_typer(backup_commands.backup_app, name="backup")
app.add_typer(incident_commands.incident_app, name="incident")
app.add_typer(bench_commands.bench_app, name="bench")
app.add_typer(pki_commands.pki_app, name="pki")


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
