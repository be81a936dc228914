"""Signs of trouble that need no model."""

import math
from dataclasses import replace

import pytest

from las.core.signs import (
    GROWING_CONSECUTIVE,
    LOAD_SIGNS,
    Rule,
    SignRules,
    Signs,
    compared_signs,
    held_signs,
)

RULES = SignRules()
STALLED = Signs(stall_factor=40.0, stalled_ms=700.0)
DISTANT = Signs(distance_factor=30.0, round_trip_ms=900.0)
LOSSY = Signs(loss_factor=16.0, timeouts_per_s=5.0)
EXHAUSTED = Signs(exhausting="memory", exhausted_in_s=30.0, used_share=0.8)


def held(signs: Signs, rules: SignRules = RULES) -> list[Rule]:
    return [each.rule for each in held_signs(signs, rules)]


def test_nothing_seen_is_no_sign():
    assert held(Signs()) == []
    assert list(compared_signs(Signs(), RULES)) == []


@pytest.mark.parametrize(
    ("signs", "rule", "words"),
    [
        (Signs(slowdown=25.0, latency_ms=300.0), Rule.SLOW, "its storage takes 25 × its own past"),
        (STALLED, Rule.STALLED, "its process stands still for 700 ms, 40 ×"),
        (DISTANT, Rule.DISTANT, "its round trips take 900 ms, 30 × its own past against 5 ×"),
        (LOSSY, Rule.LOSSY, "retransmission timers 5 times a second against 3"),
        (EXHAUSTED, Rule.EXHAUSTED, "its memory is 80% used and runs out in 30 s at this pace"),
    ],
)
def test_each_sign_holds_by_itself_and_says_why(signs, rule, words):
    (found,) = held_signs(signs, RULES)
    assert found.rule is rule
    assert found.value >= found.line
    assert words in found.words
    assert list(compared_signs(signs, RULES))


@pytest.mark.parametrize(
    "signs",
    [
        Signs(stall_factor=40.0, stalled_ms=199.0),
        Signs(stall_factor=19.0, stalled_ms=900.0),
        Signs(distance_factor=4.9, round_trip_ms=900.0),
        Signs(distance_factor=30.0, round_trip_ms=199.0),
        Signs(loss_factor=4.9, timeouts_per_s=5.0),
        Signs(loss_factor=16.0, timeouts_per_s=2.9),
        Signs(exhausting="memory", exhausted_in_s=61.0, used_share=0.9),
        Signs(exhausting="memory", exhausted_in_s=10.0, used_share=0.69),
        Signs(exhausting="memory", exhausted_in_s=math.inf, used_share=0.99),
    ],
)
def test_below_one_of_its_two_lines_it_does_not_hold(signs):
    assert held(signs) == []


def test_what_has_run_out_holds_unless_it_is_turned_off():
    gone = Signs(exhausting="disk", exhausted_in_s=0.0, used_share=1.0)
    assert held(gone) == [Rule.EXHAUSTED]
    assert held(gone, SignRules(exhaustion_s=0)) == []
    assert list(compared_signs(gone, SignRules(exhaustion_s=0))) == []


def test_a_link_is_far_or_lossy_by_load_too_only_where_it_is_far():
    assert Rule.DISTANT in LOAD_SIGNS
    assert Rule.LOSSY not in LOAD_SIGNS


GROWING = replace(DISTANT, round_trip_ms=100.0, growth_ms=50.0)


def test_round_trips_that_grow_are_distant_sooner():
    (found,) = held_signs(GROWING, RULES)
    assert (found.rule, found.consecutive) == (Rule.DISTANT, GROWING_CONSECUTIVE)
    assert "take 100 ms and grow, 30 ×" in found.words
    (found,) = held_signs(replace(GROWING, round_trip_ms=200.0, growth_ms=99.0), RULES)
    assert found.consecutive == RULES.link_consecutive, "it is far, and grows too little"
    assert held(replace(GROWING, growth_ms=49.0)) == []
    assert held(replace(GROWING, round_trip_ms=99.0)) == []
    assert held(replace(GROWING, distance_factor=4.9)) == []
    (found,) = held_signs(GROWING, SignRules(link_consecutive=2))
    assert found.consecutive == 2


def test_several_hold_at_once():
    both = Signs(slowdown=25.0, latency_ms=300.0, stall_factor=40.0, stalled_ms=700.0)
    assert held(both) == [Rule.SLOW, Rule.STALLED]
