"""What telemetry costs a peer: CPU of a sample, of a heartbeat's share and of a scrape.

`python -m tests.bench.bench_telemetry` prints milliseconds of CPU each (median and span of
`ROUNDS` rounds) and the share of a core at one a second. Bar: 1 % of a core for all of it.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from las.v1 import fleet_pb2
from peerd.daemon.heartbeat import _encode_sample
from peerd.daemon.telemetry.collector import Collector
from peerd.daemon.telemetry.exporter import TelemetryExporter
from peerd.daemon.telemetry.own import OwnMetrics
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA

ROUNDS = 7
CALLS = 200


def cpu_ms(call: Callable[[], object]) -> list[float]:
    """CPU of one call in milliseconds, by round."""
    for _ in range(CALLS):
        call()
    rounds = []
    for _ in range(ROUNDS):
        begun_s = time.process_time()
        for _ in range(CALLS):
            call()
        rounds.append((time.process_time() - begun_s) / CALLS * 1000.0)
    return rounds


def main() -> None:
    """Measure and print."""
    collector = Collector(Path.cwd(), OwnMetrics().take)
    sample = collector.sample()
    registry = CollectorRegistry()
    registry.register(TelemetryExporter(lambda: sample))

    def heartbeat() -> bytes:
        samples = [_encode_sample(sample, sample.tick_ms)]
        return fleet_pb2.HeartbeatRequest(samples=samples).SerializeToString()

    sys.stdout.write(
        f"{len(TELEMETRY_SCHEMA)} metrics; CPU in ms, median (span) of {ROUNDS} rounds\n"
    )
    total_ms = 0.0
    for name, call in (
        ("sample", collector.sample),
        ("its way into a heartbeat", heartbeat),
        ("scrape", lambda: generate_latest(registry)),
    ):
        rounds = cpu_ms(call)
        median = statistics.median(rounds)
        total_ms += median
        sys.stdout.write(f"{name:<26} {median:6.3f} ({min(rounds):.3f} to {max(rounds):.3f})\n")
    sys.stdout.write(f"{'share of a core at 1/s':<26} {total_ms / 10.0:6.2f} %\n")


if __name__ == "__main__":
    main()
