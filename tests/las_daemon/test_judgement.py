"""When a node is at risk, and when the model is not believed."""

from las.daemon.config import Policy
from las.daemon.judgement import Judge, Outlook, Verdict

SICK, CALM, BETWEEN = 0.9, 0.01, 0.6


def outlooks(**probabilities: float | None) -> dict[str, Outlook]:
    """One a node; None = not known, whatever stands for it."""
    return {
        node: Outlook(
            probability=SICK if probability is None else probability, known=probability is not None
        )
        for node, probability in probabilities.items()
    }


def judge(**policy: object) -> Judge:
    return Judge(Policy(**policy))


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
    judging = judge(off_after_s=0)
    for at in range(3):
        assert judging.judge(outlooks(a=None, b=CALM, c=CALM), (), at) == Verdict()
    unknown = {"a": Outlook(probability=CALM, known=False)}
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
    judging = judge(consecutive=1, at_risk_share_max=1.0)
    assert judging.judge(outlooks(a=SICK, b=CALM), (), 0).begin == ("a",)
    verdict = judging.judge(outlooks(a=SICK, b=SICK, c=CALM), ("c",), 1)
    assert verdict == Verdict(crying=("a", "b"))
    assert judging.judge(outlooks(a=SICK), (), 2).begin == ("a",)


def test_after_the_breaker_evidence_begins_anew():
    judging = judge(consecutive=2, at_risk_share_max=1.0)
    judging.judge(outlooks(a=SICK, b=SICK, c=CALM), (), 0)
    assert judging.judge(outlooks(a=SICK, b=CALM, c=CALM), (), 1) == Verdict()
    assert judging.judge(outlooks(a=SICK, b=CALM, c=CALM), (), 2).begin == ("a",)
