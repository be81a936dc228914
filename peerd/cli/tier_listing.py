"""What `peerctl log tier LOG --tier FILE` shows: of each shard what lies in the tier, as the
committed map has it, and what is not there yet.

The manifest says of which offsets, how many objects, and how large; of the oldest and the newest
object the index is read, too, for times and keys, and no key is needed for that.

Must not: change anything; read records, but for the oldest one that is not in the tier.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from peerd.cli.output import duration_text, size_text
from peerd.client.blocking import Client
from peerd.client.errors import PeerdError
from peerd.client.values import Tail
from peerd.core.shard_map import Shard
from peerd.tier.errors import TierError
from peerd.tier.manifest import Manifest
from peerd.tier.reader import peek_index, read_manifest
from peerd.tier.store import TierStore

COLUMNS = (
    "shard",
    "from",
    "to",
    "oldest",
    "newest",
    "objects",
    "records",
    "stored",
    "ratio",
    "not there yet",
    "key",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """Of one shard: offsets [begin, end) in `objects` objects of `stored_bytes`, which had
    `payload_bytes`. Times are of the first batch and of the last block, 0 if nothing is there.

    `waiting_records` are committed and not there; `waiting_age_ms` is the age of the oldest, None
    if it is not known. `key_ids` are those of the oldest and the newest object; "": not encrypted.
    `error` is what was wrong when the tier was asked.
    """

    shard: int
    begin: int
    end: int
    objects: int = 0
    payload_bytes: int = 0
    stored_bytes: int = 0
    oldest_ms: int = 0
    newest_ms: int = 0
    waiting_records: int = 0
    waiting_age_ms: int | None = None
    key_ids: tuple[str, ...] = ()
    error: str = ""

    @property
    def ratio(self) -> float | None:
        """How many bytes of records a stored one stands for."""
        return round(self.payload_bytes / self.stored_bytes, 3) if self.stored_bytes else None


async def of_log(client: Client, store: TierStore, log: str) -> list[Listed]:
    """All shards of a log. Raises `PeerdError`; of the tier nothing."""
    cluster = client.las.status().cluster_id
    shards = client.describe_log(log)[1]
    try:
        tails = {each.shard: each for each in client.tail(log)}
    except PeerdError:
        tails = {}  # what is there is told, however far the log has gone
    found = []
    for shard in shards:
        count, age_ms = waiting(client, shard, tails.get(shard.shard))
        each = await listed(store, cluster, shard)
        found.append(replace(each, waiting_records=count, waiting_age_ms=age_ms))
    return found


async def listed(store: TierStore, cluster: str, shard: Shard) -> Listed:
    """What lies in the tier of a shard. A tier that fails is told in `error`."""
    tier = shard.tier
    if tier is None or not tier.manifest:
        at = shard.kept_from if tier is None else tier.begin
        return Listed(shard=shard.shard, begin=at, end=at)
    begin = max(shard.kept_from, tier.begin)
    try:
        found = await read_manifest(store, cluster, shard.log, shard.shard, tier.manifest)
        return await _of_manifest(store, found, begin, tier.end)
    except TierError as error:
        told = f"{error.code}: {error}"
        return Listed(shard=shard.shard, begin=begin, end=tier.end, error=told)


async def _of_manifest(store: TierStore, found: Manifest, begin: int, end: int) -> Listed:
    entries = [each for each in found.entries if each.end > begin]
    if not entries:
        return Listed(shard=found.shard, begin=begin, end=end)
    ends = [await peek_index(store, found.key(each)) for each in (entries[0], entries[-1])]
    return Listed(
        shard=found.shard,
        begin=begin,
        end=end,
        objects=len(entries),
        payload_bytes=sum(each.payload_bytes for each in entries),
        stored_bytes=sum(each.object_bytes for each in entries),
        oldest_ms=entries[0].timestamp_ms,
        newest_ms=ends[-1].blocks[-1].timestamp_ms,
        key_ids=tuple(dict.fromkeys(each.key_id for each in ends)),
    )


def waiting(client: Client, shard: Shard, tail: Tail | None) -> tuple[int, int | None]:
    """How many committed records are not in the tier, and the age of the oldest in ms, if it is
    known.
    """
    at = shard.kept_from if shard.tier is None else shard.tier.end
    while (gap := shard.gap_at(at)) is not None:
        at = gap.end
    count = 0 if tail is None else max(0, tail.committed - at)
    if not count:
        return 0, None
    try:
        with client.read(shard.log, shard=shard.shard, start=at) as records:
            first = next(iter(records), None)
    except PeerdError:
        return count, None
    if first is None:
        return count, None
    return count, max(0, time.time_ns() // 1_000_000 - first.appended_ms)


def row(each: Listed) -> Sequence[str]:
    """A row of the table."""
    wait = "-"
    if each.waiting_records:
        age = each.waiting_age_ms
        wait = f"{each.waiting_records} records"
        wait += "" if age is None else f", oldest {duration_text(age)}"
    keys = " ".join(key or "not encrypted" for key in each.key_ids)
    return (
        str(each.shard),
        str(each.begin),
        str(each.end),
        _time_text(each.oldest_ms),
        _time_text(each.newest_ms),
        str(each.objects),
        size_text(each.payload_bytes),
        size_text(each.stored_bytes),
        "-" if each.ratio is None else f"{each.ratio:.2f}",
        wait,
        each.error.partition(":")[0] or keys or "-",
    )


def as_document(each: Listed) -> dict[str, object]:
    """For -o json and yaml."""
    return {**asdict(each), "key_ids": list(each.key_ids), "ratio": each.ratio}


def _time_text(at_ms: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_ms / 1000)) if at_ms else "-"
