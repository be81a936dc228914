"""Names and numbers of the protocol (docs/protocol.md §1), as distinct types.

A replica is a *store* of a peer; a primary is a *process*: a store under one boot id. Keeping the
two apart in the types is what stops a restarted process from going on as primary (§4.4, rule 4).
"""

from typing import NewType

from peerd.core.value import value

NodeName = NewType("NodeName", str)
"""Name of a peer, e.g. ``peer-3``; what its certificate says."""

StoreId = NewType("StoreId", str)
"""32 hexadecimal digits, drawn when a data directory is created."""

BootId = NewType("BootId", str)
"""32 hexadecimal digits, drawn at each start of a process."""

ShardId = NewType("ShardId", int)
"""uint64, unique in the cluster and never used again."""

Epoch = NewType("Epoch", int)
"""uint64, per shard; 0 means none. Names one plan for ever."""

Offset = NewType("Offset", int)
"""uint64, dense within a shard; counts records."""

ProducerId = NewType("ProducerId", bytes)
"""16 random bytes chosen by a client."""

Tick = NewType("Tick", int)
"""Milliseconds of some monotonic clock that is passed in; only differences mean anything."""

RequestId = NewType("RequestId", int)
"""Drawn by the host for each call that waits for a reply; unique while the process lives."""

NO_EPOCH = Epoch(0)
DELETED_EPOCH = Epoch((1 << 64) - 1)
"""What a store promises for a shard whose log was deleted: above every epoch that is ever drawn."""
FIRST_OFFSET = Offset(0)


@value(frozen=True, slots=True, order=True)
class ReplicaId:
    """A store of a peer. Another data directory is another replica."""

    peer: NodeName
    store: StoreId


@value(frozen=True, slots=True, order=True)
class ProcessId:
    """A process: what can be primary."""

    peer: NodeName
    store: StoreId
    boot: BootId

    @property
    def replica(self) -> ReplicaId:
        """The store that this process runs on."""
        return ReplicaId(self.peer, self.store)
