"""The peer's own counts at `/metrics`: bounds that are visible before they are reached."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from peerd.core.ids import NodeName
from peerd.daemon.copier import CopierStatistics
from peerd.daemon.copy_progress import CopyProgress
from peerd.daemon.front.fronts import FrontStatistics
from peerd.daemon.host import HostStatistics
from peerd.daemon.las_session import SessionStatistics
from peerd.daemon.links import LinkStatistics
from peerd.daemon.repairer import RepairStatistics
from peerd.daemon.scrubber import ScrubStatistics
from peerd.daemon.uploader import UploadStatistics
from peerd.monitoring.metrics import Histogram, histogram, labelled, single
from peerd.storage.options import Space
from peerd.transport.workload import WorkloadFigures

DAY_S = 24 * 3_600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessStatistics:
    """The access table in force, and calls refused for who made them, by reason."""

    version: int
    age_s: float
    required: bool
    grants: int
    revoked: int
    refused: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStatistics:
    """Everything that is counted, at one moment."""

    host: HostStatistics
    links: list[LinkStatistics]
    session: SessionStatistics
    copier: CopierStatistics
    copying: CopyProgress
    repairer: RepairStatistics
    scrubber: ScrubStatistics
    uploader: UploadStatistics | None
    tier_lag_bytes: int
    slowed_appends: int
    background_bytes: int
    space: Space
    storage_queued_bytes: int
    map_version: int
    map_age_ms: int
    tasks: int
    histograms: dict[str, Histogram]
    workload: WorkloadFigures
    fronts: list[FrontStatistics]
    access: AccessStatistics
    certificate_expiry_s: float | None


class PeerExporter(Collector):
    """Register with a `CollectorRegistry`; `statistics` is called once a scrape."""

    def __init__(self, statistics: Callable[[], PeerStatistics]) -> None:
        self._statistics = statistics

    def collect(self) -> Iterator[Metric]:
        """All metrics of one scrape."""
        now = self._statistics()
        yield from single(
            peerd_shards=now.host.shards,
            peerd_primaries=now.host.primaries,
            peerd_requests_unanswered=now.host.unanswered_requests,
            peerd_storage_writes_pending=now.host.writes_pending,
            peerd_storage_queued_bytes=now.storage_queued_bytes,
            peerd_storage_free_bytes=now.space.free_bytes,
            peerd_storage_stored_bytes=now.space.stored_bytes,
            peerd_storage_in_reserve=int(now.space.in_reserve),
            peerd_streams_in=now.host.streams_in,
            peerd_las_connected=now.session.connected,
            peerd_las_reports_waiting=now.session.reports_waiting,
            peerd_las_reports_dropped_total=now.session.reports_dropped,
            peerd_map_version=now.map_version,
            peerd_map_age_seconds=now.map_age_ms / 1000,
            peerd_copies_wanted=now.copier.wanted_segments,
            peerd_copied_bytes_total=now.copier.copied_bytes,
            peerd_copied_segments_total=now.copier.copied_segments,
            peerd_copies_wanted_records=now.copying.records,
            peerd_copies_bytes_per_s=now.copying.bytes_per_s,
            peerd_background_bytes_total=now.background_bytes,
            peerd_tasks=now.tasks,
        )
        for name, counts in now.histograms.items():
            yield histogram(name, counts)
        if now.certificate_expiry_s is not None:
            yield from single(peerd_certificate_expiry_days=now.certificate_expiry_s / DAY_S)
        yield from _care(now.repairer, now.scrubber)
        if now.uploader is not None:
            yield from _tier(now.uploader)
            yield from single(
                peerd_tier_lag_bytes=now.tier_lag_bytes,
                peerd_tier_slowed_appends_total=now.slowed_appends,
            )
        yield from _links(now.links, now.host.lag_records)
        yield from _fronts(now.fronts)
        yield from _access(now.access)
        yield from _workload(now.workload)


def _access(access: AccessStatistics) -> Iterator[Metric]:
    """Who gets in."""
    yield from single(
        peerd_access_version=access.version,
        peerd_access_age_seconds=access.age_s,
        peerd_access_required=int(access.required),
        peerd_access_grants=access.grants,
        peerd_access_revoked=access.revoked,
    )
    yield labelled("peerd_calls_refused_total", sorted(access.refused.items()))


def _tier(uploads: UploadStatistics) -> Iterator[Metric]:
    """What went to the tier from here, and what waits to."""
    yield from single(
        peerd_tier_oldest_waiting_seconds=uploads.oldest_waiting_s,
        peerd_tier_objects_total=uploads.objects,
        peerd_tier_uploaded_bytes_total=uploads.payload_bytes,
        peerd_tier_removed_objects_total=uploads.removed_objects,
    )
    yield labelled("peerd_tier_errors_total", sorted(uploads.errors.items()))
    yield labelled("peerd_tier_read_errors_total", sorted(uploads.read_errors.items()))


def _care(repairs: RepairStatistics, scrub: ScrubStatistics) -> Iterator[Metric]:
    """How whole the stored batches are."""
    yield from single(
        peerd_damaged_batches=repairs.damaged,
        peerd_damaged_batches_found_total=repairs.found,
        peerd_damaged_batches_repaired_total=repairs.repaired,
        peerd_scrubbed_bytes_total=scrub.scrubbed_bytes,
        peerd_scrub_passes_total=scrub.passes,
    )
    if scrub.pass_age_s is not None:
        yield from single(peerd_scrub_pass_age_seconds=scrub.pass_age_s)


def _links(links: list[LinkStatistics], lag_records: dict[NodeName, int]) -> Iterator[Metric]:
    yield labelled("peerd_link_up", ((link.peer, link.up) for link in links))
    yield labelled("peerd_link_queued_bytes", ((link.peer, link.queued_bytes) for link in links))
    yield labelled("peerd_link_breaks_total", ((link.peer, link.breaks) for link in links))
    yield labelled("peerd_link_overflows_total", ((link.peer, link.overflows) for link in links))
    yield labelled(
        "peerd_link_round_trip_seconds",
        (
            (link.peer, link.round_trip_ms / 1000)
            for link in links
            if link.round_trip_ms is not None
        ),
    )
    yield labelled("peerd_link_lag_records", sorted(lag_records.items()))


def _workload(figures: WorkloadFigures) -> Iterator[Metric]:
    """By shard, of the last whole interval; what has no value is left out."""
    for name in (
        "appends_per_s",
        "records_per_s",
        "bytes_per_s",
        "records_per_batch",
        "distinct_keys",
        "hottest_key_share",
        "conditional_share",
        "read_bytes_per_s",
        "cold_read_share",
        "readers",
        "reader_lag_records",
    ):
        values = ((str(shard), getattr(load, name)) for shard, load in figures.shards.items())
        known = [(shard, value) for shard, value in values if not math.isnan(value)]
        yield labelled(f"peerd_shard_{name}", known)


def _fronts(fronts: list[FrontStatistics]) -> Iterator[Metric]:
    for name, value in (
        ("peerd_worker_up", lambda front: front.up),
        ("peerd_worker_unanswered_bytes", lambda front: front.unanswered_bytes),
        ("peerd_worker_starts_total", lambda front: front.starts),
        ("peerd_worker_appends_total", lambda front: front.appends),
        ("peerd_worker_cpu_seconds", lambda front: front.cpu_s),
    ):
        yield labelled(name, [(str(front.worker), value(front)) for front in fronts])
