"""What peerd measures of its own work: a thread-safe accumulator, emptied once a sample.

The storage writer, the log service, the replication streams and the event loop's probe call the
`record_*` methods from their own threads; the collector calls `take()`.

Invariants:
- A `record_*` call costs about a microsecond, never blocks on IO and never raises.
- Memory is bounded: at most `LATENCIES_KEPT_MAX` latencies of each kind are kept an interval.
  Later ones still count, and still move the maximum.
- A latency without an event is NaN.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

from peerd.monitoring.metrics import Histogram
from peerd.transport.workload import Workload

# A commit of this length is a stall: some 50 times the usual commit of a healthy disk, and short
# enough to be seen before clients notice. Milliseconds.
COMMIT_STALL_MS = 100.0

# limit: latencies of one kind kept for percentiles between two samples; ten times what one writer
# thread can commit in a second, 80 kB.
LATENCIES_KEPT_MAX = 10_000

# Upper bounds of the exported histograms, in seconds: from a fast disk's flush to what a client
# would call an outage.
DURATION_BOUNDS_S = (
    0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0
)  # fmt: skip

_NAN = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnStats:
    """The work of one interval: latencies in milliseconds (NaN without events), plain counts."""

    commit_latency_ms_p50: float = _NAN
    commit_latency_ms_p99: float = _NAN
    commit_latency_ms_max: float = _NAN
    commit_age_ms: float = 0.0
    commits: int = 0
    commit_stalls: int = 0
    commit_bytes: int = 0
    append_records: int = 0
    append_bytes: int = 0
    replication_ack_ms_p99: float = _NAN
    round_trip_ms_p50: float = _NAN
    round_trip_ms_max: float = _NAN
    errors: int = 0
    loop_lag_ms_max: float = _NAN


class Latencies:
    """The latencies of one interval, bounded. Not thread-safe by itself."""

    def __init__(self) -> None:
        self._kept: list[float] = []
        self.count = 0
        self.maximum = _NAN

    def add(self, duration_ms: float) -> None:
        """Take in one latency, in milliseconds."""
        self.count += 1
        if len(self._kept) < LATENCIES_KEPT_MAX:
            self._kept.append(duration_ms)
        if not duration_ms <= self.maximum:  # true for the first one, too: NaN compares false
            self.maximum = duration_ms

    def quantiles(self, *fractions: float) -> list[float]:
        """The nearest-rank quantiles of what was kept; NaN each when nothing was."""
        ordered = sorted(self._kept)
        if not ordered:
            return [_NAN for _ in fractions]
        return [ordered[math.ceil(fraction * len(ordered)) - 1] for fraction in fractions]


class DurationCounts:
    """How often something took how long, since the start; the thread-safety is its owner's."""

    def __init__(self) -> None:
        self._counts = [0] * (len(DURATION_BOUNDS_S) + 1)
        self._sum_s = 0.0

    def add(self, duration_s: float) -> None:
        """Count one."""
        self._counts[bisect_left(DURATION_BOUNDS_S, duration_s)] += 1
        self._sum_s += duration_s

    def histogram(self) -> Histogram:
        """As it is exported."""
        return Histogram(bounds_s=DURATION_BOUNDS_S, counts=tuple(self._counts), sum_s=self._sum_s)


class OwnMetrics:
    """Accumulates between two samples. `clock` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.appends = DurationCounts()
        """From a batch's arrival to its acknowledgement. Of the event loop alone."""
        self._commit_counts = DurationCounts()
        self._ack_counts = DurationCounts()
        self.workload = Workload()
        """Of the event loop alone, unlike everything else here."""
        self._lock = threading.Lock()
        self._commit_begun_s: float | None = None
        self._reset()

    def _reset(self) -> None:
        self._commits = Latencies()
        self._acks = Latencies()
        self._round_trips = Latencies()
        self._loop_lag = Latencies()
        self._commit_stalls = 0
        self._commit_bytes = 0
        self._append_records = 0
        self._append_bytes = 0
        self._errors = 0

    def commit_begun(self) -> None:
        """A write transaction is about to be made durable; `record_commit` ends it.

        Without this call a disk that hangs would look idle: nothing completes.
        """
        with self._lock:
            self._commit_begun_s = self._clock()

    def record_commit(self, duration_ms: float, payload_bytes: int) -> None:
        """A write transaction reached the disk, `duration_ms` after it was begun."""
        with self._lock:
            self._commit_begun_s = None
            self._commits.add(duration_ms)
            self._commit_counts.add(duration_ms / 1000)
            self._commit_stalls += duration_ms >= COMMIT_STALL_MS
            self._commit_bytes += payload_bytes

    def record_append(self, records: int, payload_bytes: int) -> None:
        """A batch was accepted from a client."""
        with self._lock:
            self._append_records += records
            self._append_bytes += payload_bytes

    def record_replication_ack(self, duration_ms: float) -> None:
        """A shadow acknowledged a frame, `duration_ms` after it was sent."""
        with self._lock:
            self._acks.add(duration_ms)
            self._ack_counts.add(duration_ms / 1000)

    def record_round_trip(self, duration_ms: float) -> None:
        """A ping on a stream of frames was answered, or is not yet, after `duration_ms`."""
        with self._lock:
            self._round_trips.add(duration_ms)

    def record_loop_lag(self, duration_ms: float) -> None:
        """A timer of the event loop fired `duration_ms` late."""
        with self._lock:
            self._loop_lag.add(duration_ms)

    def record_error(self) -> None:
        """Something was refused or failed that was not the client's fault."""
        with self._lock:
            self._errors += 1

    def histograms(self) -> dict[str, Histogram]:
        """By the name of the metric: what took how long, since the start."""
        with self._lock:
            return {
                "peerd_append_seconds": self.appends.histogram(),
                "peerd_commit_seconds": self._commit_counts.histogram(),
                "peerd_replication_ack_seconds": self._ack_counts.histogram(),
            }

    def take(self) -> OwnStats:
        """What happened since the last call."""
        with self._lock:
            commits, acks, loop_lag = self._commits, self._acks, self._loop_lag
            round_trips = self._round_trips
            begun_s = self._commit_begun_s
            counts = {
                "commit_stalls": self._commit_stalls,
                "commit_bytes": self._commit_bytes,
                "append_records": self._append_records,
                "append_bytes": self._append_bytes,
                "errors": self._errors,
            }
            self._reset()
        # Sorting happens outside the lock: a writer never waits for a percentile.
        half, nearly_all = commits.quantiles(0.50, 0.99)
        return OwnStats(
            commit_latency_ms_p50=half,
            commit_latency_ms_p99=nearly_all,
            commit_latency_ms_max=commits.maximum,
            commit_age_ms=0.0 if begun_s is None else (self._clock() - begun_s) * 1000.0,
            commits=commits.count,
            replication_ack_ms_p99=acks.quantiles(0.99)[0],
            round_trip_ms_p50=round_trips.quantiles(0.50)[0],
            round_trip_ms_max=round_trips.maximum,
            loop_lag_ms_max=loop_lag.maximum,
            **counts,
        )
