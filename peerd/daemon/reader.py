"""Reads of the own store, off the event loop.

Invariants:
- No read holds the event loop; each is one short transaction in a thread of a small pool.
- At most `READS_WAITING_MAX` reads wait for a thread: beyond it a read is refused (OVERLOADED).
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from peerd.core.batch import PlacedBatch
from peerd.core.chunks import Cut
from peerd.core.effects import LoadTable
from peerd.core.errors import Reason
from peerd.core.ids import Epoch, Offset, ShardId
from peerd.core.producer import TableSnapshot
from peerd.storage.store import Store
from peerd.transport.status import Refused, refusal

# limit: threads that read; a read is mostly page cache, and the interpreter runs one at a time
READ_THREADS_MAX = 4
# limit: reads that wait for a thread; each is at most one message of a read or a fetch
READS_WAITING_MAX = 1_024
RETRY_AFTER_MS = 50

Result = TypeVar("Result")


class StoreReader:
    """Used on the event loop; `close` before the store is closed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._threads = ThreadPoolExecutor(READ_THREADS_MAX, thread_name_prefix="store-reader")
        self._waiting = 0

    async def read(
        self, shard: ShardId, epoch: Epoch, from_offset: int, to_offset: int, bytes_max: int
    ) -> list[PlacedBatch]:
        """See `peerd.transport.host_api.ShardHost.read`."""
        return await self._run(
            lambda: self._store.read_batches(
                shard, epoch, Offset(from_offset), Offset(to_offset), bytes_max
            )
        )

    @property
    def waiting(self) -> int:
        """Reads that wait or are under way."""
        return self._waiting

    async def base_after(self, shard: ShardId, epoch: Epoch, offset: Offset) -> Offset | None:
        """See `Store.base_after`."""
        return await self._run(lambda: self._store.base_after(shard, epoch, offset))

    async def find_time(self, shard: ShardId, epoch: Epoch, timestamp_ms: int) -> Offset:
        """See `peerd.transport.host_api.ShardHost.find_time`."""
        found = await self._run(lambda: self._store.find_time(shard, epoch, timestamp_ms))
        return Offset(0) if found is None else found

    async def load_table(self, load: LoadTable) -> TableSnapshot | None:
        """The table that `load` asks for; None if the store cannot give it."""
        return await self._run(
            lambda: self._store.load_table(
                load.shard,
                from_store=load.from_store,
                ranges=load.ranges,
                as_of=load.as_of,
                or_later=load.or_later,
            )
        )

    async def find_cut(
        self, shard: ShardId, epoch: Epoch, *, before: Offset, keep_bytes: int
    ) -> Cut | None:
        """See `Store.find_cut`. Raises `Corrupt`, or `Refused`: OVERLOADED."""
        return await self._run(
            lambda: self._store.find_cut(shard, epoch, before=before, keep_bytes=keep_bytes)
        )

    async def _run(self, work: Callable[[], Result]) -> Result:
        if self._waiting >= READS_WAITING_MAX:
            raise Refused(
                refusal(
                    Reason.OVERLOADED,
                    f"{READS_WAITING_MAX} reads wait for the store: try again later",
                    retry_after_ms=RETRY_AFTER_MS,
                )
            )
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Take no reads any more; those under way end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)
