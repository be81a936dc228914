"""Where the batches of a shard are: the chain of segments, and which store can give which part.

Invariants (docs/protocol.md §7):
- A batch is taken only from the epoch that the map, or in the open segment the adopted epoch,
  gives for its offset (G2).
- Of a sealed segment's kept tail nothing is read until as many stores as its plan's `acks` are
  known to have it (G12). Of an open segment nothing beyond a commit offset: the store that serves
  it holds to that, be it ours or another's.
- What leaves here has no gap: each batch begins where the one before ended.
- Below trimmed-to no store is asked: what is kept there is in the tier (docs/tiers.md).

Must not: wait for anything but a store's answer; when to try again is the caller's to say.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from peerd.core.batch import PlacedBatch
from peerd.core.errors import Reason
from peerd.core.ids import FIRST_OFFSET, Epoch, Offset, ReplicaId, ShardId
from peerd.core.shard_map import Segment, Shard, stable_end
from peerd.tier.errors import DamagedObject, ForeignObject, NotConfigured, TierError
from peerd.transport.host_api import Corrupt, HolderUnavailable, ShardHost
from peerd.transport.limits import RETRY_AFTER_MS
from peerd.transport.map_cache import MapCache
from peerd.transport.status import Refused, refusal
from peerd.v1 import errors_pb2

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Offsets [begin, limit) of one epoch, as far as the map lets them be read.

    `end` is where the segment ends, None if it is the last; `limit` is below `end` while a kept
    tail is not copied yet, and None if only the serving store knows. `holders` may have it.
    """

    epoch: Epoch
    begin: Offset
    limit: Offset | None
    end: Offset | None
    holders: tuple[ReplicaId, ...]
    is_cold: bool = False
    """No store has it: it is in the tier alone."""


class ColdSource(Protocol):
    """The tier, as a source of batches. Each call raises `TierError`."""

    async def read(
        self, entry: Shard, epoch: Epoch, offset: Offset, stop: Offset, bytes_max: int
    ) -> list[PlacedBatch]:
        """As `ReadSource.read`, of one epoch."""

    async def find_time(
        self, entry: Shard, begin: Offset, end: Offset, timestamp_ms: int
    ) -> Offset:
        """Base of the first batch in [begin, end) that is not older; `end` if there is none."""


class ReadSource:
    """Batches of any shard, from this store, another peer's, or the tier."""

    def __init__(self, host: ShardHost, cache: MapCache, cold: ColdSource | None = None) -> None:
        self._host = host
        self._cache = cache
        self._cold = cold

    # -------------------------------------------------------------------------- the chain

    def spans(self, shard: ShardId) -> Iterator[Span]:
        """What is kept of the shard's segments, in offset order; none if the map does not know the
        shard.
        """
        entry = self._cache.shards.get(shard)
        if entry is None:
            return
        for segment in entry.sealed:
            yield from _cold_span(entry, segment)
            if segment.begin is not None and (segment.end or 0) > entry.trimmed_to:
                yield Span(
                    epoch=segment.epoch,
                    begin=max(segment.begin, entry.trimmed_to),
                    limit=stable_end(segment, FIRST_OFFSET),
                    end=segment.end,
                    holders=segment.holders,
                )
        yield from _cold_span(entry, entry.open)
        yield from self._newest(shard, entry)

    def _newest(self, shard: ShardId, entry: Shard) -> Iterator[Span]:
        """The open segment, and one that began here before the committed map shows it (G9)."""
        if entry.open.begin is None:
            return
        begin = max(entry.open.begin, entry.trimmed_to)
        known = self._host.committed(shard)
        next_begin = None
        if known is not None and known[0] > entry.open.epoch:
            next_begin = self._host.segment_begin(shard, known[0])
        if next_begin is None or next_begin > begin:
            yield Span(
                epoch=entry.open.epoch,
                begin=begin,
                # What only an adoption tells of the end does not tell what is committed below it.
                limit=None,
                end=next_begin,
                holders=entry.open.plan.replicas,
            )
        if known is not None and next_begin is not None:
            yield Span(epoch=known[0], begin=next_begin, limit=None, end=None, holders=())

    def span_at(self, shard: ShardId, offset: int) -> Span | None:
        """The segment that `offset` lies in; None if the chain does not reach it."""
        for span in self.spans(shard):
            if span.begin <= offset and (span.end is None or offset < span.end):
                return span
        return None

    # -------------------------------------------------------------------------- batches

    async def read(
        self, shard: ShardId, span: Span, offset: int, to_offset: int, bytes_max: int
    ) -> list[PlacedBatch]:
        """Batches from the one that contains `offset` on, ending at or below `to_offset`.

        Empty if nothing of that is known to be committed yet where it lies.

        Raises:
            Refused: CORRUPT, if every copy that could be reached is damaged; RANGE_UNAVAILABLE, if
                the tier does not give what it alone has.
        """
        stop = to_offset if span.end is None else min(to_offset, span.end)
        if span.limit is not None:
            stop = min(stop, span.limit)
        if offset >= stop:
            return []
        if span.is_cold:
            return _fitting(
                await self._read_cold(shard, span, offset, stop, bytes_max), offset, stop
            )
        damaged = False
        limit = self._host.readable_limit(shard, span.epoch)
        if limit is not None and offset < min(limit, stop):
            try:
                found = await self._host.read(
                    shard, span.epoch, offset, min(limit, stop), bytes_max
                )
            except Corrupt as error:
                damaged = True
                _LOG.warning("read from another holder: %s", error)
            else:
                batches = _fitting(found, offset, min(limit, stop))
                if batches:
                    return batches
        for holder in self._others(span):
            try:
                found = await self._host.fetch(holder, shard, span.epoch, offset, stop, bytes_max)
            except HolderUnavailable:
                continue
            batches = _fitting(found, offset, stop)
            if batches:
                return batches
        if damaged:
            raise Refused(refusal(Reason.CORRUPT, _damaged(shard, span, offset)))
        return []

    async def _read_cold(
        self, shard: ShardId, span: Span, offset: int, stop: int, bytes_max: int
    ) -> list[PlacedBatch]:
        cold, entry = self._cold_and(shard, offset)
        try:
            return await cold.read(entry, span.epoch, Offset(offset), Offset(stop), bytes_max)
        except TierError as error:
            raise Refused(_cold_refusal(shard, offset, error)) from error

    def _cold_and(self, shard: ShardId, offset: int) -> tuple[ColdSource, Shard]:
        entry = self._cache.shards.get(shard)
        if self._cold is None or entry is None:
            error = NotConfigured(f"{self._host.me.peer} was given no tier: set tier.url")
            raise Refused(_cold_refusal(shard, offset, error))
        return self._cold, entry

    def _others(self, span: Span) -> list[ReplicaId]:
        """Other stores that may have the span, those on nodes that are up first."""

        def is_down(replica: ReplicaId) -> bool:
            node = self._cache.nodes.get(replica.peer)
            return node is None or not node.up or node.store != replica.store

        others = [holder for holder in span.holders if holder != self._host.me.replica]
        return sorted(others, key=is_down)

    # -------------------------------------------------------------------------- by time

    async def offset_at(self, shard: ShardId, timestamp_ms: int, tail: int) -> int:
        """Base offset of the first batch below `tail` whose time is not below `timestamp_ms`.

        `tail` if there is none. Time never decreases within a shard, so halving finds it.

        Raises:
            Refused: RANGE_UNAVAILABLE, if a batch on the way cannot be read; CORRUPT.
        """
        result = tail
        for span in reversed([span for span in self.spans(shard) if span.begin < tail]):
            end = min(tail, tail if span.end is None else span.end)
            if (await self._batch(shard, span, span.begin, end)).header.timestamp_ms < timestamp_ms:
                return min(result, await self._search(shard, span, timestamp_ms, end))
            result = span.begin
        return result

    async def _search(self, shard: ShardId, span: Span, timestamp_ms: int, end: int) -> int:
        if span.is_cold:
            cold, entry = self._cold_and(shard, span.begin)
            try:
                return await cold.find_time(entry, span.begin, Offset(end), timestamp_ms)
            except TierError as error:
                raise Refused(_cold_refusal(shard, span.begin, error)) from error
        limit = self._host.readable_limit(shard, span.epoch)
        if limit is not None and limit >= end:
            try:
                found = await self._host.find_time(shard, span.epoch, timestamp_ms)
            except Corrupt as error:
                _LOG.warning("look for a time among another holder's batches: %s", error)
            else:
                return max(span.begin, min(end, found))
        low, high = int(span.begin), end
        while low < high:
            batch = await self._batch(shard, span, (low + high) // 2, end)
            if batch.header.timestamp_ms < timestamp_ms:
                low = batch.end
            else:
                high = batch.base
        return low

    async def _batch(self, shard: ShardId, span: Span, offset: int, end: int) -> PlacedBatch:
        batches = await self.read(shard, span, offset, end, 1)
        if not batches:
            raise Refused(refusal(Reason.RANGE_UNAVAILABLE, unavailable(shard, offset)))
        return batches[0]


def _cold_span(entry: Shard, segment: Segment) -> Iterator[Span]:
    """What of a segment is in the tier alone, if anything is."""
    if segment.begin is None or entry.kept_from == entry.trimmed_to:
        return
    begin = max(segment.begin, entry.kept_from)
    end = entry.trimmed_to if segment.end is None else min(segment.end, entry.trimmed_to)
    if begin < end:
        yield Span(epoch=segment.epoch, begin=begin, limit=end, end=end, holders=(), is_cold=True)


def _cold_refusal(shard: int, offset: int, error: TierError) -> errors_pb2.Refusal:
    """What a reader is told of what the tier does not give."""
    damaged = isinstance(error, DamagedObject | ForeignObject)
    return refusal(
        Reason.CORRUPT if damaged else Reason.RANGE_UNAVAILABLE,
        f"offset {offset} of shard {shard} is in the tier alone: {error.code}: {error}",
        retry_after_ms=RETRY_AFTER_MS,
    )


def unavailable(shard: int, offset: int) -> str:
    """The message for a range without a reachable holder."""
    return (
        f"offset {offset} of shard {shard} has no reachable holder at the moment: try again, "
        "or another peer"
    )


def _damaged(shard: int, span: Span, offset: int) -> str:
    return (
        f"offset {offset} of shard {shard} (epoch {span.epoch}) is damaged in this peer's store "
        "and no other copy can be reached: try again when its holders are back"
    )


def _fitting(batches: list[PlacedBatch], offset: int, stop: int) -> list[PlacedBatch]:
    """The run of `batches` that contains `offset`, has no gap and ends at or below `stop`."""
    fitting: list[PlacedBatch] = []
    expected = offset
    for batch in batches:
        starts_right = batch.base == expected if fitting else batch.base <= offset < batch.end
        if not starts_right or batch.end > stop:
            break
        fitting.append(batch)
        expected = batch.end
    return fitting
