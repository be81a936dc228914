"""`las train`: samples of one's own fleet out of Prometheus, and a model fitted to them."""

from pathlib import Path
from typing import Annotated

import typer

from las.training.command import (
    BadQuestion,
    fleet_of_cluster,
    fleet_of_file,
    live_model,
    model_of_file,
    now_s,
    run_export,
    run_fit,
    telemetry_of,
)
from las.training.export import Wanted
from las.training.recalibrate import FitRefused
from peerd.cli.output import (
    EXIT_REFUSED,
    EXIT_USAGE,
    Format,
    FormatOption,
    connected,
    fail,
    parsed_moment,
    print_document,
)

train_app = typer.Typer(
    help="Fit the forecast to your own fleet: export its samples and outages, recalibrate the "
    "model on them, then `las model install`.",
    no_args_is_help=True,
    add_completion=False,
)


@train_app.command("export")
def export(  # noqa: PLR0917 - each is an option
    file: Annotated[Path, typer.Argument(help="The .parquet file to write.")],
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="A las.toml: its \\[telemetry] names the server."),
    ] = None,
    url: Annotated[str, typer.Option(help="Of the Prometheus server, in place of that.")] = "",
    since: Annotated[
        str, typer.Option(help="From when on: 30d, 12h, or a time such as 2026-03-01T12:00:00Z.")
    ] = "30d",
    every: Annotated[
        int, typer.Option(min=60, max=86_400, help="Seconds between two moments of all nodes.")
    ] = 1_800,
    peerctl: Annotated[
        Path | None,
        typer.Option(help="peerctl.toml of the cluster whose nodes, outages and drains count."),
    ] = None,
    outages: Annotated[
        Path | None,
        typer.Option(help="A file of `peerctl history export` in place of the cluster."),
    ] = None,
    output: FormatOption = Format.TABLE,
) -> None:
    r"""Write the fleet's samples, with what became of each node, to a parquet file.

    All nodes are looked at each --every seconds, and a node that failed once a minute in the hour
    before it. Nodes that were drained, protected or stopped by an operator and did not fail count
    as unknown, never as healthy. Needs pyarrow: pip install 'peerd\[parquet]'.

    Example: las train export fleet.parquet -c las.toml --peerctl peerctl.toml --since 30d
    """
    try:
        telemetry = telemetry_of(config, url)
        end_s = now_s()
        begin_s = int(parsed_moment(since, "--since").timestamp())
        if outages is not None:
            fleet = fleet_of_file(outages, end_s)
        else:
            with connected(peerctl) as client:
                fleet = fleet_of_cluster(client, end_s)
        wanted = Wanted(begin_s=begin_s, end_s=end_s, every_s=every)
        run_export(file, telemetry, wanted, fleet, output)
    except BadQuestion as error:
        fail(str(error), EXIT_REFUSED)


@train_app.command("fit")
def fit(  # noqa: PLR0917 - each is an option
    files: Annotated[list[Path], typer.Argument(help="Files of `las train export`.")],
    out: Annotated[Path, typer.Option(help="The .onnx file to write.")],
    model: Annotated[
        Path | None, typer.Option(help="The incident model to recalibrate; the live one.")
    ] = None,
    peerctl: Annotated[
        Path | None,
        typer.Option(
            help="peerctl.toml of the cluster whose live model is meant, without --model."
        ),
    ] = None,
    newest: Annotated[
        float, typer.Option(min=0.05, max=0.5, help="Share of the time that the gate judges by.")
    ] = 0.25,
    output: FormatOption = Format.TABLE,
) -> None:
    """Recalibrate the live incident model on your own fleet. Needs numpy and pyarrow, no torch.

    The older part of the time is fitted to, the newest one decides: a model that is worse there
    than the live one is refused (exit status 1) and not written. What comes out is an
    ordinary model: install it, let it run in shadow, promote it.

    Example: las train fit fleet.parquet --peerctl peerctl.toml --out incident.onnx
    """
    try:
        if model is not None:
            content = model_of_file(model)
        else:
            with connected(peerctl) as client:
                content = live_model(client)
        run_fit(files, content, out, newest, output)
    except BadQuestion as error:
        fail(str(error), EXIT_USAGE)
    except FitRefused as refused:
        if output is not Format.TABLE:
            print_document(output, {"refused": refused.why.value, "why": str(refused)})
        fail(f"refused ({refused.why.value.upper()}): {refused}", EXIT_REFUSED)
