"""What can go wrong for a program that uses peerd: one class per reason that it would act on.

Each message is one line that says what was wrong, where, and what to do. docs/errors.md maps the
reasons of the wire to these classes.

`taken` tells of a failed append whether it may be in the log: "no" = it is not and will not be;
"unknown" = it may be; None = the call was no append.
"""

import asyncio
from collections.abc import Mapping

import grpc
import grpc.aio

from peerd.transport.status import name_of, refusal_of_error
from peerd.v1 import errors_pb2


class PeerdError(Exception):
    """Base of everything that this library raises on purpose.

    Attributes:
        reason: Name of the `peerd.v1.ErrorReason`, or "" if no server gave one.
        taken: See the module.
    """

    def __init__(self, message: str, *, reason: str = "", taken: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.taken = taken


def taken_of(error: BaseException) -> str | None:
    """Whether an append that ended with `error` may be in the log: "no", "unknown", or None if
    `error` does not come from an append.

    Knows `PeerdError`, and what Python raises where the caller itself cancelled the append
    (`asyncio.CancelledError`) or limited its time (`TimeoutError` of `asyncio.timeout`).
    """
    seen: BaseException | None = error
    while seen is not None:
        taken = getattr(seen, "taken", None)
        if taken is not None:
            return str(taken)
        # Before Python 3.11.3 `asyncio.timeout` names no cause.
        also = seen.__context__ if isinstance(seen, TimeoutError) else None
        seen = seen.__cause__ or also
    return None


def tell_taken(error: asyncio.CancelledError, taken: str) -> None:
    """Has `taken_of(error)` be `taken`. The class of the error has to stay: asyncio looks at it."""
    error.__dict__["taken"] = taken


# ------------------------------------------------------------------------------ before a call


class CredentialsError(PeerdError):
    """`peerctl.toml` or a TLS file cannot be used."""


class ConnectFailed(PeerdError):
    """No address answered; the message says what was tried and why it failed."""


class ClientClosed(PeerdError):
    """The client was closed, before the call or during it."""


# ------------------------------------------------------------------------------ appends


class AppendError(PeerdError):
    """Base of what an append can fail with."""


class NotAppended(AppendError):
    """The append was not taken, and nobody will take it any more. Send it again if it is wanted."""


class OutcomeUnknown(AppendError):
    """The append may be in the log or not. Sending it again could store it twice: read to know."""


class OffsetMismatch(AppendError):
    """`expected_offset` was not the end of the shard; `actual_offset` is."""

    actual_offset: int = 0


class BatchTooLarge(AppendError):
    """The records are larger than a batch may be. Cut them."""


class BatchDamaged(AppendError):
    """The bytes arrived with another checksum than they were sent with, again and again."""


class KeysSpanShards(AppendError):
    """The keys of one atomic batch do not belong to one shard. Cut it by key."""


class Overloaded(AppendError):
    """A bound of a peer was reached and stayed so until the deadline. Slow down."""


class QueueFull(AppendError):
    """The client's own queue is full; nothing was queued. Await earlier appends, or `append`."""


class DiskReserve(AppendError):
    """The primary's store has reached its space reserve: appends wait for an operator."""


class NotEnoughPeers(AppendError):
    """Fewer healthy peers are left than the log's `acks`. Appends wait for peers; reads go on."""


# ------------------------------------------------------------------------------ reads


class ReadError(PeerdError):
    """Base of what only a read can fail with."""


class RecordsMissing(ReadError):
    """A range cannot be read: a gap, told by the server: of `shard`, from `first_offset` up to
    `next_offset`, which is the first one behind it. `reason` is `LOST` or `TRIMMED`.
    """

    shard: int = 0
    first_offset: int = 0
    next_offset: int = 0


class Trimmed(ReadError):
    """The offset was trimmed; `first_offset` is the first one left."""

    first_offset: int = 0


class OffsetBeyondTail(ReadError):
    """The offset lies beyond the committed tail."""


class CorruptData(ReadError):
    """Stored bytes fail their checksum and no other copy can be reached."""


class CodecUnknown(ReadError):
    """A batch is packed in a way that this version cannot unpack. A newer one can."""


# ------------------------------------------------------------------------------ any call


class UnknownLog(PeerdError):
    """No log of that name. Logs are created, never made by appending."""


class UnknownShard(PeerdError):
    """The log has no such shard."""


class LogExists(PeerdError):
    """A log of that name exists already."""


class UnknownNode(PeerdError):
    """No node of that name."""


class UnknownModel(PeerdError):
    """No forecast model of that version is kept for that head. `las model list` shows them."""


class ModelRejected(PeerdError):
    """The file is no forecast model that may be used; the message names the rule it breaks."""


class InvalidRequest(PeerdError):
    """The call itself is wrong; the message names the part. Correct the program."""


class AccessDenied(PeerdError):
    """No certificate, one of another cluster, one that was revoked, one whose role may not do this,
    or one without a grant for this log.
    """


class NotServedYet(PeerdError):
    """Part of the contract that this version of the servers does not serve."""


class LimitReached(PeerdError):
    """A bound of the cluster (logs, shards, nodes) was reached."""


class StateConflict(PeerdError):
    """What the command expected has changed meanwhile. Look again, then decide."""


class LasUnavailable(PeerdError):
    """No LAS leader answered in time; the command may or may not be committed."""


class Unavailable(PeerdError):
    """Nobody who can answer could be reached in time. Try again."""


class InternalError(PeerdError):
    """A server broke an invariant or met something unforeseen: its log tells more."""


CLASSES: Mapping[str, type[PeerdError]] = {
    "NOT_PRIMARY": NotAppended,
    "FENCED": OutcomeUnknown,
    "MOVED": NotAppended,
    "SPLIT": NotAppended,
    "OFFSET_MISMATCH": OffsetMismatch,
    "SEQUENCE_GAP": NotAppended,
    "SEQUENCE_TOO_OLD": OutcomeUnknown,
    "PRODUCER_STATE_LOST": OutcomeUnknown,
    "PRODUCER_WINDOW_FULL": Overloaded,
    "OVERLOADED": Overloaded,
    "DISK_RESERVE": DiskReserve,
    "NOT_ENOUGH_PEERS": NotEnoughPeers,
    "BATCH_TOO_LARGE": BatchTooLarge,
    "CRC_MISMATCH": BatchDamaged,
    "RECORD_COUNT_MISMATCH": InvalidRequest,
    "MALFORMED_BATCH": InvalidRequest,
    "KEYS_SPAN_SHARDS": KeysSpanShards,
    "KEY_OUTSIDE_SHARD": KeysSpanShards,
    "UNKNOWN_LOG": UnknownLog,
    "UNKNOWN_SHARD": UnknownShard,
    "LOG_EXISTS": LogExists,
    "INVALID_ARGUMENT": InvalidRequest,
    "TRIMMED": Trimmed,
    "OFFSET_BEYOND_TAIL": OffsetBeyondTail,
    "CORRUPT": CorruptData,
    "RANGE_UNAVAILABLE": Unavailable,
    "OUTCOME_UNKNOWN": OutcomeUnknown,
    "STORE_FAILED": OutcomeUnknown,
    "WRONG_CLUSTER": AccessDenied,
    "WRONG_STORE": InternalError,
    "NO_IDENTITY": AccessDenied,
    "ROLE_NOT_ALLOWED": AccessDenied,
    "NOT_LAS_LEADER": LasUnavailable,
    "LAS_UNAVAILABLE": LasUnavailable,
    "UNKNOWN_NODE": UnknownNode,
    "STORE_ID_CHANGED": StateConflict,
    "PROCESS_SUPERSEDED": StateConflict,
    "LAS_LOST_ITS_PAST": StateConflict,
    "UNKNOWN_MODEL": UnknownModel,
    "MODEL_REFUSED": ModelRejected,
    "NOT_GRANTED": AccessDenied,
    "REVOKED": AccessDenied,
    "SHUTTING_DOWN": Unavailable,
    "MAP_UNKNOWN": Unavailable,
    "STATE_CHANGED": StateConflict,
    "NOT_SERVED_YET": NotServedYet,
    "LIMIT_REACHED": LimitReached,
    "INTERNAL": InternalError,
    "LOST": RecordsMissing,
}
"""Reason -> class."""

# Where a server gave no reason, the code alone has to do.
_BY_CODE: Mapping[grpc.StatusCode, type[PeerdError]] = {
    grpc.StatusCode.UNAUTHENTICATED: AccessDenied,
    grpc.StatusCode.PERMISSION_DENIED: AccessDenied,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.UNIMPLEMENTED: NotServedYet,
    grpc.StatusCode.INTERNAL: InternalError,
}


def error_of_refusal(refusal: errors_pb2.Refusal, *, is_append: bool = False) -> PeerdError:
    """The exception for a refusal; for an append it says whether it may have been taken."""
    reason = name_of(refusal)
    taken = None
    if is_append:
        taken = "no" if refusal.taken == errors_pb2.TAKEN_NO else "unknown"
    kind = CLASSES.get(reason, PeerdError)
    if taken == "unknown" and kind is NotAppended:
        kind = OutcomeUnknown
    error = kind(refusal.message, reason=reason, taken=taken)
    if isinstance(error, OffsetMismatch):
        error.actual_offset = refusal.first_offset
    elif isinstance(error, Trimmed):
        error.first_offset = refusal.first_offset
    return error


def error_of_call(error: grpc.aio.AioRpcError, what: str) -> PeerdError:
    """The exception for a failed call; `what` names the call and whom it went to."""
    refusal = refusal_of_error(error)
    if refusal is not None:
        return error_of_refusal(refusal)
    kind = _BY_CODE.get(error.code(), Unavailable)
    return kind(f"{what}: {error.code().name}: {error.details()}")
