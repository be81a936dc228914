"""Which backups may go, and how one goes (docs/backup.md).

- *The newest that is whole stays*, whatever is asked for, and so does each that cannot be read: who
  does not know what it is does not know that it may go.
- *It is no backup first, and nothing afterwards*: the index is removed before the parts. Broken off
  in between it is what a backup that was never finished is, and goes the next time.
- *Records are not touched*: a backup only lists them.
- A folder without an index may be one that is being written; it goes when it is `UNFINISHED_S` old.

Must not: remove anything outside of `backups/`.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from peerd.tier import backup as backups
from peerd.tier.backup import Backup
from peerd.tier.errors import TierError
from peerd.tier.store import TierStore

UNFINISHED_S = 86_400.0
"""So long nobody writes at one backup."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What lies under the id of a backup: the backup, or why there is none that can be read; both
    empty: none was finished.
    """

    id: str
    backup: Backup | None = None
    error: str = ""


async def all_stored(store: TierStore) -> list[Stored]:
    """Whatever lies under an id of a backup, oldest first. Raises `TierError`."""
    finished = set(await backups.list_ids(store))
    found = []
    for backup_id in await backups.begun_ids(store):
        if backup_id not in finished:
            found.append(Stored(id=backup_id))
            continue
        try:
            found.append(Stored(id=backup_id, backup=await backups.read_index(store, backup_id)))
        except TierError as error:
            if error.code == "TIER_UNAVAILABLE":
                raise
            found.append(Stored(id=backup_id, error=f"{error.code}: {error}"))
    return found


def prunable(
    found: Sequence[Stored], *, keep: int, older_than_s: float, now_s: float
) -> list[Stored]:
    """Those that may go: of each cluster's name all but the newest `keep` and the newest whole one,
    if they are older than `older_than_s` at `now_s` of the wall clock.
    """
    by_cluster: dict[str, list[Stored]] = defaultdict(list)
    gone = []
    for each in found:
        if each.backup is not None:
            by_cluster[each.backup.cluster].append(each)
        elif not each.error and now_s - backups.made_at_s(each.id) >= UNFINISHED_S:
            gone.append(each)
    for those in by_cluster.values():
        those.sort(key=_made_at_ms)
        whole = [each for each in those if each.backup is not None and each.backup.is_whole]
        stay = {each.id for each in (*those[-keep:], *whole[-1:])}
        gone += [
            each
            for each in those
            if each.id not in stay and now_s - _made_at_ms(each) / 1000 >= older_than_s
        ]
    return sorted(gone, key=lambda each: each.id)


def _made_at_ms(stored: Stored) -> int:
    return 0 if stored.backup is None else stored.backup.made_at_ms


async def remove(store: TierStore, backup_id: str) -> int:
    """Remove what lies under the id; how many objects it was. Raises `TierError`."""
    keys = [each.key for each in await store.listed(backups.folder(backup_id))]
    indexes = [key for key in keys if backups.is_index(key)]
    await store.remove(indexes)
    await store.remove([key for key in keys if key not in indexes])
    return len(keys)
