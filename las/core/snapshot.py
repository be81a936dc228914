"""The committed state as bytes and back.

Lines of JSON: a header with tables of the replicas and processes that occur, then one line per
node, log, history, audit record, shard and outage, sorted, and one for the forecast models, if any
was ever installed. Shards name replicas by index into the tables, which keeps a map of 100,000
shards small and quick to write. Equal states make equal bytes.
The raft layer adds length and checksum around it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import cast

from las.core.codec import CodecError, JsonValue, decode, encode, from_json, to_json
from las.core.history import FailureHistory, Outage
from las.core.ledger import Case
from las.core.model_registry import NO_MODELS, ModelRegistry
from las.core.persistent import PersistentMap
from las.core.state import (
    JOINING_LEVEL,
    NO_RECOVERY,
    AgeMark,
    AuditRecord,
    ClusterState,
    Event,
    Log,
    Node,
    Recovery,
    ShardEntry,
)
from peerd.core.access import NO_ACCESS_TABLE, AccessTable
from peerd.core.check import InvariantViolation
from peerd.core.ids import BootId, Epoch, NodeName, Offset, ProcessId, ReplicaId, ShardId, StoreId
from peerd.core.shard_map import (
    ChainEntry,
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
    newest_of,
    run_of,
)

FORMAT = 7
"""Version of this format. A reader refuses what it does not know: an older program must not guess.

1 had neither audit records nor ends of drains, and is still read. 2 has neither a group that
began from older data nor LAS nodes that rejoined, 3 no tier, 4 no command level, 5 no access table,
6 no entry of several sealed segments.
The lowest that fits is written.
"""
_WITHOUT_RUNS = 6
_WITHOUT_ACCESS = 5
_WITHOUT_LEVEL = 4
_WITHOUT_TIER = 3
_WITHOUT = 2
_FORMATS_READ = frozenset(
    {1, _WITHOUT, _WITHOUT_TIER, _WITHOUT_LEVEL, _WITHOUT_ACCESS, _WITHOUT_RUNS, FORMAT}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    format: int
    cluster_id: str
    version: int
    next_shard: ShardId
    nodes: int
    logs: int
    histories: int
    shards: int
    replicas: tuple[tuple[str, str], ...]
    processes: tuple[tuple[str, str, str], ...]
    clock_ms: int = 0
    audits: int = 0
    audited: int = 0
    outages: int = 0
    outages_dropped: int = 0
    cases: int = 0
    next_case: int = 1
    has_models: bool = False
    recovery: Recovery = NO_RECOVERY
    rejoined: tuple[tuple[str, str], ...] = ()
    command_level: int = 1
    access: AccessTable = NO_ACCESS_TABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class _History:
    node: NodeName
    events: tuple[Event, ...]


@dataclass(slots=True)
class _Writer:
    """Numbers replicas and processes in the order in which they first occur."""

    replicas: dict[ReplicaId, int] = field(default_factory=dict)
    processes: dict[ProcessId, int] = field(default_factory=dict)

    def many(self, replicas: tuple[ReplicaId, ...]) -> list[int]:
        return [self.replicas.setdefault(each, len(self.replicas)) for each in replicas]

    def plan(self, plan: Plan) -> list[object]:
        primary = self.processes.setdefault(plan.primary, len(self.processes))
        row = [primary, self.many(plan.voters), self.many(plan.non_voters), plan.acks]
        return [*row, True] if plan.closed else row

    def segment(self, segment: Segment) -> list[object]:
        released = self.many(tuple(each.holder for each in segment.released))
        versions = [each.version for each in segment.released]
        return [
            segment.epoch,
            segment.begin,
            segment.end,
            segment.known_commit,
            self.plan(segment.plan),
            self.many(segment.holders),
            self.many(segment.wanted_holders),
            # Most have none; a group that has some is of a level that older programs refuse.
            *([released, versions] if released else []),
        ]

    def sealed(self, entry: ChainEntry) -> list[object]:
        row = self.segment(newest_of(entry))
        return row if isinstance(entry, Segment) else [*row, list(chain(*entry.parts()))]

    def entry(self, entry: ShardEntry) -> list[object]:
        shard = entry.shard
        return [
            shard.shard,
            shard.log,
            shard.key_hash_low,
            shard.key_hash_high,
            self.segment(shard.open),
            [self.sealed(each) for each in entries_of(shard.sealed)],
            None if shard.prepared is None else self.segment(shard.prepared),
            shard.fence,
            list(shard.dead_epochs),
            entry.drawn,
            entry.halted,
            *_rarities(entry),
        ]


def _rarities(entry: ShardEntry) -> list[JsonValue]:
    """Split, parent, gaps, trim, ages and what was skipped: most shards have none of it.

    What was skipped is left out where nothing was, so that an older program reads the rest.
    """
    shard = entry.shard
    skipped: list[JsonValue] = []
    if shard.skipped or shard.tier is not None:
        skipped = [[encode(each) for each in shard.skipped], entry.gap_why]
    if shard.tier is not None:
        skipped.append([shard.tier.begin, shard.tier.end, shard.tier.manifest])
    usual = shard.split or shard.parent or shard.gaps or shard.trimmed_to or entry.ages
    if not (usual or skipped):
        return []
    return [
        None if shard.split is None else encode(shard.split),
        None if shard.parent is None else encode(shard.parent),
        [encode(gap) for gap in shard.gaps],
        shard.trimmed_to,
        [[mark.clock_ms, mark.offset] for mark in entry.ages],
        *skipped,
    ]


def snapshot(state: ClusterState) -> bytes:
    """`state` as bytes. Takes about a second for 100,000 shards: not for the raft thread."""
    writer = _Writer()
    lines = [to_json(encode(state.nodes[name])) for name in sorted(state.nodes)]
    lines += [to_json(encode(state.logs[name])) for name in sorted(state.logs)]
    lines += [
        to_json(encode(_History(node=name, events=state.events[name])))
        for name in sorted(state.events)
    ]
    lines += [to_json(encode(state.audit[number])) for number in sorted(state.audit)]
    lines += [to_json(encode(state.cases[number])) for number in sorted(state.cases)]
    lines += [
        json.dumps(writer.entry(state.shards[shard]), separators=(",", ":"))
        for shard in sorted(state.shards)
    ]
    lines += [to_json(encode(outage)) for outage in state.history.outages]
    if state.models != NO_MODELS:
        lines.append(to_json(encode(state.models)))
    header = _Header(
        format=_format_of(state),
        cluster_id=state.cluster_id,
        version=state.version,
        next_shard=state.next_shard,
        nodes=len(state.nodes),
        logs=len(state.logs),
        histories=len(state.events),
        shards=len(state.shards),
        replicas=tuple((each.peer, each.store) for each in writer.replicas),
        processes=tuple((each.peer, each.store, each.boot) for each in writer.processes),
        clock_ms=state.clock_ms,
        audits=len(state.audit),
        audited=state.audited,
        outages=len(state.history),
        outages_dropped=state.history.dropped,
        cases=len(state.cases),
        next_case=state.next_case,
        has_models=state.models != NO_MODELS,
        recovery=state.recovery,
        rejoined=state.rejoined,
        command_level=state.command_level,
        access=state.access,
    )
    return "\n".join([to_json(encode(header)), *lines]).encode()


def _format_of(state: ClusterState) -> int:
    """The oldest format that has all of `state`."""
    if state.command_level >= JOINING_LEVEL:
        return FORMAT
    if state.access.version:
        return _WITHOUT_RUNS
    if state.command_level > 1:
        return _WITHOUT_ACCESS
    tiered = any(log.hot_bytes for log in state.logs.values()) or any(
        entry.shard.tier is not None for entry in state.shards.values()
    )
    if tiered:
        return _WITHOUT_LEVEL
    return _WITHOUT_TIER if state.recovery.id or state.rejoined else _WITHOUT


@dataclass(slots=True)
class _Reader:
    replicas: list[ReplicaId]
    processes: list[ProcessId]

    def many(self, indexes: list[int]) -> tuple[ReplicaId, ...]:
        return tuple(self.replicas[each] for each in indexes)

    def plan(self, row: list[object]) -> Plan:
        primary, voters, non_voters, acks = cast(tuple[int, list[int], list[int], int], row[:4])
        return Plan(
            primary=self.processes[primary],
            voters=self.many(voters),
            non_voters=self.many(non_voters),
            acks=acks,
            closed=row[4:] == [True],
        )

    def segment(self, row: list[object]) -> Segment:
        epoch, begin, end, known_commit, plan, holders, wanted = row[:7]
        released, versions = cast(list[list[int]], row[7:9] if len(row) > 8 else [[], []])
        return Segment(
            epoch=Epoch(cast(int, epoch)),
            begin=cast("Offset | None", begin),
            end=cast("Offset | None", end),
            known_commit=cast("Offset | None", known_commit),
            plan=self.plan(cast(list[object], plan)),
            holders=self.many(cast(list[int], holders)),
            wanted_holders=self.many(cast(list[int], wanted)),
            released=tuple(
                Release(holder=holder, version=version)
                for holder, version in zip(self.many(released), versions, strict=True)
            ),
        )

    def sealed(self, row: list[object]) -> ChainEntry:
        parts = cast(list[int], row[7]) if len(row) == 8 else []
        return run_of(self.segment(row), list(zip(parts[::2], parts[1::2], strict=True)))

    def entry(self, row: list[object]) -> ShardEntry:
        shard, log, low, high, opened, sealed, prepared, fence, dead, drawn, halted = row[:11]
        # A row of an older program ends before what its shards could not have.
        rarities = (*cast(list[JsonValue], row[11:]), *(None,) * 8)
        split, parent, gaps, trimmed_to, ages, skipped, gap_why, tier = rarities[:8]
        return ShardEntry(
            shard=Shard(
                shard=ShardId(cast(int, shard)),
                log=cast(str, log),
                key_hash_low=cast(int, low),
                key_hash_high=cast(int, high),
                open=self.segment(cast(list[object], opened)),
                sealed=chain_of([self.sealed(each) for each in cast(list[list[object]], sealed)]),
                prepared=None if prepared is None else self.segment(cast(list[object], prepared)),
                fence=Epoch(cast(int, fence)),
                dead_epochs=tuple(cast(list[Epoch], dead)),
                split=None if split is None else decode(Split, split),
                parent=None if parent is None else decode(Parent, parent),
                gaps=tuple(decode(Gap, gap) for gap in cast(list[JsonValue], gaps or [])),
                trimmed_to=Offset(cast(int, trimmed_to or 0)),
                skipped=tuple(
                    decode(SkippedEpochs, each) for each in cast(list[JsonValue], skipped or [])
                ),
                tier=None if tier is None else _tier_of(cast(tuple[int, int, str], tier)),
            ),
            drawn=Epoch(cast(int, drawn)),
            halted=cast(str, halted),
            ages=tuple(
                AgeMark(clock_ms=clock_ms, offset=Offset(offset))
                for clock_ms, offset in cast(list[tuple[int, int]], ages or [])
            ),
            gap_why=cast(str, gap_why or ""),
        )


def _tier_of(row: tuple[int, int, str]) -> Tiered:
    begin, end, manifest = row
    return Tiered(begin=Offset(begin), end=Offset(end), manifest=manifest)


def restore(data: bytes) -> ClusterState:
    """The state that `snapshot` wrote. Raises `CodecError` for anything else."""
    try:
        return _restore(iter(data.split(b"\n")))
    except (InvariantViolation, ValueError, TypeError, LookupError, StopIteration) as error:
        raise CodecError(f"the snapshot is damaged: {error!r}") from error


def _restore(lines: Iterator[bytes]) -> ClusterState:
    found = from_json(next(lines))
    if not isinstance(found, dict) or found.get("format") not in _FORMATS_READ:
        raise CodecError(
            f"the snapshot is not of format {FORMAT} or older; use the program that wrote it"
        )
    header = decode(_Header, found)
    reader = _Reader(
        replicas=[ReplicaId(NodeName(peer), StoreId(store)) for peer, store in header.replicas],
        processes=[
            ProcessId(NodeName(peer), StoreId(store), BootId(boot))
            for peer, store, boot in header.processes
        ],
    )
    nodes = [decode(Node, from_json(next(lines))) for _ in range(header.nodes)]
    logs = [decode(Log, from_json(next(lines))) for _ in range(header.logs)]
    histories = [decode(_History, from_json(next(lines))) for _ in range(header.histories)]
    audit = [decode(AuditRecord, from_json(next(lines))) for _ in range(header.audits)]
    cases = [decode(Case, from_json(next(lines))) for _ in range(header.cases)]
    entries = [reader.entry(_row(from_json(next(lines)))) for _ in range(header.shards)]
    outages = [decode(Outage, from_json(next(lines))) for _ in range(header.outages)]
    models = decode(ModelRegistry, from_json(next(lines))) if header.has_models else NO_MODELS
    if (extra := next(lines, None)) is not None:
        raise CodecError(f"the snapshot goes on after its end: {extra[:40]!r}")
    return ClusterState(
        cluster_id=header.cluster_id,
        version=header.version,
        clock_ms=header.clock_ms,
        next_shard=header.next_shard,
        nodes=PersistentMap((node.name, node) for node in nodes),
        logs=PersistentMap((log.name, log) for log in logs),
        shards=PersistentMap((entry.shard.shard, entry) for entry in entries),
        events=PersistentMap((history.node, history.events) for history in histories),
        audit=PersistentMap((record.number, record) for record in audit),
        audited=header.audited,
        history=FailureHistory(tuple(outages), header.outages_dropped),
        next_case=header.next_case,
        cases=PersistentMap((case.number, case) for case in cases),
        models=models,
        recovery=header.recovery,
        rejoined=header.rejoined,
        command_level=header.command_level,
        access=header.access,
    )


def _row(value: JsonValue) -> list[object]:
    if not isinstance(value, list):
        raise CodecError("a shard is a list")
    return cast(list[object], value)
