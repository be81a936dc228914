"""What `peerctl log tier LOG --tier FILE` tells of each shard; with processes: test_backup.py."""

from dataclasses import replace

import pytest

from las.core.tier_commands import TierShard
from peerd.cli import tier_listing
from peerd.cli.tier_listing import COLUMNS, Listed, listed, row
from peerd.core.ids import Epoch, Offset
from peerd.tier import store as tier_store
from peerd.tier.keys import NO_KEYS, ring_of
from peerd.tier.writing import put_manifest, put_object
from tests.cli.test_backup import manifest_of
from tests.las_core.builders import SHARD, done, process, shard_of, with_log
from tests.tier.objects import MemoryBackend, batches_of, object_of
from tests.tier.test_reading import patient

KEYS = ring_of([b"k" * 32])


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(tier_store, "_BACKOFF_MS", 0)


async def tiered(backend: MemoryBackend):
    """A shard of which two objects are in the tier, the first one not encrypted; its manifest."""
    at, entries, listing = 0, [], manifest_of(())
    for keys in (NO_KEYS, KEYS):
        batches = batches_of([1_000] * 4, begin=at)
        owner = replace(object_of(batches)[1].owner, cluster="cluster-1", shard=SHARD)
        made = object_of(batches, owner=replace(owner, epoch=Epoch(1)), keys=keys)
        entries.append(await put_object(patient(backend), keys, listing, *made))
        at = batches[-1].end
    listing = replace(listing, entries=tuple(entries))
    command = TierShard(
        shard=SHARD,
        epoch=Epoch(1),
        by=process(1),
        follows="",
        begin=Offset(0),
        end=Offset(at),
        manifest=await put_manifest(patient(backend), listing),
    )
    return shard_of(done(with_log(), command)), listing


async def test_offsets_times_sizes_and_keys_are_told_without_a_key_file():
    backend = MemoryBackend()
    shard, listing = await tiered(backend)
    found = await listed(patient(backend), "cluster-1", shard)
    stored = sum(each.object_bytes for each in listing.entries)
    assert found == Listed(
        shard=SHARD,
        begin=0,
        end=24,
        objects=2,
        payload_bytes=8_000,
        stored_bytes=stored,
        oldest_ms=1_000_000,
        newest_ms=1_004_000,
        key_ids=("", KEYS.writing),
    )
    assert found.ratio == round(8_000 / stored, 3)
    told = dict(zip(COLUMNS, row(found), strict=True))
    assert told["oldest"] == "1970-01-01T00:16:40Z"
    assert told["key"] == f"not encrypted {KEYS.writing}"
    # What is trimmed is not listed, though it may lie there still.
    tier = replace(shard.tier, begin=Offset(12))
    trimmed = replace(shard, trimmed_to=Offset(12), tier=tier)
    later = await listed(patient(backend), "cluster-1", trimmed)
    assert (later.begin, later.objects, later.key_ids) == (12, 1, (KEYS.writing,))


async def test_what_is_wrong_with_the_tier_is_told_of_the_shard():
    backend = MemoryBackend()
    shard, listing = await tiered(backend)
    key = listing.key(listing.entries[1])
    backend.objects[key] = backend.objects[key][:-9]
    found = await listed(patient(backend), "cluster-1", shard)
    assert found.error.startswith("DAMAGED_OBJECT: cluster-cluster-1/log-orders")
    assert row(found)[-1] == "DAMAGED_OBJECT"
    backend.objects.clear()
    assert (await listed(patient(backend), "cluster-1", shard)).error.startswith("MISSING_OBJECT")
    assert await listed(patient(backend), "cluster-1", replace(shard, tier=None)) == Listed(
        shard=SHARD, begin=0, end=0
    )


def test_what_waits_is_told_with_its_age():
    waiting = Listed(shard=1, begin=0, end=5, waiting_records=7, waiting_age_ms=61_500)
    assert "7 records, oldest 61.5 s" in row(waiting)
    assert "7 records" in row(replace(waiting, waiting_age_ms=None))
    assert tier_listing.as_document(waiting)["ratio"] is None
