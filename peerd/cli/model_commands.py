"""`las model`, `peerctl model`: forecast models are installed, compared, promoted, rolled back."""

import math
import re
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from las.v1 import model_pb2
from peerd.cli.output import (
    EXIT_REFUSED,
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
    size_text,
)

SHIPPED_WORD = "shipped"
# limit: bytes of a model's file, as the contract says.
MODEL_BYTES_MAX = 1 << 20

model_app = typer.Typer(
    help="Forecast models. A new one is checked, kept by all LAS nodes and runs in shadow: it "
    "forecasts beside the one that answers and moves nothing until it is promoted. Needs a "
    "peerctl.toml with a certificate of an operator or administrator.",
    no_args_is_help=True,
    add_completion=False,
)


class HeadName(StrEnum):
    """The kinds of model."""

    INCIDENT = "incident"
    HARDWARE = "hardware"
    HISTORY = "history"


HeadOption = Annotated[
    HeadName | None,
    typer.Option(help="The kind of model: incident decides, the others inform."),
]


@model_app.command("install")
def install(
    file: Annotated[
        Path, typer.Argument(help="An .onnx file with peerd's contract, at most 1 MiB.")
    ],
    head: HeadOption = None,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Give all LAS nodes a model, which then runs in shadow.

    It is refused, and nothing changed, unless it is for this version's telemetry, answers its own
    self-test, and gives probabilities for whatever a fleet may send, quickly enough. The file says
    for which head it is; with --head one that says otherwise is refused.

    Example: las model install incident.onnx && las model list
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(MODEL_BYTES_MAX + 1)
    except OSError as error:
        fail(f"{file}: {error.strerror}", EXIT_USAGE)
    if len(content) > MODEL_BYTES_MAX:
        text = f"{file} has more than the {MODEL_BYTES_MAX >> 20} MiB of a model; nothing was sent"
        fail(text, EXIT_USAGE)
    with connected(config) as client:
        answer = client.las.install_model(content, head=head or "")
    if output is not Format.TABLE:
        print_document(output, as_dict(answer))
        return
    what = f"{answer.head} model {answer.model_id}"
    if answer.known:
        typer.echo(f"version {answer.version} is {what} already: see `las model list`")
    else:
        typer.echo(
            f"version {answer.version}: {what}, in shadow; compare it with `las model list`, "
            f"let it answer with `las model promote {answer.version}`"
        )


@model_app.command("list")
def list_models(config: ConfigOption = None, output: FormatOption = Format.TABLE) -> None:
    """All versions, which of them answer, and how those in shadow compare.

    Counted since the LAS leader of now has run the one in shadow. Brier is the mean squared error
    over forecasts whose end is known: lower is better.
    """
    with connected(config) as client:
        heads = client.las.models()
    if output is not Format.TABLE:
        print_document(output, [as_dict(each) for each in heads])
        return
    columns = ["version", "head", "model", "state", "size", "installed"]
    print_table(columns, [_row(each, model) for each in heads for model in each.models])
    for each in heads:
        if each.note:
            typer.echo(f"!  {each.note}")
        for model in each.models:
            for line in _compared(model):
                typer.echo(line)


def _row(head: model_pb2.HeadModels, model: model_pb2.Model) -> list[str]:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(model.installed_ms / 1000))
    return [
        str(model.version) if model.version else SHIPPED_WORD,
        head.head,
        model.model_id or "-",
        model.state,
        size_text(model.size_bytes) if model.version else "-",
        at if model.version else "-",
    ]


def _compared(model: model_pb2.Model) -> Iterator[str]:
    if model.state != "shadow":
        return
    seen = model.comparison
    yield f"version {model.version} in shadow: {seen.rounds} rounds, {seen.forecasts} forecasts"
    if seen.given_up:
        yield f"  given up: {seen.given_up}"
    if seen.rounds:
        horizon = duration_text(seen.horizon_s * 1000)
        yield (
            f"  p({horizon}) differs by {seen.difference_mean:.4f} on average, "
            f"{seen.difference_max:.4f} at most"
        )
        yield f"  reached 0.8: {seen.alarms_shadow} times, the one that answers {seen.alarms} times"
        ended = f"  {seen.scored} forecasts have ended, {seen.came_true} came true"
        if math.isnan(seen.brier):
            yield f"{ended}; an end is known after {horizon} at the latest"
        else:
            yield f"{ended}: Brier {seen.brier_shadow:.4f}, the one that answers {seen.brier:.4f}"


@model_app.command("fetch")
def fetch(
    version: Annotated[
        int, typer.Argument(min=1, max=UINT32_MAX, help="A version of `las model list`.")
    ],
    file: Annotated[Path, typer.Argument(help="The .onnx file to write.")],
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Write the file of a version that was installed, as it came."""
    with connected(config) as client:
        answer = client.las.get_model(version)
    try:
        file.write_bytes(answer.content)
    except OSError as error:
        fail(f"{file}: {error.strerror}", EXIT_USAGE)
    told = {"version": version, "head": answer.head, "model_id": answer.model_id}
    if output is not Format.TABLE:
        print_document(output, {**told, "file": str(file)})
    else:
        typer.echo(f"{file}: version {version}, {answer.head} model {answer.model_id}")


@model_app.command("promote")
def promote(
    version: Annotated[str, typer.Argument(help="A version of `las model list`, or: shipped.")],
    head: HeadOption = None,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Let a version answer, on every LAS node, from the next evaluation on.

    What answered until then is kept, and `las model rollback` goes back to it at once.
    """
    if version != SHIPPED_WORD and re.fullmatch(r"[1-9][0-9]{0,8}", version) is None:
        fail(f"{version!r} is no version: a number of `las model list`, or shipped", EXIT_USAGE)
    number = 0 if version == SHIPPED_WORD else int(version)
    with connected(config) as client:
        answer = client.las.promote_model(number, head=head or "")
    if output is not Format.TABLE:
        print_document(output, as_dict(answer))
    else:
        typer.echo(f"{answer.head}: {answer.text}")


@model_app.command("rollback")
def rollback(
    head: Annotated[HeadName, typer.Option(help="The kind of model.")] = HeadName.INCIDENT,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Let the version that answered before answer again, on every LAS node."""
    with connected(config) as client:
        now = next(each for each in client.las.models() if each.head == head)
        live = next((each.version for each in now.models if each.state == "live"), None)
        if live is None:
            fail(f"no {head} model answers: see `las model list`", EXIT_REFUSED)
        answer = client.las.roll_back_model(head, live)
    if output is not Format.TABLE:
        print_document(output, as_dict(answer))
    else:
        typer.echo(f"{head}: {answer.text}")
