"""Writing to the tier and reading it, over a store in memory that fails on purpose."""

import asyncio
from dataclasses import replace

import pytest

from peerd.core.ids import Epoch, Offset, ShardId
from peerd.tier import store as tier_store
from peerd.tier.errors import DamagedObject, ForeignObject, MissingObject, TierUnavailable, WrongKey
from peerd.tier.keys import NO_KEYS, ring_of
from peerd.tier.manifest import prefix_of
from peerd.tier.reader import RUN_BYTES_MAX, TierReader, read_manifest
from peerd.tier.store import TierStore
from peerd.tier.writing import leftovers, put_manifest, put_object
from tests.tier.objects import LISTED, OWNER, MemoryBackend, batches_of, object_of, plain

PREFIX = prefix_of("shop", "orders", ShardId(7))
KEY = ring_of([b"k" * 32])


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(tier_store, "_BACKOFF_MS", 0)


def patient(backend: MemoryBackend) -> TierStore:
    return TierStore(backend, deadline_ms=60_000, attempts=3)


async def filled(backend, sizes, *, keys=NO_KEYS, objects: int = 2):
    """A shard of some objects in the tier; all batches, and the manifest."""
    store, batches, entries = patient(backend), [], []
    for number in range(objects):
        begin = batches[-1].end if batches else 0
        owner = replace(OWNER, epoch=Epoch(3 + number))
        new = batches_of(sizes, begin=begin, seed=number)
        entries.append(
            await put_object(store, keys, LISTED, *object_of(new, owner=owner, keys=keys))
        )
        batches += new
    listed = replace(LISTED, entries=tuple(entries))
    assert (
        await read_manifest(store, "shop", "orders", ShardId(7), await put_manifest(store, listed))
        == listed
    )
    return batches, listed


def reader_of(backend, *, keys=NO_KEYS, cache_bytes: int = 64 << 20) -> TierReader:
    return TierReader(patient(backend), keys, cache_bytes=cache_bytes)


async def read_all(reader, listed, end, bytes_max=100_000):
    found, at = [], 0
    while at < end:
        epoch = listed.entry_at(at).epoch
        found += await reader.read(listed, epoch, Offset(at), Offset(end), bytes_max)
        at = found[-1].end
    return found


@pytest.mark.parametrize("keys", [NO_KEYS, KEY], ids=["plain", "encrypted"])
@pytest.mark.parametrize("cache_bytes", [1, 64 << 20])
async def test_all_that_was_written_is_read(keys, cache_bytes):
    backend = MemoryBackend()
    batches, listed = await filled(backend, [50_000] * 30, keys=keys)
    reader = reader_of(backend, keys=keys, cache_bytes=cache_bytes)
    assert plain(await read_all(reader, listed, batches[-1].end)) == plain(batches)
    assert (
        await reader.manifest(
            "shop", "orders", ShardId(7), await put_manifest(patient(backend), listed)
        )
        == listed
    )


async def test_a_read_begins_inside_and_ends_below_the_stop():
    backend = MemoryBackend()
    batches, listed = await filled(backend, [1_000] * 20)
    reader = reader_of(backend)
    found = await reader.read(listed, Epoch(3), Offset(4), Offset(17), 1 << 20)
    assert plain(found) == plain(batches[1:5])
    assert plain(await reader.read(listed, Epoch(3), Offset(0), Offset(60), 1)) == plain(
        batches[:1]
    )
    assert len(await reader.read(listed, Epoch(3), Offset(0), Offset(999), 1 << 30)) == 20


async def test_going_on_costs_few_requests_and_the_cache_is_bounded():
    backend = MemoryBackend()
    batches, listed = await filled(backend, [64_000] * 200, objects=1)
    reader = reader_of(backend, cache_bytes=4 << 20)
    backend.reads.clear()
    await read_all(reader, listed, batches[-1].end)
    assert len(backend.reads) < 20
    assert reader.cached_bytes <= 4 << 20


async def test_the_next_runs_and_the_next_object_are_fetched_ahead_within_a_bound():
    backend = MemoryBackend()
    batches, listed = await filled(backend, [64_000] * 150, objects=3)
    reader = reader_of(backend)
    keys = [f"{PREFIX}/{each.name}" for each in listed.entries]

    async def read(number: int) -> set[int]:
        """Read one batch; the objects that the store was asked for meanwhile, and after it."""
        backend.reads.clear()
        batch = batches[number]
        epoch = listed.entry_at(batch.base).epoch
        assert plain(await reader.read(listed, epoch, batch.base, batch.end, 1)) == plain([batch])
        while under_way := [*reader._under_way.values(), *reader._opening.values()]:
            await asyncio.gather(*under_way)
        return {keys.index(each[0]) for each in backend.reads}

    # One that reads here and there has nothing fetched ahead.
    assert await read(30) == await read(60) == {0}
    assert len(reader._blocks._kept) == 2
    # One that goes on has: runs of this object, and the index of the next one.
    assert await read(64) == {0, 1}
    # Then its blocks, as far as the bound lets it.
    assert await read(68) == {1}
    # What is ahead, the last run of it, the block that is read, and the two from before.
    size_bytes = 3 * max(each.raw_bytes for each in reader._openers.get(keys[1]).index.blocks)
    assert reader.cached_bytes < reader._ahead_bytes + RUN_BYTES_MAX + size_bytes
    # The boundary is no new beginning.
    assert set().union(*[await read(number) for number in range(69, 200)]) == {1, 2}
    assert set().union(*[await read(number) for number in range(69, 200)]) == set()


async def test_readers_of_one_block_share_its_request():
    backend = MemoryBackend()
    _, listed = await filled(backend, [1_000] * 3, objects=1)
    reader = reader_of(backend)
    await reader.read(listed, Epoch(3), Offset(0), Offset(9), 1)
    backend.reads.clear()
    again = reader_of(backend)
    await asyncio.gather(*[again.read(listed, Epoch(3), Offset(0), Offset(9), 1) for _ in range(9)])
    blocks = [each for each in backend.reads if each[1] == 8]
    assert len(blocks) == 1


async def test_a_reader_that_leaves_takes_no_other_along():
    backend = MemoryBackend()
    batches, listed = await filled(backend, [1_000] * 3, objects=1)
    reader = reader_of(backend)
    # The size is told, and then nothing: the first reader leaves while its block is on the way.
    await reader._opener(listed, listed.entries[0])
    backend.hung = 1
    first = asyncio.create_task(reader.read(listed, Epoch(3), Offset(0), Offset(9), 1))
    second = asyncio.create_task(reader.read(listed, Epoch(3), Offset(0), Offset(9), 1))
    reader._store._deadline_ms = 50
    await asyncio.wait([first, second], timeout=0)
    first.cancel()
    assert plain(await second) == plain(batches[:1])
    assert first.cancelled()


async def test_times_are_found():
    backend = MemoryBackend()
    batches, listed = await filled(backend, [90_000] * 12, objects=1)
    reader = reader_of(backend)
    for number, batch in enumerate(batches):
        at = batch.header.timestamp_ms
        end = batches[-1].end
        assert await reader.find_time(listed, Offset(0), end, at) == batch.base
        later = batches[number + 1].base if number + 1 < len(batches) else end
        assert await reader.find_time(listed, Offset(0), end, at + 1) == later


async def test_errors_are_typed_and_leave_other_objects_alone():
    backend = MemoryBackend()
    batches, listed = await filled(backend, [1_000] * 4)
    first, second = (f"{PREFIX}/{each.name}" for each in listed.entries)
    sound = backend.objects[second]

    async def read(offset: int, epoch: int):
        return await reader_of(backend).read(
            listed, Epoch(epoch), Offset(offset), Offset(24), 1 << 20
        )

    backend.objects[second] = sound[:50] + bytes([sound[50] ^ 4]) + sound[51:]
    with pytest.raises(DamagedObject):
        await read(12, 4)
    backend.objects[second] = sound[:-30]
    with pytest.raises(DamagedObject):
        await read(12, 4)
    backend.objects[second] = b""
    with pytest.raises(DamagedObject):
        await read(12, 4)
    backend.objects[second] = backend.objects[first]
    with pytest.raises(ForeignObject):
        await read(12, 4)
    other, _ = object_of(batches_of([1_000] * 4, begin=12, seed=9), owner=replace(OWNER, epoch=4))
    backend.objects[second] = other
    with pytest.raises(ForeignObject, match="not the object that the manifest lists"):
        await read(12, 4)
    del backend.objects[second]
    with pytest.raises(MissingObject):
        await read(12, 4)
    with pytest.raises(ForeignObject, match="was to have epoch 4"):
        await read(0, 4)
    with pytest.raises(MissingObject, match="lists no object for offset 24"):
        await read(24, 4)
    assert plain(await read(0, 3)) == plain(batches[:4])


async def test_a_key_that_is_missing_is_told():
    backend = MemoryBackend()
    _, listed = await filled(backend, [1_000] * 4, keys=KEY)
    with pytest.raises(WrongKey):
        await reader_of(backend).read(listed, Epoch(3), Offset(0), Offset(9), 1)


# ---------------------------------------------------------------------------------- writing
async def test_a_lost_answer_is_no_second_object():
    backend = MemoryBackend(faults=["lost answer"])
    batches = batches_of([100] * 5)
    entry = await put_object(patient(backend), NO_KEYS, LISTED, *object_of(batches))
    assert list(backend.objects) == [f"{PREFIX}/{entry.name}"]


async def test_what_another_primary_put_there_is_read_back_and_taken():
    backend = MemoryBackend()
    batches = batches_of([100] * 5)
    first = await put_object(patient(backend), KEY, LISTED, *object_of(batches, keys=KEY))
    both = ring_of([b"n" * 32, b"k" * 32])
    second = await put_object(patient(backend), both, LISTED, *object_of(batches, keys=both))
    assert second == first
    assert len(backend.objects) == 1


async def test_what_cannot_be_used_stays_and_another_name_is_taken():
    backend = MemoryBackend()
    data, index = object_of(batches_of([100] * 5))
    entry = await put_object(patient(backend), NO_KEYS, LISTED, data, index)
    spoilt = b"something else"
    backend.objects[f"{PREFIX}/{entry.name}"] = spoilt
    second = await put_object(patient(backend), NO_KEYS, LISTED, data, index)
    assert second.name != entry.name
    assert backend.objects[f"{PREFIX}/{entry.name}"] == spoilt
    assert backend.objects[f"{PREFIX}/{second.name}"] == data


async def test_a_store_that_gives_back_something_else_verifies_nothing():
    backend = MemoryBackend(spoil=True)
    with pytest.raises(DamagedObject, match="is not what it was given"):
        await put_object(patient(backend), NO_KEYS, LISTED, *object_of(batches_of([100] * 5)))


async def test_a_store_that_fails_verifies_nothing():
    backend = MemoryBackend(faults=["", "500", "500", "500"])
    with pytest.raises(TierUnavailable):
        await put_object(patient(backend), NO_KEYS, LISTED, *object_of(batches_of([100] * 5)))


async def test_a_large_object_is_read_back_in_pieces():
    backend = MemoryBackend()
    batches = batches_of([200_000] * 120, seed=5)
    await put_object(patient(backend), NO_KEYS, LISTED, *object_of(batches))
    assert max(end - begin for _, begin, end in backend.reads) <= 4 << 20


async def test_what_nobody_needs_is_told():
    backend = MemoryBackend()
    _, listed = await filled(backend, [100] * 4, objects=3)
    listed = replace(listed, generation=5)
    names = [each.name for each in listed.entries]
    orphan = names[0].replace("-00000000.chunk", "-0000abcd.chunk")
    on_its_way = names[2].replace(f"{36:020d}", f"{48:020d}")
    old = [f"manifest-{number:020d}-{'ab' * 16}" for number in range(8)]
    gone = leftovers(
        [*names, orphan, on_its_way, *old, "a note"],
        listed,
        kept_from=Offset(12),
        written_to=Offset(36),
    )
    assert gone == [names[0], orphan, *old[:4]]
