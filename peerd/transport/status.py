"""Refusals on their way between the core's values, streams and google.rpc.Status.

One wire form, `peerd.v1.Refusal`, is what everything at the edges works with. On a stream it
travels as it is; a unary call ends with a status whose ErrorInfo carries the same facts. The table
`CODES` is the one place that says which gRPC code goes with a reason; docs/errors.md shows it.

Invariants:
- `refusal_of(status_of(refusal))` gives the same refusal back.
- What cannot be read as a refusal of ours is None, never a guess: the caller decides what an
  unexplained failure means for it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from peerd.core.errors import Reason, Refusal, Taken
from peerd.core.ids import NodeName
from peerd.transport.authz import ERROR_DOMAIN
from peerd.v1 import errors_pb2

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
AddressOf = Callable[[NodeName], str | None]

# limit: characters of a message; it is sent twice in the trailers of a call, which hold 8 KiB
MESSAGE_CHARACTERS_MAX = 1_000

CODES: Mapping[Reason, grpc.StatusCode] = {
    Reason.NOT_PRIMARY: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.FENCED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.MOVED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.SPLIT: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.OFFSET_MISMATCH: grpc.StatusCode.ABORTED,
    Reason.SEQUENCE_GAP: grpc.StatusCode.OUT_OF_RANGE,
    Reason.SEQUENCE_TOO_OLD: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.PRODUCER_STATE_LOST: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.PRODUCER_WINDOW_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.DISK_RESERVE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.NOT_ENOUGH_PEERS: grpc.StatusCode.UNAVAILABLE,
    Reason.BATCH_TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.CRC_MISMATCH: grpc.StatusCode.DATA_LOSS,
    Reason.RECORD_COUNT_MISMATCH: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.MALFORMED_BATCH: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.KEYS_SPAN_SHARDS: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.KEY_OUTSIDE_SHARD: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.UNKNOWN_LOG: grpc.StatusCode.NOT_FOUND,
    Reason.UNKNOWN_SHARD: grpc.StatusCode.NOT_FOUND,
    Reason.LOG_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Reason.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.TRIMMED: grpc.StatusCode.OUT_OF_RANGE,
    Reason.OFFSET_BEYOND_TAIL: grpc.StatusCode.OUT_OF_RANGE,
    Reason.CORRUPT: grpc.StatusCode.DATA_LOSS,
    Reason.RANGE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.OUTCOME_UNKNOWN: grpc.StatusCode.UNAVAILABLE,
    Reason.STORE_FAILED: grpc.StatusCode.UNAVAILABLE,
    Reason.WRONG_CLUSTER: grpc.StatusCode.PERMISSION_DENIED,
    Reason.WRONG_STORE: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.NO_IDENTITY: grpc.StatusCode.UNAUTHENTICATED,
    Reason.ROLE_NOT_ALLOWED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.NOT_LAS_LEADER: grpc.StatusCode.UNAVAILABLE,
    Reason.LAS_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.UNKNOWN_NODE: grpc.StatusCode.NOT_FOUND,
    Reason.STORE_ID_CHANGED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.SHUTTING_DOWN: grpc.StatusCode.UNAVAILABLE,
    Reason.MAP_UNKNOWN: grpc.StatusCode.UNAVAILABLE,
    Reason.STATE_CHANGED: grpc.StatusCode.ABORTED,
    Reason.NOT_SERVED_YET: grpc.StatusCode.UNIMPLEMENTED,
    Reason.LIMIT_REACHED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.INTERNAL: grpc.StatusCode.INTERNAL,
    Reason.LOST: grpc.StatusCode.DATA_LOSS,
    Reason.PROCESS_SUPERSEDED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.LAS_LOST_ITS_PAST: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.UNKNOWN_MODEL: grpc.StatusCode.NOT_FOUND,
    Reason.MODEL_REFUSED: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.NOT_GRANTED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.REVOKED: grpc.StatusCode.PERMISSION_DENIED,
}
"""Reason -> gRPC code."""


class Refused(Exception):
    """A call is refused; `refusal` says why. Raised inside services, translated at their top."""

    def __init__(self, refusal: errors_pb2.Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


# ------------------------------------------------------------------------------ making refusals


def refusal(
    reason: Reason,
    message: str,
    *,
    taken: Taken = Taken.NO,
    leader: str = "",
    epoch: int = 0,
    retry_after_ms: int = 0,
    first_offset: int | None = None,
    next_sequence: int | None = None,
) -> errors_pb2.Refusal:
    """A refusal in its wire form. `leader` is an address host:port; times are milliseconds."""
    return errors_pb2.Refusal(
        reason=errors_pb2.ErrorReason.ValueType(reason),
        message=one_line(message),
        taken=errors_pb2.Taken.ValueType(taken),
        leader=leader,
        epoch=epoch,
        retry_after_ms=retry_after_ms,
        first_offset=first_offset,
        next_sequence=next_sequence,
    )


def one_line(message: str) -> str:
    """The message without what would break a line or hide in one, and not beyond the bound.

    What a caller sent is quoted in messages; it travels on in a header and into logs.
    """
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
    return text if len(text) <= MESSAGE_CHARACTERS_MAX else f"{text[:MESSAGE_CHARACTERS_MAX]}…"


def encode_refusal(core: Refusal, address_of: AddressOf) -> errors_pb2.Refusal:
    """The wire form of a core's refusal; `address_of` turns the leader's name into an address."""
    wire = refusal(
        core.reason,
        core.message,
        taken=core.taken,
        leader=(address_of(core.leader.peer) or "") if core.leader is not None else "",
        epoch=core.epoch,
        retry_after_ms=core.retry_after_ms,
        first_offset=core.first_offset,
        next_sequence=core.next_sequence,
    )
    wire.children.extend(core.children)
    return wire


def reason_of(wire: errors_pb2.Refusal) -> Reason | None:
    """Its reason; None if this version does not know it."""
    try:
        return Reason(wire.reason)
    except ValueError:
        return None


def name_of(wire: errors_pb2.Refusal) -> str:
    """The reason's name as ErrorInfo carries it, also of one that this version does not know."""
    if wire.reason in errors_pb2.ErrorReason.values():
        return errors_pb2.ErrorReason.Name(wire.reason).removeprefix("ERROR_REASON_")
    return f"REASON_{wire.reason}"


# ------------------------------------------------------------------------------ status and back


def status_of(wire: errors_pb2.Refusal) -> status_pb2.Status:
    """The google.rpc.Status of a refusal: ErrorInfo, and RetryInfo where a wait is advised."""
    reason = reason_of(wire)
    code = CODES[reason] if reason is not None else grpc.StatusCode.UNKNOWN
    status = status_pb2.Status(code=code.value[0], message=wire.message)
    metadata = {"taken": "no" if wire.taken == errors_pb2.TAKEN_NO else "unknown"}
    if wire.leader:
        metadata["leader"] = wire.leader
    if wire.epoch:
        metadata["epoch"] = str(wire.epoch)
    if wire.HasField("first_offset"):
        metadata["first_offset"] = str(wire.first_offset)
    if wire.HasField("next_sequence"):
        metadata["next_sequence"] = str(wire.next_sequence)
    if wire.children:
        metadata["children"] = ",".join(str(child) for child in wire.children)
    if wire.retry_after_ms:
        metadata["retry_after_ms"] = str(wire.retry_after_ms)
        delay = Duration()
        delay.FromMilliseconds(wire.retry_after_ms)
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    information = error_details_pb2.ErrorInfo(
        reason=name_of(wire), domain=ERROR_DOMAIN, metadata=metadata
    )
    status.details.add().Pack(information)
    return status


def refusal_of(status: status_pb2.Status) -> errors_pb2.Refusal | None:
    """Inverse of `status_of`; None if the status carries no ErrorInfo of ours."""
    for detail in status.details:
        information = error_details_pb2.ErrorInfo()
        if detail.Unpack(information) and information.domain == ERROR_DOMAIN:
            return _from_information(information, status.message)
    return None


def refusal_of_error(error: grpc.RpcError) -> errors_pb2.Refusal | None:
    """The refusal inside a failed call; None if it failed for a reason that is not ours."""
    try:
        status = rpc_status.from_call(error)
    except ValueError:
        # The details do not belong to the code and message beside them: made by something between.
        return None
    return None if status is None else refusal_of(status)


def _from_information(
    information: error_details_pb2.ErrorInfo, message: str
) -> errors_pb2.Refusal | None:
    metadata = information.metadata
    try:
        wire = errors_pb2.Refusal(
            reason=errors_pb2.ErrorReason.Value(f"ERROR_REASON_{information.reason}"),
            message=message,
            taken=errors_pb2.TAKEN_NO if metadata["taken"] == "no" else errors_pb2.TAKEN_UNKNOWN,
            leader=metadata.get("leader", ""),
            epoch=int(metadata.get("epoch", 0)),
            retry_after_ms=int(metadata.get("retry_after_ms", 0)),
        )
        if "first_offset" in metadata:
            wire.first_offset = int(metadata["first_offset"])
        if "next_sequence" in metadata:
            wire.next_sequence = int(metadata["next_sequence"])
        if "children" in metadata:
            wire.children.extend(int(child) for child in metadata["children"].split(","))
    except ValueError:
        # A newer reason, or numbers that are none: the gRPC code beside it has to do.
        return None
    return wire


async def refuse(context: Context, wire: errors_pb2.Refusal) -> NoReturn:
    """Ends the call with the refusal's status; raises what grpc.aio ends a servicer with."""
    await context.abort_with_status(rpc_status.to_status(status_of(wire)))
    raise RuntimeError("abort_with_status returned")
