"""How `peerctl` speaks: tables on a terminal, JSON or YAML for programs, errors in one line.

Exit statuses are stable: 0 done; 1 the cluster refused or failed; 2 used or configured wrongly;
130 ended by Ctrl-C. What a program reads goes to stdout, everything else to stderr.
"""

import datetime
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
import yaml
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table

from peerd.client import blocking
from peerd.client.errors import CredentialsError, PeerdError
from peerd.client.options import ClientOptions

EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
CONFIG_VARIABLE = "PEERCTL_CONFIG"
_UNIT_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_named_before: ContextVar[Path | None] = ContextVar("named before the command", default=None)
# limit: numbers that a message has as uint32, or as uint64 that LMDB and JSON keep as they are.
UINT32_MAX, INT64_MAX = (1 << 32) - 1, (1 << 63) - 1
_FIRST_MOMENT = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
# A time span that reaches before 1970 from any day of this program's life.
_AGO_S_MAX = 1_000 * 365 * 86_400
CONFIG_PLACES = (Path("peerctl.toml"), Path("build/dev/peerctl.toml"))


class Format(StrEnum):
    """What the answer looks like."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="peerctl.toml of the cluster. Default: $PEERCTL_CONFIG, ./peerctl.toml, "
        "build/dev/peerctl.toml.",
    ),
]
FormatOption = Annotated[
    Format, typer.Option("--output", "-o", help="A table for people, JSON or YAML for programs.")
]


def before_command(context: typer.Context, config: ConfigOption = None) -> None:
    """Keep what was said before the command's name, for a command that is not told otherwise."""
    token = _named_before.set(config)
    context.call_on_close(lambda: _named_before.reset(token))


NodeName = Annotated[str, typer.Argument(help="Name of the node, e.g. peer-3.")]


@contextmanager
def connected(
    config: Path | None, options: ClientOptions | None = None
) -> Iterator[blocking.Client]:
    """A client of the cluster; whatever fails inside ends the command with one line."""
    with one_line_errors():
        with blocking.connect(credentials=config_path(config), options=options) as client:
            yield client


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what users can cause into one line on stderr and a stable exit status."""
    try:
        yield
    except CredentialsError as error:
        fail(str(error), EXIT_USAGE)
    except PeerdError as error:
        fail(str(error), EXIT_REFUSED)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:
        # The reader of our output has gone, as `| head` does: nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None


def fail(message: str, status: int) -> NoReturn:
    """One line on stderr, and the end."""
    program = "las" if Path(sys.argv[0]).name == "las" else "peerctl"
    typer.echo(f"{program}: {message}", err=True)
    raise typer.Exit(status)


def config_path(config: Path | None) -> Path:
    """The `peerctl.toml` that was named, behind the command or before it, or the one that is found.

    Raises:
        CredentialsError: none is.
    """
    config = config or _named_before.get()
    if config is not None:
        return config
    named = os.environ.get(CONFIG_VARIABLE)
    if named:
        return Path(named)
    for place in CONFIG_PLACES:
        if place.exists():
            return place
    raise CredentialsError(
        f"which cluster? Name its peerctl.toml with -c or ${CONFIG_VARIABLE}; "
        "`peerd dev` writes one"
    )


def print_document(output: Format, value: object) -> None:
    """One document on stdout."""
    if output is Format.YAML:
        typer.echo(_yaml(value), nl=False)
    else:
        typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def document_of_many(output: Format, value: object) -> str:
    """One of many documents: a line of JSON, or a YAML document with its mark before it."""
    if output is Format.YAML:
        return "---\n" + _yaml(value)
    return json.dumps(value, ensure_ascii=False) + "\n"


def _yaml(value: object) -> str:
    plain = json.loads(json.dumps(value))  # the same types as in JSON, of enumerations too
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def as_dict(message: Message) -> dict[str, object]:
    """A protobuf message by its field names, defaults included; NaN becomes null."""
    value = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    cleaned = _without_nan(value)
    assert isinstance(cleaned, dict)
    return cleaned


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    if value == "NaN" or (isinstance(value, float) and math.isnan(value)):
        return None
    return value


def plain_console() -> Console:
    """Where tables go: what others have written, a host called `[/x]`, is shown as it is."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=240)
    return console


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table without frames, as wide as it needs to be when it is no terminal."""
    console = plain_console()
    table = Table(box=None, pad_edge=False, header_style="bold" if console.is_terminal else None)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def size_text(count: int) -> str:
    """Bytes for people, e.g. "2.1 GB"."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000.0 or unit == "TB":
            break
        value /= 1000.0
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def duration_text(milliseconds: int) -> str:
    """A time span for people, e.g. "3.2 s"."""
    seconds = milliseconds / 1000.0
    if seconds < 120.0:
        return f"{seconds:.1f} s"
    minutes = seconds / 60.0
    if minutes < 120.0:
        return f"{minutes:.0f} min"
    hours = minutes / 60.0
    return f"{hours:.0f} h" if hours < 48.0 else f"{hours / 24.0:.0f} d"


def whole_number(text: str) -> int | None:
    """A number of at most 18 plain digits; None if `text` is none: `²` is a digit, too."""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def duration_s(text: str) -> int | None:
    """The seconds of "90s", "15m", "3h" or "2d"; None if `text` is no such time span."""
    found = re.fullmatch(r"(\d{1,6})([smhd])", text)
    return None if found is None else int(found[1]) * _UNIT_S[found[2]]


def probability_text(value: float | None) -> str:
    """A probability for people; "?" if it is not known."""
    if value is None or math.isnan(value):
        return "?"
    if 0.0 < value < 0.0001:
        return "<0.0001"
    # What is rare is told by its size: of two disks at 0.00 one may be ten times the other.
    return f"{value:.4f}" if 0.0 < value < 0.01 else f"{value:.2f}"


def parsed_moment(text: str, option: str = "--time") -> datetime.datetime:
    """The moment that an option names; what names none ends the command."""
    ago_s = duration_s(text)
    if ago_s is not None:
        now = datetime.datetime.now(datetime.UTC)
        return max(_FIRST_MOMENT, now - datetime.timedelta(seconds=min(ago_s, _AGO_S_MAX)))
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        fail(
            f"{option} {text}: 2026-11-29T07:00:00Z, or how long ago: 90s, 15m, 3h, 2d", EXIT_USAGE
        )
    if moment.tzinfo is None:
        fail(f"{option} {text}: say in which time zone, such as {text}Z for UTC", EXIT_USAGE)
    if moment < _FIRST_MOMENT:
        fail(f"{option} {text} lies before 1970", EXIT_USAGE)
    return moment
