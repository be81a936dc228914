"""`las.v1.FleetService`: peers register, say that they live and what they see; operators drain.

Invariants:
- A peer speaks for itself alone: its name is the one in its certificate, its process the one that
  it names and that registered last.
- A report is answered when its command is committed, or when it is of no use any more; until then
  the peer repeats it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable

import grpc.aio

from las.core import recovered
from las.core.commands import RaiseCommandLevel, RegisterNode, RemoveNode, ReplaceNode, SetDraining
from las.core.commands import Reason as Outcome
from las.core.history import Cause
from las.core.state import ClusterState, Node
from las.daemon.audit import Auditor
from las.daemon.audit_view import audit_view
from las.daemon.config import Policy
from las.daemon.detector import fleet_heartbeat_ms, fleet_lease_ms
from las.daemon.exports import Export, Origin
from las.daemon.group import Group
from las.daemon.leader import Leadership
from las.daemon.map_feed import MapFeed
from las.daemon.rebalance_view import asked_for, rebalance_view
from las.daemon.refusals import PER_HEARTBEAT_MAX, RefusalRecords
from las.daemon.services.callers import Callers
from las.daemon.services.forecast import known_node
from las.daemon.services.registration import is_id, parse_registration
from las.daemon.services.reports import Reports
from las.daemon.services.results import REASONS, invalid, require_ok
from las.daemon.status_view import StatusView
from las.daemon.stop_view import stop_view
from las.daemon.term import Term, now_ms, wall_ms
from las.daemon.workload_view import workload_view
from las.v1 import fleet_pb2, fleet_pb2_grpc
from peerd.core.errors import Reason
from peerd.core.ids import BootId, NodeName, StoreId
from peerd.daemon.logging import get_logger
from peerd.pki import Role
from peerd.transport.access import encode_access
from peerd.transport.refused_calls import RefusedCall
from peerd.transport.status import Context, Refused, one_line, refusal

# limit: bytes of one message of an export, as the contract says.
EXPORT_CHUNK_BYTES = 1024 * 1024
# limit: samples of one heartbeat, as the contract says.
SAMPLES_PER_HEARTBEAT_MAX = 120
# limit: shards of a heartbeat's workload, as the contract says.
WORKLOAD_SHARDS_MAX = 4_096
# limit: suspicious epochs of a store that one registration tells; one is enough to halt a shard,
# and a store with more has to be looked at anyway.
SUSPICIOUS_EPOCHS_MAX = 1_000
DRAIN_MS_MIN = 1_000
"""Shortest time for which a drain may be asked for."""
# limit: longest time for which a drain may be asked for, in milliseconds; beyond, nobody remembers.
DRAIN_MS_MAX = 30 * 24 * 3_600_000

_log = get_logger("fleet")


class FleetServicer(fleet_pb2_grpc.FleetServiceServicer):
    """Serves on the leader; others name it."""

    def __init__(
        self,
        *,
        group: Group,
        leadership: Leadership,
        feed: MapFeed,
        policy: Callable[[], Policy],
        callers: Callers,
        auditor: Auditor,
        status: StatusView,
        refusals: RefusalRecords,
    ) -> None:
        self._group = group
        self._leadership = leadership
        self._feed = feed
        self._policy = policy
        self._callers = callers
        self._auditor = auditor
        self._status = status
        self._refusals = refusals
        self._newest: dict[NodeName, _Session] = {}
        self._exporting = False

    # ------------------------------------------------------------------ peers

    async def Register(
        self, request: fleet_pb2.RegisterRequest, context: Context
    ) -> fleet_pb2.RegisterResponse:
        """The caller's process is the node's from now on; the one before it is dead.

        Raises:
            Refused: WRONG_CLUSTER, STORE_ID_CHANGED, INVALID_ARGUMENT, LIMIT_REACHED,
                PROCESS_SUPERSEDED (a newer process has registered: this one is dead for good),
                LAS_LOST_ITS_PAST (the store knows shards that this LAS never created; or it began
                from older data, and the peer's version would drop what it has forgotten).
        """
        term = self._leadership.require()
        name = NodeName(self._callers.name_of(context))
        self._check_cluster(request.cluster_id, name)
        registration = parse_registration(name, request)
        state = self._group.state
        stored = recovered.suspicious(state, registration.epochs)
        outlived = recovered.outlived(state, registration.sealed, registration.adopted)
        if stored or outlived:
            _log.critical("a store knows more than this LAS", node=name, stored=stored + outlived)
        command = RegisterNode(
            name=name,
            store=registration.store,
            boot=registration.boot,
            address=request.address,
            labels=registration.labels,
            may_lead=request.may_lead,
            feature_level=max(1, request.feature_level),
            stored=stored[:SUSPICIOUS_EPOCHS_MAX],
            outlived=outlived[:SUSPICIOUS_EPOCHS_MAX],
            told_all=max(len(stored), len(outlived)) <= SUSPICIOUS_EPOCHS_MAX,
            at_s=wall_ms() // 1000,
            ended_by=self._why_replaced(term, name),
        )
        result = await self._group.submit(command)
        if not result.ok:
            _log.warning("registration refused", node=name, why=result.text)
            if result.reason is not Outcome.STALE_BOOT:  # else the node is in, with a newer one
                term.turned_away(name, result.text)
            self._note(name, "Register", REASONS[result.reason], result.text)
        require_ok(result)
        term.registered(name, registration.boot, request.telemetry_schema)
        nodes = len(self._group.state.nodes)
        return fleet_pb2.RegisterResponse(
            cluster_id=self._group.state.cluster_id,
            map=await self._feed.whole(self._group.state),
            heartbeat_period_ms=fleet_heartbeat_ms(self._policy().heartbeat_ms, nodes),
            lease_ms=fleet_lease_ms(self._policy().lease_ms, nodes),
            access=encode_access(self._group.state.access),
        )

    def _why_replaced(self, term: Term, name: NodeName) -> Cause:
        """Why the process that is registered now ended, should another take its place."""
        node = self._group.state.nodes.get(name)
        if node is None:
            return Cause.UNKNOWN
        return term.cause_of_end(name, node.boot, refused=True)

    def _check_cluster(self, cluster_id: str, name: NodeName) -> None:
        own = self._group.state.cluster_id
        if cluster_id and cluster_id != own:
            text = (
                f"the store of {name} belongs to cluster {cluster_id}, this LAS to {own}: "
                "give the peer a data directory of its own, or the right LAS addresses"
            )
            self._note(name, "Register", Reason.WRONG_CLUSTER, text)
            raise Refused(refusal(Reason.WRONG_CLUSTER, text))

    async def Heartbeat(
        self,
        request_iterator: AsyncIterator[fleet_pb2.HeartbeatRequest],
        context: "grpc.aio.ServicerContext[object, object]",
    ) -> AsyncIterator[fleet_pb2.HeartbeatResponse]:
        """Each heartbeat is answered, with what changed in the map; a change is sent at once.

        Raises:
            Refused: STATE_CHANGED (another process registered: register again), INVALID_ARGUMENT,
                NOT_LAS_LEADER also in the middle, when the leadership is lost.
        """
        term = self._leadership.require()
        name = NodeName(self._callers.name_of(context))
        session = _Session(name)
        with self._group.watch() as wake:
            reading = asyncio.ensure_future(self._read(term, session, request_iterator, wake))
            try:
                while not reading.done():
                    await wake.wait()
                    wake.clear()
                    if term.over.is_set():
                        raise self._group.not_leader()
                    response = self._next_response(session)
                    if response is not None:
                        yield response
                reading.result()
            finally:
                reading.cancel()

    def _next_response(self, session: "_Session") -> fleet_pb2.HeartbeatResponse | None:
        if session.version is None:
            return None
        state = self._group.state
        update = self._feed.since(state, session.version)
        access = None
        if state.access.version > session.access_version:
            session.access_version = state.access.version
            access = encode_access(state.access)
        if update is not None:
            session.version = update.version
        elif access is None and not session.heard:
            return None
        session.heard = False
        return fleet_pb2.HeartbeatResponse(map=update, access=access)

    async def _read(
        self,
        term: Term,
        session: "_Session",
        requests: AsyncIterator[fleet_pb2.HeartbeatRequest],
        wake: asyncio.Event,
    ) -> None:
        try:
            async for request in requests:
                if term.over.is_set():
                    return
                if session.version is None:
                    session.boot = BootId(request.boot_id)
                    session.version = request.map_version
                    session.access_version = request.access_version
                    self._newest[session.name] = session
                self._take(term, session, request)
                session.heard = True
                wake.set()
        finally:
            # A peer that came again has a newer stream; then the end of this one says nothing.
            if self._newest.get(session.name) is session:
                del self._newest[session.name]
                term.stream_broken(session.name, session.boot)
            wake.set()

    def _take(self, term: Term, session: "_Session", request: fleet_pb2.HeartbeatRequest) -> None:
        node = self._registered(session.name, session.boot, "Heartbeat")
        if len(request.workload.shards) > WORKLOAD_SHARDS_MAX:
            raise invalid(
                f"the workload of {len(request.workload.shards)} shards in a heartbeat of "
                f"{session.name}: at most {WORKLOAD_SHARDS_MAX}"
            )
        if len(request.samples) > SAMPLES_PER_HEARTBEAT_MAX:
            raise invalid(
                f"{len(request.samples)} samples in a heartbeat of {session.name}: "
                f"at most {SAMPLES_PER_HEARTBEAT_MAX}"
            )
        for refused in request.refused[:PER_HEARTBEAT_MAX]:
            self._refusals.peer_told(node.name, refused)
        term.heartbeat(node.name, node.boot, request)

    async def Report(
        self, request: fleet_pb2.ReportRequest, context: Context
    ) -> fleet_pb2.ReportResponse:
        """What a peer saw becomes commands, or is weighed.

        Raises:
            Refused: STATE_CHANGED (another process registered), INVALID_ARGUMENT, NOT_LAS_LEADER,
                LAS_UNAVAILABLE. The peer repeats what was not answered.
        """
        term = self._leadership.require()
        name = NodeName(self._callers.name_of(context))
        node = self._registered(name, BootId(request.boot_id), "Report")
        self._note_false(node, request.reports)
        await Reports(self._group, term, node).take(request.reports)
        return fleet_pb2.ReportResponse()

    def _registered(self, name: NodeName, boot: BootId, call: str) -> Node:
        """As `registered`; who speaks for another process is told of in the audit."""
        try:
            return registered(self._group.state, name, boot)
        except Refused as refused:
            self._note(name, call, Reason.STATE_CHANGED, refused.refusal.message)
            raise

    def _note_false(self, accuser: Node, reports: Iterable[fleet_pb2.PeerReport]) -> None:
        """Accusations that no honest peer makes are told of in the audit; they move nothing."""
        for report in reports:
            suspect = report.suspect.peer
            if not report.HasField("suspect"):
                continue
            if suspect == accuser.name or suspect not in self._group.state.nodes:
                whom = "itself" if suspect == accuser.name else f"{suspect!r}, which is no peer"
                text = f"{accuser.name} accuses {one_line(whom)}"
                self._note(accuser.name, "Report", Reason.INVALID_ARGUMENT, text)

    def _note(self, name: NodeName, call: str, reason: Reason, text: str) -> None:
        """A peer was refused something that it may do, but not so."""
        self._refusals.calls.add(
            RefusedCall(
                who=name,
                role=Role.PEER.value,
                reason=reason.name,
                what=f"/las.v1.FleetService/{call}",
                text=text,
            )
        )

    # ------------------------------------------------------------------ operators

    async def GetStatus(
        self,
        request: fleet_pb2.GetStatusRequest,
        context: Context,
    ) -> fleet_pb2.GetStatusResponse:
        """The fleet at a glance, from the leader; without one, from what this node has applied.

        Raises:
            Refused: NOT_LAS_LEADER while another node leads.
        """
        term = self._leadership.term
        if term is None and self._group.leader:
            raise self._group.not_leader()
        return self._status.response(term)

    async def FinalizeUpgrade(
        self, _request: fleet_pb2.FinalizeUpgradeRequest, context: Context
    ) -> fleet_pb2.FinalizeUpgradeResponse:
        """Use what all nodes know from now on; never again what only older versions know.

        Raises:
            Refused: STATE_CHANGED (a peer does not know it, or a LAS node has not said that it
                does), NOT_LAS_LEADER, LAS_UNAVAILABLE.
        """
        async with self._auditor.call(context, "cluster finalize") as call:
            self._leadership.require()
            state = self._group.state
            if wrong := self._status.not_final():
                raise Refused(refusal(Reason.STATE_CHANGED, wrong))
            level = self._status.level_known()
            if level > state.command_level:
                require_ok(await call.submit(RaiseCommandLevel(level=level)))
            return fleet_pb2.FinalizeUpgradeResponse(
                level_before=state.command_level, level_used=level
            )

    async def Drain(
        self,
        request: fleet_pb2.DrainRequest,
        context: Context,
    ) -> fleet_pb2.DrainResponse:
        """Treat a node as at risk until `Undrain`, or for the time that is asked for.

        Raises:
            Refused: UNKNOWN_NODE, INVALID_ARGUMENT, NOT_LAS_LEADER.
        """
        async with self._auditor.call(context, "node drain", node=request.node) as call:
            until_ms = 0
            if request.HasField("for_ms"):
                if not DRAIN_MS_MIN <= request.for_ms <= DRAIN_MS_MAX:
                    raise invalid(
                        f"for_ms = {request.for_ms}: a drain with an end takes "
                        f"{DRAIN_MS_MIN} to {DRAIN_MS_MAX} ms"
                    )
                until_ms = self._leadership.require().clock.clock_ms + request.for_ms
            node = known_node(self._group.state, request.node)
            command = SetDraining(node=node, draining=True, until_ms=until_ms)
            require_ok(await call.submit(command))
        return fleet_pb2.DrainResponse()

    async def Undrain(
        self,
        request: fleet_pb2.UndrainRequest,
        context: Context,
    ) -> fleet_pb2.UndrainResponse:
        """End a drain. Raises `Refused`: UNKNOWN_NODE, NOT_LAS_LEADER."""
        async with self._auditor.call(context, "node undrain", node=request.node) as call:
            command = SetDraining(node=NodeName(request.node), draining=False)
            require_ok(await call.submit(command))
        return fleet_pb2.UndrainResponse()

    async def RemoveNode(
        self, request: fleet_pb2.RemoveNodeRequest, context: Context
    ) -> fleet_pb2.RemoveNodeResponse:
        """Take a node that is down out of the fleet.

        Raises:
            Refused: UNKNOWN_NODE, STATE_CHANGED (it is up, or still needed), NOT_LAS_LEADER.
        """
        async with self._auditor.call(context, "node remove", node=request.node) as call:
            require_ok(await call.submit(RemoveNode(node=NodeName(request.node))))
        return fleet_pb2.RemoveNodeResponse()

    async def ReplaceNode(
        self, request: fleet_pb2.ReplaceNodeRequest, context: Context
    ) -> fleet_pb2.ReplaceNodeResponse:
        """Put a node's new store in the place of the recorded one.

        Raises:
            Refused: UNKNOWN_NODE, INVALID_ARGUMENT, STATE_CHANGED (it is up, or records would be
                left on no store), NOT_LAS_LEADER.
        """
        async with self._auditor.call(context, "node replace", node=request.node) as call:
            if not is_id(request.store_id):
                raise invalid(f"store_id: expected 32 hexadecimal digits, not {request.store_id!r}")
            command = ReplaceNode(
                node=NodeName(request.node),
                store=StoreId(request.store_id),
                accept_loss=request.accept_loss,
            )
            require_ok(await call.submit(command))
        if (term := self._leadership.term) is not None:
            term.replaced(command.node)
        return fleet_pb2.ReplaceNodeResponse()

    async def ListAudit(
        self, request: fleet_pb2.ListAuditRequest, context: Context
    ) -> fleet_pb2.ListAuditResponse:
        """Who changed what, the newest records that fit, from what is committed.

        Raises:
            Refused: INVALID_ARGUMENT, NOT_LAS_LEADER, LAS_UNAVAILABLE.
        """
        self._leadership.require()
        await self._group.barrier()
        return audit_view(self._group.state, request)

    async def ExportState(
        self, _request: fleet_pb2.ExportStateRequest, context: Context
    ) -> AsyncIterator[fleet_pb2.ExportStateResponse]:
        """All that is committed, as `las.daemon.exports` writes it.

        Raises:
            Refused: OVERLOADED (another export is under way), NOT_LAS_LEADER, LAS_UNAVAILABLE.
        """
        self._leadership.require()
        if self._exporting:
            raise Refused(refusal(Reason.OVERLOADED, "another export is under way: try again"))
        self._exporting = True
        try:
            await self._group.barrier()
            status = self._group.status
            origin = Origin(
                cluster=self._callers.identity_of(context).cluster,
                source=self._group.name,
                index=status.applied_index,
                term=status.term,
                proven_index=status.applied_index,
            )
            # The state is at least as new as the position that was read before it.
            export = Export(origin=origin, state=self._group.state)
            data = await asyncio.to_thread(export.to_bytes)
            for at in range(0, len(data), EXPORT_CHUNK_BYTES):
                yield fleet_pb2.ExportStateResponse(chunk=data[at : at + EXPORT_CHUNK_BYTES])
        finally:
            self._exporting = False

    async def GetWorkload(
        self, request: fleet_pb2.GetWorkloadRequest, context: Context
    ) -> fleet_pb2.GetWorkloadResponse:
        """What clients do to each shard.

        Raises `Refused`: UNKNOWN_NODE, UNKNOWN_LOG, NOT_LAS_LEADER.
        """
        term = self._leadership.require()
        state = self._group.state
        if request.node:
            known_node(state, request.node)
        if request.log and request.log not in state.logs:
            text = f"there is no log {request.log!r}: `peerctl log list` shows them"
            raise Refused(refusal(Reason.UNKNOWN_LOG, text))
        return workload_view(state, term.vitals, request, now_ms())

    async def Rebalance(
        self, request: fleet_pb2.RebalanceRequest, context: Context
    ) -> fleet_pb2.RebalanceResponse:
        """What is to be moved so that nodes carry alike; begins with it, unless only to tell.

        Raises:
            Refused: NOT_LAS_LEADER, LAS_UNAVAILABLE.
        """
        term = self._leadership.require()
        found, copies = await term.rebalancer.propose(), await term.copies.propose()
        if (found.moves or copies.moves) and not request.dry_run:
            async with self._auditor.call(context, "rebalance") as call:
                await call.submit(asked_for(found, copies, wall_ms()))
            term.rebalancer.ask()
        return rebalance_view(self._group.state, found, copies, term.rebalancer.told)

    async def CheckStop(
        self, request: fleet_pb2.CheckStopRequest, context: Context
    ) -> fleet_pb2.CheckStopResponse:
        """What stopping a node now would cost, from what is committed.

        Raises:
            Refused: UNKNOWN_NODE, NOT_LAS_LEADER, LAS_UNAVAILABLE.
        """
        self._leadership.require()
        await self._group.barrier()
        state, index = self._group.indexed()
        return stop_view(state, index, known_node(state, request.node))


class _Session:
    """One heartbeat stream. `version` is the map version that the peer has; None before it said."""

    def __init__(self, name: NodeName) -> None:
        self.name = name
        self.boot = BootId("")
        self.version: int | None = None
        self.access_version = 0
        self.heard = False


def registered(state: ClusterState, name: NodeName, boot: BootId) -> Node:
    """The node, if `boot` is its process.

    Raises:
        Refused: STATE_CHANGED, if it never registered or another process of it did.
    """
    node = state.nodes.get(name)
    if node is None or node.boot != boot:
        text = f"{name} has not registered this process, or a newer one has: register first"
        raise Refused(refusal(Reason.STATE_CHANGED, text))
    return node
