"""What can happen to one shard on one peer: the only inputs of `Replica.handle`.

Every incoming message names its sender, so that an answer of another store counts for nothing.
`now` is a `Tick` (monotonic milliseconds); `now_ms` is wall time and only labels batches.
"""

from peerd.core.batch import BatchHeader, PlacedBatch
from peerd.core.durable import Outcome
from peerd.core.ids import NO_EPOCH, Epoch, Offset, ReplicaId, RequestId, Tick
from peerd.core.messages import Ack, Adopt, Begin, ConfirmEpoch, Expect, Frame, Ready
from peerd.core.producer import TableSnapshot
from peerd.core.shard_map import Shard
from peerd.core.value import value


@value(frozen=True, slots=True, kw_only=True)
class MapLearned:
    """The committed map's entry of this shard, new or changed. An older one is ignored."""

    shard: Shard
    now: Tick


@value(frozen=True, slots=True, kw_only=True)
class ShardDeleted:
    """The committed map says that the shard's log was deleted; it is never on a map again."""

    now: Tick


@value(frozen=True, slots=True, kw_only=True)
class AppendRequested:
    """A client's batch. `header.timestamp_ms` is ignored: the primary gives the time.

    Answered exactly once, by `AppendAccepted` or `AppendRefused` of the same `request`.
    """

    request: RequestId
    header: BatchHeader
    payload: bytes | memoryview
    expected_offset: Offset | None
    now_ms: int
    now: Tick


@value(frozen=True, slots=True, kw_only=True)
class WriteDone:
    """The store took or refused an operation. Delivered for each `persist` operation, in order.

    Outcomes of `FillSealed`, which the copier submits by itself, are delivered too, in the same
    order.
    """

    outcome: Outcome


@value(frozen=True, slots=True, kw_only=True)
class StreamUp:
    """The outgoing replication stream to `replica` is open: what was sent before may be lost.

    Given for every replica that can be reached when the core asks for it by sending to it.
    """

    replica: ReplicaId


@value(frozen=True, slots=True, kw_only=True)
class StreamDown:
    """The outgoing stream to `replica` broke."""

    replica: ReplicaId


@value(frozen=True, slots=True, kw_only=True)
class AdoptReceived:
    """From the primary of an epoch."""

    sender: ReplicaId
    message: Adopt


@value(frozen=True, slots=True, kw_only=True)
class FrameReceived:
    """From the primary of an epoch."""

    sender: ReplicaId
    message: Frame


@value(frozen=True, slots=True, kw_only=True)
class AckReceived:
    """From a replica."""

    sender: ReplicaId
    message: Ack


@value(frozen=True, slots=True, kw_only=True)
class ExpectReceived:
    """From a replica."""

    sender: ReplicaId
    message: Expect


@value(frozen=True, slots=True, kw_only=True)
class ReadyReceived:
    """From the next primary; `message.sender` is its process. Answered by `Begin`, in time."""

    sender: ReplicaId
    message: Ready


@value(frozen=True, slots=True, kw_only=True)
class BeginReceived:
    """From the last primary. Answered by `BeginAnswer` of the same `request`."""

    request: RequestId
    sender: ReplicaId
    message: Begin
    now: Tick


@value(frozen=True, slots=True, kw_only=True)
class BeginAnswered:
    """The next primary's answer to `Begin`; `promised` is what it has promised."""

    sender: ReplicaId
    epoch: Epoch
    begun: bool
    promised: Epoch


@value(frozen=True, slots=True, kw_only=True)
class PromiseReceived:
    """The LAS fences. Answered by `PromiseAnswered` of the same `request`, once durable."""

    request: RequestId
    fence: Epoch
    epoch: Epoch
    prepared: Epoch = NO_EPOCH


@value(frozen=True, slots=True, kw_only=True)
class HasBegunAsked:
    """The LAS asks whether the prepared `epoch` has begun here. Answered by `HasBegunAnswer`."""

    request: RequestId
    epoch: Epoch


@value(frozen=True, slots=True, kw_only=True)
class BatchesLoaded:
    """Answer to `LoadBatches`: consecutive batches from `begin`, at least one."""

    replica: ReplicaId
    epoch: Epoch
    begin: Offset
    batches: tuple[PlacedBatch, ...]


@value(frozen=True, slots=True, kw_only=True)
class BatchesUnavailable:
    """Answer to `LoadBatches`: the own store cannot give them (damaged)."""

    replica: ReplicaId
    epoch: Epoch
    begin: Offset


@value(frozen=True, slots=True, kw_only=True)
class TableLoaded:
    """Answer to `LoadTable` of the same `token`."""

    token: RequestId
    table: TableSnapshot


@value(frozen=True, slots=True, kw_only=True)
class TableFetched:
    """Answer to `FetchTable` of the same `token`."""

    token: RequestId
    table: TableSnapshot


@value(frozen=True, slots=True, kw_only=True)
class TableUnavailable:
    """Answer to `LoadTable` or `FetchTable`. `answered` is False if the source was not reached."""

    token: RequestId
    answered: bool


@value(frozen=True, slots=True, kw_only=True)
class TableAsked:
    """A replica asks for the table as of `as_of`, or any later offset if `or_later`.

    Only producers that changed at or after `since` are wanted. Answered by `TableAnswer`.
    """

    request: RequestId
    as_of: Offset
    or_later: bool
    since: Offset


@value(frozen=True, slots=True, kw_only=True)
class TailAsked:
    """A client asks for the linearizable tail. Answered by `TailAnswered` of the same `request`."""

    request: RequestId
    now: Tick


@value(frozen=True, slots=True, kw_only=True)
class ConfirmReceived:
    """The primary of an epoch asks what is promised here. Answered by `ConfirmAnswer`, at once."""

    request: RequestId
    message: ConfirmEpoch


@value(frozen=True, slots=True, kw_only=True)
class EpochConfirmed:
    """A voter's answer to `ConfirmEpoch`: it had promised `promised` when it was asked."""

    sender: ReplicaId
    epoch: Epoch
    round: int
    promised: Epoch
    now: Tick


@value(frozen=True, slots=True, kw_only=True)
class Ticked:
    """Time passed. Due at the latest at `Replica.wake_at`."""

    now: Tick


Event = (
    MapLearned
    | AppendRequested
    | WriteDone
    | StreamUp
    | StreamDown
    | AdoptReceived
    | FrameReceived
    | AckReceived
    | ExpectReceived
    | ReadyReceived
    | BeginReceived
    | BeginAnswered
    | PromiseReceived
    | HasBegunAsked
    | BatchesLoaded
    | BatchesUnavailable
    | TableLoaded
    | TableFetched
    | TableUnavailable
    | TableAsked
    | TailAsked
    | ConfirmReceived
    | EpochConfirmed
    | Ticked
    | ShardDeleted
)
