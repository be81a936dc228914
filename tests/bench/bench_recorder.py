"""What the flight recorder costs: `python -m tests.bench.bench_recorder [--help]`.

Two clusters of real processes live side by side, one with the recorder and one without, and get the
same appends in turn. For each pair of rounds: CPU of all peers per append, with and without. The
median of the pairs' ratios is what counts; a loaded machine makes single pairs differ by more than
is to be measured, so the same cost is also taken apart: what was recorded is recorded once more in
this process, and its CPU is divided by the appends.
"""

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

import peerd.aio
from peerd.client.errors import LogExists
from peerd.core.limits import Limits
from peerd.recorder.flight import FlightRecorder
from peerd.recorder.recording import Recording
from peerd.recorder.ring import FILE_NAME
from peerd.testing.dev_cluster import DevCluster, Shape
from peerd.testing.replay import RingReplay
from peerd.testing.trace import Booted, Handled

LOG = "bench"
OFF = "PEERD_FLIGHT_RECORDER_BYTES"
RING_BYTES = 64 * 1024 * 1024
PAYLOAD = b"x" * 256


def cpu_s(cluster: DevCluster) -> float:
    """CPU that the peers have used so far."""
    times = [psutil.Process(peer.pid).cpu_times() for peer in cluster.peers]
    return sum(each.user + each.system for each in times)


async def append(cluster: DevCluster, count: int, appenders: int) -> None:
    """So many appends by so many appenders, each of which waits for its receipt."""
    async with peerd.aio.connect(credentials=cluster.peerctl_toml) as client:
        with contextlib.suppress(LogExists):
            await client.create_log(LOG, shards=2, copies=3, acks=2)

        async def one(number: int) -> None:
            key = b"%d" % number
            for _ in range(count // appenders):
                await client.append(LOG, PAYLOAD, key=key)

        await asyncio.gather(*(one(number) for number in range(appenders)))


def us_per_append(cluster: DevCluster, count: int, appenders: int) -> float:
    """CPU of the peers per append, in microseconds."""
    before = cpu_s(cluster)
    asyncio.run(append(cluster, count, appenders))
    return (cpu_s(cluster) - before) * 1e6 / count


def recorded_again(cluster: DevCluster) -> float:
    """CPU seconds that recording cost all peers, measured by doing it again here."""
    total = 0.0
    for peer in cluster.peers:
        ring = RingReplay(Recording(peer.data_dir / FILE_NAME), {})
        with tempfile.TemporaryDirectory() as directory:
            total += _record(ring, Path(directory) / FILE_NAME)
    return total


def _record(ring: RingReplay, path: Path) -> float:
    recorder = None
    spent_s = 0.0
    for _, record in ring.records():
        if isinstance(record, Booted):
            recorder = recorder or FlightRecorder(path, RING_BYTES, record.process, Limits())
            recorder.booted(record.shard, ring._cores[record.shard])
        elif isinstance(record, Handled) and recorder is not None:
            begin_s = time.thread_time()
            recorder.handled(record.shard, record.event, record.step)
            spent_s += time.thread_time() - begin_s
    return spent_s


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--appends", type=int, default=2_000)
    parser.add_argument("--appenders", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="peerd-bench-") as directory:
        shape = Shape(peers=3, las=1)
        with contextlib.ExitStack() as stack:
            on = stack.enter_context(DevCluster(Path(directory) / "on", shape, port_base=None))
            os.environ[OFF] = "0"
            off = stack.enter_context(DevCluster(Path(directory) / "off", shape, port_base=None))
            del os.environ[OFF]
            work = (options.appends, options.appenders)
            for cluster in (on, off):
                us_per_append(cluster, *work)
            ratios, costs_on, costs_off = [], [], []
            for number in range(options.pairs):
                order = (on, off) if number % 2 else (off, on)
                cost = {id(cluster): us_per_append(cluster, *work) for cluster in order}
                costs_on.append(cost[id(on)])
                costs_off.append(cost[id(off)])
                ratios.append(cost[id(on)] / cost[id(off)] - 1)
                told = f"pair {number}: {cost[id(on)]:.1f} on, {cost[id(off)]:.1f} off"
                sys.stdout.write(told + "\n")
                sys.stdout.flush()
            taken_apart_us = recorded_again(on) * 1e6 / (options.appends * (options.pairs + 1))
    base = statistics.median(costs_off)
    apart = f"{taken_apart_us:.2f} us per append, {taken_apart_us / base:.1%} of that"
    sys.stdout.write(
        f"CPU of 3 peers per append: {statistics.median(costs_on):.1f} us with the recorder, "
        f"{base:.1f} us without; median of {len(ratios)} pairs {statistics.median(ratios):+.1%}\n"
        f"recording alone: {apart}\n"
    )


if __name__ == "__main__":
    main()
