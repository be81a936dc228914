"""The collector against the real kernel, against a broken one, and against its budget."""

import asyncio
import math
import threading
import time

import numpy as np
import pytest

from peerd.daemon.telemetry import sources
from peerd.daemon.telemetry.collector import Collector, TelemetrySampler, watch_loop_lag
from peerd.daemon.telemetry.own import OwnMetrics, OwnStats
from peerd.daemon.telemetry.schema import ALWAYS_PRESENT, TELEMETRY_SCHEMA, Kind, Scope

# What any Linux must give; pressure, disk, swap, limits and flushes depend on the machine.
EVERYWHERE = (
    "commit_latency_ms_p50", "commit_latency_ms_p99", "commits_per_s", "process_cpu_cores",
    "process_memory_rss_bytes", "process_memory_anonymous_bytes", "process_run_wait_share",
    "process_file_descriptors_share", "disk_free_share", "machine_identity", "cpu_busy_share",
    "tcp_timeouts_per_s", "network_receive_bytes_per_s", "network_carrier_losses_per_s",
    "load_per_core", "memory_available_share", "major_faults_per_s", "tcp_retransmits_per_s",
)  # fmt: skip


def by_name(sample):
    return dict(zip(TELEMETRY_SCHEMA.names, sample.values.tolist(), strict=True))


def busy_stats():
    return OwnStats(
        commit_latency_ms_p50=1.0, commit_latency_ms_p99=2.0, commit_latency_ms_max=3.0, commits=50
    )


def test_a_second_sample_on_this_machine_has_what_every_linux_gives(tmp_path):
    collector = Collector(tmp_path, busy_stats)
    collector.sample()
    spin_until = time.process_time() + 0.02
    while time.process_time() < spin_until:
        pass
    values = by_name(collector.sample(delay_ms=12.0))
    assert [name for name in EVERYWHERE if math.isnan(values[name])] == []
    assert values["sample_delay_ms"] == 12.0
    assert values["process_cpu_cores"] > 0.0


def test_shares_lie_between_0_and_1(tmp_path):
    collector = Collector(tmp_path, OwnMetrics().take)
    collector.sample()
    values = by_name(collector.sample())
    shares = {m.name: values[m.name] for m in TELEMETRY_SCHEMA if m.kind is Kind.SHARE}
    assert {n: v for n, v in shares.items() if not (math.isnan(v) or -0.01 <= v <= 1.5)} == {}


def test_the_first_sample_has_no_rate_of_the_kernel(tmp_path):
    values = by_name(Collector(tmp_path, OwnMetrics().take).sample())
    assert math.isnan(values["process_cpu_cores"])
    assert math.isnan(values["tcp_retransmits_per_s"])


def test_rates_are_of_real_time(tmp_path):
    now = [100.0]
    collector = Collector(tmp_path, busy_stats, clock=lambda: now[0], wall_clock=lambda: 7.0)
    now[0] = 102.0
    sample = collector.sample()
    assert by_name(sample)["commits_per_s"] == 25.0
    assert (sample.sequence, sample.tick_ms, sample.wall_ms) == (102, 102_000, 7_000)


def test_a_kernel_without_files_gives_missing_values_never_zero(tmp_path, monkeypatch):
    def absent(path):
        raise FileNotFoundError(path)

    collector = Collector(tmp_path, OwnMetrics().take)
    monkeypatch.setattr(sources, "read_text", absent)
    collector.sample()
    values = by_name(collector.sample())
    kernel = [m.name for m in TELEMETRY_SCHEMA if m.source.startswith(("/proc", "/sys", "boot_id"))]
    kernel.remove("process_file_descriptors_share")
    assert {name: values[name] for name in kernel if not math.isnan(values[name])} == {}
    assert values[ALWAYS_PRESENT] == 0.0


def test_a_garbled_file_gives_missing_values(tmp_path, monkeypatch):
    collector = Collector(tmp_path, OwnMetrics().take)
    monkeypatch.setattr(sources, "read_text", lambda path: "garbage\nmore of it\n")
    collector.sample()
    assert math.isnan(by_name(collector.sample())["cpu_busy_share"])


def test_memory_errors_are_those_of_all_controllers(tmp_path):
    for number in range(2):
        controller = tmp_path / f"mc{number}"
        controller.mkdir()
        (controller / "ce_count").write_text("3\n")
        (controller / "ue_count").write_text(f"{number}\n")
    assert sources.memory_errors(str(tmp_path)) == {
        "memory_errors_corrected": 6.0,
        "memory_errors_uncorrected": 1.0,
    }
    with pytest.raises(FileNotFoundError):
        sources.memory_errors(str(tmp_path / "none"))


def test_network_counters_are_of_every_device_but_loopback(monkeypatch):
    table = """Inter-|   Receive                                                |  Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls
    lo: 9 9 9 9 0 0 0 0 9 9 9 9 0 0 0 0
  eth0: 100 9 1 2 0 0 0 0 50 9 3 4 0 0 0 0
  eth1: 10 9 0 0 0 0 0 0 5 9 0 1 0 0 0 0
"""
    monkeypatch.setattr(sources, "read_text", lambda path: table)
    assert sources.network() == {
        "network_receive_bytes": 110.0,
        "network_transmit_bytes": 55.0,
        "network_errors": 11.0,
    }


def test_what_the_disk_said_of_itself_is_in_each_sample(tmp_path):
    said = {"disk_temperature_celsius": 41.0}
    collector = Collector(tmp_path, OwnMetrics().take, smart=lambda: said)
    values = by_name(collector.sample())
    assert values["disk_temperature_celsius"] == 41.0
    assert math.isnan(values["disk_media_errors"])


def test_a_memory_limit_shows_how_full_it_is(monkeypatch):
    limit = sources.MemoryLimit()
    monkeypatch.setattr(limit, "_cgroup", None)
    monkeypatch.setattr(sources.resource, "getrlimit", lambda which: (1000, 2000))
    assert limit.used_share(250.0) == 0.25
    monkeypatch.setattr(
        sources.resource, "getrlimit", lambda which: (sources.resource.RLIM_INFINITY,) * 2
    )
    with pytest.raises(ValueError, match="no limit"):
        limit.used_share(250.0)


def test_peers_of_one_kernel_share_their_identity_and_a_float32_holds_it():
    identity = sources.machine_identity()
    assert float(np.float32(identity)) == identity == sources.machine_identity()
    assert TELEMETRY_SCHEMA.metric("machine_identity").scope is Scope.HOST


def test_a_sample_costs_less_than_a_hundredth_of_a_core(tmp_path):
    collector = Collector(tmp_path, OwnMetrics().take)
    collector.sample()
    rounds = 50
    begun_s = time.thread_time()
    for _ in range(rounds):
        collector.sample()
    assert (time.thread_time() - begun_s) / rounds < 0.010


def test_the_sampler_thread_delivers_and_stops(tmp_path):
    samples = []
    enough = threading.Event()

    def take(sample):
        samples.append(sample)
        if len(samples) == 5:
            enough.set()

    sampler = TelemetrySampler(Collector(tmp_path, OwnMetrics().take), take, period_ms=20)
    sampler.start()
    assert enough.wait(10.0)
    sampler.stop()
    count = len(samples)
    assert [s.tick_ms for s in samples] == sorted({s.tick_ms for s in samples})
    assert len(samples) == count


async def test_the_loop_probe_sees_a_blocked_loop():
    own = OwnMetrics()
    probe = asyncio.ensure_future(watch_loop_lag(own, period_ms=5))
    await asyncio.sleep(0)
    blocked_until = time.monotonic() + 0.08
    while time.monotonic() < blocked_until:
        pass
    lag_ms = math.nan
    deadline = time.monotonic() + 10.0
    while math.isnan(lag_ms) and time.monotonic() < deadline:
        await asyncio.sleep(0.001)
        lag_ms = own.take().loop_lag_ms_max
    probe.cancel()
    assert lag_ms >= 60.0
