"""The tier's object store against a real S3 server, well and spoilt."""

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from peerd.core.ids import Epoch, Offset
from peerd.tier import store as tier_store
from peerd.tier.errors import (
    DamagedObject,
    MissingObject,
    NoCredentials,
    NotConfigured,
    TierUnavailable,
)
from peerd.tier.keys import NO_KEYS, ring_of
from peerd.tier.manifest import prefix_of
from peerd.tier.reader import TierReader
from peerd.tier.s3 import S3Backend, S3Options
from peerd.tier.store import TierStore
from peerd.tier.writing import put_manifest, put_object
from tests.integration.object_store import (
    ACCESS_KEY,
    BUCKET,
    SECRET_KEY,
    SpoilingProxy,
    s3_server,
)
from tests.tier.objects import LISTED, batches_of, object_of, plain

PREFIX = prefix_of("shop", "orders", LISTED.shard)
SIZES = [60_000] * 40


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> str:
    with s3_server(tmp_path_factory.mktemp("s3")) as address:
        yield address


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(tier_store, "_BACKOFF_MS", 1)


def s3(
    url: str,
    prefix: str,
    *,
    bucket: str = BUCKET,
    secret: str = SECRET_KEY,
    deadline_ms: int = 20_000,
    attempts: int = 4,
):
    backend = S3Backend(
        S3Options(
            bucket=bucket,
            prefix=prefix,
            endpoint=url,
            access_key_id=ACCESS_KEY,
            secret_access_key=secret,
            timeout_ms=deadline_ms,
        )
    )
    return TierStore(backend, deadline_ms=deadline_ms, attempts=attempts)


async def read_back(store, listed, keys=NO_KEYS):
    reader = TierReader(store, keys, cache_bytes=8 << 20)
    found, at = [], Offset(0)
    while at < listed.entries[-1].end:
        found += await reader.read(listed, Epoch(3), at, listed.entries[-1].end, 1 << 20)
        at = found[-1].end
    return plain(found)


async def test_a_bucket_that_is_not_there_is_told_with_what_to_do(url):
    with pytest.raises(NotConfigured, match=r"nowhere at .* does not exist: create the bucket"):
        await s3(url, "plain", bucket="nowhere").listed("a")


async def test_objects_are_made_once_read_in_ranges_listed_and_removed(url):
    store = s3(url, "plain")
    assert await store.create("a/b/1", b"first")
    assert not await store.create("a/b/1", b"second")
    assert await store.create("a/b/2", b"22")
    assert await store.read("a/b/1", 1, 3) == b"ir"
    assert await store.size_bytes("a/b/1") == 5
    assert await store.holds("a/b/1", 1, 5, b"first")
    assert not await store.holds("a/b/1", 1, 5, b"fir?t")
    assert not await store.holds("a/b/1", 0, 6, b"first!")
    assert [(each.key, each.size_bytes) for each in await store.listed("a/b")] == [
        ("a/b/1", 5),
        ("a/b/2", 2),
    ]
    await store.remove(["a/b/1", "a/b/none"])
    with pytest.raises(MissingObject):
        await store.read("a/b/1", 0, 1)
    with pytest.raises(MissingObject):
        await store.size_bytes("a/b/1")
    assert [each.key for each in await store.listed("a/b")] == ["a/b/2"]
    assert await store.folders("a") == ["a/b"]
    assert await store.folders("a/b") == await store.folders("nothing") == []


async def test_who_may_not_is_told_at_once(url):
    store = s3(url, "refused", secret="wrong")
    with pytest.raises(NoCredentials, match="access_key_id_file"):
        await store.create("a", b"x")
    assert store.statistics().calls == 1


async def test_nobody_there_is_told_in_bounded_time():
    with pytest.raises(TierUnavailable):
        await s3("http://127.0.0.1:9", "nobody", deadline_ms=2_000, attempts=2).create("a", b"x")


@pytest.mark.parametrize("keys", [NO_KEYS, ring_of([b"k" * 32])], ids=["plain", "encrypted"])
async def test_every_third_request_fails_and_nothing_is_lost(url, keys):
    batches = batches_of(SIZES)
    async with SpoilingProxy(url, fail_every=3).running() as proxy:
        store = s3(proxy.url, f"spoilt-{keys.writing}")
        entry = await put_object(store, keys, LISTED, *object_of(batches, keys=keys))
        listed = replace(LISTED, entries=(entry,))
        name = await put_manifest(store, listed)
        reader = TierReader(store, keys, cache_bytes=8 << 20)
        assert await reader.manifest("shop", "orders", LISTED.shard, name) == listed
        assert await read_back(store, listed, keys) == plain(batches)
        assert store.statistics().failures > 2


async def test_a_put_whose_answer_is_lost_is_found_and_read_back(url):
    batches = batches_of(SIZES)
    async with SpoilingProxy(url, lose_puts=1).running() as proxy:
        store = s3(proxy.url, "lost")
        entry = await put_object(store, NO_KEYS, LISTED, *object_of(batches))
        assert [each.key for each in await store.listed(PREFIX)] == [f"{PREFIX}/{entry.name}"]


async def test_a_store_that_hangs_is_given_up(url):
    async with SpoilingProxy(url, hang=True).running() as proxy:
        store = s3(proxy.url, "hung", deadline_ms=300, attempts=2)
        with pytest.raises(TierUnavailable, match="within 300 ms"):
            await store.create("a", b"x")


async def test_a_flipped_byte_is_seen_and_what_is_spoilt_is_written_anew(url):
    store = s3(url, "flipped")
    data, index = object_of(batches_of(SIZES))
    entry = await put_object(store, NO_KEYS, LISTED, data, index)
    key = f"{PREFIX}/{entry.name}"
    await store.remove([key])
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 16
    assert await store.create(key, bytes(flipped))
    listed = replace(LISTED, entries=(entry,))
    with pytest.raises(DamagedObject):
        await read_back(store, listed)
    assert (await put_object(store, NO_KEYS, LISTED, data, index)).name != entry.name


_UPLOADER = """
import asyncio, sys
from peerd.tier.keys import NO_KEYS
from peerd.tier.writing import put_object
from tests.integration.test_tier_store import SIZES, s3
from tests.tier.objects import LISTED, batches_of, object_of

async def main():
    print("ready", flush=True)
    for seed in range(1000):
        await put_object(s3(sys.argv[1], "killed"), NO_KEYS, LISTED, *object_of(
            batches_of(SIZES, begin=seed * len(SIZES) * 3, seed=seed)))
        print("done", flush=True)

asyncio.run(main())
"""


def killed_uploader(url: str) -> None:
    """Uploads objects in a process of its own, and kills it in the middle of the fifth."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", _UPLOADER, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as process:
        assert process.stdout is not None
        for _ in range(5):
            assert process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)


async def test_kill_9_in_the_middle_of_an_upload_leaves_whole_objects_or_none(url):
    await asyncio.to_thread(killed_uploader, url)
    store = s3(url, "killed")
    told = len(await store.listed(PREFIX))
    assert told >= 4
    for seed in range(told + 1):
        made = object_of(batches_of(SIZES, begin=seed * len(SIZES) * 3, seed=seed))
        await put_object(store, NO_KEYS, LISTED, *made)
    assert len(await store.listed(PREFIX)) == told + 1
