"""`peerctl recover`: what only a person may decide, after a disaster."""

from pathlib import Path
from typing import Annotated

import typer

from las.v1 import log_admin_pb2
from peerd.cli.fleet_commands import shard_number
from peerd.cli.output import (
    EXIT_USAGE,
    ConfigOption,
    Format,
    FormatOption,
    as_dict,
    connected,
    fail,
    print_document,
)

recover_app = typer.Typer(
    help="After a disaster: give up what is lost for good.", no_args_is_help=True
)


def export(
    file: Annotated[Path, typer.Argument(help="The file to write; there is none of that name.")],
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Write all that the LAS has committed to one file: map, nodes, logs, histories, audit records.

    Lines of JSON with a checksum. Keep one beside each backup of your settings: should the LAS lose
    the majority of its disks for good, `las recover --from FILE` makes a new group's beginning of
    it. Records are not in it. From a LAS node that is stopped `las export` does the same.

    Example: peerctl export export.las
    """
    if file.exists():
        fail(f"{file} is there already: name another file", EXIT_USAGE)
    with connected(config) as client:
        data = client.las.export_state()
    try:
        file.write_bytes(data)
    except OSError as error:
        fail(f"{file}: {error.strerror or error}", EXIT_USAGE)
    if output is not Format.TABLE:
        print_document(output, {"file": str(file), "bytes": len(data)})
    else:
        typer.echo(f"wrote {file}: {len(data)} bytes")


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

    Likewise a shard that waits since the LAS began from older data (`las recover`): what commits
    that are lost may have opened is given up, with the records in it. What is only held goes on by
    itself when the peers that `peerctl status` names are up.
    """
    with connected(config) as client:
        number = shard_number(client, shard)
        answer = client.las.recover_shard(number, why=why, accept_loss=accept_data_loss)
    if output is not Format.TABLE:
        print_document(output, as_dict(answer))
        return
    if answer.waits:
        _print_waiting(shard, answer)
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


def _print_waiting(shard: str, answer: log_admin_pb2.RecoverShardResponse) -> None:
    if answer.recovered:
        typer.echo(f"{shard} goes on behind a gap as soon as its voters have answered")
        typer.echo("what was written in segments that lost commits opened is lost")
        return
    typer.echo(f"{shard} waits: {answer.waits}")
    typer.echo("nothing was changed. With --accept-data-loss, of it:")
    typer.echo("  what lost commits may have opened is given up, with all records in it")
    typer.echo("  the rest is kept, and it goes on behind a gap that readers are told of")
