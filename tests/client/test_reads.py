"""Reads of the client: order, position, following, and going on elsewhere."""

import asyncio
import datetime

import crc32c
import pytest
import zstandard

import peerd
from peerd.client.errors import CorruptData
from peerd.client.payload import build_batch, records_of, serialize_record
from peerd.core.batch import BatchHeader
from peerd.core.ids import Epoch, ShardId
from peerd.internal.v1 import log_bytes_pb2
from peerd.v1 import batch_pb2, log_pb2, log_pb2_grpc


async def numbered(client, count, begin=0, **fields):
    await asyncio.gather(
        *(
            client.append("orders", b"%d" % number, **fields)
            for number in range(begin, begin + count)
        )
    )


async def values(stream):
    return [int(record.value) async for record in stream]


async def next_values(stream, count):
    return [int((await anext(stream)).value) for _ in range(count)]


async def test_everything_that_was_appended_is_read(cluster, client):
    await client.create_log("orders")
    await client.append("orders", b"v", key=b"k", headers={"h": b"1"}, timestamp_ms=5)
    await client.append("orders", b"w")
    first, second = [record async for record in client.read("orders")]
    assert (first.log, first.shard, first.offset, first.epoch) == ("orders", 1, 0, 1)
    assert (first.key, first.value, first.headers) == (b"k", b"v", (("h", b"1"),))
    assert (first.timestamp_ms, second.timestamp_ms) == (5, None)
    assert (second.key, second.headers) == (None, ())
    assert 0 < first.appended_ms <= second.appended_ms


async def test_a_read_begins_where_it_is_told_to(cluster, client):
    await client.create_log("orders")
    cluster.time_ms = 1_000
    await numbered(client, 4)
    cluster.time_ms = 2_000
    await numbered(client, 4, begin=4)
    later = datetime.datetime.fromtimestamp(1.5, datetime.UTC)
    assert await values(client.read("orders")) == list(range(8))
    assert await values(client.read("orders", shard=1, start=3)) == [3, 4, 5, 6, 7]
    assert await values(client.read("orders", start=later)) == [4, 5, 6, 7]
    assert await values(client.read("orders", start="latest")) == []
    assert await values(client.read("orders", start=peerd.Position({1: 6}))) == [6, 7]


@pytest.mark.parametrize("start", [3, "soon", datetime.datetime(2026, 1, 1)])  # noqa: DTZ001
async def test_a_start_that_is_none_is_refused(client, start):
    with pytest.raises(peerd.InvalidRequest, match="start"):
        client.read("orders", start=start)


async def test_reads_of_what_is_not_there_are_refused(cluster, client):
    await client.create_log("orders")
    with pytest.raises(peerd.UnknownLog):
        await values(client.read("nowhere"))
    with pytest.raises(peerd.UnknownShard):
        await values(client.read("orders", shard=9))
    with pytest.raises(peerd.OffsetBeyondTail):
        await values(client.read("orders", shard=1, start=5))


async def test_keys_keep_their_order_over_a_whole_log(cluster, client):
    await client.create_log("orders", shards=4)
    for number in range(60):
        await client.append("orders", b"%d" % number, key=b"key-%d" % (number % 7))
    by_key = {}
    async for record in client.read("orders"):
        by_key.setdefault(record.key, []).append(int(record.value))
    assert sum(map(len, by_key.values())) == 60
    assert all(found == sorted(found) for found in by_key.values())


async def test_a_position_goes_on_in_every_shard(cluster, client):
    await client.create_log("orders", shards=3)
    for number in range(30):
        await client.append("orders", b"%d" % number, key=b"key-%d" % number)
    stream = client.read("orders")
    seen = await next_values(stream, 11)
    position = stream.position
    await stream.aclose()
    assert await stream.take(1) == []
    rest = await values(client.read("orders", start=position))
    assert sorted(seen + rest) == list(range(30))


async def test_a_position_inside_a_batch_gives_each_record_once(cluster, client):
    await client.create_log("orders")
    records = [peerd.NewRecord(value=b"%d" % number) for number in range(5)]
    await client.append_batch("orders", records)
    stream = client.read("orders")
    assert await next_values(stream, 2) == [0, 1]
    assert stream.position.offsets == {1: 2}
    assert await values(client.read("orders", start=stream.position)) == [2, 3, 4]
    await stream.aclose()


async def test_following_survives_hand_overs_and_deaths(cluster, client):
    await client.create_log("orders")
    await numbered(client, 3)
    async with client.read("orders", follow=True) as stream:
        got = await next_values(stream, 3)
        cluster.hand_over(1, "peer-2")
        await numbered(client, 3, begin=3)
        got += await next_values(stream, 3)
        await cluster.stop("peer-2")
        cluster.hand_over(1, "peer-3")
        await numbered(client, 3, begin=6)
        got += await next_values(stream, 3)
    assert got == list(range(9))


async def test_a_read_goes_on_at_another_peer_without_repetition(cluster, client):
    await client.create_log("orders", shards=3)
    for number in range(30):
        await client.append("orders", b"%d" % number, key=b"key-%d" % number)
    stream = client.read("orders", follow=True)
    got = await next_values(stream, 30)
    for victim, heir in (("peer-1", "peer-2"), ("peer-2", "peer-3")):
        await cluster.stop(victim)
        for shard, known in cluster.shards.items():
            if known.entry.open.plan.primary.peer == victim:
                cluster.hand_over(shard, heir)
    for number in range(30, 40):
        await client.append("orders", b"%d" % number, key=b"key-%d" % number)
    got += await next_values(stream, 10)
    assert sorted(got) == list(range(40))
    await stream.aclose()


async def test_what_came_while_the_stream_was_broken_is_not_skipped(cluster, client):
    await client.create_log("orders")
    await numbered(client, 3)
    stream = client.read("orders", start="latest", follow=True)
    waiting = asyncio.ensure_future(anext(stream))
    while not stream.position.offsets:
        await asyncio.wait({waiting}, timeout=0.01)
    await cluster.stop("peer-1")
    await cluster.stop("peer-2")
    cluster.hand_over(1, "peer-3", publish=False)
    built = build_batch([serialize_record(peerd.NewRecord(value=b"3"))], 1)
    header = BatchHeader(record_count=1, payload_crc=built.crc, payload_bytes=len(built.payload))
    cluster.hosts["peer-3"].append(ShardId(1), header, built.payload, None, lambda _: None)
    cluster.publish()
    assert (await waiting).value == b"3"
    await stream.aclose()


async def test_what_is_damaged_everywhere_is_told(cluster, client, monkeypatch):
    monkeypatch.setattr("peerd.client.reading.READ_RETRY_S", 1.0)
    await client.create_log("orders")
    await numbered(client, 1)
    for host in cluster.hosts.values():
        host.damaged.add((ShardId(1), Epoch(1)))
    with pytest.raises(peerd.CorruptData):
        await values(client.read("orders"))


@pytest.mark.parametrize("cluster", [300], indirect=True)
@pytest.mark.parametrize("retry_s", [1.0, 0.1])
async def test_without_anybody_who_serves_it_a_read_ends(cluster, client, monkeypatch, retry_s):
    """Also if each try takes longer than all of them may: it is one run of failures."""
    monkeypatch.setattr("peerd.client.reading.READ_RETRY_S", retry_s)
    await client.create_log("orders")
    await numbered(client, 1)
    await cluster.stop("peer-1")
    with pytest.raises(peerd.Unavailable, match="reachable"):
        await values(client.read("orders"))


async def test_a_gap_is_raised_and_says_where_to_go_on(cluster, client, monkeypatch):
    await client.create_log("orders")
    gap = log_pb2.Gap(
        shard=1, first_offset=3, next_offset=9, reason="ERROR_REASON_TRIMMED", message="trimmed"
    )
    answer = log_bytes_pb2.ReadResponseBytes(gaps=[gap], resume={"offsets": {1: 0}})
    stream = client.read("orders")
    with pytest.raises(peerd.RecordsMissing, match="go on at 9") as caught:
        stream._take(answer)
    assert (caught.value.shard, caught.value.next_offset) == (1, 9)


async def test_local_reads_need_no_primary(cluster, client):
    await client.create_log("orders")
    await numbered(client, 3)
    await cluster.stop("peer-1")
    assert await values(client.read("orders", shard=1, local=True)) == [0, 1, 2]


async def test_tails(cluster, client):
    await client.create_log("orders", shards=2)
    for number in range(9):
        await client.append("orders", b"v", key=b"key-%d" % number)
    tails = await client.tail("orders")
    assert [tail.shard for tail in tails] == [1, 2]
    assert sum(tail.committed for tail in tails) == 9
    (one,) = await client.tail("orders", shard=2)
    assert one == tails[1]
    assert await client.tail("orders", linearizable=True) == tails
    with pytest.raises(peerd.UnknownLog):
        await client.tail("nowhere")


# ---------------------------------------------------------------------------- bytes to records


def read_batch(payload, **fields):
    fields.setdefault("payload_crc", crc32c.crc32c(payload))
    return log_bytes_pb2.ReadBatchBytes(shard=1, base_offset=10, batch=payload, **fields)


def test_a_built_batch_is_the_one_that_protobuf_would_build():
    records = [peerd.NewRecord(value=b"%d" % number, key=b"k") for number in range(3)]
    built = build_batch([serialize_record(record) for record in records], len(records))
    same = batch_pb2.Batch(
        record_count=3,
        records={"records": [{"key": record.key, "value": record.value} for record in records]},
    )
    assert built.payload == same.SerializeToString()
    assert built.crc == crc32c.crc32c(built.payload)
    got = records_of("orders", read_batch(built.payload), 11)
    assert [(record.offset, record.value) for record in got] == [(11, b"1"), (12, b"2")]


def test_each_record_keeps_what_it_has():
    given = [
        peerd.NewRecord(value=b"1"),
        peerd.NewRecord(value=b"", key=b""),
        peerd.NewRecord(value=b"3", headers=[("a", b"1"), ("a", b"2")], timestamp_ms=0),
    ]
    built = build_batch([serialize_record(record) for record in given], len(given))
    got = records_of("orders", read_batch(built.payload, epoch=4, timestamp_ms=9), 0)
    same = {"log": "orders", "shard": 1, "epoch": 4, "appended_ms": 9}
    assert got == [
        peerd.Record(offset=10, key=None, value=b"1", **same),
        peerd.Record(offset=11, key=b"", value=b"", **same),
        peerd.Record(
            offset=12,
            key=None,
            value=b"3",
            headers=(("a", b"1"), ("a", b"2")),
            timestamp_ms=0,
            **same,
        ),
    ]


def test_compressed_batches_are_read():
    records = batch_pb2.Records(records=[batch_pb2.Record(value=b"v")] * 2)
    payload = batch_pb2.Batch(
        codec=batch_pb2.CODEC_ZSTD,
        record_count=2,
        compressed=zstandard.compress(records.SerializeToString()),
    ).SerializeToString()
    assert [record.value for record in records_of("orders", read_batch(payload), 0)] == [b"v"] * 2


@pytest.mark.parametrize(
    "batch",
    [
        read_batch(b"\x10\x01", payload_crc=7),
        read_batch(b"\xff\xff"),
        read_batch(batch_pb2.Batch(record_count=2, records={"records": [{}]}).SerializeToString()),
        read_batch(batch_pb2.Batch(codec=1, compressed=b"?").SerializeToString()),
        read_batch(
            batch_pb2.Batch(
                codec=1, compressed=zstandard.compress(bytes(65 << 20))
            ).SerializeToString()
        ),
    ],
    ids=["checksum", "no-batch", "count", "no-zstd", "too-large"],
)
def test_damaged_bytes_are_never_records(batch):
    with pytest.raises(CorruptData, match="orders/1 offset 10"):
        records_of("orders", batch, 0)


def test_an_unknown_codec_is_no_damage():
    batch = read_batch(batch_pb2.Batch(codec=9, compressed=b"?").SerializeToString())
    with pytest.raises(peerd.CodecUnknown, match=r"orders/1 offset 10: .* codec 9"):
        records_of("orders", batch, 0)


async def test_what_another_client_compressed_is_read(cluster, client):
    await client.create_log("orders")
    records = batch_pb2.Records(records=[batch_pb2.Record(value=b"7")])
    stub = log_pb2_grpc.LogServiceStub(client._channels.to(cluster.addresses[0]))
    await stub.Append(
        log_pb2.AppendRequest(
            log="orders",
            batch=batch_pb2.Batch(
                codec=batch_pb2.CODEC_ZSTD,
                record_count=1,
                compressed=zstandard.compress(records.SerializeToString()),
            ),
        )
    )
    assert await values(client.read("orders")) == [7]
