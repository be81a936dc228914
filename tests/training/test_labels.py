"""What is known of a node after a moment, and what is not."""

import pytest

from las.core.history import Cause, Outage
from las.training.command import _drained, _protected
from las.training.labels import Care, Fates
from las.v1 import fleet_pb2, forecast_pb2


def outage(begin_s, cause=Cause.CRASH, node="a", end_s=None):
    return Outage(node, "", "", begin_s, end_s, cause)


FATES = Fates(
    until_s=10_000,
    outages=(
        outage(5_000, end_s=5_100),
        outage(2_000, Cause.OPERATOR, end_s=2_100),
        outage(9_000, node="b"),
    ),
    cares=(Care(node="a", begin_s=7_000, end_s=7_500),),
)


@pytest.mark.parametrize(
    ("node", "moment_s", "label"),
    [
        ("a", 4_399, 0),
        ("a", 4_400, 1),
        ("a", 4_999, 1),
        ("a", 5_000, 0),
        ("a", 1_399, 0),
        ("a", 1_400, None),  # stopped by an operator within the horizon
        ("a", 2_100, None),
        ("a", 2_101, 0),
        ("a", 6_400, None),  # drained within it, and did not fail
        ("a", 7_500, None),
        ("a", 7_501, 0),
        ("a", 9_401, None),  # nobody knows yet
        ("b", 8_500, 1),
        ("never seen", 5_000, 0),
    ],
)
def test_labels(node, moment_s, label):
    assert FATES.label(node, moment_s, 600) == label


def test_a_drained_node_that_failed_did_fail():
    fates = Fates(
        until_s=10_000,
        outages=(outage(5_000),),
        cares=(Care(node="a", begin_s=4_000, end_s=6_000),),
    )
    assert fates.label("a", 4_500, 600) == 1
    assert fates.label("a", 4_300, 600) is None


def test_drains_and_protections_are_read_from_what_the_las_keeps():
    records = [
        fleet_pb2.AuditRecord(what=what, node=node, ok=ok, timestamp_ms=at_s * 1000)
        for what, node, ok, at_s in (
            ("node drain", "a", True, 10),
            ("node drain", "a", True, 12),
            ("node drain", "b", False, 13),
            ("node undrain", "a", True, 20),
            ("node undrain", "a", True, 21),
            ("node drain", "c", True, 30),
        )
    ]
    assert list(_drained(records, 99)) == [
        Care(node="a", begin_s=10, end_s=20),
        Care(node="c", begin_s=30, end_s=99),
    ]
    cases = [
        forecast_pb2.LedgerCase(node="a", response="protect", opened_ms=1_000, closed_ms=9_000),
        forecast_pb2.LedgerCase(node="b", response="held_out", opened_ms=1_000, closed_ms=9_000),
        forecast_pb2.LedgerCase(node="c", response="protect", opened_ms=2_000),
    ]
    assert list(_protected(cases, 99)) == [
        Care(node="a", begin_s=1, end_s=9),
        Care(node="c", begin_s=2, end_s=99),
    ]
