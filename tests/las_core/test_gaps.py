"""Recovery by a person, with too few answers: what is kept, what is called lost, and the guards."""

from dataclasses import replace

import pytest

from las.core import snapshot
from las.core.commands import (
    FenceSegment,
    PrepareSegment,
    PrepareSplit,
    Reason,
    RecoveredSegment,
    RecoverWithGap,
    SegmentOpened,
    SetNodeState,
    command_from_json,
    command_to_json,
)
from las.core.recovery import Answer, EpochAnswer, Recovered, Wait, decide, decide_with_gap
from las.core.state import GAP_OFFSETS_MIN, GAPS_MAX, ClusterState, NodeState
from peerd.core.ids import BootId, Epoch, Offset
from peerd.core.shard_map import Gap
from tests.las_core.builders import (
    SHARD,
    do,
    done,
    name,
    plan_of,
    replica,
    shard_of,
    with_log,
)


def prepare() -> PrepareSegment:
    return PrepareSegment(shard=SHARD, epoch=Epoch(1), plan=plan_of(4, 3, 4, 5))


def refused(state: ClusterState, command: RecoverWithGap, reason: Reason) -> str:
    after, result = do(state, command)
    assert (after, result.ok, result.reason) == (state, False, reason)
    return result.text


RESUME = Offset(7 + GAP_OFFSETS_MIN)


def down(number: int) -> SetNodeState:
    return SetNodeState(node=name(number), boot=BootId(f"boot-{number}-1"), state=NodeState.DOWN)


def fenced(*gone: int, prepared: bool = False):
    state = done(with_log(), *([prepare()] if prepared else []), *(down(each) for each in gone))
    return done(
        state, FenceSegment(shard=SHARD, epoch=Epoch(1), prepared=Epoch(2 if prepared else 0))
    )


def recover(**changes) -> RecoverWithGap:
    command = RecoverWithGap(
        shard=SHARD,
        fence=Epoch(2),
        plan=plan_of(3, 3, 4, 5),
        ended=RecoveredSegment(end=Offset(7), known_commit=Offset(5), holders=(replica(3),)),
        resume_at=RESUME,
        given_up=(replica(1), replica(2)),
        why="the disks of peer-1 and peer-2 burned on Sunday",
    )
    return replace(command, **changes)


# ---------------------------------------------------------------------------------- the command
def test_what_may_be_lost_is_a_gap_of_the_map_and_the_shard_goes_on_behind_it():
    shard = shard_of(done(fenced(1, 2), recover()))
    assert (shard.open.epoch, shard.open.begin, shard.fence) == (2, RESUME, 0)
    assert [(each.epoch, each.end, each.holders) for each in shard.sealed] == [
        (1, 7, (replica(3),))
    ]
    assert shard.gaps == (Gap(begin=Offset(7), end=RESUME, epochs=(Epoch(1),), why=recover().why),)
    assert shard.gap_at(6) is None
    assert shard.gap_at(7) == shard.gap_at(RESUME - 1) == shard.gaps[0]
    assert shard.gap_at(RESUME) is None


def test_a_quorum_may_be_lost_again_before_a_record_was_taken():
    state = done(fenced(1, 2), recover(), down(3), down(4))
    state = done(state, FenceSegment(shard=SHARD, epoch=Epoch(2), prepared=Epoch(0)))
    again = recover(
        fence=Epoch(3),
        plan=plan_of(5, 5, 1),
        ended=RecoveredSegment(end=RESUME, known_commit=RESUME, holders=()),
        resume_at=Offset(RESUME + GAP_OFFSETS_MIN),
        given_up=(replica(3), replica(4)),
    )
    state = done(state, again)
    shard = shard_of(state)
    assert [(gap.begin, gap.end) for gap in shard.gaps] == [
        (7, RESUME),
        (RESUME, again.resume_at),
    ]
    assert (shard.open.begin, shard.dead_epochs) == (again.resume_at, (2,))
    assert snapshot.restore(snapshot.snapshot(state)) == state


def test_a_snapshot_keeps_the_gaps():
    state = done(fenced(1, 2), recover())
    assert shard_of(state).gaps
    assert snapshot.restore(snapshot.snapshot(state)) == state


def test_where_nothing_is_left_the_gap_begins_with_the_segment():
    nothing = RecoveredSegment(end=Offset(0), known_commit=Offset(0), holders=())
    command = recover(ended=nothing, resume_at=Offset(GAP_OFFSETS_MIN))
    shard = shard_of(done(fenced(1, 2), command))
    assert (shard.sealed, shard.dead_epochs) == ((), (1,))
    assert (shard.gaps[0].begin, shard.gaps[0].epochs) == (0, (1,))


def test_a_prepared_segment_may_have_acknowledged_and_is_cut_too():
    command = recover(fence=Epoch(3), given_up=(replica(1), replica(2)))
    shard = shard_of(done(fenced(1, 2, prepared=True), command))
    assert shard.gaps[0].epochs == (1, 2)
    assert shard.dead_epochs == (2,)


def test_it_is_repeated_without_harm_and_kept_in_the_log_of_commands():
    state = done(fenced(1, 2), recover())
    assert done(state, recover()) == state
    assert command_from_json(command_to_json(recover())) == recover()


@pytest.mark.parametrize(
    ("gone", "changes", "why"),
    [
        ((1,), {}, "peer-2 is up"),
        ((1, 2), {"given_up": (replica(1),)}, "enough voters are left"),
        ((1, 2), {"given_up": (replica(1), replica(4))}, "peer-4 is no voter"),
        ((1, 2), {"resume_at": Offset(RESUME - 1)}, "less than 2^40"),
        ((1, 2), {"why": " "}, "one line"),
        ((1, 2), {"why": "a\nb"}, "one line"),
        ((1, 2), {"plan": plan_of(9, 9, 4)}, "no node is called peer-9"),
    ],
)
def test_it_is_refused_unless_something_may_be_lost(gone, changes, why):
    state = fenced(*gone)
    assert why in refused(state, recover(**changes), Reason.INVALID_ARGUMENT)


def test_it_finishes_the_standing_fence_and_no_other():
    refused(done(with_log(), down(1), down(2)), recover(), Reason.STATE_CHANGED)
    refused(fenced(1, 2), recover(fence=Epoch(9)), Reason.STATE_CHANGED)
    refused(fenced(1, 2), recover(shard=99), Reason.UNKNOWN_SHARD)


def test_a_shard_that_is_split_holds_nothing_that_could_be_lost():
    split = PrepareSplit(shard=SHARD, epoch=Epoch(1), key_hash=1 << 60, plan=plan_of(1, 1, 2, 3))
    begun = SegmentOpened(shard=SHARD, epoch=Epoch(2), begin=Offset(7), holders=(replica(3),))
    fence = FenceSegment(shard=SHARD, epoch=Epoch(2))
    state = done(with_log(), split, begun, down(1), down(2), fence)
    command = recover(fence=Epoch(3), resume_at=Offset(2 * RESUME))
    assert "split" in refused(state, command, Reason.INVALID_ARGUMENT)


def test_the_number_of_gaps_is_bounded():
    state = fenced(1, 2)
    entry = state.shards[SHARD]
    gap = Gap(begin=Offset(0), end=Offset(1), epochs=(), why="w")
    shard = replace(entry.shard)
    object.__setattr__(shard, "gaps", (gap,) * GAPS_MAX)
    state = state.changed(shards=(replace(entry, shard=shard),))
    refused(state, recover(), Reason.LIMIT_REACHED)


# ---------------------------------------------------------------------------------- the decision
def answer(number: int, end: int | None, *, fence: int = 2, commit: int = 0, e2=None) -> Answer:
    return Answer(
        replica=replica(number),
        promised=Epoch(fence),
        open=EpochAnswer(adopted=end is not None, end=Offset(end or 0), commit=Offset(commit)),
        prepared=EpochAnswer()
        if e2 is None
        else EpochAnswer(adopted=True, begin=Offset(e2[0]), end=Offset(e2[1])),
    )


def test_everything_that_an_answer_has_is_kept():
    shard = shard_of(fenced(1, 2))
    assert isinstance(decide(shard, [answer(3, 7, commit=5)]), Wait)
    left = decide_with_gap(shard, [answer(3, 7, commit=5)])
    assert left == Recovered(
        ended=RecoveredSegment(end=Offset(7), known_commit=Offset(5), holders=(replica(3),))
    )


def test_without_any_answer_the_segment_ends_where_it_began():
    left = decide_with_gap(shard_of(fenced(1, 2)), [])
    assert left.ended == RecoveredSegment(end=Offset(0), known_commit=Offset(0), holders=())


def test_answers_to_another_fence_or_of_strangers_are_not_counted():
    left = decide_with_gap(shard_of(fenced(1, 2)), [answer(3, 9, fence=1), answer(5, 9)])
    assert left.ended.end == 0


def test_an_adoption_says_where_the_open_segment_ended():
    shard = shard_of(fenced(1, 2, prepared=True))
    left = decide_with_gap(shard, [answer(4, None, fence=3, e2=(6, 8))])
    assert (left.ended.end, left.ended.known_commit, left.ended.holders) == (6, 6, ())
    assert left.ended_prepared == RecoveredSegment(
        end=Offset(8), known_commit=Offset(6), holders=(replica(4),)
    )


def test_what_a_prepared_segment_may_have_acknowledged_elsewhere_is_no_record_of_the_open_one():
    """e′ may have begun at 5, and told a client of its record there: what is left of e at 5 must
    never be read as the record of that offset (G2).
    """
    shard = shard_of(fenced(4, 5, prepared=True))
    left = decide_with_gap(shard, [answer(1, 7, fence=3, commit=5), answer(2, 4, fence=3)])
    assert left == Recovered(
        ended=RecoveredSegment(end=Offset(5), known_commit=Offset(5), holders=(replica(1),))
    )


def test_a_prepared_segment_that_never_began_takes_nothing_of_the_open_one():
    shard = shard_of(fenced(1, 2, prepared=True))
    answers = [answer(3, 7, fence=3, commit=5), answer(4, None, fence=3)]
    assert isinstance(decide(shard, answers), Wait)
    assert decide_with_gap(shard, answers).ended.end == 7


def test_with_enough_answers_it_is_the_ordinary_decision():
    shard = shard_of(fenced(1))
    answers = [answer(2, 6), answer(3, 7)]
    assert decide_with_gap(shard, answers) == decide(shard, answers)
