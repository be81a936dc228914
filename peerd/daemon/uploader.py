"""Puts what shards have beyond their hot bytes into the tier (docs/tiers.md).

Of each shard its primary does it: the map names exactly one, it knows what is committed, and it
reads what it does not store from holders, as for readers. A primary that was deposed and does not
know it changes nothing: what it writes no map names (`las.core.tier`).

Invariants:
- Put, read back, compared, listed, committed to the map, in this order (`peerd.tier.writing`). A
  store drops only what the map says, and the map says only what was reported from here.
- Only committed batches, each from the epoch that the map gives for it (`ReadSource`), in order and
  without a hole; a lost range is none.
- Nothing is remembered: where it goes on is what the map says. So a restart at any point loses at
  most the work on three objects.
- While one object is put and compared, the one behind it is packed, and the one before it is named
  by the map (`_upload`). Each is named on its own, in order, and only if the map goes on from the
  one before: what was made ahead for another map is thrown away.
- Objects are removed when the map has not kept them for `remove_after_s`; of those that a restored
  cluster has from the one before, only these.
- A cluster from whose tier another one was restored adds and removes nothing (`peerd.tier.heirs`).
- Nothing is added to a store that has not what the map names (`Tier.known`): looked at before an
  object is put, and once more, of the object too, when all is written and before the map is told.
  So what was written before a file system was mounted, or after it was not, is never named.

Bounds: one object is packed and one is put at a time, a budget of bytes a second, one look in
`LOOK_PERIOD_S`; a shard that fails waits longer and longer, and the others go on.

Must not: decide what stores drop.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from las.v1 import fleet_pb2
from peerd.core import tiering
from peerd.core.ids import FIRST_OFFSET, Offset, ProcessId, ShardId
from peerd.core.shard_map import Shard
from peerd.daemon.budget import Background, Budget
from peerd.daemon.host import ShardHost
from peerd.daemon.logging import get_logger
from peerd.daemon.tier import Tier
from peerd.storage.errors import StorageError
from peerd.tier.errors import MissingObject, TierError
from peerd.tier.format import Index, ObjectWriter, Owner
from peerd.tier.manifest import Entry, Manifest, prefix_of
from peerd.tier.writing import leftovers, put_manifest, put_object, trimmed
from peerd.transport.map_cache import MapCache
from peerd.transport.read_source import ReadSource, Span
from peerd.transport.status import Refused

LOOK_PERIOD_S = 1.0
# limit: bytes of one read while an object grows, of which two are in memory: small enough that
# appends come in between, large enough that most of the time is not spent between threads
SLICE_BYTES_MAX = 2 * 1024 * 1024
# Objects of one look are added for so long without asking again whether this cluster has an heir
# by now. What is added then lies in its own folder, and no heir reads it. Removals always ask.
OWNED_FOR_S = 1.0
# What an object may take beyond its payload before its memory has to grow: this share for headers,
# and so much for its index.
ROOM_SHARE = 64
ROOM_BYTES = 64 * 1024
# limit: objects of one shard before another one has its turn
RUN_OBJECTS_MAX = 8
# How long a commit of the map is waited for before all is looked at again.
COMMIT_WAIT_S = 10.0
# A shard that failed is tried again after a second, then twice as long each time.
AGAIN_AFTER_S = 1.0
# limit: times that it is doubled: what fails again and again is tried four times a minute
AGAIN_DOUBLINGS_MAX = 4
# Leftovers are looked for after so many objects of a shard: each leaves an old manifest.
TIDY_EVERY = 16

_log = get_logger("tier")


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadStatistics:
    """Since the start of the process; `errors` are of uploads, `read_errors` of readers, by code.

    `oldest_waiting_s` is the age of the oldest record that could be in the tier and is not yet, 0
    if there is none. `trouble` is why a shard's last try failed: a code and a line, else empty.
    """

    objects: int
    payload_bytes: int
    removed_objects: int
    errors: dict[str, int]
    read_errors: dict[str, int]
    oldest_waiting_s: float
    trouble: str = ""


@dataclass(slots=True, kw_only=True)
class _Run:
    """Objects of one shard, one behind the other: as the map has it, and the manifest it names."""

    entry: Shard
    listed: Manifest
    objects: int = 0


@dataclass(slots=True)
class _Care:
    """What is known of one shard, to be forgotten at any time."""

    not_before_s: float = 0.0
    failures: int = 0
    untidy: int = TIDY_EVERY
    kept_from: Offset = FIRST_OFFSET
    kept_since_s: float = 0.0
    waiting_since_ms: int | None = None
    trouble: str = ""


class Uploader:
    """One per process with a tier; `run` is its only task."""

    def __init__(
        self,
        *,
        me: ProcessId,
        host: ShardHost,
        map_cache: MapCache,
        source: ReadSource,
        tier: Tier,
        report: Callable[[fleet_pb2.PeerReport], None],
        object_bytes: int,
        bytes_per_s_max: int,
        background: Background,
        remove_after_s: float,
        now_s: Callable[[], float],
        wall_ms: Callable[[], int],
    ) -> None:
        self._me = me
        self._host = host
        self._map = map_cache
        self._source = source
        self._tier = tier
        self._report = report
        self._object_bytes = object_bytes
        self._remove_after_s = remove_after_s
        self._now_s = now_s
        self._wall_ms = wall_ms
        self._budget = Budget(bytes_per_s_max, now_s)
        self._background = background
        self._paid_at_s = float("-inf")
        self._owned_at_s = float("-inf")
        self._care: dict[ShardId, _Care] = {}
        self._objects = self._payload_bytes = self._removed_objects = 0
        self._errors: Counter[str] = Counter()

    def limit(self, bytes_per_s_max: int) -> None:
        """Another rate from now on."""
        self._budget.limit(bytes_per_s_max)

    def statistics(self) -> UploadStatistics:
        """Counts, now."""
        waiting = [
            each.waiting_since_ms
            for each in self._care.values()
            if each.waiting_since_ms is not None
        ]
        age_ms = max(0, self._wall_ms() - min(waiting)) if waiting else 0
        troubles = [each.trouble for each in self._care.values() if each.trouble]
        return UploadStatistics(
            objects=self._objects,
            payload_bytes=self._payload_bytes,
            removed_objects=self._removed_objects,
            errors=dict(self._errors),
            read_errors=dict(self._tier.read_errors),
            oldest_waiting_s=age_ms / 1000,
            trouble=troubles[0] if troubles else "",
        )

    def count_removed(self, objects: int) -> None:
        """Somebody else of this process has removed so many."""
        self._removed_objects += objects

    async def run(self) -> None:
        """Look at the shards that this process orders, for ever."""
        while True:
            if not await self.look():
                await asyncio.sleep(LOOK_PERIOD_S)

    async def look(self) -> bool:
        """Some objects of each shard that has any; whether there was one."""
        mine = {
            entry.shard: entry
            for entry in self._host.map_entries()
            if self._map.cluster_id
            and entry.open.plan.primary == self._me
            and (entry.tier is not None or self._hot_bytes(entry))
        }
        self._care = {shard: self._care.get(shard, _Care()) for shard in mine}
        self._owned_at_s = float("-inf")
        some = False
        for shard, entry in mine.items():
            care = self._care[shard]
            if care.not_before_s > self._now_s():
                continue
            try:
                some = await self._upload(entry, care) or some
                await self._tidy(shard, care)
                care.failures, care.trouble = 0, ""
            except (TierError, StorageError, Refused) as error:
                self._failed(shard, care, error)
        return some

    def _hot_bytes(self, entry: Shard) -> int:
        log = self._map.logs.get(entry.log)
        return 0 if log is None else log.hot_bytes

    def _failed(self, shard: ShardId, care: _Care, error: Exception) -> None:
        code = error.code if isinstance(error, TierError) else "NOT_READABLE"
        self._errors[code] += 1
        again_after_s = AGAIN_AFTER_S * 2 ** min(care.failures, AGAIN_DOUBLINGS_MAX)
        care.failures += 1
        care.trouble = f"{code}: {error}"
        care.not_before_s = self._now_s() + again_after_s
        _log.warning(
            "not tiered now", shard=shard, code=code, why=str(error), again_after_s=again_after_s
        )

    # -------------------------------------------------------------------------- one object
    async def _upload(self, entry: Shard, care: _Care) -> bool:
        """Some objects of a shard; whether there was any. Raises `TierError`, or what store and
        reader raise.
        """
        made = await self._made(entry, tiering.next_offset(entry), care)
        if made is None:
            return False
        run = _Run(entry=entry, listed=await self._listed(entry))
        packing = putting = None
        unnamed: Entry | None = None
        oldest_ms: int | None = None
        try:
            for number in range(1, RUN_OBJECTS_MAX + 2):
                if made is not None:
                    data, index = made
                    oldest_ms = index.blocks[0].timestamp_ms
                    putting = asyncio.create_task(self._put(run.listed, data, index))
                    del data, made
                    if number < RUN_OBJECTS_MAX:
                        packing = asyncio.create_task(self._made(run.entry, index.end))
                if unnamed is not None:
                    if not await self._name(run, unnamed, care):
                        break
                    care.waiting_since_ms = None if putting is None else oldest_ms
                unnamed = None if putting is None else await putting
                made = None if packing is None else await packing
                packing = putting = None
                if unnamed is None:
                    break
        finally:
            ahead = [each for each in (packing, putting) if each is not None]
            for each in ahead:
                each.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)
        return run.objects > 0

    async def _made(
        self, entry: Shard, behind: Offset, care: _Care | None = None
    ) -> tuple[bytearray, Index] | None:
        """The next object that begins at or behind `behind`; None: nothing more can be tiered now.

        `care` learns how long it has waited, if nothing before it does. Raises as `_upload`.
        """
        begin = tiering.behind_gaps(entry, behind)
        span = self._source.span_at(entry.shard, begin) if self._hot_bytes(entry) else None
        stop = None if span is None else await self._stop(entry, span, begin)
        if span is None or stop is None or stop <= begin:
            if care is not None:
                care.waiting_since_ms = None
            return None
        owner = Owner(
            cluster=self._tier.cluster_id, log=entry.log, shard=entry.shard, epoch=span.epoch
        )
        writer = ObjectWriter(
            owner,
            begin,
            self._tier.keys,
            room_bytes=self._object_bytes + self._object_bytes // ROOM_SHARE + ROOM_BYTES,
        )
        return await self._object(writer, span, stop, care)

    async def _put(self, listed: Manifest, data: bytearray, index: Index) -> Entry:
        """Raises `TierError`."""
        if self._now_s() - self._owned_at_s > OWNED_FOR_S:
            await self._tier.owned()
            await self._known(listed.shard)
            self._owned_at_s = self._now_s()
        return await put_object(self._tier.store, self._tier.keys, listed, data, index)

    async def _name(self, run: "_Run", new: Entry, care: _Care) -> bool:
        """Have the map name an object that is there; False if it does not, or has changed so that
        what follows is to be made anew. Raises `TierError`.
        """
        entry = run.entry
        following = replace(
            run.listed,
            generation=run.listed.generation + 1,
            epoch=entry.open.epoch,
            entries=(*[each for each in run.listed.entries if each.end > entry.kept_from], new),
        )
        name = await put_manifest(self._tier.store, following)
        await asyncio.gather(
            self._known(entry.shard), self._tier.store.size_bytes(following.key(new))
        )
        self._tier.reader.remember(name, following)
        if not await self._commit(entry, new.end, name):
            return False
        run.objects += 1
        care.untidy += 1
        self._objects += 1
        self._payload_bytes += new.payload_bytes
        _log.info(
            "tiered",
            shard=entry.shard,
            begin=new.begin,
            end=new.end,
            payload_bytes=new.payload_bytes,
            object_bytes=new.object_bytes,
        )
        now = self._map.shards.get(entry.shard)
        if now is None or now.open != entry.open or now.tier is None or now.tier.manifest != name:
            return False
        run.entry, run.listed = now, following
        return True

    async def _known(self, shard: ShardId) -> None:
        """Raises `MissingObject` if the store is not that of which the map tells; `TierError`."""
        while True:
            entry = self._map.shards.get(shard)
            has_one = entry is not None and entry.tier is not None and entry.tier.manifest
            try:
                await self._tier.known(
                    (entry,) if entry is not None and has_one else self._map.shards.values()
                )
            except MissingObject:
                if self._map.shards.get(shard) == entry:
                    raise
            else:
                return

    async def _stop(self, entry: Shard, span: Span, begin: Offset) -> Offset | None:
        """Up to where the segment may be tiered now: a sealed one as far as it may be read, the
        open one by whole chunks.
        """
        if span.is_cold or span.epoch > entry.open.epoch:
            return None
        limit = tiering.limit(span.epoch, span.end, span.limit, self._host.committed(entry.shard))
        if span.end is not None or limit is None or limit <= begin:
            return limit
        cut = await self._host.find_cut(entry.shard, span.epoch, before=limit, keep_bytes=0)
        return None if cut is None else cut.offset

    async def _listed(self, entry: Shard) -> Manifest:
        """The manifest that the map names, or the empty one before the first."""
        if entry.tier is not None and entry.tier.manifest:
            return await self._tier.manifest(entry)
        return Manifest(
            cluster=self._tier.cluster_id,
            log=entry.log,
            shard=entry.shard,
            generation=0,
            epoch=entry.open.epoch,
            key_hash_low=entry.key_hash_low,
            key_hash_high=entry.key_hash_high,
        )

    async def _object(
        self, writer: ObjectWriter, span: Span, stop: Offset, care: _Care | None
    ) -> tuple[bytearray, Index] | None:
        """The next object, of `object_bytes` or one batch; None if nothing can be read now.

        What it costs of the budgets is waited for before the next one: meanwhile it is on its way.
        """
        await asyncio.sleep(max(0.0, self._paid_at_s - self._now_s()))
        at, taken_bytes = writer.begin, 0
        packing: asyncio.Task[None] | None = None
        try:
            while at < stop and taken_bytes < self._object_bytes:
                room_bytes = min(SLICE_BYTES_MAX, self._object_bytes - taken_bytes)
                batches = await self._source.read(writer.owner.shard, span, at, stop, room_bytes)
                if not batches:
                    break
                if care is not None and at == writer.begin:
                    care.waiting_since_ms = batches[0].header.timestamp_ms
                size_bytes = sum(batch.header.payload_bytes for batch in batches)
                self._charge(size_bytes)
                at, taken_bytes = batches[-1].end, taken_bytes + size_bytes
                if packing is not None:
                    await packing
                # The next slice is read meanwhile.
                packing = asyncio.create_task(asyncio.to_thread(writer.add, batches))
            if packing is None:
                return None
            await packing
        finally:
            if packing is not None:
                packing.cancel()
        return await asyncio.to_thread(writer.finish)

    def _charge(self, size_bytes: int) -> None:
        # Once for the way there, and once for the way back, when it is compared.
        wait_s = max(self._budget.spend(size_bytes), self._background.spend(2 * size_bytes))
        self._paid_at_s = self._now_s() + wait_s

    async def _commit(self, entry: Shard, end: Offset, manifest: str) -> bool:
        """Have the map name the manifest; False if it does not in time, or names another one."""
        tier = entry.tier
        begin = entry.trimmed_to if tier is None else tier.end
        self._report(
            fleet_pb2.PeerReport(
                shard_tiered=fleet_pb2.ShardTiered(
                    shard=entry.shard,
                    epoch=entry.open.epoch,
                    follows="" if tier is None else tier.manifest,
                    begin=begin,
                    end=end,
                    manifest=manifest,
                )
            )
        )
        try:
            async with asyncio.timeout(COMMIT_WAIT_S):
                while True:
                    changed = self._map.changed
                    now = self._map.shards.get(entry.shard)
                    outcome = tiering.outcome(entry, now, end, manifest)
                    if outcome is not None:
                        return outcome
                    await changed.wait()
        except TimeoutError:
            _log.warning("the map does not name it yet", shard=entry.shard, manifest=manifest)
            return False

    # -------------------------------------------------------------------------- leftovers
    async def _tidy(self, shard: ShardId, care: _Care) -> None:
        """Remove what nobody needs. Raises `TierError`."""
        entry = self._map.shards.get(shard)
        if entry is None or entry.tier is None or not entry.tier.manifest:
            return
        now_s = self._now_s()
        if entry.kept_from != care.kept_from:
            care.kept_from, care.kept_since_s = entry.kept_from, now_s
            care.untidy = max(care.untidy, TIDY_EVERY)
        if care.untidy < TIDY_EVERY or now_s - care.kept_since_s < self._remove_after_s:
            return
        listed = await self._tier.manifest(entry)
        for cluster in (self._tier.cluster_id, *await self._tier.owned()):
            prefix = prefix_of(cluster, entry.log, shard)
            found = await self._tier.store.listed(prefix)
            names = [each.key.removeprefix(f"{prefix}/") for each in found]
            if cluster == self._tier.cluster_id:
                gone = leftovers(
                    names, listed, kept_from=entry.kept_from, written_to=entry.tier.end
                )
            else:
                gone = trimmed(names, entry.kept_from)
            if gone:
                await self._tier.owned()
                await self._tier.store.remove([f"{prefix}/{name}" for name in gone])
            self._removed_objects += len(gone)
        care.untidy = 0
