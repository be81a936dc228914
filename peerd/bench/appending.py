"""The append benchmark: what one client process does, and how the results of all are joined."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field

import peerd.aio
from peerd.bench.account import Account, Schedule
from peerd.bench.latencies import Latencies
from peerd.bench.loops import Append, closed_loop, open_loop
from peerd.bench.workers import Stage
from peerd.client.values import NewRecord

# The load runs this long before anything is counted: connections open, files grow.
WARM_UP_S = 0.5
_TELL_S = 0.5


@dataclass(slots=True, kw_only=True)
class AppendCounts:
    """What came of a load, in one process or in all."""

    acknowledged: int = 0
    latencies: Latencies = field(default_factory=Latencies)
    errors: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    longest_pause_s: float = 0.0
    client_cpu_s: float = 0.0


def joined(parts: Sequence[AppendCounts]) -> AppendCounts:
    """The counts of all processes as one. The longest pause is the longest that any of them saw."""
    whole = AppendCounts()
    for part in parts:
        whole.acknowledged += part.acknowledged
        whole.latencies.add(part.latencies)
        whole.errors += part.errors
        whole.examples = part.examples | whole.examples
        whole.longest_pause_s = max(whole.longest_pause_s, part.longest_pause_s)
        whole.client_cpu_s += part.client_cpu_s
    return whole


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendJob:
    """What one client process appends: in a closed loop of `in_flight`, or at `rate_per_s`.

    Attributes:
        config: Path of a `peerctl.toml`.
        log: Name of the log.
        size: Bytes of a record.
        batch: Records of an append; 1: each for itself.
        keys: Keys that the records have in turn; 0: none.
        in_flight: Appends under way at once.
        rate_per_s: Appends a second instead, each at its time.
        duration_s: How long it is counted.
    """

    config: str
    log: str
    size: int
    batch: int
    keys: int
    in_flight: int
    rate_per_s: float | None
    duration_s: float

    async def __call__(self, stage: Stage) -> AppendCounts:
        """Append until the time is over.

        Raises:
            PeerdError: nothing can be appended like that.
        """
        async with peerd.aio.connect(credentials=self.config) as client:
            append = self._append(client)
            await append()
            load_s = await stage.begin()
            await _until(load_s)
            account = Account(load_s + WARM_UP_S, load_s + WARM_UP_S + self.duration_s)
            measuring = asyncio.create_task(_cpu_of(account))
            telling = asyncio.create_task(_tell(account, stage))
            if self.rate_per_s is None:
                await closed_loop(append, account, self.in_flight)
            else:
                await open_loop(append, account, Schedule(self.rate_per_s, load_s, account.end_s))
            cpu_s = await measuring
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
        return AppendCounts(
            acknowledged=account.acknowledged,
            latencies=account.latencies,
            errors=account.errors,
            examples=account.examples,
            longest_pause_s=account.longest_pause_s,
            client_cpu_s=cpu_s,
        )

    def _append(self, client: peerd.aio.Client) -> Append:
        """One append. Its bytes are random: nothing on the way can make them fewer."""
        value = os.urandom(self.size)
        keys: list[bytes | None] = [b"key-%d" % number for number in range(self.keys)]
        batches = [[NewRecord(value=value, key=key)] * self.batch for key in keys or [None]]
        turn = 0

        def append() -> Awaitable[object]:
            nonlocal turn
            turn += 1
            return client.append_batch(self.log, batches[turn % len(batches)])

        return append


async def _until(moment_s: float) -> None:
    await asyncio.sleep(max(0.0, moment_s - time.monotonic()))


async def _cpu_of(account: Account) -> float:
    """CPU seconds that this process uses during the run."""
    await _until(account.begin_s)
    before_s = time.process_time()
    await _until(account.end_s)
    return time.process_time() - before_s


async def _tell(account: Account, stage: Stage) -> None:
    while True:
        await asyncio.sleep(_TELL_S)
        stage.told(account.acknowledged)
