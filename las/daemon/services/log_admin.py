"""`las.v1.LogAdminService`: logs are created, listed and described; primaries handed over.

Reads wait for a barrier, so that who created a log, wherever, finds it in the next answer.
"""

from las.core import planner
from las.core.commands import CreateLog, PrepareSegment
from las.core.state import LOG_SHARDS_MAX
from las.daemon.group import Group
from las.daemon.leader import Leadership
from las.daemon.map_feed import encode_entry, encode_las_log, shards_of
from las.daemon.services.results import invalid, not_served_yet, require_ok
from las.v1 import log_admin_pb2, log_admin_pb2_grpc
from peerd.core.errors import Reason
from peerd.core.ids import NodeName, ShardId
from peerd.transport.map_service import unknown_log
from peerd.transport.status import Context, Refused, refusal

# Names that begin like this belong to the system.
INTERNAL_PREFIX = "_"


class LogAdminServicer(log_admin_pb2_grpc.LogAdminServiceServicer):
    """Serves on the leader; others name it."""

    def __init__(self, group: Group, leadership: Leadership) -> None:
        self._group = group
        self._leadership = leadership

    async def CreateLog(
        self,
        request: log_admin_pb2.CreateLogRequest,
        context: Context,
    ) -> log_admin_pb2.CreateLogResponse:
        """A new log, placed over the nodes that are up.

        Raises:
            Refused: LOG_EXISTS, NOT_ENOUGH_PEERS, LIMIT_REACHED, INVALID_ARGUMENT, NOT_LAS_LEADER.
        """
        term = self._leadership.require()
        # A node may have registered elsewhere a moment ago; and the name may be taken.
        await self._group.barrier()
        state, index = self._group.indexed()
        if request.name.startswith(INTERNAL_PREFIX):
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
        placed = planner.initial_plans(
            state, term.view(), term.limits, shards=request.shards, copies=copies, index=index
        )
        if isinstance(placed, str):
            raise _not_enough(placed)
        command = CreateLog(
            name=request.name, copies=copies, acks=acks, nodes=placed.nodes, rows=placed.rows
        )
        require_ok(await self._group.submit(command))
        return log_admin_pb2.CreateLogResponse(
            log=encode_las_log(self._group.state.logs[request.name])
        )

    async def ListLogs(
        self,
        request: log_admin_pb2.ListLogsRequest,
        context: Context,
    ) -> log_admin_pb2.ListLogsResponse:
        """All logs by name. Raises `Refused`: NOT_LAS_LEADER, LAS_UNAVAILABLE."""
        await self._group.barrier()
        logs = self._group.state.logs
        return log_admin_pb2.ListLogsResponse(
            logs=[encode_las_log(logs[name]) for name in sorted(logs)]
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
        term = self._leadership.require()
        await self._group.barrier()
        state, index = self._group.indexed()
        shard, node = ShardId(request.shard), NodeName(request.node)
        entry = state.shards.get(shard)
        if entry is None:
            raise Refused(refusal(Reason.UNKNOWN_SHARD, f"there is no shard {shard}"))
        if node not in state.nodes:
            raise Refused(refusal(Reason.UNKNOWN_NODE, f"no node is called {node!r}"))
        plan = planner.switch_plan(state, term.view(), term.limits, shard, node, index=index)
        if isinstance(plan, str):
            raise Refused(refusal(Reason.STATE_CHANGED, plan))
        command = PrepareSegment(
            shard=shard, epoch=entry.shard.open.epoch, plan=plan, why="asked for by an operator"
        )
        result = require_ok(await self._group.submit(command))
        return log_admin_pb2.SwitchPrimaryResponse(epoch=result.epoch)

    async def AlterLog(
        self, request: log_admin_pb2.AlterLogRequest, context: Context
    ) -> log_admin_pb2.AlterLogResponse:
        """Not served yet."""
        raise not_served_yet("AlterLog")

    async def DeleteLog(
        self, request: log_admin_pb2.DeleteLogRequest, context: Context
    ) -> log_admin_pb2.DeleteLogResponse:
        """Not served yet."""
        raise not_served_yet("DeleteLog")

    async def SplitShard(
        self, request: log_admin_pb2.SplitShardRequest, context: Context
    ) -> log_admin_pb2.SplitShardResponse:
        """Not served yet."""
        raise not_served_yet("SplitShard")


def _not_enough(why: str) -> Refused:
    return Refused(refusal(Reason.NOT_ENOUGH_PEERS, why))
