"""peerd's measures of its own work."""

import math
import threading

import pytest

from peerd.daemon.telemetry.own import LATENCIES_KEPT_MAX, Latencies, OwnMetrics


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_an_interval_without_work_has_no_latencies_and_zero_counts():
    stats = OwnMetrics().take()
    assert math.isnan(stats.commit_latency_ms_p50)
    assert math.isnan(stats.commit_latency_ms_max)
    assert math.isnan(stats.replication_ack_ms_p99)
    assert math.isnan(stats.loop_lag_ms_max)
    assert (stats.commits, stats.errors, stats.commit_age_ms) == (0, 0, 0.0)


def test_percentiles_are_nearest_ranks_and_stalls_are_counted():
    own = OwnMetrics()
    for duration_ms in range(1, 101):
        own.record_commit(float(duration_ms), payload_bytes=10)
    stats = own.take()
    assert stats.commit_latency_ms_p50 == 50.0
    assert stats.commit_latency_ms_p99 == 99.0
    assert stats.commit_latency_ms_max == 100.0
    assert (stats.commits, stats.commit_stalls, stats.commit_bytes) == (100, 1, 1000)


def test_taking_empties():
    own = OwnMetrics()
    own.record_append(3, 300)
    own.record_error()
    assert own.take().append_records == 3
    assert own.take().append_records == 0


def test_a_commit_that_does_not_return_grows_old_and_is_not_forgotten_by_taking():
    clock = Clock()
    own = OwnMetrics(clock)
    own.commit_begun()
    clock.now_s = 0.7
    assert own.take().commit_age_ms == pytest.approx(700.0)
    clock.now_s = 1.7
    assert own.take().commit_age_ms == pytest.approx(1700.0)
    own.record_commit(1800.0, 1)
    assert own.take().commit_age_ms == 0.0


def test_latencies_are_bounded_but_count_and_maximum_are_exact():
    latencies = Latencies()
    for _ in range(LATENCIES_KEPT_MAX):
        latencies.add(1.0)
    latencies.add(77.0)
    assert latencies.count == LATENCIES_KEPT_MAX + 1
    assert latencies.maximum == 77.0
    assert latencies.quantiles(0.99) == [1.0]


def test_threads_lose_no_count():
    own = OwnMetrics()

    def work() -> None:
        for _ in range(2000):
            own.record_commit(1.0, 1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert own.take().commits == 8000
