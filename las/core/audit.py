"""Who changed what: a record of every change that somebody asked for, and of every refusal.

A command of a person travels inside an `Audited`, which says who sent it. Both are applied as one
step, so there is no change of a person's without its record and no record of a change that never
was; a retry that consensus recognizes leaves no second record. What is refused before it became a
command leaves a `RecordRefusal`. What the LAS does by itself (failovers, copies, forecasts) is told
in the history of the nodes and is not here.

Records are numbered from 1 without a hole; the newest `AUDIT_MAX` are kept, so the number of the
newest one tells how many have fallen off. The words of *before* and *after* are made from the
committed state, and so are the same on every LAS node.
"""

from collections.abc import Callable
from dataclasses import replace

from las.core import access, retention
from las.core.commands import (
    Audited,
    Caller,
    Command,
    CreateLog,
    InstallModel,
    PromoteModel,
    RaiseCommandLevel,
    RecordRefusal,
    RecordRejoin,
    Result,
    RollBackModel,
    Target,
)
from las.core.model_registry import ModelHead
from las.core.state import AUDIT_MAX, AuditRecord, ClusterState, Log, Node, ShardEntry
from peerd.core.ids import NO_EPOCH, NodeName, ShardId
from peerd.core.shard_map import Compression

# limit: characters of each text of an audit record.
AUDIT_TEXT_MAX = 300

Apply = Callable[[ClusterState, Command], tuple[ClusterState, Result]]


def audited(state: ClusterState, command: Audited, apply: Apply) -> tuple[ClusterState, Result]:
    """A command that somebody asked for.

    | `Audited(who, command)` | as the command | as the command, and a record of who asked, of what
    was before and after, or of the refusal; the committed clock moves on, never back. |
    """
    after, result = apply(state, command.command)
    target = target_of(state, command.command)
    record = AuditRecord(
        number=state.audited + 1,
        clock_ms=max(state.clock_ms, command.caller.clock_ms),
        timestamp_ms=command.caller.timestamp_ms,
        who=_clipped(command.caller.who),
        role=_clipped(command.caller.role),
        what=_clipped(command.caller.what),
        node=target.node,
        log=target.log,
        shard=target.shard,
        model=target.model,
        before=_words(state, command.command, target),
        after=_words(after, command.command, target),
        ok=result.ok,
        reason="" if result.ok else result.reason.value,
        text=_clipped(result.text),
    )
    return _kept(after, record, command.caller), result


def record_refusal(state: ClusterState, command: RecordRefusal) -> tuple[ClusterState, Result]:
    """A call that was refused before it became a command.

    | `RecordRefusal(who, target, reason)` | – | a record of it; nothing else changes, but for the
    committed clock, which moves on. |
    """
    target = Target(
        node=NodeName(_clipped(command.target.node)),
        log=_clipped(command.target.log),
        shard=command.target.shard,
        model=_clipped(command.target.model),
    )
    there = words_of(state, target)
    record = AuditRecord(
        number=state.audited + 1,
        clock_ms=max(state.clock_ms, command.caller.clock_ms),
        timestamp_ms=command.caller.timestamp_ms,
        who=_clipped(command.caller.who),
        role=_clipped(command.caller.role),
        what=_clipped(command.caller.what),
        node=target.node,
        log=target.log,
        shard=target.shard,
        model=target.model,
        before=there,
        after=there,
        ok=False,
        reason=_clipped(command.reason),
        text=_clipped(command.text),
    )
    return _kept(state, record, command.caller), Result(ok=True)


def record_rejoin(state: ClusterState, command: RecordRejoin) -> tuple[ClusterState, Result]:
    """What somebody did on a host of the LAS, outside of any call.

    | `RecordRejoin(who, store)` | it is not recorded that the node came with this store | a record
    of it; nothing else changes, but for the committed clock, which moves on. |
    """
    rejoin = (command.caller.who, command.store)
    if rejoin in state.rejoined:
        return state, Result(ok=True, text="recorded already")
    others = [each for each in state.rejoined if each[0] != command.caller.who]
    after = replace(state, rejoined=tuple(sorted([*others, rejoin])))
    text = f"came back with store {command.store}, and gets what it had promised from the others"
    return recorded(after, command.caller, text), Result(ok=True)


def recorded(state: ClusterState, caller: Caller, text: str) -> ClusterState:
    """The state with a record of what was done to all of it, outside of any call."""
    record = AuditRecord(
        number=state.audited + 1,
        clock_ms=max(state.clock_ms, caller.clock_ms),
        timestamp_ms=caller.timestamp_ms,
        who=_clipped(caller.who),
        role=_clipped(caller.role),
        what=_clipped(caller.what),
        ok=True,
        text=_clipped(text),
    )
    return _kept(state, record, caller)


def _kept(state: ClusterState, record: AuditRecord, caller: Caller) -> ClusterState:
    """The state with a record more, the oldest one gone if there are too many."""
    records = state.audit.without(record.number - AUDIT_MAX).with_item(record.number, record)
    return retention.advanced(replace(state, audit=records, audited=record.number), caller.clock_ms)


# ---------------------------------------------------------------------------------- targets
def target_of(state: ClusterState, command: Command) -> Target:
    """What a command is about: a node, or a model's head, or a log, or a shard with its log."""
    if log := access.log_of(command):
        return Target(log=_clipped(log))
    if isinstance(command, InstallModel | PromoteModel | RollBackModel):
        return Target(model=command.head)
    node = getattr(command, "node", None)
    if node is not None:
        return Target(node=NodeName(_clipped(node)))
    shard = getattr(command, "shard", None)
    if shard is not None:
        entry = state.shards.get(shard)
        return Target(shard=shard, log="" if entry is None else entry.shard.log)
    name = command.name if isinstance(command, CreateLog) else getattr(command, "log", "")
    return Target(log=_clipped(name))


def _words(state: ClusterState, command: Command, target: Target) -> str:
    """What is committed of what a command is about, in one line."""
    if isinstance(command, RaiseCommandLevel):
        return f"level {state.command_level}"
    words = access.words_for(state, command)
    return words_of(state, target) if words is None else _clipped(words)


def words_of(state: ClusterState, target: Target) -> str:
    """What is committed of a target, in one line; empty if there is none."""
    if target.node:
        node = state.nodes.get(target.node)
        return "" if node is None else _node_words(node)
    if target.shard:
        entry = state.shards.get(ShardId(target.shard))
        return "" if entry is None else _shard_words(entry)
    if target.model:
        known = target.model in set(ModelHead)
        return state.models.of(ModelHead(target.model)).words if known else ""
    log = state.logs.get(target.log)
    return "" if log is None else _log_words(log)


def _node_words(node: Node) -> str:
    parts = [node.state.value, f"store {node.store}"]
    if node.draining and node.drain_until_ms:
        parts.append(f"draining until {node.drain_until_ms} ms")
    elif node.draining:
        parts.append("draining")
    if node.at_risk:
        parts.append("at risk")
    return ", ".join(parts)


def _shard_words(entry: ShardEntry) -> str:
    shard = entry.shard
    parts = [f"epoch {shard.open.epoch} open at {shard.open.plan.primary.peer}"]
    if shard.prepared is not None:
        primary = shard.prepared.plan.primary.peer
        parts.append(f"epoch {shard.prepared.epoch} prepared at {primary}")
    if shard.fence != NO_EPOCH:
        parts.append(f"fence {shard.fence} stands")
    if shard.split is not None:
        parts.append("split" if shard.split.is_committed else "split pending")
    if shard.gaps:
        parts.append(f"gaps: {len(shard.gaps)}")
    if shard.kept_from:
        parts.append(f"trimmed to {shard.kept_from}")
    if shard.tier is not None and shard.tier.begin < shard.tier.end:
        parts.append(f"in the tier from {shard.tier.begin} to {shard.tier.end}")
    if entry.halted:
        parts.append("halted")
    return ", ".join(parts)


def _log_words(log: Log) -> str:
    parts = [f"shards: {len(log.shards)}", f"copies: {log.copies}", f"acks: {log.acks}"]
    if log.retention_bytes:
        parts.append(f"keeps {log.retention_bytes} bytes a shard")
    if log.retention_ms:
        parts.append(f"keeps {log.retention_ms} ms")
    if log.hot_bytes:
        parts.append(f"{log.hot_bytes} hot bytes a shard")
    if log.compression is not Compression.NONE:
        parts.append(f"packed with {log.compression}")
    return ", ".join(parts)


def _clipped(text: str) -> str:
    return text[:AUDIT_TEXT_MAX]
