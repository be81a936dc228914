"""A read's answer is written in pieces: the bytes are those of the message."""

import pytest

from peerd.core.batch import BatchHeader, PlacedBatch
from peerd.core.ids import Epoch, Offset, ShardId
from peerd.transport.read_path import Answer, Message
from peerd.v1 import log_pb2


@pytest.mark.parametrize("gap", [None, log_pb2.Gap(shard=3, first_offset=1, next_offset=2)])
@pytest.mark.parametrize("sizes", [(), (0,), (1, 127, 128, 70_000)])
def test_an_answer_in_pieces_is_the_message(sizes, gap):
    batches = [
        PlacedBatch(
            base=Offset(base),
            header=BatchHeader(
                record_count=1, payload_crc=7, payload_bytes=size, timestamp_ms=base
            ),
            payload=memoryview(b"x" * size),
        )
        for base, size in enumerate(sizes, 1 << 33)
    ]
    head = Message(committed={3: 9}, gaps=[] if gap is None else [gap])
    head.resume.offsets[3] = 5
    answer = Answer(head=head, shard=ShardId(3), epoch=Epoch(4), batches=batches)
    wanted = Message()
    wanted.CopyFrom(head)
    for each in batches:
        wanted.batches.add(
            shard=3,
            epoch=4,
            base_offset=each.base,
            timestamp_ms=each.header.timestamp_ms,
            payload_crc=7,
            batch=bytes(each.payload),
        )
    assert Message.FromString(answer.SerializeToString()) == wanted
    assert abs(answer.ByteSize() - wanted.ByteSize()) <= 64 * len(sizes)
