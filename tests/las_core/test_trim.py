"""Trims: what the map forgets, and the guards that keep what is not to be forgotten."""

from dataclasses import replace

import pytest

from las.core import snapshot
from las.core.commands import (
    FenceSegment,
    HaltShard,
    OpenSegment,
    PrepareSegment,
    Reason,
    RecoveredSegment,
    RecoverWithGap,
    SegmentOpened,
    SetNodeState,
    TrimShard,
)
from las.core.recovery import Answer, EpochAnswer, decide_with_gap
from las.core.state import GAP_OFFSETS_MIN, NodeState
from peerd.core.check import InvariantViolation
from peerd.core.ids import BootId, Epoch, Offset
from tests.las_core.builders import SHARD, do, done, name, plan_of, replica, shard_of, with_log


def trim(epoch: int, offset: int) -> TrimShard:
    return TrimShard(shard=SHARD, epoch=Epoch(epoch), trimmed_to=Offset(offset))


def switch(epoch: int, at: int) -> tuple[PrepareSegment, SegmentOpened]:
    return (
        PrepareSegment(shard=SHARD, epoch=Epoch(epoch), plan=plan_of(1, 1, 2, 3)),
        SegmentOpened(
            shard=SHARD, epoch=Epoch(epoch + 1), begin=Offset(at), holders=(replica(1), replica(2))
        ),
    )


@pytest.fixture
def chain():
    """Epochs 1 [0, 10), 2 [10, 20), 3 [20, 30) and the open 4."""
    return done(with_log(), *switch(1, 10), *switch(2, 20), *switch(3, 30))


def epochs(state) -> list[int]:
    return [segment.epoch for segment in shard_of(state).sealed]


def refused(state, command, reason: Reason) -> str:
    after, result = do(state, command)
    assert (after, result.ok, result.reason) == (state, False, reason)
    return result.text


def test_segments_that_are_trimmed_leave_the_map(chain):
    state = done(chain, trim(2, 15))
    assert (shard_of(state).trimmed_to, epochs(state)) == (15, [2, 3])


def test_the_newest_sealed_segment_stays_for_its_producer_table(chain):
    state = done(chain, trim(4, 35))
    assert (shard_of(state).trimmed_to, epochs(state)) == (35, [3])
    state = done(state, *switch(4, 40), trim(5, 41))
    assert epochs(state) == [4]


def test_a_trim_at_the_end_of_a_segment_takes_all_of_it(chain):
    assert epochs(done(chain, trim(1, 10))) == [2, 3]
    assert epochs(done(chain, trim(2, 10))) == [2, 3]


def test_a_trim_never_goes_back(chain):
    state = done(chain, trim(3, 25))
    for command in (trim(3, 25), trim(3, 21), trim(1, 5)):
        after, result = do(state, command)
        assert (after, result.ok) == (state, True)


@pytest.mark.parametrize(
    "command", [trim(1, 11), trim(3, 19), trim(3, 31), trim(4, 29), trim(9, 5)]
)
def test_an_offset_outside_the_segment_is_refused(chain, command):
    refused(chain, command, Reason.STATE_CHANGED)


def test_a_kept_tail_is_not_trimmed_before_it_is_copied():
    state = done(
        with_log(),
        FenceSegment(shard=SHARD, epoch=Epoch(1)),
        OpenSegment(
            shard=SHARD,
            fence=Epoch(2),
            plan=plan_of(2, 2, 3),
            ended=RecoveredSegment(end=Offset(9), known_commit=Offset(7), holders=(replica(2),)),
        ),
    )
    refused(state, trim(1, 8), Reason.STATE_CHANGED)
    assert shard_of(done(state, trim(1, 7))).trimmed_to == 7


def test_nothing_is_trimmed_under_a_fence_or_of_a_halted_shard(chain):
    fenced = done(chain, FenceSegment(shard=SHARD, epoch=Epoch(4)))
    refused(fenced, trim(1, 5), Reason.FENCED)
    halted = done(chain, HaltShard(shard=SHARD, epoch=Epoch(9), node=name(1), why="it promised 9"))
    refused(halted, trim(1, 5), Reason.HALTED)


def test_a_segment_never_ends_below_the_trim():
    state = done(with_log(), trim(1, 8), FenceSegment(shard=SHARD, epoch=Epoch(1)))
    ended = RecoveredSegment(end=Offset(7), known_commit=Offset(0), holders=(replica(2),))
    opened = OpenSegment(shard=SHARD, fence=Epoch(2), plan=plan_of(2, 2, 3), ended=ended)
    refused(state, opened, Reason.INVALID_ARGUMENT)
    state = done(state, replace(opened, ended=replace(ended, end=Offset(9))))
    assert shard_of(state).sealed[0].known_commit == 8


def test_recovery_with_a_gap_counts_the_trim_as_committed():
    state = done(with_log(), trim(1, 8), FenceSegment(shard=SHARD, epoch=Epoch(1)))
    shard = shard_of(state)
    answer = Answer(
        replica=replica(3),
        promised=shard.fence,
        open=EpochAnswer(adopted=True, begin=Offset(0), end=Offset(8), commit=Offset(3)),
        prepared=EpochAnswer(adopted=False),
    )
    decision = decide_with_gap(shard, [answer])
    assert (decision.ended.end, decision.ended.known_commit) == (8, 8)


def test_a_gap_that_is_trimmed_leaves_the_map_with_what_is_before_it():
    down = [
        SetNodeState(node=name(each), boot=BootId(f"boot-{each}-1"), state=NodeState.DOWN)
        for each in (1, 2)
    ]
    resume = 7 + GAP_OFFSETS_MIN
    state = done(
        with_log(),
        *down,
        FenceSegment(shard=SHARD, epoch=Epoch(1)),
        RecoverWithGap(
            shard=SHARD,
            fence=Epoch(2),
            plan=plan_of(3, 3, 4, 5),
            ended=RecoveredSegment(end=Offset(7), known_commit=Offset(7), holders=(replica(3),)),
            resume_at=Offset(resume),
            given_up=(replica(1), replica(2)),
            why="burned",
        ),
    )
    to_the_gap = done(state, trim(1, 7))
    assert (epochs(to_the_gap), len(shard_of(to_the_gap).gaps)) == ([1], 1)
    beyond = done(state, trim(2, resume + 5))
    assert (epochs(beyond), len(shard_of(beyond).gaps)) == ([1], 1)
    prepare, opened = switch(2, resume + 9)
    beyond = done(
        beyond, replace(prepare, plan=plan_of(3, 3, 4, 5)), replace(opened, holders=(replica(3),))
    )
    beyond = done(beyond, trim(3, resume + 10))
    assert (epochs(beyond), shard_of(beyond).gaps) == ([2], ())


def test_a_trim_survives_a_snapshot(chain):
    state = done(chain, trim(2, 15))
    assert snapshot.restore(snapshot.snapshot(state)) == state


def test_nothing_is_left_out_of_the_chain_that_is_not_trimmed(chain):
    shard = shard_of(done(chain, trim(2, 15)))
    with pytest.raises(InvariantViolation, match="tile from"):
        replace(shard, trimmed_to=Offset(9))
