"""`peerctl status|forecast|explain|node|shard`: what operators do."""

import time
from collections.abc import Sequence
from typing import Annotated

import typer

from las.v1 import fleet_pb2, forecast_pb2
from las.v1.shard_map_pb2 import NODE_STATE_UP
from peerd.cli.output import (
    EXIT_REFUSED,
    EXIT_USAGE,
    ConfigOption,
    Format,
    FormatOption,
    as_dict,
    connected,
    duration_text,
    fail,
    print_json,
    print_table,
    probability_text,
    size_text,
)

node_app = typer.Typer(help="Nodes: list them, drain them.", no_args_is_help=True)
shard_app = typer.Typer(help="Shards: hand them over.", no_args_is_help=True)
explain_app = typer.Typer(help="Why the LAS decided what it decided.", no_args_is_help=True)

NodeName = Annotated[str, typer.Argument(help="Name of the node, e.g. peer-3.")]
DRAIN_POLL_S = 0.5


def status(config: ConfigOption = None, output: FormatOption = Format.TABLE) -> None:
    """The fleet at a glance: what is wrong first, with the next step."""
    with connected(config) as client:
        answer = client.las.status()
        if output is Format.JSON:
            print_json(as_dict(answer))
            return
        for warning in answer.warnings:
            typer.echo(f"!  {warning}")
        for label, text in _glance(answer):
            typer.echo(f"{label:<9} {text}")


def _glance(answer: fleet_pb2.GetStatusResponse) -> list[tuple[str, str]]:
    nodes = answer.nodes
    up = [each for each in nodes if each.node.state == NODE_STATE_UP]
    zones = {each.node.labels.get("zone", "") for each in nodes} - {""}
    where = f" in {len(zones)} zones" if zones else ""
    stored = sum(each.stored_bytes for each in nodes)
    members = f"{sum(member.up for member in answer.las)} of {len(answer.las)}"
    copies = "every sealed segment has its copies"
    if answer.segments_short:
        copies = f"{answer.segments_short} sealed segments lack copies"
    fleet = f"{len(up)} of {len(nodes)} peers up{where}, LAS {members}"
    data = f"{size_text(stored)} on disk in {answer.logs} logs, {answer.shards} shards"
    lines = [
        ("fleet", f"{fleet} (leader {answer.las_leader or 'none'})"),
        ("data", f"{data}; {copies}"),
    ]
    if answer.shards_paused:
        lines.append(("paused", f"{answer.shards_paused} shards take no appends"))
    lines += [
        ("draining" if each.node.draining else "at risk", _risk_text(each))
        for each in nodes
        if each.node.at_risk or each.node.draining
    ]
    if answer.copying:
        lines.append(("moving", f"{answer.copying} copies under way"))
    if not answer.warnings:
        lines.append(("", "nothing is wrong"))
    return lines


def _risk_text(entry: fleet_pb2.NodeStatus) -> str:
    where = (
        "expendable" if entry.expendable else "shielded" if entry.shielded else "not yet shielded"
    )
    zone = entry.node.labels.get("zone", "")
    place = f" ({zone})" if zone else ""
    return f"{entry.node.name}{place}   p(10 min) {probability_text(entry.p_10_min)}   {where}"


# ---------------------------------------------------------------------------------- forecast
def forecast(
    node: Annotated[str, typer.Argument(help="Only this node.")] = "",
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """How probable it is that each node fails soon, and why."""
    with connected(config) as client:
        forecasts = client.las.forecasts(node)
        if output is Format.JSON:
            print_json([as_dict(each) for each in forecasts])
        elif not forecasts:
            typer.echo("no forecast yet: no peer has sent samples")
        else:
            _print_forecasts(forecasts)


def _print_forecasts(forecasts: Sequence[forecast_pb2.NodeForecast]) -> None:
    horizons = [horizon.horizon_s for horizon in forecasts[0].horizons]
    rows = [
        [
            each.node,
            *(probability_text(h.probability if each.known else None) for h in each.horizons),
            "at risk" if each.at_risk else "-" if each.known else "not enough seen",
            ", ".join(reason.text for reason in each.reasons) or "-",
            each.model_id,
        ]
        for each in forecasts
    ]
    names = [f"p({duration_text(horizon * 1000)})" for horizon in horizons]
    print_table(["node", *names, "judged", "because", "model"], rows)


@explain_app.command("node")
def explain_node(
    node: NodeName, config: ConfigOption = None, output: FormatOption = Format.TABLE
) -> None:
    """What was seen of a node, and what was decided, in order."""
    with connected(config) as client:
        answer = client.las.explain(node)
        if output is Format.JSON:
            print_json(as_dict(answer))
            return
        _print_forecasts([answer.forecast])
        for event in answer.events:
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.timestamp_ms / 1000))
            typer.echo(f"{at}  {event.kind:<11} {event.text}")
        if not answer.events:
            typer.echo("nothing has happened to it")


# ---------------------------------------------------------------------------------- nodes
@node_app.command("list")
def list_nodes(config: ConfigOption = None, output: FormatOption = Format.TABLE) -> None:
    """List the peers with what they do."""
    with connected(config) as client:
        nodes = client.las.status().nodes
        if output is Format.JSON:
            print_json([as_dict(each) for each in nodes])
            return
        columns = ["node", "address", "host", "zone", "state", "primary of", "votes in", "holds"]
        rows = [_node_row(each) for each in nodes]
        print_table([*columns, "p(10 min)", "stored", "free"], rows)


def _node_row(entry: fleet_pb2.NodeStatus) -> list[str]:
    node = entry.node
    state = "up" if node.state == NODE_STATE_UP else f"down {duration_text(entry.silent_ms)}"
    if node.draining:
        state += ", draining"
    elif node.at_risk:
        state += ", at risk"
    return [
        node.name,
        node.address,
        node.labels.get("host", "-"),
        node.labels.get("zone", "") or "-",
        state,
        str(entry.primaries),
        str(entry.voting),
        str(entry.holding),
        probability_text(entry.p_10_min),
        size_text(entry.stored_bytes),
        size_text(entry.free_bytes),
    ]


@node_app.command("drain")
def drain(
    node: NodeName,
    wait: Annotated[bool, typer.Option(help="Return when it is safe to pull the plug.")] = True,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Move everything off a node, and say when it is safe to pull the plug."""
    with connected(config) as client:
        client.las.drain(node)
        told = ""
        while wait:
            found = [each for each in client.las.status().nodes if each.node.name == node]
            if not found:
                fail(f"{node} is gone", EXIT_REFUSED)
            entry = found[0]
            text = (
                f"{node}: {entry.primaries} primaries, votes in {entry.voting}, "
                f"holds {entry.holding} sealed segments"
            )
            if output is Format.TABLE and text != told:
                typer.echo(text, err=True)
                told = text
            if entry.expendable:
                break
            time.sleep(DRAIN_POLL_S)
        if output is Format.JSON:
            print_json({"node": node, "draining": True, "expendable": wait})
        elif wait:
            typer.echo(f"{node} is expendable: it is safe to pull the plug")
        else:
            typer.echo(f"{node} is draining; `peerctl node list` shows how far")


@node_app.command("undrain")
def undrain(
    node: NodeName, config: ConfigOption = None, output: FormatOption = Format.TABLE
) -> None:
    """End a drain: the node may be used again."""
    with connected(config) as client:
        client.las.undrain(node)
        if output is Format.JSON:
            print_json({"node": node, "draining": False})
        else:
            typer.echo(f"{node} may be used again")


# ---------------------------------------------------------------------------------- shards
@shard_app.command("switch")
def switch(
    shard: Annotated[str, typer.Argument(help="LOG/SHARD, e.g. orders/3.")],
    node: Annotated[str, typer.Argument(help="Node that shall be primary.")],
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Hand a shard over to another primary by plan, without a pause."""
    log, _, number = shard.rpartition("/")
    if not (log and number.isdigit()):
        fail(f"{shard!r} is no shard: write LOG/SHARD, e.g. orders/3", EXIT_USAGE)
    with connected(config) as client:
        entry, _ = client.describe_log(log)
        if int(number) not in entry.shards:
            listed = ", ".join(str(each) for each in entry.shards)
            fail(f"{log} has no shard {number}; it has {listed}", EXIT_REFUSED)
        epoch = client.las.switch_primary(int(number), node)
        if output is Format.JSON:
            print_json({"shard": int(number), "node": node, "epoch": epoch})
        else:
            typer.echo(f"{shard} is being handed over to {node}, epoch {epoch}")
