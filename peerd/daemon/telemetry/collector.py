"""Takes health samples: reads the sources, computes rates, fills the vector of the schema.

Invariants:
- `Collector.sample()` never raises for what the machine does: a source that fails leaves its
  metrics NaN in this sample.
- Values are in `TELEMETRY_SCHEMA` order, float32; a rate needs two samples, so the first sample of
  a process has none.
- Sampling runs in its own thread (`TelemetrySampler`), never on the event loop: a /proc read can
  wait for a lock of a sick kernel, and a sampler that hangs with the loop sees nothing.

What it costs: about 0.5 ms of CPU a sample (`tests/telemetry/test_collector.py` holds it to 1 % of
a core).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from peerd.daemon.telemetry import sources
from peerd.daemon.telemetry.own import OwnMetrics, OwnStats
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA

Value = TypeVar("Value")

SAMPLE_PERIOD_MS = 1000
# How often the event loop is asked how late it is. Milliseconds.
LOOP_PROBE_PERIOD_MS = 50

_OWN_LEVELS = (
    "commit_latency_ms_p50",
    "commit_latency_ms_p99",
    "commit_latency_ms_max",
    "commit_age_ms",
    "replication_ack_ms_p99",
    "round_trip_ms_p50",
    "round_trip_ms_max",
    "loop_lag_ms_max",
)
_OWN_COUNTS = (
    "commits",
    "commit_stalls",
    "commit_bytes",
    "append_records",
    "append_bytes",
    "errors",
)

_HOST_COUNTS = (
    *("major_faults", "oom_kills", "memory_errors_corrected", "memory_errors_uncorrected"),
    *("tcp_retransmits", "tcp_timeouts", "tcp_aborts", "tcp_listen_drops"),
    *("network_errors", "network_receive_bytes", "network_transmit_bytes"),
    *("network_carrier_losses", "disk_io_errors"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One vector, with the time it was taken at.

    `tick_ms` is of the peer's monotonic clock, `wall_ms` since 1970. `sequence` is the number of
    the sampling period on the monotonic clock: it grows by one a sample, a gap is as many missing
    samples, and a restarted process of the same boot goes on where the old one ended. `values` is
    float32 of shape [metrics], read-only.
    """

    sequence: int
    tick_ms: int
    wall_ms: int
    values: npt.NDArray[np.float32]


class Collector:
    """Samples this process, the device of `data_directory`, and this host.

    `own` is asked once a sample for peerd's own work since the last one. `clock` gives monotonic
    seconds, `wall_clock` seconds since 1970. `smart` is what the disk said of itself last.
    """

    def __init__(
        self,
        data_directory: Path,
        own: Callable[[], OwnStats],
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        smart: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self._directory = data_directory
        self._own = own
        self._clock = clock
        self._wall_clock = wall_clock
        self._smart = smart
        self._memory_limit = sources.MemoryLimit()
        self._before: dict[str, float] = {}
        self._before_s = clock()

    def sample(self, *, delay_ms: float = 0.0) -> Sample:
        """The state now; `delay_ms` is how late the caller comes."""
        now_s = self._clock()
        elapsed_s = max(now_s - self._before_s, 1e-3)
        after: dict[str, float] = {}
        values = {"sample_delay_ms": delay_ms}
        values |= _own_values(self._own(), elapsed_s)
        for read in (self._read_process, self._read_disk, self._read_host):
            read(after, values)
        values |= self._smart()
        values |= _rates(self._before, after, elapsed_s)
        self._before, self._before_s = after, now_s
        vector = np.full(len(TELEMETRY_SCHEMA), np.nan, dtype=np.float32)
        for name, value in values.items():
            vector[TELEMETRY_SCHEMA.positions[name]] = value
        vector.flags.writeable = False
        return Sample(
            sequence=int(now_s * 1000) // SAMPLE_PERIOD_MS,
            tick_ms=int(now_s * 1000),
            wall_ms=int(self._wall_clock() * 1000),
            values=vector,
        )

    def _read_process(self, counters: dict[str, float], values: dict[str, float]) -> None:
        try:
            process = sources.process()
            counters["process_cpu_s"] = process["cpu_s"]
            counters["process_major_faults"] = process["major_faults"]
            counters["process_switches_involuntary"] = process["switches_involuntary"]
            values["process_memory_rss_bytes"] = process["rss_bytes"]
            values["process_memory_anonymous_bytes"] = process["anonymous_bytes"]
            used = _optional(lambda: self._memory_limit.used_share(process["data_bytes"]))
            values |= _named("process_memory_limit_share", used)
        except sources.SOURCE_ERRORS:
            pass  # missing in this sample
        counters |= _named("process_run_wait_s", _optional(sources.run_wait_s))
        values |= _named(
            "process_file_descriptors_share", _optional(sources.file_descriptors_share)
        )

    def _read_disk(self, counters: dict[str, float], values: dict[str, float]) -> None:
        try:
            device = self._directory.stat().st_dev
            disk = sources.disk(device)
            counters.update({f"disk_{name}": value for name, value in disk.items()})
            errors = _optional(lambda: sources.disk_io_errors(device))
            counters |= _named("disk_io_errors", errors)
        except sources.SOURCE_ERRORS:
            pass  # a file system without a block device of its own, such as tmpfs
        free = _optional(lambda: sources.disk_free_share(self._directory))
        values |= _named("disk_free_share", free)

    def _read_host(self, counters: dict[str, float], values: dict[str, float]) -> None:
        values |= _named("machine_identity", _optional(sources.machine_identity))
        values |= _named("load_per_core", _optional(sources.load_per_core))
        for read in (sources.cpu, sources.virtual_memory_events):
            counters |= _optional(read) or {}
        values |= _optional(sources.memory) or {}
        for resource_name in ("cpu", "memory", "io"):
            stalled = _optional(partial(sources.pressure, resource_name)) or {}
            for kind in ("some", "full"):
                counters |= _named(f"pressure_{resource_name}_{kind}", stalled.get(kind))
            if resource_name == "io":
                values |= _named("pressure_io_full_avg10_share", stalled.get("full_avg10"))
        counters |= _named("tcp_retransmits", _optional(sources.tcp_retransmits))
        for read_counters in (sources.network, sources.tcp_troubles, sources.memory_errors):
            counters |= _optional(read_counters) or {}
        lost = _optional(sources.network_carrier_losses)
        counters |= _named("network_carrier_losses", lost)


def _optional(read: Callable[[], Value]) -> Value | None:
    try:
        return read()
    except sources.SOURCE_ERRORS:
        return None


def _named(name: str, value: float | None) -> dict[str, float]:
    return {} if value is None else {name: value}


def _own_values(own: OwnStats, elapsed_s: float) -> dict[str, float]:
    stats = asdict(own)
    levels = {name: stats[name] for name in _OWN_LEVELS}
    return levels | {f"{name}_per_s": stats[name] / elapsed_s for name in _OWN_COUNTS}


def _rates(before: dict[str, float], after: dict[str, float], elapsed_s: float) -> dict[str, float]:
    """Metrics that are differences of counters present in both samples."""
    grown = {name: after[name] - before[name] for name in after.keys() & before.keys()}
    rates = {}

    def put(metric: str, counter: str, divisor: float) -> None:
        if counter in grown and divisor > 0.0:
            rate = max(grown[counter], 0.0) / divisor
            # The kernel adds in lumps: over a short interval more than all of it may have gone.
            rates[metric] = min(rate, 1.0) if metric.endswith("_share") else rate

    put("process_cpu_cores", "process_cpu_s", elapsed_s)
    put("process_major_faults_per_s", "process_major_faults", elapsed_s)
    put("process_switches_involuntary_per_s", "process_switches_involuntary", elapsed_s)
    put("process_run_wait_share", "process_run_wait_s", elapsed_s)
    put("disk_busy_share", "disk_busy_ms", elapsed_s * 1000.0)
    put("disk_queue_requests", "disk_queue_ms", elapsed_s * 1000.0)
    for kind, count in (("read", "reads"), ("write", "writes"), ("flush", "flushes")):
        put(f"disk_{kind}_latency_ms", f"disk_{kind}_ms", grown.get(f"disk_{count}", 0.0))
    cpu_s = grown.get("cpu_total", 0.0)
    if cpu_s > 0.0:
        idle_s = grown["cpu_idle"] + grown["cpu_iowait"]
        rates["cpu_busy_share"] = min(max(1.0 - idle_s / cpu_s, 0.0), 1.0)
    put("cpu_iowait_share", "cpu_iowait", cpu_s)
    put("cpu_steal_share", "cpu_steal", cpu_s)
    for name in ("cpu_some", "memory_some", "memory_full", "io_some", "io_full"):
        put(f"pressure_{name}_share", f"pressure_{name}", elapsed_s)
    for name in _HOST_COUNTS:
        put(f"{name}_per_s", name, elapsed_s)
    return rates


class TelemetrySampler:
    """A daemon thread that samples every `period_ms` and hands each sample to `on_sample`.

    `on_sample` is called on the sampling thread; it must be quick and must not raise. Samples are
    taken in the middle of a period of the monotonic clock, so that a jitter of almost half a
    period moves none into a neighbouring one.
    """

    def __init__(
        self,
        collector: Collector,
        on_sample: Callable[[Sample], None],
        *,
        period_ms: int = SAMPLE_PERIOD_MS,
    ) -> None:
        self._collector = collector
        self._on_sample = on_sample
        self._period_s = period_ms / 1000.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    def start(self) -> None:
        """Begin; once."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for the sample under way."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            # Counted from now, not from the last deadline: what was missed is not made up for.
            planned_s = (time.monotonic() // self._period_s + 1.5) * self._period_s
            if self._stopping.wait(planned_s - time.monotonic()):
                return
            delay_ms = max(time.monotonic() - planned_s, 0.0) * 1000.0
            self._on_sample(self._collector.sample(delay_ms=delay_ms))


async def watch_loop_lag(own: OwnMetrics, *, period_ms: int = LOOP_PROBE_PERIOD_MS) -> None:
    """Measure for ever how late the running event loop wakes a timer. Ends by cancellation."""
    loop = asyncio.get_running_loop()
    while True:
        planned_s = loop.time() + period_ms / 1000.0
        await asyncio.sleep(period_ms / 1000.0)
        own.record_loop_lag(max(loop.time() - planned_s, 0.0) * 1000.0)
