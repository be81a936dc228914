"""`peerctl history`: when nodes were down, and why; what of it repeats; import and export."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from las.v1 import history_pb2
from peerd.cli.outage_files import (
    BadFile,
    cause_text,
    csv_text,
    read_outages,
    time_text,
    write_outages,
)
from peerd.cli.output import (
    EXIT_USAGE,
    UINT32_MAX,
    ConfigOption,
    Format,
    FormatOption,
    as_dict,
    connected,
    duration_text,
    fail,
    print_document,
    print_table,
)

# limit: outages of one call, as the contract says
OUTAGES_PER_CALL_MAX = 1_000

# limit: seconds for which an imported outage may lie after now: clocks differ.
FUTURE_S_MAX = 3_600

HOUR_S = 3_600
DAY_S = 24 * HOUR_S

history_app = typer.Typer(
    help="When nodes were down, and why: list, patterns, import and export.", no_args_is_help=True
)


@history_app.command("list")
def list_outages(
    node: Annotated[str, typer.Argument(help="Only this node.")] = "",
    count: Annotated[
        int, typer.Option(min=0, max=UINT32_MAX, help="At most so many; 0: all.")
    ] = 50,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Outages, the newest first."""
    with connected(config) as client:
        outages = client.las.list_outages(node, count_max=count)
        if output is not Format.TABLE:
            print_document(output, [_as_dict(each) for each in outages])
        elif not outages:
            typer.echo("no outage is known" + (f" of {node}" if node else ""))
        else:
            _print_outages(outages)


def _print_outages(outages: Sequence[history_pb2.Outage]) -> None:
    rows = [
        [
            each.node,
            time_text(each.begin_s),
            duration_text((each.end_s - each.begin_s) * 1000)
            if each.HasField("end_s")
            else "goes on",
            cause_text(each),
            each.host or "-",
            each.rack or "-",
        ]
        for each in outages
    ]
    print_table(["node", "began", "lasted", "cause", "host", "rack"], rows)


def _as_dict(outage: history_pb2.Outage) -> dict[str, object]:
    """For programs: times as numbers, null while it goes on, and the cause in one word."""
    return {
        "node": outage.node,
        "host": outage.host,
        "rack": outage.rack,
        "begin_s": outage.begin_s,
        "end_s": outage.end_s if outage.HasField("end_s") else None,
        "cause": cause_text(outage),
        "in_service_s": outage.in_service_s if outage.HasField("in_service_s") else None,
    }


@history_app.command("import")
def import_outages(
    file: Annotated[Path, typer.Argument(help="A .csv or .parquet file; see docs/operations.md.")],
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Add outages that were seen elsewhere. Each counts once, however often it is imported."""
    try:
        outages = read_outages(file, int(time.time()) + FUTURE_S_MAX)
    except BadFile as error:
        fail(f"{error}; nothing was imported", EXIT_USAGE)
    total = history_pb2.ImportOutagesResponse()
    with connected(config) as client:
        for begin in range(0, len(outages), OUTAGES_PER_CALL_MAX):
            taken = client.las.import_outages(outages[begin : begin + OUTAGES_PER_CALL_MAX])
            total.added += taken.added
            total.changed += taken.changed
            total.too_old += taken.too_old
    known = len(outages) - total.added - total.changed - total.too_old
    if output is not Format.TABLE:
        print_document(output, {**as_dict(total), "known": known})
        return
    old = f", {total.too_old} older than all that is kept" if total.too_old else ""
    typer.echo(f"{total.added} added, {total.changed} changed, {known} known already{old}")


@history_app.command("export")
def export_outages(
    file: Annotated[
        Path | None, typer.Argument(help="A .csv or .parquet file; none: CSV on stdout.")
    ] = None,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Write the history to a file that `import` reads, the oldest first."""
    with connected(config) as client:
        outages = list(reversed(client.las.list_outages()))
    if file is not None:
        try:
            write_outages(file, outages)
        except BadFile as error:
            fail(str(error), EXIT_USAGE)
        if output is not Format.TABLE:
            print_document(output, {"file": str(file), "outages": len(outages)})
        else:
            typer.echo(f"{len(outages)} outages in {file}")
    elif output is not Format.TABLE:
        print_document(output, [_as_dict(each) for each in outages])
    else:
        typer.echo(csv_text(outages), nl=False)


@history_app.command("patterns")
def patterns(config: ConfigOption = None, output: FormatOption = Format.TABLE) -> None:
    """What the history shows: by cause, host, rack and age, repeats, failures together."""
    with connected(config) as client:
        found = client.las.failure_patterns()
    if output is not Format.TABLE:
        print_document(output, as_dict(found))
    elif not found.failures:
        typer.echo(f"no failure is known; {found.wished} outages by an operator's wish")
    else:
        _print_patterns(found)


def _print_patterns(found: history_pb2.GetPatternsResponse) -> None:
    typer.echo(
        f"{found.failures} failures and {found.wished} outages by an operator's wish, "
        f"{time_text(found.begin_s)} to {time_text(found.end_s)}; {found.going_on} go on"
    )
    if found.dropped:
        typer.echo(f"{found.dropped} older ones made room for newer ones")
    for what, tallies in (
        ("cause", found.by_cause),
        ("host", found.by_host),
        ("rack", found.by_rack),
        ("age of the node", found.by_age),
    ):
        typer.echo("")
        print_table(
            [what, "failures", "share", "median length"],
            [
                [
                    each.name,
                    str(each.failures),
                    f"{each.failures / found.failures:.0%}",
                    duration_text(each.length_s_median * 1000)
                    if each.HasField("length_s_median")
                    else "-",
                ]
                for each in tallies
            ],
        )
    typer.echo("")
    rows = [
        [
            f"{each.window_s // HOUR_S} h"
            if each.window_s < DAY_S
            else f"{each.window_s // DAY_S} d",
            str(each.failures),
            f"{each.repeated / each.failures:.0%}" if each.failures else "-",
        ]
        for each in found.repeats
    ]
    print_table(["failed again within", "of failures", "share"], rows)
    typer.echo(
        f"\n{found.failures_together} failures in {found.groups} groups of two hosts or more, "
        "each within 5 min of the one before"
    )
    for group in found.together:
        more = group.nodes_total - len(group.nodes)
        names = ", ".join(group.nodes) + (f" and {more} more" if more else "")
        where = f", all in rack {group.rack}" if group.rack else ""
        typer.echo(f"{time_text(group.begin_s)}  {names}{where}")
