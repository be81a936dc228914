"""When a node is at risk, and when the model is not believed."""

import math
import random

import pytest

from las.core.judgement import Judge, Outlook, Rule, Rules, Stake, Verdict
from las.core.signs import Signs

SICK, CALM, BETWEEN = 0.9, 0.01, 0.6


def outlooks(**probabilities: float | None) -> dict[str, Outlook]:
    """One a node; None = not known, whatever stands for it."""
    return {
        node: Outlook(
            horizons=((600, SICK if probability is None else probability),),
            known=probability is not None,
        )
        for node, probability in probabilities.items()
    }


def judge(**policy: object) -> Judge:
    return Judge(Rules(**policy))


def test_one_forecast_is_not_enough_two_in_a_row_are():
    judging = judge()
    fleet = outlooks(a=SICK, b=CALM, c=CALM)
    assert judging.judge(fleet, (), 0) == Verdict()
    assert judging.judge(fleet, (), 1_000).begin == ("a",)


def test_a_calm_forecast_between_two_begins_the_count_anew():
    judging = judge()
    for at, probability in enumerate((SICK, BETWEEN, SICK)):
        assert judging.judge(outlooks(a=probability, b=CALM, c=CALM), (), at) == Verdict()


def test_a_forecast_that_is_not_known_counts_for_nothing():
    judging = judge(off_after_ms=0)
    for at in range(3):
        assert judging.judge(outlooks(a=None, b=CALM, c=CALM), (), at) == Verdict()
    unknown = {"a": Outlook(horizons=((600, CALM),), known=False)}
    assert judging.judge(unknown, ("a",), 9) == Verdict()


def test_recovery_takes_a_quarter_of_an_hour_below_the_lower_line():
    judging = judge()
    calm, uneasy = outlooks(a=CALM, b=CALM), outlooks(a=0.5, b=CALM)
    assert judging.judge(calm, ("a",), 0).end == ()
    assert judging.judge(uneasy, ("a",), 800_000).end == ()
    assert judging.judge(calm, ("a",), 900_000).end == ()
    assert judging.judge(calm, ("a",), 1_799_000).end == ()
    assert judging.judge(calm, ("a",), 1_800_000).end == ("a",)


def test_what_is_at_risk_already_is_not_begun_again():
    judging = judge()
    fleet = outlooks(a=SICK, b=CALM, c=CALM)
    assert judging.judge(fleet, ("a",), 0) == judging.judge(fleet, ("a",), 1) == Verdict()


def test_the_budget_takes_the_riskiest_first():
    judging = judge(consecutive=1)
    fleet = outlooks(a=0.85, b=0.95, c=CALM, d=CALM, e=CALM)
    verdict = judging.judge(fleet, (), 0)
    assert (verdict.begin, verdict.held_back) == (("b",), ("a",))
    assert judging.judge(fleet, ("b",), 1).held_back == ("a",)


def test_a_node_that_is_gone_does_not_use_up_the_budget():
    judging = judge(consecutive=1)
    assert judging.judge(outlooks(a=SICK, b=CALM, c=CALM), ("gone",), 0).begin == ("a",)


def test_half_of_the_fleet_is_believed_more_than_half_is_not():
    judging = judge(consecutive=1, at_risk_share_max=1.0, breaker_window_ms=0)
    assert judging.judge(outlooks(a=SICK, b=CALM), (), 0).begin == ("a",)
    verdict = judging.judge(outlooks(a=SICK, b=SICK, c=CALM), ("c",), 1)
    assert (verdict.begin, verdict.end, verdict.crying) == ((), (), ("a", "b"))
    assert verdict.distrust == "it says that 2 of 3 nodes fail"
    assert "p(10 min) 0.9" in verdict.why["a"]
    assert judging.judge(outlooks(a=SICK), (), 2).begin == ("a",)


def test_after_the_breaker_evidence_begins_anew():
    judging = judge(consecutive=2, at_risk_share_max=1.0)
    judging.judge(outlooks(a=SICK, b=SICK, c=CALM), (), 0)
    assert judging.judge(outlooks(a=SICK, b=CALM, c=CALM), (), 1) == Verdict()
    assert judging.judge(outlooks(a=SICK, b=CALM, c=CALM), (), 2).begin == ("a",)


# ---------------------------------------------------------------------------------- reasons
def test_a_verdict_says_what_was_compared_with_what():
    judging = judge(consecutive=1)
    verdict = judging.judge(outlooks(a=SICK, b=CALM, c=0.85, d=CALM, e=CALM), (), 0)
    assert verdict.why["a"] == "p(10 min) 0.9 against 0.8"
    assert verdict.why["c"].endswith("1 nodes are at risk already (policy.at_risk_share_max)")
    assert judging.explain("a", ("a",)) == (
        "p(10 min) 0.9 against policy.threshold 0.8",
        "at risk: not below half of its line; ends after 15 min of calm",
    )
    assert judging.explain("b", ())[-1] == "not at risk"
    assert judging.explain("c", ())[-1].startswith("held back: p(10 min) 0.85 against 0.8; but")
    assert "not judged" in judging.explain("nobody", ())[0]


def test_a_recovery_says_why():
    judging = judge(off_after_ms=0)
    assert judging.judge(outlooks(a=CALM, b=CALM), ("a",), 0).why["a"].startswith("below 0.5")


# ---------------------------------------------------------------------------------- cost
def long(probability, **changes):
    return Outlook(horizons=((600, CALM), (604_800, probability)), **changes)


STAKE = Stake(led=4, voting=10, stored_bytes=10 << 30)
"""Pays from (10 × 8 MiB + 10 GiB) / (4 × 64 MiB + 4 × 10 GiB) = 0.2504 on."""


@pytest.mark.parametrize(
    ("probability", "begins"), [(0.2, False), (0.25, False), (0.251, True), (0.6, True)]
)
def test_protection_that_pays_at_a_long_horizon(probability, begins):
    judging = judge(consecutive=1)
    fleet = {"a": long(probability), "b": long(0.001), "c": long(0.001)}
    verdict = judging.judge(fleet, (), 0, stakes={"a": STAKE, "b": STAKE})
    assert verdict.begin == (("a",) if begins else ())
    if begins:
        assert verdict.findings["a"].rule is Rule.COST
        assert "p(7 d)" in verdict.why["a"]
        assert "pays" in verdict.why["a"]


def test_an_uncalibrated_forecast_and_a_node_without_a_stake_never_pay():
    judging = judge(consecutive=1)
    fleet = {"a": long(0.7, calibrated=False), "b": long(0.7), "c": long(0.001)}
    assert judging.judge(fleet, (), 0, stakes={"a": STAKE}).begin == ()


def test_a_few_per_cent_within_minutes_are_left_to_the_threshold():
    judging = judge(consecutive=1)
    fleet = {"a": Outlook(horizons=((600, 0.5), (3_600, 0.7))), "b": long(0.0), "c": long(0.0)}
    assert judging.judge(fleet, (), 0, stakes={"a": STAKE}).begin == ()


def test_what_pays_ends_below_half_of_where_it_began():
    judging = judge(off_after_ms=0)
    stakes = {"a": STAKE}
    assert judging.judge({"a": long(0.13)}, ("a",), 0, stakes=stakes).end == ()
    assert judging.judge({"a": long(0.12)}, ("a",), 1, stakes=stakes).end == ("a",)


# ---------------------------------------------------------------------------------- slow is sick
def test_slow_for_long_is_sick_whatever_the_model_says():
    judging = judge(slow_consecutive=3)
    slow = Outlook(horizons=((600, CALM),), signs=Signs(slowdown=25.0, latency_ms=300.0))
    fleet = {"a": slow, "b": long(0.0), "c": long(0.0)}
    assert [judging.judge(fleet, (), at).begin for at in range(3)] == [(), (), ("a",)]
    assert judging.latest.findings["a"].rule is Rule.SLOW
    assert "25 × its own past" in judging.latest.why["a"]


@pytest.mark.parametrize(("slowdown", "latency_ms"), [(25.0, 100.0), (10.0, 900.0)])
def test_much_slower_but_quick_or_slow_as_ever_is_not_sick(slowdown, latency_ms):
    judging = judge(slow_consecutive=1)
    slow = Outlook(horizons=((600, CALM),), signs=Signs(slowdown=slowdown, latency_ms=latency_ms))
    assert judging.judge({"a": slow, "b": long(0.0)}, (), 0).begin == ()


def test_a_node_that_runs_out_of_something_is_sick_sooner():
    judging = judge(exhaustion_consecutive=2)
    signs = Signs(exhausting="disk", exhausted_in_s=20.0, used_share=0.9)
    fleet = {
        "a": Outlook(horizons=((600, CALM),), signs=signs),
        "b": long(0.0),
        "c": long(0.0),
    }
    assert [judging.judge(fleet, (), at).begin for at in range(2)] == [(), ("a",)]
    assert judging.latest.findings["a"].rule is Rule.EXHAUSTED
    assert "disk is 90% used" in judging.latest.why["a"]
    assert any("disk 90% used" in line for line in judging.explain("a", ()))


def test_signs_are_counted_each_by_itself():
    judging = judge(slow_consecutive=2, exhaustion_consecutive=2)
    calm = {"b": long(0.0), "c": long(0.0)}
    slow = Signs(slowdown=25.0, latency_ms=300.0)
    stalled = Signs(stall_factor=25.0, stalled_ms=300.0)
    for at, signs in enumerate((slow, stalled, slow)):
        fleet = {"a": Outlook(horizons=((600, CALM),), signs=signs), **calm}
        assert judging.judge(fleet, (), at).begin == ()
    assert judging.judge(fleet, (), 3).begin == ("a",)


def test_a_slow_node_does_not_recover():
    judging = judge(off_after_ms=0)
    slow = Outlook(horizons=((600, CALM),), signs=Signs(slowdown=25.0, latency_ms=300.0))
    assert judging.judge({"a": slow, "b": long(0.0)}, ("a",), 0).end == ()


# ---------------------------------------------------------------------------------- budgets
def test_shadows_are_bounded_but_one_node_may_always_be_at_risk():
    judging = judge(consecutive=1, at_risk_share_max=1.0, shadows_max=15)
    fleet = outlooks(a=0.95, b=SICK, c=CALM, d=CALM, e=CALM)
    stakes = {node: Stake(voting=20) for node in fleet}
    verdict = judging.judge(fleet, (), 0, stakes=stakes)
    assert (verdict.begin, verdict.held_back) == (("a",), ("b",))
    assert "policy.shadows_max" in verdict.why["b"]


def test_copying_is_bounded_for_what_is_protected_for_its_cost():
    judging = judge(consecutive=1, at_risk_share_max=1.0, copy_bytes_per_s=1 << 20)
    week_bytes = 604_800 << 20
    stake = Stake(led=1, voting=1, stored_bytes=week_bytes, copy_bytes=week_bytes)
    fleet = {"a": long(0.9), "b": long(0.8), **outlooks(c=SICK, d=CALM, e=CALM, f=CALM)}
    verdict = judging.judge(fleet, (), 0, stakes=dict.fromkeys(fleet, stake))
    assert verdict.begin == ("a", "c")
    assert "policy.copy_bytes_per_s" in verdict.why["b"]


def test_a_much_riskier_node_takes_the_place_of_one_protected_for_its_cost():
    judging = judge(consecutive=1, at_risk_share_max=0.2)
    fleet = {"a": long(0.3), "b": long(0.4), "c": long(0.6)}
    fleet |= dict.fromkeys("defg", long(0.001))
    stakes = dict.fromkeys(fleet, STAKE)
    verdict = judging.judge({**fleet, "c": long(0.001)}, ("a",), 0, stakes=stakes)
    assert (verdict.begin, verdict.end, verdict.held_back) == ((), (), ("b",))
    verdict = judging.judge(fleet, ("a",), 1, stakes=stakes)
    assert (verdict.begin, verdict.end, verdict.held_back) == (("c",), ("a",), ("b",))
    assert verdict.why["a"] == "gives its place to c"


def test_nobody_takes_the_place_of_a_node_above_the_threshold():
    fleet = {**outlooks(a=0.81), "b": long(0.99)}
    fleet |= dict.fromkeys("cdef", long(0.001))
    verdict = judge(consecutive=1, at_risk_share_max=0.2).judge(
        fleet, ("a",), 0, stakes={"b": STAKE}
    )
    assert (verdict.begin, verdict.end, verdict.held_back) == ((), (), ("b",))


def test_the_calm_may_be_left_out_if_they_are_counted():
    judging = judge(consecutive=1, at_risk_share_max=0.5)
    fleet = outlooks(a=SICK, b=SICK)
    assert judging.judge(fleet, (), 0, up=4).begin == ("a", "b")
    assert judge(consecutive=1).judge(fleet, (), 0).distrust


# ---------------------------------------------------------------------------------- the breaker
def test_a_fleet_that_cries_one_after_the_other_is_not_believed():
    judging = judge(consecutive=1, at_risk_share_max=1.0)
    names = "abcde"
    begun = []
    for at, sick in enumerate(names):
        fleet = outlooks(**{name: SICK if name == sick else 0.5 for name in names})
        begun += judging.judge(fleet, begun, at * 60_000).begin
    assert begun == ["a", "b", "c"]
    assert judging.latest.distrust == "it said within 15 min that 3 of 5 nodes fail"
    calm = outlooks(**dict.fromkeys(names, 0.5))
    assert judging.judge(calm, begun, 2_000_000).distrust == ""


def test_drift_that_the_ledger_shows_stops_everything():
    judging = judge(consecutive=1, off_after_ms=0)
    fleet = outlooks(a=SICK, b=CALM, c=CALM)
    verdict = judging.judge(fleet, ("b",), 0, drift="of 40 alarms 2 came true")
    assert (verdict.begin, verdict.end) == ((), ())
    assert verdict.distrust == "of 40 alarms 2 came true"


BROKEN = {
    "always 1": lambda _: 1.0,
    "not a number": lambda _: math.nan,
    "infinite": lambda _: math.inf,
    "negative": lambda _: -1.0,
    "random": lambda chance: chance.random(),
    "random bits": lambda chance: float(chance.random() < 0.5),
}


@pytest.mark.parametrize("nodes", [3, 5, 50, 1_000])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_forecaster_moves_next_to_nothing(kind, nodes):
    """No storm: in an hour, no more nodes than a tenth of the fleet, or one."""
    chance = random.Random(7)
    judging = Judge(Rules())
    at_risk: set[str] = set()
    begun = 0
    alerted = False
    for second in range({3: 3_600, 5: 3_600, 50: 300}.get(nodes, 30)):
        fleet = {
            f"peer-{each}": Outlook(horizons=((600, BROKEN[kind](chance)),))
            for each in range(nodes)
        }
        verdict = judging.judge(fleet, at_risk, second * 1_000)
        alerted |= bool(verdict.distrust)
        begun += len(verdict.begin)
        at_risk = (at_risk | set(verdict.begin)) - set(verdict.end)
    assert begun <= max(1, nodes // 10)
    assert alerted or not begun


# ------------------------------------------------------------------ patience after a take-over
def busy(**left_ms: int) -> dict[str, int]:
    return left_ms


def test_who_has_just_taken_over_many_shards_is_not_judged_by_signs_of_load():
    judging = judge(slow_consecutive=1)
    slow = Outlook(horizons=((600, SICK),), signs=Signs(slowdown=99.0, latency_ms=900.0))
    fleet = {"a": slow, "b": slow, "c": slow}
    for at in range(5):
        # Without patience this is more than half of the fleet: the breaker would open.
        assert judging.judge(fleet, (), at, busy=busy(a=9_000, b=9_000, c=9_000)) == Verdict()
    assert "just taken over many shards" in " ".join(judging.explain("a", ()))
    assert "for 9 s more" in " ".join(judging.explain("a", ()))


def test_of_signs_only_those_of_load_are_spared():
    judging = judge(slow_consecutive=1, exhaustion_consecutive=1)
    calm = {"b": long(0.0), "c": long(0.0)}
    stalled = Signs(stall_factor=99.0, stalled_ms=900.0)
    ends = Signs(exhausting="memory", exhausted_in_s=9.0, used_share=0.95)
    for signs, begun in ((stalled, ()), (ends, ("a",))):
        fleet = {"a": Outlook(horizons=((600, CALM),), signs=signs), **calm}
        assert judging.judge(fleet, (), 0, busy=busy(a=9_000)).begin == begun


def test_after_the_patience_the_count_begins_and_the_node_is_found():
    judging = judge()
    fleet = outlooks(a=SICK, b=CALM, c=CALM)
    for at in range(5):
        judging.judge(fleet, (), at, busy=busy(a=1))
    assert judging.judge(fleet, (), 6) == Verdict()
    assert judging.judge(fleet, (), 7).begin == ("a",)


def test_hard_signs_count_all_the_time_and_so_does_what_pays():
    judging = judge()
    hard = {**outlooks(b=CALM, c=CALM), "a": Outlook(horizons=((600, SICK),), hard=True)}
    judging.judge(hard, (), 0, busy=busy(a=9_000))
    assert judging.judge(hard, (), 1, busy=busy(a=9_000)).begin == ("a",)
    judging = judge()
    weeks = {**outlooks(b=CALM, c=CALM), "a": Outlook(horizons=((600, CALM), (604_800, SICK)))}
    stakes = {"a": Stake(led=1, voting=1, stored_bytes=1 << 30)}
    judging.judge(weeks, (), 0, busy=busy(a=9_000), stakes=stakes)
    assert judging.judge(weeks, (), 1, busy=busy(a=9_000), stakes=stakes).begin == ("a",)


def test_a_forecast_that_jumps_by_a_take_over_is_no_reason_for_distrust():
    judging = judge()
    calm = outlooks(a=CALM, b=CALM, c=CALM, d=CALM, e=CALM)
    loaded = calm | outlooks(a=SICK, b=SICK)
    judging.judge(calm, (), 0)
    assert judging.judge(loaded, (), 1, busy=busy(a=1, b=1)).distrust == ""
    judging.judge(calm, (), 2)
    assert "jumps" in judging.judge(loaded, (), 3).distrust
