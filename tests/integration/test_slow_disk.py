"""The disk that falls sick on command: LMDB lives on it, and only its flushes are slow."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import lmdb
import pytest

from peerd.testing.faults import FaultFile, Faults
from peerd.testing.slow_disk import SlowDisk

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(120)]

DELAY_MS = 100.0


@pytest.fixture
def disk(tmp_path: Path):
    with SlowDisk(tmp_path / "mount", tmp_path / "backing", tmp_path / "faults.json") as mounted:
        yield mounted


def test_a_store_on_it_keeps_what_it_commits(disk: SlowDisk, tmp_path: Path):
    value = os.urandom(5_000)
    with lmdb.open(str(disk.mount / "store"), map_size=1 << 26) as store:
        for number in range(20):
            with store.begin(write=True) as transaction:
                transaction.put(b"%d" % number, value)
        with store.begin() as transaction:
            assert transaction.get(b"19") == value
    with lmdb.open(str(tmp_path / "backing" / "store"), readonly=True, lock=False) as behind:
        assert behind.stat()["entries"] == 20


def test_files_are_made_renamed_cut_and_removed_on_it(disk: SlowDisk):
    first, second = disk.mount / "a" / "one", disk.mount / "a" / "two"
    first.parent.mkdir()
    first.write_bytes(b"0123456789")
    first.rename(second)
    os.truncate(second, 4)
    assert [each.name for each in first.parent.iterdir()] == ["two"]
    assert second.read_bytes() == b"0123"
    second.unlink()
    first.parent.rmdir()
    assert list(disk.mount.iterdir()) == []


def test_its_flushes_take_as_long_as_they_are_told_and_fail_when_told(
    disk: SlowDisk, tmp_path: Path
):
    faults = FaultFile(tmp_path / "faults.json")
    with (disk.mount / "file").open("wb", buffering=0) as file:
        faults.set(Faults(write_delay_ms=DELAY_MS))
        _flush_until(file, lambda took_ms: took_ms >= DELAY_MS)
        faults.set(Faults(fail=True))
        _flush_until(file, math.isnan)
        faults.clear()
        _flush_until(file, lambda took_ms: took_ms < DELAY_MS)


def _flush_until(file: BinaryIO, done: Callable[[float], bool]) -> None:
    """Write and flush until one took as expected (NaN: failed): the disk reads its orders now and
    then.
    """
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        begun = time.monotonic()
        file.write(b"x")
        try:
            os.fsync(file.fileno())
            took_ms = (time.monotonic() - begun) * 1000.0
        except OSError:
            took_ms = math.nan
        if done(took_ms):
            return
    raise AssertionError("not within 60 s")


def test_nothing_stays_mounted(tmp_path: Path):
    with SlowDisk(tmp_path / "mount", tmp_path / "backing", tmp_path / "faults.json") as mounted:
        assert mounted.mount.is_mount()
        (mounted.mount / "kept").write_text("here")
    assert not mounted.mount.is_mount()
    assert (tmp_path / "backing" / "kept").read_text() == "here"
