"""Exports: the committed state of a group in one file, and the same made fit to begin a group with.

A file is lines of JSON, to be read by people and programs alike: a header, the state as
`las.core.snapshot` writes it (nodes, logs, histories, audit records, cases, shards, outages), and a
last line with the SHA-256 of all before it. What is cut short, changed, foreign or of a later
format is refused by name before anything is done with it; nothing of a file is ever executed.

An *export* is what was committed. Only `las recover` makes of it what `las init --import` takes: an
export may be older than what peers know, and a group that began from it as it is would decide about
what it has forgotten (docs/protocol.md §4.6). What `las recover` writes has an id of its own, drawn
there, which all members get that are made from that file.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from las.core import snapshot
from las.core.codec import CodecError, decode, encode, from_json, to_json
from las.core.state import ClusterState
from peerd.daemon.errors import CannotStart
from peerd.storage.directory import write_file_durably

FORMAT = 1
"""Version of the header and the frame; the state has its own."""
MAGIC = "peerd LAS export"
# limit: bytes of a file that is read; as a snapshot that is taken from a leader
FILE_BYTES_MAX = 1024 * 1024 * 1024


class ExportUnusable(CannotStart):
    """The file is none that this program can take; nothing was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a state comes from. `index` and `term` are those of the last entry that it has, and
    `proven_index` is the last one that is known to have been committed.

    `source` names the member. `recovery_id` is not empty for what `las recover` wrote.
    """

    cluster: str
    source: str
    index: int
    term: int
    proven_index: int
    recovery_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    magic: str
    format: int
    cluster_id: str
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A file's content."""

    origin: Origin
    state: ClusterState

    @property
    def is_recovered(self) -> bool:
        """Whether a group may begin with it."""
        return bool(self.origin.recovery_id)

    def to_bytes(self) -> bytes:
        """The file."""
        header = _Header(
            magic=MAGIC, format=FORMAT, cluster_id=self.state.cluster_id, origin=self.origin
        )
        body = to_json(encode(header)).encode() + b"\n" + snapshot.snapshot(self.state) + b"\n"
        end = _End(sha256=hashlib.sha256(body).hexdigest())
        return body + to_json(encode(end)).encode() + b"\n"


def parse(data: bytes) -> Export:
    """The content of a file. Raises `ExportUnusable`, which says what is wrong with it."""
    first, _, rest = data.partition(b"\n")
    try:
        header = from_json(first)
    except CodecError as error:
        raise ExportUnusable("not an export of a LAS group") from error
    if not isinstance(header, dict) or header.get("magic") != MAGIC:
        raise ExportUnusable("not an export of a LAS group")
    if header.get("format") != FORMAT:
        raise ExportUnusable(
            f"format {header.get('format')!r}, this program knows {FORMAT}: use the version of "
            "peerd that wrote it, or a later one"
        )
    state_bytes, _, last = rest.removesuffix(b"\n").rpartition(b"\n")
    body = first + b"\n" + state_bytes + b"\n"
    try:
        end = decode(_End, from_json(last))
    except CodecError as error:
        raise ExportUnusable("it ends before its last line: it was not copied whole") from error
    if end.sha256 != hashlib.sha256(body).hexdigest():
        raise ExportUnusable("its checksum is wrong: it was changed or damaged")
    try:
        origin = decode(_Header, header).origin
        state = snapshot.restore(state_bytes)
    except CodecError as error:
        raise ExportUnusable(str(error)) from error
    return Export(origin=origin, state=state)


def read(path: Path) -> Export:
    """Raises `ExportUnusable`, naming the file."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise ExportUnusable(f"more than {FILE_BYTES_MAX} bytes")
        return parse(path.read_bytes())
    except OSError as error:
        raise ExportUnusable(f"{path}: {error.strerror or error}") from error
    except ExportUnusable as error:
        raise ExportUnusable(f"{path}: {error}") from error


def see_that_it_can_be_written(path: Path) -> None:
    """Raises `ExportUnusable` if there is a file of this name, or none can be made; makes none."""
    if path.exists():
        raise ExportUnusable(f"{path} is there already: name another file")
    folder = path.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ExportUnusable(f"{path} cannot be made: {folder} is no directory to write into")


def write(path: Path, export: Export) -> None:
    """Raises `ExportUnusable` if there is a file of this name, or it cannot be written."""
    see_that_it_can_be_written(path)
    try:
        write_file_durably(path, export.to_bytes())
    except OSError as error:
        raise ExportUnusable(f"{path}: {error.strerror or error}") from error
