"""`peerctl recover`: what only a person may decide, after a disaster."""

from typing import Annotated

import typer

from peerd.cli.fleet_commands import shard_number
from peerd.cli.output import (
    ConfigOption,
    Format,
    FormatOption,
    as_dict,
    connected,
    print_json,
)

recover_app = typer.Typer(
    help="After a disaster: give up what is lost for good.", no_args_is_help=True
)


@recover_app.command("shard")
def shard(
    shard: Annotated[str, typer.Argument(help="LOG/SHARD, e.g. orders/3.")],
    why: Annotated[
        str, typer.Option(help="One line that readers of the lost range will see.")
    ] = "",
    accept_data_loss: Annotated[
        bool,
        typer.Option(
            "--accept-data-loss", help="Do it. Without this nothing changes: a look ahead."
        ),
    ] = False,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Let a shard go on whose voters will never come back.

    What the voters that are left have is kept. What lies beyond may have been acknowledged: readers
    are told of the gap, with your reason. Refused while a voter that is up may still answer, and
    while enough have answered.
    """
    with connected(config) as client:
        number = shard_number(client, shard)
        answer = client.las.recover_shard(number, why=why, accept_loss=accept_data_loss)
    if output is Format.JSON:
        print_json(as_dict(answer))
        return
    gone = ", ".join(answer.given_up)
    if answer.recovered:
        typer.echo(f"{shard} goes on at offset {answer.resume_at} with {answer.primary} as primary")
        typer.echo(f"what only {gone} had from offset {answer.known_commit} on is lost")
        return
    kept = f"what {', '.join(answer.answered)} has" if answer.answered else "nothing"
    typer.echo(f"nothing was changed. With --accept-data-loss, of {shard}:")
    typer.echo(f"  {kept} is kept: offsets below {answer.end}")
    typer.echo(f"  {gone} is given up: what it alone has from {answer.known_commit} on is lost")
    typer.echo(f"  {answer.primary} becomes primary and goes on at offset {answer.resume_at}")
