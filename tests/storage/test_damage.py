"""Damaged files: an error or the truth, never wrong data; and only child processes die of them."""

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from peerd.core.ids import Offset, ShardId
from peerd.storage import Corrupt, StorageOptions, StoreDamaged, verify_store
from peerd.storage.environment import Environment
from peerd.storage.layout import batch_key
from peerd.storage.rows import put_store, read_store
from tests.storage import bitflips
from tests.storage.driving import EPOCH, SHARD, Driven, adopt, append, placed

OPTIONS = StorageOptions()
BIT_FLIPS = 200


def damage_row(directory: Path, key: bytes, change, table: str = "batches") -> None:
    """Change one row of a closed store behind its back; `change` gives the new value or None."""
    environment = Environment(directory, map_bytes_max=1 << 30)
    with environment.read() as reading:
        mark = read_store(reading)
    transaction = environment.begin_write()
    database = getattr(environment.tables, table)
    value = change(bytearray(transaction.get(key, db=database) or b""))
    if value is None:
        transaction.delete(key, db=database)
    else:
        transaction.put(key, bytes(value), db=database)
    put_store(transaction, mark)
    transaction.commit()
    environment.close()


def flipped(at: int):
    def change(value: bytearray) -> bytearray:
        value[at] ^= 0x10
        return value

    return change


def removed(_: bytearray) -> None:
    return None


@pytest.fixture
def damaged(open_store, tmp_path):
    """A closed store with ten batches of three parts; gives a function that damages a row of it."""
    driven = open_store()
    batches = [
        placed(
            base,
            bytes([base]) * 9_000,
            producer=bytes([base + 1]) * 16,
            first_sequence=3,
        )
        for base in range(10)
    ]
    driven.stored(adopt(), append(*batches, commit=6))
    assert driven.store.close()

    def damaging(base: int, part: int, change) -> Driven:
        damage_row(tmp_path / "store", batch_key(SHARD, EPOCH, Offset(base), part), change)
        return open_store()

    return damaging


# ------------------------------------------------------------------ damaged batches
@pytest.mark.parametrize(
    ("part", "change"),
    [
        *((0, flipped(0)), (0, flipped(62)), (0, flipped(200)), (1, flipped(0)), (2, flipped(-1))),
        *((0, removed), (1, removed), (2, removed), (1, lambda value: value[:-1])),
    ],
)
def test_a_damaged_batch_is_corrupt_and_the_others_are_read(damaged, part, change):
    driven = damaged(4, part, change)
    read = driven.store.read_batches(SHARD, EPOCH, Offset(0), Offset(10), 1 << 30)
    assert [batch.base for batch in read] == [0, 1, 2, 3]
    with pytest.raises(Corrupt) as found:
        driven.store.read_batches(SHARD, EPOCH, Offset(4), Offset(10), 1 << 30)
    assert (found.value.shard, found.value.epoch, found.value.offset) == (SHARD, EPOCH, 4)
    assert "\n" not in str(found.value)
    read = driven.store.read_batches(SHARD, EPOCH, Offset(5), Offset(10), 1 << 30)
    assert [batch.base for batch in read] == [5, 6, 7, 8, 9]


def test_a_whole_batch_under_the_key_of_another_is_corrupt(damaged):
    for part in range(3):
        values = []
        driven = damaged(2, part, lambda value, values=values: values.append(bytes(value)) or value)
        assert driven.store.close()
        driven = damaged(7, part, lambda _, values=values: values[0])
        assert driven.store.close()
    driven = damaged(0, 0, lambda value: value)
    with pytest.raises(Corrupt):
        driven.store.read_batches(SHARD, EPOCH, Offset(7), Offset(10), 1)


def test_headers_and_times_of_damaged_batches_are_corrupt(damaged):
    driven = damaged(5, 0, flipped(10))
    with pytest.raises(Corrupt):
        driven.store.read_headers(SHARD, EPOCH, Offset(5), Offset(10))
    assert len(driven.store.read_headers(SHARD, EPOCH, Offset(0), Offset(10))) == 5
    with pytest.raises(Corrupt):
        driven.store.find_time(SHARD, EPOCH, 0)


def test_verify_names_each_damaged_batch_and_leaves_the_store_usable(damaged, tmp_path):
    for base, part in [(1, 0), (4, 1), (9, 2)]:
        assert damaged(base, part, removed).store.close()
    report = verify_store(tmp_path / "store")
    assert report.usable
    assert not report.sound
    assert report.corrupt_batches == 3
    assert [f"offset {base} " in line for base, line in zip((1, 4, 9), report.corrupt, strict=True)]
    assert report.batches == 7


def test_a_damaged_batch_does_not_keep_the_store_from_opening(damaged, tmp_path):
    driven = damaged(8, 1, flipped(5))
    assert driven.store.close()
    (tmp_path / "store" / "running").touch()
    again = Driven(tmp_path / "store", OPTIONS)
    assert again.store.verified is not None
    assert again.store.verified.corrupt_batches == 1
    assert again.store.shards[SHARD].segments[EPOCH].end == 10
    assert again.store.close()


def test_a_table_that_would_miss_a_batch_is_forgotten_instead(damaged):
    driven = damaged(7, 0, flipped(10))
    assert len(driven.store.read_table(SHARD).producers) == 6
    driven.stored(append(commit=9))
    table = driven.store.read_table(SHARD)
    assert (table.as_of, table.complete, dict(table.producers)) == (9, False, {})


# ------------------------------------------------------------------ damaged rows
@pytest.mark.parametrize("table", ["shards", "segments"])
def test_a_damaged_row_ends_the_store(damaged, tmp_path, table):
    assert damaged(0, 0, lambda value: value).store.close()
    key = batch_key(SHARD, EPOCH, Offset(0))[: 8 if table == "shards" else 16]
    damage_row(tmp_path / "store", key, flipped(3), table)
    with pytest.raises(StoreDamaged, match=table):
        Driven(tmp_path / "store", OPTIONS)
    assert not verify_store(tmp_path / "store").usable


@pytest.mark.parametrize("change", [flipped(3), removed])
def test_a_damaged_or_missing_producer_row_is_told(damaged, tmp_path, open_store, change):
    assert damaged(0, 0, lambda value: value).store.close()
    key = batch_key(SHARD, EPOCH, Offset(0))[:8] + bytes([4]) * 16
    damage_row(tmp_path / "store", key, change, "producers")
    driven = open_store()
    with pytest.raises(Exception, match="producers"):
        driven.store.read_table(SHARD)
    asked = {"ranges": (), "as_of": Offset(6), "or_later": True}
    assert driven.store.load_table(SHARD, from_store=True, **asked) is None
    assert driven.store.close()
    assert not verify_store(tmp_path / "store").usable


# ------------------------------------------------------------------ damaged files
def test_single_bit_flips_never_give_wrong_data(open_store, tmp_path):
    driven = open_store()
    for shard in range(bitflips.SHARDS):
        batches = [
            placed(
                base,
                bitflips.payload_of(shard, base),
                producer=(base + 1).to_bytes(16, "big"),
                first_sequence=base,
            )
            for base in range(bitflips.BATCHES)
        ]
        driven.stored(adopt(5, shard=shard), append(*batches, epoch=5, shard=shard))
        driven.stored(append(epoch=5, shard=shard, commit=bitflips.BATCHES))
    assert driven.store.close()
    assert bitflips.examine(tmp_path / "store", tmp_path / "scratch", -1) in {"clean", "told"}

    results: dict[int, str] = {}
    at = 0
    while at < BIT_FLIPS:
        command = [sys.executable, bitflips.__file__, tmp_path / "store", tmp_path / "scratch"]
        child = subprocess.run(
            [*command, str(at), str(BIT_FLIPS - at)],
            capture_output=True,
            text=True,
            check=False,
        )
        for line in child.stdout.splitlines():
            number, _, result = line.partition(" ")
            results[int(number)] = result
        assert child.returncode <= 0, child.stderr  # a signal at worst, never an unknown exception
        at = max(results, default=at - 1) + 1
        if child.returncode < 0:
            results[at] = "killed"
            at += 1
    wrong = {number: result for number, result in results.items() if "WRONG" in result}
    assert not wrong
    counts = Counter(results.values())
    assert counts["told"] > BIT_FLIPS // 4, counts
    assert counts["killed"] < BIT_FLIPS // 10, counts


def test_an_older_state_that_a_damaged_meta_page_makes_the_newest_is_found_out(
    open_store, tmp_path
):
    driven = open_store()
    driven.stored(adopt())
    for base in range(10):
        driven.stored(append(placed(base)))
    assert driven.store.close()
    path = tmp_path / "store" / "data.mdb"
    data = bytearray(path.read_bytes())
    numbers = [int.from_bytes(data[at : at + 8], sys.byteorder) for at in (144, 4_096 + 144)]
    older = 144 if numbers[0] < numbers[1] else 4_096 + 144
    data[older + 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreDamaged, match="written by transaction"):
        Driven(tmp_path / "store", OPTIONS)


@pytest.mark.parametrize("unclean", [False, True])
@pytest.mark.parametrize("kept_bytes", [0, 1, 4_096, 8_192, 100_000])
def test_a_truncated_file_is_a_typed_error(open_store, tmp_path, kept_bytes, unclean):
    driven = open_store()
    driven.stored(adopt(), append(*(placed(base, b"x" * 9_000) for base in range(50))))
    assert driven.store.close()
    os.truncate(tmp_path / "store" / "data.mdb", kept_bytes)
    if unclean:
        (tmp_path / "store" / "running").touch()
    with pytest.raises(StoreDamaged) as refused:
        Driven(tmp_path / "store", OPTIONS)
    assert "\n" not in str(refused.value)


def test_garbage_in_place_of_the_file_is_a_typed_error(open_store, tmp_path):
    assert open_store().store.close()
    (tmp_path / "store" / "data.mdb").write_bytes(os.urandom(100_000))
    with pytest.raises(StoreDamaged):
        Driven(tmp_path / "store", OPTIONS)


# ------------------------------------------------------------------ torn commits
class Copies:
    """A commit hook that keeps what is on disk before each commit."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "data.mdb"
        self.before: list[bytes] = []

    def __call__(self) -> None:
        self.before.append(self._path.read_bytes())


@pytest.fixture
def two_commits(open_store, tmp_path):
    """What is on disk before and after a commit that moved the end from 10 to 20."""
    copies = Copies(tmp_path / "store")
    driven = open_store(before_commit=copies)
    driven.stored(adopt())
    driven.stored(append(*(placed(base, b"x" * 5_000) for base in range(10))))
    driven.stored(append(*(placed(base, b"y" * 5_000) for base in range(10, 20)), commit=10))
    assert driven.store.close()
    after = (tmp_path / "store" / "data.mdb").read_bytes()

    def opening(data: bytes) -> Driven:
        directory = tmp_path / "copy"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(tmp_path / "store", directory)
        (directory / "data.mdb").write_bytes(data)
        (directory / "running").touch()
        return open_store(directory)

    return copies.before[-1], after, opening


def test_a_crash_before_the_meta_page_leaves_the_state_before(two_commits):
    before, after, opening = two_commits
    # All pages of the commit are there; the meta page, which is written last, is not.
    driven = opening(before[:8_192] + after[8_192:])
    assert driven.payloads() == [b"x" * 5_000] * 10
    assert driven.store.shards[SHARD].segments[EPOCH].end == 10


def test_any_pages_of_a_commit_may_be_missing_without_its_meta_page(two_commits):
    before, after, opening = two_commits
    padded = before + bytes(max(0, len(after) - len(before)))
    for odd in (0, 1):
        pages = [
            (after if number % 2 == odd and number >= 2 else padded)[start : start + 4_096]
            for number, start in enumerate(range(0, len(after), 4_096))
        ]
        driven = opening(b"".join(pages))
        assert driven.payloads() == [b"x" * 5_000] * 10
        assert driven.store.close()


def test_a_disk_that_lost_the_pages_but_kept_the_meta_page_is_found_out(two_commits):
    before, after, opening = two_commits
    padded = before + bytes(max(0, len(after) - len(before)))
    for pages in (padded, before):
        with pytest.raises(StoreDamaged):
            opening(after[:8_192] + pages[8_192:])


def test_a_state_of_another_shard_is_not_invented(open_store):
    driven = open_store()
    driven.stored(adopt(), append(placed(0)))
    assert driven.store.read_batches(ShardId(SHARD - 1), EPOCH, Offset(0), Offset(9), 1) == []
