"""What a store keeps of a shard, and the rules under which a write changes it (docs/protocol.md §3, §4.4).

These rules run **in the storage writer, at the place in the queue where the write happens**: the
writer calls `apply` on each operation in queue order, before it writes it, and the simulator's disk
does the same. So what was queued before a promise is inside its answer, and nothing after it is
stored or acknowledged. `apply` is pure: state in, (outcome, new state) out.
"""

from dataclasses import dataclass, field

from peerd.core.batch import PlacedBatch
from peerd.core.ids import FIRST_OFFSET, NO_EPOCH, Epoch, Offset, ShardId
from peerd.core.producer import TableSnapshot


# ------------------------------------------------------------------ state
@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSegment:
    """What a store has of one epoch: batches fill [begin, end) without gap.

    `seal` is X once the committed map told it. `commit` is the commit offset as last heard: a lower
    bound, at least `begin`.
    """

    epoch: Epoch
    begin: Offset
    end: Offset
    commit: Offset
    seal: Offset | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredShard:
    """Durable state of one shard. `promised` and `adopted` only grow and outlive the data.

    `table_as_of`: the durable producer table is exact as of this offset (§3.1); it moves only where
    the store knows the log, so it may lag or stand still before a hole.
    """

    shard: ShardId
    promised: Epoch = NO_EPOCH
    adopted: Epoch = NO_EPOCH
    segments: dict[Epoch, StoredSegment] = field(default_factory=dict)
    table_as_of: Offset = FIRST_OFFSET


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRange:
    """Batches [begin, end) of `epoch`, which the producer table is to be extended over."""

    epoch: Epoch
    begin: Offset
    end: Offset


# ------------------------------------------------------------------ operations
@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptEpoch:
    """Begin the empty segment (epoch, begin). Drops nothing."""

    shard: ShardId
    epoch: Epoch
    begin: Offset


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendBatches:
    """Store consecutive batches at the end of the adopted epoch; `batches` may be empty to move the commit offset."""

    shard: ShardId
    epoch: Epoch
    batches: tuple[PlacedBatch, ...]
    commit: Offset


@dataclass(frozen=True, slots=True, kw_only=True)
class PromiseEpoch:
    """Promise `fence`, and freeze what is stored of `epoch` and `prepared` (NO_EPOCH = none)."""

    shard: ShardId
    fence: Epoch
    epoch: Epoch
    prepared: Epoch = NO_EPOCH


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnMap:
    """The committed map: raises the promise to `open_epoch` when this store holds, is listed for, or drops a part.

    `seals` gives X per sealed epoch; what is stored of an epoch at or beyond its X is dropped, as is
    everything of `dead` epochs.
    """

    shard: ShardId
    open_epoch: Epoch
    seals: tuple[tuple[Epoch, Offset], ...] = ()
    dead: tuple[Epoch, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FillSealed:
    """Store fetched batches of a sealed segment [begin, end); raises the promise to `open_epoch` (§3, last rule)."""

    shard: ShardId
    epoch: Epoch
    begin: Offset
    end: Offset
    open_epoch: Epoch
    batches: tuple[PlacedBatch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallTable:
    """Replace the durable producer table by one that is exact as of `table.as_of`, then go on from there."""

    shard: ShardId
    table: TableSnapshot


StoreOperation = AdoptEpoch | AppendBatches | PromiseEpoch | LearnMap | FillSealed | InstallTable


# ------------------------------------------------------------------ outcomes
@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """The operation is durable. `state` is the shard's state as of its place in the queue."""

    operation: StoreOperation
    state: StoredShard


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The rules forbid the operation; nothing was written. `state` tells what would be taken."""

    operation: StoreOperation
    state: StoredShard
    why: str


Outcome = Stored | Refused


# ------------------------------------------------------------------ the rules
def apply(state: StoredShard, operation: StoreOperation) -> tuple[Outcome, StoredShard]:
    """What `operation` does to `state`: the outcome (which carries the new state) and the new state.

    Raises `InvariantViolation` where the protocol says "stops the process loudly".
    """
    raise NotImplementedError


def table_ranges(state: StoredShard, begin: Offset, end: Offset) -> tuple[TableRange, ...]:
    """Where the batches of the log in [begin, end) lie in this store, in order and without gap.

    The storage writer uses it in the transaction of an operation that moved `table_as_of` from `begin`
    to `end`: it adds the headers of these ranges to its durable rows (`producer.remembered`).
    """
    raise NotImplementedError
