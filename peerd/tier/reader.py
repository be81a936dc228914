"""Batches from the tier.

What is read is what a manifest lists, in the epoch that the map gives, and each block and batch has
passed its checksums. A manifest is read by the name that the committed map gives.

How it is quick: a reader that goes on where it was gets runs of blocks, one request each, and while
it reads one the next are fetched, also those of the next object. Blocks, indexes and manifests are
kept, those used last the longest. Two readers of one block share its request.

Bounds: `cache_bytes` of unpacked blocks, `FETCHES_MAX` requests with a run each, indexes of
`INDEX_BLOCKS_MAX` blocks, manifests of `MANIFEST_ENTRIES_MAX` entries.

Must not: wait for anything but the store; give anything that was not checked.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from peerd.core.batch import PlacedBatch
from peerd.core.ids import Epoch, Offset, ShardId
from peerd.tier import manifest as manifests
from peerd.tier.errors import DamagedObject, ForeignObject, MissingObject
from peerd.tier.format import (
    TRAILER_BYTES,
    BlockOpener,
    Index,
    Owner,
    index_range,
    open_index,
    peeked_index,
)
from peerd.tier.keys import KeyRing
from peerd.tier.manifest import Entry, Manifest
from peerd.tier.store import TierStore

# limit: unpacked bytes of the blocks that one request gets, unless one block has more; it takes two
# threads one after the other, whatever it gets
RUN_BYTES_MAX = 4 * 1024 * 1024
# limit: unpacked bytes that are fetched ahead of a reader, and a run more; a quarter of the cache
AHEAD_BYTES_MAX = 8 * 1024 * 1024
AHEAD_SHARE = 4
# limit: requests for blocks at a time
FETCHES_MAX = 8
# limit: blocks of all indexes that are kept; some 200 bytes each
INDEX_BLOCKS_MAX = 65_536
# limit: entries of all manifests that are kept; some 500 bytes each
MANIFEST_ENTRIES_MAX = 2 * manifests.ENTRIES_MAX

Key = TypeVar("Key", bound=Hashable)
Kept = TypeVar("Kept")


class _Cache(Generic[Key, Kept]):
    """What was used last, up to a sum of weights; the newest one whatever it weighs."""

    def __init__(self, weight_max: int, weigh: Callable[[Kept], int]) -> None:
        self._weight_max = weight_max
        self._weigh = weigh
        self._kept: OrderedDict[Key, Kept] = OrderedDict()
        self.weight = 0

    def __contains__(self, key: Key) -> bool:
        return key in self._kept

    def get(self, key: Key) -> Kept | None:
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
        return kept

    def put(self, key: Key, kept: Kept) -> None:
        before = self._kept.pop(key, None)
        if before is not None:
            self.weight -= self._weigh(before)
        self._kept[key] = kept
        self.weight += self._weigh(kept)
        while self.weight > self._weight_max and len(self._kept) > 1:
            _, gone = self._kept.popitem(last=False)
            self.weight -= self._weigh(gone)


class TierReader:
    """Used on an event loop."""

    def __init__(self, store: TierStore, keys: KeyRing, *, cache_bytes: int) -> None:
        self._store = store
        self._keys = keys
        self._manifests: _Cache[tuple[ShardId, str], Manifest] = _Cache(
            MANIFEST_ENTRIES_MAX, lambda each: 1 + len(each.entries)
        )
        self._openers: _Cache[str, BlockOpener] = _Cache(
            INDEX_BLOCKS_MAX, lambda each: len(each.index.blocks)
        )
        self._blocks: _Cache[tuple[str, int], list[PlacedBatch]] = _Cache(cache_bytes, _weight)
        self._under_way: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(FETCHES_MAX)
        self._ahead_bytes = max(1, min(AHEAD_BYTES_MAX, cache_bytes // AHEAD_SHARE))
        self._opening: dict[str, asyncio.Task[BlockOpener]] = {}

    @property
    def cached_bytes(self) -> int:
        """Unpacked bytes of the blocks that are kept."""
        return self._blocks.weight

    async def manifest(self, cluster: str, log: str, shard: ShardId, name: str) -> Manifest:
        """The manifest that the map of this cluster names. Raises `TierError`."""
        known = self._manifests.get((shard, name))
        if known is None:
            known = await read_manifest(self._store, cluster, log, shard, name)
            self._manifests.put((shard, name), known)
        return known

    def remember(self, name: str, listed: Manifest) -> None:
        """A manifest that was just written and read back: the map is about to name it."""
        self._manifests.put((listed.shard, name), listed)

    async def read(
        self,
        listed: Manifest,
        epoch: Epoch,
        offset: Offset,
        stop: Offset,
        bytes_max: int,
    ) -> list[PlacedBatch]:
        """Batches of `epoch` from the one that contains `offset` on, ending at or below `stop`; at
        most `bytes_max` of payload but at least one, and all of one object.

        Raises `TierError`.
        """
        entry = listed.entry_at(offset)
        if entry is None:
            raise MissingObject(
                f"the manifest {listed.generation} of shard {listed.shard} lists no object for "
                f"offset {offset}"
            )
        if entry.epoch != epoch:
            raise ForeignObject(
                f"{entry.name} of shard {listed.shard} was to have epoch {epoch} at {offset}"
            )
        opener = await self._opener(listed, entry)
        key = listed.key(entry)
        found: list[PlacedBatch] = []
        taken_bytes = 0
        number = opener.index.block_at(offset)
        while number < len(opener.index.blocks):
            goes_on = self._goes_on(listed, entry, number)
            batches = await self._block(key, opener, number, goes_on=goes_on)
            if goes_on:
                self._read_ahead(listed, entry, opener, number + 1)
            for batch in batches:
                if batch.end <= offset:
                    continue
                taken_bytes += batch.header.payload_bytes
                if batch.end > stop or (found and taken_bytes > bytes_max):
                    return found
                found.append(batch)
            number += 1
        return found

    async def find_time(
        self, listed: Manifest, begin: Offset, end: Offset, timestamp_ms: int
    ) -> Offset:
        """Base of the first batch in [begin, end) with at least this time; `end` if there is none.

        Raises `TierError`.
        """
        at = begin
        while at < end:
            entry = listed.entry_at(at)
            following = None if entry is None else listed.entry_at(entry.end)
            if entry is None:
                return end
            if following is not None and following.timestamp_ms < timestamp_ms:
                at = following.begin
                continue
            opener = await self._opener(listed, entry)
            blocks = opener.index.blocks
            number = opener.index.block_at(at)
            while number + 1 < len(blocks) and blocks[number + 1].timestamp_ms < timestamp_ms:
                number += 1
            for each in range(number, min(number + 2, len(blocks))):
                for batch in await self._block(listed.key(entry), opener, each, goes_on=False):
                    if batch.base >= at and batch.header.timestamp_ms >= timestamp_ms:
                        return min(batch.base, end)
            at = entry.end
        return end

    # -------------------------------------------------------------------------- objects
    async def _opener(self, listed: Manifest, entry: Entry) -> BlockOpener:
        key = listed.key(entry)
        known = self._openers.get(key)
        if known is None:
            index = await read_index(self._store, self._keys, key, listed.owner(entry))
            if (index.begin, index.end, index.object_bytes, index.content.hex()) != (
                entry.begin,
                entry.end,
                entry.object_bytes,
                entry.content,
            ):
                raise ForeignObject(f"{key} is not the object that the manifest lists")
            known = BlockOpener(index, self._keys)
            self._openers.put(key, known)
        return known

    def _goes_on(self, listed: Manifest, entry: Entry, number: int) -> bool:
        """Whether the block before this one is known: somebody reads one after the other."""
        if number:
            return (listed.key(entry), number - 1) in self._blocks
        before = listed.entry_at(entry.begin - 1) if entry.begin else None
        known = None if before is None else self._openers.get(listed.key(before))
        return (
            before is not None
            and known is not None
            and (listed.key(before), len(known.index.blocks) - 1) in self._blocks
        )

    async def _block(
        self, key: str, opener: BlockOpener, number: int, *, goes_on: bool
    ) -> list[PlacedBatch]:
        known = self._blocks.get((key, number))
        if known is None:
            under_way = self._under_way.get((key, number))
            if under_way is None:
                under_way = self._start(key, opener, number, RUN_BYTES_MAX if goes_on else 1)
            # Others may wait for it, too: who is cancelled leaves it alone.
            await asyncio.shield(under_way)
            known = self._blocks.get((key, number))
            if known is None:
                # Pushed out by others at once: the cache is small for so many readers.
                stored = opener.index.blocks[number]
                return await self._fetched(key, opener, number, number + 1, stored.stored_bytes)
        return known

    def _read_ahead(self, listed: Manifest, entry: Entry, opener: BlockOpener, number: int) -> None:
        """Fetch the next runs while this block is read, those that nobody fetches."""
        ahead_bytes = 0
        while ahead_bytes < self._ahead_bytes:
            if number == len(opener.index.blocks):
                following = listed.entry_at(entry.end)
                known = None if following is None else self._opened_ahead(listed, following)
                if following is None or known is None:
                    return
                entry, opener, number = following, known, 0
            at = (listed.key(entry), number)
            if at not in self._blocks and at not in self._under_way:
                if self._places.locked():
                    return
                self._start(at[0], opener, number, min(RUN_BYTES_MAX, self._ahead_bytes))
            ahead_bytes += opener.index.blocks[number].raw_bytes
            number += 1

    def _opened_ahead(self, listed: Manifest, entry: Entry) -> BlockOpener | None:
        """An object that is about to be read, once its index is here."""
        key = listed.key(entry)
        known = self._openers.get(key)
        if known is None and key not in self._opening:
            opening = asyncio.create_task(self._opener(listed, entry), name="index of the tier")
            self._opening[key] = opening

            def ended(done: asyncio.Task[BlockOpener]) -> None:
                del self._opening[key]
                if not done.cancelled():
                    done.exception()  # whoever reads it meets it

            opening.add_done_callback(ended)
        return known

    def _start(
        self, key: str, opener: BlockOpener, begin: int, bytes_max: int
    ) -> asyncio.Task[None]:
        blocks = opener.index.blocks
        end, run_bytes = begin + 1, blocks[begin].raw_bytes
        while (
            end < len(blocks)
            and run_bytes + blocks[end].raw_bytes <= bytes_max
            and (key, end) not in self._blocks
            and (key, end) not in self._under_way
        ):
            run_bytes += blocks[end].raw_bytes
            end += 1
        task = asyncio.create_task(self._run(key, opener, begin, end), name="blocks of the tier")
        for number in range(begin, end):
            self._under_way[key, number] = task

        def ended(done: asyncio.Task[None]) -> None:
            for number in range(begin, end):
                self._under_way.pop((key, number), None)
            if not done.cancelled():
                done.exception()  # whoever needs the block has met it, or meets it when it asks

        task.add_done_callback(ended)
        return task

    async def _run(self, key: str, opener: BlockOpener, begin: int, end: int) -> None:
        last = opener.index.blocks[end - 1]
        stored_bytes = last.position + last.stored_bytes - opener.index.blocks[begin].position
        await self._fetched(key, opener, begin, end, stored_bytes)

    async def _fetched(
        self, key: str, opener: BlockOpener, begin: int, end: int, stored_bytes: int
    ) -> list[PlacedBatch]:
        """Fetch, check and keep a run; the batches of its first block."""
        blocks = opener.index.blocks
        position = blocks[begin].position
        async with self._places:
            data = await self._store.read(key, position, position + stored_bytes)
            try:
                opened = await asyncio.to_thread(_opened, opener, begin, end, data)
            except DamagedObject as error:
                raise DamagedObject(f"{key}: {error}") from error
        for number, batches in enumerate(opened, begin):
            self._blocks.put((key, number), batches)
        return opened[0]


def _opened(opener: BlockOpener, begin: int, end: int, data: bytes) -> list[list[PlacedBatch]]:
    view = memoryview(data)
    position = opener.index.blocks[begin].position
    opened = []
    for number in range(begin, end):
        block = opener.index.blocks[number]
        at = block.position - position
        opened.append(opener.batches(number, view[at : at + block.stored_bytes]))
    return opened


def _weight(batches: list[PlacedBatch]) -> int:
    return 256 + sum(512 + len(batch.payload) for batch in batches)


async def read_manifest(
    store: TierStore, cluster: str, log: str, shard: ShardId, name: str
) -> Manifest:
    """A manifest by its name. Raises `TierError`."""
    key = f"{manifests.prefix_of(cluster, log, shard)}/{name}"
    size_bytes = await store.size_bytes(key)
    if size_bytes > manifests.MANIFEST_BYTES_MAX:
        raise DamagedObject(f"{key} is no manifest: it has {size_bytes} bytes")
    data = await store.read(key, 0, size_bytes) if size_bytes else b""
    return await asyncio.to_thread(
        manifests.unpack, name, data, cluster=cluster, log=log, shard=shard
    )


async def peek_index(store: TierStore, key: str) -> Index:
    """What an object says of itself, for people: see `peeked_index`. Raises `TierError`."""
    packed, _, crc, object_bytes = await _packed_index(store, key)
    try:
        return peeked_index(packed, crc=crc, object_bytes=object_bytes)
    except DamagedObject as error:
        raise DamagedObject(f"{key}: {error}") from error


async def _packed_index(store: TierStore, key: str) -> tuple[bytes, int, int, int]:
    """The bytes of an index, where it lies, its checksum, and how large its object is."""
    object_bytes = await store.size_bytes(key)
    if object_bytes < TRAILER_BYTES:
        raise DamagedObject(f"{key} has {object_bytes} bytes, fewer than its trailer")
    trailer = await store.read(key, object_bytes - TRAILER_BYTES, object_bytes)
    try:
        begin, end, crc = index_range(trailer, object_bytes)
    except DamagedObject as error:
        raise DamagedObject(f"{key}: {error}") from error
    return await store.read(key, begin, end), begin, crc, object_bytes


async def read_index(store: TierStore, keys: KeyRing, key: str, owner: Owner) -> Index:
    """The index of an object. Raises `TierError`."""
    packed, begin, crc, object_bytes = await _packed_index(store, key)
    try:
        return await asyncio.to_thread(
            open_index,
            packed,
            position=begin,
            crc=crc,
            object_bytes=object_bytes,
            keys=keys,
            wanted=owner,
        )
    except DamagedObject as error:
        raise DamagedObject(f"{key}: {error}") from error
    except ForeignObject as error:
        raise ForeignObject(f"{key}: {error}") from error
