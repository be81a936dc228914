"""`las`: the command line of the LAS daemon. Each command does one call; errors are one line."""

import os
import sys
from pathlib import Path
from typing import Annotated

from peerd.grpc_core import EXPERIMENTS

# Before grpc is imported: this process never forks, and its handlers for that cost a tenth.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_EXPERIMENTS", EXPERIMENTS)
# The C core writes free text to stderr, where this daemon writes JSON lines; what matters of it
# comes back as errors of calls. ERROR is what a starter that uses the client hands down.
if os.environ.get("GRPC_VERBOSITY", "ERROR") == "ERROR":
    os.environ["GRPC_VERBOSITY"] = "NONE"

from typing import Any

import typer
from typer.core import TyperGroup

_CLIENT_COMMANDS = ("model", "train")


class _Commands(TyperGroup):
    """The daemon's commands and those of a client, which are loaded when they are asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *_CLIENT_COMMANDS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _CLIENT_COMMANDS:
            return super().get_command(ctx, cmd_name)
        if cmd_name == "model":
            from peerd.cli.model_commands import model_app as found
        else:
            from las.training.cli import train_app as found
        command = typer.main.get_command(found)
        command.name = cmd_name
        return command


app = typer.Typer(
    name="las",
    cls=_Commands,
    help="A node of the LAS, the group that keeps a cluster's shard map and foresees failures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigFile = Annotated[
    Path, typer.Option("--config", "-c", help="Settings of this LAS node, a TOML file.")
]


@app.command()
def init(
    config: ConfigFile,
    cluster_id: Annotated[
        str | None,
        typer.Option(help="Id that `las init` printed for the first member; without it a new one."),
    ] = None,
    import_: Annotated[
        Path | None,
        typer.Option(
            "--import",
            help="What `las recover` or `peerctl restore` wrote: the group begins with it. "
            "Not with an id.",
        ),
    ] = None,
) -> None:
    """Make the data directory of a member of a new group, once; prints the group's id.

    Run it on the first member without --cluster-id, and on the others with the id that it printed.
    A group that shall take the place of one that is lost is made with --import instead, with the
    same file on each member, and an empty data directory.
    """
    from las.daemon import directory, recover
    from las.daemon.config import ConfigError, load_config
    from peerd.daemon.errors import EXIT_CANNOT_START, DaemonError

    try:
        settings = load_config(config)
        if cluster_id is not None and import_ is not None:
            _fail("--cluster-id: the file of --import has it", EXIT_CANNOT_START)
        export = None if import_ is None else recover.from_file(import_, settings.cluster)
        manifest = directory.init(settings, cluster_id, export)
    except ConfigError as error:
        _fail(str(error), EXIT_CANNOT_START)
    except DaemonError as error:
        _fail(str(error), error.exit_status)
    else:
        print(manifest.group_id)
        others = [name for name in manifest.members if name != manifest.name]
        same = f"--cluster-id {manifest.cluster_id}" if import_ is None else "--import"
        if cluster_id is None and others:
            typer.echo(
                f"initialised {manifest.name}; on {', '.join(others)} run `las init {same}`"
                f"{' with the same file' * (import_ is not None)}, then `las serve` on each",
                err=True,
            )


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="The file to write; there is none of that name.")],
    config: ConfigFile,
) -> None:
    """Write the state in the data directory of this member, which is stopped, to one file.

    Lines of JSON with a checksum: the map, nodes, logs, histories, audit records. From a group that
    runs `peerctl export` does the same. `las recover --from` makes a new group's beginning of it.
    """
    from las.daemon import exports, recover
    from las.daemon.config import ConfigError, load_config
    from peerd.daemon.errors import EXIT_CANNOT_START, DaemonError

    try:
        found = recover.from_directory(load_config(config))
        exports.write(file, found)
    except ConfigError as error:
        _fail(str(error), EXIT_CANNOT_START)
    except DaemonError as error:
        _fail(str(error), error.exit_status)
    else:
        print(f"wrote {file}: {recover.reach(found.origin)}")


@app.command(name="recover")
def recover_(
    file: Annotated[
        Path, typer.Argument(help="The file to write: what the new group begins with.")
    ],
    config: ConfigFile,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="An export; without it the data directory of this member."),
    ] = None,
    accept_data_loss: Annotated[
        bool,
        typer.Option(
            "--accept-data-loss", help="Do it. Without this nothing is written: a look ahead."
        ),
    ] = False,
) -> None:
    """Let a new group begin, when the majority of the LAS is lost for good.

    Of what is left, a stopped member's data directory or an export, take the newest: the one with
    the highest entry. What was committed after it is lost, and this says what that means. The file
    that it writes is given to `las init --import` on every member of the new group.
    """
    from las.daemon import exports, recover
    from las.daemon.config import ConfigError, load_config
    from peerd.daemon.errors import EXIT_CANNOT_START, DaemonError

    try:
        settings = load_config(config)
        if source is None:
            found = recover.from_directory(settings)
        else:
            found = recover.from_file(source, settings.cluster)
        for line in recover.report(found):
            print(line)
        if not accept_data_loss:
            print("nothing was written. With --accept-data-loss, what a new group begins with")
            return
        exports.write(file, recover.recovered(found))
    except ConfigError as error:
        _fail(str(error), EXIT_CANNOT_START)
    except DaemonError as error:
        _fail(str(error), error.exit_status)
    else:
        print(f"wrote {file}: on every member of the new group, `las init --import {file}`")


@app.command()
def rejoin(
    config: ConfigFile,
    cluster_id: Annotated[str, typer.Option(help="Id that `las init` printed for the group.")],
) -> None:
    """Make the data directory of a member whose old one was lost or is damaged.

    What is there is moved aside. The member votes again once it holds what it had promised.
    """
    from las.daemon import directory
    from las.daemon.config import ConfigError, load_config
    from peerd.daemon.errors import EXIT_CANNOT_START, DaemonError

    try:
        manifest = directory.rejoin(load_config(config), cluster_id)
    except ConfigError as error:
        _fail(str(error), EXIT_CANNOT_START)
    except DaemonError as error:
        _fail(str(error), error.exit_status)
    else:
        print(f"{manifest.name} rejoins cluster {manifest.group_id} when it is served")


@app.command()
def check(config: ConfigFile) -> None:
    """Say whether a node could start with these settings, without starting it."""
    from las.daemon import directory
    from las.daemon.config import ConfigError, load_config
    from peerd.daemon.errors import EXIT_CANNOT_START

    try:
        print(directory.check(load_config(config)))
    except ConfigError as error:
        _fail(str(error), EXIT_CANNOT_START)


@app.command()
def serve(
    config: ConfigFile,
    ready_file: Annotated[
        Path | None,
        typer.Option(help="Write pid and addresses to this file, as JSON, once the node serves."),
    ] = None,
) -> None:
    """Run a LAS node until SIGTERM or SIGINT."""
    from las.daemon import serve as daemon
    from las.daemon.config import ConfigError, load_config
    from peerd.daemon.errors import EXIT_CANNOT_START, DaemonError
    from peerd.daemon.logging import configure_logging

    try:
        settings = load_config(config)
        configure_logging(las=settings.name)
        raise typer.Exit(daemon.serve(settings, lambda: load_config(config), ready_file))
    except ConfigError as error:
        _fail(str(error), EXIT_CANNOT_START)
    except DaemonError as error:
        _fail(str(error), error.exit_status)


@app.command()
def replay(  # noqa: PLR0917 - each is an option
    history: Annotated[
        str,
        typer.Argument(
            help="lanl-failures, grid5000-availability, a .csv or .parquet file of outages (see "
            "`peerctl history export`), or synthetic:NODESxDAYS."
        ),
    ],
    data: Annotated[
        Path, typer.Option(envvar="PEERD_DATA", help="Folder of the recorded data sets.")
    ] = Path("../shared/data"),
    predictor: Annotated[
        str, typer.Option(help="history: the shipped head; decayed: a decayed failure count.")
    ] = "history",
    horizon: Annotated[str, typer.Option(help="Horizon that is asked for: 1h, 1d or 7d.")] = "7d",
    days: Annotated[
        int, typer.Option(min=1, max=3_650, help="Days to replay, from the split on.")
    ] = 365,
    threshold: Annotated[
        str, typer.Option(help="Values of policy.threshold to try, e.g. 0.5,0.8.")
    ] = "0.8",
    at_risk: Annotated[
        str, typer.Option(help="Values of policy.at_risk_share_max to try, e.g. 0.01,0.02,0.05.")
    ] = "0.05",
    weight: Annotated[
        str, typer.Option(help="Values of policy.exposure_cost to try, e.g. 4,16,64.")
    ] = "4,16,64",
    bytes_per_node: Annotated[
        float, typer.Option(min=1.0, max=1e18, help="What a node stores.")
    ] = 1e12,
    copy_bytes_per_s: Annotated[
        float, typer.Option(min=1.0, max=1e15, help="Copying of a node.")
    ] = 100e6,
    jobs: Annotated[int, typer.Option(min=0, max=1_024, help="Processes; 0: all cores.")] = 0,
    seed: Annotated[
        int, typer.Option(min=0, max=(1 << 63) - 1, help="Seed of a made-up history.")
    ] = 1,
    plot: Annotated[Path | None, typer.Option(help="Write pictures here, as SVG.")] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="table, json or yaml.")] = "table",
) -> None:
    """What anticipation would have done for a fleet whose outages are recorded.

    The outages are met three ways: nothing moves, failures are reacted to, and the judgement and
    the planner of the LAS act on a forecast from the history so far. The table says what each
    costs.
    """
    from las.replay.command import Asked, BadQuestion, run
    from peerd.daemon.errors import EXIT_CANNOT_START

    try:
        run(
            Asked(
                history=history,
                data=data,
                predictor=predictor,
                horizon=horizon,
                days=days,
                thresholds=threshold,
                at_risk_shares=at_risk,
                weights=weight,
                bytes_per_node=bytes_per_node,
                copy_bytes_per_s=copy_bytes_per_s,
                jobs=jobs,
                seed=seed,
                plot=plot,
                output=output,
            )
        )
    except BadQuestion as error:
        _fail(str(error), EXIT_CANNOT_START)


def _fail(message: str, exit_status: int) -> None:
    typer.echo(f"las: {message}", err=True)
    raise typer.Exit(exit_status)


def main() -> None:
    """Entry point: whatever nobody foresaw is one line as well, and its traceback in the log."""
    try:
        app()
    except Exception as error:  # noqa: BLE001 - the last line of a process
        from peerd.daemon.errors import EXIT_BUG
        from peerd.daemon.logging import configure_logging, get_logger

        configure_logging()
        get_logger("cli").critical("ended unexpectedly", exc_info=error)
        typer.echo(f"las: ended for a reason that nobody foresaw: {error!r}", err=True)
        sys.exit(EXIT_BUG)


if __name__ == "__main__":
    main()
