"""`las train`: from what was asked on a command line to a file, a table or JSON."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import typer
from pydantic import ValidationError
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from las.core.history import Cause, Outage
from las.daemon.config import Telemetry, telemetry_mistakes
from las.daemon.prometheus import PrometheusError
from las.forecast.contract import INCIDENT, ModelRefused
from las.forecast.graph import read_bounded
from las.forecast.load import SHIPPED_MODEL
from las.forecast.model import ForecastModel
from las.training.export import Wanted, Written, export
from las.training.labels import Care, Fates
from las.training.recalibrate import Recalibrated, recalibrate
from las.training.windows import WINDOW_S, BadData, read_moments
from las.v1 import fleet_pb2, forecast_pb2, history_pb2
from peerd.cli.outage_files import BadFile, cause_text, read_outages
from peerd.cli.output import Format, print_document
from peerd.client.blocking import Client

# Audit records and cases that are asked for, as the contracts say.
_RECORDS_MAX, _CASES_MAX = 1_000, 4_096
# limit: milliseconds for all queries of a moment.
TIMEOUT_MS = 60_000


class BadQuestion(Exception):
    """What was asked cannot be answered; the message is one line with advice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Nodes with their hosts, and what became of them."""

    hosts: dict[str, str]
    fates: Fates


def telemetry_of(config: Path | None, url: str) -> Telemetry:
    """The Prometheus server to ask: `[telemetry]` of a las.toml, `url` in place of its own.

    Raises:
        BadQuestion: neither says where it is, or the file cannot be read.
    """
    told: dict[str, object] = {}
    if config is not None:
        try:
            table = tomllib.loads(config.read_text("utf-8")).get("telemetry", {})
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise BadQuestion(f"{config} cannot be read: {error}") from error
        if not isinstance(table, dict):
            raise BadQuestion(f"{config}: telemetry is no table: write [telemetry] above its keys")
        told = {key: _beside(config, key, value) for key, value in table.items()}
    told["source"] = "prometheus"
    if url:
        told["url"] = url
    if not told.get("url"):
        raise BadQuestion("which Prometheus server? --url, or -c las.toml with [telemetry] url")
    try:
        # As JSON, in which a path is text.
        telemetry = Telemetry.model_validate_json(json.dumps(told, default=str))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(each) for each in first["loc"])
        raise BadQuestion(f"telemetry.{place}: {first['msg']}") from error
    for place, mistake in telemetry_mistakes(telemetry):
        raise BadQuestion(f"{place} {mistake}")
    # Nobody's heartbeats wait for this, and a whole window at once is more than a round's second.
    return telemetry.model_copy(update={"timeout_ms": TIMEOUT_MS})


def _beside(config: Path, key: str, value: object) -> object:
    """A value of a las.toml; a path in it is relative to that file, as for the daemon."""
    return str(config.parent / value) if key.endswith("_file") and isinstance(value, str) else value


def fleet_of_file(path: Path, until_s: int) -> Fleet:
    """A fleet of which only a file of outages is known. Raises `BadQuestion`."""
    try:
        rows = [_outage(each) for each in read_outages(path)]
    except BadFile as error:
        raise BadQuestion(str(error)) from error
    hosts = {each.node: each.host or each.node for each in rows}
    return Fleet(hosts=hosts, fates=Fates(until_s=until_s, outages=tuple(rows)))


def fleet_of_cluster(client: Client, until_s: int) -> Fleet:
    """What the LAS knows: nodes, outages, and when a node was drained or protected."""
    outages = tuple(_outage(each) for each in client.las.list_outages())
    nodes = [each.node for each in client.las.status().nodes]
    hosts = {each.node: each.host or each.node for each in outages}
    hosts |= {each.name: each.labels.get("host") or each.name for each in nodes}
    cares = [
        *_drained(client.las.audit(limit=_RECORDS_MAX).records, until_s),
        *_protected(client.las.ledger(limit=_CASES_MAX), until_s),
    ]
    return Fleet(hosts=hosts, fates=Fates(until_s=until_s, outages=outages, cares=tuple(cares)))


def _outage(told: history_pb2.Outage) -> Outage:
    return Outage(
        node=told.node,
        host=told.host,
        rack=told.rack,
        begin_s=told.begin_s,
        end_s=told.end_s if told.HasField("end_s") else None,
        cause=Cause(cause_text(told)),
    )


def _drained(records: Iterable[fleet_pb2.AuditRecord], until_s: int) -> Iterator[Care]:
    """From each drain to the next undrain of that node; one that is not known lasts."""
    open_s: dict[str, int] = {}
    for record in records:
        at_s = record.timestamp_ms // 1000
        if record.ok and record.what == "node drain":
            open_s.setdefault(record.node, at_s)
        elif record.ok and record.what == "node undrain" and record.node in open_s:
            yield Care(node=record.node, begin_s=open_s.pop(record.node), end_s=at_s)
    for node, begin_s in open_s.items():
        yield Care(node=node, begin_s=begin_s, end_s=until_s)


def _protected(cases: Iterable[forecast_pb2.LedgerCase], until_s: int) -> Iterator[Care]:
    for case in cases:
        if case.response == "protect":
            end_s = case.closed_ms // 1000 if case.closed_ms else until_s
            yield Care(node=case.node, begin_s=case.opened_ms // 1000, end_s=end_s)


def run_export(
    path: Path, telemetry: Telemetry, wanted: Wanted, fleet: Fleet, output: Format
) -> Written:
    """Write the file, with progress on a terminal. Raises `BadQuestion`."""
    if not fleet.hosts:
        raise BadQuestion("no node is known: is this the fleet's cluster, or its file of outages?")
    if wanted.begin_s + WINDOW_S >= wanted.end_s:
        raise BadQuestion(f"--since: at least {WINDOW_S} s ago, and some days to be of use")
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, disable=not sys.stderr.isatty(), transient=True) as shown:
            task = shown.add_task("moments", total=None)
            written = asyncio.run(
                export(
                    path,
                    telemetry,
                    wanted,
                    hosts=fleet.hosts,
                    fates=fleet.fates,
                    progress=lambda done, all_: shown.update(task, completed=done, total=all_),
                )
            )
    except (BadData, PrometheusError) as error:
        raise BadQuestion(f"{error}; nothing was written") from error
    if output is not Format.TABLE:
        print_document(output, asdict(written))
    else:
        typer.echo(
            f"{path}: {written.windows} windows at {written.moments} moments; within 10 min "
            f"{written.came_true} of them failed, of {written.unknown} nobody knows"
        )
    return written


def live_model(client: Client) -> bytes:
    """The file of the incident model that answers in a cluster. Raises `BadQuestion`."""
    models = [
        model for each in client.las.models() if each.head == INCIDENT for model in each.models
    ]
    live = next((each for each in models if each.state == "live"), None)
    if live is None:
        raise BadQuestion("no incident model answers there: name a file with --model")
    if live.version:
        return client.las.get_model(live.version).content
    content = model_of_file(SHIPPED_MODEL)
    try:
        shipped = ForecastModel.from_bytes(content).model_id
    except ModelRefused as error:
        raise BadQuestion(f"{SHIPPED_MODEL}: {error}: name a file with --model") from error
    if shipped != live.model_id:
        raise BadQuestion(
            f"{live.model_id} answers there, which is not the model that is shipped with this "
            "program: name its file with --model"
        )
    return content


def run_fit(
    files: list[Path], model: bytes, out: Path, newest_share: float, output: Format
) -> Recalibrated:
    """Write the new model. Raises `BadQuestion` and `FitRefused`; then nothing is written."""
    try:
        made = recalibrate(model, read_moments(files), newest_share=newest_share)
        _write(out, made.content)
    except BadData as error:
        raise BadQuestion(str(error)) from error
    except ModelRefused as error:
        raise BadQuestion(f"the model cannot be recalibrated: {error}") from error
    except OSError as error:
        raise BadQuestion(f"{error.filename or out}: {error.strerror or error}") from error
    if output is not Format.TABLE:
        told = {"model_id": made.model_id, "horizons": [asdict(each) for each in made.judged]}
        print_document(output, told)
        return made
    typer.echo(f"{out}: {made.model_id}")
    for each in made.judged:
        typer.echo(
            f"  within {each.horizon_s} s: slope {each.slope:.3f}, "
            f"intercept {each.intercept:+.3f}; "
            f"newest slice ({each.forecasts} forecasts, {each.came_true} came true): "
            f"log loss {each.loss:.6f}, before {each.loss_before:.6f}; "
            f"Brier {each.brier:.6f}, before {each.brier_before:.6f}"
        )
    typer.echo(f"  install it: las model install {out}")
    return made


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all. Raises `OSError`."""
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def model_of_file(path: Path) -> bytes:
    """A model's file. Raises `BadQuestion`."""
    try:
        return read_bounded(path)
    except ModelRefused as error:
        raise BadQuestion(f"{path}: {error}") from error
    except OSError as error:
        raise BadQuestion(f"{path}: {error.strerror or error}") from error


def now_s() -> int:
    """Seconds since 1970."""
    return int(time.time())
