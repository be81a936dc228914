"""Appends of the client: receipts, batching, order, and what becomes of them when peers fail."""

import asyncio
import gc

import pytest

import peerd
from peerd.client import streams
from peerd.client.pipeline import Batch
from peerd.client.streams import Sent
from peerd.core.errors import Reason, Refusal, Taken
from peerd.core.ids import Epoch, NodeName
from peerd.testing.memory import lost
from peerd.transport import log_service
from peerd.v1 import batch_pb2

KEY = b"household-900"


def stored(cluster, shard=1):
    """The values of a shard's records, in order."""
    return [
        record.value
        for payload in cluster.payloads(shard)
        for record in batch_pb2.Batch.FromString(payload).records.records
    ]


def host(cluster, number):
    return cluster.hosts[NodeName(f"peer-{number}")]


def refuse(reason, *, taken=Taken.NO, **facts):
    return Refusal(reason=reason, message=f"made up: {reason.name}", taken=taken, **facts)


async def numbered(client, count, begin=0):
    return await asyncio.gather(
        *(client.append("orders", b"%d" % number) for number in range(begin, begin + count))
    )


# ---------------------------------------------------------------------------- receipts


async def test_a_receipt_says_where_the_record_is(cluster, client):
    cluster.create_log("orders")
    await client.append("orders", b"first", key=KEY)
    receipt = await client.append("orders", b"second", key=KEY)
    assert (receipt.log, receipt.shard, receipt.epoch, receipt.offset) == ("orders", 1, 1, 1)
    assert str(receipt) == "orders/1 offset 1, epoch 1, on disk at peer-1, peer-2"


async def test_the_first_append_waits_until_the_stream_is_let_in_and_no_longer(
    cluster, client, monkeypatch
):
    monkeypatch.setattr(streams, "STREAM_TAKEN_WAIT_S", 3_600)
    cluster.create_log("orders")
    await client.append("orders", b"v")


async def test_a_peer_that_lets_streams_in_without_a_word_gets_its_appends(
    cluster, client, monkeypatch
):
    monkeypatch.setattr(log_service, "STREAM_TAKEN", ("other", "words"))
    monkeypatch.setattr(streams, "STREAM_TAKEN_WAIT_S", 0.001)
    cluster.create_log("orders")
    await client.append("orders", b"v")


def test_a_receipt_reads_well():
    batch = peerd.Receipt(
        log="orders", shard=3, epoch=7, offset=10, record_count=3, durable_on=("a", "b")
    )
    assert str(batch) == "orders/3 offsets 10–12, epoch 7, on disk at a, b"
    again = peerd.Receipt(log="orders", shard=3, epoch=7, offset=10, duplicate=True)
    assert str(again) == "orders/3 offset 10, epoch 7, taken before"


async def test_a_record_keeps_key_headers_and_time(cluster, client):
    cluster.create_log("orders")
    await client.append("orders", b"v", key=b"", headers={"a": b"1"}, timestamp_ms=0)
    await client.append("orders", b"v", headers=[("b", b"2"), ("b", b"3")])
    first, second = [
        record
        for payload in cluster.payloads(1)
        for record in batch_pb2.Batch.FromString(payload).records.records
    ]
    assert first.HasField("key")
    assert first.HasField("timestamp_ms")
    assert [(header.name, header.value) for header in first.headers] == [("a", b"1")]
    assert not second.HasField("key")
    assert [(header.name, header.value) for header in second.headers] == [("b", b"2"), ("b", b"3")]


# ---------------------------------------------------------------------------- order and batching


async def test_what_comes_together_travels_together_and_in_order(cluster, client):
    await client.create_log("orders")
    receipts = await numbered(client, 500)
    assert [receipt.offset for receipt in receipts] == list(range(500))
    assert stored(cluster) == [b"%d" % number for number in range(500)]
    assert client.statistics().batches_sent <= 3


async def test_batches_keep_to_their_bounds(cluster, connect):
    cluster.create_log("orders")
    client = await connect(batch_records_max=10, batch_bytes_max=1000)
    await numbered(client, 95)
    await asyncio.gather(*(client.append("orders", b"x" * 400) for _ in range(9)))
    sizes = [batch_pb2.Batch.FromString(payload).record_count for payload in cluster.payloads(1)]
    assert sizes[:10] == [10] * 9 + [5]
    assert all(size <= 2 for size in sizes[10:])


async def test_keys_go_to_their_shards_and_keep_their_order(cluster, client):
    await client.create_log("orders", shards=4)
    futures = [
        client.append_nowait("orders", b"%d" % number, key=b"key-%d" % (number % 9))
        for number in range(300)
    ]
    receipts = await asyncio.gather(*futures)
    assert {receipt.shard for receipt in receipts} == {1, 2, 3, 4}
    for key in range(9):
        mine = [receipts[number] for number in range(key, 300, 9)]
        assert len({receipt.shard for receipt in mine}) == 1
        offsets = [receipt.offset for receipt in mine]
        assert offsets == sorted(offsets)


async def test_records_without_a_key_are_spread(cluster, client):
    cluster.create_log("orders", shards=3)
    for number in range(12):
        await client.append("orders", b"%d" % number)
    assert all(stored(cluster, shard) for shard in (1, 2, 3))


async def test_many_are_appended_each_for_itself(cluster, client):
    cluster.create_log("orders", shards=2)
    records = [b"plain", peerd.NewRecord(value=b"keyed", key=KEY)] * 20
    receipts = await client.append_many("orders", records)
    assert len(receipts) == 40
    assert len(stored(cluster, 1)) + len(stored(cluster, 2)) == 40


async def test_a_batch_is_one_receipt_and_one_batch(cluster, client):
    cluster.create_log("orders", shards=2)
    records = [peerd.NewRecord(value=b"%d" % number, key=KEY) for number in range(3)]
    receipt = await client.append_batch("orders", records)
    assert (receipt.offset, receipt.record_count, receipt.shard) == (0, 3, 2)
    (payload,) = cluster.payloads(2)
    assert batch_pb2.Batch.FromString(payload).record_count == 3


# ---------------------------------------------------------------------------- refusals


async def test_conditional_appends_win_or_say_what_the_end_is(cluster, client):
    cluster.create_log("orders")
    await client.append("orders", b"0", shard=1, expected_offset=0)
    with pytest.raises(peerd.OffsetMismatch) as caught:
        await client.append("orders", b"lost", shard=1, expected_offset=0)
    assert (caught.value.actual_offset, caught.value.taken) == (1, "no")
    await client.append("orders", b"1", shard=1, expected_offset=1)
    assert stored(cluster) == [b"0", b"1"]


async def test_a_conditional_append_waits_its_turn(cluster, client):
    cluster.create_log("orders")
    outcomes = await asyncio.gather(
        *(client.append("orders", b"%d" % number) for number in range(5)),
        client.append("orders", b"5", shard=1, expected_offset=5),
        client.append("orders", b"lost", shard=1, expected_offset=5),
        client.append("orders", b"6"),
        return_exceptions=True,
    )
    assert isinstance(outcomes[6], peerd.OffsetMismatch)
    assert stored(cluster) == [b"%d" % number for number in range(7)]
    # Nothing stood behind the lost one, so no sequence is missing and the producer stays the same:
    # a program that loses often must not fill the table of producers.
    assert len(cluster.shards[1].expected) == 1


async def test_a_refused_batch_holds_up_no_other(cluster, client):
    cluster.create_log("orders")
    outcomes = await asyncio.gather(
        client.append("orders", b"before"),
        client.append_batch("orders", [peerd.NewRecord(value=b"x" * 600_000)]),
        *(client.append("orders", b"after-%d" % number) for number in range(3)),
        return_exceptions=True,
    )
    assert isinstance(outcomes[1], peerd.BatchTooLarge)
    assert outcomes[1].taken == "no"
    assert stored(cluster) == [b"before", b"after-0", b"after-1", b"after-2"]


async def test_batches_behind_a_refused_one_are_appended_once_and_in_order(cluster, connect):
    cluster.create_log("orders")
    client = await connect(batch_records_max=1)
    for round_number in range(3):
        await client.append("orders", b"%d" % (round_number * 4))
        host(cluster, 1).refuse_next.append(refuse(Reason.MALFORMED_BATCH))
        outcomes = await asyncio.gather(
            client.append("orders", b"refused"),
            *(client.append("orders", b"%d" % (round_number * 4 + more)) for more in (1, 2, 3)),
            return_exceptions=True,
        )
        assert isinstance(outcomes[0], peerd.InvalidRequest)
    assert stored(cluster) == [b"%d" % number for number in range(12)]


async def test_unknown_names_are_refused_before_anything_is_sent(cluster, client):
    cluster.create_log("orders")
    with pytest.raises(peerd.UnknownLog, match="create it first"):
        await client.append("nowhere", b"v")
    with pytest.raises(peerd.UnknownShard, match="has no shard 9"):
        await client.append("orders", b"v", shard=9)
    assert client.statistics().batches_sent == 0


async def test_records_of_wrong_types_are_refused(cluster, client):
    cluster.create_log("orders")
    for wrong in (
        {"value": "text"},
        {"value": b"v", "key": 7},
        {"value": b"v", "headers": {1: b""}},
    ):
        with pytest.raises(peerd.InvalidRequest, match="bytes"):
            await client.append("orders", **wrong)
    with pytest.raises(peerd.InvalidRequest, match="at least one"):
        await client.append_batch("orders", [])
    with pytest.raises(peerd.BatchTooLarge, match="cut them"):
        await client.append("orders", bytes(5_000_000))


async def test_a_batch_over_several_shards_is_refused(cluster, client):
    cluster.create_log("orders", shards=4)
    records = [peerd.NewRecord(value=b"v", key=b"key-%d" % number) for number in range(9)]
    with pytest.raises(peerd.KeysSpanShards, match="append_many"):
        await client.append_batch("orders", records)


async def test_a_log_that_is_younger_than_our_map_is_found(cluster, connect, monkeypatch):
    client = await connect()
    # The watch tells nothing: only asking for the map can find it.
    for task in client._directory._watches:
        task.cancel()
    cluster.create_log("orders")
    assert (await client.append("orders", b"v")).offset == 0


# ---------------------------------------------------------------------------- the queue


async def test_the_queue_is_bounded(cluster, connect):
    cluster.create_log("orders")
    client = await connect(queue_bytes_max=10_000)
    host(cluster, 1).holding = []
    futures = [client.append_nowait("orders", b"x" * 3000) for _ in range(3)]
    with pytest.raises(peerd.QueueFull) as caught:
        client.append_nowait("orders", b"x" * 3000)
    assert caught.value.taken == "no"
    waiting = [asyncio.ensure_future(client.append("orders", b"w%d" % number)) for number in (1, 2)]
    large = asyncio.ensure_future(client.append("orders", b"y" * 9000))
    await host(cluster, 1).until_held(1)
    assert not large.done()
    host(cluster, 1).release()
    await asyncio.gather(*futures, *waiting, large)
    assert client.statistics().queued_bytes == 0
    assert stored(cluster)[3:] == [b"w1", b"w2", b"y" * 9000]


async def test_what_is_larger_than_the_queue_goes_alone(cluster, connect):
    cluster.create_log("orders")
    client = await connect(queue_bytes_max=1000)
    await asyncio.gather(*(client.append("orders", b"x" * 5000) for _ in range(3)))
    assert len(stored(cluster)) == 3


async def test_beyond_a_few_batches_small_ones_wait_and_grow_and_large_ones_leave(cluster, connect):
    cluster.create_log("orders")
    client = await connect(
        small_batches_inflight_max=1, batches_inflight_max=3, batch_bytes_max=2000
    )
    primary = host(cluster, 1)
    primary.holding = []
    values = [b"0", b"1", b"2", b"x" * 1000, b"y" * 1900, b"z" * 1900]
    futures = [client.append_nowait("orders", values[0])]
    await primary.until_held(1)
    futures += [client.append_nowait("orders", value) for value in values[1:3]]
    for _ in range(3):
        await asyncio.sleep(0)
    assert client.statistics().batches_sent == 1, "a small one waits"
    futures += [client.append_nowait("orders", value) for value in values[3:]]
    await primary.until_held(3)
    assert client.statistics().batches_sent == 3, "a large one leaves with what waited, up to three"
    primary.release()
    receipts = await asyncio.gather(*futures)
    assert [receipt.offset for receipt in receipts] == list(range(6))
    assert stored(cluster) == values
    assert client.statistics().batches_sent == 4


async def test_a_cancelled_append_that_was_not_sent_never_is(cluster, connect):
    cluster.create_log("orders")
    client = await connect(batches_inflight_max=1)
    host(cluster, 1).holding = []
    first = asyncio.ensure_future(client.append("orders", b"first"))
    await host(cluster, 1).until_held(1)
    second = asyncio.ensure_future(client.append("orders", b"second"))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    host(cluster, 1).release()
    await first
    await client.append("orders", b"third")
    assert stored(cluster) == [b"first", b"third"]
    assert client.statistics().queued_bytes == 0


# ---------------------------------------------------------------------------- failover


async def test_a_hand_over_moves_everything_in_order_and_once(cluster, client):
    await client.create_log("orders")
    futures = []
    for number in range(300):
        futures.append(client.append_nowait("orders", b"%d" % number))
        if number % 50 == 25:
            await asyncio.sleep(0.005)
            cluster.hand_over(1, f"peer-{1 + number // 50 % 3}")
    await asyncio.gather(*futures)
    assert stored(cluster) == [b"%d" % number for number in range(300)]


async def test_a_hint_is_followed_at_once(cluster, client):
    cluster.create_log("orders")
    await client.append("orders", b"0")
    cluster.hand_over(1, "peer-3", publish=False)
    receipt = await client.append("orders", b"1")
    assert receipt.epoch == 2
    assert stored(cluster) == [b"0", b"1"]


async def test_a_death_is_waited_out(cluster, client):
    cluster.create_log("orders")
    await client.append("orders", b"0")
    await cluster.stop("peer-1")
    waiting = asyncio.ensure_future(numbered(client, 20, begin=1))
    await asyncio.wait({waiting}, timeout=0.05)
    assert not waiting.done()
    cluster.hand_over(1, "peer-2")
    await waiting
    assert stored(cluster) == [b"%d" % number for number in range(21)]


async def test_a_hanging_primary_is_left_when_the_map_moves(cluster, client):
    cluster.create_log("orders")
    host(cluster, 1).holding = []
    waiting = asyncio.ensure_future(client.append("orders", b"0"))
    await host(cluster, 1).until_held(1)
    cluster.hand_over(1, "peer-3")
    receipt = await waiting
    assert receipt.duplicate
    assert stored(cluster) == [b"0"]
    host(cluster, 1).release()
    await client.append("orders", b"1")
    assert stored(cluster) == [b"0", b"1"]


async def test_a_late_receipt_of_the_old_primary_counts(cluster, client):
    cluster.create_log("orders")
    host(cluster, 1).holding = []
    waiting = asyncio.ensure_future(client.append("orders", b"0"))
    await host(cluster, 1).until_held(1)
    host(cluster, 3).holding = []
    cluster.hand_over(1, "peer-3")
    await host(cluster, 3).until_held(1)
    host(cluster, 1).release()
    assert (await waiting).epoch == 1
    host(cluster, 3).release()
    assert stored(cluster) == [b"0"]


@pytest.mark.parametrize(
    "reason",
    [
        Reason.NOT_PRIMARY,
        Reason.MOVED,
        Reason.OVERLOADED,
        Reason.PRODUCER_WINDOW_FULL,
        Reason.NOT_ENOUGH_PEERS,
        Reason.DISK_RESERVE,
        Reason.CRC_MISMATCH,
        Reason.UNKNOWN_LOG,
        Reason.MAP_UNKNOWN,
    ],
)
async def test_what_may_pass_is_tried_again(cluster, connect, reason):
    cluster.create_log("orders")
    client = await connect(batch_records_max=1)
    host(cluster, 1).refuse_next.append(refuse(reason))
    await numbered(client, 6)
    assert stored(cluster) == [b"%d" % number for number in range(6)]


@pytest.mark.parametrize("reason", [Reason.FENCED, Reason.STORE_FAILED, Reason.OUTCOME_UNKNOWN])
async def test_what_is_unknown_is_asked_again_under_the_same_sequence(cluster, connect, reason):
    cluster.create_log("orders")
    client = await connect(batch_records_max=1)
    host(cluster, 1).refuse_next.append(refuse(reason, taken=Taken.UNKNOWN))
    await numbered(client, 6)
    assert stored(cluster) == [b"%d" % number for number in range(6)]


async def test_a_taken_batch_whose_answer_was_lost_is_not_appended_twice(cluster, client):
    cluster.create_log("orders")
    primary = host(cluster, 1)
    primary.holding = []
    waiting = asyncio.ensure_future(client.append("orders", b"0"))
    await primary.until_held(1)
    primary.holding = None
    await cluster.stop("peer-1")
    cluster.hand_over(1, "peer-2")
    assert (await waiting).duplicate
    assert stored(cluster) == [b"0"]


# ---------------------------------------------------------------------------- endings

# No test waits so long: it says when so much time has passed, once there is what it is about.
HASTY_S, PATIENT_S = 600.0, 6_000.0


def pass_by(client, seconds):
    """For what has been appended, so much time passes, and a little."""
    for appender in client._appenders:
        appender.tick(asyncio.get_running_loop().time() + seconds + 1.0)


def waits_to_send_again(client):
    """Whether something was refused, and is not yet on its way again."""
    (appender,) = client._appenders
    return any(each._retry is not None for each in appender._pipelines.values())


async def refused_at_the_next(cluster, waiting):
    """Return once the next primary has refused it, too."""
    while len(host(cluster, 3).refuse_next) == 50:
        await asyncio.wait({waiting}, timeout=0.01)


async def test_the_deadline_of_what_was_never_sent_is_a_plain_no(cluster, connect):
    cluster.create_log("orders")
    await cluster.stop("peer-1")
    client = await connect(*cluster.addresses[1:])
    with pytest.raises(peerd.NotAppended, match="not appended") as caught:
        await client.append("orders", b"v", timeout_s=0.2)
    assert caught.value.taken == "no"
    assert client.statistics().queued_bytes == 0


async def test_the_deadline_of_what_was_sent_is_unknown(cluster, client):
    cluster.create_log("orders")
    host(cluster, 1).holding = []
    waiting = asyncio.ensure_future(client.append("orders", b"v", timeout_s=HASTY_S))
    await host(cluster, 1).until_held(1)
    pass_by(client, HASTY_S)
    with pytest.raises(peerd.OutcomeUnknown, match="may be in the log") as caught:
        await waiting
    assert caught.value.taken == "unknown"
    host(cluster, 1).release()


async def test_the_deadline_after_refusals_tells_the_refusal(cluster, client):
    cluster.create_log("orders")
    host(cluster, 1).refuse_next.extend([refuse(Reason.NOT_ENOUGH_PEERS)] * 50)
    waiting = asyncio.ensure_future(client.append("orders", b"v", timeout_s=HASTY_S))
    while not waits_to_send_again(client):
        await asyncio.wait({waiting}, timeout=0.001)
    pass_by(client, HASTY_S)
    with pytest.raises(peerd.NotEnoughPeers, match="made up") as caught:
        await waiting
    assert caught.value.taken == "no"


async def test_who_is_late_in_a_batch_that_goes_on_is_not_told_that_it_was_not_appended(
    cluster, client
):
    cluster.create_log("orders")
    primary = host(cluster, 1)
    primary.refuse_next.extend([refuse(Reason.NOT_ENOUGH_PEERS)] * 1_000)
    hasty, patient = (
        asyncio.ensure_future(client.append("orders", value, timeout_s=timeout_s))
        for value, timeout_s in ((b"hasty", HASTY_S), (b"patient", PATIENT_S))
    )
    while len(primary.refuse_next) == 1_000:
        await asyncio.wait({hasty}, timeout=0.01)
    pass_by(client, HASTY_S)
    with pytest.raises(peerd.OutcomeUnknown, match="may be in the log"):
        await hasty
    primary.refuse_next.clear()
    await patient
    assert stored(cluster) == [b"hasty", b"patient"]


async def test_a_sequence_that_may_be_taken_is_never_given_again(cluster, client):
    """Else the next record would be taken for the one before, and be lost behind its receipt."""
    cluster.create_log("orders")
    host(cluster, 1).holding = []
    first = asyncio.ensure_future(client.append("orders", b"first", timeout_s=HASTY_S))
    await host(cluster, 1).until_held(1)
    pass_by(client, HASTY_S)
    with pytest.raises(peerd.OutcomeUnknown):
        await first
    host(cluster, 1).holding = None
    receipt = await client.append("orders", b"second")
    assert not receipt.duplicate
    assert stored(cluster) == [b"first", b"second"]


async def test_what_one_primary_may_have_taken_stays_in_doubt_at_the_next(cluster, client):
    cluster.create_log("orders")
    host(cluster, 1).holding = []
    waiting = asyncio.ensure_future(client.append("orders", b"v", timeout_s=HASTY_S))
    await host(cluster, 1).until_held(1)
    host(cluster, 3).refuse_next.extend([refuse(Reason.NOT_ENOUGH_PEERS)] * 50)
    cluster.hand_over(1, "peer-3")
    await refused_at_the_next(cluster, waiting)
    pass_by(client, HASTY_S)
    with pytest.raises(peerd.OutcomeUnknown):
        await waiting
    host(cluster, 1).release()


async def test_what_a_lost_connection_may_have_carried_stays_in_doubt(cluster, client):
    cluster.create_log("orders")
    host(cluster, 1).holding = []
    waiting = asyncio.ensure_future(client.append("orders", b"v", timeout_s=HASTY_S))
    await host(cluster, 1).until_held(1)
    await cluster.stop("peer-1")
    # Once it is sent again, the loss has been noticed.
    while client.statistics().batches_sent_again == 0:
        await asyncio.wait({waiting}, timeout=0.01)
    host(cluster, 3).refuse_next.extend([refuse(Reason.NOT_ENOUGH_PEERS)] * 50)
    cluster.hand_over(1, "peer-3")
    await refused_at_the_next(cluster, waiting)
    pass_by(client, HASTY_S)
    with pytest.raises(peerd.OutcomeUnknown):
        await waiting


async def test_what_stood_behind_a_hole_and_was_lost_is_not_sent_under_another_name(
    cluster, connect
):
    """A copy of it may still arrive under the old name, and both would be stored."""
    cluster.create_log("orders")
    client = await connect(batch_records_max=1)
    first = host(cluster, 1)
    first.refuse_next.append(refuse(Reason.MALFORMED_BATCH))
    first.holding = []
    refused, behind = (
        asyncio.ensure_future(client.append("orders", value)) for value in (b"refused", b"behind")
    )
    with pytest.raises(peerd.InvalidRequest):
        await refused
    await first.until_held(1)
    await cluster.stop("peer-1")
    cluster.hand_over(1, "peer-2")
    with pytest.raises(peerd.OutcomeUnknown):
        await behind
    await client.append("orders", b"next")
    assert stored(cluster) == [b"next"]


async def test_records_behind_an_unknown_one_are_appended_or_told_unknown(cluster, connect):
    """Never twice: whether the first was taken is not known, so its sequence is never reused."""
    cluster.create_log("orders")
    client = await connect(batch_records_max=1, batches_inflight_max=2)
    primary = host(cluster, 1)
    primary.refuse_next.extend([lost(1)] * 40)
    first = asyncio.ensure_future(client.append("orders", b"first", timeout_s=HASTY_S))
    second = asyncio.ensure_future(client.append("orders", b"second", timeout_s=PATIENT_S))
    while len(primary.refuse_next) == 40:
        await asyncio.wait({first}, timeout=0.01)
    pass_by(client, HASTY_S)
    with pytest.raises(peerd.OutcomeUnknown):
        await first
    primary.refuse_next.clear()
    outcome = (await asyncio.gather(second, return_exceptions=True))[0]
    assert isinstance(outcome, (peerd.Receipt, peerd.OutcomeUnknown))
    await client.append("orders", b"third")
    assert stored(cluster).count(b"second") <= 1
    assert stored(cluster)[-1] == b"third"


async def test_a_lost_producer_ends_what_is_under_way_as_unknown(cluster, client):
    cluster.create_log("orders")
    await client.append("orders", b"0")
    host(cluster, 1).refuse_next.append(refuse(Reason.PRODUCER_STATE_LOST, taken=Taken.UNKNOWN))
    with pytest.raises(peerd.OutcomeUnknown):
        await client.append("orders", b"lost")
    await client.append("orders", b"1")
    assert stored(cluster) == [b"0", b"1"]


async def test_closing_tells_what_is_known_of_each_append(cluster, connect):
    cluster.create_log("orders")
    client = await connect(batches_inflight_max=1)
    host(cluster, 1).holding = []
    sent = asyncio.ensure_future(client.append("orders", b"sent"))
    await host(cluster, 1).until_held(1)
    queued = asyncio.ensure_future(client.append("orders", b"queued"))
    await asyncio.sleep(0)
    await client.close()
    for append, taken in ((sent, "unknown"), (queued, "no")):
        with pytest.raises(peerd.ClientClosed) as caught:
            await append
        assert caught.value.taken == taken
    with pytest.raises(peerd.ClientClosed):
        await client.append("orders", b"later")


async def test_flush_waits_for_everything(cluster, client):
    await client.create_log("orders", shards=2)
    futures = [client.append_nowait("orders", b"v", key=b"%d" % number) for number in range(100)]
    await client.flush()
    assert all(future.done() for future in futures)


async def test_several_hints_at_once_are_followed_once(cluster, connect):
    cluster.create_log("orders")
    client = await connect()
    await client.append("orders", b"0")
    elsewhere = host(cluster, 2).me
    host(cluster, 1).refuse_next += [
        refuse(Reason.NOT_PRIMARY, leader=elsewhere, epoch=Epoch(9)),
        refuse(Reason.NOT_PRIMARY, leader=elsewhere, epoch=Epoch(9)),
    ]
    await asyncio.gather(
        client.append("orders", b"1"), asyncio.sleep(0), client.append("orders", b"2")
    )
    assert sorted(stored(cluster)) == [b"0", b"1", b"2"]


# ---------------------------------------------------------------------------- memory


async def test_what_was_answered_is_let_go_without_looking_for_garbage(cluster, client):
    """Else payloads stay until the collector comes, and make it come often."""
    cluster.create_log("orders")
    gc.collect()
    gc.disable()
    try:
        for number in range(10):
            await client.append("orders", b"%d" % number)
        left = [each for each in gc.get_objects() if isinstance(each, Batch | Sent)]
    finally:
        gc.enable()
    # The last batch and its sending may still be locals of the task that reads the stream.
    assert len(left) <= 2
