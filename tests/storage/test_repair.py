"""Damaged batches are replaced by another holder's bytes, and by nothing else."""

from dataclasses import replace

import pytest

from peerd.core.durable import DropTrimmed, LearnMap, StoredShard
from peerd.core.ids import Epoch, Offset
from peerd.storage import Corrupt, Repair, Repaired, verify_store
from peerd.storage.layout import batch_key
from tests.storage.driving import EPOCH, SHARD, Driven, adopt, append, placed
from tests.storage.test_damage import damage_row, flipped, removed

BATCHES = 10
COMMIT = 8 * 2
PARTS = 3


def original(number: int):
    """Batches of two records and three parts."""
    return placed(
        2 * number,
        bytes([number]) * 9_000,
        record_count=2,
        producer=bytes([number + 1]) * 16,
        first_sequence=3,
        timestamp_ms=number,
    )


@pytest.fixture
def damaged(open_store, tmp_path):
    """A closed store with ten batches, eight of them committed; gives what damages a row of it."""
    driven = open_store()
    driven.stored(adopt(), append(*map(original, range(BATCHES)), commit=COMMIT))
    assert driven.store.close()

    def damaging(*rows: tuple[int, int], change=flipped(5)) -> Driven:
        for number, part in rows:
            damage_row(
                tmp_path / "store", batch_key(SHARD, EPOCH, Offset(2 * number), part), change
            )
        return open_store()

    return damaging


def repair(driven: Driven, *batches, epoch: int = EPOCH) -> Repaired:
    results: list[Repaired] = []
    driven.store.repair(Repair(shard=SHARD, epoch=Epoch(epoch), batches=batches), results.append)
    driven.do(append(epoch=1 << 40))
    driven.outcomes.wait_for(lambda: bool(results))
    return results[0]


def everything(driven: Driven) -> bool:
    return driven.payloads() == [bytes(original(number).payload) for number in range(BATCHES)]


def state_of(driven: Driven) -> StoredShard:
    return driven.do(append(epoch=1 << 40))[0].state


@pytest.mark.parametrize("change", [flipped(5), removed])
@pytest.mark.parametrize("part", range(PARTS))
def test_a_damaged_batch_is_whole_again_also_after_a_restart(damaged, open_store, change, part):
    driven = damaged((4, part), change=change)
    before = state_of(driven), driven.store.read_table(SHARD)
    with pytest.raises(Corrupt):
        driven.payloads(8)
    assert repair(driven, original(4)) == Repaired(rewritten=1)
    assert everything(driven)
    assert (state_of(driven), driven.store.read_table(SHARD)) == before
    assert driven.store.close()
    assert verify_store(driven.directory).sound
    assert everything(open_store())


def test_only_what_is_damaged_in_a_range_is_written(damaged):
    driven = damaged((0, 0), (3, 1), (3, 2))
    assert repair(driven, *map(original, range(5))) == Repaired(rewritten=2)
    assert everything(driven)
    assert repair(driven, *map(original, range(5))) == Repaired(rewritten=0)


def test_a_row_that_does_not_belong_there_goes(damaged, tmp_path):
    driven = damaged((2, 0))
    assert driven.store.close()
    # As if a key had been damaged: the batch is missing, and a row lies inside it.
    key = batch_key(SHARD, EPOCH, Offset(4))
    moved = []
    damage_row(tmp_path / "store", key, lambda value: moved.append(bytes(value)))
    damage_row(tmp_path / "store", batch_key(SHARD, EPOCH, Offset(5)), lambda _: moved[0])
    driven = damaged()
    assert repair(driven, original(2)) == Repaired(rewritten=1)
    assert everything(driven)
    assert driven.payloads(5, 6) == [original(2).payload]


# ------------------------------------------------------------------ refused
def altered(number: int, **header: object):
    batch = original(number)
    return replace(batch, header=replace(batch.header, **header))


def shifted(number: int, by: int):
    return replace(original(number), base=Offset(2 * number + by))


@pytest.mark.parametrize(
    ("rows", "batches", "words"),
    [
        ([(4, 1)], [replace(original(4), payload=b"other" * 1_800)], "checksum"),
        ([(4, 1)], [altered(4, first_sequence=4)], "contradicts"),
        ([(4, 1)], [altered(4, timestamp_ms=9)], "contradicts"),
        ([], [placed(8, b"other", record_count=2)], "contradicts"),
        ([(4, 0)], [shifted(4, -1)], "contradicts"),
        ([(4, 0)], [altered(4, record_count=4)], "lies inside"),
        ([(4, 0)], [original(4), original(6)], "follow each other"),
        ([(8, 0)], [original(8)], "not known to be committed"),
        ([(7, 0)], [original(7), original(8)], "not known to be committed"),
    ],
)
def test_what_does_not_fit_changes_nothing(damaged, rows, batches, words):
    driven = damaged(*rows)
    result = repair(driven, *batches)
    assert (result.rewritten, result.gone) == (0, False)
    assert words in result.refused
    assert "\n" not in result.refused
    for number, _ in rows:
        with pytest.raises(Corrupt):
            driven.payloads(2 * number)
    assert driven.store.failure is None


def test_what_the_map_sealed_is_repaired_up_to_its_seal(damaged):
    driven = damaged((8, 0))
    sealing = LearnMap(shard=SHARD, open_epoch=Epoch(9), seals=((EPOCH, Offset(18)),))
    driven.stored(sealing)
    assert repair(driven, original(8)).rewritten == 1
    assert driven.payloads(16) == [original(8).payload]
    assert repair(driven, original(9)).refused


def test_nothing_comes_back_that_was_dropped(damaged):
    driven = damaged((8, 0))
    dead = LearnMap(
        shard=SHARD, open_epoch=Epoch(9), seals=((EPOCH, Offset(16)),), dead=(Epoch(3),)
    )
    driven.stored(dead)
    assert repair(driven, original(8)).refused
    assert repair(driven, original(0), epoch=3).gone
    driven.finish_drops()
    assert driven.payloads(16) == []


def test_what_was_trimmed_stays_away(damaged):
    driven = damaged((1, 0), (3, 0))
    trimmed = DropTrimmed(shard=SHARD, open_epoch=EPOCH, trimmed_to=Offset(4))
    driven.stored(trimmed)
    assert repair(driven, original(1)) == Repaired(gone=True)
    assert repair(driven, original(1), original(2), original(3)).refused
    assert repair(driven, original(3)) == Repaired(rewritten=1)
    driven.finish_drops()
    assert driven.payloads() == [original(number).payload for number in range(2, BATCHES)]


def test_appends_that_share_the_commit_of_a_refused_repair_are_stored(damaged, open_store):
    driven = damaged((4, 1))
    assert repair(driven, altered(4, first_sequence=4)).refused
    driven.stored(append(placed(2 * BATCHES), commit=2 * BATCHES))
    assert driven.store.close()
    assert open_store().payloads(2 * BATCHES) == [b"payload"]
