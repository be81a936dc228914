"""A store becomes a holder of what the map wants, whole and checked, or is not reported."""

from dataclasses import replace

import pytest

from peerd.daemon import copier
from peerd.daemon.copier import Budget
from peerd.storage.errors import Corrupt
from peerd.storage.store import Store
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


async def with_sealed_past(fleet: Fleet, las: StandInLas, count: int):
    """Epoch 1 is sealed at `count` on three peers, epoch 2 open there; a fourth peer is idle."""
    one, two, three = await fleet.start("peer-1", "peer-2", "peer-3")
    first = opened(1, plan(one, one, two, three))
    las.commit(shard_of(first))
    await until(lambda: one.host.is_primary(SHARD), "peer-1 is primary")
    for number in range(count):
        await append(one, b"%d" % number * 100)
    second = opened(2, plan(one, one, two, three))
    las.commit(shard_of(first, prepared=replace(second, begin=None)))
    await until(lambda: las.reported("segment_opened"), "epoch 2 is open")
    last = sealed(first, count, one, two, three)
    las.commit(shard_of(replace(second, begin=count), sealed=(last,)))
    four = await fleet.start_peer("peer-4")
    return one, two, three, four


async def test_a_wanted_holder_fetches_the_segment_and_reports_it(
    fleet: Fleet, las: StandInLas
) -> None:
    one, _, _, four = await with_sealed_past(fleet, las, 30)
    entry = las.shards[SHARD]
    wanted = replace(entry.sealed[0], wanted_holders=(four.me.replica,))
    las.commit(replace(entry, sealed=(wanted,)))
    await until(lambda: las.reported("holder_added"), "it is reported")
    boot, report = las.reported("holder_added")[0]
    assert (boot, report.shard, report.epoch) == (four.me.boot, SHARD, 1)
    assert await values_at(four, 1, 0, 30) == await values_at(one, 1, 0, 30)
    stored = four.host.stored(SHARD)
    assert (stored.segments[1].seal, stored.segments[1].end, stored.promised) == (30, 30, 2)
    assert four.host.readable_limit(SHARD, 1) in {None, 30}


async def test_what_is_not_listed_yet_is_reported_again_and_not_read_again(
    fleet: Fleet, las: StandInLas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copier, "AGAIN_AFTER_S", 0.01)
    _, _, _, four = await with_sealed_past(fleet, las, 10)
    entry = las.shards[SHARD]
    wanted = replace(entry.sealed[0], wanted_holders=(four.me.replica,))
    las.commit(replace(entry, sealed=(wanted,)))
    await until(lambda: las.reported("holder_added"), "it is reported")
    copied = four.copier.statistics()
    await until(lambda: len(las.reported("holder_added")) >= 3, "it is reported again")
    assert four.copier.statistics() == copied
    assert copied.copied_segments == 1


async def test_a_holder_that_is_gone_is_passed_over(fleet: Fleet, las: StandInLas) -> None:
    one, two, _, four = await with_sealed_past(fleet, las, 10)
    await fleet.kill("peer-2")
    entry = las.shards[SHARD]
    wanted = replace(
        entry.sealed[0],
        holders=(two.me.replica, one.me.replica),
        wanted_holders=(four.me.replica,),
    )
    las.commit(replace(entry, sealed=(wanted,)))
    await until(lambda: las.reported("holder_added"), "it is reported")
    assert len(await values_at(four, 1, 0, 10)) == 10


async def test_another_holder_is_asked_where_a_copy_is_damaged(
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
    await until(lambda: las.reported("holder_added"), "the copy is made")
    assert await values_at(four, 1, 0, 10) == await values_at(one, 1, 0, 10)


async def test_what_was_here_before_is_read_back_before_it_is_reported(
    fleet: Fleet, las: StandInLas, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _, three, _ = await with_sealed_past(fleet, las, 10)
    read = Store.read_batches
    damaged = [True]

    def perhaps(store: Store, shard, epoch, *place):
        if store is three._store and damaged:
            raise Corrupt(shard, epoch, place[0], "made for the test")
        return read(store, shard, epoch, *place)

    monkeypatch.setattr(Store, "read_batches", perhaps)
    entry = las.shards[SHARD]
    wanted = replace(entry.sealed[0], holders=(one.me.replica,), wanted_holders=(three.me.replica,))
    las.commit(replace(entry, sealed=(wanted,)))
    await until(lambda: three.copier._not_before_s, "it was tried")
    assert not las.reported("holder_added")
    damaged.clear()
    await until(lambda: las.reported("holder_added"), "now it is whole")


async def test_without_any_holder_nothing_is_reported(fleet: Fleet, las: StandInLas) -> None:
    _, two, _, four = await with_sealed_past(fleet, las, 10)
    await fleet.kill("peer-2")
    entry = las.shards[SHARD]
    wanted = replace(entry.sealed[0], holders=(two.me.replica,), wanted_holders=(four.me.replica,))
    las.commit(replace(entry, sealed=(wanted,)))
    await until(lambda: four.copier.statistics().wanted_segments == 1, "it is tried")
    # The segment is sealed here before anything is fetched; that is no holder yet.
    await until(lambda: SHARD in four.host._replicas, "the shard is known")
    await until(lambda: 1 in four.host.stored(SHARD).segments, "the copy begins")
    assert not las.reported("holder_added")
    assert four.host.stored(SHARD).segments[1].end == 0


def test_a_budget_spreads_bytes_over_time() -> None:
    now_s = 0.0
    budget = Budget(1000, lambda: now_s)
    assert budget.spend(500) == 0.5
    assert budget.spend(500) == 1.0
    now_s = 10.0
    # What was not used in the past is not saved up.
    assert budget.spend(100) == pytest.approx(0.1)
