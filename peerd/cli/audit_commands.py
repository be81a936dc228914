"""`peerctl audit`: who changed what, and what was refused to them."""

import time
from typing import Annotated

import typer

from las.v1 import fleet_pb2
from peerd.cli.output import (
    EXIT_USAGE,
    ConfigOption,
    Format,
    FormatOption,
    as_dict,
    connected,
    fail,
    parsed_moment,
    print_document,
    print_table,
)

# limit: records of one answer, as the contract says
RECORDS_MAX = 1_000


def audit(  # noqa: PLR0917 -- the options of the command
    since: Annotated[
        str | None,
        typer.Option(help="Not older: 2026-11-29T07:00:00Z, or how long ago: 90s, 15m, 3h, 2d."),
    ] = None,
    node: Annotated[str, typer.Option(help="Only what was about this node.")] = "",
    log: Annotated[str, typer.Option(help="Only what was about this log or its shards.")] = "",
    count: Annotated[
        int,
        typer.Option("-n", help="How many of the newest, at most 1000."),
    ] = 50,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Who changed what in the cluster, oldest first. Refusals are told, too.

    Example: peerctl audit --since 2d --node peer-3
    """
    if not 1 <= count <= RECORDS_MAX:
        fail(f"-n {count}: 1 to {RECORDS_MAX}", EXIT_USAGE)
    moment = None if since is None else parsed_moment(since, "--since")
    with connected(config) as client:
        answer = client.las.audit(
            since_ms=0 if moment is None else int(moment.timestamp() * 1000),
            node=node,
            log=log,
            limit=count,
        )
        if output is not Format.TABLE:
            print_document(output, as_dict(answer))
            return
        if not answer.records:
            typer.echo("nobody has changed anything" if not answer.recorded else "nothing fits")
        else:
            columns = ["#", "at", "who", "what", "of", "before", "after", "outcome"]
            print_table(columns, [_row(record) for record in answer.records])
        more = answer.matching - len(answer.records)
        if more:
            typer.echo(f"{more} older ones fit, too: -n {min(RECORDS_MAX, answer.matching)}")
        if answer.dropped:
            typer.echo(f"the oldest {answer.dropped} of {answer.recorded} are not kept any more")


def _row(record: fleet_pb2.AuditRecord) -> list[str]:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.timestamp_ms / 1000))
    shard = f"/{record.shard}" if record.shard else ""
    same = record.after == record.before
    outcome = record.text or "done"
    return [
        str(record.number),
        at,
        f"{record.role}/{record.who}",
        record.what,
        record.node or record.model or f"{record.log}{shard}" or "-",
        record.before or "-",
        "as before" if same else record.after or "gone",
        outcome if record.ok else f"refused ({record.reason.upper()}): {outcome}",
    ]
