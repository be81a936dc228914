"""`peerctl node …` and `peerctl safe-to-stop`: who is in the fleet, who leaves it, at what cost."""

import math
import time
from typing import Annotated

import typer

from las.v1 import fleet_pb2
from las.v1.shard_map_pb2 import NODE_STATE_UP
from peerd.cli.output import (
    EXIT_REFUSED,
    EXIT_USAGE,
    ConfigOption,
    Format,
    FormatOption,
    NodeName,
    as_dict,
    connected,
    duration_s,
    duration_text,
    fail,
    print_document,
    print_table,
    probability_text,
    size_text,
)
from peerd.client.blocking import Client

node_app = typer.Typer(
    help="Nodes: list them, drain them, replace their stores, remove them.", no_args_is_help=True
)
DRAIN_POLL_S = 0.5
# Seconds without progress after which a drain says what may hold it up.
DRAIN_STILL_S = 15.0


@node_app.command("list")
def list_nodes(config: ConfigOption = None, output: FormatOption = Format.TABLE) -> None:
    """List the peers with what they do."""
    with connected(config) as client:
        nodes = client.las.status().nodes
        if output is not Format.TABLE:
            print_document(output, [as_dict(each) for each in nodes])
            return
        columns = ["node", "address", "host", "zone", "state", "primary of", "votes in", "holds"]
        rows = [_node_row(each) for each in nodes]
        print_table([*columns, "p(10 min)", "stored", "free", "scrubbed"], rows)


def _node_row(entry: fleet_pb2.NodeStatus) -> list[str]:
    node = entry.node
    state = "up" if node.state == NODE_STATE_UP else f"down {duration_text(entry.silent_ms)}"
    if node.draining:
        state += ", draining" + drain_end_text(entry)
    elif node.at_risk:
        state += ", at risk"
    if copying := copying_text(entry):
        state += f", {copying}"
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
        _scrub_text(entry),
    ]


def _scrub_text(entry: fleet_pb2.NodeStatus) -> str:
    """When all that the node stores was last read, and what of it is damaged."""
    age = f"{duration_text(1000 * entry.scrub_age_s)} ago" if entry.HasField("scrub_age_s") else "-"
    if entry.damaged_batches:
        return f"{age}, {entry.damaged_batches} damaged"
    return f"{age}, {entry.repaired_batches} repaired" if entry.repaired_batches else age


def copying_text(entry: fleet_pb2.NodeStatus) -> str:
    """How far a node is with the copies that it makes, in words; empty if it makes none."""
    if not entry.HasField("copying"):
        return ""
    now = entry.copying
    told = f"copies {now.records} records of {now.segments} segments"
    if not now.records_per_s:
        return told
    left_ms = round(1000 * now.records / now.records_per_s)
    return f"{told} at {size_text(round(now.bytes_per_s))}/s, {duration_text(left_ms)} left"


def protection_text(entry: fleet_pb2.NodeStatus, needed: str) -> str:
    """How far a node at risk or being drained is relieved; `needed` where it is not."""
    if entry.expendable:
        return "expendable"
    if entry.shielded:
        return "shielded"
    return "mirrored" if entry.mirrored else needed


def drain_end_text(entry: fleet_pb2.NodeStatus) -> str:
    """When a drain ends by itself, in words; empty if it does not."""
    if not entry.HasField("drain_ends_in_ms"):
        return ""
    return f", ends in {duration_text(entry.drain_ends_in_ms)}"


@node_app.command("drain")
def drain(
    node: NodeName,
    for_: Annotated[
        str | None,
        typer.Option("--for", help="It ends by itself after so long: 90s, 15m, 2h, 1d."),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Return when it is safe to pull the plug.")] = True,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Move everything off a node, and say when it is safe to pull the plug.

    With --for it is maintenance with a deadline: the node is used again when the time is over.
    Asked again, the new time counts; `peerctl node undrain` ends it at once.
    """
    for_s = None if for_ is None else duration_s(for_)
    if for_ is not None and for_s is None:
        fail(f"--for {for_}: how long, such as 90s, 15m, 2h or 1d", EXIT_USAGE)
    with connected(config) as client:
        client.las.drain(node, for_s=for_s)
        if wait:
            _wait_drained(client, node, quiet=output is not Format.TABLE)
        if output is not Format.TABLE:
            print_document(output, {"node": node, "draining": True, "expendable": wait})
        elif wait:
            typer.echo(f"{node} is expendable: it is safe to pull the plug")
        else:
            typer.echo(f"{node} is draining; `peerctl node list` shows how far")


def _wait_drained(client: Client, node: str, *, quiet: bool) -> None:
    """Return when the node is expendable; ends the command if it never will be.

    How far it is goes to stderr, and once it stands still what is wrong, as `peerctl status` has
    it: a drain that nobody can take over from would wait without a word.
    """
    told, told_s = "", time.monotonic()
    while True:
        answer = client.las.status()
        entry = next((each for each in answer.nodes if each.node.name == node), None)
        if entry is None:
            fail(f"{node} is gone", EXIT_REFUSED)
        if not entry.node.draining:
            fail(f"the drain of {node} ended before it was safe", EXIT_REFUSED)
        text = (
            f"{node}: {entry.primaries} primaries, votes in {entry.voting}, "
            f"holds {entry.holding} sealed segments"
        )
        if not quiet and text != told:
            typer.echo(text, err=True)
            told, told_s = text, time.monotonic()
        if entry.expendable:
            return
        if not quiet and time.monotonic() - told_s >= DRAIN_STILL_S:
            for line in [*(f"!  {each}" for each in answer.warnings), _still_words(node)]:
                typer.echo(line, err=True)
            told_s = math.inf
        time.sleep(DRAIN_POLL_S)


def _still_words(node: str) -> str:
    return (
        f"{node}: no progress for {DRAIN_STILL_S:.0f} s. It is drained after Ctrl-C as well; "
        f"`peerctl explain {node}` says what is under way, `peerctl node undrain {node}` ends it"
    )


@node_app.command("undrain")
def undrain(
    node: NodeName, config: ConfigOption = None, output: FormatOption = Format.TABLE
) -> None:
    """End a drain: the node may be used again."""
    with connected(config) as client:
        client.las.undrain(node)
        if output is not Format.TABLE:
            print_document(output, {"node": node, "draining": False})
        else:
            typer.echo(f"{node} may be used again")


@node_app.command("remove")
def remove(
    node: NodeName, config: ConfigOption = None, output: FormatOption = Format.TABLE
) -> None:
    """Take a node that is down out of the fleet.

    Refused while a shard needs what it has: drain it first, or wait until what it had is copied
    from others. Should it start again, it joins as a new node.
    """
    with connected(config) as client:
        client.las.remove_node(node)
        if output is not Format.TABLE:
            print_document(output, {"node": node, "removed": True})
        else:
            typer.echo(f"{node} is no node of the fleet any more")


@node_app.command("replace")
def replace(
    node: NodeName,
    store: Annotated[
        str,
        typer.Option(help="Id of the new store; the log of the peer that was refused names it."),
    ],
    accept_data_loss: Annotated[
        bool,
        typer.Option(
            "--accept-data-loss", help="Also if records may be left on no store that is known."
        ),
    ] = False,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Accept a node's new data directory, after the old one was lost.

    The copies in the old one count as gone and are made anew elsewhere. Refused while records may
    be on the old one alone. With the old store's id it takes a replacement back.
    """
    with connected(config) as client:
        client.las.replace_node(node, store, accept_loss=accept_data_loss)
        if output is not Format.TABLE:
            print_document(output, {"node": node, "store_id": store, "replaced": True})
        else:
            typer.echo(f"{node} may start with store {store}")


def safe_to_stop(
    node: NodeName, config: ConfigOption = None, output: FormatOption = Format.TABLE
) -> None:
    """Say whether a node may be stopped now, and what each shard would lose. Exit status 1: no."""
    with connected(config) as client:
        answer = client.las.check_stop(node)
        if output is not Format.TABLE:
            print_document(output, as_dict(answer))
        elif answer.safe:
            typer.echo(f"{node} may be stopped: no shard pauses, every record keeps its copies")
        else:
            typer.echo(f"{node} should not be stopped now:")
            for reason in answer.reasons:
                typer.echo(f"  {reason}")
            print_table(["shard", "would"], [_cost_row(cost) for cost in answer.costs])
            if answer.costs_total > len(answer.costs):
                typer.echo(f"and {answer.costs_total - len(answer.costs)} more")
    if not answer.safe:
        raise typer.Exit(EXIT_REFUSED)


_COST_WORDS = {
    fleet_pb2.STOP_COST_KIND_UNREADABLE: "be unreadable in part",
    fleet_pb2.STOP_COST_KIND_PAUSE: "pause",
    fleet_pb2.STOP_COST_KIND_FEWER_COPIES: "have fewer copies",
}


def _cost_row(cost: fleet_pb2.StopCost) -> list[str]:
    return [f"{cost.log}/{cost.shard}", f"{_COST_WORDS.get(cost.kind, '?')}: {cost.why}"]
