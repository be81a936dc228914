"""Refusals keep their facts on the way through google.rpc.Status, and every reason has a code."""

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

from peerd.core.errors import Reason, Refusal, Taken
from peerd.core.ids import BootId, Epoch, NodeName, Offset, ProcessId, ShardId, StoreId
from peerd.transport import status
from peerd.v1 import errors_pb2

LEADER = ProcessId(NodeName("peer-2"), StoreId("a" * 32), BootId("b" * 32))


def test_every_reason_of_the_contract_has_a_code():
    names = set(errors_pb2.ErrorReason.keys()) - {"ERROR_REASON_UNSPECIFIED"}
    assert {f"ERROR_REASON_{reason.name}" for reason in status.CODES} == names


def test_a_refusal_of_the_core_travels_with_the_address_of_the_leader():
    refused = Refusal(
        reason=Reason.MOVED,
        message="moved",
        leader=LEADER,
        epoch=Epoch(9),
        children=(ShardId(1), ShardId(2)),
    )
    wire = status.encode_refusal(refused, {"peer-2": "127.0.0.1:7410"}.get)
    assert (wire.leader, wire.epoch, list(wire.children)) == ("127.0.0.1:7410", 9, [1, 2])
    assert wire.taken == errors_pb2.TAKEN_NO
    assert status.encode_refusal(refused, {}.get).leader == ""


@pytest.mark.parametrize("reason", list(Reason))
def test_a_status_gives_the_same_refusal_back(reason):
    wire = status.encode_refusal(
        Refusal(
            reason=reason,
            message="what, where, what to do",
            taken=Taken.UNKNOWN,
            leader=LEADER,
            epoch=Epoch(3),
            retry_after_ms=250,
            first_offset=Offset(0),
            next_sequence=7,
            children=(ShardId(4), ShardId(5)),
        ),
        {"peer-2": "127.0.0.1:7410"}.get,
    )
    made = status.status_of(wire)
    assert made.code == status.CODES[reason].value[0]
    assert status.refusal_of(made) == wire


def test_an_advised_wait_is_a_retry_info_too():
    made = status.status_of(status.refusal(Reason.OVERLOADED, "full", retry_after_ms=1500))
    waits = [error_details_pb2.RetryInfo() for detail in made.details]
    told = [wait for wait, detail in zip(waits, made.details, strict=True) if detail.Unpack(wait)]
    assert [wait.retry_delay.ToMilliseconds() for wait in told] == [1500]


def test_what_is_not_ours_is_no_refusal():
    foreign = status_pb2.Status(code=grpc.StatusCode.ABORTED.value[0], message="busy")
    assert status.refusal_of(foreign) is None
    packed = AnyMessage()
    packed.Pack(error_details_pb2.ErrorInfo(reason="FENCED", domain="elsewhere.example"))
    foreign.details.append(packed)
    assert status.refusal_of(foreign) is None


def test_a_newer_reason_is_left_to_its_grpc_code():
    newer = status_pb2.Status(code=9, message="new")
    packed = AnyMessage()
    packed.Pack(error_details_pb2.ErrorInfo(reason="NOT_INVENTED_YET", domain="peerd"))
    newer.details.append(packed)
    assert status.refusal_of(newer) is None


def test_what_a_caller_sent_stays_one_line_and_short():
    wire = status.refusal(Reason.UNKNOWN_LOG, f"no log {'a' + chr(10) + chr(0) + 'é' * 5_000}")
    assert wire.message.startswith("no log a\\n\\x00é")
    assert len(wire.message) <= status.MESSAGE_CHARACTERS_MAX + 1
