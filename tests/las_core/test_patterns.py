"""What a history of failures shows."""

from las.core.history import Cause, Outage
from las.core.patterns import DAY_S, HOUR_S, patterns


def down(node: str, begin_s: int, length_s: int | None = 60, **changes: object) -> Outage:
    values = {"host": node.replace("p", "h"), "rack": "r1", "cause": Cause.DISK} | changes
    end_s = None if length_s is None else begin_s + length_s
    return Outage(node=node, begin_s=begin_s, end_s=end_s, **values)  # type: ignore[arg-type]


def test_an_empty_history_shows_nothing():
    found = patterns(())
    assert (found.failures, found.wished, found.by_cause, found.repeats) == (0, 0, (), ())


def test_failures_are_counted_by_what_they_have_in_common():
    found = patterns(
        [
            down("p1", 10, 5, in_service_s=9),
            down("p2", 1_000, cause=Cause.OPERATOR),
            down("p1", 2_000, 7, rack="r2"),
            down("p3", 40 * DAY_S, None, cause=Cause.POWER, in_service_s=0),
        ]
    )
    assert (found.failures, found.wished, found.going_on) == (3, 1, 1)
    assert [(each.name, each.failures, each.length_s_median) for each in found.by_cause] == [
        ("disk", 2, 7),
        ("power", 1, None),
    ]
    assert [(each.name, each.failures) for each in found.by_host] == [("h1", 2), ("h3", 1)]
    assert [(each.name, each.failures) for each in found.by_rack] == [("r1", 2), ("r2", 1)]
    assert [(each.name, each.failures) for each in found.by_age] == [
        ("< 1 d", 1),
        ("< 1 y", 1),
        ("unknown", 1),
    ]
    assert (found.begin_s, found.end_s) == (10, 40 * DAY_S)


def test_a_failure_is_a_repeat_only_where_there_was_time_to_see_one():
    found = patterns([down("p1", 0), down("p1", HOUR_S), down("p2", 2 * HOUR_S)])
    hour, day, *_ = found.repeats
    # Of p1's two, each an hour or more before the end, the first was followed within it.
    assert (hour.window_s, hour.failures, hour.repeated) == (HOUR_S, 2, 1)
    assert (day.failures, day.repeated) == (0, 0)


def test_failures_of_different_hosts_close_to_each_other_are_a_group():
    found = patterns(
        [
            down("p1", 0),
            down("p2", 250),
            down("p3", 500, rack="r2"),
            down("p4", 5_000),
            down("p4", 5_100),
            down("p5", 9_000),
            down("p6", 9_300),
        ]
    )
    assert (found.groups, found.failures_together) == (2, 5)
    newest, oldest = found.together
    assert (newest.begin_s, newest.nodes, newest.rack) == (9_000, ("p5", "p6"), "r1")
    assert (oldest.nodes_total, oldest.rack) == (3, ""), "p4 is one host"
