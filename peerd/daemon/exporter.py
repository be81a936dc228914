"""The peer's own counts at `/metrics`: bounds that are visible before they are reached."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from peerd.daemon.copier import CopierStatistics
from peerd.daemon.front.fronts import FrontStatistics
from peerd.daemon.host import HostStatistics
from peerd.daemon.las_session import SessionStatistics
from peerd.daemon.links import LinkStatistics
from peerd.daemon.repairer import RepairStatistics
from peerd.daemon.scrubber import ScrubStatistics
from peerd.daemon.uploader import UploadStatistics
from peerd.storage.options import Space
from peerd.transport.workload import WorkloadFigures

DAY_S = 24 * 3_600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStatistics:
    """Everything that is counted, at one moment."""

    host: HostStatistics
    links: list[LinkStatistics]
    session: SessionStatistics
    copier: CopierStatistics
    repairer: RepairStatistics
    scrubber: ScrubStatistics
    uploader: UploadStatistics | None
    space: Space
    storage_queued_bytes: int
    map_version: int
    map_age_ms: int
    tasks: int
    workload: WorkloadFigures
    fronts: list[FrontStatistics]
    certificate_expiry_s: float | None


class PeerExporter(Collector):
    """Register with a `CollectorRegistry`; `statistics` is called once a scrape."""

    def __init__(self, statistics: Callable[[], PeerStatistics]) -> None:
        self._statistics = statistics

    def collect(self) -> Iterator[Metric]:
        """All metrics of one scrape."""
        now = self._statistics()
        yield from _gauges(
            peerd_shards=("Shards with a copy or a promise here", now.host.shards),
            peerd_primaries=("Shards that this process orders", now.host.primaries),
            peerd_requests_unanswered=(
                "Appends, promises and hand-overs that wait for an answer",
                now.host.unanswered_requests,
            ),
            peerd_storage_writes_pending=(
                "Operations given to the storage writer and not yet durable",
                now.host.writes_pending,
            ),
            peerd_storage_queued_bytes=("Bytes that wait for it", now.storage_queued_bytes),
            peerd_storage_free_bytes=("Bytes that can still be stored", now.space.free_bytes),
            peerd_storage_stored_bytes=("Bytes of pages in use", now.space.stored_bytes),
            peerd_storage_in_reserve=(
                "1 while appends are refused for lack of space",
                int(now.space.in_reserve),
            ),
            peerd_streams_in=("Streams of frames from other peers", now.host.streams_in),
            peerd_las_connected=(
                "1 while a session with the LAS leader stands",
                now.session.connected,
            ),
            peerd_las_reports_waiting=("Reports not yet answered", now.session.reports_waiting),
            peerd_map_version=("Version of the shard map known here", now.map_version),
            peerd_map_age_seconds=(
                "Since the map was last heard to be current",
                now.map_age_ms / 1000,
            ),
            peerd_copies_wanted=(
                "Sealed segments still to be copied here",
                now.copier.wanted_segments,
            ),
            peerd_tasks=("Supervised tasks that run", now.tasks),
        )
        yield from _counters(
            peerd_las_reports_dropped=(
                "Reports dropped because too many waited",
                now.session.reports_dropped,
            ),
            peerd_copied_bytes=("Bytes read for copies", now.copier.copied_bytes),
            peerd_copied_segments=("Sealed segments copied here", now.copier.copied_segments),
        )
        if now.certificate_expiry_s is not None:
            yield from _gauges(
                peerd_certificate_expiry_days=(
                    "Until this peer's certificate, or the last authority it trusts, expires",
                    now.certificate_expiry_s / DAY_S,
                )
            )
        yield from _care(now.repairer, now.scrubber)
        if now.uploader is not None:
            yield from _tier(now.uploader)
        yield from _links(now.links)
        yield from _fronts(now.fronts)
        yield from _workload(now.workload)


def _tier(uploads: UploadStatistics) -> Iterator[Metric]:
    """What went to the tier from here, and what waits to."""
    yield from _gauges(
        peerd_tier_oldest_waiting_seconds=(
            "Age of the oldest record that could be in the tier and is not yet",
            uploads.oldest_waiting_s,
        )
    )
    yield from _counters(
        peerd_tier_objects=("Objects put into the tier, verified", uploads.objects),
        peerd_tier_uploaded_bytes=("Payload bytes in them", uploads.payload_bytes),
        peerd_tier_removed_objects=(
            "Objects and manifests removed that nobody needs",
            uploads.removed_objects,
        ),
    )
    errors = CounterMetricFamily(
        "peerd_tier_errors", "Uploads that failed and are tried again", labels=["code"]
    )
    for code, count in sorted(uploads.errors.items()):
        errors.add_metric([code], count)
    yield errors


def _care(repairs: RepairStatistics, scrub: ScrubStatistics) -> Iterator[Metric]:
    """How whole the stored batches are."""
    yield from _gauges(
        peerd_damaged_batches=(
            "Stored batches known to be damaged and not repaired yet",
            repairs.damaged,
        )
    )
    yield from _counters(
        peerd_damaged_batches_found=("Stored batches that failed their checksum", repairs.found),
        peerd_damaged_batches_repaired=(
            "Those that were written anew from another holder",
            repairs.repaired,
        ),
        peerd_scrubbed_bytes=(
            "Bytes of stored batches read and checked by the scrub",
            scrub.scrubbed_bytes,
        ),
        peerd_scrub_passes=("Times that the scrub has read all", scrub.passes),
    )
    if scrub.pass_age_s is not None:
        yield from _gauges(
            peerd_scrub_pass_age_seconds=(
                "Since the scrub last read all; absent before the first time",
                scrub.pass_age_s,
            )
        )


def _gauges(**values: tuple[str, float]) -> Iterator[Metric]:
    for name, (meaning, value) in values.items():
        yield GaugeMetricFamily(name, meaning, value=value)


def _counters(**values: tuple[str, float]) -> Iterator[Metric]:
    for name, (meaning, value) in values.items():
        yield CounterMetricFamily(name, meaning, value=value)


def _links(links: list[LinkStatistics]) -> Iterator[Metric]:
    up = GaugeMetricFamily("peerd_link_up", "1 while its stream is open", labels=["peer"])
    queued = GaugeMetricFamily("peerd_link_queued_bytes", "Bytes that wait for it", labels=["peer"])
    breaks = CounterMetricFamily("peerd_link_breaks", "Times that it broke", labels=["peer"])
    overflows = CounterMetricFamily(
        "peerd_link_overflows",
        "Times that it started over because too much waited",
        labels=["peer"],
    )
    round_trip = GaugeMetricFamily(
        "peerd_link_round_trip_seconds",
        "Of the newest ping, or since then if it is not answered; absent before the first",
        labels=["peer"],
    )
    for link in links:
        if link.round_trip_ms is not None:
            round_trip.add_metric([link.peer], link.round_trip_ms / 1000)
        up.add_metric([link.peer], link.up)
        queued.add_metric([link.peer], link.queued_bytes)
        breaks.add_metric([link.peer], link.breaks)
        overflows.add_metric([link.peer], link.overflows)
    yield from (up, queued, breaks, overflows, round_trip)


def _workload(figures: WorkloadFigures) -> Iterator[Metric]:
    """By shard, of the last whole interval; what has no value is left out."""
    for name, words in (
        ("appends_per_s", "Batches taken"),
        ("records_per_s", "Records taken"),
        ("bytes_per_s", "Payload bytes taken"),
        ("records_per_batch", "Mean records of a batch"),
        ("distinct_keys", "Distinct keys, estimated"),
        ("hottest_key_share", "Share of the most frequent key"),
        ("conditional_share", "Share of batches that name the offset they expect"),
        ("read_bytes_per_s", "Payload bytes that left for readers"),
        ("cold_read_share", "Share of them that is older than a minute"),
        ("readers", "Readers that follow"),
        ("reader_lag_records", "Records that the last of them is behind"),
    ):
        family = GaugeMetricFamily(f"peerd_shard_{name}", words, labels=["shard"])
        for shard, load in figures.shards.items():
            value = getattr(load, name)
            if not math.isnan(value):
                family.add_metric([str(shard)], value)
        yield family


def _fronts(fronts: list[FrontStatistics]) -> Iterator[Metric]:
    label = ["worker"]
    up = GaugeMetricFamily("peerd_worker_up", "1 while a front worker serves", labels=label)
    unanswered = GaugeMetricFamily(
        "peerd_worker_unanswered_bytes", "Bytes of its appends without an answer", labels=label
    )
    starts = CounterMetricFamily(
        "peerd_worker_starts", "Times that its process was started", labels=label
    )
    appends = CounterMetricFamily(
        "peerd_worker_appends", "Appends that it brought to the sequencer", labels=label
    )
    cpu = GaugeMetricFamily(
        "peerd_worker_cpu_seconds", "CPU time of its present process", labels=label
    )
    for front in fronts:
        number = [str(front.worker)]
        up.add_metric(number, front.up)
        unanswered.add_metric(number, front.unanswered_bytes)
        starts.add_metric(number, front.starts)
        appends.add_metric(number, front.appends)
        cpu.add_metric(number, front.cpu_s)
    yield from (up, unanswered, starts, appends, cpu)
