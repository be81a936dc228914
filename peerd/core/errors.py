"""Why a call was refused, as plain values; the edges translate them (docs/errors.md).

`Reason` has the members of `peerd.v1.ErrorReason` without their prefix and with their numbers. A
`Refusal` is a value, never raised by the core: it travels in a reply effect.
"""

from enum import IntEnum

from peerd.core.ids import NO_EPOCH, Epoch, Offset, ProcessId, ShardId
from peerd.core.value import value


class Reason(IntEnum):
    """Mirror of `peerd.v1.ErrorReason`: same names, same numbers (tests/core compares them)."""

    NOT_PRIMARY = 1
    FENCED = 2
    MOVED = 3
    SPLIT = 4
    OFFSET_MISMATCH = 5
    SEQUENCE_GAP = 6
    SEQUENCE_TOO_OLD = 7
    PRODUCER_STATE_LOST = 8
    PRODUCER_WINDOW_FULL = 9
    OVERLOADED = 10
    DISK_RESERVE = 11
    NOT_ENOUGH_PEERS = 12
    BATCH_TOO_LARGE = 13
    CRC_MISMATCH = 14
    RECORD_COUNT_MISMATCH = 15
    MALFORMED_BATCH = 16
    KEYS_SPAN_SHARDS = 17
    KEY_OUTSIDE_SHARD = 18
    UNKNOWN_LOG = 19
    UNKNOWN_SHARD = 20
    LOG_EXISTS = 21
    INVALID_ARGUMENT = 22
    TRIMMED = 23
    OFFSET_BEYOND_TAIL = 24
    CORRUPT = 25
    RANGE_UNAVAILABLE = 26
    OUTCOME_UNKNOWN = 27
    STORE_FAILED = 28
    WRONG_CLUSTER = 29
    WRONG_STORE = 30
    NO_IDENTITY = 31
    ROLE_NOT_ALLOWED = 32
    NOT_LAS_LEADER = 33
    LAS_UNAVAILABLE = 34
    UNKNOWN_NODE = 35
    STORE_ID_CHANGED = 36
    SHUTTING_DOWN = 37
    MAP_UNKNOWN = 38
    STATE_CHANGED = 39
    NOT_SERVED_YET = 40
    LIMIT_REACHED = 41
    INTERNAL = 42
    LOST = 43
    PROCESS_SUPERSEDED = 44
    LAS_LOST_ITS_PAST = 45
    UNKNOWN_MODEL = 46
    MODEL_REFUSED = 47
    NOT_GRANTED = 48
    REVOKED = 49


class Taken(IntEnum):
    """Whether a refused batch may be in the log; numbers of `peerd.v1.Taken`."""

    NO = 1
    UNKNOWN = 2


@value(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One refusal, with the facts of `peerd.v1.Refusal`.

    `message` is one line for a person: what was wrong, where, what to do. `leader` is the process
    to go to, when known; the edge turns it into an address. `first_offset`: TRIMMED the first
    offset left, OFFSET_MISMATCH the actual end, SPLIT the parent's end. `next_sequence`:
    SEQUENCE_GAP.
    """

    reason: Reason
    message: str
    taken: Taken = Taken.NO
    leader: ProcessId | None = None
    epoch: Epoch = NO_EPOCH
    retry_after_ms: int = 0
    first_offset: Offset | None = None
    next_sequence: int | None = None
    children: tuple[ShardId, ...] = ()
