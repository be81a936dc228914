"""`peerctl incident`: keeps what processes recorded of themselves."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from las.v1.shard_map_pb2 import NODE_STATE_UP
from peerd.cli.output import (
    EXIT_REFUSED,
    EXIT_USAGE,
    ConfigOption,
    Format,
    FormatOption,
    connected,
    fail,
    print_document,
    print_table,
    size_text,
)
from peerd.client.blocking import Client
from peerd.client.errors import PeerdError
from peerd.recorder.ring import FILE_NAME, RingError, read_segments

incident_app = typer.Typer(
    help="Keep what processes recorded, for a look back after an incident.", no_args_is_help=True
)


@dataclass(frozen=True, slots=True)
class Saved:
    """What became of one recording: its file, or why there is none."""

    source: str
    file: Path | None
    size_bytes: int
    records: int
    note: str

    @property
    def row(self) -> list[str]:
        """A line of the table."""
        file = "-" if self.file is None else self.file.name
        return [self.source, file, size_text(self.size_bytes), str(self.records), self.note]


@incident_app.command("save")
def save(
    out: Annotated[Path, typer.Option("--out", help="Directory for the recordings; made anew.")],
    data_dir: Annotated[
        list[Path] | None,
        typer.Option("--data-dir", help="Data directory of a dead process, NAME=PATH or PATH."),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Only the data directories: ask no process.")
    ] = False,
    config: ConfigOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Collect the flight recordings of all processes that answer, and of data directories."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            fail(f"{out} is not empty: name a new directory", EXIT_USAGE)
    except OSError as error:
        fail(f"{out}: {error.strerror}", EXIT_USAGE)
    saved = list(_from_directories(data_dir or [], out))
    if not offline:
        with connected(config) as client:
            saved += _from_processes(client, out, {each.source for each in saved if each.file})
    if output is not Format.TABLE:
        print_document(
            output,
            [
                {
                    "source": each.source,
                    "file": None if each.file is None else str(each.file),
                    "size_bytes": each.size_bytes,
                    "records": each.records,
                    "note": each.note,
                }
                for each in saved
            ],
        )
    else:
        print_table(["process", "file", "size", "records", ""], [each.row for each in saved])
    if not any(each.file for each in saved):
        fail("nothing was saved", EXIT_REFUSED)


def _from_directories(paths: list[Path], out: Path) -> Iterator[Saved]:
    for given in paths:
        name, _, rest = str(given).rpartition("=")
        source = Path(rest)
        path = source / FILE_NAME if source.is_dir() else source
        # A data directory is often called `data`; the directory above it names the process.
        name = name or (source.parent.name if source.name == "data" else source.stem) or "process"
        target = out / f"{name}.ring"
        if target.exists():
            yield Saved(name, None, 0, 0, f"{given}: there is one of this name: use NAME=PATH")
            continue
        try:
            shutil.copyfile(path, target)
        except OSError as error:
            target.unlink(missing_ok=True)
            yield Saved(name, None, 0, 0, f"{path}: {error.strerror}")
            continue
        yield _looked_at(name, target)


def _from_processes(client: Client, out: Path, have: set[str]) -> Iterator[Saved]:
    answer = client.las.status()
    known = [(member.name, member.address, member.up) for member in answer.las]
    known += [
        (entry.node.name, entry.node.address, entry.node.state == NODE_STATE_UP)
        for entry in answer.nodes
    ]
    for name, address, up in known:
        if name in have:
            continue
        target = out / f"{name}.ring"
        if not up:
            note = "is not up: add --data-dir NAME=PATH on its machine"
            yield Saved(name, None, 0, 0, note)
            continue
        try:
            client.save_recording(address, target)
        except PeerdError as error:
            yield Saved(name, None, 0, 0, str(error))
        except OSError as error:
            fail(f"{target}: {error.strerror}", EXIT_REFUSED)
        else:
            yield _looked_at(name, target)


def _looked_at(name: str, target: Path) -> Saved:
    """Count the records; what is no recording is not kept."""
    try:
        segments = list(read_segments(target))
    except RingError as error:
        target.unlink(missing_ok=True)
        return Saved(name, None, 0, 0, str(error))
    records = sum(len(segment.records) for segment in segments)
    cuts = [segment.cut for segment in segments if segment.cut is not None]
    return Saved(name, target, target.stat().st_size, records, "; ".join(cuts))
