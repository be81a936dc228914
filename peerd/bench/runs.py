"""One run against a cluster: client processes, and what the machine did meanwhile."""

import asyncio
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from peerd.bench.appending import WARM_UP_S, AppendCounts, AppendJob, joined
from peerd.bench.machine import Servers, calibrate, percentiles_ms
from peerd.bench.reading import FollowCounts, FollowJob, ReadCounts, ReadJob, fill
from peerd.bench.workers import BenchFailed, Workers

DROP_CACHES = Path("/proc/sys/vm/drop_caches")

Told = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendResult:
    """What a run of appends found out."""

    job: AppendJob
    counts: AppendCounts
    servers_cpu_s: dict[str, float] | None
    disk_ms: list[float]

    @property
    def appends_per_s(self) -> float:
        """Acknowledged appends a second; each is of `job.batch` records."""
        return self.counts.acknowledged / self.job.duration_s

    @property
    def records_per_s(self) -> float:
        """Acknowledged records a second."""
        return self.appends_per_s * self.job.batch

    @property
    def mb_per_s(self) -> float:
        """Acknowledged payload, in 10^6 bytes a second."""
        return self.records_per_s * self.job.size / 1e6

    def as_json(self) -> dict[str, object]:
        """What `peerctl bench append -o json` prints."""
        latencies, servers = self.counts.latencies, self.servers_cpu_s
        return {
            "appends_per_s": round(self.appends_per_s, 1),
            "mb_per_s": round(self.mb_per_s, 3),
            "latency_ms": {
                "p50": known(latencies.percentile_ms(50)),
                "p99": known(latencies.percentile_ms(99)),
                "p999": known(latencies.percentile_ms(99.9)),
                "max": known(latencies.max_ms),
            },
            "errors": self.counts.errors.total(),
            "longest_pause_ms": round(self.counts.longest_pause_s * 1000.0, 3),
            "cpu_s": {
                "client": round(self.counts.client_cpu_s, 3),
                "servers": None if servers is None else round(sum(servers.values()), 3),
            },
            "disk_fdatasync_ms": disk_json(self.disk_ms),
        }


def run_appends(job: AppendJob, clients: int, told: Told) -> AppendResult:
    """Run `job` in so many processes at once; a rate is that of all together.

    Raises:
        BenchFailed: one of them cannot append like that.
    """
    directory = Path(job.config).absolute().parent
    servers = Servers(directory)
    disk_ms = _calibrated(directory, servers)
    rate_per_s = None if job.rate_per_s is None else job.rate_per_s / clients
    with Workers([replace(job, rate_per_s=rate_per_s)] * clients) as workers:
        begin_s = workers.begin() + WARM_UP_S
        seen: list[dict[str, float] | None] = []
        look = [begin_s, begin_s + job.duration_s]
        parts = workers.results(
            told, [(moment_s, lambda: seen.append(servers.cpu_s())) for moment_s in look]
        )
    disk_ms += _calibrated(directory, servers)
    return AppendResult(
        job=job,
        counts=joined(parts),
        servers_cpu_s=_used(*seen),
        disk_ms=disk_ms,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadResult:
    """What reads found out. `records`: what the log had."""

    records: int
    batches: ReadCounts
    objects: ReadCounts
    follow: FollowCounts
    disk_ms: list[float]

    def as_json(self) -> dict[str, object]:
        """What `peerctl bench read -o json` prints."""
        late = self.follow.latencies
        return {
            "batches": _read_json(self.batches),
            "objects": _read_json(self.objects),
            "follow_ms": {
                "p50": known(late.percentile_ms(50)),
                "p99": known(late.percentile_ms(99)),
                "p999": known(late.percentile_ms(99.9)),
                "max": known(late.max_ms),
            },
            "not_seen": self.follow.unseen,
            "disk_fdatasync_ms": disk_json(self.disk_ms),
        }


def _read_json(counts: ReadCounts) -> dict[str, object]:
    return {
        "records_per_s": round(counts.records_per_s, 1),
        "mb_per_s": round(counts.mb_per_s, 3),
        "cpu_us_per_record": {
            "client": round(counts.client_cpu_s / counts.records * 1e6, 3),
            "servers": None
            if counts.servers_cpu_s is None
            else round(counts.servers_cpu_s / counts.records * 1e6, 3),
        },
    }


def run_reads(
    config: str,
    log: str,
    *,
    records: int,
    size: int,
    rate_per_s: float,
    duration_s: float,
    cold: bool,
    told: Told,
) -> ReadResult:
    """Fill the log, read it as batches and as objects, follow it; each in a process of its own.

    Raises:
        BenchFailed: one of them failed, or the page cache cannot be dropped.
        PeerdError: the log cannot be filled.
    """
    directory = Path(config).absolute().parent
    servers = Servers(directory)
    disk_ms = _calibrated(directory, servers)
    has = asyncio.run(fill(config, log, records=records, size=size))
    counts: list[ReadCounts] = []
    for objects in (False, True):
        if cold:
            _drop_page_cache()
        job = ReadJob(config=config, log=log, objects=objects, duration_s=duration_s, once=cold)
        with Workers([job]) as readers:
            readers.begin()
            before = servers.cpu_s()
            (read,) = readers.results(told)
            used = _used(before, servers.cpu_s())
        read.servers_cpu_s = None if used is None else sum(used.values())
        counts.append(read)
    follow = FollowJob(
        config=config, log=log, size=size, rate_per_s=rate_per_s, duration_s=duration_s
    )
    with Workers([follow]) as followers:
        followers.begin()
        (followed,) = followers.results(told)
    return ReadResult(
        records=has, batches=counts[0], objects=counts[1], follow=followed, disk_ms=disk_ms
    )


def _drop_page_cache() -> None:
    os.sync()
    try:
        DROP_CACHES.write_text("1", "ascii")
    except OSError as error:
        raise BenchFailed(
            f"--cold: the page cache cannot be dropped ({error.strerror}): run as root, on the "
            "machine of the peers"
        ) from error


def known(value_ms: float) -> float | None:
    """Milliseconds to the microsecond; None for NaN, which JSON does not have."""
    return None if math.isnan(value_ms) else round(value_ms, 3)


def disk_json(times_ms: list[float]) -> dict[str, float | None] | None:
    """The calibration of a disk; None if the cluster is elsewhere."""
    if not times_ms:
        return None
    return {name: known(value_ms) for name, value_ms in percentiles_ms(times_ms).items()}


def _calibrated(directory: Path, servers: Servers) -> list[float]:
    """Of the disk that the cluster lives on; nothing if it lives elsewhere."""
    if servers.cpu_s() is None:
        return []
    try:
        return calibrate(directory)
    except OSError as error:
        raise BenchFailed(f"the disk of {directory} cannot be calibrated: {error}") from error


def _used(
    before: dict[str, float] | None, after: dict[str, float] | None
) -> dict[str, float] | None:
    if before is None or after is None:
        return None
    return {name: max(0.0, after[name] - before[name]) for name in after}
