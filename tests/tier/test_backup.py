"""Backups in the tier: whole or none, as they were written; what of their records is left."""

from dataclasses import replace

import pytest

from peerd.tier import backup as backups
from peerd.tier import store as tier_store
from peerd.tier.backup import Backup, ShardBackup
from peerd.tier.errors import (
    DamagedObject,
    FormatUnknown,
    MissingObject,
    TierError,
    TierUnavailable,
    WrongKey,
)
from peerd.tier.keys import NO_KEYS, ring_of
from peerd.tier.manifest import pack
from peerd.tier.writing import put_object
from tests.tier.objects import LISTED, MemoryBackend, batches_of, object_of
from tests.tier.test_reading import KEY, PREFIX, filled, patient

STATE = b"what the LAS had committed, and nobody else shall read"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(tier_store, "_BACKOFF_MS", 0)


async def made(backend, *, keys=NO_KEYS, at_s: float = 0.0) -> Backup:
    """A backup of one shard, of which nothing is in the tier."""
    backup_id = backups.new_id(at_s)
    shard = ShardBackup(log="orders", shard=7, begin=0, end=12, committed=13)
    part = await backups.put_part(
        patient(backend), keys, backup_id, backups.shard_part(7), pack(LISTED)[1]
    )
    made = Backup(
        id=backup_id,
        cluster="shop",
        cluster_id="c1",
        made_at_ms=int(at_s * 1000),
        state=await backups.put_part(patient(backend), keys, backup_id, backups.STATE, STATE),
        shards=(replace(shard, manifest=pack(LISTED)[0], part=part), shard),
    )
    await backups.put_index(patient(backend), made)
    return made


@pytest.mark.parametrize("keys", [NO_KEYS, KEY], ids=["plain", "encrypted"])
async def test_what_was_written_is_read(keys):
    backend = MemoryBackend()
    backup = await made(backend, keys=keys)
    store = patient(backend)
    assert await backups.read_index(store, backup.id) == backup
    assert await backups.read_part(store, keys, backup.id, backup.state) == STATE
    shown = any(STATE in data for data in backend.objects.values())
    assert shown is (keys is NO_KEYS)
    assert not backup.shards[0].is_whole
    assert replace(backup.shards[0], committed=12).is_whole


async def test_they_are_listed_oldest_first_and_none_without_an_index():
    backend = MemoryBackend()
    second, first = await made(backend, at_s=9e8), await made(backend, at_s=8e8)
    begun = backups.new_id(9.5e8)
    await backups.put_part(patient(backend), NO_KEYS, begun, backups.STATE, STATE)
    backend.objects["backups/notes/index-" + "0" * 32] = b"somebody else's"
    assert await backups.list_ids(patient(backend)) == [first.id, second.id]
    for unknown in (begun, "20010101T000000Z-00000000", "../x"):
        with pytest.raises(MissingObject, match="peerctl backup list"):
            await backups.read_index(patient(backend), unknown)


async def test_an_answer_that_is_lost_makes_no_second_one_and_what_is_there_is_never_replaced():
    backend = MemoryBackend(faults=["lost answer"])
    backup_id = backups.new_id(0)
    put = (patient(backend), NO_KEYS, backup_id, backups.STATE)
    part = await backups.put_part(*put, STATE)
    assert len(backend.objects) == 1
    with pytest.raises(DamagedObject, match="is not what it was given"):
        await backups.put_part(*put, b"another state")
    with pytest.raises(DamagedObject, match="is not what it was given"):
        await backups.put_part(*put, STATE[:9])
    assert await backups.read_part(patient(backend), NO_KEYS, backup_id, part) == STATE


def spoilt(backend: MemoryBackend, name: str, change) -> None:
    key = next(key for key in backend.objects if key.rsplit("/", 1)[1].startswith(name))
    backend.objects[key] = change(backend.objects[key])


def flipped(data: bytes) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


@pytest.mark.parametrize("change", [flipped, lambda data: data[:-1]], ids=["flipped", "cut"])
async def test_what_was_flipped_or_cut_is_refused(change):
    backend = MemoryBackend()
    backup = await made(backend)
    spoilt(backend, "state", change)
    with pytest.raises(DamagedObject):
        await backups.read_part(patient(backend), NO_KEYS, backup.id, backup.state)
    spoilt(backend, "index", change)
    with pytest.raises(DamagedObject, match="not what was written under this name"):
        await backups.read_index(patient(backend), backup.id)


async def test_a_wrong_key_a_part_in_anothers_place_and_a_newer_format_are_told():
    backend = MemoryBackend()
    backup = await made(backend, keys=KEY)
    store = patient(backend)
    with pytest.raises(WrongKey, match=r"tier\.key_files"):
        await backups.read_part(store, ring_of([b"o" * 32]), backup.id, backup.state)
    other = backup.shards[0].part
    moved = f"backups/{backup.id}/{backups.STATE}"
    backend.objects[moved] = backend.objects[f"backups/{backup.id}/{other.name}"]
    with pytest.raises(WrongKey, match="tampered"):
        await backups.read_part(store, KEY, backup.id, replace(other, name=backups.STATE))
    part = await made(backend)
    key = f"backups/{part.id}/{backups.STATE}"
    backend.objects[key] = b"peerdBK\x09" + STATE
    with pytest.raises(DamagedObject):
        await backups.read_part(store, KEY, part.id, part.state)
    newer = replace(part.state, sha256=backups.hashlib.sha256(backend.objects[key]).hexdigest())
    with pytest.raises(FormatUnknown, match="upgrade"):
        await backups.read_part(
            store, KEY, part.id, replace(newer, size_bytes=len(backend.objects[key]))
        )
    with pytest.raises(DamagedObject, match="cannot have"):
        await backups.read_part(store, KEY, part.id, replace(newer, size_bytes=-1))


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", DamagedObject),
        (b"[]", DamagedObject),
        (b'{"format":1}', DamagedObject),
        (b'{"format":1,"shards":[7],"state":{}}', DamagedObject),
        (b'{"format":2}', FormatUnknown),
    ],
)
async def test_what_is_no_index_is_told(data, error):
    backend = MemoryBackend()
    backup_id = backups.new_id(0)
    digest = backups.hashlib.sha256(data).hexdigest()[:32]
    backend.objects[f"backups/{backup_id}/index-{digest}"] = data
    with pytest.raises(error):
        await backups.read_index(patient(backend), backup_id)


async def test_bounds(monkeypatch):
    backend = MemoryBackend()
    backup = await made(backend)
    monkeypatch.setattr(backups, "INDEX_BYTES_MAX", 10)
    with pytest.raises(DamagedObject, match="is no index"):
        await backups.read_index(patient(backend), backup.id)
    with pytest.raises(TierError, match="would have"):
        await backups.put_index(patient(backend), backup)


# ---------------------------------------------------------------------------------- records
async def test_objects_that_are_missing_or_cut_are_found_and_only_the_oldest_may_be_gone():
    backend = MemoryBackend()
    _, listed = await filled(backend, [1_000] * 4, objects=3)
    store = patient(backend)
    assert await backups.lacking(store, listed) == []
    assert backups.removed_since(listed, []) == listed
    first, second, third = listed.entries
    del backend.objects[f"{PREFIX}/{first.name}"]
    missing = await backups.lacking(store, listed)
    assert missing == [first]
    assert backups.removed_since(listed, missing).entries == (second, third)
    spoilt(backend, third.name, lambda data: data[:-1])
    with pytest.raises(MissingObject, match=third.name):
        backups.removed_since(listed, await backups.lacking(store, listed))
    backend.objects.clear()
    with pytest.raises(MissingObject, match="no object of shard 7"):
        backups.removed_since(listed, await backups.lacking(store, listed))


async def test_a_deep_look_reads_every_byte():
    backend = MemoryBackend()
    _, listed = await filled(backend, [1_000] * 4, keys=KEY)
    store = patient(backend)
    await backups.check_records(store, KEY, listed)
    spoilt(
        backend, listed.entries[1].name, lambda data: data[:60] + flipped(data[60:70]) + data[70:]
    )
    assert await backups.lacking(store, listed) == []
    with pytest.raises((DamagedObject, WrongKey)):
        await backups.check_records(store, KEY, listed)


async def test_a_store_that_fails_leaves_no_backup():
    backend = MemoryBackend(faults=["500"] * 3)
    entry = object_of(batches_of([100]))
    with pytest.raises(TierUnavailable):
        await made(backend)
    await put_object(patient(backend), NO_KEYS, LISTED, *entry)
    assert await backups.list_ids(patient(backend)) == []
