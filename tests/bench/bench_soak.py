"""Whether anything grows: `python -m tests.bench.bench_soak [--help]`, or `make soak MINUTES=60`.

A whole cluster under a steady load with a retention, a reader that stops reading, and a shadow that
is stopped (SIGSTOP) and goes on, again and again, another one each time. Prints a line a minute:
appended, the slowest appends, bytes on disk, and anonymous memory (RssAnon) of every process. Ends
with status 1 if an append failed, memory grew by more than 5 % from the second to the last minute,
or what is kept cannot be read back in order.
"""

import argparse
import asyncio
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import peerd.aio
from peerd.client.asynchronous import Client
from peerd.client.errors import PeerdError
from peerd.client.options import ClientOptions
from peerd.testing.dev_cluster import DevCluster, Member, Shape

LOG = "soak"
SHARDS = 2
MIB = 1 << 20
RETENTION_BYTES = 256 * MIB
CHUNK_BYTES = 16 * MIB
VALUE_BYTES = 16 * 1024
SAMPLE_S = 5.0
# Of each minute: how long one shadow is stopped. Longer than the LAS waits before it replaces it.
STOPPED_S = 20.0
GROWTH_MAX = 0.05
# What every process may breathe, beside the growth: one batch of the largest size more or less.
SLACK_BYTES = 4 * MIB


@dataclass
class Minute:
    """What one minute gave."""

    appended: int = 0
    failed: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    anonymous_bytes: dict[str, list[int]] = field(default_factory=dict)


class Soak:
    """One cluster, its load, and what is seen of it."""

    def __init__(
        self, cluster: DevCluster, client: Client, shards: Sequence[int], bytes_per_s: float
    ) -> None:
        self._cluster = cluster
        self._client = client
        self._shards = shards
        self._interval_s = VALUE_BYTES / bytes_per_s
        self.minutes: list[Minute] = []
        self._appended = 0

    async def run(self, minutes: int) -> None:
        """Load, a stopped shadow a minute and samples, for so many minutes."""
        works = (self._load(), self._sample(), self._stuck_reader())
        tasks = [asyncio.create_task(work) for work in works]
        try:
            for number in range(minutes):
                self.minutes.append(Minute())
                ends_s = time.monotonic() + 60
                await self._stop_a_shadow(number)
                await asyncio.sleep(max(0.0, ends_s - time.monotonic()))
                self._say(number)
                for task in tasks:
                    if task.done():
                        task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _load(self) -> None:
        due_s = time.monotonic()
        while True:
            value = self._appended.to_bytes(8, "big") * (VALUE_BYTES // 8)
            # Latency counts from when it was due: a late load would hide a slow answer.
            sent_s = due_s
            try:
                future = self._client.append_nowait(
                    LOG, value, shard=self._shards[self._appended % SHARDS]
                )
            except PeerdError:
                self._minute.failed += 1
            else:
                future.add_done_callback(lambda done, sent_s=sent_s: self._ended(done, sent_s))
                self._appended += 1
            due_s += self._interval_s
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))

    def _ended(self, done: "asyncio.Future[object]", sent_s: float) -> None:
        if done.cancelled() or done.exception() is not None:
            self._minute.failed += 1
            return
        self._minute.appended += 1
        self._minute.latencies_ms.append((time.monotonic() - sent_s) * 1000)

    @property
    def _minute(self) -> Minute:
        return self.minutes[-1] if self.minutes else Minute()

    async def _stuck_reader(self) -> None:
        """Follows from the beginning, takes one record, and never reads again."""
        async with self._client.read(LOG, follow=True) as records:
            await anext(records)
            await asyncio.Event().wait()

    async def _stop_a_shadow(self, number: int) -> None:
        _, shards = await self._client.describe_log(LOG)
        primaries = {shard.open.plan.primary.peer for shard in shards}
        shadows = [peer for peer in self._cluster.peers if peer.id not in primaries]
        shadow = shadows[number % len(shadows)]
        shadow.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(STOPPED_S)
        finally:
            shadow.signal(signal.SIGCONT)

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_S)
            for member in self._cluster.members:
                seen = self._minute.anonymous_bytes.setdefault(member.id, [])
                seen.append(anonymous_bytes(member))

    def _say(self, number: int) -> None:
        minute = self.minutes[number]
        slowest = sorted(minute.latencies_ms) or [0.0]
        p99 = slowest[len(slowest) * 99 // 100]
        memory = "  ".join(
            f"{name} {statistics.median(seen) / MIB:.0f}"
            for name, seen in minute.anonymous_bytes.items()
        )
        disk = sum(
            path.stat().st_blocks * 512
            for peer in self._cluster.peers
            for path in peer.data_dir.glob("**/data.mdb")
        )
        sys.stdout.write(
            f"{number + 1:4d} min  {minute.appended * VALUE_BYTES / 60e6:5.1f} MB/s  "
            f"{minute.failed} failed  p99 {p99:.0f} ms  max {slowest[-1]:.0f} ms  "
            f"disk {disk / MIB:.0f} MiB  RssAnon MiB: {memory}\n"
        )
        sys.stdout.flush()

    def growth(self) -> dict[str, tuple[float, float]]:
        """Of each process: median of its second and of its last minute, in bytes."""
        first, last = self.minutes[1].anonymous_bytes, self.minutes[-1].anonymous_bytes
        return {
            name: (statistics.median(first[name]), statistics.median(last[name])) for name in first
        }


def anonymous_bytes(member: Member) -> int:
    """RssAnon of a process and of its children, its front workers."""
    assert member.pid is not None
    children = Path(f"/proc/{member.pid}/task/{member.pid}/children").read_text("ascii").split()
    total = 0
    for pid in (member.pid, *map(int, children)):
        for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines():
            if line.startswith("RssAnon:"):
                total += int(line.split()[1]) * 1024
    return total


async def read_back(client: Client) -> int:
    """Reads all that is kept. Raises `AssertionError` where a shard's records are out of order."""
    last: dict[int, int] = {}
    count = 0
    async for record in client.read(LOG):
        number = int.from_bytes(record.value[:8], "big")
        assert number > last.get(record.shard, -1), f"shard {record.shard}: {number} came late"
        last[record.shard] = number
        count += 1
    return count


async def soak(cluster: DevCluster, minutes: int, mb_per_s: float) -> int:
    """Runs it all; returns the exit status."""
    options = ClientOptions(queue_bytes_max=256 * MIB)
    async with peerd.aio.connect(credentials=cluster.peerctl_toml, options=options) as client:
        log = await client.create_log(LOG, shards=SHARDS, copies=3, acks=2)
        await client.set_retention(LOG, retention_bytes=RETENTION_BYTES)
        run = Soak(cluster, client, log.shards, mb_per_s * 1e6)
        await run.run(minutes)
        await client.flush()
        kept = await read_back(client)
    failed = sum(minute.failed for minute in run.minutes)
    status = 1 if failed else 0
    for name, (first, last) in run.growth().items():
        grew = last > first * (1 + GROWTH_MAX) + SLACK_BYTES
        status |= grew
        sys.stdout.write(
            f"{name}: RssAnon {first / MIB:.1f} -> {last / MIB:.1f} MiB ({last / first - 1:+.1%})"
            f"{'  GREW' if grew else ''}\n"
        )
    sys.stdout.write(f"{kept} records are kept and in order, {failed} appends failed\n")
    return status


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="A cluster under a steady load, for long.")
    parser.add_argument("--minutes", type=int, default=10, help="at least 2 (default: 10)")
    parser.add_argument("--mb-per-s", type=float, default=20.0, help="appended (default: 20)")
    parser.add_argument("--workers", type=int, default=0, help="front workers of each peer")
    arguments = parser.parse_args()
    if arguments.minutes < 2:
        parser.error("--minutes: memory is compared from the second to the last, so at least 2")
    with tempfile.TemporaryDirectory(prefix="peerd-soak-") as directory:
        shape = Shape(peers=4, las=3, workers=arguments.workers, chunk_bytes=CHUNK_BYTES)
        with DevCluster(Path(directory) / "dev", shape, port_base=None) as cluster:
            return asyncio.run(soak(cluster, arguments.minutes, arguments.mb_per_s))


if __name__ == "__main__":
    sys.exit(main())
