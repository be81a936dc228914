"""`peerctl position …`: where named consumers go on reading."""

from typing import Annotated

import typer

from peerd.cli.output import (
    EXIT_USAGE,
    ConfigOption,
    Format,
    FormatOption,
    connected,
    fail,
    print_document,
    print_table,
    whole_number,
)
from peerd.client.values import Position

position_app = typer.Typer(
    help="Look at the positions of consumers, and set them.", no_args_is_help=True
)

LogName = Annotated[str, typer.Argument(help="Name of the log.")]
ConsumerName = Annotated[str, typer.Argument(help="Name of the consumer.")]


@position_app.command("get")
def get(
    log: LogName,
    consumer: ConsumerName,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Show where a consumer goes on, and how much it has before it."""
    with connected(config) as client:
        position = client.positions.get(log, consumer)
        tails = {tail.shard: tail.committed for tail in client.tail(log)}
        if output is not Format.TABLE:
            print_document(output, _json(log, consumer, position))
        elif not position.offsets:
            typer.echo(f"{consumer} has no position in {log}")
        else:
            rows = [
                [f"{log}/{shard}", str(offset), _behind(tails.get(shard), offset)]
                for shard, offset in sorted(position.offsets.items())
            ]
            print_table(["shard", "next offset", "records behind"], rows)


@position_app.command("list")
def list_positions(
    log: LogName, config: ConfigOption = None, output: FormatOption = Format.TABLE
) -> None:
    """Show the consumers of a log, the one with the most before it first."""
    with connected(config) as client:
        found = client.positions.list(log)
        tails = {tail.shard: tail.committed for tail in client.tail(log)}
    behind = {
        name: sum(max(0, tails.get(s, offset) - offset) for s, offset in position.offsets.items())
        for name, position in found.items()
    }
    names = sorted(found, key=lambda name: (-behind[name], name))
    if output is not Format.TABLE:
        rows = [{**_json(log, name, found[name]), "records_behind": behind[name]} for name in names]
        print_document(output, rows)
    elif not names:
        typer.echo(f"no consumer has a position in {log}")
    else:
        rows_of_text = [[name, str(len(found[name].offsets)), str(behind[name])] for name in names]
        print_table(["consumer", "shards", "records behind"], rows_of_text)


@position_app.command("set")
def set_position(  # noqa: PLR0917 -- the options of the command
    log: LogName,
    consumer: ConsumerName,
    at: Annotated[
        list[str] | None, typer.Option(help="SHARD=OFFSET, once for each shard, e.g. 3=1042.")
    ] = None,
    to: Annotated[
        str | None, typer.Option(help="earliest or latest: there in every shard.")
    ] = None,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Set where a consumer goes on. Stop it first: what it commits later holds.

    Examples: peerctl position set orders billing --at 3=1042; … --to latest
    """
    if (to is None) == (not at) or to not in {None, "earliest", "latest"}:
        fail("give either --at SHARD=OFFSET or --to earliest or latest", EXIT_USAGE)
    offsets = dict(map(_shard_offset, at or ()))
    with connected(config) as client:
        if to is not None:
            offsets = {
                tail.shard: tail.committed if to == "latest" else tail.first_offset
                for tail in client.tail(log, linearizable=to == "latest")
            }
        position = Position(offsets)
        client.positions.commit(log, consumer, position)
        if output is not Format.TABLE:
            print_document(output, _json(log, consumer, position))
        else:
            where = ", ".join(f"{log}/{shard} at {offset}" for shard, offset in offsets.items())
            typer.echo(f"{consumer} goes on in {where}")


@position_app.command("forget")
def forget(
    log: LogName,
    consumer: ConsumerName,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Take a consumer's position away; its next read starts where it is told to."""
    with connected(config) as client:
        client.positions.forget(log, consumer)
        if output is not Format.TABLE:
            print_document(output, _json(log, consumer, Position()))
        else:
            typer.echo(f"{consumer} has no position in {log} any more")


def _shard_offset(text: str) -> tuple[int, int]:
    shard, offset = map(whole_number, text.partition("=")[::2])
    if shard is None or offset is None:
        fail(f"--at {text}: write SHARD=OFFSET, e.g. 3=1042", EXIT_USAGE)
    return shard, offset


def _behind(tail: int | None, offset: int) -> str:
    return "?" if tail is None else str(max(0, tail - offset))


def _json(log: str, consumer: str, position: Position) -> dict[str, object]:
    offsets = {str(shard): offset for shard, offset in sorted(position.offsets.items())}
    return {"log": log, "consumer": consumer, "offsets": offsets}
