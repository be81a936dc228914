"""What a peer tells about itself: its registration, and heartbeats with its health samples.

Invariants:
- A new session gets the whole window, a later heartbeat what came since the one before; so the
  LAS leader, whoever it is, misses at most what was not sampled.
- Samples are taken by their own thread; building a heartbeat only copies.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from las.v1 import access_pb2, fleet_pb2, shard_map_pb2
from peerd.core.durable import StoredShard
from peerd.core.ids import ProcessId, ShardId
from peerd.daemon.access import AccessKeeper, RefusalsTold
from peerd.daemon.config import PeerdConfig, Telemetry
from peerd.daemon.copy_progress import CopyProgress
from peerd.daemon.errors import RegistrationRefused
from peerd.daemon.host import ShardHost
from peerd.daemon.las_session import SAMPLES_PER_HEARTBEAT_MAX, SessionBroken
from peerd.daemon.logging import get_logger
from peerd.daemon.repairer import RepairStatistics
from peerd.daemon.scrubber import ScrubStatistics
from peerd.daemon.telemetry.collector import Collector, Sample, TelemetrySampler
from peerd.daemon.telemetry.disk_days import NOTHING_TOLD, DiskDays
from peerd.daemon.telemetry.own import OwnMetrics
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA
from peerd.daemon.telemetry.smart import SmartReader
from peerd.daemon.telemetry.window import Recorder, Window
from peerd.daemon.tier_lag import TierLag
from peerd.daemon.uploader import UploadStatistics
from peerd.storage.errors import WrongCluster
from peerd.storage.store import Store
from peerd.transport.access import AccessMalformed
from peerd.transport.map_cache import MapCache, MapForeign
from peerd.transport.map_codec import MapMalformed
from peerd.transport.workload import ShardLoad, WorkloadFigures

# Level of what this version can do, told to the LAS and raised with each step that older versions
# could not follow. 2: a primary takes nothing in a closed segment (splits). 3: a store keeps what
# it has of epochs and shards that a LAS skipped when it began from older data. 4: what stores do
# not keep any more may be in the tier. 5: clients need grants where the LAS says so, and who was
# revoked is refused. 6: sealed segments may share an entry of the map,
# and a store lets go what the map tells it to.
FEATURE_LEVEL = 6
# limit: shards whose workload one heartbeat carries, the busiest first, as the contract says
WORKLOAD_SHARDS_MAX = 4_096

# limit: characters of why the tier takes nothing; one line of a status
TROUBLE_CHARACTERS_MAX = 300
_log = get_logger("member")


class HealthSampling:
    """The sampling thread, its window, and the recording if one is wanted."""

    def __init__(self, data_dir: Path, own: OwnMetrics, telemetry: Telemetry) -> None:
        self.window = Window()
        record_file = telemetry.record_file
        self._recorder = Recorder(record_file) if record_file is not None else None
        self._smart = SmartReader(data_dir, device=telemetry.smart_device)
        collector = Collector(data_dir, own.take, smart=lambda: self._smart.values)
        self._sampler = TelemetrySampler(collector, self._add)
        self._sampling = False

    @property
    def disk_days(self) -> DiskDays:
        """What the disk said of itself, day by day."""
        return self._smart.days

    def start(self) -> None:
        """Begin to sample."""
        self._sampling = True
        self._smart.start()
        self._sampler.start()

    def stop(self) -> None:
        """End; waits for the sample under way. Also if it was never begun."""
        if self._sampling:
            self._sampler.stop()
            self._smart.stop()
        if self._recorder is not None:
            self._recorder.close()

    def _add(self, sample: Sample) -> None:
        self.window.add(sample)
        if self._recorder is not None:
            self._recorder.add(sample)


class Member:
    """This process as the LAS knows it: fulfils `peerd.daemon.las_session.LasClient`."""

    def __init__(
        self,
        *,
        me: ProcessId,
        config: PeerdConfig,
        address: str,
        store: Store,
        host: ShardHost,
        map_cache: MapCache,
        window: Window,
        disk_days: DiskDays,
        workload: Callable[[], WorkloadFigures],
        care: Callable[[], tuple[RepairStatistics, ScrubStatistics]],
        access: AccessKeeper,
        refusals: RefusalsTold,
        uploads: Callable[[], UploadStatistics | None] = lambda: None,
        tier_lag: Callable[[], TierLag | None] = lambda: None,
        copying: Callable[[], CopyProgress] = CopyProgress,
    ) -> None:
        """`uploads` and `tier_lag` say what waits for the tier; None without one. `copying` says
        how far the copier is.
        """
        self._access = access
        self._refusals = refusals
        self._workload = workload
        self._told_workload = 0
        self._care = care
        self._uploads = uploads
        self._lag = tier_lag
        self._progress = copying
        self._me = me
        self._config = config
        self._address = address
        self._store = store
        self._host = host
        self._map = map_cache
        self._window = window
        self._told_sequence = -1
        self._disk_days = disk_days
        self._told_days = NOTHING_TOLD

    def registration(self) -> fleet_pb2.RegisterRequest:
        """What this process and its store are, now."""
        manifest = self._store.manifest
        domain = self._config.failure_domain
        labels = {"host": domain.host, "rack": domain.rack, "zone": domain.zone}
        return fleet_pb2.RegisterRequest(
            cluster_id=manifest.cluster_id,
            store_id=manifest.store_id,
            boot_id=self._me.boot,
            address=self._address,
            labels={name: value for name, value in labels.items() if value},
            may_lead=self._config.role != "shadow",
            shards=[_encode_stored(stored) for stored in self._host.stored_shards()],
            telemetry_schema=TELEMETRY_SCHEMA.version,
            format_version=manifest.format_version,
            feature_level=FEATURE_LEVEL,
        )

    async def registered(self, cluster_id: str) -> None:
        """The LAS accepted this store: from now on it belongs to that cluster.

        Raises:
            RegistrationRefused: it belongs to another one already.
        """
        if self._store.manifest.cluster_id == cluster_id:
            return
        try:
            # Writes a file durably, once in the life of a store.
            await asyncio.to_thread(self._store.adopt_cluster, cluster_id)
        except WrongCluster as error:
            raise RegistrationRefused(str(error)) from error
        _log.info("joined the cluster", cluster_id=cluster_id)

    def map_updated(self, update: shard_map_pb2.MapUpdate) -> None:
        """Take a part of the committed map.

        Raises:
            RegistrationRefused: it is another cluster's.
            SessionBroken: it is no map.
        """
        try:
            self._map.apply(update)
        except MapForeign as error:
            raise RegistrationRefused(str(error)) from error
        except MapMalformed as error:
            _log.error("the LAS sent a malformed map", why=str(error))
            raise SessionBroken(str(error)) from error

    def access_updated(self, table: access_pb2.AccessTable) -> None:
        """Take the committed access table. Raises `SessionBroken`: it is none."""
        try:
            self._access.told(table, self._store.manifest.cluster_id)
        except AccessMalformed as error:
            _log.error("the LAS sent a malformed access table", why=str(error))
            raise SessionBroken(str(error)) from error

    def map_current(self) -> None:
        """The leader said that there is nothing newer."""
        self._map.heard_current()
        self._access.heard_current()

    def heartbeat(self, *, whole_window: bool) -> fleet_pb2.HeartbeatRequest:
        """The next heartbeat; samples as described above."""
        if whole_window:
            self._told_sequence = -1
            self._told_workload = 0
            self._told_days = NOTHING_TOLD
        samples = self._window.since(self._told_sequence)[-SAMPLES_PER_HEARTBEAT_MAX:]
        if samples:
            self._told_sequence = samples[-1].sequence
        space = self._store.space()
        repairs, scrub = self._care()
        now_ms = int(time.monotonic() * 1000)
        return fleet_pb2.HeartbeatRequest(
            boot_id=self._me.boot,
            samples=[_encode_sample(sample, now_ms) for sample in samples],
            map_version=self._map.version,
            free_bytes=space.free_bytes,
            network_bytes_per_s=self._config.network_bytes_per_s,
            stored_bytes=space.stored_bytes,
            damaged_batches=repairs.damaged,
            repaired_batches=repairs.repaired,
            scrub_age_s=None if scrub.pass_age_s is None else int(scrub.pass_age_s),
            workload=self._new_workload(),
            disk=self._new_disk_days(),
            access_version=self._access.durable_version,
            refused=self._refusals.take(),
            tier_lag=self._tier_lag(),
            copying=self._copying(),
        )

    def _tier_lag(self) -> fleet_pb2.TierLag | None:
        """What waits for the tier; None if nothing does."""
        uploads, lag = self._uploads(), self._lag()
        if uploads is None or lag is None:
            return None
        if not (uploads.oldest_waiting_s or uploads.trouble or lag.lag_bytes):
            return None
        return fleet_pb2.TierLag(
            waiting_ms=int(uploads.oldest_waiting_s * 1000),
            trouble=uploads.trouble[:TROUBLE_CHARACTERS_MAX],
            lag_bytes=lag.lag_bytes,
            slows_appends=lag.slows_appends,
        )

    def _copying(self) -> fleet_pb2.CopyProgress | None:
        """How far the copier is; None if it has nothing to do."""
        now = self._progress()
        if not now.segments:
            return None
        return fleet_pb2.CopyProgress(
            segments=now.segments,
            records=now.records,
            records_per_s=now.records_per_s,
            bytes_per_s=now.bytes_per_s,
        )

    def _new_disk_days(self) -> fleet_pb2.DiskDays | None:
        """What the leader lacks of the disk's readings."""
        news = self._disk_days.news(self._told_days)
        self._told_days = news.number
        if not news.days and not news.whole:
            return None
        return fleet_pb2.DiskDays(
            whole=news.whole,
            days=[
                fleet_pb2.DiskDay(
                    day=each.day,
                    capacity_bytes=each.capacity_bytes,
                    attributes=[
                        fleet_pb2.SmartAttribute(number=number, raw=raw)
                        for number, raw in sorted(each.attributes.items())
                    ],
                )
                for each in news.days
            ],
        )

    def _new_workload(self) -> fleet_pb2.NodeWorkload | None:
        """The figures of an interval, in the first heartbeat after its end."""
        figures = self._workload()
        if figures.number == self._told_workload:
            return None
        self._told_workload = figures.number
        busiest = sorted(
            figures.shards.items(), key=lambda item: -item[1].bytes_per_s - item[1].read_bytes_per_s
        )
        return fleet_pb2.NodeWorkload(
            period_s=figures.period_s,
            shards=[encode_load(shard, load) for shard, load in busiest[:WORKLOAD_SHARDS_MAX]],
        )


def encode_load(shard: ShardId, load: ShardLoad) -> fleet_pb2.ShardWorkload:
    """The wire form of one shard's figures."""
    return fleet_pb2.ShardWorkload(
        shard=shard,
        appends_per_s=load.appends_per_s,
        records_per_s=load.records_per_s,
        bytes_per_s=load.bytes_per_s,
        records_per_batch=load.records_per_batch,
        distinct_keys=load.distinct_keys,
        hottest_key_share=load.hottest_key_share,
        conditional_share=load.conditional_share,
        read_bytes_per_s=load.read_bytes_per_s,
        cold_read_share=load.cold_read_share,
        readers=load.readers,
        reader_lag_records=load.reader_lag_records,
    )


def _encode_sample(sample: Sample, now_ms: int) -> fleet_pb2.HealthSample:
    return fleet_pb2.HealthSample(
        age_ms=max(0, now_ms - sample.tick_ms),
        sequence=sample.sequence,
        values=sample.values.tolist(),
    )


def _encode_stored(stored: StoredShard) -> fleet_pb2.StoredShard:
    return fleet_pb2.StoredShard(
        shard=stored.shard,
        promised=stored.promised,
        adopted=stored.adopted,
        segments=[
            fleet_pb2.StoredSegment(
                epoch=segment.epoch,
                begin=segment.begin,
                end=segment.end,
                sealed=segment.seal is not None,
            )
            for segment in stored.segments.values()
        ],
    )
