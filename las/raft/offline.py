"""What the directory of a member holds that does not run: its newest state, read and not changed.

The snapshot, and then every entry of the journal, whether or not the member had heard that it is
committed: an entry that a majority took is in the journals of that majority, and of these the one
that is left may be the only one. So the state is what the member would have if it were elected. An
entry that only a deposed leader wrote, and nobody else took, is in it as well (docs/protocol.md
§4.6).

Must not: write anything but the lock, or know what a command does.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from las.raft.codec import text_of
from las.raft.disk import Disk
from las.raft.errors import CommandInvalid, StoreCorrupt
from las.raft.journal import read_journal
from las.raft.member import StateMachine
from las.raft.sessions import Envelope, Sessions
from las.raft.snapshot import Snapshot, parse_snapshot
from las.raft.store import Manifest, Store, open_directory


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """How far a directory reaches: its last entry, and how much of that its snapshot covers."""

    index: int
    term: int
    snapshot_index: int


def read_directory(
    directory: Path,
    *,
    cluster: str,
    name: str,
    members: Collection[str],
    make_machine: Callable[[str], StateMachine],
) -> tuple[Manifest, Position]:
    """Brings the machine that `make_machine` makes for the cluster's id to the newest state.

    Raises:
        StoreError: as `open_directory`; a process is using the directory, or it is damaged.
    """
    store = open_directory(directory, cluster=cluster, name=name, members=members, disk=Disk())
    try:
        return store.manifest, _replay(store, make_machine(store.manifest.cluster_id))
    finally:
        store.close()


def _replay(store: Store, machine: StateMachine) -> Position:
    snapshot = _snapshot(store)
    content = read_journal(store.journal_path, store.disk)
    content.reconcile(None if snapshot is None else (snapshot.previous, snapshot.last))
    sessions, covered = Sessions(), 0
    if snapshot is not None:
        machine.restore(snapshot.state)
        sessions, covered = Sessions(snapshot.sessions), snapshot.last.index
    for entry in content.entries:
        text = text_of(entry.command)
        if text is None or entry.index <= covered:
            continue
        try:
            sessions.apply(Envelope.from_text(text), machine.apply)
        except (ValueError, CommandInvalid) as error:
            raise StoreCorrupt(f"{store.journal_path}: entry {entry.index}: {error}") from error
    last = content.entries[-1]
    return Position(index=last.index, term=last.term, snapshot_index=covered)


def _snapshot(store: Store) -> Snapshot | None:
    if not store.disk.exists(store.snapshot_path):
        return None
    try:
        snapshot = parse_snapshot(store.disk.read_file(store.snapshot_path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreCorrupt(f"{store.snapshot_path}: {error}") from error
    if snapshot.cluster_id != store.manifest.group_id:
        raise StoreCorrupt(f"{store.snapshot_path}: of another group ({snapshot.cluster_id})")
    return snapshot
