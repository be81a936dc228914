"""Outages: what is kept of a time that a node was down, and what is refused."""

import pytest

from las.core.history import OUTAGE_NAME_CHARS_MAX, Cause, Outage


def an_outage(**changes: object) -> Outage:
    values: dict[str, object] = {
        "node": "p1",
        "host": "h1",
        "rack": "r1",
        "begin_s": 1_000,
        "end_s": 1_060,
        "cause": Cause.DISK,
    }
    return Outage(**{**values, **changes})  # type: ignore[arg-type]


def test_only_what_came_unwished_is_a_failure():
    assert an_outage().is_failure
    assert an_outage(cause=Cause.UNKNOWN).is_failure
    assert not an_outage(cause=Cause.OPERATOR).is_failure


def test_an_outage_may_go_on_and_its_place_may_be_unknown():
    outage = an_outage(end_s=None, host="", rack="")
    assert outage.end_s is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"node": ""}, "has no name"),
        ({"rack": "r" * (OUTAGE_NAME_CHARS_MAX + 1)}, "the rack name of an outage has 129"),
        ({"begin_s": -1}, "begins at -1 s"),
        ({"end_s": 999}, "ends at 999 s, before it begins at 1000 s"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, object], says: str):
    with pytest.raises(ValueError, match=says):
        an_outage(**changes)
