"""`peerctl top`: the fleet as it is now, once a second, the worst and the busiest first."""

import math
import time
from collections import defaultdict
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from las.v1 import fleet_pb2
from las.v1.shard_map_pb2 import NODE_STATE_UP
from peerd.cli.fleet_commands import glance
from peerd.cli.node_commands import protection_text
from peerd.cli.output import (
    UINT32_MAX,
    ConfigOption,
    connected,
    duration_text,
    plain_console,
    probability_text,
    size_text,
)
from peerd.client.blocking import Client
from peerd.client.errors import PeerdError

# limit: warnings of one look; `peerctl status` has all
WARNINGS_SHOWN_MAX = 5
# limit: shards of one look, the busiest; `peerctl workload` has all
SHARDS_SHOWN_MAX = 12


def top(
    every: Annotated[float, typer.Option(min=0.2, max=60, help="Seconds between two looks.")] = 1.0,
    looks: Annotated[
        int, typer.Option(min=0, max=UINT32_MAX, help="End after so many looks. 0: at Ctrl-C.")
    ] = 0,
    config: ConfigOption = None,
) -> None:
    """Show the fleet live: what is wrong, nodes by risk, the busiest shards. Ctrl-C ends it.

    Without a terminal each look is printed below the last one. Shards are those of the last whole
    interval of 10 s that their primaries have told.
    """
    console = plain_console()
    with connected(config) as client:
        with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
            number = 0
            while True:
                number += 1
                frame = look(client, console)
                if console.is_terminal:
                    live.update(frame, refresh=True)
                else:
                    console.print(frame)
                if number == looks:
                    return
                time.sleep(every)


def look(client: Client, console: Console) -> RenderableType:
    """One look, or why there is none: who watches a failing LAS wants to see it come back."""
    try:
        return frame_of(client.las.status(), client.las.workload("", ""), console)
    except PeerdError as error:
        return Text(f"no answer: {error}")


def frame_of(
    status: fleet_pb2.GetStatusResponse, work: fleet_pb2.GetWorkloadResponse, console: Console
) -> RenderableType:
    """One look. What does not fit the terminal's height is left out at the end."""
    lines = [f"!  {warning}" for warning in status.warnings[:WARNINGS_SHOWN_MAX]]
    if len(status.warnings) > WARNINGS_SHOWN_MAX:
        lines.append(f"!  and {len(status.warnings) - WARNINGS_SHOWN_MAX} more")
    lines += [f"{label:<9} {text}" for label, text in glance(status)]
    room = max(3, console.height - len(lines) - 6) if console.is_terminal else len(status.nodes)
    return Group(
        Text("\n".join(lines)),
        Text(""),
        _nodes(status, work, room),
        Text(""),
        _shards(work),
    )


def _nodes(
    status: fleet_pb2.GetStatusResponse, work: fleet_pb2.GetWorkloadResponse, room: int
) -> Table:
    rates: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for each in work.shards:
        told = rates[each.node]
        told[0] += each.workload.records_per_s
        told[1] += each.workload.bytes_per_s
        told[2] += each.workload.read_bytes_per_s
    table = _table(
        *("node", "state", "p(10 min)", "primary of", "votes in", "stored", "free"),
        *("records/s", "written", "read"),
    )
    for entry in sorted(status.nodes, key=_urgency)[:room]:
        records, written, read = rates[entry.node.name]
        table.add_row(
            entry.node.name,
            _state(entry),
            probability_text(entry.p_10_min),
            str(entry.primaries),
            str(entry.voting),
            size_text(entry.stored_bytes),
            size_text(entry.free_bytes),
            f"{records:,.0f}",
            f"{size_text(round(written))}/s",
            f"{size_text(round(read))}/s",
        )
    return table


def _urgency(each: fleet_pb2.NodeStatus) -> tuple[bool, bool, float, str]:
    risk = 0.0 if math.isnan(each.p_10_min) else each.p_10_min
    return (each.node.state == NODE_STATE_UP, not each.node.at_risk, -risk, each.node.name)


def _state(each: fleet_pb2.NodeStatus) -> Text:
    if each.node.state != NODE_STATE_UP:
        return Text(f"down {duration_text(each.silent_ms)}", style="red")
    if each.node.at_risk or each.node.draining:
        what = "at risk" if each.node.at_risk else "draining"
        return Text(f"{what}, {protection_text(each, 'in use')}", style="yellow")
    return Text("up", style="green")


def _shards(work: fleet_pb2.GetWorkloadResponse) -> Table:
    table = _table("shard", "node", "records/s", "written", "read", "readers", "behind")
    for each in work.shards[:SHARDS_SHOWN_MAX]:
        load = each.workload
        table.add_row(
            f"{each.log}/{load.shard}",
            each.node,
            f"{load.records_per_s:,.0f}",
            f"{size_text(round(load.bytes_per_s))}/s",
            f"{size_text(round(load.read_bytes_per_s))}/s",
            str(load.readers),
            f"{load.reader_lag_records:,}" if load.readers else "-",
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table
