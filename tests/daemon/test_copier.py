"""A store becomes a holder of what the map wants, whole and checked, or is not reported."""

import asyncio
from dataclasses import replace
from itertools import count

import pytest

from peerd.core.ids import BootId, Epoch, NodeName, Offset, ProcessId, StoreId
from peerd.core.shard_map import Plan, Release, Segment
from peerd.daemon import copier
from peerd.daemon.budget import BUSY_FOR_S, Background, Budget, Rates, presses
from peerd.daemon.copy_progress import ProgressMeter
from peerd.daemon.copy_writes import CopyWrites
from peerd.daemon.peer import Peer
from peerd.storage.errors import Corrupt
from peerd.storage.store import Store
from peerd.transport import replication_service
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
    stored_end,
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
    # Two acks are enough for an append; the third voter is listed below, so it must have it, too.
    await until(
        lambda: all(stored_end(peer, 1) == count for peer in (one, two, three)),
        "all voters have all of epoch 1",
    )
    second = opened(2, plan(one, one, two, three))
    las.commit(shard_of(first, prepared=replace(second, begin=None)))
    await until(lambda: las.reported("segment_opened"), "epoch 2 is open")
    last = sealed(first, count, one, two, three)
    las.commit(shard_of(replace(second, begin=count), sealed=(last,)))
    four = await fleet.start_peer("peer-4")
    # Its registration is a change of the map: later ones are the test's alone.
    await until(lambda: four.map_cache.version == las.version, "peer-4 knows the map")
    return one, two, three, four


def want_copy(las: StandInLas, taker: Peer, *holders: Peer) -> Segment:
    """The map wants a copy of epoch 1 at `taker`; listed are `holders`, or who was before."""
    entry = las.shards[SHARD]
    wanted = replace(entry.sealed[0], wanted_holders=(taker.me.replica,))
    if holders:
        wanted = replace(wanted, holders=tuple(each.me.replica for each in holders))
    las.commit(replace(entry, sealed=(wanted,)))
    return wanted


async def test_a_wanted_holder_fetches_the_segment_and_reports_it(
    fleet: Fleet, las: StandInLas
) -> None:
    one, _, _, four = await with_sealed_past(fleet, las, 30)
    want_copy(las, four)
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
    want_copy(las, four)
    await until(lambda: las.reported("holder_added"), "it is reported")
    copied = four.copier.statistics()
    await until(lambda: len(las.reported("holder_added")) >= 3, "it is reported again")
    assert four.copier.statistics() == copied
    assert copied.copied_segments == 1


async def test_a_holder_that_is_gone_is_passed_over(fleet: Fleet, las: StandInLas) -> None:
    one, two, _, four = await with_sealed_past(fleet, las, 10)
    await fleet.kill("peer-2")
    want_copy(las, four, two, one)
    await until(lambda: four.me.boot in dict(las.reported("holder_added")), "it is reported")
    assert len(await values_at(four, 1, 0, 10)) == 10


async def test_another_holder_is_asked_where_a_copy_is_damaged(
    fleet: Fleet, las: StandInLas
) -> None:
    one, two, _, four = await with_sealed_past(fleet, las, 10)
    damage(two, 1, 4)
    want_copy(las, four, two, one)
    await until(lambda: four.me.boot in dict(las.reported("holder_added")), "the copy is made")
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
    want_copy(las, three, one)
    await until(lambda: three.copier._not_before_s, "it was tried")
    assert three.me.boot not in dict(las.reported("holder_added"))
    damaged.clear()
    await until(lambda: three.me.boot in dict(las.reported("holder_added")), "now it is whole")


async def test_what_the_map_lets_go_is_dropped_and_fetched_anew_when_it_is_wanted_again(
    fleet: Fleet, las: StandInLas
) -> None:
    one, two, three, _ = await with_sealed_past(fleet, las, 10)
    entry = las.shards[SHARD]
    others = (one.me.replica, two.me.replica)
    released = replace(
        entry.sealed[0],
        holders=others,
        released=(Release(holder=three.me.replica, version=las.version + 1),),
    )
    las.commit(replace(entry, sealed=(released,)))
    await until(lambda: 1 not in three.host.stored(SHARD).segments, "it is dropped")
    assert not three.host.holds(SHARD, Epoch(1))
    assert one.host.holds(SHARD, Epoch(1))
    assert three.me.boot not in dict(las.reported("holder_added"))
    las.commit(replace(entry, sealed=(replace(released, wanted_holders=(three.me.replica,)),)))
    await until(lambda: three.me.boot in dict(las.reported("holder_added")), "it is here again")
    assert dict(las.reported("holder_added"))[three.me.boot].map_version >= las.version
    assert await values_at(three, 1, 0, 10) == await values_at(one, 1, 0, 10)


async def test_what_the_list_says_wrongly_is_said_unasked(fleet: Fleet, las: StandInLas) -> None:
    one, two, _, four = await with_sealed_past(fleet, las, 10)
    entry = las.shards[SHARD]
    wrong = replace(entry.sealed[0], holders=(one.me.replica, four.me.replica))
    las.commit(replace(entry, sealed=(wrong,)))
    await until(lambda: las.reported("holder_lost"), "who has it not says so")
    assert dict(las.reported("holder_lost")).keys() == {four.me.boot}
    await until(lambda: two.me.boot in dict(las.reported("holder_added")), "and who has it")


async def test_without_any_holder_nothing_is_reported(fleet: Fleet, las: StandInLas) -> None:
    _, two, _, four = await with_sealed_past(fleet, las, 10)
    await fleet.kill("peer-2")
    want_copy(las, four, two)
    await until(lambda: four.copier.statistics().wanted_segments == 1, "it is tried")
    # The segment is sealed here before anything is fetched; that is no holder yet.
    await until(lambda: SHARD in four.host._replicas, "the shard is known")
    await until(lambda: 1 in four.host.stored(SHARD).segments, "the copy begins")
    boots = {boot for boot, _ in las.reported("holder_added")}
    assert four.me.boot not in boots, "though others may say that they have it"
    assert four.host.stored(SHARD).segments[1].end == 0


def test_a_budget_spreads_bytes_over_time() -> None:
    now_s = 0.0
    budget = Budget(1000, lambda: now_s)
    assert budget.spend(500) == 0.5
    assert budget.spend(500) == 1.0
    now_s = 10.0
    # What was not used in the past is not saved up.
    assert budget.spend(100) == pytest.approx(0.1)


class Clock:
    """Seconds that only the test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


RATES = Rates.within(1000, 400, 100)


def test_all_background_work_draws_on_one_account() -> None:
    clock = Clock()
    background = Background(RATES, clock, lambda: 0)
    assert background.spend_copy(500, urgent=False) == 0.5  # a copy, and nothing is appended
    assert background.spend(500) == 1.0  # an upload waits for it
    assert background.spend_copy(500, urgent=True) == 1.5  # and the next copies for both
    assert background.spend_copy(500, urgent=False) == 2.0
    assert (background.debt_s, background.spent_bytes) == (2.0, 2000)
    clock.now_s += 5
    assert background.copy_debt_s(urgent=False) == background.debt_s == 0.0


def test_copies_give_way_while_appends_are_written_and_uploads_do_not() -> None:
    clock, writes = Clock(), [0]
    background = Background(RATES, clock, lambda: writes[0])
    assert not background.is_busy
    writes[0] = 7
    assert background.spend_copy(100, urgent=False) == 1.0
    clock.now_s += 1.0
    writes[0] = 8
    assert background.spend(100) == pytest.approx(0.1)
    clock.now_s += 1.0
    assert background.is_busy  # of the append that came meanwhile
    assert background.spend_copy(100, urgent=True) == pytest.approx(0.25)
    clock.now_s += BUSY_FOR_S
    assert background.spend_copy(100, urgent=False) == pytest.approx(0.1)
    background.limits(Rates.within(100, 20, 10))
    clock.now_s += 10
    writes[0] = 9
    assert background.spend_copy(10, urgent=False) == pytest.approx(1.0)
    assert background.spend_copy(10, urgent=True) == pytest.approx(1.0)


def test_an_urgent_copy_does_not_wait_at_the_pace_of_others_and_all_stay_within_its_rate() -> None:
    clock, writes = Clock(), count(1)
    background = Background(RATES, clock, lambda: next(writes))  # never idle
    moved = {True: 0, False: 0}
    due_s = {True: clock(), False: clock()}
    while clock() < 140:  # one copy of each kind, each as fast as it is let
        urgent = due_s[True] <= due_s[False]
        clock.now_s = due_s[urgent]
        due_s[urgent] = clock() + background.spend_copy(10, urgent=urgent)
        moved[urgent] += 10
    assert moved[False] / 40 == pytest.approx(100, rel=0.02)
    assert moved[True] / 40 == pytest.approx(300, rel=0.02)
    for _ in range(50):  # four at a time and more do not make up for what others are held back
        background.spend_copy(10, urgent=False)
    assert background.copy_debt_s(urgent=False) == pytest.approx(5, abs=0.2)
    assert background.copy_debt_s(urgent=True) == pytest.approx(500 / 400, abs=0.1)


def test_rates_are_put_in_order() -> None:
    # Who asked for more than what is urgent gets, gets it for both; and nobody more than there is.
    assert Rates.within(1000, 100, 400) == Rates.within(1000, 400, 400)
    assert Rates.within(50, 400, 100) == Rates.within(50, 50, 50)


@pytest.mark.parametrize(
    ("copies", "acks", "safe_holders", "urgent"),
    [
        (3, 2, 0, True),
        (3, 2, 1, True),
        (3, 2, 2, False),
        (3, 1, 1, True),  # one loss more, and it is gone
        (3, 3, 2, True),  # as many as appends were answered with
        (2, 1, 1, True),
        (2, 2, 1, True),
        (2, 2, 2, False),
        (1, 1, 0, True),
        (1, 1, 1, False),  # it never had more
    ],
)
def test_a_segment_presses_while_the_next_loss_may_lose_records(
    *, copies: int, acks: int, safe_holders: int, urgent: bool
) -> None:
    stores = [
        ProcessId(NodeName(f"peer-{each}"), StoreId("s"), BootId("b")) for each in range(copies)
    ]
    made = Plan(primary=stores[0], voters=tuple(each.replica for each in stores), acks=acks)
    segment = Segment(epoch=Epoch(1), plan=made, begin=Offset(0), end=Offset(1))
    assert presses(segment, safe_holders) is urgent


def test_progress_tells_speed_and_the_time_that_is_left() -> None:
    clock = Clock()
    meter = ProgressMeter(clock)
    assert meter.progress(segments=2, records=100).left_s is None
    for _ in range(11):
        meter.copied(10, 4000)
        clock.now_s += 0.5
    now = meter.progress(segments=1, records=200)
    assert (now.records_per_s, now.bytes_per_s) == (pytest.approx(20), pytest.approx(8000))
    assert now.left_s == pytest.approx(10)
    assert meter.progress(segments=0, records=0).left_s == 0.0
    clock.now_s += 5  # what rests has no speed, and the rest is no part of the next one
    assert meter.progress(segments=1, records=200).bytes_per_s == 0
    meter.copied(10, 4000)
    clock.now_s += 1
    assert meter.progress(segments=1, records=200).bytes_per_s == pytest.approx(4000)


def urgent(fleet_copier: copier.Copier, *works: object) -> list[int]:
    return [shard.shard for shard, _ in sorted(works, key=fleet_copier._urgency)]


async def test_the_worst_off_goes_first_and_a_holder_at_risk_is_none(
    fleet: Fleet, las: StandInLas
) -> None:
    one, two, three, four = await with_sealed_past(fleet, las, 10)
    base = las.shards[SHARD].sealed[0]

    def work(shard: int, *holders, tail: bool = False):
        segment = replace(
            base,
            holders=tuple(each.me.replica for each in holders),
            wanted_holders=(four.me.replica,),
            known_commit=5 if tail else base.end,
        )
        return replace(las.shards[SHARD], shard=shard, sealed=(segment,)), segment

    las.nodes["peer-2"] = replace(las.nodes["peer-2"], at_risk=True)
    las._changed()
    await until(
        lambda: (node := four.map_cache.nodes.get("peer-2")) and node.at_risk,
        "peer-2 is known to be at risk",
    )
    works = [
        work(11, one, two, three),
        work(12, one, three),
        work(13, one, two),
        work(14, two),
        work(15, three, tail=True),
    ]
    assert urgent(four.copier, *works) == [15, 14, 13, 11, 12]


async def test_many_segments_are_copied_side_by_side(
    fleet: Fleet, las: StandInLas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copier, "SLICE_BYTES_MAX", 200)
    monkeypatch.setattr(copier, "BUSY_SLICE_BYTES_MAX", 200)
    one, _, _, four = await with_sealed_past(fleet, las, 60)
    fetch, under_way, most = four.copier._calls.fetch, [0], [0]

    async def counted(*arguments, **keywords):
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        try:
            return await fetch(*arguments, **keywords)
        finally:
            under_way[0] -= 1

    monkeypatch.setattr(four.copier._calls, "fetch", counted)
    want_copy(las, four)
    await until(lambda: four.me.boot in dict(las.reported("holder_added")), "it is reported")
    # Slices of one segment follow each other, each behind the one before.
    assert most[0] == 1
    assert await values_at(four, 1, 0, 60) == await values_at(one, 1, 0, 60)


async def test_a_write_that_the_store_refuses_breaks_the_copy_off(
    fleet: Fleet, las: StandInLas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copier, "AGAIN_AFTER_S", 0.01)
    one, _, _, four = await with_sealed_past(fleet, las, 10)
    submit, refused = four.host.submit, []

    def refusing(operation, on_outcome=None):
        if getattr(operation, "batches", ()) and not refused:
            refused.append(operation)
            operation = replace(
                operation, batches=tuple(replace(b, base=b.base + 1) for b in operation.batches)
            )
        submit(operation, on_outcome)

    monkeypatch.setattr(four.host, "submit", refusing)
    want_copy(las, four)
    await until(lambda: four.me.boot in dict(las.reported("holder_added")), "the next try makes it")
    assert refused
    assert await values_at(four, 1, 0, 10) == await values_at(one, 1, 0, 10)


async def test_a_holder_without_bytes_to_spare_is_passed_over(
    fleet: Fleet, las: StandInLas
) -> None:
    one, two, _, four = await with_sealed_past(fleet, las, 10)
    one.background.limits(Rates.within(1, 1, 1))
    one.background.spend(1000)  # a quarter of an hour's worth
    want_copy(las, four, one, two)
    await until(
        lambda: four.me.boot in dict(las.reported("holder_added")), "the other holder gives it"
    )
    before = two.background.spent_bytes
    assert before >= 10 * 100  # who gives a copy spends, too
    assert one.background.spent_bytes == 1000


async def test_a_copy_rests_where_the_loop_is_late_while_appends_are_written(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = await fleet.start("peer-1")
    rests: list[float] = []
    moments = iter([10.0, 10.52, 20.0, 25.5, 30.0, 30.501, 40.0, 40.6])

    async def slept(wait_s: float) -> None:
        rests.append(wait_s)

    class Idle:
        is_busy = False

    class Busy:
        is_busy = True

    with monkeypatch.context() as patched:
        patched.setattr(copier.asyncio, "sleep", slept)
        patched.setattr(one.copier, "_now_s", lambda: next(moments))
        patched.setattr(one.copier, "_budget", Busy)
        for _ in range(3):
            await one.copier._wait(0.5)
        patched.setattr(one.copier, "_budget", Idle)
        await one.copier._wait(0.5)
    # 20 ms late: four times that; far too late: the bound; 1 ms late, or idle: nothing.
    assert rests == pytest.approx([0.5, 0.08, 0.5, copier.LATE_REST_S_MAX, 0.5, 0.5])


async def test_few_bytes_of_copies_wait_for_the_disk_while_appends_are_written() -> None:
    busy = [True]
    writes = CopyWrites(500, lambda: busy[0])
    await writes.room(900)  # alone, whatever its size
    writes.begun(900)
    waits = [asyncio.ensure_future(writes.room(300)) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(each.done() for each in waits)
    writes.ended(900)

    async def next_one() -> None:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)

    await next_one()
    assert writes.under_way_bytes == 0
    writes.begun(300)
    await writes.room(200)  # fits beside it
    writes.begun(200)
    late = asyncio.ensure_future(writes.room(1))
    await asyncio.sleep(0)
    assert not late.done()
    busy[0] = False
    await writes.room(10_000)  # nobody appends any more
    writes.ended(200)
    await late


async def test_a_commit_beside_appends_has_few_slices_of_copies(
    fleet: Fleet, las: StandInLas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copier, "BUSY_SLICE_BYTES_MAX", 200)
    monkeypatch.setattr(copier, "BUSY_WRITES_BYTES_MAX", 250)
    one, _, _, four = await with_sealed_past(fleet, las, 20)
    numbers = count(1_000)
    monkeypatch.setattr(four.background, "_user_writes", lambda: next(numbers))  # never idle
    submit, fetch = four.host.submit, four.copier._calls.fetch
    held: list[tuple[object, object]] = []
    most, fetched = [0], [0]

    def holding(operation, on_outcome=None) -> None:
        if not getattr(operation, "batches", ()):
            submit(operation, on_outcome)
            return
        held.append((operation, on_outcome))
        most[0] = max(most[0], len(held))

    async def counted(*arguments, **keywords):
        batches = await fetch(*arguments, **keywords)
        fetched[0] += 1
        return batches

    monkeypatch.setattr(four.host, "submit", holding)
    monkeypatch.setattr(four.copier._calls, "fetch", counted)
    want_copy(las, four)
    for _ in range(5):
        fetched_before = fetched[0]
        await until(lambda: held, "a slice is on its way")
        await until(lambda: fetched[0] > fetched_before or fetched[0] >= 2, "the next is fetched")  # noqa: B023
        submit(*held.pop(0))
    monkeypatch.setattr(four.host, "submit", submit)
    while held:
        submit(*held.pop(0))
    await until(lambda: four.me.boot in dict(las.reported("holder_added")), "it is reported")
    assert most[0] == 1
    assert await values_at(four, 1, 0, 20) == await values_at(one, 1, 0, 20)


async def test_who_gives_a_copy_beside_appends_gives_little_at_a_time(
    fleet: Fleet, las: StandInLas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replication_service, "BUSY_COPY_BYTES", 250)
    one, _, _, four = await with_sealed_past(fleet, las, 10)
    numbers = count(1_000)
    await until(lambda: four.map_cache.address_of(one.me.replica.peer), "peer-1 is known")

    async def given(*, copy: bool) -> int:
        batches = await four.copier._calls.fetch(
            one.me.replica, SHARD, Epoch(1), 0, 10, 1 << 20, copy=copy
        )
        return len(batches)

    monkeypatch.setattr(one.background, "_user_writes", lambda: next(numbers))  # never idle
    assert 1 <= await given(copy=True) <= 3
    assert await given(copy=False) == 10


async def test_a_copy_with_time_goes_slowly_beside_appends_until_it_becomes_urgent(
    fleet: Fleet, las: StandInLas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copier, "BUSY_SLICE_BYTES_MAX", 200)
    one, two, _, four = await with_sealed_past(fleet, las, 40)
    for peer in (one, two, four):
        numbers = count(1_000)
        monkeypatch.setattr(peer.background, "_user_writes", lambda numbers=numbers: next(numbers))
        # A slice of what has time is followed by the next one in a day.
        peer.background.limits(Rates.within(1 << 30, 1 << 30, 1))
    wanted = want_copy(las, four, one, two)
    await until(lambda: four.copier.statistics().copied_bytes, "the first slice is here")
    assert four.background.copy_debt_s(urgent=False) > 60
    assert one.background.copy_debt_s(urgent=False) + two.background.copy_debt_s(urgent=False) > 60
    assert four.background.copy_debt_s(urgent=True) < 1
    assert four.me.boot not in dict(las.reported("holder_added"))
    # Another shard has one holder left: it does not wait for that one, at neither end.
    lonely = replace(wanted, holders=(one.me.replica,))
    pressing = replace(las.shards[SHARD], shard=SHARD + 1, sealed=(lonely,))
    asked = []
    fetch = four.copier._calls.fetch

    async def noted(*arguments, **keywords):
        asked.append((arguments[1], keywords["urgent"]))
        return await fetch(*arguments[:1], SHARD, *arguments[2:], **keywords)

    monkeypatch.setattr(four.copier._calls, "fetch", noted)
    four.copier._under_way.update({(SHARD + 9, Epoch(each)): False for each in range(3)})
    las.commit(pressing)
    await until(lambda: four.me.boot in dict(las.reported("holder_added")), "that one is whole")
    told = [report.shard for boot, report in las.reported("holder_added") if boot == four.me.boot]
    assert (set(told), set(asked)) == ({SHARD + 1}, {(SHARD + 1, True)})
