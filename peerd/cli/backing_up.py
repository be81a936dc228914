"""What `peerctl backup create` does: bring everything into the tier, then write down what is there.

The positions of consumers are a log like others, which goes to the tier from the first backup on.

In this order: of each shard of a tiered log the open segment is ended, by a planned change that
hands it to another voter, since what is sealed goes to the tier to its end; then the tier is waited
for; then what the LAS has committed is taken, once; and of each shard the manifest that this very
state names. So the backup is one committed state, and all that it names was verified when it was
committed. What was not reached in time is told: a shard is backed up to where its tier ends.

Must not: hide that something is not in the backup.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from las.core.state import ClusterState, ShardEntry
from las.daemon import exports
from las.v1.shard_map_pb2 import NODE_STATE_UP
from peerd.client.blocking import Client
from peerd.client.errors import PeerdError, UnknownLog
from peerd.core.ids import FIRST_OFFSET, NodeName, Offset, ShardId
from peerd.core.shard_map import Shard
from peerd.tier import backup as backups
from peerd.tier.backup import Backup, ShardBackup
from peerd.tier.errors import MissingObject, WrongKey
from peerd.tier.keys import NO_KEY, KeyRing
from peerd.tier.manifest import Manifest, pack
from peerd.tier.reader import peek_index, read_manifest
from peerd.tier.store import TierStore
from peerd.transport.internal_logs import POSITIONS_LOG, is_internal

POSITIONS_HOT_BYTES = 1 << 30
"""Of the positions of consumers so much stays on disks, which is all of them: they go to the tier
for backups.
"""
# limit: times that the state is taken anew because a manifest that it named was replaced meanwhile
TRIES_MAX = 5
_POLL_S = 0.25


@dataclass(slots=True)
class Asked:
    """What was committed when a backup was asked for, by shard, and what could not be done."""

    committed: dict[ShardId, Offset] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)


def bring_into_tier(client: Client, *, cut: bool, wait_s: float) -> Asked:
    """Have all that is committed now in the tier, or as much of it as `wait_s` is enough for.

    `cut`: end the open segments, so that the newest records, which fill no object yet, go there.
    Raises `PeerdError` if the LAS does not answer.
    """
    asked = Asked()
    tiered = []
    for log in client.list_logs():
        try:
            for tail in client.tail(log.name):
                asked.committed[ShardId(tail.shard)] = Offset(tail.committed)
        except PeerdError as error:
            asked.troubles.append(f"{log.name}: how far it goes is not known: {error}")
        if log.hot_bytes:
            tiered.append(log.name)
    if tiered and _tier_positions(client, asked):
        tiered.append(POSITIONS_LOG)
    if cut:
        nodes = [each.node for each in client.las.status().nodes]
        up = {NodeName(each.name) for each in nodes if each.state == NODE_STATE_UP}
        for name in tiered:
            for shard in client.describe_log(name)[1]:
                _cut(client, shard, up, asked)
    until_s = time.monotonic() + wait_s
    while any(_lacks(client, name, asked) for name in tiered) and time.monotonic() < until_s:
        time.sleep(_POLL_S)
    return asked


def _tier_positions(client: Client, asked: Asked) -> bool:
    """Whether there are positions of consumers, which are in the tier from now on."""
    try:
        log, _ = client.describe_log(POSITIONS_LOG)
    except UnknownLog:
        return False
    try:
        if not log.hot_bytes:
            client.set_tier(POSITIONS_LOG, POSITIONS_HOT_BYTES)
        for tail in client.tail(POSITIONS_LOG):
            asked.committed[ShardId(tail.shard)] = Offset(tail.committed)
    except PeerdError as error:
        asked.troubles.append(f"positions of consumers are not in the backup: {error}")
        return False
    return True


def _reach(shard: Shard) -> Offset:
    """Up to where nothing is lacking in the tier: its end, and a lost range behind it."""
    at = shard.kept_from if shard.tier is None else shard.tier.end
    while (gap := shard.gap_at(at)) is not None:
        at = gap.end
    return at


def _lacks(client: Client, log: str, asked: Asked) -> bool:
    return any(
        _reach(shard) < asked.committed.get(shard.shard, FIRST_OFFSET)
        for shard in client.describe_log(log)[1]
    )


def _cut(client: Client, shard: Shard, up: set[NodeName], asked: Asked) -> None:
    """End the open segment, if there is something in it that the tier does not have."""
    begin = shard.open.begin or FIRST_OFFSET
    if shard.is_split or asked.committed.get(shard.shard, FIRST_OFFSET) <= begin:
        return
    plan = shard.open.plan
    others = [each.peer for each in plan.voters if each.peer != plan.primary.peer]
    others += sorted(up.difference(others, [plan.primary.peer]))
    why = "no other node is up"
    for node in (each for each in others if each in up):
        try:
            client.las.switch_primary(shard.shard, node)
        except PeerdError as error:
            why = str(error)
        else:
            return
    asked.troubles.append(f"{shard.log}/{shard.shard}: its open segment was not ended: {why}")


# ---------------------------------------------------------------------------------- writing it
async def write(
    store: TierStore,
    keys: KeyRing,
    export: Callable[[], bytes],
    committed: Mapping[ShardId, Offset],
    now_s: float,
) -> Backup:
    """Write a backup of what `export` gives, and of the manifests that it names.

    Raises `TierError`, or `exports.ExportUnusable`; `WrongKey` if the state would be written for
    all to read beside objects that are encrypted.
    """
    backup_id = backups.new_id(now_s)
    for tries_left in reversed(range(TRIES_MAX)):
        data = export()
        found = exports.parse(data)
        try:
            manifests = await _manifests(store, found.state)
        except MissingObject:
            if not tries_left:
                raise
            continue  # two newer ones have taken its place since
        break
    await _see_that_it_is_as_secret(store, keys, manifests.values())
    shards = []
    for entry in backed_up(found.state):
        shard = entry.shard
        end = shard.kept_from if shard.tier is None else shard.tier.end
        name, content, part = "", b"", None
        if shard.shard in manifests:
            name, content = pack(manifests[shard.shard])
            part_name = backups.shard_part(shard.shard)
            part = await backups.put_part(store, keys, backup_id, part_name, content)
        shards.append(
            ShardBackup(
                log=shard.log,
                shard=shard.shard,
                begin=shard.kept_from,
                end=end,
                committed=max(end, _lacking_to(shard, committed)),
                manifest=name,
                part=part,
            )
        )
    backup = Backup(
        id=backup_id,
        cluster=found.origin.cluster,
        cluster_id=found.state.cluster_id,
        made_at_ms=int(now_s * 1000),
        state=await backups.put_part(store, keys, backup_id, backups.STATE, data),
        shards=tuple(shards),
    )
    await backups.put_index(store, backup)
    return backup


def backed_up(state: ClusterState) -> Iterator[ShardEntry]:
    """All shards but those of the system's own logs that are in no tier: a restore has these made
    anew when they are needed.
    """
    for shard in sorted(state.shards):
        entry = state.shards[shard]
        if entry.shard.tier is not None or not is_internal(entry.shard.log):
            yield entry


def _lacking_to(shard: Shard, committed: Mapping[ShardId, Offset]) -> Offset:
    """Behind the last record that is not in the tier; 0 if there is none."""
    known = max(shard.open.begin or FIRST_OFFSET, committed.get(shard.shard, FIRST_OFFSET))
    return Offset(known) if _reach(shard) < known else FIRST_OFFSET


async def _see_that_it_is_as_secret(
    store: TierStore, keys: KeyRing, manifests: Iterable[Manifest]
) -> None:
    """A state names logs, nodes and whoever may do what: it is encrypted where records are.

    By the newest object of all, since encryption may have begun late. Raises `WrongKey`,
    `TierError`.
    """
    objects = [(entry.timestamp_ms, each, entry) for each in manifests for entry in each.entries]
    if keys.writing != NO_KEY or not objects:
        return
    _, manifest, newest = max(objects, key=lambda each: each[0])
    if (await peek_index(store, manifest.key(newest))).key_id != NO_KEY:
        raise WrongKey(
            "the records of this tier are encrypted, and without a key the backup would be written "
            "for all to read: nothing was written; add tier.key_files to the file that --tier names"
        )


async def _manifests(store: TierStore, state: ClusterState) -> dict[ShardId, Manifest]:
    """Of each shard the manifest that the state names. Raises `TierError`."""
    found = {}
    for shard, entry in state.shards.items():
        tier = entry.shard.tier
        if tier is not None and tier.manifest:
            log = entry.shard.log
            found[shard] = await read_manifest(store, state.cluster_id, log, shard, tier.manifest)
    return found
