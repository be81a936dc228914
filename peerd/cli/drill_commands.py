"""`peerctl drill`: could each shard go on without its primary? Asked, and not tried."""

from dataclasses import asdict
from typing import Annotated

import typer

from peerd.cli.fleet_commands import shard_number
from peerd.cli.output import (
    EXIT_REFUSED,
    ConfigOption,
    Format,
    FormatOption,
    connected,
    print_document,
    print_table,
)
from peerd.client.drill import ShardDrill, VoterReport


def drill(
    target: Annotated[
        str | None, typer.Argument(help="LOG or LOG/SHARD. Default: every log.")
    ] = None,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Say for each shard whether it would go on if its primary died now, and with whom.

    Every voter is asked what it has, on its own address; nothing is promoted or changed. Exit
    status 1: some shard would pause until more of its voters come back.
    """
    with connected(config) as client:
        if target is None:
            logs = [log.name for log in client.list_logs()]
            found = [each for log in logs for each in client.drill(log)]
        elif "/" in target:
            found = client.drill(target.rpartition("/")[0], shard_number(client, target))
        else:
            found = client.drill(target)
    if output is not Format.TABLE:
        print_document(output, [_as_document(each) for each in found])
    else:
        _print(found)
    if not all(each.could_go_on for each in found):
        raise typer.Exit(EXIT_REFUSED)


def _as_document(found: ShardDrill) -> dict[str, object]:
    return {**asdict(found), "could_go_on": found.could_go_on}


def _print(found: list[ShardDrill]) -> None:
    if not found:
        typer.echo("there is no log yet: peerctl log create")
        return
    rows = []
    for each in found:
        answer = f"yes, {each.successor}" if each.could_go_on else "no"
        voters = "; ".join(map(_voter_text, each.voters)) or "none"
        rows.append([f"{each.log}/{each.shard}", each.primary, answer, voters, each.why_not])
    print_table(["shard", "primary", "goes on without", "other voters", "why not"], rows)
    pausing = sum(not each.could_go_on for each in found)
    if pausing:
        typer.echo(f"{pausing} of {len(found)} shards would pause without their primary")
    else:
        typer.echo(f"all {len(found)} shards would go on without their primary")


def _voter_text(voter: VoterReport) -> str:
    if voter.lag_records is None:
        return f"{voter.node}: {voter.trouble}"
    lag = f"{voter.lag_records} behind" if voter.lag_records else "has all"
    trouble = f", {voter.trouble}" if voter.trouble else ""
    return f"{voter.node} {lag}, {voter.answered_ms:.0f} ms{trouble}"
