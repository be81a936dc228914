"""`peerctl status|forecast|explain|shard`: what operators look at, and hand over."""

import math
import time
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from las.v1 import fleet_pb2, forecast_pb2
from las.v1.shard_map_pb2 import NODE_STATE_UP
from peerd.cli.node_commands import copying_text, drain_end_text, protection_text
from peerd.cli.output import (
    EXIT_REFUSED,
    EXIT_USAGE,
    ConfigOption,
    Format,
    FormatOption,
    NodeName,
    as_dict,
    connected,
    duration_text,
    fail,
    print_document,
    print_table,
    probability_text,
    size_text,
    whole_number,
)
from peerd.client.blocking import Client


class _Targets(TyperGroup):
    """`explain peer-3` and `explain orders/3` without the word that says what it is."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands:
            args = ["shard" if "/" in args[0] else "node", *args]
        return super().resolve_command(ctx, args)


class _Forecasts(TyperGroup):
    """`forecast` and `forecast peer-3` beside `forecast ledger` and `forecast effect`."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        if args[:1] != ["--help"] and (not args or args[0] not in self.commands):
            args = ["show", *args]
        return super().parse_args(ctx, args)


shard_app = typer.Typer(help="Shards: hand them over.", no_args_is_help=True)
forecast_app = typer.Typer(
    cls=_Forecasts,
    help="How probable it is that each node fails soon, and what came of such forecasts.",
)
explain_app = typer.Typer(
    cls=_Targets,
    help="Why the LAS decided what it decided: `explain NODE` or `explain LOG/SHARD`.",
    no_args_is_help=True,
)


def status(config: ConfigOption = None, output: FormatOption = Format.TABLE) -> None:
    """The fleet at a glance: what is wrong first, with the next step."""
    with connected(config) as client:
        answer = client.las.status()
        if output is not Format.TABLE:
            print_document(output, as_dict(answer))
            return
        for warning in answer.warnings:
            typer.echo(f"!  {warning}")
        for label, text in glance(answer):
            typer.echo(f"{label:<9} {text}")


def glance(answer: fleet_pb2.GetStatusResponse) -> list[tuple[str, str]]:
    """The fleet in a few lines: what each is about, and what it says."""
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
        ("at stake", _worst_text(answer)),
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
    lines += [
        ("copying", f"{each.node.name} {copying_text(each)}")
        for each in nodes
        if each.HasField("copying")
    ]
    if answer.access:
        lines.append(("access", answer.access))
    if answer.rebalance.startswith("moving"):
        lines.append(("balance", answer.rebalance))
    if answer.level_used < answer.level_known:
        text = f"all nodes know level {answer.level_known}, in use {answer.level_used}"
        lines.append(("upgrade", f"not finalised: {text}; `peerctl cluster finalize`"))
    if not answer.warnings:
        lines.append(("", "nothing is wrong"))
    return lines


def _worst_text(answer: fleet_pb2.GetStatusResponse) -> str:
    """What would be out of reach if the worst node died now."""
    worst = answer.worst
    if not worst.node:
        return "0 s: whichever node dies now, no acknowledged record of two copies is lost"
    told = [f"{worst.sealed_records} sealed records"] if worst.sealed_records else []
    if worst.open_shards:
        told.append(f"what {worst.open_shards} shards took last")
    span = "what no other store has"
    if worst.HasField("exposed_ms"):
        span = f"{worst.exposed_ms / 1000:.0f} s"
    what = f"{' and '.join(told)}, of {worst.shards} shards"
    return f"{span}: {worst.node} alone, of nodes that are up, has {what}"


def _risk_text(entry: fleet_pb2.NodeStatus) -> str:
    where = protection_text(entry, "not yet shielded")
    zone = entry.node.labels.get("zone", "")
    place = f" ({zone})" if zone else ""
    risk = f"p(10 min) {probability_text(entry.p_10_min)}"
    return f"{entry.node.name}{place}   {risk}   {where}{drain_end_text(entry)}"


# ---------------------------------------------------------------------------------- forecast
@forecast_app.command("show")
def forecast(
    node: Annotated[str, typer.Argument(help="Only this node.")] = "",
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """How probable it is that each node fails soon, and why."""
    with connected(config) as client:
        forecasts = client.las.forecasts(node)
        if output is not Format.TABLE:
            print_document(output, [as_dict(each) for each in forecasts])
        elif not forecasts:
            typer.echo("no forecast yet: no peer has sent samples")
        else:
            _print_forecasts(forecasts)


def _print_forecasts(forecasts: Sequence[forecast_pb2.NodeForecast]) -> None:
    told: list[Iterable[forecast_pb2.Horizon]] = [
        [*each.horizons, *each.joined] for each in forecasts
    ]
    told += [outside.horizons for each in forecasts for outside in each.outside]
    horizons = sorted({horizon.horizon_s for each in told for horizon in each})
    rows = [row for each in forecasts for row in _forecast_rows(each, horizons)]
    names = [f"p({duration_text(horizon * 1000)})" for horizon in horizons]
    print_table(["node", *names, "judged", "because", "model"], rows)


def _forecast_rows(each: forecast_pb2.NodeForecast, horizons: Sequence[int]) -> list[list[str]]:
    """A row of the LAS's own forecast, and one for each outside forecaster.

    The deciding head stands up to its last horizon, beyond it all heads together.
    """
    known = each.known or any(head.known for head in each.heads)
    decided = {horizon.horizon_s for horizon in each.horizons}
    own = _probabilities(each.horizons, horizons, known=each.known)
    joined = _probabilities(each.joined, horizons, known=known)
    rows = [
        [
            each.node,
            *(own[n] if at in decided else joined[n] for n, at in enumerate(horizons)),
            "at risk" if each.at_risk else "-" if each.known else "not enough seen",
            ", ".join(reason.text for reason in _all_reasons(each)) or "-",
            ", ".join(
                [
                    each.model_id,
                    *(head.model_id for head in each.heads if head.known),
                    *(head.without for head in each.heads if head.without),
                ]
            ),
        ]
    ]
    for told in each.outside:
        source = f" ({told.source})" if told.source else ""
        rows.append(
            [
                each.node,
                *_probabilities(told.horizons, horizons, known=True),
                "",
                f"said {duration_text(told.age_ms)} ago",
                f"{told.forecaster}{source}",
            ]
        )
    return rows


def _probabilities(
    told: Iterable[forecast_pb2.Horizon], horizons: Sequence[int], *, known: bool
) -> list[str]:
    found = {each.horizon_s: each.probability for each in told}
    if not known:
        return ["?" if horizon in found else "-" for horizon in horizons]
    return [probability_text(found[horizon]) if horizon in found else "-" for horizon in horizons]


def _all_reasons(forecast: forecast_pb2.NodeForecast) -> list[forecast_pb2.ForecastReason]:
    """Of the deciding head first; one that two heads would give is told once."""
    reasons = [*forecast.reasons, *(reason for head in forecast.heads for reason in head.reasons)]
    return list({reason.text: reason for reason in reasons}.values())


@forecast_app.command("ledger")
def ledger(
    node: Annotated[str, typer.Argument(help="Only this node.")] = "",
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=4_096, help="So many cases, the newest.")
    ] = 100,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Each alarm: what was done about it, how it ended, what it cost or saved."""
    with connected(config) as client:
        cases = client.las.ledger(node, limit)
        if output is not Format.TABLE:
            print_document(output, [as_dict(each) for each in cases])
        elif not cases:
            typer.echo("no forecast has crossed a line yet, and no node has failed")
        else:
            header = ["case", "alarm", "node", "because", "done", "ended", "lead", "spent", "told"]
            print_table(header, [_case_row(each) for each in cases])


def _case_row(case: forecast_pb2.LedgerCase) -> list[str]:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(case.opened_ms / 1000))
    because = case.rule or "-"
    if case.horizon_s:
        horizon = duration_text(case.horizon_s * 1000)
        because = f"p({horizon}) {case.probability:.2f}, line {case.line:.2f}"
    spent = f"{case.copies_spent} copies, {size_text(case.bytes_spent)}"
    return [
        str(case.number),
        at,
        case.node,
        because,
        case.response.replace("_", " "),
        case.outcome.replace("_", " "),
        duration_text(case.lead_ms) if case.outcome in {"hit", "miss"} and case.rule else "-",
        spent if case.response == "protect" else "-",
        case.told or "-",
    ]


@forecast_app.command("effect")
def effect(config: ConfigOption = None, output: FormatOption = Format.TABLE) -> None:
    """What anticipation saves on this fleet: a random part of the alarms is left alone."""
    with connected(config) as client:
        found = client.las.effect()
        if output is not Format.TABLE:
            print_document(output, as_dict(found))
            return
        typer.echo(f"alarms    {found.protected} protected, {found.held_out} left alone by chance")
        saved = _interval(found.saved_s, " s", "of a shard's pause by each protected alarm")
        in_all = _interval(found.saved_total_s, " s", "by all protected alarms")
        precision = _interval(found.precision, "", "of the alarms left alone came true")
        typer.echo(f"saved     {saved}\nin all    {in_all}\nprecision {precision}")


def _interval(found: forecast_pb2.Estimate, unit: str, what: str) -> str:
    if math.isnan(found.value):
        return "not known yet: too few alarms were left alone"
    return f"{found.value:.3g}{unit} (95 %: {found.low:.3g} to {found.high:.3g}{unit}) {what}"


@explain_app.command("node")
def explain_node(
    node: NodeName, config: ConfigOption = None, output: FormatOption = Format.TABLE
) -> None:
    """What was seen of a node, and what was decided, in order."""
    with connected(config) as client:
        answer = client.las.explain(node)
        if output is not Format.TABLE:
            print_document(output, as_dict(answer))
            return
        _print_forecasts([answer.forecast])
        for line in answer.judgement:
            typer.echo(f"judged    {line}")
        _print_plan(answer)
        for event in answer.events:
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.timestamp_ms / 1000))
            typer.echo(f"{at}  {event.kind:<11} {event.text}")
        if not answer.events:
            typer.echo("nothing has happened to it")


@explain_app.command("shard")
def explain_shard(
    shard: Annotated[str, typer.Argument(help="LOG/SHARD, e.g. orders/3.")],
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Why a shard is where it is, who else was considered, and what would be done now."""
    with connected(config) as client:
        answer = client.las.explain(shard=shard_number(client, shard))
        if output is not Format.TABLE:
            print_document(output, as_dict(answer))
        else:
            _print_plan(answer)


def _print_plan(answer: forecast_pb2.ExplainResponse) -> None:
    for line in answer.facts:
        typer.echo(f"seen      {line}")
    for action in answer.actions:
        typer.echo(f"{action.kind:<9} {action.log}/{action.shard}: {action.why}")


# ---------------------------------------------------------------------------------- shards
def shard_number(client: Client, shard: str) -> int:
    """The id in LOG/SHARD; ends the command unless the log has it."""
    log, _, number = shard.rpartition("/")
    if not log or whole_number(number) is None:
        fail(f"{shard!r} is no shard: write LOG/SHARD, e.g. orders/3", EXIT_USAGE)
    entry, _ = client.describe_log(log)
    if int(number) not in entry.shards:
        listed = ", ".join(str(each) for each in entry.shards)
        fail(f"{log} has no shard {number}; it has {listed}", EXIT_REFUSED)
    return int(number)


@shard_app.command("switch")
def switch(
    shard: Annotated[str, typer.Argument(help="LOG/SHARD, e.g. orders/3.")],
    node: Annotated[str, typer.Argument(help="Node that shall be primary.")],
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Hand a shard over to another primary by plan, without a pause."""
    with connected(config) as client:
        number = shard_number(client, shard)
        epoch = client.las.switch_primary(number, node)
        if output is not Format.TABLE:
            print_document(output, {"shard": number, "node": node, "epoch": epoch})
        else:
            typer.echo(f"{shard} is being handed over to {node}, epoch {epoch}")
