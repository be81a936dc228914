"""The ledger's commands, what counts as drift, and what the experiment tells."""

import math
import random

import pytest

from las.core.casebook import costs_only_a_pause, open_case_of, open_cases
from las.core.codec import CodecError
from las.core.commands import (
    CloseCase,
    OpenCase,
    SetAtRisk,
    SetNodeState,
    command_from_json,
    command_to_json,
)
from las.core.index import indexed
from las.core.ledger import (
    CASES_MAX,
    DRIFT_CASES_MIN,
    Case,
    Outcome,
    Response,
    difference,
    drift,
    effect,
    is_held_out,
    share,
)
from las.core.snapshot import restore, snapshot
from las.core.state import NodeState
from tests.las_core.builders import do, done, fleet, name, process, with_log


def alarm(number=1, response=Response.PROTECT, **changes):
    facts = {"rule": "threshold", "probability": 0.9, "horizon_s": 600, "model_id": "m"}
    facts |= {"opened_ms": 5, "node": name(number), "response": response, "voting": 3}
    return OpenCase(case=Case(**(facts | changes)))


# ---------------------------------------------------------------------------------- commands
def test_a_case_is_opened_once_and_closed_once():
    state = done(fleet(2), alarm(), alarm(), alarm(2))
    assert sorted(state.cases) == [1, 2]
    assert open_cases(state).keys() == {name(1), name(2)}
    closed = done(state, CloseCase(number=1, outcome=Outcome.HIT, closed_ms=9, lead_ms=4))
    assert (closed.cases[1].outcome, closed.cases[1].lead_ms) == (Outcome.HIT, 4)
    assert open_case_of(closed, name(1)) is None
    again, result = do(closed, CloseCase(number=1, outcome=Outcome.MISS, closed_ms=10))
    assert result.ok
    assert again is closed
    assert sorted(done(closed, alarm()).cases) == [1, 2, 3]


def test_what_is_done_about_an_alarm_may_change_and_its_moment_stays():
    state = done(fleet(1), alarm(response=Response.HELD_BACK), alarm(opened_ms=99))
    assert state.cases[1].response is Response.PROTECT
    assert state.cases[1].opened_ms == 5


def test_refusals():
    state = done(fleet(1), alarm())
    assert not do(state, alarm(9))[1].ok
    assert not do(state, CloseCase(number=1, outcome=Outcome.OPEN, closed_ms=1))[1].ok
    assert do(state, CloseCase(number=7, outcome=Outcome.HIT, closed_ms=1))[1].ok


def test_the_newest_cases_are_kept_and_the_map_stays():
    state = fleet(1)
    version = state.version
    for _ in range(CASES_MAX + 2):
        number = state.next_case
        state = done(state, alarm(), CloseCase(number=number, outcome=Outcome.HIT, closed_ms=9))
    assert (min(state.cases), max(state.cases)) == (3, CASES_MAX + 2)
    assert state.version == version


def test_a_probability_that_is_no_number_is_no_command():
    text = command_to_json(alarm())
    for spoilt in ("NaN", "true", '"0.9"', "null"):
        with pytest.raises(CodecError):
            command_from_json(text.replace("0.9", spoilt))
    assert command_from_json(text.replace("0.9", "1")) == alarm(probability=1.0)


def test_a_snapshot_keeps_the_ledger():
    state = done(fleet(1), alarm(), CloseCase(number=1, outcome=Outcome.MISS, closed_ms=9), alarm())
    assert restore(snapshot(state)) == state
    assert restore(snapshot(state)).next_case == 3


# ---------------------------------------------------------------------------------- who may wait
def test_only_a_node_whose_failure_leaves_two_healthy_copies_may_be_left_alone():
    state = with_log(nodes=5, copies=3, acks=2)
    assert costs_only_a_pause(state, indexed(state), name(1))
    worse = done(state, SetAtRisk(node=name(2), at_risk=True))
    assert not costs_only_a_pause(worse, indexed(worse), name(1))
    assert costs_only_a_pause(worse, indexed(worse), name(5))
    down = done(
        state, SetNodeState(node=name(3), boot=process(3).boot, state=NodeState.DOWN, why="")
    )
    assert not costs_only_a_pause(down, indexed(down), name(1))


def test_two_copies_never_take_part_in_the_experiment():
    state = with_log(nodes=4, rows=((0, 1),), copies=2, acks=1)
    assert not costs_only_a_pause(state, indexed(state), name(1))


def test_the_draw():
    assert is_held_out(0.049, 0.05, eligible=True)
    assert not is_held_out(0.05, 0.05, eligible=True)
    assert not is_held_out(0.0, 0.05, eligible=False)
    assert not is_held_out(0.0, 0.0, eligible=True)


# ---------------------------------------------------------------------------------- labels, drift
@pytest.mark.parametrize(
    ("response", "outcome", "label"),
    [
        (Response.PROTECT, Outcome.HIT, True),
        (Response.PROTECT, Outcome.FALSE_ALARM, None),
        (Response.HELD_OUT, Outcome.FALSE_ALARM, False),
        (Response.HELD_OUT, Outcome.MISS, True),
        (Response.NONE, Outcome.MISS, True),
        (Response.PROTECT, Outcome.UNKNOWN, None),
        (Response.PROTECT, Outcome.OPEN, None),
    ],
)
def test_what_training_may_learn(response, outcome, label):
    case = Case(node=name(1), opened_ms=0, response=response, outcome=outcome)
    assert case.label is label


def ended(count, true, probability=0.9, model_id="m"):
    return [
        Case(
            number=number,
            node=name(1),
            opened_ms=0,
            response=Response.PROTECT,
            rule="threshold",
            probability=probability,
            horizon_s=600,
            model_id=model_id,
            outcome=Outcome.HIT if number < true else Outcome.FALSE_ALARM,
        )
        for number in range(count)
    ]


def test_drift_is_told_from_chance():
    assert drift(ended(DRIFT_CASES_MIN - 1, 0), "m") == ""
    assert drift(ended(40, 33), "m") == ""
    assert drift(ended(40, 10), "m") == "of its last 40 alarms 10 came true, 36 should have"
    assert drift(ended(40, 2), "another model") == ""
    assert drift(ended(40, 4, probability=0.1), "m") == ""


# ---------------------------------------------------------------------------------- the effect
def simulated(seed, alarms=1_500, holdout=0.05, precision=0.6, pause_s=8.0, left_s=0.2):
    """The ledger of a fleet in which protection saves precision × (pause − left) an alarm."""
    chance = random.Random(seed)
    cases = []
    for number in range(alarms):
        left_alone = is_held_out(chance.random(), holdout, eligible=True)
        fails = chance.random() < precision
        cost_s = chance.expovariate(1 / (pause_s if left_alone else left_s))
        outcome = Outcome.FALSE_ALARM
        if fails:
            outcome = Outcome.MISS if left_alone else Outcome.HIT
        cases.append(
            Case(
                number=number,
                node=name(1),
                opened_ms=0,
                response=Response.HELD_OUT if left_alone else Response.PROTECT,
                eligible=True,
                outcome=outcome,
                pause_ms=round(cost_s * 1_000) if fails else -1,
            )
        )
    return cases


def test_the_interval_covers_a_planted_effect_in_ninety_of_a_hundred_fleets():
    planted, precision = 0.6 * (8.0 - 0.2), 0.6
    found = [effect(simulated(seed)) for seed in range(100)]
    assert sum(each.saved_s.low <= planted <= each.saved_s.high for each in found) >= 90
    assert sum(each.precision.low <= precision <= each.precision.high for each in found) >= 90
    assert abs(sum(each.saved_s.value for each in found) / 100 - planted) < 0.2


def test_without_an_effect_the_interval_covers_zero():
    found = [effect(simulated(seed, pause_s=1.0, left_s=1.0)) for seed in range(100)]
    assert sum(each.saved_s.low <= 0.0 <= each.saved_s.high for each in found) >= 90


def test_too_few_tell_nothing_and_what_is_not_known_is_left_out():
    assert math.isnan(effect([]).saved_s.value)
    assert math.isnan(effect([]).precision.low)
    unknown = Case(
        node=name(1), opened_ms=0, response=Response.HELD_OUT, eligible=True, outcome=Outcome.MISS
    )
    assert effect([unknown]).held_out == 0


def test_intervals_by_hand():
    assert difference([1.0, 1.0], [1.0, 1.0]).high == 0.0
    found = difference([10.0, 12.0, 14.0], [1.0, 2.0, 3.0])
    # Welch: error² 1.667, 2.94 degrees of freedom, t 3.22
    assert found.value == 10.0
    assert found.high - found.value == pytest.approx(4.155, rel=0.02)
    half = share(5, 10)
    assert (half.low, half.high) == (
        pytest.approx(0.2366, abs=1e-3),
        pytest.approx(0.7634, abs=1e-3),
    )
