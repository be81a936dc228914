"""Opens the tier of a configuration and says what is wrong with it, changing nothing.

What is tried: whether it answers, whether this peer may list and read there, and whether its keys
open what its cluster has there. Not tried is whether it may write into a bucket, since only a write
would tell; of a directory the system tells.

Must not: create, remove or make anything, or read a store that a peer has open but for its name.
"""

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from peerd.core.ids import Epoch, ShardId
from peerd.daemon import config
from peerd.daemon.tier import Tier, open_tier
from peerd.storage.directory import StoreDirectory
from peerd.storage.errors import StorageError
from peerd.tier.errors import NoCredentials
from peerd.tier.format import Owner
from peerd.tier.manifest import cluster_folder, end_of_name
from peerd.tier.reader import read_index

# limit: milliseconds that one call of the check may take, whatever the configuration lets it
DEADLINE_MS_MAX = 10_000
# limit: logs of which an object is opened: one tells of a key that is missing for all that is new
LOGS_TRIED_MAX = 4


async def check_tier(settings: "config.PeerdConfig") -> str:
    """One line about a tier that is fit; "" if none is configured. Raises `TierError`."""
    given = settings.tier
    patient = {"attempts": 1, "deadline_ms": min(given.deadline_ms, DEADLINE_MS_MAX)}
    cluster_id = _cluster_id(settings.data_dir)
    tier = open_tier(given.model_copy(update=patient), lambda: cluster_id)
    if tier is None:
        return ""
    writing = _directory(given.url)
    logs = await tier.store.folders(cluster_folder(cluster_id or "none"))
    if not cluster_id:
        found = "what its cluster has there is not known before it has registered"
        return f"tier {tier.store.name} answers; {found}; {writing}"
    await tier.owned()
    if not logs:
        found = "nothing of its cluster is there"
    else:
        opened = sum([await _opens(tier, log) for log in logs[:LOGS_TRIED_MAX]])
        found = f"{len(logs)} logs of its cluster are there, {opened} objects tried and opened"
    return f"tier {tier.store.name} answers; {found}; {writing}"


def _cluster_id(data_dir: Path) -> str:
    """Of the store that is there already; "" where there is none."""
    try:
        return StoreDirectory(data_dir).read_manifest().cluster_id
    except StorageError:
        return ""


def _directory(url: str) -> str:
    """What can be told of the right to write. Raises `NoCredentials`."""
    parts = urlsplit(url)
    if parts.scheme != "file":
        return "whether it may write there was not tried"
    root = Path(unquote(parts.path))
    there = next(each for each in (root, *root.parents) if each.exists())
    if not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        raise NoCredentials(f"{there}: this user may not read and write there")
    return (
        "it may write there" if there == root else f"it is not there, and would be made in {there}"
    )


async def _opens(tier: Tier, log_folder: str) -> int:
    """Open the newest object of the first shard of a log that has one. Raises `TierError`."""
    log = log_folder.rsplit("/log-", 1)[1]
    for folder in await tier.store.folders(log_folder):
        number = re.fullmatch(r"shard-(\d{20})", folder.rsplit("/", 1)[1])
        if number is None:
            continue
        names = [each.key.rsplit("/", 1)[1] for each in await tier.store.listed(folder)]
        chunks = [name for name in names if end_of_name(name) is not None]
        if chunks:
            name = max(chunks)
            owner = Owner(
                cluster=tier.cluster_id,
                log=log,
                shard=ShardId(int(number[1])),
                epoch=Epoch(int(name.split("-", 1)[0])),
            )
            await read_index(tier.store, tier.keys, f"{folder}/{name}", owner)
            return 1
    return 0
