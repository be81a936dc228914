"""The primary's side of `_positions`: commits become records, answers come from folding them.

Invariants:
- A commit is answered when its record is acknowledged like any append (G1): it survives whatever
  an acknowledged record survives.
- Every record is appended on the condition that the log ends where this peer's table does. So it
  was judged with everything before it known, and after a failover the old primary's table, however
  late it wakes up, puts nothing behind what it has not read.
- A commit that a later one of the same client overtook is not appended: a call may be tried twice,
  and a try that was given up may come late, from a peer that was stopped for a while. It is
  answered when what overtook it is durable.
- `get` and `page` have the tail confirmed by `acks` voters after the call came in and fold up to
  it: they give the newest position whose commit was answered before the call, or a later one.
- A commit is appended at most until its caller stops waiting; one whose caller has gone before its
  turn is not appended at all.
- Memory: the table (bounded), `POSITION_COMMITS_WAITING_MAX` commits that wait, one batch on its
  way. One batch at a time: what comes in meanwhile goes with the next.

Must not: know who asks, or forward: `peerd.transport.position_service` does.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, field

from crc32c import crc32c

from peerd.core.batch import NO_PRODUCER, BatchHeader, PlacedBatch
from peerd.core.effects import AppendAccepted
from peerd.core.errors import Reason, Refusal, Taken
from peerd.core.ids import Offset, ShardId
from peerd.internal.v1 import positions_pb2
from peerd.transport.append_edge import parse_records
from peerd.transport.host_api import AppendOutcome
from peerd.transport.internal_logs import POSITIONS_LOG
from peerd.transport.limits import (
    POSITION_COMMITS_WAITING_MAX,
    POSITIONS_BATCH_BYTES_MAX,
    POSITIONS_PER_BATCH_MAX,
    RETRY_AFTER_MS,
)
from peerd.transport.position_table import (
    Commits,
    Key,
    PositionTable,
    commits_of,
    is_overtaken,
    join_commits,
)
from peerd.transport.read_path import Answer, ReadServices, ShardRead, Start
from peerd.transport.read_source import unavailable
from peerd.transport.status import Refused, encode_refusal, refusal
from peerd.v1 import batch_pb2, log_pb2


@dataclass(slots=True)
class _Commit:
    """One that waits. `done` is cancelled when its caller has gone. `is_overtaken`: by one before
    it in its batch.
    """

    stored: positions_pb2.StoredPosition
    size_bytes: int
    is_overtaken: bool = False
    done: "asyncio.Future[None]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class PositionLog:
    """The one shard of `_positions`, on the peer that is its primary."""

    def __init__(self, shard: ShardId, services: ReadServices) -> None:
        self._shard = shard
        self._services = services
        self._host = services.host
        self._table = PositionTable()
        self._is_begun = False
        self._folding = asyncio.Lock()
        self._waiting: deque[_Commit] = deque()
        self._writer: asyncio.Task[None] | None = None

    def close(self) -> None:
        """End what waits; each caller is told that the peer is stopping."""
        going = refusal(Reason.SHUTTING_DOWN, f"{self._host.me.peer} is stopping: go elsewhere")
        _fail(self._waiting, Refused(going))
        self._waiting.clear()

    # -------------------------------------------------------------------------- asking

    async def get(self, log: str, consumer: str, timeout_s: float) -> log_pb2.ResumeToken:
        """The position of a consumer; empty if it has none.

        Raises:
            Refused: NOT_PRIMARY, NOT_ENOUGH_PEERS, RANGE_UNAVAILABLE and what else a linearizable
                tail or a read is refused with.
        """
        await self._catch_up(timeout_s)
        return self._table.get(log, consumer)

    async def page(self, log: str, after: str, timeout_s: float) -> log_pb2.ListPositionsResponse:
        """A page of the consumers of a log whose names sort after `after`. Raises as `get`."""
        await self._catch_up(timeout_s)
        return self._table.page(log, after)

    async def _catch_up(self, timeout_s: float) -> None:
        """Fold up to the tail, as `acks` voters confirm it from now on. Raises as `get`."""
        try:
            async with asyncio.timeout(timeout_s):
                tail = await self._host.linearizable_tail(self._shard)
                if isinstance(tail, Refusal):
                    raise Refused(encode_refusal(tail, self._services.router.address_of))
                await self._fold_to(tail[1])
        except TimeoutError:
            raise Refused(
                refusal(
                    Reason.NOT_ENOUGH_PEERS,
                    f"{self._host.me.peer} could not confirm the positions in time: ask again",
                    retry_after_ms=RETRY_AFTER_MS,
                )
            ) from None

    # -------------------------------------------------------------------------- committing

    async def commit(self, stored: positions_pb2.StoredPosition, timeout_s: float) -> None:
        """Returns when the position holds and is durable.

        Raises:
            Refused: LIMIT_REACHED, OVERLOADED, NOT_PRIMARY and what else an append is refused with;
                OUTCOME_UNKNOWN if it takes longer than `timeout_s`.
        """
        if len(self._waiting) >= POSITION_COMMITS_WAITING_MAX:
            message = (
                f"{len(self._waiting)} commits of positions wait, the bound: commit less often"
            )
            raise Refused(refusal(Reason.OVERLOADED, message, retry_after_ms=RETRY_AFTER_MS))
        commit = _Commit(stored, stored.ByteSize())
        self._waiting.append(commit)
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_all(), name="commits of positions")
        try:
            async with asyncio.timeout(timeout_s):
                await commit.done
        except TimeoutError:
            raise Refused(
                refusal(
                    Reason.OUTCOME_UNKNOWN,
                    "the position was not acknowledged in time: it may hold, or hold later; commit "
                    "it again",
                    taken=Taken.UNKNOWN,
                    retry_after_ms=RETRY_AFTER_MS,
                )
            ) from None

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                taken = self._take()
                try:
                    await self._append(taken)
                except Exception as error:  # noqa: BLE001 - it belongs to those who wait
                    _fail(taken, error)
        finally:
            self._writer = None

    def _take(self) -> list[_Commit]:
        """The next commits whose callers still wait."""
        taken: list[_Commit] = []
        size = 0
        while self._waiting and len(taken) < POSITIONS_PER_BATCH_MAX:
            size += self._waiting[0].size_bytes
            if taken and size > POSITIONS_BATCH_BYTES_MAX:
                break
            commit = self._waiting.popleft()
            if not commit.done.done():
                taken.append(commit)
        return taken

    async def _append(self, commits: Sequence[_Commit]) -> None:
        """Append one batch of commits, once everything before it is known."""
        await self._fold_to(self._known_end())
        while True:
            fitting = self._fitting(commits)
            if not fitting:
                return
            # The copies first: whoever commits an entry that is copied has the last word.
            own = [commit.stored for commit in fitting if not commit.is_overtaken]
            records = [*self._table.copies(), *own]
            for record in records:
                record.whole_since = self._table.whole_since
            outcome = await self._append_here(records)
            if isinstance(outcome, AppendAccepted):
                async with self._folding:
                    for offset, record in enumerate(records, outcome.base):
                        # A question may have folded it meanwhile.
                        if offset == self._table.next:
                            self._table.fold(offset, record)
                for commit in fitting:
                    if not commit.done.done():
                        commit.done.set_result(None)
                return
            if outcome.reason != Reason.OFFSET_MISMATCH:
                raise Refused(encode_refusal(outcome, self._services.router.address_of))
            await self._fold_to(outcome.first_offset or 0)

    def _fitting(self, commits: Sequence[_Commit]) -> list[_Commit]:
        """Those that are still waited for and keep within the bounds, each with those before it.

        What an earlier batch overtook is answered at once: that batch is durable.
        """
        fitting: list[_Commit] = []
        fresh: dict[str, set[str]] = {}
        made: dict[Key, Commits] = {}
        for commit in commits:
            if commit.done.done():
                continue
            stored = commit.stored
            key = (stored.log, stored.consumer)
            if is_overtaken(stored, self._table.commits(key)):
                commit.done.set_result(None)
                continue
            known = made.get(key, self._table.commits(key))
            commit.is_overtaken = is_overtaken(stored, known)
            if commit.is_overtaken:
                fitting.append(commit)
                continue
            join_commits(stored, known)
            new = fresh.setdefault(stored.log, set())
            why_not = self._table.why_not(stored, new)
            if why_not:
                _fail([commit], Refused(refusal(Reason.LIMIT_REACHED, why_not)))
                continue
            if stored.position.offsets and not self._table.knows(stored.log, stored.consumer):
                new.add(stored.consumer)
            made[key] = commits_of(stored)
            fitting.append(commit)
        return fitting

    async def _append_here(self, records: Sequence[positions_pb2.StoredPosition]) -> AppendOutcome:
        """Append them where the table ends, or not at all."""
        payload = batch_pb2.Batch(
            record_count=len(records),
            records=batch_pb2.Records(
                records=[batch_pb2.Record(value=record.SerializeToString()) for record in records]
            ),
        ).SerializeToString()
        header = BatchHeader(
            record_count=len(records),
            payload_crc=crc32c(payload),
            key_hash_low=0,
            key_hash_high=0,
            producer=NO_PRODUCER,
            first_sequence=0,
            payload_bytes=len(payload),
        )
        outcome: asyncio.Future[AppendOutcome] = asyncio.get_running_loop().create_future()

        def done(result: AppendOutcome) -> None:
            if not outcome.done():
                outcome.set_result(result)

        self._host.append(self._shard, header, payload, self._table.next, done)
        return await outcome

    # -------------------------------------------------------------------------- folding

    def _known_end(self) -> int:
        """Up to where this peer knows the log to be committed, by its store or by the map."""
        known = self._host.committed(self._shard)
        entry = self._services.cache.shards.get(self._shard)
        begin = 0 if entry is None else entry.open.begin or 0
        return begin if known is None else max(begin, known[1])

    async def _fold_to(self, end: int) -> None:
        """Bring the table up to `end`, which is committed, or will be soon.

        Raises:
            Refused: NOT_PRIMARY, CORRUPT; RANGE_UNAVAILABLE if it cannot be read in time.
        """
        async with self._folding:
            try:
                async with asyncio.timeout(self._services.wait_ms / 1000):
                    if not self._is_begun:
                        self._table.begin_at(await self._whole_since(end))
                        self._is_begun = True
                    if self._table.next < end:
                        await self._read(end)
            except TimeoutError:
                message = unavailable(self._shard, self._table.next)
                raise Refused(
                    refusal(Reason.RANGE_UNAVAILABLE, message, retry_after_ms=RETRY_AFTER_MS)
                ) from None

    async def _whole_since(self, end: int) -> int:
        """Where to begin, so that everything that holds below `end` is met."""
        if end == 0:
            return 0
        entry = self._services.cache.shards.get(self._shard)
        gap = None if entry is None else entry.gap_at(Offset(end - 1))
        if gap is not None:
            return await self._whole_since(gap.begin)  # gaps are bounded, and ever further down
        async with contextlib.aclosing(self._messages(end - 1)) as messages:
            async for message in messages:
                for batch in message.batches:
                    stored = _records(batch)[end - 1 - batch.base]
                    return stored.whole_since
                if message.gaps:
                    break
        return 0

    async def _read(self, end: int) -> None:
        table = self._table
        async with contextlib.aclosing(self._messages(table.next)) as messages:
            async for message in messages:
                for batch in message.batches:
                    for offset, stored in enumerate(_records(batch), batch.base):
                        if offset >= table.next:
                            table.fold(offset, stored)
                if message.gaps:
                    table.skip_to(message.gaps[-1].next_offset)
                if table.next >= end:
                    return

    async def _messages(self, offset: int) -> AsyncGenerator[Answer, None]:
        """The log from `offset` on, and on with what is committed meanwhile."""
        read = ShardRead(
            services=self._services,
            log=POSITIONS_LOG,
            shard=self._shard,
            start=Start(offset=offset, resumed=True),
            follow=True,
            local=False,
            may_forward=False,
        )
        async with contextlib.aclosing(read.messages()) as messages:
            async for message in messages:
                # Nothing is passed on, so all of it is served here.
                if isinstance(message, Answer):
                    yield message


def _records(batch: PlacedBatch) -> list[positions_pb2.StoredPosition]:
    return [
        positions_pb2.StoredPosition.FromString(record.value)
        for record in parse_records(bytes(batch.payload))
    ]


def _fail(commits: Iterable[_Commit], error: Exception) -> None:
    for commit in commits:
        if not commit.done.done():
            commit.done.set_exception(error)
