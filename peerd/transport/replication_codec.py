"""Messages between peers between their wire form (`peerd.internal.v1`) and the core's values.

`decode_…` of what `encode_…` made gives the same value back. A message that no peer of this version
sends (a batch that fails its checksum, batches with a gap) raises `MessageMalformed`: the stream it
came on is dropped, and what it carried comes again.

Must not: keep state, or judge what a message means for a shard.
"""

import itertools
from collections.abc import Iterable

from crc32c import crc32c

from peerd.core.batch import BatchHeader, PlacedBatch
from peerd.core.effects import EpochAnswer
from peerd.core.ids import BootId, Epoch, Offset, ProcessId, ProducerId, ShardId
from peerd.core.messages import Ack, Adopt, Begin, Expect, Frame, Ready
from peerd.core.producer import TableBatch, TableSnapshot
from peerd.internal.v1 import replication_pb2
from peerd.transport.map_codec import (
    MapMalformed,
    decode_plan,
    decode_process,
    decode_replica,
    encode_plan,
    encode_process,
    encode_replica,
)
from peerd.transport.wire_form import sized_tag, varint

# What a batch and a message take beside payloads, roughly: for bounds on bytes, not for exactness.
BATCH_OVERHEAD_BYTES = 96
MESSAGE_OVERHEAD_BYTES = 64

_PRODUCER_BYTES = 16
_FRAMES_TAG = sized_tag(replication_pb2.ReplicateRequest.FRAMES_FIELD_NUMBER)
_BATCHES_TAG = sized_tag(replication_pb2.Frame.BATCHES_FIELD_NUMBER)
_PAYLOAD_TAG = sized_tag(replication_pb2.PlacedBatch.PAYLOAD_FIELD_NUMBER)


class MessageMalformed(ValueError):
    """A message that no sound peer sends, or that was damaged; the text says what is wrong."""


# ------------------------------------------------------------------------------ batches


def add_batch(
    message: replication_pb2.FetchBatchesResponse, batch: PlacedBatch, epoch: Epoch
) -> None:
    """Add a batch to the answer to a fetch.

    In place: a message that is made apart and then put into another is copied, payload and all.
    """
    message.batches.add(
        base_offset=batch.base,
        header=_encode_header(batch.header),
        payload=bytes(batch.payload),
        epoch=epoch,
    )


def _encode_header(header: BatchHeader) -> replication_pb2.BatchHeader:
    return replication_pb2.BatchHeader(
        record_count=header.record_count,
        payload_crc=header.payload_crc,
        key_hash_low=header.key_hash_low,
        key_hash_high=header.key_hash_high,
        producer_id=header.producer,
        first_sequence=header.first_sequence,
        timestamp_ms=header.timestamp_ms,
        forget_before=header.forget_before,
    )


def decode_batch(message: replication_pb2.PlacedBatch) -> PlacedBatch:
    """Inverse of `add_batch` and of `frame_parts`; the payload was checked against its checksum.

    Raises:
        MessageMalformed: checksum, record count or producer id are wrong.
    """
    header, payload = message.header, message.payload
    if header.record_count < 1:
        raise MessageMalformed(f"batch at {message.base_offset} without records")
    if len(header.producer_id) not in {0, _PRODUCER_BYTES}:
        raise MessageMalformed(f"producer id of {len(header.producer_id)} bytes")
    if crc32c(payload) != header.payload_crc:
        raise MessageMalformed(f"batch at {message.base_offset} fails its checksum")
    return PlacedBatch(
        base=Offset(message.base_offset),
        header=BatchHeader(
            record_count=header.record_count,
            payload_crc=header.payload_crc,
            key_hash_low=header.key_hash_low,
            key_hash_high=header.key_hash_high,
            producer=ProducerId(header.producer_id),
            first_sequence=header.first_sequence,
            timestamp_ms=header.timestamp_ms,
            payload_bytes=len(payload),
            forget_before=Offset(header.forget_before),
        ),
        payload=payload,
    )


def decode_batches(messages: Iterable[replication_pb2.PlacedBatch]) -> tuple[PlacedBatch, ...]:
    """Consecutive batches. Raises `MessageMalformed`, also if there is a gap between them."""
    batches = tuple(decode_batch(message) for message in messages)
    for before, after in itertools.pairwise(batches):
        if before.end != after.base:
            raise MessageMalformed(f"batches up to {before.end} are followed by {after.base}")
    return batches


# ------------------------------------------------------------------------------ the stream


def size_bytes(message: Adopt | Frame) -> int:
    """About what `message` takes in memory and on the wire."""
    if isinstance(message, Adopt):
        return MESSAGE_OVERHEAD_BYTES
    return MESSAGE_OVERHEAD_BYTES + sum(
        len(batch.payload) + BATCH_OVERHEAD_BYTES for batch in message.batches
    )


def encode_adopt(adopt: Adopt) -> replication_pb2.Adopt:
    """The wire form of an adoption."""
    return replication_pb2.Adopt(
        shard=adopt.shard, epoch=adopt.epoch, begin=adopt.begin, plan=encode_plan(adopt.plan)
    )


def decode_adopt(message: replication_pb2.Adopt) -> Adopt:
    """Inverse of `encode_adopt`. Raises `MessageMalformed`."""
    try:
        plan = decode_plan(message.plan)
    except MapMalformed as error:
        raise MessageMalformed(str(error)) from error
    return Adopt(
        shard=ShardId(message.shard),
        epoch=Epoch(message.epoch),
        begin=Offset(message.begin),
        plan=plan,
    )


def frame_parts(frame: Frame) -> list[bytes | memoryview]:
    """A frame as it stands in a serialized `ReplicateRequest`, in pieces that are to be joined.

    Payloads are pieces of their own, as they are: message objects would copy them three times.
    """
    parts: list[bytes | memoryview] = []
    size = 0
    for batch in frame.batches:
        payload = batch.payload
        placed = replication_pb2.PlacedBatch(
            base_offset=batch.base, header=_encode_header(batch.header)
        )
        head = placed.SerializeToString() + _PAYLOAD_TAG + varint(len(payload))
        tagged = _BATCHES_TAG + varint(len(head) + len(payload)) + head
        parts += (tagged, payload)
        size += len(tagged) + len(payload)
    head = replication_pb2.Frame(
        shard=frame.shard, epoch=frame.epoch, commit_offset=frame.commit
    ).SerializeToString()
    return [_FRAMES_TAG + varint(len(head) + size) + head, *parts]


def decode_frame(message: replication_pb2.Frame) -> Frame:
    """Inverse of `frame_parts`. Raises `MessageMalformed`."""
    return Frame(
        shard=ShardId(message.shard),
        epoch=Epoch(message.epoch),
        commit=Offset(message.commit_offset),
        batches=decode_batches(message.batches),
    )


def encode_ack(ack: Ack) -> replication_pb2.Ack:
    """The wire form of an ack."""
    return replication_pb2.Ack(shard=ack.shard, epoch=ack.epoch, end=ack.end)


def decode_ack(message: replication_pb2.Ack) -> Ack:
    """Inverse of `encode_ack`."""
    return Ack(shard=ShardId(message.shard), epoch=Epoch(message.epoch), end=Offset(message.end))


def encode_expect(expect: Expect) -> replication_pb2.Expect:
    """The wire form of a refusal of a frame or an adoption."""
    return replication_pb2.Expect(
        shard=expect.shard,
        promised=expect.promised,
        adopted=expect.adopted,
        end=expect.end,
        refused_epoch=expect.refused_epoch,
    )


def decode_expect(message: replication_pb2.Expect) -> Expect:
    """Inverse of `encode_expect`."""
    return Expect(
        shard=ShardId(message.shard),
        promised=Epoch(message.promised),
        adopted=Epoch(message.adopted),
        end=Offset(message.end),
        refused_epoch=Epoch(message.refused_epoch),
    )


# ------------------------------------------------------------------------------ producer tables


def encode_table(table: TableSnapshot) -> replication_pb2.ProducerTable:
    """The wire form of a producer table, or of its changes."""
    return replication_pb2.ProducerTable(
        as_of=table.as_of,
        complete=table.complete,
        since=table.since,
        timestamp_ms=table.timestamp_ms,
        forgotten_before=table.forgotten_before,
        producers=[
            replication_pb2.TableProducer(
                producer_id=producer,
                batches=[
                    replication_pb2.TableBatch(
                        first_sequence=entry.first_sequence,
                        record_count=entry.record_count,
                        epoch=entry.epoch,
                        base_offset=entry.base,
                        timestamp_ms=entry.timestamp_ms,
                    )
                    for entry in row
                ],
            )
            for producer, row in table.producers.items()
        ],
    )


def decode_table(message: replication_pb2.ProducerTable) -> TableSnapshot:
    """Inverse of `encode_table`. Raises `MessageMalformed`."""
    producers = {}
    for producer in message.producers:
        if len(producer.producer_id) != _PRODUCER_BYTES or not producer.batches:
            raise MessageMalformed("producer table with a nameless or empty row")
        producers[ProducerId(producer.producer_id)] = tuple(
            TableBatch(
                entry.first_sequence,
                entry.record_count,
                Epoch(entry.epoch),
                Offset(entry.base_offset),
                entry.timestamp_ms,
            )
            for entry in producer.batches
        )
    return TableSnapshot(
        as_of=Offset(message.as_of),
        complete=message.complete,
        producers=producers,
        since=Offset(message.since),
        timestamp_ms=message.timestamp_ms,
        forgotten_before=Offset(message.forgotten_before),
    )


# ------------------------------------------------------------------------------ hand-over


def encode_ready(ready: Ready, cluster_id: str, target_store: str) -> replication_pb2.ReadyRequest:
    """The call that carries a `Ready`."""
    return replication_pb2.ReadyRequest(
        cluster_id=cluster_id,
        target_store_id=target_store,
        shard=ready.shard,
        epoch=ready.epoch,
        sender=encode_process(ready.sender),
        table_as_of=ready.table_as_of,
    )


def decode_ready(message: replication_pb2.ReadyRequest) -> Ready:
    """Inverse of `encode_ready`."""
    return Ready(
        shard=ShardId(message.shard),
        epoch=Epoch(message.epoch),
        sender=decode_process(message.sender),
        table_as_of=Offset(message.table_as_of),
    )


def encode_begin(
    begin: Begin, sender: ProcessId, cluster_id: str, target_store: str
) -> replication_pb2.BeginRequest:
    """The call that carries a `Begin`."""
    return replication_pb2.BeginRequest(
        cluster_id=cluster_id,
        target_store_id=target_store,
        target_boot_id=begin.boot,
        shard=begin.shard,
        old_epoch=begin.old_epoch,
        epoch=begin.epoch,
        begin=begin.begin,
        plan=encode_plan(begin.plan),
        table=encode_table(begin.table),
        holders=[encode_replica(replica) for replica in begin.holders],
        timestamp_ms=begin.timestamp_ms,
        sender=encode_process(sender),
    )


def decode_begin(message: replication_pb2.BeginRequest) -> Begin:
    """Inverse of `encode_begin`, without the sender. Raises `MessageMalformed`."""
    try:
        plan = decode_plan(message.plan)
    except MapMalformed as error:
        raise MessageMalformed(str(error)) from error
    return Begin(
        shard=ShardId(message.shard),
        old_epoch=Epoch(message.old_epoch),
        epoch=Epoch(message.epoch),
        boot=BootId(message.target_boot_id),
        begin=Offset(message.begin),
        plan=plan,
        table=decode_table(message.table),
        holders=tuple(decode_replica(replica) for replica in message.holders),
        timestamp_ms=message.timestamp_ms,
    )


def encode_epoch(answer: EpochAnswer | None) -> replication_pb2.EpochState | None:
    """The wire form of what a store has of one epoch; None stays unset."""
    if answer is None:
        return None
    return replication_pb2.EpochState(
        epoch=answer.epoch,
        adopted=answer.adopted,
        begin=answer.begin,
        end=answer.end,
        commit_offset=answer.commit,
    )
