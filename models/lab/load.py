"""Offers appends to a cluster through the Python client: open loop, at a rate of its own.

Open loop: an append is due when its time comes, whether the ones before are answered or not, as
with many independent clients. What is refused or times out is counted and forgotten; the lab is
not a test of the data path.
"""

from __future__ import annotations

import asyncio
import random
import threading
from dataclasses import dataclass
from pathlib import Path

import peerd
from models.lab.plan import Shared

LOG = "lab"
STEP_S = 0.02
# limit: appends under way at once; beyond it an append that is due is left out and counted.
OUTSTANDING_MAX = 2_000
READY_S_MAX = 60.0
# What an append gets before it counts as failed: as long as a client of a sick cluster waits.
APPEND_S_MAX = 10.0
LARGE_BATCH_RECORDS = 200
_KEYS = 5_000


class LoadFailed(Exception):
    """The cluster took no append within `READY_S_MAX`, or the client gave up; says why."""


@dataclass(slots=True)
class LoadCounts:
    """What became of the appends."""

    offered: int = 0
    acked: int = 0
    failed: int = 0
    left_out: int = 0


class Load:
    """A thread with an event loop that appends until `stop`."""

    def __init__(
        self,
        *,
        addresses: list[str],
        credentials: Path,
        shards: int,
        appends_per_s: float,
        record_bytes: int,
        seed: int,
    ) -> None:
        self.counts = LoadCounts()
        self._addresses = addresses
        self._credentials = credentials
        self._shards = shards
        self._appends_per_s = appends_per_s
        self._record_bytes = record_bytes
        self._random = random.Random(seed)
        self._factor = 1.0
        self._large_batches = False
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def start(self) -> None:
        """Begin, and wait until the first append is acknowledged. Raises `LoadFailed`."""
        self._thread.start()
        if not self._ready.wait(READY_S_MAX) or self._error is not None:
            self.stop()
            raise LoadFailed(f"no append was acknowledged: {self._error}")

    def stop(self) -> None:
        """End; what is under way is given up."""
        self._stopping.set()
        self._thread.join()

    def play(self, event: Shared, ending: threading.Event) -> None:
        """A load spike, a lull, or a spell of large batches; blocks for as long as it lasts."""
        if event.kind == "large_batches":
            self._large_batches = True
        else:
            self._factor = event.strength if event.kind == "load_spike" else 0.0
        ending.wait(event.duration_s)
        self._factor, self._large_batches = 1.0, False

    def _run(self) -> None:
        try:
            asyncio.run(self._append_until_stopped())
        except (peerd.PeerdError, OSError) as error:
            self._error = error
        finally:
            self._ready.set()

    async def _append_until_stopped(self) -> None:
        async with peerd.aio.connect(self._addresses, credentials=self._credentials) as client:
            await client.create_log(LOG, shards=self._shards)
            await client.append(LOG, b"first", key=b"first")
            self._ready.set()
            under_way: set[asyncio.Task[None]] = set()
            loop = asyncio.get_running_loop()
            due, last_s = 0.0, loop.time()
            while not self._stopping.is_set():
                await asyncio.sleep(STEP_S)
                now_s = loop.time()
                due += (now_s - last_s) * self._appends_per_s * self._factor
                last_s = now_s
                while due >= 1.0:
                    records = LARGE_BATCH_RECORDS if self._large_batches and due < 2.0 else 1
                    due -= 1.0
                    self.counts.offered += 1
                    if len(under_way) >= OUTSTANDING_MAX:
                        self.counts.left_out += 1
                        continue
                    task = asyncio.create_task(self._append(client, records))
                    under_way.add(task)
                    task.add_done_callback(under_way.discard)
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _append(self, client: peerd.aio.Client, records: int) -> None:
        size = max(round(self._random.lognormvariate(0.0, 0.5) * self._record_bytes), 1)
        key = self._random.randrange(_KEYS).to_bytes(4, "big")
        value = self._random.randbytes(size)
        try:
            if records == 1:
                await client.append(LOG, value, key=key, timeout_s=APPEND_S_MAX)
            else:
                await client.append_many(LOG, [value] * records, timeout_s=APPEND_S_MAX)
            self.counts.acked += records
        except peerd.PeerdError:
            self.counts.failed += records
