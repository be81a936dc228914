"""The core's reasons are those of the public contract."""

from peerd.core.errors import Reason, Taken
from peerd.v1 import errors_pb2


def test_the_reasons_are_those_of_the_contract():
    contract = {
        name.removeprefix("ERROR_REASON_"): number
        for name, number in errors_pb2.ErrorReason.items()
        if number != 0
    }
    assert {reason.name: reason.value for reason in Reason} == contract


def test_taken_is_that_of_the_contract():
    assert Taken.NO == errors_pb2.TAKEN_NO
    assert Taken.UNKNOWN == errors_pb2.TAKEN_UNKNOWN
