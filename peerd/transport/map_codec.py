"""The shard map between its wire form (`las.v1`) and plain values.

`decode_…` and `encode_…` are inverses for every value that the LAS can commit. What cannot be a
value of the map (a chain with a gap, an unknown role) raises `MapMalformed`: a peer never works
with half a map.

Thousands of shards have a handful of plans between them, and a change of one of a shard's segments
sends the others again. So plans and segments that were met before are not made again: the same
bytes give the same value, and the same value the same message. Neither is ever changed.

Must not: keep anything else, or judge what a map means.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from las.v1 import shard_map_pb2
from peerd.core.check import InvariantViolation
from peerd.core.ids import BootId, Epoch, NodeName, Offset, ProcessId, ReplicaId, ShardId, StoreId
from peerd.core.shard_map import (
    ChainEntry,
    Compression,
    Gap,
    Parent,
    Plan,
    Release,
    Segment,
    Shard,
    SkippedEpochs,
    Split,
    Tiered,
    chain_of,
    entries_of,
    run_of,
)

# limit: plans and segments that are kept in each direction, some 5 MB at the most; when there are
# more, keeping begins anew
KEPT_MAX = 8_192

_Key = TypeVar("_Key")
_Made = TypeVar("_Made")

_plans: dict[bytes, Plan] = {}
_segments: dict[bytes, Segment] = {}
_runs: dict[bytes, ChainEntry] = {}
_encoded_plans: dict[Plan, shard_map_pb2.Plan] = {}
_encoded_segments: dict[ChainEntry, shard_map_pb2.Segment] = {}


def _keep(kept: dict[_Key, _Made], key: _Key, made: _Made) -> _Made:
    if len(kept) >= KEPT_MAX:
        kept.clear()
    kept[key] = made
    return made


class MapMalformed(ValueError):
    """A message that cannot be part of any committed map; the message says which entry and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeEntry:
    """A peer of the fleet; see `las.v1.Node`. `labels` are host, rack and zone."""

    name: NodeName
    address: str
    store: StoreId
    boot: BootId
    labels: Mapping[str, str] = field(default_factory=dict)
    may_lead: bool = True
    up: bool = True
    at_risk: bool = False
    draining: bool = False

    @property
    def replica(self) -> ReplicaId:
        """The store that the node registered with."""
        return ReplicaId(self.name, self.store)

    @property
    def process(self) -> ProcessId:
        """The process that registered last."""
        return ProcessId(self.name, self.store, self.boot)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """A log and its policy; see `las.v1.Log`. `shards` are in the order of their key ranges."""

    name: str
    copies: int
    acks: int
    shards: tuple[ShardId, ...]
    retention_bytes: int = 0
    retention_ms: int = 0
    compression: Compression = Compression.NONE
    hot_bytes: int = 0


# ------------------------------------------------------------------------------ replicas, processes


def encode_replica(replica: ReplicaId) -> shard_map_pb2.Replica:
    """The wire form of a store of a peer."""
    return shard_map_pb2.Replica(peer=replica.peer, store_id=replica.store)


def decode_replica(message: shard_map_pb2.Replica) -> ReplicaId:
    """Inverse of `encode_replica`."""
    return ReplicaId(NodeName(message.peer), StoreId(message.store_id))


def encode_process(process: ProcessId) -> shard_map_pb2.Process:
    """The wire form of a process."""
    return shard_map_pb2.Process(peer=process.peer, store_id=process.store, boot_id=process.boot)


def decode_process(message: shard_map_pb2.Process) -> ProcessId:
    """Inverse of `encode_process`."""
    return ProcessId(NodeName(message.peer), StoreId(message.store_id), BootId(message.boot_id))


def encode_plan(plan: Plan) -> shard_map_pb2.Plan:
    """The wire form of a plan; not to be changed, since it may be somebody else's, too."""
    known = _encoded_plans.get(plan)
    if known is not None:
        return known
    return _keep(
        _encoded_plans,
        plan,
        shard_map_pb2.Plan(
            primary=encode_process(plan.primary),
            voters=[encode_replica(replica) for replica in plan.voters],
            non_voters=[encode_replica(replica) for replica in plan.non_voters],
            acks=plan.acks,
            closed=plan.closed,
        ),
    )


def decode_plan(message: shard_map_pb2.Plan) -> Plan:
    """Inverse of `encode_plan`.

    Raises:
        MapMalformed: no plan can look like this (see `Plan`).
    """
    wire = message.SerializeToString()
    known = _plans.get(wire)
    return _keep(_plans, wire, _decode_plan(message)) if known is None else known


def _decode_plan(message: shard_map_pb2.Plan) -> Plan:
    try:
        return Plan(
            primary=decode_process(message.primary),
            voters=tuple(decode_replica(replica) for replica in message.voters),
            non_voters=tuple(decode_replica(replica) for replica in message.non_voters),
            acks=message.acks,
            closed=message.closed,
        )
    except InvariantViolation as error:
        raise MapMalformed(f"plan: {error}") from error


# ------------------------------------------------------------------------------ segments, shards


def encode_segment(segment: Segment) -> shard_map_pb2.Segment:
    """The wire form of a segment; what is None stays unset. Not to be changed, as a plan's."""
    known = _encoded_segments.get(segment)
    if known is not None:
        return known
    return _keep(_encoded_segments, segment, _encode_segment(segment))


def _encode_segment(segment: Segment) -> shard_map_pb2.Segment:
    return shard_map_pb2.Segment(
        epoch=segment.epoch,
        begin=segment.begin,
        end=segment.end,
        known_commit=segment.known_commit,
        plan=encode_plan(segment.plan),
        holders=[encode_replica(replica) for replica in segment.holders],
        wanted_holders=[encode_replica(replica) for replica in segment.wanted_holders],
        released=[
            shard_map_pb2.Release(holder=encode_replica(each.holder), version=each.version)
            for each in segment.released
        ],
    )


def encode_sealed(entry: ChainEntry) -> shard_map_pb2.Segment:
    """The wire form of an entry of sealed segments. Not to be changed, as a segment's."""
    if isinstance(entry, Segment):
        return encode_segment(entry)
    known = _encoded_segments.get(entry)
    if known is not None:
        return known
    message = _encode_segment(entry.newest)
    parts = list(entry.parts())
    ends = [*(begin for _, begin in parts[1:]), message.begin]
    message.begin = entry.begin
    message.earlier_epochs.extend(epoch for epoch, _ in parts)
    message.earlier_ends.extend(ends)
    return _keep(_encoded_segments, entry, message)


def decode_sealed(message: shard_map_pb2.Segment) -> ChainEntry:
    """Inverse of `encode_sealed`.

    Raises:
        MapMalformed: its plan is malformed, or its segments do not follow each other.
    """
    if not message.earlier_epochs:
        return decode_segment(message)
    wire = message.SerializeToString()
    known = _runs.get(wire)
    return _keep(_runs, wire, _decode_run(message)) if known is None else known


def _decode_run(message: shard_map_pb2.Segment) -> ChainEntry:
    epochs, ends = message.earlier_epochs, message.earlier_ends
    if len(epochs) != len(ends):
        raise MapMalformed(f"segment {message.epoch}: an end for each earlier epoch")
    newest = replace(_decode_segment(message), begin=Offset(ends[-1]))
    begins = [message.begin, *ends[:-1]]
    try:
        return run_of(newest, list(zip(epochs, begins, strict=True)))
    except InvariantViolation as error:
        raise MapMalformed(f"segment {message.epoch}: {error}") from error


def decode_segment(message: shard_map_pb2.Segment) -> Segment:
    """Inverse of `encode_segment`.

    Raises:
        MapMalformed: its plan is malformed.
    """
    wire = message.SerializeToString()
    known = _segments.get(wire)
    return _keep(_segments, wire, _decode_segment(message)) if known is None else known


def _decode_segment(message: shard_map_pb2.Segment) -> Segment:
    return Segment(
        epoch=Epoch(message.epoch),
        plan=decode_plan(message.plan),
        begin=Offset(message.begin) if message.HasField("begin") else None,
        end=Offset(message.end) if message.HasField("end") else None,
        known_commit=Offset(message.known_commit) if message.HasField("known_commit") else None,
        holders=tuple(decode_replica(replica) for replica in message.holders),
        wanted_holders=tuple(decode_replica(replica) for replica in message.wanted_holders),
        released=tuple(
            Release(holder=decode_replica(each.holder), version=each.version)
            for each in message.released
        ),
    )


def _encode_split(split: Split) -> shard_map_pb2.Split:
    return shard_map_pb2.Split(key_hash=split.key_hash, end=split.end, children=split.children)


def _decode_split(message: shard_map_pb2.Split) -> Split:
    return Split(
        key_hash=message.key_hash,
        end=Offset(message.end) if message.HasField("end") else None,
        children=tuple(ShardId(child) for child in message.children),
    )


def _encode_parent(parent: Parent) -> shard_map_pb2.Parent:
    return shard_map_pb2.Parent(shard=parent.shard, end=parent.end)


def _decode_parent(message: shard_map_pb2.Parent) -> Parent:
    return Parent(shard=ShardId(message.shard), end=Offset(message.end))


def _encode_gap(gap: Gap) -> shard_map_pb2.LostRange:
    return shard_map_pb2.LostRange(begin=gap.begin, end=gap.end, epochs=gap.epochs, why=gap.why)


def _decode_gap(message: shard_map_pb2.LostRange) -> Gap:
    return Gap(
        begin=Offset(message.begin),
        end=Offset(message.end),
        epochs=tuple(Epoch(epoch) for epoch in message.epochs),
        why=message.why,
    )


def _encode_tier(tier: Tiered) -> shard_map_pb2.TierRange:
    return shard_map_pb2.TierRange(begin=tier.begin, end=tier.end, manifest=tier.manifest)


def _decode_tier(message: shard_map_pb2.TierRange) -> Tiered:
    return Tiered(begin=Offset(message.begin), end=Offset(message.end), manifest=message.manifest)


def encode_shard(shard: Shard, *, share: bool = True) -> shard_map_pb2.Shard:
    """The wire form of a shard's entry. `share`: sealed segments may share one (§8), which readers
    below feature level 6 do not know.
    """
    sealed = entries_of(shard.sealed) if share else shard.sealed
    return shard_map_pb2.Shard(
        shard=shard.shard,
        log=shard.log,
        key_hash_low=shard.key_hash_low,
        key_hash_high=shard.key_hash_high,
        sealed=[encode_sealed(entry) for entry in sealed],
        open=encode_segment(shard.open),
        prepared=None if shard.prepared is None else encode_segment(shard.prepared),
        fence=shard.fence,
        dead_epochs=shard.dead_epochs,
        split=None if shard.split is None else _encode_split(shard.split),
        parent=None if shard.parent is None else _encode_parent(shard.parent),
        lost_ranges=[_encode_gap(gap) for gap in shard.gaps],
        trimmed_to=shard.trimmed_to,
        skipped=[
            shard_map_pb2.SkippedEpochs(first=each.first, last=each.last, given_up=each.given_up)
            for each in shard.skipped
        ],
        tier=None if shard.tier is None else _encode_tier(shard.tier),
    )


def decode_shard(message: shard_map_pb2.Shard) -> Shard:
    """Inverse of `encode_shard`.

    Raises:
        MapMalformed: the segments do not tile, or a plan is malformed (G7).
    """
    try:
        return Shard(
            shard=ShardId(message.shard),
            log=message.log,
            key_hash_low=message.key_hash_low,
            key_hash_high=message.key_hash_high,
            sealed=chain_of([decode_sealed(entry) for entry in message.sealed]),
            open=decode_segment(message.open),
            prepared=decode_segment(message.prepared) if message.HasField("prepared") else None,
            fence=Epoch(message.fence),
            dead_epochs=tuple(Epoch(epoch) for epoch in message.dead_epochs),
            split=_decode_split(message.split) if message.HasField("split") else None,
            parent=_decode_parent(message.parent) if message.HasField("parent") else None,
            gaps=tuple(_decode_gap(gap) for gap in message.lost_ranges),
            trimmed_to=Offset(message.trimmed_to),
            skipped=tuple(
                SkippedEpochs(
                    first=Epoch(each.first), last=Epoch(each.last), given_up=each.given_up
                )
                for each in message.skipped
            ),
            tier=_decode_tier(message.tier) if message.HasField("tier") else None,
        )
    except (InvariantViolation, MapMalformed) as error:
        raise MapMalformed(f"shard {message.shard} of log {message.log!r}: {error}") from error


# ------------------------------------------------------------------------------ nodes, logs


def encode_node(node: NodeEntry) -> shard_map_pb2.Node:
    """The wire form of a node."""
    return shard_map_pb2.Node(
        name=node.name,
        address=node.address,
        store_id=node.store,
        boot_id=node.boot,
        labels=node.labels,
        may_lead=node.may_lead,
        state=shard_map_pb2.NODE_STATE_UP if node.up else shard_map_pb2.NODE_STATE_DOWN,
        at_risk=node.at_risk,
        draining=node.draining,
    )


def decode_node(message: shard_map_pb2.Node) -> NodeEntry:
    """Inverse of `encode_node`; a state that this version does not know counts as down."""
    return NodeEntry(
        name=NodeName(message.name),
        address=message.address,
        store=StoreId(message.store_id),
        boot=BootId(message.boot_id),
        labels=dict(message.labels),
        may_lead=message.may_lead,
        up=message.state == shard_map_pb2.NODE_STATE_UP,
        at_risk=message.at_risk,
        draining=message.draining,
    )


def encode_log(log: LogEntry) -> shard_map_pb2.Log:
    """The wire form of a log."""
    return shard_map_pb2.Log(
        name=log.name,
        copies=log.copies,
        acks=log.acks,
        shards=log.shards,
        retention_bytes=log.retention_bytes,
        retention_ms=log.retention_ms,
        compression=encode_compression(log.compression),
        hot_bytes=log.hot_bytes,
    )


def decode_log(message: shard_map_pb2.Log) -> LogEntry:
    """Inverse of `encode_log`."""
    return LogEntry(
        name=message.name,
        copies=message.copies,
        acks=message.acks,
        shards=tuple(ShardId(shard) for shard in message.shards),
        retention_bytes=message.retention_bytes,
        retention_ms=message.retention_ms,
        compression=decode_compression(message.compression) or Compression.NONE,
        hot_bytes=message.hot_bytes,
    )


_COMPRESSIONS = {
    Compression.NONE: shard_map_pb2.COMPRESSION_NONE,
    Compression.ZSTD: shard_map_pb2.COMPRESSION_ZSTD,
}


def encode_compression(compression: Compression | None) -> shard_map_pb2.Compression.ValueType:
    """The wire form; None is not set."""
    if compression is None:
        return shard_map_pb2.COMPRESSION_UNSPECIFIED
    return _COMPRESSIONS[compression]


def decode_compression(message: shard_map_pb2.Compression.ValueType) -> Compression | None:
    """Inverse of `encode_compression`; None also for one that only a later version knows."""
    return next((known for known, wire in _COMPRESSIONS.items() if wire == message), None)
