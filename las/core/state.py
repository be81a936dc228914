"""The committed state of a cluster: what the LAS nodes agree on (docs/protocol.md §4).

Values only. A `ClusterState` never changes; `las.core.apply` makes its successor from a command.
The same commands in the same order make equal states on every LAS node: nothing here reads a clock,
a random number or the order in which a map happens to iterate.

Invariants:
- G7: a shard has one open segment, sealed ones tile [0, begin of the open one), epochs only grow
  (checked by `peerd.core.shard_map.Shard` whenever one is built).
- `drawn` of a shard is the highest epoch ever drawn for it and never falls: none is drawn twice.
- `version` grows by one with each change of the map and by nothing else.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum

from las.core.history import NO_HISTORY, FailureHistory
from las.core.ledger import Case
from las.core.model_registry import NO_MODELS, ModelRegistry
from las.core.persistent import PersistentMap
from peerd.core.access import NO_ACCESS_TABLE, AccessTable
from peerd.core.ids import BootId, Epoch, NodeName, Offset, ProcessId, ReplicaId, ShardId, StoreId
from peerd.core.shard_map import Compression, Shard, joined

# limit: newest events kept per node; the story of a node fits a screen or five.
EVENTS_MAX = 256
# limit: newest records of what somebody changed; a busy year of operators' work.
AUDIT_MAX = 4_096
# limit: map versions whose changes are remembered; a peer that missed more gets the whole map.
CHANGES_MAX = 4_096
# limit: proven dead boot ids kept per node, so that a late Register of a dead process is refused.
DEAD_BOOTS_MAX = 16
# limit: dead epochs kept per shard; what a store missed it drops when it learns a later map.
DEAD_EPOCHS_MAX = 16
# limit: nodes in one cluster; twice what the project designs for.
NODES_MAX = 20_000
# limit: logs in one cluster; each costs a row in every listing.
LOGS_MAX = 20_000
# limit: shards of one log; its creation must fit one command.
LOG_SHARDS_MAX = 1_024
# limit: shards in one cluster; twice what the project designs for.
SHARDS_MAX = 200_000
# limit: entries of sealed segments of one shard above which no planned change adds another;
# recovery may.
SEALED_SEGMENTS_MAX = 2_048
# limit: epochs of these; many may share an entry of the map, with some 8 bytes each on the wire.
SEALED_EPOCHS_MAX = 16_384
# limit: gaps of one shard; each was written by a person, after a disaster.
GAPS_MAX = 64
# limit: marks of the age of a shard's records; sixteen lie within its retention, see `las.daemon`.
AGE_MARKS_MAX = 32
# limit: how often a cluster may begin from older data; each leaves a range with every shard.
RECOVERIES_MAX = 16
# limit: shards that lost commits created, told in the status; a store keeps them, told or not.
STRAYS_MAX = 1_024
# limit: stores that may be asked at once to fetch one sealed segment.
WANTED_HOLDERS_MAX = 8
# limit: stores of a sealed segment that the map says were released and are not holders again.
RELEASES_MAX = 16

JOINING_LEVEL = 4
"""Command level from which on neighbouring sealed segments share an entry (§8): members that do not
know it would write another state.
"""
GAP_OFFSETS_MIN = 1 << 40
"""Offsets that a gap skips at least. Nobody knows how far a lost segment reached, and no offset may
ever be given to two records (G2): a million records a second fill this in twelve days.
"""
CLOSED_SEGMENTS_LEVEL = 2
"""Feature level from which a node may be the primary of a closed segment: below it, it would take
batches there.
"""
SHARED_ENTRY_LEVEL = 6
"""Feature level from which a node knows entries that several sealed segments share (§8)."""
HELD = "held: the LAS began from older data, and it is not known yet whether this shard outlived it"
"""Why a shard is halted of which nothing bad is known (§4.6)."""
FIRST_SHARD = ShardId(1)
NO_SHARD = ShardId(0)
NO_NODE = NodeName("")
KEY_HASHES = 1 << 64
"""Key hashes are uint64; the shards of a log tile them."""


class NodeState(StrEnum):
    """What the LAS thinks of a node's registered process."""

    UP = "up"
    DOWN = "down"
    FAILED = "failed"
    """Its storage failed: only a new process that registers, after verification, ends this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A peer of the fleet: the process that registered last, and what is thought of it.

    `feature_level` is what its software can do; 2: it knows closed segments (§4.3).
    `drain_until_ms` is where the committed clock ends the drain, or ended it; 0: nothing but an
    operator does.
    `in_service_s` is when it first registered, in seconds since 1970 UTC; 0: nobody wrote it down.
    `dead_boots` are boot ids of which a newer one proves that their process is gone, oldest first.
    """

    name: NodeName
    store: StoreId
    boot: BootId
    address: str
    labels: tuple[tuple[str, str], ...]
    may_lead: bool = True
    feature_level: int = 1
    state: NodeState = NodeState.UP
    at_risk: bool = False
    draining: bool = False
    drain_until_ms: int = 0
    dead_boots: tuple[BootId, ...] = ()
    in_service_s: int = 0

    @property
    def replica(self) -> ReplicaId:
        """Its store."""
        return ReplicaId(self.name, self.store)

    @property
    def process(self) -> ProcessId:
        """Its process."""
        return ProcessId(self.name, self.store, self.boot)

    @property
    def is_healthy(self) -> bool:
        """Up, and neither at risk nor being drained."""
        return self.state is NodeState.UP and not (self.at_risk or self.draining)

    @property
    def boots_dead_with_it(self) -> tuple[BootId, ...]:
        """`dead_boots` once its process is proven dead, too; it has none after a replacement."""
        return tuple(boot for boot in (*self.dead_boots, self.boot) if boot)[-DEAD_BOOTS_MAX:]

    @property
    def host(self) -> str:
        """The failure domain that never has two copies; a node without a label is its own host."""
        return self.label("host") or self.name

    def label(self, key: str) -> str:
        """The value of a label, or the empty string."""
        for name, value in self.labels:
            if name == key:
                return value
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """A named set of shards with one policy. `shards` are in the order of their key ranges.

    Of each shard `retention_bytes` at least are kept, and what is younger than `retention_ms`; 0:
    for ever. `compression` is what clients do with its batches, unless a producer says otherwise.
    The newest `hot_bytes` of a shard stay in stores, what is older goes to the tier; 0: all stays.
    """

    name: str
    copies: int
    acks: int
    shards: tuple[ShardId, ...]
    retention_bytes: int = 0
    retention_ms: int = 0
    compression: Compression = Compression.NONE
    hot_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgeMark:
    """Everything below `offset` was committed when the committed clock stood at `clock_ms`."""

    clock_ms: int
    offset: Offset


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """A shard's entry of the map, and what only the LAS needs of it.

    `drawn` is the highest epoch ever drawn. `halted` says why the LAS stopped changing the shard
    (§4.4: an epoch above all that was ever drawn turned up, or answers contradict each other);
    empty while all is well. A person must look before it goes on.
    """

    shard: Shard
    drawn: Epoch
    halted: str = ""
    ages: tuple[AgeMark, ...] = ()
    """Oldest first, for retention by time; see `las.core.retention`."""
    gap_why: str = ""
    """Not empty: the standing fence ends with a gap, and this is what readers are told (§4.6)."""

    @property
    def is_held(self) -> bool:
        """Whether it is halted only until it is known what became of it."""
        return self.halted == HELD

    def shows_skipped(self, epoch: Epoch) -> bool:
        """Whether `epoch` was skipped, and neither given up nor known to be something."""
        shard = self.shard
        skipped = shard.skipped_with(epoch)
        if skipped is None or skipped.given_up:
            return False
        known = {shard.open.epoch, shard.fence, *(segment.epoch for segment in shard.sealed)}
        return epoch not in known and (shard.prepared is None or epoch != shard.prepared.epoch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """How the group began from older data, if it did (§4.6); see `las.core.recovered`.

    `version` is that of the map which the group began with.
    `unheard` are nodes of the older state that have not told yet what their stores have.
    `skipped_shards` are ranges [first, last] of ids, one for each time. `strays` are shards of such
    ids that stores have.
    """

    id: str = ""
    version: int = 0
    unheard: tuple[NodeName, ...] = ()
    skipped_shards: tuple[tuple[ShardId, ShardId], ...] = ()
    strays: tuple[tuple[ShardId, NodeName], ...] = ()


NO_RECOVERY = Recovery()


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that was decided or seen about a node, for people; oldest first in a history."""

    timestamp_ms: int
    kind: str
    node: NodeName
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """One change that somebody asked for, or its refusal; see `las.core.audit`.

    `number` counts from 1. `clock_ms` is the committed clock, `timestamp_ms` a wall clock for
    people. `node`, `log`, `shard` and `model` (its head) say what it was about: what does not
    apply is empty or 0.
    """

    number: int
    clock_ms: int
    timestamp_ms: int
    who: str
    role: str
    what: str
    node: NodeName = NO_NODE
    log: str = ""
    shard: ShardId = NO_SHARD
    model: str = ""
    before: str = ""
    after: str = ""
    ok: bool
    reason: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one map version changed. A name that the state has no more is of what was removed."""

    nodes: tuple[NodeName, ...] = ()
    logs: tuple[str, ...] = ()
    shards: tuple[ShardId, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MapDelta:
    """Entries that replace those of the same name or id. `full`: this is everything."""

    version: int
    full: bool
    nodes: tuple[Node, ...]
    logs: tuple[Log, ...]
    shards: tuple[ShardEntry, ...]
    removed_nodes: tuple[NodeName, ...] = ()
    removed_logs: tuple[str, ...] = ()
    removed_shards: tuple[ShardId, ...] = ()
    next_shard: ShardId = NO_SHARD
    """Of all of the map; 0 if this is a part of it that must not be taken for all."""
    skipped_shards: tuple[tuple[ShardId, ShardId], ...] = ()


def _empty_nodes() -> PersistentMap[NodeName, Node]:
    return PersistentMap()


def _empty_logs() -> PersistentMap[str, Log]:
    return PersistentMap()


def _empty_shards() -> PersistentMap[ShardId, ShardEntry]:
    return PersistentMap()


def _empty_events() -> PersistentMap[NodeName, tuple[Event, ...]]:
    return PersistentMap()


def _empty_audit() -> PersistentMap[int, AuditRecord]:
    return PersistentMap()


def _empty_cases() -> PersistentMap[int, Case]:
    return PersistentMap()


def _empty_changes() -> PersistentMap[int, Change]:
    return PersistentMap()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterState:
    """Everything that is committed. See the module's docstring for the invariants.

    `changes` is derived, bounded and not in snapshots: after a restart a delta from before it is
    the whole map.
    """

    cluster_id: str
    version: int = 0
    clock_ms: int = 0
    """Time that leaders have seen pass; see `las.core.retention`."""
    next_shard: ShardId = FIRST_SHARD
    nodes: PersistentMap[NodeName, Node] = field(default_factory=_empty_nodes)
    logs: PersistentMap[str, Log] = field(default_factory=_empty_logs)
    shards: PersistentMap[ShardId, ShardEntry] = field(default_factory=_empty_shards)
    events: PersistentMap[NodeName, tuple[Event, ...]] = field(default_factory=_empty_events)
    audit: PersistentMap[int, AuditRecord] = field(default_factory=_empty_audit)
    audited: int = 0
    """Audit records that were ever made: the number of the newest one."""
    history: FailureHistory = NO_HISTORY
    next_case: int = 1
    cases: PersistentMap[int, Case] = field(default_factory=_empty_cases)
    models: ModelRegistry = NO_MODELS
    recovery: Recovery = NO_RECOVERY
    rejoined: tuple[tuple[str, str], ...] = ()
    """LAS nodes whose last `las rejoin` is in the audit, with the store that it made; sorted."""
    command_level: int = 1
    """The commands that may be used: all members of the group have said that they know them."""
    access: AccessTable = NO_ACCESS_TABLE
    """Who may do what to which log, and who is refused; see `las.core.access`."""
    changes: PersistentMap[int, Change] = field(default_factory=_empty_changes, compare=False)

    def changed(
        self,
        *,
        nodes: Iterable[Node] = (),
        logs: Iterable[Log] = (),
        shards: Iterable[ShardEntry] = (),
    ) -> "ClusterState":
        """The next version, in which these entries are new or replace those of the same name.

        Neighbouring sealed segments of a shard whose chain changes share an entry if they may: here
        and in no other place, so nobody who changes a chain need think of it.
        """
        node_items = tuple((node.name, node) for node in nodes)
        log_items = tuple((log.name, log) for log in logs)
        shard_items = tuple((entry.shard.shard, self._joined(entry)) for entry in shards)
        version = self.version + 1
        change = Change(
            nodes=tuple(name for name, _ in node_items),
            logs=tuple(name for name, _ in log_items),
            shards=tuple(shard for shard, _ in shard_items),
        )
        return replace(
            self,
            version=version,
            nodes=self.nodes.with_items(node_items) if node_items else self.nodes,
            logs=self.logs.with_items(log_items) if log_items else self.logs,
            shards=self.shards.with_items(shard_items) if shard_items else self.shards,
            changes=self.changes.without(version - CHANGES_MAX).with_item(version, change),
        )

    def _joined(self, entry: ShardEntry) -> ShardEntry:
        before = self.shards.get(entry.shard.shard)
        sealed = entry.shard.sealed
        if self.command_level < JOINING_LEVEL or not sealed:
            return entry
        if before is not None and before.shard.sealed is sealed:
            return entry
        shorter = joined(sealed)
        if shorter is sealed:
            return entry
        return replace(entry, shard=replace(entry.shard, sealed=shorter))

    def node_of(self, replica: ReplicaId) -> Node | None:
        """The node whose recorded store `replica` is."""
        node = self.nodes.get(replica.peer)
        return node if node is not None and node.store == replica.store else None

    def is_up(self, replica: ReplicaId) -> bool:
        """Whether the process that runs on `replica` is thought to live."""
        node = self.node_of(replica)
        return node is not None and node.state is NodeState.UP

    def is_node_up(self, name: NodeName) -> bool:
        """Whether there is such a node, and its process is thought to live."""
        node = self.nodes.get(name)
        return node is not None and node.state is NodeState.UP

    def is_healthy(self, replica: ReplicaId) -> bool:
        """Whether it is up, and neither at risk nor being drained."""
        node = self.node_of(replica)
        return node is not None and node.is_healthy

    def without_node(self, name: NodeName) -> "ClusterState":
        """The next version, in which nothing is known of the node any more."""
        version = self.version + 1
        changes = self.changes.without(version - CHANGES_MAX)
        return replace(
            self,
            version=version,
            nodes=self.nodes.without(name),
            events=self.events.without(name),
            changes=changes.with_item(version, Change(nodes=(name,))),
        )

    def without_log(self, name: str, shards: tuple[ShardId, ...]) -> "ClusterState":
        """The next version, in which the log is gone, and these shards, which are all of it."""
        version = self.version + 1
        changes = self.changes.without(version - CHANGES_MAX)
        return replace(
            self,
            version=version,
            logs=self.logs.without(name),
            shards=self.shards.without_keys(shards),
            changes=changes.with_item(version, Change(logs=(name,), shards=shards)),
        )

    def changed_ids(self, version: int) -> Change | None:
        """Names and ids that changed after `version`, sorted; None if that is not remembered."""
        if version == self.version:
            return Change()
        if version > self.version or version + 1 not in self.changes:
            return None
        nodes: set[NodeName] = set()
        logs: set[str] = set()
        shards: set[ShardId] = set()
        for each in range(version + 1, self.version + 1):
            change = self.changes[each]
            nodes.update(change.nodes)
            logs.update(change.logs)
            shards.update(change.shards)
        return Change(
            nodes=tuple(sorted(nodes)), logs=tuple(sorted(logs)), shards=tuple(sorted(shards))
        )

    def changes_since(self, version: int) -> MapDelta:
        """What a reader that has `version` lacks; everything if that is not remembered."""
        ids = self.changed_ids(version)
        full = ids is None
        if ids is None:
            ids = Change(
                nodes=tuple(sorted(self.nodes)),
                logs=tuple(sorted(self.logs)),
                shards=tuple(sorted(self.shards)),
            )
        return MapDelta(
            version=self.version,
            full=full,
            nodes=tuple(self.nodes[name] for name in ids.nodes if name in self.nodes),
            removed_nodes=tuple(name for name in ids.nodes if name not in self.nodes),
            logs=tuple(self.logs[name] for name in ids.logs if name in self.logs),
            removed_logs=tuple(name for name in ids.logs if name not in self.logs),
            shards=tuple(self.shards[shard] for shard in ids.shards if shard in self.shards),
            removed_shards=tuple(shard for shard in ids.shards if shard not in self.shards),
            next_shard=self.next_shard,
            skipped_shards=self.recovery.skipped_shards,
        )


def key_range(index: int, count: int) -> tuple[int, int]:
    """Lowest and highest key hash, both inclusive, of the `index`-th of `count` shards of a log."""
    return index * KEY_HASHES // count, (index + 1) * KEY_HASHES // count - 1
