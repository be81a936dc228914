"""Damaged batches of a running peer: found by reads and by the scrub, mended, never given out."""

from dataclasses import replace

import pytest

from peerd.daemon import repairer
from peerd.daemon.peer import Peer
from peerd.storage.errors import Corrupt
from tests.daemon.fleet import (
    SHARD,
    Fleet,
    StandInLas,
    append,
    damage,
    opened,
    plan,
    sealed,
    shard_of,
    until,
    values_at,
)
from tests.daemon.test_copier import with_sealed_past

OFF = {"scrub": {"bytes_per_s_max": 0}}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repairer, "AGAIN_AFTER_S", 0.02)
    monkeypatch.setattr(repairer, "AGAIN_DOUBLINGS_MAX", 2)


def repaired(peer: Peer) -> int:
    statistics = peer.repairer.statistics()
    return 0 if statistics.damaged else statistics.repaired


async def with_open_segment(fleet: Fleet, las: StandInLas, **settings: object):
    one = await fleet.start_peer("peer-1", **settings)
    two = await fleet.start_peer("peer-2", **settings)
    las.commit(shard_of(opened(1, plan(one, one, two))))
    await until(lambda: one.host.is_primary(SHARD), "peer-1 is primary")
    for number in range(10):
        await append(one, b"%d" % number * 100)
    await until(lambda: (two.host.committed(SHARD) or (0, 0))[1] == 10, "peer-2 knows the commit")
    return one, two


async def test_a_read_finds_damage_and_another_holder_mends_it(
    fleet: Fleet, las: StandInLas
) -> None:
    one, two, _, _ = await with_sealed_past(fleet, las, 10)
    right = await values_at(one, 1, 0, 10)
    damage(two, 1, 4)
    with pytest.raises(Corrupt):
        await two.host.read(SHARD, 1, 4, 10, 1 << 20)
    await until(lambda: repaired(two) == 1, "it is mended")
    assert await values_at(two, 1, 0, 10) == right
    assert not las.reported("holder_lost")


@pytest.mark.parametrize("victim", [0, 1])
async def test_committed_batches_of_an_open_segment_are_mended_at_primary_and_shadow(
    fleet: Fleet, las: StandInLas, victim: int
) -> None:
    peers = await with_open_segment(fleet, las, **OFF)
    right = await values_at(peers[0], 1, 0, 10)
    for base in (0, 3, 4):
        damage(peers[victim], 1, base)
        with pytest.raises(Corrupt):
            await peers[victim].host.read(SHARD, 1, base, 10, 1 << 20)
    await until(lambda: repaired(peers[victim]) == 3, "they are mended")
    assert await values_at(peers[victim], 1, 0, 10) == right
    await append(peers[0], b"and more")


async def test_the_scrub_finds_what_nobody_reads(fleet: Fleet, las: StandInLas) -> None:
    one, two = await with_open_segment(fleet, las, scrub={"interval_s": 1})
    await until(lambda: two.scrubber.statistics().passes > 0, "a pass is over")
    for base in (2, 3, 9):
        damage(two, 1, base)
    await until(lambda: repaired(two) == 3, "the next one finds it")
    assert await values_at(two, 1, 0, 10) == await values_at(one, 1, 0, 10)
    statistics = two.scrubber.statistics()
    assert statistics.pass_age_s is not None
    assert statistics.scrubbed_bytes > 0


async def test_a_copy_that_nobody_can_mend_is_told_and_mended_when_somebody_can(
    fleet: Fleet, las: StandInLas
) -> None:
    one, two, _, _ = await with_sealed_past(fleet, las, 10)
    entry = las.shards[SHARD]
    alone = replace(entry.sealed[0], holders=(two.me.replica,))
    las.commit(replace(entry, sealed=(alone,)))
    await until(lambda: two.map_cache.version == las.version, "the map is known")
    damage(two, 1, 4)
    with pytest.raises(Corrupt):
        await two.host.read(SHARD, 1, 4, 10, 1 << 20)
    await until(lambda: las.reported("holder_lost"), "it is told")
    boot, report = las.reported("holder_lost")[0]
    assert (boot, report.shard, report.epoch) == (two.me.boot, SHARD, 1)
    assert two.repairer.statistics().damaged == 1
    las.commit(replace(entry, sealed=(sealed(alone, 10, one),)))
    await until(lambda: repaired(two) == 1, "the other holder mends it")
    assert await values_at(two, 1, 0, 10) == await values_at(one, 1, 0, 10)


async def test_what_a_copy_is_based_on_is_mended_before_it_is_reported(
    fleet: Fleet, las: StandInLas
) -> None:
    one, _, three, _ = await with_sealed_past(fleet, las, 10)
    damage(three, 1, 4)
    entry = las.shards[SHARD]
    wanted = replace(entry.sealed[0], holders=(one.me.replica,), wanted_holders=(three.me.replica,))
    las.commit(replace(entry, sealed=(wanted,)))
    boot = three.me.boot
    await until(lambda: boot in dict(las.reported("holder_added")), "it is a holder")
    assert repaired(three) == 1
    assert await values_at(three, 1, 0, 10) == await values_at(one, 1, 0, 10)


async def test_a_holder_that_is_asked_for_a_damaged_batch_mends_it(
    fleet: Fleet, las: StandInLas
) -> None:
    one, two, _, four = await with_sealed_past(fleet, las, 10)
    damage(two, 1, 4)
    entry = las.shards[SHARD]
    wanted = replace(
        entry.sealed[0],
        holders=(two.me.replica, one.me.replica),
        wanted_holders=(four.me.replica,),
    )
    las.commit(replace(entry, sealed=(wanted,)))
    await until(lambda: repaired(two) == 1, "the source mends its own copy")
    await until(lambda: las.reported("holder_added"), "and the copy is made")
    assert await values_at(four, 1, 0, 10) == await values_at(one, 1, 0, 10)
