"""Consumers' positions: kept, found again from anywhere, bounded, and nobody else's to write."""

import asyncio

import grpc.aio
import pytest

from peerd.core.errors import Reason, Refusal, Taken
from peerd.core.ids import NodeName, ShardId
from peerd.internal.v1 import positions_pb2
from peerd.transport import position_log, position_table
from peerd.transport.internal_logs import POSITIONS_LOG
from peerd.transport.position_table import PositionTable
from peerd.transport.status import Refused, refusal, refusal_of_error
from peerd.v1 import batch_pb2, log_pb2

impatient = pytest.mark.parametrize("cluster", [300], indirect=True)


async def commit(
    stub, consumer="billing", *, log="orders", timeout=30, by=b"", sequence=0, **offsets
):
    request = log_pb2.CommitPositionRequest(
        log=log, consumer=consumer, committer=by, sequence=sequence
    )
    request.position.offsets.update({int(name[1:]): offset for name, offset in offsets.items()})
    await stub.CommitPosition(request, timeout=timeout)


async def get(stub, consumer="billing", *, log="orders", timeout=30):
    request = log_pb2.GetPositionRequest(log=log, consumer=consumer)
    return dict((await stub.GetPosition(request, timeout=timeout)).position.offsets)


async def listed(stub, log="orders", after=""):
    """All consumers of a log that sort after `after`, and how many pages it took."""
    found, pages = {}, 0
    while True:
        request = log_pb2.ListPositionsRequest(log=log, after=after)
        answer = await stub.ListPositions(request, timeout=30)
        pages += 1
        for each in answer.positions:
            assert each.consumer > after
            after = each.consumer
            found[each.consumer] = dict(each.position.offsets)
        if not answer.more:
            return found, pages


async def refused(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    found = refusal_of_error(caught.value)
    assert found is not None, caught.value
    return found


def positions_shard(cluster):
    return cluster.logs[POSITIONS_LOG].shards[0]


# ---------------------------------------------------------------------------- kept and found


async def test_a_position_is_found_again_from_any_peer(cluster, stub):
    cluster.create_log("orders", shards=2)
    for number in (1, 2, 3):
        assert await get(stub(number)) == {}
    for number in (1, 2, 3):
        await commit(stub(number), s1=number, s2=10)
        for other in (1, 2, 3):
            assert await get(stub(other)) == {1: number, 2: 10}


async def test_consumers_and_logs_do_not_share_positions(cluster, stub):
    cluster.create_log("orders")
    cluster.create_log("returns")
    await commit(stub(1), "a", s1=1)
    await commit(stub(1), "b", s1=2)
    await commit(stub(1), "a", log="returns", s2=3)
    assert await get(stub(2), "a") == {1: 1}
    assert await get(stub(2), "b") == {1: 2}
    assert await get(stub(2), "a", log="returns") == {2: 3}


async def test_a_logs_consumers_are_listed_by_any_peer_page_by_page(cluster, stub, monkeypatch):
    cluster.create_log("orders")
    cluster.create_log("returns")
    assert await listed(stub(2)) == ({}, 1)
    for number in range(5):
        await commit(stub(1), f"c{number}", s1=number + 1)
    await commit(stub(1), "elsewhere", log="returns", s2=9)
    await commit(stub(1), "c3")
    wanted = {"c0": {1: 1}, "c1": {1: 2}, "c2": {1: 3}, "c4": {1: 5}}
    for number in (1, 2, 3):
        assert await listed(stub(number)) == (wanted, 1)
    monkeypatch.setattr(position_table, "POSITIONS_PAGE_BYTES_MAX", 1)
    assert await listed(stub(3)) == (wanted, 4)
    assert await listed(stub(3), after="c2") == ({"c4": {1: 5}}, 1)
    found = await refused(listed(stub(1), after="no name"))
    assert Reason(found.reason) == Reason.INVALID_ARGUMENT
    assert Reason((await refused(listed(stub(1), log="none"))).reason) == Reason.UNKNOWN_LOG


async def test_the_last_commit_holds_and_an_empty_one_forgets(cluster, stub):
    cluster.create_log("orders")
    await commit(stub(1), s1=7)
    await commit(stub(2), s1=3)
    assert await get(stub(3)) == {1: 3}
    await commit(stub(3))
    assert await get(stub(1)) == {}


async def test_a_position_outlives_its_primary(cluster, stub):
    cluster.create_log("orders")
    await commit(stub(1), s1=1)
    for offset, primary in enumerate(("peer-2", "peer-3", "peer-1"), 2):
        cluster.hand_over(positions_shard(cluster), primary)
        assert await get(stub(1)) == {1: offset - 1}
        await commit(stub(1), s1=offset)
    assert await get(stub(2)) == {1: 4}


async def test_a_primary_that_wakes_up_late_puts_nothing_behind_what_it_has_not_read(
    cluster, stub, monkeypatch
):
    monkeypatch.setattr(position_table, "POSITIONS_STALE_RECORDS_MAX", 8)
    cluster.create_log("orders")
    await commit(stub(1), "rests", s1=42)
    # With the next one the old positions would be copied forward.
    for number in range(9):
        await commit(stub(1), "busy", s1=number)
    shard = positions_shard(cluster)
    cluster.hand_over(shard, "peer-2")
    await commit(stub(1), "rests", s1=43)
    cluster.hand_over(shard, "peer-1")
    kept = cluster._services[NodeName("peer-1")]._positions._logs[shard]
    monkeypatch.setattr(kept, "_known_end", lambda: 0)
    await commit(stub(1), "busy", s1=99)
    assert await get(stub(1), "rests") == {1: 43}
    assert await get(stub(1), "busy") == {1: 99}


async def test_many_at_once_share_batches(cluster, stub):
    cluster.create_log("orders")
    await commit(stub(1), s1=1)
    host = cluster.hosts[NodeName("peer-1")]
    host.holding = []
    first = asyncio.create_task(commit(stub(1), "first", s1=1))
    await host.until_held(1)
    others = [asyncio.create_task(commit(stub(2), f"c{i}", s1=i)) for i in range(50)]
    shard = positions_shard(cluster)
    kept = cluster._services[NodeName("peer-1")]._positions._logs[shard]
    while len(kept._waiting) < 50:
        await get(stub(3))
    host.release()
    await asyncio.gather(first, *others)
    assert await get(stub(3), "c49") == {1: 49}
    assert len(cluster.payloads(shard)) == 3


async def test_an_answer_that_was_lost_is_asked_for_again(cluster, stub):
    cluster.create_log("orders")
    await commit(stub(1), s1=1)
    host = cluster.hosts[NodeName("peer-1")]
    lost = Refusal(reason=Reason.FENCED, message="fenced", taken=Taken.UNKNOWN)
    host.refuse_next += [lost, lost]
    await commit(stub(2), s1=2)
    assert await get(stub(3)) == {1: 2}


@impatient
async def test_an_outcome_that_stays_unknown_is_told(cluster, stub):
    cluster.create_log("orders")
    await commit(stub(1), s1=1)
    cluster.hosts[NodeName("peer-1")].holding = []
    found = await refused(commit(stub(2), s1=2, timeout=None))
    assert Reason(found.reason) == Reason.OUTCOME_UNKNOWN
    assert found.taken == Taken.UNKNOWN


@impatient
async def test_a_commit_whose_caller_has_gone_before_its_turn_is_not_appended(cluster, stub):
    cluster.create_log("orders")
    await commit(stub(1), s1=1)
    host = cluster.hosts[NodeName("peer-1")]
    host.holding = []
    first = asyncio.create_task(commit(stub(1), s1=2))
    await host.until_held(1)
    found = await refused(commit(stub(1), s1=3, timeout=None))
    assert Reason(found.reason) == Reason.OUTCOME_UNKNOWN
    host.release()
    await first
    await commit(stub(1), "other", s1=9)
    assert await get(stub(1)) == {1: 2}


# ---------------------------------------------------------------------------- tries that come late

ONE, OTHER = b"1" * 16, b"2" * 16


async def test_a_try_that_comes_late_does_not_undo_what_was_committed_after_it(cluster, stub):
    cluster.create_log("orders")
    await commit(stub(1), by=ONE, sequence=1, s1=7)
    await commit(stub(2), by=ONE, sequence=2, s1=8)
    # A peer that was stopped sends on what its client has long sent by another one.
    await commit(stub(3), by=ONE, sequence=1, s1=7)
    assert await get(stub(1)) == {1: 8}
    # Also when its client has ended and another one commits, and by another primary.
    await commit(stub(1), by=OTHER, sequence=1, s1=9)
    cluster.hand_over(positions_shard(cluster), "peer-2")
    await commit(stub(3), by=ONE, sequence=2, s1=8)
    assert await get(stub(1)) == {1: 9}
    # A commit that goes back is no late try.
    await commit(stub(3), by=ONE, sequence=3, s1=1)
    assert await get(stub(1)) == {1: 1}


async def test_a_late_try_brings_back_nothing_that_was_forgotten(cluster, stub):
    cluster.create_log("orders")
    await commit(stub(1), by=ONE, sequence=1, s1=7)
    await commit(stub(1), by=ONE, sequence=2)
    await commit(stub(3), by=ONE, sequence=1, s1=7)
    assert await get(stub(1)) == {}
    await commit(stub(3), by=ONE, sequence=3, s1=9)
    assert await get(stub(1)) == {1: 9}


async def test_a_late_try_in_the_same_batch_is_answered_with_it(cluster, stub):
    cluster.create_log("orders")
    await commit(stub(1), by=ONE, sequence=1, s1=1)
    shard = positions_shard(cluster)
    host = cluster.hosts[NodeName("peer-1")]
    host.holding = []
    first = asyncio.create_task(commit(stub(1), "other", s1=1))
    await host.until_held(1)
    kept = cluster._services[NodeName("peer-1")]._positions._logs[shard]
    later = []
    for sequence in (3, 2):
        again = commit(stub(1), by=ONE, sequence=sequence, s1=sequence)
        later.append(asyncio.create_task(again))
        while len(kept._waiting) < len(later):
            await get(stub(3))
    host.release()
    await asyncio.gather(first, *later)
    assert await get(stub(1)) == {1: 3}
    newest = batch_pb2.Batch.FromString(cluster.payloads(shard)[-1]).records.records
    assert len(newest) == 1


async def test_what_is_remembered_of_late_tries_is_bounded_and_copied_forward(monkeypatch):
    monkeypatch.setattr(position_table, "POSITIONS_STALE_RECORDS_MAX", 20)
    monkeypatch.setattr(position_table, "POSITIONS_FORGOTTEN_MAX", 3)
    table, log = PositionTable(), []
    for number in range(10):
        record = stored("rests", number)
        record.commits.add(committer=bytes([number]) * 16, sequence=number)
        position_table.join_commits(record, table.commits(("orders", "rests")))
        append_to(table, log, record)
    newest = tuple((bytes([number]) * 16, number) for number in (9, 8, 7, 6))
    for number in range(100):
        gone = stored(f"gone-{number}", None)
        gone.commits.add(committer=ONE, sequence=number)
        append_to(table, log, gone)
    assert table.whole_since > 10
    assert table.commits(("orders", "rests")) == newest
    assert tables_agree(table, log)
    assert table.commits(("orders", "gone-96")) == ()
    assert table.commits(("orders", "gone-97")) == ((ONE, 97),)


async def test_the_name_of_who_commits_is_checked(cluster, stub):
    cluster.create_log("orders")
    found = await refused(commit(stub(1), by=b"short", sequence=1, s1=1))
    assert Reason(found.reason) == Reason.INVALID_ARGUMENT


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("consumer", ["", "A", "a b", "x" * 129, "a/b", "a\n"])
async def test_names_are_checked(cluster, stub, consumer):
    cluster.create_log("orders")
    for call in (commit(stub(1), consumer, s1=1), get(stub(1), consumer)):
        assert Reason((await refused(call)).reason) == Reason.INVALID_ARGUMENT
    assert POSITIONS_LOG not in cluster.logs


async def test_what_is_not_there_has_no_position(cluster, stub):
    cluster.create_log("orders")
    for call in (commit(stub(1), log="nowhere", s1=1), get(stub(1), log="nowhere")):
        assert Reason((await refused(call)).reason) == Reason.UNKNOWN_LOG
    assert Reason((await refused(commit(stub(1), s9=1))).reason) == Reason.UNKNOWN_SHARD


async def test_a_shard_that_the_map_will_have_soon_is_waited_for(cluster, stub):
    cluster.create_log("orders")
    await commit(stub(1), s1=1)
    lower, upper = cluster.split(1, publish=False)
    under_way = asyncio.create_task(commit(stub(1), **{f"s{lower}": 4, f"s{upper}": 5}))
    await get(stub(1))
    cluster.publish()
    await under_way
    assert await get(stub(2)) == {lower: 4, upper: 5}


async def test_nobody_else_writes_the_log_of_positions(cluster, stub, append):
    cluster.create_log("orders")
    await commit(stub(1), s1=1)
    found = await refused(stub(1).Append(append(log=POSITIONS_LOG)))
    assert Reason(found.reason) == Reason.INVALID_ARGUMENT
    found = await refused(commit(stub(1), log=POSITIONS_LOG, s2=1))
    assert Reason(found.reason) == Reason.INVALID_ARGUMENT


@impatient
async def test_without_the_log_and_the_las_nobody_guesses(cluster, stub):
    cluster.create_log("orders")
    away = Refused(refusal(Reason.LAS_UNAVAILABLE, "no leader"))
    cluster.las.refuse_next += [away] * 1_000
    found = await refused(get(stub(1), timeout=None))
    assert Reason(found.reason) == Reason.LAS_UNAVAILABLE
    cluster.las.refuse_next.clear()
    assert await get(stub(1)) == {}


async def test_consumers_are_bounded_and_forgetting_makes_room(cluster, stub, monkeypatch):
    monkeypatch.setattr(position_table, "CONSUMERS_PER_LOG_MAX", 3)
    cluster.create_log("orders")
    cluster.create_log("returns")
    ended = await asyncio.gather(
        *(commit(stub(1), f"c{i}", s1=i) for i in range(6)), return_exceptions=True
    )
    reasons = {Reason(refusal_of_error(error).reason) for error in ended if error is not None}
    assert (ended.count(None), reasons) == (3, {Reason.LIMIT_REACHED})
    kept = f"c{ended.index(None)}"
    await commit(stub(1), kept, s1=9)
    await commit(stub(1), kept, log="returns", s2=9)
    await commit(stub(1), kept)
    await commit(stub(1), "c9", s1=9)


async def test_bytes_are_bounded(cluster, stub, monkeypatch):
    monkeypatch.setattr(position_table, "POSITIONS_BYTES_MAX", 1_000)
    cluster.create_log("orders")
    await commit(stub(1), "a", s1=1)
    await commit(stub(1), "b", s1=1)
    await commit(stub(1), "c", s1=1)
    found = await refused(commit(stub(1), "d", s1=1))
    assert Reason(found.reason) == Reason.LIMIT_REACHED
    await commit(stub(1), "a", s1=2)


async def test_commits_that_wait_are_bounded(cluster, stub, monkeypatch):
    monkeypatch.setattr(position_log, "POSITION_COMMITS_WAITING_MAX", 2)
    cluster.create_log("orders")
    await commit(stub(1), s1=1)
    host = cluster.hosts[NodeName("peer-1")]
    host.holding = []
    tasks = [asyncio.create_task(commit(stub(1), "first", s1=1))]
    await host.until_held(1)
    tasks += [asyncio.create_task(commit(stub(1), f"c{i}", s1=1)) for i in range(3)]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    found = refusal_of_error(done.pop().exception())
    assert Reason(found.reason) == Reason.OVERLOADED
    host.release()
    await asyncio.gather(*tasks, return_exceptions=True)


# ---------------------------------------------------------------------------- copying forward


def stored(consumer, offset, whole_since=0, log="orders"):
    record = positions_pb2.StoredPosition(log=log, consumer=consumer, whole_since=whole_since)
    if offset is not None:
        record.position.offsets[1] = offset
    return record


def append_to(table, log, *commits):
    """What a primary does for a batch of commits."""
    records = [*table.copies(), *commits]
    for record in records:
        record.whole_since = table.whole_since
    for record in records:
        table.fold(len(log), record)
        log.append(record)


def tables_agree(table, log):
    """A primary that begins at the newest `whole_since` has the same table."""
    other = PositionTable()
    other.begin_at(log[-1].whole_since)
    for offset in range(log[-1].whole_since, len(log)):
        other.fold(offset, log[offset])
    return other._entries == table._entries and len(log) - log[-1].whole_since


def test_what_holds_is_copied_forward_so_that_a_new_primary_reads_little(monkeypatch):
    monkeypatch.setattr(position_table, "POSITIONS_STALE_RECORDS_MAX", 50)
    monkeypatch.setattr(position_table, "POSITIONS_PER_BATCH_MAX", 4)
    table, log = PositionTable(), []
    for number in range(20):
        append_to(table, log, stored(f"rests-{number}", number))
    for number in range(2_000):
        # One that comes, is forgotten, and must not come back by a copy.
        fleeting = stored("fleeting", None if number % 7 else number)
        append_to(table, log, stored("busy", number), fleeting)
        to_read = tables_agree(table, log)
        assert 0 < to_read < 400
    assert table.whole_since > 4_000
    for number in range(20):
        assert table.get("orders", f"rests-{number}").offsets == {1: number}


async def test_a_new_primary_begins_where_everything_that_holds_is_ahead(
    cluster, stub, monkeypatch
):
    monkeypatch.setattr(position_table, "POSITIONS_STALE_RECORDS_MAX", 20)
    cluster.create_log("orders")
    await commit(stub(1), "rests", s1=42)
    for number in range(60):
        await commit(stub(1), "busy", s1=number)
    shard = positions_shard(cluster)
    newest = batch_pb2.Batch.FromString(cluster.payloads(shard)[-1]).records.records[-1]
    since = positions_pb2.StoredPosition.FromString(newest.value).whole_since
    assert since > 20
    cluster.hand_over(shard, "peer-2")
    # What lies before is not needed any more.
    known = cluster.shards[ShardId(shard)]
    for epoch, batches in known.batches.items():
        known.batches[epoch] = [batch for batch in batches if batch.end > since]
    assert await get(stub(1), "rests") == {1: 42}
    assert await get(stub(1), "busy") == {1: 59}
