"""The canonical encoding of a trace: equal values give equal bytes, and nothing else does."""

import subprocess
import sys

import pytest

from peerd.core.durable import AdoptEpoch, StoredSegment, StoredShard
from peerd.core.effects import Step
from peerd.core.events import Ticked
from peerd.core.ids import BootId, Epoch, NodeName, Offset, ProcessId, ShardId, StoreId, Tick
from peerd.testing import trace

PROCESS = ProcessId(NodeName("a"), StoreId("store"), BootId("boot"))
SHARD = ShardId(1)


def stored(*epochs: int) -> StoredShard:
    return StoredShard(
        shard=SHARD,
        segments={
            Epoch(epoch): StoredSegment(
                epoch=Epoch(epoch), begin=Offset(0), end=Offset(0), commit=Offset(0)
            )
            for epoch in epochs
        },
    )


def test_the_order_of_a_mapping_does_not_show():
    assert trace.encode(stored(1, 2)) == trace.encode(stored(2, 1))
    assert trace.encode(frozenset("abcdef")) == trace.encode(set("fedcba"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (0, None),
        ("1", 1),
        (b"a", "a"),
        (("a", "b"), ("ab",)),
        (("a", ("b",)), (("a",), "b")),
        ({"a": "b"}, {"b": "a"}),
        (
            AdoptEpoch(shard=SHARD, epoch=Epoch(1), begin=Offset(2)),
            AdoptEpoch(shard=SHARD, epoch=Epoch(2), begin=Offset(1)),
        ),
    ],
)
def test_different_values_differ(one, other):
    assert trace.encode(one) != trace.encode(other)


def test_what_no_trace_holds_is_refused():
    with pytest.raises(TypeError, match="no encoding for object"):
        trace.encode(object())


def test_the_hash_depends_on_every_record_and_on_their_order():
    records = [
        trace.Booted(0, PROCESS, SHARD, stored(1)),
        trace.Handled(1, PROCESS, SHARD, Ticked(now=Tick(1)), Step()),
        trace.Died(2, PROCESS),
    ]
    known = trace.trace_hash(records)
    assert known == trace.trace_hash(iter(records))
    assert known != trace.trace_hash(records[:2])
    assert known != trace.trace_hash(records[::-1])


def test_the_hash_does_not_depend_on_the_interpreters_hash_seed():
    program = (
        "from peerd.testing import trace\n"
        "print(trace.encode({'abc', 'xyz', 'one', 'two', 'six'}).hex())"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(told) == 1
