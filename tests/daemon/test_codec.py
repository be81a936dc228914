"""What one peer encodes another decodes to the same, whatever it is."""

import dataclasses

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from peerd.core.batch import BatchHeader, PlacedBatch
from peerd.core.ids import BootId, Epoch, NodeName, Offset, ProcessId, ProducerId, ShardId, StoreId
from peerd.core.messages import Ack, Adopt, Begin, Expect, Frame, Ready
from peerd.core.producer import TableBatch, TableSnapshot
from peerd.core.shard_map import Plan
from peerd.internal.v1 import replication_pb2
from peerd.transport import replication_codec as codec

uint64 = st.integers(0, (1 << 64) - 1)
uint32 = st.integers(0, (1 << 32) - 1)
time_ms = st.integers(-(1 << 63), (1 << 63) - 1)
producers = st.one_of(st.just(b""), st.binary(min_size=16, max_size=16)).map(ProducerId)
shards, epochs, offsets = uint64.map(ShardId), uint64.map(Epoch), uint64.map(Offset)
processes = st.builds(
    ProcessId,
    st.sampled_from(["peer-1", "peer-2"]).map(NodeName),
    st.sampled_from(["1" * 32, "2" * 32]).map(StoreId),
    st.sampled_from(["a" * 32, "b" * 32]).map(BootId),
)
plans = processes.map(lambda process: Plan(primary=process, voters=(process.replica,), acks=1))


@st.composite
def batches(draw, base=None):
    payload = draw(st.binary(max_size=64))
    return PlacedBatch(
        base=Offset(draw(st.integers(0, 1 << 40)) if base is None else base),
        header=BatchHeader(
            record_count=draw(st.integers(1, 1000)),
            payload_crc=crc32c(payload),
            key_hash_low=draw(uint64),
            key_hash_high=draw(uint64),
            producer=draw(producers),
            first_sequence=draw(uint64),
            timestamp_ms=draw(time_ms),
            payload_bytes=len(payload),
            forget_before=draw(offsets),
        ),
        payload=payload,
    )


@st.composite
def runs(draw):
    """Consecutive batches."""
    found = []
    for _ in range(draw(st.integers(0, 4))):
        found.append(draw(batches(base=found[-1].end if found else None)))
    return tuple(found)


tables = st.builds(
    TableSnapshot,
    as_of=offsets,
    complete=st.booleans(),
    since=offsets,
    timestamp_ms=time_ms,
    forgotten_before=offsets,
    producers=st.dictionaries(
        st.binary(min_size=16, max_size=16).map(ProducerId),
        st.lists(
            st.builds(TableBatch, uint64, uint32, epochs, offsets, time_ms), min_size=1, max_size=3
        ).map(tuple),
        max_size=3,
    ),
)


def wire_of(batch):
    answer = replication_pb2.FetchBatchesResponse()
    codec.add_batch(answer, batch, Epoch(1))
    return answer.batches[0]


def over_the_wire(message):
    return type(message).FromString(message.SerializeToString())


@given(runs(), shards, epochs, offsets)
def test_frames(run, shard, epoch, commit) -> None:
    frame = Frame(shard=shard, epoch=epoch, commit=commit, batches=run)
    serialized = b"".join(codec.frame_parts(frame))
    message = replication_pb2.ReplicateRequest.FromString(serialized)
    assert codec.decode_frame(message.frames[0]) == frame
    assert codec.size_bytes(frame) >= sum(len(batch.payload) for batch in run)


@given(shards, epochs, epochs, epochs, offsets, plans)
def test_adoptions_and_answers(shard, epoch, other, third, offset, plan) -> None:
    adopt = Adopt(shard=shard, epoch=epoch, begin=offset, plan=plan)
    assert codec.decode_adopt(over_the_wire(codec.encode_adopt(adopt))) == adopt
    ack = Ack(shard=shard, epoch=epoch, end=offset)
    assert codec.decode_ack(over_the_wire(codec.encode_ack(ack))) == ack
    expect = Expect(shard=shard, promised=epoch, adopted=other, end=offset, refused_epoch=third)
    assert codec.decode_expect(over_the_wire(codec.encode_expect(expect))) == expect


@given(tables, shards, epochs, offsets, plans, processes, time_ms)
def test_hand_overs(table, shard, epoch, offset, plan, process, time) -> None:
    ready = Ready(shard=shard, epoch=epoch, sender=process, table_as_of=offset)
    assert codec.decode_ready(over_the_wire(codec.encode_ready(ready, "c", "s"))) == ready
    begin = Begin(
        shard=shard,
        old_epoch=epoch,
        epoch=epoch,
        boot=process.boot,
        begin=offset,
        plan=plan,
        table=table,
        holders=(process.replica,),
        timestamp_ms=time,
    )
    wire = over_the_wire(codec.encode_begin(begin, process, "c", "s"))
    assert codec.decode_begin(wire) == begin
    assert (wire.cluster_id, wire.target_store_id) == ("c", "s")


@given(batches())
def test_a_flipped_payload_is_found(batch) -> None:
    wire = wire_of(batch)
    wire.payload += b"x"
    with pytest.raises(codec.MessageMalformed, match="checksum"):
        codec.decode_batch(wire)


def test_what_no_sound_peer_sends_is_malformed() -> None:
    payload = b"x"
    header = BatchHeader(record_count=1, payload_crc=crc32c(payload), payload_bytes=1)
    batch = PlacedBatch(base=Offset(0), header=header, payload=payload)
    apart = dataclasses.replace(batch, base=Offset(5))
    with pytest.raises(codec.MessageMalformed, match="up to 1 are followed by 5"):
        codec.decode_batches([wire_of(batch), wire_of(apart)])
    empty = wire_of(batch)
    empty.header.record_count = 0
    with pytest.raises(codec.MessageMalformed, match="without records"):
        codec.decode_batch(empty)
    strange = wire_of(batch)
    strange.header.producer_id = b"short"
    with pytest.raises(codec.MessageMalformed, match="producer id"):
        codec.decode_batch(strange)
    table = replication_pb2.ProducerTable()
    table.producers.add(producer_id=b"short")
    with pytest.raises(codec.MessageMalformed, match="producer table"):
        codec.decode_table(table)
    with pytest.raises(codec.MessageMalformed, match="plan"):
        codec.decode_adopt(replication_pb2.Adopt(shard=1, epoch=1))
