"""Appends of one producer: which shard each goes to, how much may wait, and how it ends.

A client has one `Appender` for its own `append…` calls and one for each `producer()`. Each has its
own producer ids and windows; the bytes that wait are bounded for all of a client together (`Room`).

Invariants:
- Memory for records that are not answered yet is bounded: `append` waits for room, `append_nowait`
  raises `QueueFull`.
- Records of one shard are appended in the order of the calls.
- An append that is cancelled says whether it may be in the log: what was not sent by then never is.
- Ending an appender ends everything that is unanswered, as what it is.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from peerd.client.directory import Directory
from peerd.client.entries import Entry, Where
from peerd.client.errors import (
    BatchTooLarge,
    ClientClosed,
    InvalidRequest,
    KeysSpanShards,
    QueueFull,
    UnknownLog,
    UnknownShard,
    tell_taken,
)
from peerd.client.known_logs import KnownLogs
from peerd.client.options import ProducerOptions
from peerd.client.payload import serialize_record, serialize_records
from peerd.client.pipeline import PipelineStatistics, ShardPipeline
from peerd.client.streams import Streams
from peerd.client.values import NewRecord, Receipt
from peerd.core.ids import ShardId
from peerd.transport.append_edge import key_hash
from peerd.transport.map_cache import MapChange
from peerd.transport.map_service import unknown_log
from peerd.transport.options import MESSAGE_BYTES_MAX

# limit: bytes of records that one append may carry; servers may allow less and say so, and a
# message of the contract carries no more than this beside its envelope
ENTRY_BYTES_MAX = MESSAGE_BYTES_MAX // 2


class Room:
    """The bytes of records that are not answered yet, of all appenders of a client."""

    def __init__(self, bytes_max: int) -> None:
        self.queued_bytes = 0
        self.released = asyncio.Event()
        self._bytes_max = bytes_max
        # Whoever holds it is the next to get room; a lock is handed on in the order of the calls.
        self._gate = asyncio.Lock()
        # A lock that is being handed on is not locked for a moment.
        self._waiting = 0

    def fits(self, size: int) -> bool:
        """Whether `size` bytes fit, and nobody waits for room before them."""
        # Something always fits into an empty queue, or it could never be appended.
        queued_bytes = self.queued_bytes
        return not self._waiting and (not queued_bytes or queued_bytes + size <= self._bytes_max)

    def _fits(self, size: int) -> bool:
        return not self.queued_bytes or self.queued_bytes + size <= self._bytes_max

    async def wait_for(self, size: int) -> None:
        """Waits, in the order of the calls, until `size` bytes fit."""
        self._waiting += 1
        try:
            async with self._gate:
                while not self._fits(size):
                    self.released.clear()
                    await self.released.wait()
        finally:
            self._waiting -= 1

    def take(self, size: int) -> None:
        """`size` bytes are queued."""
        self.queued_bytes += size

    def take_if_fits(self, size: int) -> bool:
        """`fits`, and if so `take`."""
        queued_bytes = self.queued_bytes
        if self._waiting or (queued_bytes and queued_bytes + size > self._bytes_max):
            return False
        self.queued_bytes = queued_bytes + size
        return True

    def give(self, size: int) -> None:
        """`size` bytes have ended."""
        self.queued_bytes -= size
        self.released.set()

    def full(self) -> QueueFull:
        """What `append_nowait` raises."""
        return QueueFull(
            f"{self.queued_bytes} of {self._bytes_max} bytes wait for an answer: await earlier "
            "appends first",
            taken="no",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendServices:
    """What the appenders of one client share."""

    directory: Directory
    streams: Streams
    room: Room
    statistics: PipelineStatistics
    known_logs: KnownLogs


ANYWHERE = Where()


def where(shard: int | None, expected_offset: int | None, timeout_s: float | None) -> Where:
    """A `Where`; most are `ANYWHERE`, which is not made again for each append."""
    if shard is None and expected_offset is None and timeout_s is None:
        return ANYWHERE
    return Where(shard, expected_offset, timeout_s)


class Appender:
    """Appends under producer ids of its own. Used on one event loop."""

    def __init__(self, services: AppendServices, options: ProducerOptions) -> None:
        self._services = services
        self._options = options
        self._pipelines: dict[ShardId, ShardPipeline] = {}
        # Of logs with one shard: where a record without a key goes while the map stays as it is.
        self._only_shards: dict[str, ShardPipeline | None] = {}
        self._turn = 0
        self._ended: str | None = None

    # -------------------------------------------------------------------------- appending

    async def append_batch(self, log: str, records: Sequence[NewRecord], where: Where) -> Receipt:
        """Appends records as one; see `Client.append_batch`."""
        serialized = (
            serialize_record(records[0]) if len(records) == 1 else serialize_records(records)
        )
        entry = self._add_plain(log, records, serialized, where)
        if entry is None:
            size, services = len(serialized), self._services
            # Mostly there is room and the log is known, and then nothing is awaited.
            if not (services.room.fits(size) and services.known_logs.has(log)):
                await self._admitted(log, size)
            elif log not in self._only_shards:
                # Not after a wait: others that wait for the log may stand before what comes next.
                shards = services.directory.cache.shards_of(log)
                only = self._pipeline(log, shards[0]) if len(shards) == 1 else None
                self._only_shards[log] = only
            entry = self._add(log, records, serialized, where)
        try:
            return await entry.future
        except asyncio.CancelledError as error:
            tell_taken(error, entry.taken)
            raise

    def append_nowait(self, log: str, record: NewRecord, where: Where) -> "asyncio.Future[Receipt]":
        """Queues one record; see `Client.append_nowait`."""
        serialized = serialize_record(record)
        if not self._services.room.fits(len(serialized)):
            raise self._services.room.full()
        return self._add(log, (record,), serialized, where).future

    async def append_many(
        self, log: str, records: Iterable[NewRecord | bytes], where: Where
    ) -> list[Receipt]:
        """Appends records, each for itself; see `Client.append_many`."""
        futures: list[asyncio.Future[Receipt]] = []
        await self._require(log)
        try:
            for given in records:
                record = NewRecord(value=given) if isinstance(given, bytes) else given
                serialized = serialize_record(record)
                await self._until_fits(len(serialized))
                futures.append(self._add(log, (record,), serialized, where).future)
        finally:
            ended = await asyncio.gather(*futures, return_exceptions=True)
        for outcome in ended:
            if isinstance(outcome, BaseException):
                raise outcome
        return [outcome for outcome in ended if isinstance(outcome, Receipt)]

    async def flush(self) -> None:
        """Returns when every append made so far has ended, one way or the other."""
        while not self.is_idle:
            self._services.room.released.clear()
            await self._services.room.released.wait()

    @property
    def is_idle(self) -> bool:
        """Nothing waits and nothing is under way."""
        return all(pipeline.is_idle for pipeline in self._pipelines.values())

    async def _admitted(self, log: str, size: int) -> None:
        """Returns when `log` is known and `size` bytes fit."""
        if not self._services.known_logs.has(log):
            await self._require(log)
        await self._until_fits(size)

    async def _until_fits(self, size: int) -> None:
        if not self._services.room.fits(size):
            await self._services.room.wait_for(size)

    async def _require(self, log: str) -> None:
        self._check_open()
        await self._services.known_logs.require(log)

    def _add_plain(
        self, log: str, records: Sequence[NewRecord], serialized: bytes, where: Where
    ) -> Entry | None:
        """What `_add` would do, for what most appends are: one record without a key, to a log with
        one shard, of which nothing more is said, while there is room. None: it is not like that.
        """
        pipeline = self._only_shards.get(log)
        size = len(serialized)
        if (
            pipeline is None
            or where is not ANYWHERE
            or len(records) != 1
            or records[0].key is not None
            or size > ENTRY_BYTES_MAX
            or not self._services.room.take_if_fits(size)
        ):
            return None
        loop = pipeline.loop
        deadline = loop.time() + self._options.append_timeout_s
        entry = Entry(serialized, 1, deadline, loop.create_future(), where, ())
        pipeline.add(entry)
        return entry

    def _add(
        self, log: str, records: Sequence[NewRecord], serialized: bytes, where: Where
    ) -> Entry:
        if self._ended is not None:
            self._check_open()
        if not records:
            raise InvalidRequest("an append carries at least one record")
        size = len(serialized)
        if size > ENTRY_BYTES_MAX:
            raise BatchTooLarge(
                f"{size} bytes of records in one append, at most {ENTRY_BYTES_MAX} travel in one "
                "message: cut them",
                taken="no",
            )
        hashes = _key_hashes(records)
        shard = self._choose(log, hashes, where.shard)
        pipeline = self._pipelines.get(shard) or self._pipeline(log, shard)
        # Kept there: to ask for the running loop asks the kernel which process this is.
        loop = pipeline.loop
        timeout_s = self._options.append_timeout_s if where.timeout_s is None else where.timeout_s
        # In the order of the fields: named ones would take longer.
        entry = Entry(
            serialized,
            len(records),
            loop.time() + timeout_s,
            loop.create_future(),
            where,
            hashes,
        )
        self._services.room.take(size)
        pipeline.add(entry)
        return entry

    def _choose(self, log: str, hashes: Sequence[int], shard: int | None) -> ShardId:
        """The shard that records go to, by the hashes of their keys.

        While a shard that was split has unanswered appends from here, what would go to its
        children goes to it, and on from there in order (G8).

        Raises:
            UnknownLog, UnknownShard, KeysSpanShards: what they say.
        """
        cache = self._services.directory.cache
        shards = cache.shards_of(log)
        if not shards:
            raise UnknownLog(unknown_log(log), reason="UNKNOWN_LOG", taken="no")
        if shard is not None:
            if shard not in shards:
                raise UnknownShard(
                    f"log {log!r} has no shard {shard}, but {', '.join(map(str, sorted(shards)))}",
                    reason="UNKNOWN_SHARD",
                    taken="no",
                )
            return ShardId(shard)
        if not hashes:
            return self._next_shard(shards)
        found = {cache.shard_for(log, one) for one in hashes}
        if len(found) > 1 or None in found:
            raise KeysSpanShards(
                f"the keys of the batch belong to {len(found)} shards of {log!r}, and a batch is "
                "atomic within one: append them apart (`append_many`)",
                reason="KEYS_SPAN_SHARDS",
                taken="no",
            )
        chosen = found.pop()
        return self._oldest_busy(shards[0] if chosen is None else chosen)

    def _oldest_busy(self, shard: ShardId) -> ShardId:
        """The farthest ancestor of `shard` that has unanswered appends in, else it."""
        chosen, at = shard, self._services.directory.cache.shards.get(shard)
        while at is not None and at.parent is not None:
            pipeline = self._pipelines.get(at.parent.shard)
            if pipeline is not None and not pipeline.is_idle:
                chosen = at.parent.shard
            at = self._services.directory.cache.shards.get(at.parent.shard)
        return chosen

    def _reroute(self, log: str, entry: Entry) -> None:
        """An entry of a shard that was split goes to where it belongs now.

        Raises:
            KeysSpanShards: its keys belong to both children, and a batch is atomic within one.
        """
        self._pipeline(log, self._choose(log, entry.key_hashes, None)).add(entry)

    def _next_shard(self, shards: Sequence[ShardId]) -> ShardId:
        """Where records without a key go: one shard while a batch gathers there, then the next."""
        if len(shards) == 1:
            return shards[0]
        shard = shards[self._turn % len(shards)]
        pipeline = self._pipelines.get(shard)
        if pipeline is not None and not pipeline.has_waiting:
            self._turn += 1
            shard = shards[self._turn % len(shards)]
        return shard

    def _pipeline(self, log: str, shard: ShardId) -> ShardPipeline:
        pipeline = self._pipelines.get(shard)
        if pipeline is None:
            pipeline = ShardPipeline(
                log,
                shard,
                directory=self._services.directory,
                streams=self._services.streams,
                options=self._options,
                released=self._services.room.give,
                reroute=partial(self._reroute, log),
                statistics=self._services.statistics,
            )
            self._pipelines[shard] = pipeline
        return pipeline

    # -------------------------------------------------------------------------- time and the map

    def tick(self, now: float) -> None:
        """Ends what is past its deadline; `now` is of the loop's clock."""
        for pipeline in self._pipelines.values():
            if not pipeline.is_idle:
                pipeline.tick(now)

    def map_changed(self, change: MapChange) -> None:
        """The map moved."""
        self._only_shards.clear()
        # An address that changed concerns every shard of that node.
        touched = self._pipelines.keys() if change.nodes else change.shards
        for shard in tuple(touched):
            pipeline = self._pipelines.get(shard)
            if pipeline is not None:
                pipeline.map_changed()

    def end(self, message: str) -> None:
        """Ends everything that is unanswered, as what it is, and takes nothing more."""
        self._ended = message
        self._only_shards.clear()
        for pipeline in self._pipelines.values():
            pipeline.abandon(message)
        self._services.room.released.set()

    def _check_open(self) -> None:
        if self._ended is not None:
            raise ClientClosed(self._ended, taken="no")


def _key_hashes(records: Sequence[NewRecord]) -> tuple[int, ...]:
    """Of the keys that there are."""
    if len(records) == 1 and records[0].key is None:
        return ()
    return tuple([key_hash(record.key) for record in records if record.key is not None])
