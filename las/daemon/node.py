"""One LAS node, put together: consensus, services, leadership, HTTP.

`LasNode.start` brings everything up in the order in which mistakes are cheap to find: certificates,
ports, then the store. `stop` takes it down in the reverse order, with a bound on each step.

Invariants:
- Nothing is served before the store is open.
- Whatever ends the process (a dead task, a store that cannot be trusted) ends up in `ended`, once,
  with the error that says why. Where going on could lose a command, consensus itself ends the
  process at once (`las.raft.node.fail_stop`).

Must not: touch signals, exit statuses or the terminal (`peerd.daemon.process`).
"""

import asyncio
import secrets
from pathlib import Path
from typing import ClassVar

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from las.core.cluster import Cluster
from las.daemon.audit import Auditor
from las.daemon.config import LasConfig, verify_identity
from las.daemon.group import Group
from las.daemon.http import LasExporter
from las.daemon.leader import Leadership
from las.daemon.links import member_channels
from las.daemon.map_feed import MapFeed
from las.daemon.model import Model
from las.daemon.peer_calls import GrpcPeerCalls
from las.daemon.recorder import RecordedMachine
from las.daemon.refusals import RefusalRecords
from las.daemon.services.access import AccessServicer
from las.daemon.services.callers import Callers
from las.daemon.services.fleet import FleetServicer
from las.daemon.services.forecast import ForecastServicer
from las.daemon.services.history import HistoryServicer
from las.daemon.services.log_admin import LogAdminServicer
from las.daemon.services.models import ModelServicer
from las.daemon.services.shard_map import ShardMapServicer
from las.daemon.status_view import StatusView
from las.daemon.term import Term
from las.daemon.web.fleet_document import fleet_document
from las.daemon.web.page import FleetPage
from las.internal.v1 import raft_pb2_grpc
from las.raft import (
    RaftError,
    RaftNode,
    RaftOptions,
    StateMachine,
    StoreCorrupt,
    StoreError,
    open_directory,
)
from las.v1 import (
    access_pb2,
    access_pb2_grpc,
    fleet_pb2,
    fleet_pb2_grpc,
    forecast_pb2,
    forecast_pb2_grpc,
    history_pb2,
    history_pb2_grpc,
    log_admin_pb2,
    log_admin_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    shard_map_pb2,
    shard_map_pb2_grpc,
)
from peerd.core.check import InvariantViolation
from peerd.daemon.certificates import daemon_credentials
from peerd.daemon.errors import (
    BrokenInvariant,
    CannotStart,
    DaemonError,
    StoreBroken,
    StoreUnusable,
)
from peerd.daemon.http import HttpEndpoint
from peerd.daemon.logging import get_logger
from peerd.daemon.ports import bind_grpc, split_address
from peerd.daemon.supervisor import Supervisor
from peerd.pki import Identity
from peerd.recorder.ring import FILE_NAME, RingError
from peerd.transport.access import Access
from peerd.transport.authz import AuthorizationInterceptor
from peerd.transport.channels import Channels
from peerd.transport.incident_service import IncidentService
from peerd.transport.options import SERVER_OPTIONS
from peerd.transport.registration import together
from peerd.transport.tls import plaintext_metadata
from peerd.transport.typed_errors import TypedErrors
from peerd.v1 import incident_pb2, incident_pb2_grpc

PUBLIC_SERVICES = tuple(
    descriptor.services_by_name[name].full_name
    for descriptor, name in (
        (fleet_pb2.DESCRIPTOR, "FleetService"),
        (log_admin_pb2.DESCRIPTOR, "LogAdminService"),
        (access_pb2.DESCRIPTOR, "AccessService"),
        (shard_map_pb2.DESCRIPTOR, "ShardMapService"),
        (forecast_pb2.DESCRIPTOR, "ForecastService"),
        (history_pb2.DESCRIPTOR, "HistoryService"),
        (model_pb2.DESCRIPTOR, "ModelService"),
        (incident_pb2.DESCRIPTOR, "IncidentService"),
    )
)
# Seconds for the last answers to travel; streams that only wait for news are cut off.
ANSWERS_TIMEOUT_S = 0.2
# Seconds that the tasks get to end when they are cancelled.
TASKS_TIMEOUT_S = 2.0

_log = get_logger("las")


def _store_error(error: StoreError) -> DaemonError:
    text = f"data_dir: {error}"
    return StoreBroken(text) if isinstance(error, StoreCorrupt) else StoreUnusable(text)


class LasNode:
    """One node. Made by `start`, ended by `stop`. Used on one event loop."""

    RELOADABLE: ClassVar[tuple[str, ...]] = ("policy.", "telemetry.")

    def __init__(self, config: LasConfig, identity: Identity) -> None:
        self.config = config
        self.address = ""
        self.http_address = ""
        self.supervisor = Supervisor()
        self._ended: asyncio.Future[DaemonError] = asyncio.get_running_loop().create_future()
        self._plaintext = config.tls is None
        self._callers = Callers(config.cluster, plaintext=self._plaintext)
        self._credentials = daemon_credentials(config)
        self._metadata = plaintext_metadata(identity) if self._plaintext else ()
        self._calls: GrpcPeerCalls | None = None
        self._refusals = RefusalRecords()
        self.access = Access(
            config.cluster, plaintext=self._plaintext, refused=self._refusals.calls
        )
        self._server = grpc.aio.server(
            interceptors=(
                AuthorizationInterceptor(
                    config.cluster, plaintext=self._plaintext, guard=self.access
                ),
                TypedErrors(self._on_bug),
            ),
            options=config.server_options(SERVER_OPTIONS),
        )
        self._health = health.aio.HealthServicer()
        self._raft: RaftNode | None = None
        self._recording: Path | None = None
        self._model: Model | None = None
        self._http: HttpEndpoint | None = None
        self._leadership: Leadership | None = None
        self._serving = False

    @classmethod
    async def start(cls, config: LasConfig) -> "LasNode":
        """Bring a node up.

        Raises:
            ConfigError: its certificates do not fit its configuration.
            CannotStart: a port or the data directory cannot be used.
        """
        node = cls(config, verify_identity(config))
        try:
            await node._bring_up()
        except BaseException:
            await node.stop()
            raise
        return node

    async def ended(self) -> DaemonError:
        """Wait until the node cannot go on; returns why."""
        return await asyncio.shield(self._ended)

    def where(self) -> dict[str, str | None]:
        """Its addresses: "address" and "http"."""
        return {"address": self.address, "http": self.http_address}

    # ------------------------------------------------------------------ coming up

    async def _bring_up(self) -> None:
        config = self.config
        port = bind_grpc(self._server, config.listen, self._credentials)
        host, advertised_port = split_address(config.advertise)
        self.address = f"{host}:{advertised_port or port}"
        cluster_id = await asyncio.to_thread(_cluster_id, config)
        self._model = await asyncio.to_thread(Model.load, config.model_path)
        if self._model.note:
            _log.warning("forecast", why=self._model.note)
        self.group = group = Group(config.name, config.members, cluster_id)
        self._raft = raft = self._make_raft(group)
        group.attach(raft)
        try:
            await raft.start()
        except StoreError as error:
            raise _store_error(error) from error
        except RaftError as error:
            raise CannotStart(str(error)) from error
        self._assemble(group, raft, self._model)
        await self._open_http()
        self.supervisor.spawn("watch of the tasks", self._watch_tasks())
        await self._server.start()
        self._serving = True
        for service in ("", *PUBLIC_SERVICES):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        _log.info("serving", address=self.address, http=self.http_address, cluster_id=cluster_id)

    def _make_raft(self, group: Group) -> RaftNode:
        config = self.config
        return RaftNode(
            RaftOptions(
                name=config.name,
                members=config.members,
                directory=config.data_dir,
                cluster=config.cluster,
                seed=secrets.randbits(32),
                command_level=group.machine.level,
            ),
            self._recorded(group.machine),
            channel_factory=member_channels(self._credentials),
            metadata=self._metadata,
            identify=self._callers.name_of,
            on_change=group.status_changed,
        )

    def _recorded(self, machine: Cluster) -> StateMachine:
        """The machine with a flight recorder. A node without one serves as well."""
        config = self.config
        if config.flight_recorder_bytes == 0:
            return machine
        path = config.data_dir / FILE_NAME
        try:
            recorded = RecordedMachine(machine, path, config.flight_recorder_bytes, config.name)
        except RingError as error:
            _log.warning("nothing is recorded", why=str(error))
            return machine
        self._recording = path
        return recorded

    def _assemble(self, group: Group, raft: RaftNode, model: Model) -> None:
        """Make the parts and introduce them to each other."""
        feed = MapFeed()
        self._calls = calls = GrpcPeerCalls(group, Channels(self._credentials, self._metadata))
        self._leadership = leadership = Leadership(
            group,
            self.supervisor,
            lambda number: Term(number, group, self.config, model, calls),
        )
        self.status = StatusView(group, model)
        auditor = Auditor(group, leadership, self._callers)
        fleet = FleetServicer(
            group=group,
            leadership=leadership,
            feed=feed,
            policy=lambda: self.config.policy,
            callers=self._callers,
            auditor=auditor,
            status=self.status,
            refusals=self._refusals,
        )
        server = together(self._server)
        incident_pb2_grpc.add_IncidentServiceServicer_to_server(
            IncidentService(self._recording), server
        )
        fleet_pb2_grpc.add_FleetServiceServicer_to_server(fleet, server)
        log_admin_pb2_grpc.add_LogAdminServiceServicer_to_server(
            LogAdminServicer(group, leadership, self._callers, auditor, self.access), server
        )
        access_pb2_grpc.add_AccessServiceServicer_to_server(
            AccessServicer(group, leadership, self._callers, auditor), server
        )
        shard_map_pb2_grpc.add_ShardMapServiceServicer_to_server(
            ShardMapServicer(group, feed), server
        )
        forecast_pb2_grpc.add_ForecastServiceServicer_to_server(
            ForecastServicer(group, leadership, self._callers), server
        )
        history_pb2_grpc.add_HistoryServiceServicer_to_server(
            HistoryServicer(group, leadership, auditor), server
        )
        model_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelServicer(group, leadership, auditor, model), server
        )
        raft_pb2_grpc.add_RaftServiceServicer_to_server(raft.servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        # It looks at the type of the server that it is given.
        reflection.enable_server_reflection(
            (*PUBLIC_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        self.supervisor.start("leadership", leadership.run())
        self.supervisor.start("access table", self._follow_access(group))
        self.supervisor.start("refused calls", self._refusals.run(group, leadership))

    async def _follow_access(self, group: Group) -> None:
        """Judge calls by what is applied here, for ever."""
        with group.watch() as changed:
            while True:
                self.access.take(group.state.access)
                await changed.wait()
                changed.clear()

    async def _open_http(self) -> None:
        registry = CollectorRegistry()
        registry.register(
            LasExporter(
                self.group,
                self._leading,
                self.status,
                self._credentials,
                len(self.config.members),
                self._refusals.calls.counts,
            )
        )
        page = FleetPage(lambda: fleet_document(self.group, self.status, self._leading()))
        routes = page.routes if self.config.web_page else ()
        self._http = HttpEndpoint(registry, self.why_not_ready, routes)
        host, port = split_address(self.config.http_listen)
        self.http_address = f"{host}:{await self._http.start(host, port)}"

    # ------------------------------------------------------------------ telling

    def _leading(self) -> Term | None:
        return None if self._leadership is None else self._leadership.term

    def take_config(self, config: LasConfig) -> None:
        """Use these settings from now on; only what `RELOADABLE` names differs. A leader begins
        anew with them, as another node would after an election.
        """
        self.config = config
        if self._leadership is not None:
            self._leadership.begin_anew()

    def why_not_ready(self) -> str | None:
        """None if this node can take part, else one line."""
        if not self._serving:
            return "not serving"
        if not self.group.leader:
            return "no LAS leader is known"
        return None

    # ------------------------------------------------------------------ the end

    async def _watch_tasks(self) -> None:
        failure = await self.supervisor.failed()
        cause = failure.__cause__
        if isinstance(cause, InvariantViolation):
            self._end(BrokenInvariant(str(cause)))
        elif isinstance(cause, DaemonError):
            self._end(cause)
        else:
            _log.error("task died", task=failure.name, exc_info=cause)
            self._end(DaemonError(str(failure)))

    def _on_bug(self, error: Exception) -> None:
        """A broken invariant ends the process; other bugs are told where they were met."""
        if isinstance(error, InvariantViolation):
            self._end(BrokenInvariant(str(error)))

    def _end(self, error: DaemonError) -> None:
        if not self._ended.done():
            self._ended.set_result(error)

    async def stop(self) -> None:
        """Take the node down, each step with a bound; also one that came up only in part."""
        self._serving = False
        await self._health.enter_graceful_shutdown()
        if self._leadership is not None:
            self._leadership.stop()
            await self.group.close(timeout_s=self.config.shutdown_timeout_ms / 1000)
        if self._raft is not None:
            await self._raft.stop()
        await self._server.stop(ANSWERS_TIMEOUT_S)
        hanging = await self.supervisor.stop(timeout_s=TASKS_TIMEOUT_S)
        if hanging:
            _log.error("tasks do not end", tasks=hanging)
        if self._calls is not None:
            await self._calls.close()
        if self._http is not None:
            await self._http.stop()
        if self._model is not None:
            self._model.close()


def _cluster_id(config: LasConfig) -> str:
    """The cluster id in the data directory. Raises `StoreUnusable`."""
    try:
        store = open_directory(
            Path(config.data_dir),
            cluster=config.cluster,
            name=config.name,
            members=config.members,
        )
    except StoreError as error:
        raise _store_error(error) from error
    try:
        return store.manifest.cluster_id
    finally:
        store.close()
