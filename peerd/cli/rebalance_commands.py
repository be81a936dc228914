"""`peerctl rebalance`: what lies where, and what is moved so that nodes carry alike."""

from typing import Annotated

import typer

from las.v1 import fleet_pb2
from peerd.cli.output import (
    ConfigOption,
    Format,
    FormatOption,
    as_dict,
    connected,
    print_document,
    print_table,
)


def rebalance(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would move.")] = False,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Move votes and leads until nodes carry alike; says which, and why."""
    with connected(config) as client:
        answer = client.las.rebalance(dry_run=dry_run)
    if output is not Format.TABLE:
        print_document(output, as_dict(answer))
    else:
        _print(answer, dry_run=dry_run)


def _print(answer: fleet_pb2.RebalanceResponse, *, dry_run: bool) -> None:
    rows = [
        [
            each.node,
            f"{each.weight:.1f} → {each.weight_after:.1f}",
            f"{each.votes} → {each.votes_after}",
            f"{each.leads} → {each.leads_after}",
        ]
        for each in answer.nodes
    ]
    print_table(["node", "weight", "votes in", "primary of"], rows)
    typer.echo(f"even would be {answer.even_weight:.1f} and {answer.even_leads:.1f} leads")
    typer.echo("")
    if not answer.moves:
        typer.echo("nothing is to be moved")
        return
    moves = [
        [
            f"{move.log}/{move.shard}",
            move.leaves or "-",
            move.joins or "-",
            move.leads or "-",
            move.why,
        ]
        for move in answer.moves
    ]
    print_table(["shard", "leaves", "joins", "leads then", "why"], moves)
    count = f"{len(answer.moves)}{' or more' if answer.more else ''}"
    typer.echo(f"{count} moves; what is stored stays where it is. At the moment: {answer.state}")
    if dry_run:
        typer.echo("nothing was moved for this")
    else:
        typer.echo("it has begun: `peerctl status` shows how far it is")
