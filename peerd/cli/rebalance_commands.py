"""`peerctl rebalance`: what lies where, and what is moved so that nodes carry and store alike."""

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
    size_text,
)


def rebalance(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would move.")] = False,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Move votes, leads and copies until nodes carry and store alike; says which, and why."""
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
            f"{size_text(each.stored_bytes)} → {size_text(each.stored_bytes_after)}",
        ]
        for each in answer.nodes
    ]
    print_table(["node", "weight", "votes in", "primary of", "stored"], rows)
    typer.echo(
        f"even would be {answer.even_weight:.1f}, {answer.even_leads:.1f} leads and "
        f"{size_text(answer.even_bytes)}"
    )
    typer.echo("")
    if not answer.moves and not answer.copies:
        typer.echo("nothing is to be moved")
        return
    counts = []
    if answer.moves:
        _print_moves(answer)
        counts.append(f"{len(answer.moves)}{' or more' if answer.more else ''} moves")
    if answer.copies:
        _print_copies(answer)
        size = size_text(sum(each.size_bytes for each in answer.copies))
        many = f"{len(answer.copies)}{' or more' if answer.more_copies else ''}"
        counts.append(f"{many} copies of {size}, once votes and leads lie evenly")
    typer.echo(f"{'; '.join(counts)}. At the moment: {answer.state}")
    if dry_run:
        typer.echo("nothing was moved for this")
    else:
        typer.echo("it has begun: `peerctl status` shows how far it is")


def _print_moves(answer: fleet_pb2.RebalanceResponse) -> None:
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


def _print_copies(answer: fleet_pb2.RebalanceResponse) -> None:
    copies = [
        [
            f"{each.log}/{each.shard}",
            str(each.epoch),
            each.giver,
            each.taker,
            size_text(each.size_bytes),
            each.why,
        ]
        for each in answer.copies
    ]
    print_table(["shard", "segment", "gives", "takes", "size", "why"], copies)
