"""The data directory of one member: whose it is, and whether it may vote.

Invariants:
- A directory without a manifest is never made into a store by starting a node: a wiped disk would
  come back as a member that has forgotten its votes and acknowledged entries. `init_directory` is
  for the first start of a cluster, `rejoin_directory` for everything after.
- A store that rejoins takes part without a vote: it stores and acknowledges entries (from now on
  its word is good), but neither votes nor stands, until `las.raft.rejoin` finds that it holds all
  that its lost predecessor may have promised. Then `vote_floor` keeps it from voting in a term in
  which the predecessor may have voted.
- One process at a time: the lock file is held while the store is open.
- A group that began from an import (docs/protocol.md §4.6) has a *group id* of the cluster's id and
  the import's; members of different ones refuse each other.
- The store ids of the other members are remembered; one that comes with another store that was not
  made by rejoining (wiped and initialised again, or an old backup) is refused.

Must not: read the journal or snapshots.
"""

import json
import uuid
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from las.raft.disk import Disk
from las.raft.errors import (
    DirectoryEmpty,
    DirectoryInUse,
    DirectoryNotEmpty,
    PeerRefused,
    StoreCorrupt,
    StoreError,
    WrongCluster,
    WrongMember,
)
from las.raft.journal import create_journal
from las.raft.snapshot import Begin

FORMAT = 1
# limit: members of one group; more would only slow each commit down
MEMBERS_MAX = 7

MANIFEST_NAME = "manifest.json"
JOURNAL_NAME = "journal"
SNAPSHOT_NAME = "snapshot"
LOCK_NAME = "lock"
# What was in a directory before it rejoined is kept here for a person to look at.
ASIDE_NAME = "before-rejoin"
GROUP_SEPARATOR = "+"

DrawId = Callable[[], uuid.UUID]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a directory says about itself."""

    cluster: str
    cluster_id: str
    store_id: str
    name: str
    members: tuple[str, ...]
    # Made by `rejoin_directory`; `rejoining` until it may vote.
    rejoined: bool = False
    rejoining: bool = False
    # No vote is given in this term or an older one.
    vote_floor: int = 0
    # Store ids of the other members, as first heard.
    known_stores: dict[str, str] = field(default_factory=dict)
    # Id of the import that the group began from; empty for the first group of a cluster.
    recovery: str = ""
    format: int = FORMAT

    @property
    def group_id(self) -> str:
        """The one group of the cluster that this member is of, as `split_group_id` reads it."""
        return f"{self.cluster_id}{GROUP_SEPARATOR}{self.recovery}".removesuffix(GROUP_SEPARATOR)


class Store:
    """An open directory. `open_directory` makes it; `close` releases the lock."""

    def __init__(self, directory: Path, manifest: Manifest, lock: int, disk: Disk) -> None:
        self.directory = directory
        self.disk = disk
        self._manifest = manifest
        self._lock = lock

    @property
    def manifest(self) -> Manifest:
        """The current manifest."""
        return self._manifest

    @property
    def journal_path(self) -> Path:
        """The journal's file."""
        return self.directory / JOURNAL_NAME

    @property
    def snapshot_path(self) -> Path:
        """The snapshot's file; absent before the first one."""
        return self.directory / SNAPSHOT_NAME

    def meet(self, peer: str, store_id: str, *, rejoined: bool) -> None:
        """Checks a member's store against the one it had before, and remembers it durably.

        Raises:
            PeerRefused: it has another store, and that one was not made by `las rejoin`.
            OSError: the manifest cannot be written.
        """
        known = self._manifest.known_stores.get(peer)
        if known == store_id:
            return
        if known is not None and not rejoined:
            raise PeerRefused(
                f"{peer} comes with store {store_id[:8]}, it had {known[:8]} before: its directory "
                f"was replaced; run `las rejoin` on {peer}"
            )
        self._write(
            replace(self._manifest, known_stores={**self._manifest.known_stores, peer: store_id})
        )

    def finish_rejoin(self, vote_floor: int) -> None:
        """Gives the member its vote back for terms above `vote_floor`. Raises OSError."""
        self._write(replace(self._manifest, rejoining=False, vote_floor=vote_floor))

    def close(self) -> None:
        """Releases the directory for another process."""
        self.disk.close(self._lock)

    def _write(self, manifest: Manifest) -> None:
        _write_manifest(self.directory, manifest, self.disk)
        self._manifest = manifest


def init_directory(
    directory: Path,
    cluster: str,
    name: str,
    members: Collection[str],
    *,
    cluster_id: str,
    begin: Begin | None = None,
    disk: Disk | None = None,
    draw_id: DrawId = uuid.uuid4,
) -> Manifest:
    """Makes the directory of a member of a *new* group; once per member, before its first start.

    Args:
        directory: Is made if it is missing; has to be empty.
        cluster: The cluster's name, as in the certificates.
        name: This member's name.
        members: Names of all members, this one included; the same on each.
        cluster_id: A UUID, drawn once for the cluster and given to each member.
        begin: What the group begins with; nothing if None. The same on each member.
        disk: Where the directory is; tests and the simulator have their own.
        draw_id: Draws the id of the store, which no other ever has.

    Raises:
        DirectoryNotEmpty: something is there.
        StoreError: the names or the id cannot be used, or the directory cannot be written.
    """
    disk = disk or Disk()
    recovery = "" if begin is None else begin.recovery
    manifest = _new_manifest(
        cluster, name, members, (cluster_id, recovery), draw_id, rejoined=False
    )
    _make_directory(directory, disk)
    if disk.list_directory(directory):
        raise DirectoryNotEmpty(
            f"{directory} is not empty: a store is initialised once; after a loss of data use "
            "`las rejoin`"
        )
    return _make_store(directory, manifest, disk, begin)


def rejoin_directory(
    directory: Path,
    cluster: str,
    name: str,
    members: Collection[str],
    *,
    cluster_id: str,
    disk: Disk | None = None,
    draw_id: DrawId = uuid.uuid4,
) -> Manifest:
    """Makes the directory of a member whose store was lost or is damaged.

    What is there is moved aside, not deleted, also if it is of an earlier group of the cluster. The
    member starts without a vote, see the module. `cluster_id` is the group's id.

    Raises:
        WrongCluster, WrongMember: a manifest is there, and it is somebody else's.
        DirectoryInUse: a process is using the directory.
        StoreError: the names or the id cannot be used, or the directory cannot be written.
    """
    disk = disk or Disk()
    ids = split_group_id(cluster_id)
    manifest = _new_manifest(cluster, name, members, ids, draw_id, rejoined=True)
    _make_directory(directory, disk)
    lock = _lock(directory, disk)
    try:
        found = _manifest_if_readable(directory, disk)
        if found is not None:
            _check_owner(directory, found, cluster, name, manifest.cluster_id)
        _move_aside(directory, disk)
        return _make_store(directory, manifest, disk)
    finally:
        disk.close(lock)


def open_directory(
    directory: Path,
    *,
    cluster: str,
    name: str,
    members: Collection[str],
    disk: Disk | None = None,
) -> Store:
    """Opens a member's directory for its one process.

    Raises:
        DirectoryEmpty: there is no store; the message names `las init` and `las rejoin`.
        WrongCluster, WrongMember: it is somebody else's, or the members are others.
        StoreCorrupt: the manifest cannot be understood.
        DirectoryInUse: another process has it open.
    """
    disk = disk or Disk()
    if not disk.exists(directory / MANIFEST_NAME):
        raise DirectoryEmpty(
            f"{directory} holds no LAS store: `las init` for a new cluster; if this node was a "
            "member before, its data is gone and it has to come back with `las rejoin`"
        )
    manifest = _read_manifest(directory, disk)
    _check_owner(directory, manifest, cluster, name, manifest.cluster_id)
    if sorted(members) != sorted(manifest.members):
        raise WrongMember(
            f"{directory} belongs to the group {', '.join(sorted(manifest.members))}; the "
            f"configuration names {', '.join(sorted(members))}"
        )
    lock = _lock(directory, disk)
    disk.remove_drafts(directory)
    return Store(directory, manifest, lock, disk)


def split_group_id(text: str) -> tuple[str, str]:
    """The cluster's id and the import's in a group's id; the second is empty if it has none."""
    cluster_id, _, recovery = text.partition(GROUP_SEPARATOR)
    return cluster_id, recovery


def _new_manifest(
    cluster: str,
    name: str,
    members: Collection[str],
    ids: tuple[str, str],
    draw_id: DrawId,
    *,
    rejoined: bool,
) -> Manifest:
    names = sorted(members)
    if name not in names:
        raise WrongMember(f"{name!r} is not among the members {', '.join(names)}")
    if len(set(names)) != len(names) or len(names) > MEMBERS_MAX:
        raise StoreError(f"a group has 1 to {MEMBERS_MAX} members with different names")
    try:
        identity, recovery = str(uuid.UUID(ids[0])), ids[1] and str(uuid.UUID(ids[1]))
    except ValueError as error:
        text = GROUP_SEPARATOR.join(filter(None, ids))
        raise StoreError(f"cluster id {text!r} is not a UUID") from error
    return Manifest(
        cluster=cluster,
        cluster_id=identity,
        store_id=str(draw_id()),
        name=name,
        members=tuple(names),
        rejoined=rejoined,
        rejoining=rejoined,
        recovery=recovery,
    )


def _make_directory(directory: Path, disk: Disk) -> None:
    try:
        disk.make_directory(directory)
    except OSError as error:
        raise StoreError(f"{directory}: cannot be made: {error.strerror}") from error


def _make_store(
    directory: Path, manifest: Manifest, disk: Disk, begin: Begin | None = None
) -> Manifest:
    try:
        if begin is not None:
            parts = begin.snapshot_of(manifest.group_id)
            disk.write_file(directory / SNAPSHOT_NAME, *parts)
        create_journal(directory / JOURNAL_NAME, disk, begun=begin is not None)
        # Last: without it there is no store.
        _write_manifest(directory, manifest, disk)
        disk.sync_directory(directory.parent)
    except OSError as error:
        raise StoreError(f"{directory}: cannot be written: {error.strerror}") from error
    return manifest


def _move_aside(directory: Path, disk: Disk) -> None:
    names = disk.list_directory(directory)
    earlier = [name for name in names if name.startswith(f"{ASIDE_NAME}-")]
    found = [name for name in names if name != LOCK_NAME and name not in earlier]
    if found:
        aside = directory / f"{ASIDE_NAME}-{1 + len(earlier)}"
        disk.make_directory(aside)
        # The manifest first: without it nobody takes the rest for a store.
        for name in sorted(found, key=lambda name: name != MANIFEST_NAME):
            disk.rename(directory / name, aside / name)


def _check_owner(
    directory: Path, manifest: Manifest, cluster: str, name: str, cluster_id: str
) -> None:
    if manifest.cluster != cluster or manifest.cluster_id != cluster_id:
        raise WrongCluster(
            f"{directory} belongs to cluster {manifest.cluster} ({manifest.cluster_id}), not to "
            f"{cluster} ({cluster_id})"
        )
    if manifest.name != name:
        raise WrongMember(f"{directory} belongs to {manifest.name}, not to {name}")


def _read_manifest(directory: Path, disk: Disk) -> Manifest:
    path = directory / MANIFEST_NAME
    try:
        fields = json.loads(disk.read_file(path))
        manifest = Manifest(**{**fields, "members": tuple(fields["members"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreCorrupt(f"{path}: cannot be understood ({error}); `las rejoin`") from error
    if manifest.format != FORMAT:
        raise StoreCorrupt(f"{path}: format {manifest.format}, this program knows {FORMAT}")
    return manifest


def _manifest_if_readable(directory: Path, disk: Disk) -> Manifest | None:
    """A damaged manifest is one of the losses that `las rejoin` is for."""
    try:
        return _read_manifest(directory, disk)
    except StoreCorrupt:
        return None


def _write_manifest(directory: Path, manifest: Manifest, disk: Disk) -> None:
    fields = asdict(manifest)
    if not manifest.recovery:
        # An older program knows no such field, and need not.
        del fields["recovery"]
    text = json.dumps(fields, indent=2, sort_keys=True) + "\n"
    disk.write_file(directory / MANIFEST_NAME, text.encode())


def _lock(directory: Path, disk: Disk) -> int:
    try:
        return disk.lock(directory / LOCK_NAME)
    except BlockingIOError as error:
        raise DirectoryInUse(f"{directory} is in use by another process") from error
    except OSError as error:
        raise StoreError(f"{directory}: cannot be locked: {error.strerror}") from error
