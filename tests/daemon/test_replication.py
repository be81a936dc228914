"""Peers with real stores and real streams do what the map says."""

import asyncio
import json
from dataclasses import replace

import pytest

from peerd.core.effects import AppendAccepted
from peerd.core.errors import Reason, Taken
from peerd.core.shard_map import Plan
from peerd.daemon.peer import Peer
from peerd.storage.errors import WriterOverloaded
from peerd.storage.store import Store
from tests.daemon.fleet import (
    SHARD,
    Fleet,
    StandInLas,
    append,
    append_later,
    opened,
    plan,
    sealed,
    shard_of,
    stored_end,
    until,
    values_at,
)

PRODUCER = bytes(range(16))


async def three_peers(fleet: Fleet, las: StandInLas):
    """Three peers with an open segment of epoch 1, whose primary is the first."""
    one, two, three = await fleet.start("peer-1", "peer-2", "peer-3")
    las.commit(shard_of(opened(1, plan(one, one, two, three))))
    await until(lambda: one.host.is_primary(SHARD), "peer-1 is primary")
    return one, two, three


async def test_an_append_is_acknowledged_by_the_voters_that_have_it(
    fleet: Fleet, las: StandInLas
) -> None:
    one, two, three = await three_peers(fleet, las)
    receipt = await append(one, b"a", b"b")
    assert (receipt.base, receipt.epoch) == (0, 1)
    assert len(receipt.durable_on) >= 2
    assert (await append(one, b"c")).base == 2
    for peer in (one, two, three):
        await until(lambda peer=peer: peer.host.committed(SHARD) == (1, 3), "commit is heard")
        assert await values_at(peer, 1, 0, 3) == [b"a", b"b", b"c"]


async def test_the_death_of_a_shadow_pauses_nobody_and_is_told_with_its_boot_id(
    fleet: Fleet, las: StandInLas
) -> None:
    one, _, three = await three_peers(fleet, las)
    await append(one, b"before")
    await fleet.kill("peer-3")
    assert (await append(one, b"after")).base == 1
    await until(
        lambda: any(
            suspect.connection_refused and suspect.boot_id == three.me.boot
            for _, suspect in las.reported("suspect")
        ),
        "the refused connection is told",
    )


async def test_an_appointment_is_kept_though_appends_put_it_off_all_the_time(
    fleet: Fleet, las: StandInLas
) -> None:
    one, _, _ = await three_peers(fleet, las)
    await append(one, b"before")
    waiting = append_later(one, b"again")
    core = one.host._replicas[SHARD]
    assert core.wake_at is not None
    before_its_wish = core.wake_at - 1
    one.host._ring(SHARD, before_its_wish)
    assert core._s.now == before_its_wish
    await waiting


async def test_a_shadow_that_comes_back_is_caught_up_from_the_store(
    fleet: Fleet, las: StandInLas
) -> None:
    one, _, _ = await three_peers(fleet, las)
    await append(one, b"a")
    await fleet.kill("peer-3")
    for number in range(20):
        await append(one, b"%d" % number)
    back = await fleet.start_peer("peer-3")
    await until(lambda: back.host.committed(SHARD) == (1, 21), "it has everything")
    assert len(await values_at(back, 1, 0, 21)) == 21


async def test_a_planned_switch_moves_the_primary_and_loses_nothing(
    fleet: Fleet, las: StandInLas
) -> None:
    one, two, three = await three_peers(fleet, las)
    for sequence in range(5):
        await append(one, b"%d" % sequence, producer=PRODUCER, sequence=sequence)
    first = opened(1, plan(one, one, two, three))
    second = opened(2, plan(two, one, two, three))
    las.commit(shard_of(first, prepared=replace(second, begin=None)))
    await until(lambda: two.host.is_primary(SHARD), "peer-2 is primary")
    await until(lambda: las.reported("segment_opened"), "it is reported")
    boot, report = las.reported("segment_opened")[0]
    assert (boot, report.epoch, report.begin) == (two.me.boot, 2, 5)
    # Without the LAS having committed it: the old primary knows where to go.
    refused = await append_later(one, b"late", producer=PRODUCER, sequence=5)
    assert (refused.reason, refused.taken) == (Reason.MOVED, Taken.NO)
    assert refused.leader == two.me
    # The producer's table came along: a retry gets its first answer again.
    retry = await append(two, b"4", producer=PRODUCER, sequence=4)
    assert (retry.duplicate, retry.base, retry.epoch) == (True, 4, 1)
    assert (await append(two, b"5", producer=PRODUCER, sequence=5)).base == 5
    las.commit(shard_of(replace(second, begin=5), sealed=(sealed(first, 5, one, two, three),)))
    assert (await append(two, b"6", producer=PRODUCER, sequence=6)).base == 6


async def test_a_stalled_or_dead_voter_is_replaced_without_a_client_noticing(
    fleet: Fleet, las: StandInLas
) -> None:
    one, two, _ = await three_peers(fleet, las)
    four = await fleet.start_peer("peer-4")
    await append(one, b"a")
    await fleet.kill("peer-3")
    appends = [append_later(one, b"%d" % number) for number in range(10)]
    prepared = replace(opened(2, plan(one, one, two, four)), begin=None)
    las.commit(replace(las.shards[SHARD], prepared=prepared))
    await until(lambda: las.reported("segment_opened"), "the new segment is open")
    appends += [append_later(one, b"%d" % number) for number in range(10, 20)]
    outcomes = await asyncio.gather(*appends)
    assert [outcome.base for outcome in outcomes] == list(range(1, 21))
    await until(lambda: four.host.committed(SHARD) == (2, 21), "the new voter has the new part")


async def test_who_is_judged_dead_is_not_accused_again(fleet: Fleet, las: StandInLas) -> None:
    one, two, three = await three_peers(fleet, las)
    await append(one, b"a")
    await fleet.kill("peer-3")
    await until(lambda: las.reported("suspect"), "it is told")
    las.judge_dead("peer-3")
    peers = (one, two)
    await until(lambda: not any(p.map_cache.nodes["peer-3"].up for p in peers), "all know")
    before = len(las.reported("suspect"))
    for peer in peers:
        peer._report_suspect("peer-3", three.me.boot, refused=False, silent_ms=9_000)
        peer._report_suspect("peer-3", "its next process", refused=False, silent_ms=9_000)

    def told() -> list[tuple[str, str]]:
        """Who said it, of which process; of these words alone: one about the death may have been
        under way all the time. A word is said again where its session broke before the answer.
        """
        words = las.reported("suspect")[before:]
        return [(who, word.boot_id) for who, word in words if word.silent_ms == 9_000]

    next_process = {(peer.me.boot, "its next process") for peer in peers}
    await until(lambda: next_process <= set(told()), "the next process is told by both")
    assert set(told()) == next_process


async def test_an_unplanned_failover_keeps_what_was_acknowledged(
    fleet: Fleet, las: StandInLas
) -> None:
    one, two, three = await three_peers(fleet, las)
    receipts = [await append(one, b"%d" % number) for number in range(10)]
    # Two of three are enough for a receipt; the LAS asks both that are left below.
    await until(lambda: stored_end(three, 1) >= 0, "peer-3 has adopted the epoch")
    await fleet.kill("peer-1")
    await until(
        lambda: any(s.boot_id == one.me.boot for _, s in las.reported("suspect")), "it is told"
    )
    answers = [await fleet.promise(peer, 2, 1) for peer in (two, three)]
    assert all(answer.promised == 2 and answer.open.adopted for answer in answers)
    # n = 3, a = 2, k = 2: the (2 - (3 - 2))-th largest end.
    end = max(answer.open.end for answer in answers)
    assert end >= receipts[-1].base + 1
    holders = [
        peer for peer, answer in zip((two, three), answers, strict=True) if answer.open.end == end
    ]
    first = opened(1, plan(one, one, two, three))
    second = opened(2, plan(holders[0], two, three), begin=end)
    las.commit(shard_of(second, sealed=(sealed(first, end, *holders),)))
    await until(lambda: holders[0].host.is_primary(SHARD), "the new primary")
    assert (await append(holders[0], b"new")).base == end
    assert (await values_at(holders[0], 1, 0, end))[:10] == [b"%d" % number for number in range(10)]


async def test_a_fenced_primary_acknowledges_nothing_more(fleet: Fleet, las: StandInLas) -> None:
    one, two, three = await three_peers(fleet, las)
    await append(one, b"a")
    for peer in (two, three):
        assert (await fleet.promise(peer, 2, 1)).promised == 2
    refused = await append_later(one, b"too late")
    # It hears of the promises by its own frames; the append may come before or after that.
    assert (refused.reason, refused.taken) in {
        (Reason.FENCED, Taken.UNKNOWN),
        (Reason.NOT_PRIMARY, Taken.NO),
    }
    assert not one.host.is_primary(SHARD)
    await until(lambda: las.reported("higher_promise"), "the half-done fence is told")


async def test_a_promise_for_an_unknown_shard_is_durable_and_not_adopted(
    fleet: Fleet, las: StandInLas
) -> None:
    (one,) = await fleet.start("peer-1")
    answer = await fleet.promise(one, 7, 3)
    assert (answer.promised, answer.open.adopted, answer.open.end) == (7, False, 0)
    await fleet.peers.pop("peer-1").stop()
    again = await fleet.start_peer("peer-1")
    assert again.host.stored(SHARD).promised == 7
    assert (await fleet.promise(again, 5, 3)).promised == 7


async def test_a_restarted_primary_is_primary_of_nothing(fleet: Fleet, las: StandInLas) -> None:
    one, _, _ = await three_peers(fleet, las)
    await append(one, b"a")
    await until(lambda: stored_end(one, 1) == 1, "its own disk, which need not be one of the two")
    await fleet.kill("peer-1")
    back = await fleet.start_peer("peer-1")
    await until(lambda: back.map_cache.shards, "it knows the map")
    assert not back.host.is_primary(SHARD)
    refused = await append_later(back, b"b")
    assert (refused.reason, refused.taken) == (Reason.NOT_PRIMARY, Taken.NO)
    registered = next(r for r in las.registrations if r.boot_id == back.me.boot)
    assert [(s.adopted, s.segments[0].end) for s in registered.shards] == [(1, 1)]


async def test_with_the_las_down_appends_go_on_and_it_is_found_again(
    fleet: Fleet, las: StandInLas
) -> None:
    one, _, _ = await three_peers(fleet, las)
    address = las.address
    await las.stop()
    outcomes = [await append(one, b"%d" % number) for number in range(5)]
    assert all(isinstance(outcome, AppendAccepted) for outcome in outcomes)
    await las.start(address)
    las.commit()
    await until(
        lambda: all(p.map_cache.version == las.version for p in fleet.peers.values()),
        "all hear of changes again",
    )
    assert one.host.is_primary(SHARD)


async def test_a_message_is_taken_only_when_its_contents_are_written(
    fleet: Fleet, las: StandInLas, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = fleet.directory / "faults.json"
    faults.write_text(json.dumps({"write_delay_ms": 300}))
    slow = await fleet.start_peer("peer-2", testing={"faults_file": faults})
    one = await fleet.start_peer("peer-1")
    taken_ms: list[float] = []
    monkeypatch.setattr(one.host, "frame_taken", taken_ms.append)
    await until(lambda: len(one.map_cache.nodes) == 2, "both are known")
    las.commit(shard_of(opened(1, plan(one, one, slow))))
    await until(lambda: one.host.is_primary(SHARD), "peer-1 is primary")
    # What it takes in a moment is nothing that is written, such as how far the commit is.
    await until(lambda: max(taken_ms, default=0.0) >= 250, "the adoption is taken")
    taken_ms.clear()
    await append(one, b"a")
    await until(lambda: max(taken_ms, default=0.0) >= 250, "the batch is taken, once written")


async def test_what_finds_no_room_in_the_storage_queue_is_written_later_in_order(
    fleet: Fleet, las: StandInLas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue that takes one operation at a time: nothing is lost, nothing overtakes."""
    one, two, three = await three_peers(fleet, las)
    submit, refused = Store.submit, []

    def submit_one(store: Store, operation, token, *, wake) -> None:
        if store.queued_bytes:
            refused.append(operation)
            raise WriterOverloaded(queued_bytes=1, queue_bytes_max=1)
        submit(store, operation, token, wake=wake)

    monkeypatch.setattr(Store, "submit", submit_one)
    appends = []
    for number in range(50):
        appends.append(append_later(one, b"%d" % number))
        await asyncio.sleep(0)
    outcomes = await asyncio.gather(*appends)
    accepted = [outcome for outcome in outcomes if isinstance(outcome, AppendAccepted)]
    assert [outcome.base for outcome in accepted] == list(range(len(accepted)))
    overloaded = [outcome for outcome in outcomes if not isinstance(outcome, AppendAccepted)]
    assert {(outcome.reason, outcome.taken) for outcome in overloaded} <= {
        (Reason.OVERLOADED, Taken.NO)
    }
    assert refused
    for peer in (two, three):
        committed = (1, len(accepted))
        await until(lambda peer=peer, c=committed: peer.host.committed(SHARD) == c, "all of it")


def mirror(primary: Peer, *voters: Peer) -> Plan:
    return Plan(
        primary=primary.me,
        voters=tuple(peer.me.replica for peer in voters),
        non_voters=(primary.me.replica,),
        acks=2,
    )


async def test_a_primary_without_a_vote_orders_and_its_voters_keep_what_is_acknowledged(
    fleet: Fleet, las: StandInLas
) -> None:
    one, two, three = await three_peers(fleet, las)
    await append(one, b"a")
    first = opened(1, plan(one, one, two, three))
    mirrored = mirror(one, two, three)
    las.commit(shard_of(first, prepared=replace(opened(2, mirrored), begin=None)))
    await until(lambda: las.reported("segment_opened"), "the mirror has begun")
    las.commit(shard_of(opened(2, mirrored, begin=1), sealed=(sealed(first, 1, one, two, three),)))
    receipt = await append(one, b"b")
    assert (receipt.epoch, receipt.base) == (2, 1)
    assert set(receipt.durable_on) == {two.me.replica, three.me.replica}
    await fleet.kill("peer-1")
    answers = [await fleet.promise(peer, 3, 2) for peer in (two, three)]
    assert [answer.open.end for answer in answers] == [2, 2]
    last = opened(3, plan(two, two, three), begin=2)
    whole = (sealed(first, 1, two, three), sealed(opened(2, mirrored, begin=1), 2, two, three))
    las.commit(shard_of(last, sealed=whole))
    await until(lambda: two.host.is_primary(SHARD), "a voter leads")
    assert (await append(two, b"c")).base == 2
    assert await values_at(two, 2, 1, 2) == [b"b"]
