"""Patience with a store, and a directory as one."""

import asyncio
import gc
import os
import threading

import pytest

from peerd.tier import store as tier_store
from peerd.tier.directory import DirectoryBackend
from peerd.tier.errors import (
    DamagedObject,
    MissingObject,
    NotConfigured,
    TierError,
    TierUnavailable,
)
from peerd.tier.keys import key_id, read_keys
from peerd.tier.store import TierStore
from tests.tier.objects import MemoryBackend


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(tier_store, "_BACKOFF_MS", 0)


def patient(backend, *, deadline_ms: int = 60_000, attempts: int = 3) -> TierStore:
    return TierStore(backend, deadline_ms=deadline_ms, attempts=attempts)


async def test_what_passes_is_asked_again_a_bounded_number_of_times():
    backend = MemoryBackend(faults=["500", "500"])
    store = patient(backend)
    assert await store.create("a", b"x")
    assert await store.read("a", 0, 1) == b"x"
    backend.faults = ["500"] * 9
    with pytest.raises(TierUnavailable):
        await store.read("a", 0, 1)
    assert len(backend.faults) == 6
    assert store.statistics().failures == 5


async def test_a_store_that_does_not_answer_is_given_up():
    backend = MemoryBackend(objects={"a": b"x"}, hung=1)
    store = patient(backend, deadline_ms=20)
    assert await store.read("a", 0, 1) == b"x"
    backend.hung = 3
    with pytest.raises(TierUnavailable, match="within 20 ms"):
        await store.read("a", 0, 1)


async def test_a_put_whose_answer_is_lost_is_told_as_there_already():
    backend = MemoryBackend(faults=["lost answer"])
    assert not await patient(backend).create("a", b"x")
    assert backend.objects == {"a": b"x"}


async def test_a_short_answer_is_a_cut_object():
    with pytest.raises(DamagedObject, match="it was cut"):
        await patient(MemoryBackend(objects={"a": b"x"})).read("a", 0, 2)


async def test_pauses_grow_and_end():
    pauses = [tier_store._pause_ms(attempt) for attempt in range(1, 40)]
    assert max(pauses) <= 5_000


async def test_a_directory_keeps_objects(tmp_path):
    store = patient(DirectoryBackend(tmp_path / "tier"))
    assert await store.create("c/s/1", b"first")
    assert not await store.create("c/s/1", b"second")
    assert await store.create("c/s/2", b"2")
    assert await store.create("c/t/3", b"3")
    assert await store.read("c/s/1", 1, 3) == b"ir"
    assert await store.size_bytes("c/s/1") == 5
    assert await store.holds("c/s/1", 1, 5, b"first")
    assert not await store.holds("c/s/1", 1, 5, b"fir?t")
    assert not await store.holds("c/s/1", 0, 6, b"first!")
    assert [each.key for each in await store.listed("c/s")] == ["c/s/1", "c/s/2"]
    await store.remove(["c/s/1", "c/s/1", "c/nothing"])
    assert [each.key for each in await store.listed("c")] == ["c/s/2", "c/t/3"]
    assert await store.listed("elsewhere") == []
    with pytest.raises(MissingObject):
        await store.read("c/s/1", 0, 1)
    with pytest.raises(MissingObject):
        await store.holds("c/s/1", 0, 1, b"f")
    assert not any((tmp_path / "tier" / "tmp").iterdir())


async def test_what_root_makes_is_the_owner_s_of_the_directory(tmp_path, monkeypatch):
    """A restore that root has run is gone on with by peers that run as somebody else."""
    given = {}

    def chown(path, uid, gid):
        given[str(path)] = (uid, gid)
        if str(path).endswith("/s"):
            raise PermissionError("a file system that lets nobody")

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", chown)
    root = tmp_path / "tier"
    await patient(DirectoryBackend(root)).create("c/s/1", b"first")
    owner = (root.stat().st_uid, root.stat().st_gid)
    (part,) = [path for path in given if path.endswith(".part")]
    assert given == dict.fromkeys([f"{root}/tmp", f"{root}/c", f"{root}/c/s", part], owner)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    given.clear()
    await patient(DirectoryBackend(root)).create("d/1", b"first")
    assert not given


async def test_nobody_is_led_out_of_the_directory(tmp_path):
    store = patient(DirectoryBackend(tmp_path / "tier"))
    for key in ("../x", "a/../../x", "/etc/passwd", "", "a//b", "."):
        with pytest.raises(TierError):
            await store.create(key, b"x")
    assert not (tmp_path / "x").exists()


async def test_one_of_many_makers_wins(tmp_path):
    store = patient(DirectoryBackend(tmp_path / "tier"))
    made = await asyncio.gather(*[store.create("a/b", bytes([each])) for each in range(20)])
    assert made.count(True) == 1
    assert (await store.read("a/b", 0, 1))[0] == made.index(True)


async def test_a_file_in_the_way_passes_no_exception_of_python(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(TierUnavailable):
        await patient(DirectoryBackend(tmp_path / "file")).create("a/b", b"x")


async def test_a_file_system_that_hangs_is_given_up_and_keeps_few_threads(tmp_path, monkeypatch):
    backend = DirectoryBackend(tmp_path / "tier")
    going_on = threading.Event()
    monkeypatch.setattr(backend, "_create", lambda path, data: going_on.wait(60))
    store = patient(backend, deadline_ms=20, attempts=1)
    for _ in range(20):
        with pytest.raises(TierUnavailable, match="within 20 ms"):
            await store.create("a/b", b"x")
    assert sum(thread.name == "tier" for thread in threading.enumerate()) == 8
    going_on.set()
    monkeypatch.undo()
    assert await patient(backend).create("a/b", b"x")


async def test_calls_one_after_the_other_have_one_thread_which_ends_with_the_backend(tmp_path):
    before = set(threading.enumerate())
    backend = DirectoryBackend(tmp_path / "tier")
    for number in range(20):
        await backend.create(f"a/{number}", b"x")
    (thread,) = set(threading.enumerate()) - before
    backend = None
    gc.collect()
    await asyncio.to_thread(thread.join, 60)
    assert not thread.is_alive()


def test_keys_come_from_files(tmp_path):
    raw, text, bad = tmp_path / "raw", tmp_path / "text", tmp_path / "bad"
    raw.write_bytes(b"r" * 32)
    text.write_text("ab" * 32 + "\n")
    bad.write_text("ab" * 31)
    ring = read_keys([text, raw])
    assert ring.writing == key_id(b"\xab" * 32)
    assert set(ring.keys) == {key_id(b"\xab" * 32), key_id(b"r" * 32)}
    assert "rrrr" not in repr(ring)
    assert read_keys([]).writing == ""
    with pytest.raises(NotConfigured, match="openssl rand -hex 32"):
        read_keys([bad])
    with pytest.raises(NotConfigured, match="cannot be read"):
        read_keys([tmp_path / "nothing"])


async def test_folders_are_those_right_below(tmp_path):
    backend = DirectoryBackend(tmp_path)
    for key in ("a/b/c/x", "a/d/y", "a/z", "e/f/w"):
        await backend.create(key, b"1")
    assert sorted(await backend.folders("a")) == ["a/b", "a/d"]
    assert await backend.folders("nothing") == []
