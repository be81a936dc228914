"""Who may open which directory, and what a failed disk does."""

import fcntl
import json
import os
import subprocess
import sys

import pytest

from peerd.core.durable import PromiseEpoch, Stored
from peerd.core.ids import Epoch
from peerd.storage import (
    NotAStore,
    StorageError,
    StorageFailed,
    StorageOptions,
    StoreClosed,
    StoreDamaged,
    StoreFormatUnknown,
    StoreLocked,
    WrongCluster,
    verify_store,
)
from peerd.storage.directory import StoreDirectory, lock_directory
from tests.storage.driving import EPOCH, SHARD, Driven, adopt, append, placed

OPTIONS = StorageOptions()


def one_line(error: StorageError) -> str:
    text = str(error)
    assert "\n" not in text
    assert "Traceback" not in text
    return text


# ------------------------------------------------------------------ identity
def test_a_store_keeps_its_id_and_learns_its_cluster_once(open_store):
    driven = open_store()
    store_id = driven.store.manifest.store_id
    assert len(store_id) == 32
    assert driven.store.manifest.cluster_id == ""
    driven.store.adopt_cluster("c1")
    driven.store.adopt_cluster("c1")
    with pytest.raises(WrongCluster) as refused:
        driven.store.adopt_cluster("c2")
    assert "c1" in one_line(refused.value)
    assert "c2" in one_line(refused.value)
    assert driven.store.close()

    again = open_store()
    assert again.store.manifest.store_id == store_id
    assert again.store.manifest.cluster_id == "c1"
    with pytest.raises(WrongCluster):
        again.store.adopt_cluster("c2")


def test_two_directories_are_two_stores(open_store, tmp_path):
    first, second = open_store(tmp_path / "a"), open_store(tmp_path / "b")
    assert first.store.manifest.store_id != second.store.manifest.store_id


def test_the_data_of_one_store_under_the_manifest_of_another_is_refused(open_store, tmp_path):
    for name in ("a", "b"):
        assert open_store(tmp_path / name).store.close()
    (tmp_path / "a" / "data.mdb").rename(tmp_path / "b" / "data.mdb")
    with pytest.raises(NotAStore, match="store"):
        Driven(tmp_path / "b", OPTIONS)
    assert any("manifest" in line for line in verify_store(tmp_path / "b").damage)


# ------------------------------------------------------------------ what is opened
def test_a_store_is_locked_while_it_is_open(open_store, tmp_path):
    open_store()
    with pytest.raises(StoreLocked) as refused:
        Driven(tmp_path / "store", OPTIONS)
    assert str(tmp_path / "store") in one_line(refused.value)
    with pytest.raises(StoreLocked):
        verify_store(tmp_path / "store")


def test_another_process_cannot_open_it_either(open_store, tmp_path):
    open_store()
    program = (
        "import sys, pathlib\n"
        "from peerd.storage import Store, StorageOptions, StoreLocked\n"
        "try:\n"
        "    path = pathlib.Path(sys.argv[1])\n"
        "    Store.open(path, StorageOptions(), deliver=print, on_failure=print)\n"
        "except StoreLocked as error:\n"
        "    print('locked')\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "store"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert child.stdout == "locked\n"


def test_the_lock_of_a_dead_process_is_no_lock(open_store, tmp_path):
    assert open_store().store.close()
    (tmp_path / "store" / "lock").write_text("left behind")
    open_store()


def test_a_foreign_directory_is_left_as_it_is(tmp_path):
    (tmp_path / "letter.txt").write_text("dear all")
    with pytest.raises(NotAStore) as refused:
        Driven(tmp_path, OPTIONS)
    assert "letter.txt" in one_line(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_file_or_an_absent_directory_is_no_store(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotAStore) as refused:
            Driven(path, OPTIONS)
        one_line(refused.value)
    with pytest.raises(NotAStore):
        verify_store(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_a_mount_point_is_empty_enough(open_store, tmp_path):
    (tmp_path / "store" / "lost+found").mkdir(parents=True)
    open_store()


def test_data_without_a_manifest_is_no_store(open_store, tmp_path):
    assert open_store().store.close()
    (tmp_path / "store" / "manifest.json").unlink()
    with pytest.raises(NotAStore):
        Driven(tmp_path / "store", OPTIONS)
    assert (tmp_path / "store" / "data.mdb").exists()


def test_a_manifest_without_data_is_not_filled_with_new_data(open_store, tmp_path):
    assert open_store().store.close()
    (tmp_path / "store" / "data.mdb").unlink()
    with pytest.raises(NotAStore, match=r"data\.mdb is missing"):
        Driven(tmp_path / "store", OPTIONS)
    assert not (tmp_path / "store" / "data.mdb").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"store_id": "a"}', '{"format_version": "x"}'])
def test_an_unreadable_manifest_is_no_store(open_store, tmp_path, text):
    assert open_store().store.close()
    (tmp_path / "store" / "manifest.json").write_text(text)
    with pytest.raises(NotAStore) as refused:
        Driven(tmp_path / "store", OPTIONS)
    one_line(refused.value)


@pytest.mark.parametrize(
    "change", [{"format_version": 1}, {"format_version": 3}, {"lmdb_engine": "1.0"}]
)
def test_another_format_is_refused(open_store, tmp_path, change):
    assert open_store().store.close()
    path = tmp_path / "store" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(StoreFormatUnknown) as refused:
        Driven(tmp_path / "store", OPTIONS)
    assert str(next(iter(change.values()))) in one_line(refused.value)


@pytest.mark.parametrize("left", [(), ("data.mdb", "lock.mdb"), (".manifest.json.new",)])
def test_an_interrupted_creation_begins_again(open_store, tmp_path, left):
    directory = tmp_path / "store"
    directory.mkdir()
    for name in ("creating", *left):
        (directory / name).write_bytes(b"half")
    driven = open_store()
    driven.stored(adopt())
    assert driven.store.close()
    assert not (directory / "creating").exists()
    assert open_store().store.shards.keys() == {SHARD}


def test_a_mark_of_creation_beside_a_manifest_wipes_nothing(open_store, tmp_path):
    driven = open_store()
    driven.stored(adopt(), append(placed(0, b"kept")))
    assert driven.store.close()
    (tmp_path / "store" / "creating").write_bytes(b"")
    assert open_store().payloads() == [b"kept"]


# ------------------------------------------------------------------ stops
def test_a_clean_stop_needs_no_verification(open_store):
    driven = open_store()
    driven.stored(adopt())
    assert driven.store.close()
    again = open_store()
    assert again.store.verified is None


def test_after_an_unclean_stop_the_store_is_verified(open_store, tmp_path):
    driven = open_store()
    driven.stored(adopt(), append(placed(0, b"x" * 9_000), placed(1), commit=1))
    assert driven.store.close()
    (tmp_path / "store" / "running").touch()
    again = open_store()
    assert again.store.verified is not None
    assert again.store.verified.sound
    assert again.store.verified.batches == 1  # what is not committed yet
    assert len(again.payloads()) == 2


def test_a_disk_that_does_not_answer_is_no_damage(open_store, tmp_path, monkeypatch):
    assert open_store().store.close()
    (tmp_path / "store" / "running").touch()
    monkeypatch.setattr("peerd.storage.store.QUICK_TIMEOUT_S", 0.0)
    with pytest.raises(StorageFailed, match="could not be read within"):
        Driven(tmp_path / "store", OPTIONS)
    monkeypatch.undo()
    assert open_store().store.verified is not None


def test_close_writes_and_delivers_what_is_queued_and_takes_nothing_more(open_store):
    driven = open_store()
    driven.store.submit(adopt(), 0)
    for number in range(100):
        driven.store.submit(append(placed(number)), number)
    assert driven.store.close()
    assert len(driven.outcomes.delivered) == 101
    with pytest.raises(StoreClosed):
        driven.store.submit(adopt(), 0)
    with pytest.raises(StoreClosed):
        driven.payloads()
    assert driven.store.close()
    assert len(open_store().payloads()) == 100


# ------------------------------------------------------------------ failure
class FailsAt:
    """A commit hook that fails once, at the n-th commit: the next one would go through."""

    def __init__(self, number: int) -> None:
        self._left = number
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        self._left -= 1
        if self._left == 0:
            raise OSError(5, "Input/output error")


def test_a_failed_commit_fails_the_store_for_good(open_store, tmp_path):
    hook = FailsAt(3)
    driven = open_store(before_commit=hook)
    driven.stored(adopt())
    driven.stored(append(placed(0, b"acknowledged")))
    driven.store.submit(append(placed(1, b"never acknowledged")), "lost")
    driven.outcomes.wait_for(lambda: bool(driven.outcomes.failures))

    assert "Input/output error" in one_line(driven.outcomes.failures[0])
    assert driven.store.failure is driven.outcomes.failures[0]
    with pytest.raises(type(driven.outcomes.failures[0])):
        driven.store.submit(append(placed(1)), "later")
    assert driven.store.close()
    assert len(driven.outcomes.delivered) == 2
    assert len(driven.outcomes.failures) == 1
    assert hook.calls == 3

    again = open_store()
    assert again.store.verified is not None  # a failure is an unclean stop
    assert again.payloads() == [b"acknowledged"]


def test_what_queued_behind_a_failed_commit_is_never_answered(open_store):
    driven = open_store(before_commit=FailsAt(1))
    for token in range(10):
        try:
            driven.store.submit(adopt(), token)
        except StorageError:
            break
    driven.outcomes.wait_for(lambda: bool(driven.outcomes.failures))
    assert driven.outcomes.delivered == []


def test_an_adoption_that_contradicts_the_store_stops_it(open_store):
    driven = open_store()
    driven.stored(adopt(1, begin=0))
    driven.store.submit(adopt(1, begin=5), "contradiction")
    driven.outcomes.wait_for(lambda: bool(driven.outcomes.failures))
    assert "one epoch begins at one offset" in one_line(driven.outcomes.failures[0])


def test_a_full_map_fails_the_store_and_loses_nothing(open_store):
    options = StorageOptions(map_size_bytes_max=1 << 20, reserve_bytes=0)
    driven = open_store(options=options)
    driven.stored(adopt())
    kept = 0
    while not driven.outcomes.failures:
        try:
            driven.store.submit(append(placed(kept, b"x" * 50_000)), kept)
        except StorageError:
            break
        wanted = kept + 2
        driven.outcomes.wait_for(
            lambda wanted=wanted: (
                len(driven.outcomes.delivered) >= wanted or bool(driven.outcomes.failures)
            )
        )
        kept += not driven.outcomes.failures
    assert kept > 5
    assert driven.store.close()
    assert len(open_store().payloads()) == kept


# ------------------------------------------------------------------ space
def test_the_reserve_is_told_and_promises_still_work(open_store):
    huge = StorageOptions(reserve_bytes=1 << 60)
    driven = open_store(options=huge)
    space = driven.store.space()
    assert space.in_reserve
    assert 0 < space.free_bytes < 1 << 60
    promise = PromiseEpoch(shard=SHARD, fence=Epoch(4), epoch=EPOCH)
    assert isinstance(driven.do(promise)[0], Stored)
    assert not open_store(driven.directory.with_name("other")).store.space().in_reserve


def test_the_reserve_also_counts_the_bound_of_the_file(open_store, monkeypatch):
    monkeypatch.setattr("peerd.storage.store._SPACE_AGE_MS_MAX", -1.0)
    options = StorageOptions(map_size_bytes_max=4 << 20, reserve_bytes=1 << 20)
    driven = open_store(options=options)
    driven.stored(adopt())
    assert not driven.store.space().in_reserve
    base = 0
    while not driven.store.space().in_reserve:
        driven.stored(append(placed(base, b"x" * 100_000)))
        base += 1
    assert 25 <= base <= 32


# ------------------------------------------------------------------ the directory alone
def test_the_lock_is_held_as_long_as_the_context(tmp_path):
    with lock_directory(tmp_path / "a", create=True) as locked:
        assert isinstance(locked, StoreDirectory)
        descriptor = os.open(tmp_path / "a" / "lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)


def test_a_truncated_file_is_a_typed_error_also_after_a_clean_stop(open_store, tmp_path):
    driven = open_store()
    driven.stored(adopt(), append(*(placed(base, b"x" * 9_000) for base in range(50))))
    assert driven.store.close()
    path = tmp_path / "store" / "data.mdb"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(StoreDamaged) as refused:
        Driven(tmp_path / "store", OPTIONS)
    assert "bytes" in one_line(refused.value)
    report = verify_store(tmp_path / "store")
    assert not report.usable
