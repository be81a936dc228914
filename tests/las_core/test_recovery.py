"""Where a fenced segment ended: literal cases, an oracle that counts, a world that knows the truth.

The mutants at the end are those of the formal model that concern the decision. Each is cut into the
real source, and at least one literal case must tell it from the real one.
"""

import inspect
import types
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from las.core import recovery
from las.core.recovery import (
    Answer,
    Contradiction,
    Decision,
    EpochAnswer,
    Recovered,
    Wait,
    decide,
    voters_to_ask,
)
from peerd.core.ids import Epoch, Offset, ShardId
from peerd.core.shard_map import Plan, Segment, Shard, Split
from tests.las_core.builders import SHARD, plan_of, replica

FENCE = Epoch(9)


def fenced(plan: Plan, prepared: Plan | None = None, begin: int = 0) -> Shard:
    """Epoch 5 is open at `begin`, epoch 8 prepared if there is a plan for it, fence is 9."""
    sealed = ()
    if begin:
        past = Segment(epoch=Epoch(1), plan=plan, begin=Offset(0), end=Offset(begin))
        sealed = (past,)
    return Shard(
        shard=SHARD,
        log="orders",
        key_hash_low=0,
        key_hash_high=(1 << 64) - 1,
        sealed=sealed,
        open=Segment(epoch=Epoch(5), plan=plan, begin=Offset(begin)),
        prepared=None if prepared is None else Segment(epoch=Epoch(8), plan=prepared),
        fence=FENCE,
    )


def has(begin: int, end: int, commit: int | None = None) -> EpochAnswer:
    return EpochAnswer(
        adopted=True,
        begin=Offset(begin),
        end=Offset(end),
        commit=Offset(begin if commit is None else commit),
    )


NOT_ADOPTED = EpochAnswer()


def said(number: int, end: int | None, prepared=None, promised: Epoch = FENCE) -> Answer:
    """`said(2, 7)`: peer-2 has [0, 7) of e. `prepared=(7, 9)`: it has [7, 9) of e′."""
    return Answer(
        replica=replica(number),
        promised=promised,
        open=NOT_ADOPTED if end is None else has(0, end),
        prepared=NOT_ADOPTED if prepared is None else has(*prepared),
    )


def outcome(decision: Decision) -> object:
    """What a test compares: ("wait", n), ("open", X) or ("prepared", X, Y)."""
    if isinstance(decision, Wait):
        return ("wait", decision.need)
    if isinstance(decision, Contradiction):
        return ("contradiction", decision.replica.peer)
    if decision.ended_prepared is None:
        return ("open", decision.ended.end)
    return ("prepared", decision.ended.end, decision.ended_prepared.end)


TWO = plan_of(1, 1, 2)
THREE = plan_of(1, 1, 2, 3)
ALL = plan_of(1, 1, 2, 3, acks=3)
NEXT = plan_of(3, 3, 4)
NEXT_THREE = plan_of(3, 3, 4, 5)
SHADOWED = plan_of(1, 1, 2, non=(3,))

CLOSED = replace(NEXT, closed=True)
PENDING = Split(key_hash=1 << 63)


def split(prepared: Plan | None = None) -> Shard:
    """A shard that is split at 3: what is open is closed, and what is prepared."""
    children = (ShardId(8), ShardId(9))
    shard = fenced(THREE, prepared, begin=3)
    return replace(
        shard,
        open=replace(shard.open, plan=replace(THREE, closed=True)),
        split=Split(key_hash=1 << 63, end=Offset(3), children=children),
    )


CASES = {
    "2/2: one answer is enough": (fenced(TWO), [said(2, 7)], ("open", 7)),
    "2/2: of two answers the smaller end": (fenced(TWO), [said(1, 9), said(2, 7)], ("open", 7)),
    "2/2: no answer, no decision": (fenced(TWO), [], ("wait", 1)),
    "3/2: one answer is too few": (fenced(THREE), [said(2, 7)], ("wait", 1)),
    "3/2: the larger of two ends": (fenced(THREE), [said(2, 7), said(3, 4)], ("open", 7)),
    "3/2: the middle of three ends": (
        fenced(THREE),
        [said(1, 9), said(2, 7), said(3, 4)],
        ("open", 7),
    ),
    "3/3: one answer is enough": (fenced(ALL), [said(3, 4)], ("open", 4)),
    "3/3: the smallest of three ends": (
        fenced(ALL),
        [said(1, 9), said(2, 7), said(3, 4)],
        ("open", 4),
    ),
    "a voter that has not adopted e counts with its begin": (
        fenced(TWO, begin=3),
        [Answer(replica=replica(2), promised=FENCE, open=EpochAnswer(end=Offset(8)))],
        ("open", 3),
    ),
    "an answer to an older fence counts for nothing": (
        fenced(THREE),
        [said(2, 7), said(3, 4, promised=Epoch(7))],
        ("wait", 1),
    ),
    "a non-voter counts in no quorum": (fenced(SHADOWED), [said(3, 5)], ("wait", 1)),
    "a non-voter moves no end": (fenced(SHADOWED), [said(2, 7), said(3, 5)], ("open", 7)),
    "a voter of e′ that is no voter of e counts in no quorum of e": (
        fenced(SHADOWED, NEXT),
        [said(3, 5), said(4, None)],
        ("wait", 1),
    ),
    "another store of the same peer counts for nothing": (
        fenced(TWO),
        [Answer(replica=type(replica(2))(replica(2).peer, "new"), promised=FENCE)],
        ("wait", 1),
    ),
    "a prepared segment's voters are needed too": (
        fenced(TWO, NEXT),
        [said(2, 7)],
        ("wait", 1),
    ),
    "nobody adopted e′: e is recovered": (
        fenced(TWO, NEXT),
        [said(2, 7), said(4, None)],
        ("open", 7),
    ),
    "somebody adopted e′: e ended where e′ began": (
        fenced(TWO, NEXT),
        [said(2, 7), said(4, None, prepared=(6, 8))],
        ("prepared", 6, 8),
    ),
    "answers of e are not needed once e′ was adopted": (
        fenced(TWO, NEXT),
        [said(4, None, prepared=(6, 8))],
        ("prepared", 6, 8),
    ),
    "e′ needs its own quorum": (
        fenced(TWO, NEXT_THREE),
        [said(2, 7), said(4, None, prepared=(6, 8))],
        ("wait", 1),
    ),
    "a voter of e′ that has not adopted it counts with X": (
        fenced(TWO, NEXT),
        [said(3, None, prepared=(6, 8)), said(4, None)],
        ("prepared", 6, 6),
    ),
    "a shard that is split needs no answers": (split(), [], ("open", 3)),
    "nor of what is prepared after it": (split(CLOSED), [], ("open", 3)),
    "and what was adopted of it is dead": (
        split(CLOSED),
        [said(4, None, prepared=(3, 3))],
        ("open", 3),
    ),
    "while it is only prepared a split needs them": (
        replace(fenced(TWO, CLOSED), split=PENDING),
        [said(2, 7)],
        ("wait", 1),
    ),
    "a promise above the fence halts": (
        fenced(TWO),
        [said(2, 7, promised=Epoch(10))],
        ("contradiction", "peer-2"),
    ),
    "two begins of one epoch halt": (
        fenced(TWO, NEXT),
        [said(3, None, prepared=(6, 8)), said(4, None, prepared=(7, 8))],
        ("contradiction", "peer-4"),
    ),
    "a begin that the map contradicts halts": (
        fenced(TWO, begin=3),
        [said(2, 7)],
        ("contradiction", "peer-2"),
    ),
    "e′ cannot begin below e": (
        fenced(TWO, NEXT, begin=3),
        [said(4, None, prepared=(2, 8))],
        ("contradiction", "peer-4"),
    ),
    "a missing acknowledged record halts": (
        fenced(ALL),
        [
            Answer(replica=replica(1), promised=FENCE, open=has(0, 9, commit=8)),
            said(2, 7),
            said(3, 4),
        ],
        ("contradiction", "peer-1"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_case(case):
    shard, answers, expected = CASES[case]
    assert outcome(decide(shard, answers)) == expected
    assert outcome(decide(shard, reversed(answers))) == expected


def test_every_answer_that_has_it_whole_is_a_holder():
    decision = decide(fenced(THREE), [said(1, 9), said(2, 7), said(3, 4)])
    assert isinstance(decision, Recovered)
    assert decision.ended.holders == (replica(1), replica(2))
    assert decision.sources == {replica(1), replica(2)}
    assert decision.begin == 7


def test_the_known_commit_is_the_highest_that_was_heard():
    answers = [
        Answer(replica=replica(1), promised=FENCE, open=has(0, 9, commit=5)),
        Answer(replica=replica(2), promised=FENCE, open=has(0, 7, commit=6)),
    ]
    decision = decide(fenced(THREE), answers)
    assert isinstance(decision, Recovered)
    assert (decision.ended.known_commit, decision.ended.end) == (6, 9)


def test_the_last_answer_of_a_store_stands():
    older = said(2, 3, promised=Epoch(7))
    assert outcome(decide(fenced(TWO), [older, said(2, 7)])) == ("open", 7)


def test_the_voters_of_both_segments_are_asked():
    assert voters_to_ask(fenced(TWO, NEXT)) == tuple(map(replica, (1, 2, 3, 4)))


def test_waiting_names_who_is_lacking():
    decision = decide(fenced(TWO, NEXT), [said(2, 7)])
    assert decision == Wait(lacking=tuple(map(replica, (1, 3, 4))), need=1)


# ---------------------------------------------------------------------------------- oracle
def oracle(shard: Shard, answers: list[Answer]) -> object:
    """The same decision by counting, offset by offset, what a silent store could still mean."""
    counted = {answer.replica: answer for answer in answers if answer.promised == FENCE}

    def first_safe(plan: Plan, ends: dict, begin: int) -> int | None:
        """The lowest X such that nothing at or beyond X can have been acknowledged."""
        for offset in range(begin, 40):
            having = sum(voter not in counted or ends[voter] > offset for voter in plan.voters)
            if having < plan.acks:
                return offset
        return None

    adopted = [each.prepared.begin for each in counted.values() if each.prepared.adopted]
    if shard.prepared is not None and adopted:
        ends = {
            each: answer.prepared.end if answer.prepared.adopted else adopted[0]
            for each, answer in counted.items()
        }
        end = first_safe(shard.prepared.plan, ends, adopted[0])
        return "wait" if end is None else ("prepared", adopted[0], end)
    if shard.prepared is not None:
        silent = sum(voter not in counted for voter in shard.prepared.plan.voters)
        if silent >= shard.prepared.plan.acks:
            return "wait"
    ends = {each: answer.open.end for each, answer in counted.items()}
    end = first_safe(shard.open.plan, ends, 0)
    return "wait" if end is None else ("open", end)


@st.composite
def plans(draw: st.DrawFn, first: int = 1) -> Plan:
    voters = draw(st.lists(st.integers(first, first + 4), min_size=1, max_size=4, unique=True))
    non = draw(st.lists(st.integers(first, first + 4), max_size=1))
    return plan_of(
        voters[0],
        *voters,
        non=tuple(each for each in non if each not in voters),
        acks=draw(st.integers(1, len(voters))),
    )


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Shard, list[Answer], int, int | None]:
    """A shard, the answers that came, and the truth: what was acknowledged in e and in e′.

    P stops, if it does, at its commit offset, and only then do replicas adopt e′. An offset counts
    as acknowledged as soon as `acks` voters have it, the silent ones included: the worst case.
    """
    plan = draw(plans())
    prepared = draw(st.none() | plans(first=3))
    shard = fenced(plan, prepared)
    ends = {each: draw(st.integers(0, 9)) for each in plan.replicas}
    acked = sorted((ends[each] for each in plan.voters), reverse=True)[plan.acks - 1]
    began = prepared is not None and draw(st.booleans())
    next_ends: dict = {}
    next_acked = None
    if prepared is not None and began:
        adopters = draw(st.sets(st.sampled_from(prepared.replicas)))
        next_ends = {each: draw(st.integers(acked, acked + 5)) for each in sorted(adopters)}
        of_voters = [next_ends.get(each, acked) for each in prepared.voters]
        next_acked = sorted(of_voters, reverse=True)[prepared.acks - 1]
    everyone = sorted({*plan.replicas, *(prepared.replicas if prepared else ())})
    answered = draw(st.sets(st.sampled_from(everyone)))
    answers = [
        Answer(
            replica=each,
            promised=FENCE,
            open=has(0, ends[each], min(ends[each], acked)) if each in ends else NOT_ADOPTED,
            prepared=has(acked, next_ends[each]) if each in next_ends else NOT_ADOPTED,
        )
        for each in sorted(answered)
    ]
    return shard, answers, acked, next_acked


@given(worlds())
def test_the_decision_is_the_one_that_counting_gives(world):
    shard, answers, _, _ = world
    asked = set(voters_to_ask(shard))
    expected = oracle(shard, [answer for answer in answers if answer.replica in asked])
    found = outcome(decide(shard, answers))
    assert (found[0] if found[0] == "wait" else found) == expected


@given(worlds())
def test_nothing_acknowledged_is_cut_off(world):
    """G1: an acknowledged batch is inside the log that the map defines."""
    shard, answers, acked, next_acked = world
    decision = decide(shard, answers)
    if not isinstance(decision, Recovered):
        assert isinstance(decision, Wait)
        return
    assert decision.ended.end >= acked
    if decision.ended_prepared is not None:
        assert decision.ended.end == acked
        assert decision.ended_prepared.end >= (next_acked or 0)
    elif next_acked is not None:
        assert next_acked == acked, "e′ is declared dead, so it acknowledged nothing"


@given(worlds(), st.randoms(use_true_random=False))
def test_more_answers_never_revoke_a_decision_about_the_prepared_segment(world, random):
    shard, answers, _, _ = world
    some = [answer for answer in answers if random.random() < 0.7]
    first, second = decide(shard, some), decide(shard, answers)
    if isinstance(first, Recovered):
        assert isinstance(second, Recovered)
        if first.ended_prepared is not None:
            assert second.ended_prepared is not None


# ---------------------------------------------------------------------------------- mutants
MUTANTS = {
    "fence-quorum": [("- plan.acks + 1 - answered", "- plan.acks - answered")],
    "split-prepared-not-asked": [("if shard.is_split:", "if shard.split is not None:")],
    "x-min": [("end = ends[plan.acks - silent - 1]", "end = ends[-1]")],
    "x-ignores-silent": [
        ("end = ends[plan.acks - silent - 1]", "end = ends[min(plan.acks, len(ends)) - 1]")
    ],
    "end-without-epoch": [("answer.end if answer.adopted else begin", "answer.end")],
    "adoption-ignored": [("if shard.prepared is not None and begins:", "if False:")],
    "prepared-not-fenced": [
        ("need = max(need, _lacking_answers(shard.prepared.plan, counted))", "pass")
    ],
    "old-answers-counted": [("if answer.promised == shard.fence:", "if True:")],
    "non-voters-counted": [
        ("sum(voter in counted for voter in plan.voters)", "len(set(counted) & set(plan.replicas))")
    ],
    "lost-store-same-id": [
        ("answer.replica not in asked or", ""),
        (
            "counted[answer.replica] = answer",
            "counted[next(v for v in asked if v.peer == answer.replica.peer)] = answer",
        ),
    ],
}


def mutated(cuts: list[tuple[str, str]]) -> types.ModuleType:
    source = inspect.getsource(recovery)
    for old, new in cuts:
        assert source.count(old) == 1, f"the mutant has lost its place: {old}"
        source = source.replace(old, new)
    module = types.ModuleType("mutated_recovery")
    # Dataclasses look their module up by name; the real one stands in for it.
    module.__dict__.update({"__name__": recovery.__name__})
    exec(compile(source, "mutant", "exec"), module.__dict__)
    return module


def outcome_of_mutant(mutant: types.ModuleType, shard: Shard, answers: list[Answer]) -> object:
    try:
        decision = mutant.decide(shard, answers)
    except (IndexError, ValueError, StopIteration) as error:
        return type(error).__name__
    if type(decision).__name__ == "Wait":
        return ("wait", decision.need)
    if type(decision).__name__ == "Contradiction":
        return ("contradiction", decision.replica.peer)
    if decision.ended_prepared is None:
        return ("open", decision.ended.end)
    return ("prepared", decision.ended.end, decision.ended_prepared.end)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name):
    mutant = mutated(MUTANTS[name])
    caught = [
        case
        for case, (shard, answers, expected) in CASES.items()
        if outcome_of_mutant(mutant, shard, answers) != expected
    ]
    assert caught
