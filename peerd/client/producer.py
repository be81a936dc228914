"""A producer: appends to one log with options, batches and producer ids of its own.

Records of one shard that one producer appends keep the order of its calls. Between two producers,
also of one client, there is no order.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Self

from peerd.client.appending import Appender, where
from peerd.client.entries import Where
from peerd.client.values import Headers, NewRecord, Receipt


class Producer:
    """Appends to one log. Made by `Client.producer`; used by `async with`, or `close` ends it."""

    def __init__(self, log: str, appender: Appender, ended: Callable[[Appender], None]) -> None:
        """`ended` is told when the producer closes."""
        self.log = log
        self._appender = appender
        self._ended = ended
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Returns when everything appended has ended; then the producer takes nothing more."""
        if self._closed:
            return
        self._closed = True
        try:
            await self._appender.flush()
        finally:
            self._appender.end("the producer is closed: make another one")
            self._ended(self._appender)

    async def append(
        self,
        value: bytes,
        *,
        key: bytes | None = None,
        headers: Headers = (),
        timestamp_ms: int | None = None,
        shard: int | None = None,
        expected_offset: int | None = None,
        timeout_s: float | None = None,
    ) -> Receipt:
        """Appends one record; see `Client.append`."""
        record = NewRecord(value=value, key=key, headers=headers, timestamp_ms=timestamp_ms)
        return await self.append_batch(
            [record], shard=shard, expected_offset=expected_offset, timeout_s=timeout_s
        )

    async def append_batch(
        self,
        records: Sequence[NewRecord],
        *,
        shard: int | None = None,
        expected_offset: int | None = None,
        timeout_s: float | None = None,
    ) -> Receipt:
        """Appends records as one; see `Client.append_batch`."""
        return await self._appender.append_batch(
            self.log, records, where(shard, expected_offset, timeout_s)
        )

    def append_nowait(
        self,
        value: bytes,
        *,
        key: bytes | None = None,
        headers: Headers = (),
        timestamp_ms: int | None = None,
        shard: int | None = None,
        timeout_s: float | None = None,
    ) -> "asyncio.Future[Receipt]":
        """Queues one record and returns a future of its receipt; see `Client.append_nowait`."""
        record = NewRecord(value=value, key=key, headers=headers, timestamp_ms=timestamp_ms)
        return self._appender.append_nowait(self.log, record, where(shard, None, timeout_s))

    async def append_many(
        self, records: Iterable[NewRecord | bytes], *, timeout_s: float | None = None
    ) -> list[Receipt]:
        """Appends records, each for itself, joined into batches; see `Client.append_many`."""
        return await self._appender.append_many(self.log, records, Where(timeout_s=timeout_s))

    async def flush(self) -> None:
        """Returns when everything appended so far has ended, one way or the other."""
        await self._appender.flush()
