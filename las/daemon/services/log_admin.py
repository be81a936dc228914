"""`las.v1.LogAdminService`: logs are created, listed and described; primaries handed over; splits.

Reads wait for a barrier, so that who created a log, wherever, finds it in the next answer.
"""

import asyncio
import time
from collections.abc import Sequence

from las.core import planner
from las.core.commands import (
    CreateLog,
    DeleteLog,
    GiveUpSkipped,
    PrepareSegment,
    PrepareSplit,
    SetCompression,
    SetCopies,
    SetRetention,
)
from las.core.recovered import can_give_up
from las.core.state import LOG_SHARDS_MAX, ClusterState, Log, ShardEntry
from las.core.tier_commands import SetTier
from las.daemon.audit import AuditedCall, Auditor
from las.daemon.gap_recovery import Proposal
from las.daemon.group import Group
from las.daemon.leader import Leadership
from las.daemon.map_feed import encode_entry, encode_las_log, shards_of
from las.daemon.reconcile import ShardGone
from las.daemon.services.callers import Callers
from las.daemon.services.results import invalid, require_ok
from las.daemon.trimmer import CannotTell
from las.v1 import log_admin_pb2, log_admin_pb2_grpc, shard_map_pb2
from peerd.core.access import Right
from peerd.core.errors import Reason, Taken
from peerd.core.ids import Epoch, NodeName, Offset, ShardId
from peerd.core.shard_map import Compression, Shard
from peerd.daemon.logging import get_logger
from peerd.transport.access import Access
from peerd.transport.internal_logs import INTERNAL_LOGS, is_internal
from peerd.transport.limits import RETRY_AFTER_MS
from peerd.transport.map_codec import decode_compression
from peerd.transport.map_service import unknown_log
from peerd.transport.status import Context, Refused, reason_of, refusal

# limit: characters of the line that says why records were given up.
WHY_CHARACTERS_MAX = 300
# How long a split may take before its caller is told to look later, in seconds: what a hand-over is
# given (5 s to be declined), and as much again for a failover on the way.
SPLIT_WAIT_S = 10.0
# How long a deletion waits for the peers that are up to hear of it, in seconds: three heartbeats
# and more; and the pause between two looks.
DELETION_HEARD_S = 2.5
DELETION_LOOK_S = 0.05

_log = get_logger("logs")


class LogAdminServicer(log_admin_pb2_grpc.LogAdminServiceServicer):
    """Serves on the leader; others name it."""

    def __init__(
        self,
        group: Group,
        leadership: Leadership,
        callers: Callers,
        auditor: Auditor,
        access: Access,
    ) -> None:
        self._group = group
        self._leadership = leadership
        self._callers = callers
        self._auditor = auditor
        self._access = access

    def _require_grant(self, context: Context, log: str) -> None:
        """Go on if the caller may administer the log. Raises `Refused`: NOT_GRANTED."""
        identity = self._callers.identity_of(context)
        denied = self._access.verdict(identity, log, Right.ADMINISTER)
        if denied is not None:
            raise Refused(denied)

    async def CreateLog(
        self,
        request: log_admin_pb2.CreateLogRequest,
        context: Context,
    ) -> log_admin_pb2.CreateLogResponse:
        """A new log, placed over the nodes that are up.

        Raises:
            Refused: LOG_EXISTS, NOT_ENOUGH_PEERS, LIMIT_REACHED, INVALID_ARGUMENT, NOT_LAS_LEADER.
        """
        async with self._auditor.call(context, "log create", log=request.name) as call:
            self._require_grant(context, request.name)
            # A node may have registered elsewhere a moment ago; and the name may be taken.
            await self._group.barrier()
            state = self._group.state
            if is_internal(request.name):
                raise invalid(f"log name {request.name!r}: names that begin with '_' are internal")
            if not 1 <= request.shards <= LOG_SHARDS_MAX:
                raise invalid(f"shards = {request.shards}: a log has 1 to {LOG_SHARDS_MAX}")
            if request.name in state.logs:
                text = f"there is a log {request.name!r} already"
                raise Refused(refusal(Reason.LOG_EXISTS, text))
            copies_most = request.copies or planner.COPIES_DEFAULT
            if request.acks > copies_most:
                raise invalid(f"acks = {request.acks} is more than copies = {copies_most}")
            policy = planner.resolve_policy(state, request.copies, request.acks)
            if isinstance(policy, str):
                raise _not_enough(policy)
            copies, acks = policy
            compression = _compression(request.compression) or Compression.NONE
            return log_admin_pb2.CreateLogResponse(
                log=await self._create(
                    call, request.name, request.shards, copies, acks, compression
                )
            )

    async def CreateInternalLog(
        self,
        request: log_admin_pb2.CreateInternalLogRequest,
        context: Context,
    ) -> log_admin_pb2.CreateInternalLogResponse:
        """One of the system's own logs, created unless it is there.

        Raises:
            Refused: NOT_ENOUGH_PEERS, LIMIT_REACHED, INVALID_ARGUMENT, NOT_LAS_LEADER.
        """
        async with self._auditor.call(
            context, "log create", log=request.name, refusals=False
        ) as call:
            await self._group.barrier()
            if request.name not in INTERNAL_LOGS:
                raise invalid(f"log name {request.name!r}: this version has no such internal log")
            state = self._group.state
            log = state.logs.get(request.name)
            if log is not None:
                return log_admin_pb2.CreateInternalLogResponse(log=encode_las_log(log))
            # One copy only where the whole fleet is one host: a log keeps its policy when others
            # come.
            single = len({node.host for node in state.nodes.values()}) == 1
            policy = planner.resolve_policy(state, 1 if single else 0, 0)
            if isinstance(policy, str):
                raise _not_enough(policy)
            copies, acks = policy
            try:
                created = await self._create(call, request.name, 1, copies, acks)
            except Refused as error:
                # Two peers needed it at the same time; the other's command was committed first.
                if reason_of(error.refusal) is not Reason.LOG_EXISTS:
                    raise
                created = encode_las_log(self._group.state.logs[request.name])
            return log_admin_pb2.CreateInternalLogResponse(log=created)

    async def _create(  # noqa: PLR0917 - the parts of a log
        self,
        call: AuditedCall,
        name: str,
        shards: int,
        copies: int,
        acks: int,
        compression: Compression = Compression.NONE,
    ) -> shard_map_pb2.Log:
        """Place a log and commit it. Raises `Refused`."""
        term = self._leadership.require()
        state, index = self._group.indexed()
        placed = planner.initial_plans(
            state, term.view(), term.limits, shards=shards, copies=copies, index=index
        )
        if isinstance(placed, str):
            raise _not_enough(placed)
        command = CreateLog(
            name=name,
            copies=copies,
            acks=acks,
            nodes=placed.nodes,
            rows=placed.rows,
            compression=compression,
        )
        require_ok(await call.submit(command))
        return encode_las_log(self._group.state.logs[name])

    async def ListLogs(
        self,
        request: log_admin_pb2.ListLogsRequest,
        context: Context,
    ) -> log_admin_pb2.ListLogsResponse:
        """All logs but the internal ones, by name.

        Raises:
            Refused: NOT_LAS_LEADER, LAS_UNAVAILABLE.
        """
        await self._group.barrier()
        logs = self._group.state.logs
        return log_admin_pb2.ListLogsResponse(
            logs=[encode_las_log(logs[name]) for name in sorted(logs) if not is_internal(name)]
        )

    async def DescribeLog(
        self,
        request: log_admin_pb2.DescribeLogRequest,
        context: Context,
    ) -> log_admin_pb2.DescribeLogResponse:
        """One log with its shards. Raises `Refused`: UNKNOWN_LOG, NOT_LAS_LEADER."""
        await self._group.barrier()
        state = self._group.state
        log = state.logs.get(request.name)
        if log is None:
            raise Refused(refusal(Reason.UNKNOWN_LOG, unknown_log(request.name)))
        return log_admin_pb2.DescribeLogResponse(
            log=encode_las_log(log), shards=map(encode_entry, shards_of(state, log))
        )

    async def SwitchPrimary(
        self,
        request: log_admin_pb2.SwitchPrimaryRequest,
        context: Context,
    ) -> log_admin_pb2.SwitchPrimaryResponse:
        """Prepare the hand-over of one shard; the peers carry it out.

        Raises:
            Refused: UNKNOWN_SHARD, UNKNOWN_NODE, STATE_CHANGED, NOT_LAS_LEADER.
        """
        async with self._auditor.call(context, "shard switch", shard=request.shard) as call:
            term = self._leadership.require()
            await self._group.barrier()
            state, index = self._group.indexed()
            shard, node = ShardId(request.shard), NodeName(request.node)
            entry = state.shards.get(shard)
            if entry is None:
                raise Refused(refusal(Reason.UNKNOWN_SHARD, f"there is no shard {shard}"))
            self._require_grant(context, entry.shard.log)
            if node not in state.nodes:
                raise Refused(refusal(Reason.UNKNOWN_NODE, f"no node is called {node!r}"))
            plan = planner.switch_plan(state, term.view(), term.limits, shard, node, index=index)
            if isinstance(plan, str):
                raise Refused(refusal(Reason.STATE_CHANGED, plan))
            command = PrepareSegment(
                shard=shard, epoch=entry.shard.open.epoch, plan=plan, why="asked for by an operator"
            )
            result = require_ok(await call.submit(command))
            term.rebalancer.placed(shard, node)
            return log_admin_pb2.SwitchPrimaryResponse(epoch=result.epoch)

    async def RecoverShard(
        self, request: log_admin_pb2.RecoverShardRequest, context: Context
    ) -> log_admin_pb2.RecoverShardResponse:
        """Let a shard go on whose quorum is lost for good; without `accept_loss` a look ahead.

        Raises:
            Refused: UNKNOWN_SHARD, INVALID_ARGUMENT, NOT_ENOUGH_PEERS, STATE_CHANGED (nothing
                needs to be given up, or not yet), LIMIT_REACHED, NOT_LAS_LEADER.
        """
        async with self._auditor.call(
            context, "recover shard", shard=request.shard, refusals=request.accept_loss
        ) as call:
            await self._group.barrier()
            asker = self._callers.name_of(context)
            entry = self._group.state.shards.get(ShardId(request.shard))
            if entry is not None:
                self._require_grant(context, entry.shard.log)
            if entry is not None and can_give_up(entry):
                return await self._give_up_skipped(request, entry, asker, call)
            proposal = await self._propose_gap(request, asker)
            command = proposal.command
            if request.accept_loss:
                result = require_ok(await call.submit(command))
                _log.critical(
                    "records given up", shard=command.shard, why=command.why, result=result.text
                )
        return log_admin_pb2.RecoverShardResponse(
            recovered=request.accept_loss,
            given_up=sorted(each.peer for each in command.given_up),
            answered=proposal.answered,
            end=proposal.end,
            known_commit=(command.ended_prepared or command.ended).known_commit,
            resume_at=command.resume_at,
            primary=command.plan.primary.peer,
        )

    async def _give_up_skipped(
        self,
        request: log_admin_pb2.RecoverShardRequest,
        entry: ShardEntry,
        asker: str,
        call: AuditedCall,
    ) -> log_admin_pb2.RecoverShardResponse:
        """Of a shard that may have outlived what the LAS began from (§4.6)."""
        self._leadership.require()
        shard, why = entry.shard.shard, _why(request, asker)
        if request.accept_loss:
            result = require_ok(await call.submit(GiveUpSkipped(shard=shard, why=why)))
            _log.critical("lost commits given up", shard=shard, why=why, result=result.text)
        return log_admin_pb2.RecoverShardResponse(recovered=request.accept_loss, waits=entry.halted)

    async def _propose_gap(
        self, request: log_admin_pb2.RecoverShardRequest, asker: str
    ) -> Proposal:
        """What would be given up. Raises `Refused` as `RecoverShard`."""
        shard = ShardId(request.shard)
        if shard not in self._group.state.shards:
            raise Refused(refusal(Reason.UNKNOWN_SHARD, f"there is no shard {shard}"))
        why = _why(request, asker)
        return await self._leadership.require().propose_gap(shard, why)

    async def AlterLog(
        self, request: log_admin_pb2.AlterLogRequest, context: Context
    ) -> log_admin_pb2.AlterLogResponse:
        """Change how many copies there are and acknowledge, how long records are kept, how packed.

        Raises:
            Refused: UNKNOWN_LOG, INVALID_ARGUMENT, NOT_ENOUGH_PEERS, NOT_LAS_LEADER.
        """
        what = _what(request)
        async with self._auditor.call(context, what, log=request.name) as call:
            self._require_grant(context, request.name)
            await self._group.barrier()
            log = self._group.state.logs.get(request.name)
            if log is None:
                raise Refused(refusal(Reason.UNKNOWN_LOG, unknown_log(request.name)))
            if is_internal(request.name) and not _only_tiers(request):
                raise invalid(f"{request.name!r} is an internal log: what it keeps is its own")
            copies, acks = request.copies or log.copies, request.acks or log.acks
            compression = _compression(request.compression)
            if acks > copies:
                raise invalid(f"acks = {acks} is more than copies = {copies}")
            if copies > log.copies:
                policy = planner.resolve_policy(self._group.state, copies, acks)
                if isinstance(policy, str):
                    raise _not_enough(policy)
            if request.copies or request.acks:
                require_ok(await call.submit(SetCopies(log=log.name, copies=copies, acks=acks)))
            if _changes_retention(request):
                require_ok(await call.submit(_retention(request, log)))
            if request.HasField("hot_bytes"):
                require_ok(await call.submit(SetTier(log=log.name, hot_bytes=request.hot_bytes)))
            if compression is not None:
                command = SetCompression(log=log.name, compression=compression)
                require_ok(await call.submit(command))
            return log_admin_pb2.AlterLogResponse(
                log=encode_las_log(self._group.state.logs[request.name])
            )

    async def DeleteLog(
        self, request: log_admin_pb2.DeleteLogRequest, context: Context
    ) -> log_admin_pb2.DeleteLogResponse:
        """Delete a log with its records; without `accept_loss` a look ahead.

        Answers when every peer that is up has heard of it, or after `DELETION_HEARD_S`; then it
        names the others.

        Raises:
            Refused: UNKNOWN_LOG, INVALID_ARGUMENT, STATE_CHANGED, NOT_LAS_LEADER, LAS_UNAVAILABLE.
        """
        async with self._auditor.call(
            context, "log delete", log=request.name, refusals=request.accept_loss
        ) as call:
            self._require_grant(context, request.name)
            await self._group.barrier()
            state = self._group.state
            log = state.logs.get(request.name)
            if log is None:
                raise Refused(refusal(Reason.UNKNOWN_LOG, unknown_log(request.name)))
            if is_internal(request.name):
                raise invalid(f"{request.name!r} is an internal log: it is not deleted")
            if request.shards and tuple(request.shards) != log.shards:
                text = f"{request.name} has other shards than those that were named: look again"
                raise Refused(refusal(Reason.STATE_CHANGED, text))
            nodes = _storing(state, log)
            gone: tuple[ShardId, ...] = log.shards
            unheard: list[NodeName] = []
            if request.accept_loss:
                command = DeleteLog(log=log.name, shards=log.shards)
                gone = require_ok(await call.submit(command)).shards
                _log.critical("log deleted", log=log.name, shards=len(gone))
                unheard = await self._until_heard(nodes)
        return log_admin_pb2.DeleteLogResponse(
            deleted=request.accept_loss,
            shards=[encode_entry(entry) for entry in shards_of(state, log)],
            nodes=nodes,
            unheard=unheard,
        )

    async def _until_heard(self, nodes: Sequence[NodeName]) -> list[NodeName]:
        """Which of `nodes` have not said in time that they have the map as it is now."""
        version = self._group.state.version
        deadline_s = time.monotonic() + DELETION_HEARD_S
        while True:
            term = self._leadership.term
            unheard = [
                name
                for name in nodes
                if term is None
                or (heard := term.vitals.of(name)) is None
                or heard.map_version < version
            ]
            up = [name for name in unheard if self._group.state.is_node_up(name)]
            if not up or term is None or time.monotonic() >= deadline_s:
                return unheard
            await asyncio.sleep(DELETION_LOOK_S)

    def _shard(self, number: ShardId) -> Shard:
        """The shard as it is now. Raises `Refused`: UNKNOWN_SHARD, its log was deleted."""
        entry = self._group.state.shards.get(number)
        if entry is None:
            text = f"shard {number} was deleted with its log meanwhile"
            raise Refused(refusal(Reason.UNKNOWN_SHARD, text))
        return entry.shard

    async def SplitShard(
        self, request: log_admin_pb2.SplitShardRequest, context: Context
    ) -> log_admin_pb2.SplitShardResponse:
        """Split one shard; the peers carry it out. Answers when the map has the children.

        Raises:
            Refused: UNKNOWN_SHARD, INVALID_ARGUMENT, LIMIT_REACHED, STATE_CHANGED,
                LAS_UNAVAILABLE, NOT_LAS_LEADER.
        """
        async with self._auditor.call(context, "shard split", shard=request.shard) as call:
            await self._group.barrier()
            number = ShardId(request.shard)
            entry = self._group.state.shards.get(number)
            if entry is None:
                raise Refused(refusal(Reason.UNKNOWN_SHARD, f"there is no shard {number}"))
            shard = entry.shard
            self._require_grant(context, shard.log)
            if is_internal(shard.log):
                raise invalid(f"shard {number} is of {shard.log!r}, an internal log: not split")
            key_hash = (shard.key_hash_low + shard.key_hash_high + 1) // 2
            if request.HasField("at_key_hash"):
                key_hash = request.at_key_hash
            if _is_split_at(shard, key_hash):
                # Asked again.
                epoch = _newest(shard)
            else:
                command = PrepareSplit(
                    shard=number,
                    epoch=shard.open.epoch,
                    key_hash=key_hash,
                    plan=shard.open.plan,
                    why="asked for by an operator",
                )
                result = await call.submit(command)
                shard = self._shard(number)
                if not _is_split_at(shard, key_hash):
                    epoch = require_ok(result).epoch
                else:
                    # Somebody may have asked for the same a moment earlier.
                    epoch = _newest(shard)
            return log_admin_pb2.SplitShardResponse(children=await self._split(number, epoch))

    async def TrimShard(
        self, request: log_admin_pb2.TrimShardRequest, context: Context
    ) -> log_admin_pb2.TrimShardResponse:
        """Forget what lies below an offset, by whole chunks.

        Raises:
            Refused: UNKNOWN_LOG, UNKNOWN_SHARD, INVALID_ARGUMENT, STATE_CHANGED, RANGE_UNAVAILABLE,
                NOT_LAS_LEADER.
        """
        async with self._auditor.call(
            context, "log trim", log=request.log, shard=request.shard
        ) as call:
            term = self._leadership.require()
            await self._group.barrier()
            state, number = self._group.state, ShardId(request.shard)
            if request.log not in state.logs:
                raise Refused(refusal(Reason.UNKNOWN_LOG, unknown_log(request.log)))
            self._require_grant(context, request.log)
            entry = state.shards.get(number)
            if entry is None or entry.shard.log != request.log:
                text = f"log {request.log!r} has no shard {number}"
                raise Refused(refusal(Reason.UNKNOWN_SHARD, text))
            if is_internal(request.log):
                raise invalid(f"{request.log!r} is an internal log: it is not trimmed by hand")
            try:
                before = Offset(request.before_offset)
                result = await term.trimmer.trim(number, before, call.submit)
            except ShardGone as error:
                raise Refused(refusal(Reason.UNKNOWN_SHARD, str(error))) from error
            except CannotTell as error:
                text = f"{error}: trim again when its primary or a holder is up"
                raise Refused(
                    refusal(Reason.RANGE_UNAVAILABLE, text, retry_after_ms=RETRY_AFTER_MS)
                ) from error
            if result is not None:
                require_ok(result)
            first = self._shard(number).kept_from
            return log_admin_pb2.TrimShardResponse(first_offset=first)

    async def _split(self, number: ShardId, epoch: Epoch) -> tuple[ShardId, ...]:
        """The children, as soon as they exist. `epoch` is that of the closed segment.

        Raises:
            Refused: STATE_CHANGED, if the split was undone; LAS_UNAVAILABLE, if it takes too long.
        """
        with self._group.watch() as changed:
            try:
                async with asyncio.timeout(SPLIT_WAIT_S):
                    while True:
                        changed.clear()
                        shard = self._shard(number)
                        if shard.split is not None and shard.split.is_committed:
                            return shard.split.children
                        if not _is_under_way(shard, epoch):
                            text = (
                                f"the split of shard {number} was undone by a failover: ask again"
                            )
                            raise Refused(refusal(Reason.STATE_CHANGED, text))
                        await changed.wait()
            except TimeoutError:
                text = (
                    f"the split of shard {number} is prepared and has not happened within "
                    f"{SPLIT_WAIT_S:.0f} s: look with `peerctl log describe`, or ask again"
                )
                raise Refused(refusal(Reason.LAS_UNAVAILABLE, text, taken=Taken.UNKNOWN)) from None


def _storing(state: ClusterState, log: Log) -> list[NodeName]:
    """Nodes that store something of a log, or may."""
    names: set[NodeName] = set()
    for entry in shards_of(state, log):
        shard = entry.shard
        for segment in (*shard.sealed, shard.open, *((shard.prepared,) if shard.prepared else ())):
            members = (*segment.plan.replicas, *segment.holders, *segment.wanted_holders)
            names.update(replica.peer for replica in members)
    return sorted(name for name in names if name in state.nodes)


def _what(request: log_admin_pb2.AlterLogRequest) -> str:
    """What the audit calls the change."""
    if request.HasField("hot_bytes"):
        return "log tier"
    return "log retain" if _changes_retention(request) else "log alter"


def _only_tiers(request: log_admin_pb2.AlterLogRequest) -> bool:
    """Whether nothing changes but how much stays on disks, which may be said of any log."""
    fields = {descriptor.name for descriptor, _ in request.ListFields()}
    return fields <= {"name", "hot_bytes"} and request.HasField("hot_bytes")


def _changes_retention(request: log_admin_pb2.AlterLogRequest) -> bool:
    return request.HasField("retention_bytes") or request.HasField("retention_ms")


def _why(request: log_admin_pb2.RecoverShardRequest, asker: str) -> str:
    """What readers of a gap are told. Raises `Refused`: INVALID_ARGUMENT."""
    why = request.why.strip()
    if request.accept_loss and not why:
        raise invalid("why: empty; readers of the gap need one line that says what happened")
    if len(why) > WHY_CHARACTERS_MAX or not why.isprintable():
        raise invalid(f"why: one line of at most {WHY_CHARACTERS_MAX} printable characters")
    return f"{why} ({asker})"


def _compression(asked: shard_map_pb2.Compression.ValueType) -> Compression | None:
    """What is asked for; None: nothing is. Raises `Refused` for one that is not known."""
    found = decode_compression(asked)
    if found is None and asked != shard_map_pb2.COMPRESSION_UNSPECIFIED:
        raise invalid(f"compression = {asked}: this version does not know it")
    return found


def _retention(request: log_admin_pb2.AlterLogRequest, log: Log) -> SetRetention:
    """What is asked for; the rest as it is."""
    kept_bytes, kept_ms = log.retention_bytes, log.retention_ms
    if request.HasField("retention_bytes"):
        kept_bytes = request.retention_bytes
    if request.HasField("retention_ms"):
        kept_ms = request.retention_ms
    return SetRetention(log=log.name, retention_bytes=kept_bytes, retention_ms=kept_ms)


def _is_split_at(shard: Shard, key_hash: int) -> bool:
    """Whether the shard is split at this hash, or will be."""
    return shard.split is not None and shard.split.key_hash == key_hash


def _newest(shard: Shard) -> Epoch:
    """The epoch of the prepared segment, else of the open one."""
    return shard.open.epoch if shard.prepared is None else shard.prepared.epoch


def _is_under_way(shard: Shard, epoch: Epoch) -> bool:
    """Whether the closed segment `epoch` is still prepared, or not in this node's state yet."""
    if shard.prepared is not None:
        return shard.prepared.epoch <= epoch
    return shard.open.epoch < epoch and epoch not in shard.dead_epochs


def _not_enough(why: str) -> Refused:
    return Refused(refusal(Reason.NOT_ENOUGH_PEERS, why))
