"""Plain batches: records of one length, of each of which there is nothing but a value, not packed.

Most batches are like that, and whether one is shows at its bytes, without making a message of each
record: it begins as such a batch of so many records of that length begins, it is as long, and where
a record begins, each begins alike. Reading it as protobuf twice, as `append_edge` must otherwise,
copies all of it twice.

Correctness. Of a batch that is taken for a plain one, `begin` is all that stands before the first
value; it was made from two numbers alone, as protobuf makes it, and not taken from the batch. Each
of the `count` pieces that follow the head has the same length and begins with the same bytes: tag
and length of a record, tag and length of a value, and the value fills the rest. So a parser finds
these records in it and nothing else: no key, no header, no field that this version does not know.
Whatever is not like that, byte for byte, is no plain batch here, and is for others to judge.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from peerd.transport.wire_form import sized_tag, varint
from peerd.v1 import batch_pb2

_COUNT_TAG = bytes((batch_pb2.Batch.RECORD_COUNT_FIELD_NUMBER << 3,))
_RECORDS_TAG = sized_tag(batch_pb2.Batch.RECORDS_FIELD_NUMBER)
_RECORD_TAG = sized_tag(batch_pb2.Records.RECORDS_FIELD_NUMBER)
_VALUE_TAG = sized_tag(batch_pb2.Record.VALUE_FIELD_NUMBER)
_VARINT = rb"[\x80-\xff]{0,4}[\x00-\x7f]"
# The numbers of records and of bytes of the first value; the two lengths between follow from them.
_BEGIN = re.compile(
    rb"%b(%b)%b%b%b%b%b(%b)"
    % (
        re.escape(_COUNT_TAG),
        _VARINT,
        re.escape(_RECORDS_TAG),
        _VARINT,
        re.escape(_RECORD_TAG),
        _VARINT,
        re.escape(_VALUE_TAG),
        _VARINT,
    ),
    re.DOTALL,
)
# limit: beginnings that are remembered, one for each pair of numbers
BEGINNINGS_MAX = 4_096


class Plain(NamedTuple):
    """How a plain batch is laid out; sizes in bytes.

    Attributes:
        begin: All that comes before the first value.
        head_size: Of these, what comes before the first record.
        record_at: From the beginning of a record to its serialized `peerd.v1.Record`.
        stride: From the beginning of a record to that of the next one.
        records: How many.
    """

    begin: bytes
    head_size: int
    record_at: int
    stride: int
    records: int


@lru_cache(maxsize=BEGINNINGS_MAX)
def _layout(count: int, value_size: int) -> Plain:
    """Of `count` records with values of `value_size` bytes."""
    field = _VALUE_TAG + varint(value_size)
    tagged = _RECORD_TAG + varint(len(field) + value_size)
    stride = len(tagged) + len(field) + value_size
    head = _COUNT_TAG + varint(count) + _RECORDS_TAG + varint(count * stride)
    return Plain(head + tagged + field, len(head), len(tagged), stride, count)


def plain_batch(payload: bytes) -> Plain | None:
    """The layout of a serialized batch if it is a plain one."""
    found = _BEGIN.match(payload)
    if found is None:
        return None
    layout = _layout(_number(found[1]), _number(found[2]))
    begin, head_size, _, stride, count = layout
    if len(payload) != head_size + count * stride or not payload.startswith(begin):
        return None
    if count > 1:
        for at in range(head_size, len(begin)):
            # The same byte of each record.
            if payload[at::stride] != payload[at : at + 1] * count:
                return None
    return layout


def plain_records(payload: bytes) -> list[bytes] | None:
    """The serialized records of a batch if it is a plain one."""
    layout = plain_batch(payload)
    if layout is None:
        return None
    record_at, stride = layout.record_at, layout.stride
    starts = range(layout.head_size, len(payload), stride)
    return [payload[start + record_at : start + stride] for start in starts]


def _number(packed: bytes) -> int:
    """Inverse of `varint`, also of a longer form than that gives."""
    number = 0
    for at, byte in enumerate(packed):
        number |= (byte & 0x7F) << 7 * at
    return number
