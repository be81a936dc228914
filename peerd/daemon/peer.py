"""One peer of a cluster, put together: store, cores, streams, services, its line to the LAS.

`Peer.start` brings everything up in the order in which mistakes are cheap to find: ports, then the
store, then what needs both. `stop` takes it down in the reverse order, with a bound on each step.

Invariants:
- Nothing is served before the store is open, and the store is closed last.
- Whatever ends the process (a broken invariant, a failed store, a dead task, a refused
  registration) ends up in `Peer.ended`, once, with the error that says why.

Must not: touch signals, exit statuses or the terminal (`peerd.daemon.process`).
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from typing import ClassVar

import grpc.aio
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health
from prometheus_client import CollectorRegistry

from las.v1 import fleet_pb2
from peerd.core.check import InvariantViolation
from peerd.core.durable import Outcome
from peerd.core.errors import Reason, Refusal
from peerd.core.ids import BootId, NodeName, ProcessId
from peerd.core.limits import Limits
from peerd.daemon.access import AccessKeeper, RefusalsTold
from peerd.daemon.budget import Background, Rates
from peerd.daemon.certificates import daemon_credentials
from peerd.daemon.config import ConfigError, PeerdConfig, verify_identity
from peerd.daemon.copier import Copier
from peerd.daemon.copy_progress import CopyProgress
from peerd.daemon.cores import CoreWatch
from peerd.daemon.errors import BrokenInvariant, DaemonError, StoreBroken, StoreUnusable
from peerd.daemon.exporter import AccessStatistics, PeerExporter, PeerStatistics
from peerd.daemon.front.fronts import Fronts
from peerd.daemon.heartbeat import HealthSampling, Member
from peerd.daemon.host import ShardHost
from peerd.daemon.http import HttpEndpoint
from peerd.daemon.las_door import LasDoor
from peerd.daemon.las_session import LasSession
from peerd.daemon.links import LinkLimits, Links
from peerd.daemon.logging import get_logger
from peerd.daemon.neighbours import Neighbours
from peerd.daemon.outside import Surroundings
from peerd.daemon.peer_calls import PeerCalls
from peerd.daemon.ports import bind_grpc, split_address
from peerd.daemon.reader import StoreReader
from peerd.daemon.repairer import Repairer
from peerd.daemon.scrubber import Scrubber
from peerd.daemon.services import CLIENT_SERVICES, add_client_services, edge_limits
from peerd.daemon.supervisor import Supervisor
from peerd.daemon.telemetry.collector import watch_loop_lag
from peerd.daemon.telemetry.exporter import TelemetryExporter
from peerd.daemon.telemetry.own import OwnMetrics
from peerd.daemon.tier import Tier, exposed_secrets, open_tier
from peerd.daemon.tier_lag import TierLag
from peerd.daemon.tier_sweeper import TierSweeper
from peerd.daemon.uploader import Uploader
from peerd.internal.v1 import replication_pb2_grpc
from peerd.pki import Identity
from peerd.recorder.flight import FlightRecorder
from peerd.recorder.ring import FILE_NAME, RingError
from peerd.storage.errors import StorageError, StorageFailed, StoreDamaged
from peerd.storage.options import StorageOptions
from peerd.storage.store import Store
from peerd.tier.errors import NotConfigured
from peerd.transport.access import Access
from peerd.transport.authz import AuthorizationInterceptor
from peerd.transport.caller_limits import CallerUse
from peerd.transport.channels import Channels
from peerd.transport.incident_service import IncidentService
from peerd.transport.limits import ByteBudget
from peerd.transport.log_service import LogService
from peerd.transport.map_cache import MapCache
from peerd.transport.options import SERVER_OPTIONS
from peerd.transport.read_source import ReadSource
from peerd.transport.registration import together
from peerd.transport.replication_service import ReplicationService
from peerd.transport.tls import explain_connect_failure, plaintext_metadata
from peerd.transport.typed_errors import TypedErrors
from peerd.v1 import incident_pb2, incident_pb2_grpc

INCIDENT_SERVICE = incident_pb2.DESCRIPTOR.services_by_name["IncidentService"].full_name
# How long the last report of a failed store is tried. Seconds.
LAST_REPORT_TIMEOUT_S = 1.0
# The same for the word that it stops on purpose.
LEAVING_TIMEOUT_S = 0.3
# How long calls under way may take to end when the peer stops; no append is among them. Seconds.
CALLS_TIMEOUT_S = 0.5
# How long the end of tasks is waited for. Seconds.
TASKS_TIMEOUT_S = 2.0
# How long front workers may take to end when the peer stops: their own bound of half a second for
# calls, and what a busy machine adds. Seconds.
WORKERS_TIMEOUT_S = 3.0
# How long the store may take to write what is queued when the peer stops. Seconds.
STORE_CLOSE_TIMEOUT_S = 5.0

_log = get_logger("peer")


class Peer:
    """Made by `Peer.start`. One event loop; several may live in one process (in tests)."""

    RELOADABLE: ClassVar[tuple[str, ...]] = (
        "copier.bytes_per_s_max",
        "copier.busy_bytes_per_s_max",
        "copier.urgent_bytes_per_s_max",
        "scrub.bytes_per_s_max",
        "scrub.interval_s",
        "tier.lag_bytes_max",
        "tier.upload_bytes_per_s_max",
    )

    def __init__(self, config: PeerdConfig, identity: Identity) -> None:
        """Use `Peer.start`."""
        self.config = config
        self.supervisor = Supervisor()
        self.own = OwnMetrics()
        self.map_cache = MapCache(lambda: int(time.monotonic() * 1000))
        self.address = ""
        self.http_address = ""
        self.client_address: str | None = None
        self._plaintext = config.tls is None
        self._credentials = daemon_credentials(config)
        self._channels = Channels(
            self._credentials, plaintext_metadata(identity) if self._plaintext else ()
        )
        self.refusals = RefusalsTold()
        self.access = Access(config.cluster, plaintext=self._plaintext, refused=self.refusals.calls)
        self._access_keeper = AccessKeeper(config.data_dir, self.access)
        self._server = grpc.aio.server(
            options=config.server_options(SERVER_OPTIONS),
            interceptors=[
                AuthorizationInterceptor(
                    config.cluster, plaintext=self._plaintext, guard=self.access
                ),
                TypedErrors(self._on_bug),
            ],
        )
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[DaemonError] = self._loop.create_future()
        self._health = health.HealthServicer()
        self._store: Store | None = None
        try:
            self._tier = open_tier(config.tier, lambda: self.map_cache.cluster_id)
        except NotConfigured as error:
            raise ConfigError(f"tier: {error}") from error
        self._recorder: FlightRecorder | None = None
        self._http: HttpEndpoint | None = None
        self._fronts: Fronts | None = None
        self._append_budget = ByteBudget("this peer", config.append.inflight_bytes_max)
        self._assembled = False
        self._serving = False

    @classmethod
    async def start(cls, config: PeerdConfig) -> "Peer":
        """Bring a peer up; it serves when this returns, and looks for the LAS meanwhile.

        Raises:
            ConfigError: its certificates do not fit.
            PortInUse: it cannot listen.
            StoreUnusable: the data directory is not this peer's, or another process has it.
            StoreBroken: the store is damaged, or the disk fails.
        """
        peer = cls(config, verify_identity(config))
        try:
            await peer._bring_up()
        except BaseException:
            await peer.stop()
            raise
        return peer

    async def ended(self) -> DaemonError:
        """Wait until the peer cannot go on; returns why."""
        return await asyncio.shield(self._ended)

    def where(self) -> dict[str, str | None]:
        """Its addresses: "address", "http", and "clients", None without front workers."""
        return {
            "address": self.address,
            "http": self.http_address,
            "clients": self.client_address,
        }

    # ------------------------------------------------------------------ coming up

    async def _bring_up(self) -> None:
        port = bind_grpc(self._server, self.config.listen, self._credentials)
        host, advertised_port = split_address(self.config.advertise)
        self.address = f"{host}:{advertised_port or port}"
        if self.config.workers:
            self._fronts = Fronts(self.config)
            self.client_address = f"{host}:{self._fronts.port}"
        self._store = store = await asyncio.to_thread(self._open_store)
        self.map_cache.cluster_id = store.manifest.cluster_id
        self._access_keeper.load(store.manifest.cluster_id)
        self.me = ProcessId(
            NodeName(self.config.name), store.manifest.store_id, BootId(secrets.token_hex(16))
        )
        self._assemble(store)
        self._add_services()
        self._assembled = True
        await self._open_http()
        if self._fronts is not None:
            await self._start_workers(self._fronts)
        self._run_tasks()
        await self._server.start()
        self._serving = True
        for service in ("", *CLIENT_SERVICES, INCIDENT_SERVICE):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        for file in exposed_secrets(self.config.tier):
            _log.warning("everybody on this host may read a secret of the tier", file=str(file))
        _log.info("serving", address=self.address, http=self.http_address, store=self.me.store)

    def _open_store(self) -> Store:
        """Open the store in this thread: verification after an unclean stop takes a while."""
        settings = self.config.storage
        try:
            return Store.open(
                self.config.data_dir,
                StorageOptions(
                    map_size_bytes_max=settings.map_size_bytes_max,
                    reserve_bytes=settings.reserve_bytes,
                    commit_bytes_max=settings.commit_bytes_max,
                    queue_bytes_max=settings.queue_bytes_max,
                    chunk_bytes=settings.chunk_bytes,
                ),
                deliver=self._deliver,
                on_failure=self._on_storage_failure,
                before_commit=_fault_hook(self.config),
                metrics=self.own,
            )
        except (StoreDamaged, StorageFailed) as error:
            raise StoreBroken(str(error)) from error
        except StorageError as error:
            raise StoreUnusable(f"data_dir: {error}") from error

    def _deliver(self, outcomes: Sequence[tuple[object, Outcome]]) -> None:
        """Called by the storage writer's thread; the host is made after the store."""
        self.host.deliver(outcomes)

    def _assemble(self, store: Store) -> None:
        """Make the parts and introduce them to each other."""
        config, me, loop = self.config, self.me, self._loop
        limits = Limits(
            stall_timeout_ms=config.stall_timeout_ms,
            drain_timeout_ms=config.drain_timeout_ms,
            commit_notice_ms=config.replication.commit_notice_ms,
            producer_expiry_ms=config.append.producer_expiry_s * 1_000,
        )
        self._recorder = _open_recorder(config, me, limits)
        self.host = ShardHost(
            me=me,
            store=store,
            map_cache=self.map_cache,
            queue_bytes_max=config.storage.queue_bytes_max,
            limits=limits,
            own=self.own,
            fatal=self._on_bug,
            recorder=self._recorder,
        )
        self._sampling = HealthSampling(config.data_dir, self.own, config.telemetry)
        member = Member(
            me=me,
            config=config,
            address=self.address,
            store=store,
            host=self.host,
            map_cache=self.map_cache,
            window=self._sampling.window,
            disk_days=self._sampling.disk_days,
            workload=lambda: self.own.workload.figures(loop.time()),
            care=lambda: (self.repairer.statistics(), self.scrubber.statistics()),
            access=self._access_keeper,
            refusals=self.refusals,
            uploads=lambda: None if self._uploader is None else self._uploader.statistics(),
            tier_lag=lambda: self._tier_lag,
            copying=self._copying,
        )
        self.session = LasSession(
            config.las,
            self._channels,
            member,
            boot_id=me.boot,
            explain=lambda address: explain_connect_failure(address, config.tls_files()),
        )
        self._neighbours = Neighbours(
            frame_period_ms=config.replication.beat_ms,
            now_ms=lambda: int(loop.time() * 1000),
            supervisor=self.supervisor,
            report=self._report_suspect,
        )
        self._links = self._make_links()
        calls = PeerCalls(me=me, channels=self._channels, map_cache=self.map_cache)
        self._reader = StoreReader(store)
        self._care_for(store, calls)
        self.host.connect(
            Surroundings(
                me=me,
                host=self.host,
                map_cache=self.map_cache,
                links=self._links,
                neighbours=self._neighbours,
                calls=calls,
                reader=self._reader,
                repairer=self.repairer,
                report=self.session.report,
                supervisor=self.supervisor,
                tier=self._tier,
            )
        )

    def _care_for(self, store: Store, calls: PeerCalls) -> None:
        """Make what keeps enough whole copies: the copier, the repairer, the scrub."""
        self.background = Background(
            _background_rates(self.config), self._loop.time, lambda: self.host.user_writes
        )
        self.copier = Copier(
            me=self.me,
            host=self.host,
            map_cache=self.map_cache,
            calls=calls,
            report=self.session.report,
            budget=self.background,
            now_s=self._loop.time,
        )
        self.repairer = Repairer(
            me=self.me.replica,
            store=store,
            stored=self.host.stored,
            map_cache=self.map_cache,
            calls=calls,
            report=self.session.report,
            now_s=self._loop.time,
        )
        self.scrubber = Scrubber(
            host=self.host,
            reader=self._reader,
            found=self.repairer.found,
            bytes_per_s_max=self.config.scrub.bytes_per_s_max,
            interval_s=self.config.scrub.interval_s,
            now_s=self._loop.time,
        )
        self._uploader: Uploader | None = None
        self._sweeper: TierSweeper | None = None
        self._tier_lag: TierLag | None = None
        if self._tier is not None:
            self._tier.charged = self.background.spend
            self._tier_lag = TierLag(
                me=self.me,
                host=self.host,
                map_cache=self.map_cache,
                space=self.host.space,
                bytes_max=self.config.tier.lag_bytes_max,
            )
            self.host.admission.tier_lag = self._tier_lag.why_wait
            self._uploader = self._make_uploader(self._tier)
            self._sweeper = TierSweeper(
                tier=self._tier,
                map_cache=self.map_cache,
                remove_after_s=self.config.tier.remove_after_s,
                removed=self._uploader.count_removed,
                now_s=self._loop.time,
            )

    def _make_uploader(self, tier: Tier) -> Uploader:
        settings = self.config.tier
        return Uploader(
            me=self.me,
            host=self.host,
            map_cache=self.map_cache,
            source=ReadSource(self.host, self.map_cache, tier),
            tier=tier,
            report=self.session.report,
            object_bytes=settings.object_bytes,
            bytes_per_s_max=settings.upload_bytes_per_s_max,
            background=self.background,
            remove_after_s=settings.remove_after_s,
            now_s=self._loop.time,
            wall_ms=lambda: time.time_ns() // 1_000_000,
        )

    def _make_links(self) -> Links:
        replication = self.config.replication
        return Links(
            me=self.me,
            channels=self._channels,
            events=self.host,
            limits=LinkLimits(
                under_way_messages_max=replication.frames_inflight_max,
                message_bytes_max=replication.frame_bytes_max,
                queue_bytes_max=replication.queue_bytes_max,
            ),
            neighbours=self._neighbours,
            supervisor=self.supervisor,
            now_s=self._loop.time,
        )

    def _add_services(self) -> None:
        self._replication = ReplicationService(
            self.host, plaintext=self._plaintext, access=self.access, budget=self.background
        )
        self._log_service = LogService(
            self.host,
            self.map_cache,
            self._channels,
            edge_limits(self.config),
            LasDoor(self.config.las, self._channels),
            budget=self._append_budget,
            cold=self._tier,
            cores_are_scarce=CoreWatch().are_scarce,
            workload=self.own.workload,
            access=self.access,
            use=CallerUse(self.config.limits.of_callers(), self.access.refused),
        )
        recorded = None if self._recorder is None else self._recorder.path
        server = together(self._server)
        incident_pb2_grpc.add_IncidentServiceServicer_to_server(IncidentService(recorded), server)
        replication_pb2_grpc.add_ReplicationServiceServicer_to_server(self._replication, server)
        add_client_services(
            self._server, self._log_service, self.map_cache, self._health, [INCIDENT_SERVICE]
        )

    async def _start_workers(self, fronts: Fronts) -> None:
        """Before the peer is counted as up: their start keeps the cores busy for seconds."""
        await fronts.start(
            sequencer=self.me,
            host=self.host,
            budget=self._append_budget,
            map_cache=self.map_cache,
            access=self.access,
            supervisor=self.supervisor,
        )

    async def _open_http(self) -> None:
        registry = CollectorRegistry()
        registry.register(TelemetryExporter(self._sampling.window.latest))
        registry.register(PeerExporter(self.statistics))
        self._http = HttpEndpoint(registry, self.why_not_ready)
        host, port = split_address(self.config.http_listen)
        self.http_address = f"{host}:{await self._http.start(host, port)}"

    def _run_tasks(self) -> None:
        self._sampling.start()
        self.supervisor.spawn("watch of the tasks", self._watch_tasks())
        self.supervisor.start("session with the LAS", self.session.run())
        self.supervisor.start("access table", self._access_keeper.run())
        self.supervisor.start("refused calls", self.refusals.run())
        self.supervisor.start("copier", self.copier.run())
        self.supervisor.start("repairer", self.repairer.run())
        self.supervisor.start("scrub", self.scrubber.run())
        if self._uploader is not None:
            self.supervisor.start("uploader", self._uploader.run())
        if self._tier_lag is not None:
            self.supervisor.start("lag of the tier", self._tier_lag.run())
        if self._sweeper is not None:
            self.supervisor.start("sweeper of the tier", self._sweeper.run())
        self.supervisor.start("pulse", self._pulse())
        self.supervisor.start("watch of the neighbours", self._watch_neighbours())
        self.supervisor.start("loop lag", watch_loop_lag(self.own))

    async def _pulse(self) -> None:
        """Frames that say "I live", both ways."""
        while True:
            self._links.pulse()
            self._replication.pulse()
            await asyncio.sleep(self.config.replication.beat_ms / 1000)

    async def _watch_neighbours(self) -> None:
        """The look for those whose frames stay away."""
        while True:
            self._neighbours.look()
            await asyncio.sleep(self._neighbours.look_period_ms / 1000)

    # ------------------------------------------------------------------ telling

    def take_config(self, config: PeerdConfig) -> None:
        """Use these settings from now on; only what `RELOADABLE` names differs."""
        self.config = config
        self.background.limits(_background_rates(config))
        self.scrubber.limit(config.scrub.bytes_per_s_max, config.scrub.interval_s)
        if self._uploader is not None:
            self._uploader.limit(config.tier.upload_bytes_per_s_max)
        if self._tier_lag is not None:
            self._tier_lag.limit(config.tier.lag_bytes_max)

    def why_not_ready(self) -> str | None:
        """None if clients are served, else one line."""
        if not self._serving:
            return "not serving"
        if self.map_cache.version == 0:
            return "the shard map is not known yet: no LAS node was reached since the start"
        return None

    def statistics(self) -> PeerStatistics:
        """Everything that is counted, now."""
        return PeerStatistics(
            host=self.host.statistics(),
            links=self._links.statistics(),
            session=self.session.statistics(),
            copier=self.copier.statistics(),
            copying=self._copying(),
            repairer=self.repairer.statistics(),
            scrubber=self.scrubber.statistics(),
            uploader=None if self._uploader is None else self._uploader.statistics(),
            tier_lag_bytes=0 if self._tier_lag is None else self._tier_lag.lag_bytes,
            slowed_appends=self.host.admission.slowed_appends,
            background_bytes=self.background.spent_bytes,
            space=self.host.space(),
            storage_queued_bytes=self.host.storage_queued_bytes,
            map_version=self.map_cache.version,
            map_age_ms=self.map_cache.age_ms,
            tasks=self.supervisor.task_count,
            histograms=self.own.histograms(),
            workload=self.own.workload.figures(self._loop.time()),
            fronts=[] if self._fronts is None else self._fronts.statistics(),
            access=AccessStatistics(
                version=self.access.table.version,
                age_s=self._access_keeper.age_s,
                required=self.access.table.required,
                grants=len(self.access.table.grants),
                revoked=len(self.access.table.revoked),
                refused=dict(self.access.refused.counts),
            ),
            certificate_expiry_s=(
                None if self._credentials is None else self._credentials.expires_in_s()
            ),
        )

    def _copying(self) -> CopyProgress:
        return self.copier.progress()

    def _report_suspect(self, peer: NodeName, boot: BootId, refused: bool, silent_ms: int) -> None:
        """Accuse a neighbour, unless the committed map has judged that process already."""
        node = self.map_cache.nodes.get(peer)
        if node is not None and node.boot == boot and not node.up:
            return
        what = "neighbour refuses connections" if refused else "neighbour is silent"
        _log.warning(what, neighbour=peer, boot=boot, silent_ms=silent_ms)
        self.session.report(
            fleet_pb2.PeerReport(
                suspect=fleet_pb2.Suspect(
                    peer=peer, boot_id=boot, connection_refused=refused, silent_ms=silent_ms
                )
            )
        )

    # ------------------------------------------------------------------ the end

    async def _watch_tasks(self) -> None:
        failure = await self.supervisor.failed()
        cause = failure.__cause__
        if isinstance(cause, DaemonError):
            self._end(cause)
        elif isinstance(cause, InvariantViolation):
            self._end(BrokenInvariant(str(cause)))
        else:
            _log.error("task died", task=failure.name, exc_info=cause)
            self._end(DaemonError(str(failure)))

    def _on_bug(self, error: Exception) -> None:
        """A broken invariant ends the process; other bugs are told where they were met."""
        self.own.record_error()
        if isinstance(error, InvariantViolation):
            self._end(BrokenInvariant(str(error)))

    def _on_storage_failure(self, failure: StorageFailed) -> None:
        """Called by the storage writer's thread."""
        self._loop.call_soon_threadsafe(self._storage_failed, failure)

    def _storage_failed(self, failure: StorageFailed) -> None:
        _log.critical("storage failed", why=str(failure))
        if isinstance(failure.__cause__, InvariantViolation):
            self._end(BrokenInvariant(str(failure.__cause__)))
            return
        self.host.refuse_all(Refusal(reason=Reason.STORE_FAILED, message=str(failure)))
        self._replication.close()
        self.session.report(
            fleet_pb2.PeerReport(storage_failed=fleet_pb2.StorageFailed(why=str(failure)))
        )
        self.supervisor.spawn("last report", self._tell_failure(failure))

    async def _tell_failure(self, failure: StorageFailed) -> None:
        await self.session.flush(timeout_s=LAST_REPORT_TIMEOUT_S)
        self._end(StoreBroken(str(failure)))

    def _end(self, error: DaemonError) -> None:
        if not self._ended.done():
            self._ended.set_result(error)

    async def stop(self) -> None:
        """Take the peer down, each step with a bound; also one that came up only in part."""
        self._serving = False
        await self._health.enter_graceful_shutdown()
        if self._assembled:
            going = Refusal(
                reason=Reason.SHUTTING_DOWN, message=f"{self.me.peer} is stopping: go elsewhere"
            )
            if not self._ended.done():
                self.session.report(fleet_pb2.PeerReport(leaving=fleet_pb2.Leaving()))
            await self.host.drain(going, timeout_s=self.config.shutdown_timeout_ms / 1000)
            # That this is no failure is worth a moment, not a wait for a LAS that is away.
            await self.session.flush(timeout_s=LEAVING_TIMEOUT_S)
            self._replication.close()
            self._log_service.close()
        if self._fronts is not None:
            await self._fronts.stop(WORKERS_TIMEOUT_S)
        await self._server.stop(CALLS_TIMEOUT_S)
        hanging = await self.supervisor.stop(timeout_s=TASKS_TIMEOUT_S)
        if hanging:
            _log.error("tasks do not end", tasks=hanging)
        await self._channels.close()
        if self._http is not None:
            await self._http.stop()
        if self._assembled:
            self.host.stop()
            self._reader.close()
        await asyncio.to_thread(self._close_store)
        if self._recorder is not None:
            self._recorder.close()

    def _close_store(self) -> None:
        """What has to be waited for outside the event loop."""
        if self._assembled:
            self._sampling.stop()
        if self._store is not None and not self._store.close(STORE_CLOSE_TIMEOUT_S):
            _log.error("the store does not close: it is verified at the next start")


def _background_rates(config: PeerdConfig) -> Rates:
    """What background work may take."""
    at_most = config.copier.bytes_per_s_max
    if config.network_bytes_per_s:
        at_most = max(1, min(at_most, config.network_bytes_per_s // 2))
    return Rates.within(
        at_most, config.copier.urgent_bytes_per_s_max, config.copier.busy_bytes_per_s_max
    )


def _open_recorder(config: PeerdConfig, me: ProcessId, limits: Limits) -> FlightRecorder | None:
    """The flight recorder, if there is to be one. A peer without it serves as well."""
    if config.flight_recorder_bytes == 0:
        return None
    path = (config.flight_recorder_dir or config.data_dir) / FILE_NAME
    try:
        return FlightRecorder(path, config.flight_recorder_bytes, me, limits)
    except RingError as error:
        _log.warning("nothing is recorded", why=str(error))
        return None


def _fault_hook(config: PeerdConfig) -> Callable[[], None] | None:
    """What the storage writer calls before each commit; nothing, unless a test asks for faults."""
    if config.testing.faults_file is None:
        return None
    from peerd.testing.faults import StorageFaults

    return StorageFaults(config.testing.faults_file).before_commit
