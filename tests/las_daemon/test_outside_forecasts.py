"""Outside forecasters: what is taken and what not, and that they are judged like the model."""

import math
from types import SimpleNamespace

import pytest

from las.core.judgement import Outlook
from las.core.signs import Signs
from las.daemon.outside_forecasts import (
    FORECASTERS_MAX,
    HORIZON_S_MAX,
    PERIOD_MS_MIN,
    VALID_MS,
    OutsideForecasts,
    joined,
)
from las.v1 import forecast_pb2 as pb
from peerd.core.ids import NodeName
from peerd.pki import Role
from peerd.transport.status import Refused, name_of
from tests.las_core.builders import fleet, name
from tests.las_daemon.stand_in import ADMIN, metadata, refused, until

ACME = metadata(Role.FORECASTER, "acme")
SICK = ((600, 0.9), (3_600, 0.95))


def report(las, node="peer-1", horizons=SICK, caller=ACME, **fields):
    request = pb.ReportForecastRequest(
        node=node,
        horizons=[pb.Horizon(horizon_s=at, probability=p) for at, p in horizons],
        **fields,
    )
    return las.forecast.ReportForecast(request, metadata=caller, timeout=30)


# ---------------------------------------------------------------------------------- over the wire
async def test_an_outside_forecast_puts_a_node_at_risk_and_is_shown_with_its_source(las):
    await las.add_peers(4)
    await report(las, source="lifetime-3", age_ms=1_000)
    await until(lambda: las.state.nodes["peer-1"].at_risk, "at risk")
    answer = await las.forecast.GetForecast(
        pb.GetForecastRequest(node="peer-1"), metadata=ADMIN, timeout=30
    )
    (told,) = answer.forecasts[0].outside
    assert (told.forecaster, told.source) == ("acme", "lifetime-3")
    assert [(each.horizon_s, each.probability) for each in told.horizons] == list(SICK)
    assert 1_000 <= told.age_ms < VALID_MS
    assert {case.model_id for case in las.state.cases.values()} == {"acme (lifetime-3)"}
    await until(lambda: bool(las.state.events.get("peer-1")), "its story")
    assert "acme (lifetime-3) says p(10 min) 0.90, p(1 h) 0.95" in (
        las.state.events["peer-1"][0].text
    )


async def test_who_cries_for_all_is_not_believed(las):
    await las.add_peers(4)
    for peer in las.peers:
        await report(las, node=peer.name)
    seen = las.term.forecaster.latest.number
    await until(lambda: las.term.forecaster.latest.number > seen + 3, "some rounds")
    assert las.term.forecaster.latest.verdict.distrust
    assert not any(node.at_risk for node in las.state.nodes.values())


async def test_only_forecasters_and_admins_report(las):
    await las.add_peers(1)
    for role in (Role.OPERATOR, Role.PEER, Role.READER):
        call = report(las, caller=metadata(role, "x"))
        assert (await refused(call))[0] == "ROLE_NOT_ALLOWED"
    await report(las, caller=ADMIN)
    assert (await refused(report(las, node="nobody")))[0] == "UNKNOWN_NODE"
    assert (await refused(report(las, horizons=((600, 1.5),))))[0] == "INVALID_ARGUMENT"


# ---------------------------------------------------------------------------------- what is taken
STATE = fleet(3)


def take(forecasts, node="peer-1", horizons=SICK, *, who="acme", now_ms=0, age_ms=0, source=""):
    forecasts.take(STATE, who, node, source=source, horizons=horizons, age_ms=age_ms, now_ms=now_ms)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"node": "peer-9"}, "UNKNOWN_NODE"),
        ({"node": ""}, "UNKNOWN_NODE"),
        ({"horizons": ()}, "INVALID_ARGUMENT"),
        ({"horizons": tuple((at, 0.1) for at in range(1, 10))}, "INVALID_ARGUMENT"),
        ({"horizons": ((600, -0.1),)}, "INVALID_ARGUMENT"),
        ({"horizons": ((600, 1.1),)}, "INVALID_ARGUMENT"),
        ({"horizons": ((600, math.nan),)}, "INVALID_ARGUMENT"),
        ({"horizons": ((600, 0.5), (3_600, 0.4))}, "INVALID_ARGUMENT"),
        ({"horizons": ((3_600, 0.4), (600, 0.5))}, "INVALID_ARGUMENT"),
        ({"horizons": ((600, 0.4), (600, 0.5))}, "INVALID_ARGUMENT"),
        ({"horizons": ((0, 0.4),)}, "INVALID_ARGUMENT"),
        ({"horizons": ((HORIZON_S_MAX + 1, 0.4),)}, "INVALID_ARGUMENT"),
        ({"age_ms": VALID_MS}, "INVALID_ARGUMENT"),
        ({"source": "x" * 65}, "INVALID_ARGUMENT"),
        ({"source": "a\nb"}, "INVALID_ARGUMENT"),
    ],
)
def test_what_is_no_forecast_is_refused_and_changes_nothing(how, reason):
    forecasts = OutsideForecasts()
    with pytest.raises(Refused) as failure:
        take(forecasts, **how)
    assert name_of(failure.value.refusal) == reason
    assert failure.value.refusal.message
    assert forecasts == OutsideForecasts()


def test_a_forecast_counts_for_a_minute_from_when_it_was_made():
    forecasts = OutsideForecasts()
    take(forecasts, now_ms=50_000, age_ms=20_000)
    assert forecasts.of(name(1), 30_000 + VALID_MS - 1)
    assert not forecasts.of(name(1), 30_000 + VALID_MS)
    assert not forecasts.of(name(2), 50_000)


def test_the_newest_word_counts_and_words_have_a_pause():
    forecasts = OutsideForecasts()
    take(forecasts, now_ms=10_000)
    with pytest.raises(Refused) as soon:
        take(forecasts, now_ms=10_000 + PERIOD_MS_MIN - 1)
    assert name_of(soon.value.refusal) == "OVERLOADED"
    with pytest.raises(Refused) as older:
        take(forecasts, now_ms=12_000, age_ms=2_001)
    assert name_of(older.value.refusal) == "STATE_CHANGED"
    take(forecasts, now_ms=12_000, horizons=((600, 0.1),))
    (told,) = forecasts.of(name(1), 12_000)
    assert told.horizons == ((600, 0.1),)


def test_so_many_forecasters_and_no_more_until_one_falls_silent():
    forecasts = OutsideForecasts()
    for number in range(FORECASTERS_MAX):
        take(forecasts, who=f"f{number}", now_ms=number)
    with pytest.raises(Refused) as failure:
        take(forecasts, who="one-more", now_ms=100)
    assert name_of(failure.value.refusal) == "LIMIT_REACHED"
    take(forecasts, who="one-more", now_ms=VALID_MS)
    assert len(forecasts.of(name(1), VALID_MS)) == FORECASTERS_MAX


def test_what_the_silent_said_is_not_kept():
    forecasts = OutsideForecasts()
    for number in range(3 * FORECASTERS_MAX):
        take(forecasts, who=f"f{number}", now_ms=number * VALID_MS)
    # As of the beginning, at which everything that is still kept would count.
    assert [each.forecaster for each in forecasts.of(name(1), 0)] == [f"f{number}"]


class Counted(dict):
    """Nodes that count how often they are looked for."""

    looks = 0

    def __contains__(self, key):
        self.looks += 1
        return super().__contains__(key)


def test_a_word_costs_no_look_at_all_the_others():
    """One forecaster of ten thousand nodes says ten thousand words a minute."""
    state = SimpleNamespace(nodes=Counted(fleet(100).nodes))
    forecasts = OutsideForecasts()

    def say(who, node, now_ms):
        forecasts.take(state, who, node, source="", horizons=SICK, age_ms=0, now_ms=now_ms)

    for node in list(state.nodes):
        say("acme", node, 0)
    state.nodes.looks = 0
    for node in list(state.nodes):
        say("other", node, 1_000)
    assert state.nodes.looks == 100
    # Nodes that have gone leave nothing behind.
    gone = [state.nodes.popitem() for _ in range(50)]
    left = next(iter(state.nodes))
    say("other", left, 2_000)
    assert not any(forecasts.of(node, 2_000) for node, _ in gone)
    assert len(forecasts.of(left, 2_000)) == 2


# ---------------------------------------------------------------------------------- the judgement
def test_the_higher_probability_counts_and_none_falls_with_the_horizon():
    forecasts = OutsideForecasts()
    take(forecasts, horizons=((600, 0.2), (86_400, 0.3)))
    told = forecasts.of(name(1), 0)
    known = Outlook(horizons=((600, 0.1), (3_600, 0.5)), calibrated=False)
    assert joined(known, told).horizons == ((600, 0.2), (3_600, 0.5), (86_400, 0.5))
    assert not joined(known, told).calibrated
    unknown = Outlook(
        horizons=((600, 0.7),), known=False, calibrated=False, signs=Signs(slowdown=3.0)
    )
    alone = joined(unknown, told)
    assert (alone.horizons, alone.known, alone.signs.slowdown) == (
        ((600, 0.2), (86_400, 0.3)),
        True,
        3.0,
    )
    assert joined(known, ()) is known
    both = forecasts.joined({name(1): unknown, NodeName("peer-2"): known}, 0)
    assert both == {name(1): alone, NodeName("peer-2"): known}
