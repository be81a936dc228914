"""What peers say to each other about one shard (docs/protocol.md §4.5), as plain values.

`peerd.internal.v1` has the same on the wire. Any message may be lost, late, repeated or reordered;
no rule of the core depends on that not happening. The transport adds cluster id and store ids and
refuses what names another store, so in here a message is always meant for this replica.
"""

from peerd.core.batch import PlacedBatch
from peerd.core.ids import BootId, Epoch, Offset, ProcessId, ReplicaId, ShardId
from peerd.core.producer import TableSnapshot
from peerd.core.shard_map import Plan
from peerd.core.value import value


@value(frozen=True, slots=True, kw_only=True)
class Adopt:
    """Primary → replica: begin the empty segment (epoch, begin). Answer: `Ack` or `Expect`."""

    shard: ShardId
    epoch: Epoch
    begin: Offset
    plan: Plan


@value(frozen=True, slots=True, kw_only=True)
class Frame:
    """Primary → replica (`Replicate`): consecutive batches, perhaps none, and the commit offset.

    Answer: `Ack` when durable, or `Expect`. The same object may be sent to several replicas.
    """

    shard: ShardId
    epoch: Epoch
    commit: Offset
    batches: tuple[PlacedBatch, ...]


@value(frozen=True, slots=True, kw_only=True)
class Ack:
    """Replica → primary: everything of `epoch` below `end` is durable. Cumulative."""

    shard: ShardId
    epoch: Epoch
    end: Offset


@value(frozen=True, slots=True, kw_only=True)
class Expect:
    """Replica → primary: `refused_epoch` was not taken; this is what would be."""

    shard: ShardId
    promised: Epoch
    adopted: Epoch
    end: Offset
    refused_epoch: Epoch


@value(frozen=True, slots=True, kw_only=True)
class Ready:
    """N → P: `sender` can take over the prepared `epoch`. Repeated until `Begin` comes.

    `table_as_of`: N has the producer table exactly as of this offset, so that `Begin` need only
    carry what changed since; 0 = it has nothing.
    """

    shard: ShardId
    epoch: Epoch
    sender: ProcessId
    table_as_of: Offset


@value(frozen=True, slots=True, kw_only=True)
class Begin:
    """P → N: `old_epoch` ended at `begin`, `epoch` begins there. Repeated until answered.

    `table` is the producer table as of `begin` (its `since` says what it leaves out), `holders` are
    the replicas of `old_epoch` that are durable up to `begin`, `timestamp_ms` is the time of the
    last batch, below which no later batch may fall.
    """

    shard: ShardId
    old_epoch: Epoch
    epoch: Epoch
    boot: BootId
    begin: Offset
    plan: Plan
    table: TableSnapshot
    holders: tuple[ReplicaId, ...]
    timestamp_ms: int


@value(frozen=True, slots=True, kw_only=True)
class ConfirmEpoch:
    """Primary → voter: have you promised more than `epoch`? Answer: the round and the promise."""

    shard: ShardId
    epoch: Epoch
    round: int


Message = Adopt | Frame | Ack | Expect | Ready | Begin | ConfirmEpoch
