"""`apply(state, command)`: the one way in which committed state changes.

Deterministic and total: equal states and commands make equal states and results on every LAS node,
and nothing that a command says makes it raise. Segment commands are in `las.core.segments` and
`las.core.holders`, with the guards that keep the protocol; here are logs, nodes and events.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import cast

from las.core import (
    access,
    audit,
    casebook,
    holders,
    many_shards,
    many_steps,
    membership,
    models,
    outages,
    recovered,
    retention,
    segments,
    tier,
    trim,
)
from las.core import commands as c
from las.core.access_commands import AddGrant, EndRevocation, RemoveGrant, Revoke, SetAccess
from las.core.commands import Command, Reason, Result
from las.core.holder_commands import AddHolderAgain, ReleaseHolder
from las.core.rows import ChangeShards, StepShards
from las.core.segments import Applied, refuse
from las.core.state import (
    EVENTS_MAX,
    LOG_SHARDS_MAX,
    LOGS_MAX,
    NODES_MAX,
    SHARDS_MAX,
    ClusterState,
    Event,
    Log,
    Node,
    NodeState,
    ShardEntry,
    key_range,
)
from las.core.tier_commands import CoolShard, SetTier, TierShard
from peerd.core.ids import Epoch, Offset, ShardId
from peerd.core.shard_map import Plan, Segment, Shard

_LOG_NAME = re.compile(r"[a-z0-9._-]{1,128}")
FIRST_EPOCH = Epoch(1)
"""Epoch of a new shard's first segment."""

# limit: copies of a log; more voters than this only slow each other down.
COPIES_MAX = 7
# limit: length of a text that people read in an event, in characters.
EVENT_TEXT_MAX = 500


def apply(state: ClusterState, command: Command) -> Applied:
    """The state after `command`, and its result. Never raises for what a command says."""
    if isinstance(command, c.Audited):
        return audit.audited(state, command, apply)
    return _HANDLERS[type(command)](state, command)


# ---------------------------------------------------------------------------------- logs
def create_log(state: ClusterState, command: c.CreateLog) -> Applied:
    """A new log with its empty shards.

    | `CreateLog(name, rows)` | no log has the name; each row names `copies` registered nodes on
    different hosts, the first of which may lead | each shard gets epoch 1, open at 0 with its row
    as voters. |
    """
    if command.name in state.logs:
        return refuse(state, Reason.LOG_EXISTS, f"there is a log {command.name} already")
    if wrong := _log_error(state, command):
        return refuse(state, *wrong)
    entries = []
    for index, row in enumerate(command.rows):
        nodes = [state.nodes[command.nodes[at]] for at in row]
        plan = Plan(
            primary=nodes[0].process,
            voters=tuple(node.replica for node in nodes),
            acks=command.acks,
        )
        low, high = key_range(index, len(command.rows))
        shard = Shard(
            shard=ShardId(state.next_shard + index),
            log=command.name,
            key_hash_low=low,
            key_hash_high=high,
            open=Segment(epoch=FIRST_EPOCH, plan=plan, begin=Offset(0)),
        )
        entries.append(ShardEntry(shard=shard, drawn=FIRST_EPOCH))
    shards = tuple(entry.shard.shard for entry in entries)
    log = Log(
        name=command.name,
        copies=command.copies,
        acks=command.acks,
        shards=shards,
        compression=command.compression,
    )
    after = state.changed(logs=(log,), shards=entries)
    after = replace(after, next_shard=ShardId(state.next_shard + len(entries)))
    return after, Result(ok=True, text="created", epoch=FIRST_EPOCH, shards=shards)


def _log_error(state: ClusterState, command: c.CreateLog) -> tuple[Reason, str] | None:
    if not _LOG_NAME.fullmatch(command.name):
        return Reason.INVALID_ARGUMENT, "a log name is 1 to 128 of a-z, 0-9, '.', '_' and '-'"
    if not 1 <= len(command.rows) <= LOG_SHARDS_MAX:
        return Reason.INVALID_ARGUMENT, f"a log has 1 to {LOG_SHARDS_MAX} shards"
    if wrong := _copies_error(command.copies, command.acks):
        return Reason.INVALID_ARGUMENT, wrong
    if len(state.logs) >= LOGS_MAX or len(state.shards) + len(command.rows) > SHARDS_MAX:
        text = f"a cluster has at most {LOGS_MAX} logs and {SHARDS_MAX} shards"
        return Reason.LIMIT_REACHED, text
    for name in command.nodes:
        if name not in state.nodes:
            return Reason.UNKNOWN_NODE, f"no node is called {name}"
    for row in command.rows:
        if any(not 0 <= at < len(command.nodes) for at in row):
            return Reason.INVALID_ARGUMENT, "a row names a node that is not listed"
        hosts = {state.nodes[command.nodes[at]].host for at in row}
        if len(row) != command.copies or len(hosts) != len(row):
            return Reason.INVALID_ARGUMENT, "each shard needs `copies` nodes on different hosts"
        if not state.nodes[command.nodes[row[0]]].may_lead:
            text = f"{command.nodes[row[0]]} stores copies only and is never primary"
            return Reason.INVALID_ARGUMENT, text
    return None


def set_copies(state: ClusterState, command: c.SetCopies) -> Applied:
    """Another number of copies or acks for a log that exists.

    | `SetCopies(log, copies, acks)` | the log is known | every segment that is opened from now on
    needs so many acks; the planner gives each shard so many voters. What was acknowledged in older
    segments keeps what it was promised. |
    """
    log = state.logs.get(command.log)
    if log is None:
        return refuse(state, Reason.UNKNOWN_LOG, f"there is no log {command.log}")
    if wrong := _copies_error(command.copies, command.acks):
        return refuse(state, Reason.INVALID_ARGUMENT, wrong)
    after = replace(log, copies=command.copies, acks=command.acks)
    if after == log:
        return state, Result(ok=True, text="so it is already")
    # Its shards did not change, but what is to be done for them and said of them did.
    touched = [state.shards[shard] for shard in log.shards]
    return state.changed(logs=(after,), shards=touched), Result(ok=True)


def set_compression(state: ClusterState, command: c.SetCompression) -> Applied:
    """How clients pack what they append from now on.

    | `SetCompression(log, compression)` | the log is known | clients that hear of it follow, unless
    a producer says otherwise; what is stored stays as it is. |
    """
    log = state.logs.get(command.log)
    if log is None:
        return refuse(state, Reason.UNKNOWN_LOG, f"there is no log {command.log}")
    if log.compression == command.compression:
        return state, Result(ok=True, text="so it is already")
    after = replace(log, compression=command.compression)
    return state.changed(logs=(after,)), Result(ok=True)


def delete_log(state: ClusterState, command: c.DeleteLog) -> Applied:
    """A log goes, with its records (docs/protocol.md §8.2).

    | `DeleteLog(log, shards)` | the log is known and these are its shards | it and all its shards,
    those that were split too, are gone from the map. Their ids are never drawn again: that is what
    tells every store, also one that slept, that they were deleted. |
    """
    log = state.logs.get(command.log)
    if log is None or log.shards != command.shards:
        gone = (recovered.was_deleted(state, each) for each in command.shards)
        if command.shards and all(gone):
            return state, Result(ok=True, text="deleted already", shards=command.shards)
        if log is None:
            return refuse(state, Reason.UNKNOWN_LOG, f"there is no log {command.log}")
        text = f"{command.log} has other shards by now: look at it again"
        return refuse(state, Reason.STATE_CHANGED, text)
    shards = tuple(
        sorted(
            entry.shard.shard for entry in state.shards.values() if entry.shard.log == command.log
        )
    )
    return state.without_log(command.log, shards), Result(ok=True, text="deleted", shards=shards)


def _copies_error(copies: int, acks: int) -> str:
    if not 1 <= acks <= copies <= COPIES_MAX:
        return f"acks and copies: 1 <= acks <= copies <= {COPIES_MAX}"
    return ""


# ---------------------------------------------------------------------------------- nodes
def register_node(state: ClusterState, command: c.RegisterNode) -> Applied:
    """A process announces itself.

    | `RegisterNode(node, store, boot)` | the node is new or its store is the recorded one; the boot
    id is of no process that is proven dead; no shard in the store is unknown to this LAS | the
    process is the node's, up; the one before it is dead. Shards whose stored epoch is above all
    drawn are halted, and so are those that lost commits changed (§4.6). |
    """
    known = state.nodes.get(command.name)
    if known is None and len(state.nodes) >= NODES_MAX:
        return refuse(state, Reason.LIMIT_REACHED, f"a cluster has at most {NODES_MAX} nodes")
    if known is not None and known.store != command.store:
        text = (
            f"{command.name} registered with store {known.store}, this one is {command.store}: "
            "give it the old data directory; if that is lost, "
            f"`peerctl node replace {command.name} --store {command.store}`"
        )
        return refuse(state, Reason.STORE_ID_CHANGED, text)
    if known is not None and command.boot in known.dead_boots:
        return refuse(state, Reason.STALE_BOOT, "a newer process of this node has registered")
    if wrong := recovered.registration_error(state, command):
        return refuse(state, Reason.LAS_LOST_ITS_PAST, wrong)
    for knows in (tier.registration_error, access.registration_error):
        if wrong := knows(state, command.name, command.feature_level):
            return refuse(state, Reason.STATE_CHANGED, wrong)
    node = Node(
        name=command.name,
        store=command.store,
        boot=command.boot,
        address=command.address,
        labels=tuple(sorted(command.labels)),
        may_lead=command.may_lead,
        feature_level=command.feature_level,
        in_service_s=command.at_s,
    )
    if known is not None:
        same = known.boot == command.boot
        node = replace(
            node,
            state=known.state if same else NodeState.UP,
            at_risk=known.at_risk,
            draining=known.draining,
            drain_until_ms=known.drain_until_ms,
            dead_boots=known.dead_boots if same else known.boots_dead_with_it,
            in_service_s=known.in_service_s,
        )
    entries, recovery = recovered.heard(state, command)
    if node == known and not entries and recovery == state.recovery:
        return state, Result(ok=True, text="registered already")
    after = replace(state.changed(nodes=(node,), shards=entries), recovery=recovery)
    after = outages.registered(after, known, node, command)
    halted = tuple(entry.shard.shard for entry in entries if entry.halted)
    return after, Result(ok=True, text="registered", shards=halted)


def set_node_state(state: ClusterState, command: c.SetNodeState) -> Applied:
    """A node's process was heard, missed, or lost its storage.

    | `SetNodeState(node, boot, state)` | the boot id is the registered one; a failed store stays
    failed | the node is up, down or failed. |
    """
    node = state.nodes.get(command.node)
    if node is None:
        return refuse(state, Reason.UNKNOWN_NODE, f"no node is called {command.node}")
    if node.boot != command.boot:
        return refuse(state, Reason.STALE_BOOT, f"{command.node} has another process meanwhile")
    if node.state is NodeState.FAILED and command.state is not NodeState.FAILED:
        text = f"the storage of {command.node} failed: only a new process ends this"
        return refuse(state, Reason.STATE_CHANGED, text)
    judged = replace(node, state=command.state)
    after, result = _put_node(state, node, judged)
    return outages.judged(after, node, judged, command), result


def set_at_risk(state: ClusterState, command: c.SetAtRisk) -> Applied:
    """The forecast's judgement of a node changed.

    | `SetAtRisk(node, flag)` | the node is known | the planner keeps it out of voters and
    primaries, or not. |
    """
    node = state.nodes.get(command.node)
    if node is None:
        return refuse(state, Reason.UNKNOWN_NODE, f"no node is called {command.node}")
    return _put_node(state, node, replace(node, at_risk=command.at_risk))


def set_draining(state: ClusterState, command: c.SetDraining) -> Applied:
    """An operator starts or ends a drain.

    | `SetDraining(node, flag, until)` | the node is known; a drain with an end ends later than the
    committed clock stands | treated as at risk until somebody ends it, or the committed clock has
    come to its end. |
    """
    node = state.nodes.get(command.node)
    if node is None:
        return refuse(state, Reason.UNKNOWN_NODE, f"no node is called {command.node}")
    until_ms = command.until_ms if command.draining else 0
    if until_ms and until_ms <= state.clock_ms:
        text = f"the drain would end at {until_ms} ms, and the clock stands at {state.clock_ms} ms"
        return refuse(state, Reason.INVALID_ARGUMENT, text)
    after = replace(node, draining=command.draining, drain_until_ms=until_ms)
    return _put_node(state, node, after)


def _put_node(state: ClusterState, before: Node, after: Node) -> Applied:
    if after == before:
        return state, Result(ok=True, text="so it is already")
    return state.changed(nodes=(after,)), Result(ok=True)


def record_event(state: ClusterState, command: c.RecordEvent) -> Applied:
    """Something for a node's history.

    | `RecordEvent(node, kind, text)` | the node is known | the newest 256 of a node are kept; the
    map's version stays. |
    """
    if command.node not in state.nodes:
        return refuse(state, Reason.UNKNOWN_NODE, f"no node is called {command.node}")
    event = Event(
        timestamp_ms=command.timestamp_ms,
        kind=command.kind,
        node=command.node,
        text=command.text[:EVENT_TEXT_MAX],
    )
    history = (*state.events.get(command.node, ()), event)[-EVENTS_MAX:]
    return replace(state, events=state.events.with_item(command.node, history)), Result(ok=True)


# ---------------------------------------------------------------------------------- versions
def raise_command_level(state: ClusterState, command: c.RaiseCommandLevel) -> Applied:
    """All members of the group know more commands.

    | `RaiseCommandLevel(level)` | the leader has heard from each member that it knows that level |
    commands of that level may be used; no change of the map. It never goes back. |
    """
    if command.level <= state.command_level:
        return state, Result(ok=True, text="so it is already")
    return replace(state, command_level=command.level), Result(ok=True, text="raised")


# ---------------------------------------------------------------------------------- dispatch
Handler = Callable[[ClusterState, Command], Applied]

_HANDLERS = cast(
    dict[type[Command], Handler],
    {
        c.CreateLog: create_log,
        c.PrepareSegment: segments.prepare_segment,
        c.PrepareSplit: segments.prepare_split,
        c.SegmentOpened: segments.segment_opened,
        c.WithdrawSegment: segments.withdraw_segment,
        c.FenceSegment: segments.fence_segment,
        c.OpenSegment: segments.open_segment,
        ChangeShards: many_shards.change_shards,
        StepShards: many_steps.step_shards,
        c.RaiseCommandLevel: raise_command_level,
        c.RecoverWithGap: segments.recover_with_gap,
        c.WantHolders: holders.want_holders,
        c.AddHolder: holders.add_holder,
        c.DropHolder: holders.drop_holder,
        ReleaseHolder: holders.release_holder,
        AddHolderAgain: holders.add_holder_again,
        c.TrimShard: trim.trim_shard,
        TierShard: tier.tier_shard,
        CoolShard: tier.cool_shard,
        c.HaltShard: segments.halt_shard,
        c.ReleaseShards: recovered.release_shards,
        c.GiveUpSkipped: recovered.give_up_skipped,
        c.SetCopies: set_copies,
        c.DeleteLog: delete_log,
        c.SetRetention: retention.set_retention,
        SetTier: tier.set_tier,
        c.SetCompression: set_compression,
        c.MarkAges: retention.mark_ages,
        c.RegisterNode: register_node,
        c.SetNodeState: set_node_state,
        c.SetAtRisk: set_at_risk,
        c.SetDraining: set_draining,
        c.RemoveNode: membership.remove_node,
        c.ReplaceNode: membership.replace_node,
        c.RecordEvent: record_event,
        c.OpenCase: casebook.open_case,
        c.CloseCase: casebook.close_case,
        c.StoreModelPiece: models.store_model_piece,
        c.InstallModel: models.install_model,
        c.PromoteModel: models.promote_model,
        c.RollBackModel: models.roll_back_model,
        SetAccess: access.set_access,
        AddGrant: access.add_grant,
        RemoveGrant: access.remove_grant,
        Revoke: access.revoke,
        EndRevocation: access.end_revocation,
        c.RecordRefusal: audit.record_refusal,
        c.RecordRejoin: audit.record_rejoin,
        c.RecordOutages: outages.record_outages,
    },
)
