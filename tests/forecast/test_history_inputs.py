"""The history head's input: against a plain count, without the future, missing as NaN."""

import math
import random

import numpy as np
import pytest

from las.core.history import Cause, Outage
from las.forecast.history_inputs import (
    CAUSES,
    DAY_S,
    HISTORY_NAMES,
    HistoryIndex,
    Place,
    history_inputs,
)

NAN = math.nan
NOW_S = 2_000 * DAY_S


def plainly(outages, now_s, places, place):
    """The same numbers, node by node and outage by outage, as the meanings read."""
    begun = [each for each in outages if each.begin_s <= now_s]

    def failures_of(nodes):
        return sorted(
            (each for each in begun if each.node in nodes and each.is_failure),
            key=lambda e: (
                e.begin_s,
                CAUSES.index(e.cause),
                math.inf if e.end_s is None else e.end_s,
            ),
        )

    def counted(failures, days):
        return sum(now_s - days * DAY_S < each.begin_s for each in failures)

    def decayed(failures, days):
        return sum(math.exp((each.begin_s - now_s) / (days * DAY_S)) for each in failures)

    own = failures_of({place.node})
    ends = [e.end_s for e in begun if e.node == place.node and e.end_s and e.end_s <= now_s]
    near = [
        other.node
        for other in places
        if other.node != place.node
        and (other.rack == place.rack if place.rack else place.host and other.host == place.host)
        and bool(other.rack) == bool(place.rack)
    ]
    theirs = failures_of(set(near))
    last = own[-1] if own else None
    ended = last is not None and last.end_s is not None and last.end_s <= now_s
    worn = [e for e in own if e.cause in {Cause.HARDWARE, Cause.DISK, Cause.MEMORY}]
    return [
        NAN if place.since_s is None else now_s - place.since_s,
        now_s - last.begin_s if last else NAN,
        now_s - max(ends) if ends else NAN,
        last.begin_s - own[-2].begin_s if len(own) > 1 else NAN,
        last.end_s - last.begin_s if ended else NAN,
        CAUSES.index(last.cause) if last else NAN,
        *(counted(own, days) for days in (1, 7, 30, 90, 365)),
        counted(worn, 90),
        *(decayed(own, days) for days in (7, 30, 180)),
        *(counted(theirs, days) / len(near) if near else NAN for days in (1, 7, 30)),
        decayed(theirs, 180) / len(near) if near else NAN,
    ]


def a_fleet(seed):
    chance = random.Random(seed)
    places = [
        Place(
            f"n{number}",
            host=chance.choice(["", "h1", "h2"]),
            rack=chance.choice(["", "r1", "r2"]),
            since_s=chance.choice([None, NOW_S - 900 * DAY_S]),
        )
        for number in range(12)
    ]
    outages = []
    for _ in range(chance.choice([0, 5, 200])):
        # Some moments twice, some nodes unknown, some outages of the future, some without an end.
        begin_s = NOW_S + chance.choice([-1, -30, -400, 20]) * DAY_S * chance.randrange(8) // 7
        end_s = chance.choice([None, begin_s, begin_s + chance.randrange(3 * DAY_S)])
        node = f"n{chance.randrange(14)}"
        outages.append(Outage(node, "", "", begin_s, end_s, chance.choice(list(Cause))))
    return outages, places


@pytest.mark.parametrize("seed", range(12))
def test_the_input_is_what_a_plain_count_gives(seed):
    outages, places = a_fleet(seed)
    wanted = [plainly(outages, NOW_S, places, place) for place in places]
    told = history_inputs(outages, NOW_S, places)
    assert told.dtype == np.float32
    assert told.shape == (len(places), len(HISTORY_NAMES))
    np.testing.assert_allclose(told, np.array(wanted), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_a_record_tells_nothing_of_the_future(seed):
    outages, places = a_fleet(seed)
    index = HistoryIndex(outages, places)
    for now_s in (NOW_S - 40 * DAY_S, NOW_S):
        so_far = [
            each
            if each.end_s is None or each.end_s <= now_s
            else Outage(each.node, each.host, each.rack, each.begin_s, None, each.cause)
            for each in outages
            if each.begin_s <= now_s
        ]
        chance = random.Random(seed)
        chance.shuffle(so_far)
        np.testing.assert_allclose(
            index.at(now_s), history_inputs(so_far, now_s, places), rtol=1e-6
        )


def test_what_an_operator_wished_is_no_failure_but_a_recovery():
    wished = Outage("n", "", "", NOW_S - 500, NOW_S - 100, Cause.OPERATOR)
    told = dict(zip(HISTORY_NAMES, history_inputs([wished], NOW_S, [Place("n")])[0], strict=True))
    assert told["failures_365d"] == 0.0
    assert math.isnan(told["since_failure_s"])
    assert told["since_recovery_s"] == 100.0


def test_a_node_of_which_nothing_is_known_misses_what_is_not_counted():
    told = dict(zip(HISTORY_NAMES, history_inputs([], NOW_S, [Place("n")])[0], strict=True))
    assert {name for name, value in told.items() if math.isnan(value)} == {
        "watched_s",
        "since_failure_s",
        "since_recovery_s",
        "last_gap_s",
        "last_length_s",
        "last_cause",
        "neighbour_failures_1d",
        "neighbour_failures_7d",
        "neighbour_failures_30d",
        "neighbour_decayed_180d",
    }


def test_an_empty_fleet_has_no_rows():
    assert history_inputs([], NOW_S, []).shape == (0, len(HISTORY_NAMES))
