"""Reads and tails: where they begin and end, who serves what, how they survive a failover."""

import asyncio
from dataclasses import replace

import grpc
import grpc.aio
import pytest

from peerd.core.errors import Reason, Refusal
from peerd.core.ids import Epoch, NodeName, Offset, ShardId
from peerd.core.shard_map import Gap
from peerd.transport import read_path
from peerd.transport.limits import LONG_READ_MESSAGE_BYTES, READ_MESSAGE_BYTES
from peerd.transport.read_source import ReadSource
from peerd.transport.status import Refused, refusal, refusal_of_error
from peerd.v1 import batch_pb2, log_pb2, log_pb2_grpc

impatient = pytest.mark.parametrize("cluster", [300], indirect=True)


@pytest.fixture
async def fill(cluster, stub, append):
    """Appends numbered records through the primary of shard 1, or by key."""

    async def fill(count, begin=0, **fields):
        for number in range(begin, begin + count):
            await stub(1).Append(append(b"%d" % number, **fields))

    return fill


async def read(stub, *, timeout=30, **fields):
    """Everything that a read gives: its batches, and the last message."""
    batches, last = [], None
    async for response in stub.Read(request(**fields), timeout=timeout):
        batches += response.batches
        last = response
    return batches, last


def request(*, local=False, **fields):
    fields.setdefault("log", "orders")
    made = log_pb2.ReadRequest(**fields)
    if local:
        setattr(made, "from", log_pb2.READ_FROM_LOCAL)
    return made


def values(batches):
    return [int(batch.batch.records.records[0].value) for batch in batches]


async def refused(stub, **fields):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read(stub, **fields)
    found = refusal_of_error(caught.value)
    assert found is not None, caught.value
    return found, caught.value.code()


# ---------------------------------------------------------------------------- one shard


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_any_peer_gives_the_whole_shard_in_order(cluster, stub, fill, number):
    cluster.create_log("orders")
    await fill(5)
    batches, last = await read(stub(number), shard=1)
    assert values(batches) == list(range(5))
    assert [batch.base_offset for batch in batches] == list(range(5))
    assert last.committed == {1: 5}
    assert last.resume.offsets == {1: 5}


async def test_a_read_begins_where_it_is_told_to(cluster, stub, fill):
    cluster.create_log("orders")
    cluster.time_ms = 1000
    await fill(3)
    cluster.time_ms = 2000
    await fill(3, begin=3)
    for number in (1, 2):
        peer = stub(number)
        assert values((await read(peer, shard=1, offset=4))[0]) == [4, 5]
        assert values((await read(peer, shard=1, timestamp_ms=1001))[0]) == [3, 4, 5]
        assert values((await read(peer, shard=1, timestamp_ms=0))[0]) == list(range(6))
        assert values((await read(peer, shard=1, timestamp_ms=2001))[0]) == []
        assert values((await read(peer, shard=1, latest=True))[0]) == []
        token = log_pb2.ResumeToken(offsets={1: 5})
        assert values((await read(peer, shard=1, resume=token))[0]) == [5]


async def test_an_offset_inside_a_batch_gives_that_batch_whole(cluster, stub, append, batch):
    cluster.create_log("orders")
    await stub(1).Append(append(batch=batch(b"0", b"1", b"2")))
    batches, _ = await read(stub(1), shard=1, offset=1)
    assert [(found.base_offset, found.batch.record_count) for found in batches] == [(0, 3)]


async def test_an_offset_beyond_the_tail_is_refused(cluster, stub, fill):
    cluster.create_log("orders")
    await fill(2)
    for number in (1, 2):
        found, code = await refused(stub(number), shard=1, offset=3)
        assert (Reason(found.reason), code) == (
            Reason.OFFSET_BEYOND_TAIL,
            grpc.StatusCode.OUT_OF_RANGE,
        )
        assert found.first_offset == 2
    assert values((await read(stub(2), shard=1, offset=2))[0]) == []


async def test_an_offset_without_a_shard_is_refused(cluster, stub):
    cluster.create_log("orders")
    found, _ = await refused(stub(1), offset=0)
    assert Reason(found.reason) == Reason.INVALID_ARGUMENT


async def test_unknown_names_are_refused(cluster, stub):
    cluster.create_log("orders")
    assert Reason((await refused(stub(1), log="nowhere"))[0].reason) == Reason.UNKNOWN_LOG
    assert Reason((await refused(stub(1), shard=7))[0].reason) == Reason.UNKNOWN_SHARD


@pytest.mark.parametrize("number", [1, 2])
async def test_following_gives_what_comes_later(cluster, stub, fill, number):
    cluster.create_log("orders")
    await fill(2)
    call = stub(number).Read(request(shard=1, follow=True))
    got = []
    while len(got) < 2:
        got += values((await call.read()).batches)
    await fill(2, begin=2)
    while len(got) < 4:
        got += values((await call.read()).batches)
    assert got == [0, 1, 2, 3]
    call.cancel()


async def test_following_from_the_latest_skips_the_past(cluster, stub, fill):
    cluster.create_log("orders")
    await fill(3)
    call = stub(2).Read(request(shard=1, follow=True, latest=True))
    first = await call.read()
    assert (list(first.batches), first.resume.offsets) == ([], {1: 3})
    await fill(1, begin=3)
    assert values((await call.read()).batches) == [3]
    call.cancel()


async def test_large_reads_are_cut_into_messages(cluster, stub, append):
    cluster.create_log("orders")
    for _ in range(20):
        await stub(1).Append(append(b"x" * 60_000))
    sizes = [len(response.batches) async for response in stub(1).Read(request())]
    assert sum(sizes) == 20
    assert max(sizes) <= READ_MESSAGE_BYTES // 60_000 + 1


async def test_who_reads_one_shard_on_gets_longer_messages_as_long_as_few_do(
    cluster, stub, append, monkeypatch
):
    cluster.create_log("orders")
    for _ in range(70):
        await stub(1).Append(append(b"x" * 60_000))

    async def sizes() -> list[int]:
        return [
            len(response.batches)
            async for response in stub(1).Read(request(shard=1))
            if response.batches
        ]

    # The stand-in's store gives whole batches, up to the one that passes the bound.
    grown = [
        bound // 60_014 + 1 for bound in (READ_MESSAGE_BYTES, 1 << 20, LONG_READ_MESSAGE_BYTES)
    ]
    assert await sizes() == [*grown, 70 - sum(grown)]
    monkeypatch.setattr(read_path, "LONG_READS_MAX", 0)
    assert max(await sizes()) == grown[0]
    monkeypatch.setattr(read_path, "LONG_READS_MAX", 1)
    # The one before has given its place back.
    assert max(await sizes()) == max(await sizes()) == grown[2]
    # So many batches that what stands beside them would make a message too long for stock clients.
    monkeypatch.setattr(read_path, "BESIDE_BATCH_BYTES", 100_000)
    cut = await sizes()
    assert (cut[:3], sum(cut)) == ([grown[0], 5, 5], 70)
    monkeypatch.setattr(read_path, "LONG_READ_BATCH_BYTES_MIN", 70_000)
    assert max(await sizes()) == grown[0]


# ---------------------------------------------------------------------------- the past


async def test_a_read_crosses_segments_and_takes_each_from_its_epoch(cluster, stub, fill):
    cluster.create_log("orders")
    await fill(2)
    cluster.hand_over(1, "peer-2")
    await fill(2, begin=2)
    cluster.hand_over(1, "peer-3")
    await fill(2, begin=4)
    batches, _ = await read(stub(1), shard=1)
    assert values(batches) == list(range(6))
    assert [batch.epoch for batch in batches] == [1, 1, 2, 2, 3, 3]


async def test_what_a_store_lacks_or_has_damaged_comes_from_another(cluster, stub, fill):
    cluster.create_log("orders")
    await fill(3)
    cluster.hand_over(1, "peer-2")
    await fill(1, begin=3)
    primary = cluster.hosts[NodeName("peer-2")]
    primary.lacks.add((ShardId(1), Epoch(1)))
    primary.damaged.add((ShardId(1), Epoch(2)))
    assert values((await read(stub(2), shard=1))[0]) == [0, 1, 2, 3]


@impatient
async def test_bytes_that_are_damaged_everywhere_are_never_sent(cluster, stub, fill):
    cluster.create_log("orders")
    await fill(1)
    for host in cluster.hosts.values():
        host.damaged.add((ShardId(1), Epoch(1)))
    found, code = await refused(stub(1), shard=1)
    assert (Reason(found.reason), code) == (Reason.CORRUPT, grpc.StatusCode.DATA_LOSS)


@impatient
async def test_a_past_without_a_reachable_holder_is_told(cluster, stub, fill):
    cluster.create_log("orders")
    await fill(2)
    cluster.hand_over(1, "peer-2")
    await fill(1, begin=2)
    for host in cluster.hosts.values():
        host.lacks.add((ShardId(1), Epoch(1)))
    found, code = await refused(stub(2), shard=1)
    assert (Reason(found.reason), code) == (Reason.RANGE_UNAVAILABLE, grpc.StatusCode.UNAVAILABLE)


def set_kept_tail(cluster, known_commit, holders):
    """Makes the sealed segment of shard 1 one that recovery kept a tail of."""
    known = cluster.shards[ShardId(1)]
    sealed = replace(
        known.entry.sealed[0],
        known_commit=Offset(known_commit),
        holders=tuple(cluster.hosts[NodeName(name)].me.replica for name in holders),
    )
    known.entry = replace(known.entry, sealed=(sealed,))
    cluster.publish()


async def test_a_kept_tail_is_read_only_once_enough_stores_have_it(cluster, stub, fill):
    """G12: what a reader was served survives whatever an acknowledged batch survives."""
    cluster.create_log("orders")
    await fill(4)
    cluster.hand_over(1, "peer-2")
    set_kept_tail(cluster, known_commit=2, holders=["peer-1"])
    call = stub(2).Read(request(shard=1, follow=True))
    got = []
    while len(got) < 2:
        got += values((await call.read()).batches)
    nothing = asyncio.ensure_future(call.read())
    await asyncio.wait({nothing}, timeout=0.1)
    assert not nothing.done()
    set_kept_tail(cluster, known_commit=2, holders=["peer-1", "peer-2"])
    got += values((await nothing).batches)
    assert got == [0, 1, 2, 3]
    call.cancel()


async def test_a_time_is_found_across_segments_that_lie_elsewhere(cluster, stub, fill):
    cluster.create_log("orders")
    for round_number, peer in enumerate(["peer-2", "peer-3", "peer-2"]):
        cluster.time_ms = 1000 * round_number
        await fill(4, begin=4 * round_number)
        cluster.hand_over(1, peer)
    for epoch in (1, 2, 3):
        cluster.hosts[NodeName("peer-2")].lacks.add((ShardId(1), Epoch(epoch)))
    for time_ms, first in [(0, 0), (1, 4), (1000, 4), (1001, 8), (2000, 8)]:
        found, _ = await read(stub(2), shard=1, timestamp_ms=time_ms)
        assert values(found) == list(range(first, 12)), time_ms
    assert (await read(stub(2), shard=1, timestamp_ms=2001))[0] == []


# ---------------------------------------------------------------------------- failover


async def test_a_following_read_goes_on_at_the_next_primary(cluster, stub, fill):
    cluster.create_log("orders")
    await fill(2)
    call = stub(3).Read(request(shard=1, follow=True))
    got = []
    while len(got) < 2:
        got += values((await call.read()).batches)
    await cluster.stop("peer-1")
    cluster.hand_over(1, "peer-2")
    await stub(2).Append(
        log_pb2.AppendRequest(
            log="orders",
            batch={"record_count": 1, "records": {"records": [{"value": b"2"}]}},
        )
    )
    while len(got) < 3:
        got += values((await call.read()).batches)
    assert got == [0, 1, 2]
    call.cancel()


async def test_the_peer_that_loses_the_shard_goes_on_serving_its_reader(cluster, stub, fill):
    cluster.create_log("orders")
    await fill(1)
    call = stub(1).Read(request(shard=1, follow=True))
    got = []
    while len(got) < 1:
        got += values((await call.read()).batches)
    cluster.hand_over(1, "peer-2")
    await fill(1, begin=1)
    while len(got) < 2:
        got += values((await call.read()).batches)
    assert got == [0, 1]
    call.cancel()


@impatient
async def test_without_a_primary_a_read_ends_with_a_reason(cluster, stub, fill):
    cluster.create_log("orders")
    await fill(1)
    await cluster.stop("peer-1")
    found, _ = await refused(stub(2), shard=1)
    assert Reason(found.reason) == Reason.RANGE_UNAVAILABLE


@impatient
@pytest.mark.parametrize("follow", [False, True])
async def test_what_the_primary_cannot_read_ends_what_others_pass_on(
    cluster, stub, fill, monkeypatch, follow
):
    """That the primary's answers begin well is no progress; and its words are passed on."""
    cluster.create_log("orders")
    await fill(1)

    async def unread(*_):
        raise Refused(refusal(Reason.RANGE_UNAVAILABLE, "not in the tier", retry_after_ms=1))

    monkeypatch.setattr(ReadSource, "read", unread)
    found, _ = await refused(stub(2), shard=1, follow=follow)
    assert (Reason(found.reason), found.message) == (Reason.RANGE_UNAVAILABLE, "not in the tier")


async def test_a_forwarded_read_is_not_forwarded_again(cluster, stub, fill):
    cluster.create_log("orders")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub(2).Read(request(shard=1), metadata=(("peerd-forwarded", "1"),)):
            pass
    found = refusal_of_error(caught.value)
    assert Reason(found.reason) == Reason.NOT_PRIMARY
    assert found.leader == cluster.addresses[0]


# ---------------------------------------------------------------------------- local reads


async def test_a_local_read_is_served_without_the_primary(cluster, stub, fill):
    cluster.create_log("orders")
    await fill(3)
    await cluster.stop("peer-1")
    assert values((await read(stub(2), shard=1, local=True))[0]) == [0, 1, 2]


async def test_a_peer_that_stores_nothing_newer_refuses_a_local_read(cluster, stub, fill):
    cluster.create_log("orders")
    await fill(1)
    known = cluster.shards[ShardId(1)]
    plan = known.entry.open.plan
    smaller = replace(plan, voters=plan.voters[:2])
    known.entry = replace(known.entry, open=replace(known.entry.open, plan=smaller))
    cluster.publish()
    found, _ = await refused(stub(3), shard=1, local=True)
    assert Reason(found.reason) == Reason.NOT_PRIMARY
    assert found.leader == cluster.addresses[0]


# ---------------------------------------------------------------------------- whole logs


async def keyed(stub, append, cluster, count=40):
    cluster.create_log("orders", shards=4)
    for number in range(count):
        await stub(1).Append(append(b"%d" % number, key=b"key-%d" % (number % 7)))


def by_key(batches):
    found = {}
    for batch in batches:
        for record in batch.batch.records.records:
            found.setdefault(record.key, []).append(int(record.value))
    return found


async def test_a_whole_log_keeps_the_order_of_each_key(cluster, stub, append):
    await keyed(stub, append, cluster)
    for number in (1, 3):
        batches, last = await read(stub(number))
        found = by_key(batches)
        assert sorted(values(batches)) == list(range(40))
        assert all(order == sorted(order) for order in found.values())
        assert sum(last.resume.offsets.values()) == 40


async def test_every_message_says_where_to_resume_all_shards(cluster, stub, append):
    await keyed(stub, append, cluster)
    seen, token = [], None
    async for response in stub(2).Read(request()):
        assert set(response.resume.offsets) == {1, 2, 3, 4}
        seen += values(response.batches)
        token = response.resume
        if len(seen) > 5:
            break
    rest, _ = await read(stub(3), resume=token)
    assert sorted(seen + values(rest)) == list(range(40))


async def test_following_a_whole_log_gives_all_shards(cluster, stub, append):
    await keyed(stub, append, cluster, count=8)
    call = stub(2).Read(request(follow=True, latest=True))
    assert list((await call.read()).batches) == []
    sent = set()
    for number in range(100, 120):
        await stub(1).Append(append(b"%d" % number, key=b"key-%d" % number))
        sent.add(number)
    got = set()
    while got != sent:
        got |= set(values((await call.read()).batches))
    call.cancel()


async def test_a_whole_log_of_which_one_shard_cannot_be_read_ends_with_the_reason(
    cluster, stub, append
):
    await keyed(stub, append, cluster, count=200)
    for host in cluster.hosts.values():
        host.damaged.add((ShardId(3), Epoch(1)))
    found, _ = await refused(stub(2))
    assert Reason(found.reason) == Reason.CORRUPT


async def test_open_reads_are_bounded(cluster, stub, append):
    await keyed(stub, append, cluster, count=4)
    calls = [stub(1).Read(request(follow=True)) for _ in range(3)]
    for call in calls:
        await call.read()
    found, code = await refused(stub(1))
    assert (Reason(found.reason), code) == (
        Reason.OVERLOADED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    )
    for call in calls:
        call.cancel()


# ---------------------------------------------------------------------------- gaps


def lose(cluster, shard=1, count=1000):
    """The records from the end on are lost; the shard goes on `count` offsets later."""
    cluster.hand_over(shard, "peer-2", publish=False)
    known = cluster.shards[ShardId(shard)]
    begin, end = known.end, Offset(known.end + count)
    gap = Gap(begin=begin, end=end, epochs=(Epoch(1),), why="burned")
    opened = replace(known.entry.open, begin=end)
    known.entry, known.end = replace(known.entry, open=opened, gaps=(gap,)), end
    cluster.publish()


@pytest.mark.parametrize("number", [1, 2])
async def test_a_lost_range_is_a_typed_gap_in_its_place(cluster, stub, fill, number):
    cluster.create_log("orders")
    await fill(3)
    lose(cluster)
    await fill(2, begin=3)
    parts = []
    async for message in stub(number).Read(request(shard=1), timeout=30):
        parts += [batch.base_offset for batch in message.batches]
        parts += [(gap.first_offset, gap.next_offset) for gap in message.gaps]
        assert all(Reason(gap.reason) is Reason.LOST for gap in message.gaps)
        assert all(gap.message == "burned" for gap in message.gaps)
        last = message.resume.offsets[1]
    assert parts == [0, 1, 2, (3, 1003), 1003, 1004]
    assert last == 1005


async def test_a_read_that_starts_in_a_gap_is_told_of_it(cluster, stub, fill):
    cluster.create_log("orders")
    await fill(3)
    lose(cluster)
    await fill(1, begin=3)
    batches, gaps = [], []
    async for message in stub(2).Read(request(shard=1, offset=500), timeout=30):
        batches += message.batches
        gaps += message.gaps
    assert [batch.base_offset for batch in batches] == [1003]
    assert [gap.first_offset for gap in gaps] == [3]


# ---------------------------------------------------------------------------- tails


async def test_tails_are_those_of_the_primaries(cluster, stub, append):
    await keyed(stub, append, cluster)
    for number in (1, 2):
        response = await stub(number).GetTail(log_pb2.GetTailRequest(log="orders"))
        assert [tail.shard for tail in response.tails] == [1, 2, 3, 4]
        assert sum(tail.committed for tail in response.tails) == 40
        assert [tail.peer for tail in response.tails] == ["peer-1", "peer-2", "peer-3", "peer-1"]


async def test_without_its_primary_a_tail_is_what_this_peer_knows(cluster, stub, fill):
    cluster.create_log("orders")
    await fill(3)
    await cluster.stop("peer-1")
    response = await stub(2).GetTail(log_pb2.GetTailRequest(log="orders", shard=1))
    (tail,) = response.tails
    assert (tail.committed, tail.peer) == (3, "peer-2")


async def test_an_own_tail_is_of_the_peer_that_is_asked(cluster, stub, fill):
    cluster.create_log("orders")
    await fill(3)
    own = log_pb2.GetTailRequest(log="orders", consistency=log_pb2.TAIL_CONSISTENCY_OWN)
    for number in (1, 2):
        (tail,) = (await stub(number).GetTail(own)).tails
        assert (tail.peer, tail.committed) == (f"peer-{number}", 3)


LINEARIZABLE = log_pb2.TAIL_CONSISTENCY_LINEARIZABLE


async def test_a_linearizable_tail_comes_from_the_primaries_alone(cluster, stub, fill):
    cluster.create_log("orders", shards=2)
    await fill(3)
    request = log_pb2.GetTailRequest(log="orders", consistency=LINEARIZABLE)
    for number in (1, 3):
        response = await stub(number).GetTail(request)
        assert [tail.peer for tail in response.tails] == ["peer-1", "peer-2"]
        assert sum(tail.committed for tail in response.tails) == 3


async def test_a_linearizable_tail_waits_for_a_primary_that_confirms_it(cluster, stub, fill):
    cluster.create_log("orders")
    await fill(3)
    busy = Refusal(reason=Reason.NOT_ENOUGH_PEERS, message="not confirmed")
    cluster.hosts["peer-1"].refuse_next.extend([busy, busy])
    request = log_pb2.GetTailRequest(log="orders", shard=1, consistency=LINEARIZABLE)
    response = await stub(2).GetTail(request)
    assert response.tails[0].committed == 3
    assert not cluster.hosts["peer-1"].refuse_next


@impatient
async def test_a_linearizable_tail_that_cannot_be_had_is_a_typed_error(cluster, stub, fill):
    cluster.create_log("orders")
    await fill(3)
    await cluster.stop("peer-1")
    request = log_pb2.GetTailRequest(log="orders", shard=1, consistency=LINEARIZABLE)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub(2).GetTail(request)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert Reason(refusal_of_error(caught.value).reason) == Reason.NOT_ENOUGH_PEERS


async def test_a_linearizable_tail_moves_on_when_the_map_names_another_primary(cluster, stub, fill):
    cluster.create_log("orders")
    await fill(3)
    await cluster.stop("peer-1")
    request = log_pb2.GetTailRequest(log="orders", shard=1, consistency=LINEARIZABLE)
    waiting = asyncio.ensure_future(stub(2).GetTail(request))
    cluster.hand_over(1, "peer-3")
    assert (await waiting).tails[0].peer == "peer-3"


async def test_a_refusal_that_no_other_try_cures_is_told_at_once(cluster, stub):
    cluster.create_log("orders")
    broken = Refusal(reason=Reason.OVERLOADED, message="too many")
    cluster.hosts["peer-1"].refuse_next.append(broken)
    request = log_pb2.GetTailRequest(log="orders", consistency=LINEARIZABLE)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub(1).GetTail(request)
    assert Reason(refusal_of_error(caught.value).reason) == Reason.OVERLOADED


async def test_a_reader_that_goes_away_is_no_bug(cluster, stub, append, monkeypatch):
    cluster.create_log("orders")
    for _ in range(150):
        await stub(1).Append(append(b"x" * 60_000))
    host = cluster.hosts[NodeName("peer-1")]
    chunks = []
    own_read = host.read

    async def counted(*arguments):
        chunks.append(arguments)
        return await own_read(*arguments)

    monkeypatch.setattr(host, "read", counted)
    for fields in ({"shard": 1}, {}):
        chunks.clear()
        async with grpc.aio.insecure_channel(cluster.addresses[0]) as channel:
            call = log_pb2_grpc.LogServiceStub(channel).Read(request(**fields))
            await call.read()
            # The reader takes nothing more: the server must come to a stop in writing.
            before = -1
            while before != len(chunks):
                before = len(chunks)
                await asyncio.wait({asyncio.ensure_future(asyncio.sleep(0.2))})
    await stub(1).Append(append())
    assert cluster.bugs == []


# ---------------------------------------------------------------------------- what is trimmed


@pytest.mark.parametrize("number", [1, 2])
async def test_a_trimmed_offset_is_refused_and_the_first_one_left_is_named(
    cluster, stub, fill, number
):
    cluster.create_log("orders")
    await fill(6)
    answer = await stub(2).Trim(log_pb2.TrimRequest(log="orders", shard=1, before_offset=4))
    assert answer.first_offset == 4
    found, code = await refused(stub(number), shard=1, offset=3)
    assert (Reason(found.reason), code) == (Reason.TRIMMED, grpc.StatusCode.OUT_OF_RANGE)
    assert found.first_offset == 4


async def test_the_earliest_offset_and_the_earliest_time_are_the_first_ones_left(
    cluster, stub, fill
):
    cluster.create_log("orders")
    cluster.time_ms = 1000
    await fill(6)
    cluster.trim(1, 4)
    for number in (1, 2):
        assert values((await read(stub(number)))[0]) == [4, 5]
        assert values((await read(stub(number), shard=1, timestamp_ms=50))[0]) == [4, 5]
        tail = await stub(number).GetTail(log_pb2.GetTailRequest(log="orders"))
        assert tail.tails[0].first_offset == 4


@pytest.mark.parametrize("number", [1, 2])
async def test_a_token_below_the_trim_is_given_the_range_as_a_gap(cluster, stub, fill, number):
    cluster.create_log("orders")
    await fill(6)
    cluster.trim(1, 4)
    token = log_pb2.ResumeToken(offsets={1: 2})
    answers = [each async for each in stub(number).Read(request(shard=1, resume=token), timeout=30)]
    (gap,) = [gap for each in answers for gap in each.gaps]
    assert (gap.first_offset, gap.next_offset, Reason(gap.reason)) == (2, 4, Reason.TRIMMED)
    assert values([batch for each in answers for batch in each.batches]) == [4, 5]


async def test_sealed_segments_that_are_trimmed_are_not_read(cluster, stub, fill):
    cluster.create_log("orders")
    cluster.time_ms = 1000
    await fill(4)
    cluster.hand_over(1, "peer-2")
    for number in range(4, 8):
        await stub(2).Append(log_pb2.AppendRequest(log="orders", batch=_one(number)))
    for before in (2, 4, 6):
        cluster.trim(1, before)
        assert values((await read(stub(3), shard=1))[0]) == list(range(before, 8))
        assert values((await read(stub(3), shard=1, timestamp_ms=9))[0]) == list(range(before, 8))


def _one(number):
    record = batch_pb2.Record(value=b"%d" % number)
    return batch_pb2.Batch(record_count=1, records=batch_pb2.Records(records=[record]))
