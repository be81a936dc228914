"""What `peerctl restore` does: from a backup and the tier to what a new LAS group begins with.

First all of it is looked at: each part of the backup by its checksum, of each shard which of the
listed objects are there, in their length. Objects that retention or a trim removed since then are
the oldest ones, and are left out; whatever else is missing is refused by name. Then each shard gets
a manifest of what is left, in the folder of the new cluster, whose id is drawn here; but before
that, what there is becomes the new cluster's, and is looked at again (`peerd.tier.heirs`). Last the
state is written to a file, for `las init --import`.

Must not: change anything that is there already.
"""

import asyncio
import getpass
import os
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace

from las.core.commands import Caller
from las.core.recovered import TooManyRecoveries
from las.core.restored import restored
from las.daemon import exports
from las.daemon.exports import Export, ExportUnusable
from peerd.core.check import InvariantViolation
from peerd.core.ids import Offset, ShardId
from peerd.core.shard_map import Tiered
from peerd.tier import backup as backups
from peerd.tier.backup import Backup, ShardBackup
from peerd.tier.errors import DamagedObject, ForeignObject
from peerd.tier.heirs import Kin, inherit, kin_of
from peerd.tier.keys import KeyRing
from peerd.tier.manifest import Manifest, unpack
from peerd.tier.store import TierStore
from peerd.tier.writing import put_manifest
from peerd.transport.internal_logs import is_internal


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What can be restored of a backup: its state, and of each shard the manifest of what is left
    of it in the tier.
    """

    backup: Backup
    export: Export
    kin: Kin
    """Of the backup's cluster: it may have been restored before."""
    manifests: Mapping[ShardId, Manifest]

    def begin_of(self, shard: ShardBackup) -> int:
        """The first offset of a shard that will be there; its end if nothing will."""
        listed = self.manifests.get(ShardId(shard.shard))
        if listed is None or not listed.entries:
            return self.end_of(shard)
        return max(shard.begin, listed.entries[0].begin)

    def end_of(self, shard: ShardBackup) -> int:
        """Behind the last offset of a shard that will be there."""
        listed = self.manifests.get(ShardId(shard.shard))
        return listed.entries[-1].end if listed is not None and listed.entries else shard.begin


async def look(store: TierStore, keys: KeyRing, backup_id: str) -> Found:
    """Read a backup, and see what of it is there. Raises `TierError`, `ExportUnusable`."""
    backup = await backups.read_index(store, backup_id)
    data = await backups.read_part(store, keys, backup_id, backup.state)
    export = await asyncio.to_thread(exports.parse, data)
    if export.state.cluster_id != backup.cluster_id:
        raise ForeignObject(f"the state of backup {backup_id} is of another cluster than its index")
    manifests = {}
    for shard in backup.shards:
        listed = await read_shard(store, keys, backup, shard)
        if listed is not None:
            missing = await backups.lacking(store, listed)
            manifests[ShardId(shard.shard)] = backups.removed_since(listed, missing)
    kin = await kin_of(store, backup.cluster_id)
    return Found(backup=backup, export=export, kin=kin, manifests=manifests)


async def read_shard(
    store: TierStore, keys: KeyRing, backup: Backup, shard: ShardBackup
) -> Manifest | None:
    """The manifest of a shard in a backup; None if nothing of it is in the tier. Raises
    `TierError`.
    """
    if shard.part is None:
        return None
    data = await backups.read_part(store, keys, backup.id, shard.part)
    number = ShardId(shard.shard)
    listed = unpack(shard.manifest, data, cluster=backup.cluster_id, log=shard.log, shard=number)
    kept = tuple(each for each in listed.entries if each.end > shard.begin)
    return replace(listed, entries=kept) if kept else None


async def begin_anew(store: TierStore, keys: KeyRing, found: Found) -> Export:
    """Make what was found a new cluster's, name in the tier what is restored, and make the state
    that a group begins with.

    Raises `TierError`, `ExportUnusable`.
    """
    cluster_id = str(uuid.uuid4())
    await inherit(store, cluster_id, found.backup.cluster_id)
    # Only from now on nobody else removes anything.
    found = await look(store, keys, found.backup.id)
    tiers = {}
    for shard in found.backup.shards:
        listed = found.manifests.get(ShardId(shard.shard))
        if listed is None:
            continue
        name = await put_manifest(store, listed.inherited_by(cluster_id))
        begin, end = found.begin_of(shard), found.end_of(shard)
        tiers[ShardId(shard.shard)] = Tiered(begin=Offset(begin), end=Offset(end), manifest=name)
    state, recovery_id = found.export.state, str(uuid.uuid4())
    told = f"from backup {found.backup.id}; what was written after it is lost"
    caller = Caller(
        who=f"{_user()}@{socket.gethostname()}",
        role="host",
        what="peerctl restore",
        clock_ms=state.clock_ms,
        timestamp_ms=time.time_ns() // 1_000_000,
    )
    known = {each.log for each in found.backup.shards}
    try:
        begun = restored(
            state,
            tiers,
            forgotten=[log for log in state.logs if is_internal(log) and log not in known],
            why=f"restored from backup {found.backup.id}: what was written later is lost",
            recovery_id=recovery_id,
            caller=caller,
            told=told,
            cluster_id=cluster_id,
        )
    except TooManyRecoveries as error:
        raise ExportUnusable(str(error)) from error
    except InvariantViolation as error:
        raise DamagedObject(f"backup {found.backup.id} contradicts itself: {error}") from error
    return Export(origin=replace(found.export.origin, recovery_id=recovery_id), state=begun)


def _user() -> str:
    """Who runs this, for the audit: a name, or a number where there is none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
