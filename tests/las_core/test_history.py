"""Outages: what is kept of a time that a node was down, and what is refused."""

import pytest

from las.core import history
from las.core.commands import RecordOutages, SetDraining, SetNodeState, command_to_json
from las.core.history import OUTAGE_NAME_CHARS_MAX, Cause, FailureHistory, Outage, Taken
from las.core.state import NodeState
from tests.las_core.builders import do, done, name, process, register, with_log


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
        ({"end_s": 1 << 50}, "after the year 9999"),
        ({"in_service_s": 1_001}, "came into service at 1001 s, after"),
        ({"end_s": 999}, "ends at 999 s, before it begins at 1000 s"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, object], says: str):
    with pytest.raises(ValueError, match=says):
        an_outage(**changes)


# ---------------------------------------------------------------------------------- keeping
def test_a_row_counts_once_and_the_last_word_on_it_stands():
    rows = [an_outage(), an_outage(begin_s=5, end_s=None), an_outage(node="p2")]
    kept, taken = FailureHistory().with_outages(rows)
    assert taken == Taken(added=3)
    assert [(each.begin_s, each.node) for each in kept.outages] == [
        (5, "p1"),
        (1_000, "p1"),
        (1_000, "p2"),
    ]
    again, taken = kept.with_outages(reversed(rows))
    assert again is kept
    assert taken == Taken()
    other, taken = kept.with_outages([an_outage(cause=Cause.POWER)])
    assert taken == Taken(changed=1)
    assert len(other) == 3


def test_the_oldest_make_room_and_are_counted(monkeypatch):
    monkeypatch.setattr(history, "OUTAGES_MAX", 3)
    kept, taken = FailureHistory().with_outages(an_outage(begin_s=at) for at in range(10, 15))
    assert [each.begin_s for each in kept.outages] == [12, 13, 14]
    assert (kept.dropped, taken) == (2, Taken(added=5))
    same, taken = kept.with_outages([an_outage(begin_s=1)])
    assert same is kept
    assert taken == Taken(too_old=1)


def test_only_the_newest_outage_that_goes_on_ends():
    kept, _ = FailureHistory().with_outages(
        [an_outage(begin_s=5, end_s=None), an_outage(begin_s=9, end_s=None), an_outage()]
    )
    ended = kept.ended("p1", 20)
    assert [each.end_s for each in ended.outages] == [None, 20, 1_060]
    assert kept.ended("p9", 20) is kept
    assert kept.ended("p1", 7).outages[1].end_s == 9, "the clock stood before its begin"


# ---------------------------------------------------------------------------------- by commands
def down(
    number: int, at_s: int, cause: Cause = Cause.CRASH, boot: int = 1, **state
) -> SetNodeState:
    return SetNodeState(
        node=name(number),
        boot=process(number, boot).boot,
        at_s=at_s,
        cause=cause,
        **{"state": NodeState.DOWN} | state,
    )


def test_what_the_las_commits_of_a_node_writes_its_outages():
    state = done(with_log(), down(1, 100), register(1, boot=2, at_s=160))
    (outage,) = state.history.outages
    assert (outage.node, outage.host, outage.begin_s) == ("peer-1", "host-1", 100)
    assert (outage.end_s, outage.cause) == (160, Cause.CRASH)
    state = done(state, down(1, 200, Cause.MEMORY, boot=2))
    assert state.history.still_down("peer-1").cause is Cause.MEMORY
    # The same verdict again, or a failing storage of what is down, begins no second one.
    state = done(
        state,
        down(1, 201, Cause.CRASH, boot=2),
        down(1, 202, Cause.DISK, boot=2, state=NodeState.FAILED),
    )
    assert len(state.history) == 2
    assert state.history.still_down("peer-1").cause is Cause.DISK
    assert state.history.still_down("peer-1").begin_s == 200


def test_a_process_that_is_heard_again_did_not_crash():
    up = down(1, 130, Cause.NETWORK, state=NodeState.UP)
    state = done(with_log(), down(1, 100, Cause.CRASH), up)
    (outage,) = state.history.outages
    assert (outage.end_s, outage.cause) == (130, Cause.NETWORK)
    state = done(with_log(), down(1, 100, Cause.MEMORY), up)
    assert state.history.outages[0].cause is Cause.MEMORY, "what was seen stands"


def test_a_process_replaced_before_it_was_missed_was_down_for_no_known_time():
    state = done(with_log(), register(1, boot=2, at_s=100, ended_by=Cause.CRASH))
    (outage,) = state.history.outages
    assert (outage.begin_s, outage.end_s, outage.cause) == (100, 100, Cause.CRASH)
    assert len(done(state, register(1, boot=2, at_s=101)).history) == 1, "the same process"


def test_a_drained_node_goes_by_wish():
    drained = done(with_log(), SetDraining(node=name(1), draining=True))
    assert not done(drained, down(1, 100)).history.outages[0].is_failure
    replaced = done(drained, register(1, boot=2, at_s=100, ended_by=Cause.CRASH))
    assert not replaced.history.outages[0].is_failure


def test_how_long_there_has_been_a_node_is_known_from_its_first_registration():
    state = done(
        with_log(), register(7, at_s=50), register(7, boot=2, at_s=90), down(7, 100, boot=2)
    )
    assert [each.age_s for each in state.history.outages] == [40, 50]


def test_without_a_time_nothing_is_written():
    state = done(with_log(), down(1, 0), register(1, boot=2), register(2, boot=2))
    assert not len(state.history)


def test_imported_rows_are_kept_and_change_no_map():
    state = with_log()
    after, result = do(state, RecordOutages(outages=(an_outage(), an_outage(node="p2"))))
    assert result.taken == Taken(added=2)
    assert after.version == state.version
    again, result = do(after, RecordOutages(outages=(an_outage(),)))
    assert again == after
    assert result.taken == Taken()


def test_a_command_with_a_row_that_cannot_be_is_malformed():
    from las.core.cluster import Cluster

    text = command_to_json(RecordOutages(outages=(an_outage(),)))
    answer = Cluster("cluster-1").apply(text.replace('"end_s":1060', '"end_s":999'))
    assert '"malformed"' in answer
    assert "before it begins" in answer
