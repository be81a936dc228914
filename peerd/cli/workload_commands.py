"""`peerctl workload`: what clients do to each shard."""

import math
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


def workload(
    log: Annotated[str, typer.Argument(help="Only this log.")] = "",
    node: Annotated[str, typer.Option(help="Only what this node told.")] = "",
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """What clients do to each shard, the busiest first, and to each node in sum."""
    with connected(config) as client:
        answer = client.las.workload(node, log)
    if output is not Format.TABLE:
        print_document(output, as_dict(answer))
    elif not answer.shards:
        typer.echo("no shard was written to or read within the last seconds")
    else:
        _print(answer)


def _print(answer: fleet_pb2.GetWorkloadResponse) -> None:
    rows = [
        [
            f"{each.log}/{each.workload.shard}",
            each.node,
            f"{each.workload.appends_per_s:,.1f}",
            f"{each.workload.records_per_s:,.1f}",
            size_text(round(each.workload.bytes_per_s)) + "/s",
            _number(each.workload.records_per_batch),
            f"{each.workload.distinct_keys:,}",
            _share(each.workload.hottest_key_share),
            _share(each.workload.conditional_share),
            size_text(round(each.workload.read_bytes_per_s)) + "/s",
            _share(each.workload.cold_read_share),
            f"{each.workload.readers}",
            f"{each.workload.reader_lag_records:,}" if each.workload.readers else "-",
        ]
        for each in answer.shards
    ]
    columns = ["shard", "node", "appends/s", "records/s", "written", "per batch", "keys"]
    columns += ["hottest", "conditional", "read", "cold", "readers", "behind"]
    print_table(columns, rows)
    more = answer.shards_total - len(answer.shards)
    if more:
        typer.echo(f"and {more} quieter shards")
    typer.echo("")
    nodes: dict[str, list[fleet_pb2.ShardWorkload]] = {}
    for each in answer.shards:
        nodes.setdefault(each.node, []).append(each.workload)
    sums = [
        [
            name,
            f"{len(those)}",
            f"{sum(each.records_per_s for each in those):,.1f}",
            size_text(round(sum(each.bytes_per_s for each in those))) + "/s",
            size_text(round(sum(each.read_bytes_per_s for each in those))) + "/s",
        ]
        for name, those in sorted(nodes.items())
    ]
    print_table(["node", "shards", "records/s", "written", "read"], sums)


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0%}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.1f}"
