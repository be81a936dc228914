"""What a core wants done: the only output of `Replica.handle`, one `Step` per event.

The host carries a step out in the order of its fields: it submits `persist` to the store, then
sends, loads, replies, reports. It does not wait between them: the store's queue keeps the order of
operations, and whatever depends on a write being durable is emitted only from that write's
`WriteDone`.
"""

from enum import Enum

from peerd.core.durable import StoreOperation, TableRange
from peerd.core.errors import Refusal
from peerd.core.ids import (
    FIRST_OFFSET,
    NO_EPOCH,
    Epoch,
    Offset,
    ProcessId,
    ReplicaId,
    RequestId,
    ShardId,
)
from peerd.core.messages import Message
from peerd.core.producer import TableSnapshot
from peerd.core.value import value


# ------------------------------------------------------------------ send
@value(frozen=True, slots=True, kw_only=True)
class Send:
    """A message to a replica. It may be lost; the core repeats what must arrive.

    Adopt and Frame go over the outgoing stream to `to`, in order; Ack and Expect go back over the
    stream on which `to` sends; the others are calls. The answer to Begin is `BeginAnswered`, to
    ConfirmEpoch `EpochConfirmed`.
    """

    to: ReplicaId
    message: Message


# ------------------------------------------------------------------ load
@value(frozen=True, slots=True, kw_only=True)
class LoadBatches:
    """Read batches [begin, end) of `epoch` from the own store, at least one, at most `bytes_max`.

    Answered by `BatchesLoaded` or `BatchesUnavailable` with the same `replica`, `epoch`, `begin`.
    """

    shard: ShardId
    replica: ReplicaId
    epoch: Epoch
    begin: Offset
    end: Offset
    bytes_max: int


@value(frozen=True, slots=True, kw_only=True)
class LoadTable:
    """Read the producer table from the own store and extend it over `ranges`, in order.

    `from_store` True: begin with the durable table (skip what of the ranges lies below its
    `as_of`); False: begin with `producer.empty_table(ranges[0].begin, complete=False)`, for a past
    that is lost. Each range is added with `producer.extended(table, epoch, headers)`. If the
    durable table is already beyond `as_of`: give it as it is if `or_later`, else answer
    `TableUnavailable(answered=True)`. Answered by `TableLoaded` with the same `token`.
    """

    shard: ShardId
    token: RequestId
    from_store: bool
    ranges: tuple[TableRange, ...]
    as_of: Offset
    or_later: bool


@value(frozen=True, slots=True, kw_only=True)
class FetchTable:
    """Ask `source` for the table (it gets `TableAsked`). Answered by `TableFetched` or
    `TableUnavailable` with the same `token`, within a few seconds at most. If it is not waited for
    it may come later than everything else, and the next one of the shard may take its place.
    """

    shard: ShardId
    token: RequestId
    source: ReplicaId
    as_of: Offset
    or_later: bool
    since: Offset
    is_waited_for: bool = True


Load = LoadBatches | LoadTable | FetchTable


# ------------------------------------------------------------------ reply
@value(frozen=True, slots=True, kw_only=True)
class AppendAccepted:
    """A receipt. `durable_on`: voters known to have it on disk now (for a retry of a batch of an
    older segment: its listed holders). `duplicate`: the batch was taken at an earlier request.
    """

    request: RequestId
    shard: ShardId
    epoch: Epoch
    base: Offset
    record_count: int
    timestamp_ms: int
    durable_on: tuple[ReplicaId, ...]
    duplicate: bool = False


@value(frozen=True, slots=True, kw_only=True)
class AppendRefused:
    """The batch was not taken, or its outcome is not known: `refusal.taken` says which."""

    request: RequestId
    refusal: Refusal


@value(frozen=True, slots=True, kw_only=True)
class EpochAnswer:
    """What this store has of one epoch. If not `adopted`, the rest is 0 (§4.2)."""

    epoch: Epoch
    adopted: bool
    begin: Offset = FIRST_OFFSET
    end: Offset = FIRST_OFFSET
    commit: Offset = FIRST_OFFSET


@value(frozen=True, slots=True, kw_only=True)
class PromiseAnswered:
    """`promised` is the fence asked for, and then it is durable, or a higher epoch: then the fence
    was not promised and `open` and `prepared` are None. `prepared` is None too if none was named.
    """

    request: RequestId
    promised: Epoch
    open: EpochAnswer | None
    prepared: EpochAnswer | None


@value(frozen=True, slots=True, kw_only=True)
class BeginAnswer:
    """Whether this process is, or was, primary of `epoch` by `Begin`; if not, it never will be."""

    request: RequestId
    epoch: Epoch
    begun: bool
    promised: Epoch


@value(frozen=True, slots=True, kw_only=True)
class HasBegunAnswer:
    """What `SegmentOpened` would say, if begun."""

    request: RequestId
    begun: bool
    begin: Offset = FIRST_OFFSET
    holders: tuple[ReplicaId, ...] = ()


@value(frozen=True, slots=True, kw_only=True)
class TableAnswer:
    """The table that was asked for, or None: not available here."""

    request: RequestId
    table: TableSnapshot | None


@value(frozen=True, slots=True, kw_only=True)
class TailAnswered:
    """The linearizable tail, or why there is none: `tail` is set unless `refusal` is."""

    request: RequestId
    epoch: Epoch = NO_EPOCH
    tail: Offset | None = None
    refusal: Refusal | None = None


@value(frozen=True, slots=True, kw_only=True)
class ConfirmAnswer:
    """The epoch that this store has promised, durably, now."""

    request: RequestId
    round: int
    promised: Epoch


Reply = (
    AppendAccepted
    | AppendRefused
    | PromiseAnswered
    | BeginAnswer
    | HasBegunAnswer
    | TableAnswer
    | TailAnswered
    | ConfirmAnswer
)


# ------------------------------------------------------------------ report (to the LAS)
@value(frozen=True, slots=True, kw_only=True)
class SegmentOpened:
    """N: the prepared `epoch` began at `begin`. Repeated until the committed map shows it."""

    shard: ShardId
    epoch: Epoch
    begin: Offset
    holders: tuple[ReplicaId, ...]


@value(frozen=True, slots=True, kw_only=True)
class Declined:
    """P: this process, primary of `epoch`, will never switch to `prepared`. Repeated likewise."""

    shard: ShardId
    epoch: Epoch
    prepared: Epoch
    process: ProcessId
    why: str


@value(frozen=True, slots=True, kw_only=True)
class Stall:
    """Primary: `replica`'s durable end has not moved for `stalled_ms` though there is something to
    make durable. Repeated while it lasts.
    """

    shard: ShardId
    epoch: Epoch
    replica: ReplicaId
    stalled_ms: int


@value(frozen=True, slots=True, kw_only=True)
class HigherPromise:
    """`epoch` was refused here or elsewhere because `promised` is higher: a fence may be half done.

    Repeated until the committed map's open epoch is at least `promised`.
    """

    shard: ShardId
    epoch: Epoch
    promised: Epoch


Report = SegmentOpened | Declined | Stall | HigherPromise


# ------------------------------------------------------------------ note
class NoteKind(Enum):
    """Facts for logs and metrics; nothing depends on them."""

    BECAME_PRIMARY = "became primary"
    STOPPED = "stopped being primary"
    SWITCHED = "switched to the next segment"
    DECLINED = "declined the prepared segment"
    TABLE_INCOMPLETE = "producer table incomplete"
    CATCH_UP = "replica is caught up from the store"
    BATCHES_DAMAGED = "own store cannot give batches to a replica"


@value(frozen=True, slots=True, kw_only=True)
class Note:
    """One fact; `message` is one line for a person."""

    shard: ShardId
    kind: NoteKind
    epoch: Epoch
    message: str


@value(frozen=True, slots=True)
class Step:
    """All effects of one event, in the order in which they are carried out."""

    persist: tuple[StoreOperation, ...] = ()
    send: tuple[Send, ...] = ()
    load: tuple[Load, ...] = ()
    reply: tuple[Reply, ...] = ()
    report: tuple[Report, ...] = ()
    note: tuple[Note, ...] = ()


class Effects:
    """Collects the effects of one event; `step` closes it."""

    __slots__ = ("load", "note", "persist", "reply", "report", "send")

    def __init__(self) -> None:
        self.persist: list[StoreOperation] = []
        self.send: list[Send] = []
        self.load: list[Load] = []
        self.reply: list[Reply] = []
        self.report: list[Report] = []
        self.note: list[Note] = []

    def step(self) -> Step:
        """Everything that was collected, in the order of its kinds."""
        return Step(
            tuple(self.persist),
            tuple(self.send),
            tuple(self.load) if self.load else (),
            tuple(self.reply),
            tuple(self.report) if self.report else (),
            tuple(self.note) if self.note else (),
        )

    def refuse(self, request: RequestId, refusal: Refusal) -> None:
        """Answer one append with `refusal`."""
        self.reply.append(AppendRefused(request=request, refusal=refusal))
