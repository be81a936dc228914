"""The asyncio client: appends, reads, tails, logs. `peerd.aio.connect` makes one.

Invariants:
- Closing ends everything that is unanswered, and says of each append whether it may be in the log.
- What appends promise is told and kept in `peerd.client.appending`.
"""

import asyncio
import datetime
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from peerd.client import drill, incidents
from peerd.client.any_peer import AnyPeer
from peerd.client.appending import Appender, AppendServices, Room, where
from peerd.client.credentials import Access, access
from peerd.client.directory import Directory, make_channels
from peerd.client.drill import ShardDrill
from peerd.client.entries import Where
from peerd.client.errors import ClientClosed, UnknownShard
from peerd.client.known_logs import KnownLogs
from peerd.client.las import LasCalls
from peerd.client.options import TICK_S, ClientOptions, ProducerOptions
from peerd.client.pipeline import PipelineStatistics
from peerd.client.positions import KeptPosition, Positions
from peerd.client.producer import Producer
from peerd.client.reading import RecordStream, StartAt
from peerd.client.streams import Streams
from peerd.client.values import Headers, NewRecord, Receipt, Tail
from peerd.core.shard_map import Shard
from peerd.pki import TlsFiles
from peerd.transport.map_cache import MapChange
from peerd.transport.map_codec import LogEntry
from peerd.v1 import log_pb2

CLOSED = "the client is closed: connect again"
# How long a log that was just created may take to be on the map here.
NEW_LOG_WAIT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientStatistics:
    """What a client has done since it was opened, and the bytes of records it holds now."""

    queued_bytes: int
    batches_sent: int
    batches_sent_again: int
    batches_acknowledged: int
    records_acknowledged: int


class Client:
    """A connection to a cluster. Used on one event loop; `async with` opens and closes it."""

    def __init__(self, how: Access, options: ClientOptions) -> None:
        self._options = options
        self._channels = make_channels(how)
        self._directory = Directory(how, self._channels)
        self._streams = Streams(self._channels)
        self.las = LasCalls(how, self._channels, options.call_timeout_s)
        """Everything that only the LAS can answer: status, forecasts, drains."""
        self._known_logs = KnownLogs(
            self._directory, self.las, options.call_timeout_s, self._check_open
        )
        self._services = AppendServices(
            directory=self._directory,
            streams=self._streams,
            room=Room(options.queue_bytes_max),
            statistics=PipelineStatistics(),
            known_logs=self._known_logs,
        )
        self._appender = Appender(self._services, options)
        # Its own, and those of the producers that are open.
        self._appenders = [self._appender]
        self._ticking: asyncio.Task[None] | None = None
        self._unsubscribe = self._directory.cache.subscribe(self._map_changed)
        self._closed = False
        self._any_peer = AnyPeer(
            self._directory,
            self._channels,
            self._known_logs,
            options.call_timeout_s,
            self._check_open,
        )
        self.positions = Positions(self._any_peer)
        """Where named consumers go on reading; kept by the cluster."""

    async def __aenter__(self) -> Self:
        """Gets the map.

        Raises:
            ConnectFailed: no address answered; says why.
            AccessDenied: the cluster refuses this client.
        """
        try:
            await self._directory.start(self._options.connect_timeout_s)
        except BaseException:
            await self._channels.close()
            raise
        self._ticking = asyncio.create_task(self._tick(), name="peerd client deadlines")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends what is under way: appends that are unanswered raise `ClientClosed`."""
        if self._closed:
            return
        self._closed = True
        self._unsubscribe()
        if self._ticking is not None:
            self._ticking.cancel()
        for appender in self._appenders:
            appender.end("the client was closed before the append was answered")
        await self._streams.close()
        await self._directory.close()
        await self._channels.close()

    # -------------------------------------------------------------------------- appending

    async def append(
        self,
        log: str,
        value: bytes,
        *,
        key: bytes | None = None,
        headers: Headers = (),
        timestamp_ms: int | None = None,
        shard: int | None = None,
        expected_offset: int | None = None,
        timeout_s: float | None = None,
    ) -> Receipt:
        """Appends one record and returns when it is durable on the log's `acks` peers.

        Args:
            log: Name of the log.
            value: The record.
            key: Chooses the shard; records of one key keep their order. None: any shard.
            headers: Named values beside the record.
            timestamp_ms: The caller's own time of the record.
            shard: Shard id, instead of being chosen.
            expected_offset: Append only if this is the end of the shard; needs `shard` or `key`.
            timeout_s: How long to try; the client's default if None.

        Raises:
            OutcomeUnknown: it may be in the log. NotAppended: it is not, and will not be.
            OffsetMismatch, UnknownLog, UnknownShard, BatchTooLarge, DiskReserve, NotEnoughPeers,
            Overloaded, AccessDenied, InvalidRequest, ClientClosed: what they say.
        """
        record = NewRecord(value=value, key=key, headers=headers, timestamp_ms=timestamp_ms)
        return await self._appender.append_batch(
            log, (record,), where(shard, expected_offset, timeout_s)
        )

    # No coroutine around the one that does it: each takes its part of every append.
    def append_batch(
        self,
        log: str,
        records: Sequence[NewRecord],
        *,
        shard: int | None = None,
        expected_offset: int | None = None,
        timeout_s: float | None = None,
    ) -> Coroutine[Any, Any, Receipt]:
        """Appends records as one: readers see all of them or none. Their keys share a shard.

        Returns:
            One receipt; the records fill its offsets.

        Raises:
            KeysSpanShards: the keys belong to several shards. Else as `append`.
        """
        return self._appender.append_batch(log, records, where(shard, expected_offset, timeout_s))

    def append_nowait(
        self,
        log: str,
        value: bytes,
        *,
        key: bytes | None = None,
        headers: Headers = (),
        timestamp_ms: int | None = None,
        shard: int | None = None,
        timeout_s: float | None = None,
    ) -> "asyncio.Future[Receipt]":
        """Queues one record and returns a future of its receipt: many may be under way.

        Raises:
            QueueFull: there is no room; nothing was queued.
            UnknownLog, UnknownShard, InvalidRequest, BatchTooLarge, ClientClosed: what they say.
        """
        record = NewRecord(value=value, key=key, headers=headers, timestamp_ms=timestamp_ms)
        return self._appender.append_nowait(log, record, where(shard, None, timeout_s))

    async def append_many(
        self,
        log: str,
        records: Iterable[NewRecord | bytes],
        *,
        timeout_s: float | None = None,
    ) -> list[Receipt]:
        """Appends records, each for itself, joined into batches; returns their receipts in order.

        Raises:
            PeerdError: the first that failed, after all have ended.
        """
        return await self._appender.append_many(log, records, Where(timeout_s=timeout_s))

    async def flush(self) -> None:
        """Returns when every append made so far has ended, one way or the other."""
        for appender in self._appenders:
            await appender.flush()

    def producer(self, log: str, *, options: ProducerOptions | None = None) -> Producer:
        """A producer: appends to one log with options and batches of its own.

        Args:
            log: Name of the log.
            options: What differs for it from the client; the client's own if None.

        Returns:
            To be used by `async with`, at whose end everything appended has ended.
        """
        self._check_open()
        appender = Appender(self._services, options or self._options)
        self._appenders.append(appender)
        return Producer(log, appender, ended=self._appenders.remove)

    # -------------------------------------------------------------------------- time and the map

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(TICK_S)
            now = loop.time()
            for appender in self._appenders:
                appender.tick(now)

    def _map_changed(self, change: MapChange) -> None:
        for appender in self._appenders:
            appender.map_changed(change)

    async def _until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    await self._directory.cache.changed.wait()
        except TimeoutError:
            return

    def _check_open(self) -> None:
        if self._closed:
            raise ClientClosed(CLOSED, taken="no")

    # -------------------------------------------------------------------------- reading

    def read(
        self,
        log: str,
        *,
        start: StartAt = "earliest",
        shard: int | None = None,
        follow: bool = False,
        local: bool = False,
        consumer: str | None = None,
    ) -> RecordStream:
        """Reads records, in order per key (and per shard); shards of a whole log interleave.

        Args:
            log: Name of the log.
            start: "earliest", "latest", an offset (with `shard`), an aware datetime, or the
                `position` of an earlier read.
            shard: Only this shard.
            follow: Go on with new records; else end at the tail seen at the start.
            local: Let any replica answer from what it has, which may be a little behind.
            consumer: Go on where this consumer has committed, at `start` if it has not, and commit
                by the way: whoever asks for the next record has done with those before.

        Returns:
            An asynchronous iterator of `Record`, with `position`, `commit` and `aclose`.

        Raises:
            InvalidRequest: `start` is none, or does not fit `shard`.
        """
        self._check_open()
        kept = None
        if consumer is not None:
            interval_s = self._options.position_commit_s
            kept = KeptPosition(self.positions, log, consumer, interval_s)
        return RecordStream(
            self._directory,
            self._channels,
            self._known_logs,
            log=log,
            shard=shard,
            start=start,
            follow=follow,
            local=local,
            kept=kept,
        )

    async def tail(
        self, log: str, shard: int | None = None, *, linearizable: bool = False
    ) -> list[Tail]:
        """The committed ends of a log's shards, or of one of them, by shard id.

        Args:
            log: Log name.
            shard: Only this shard.
            linearizable: No record that anybody's append was acknowledged for before this call lies
                at or beyond the answer. Costs a round trip from the primary to its voters.

        Raises:
            UnknownLog, UnknownShard: what they say. Unavailable: no peer answered in time.
            NotEnoughPeers: too few voters to confirm a linearizable tail in time.
        """
        request = log_pb2.GetTailRequest(
            log=log,
            shard=shard,
            consistency=log_pb2.TAIL_CONSISTENCY_LINEARIZABLE
            if linearizable
            else log_pb2.TAIL_CONSISTENCY_UNSPECIFIED,
        )
        response = await self._any_peer.ask(
            log,
            f"the tail of {log!r}",
            lambda stub, timeout_s: stub.GetTail(request, timeout=timeout_s),
        )
        return [_tail(tail) for tail in response.tails]

    # -------------------------------------------------------------------------- logs

    async def create_log(
        self,
        name: str,
        *,
        shards: int = 1,
        copies: int = 0,
        acks: int = 0,
        compression: str = "none",
    ) -> LogEntry:
        """Creates a log and returns when this client knows it.

        Args:
            name: 1 to 128 of `a-z 0-9 . _ -`.
            shards: How many, 1 to 1,024; keys are spread over them.
            copies: Copies of each record; 0 = 3 where there are three hosts, else 2.
            acks: Copies that must be on disk before an append is acknowledged; 0 = 2.
            compression: "zstd" or "none": what producers do that do not say it themselves.

        Raises:
            LogExists, NotEnoughPeers, LimitReached, InvalidRequest, AccessDenied: what they say.
            LasUnavailable: nobody answered; the log may have been created.
        """
        self._check_open()
        log = await self.las.create_log(
            name, shards=shards, copies=copies, acks=acks, compression=compression
        )
        cache = self._directory.cache
        self._directory.refresh()
        await self._until(lambda: len(cache.shards_of(name)) == len(log.shards), NEW_LOG_WAIT_S)
        return log

    async def list_logs(self) -> list[LogEntry]:
        """All logs, by name."""
        self._check_open()
        return await self.las.list_logs()

    async def split_shard(self, shard: int, *, at_key_hash: int | None = None) -> tuple[int, ...]:
        """Splits a shard and returns its children, as soon as they take appends.

        Args:
            shard: Shard id.
            at_key_hash: First key hash of the upper child; None: the middle of the shard's range.

        Raises:
            UnknownShard, InvalidRequest, LimitReached, AccessDenied: what they say.
            StateConflict: another change is under way, or a failover undid the split; ask again.
            LasUnavailable: nobody answered in time; it may be split. Asking again tells.
        """
        self._check_open()
        return await self.las.split_shard(shard, at_key_hash=at_key_hash)

    async def set_copies(self, name: str, *, copies: int = 0, acks: int = 0) -> LogEntry:
        """Says how many copies of a log there are, and how many of them acknowledge; 0: as it is.

        Its shards follow one after the other, without a pause; what was appended before keeps the
        copies that it has, and gets those that it lacks.

        Raises:
            UnknownLog, InvalidRequest, NotEnoughPeers, AccessDenied: what they say.
            LasUnavailable: nobody answered in time; it may be done.
        """
        self._check_open()
        return await self.las.set_copies(name, copies=copies, acks=acks)

    async def set_retention(
        self, name: str, *, retention_bytes: int | None = None, retention_ms: int | None = None
    ) -> LogEntry:
        """Says how long a log's records are kept; what lies beyond is trimmed by whole chunks.

        Args:
            name: The log.
            retention_bytes: Bytes that each shard keeps at least; 0: for ever, None: as it is.
            retention_ms: Age up to which records are kept; 0: for ever, None: as it is.

        Raises:
            UnknownLog, InvalidRequest, AccessDenied: what they say.
            LasUnavailable: nobody answered in time; it may be done.
        """
        self._check_open()
        return await self.las.set_retention(
            name, retention_bytes=retention_bytes, retention_ms=retention_ms
        )

    async def set_tier(self, name: str, hot_bytes: int) -> LogEntry:
        """Says how many bytes of each shard stay on its peers' disks; the rest goes to the tier.

        0: nothing more goes there. What is there already stays, and is read from there.

        Raises:
            UnknownLog, InvalidRequest, AccessDenied: what they say.
            StateConflict: some peer runs a version that knows no tier.
            LasUnavailable: nobody answered in time; it may be done.
        """
        self._check_open()
        return await self.las.set_tier(name, hot_bytes)

    async def set_compression(self, name: str, compression: str) -> LogEntry:
        """Says how clients pack what they append to a log from now on: "zstd" or "none".

        Producers that say it themselves go on as they do. What is stored stays as it is.

        Raises:
            UnknownLog, InvalidRequest, AccessDenied: what they say.
            LasUnavailable: nobody answered in time; it may be done.
        """
        self._check_open()
        return await self.las.set_compression(name, compression)

    async def trim(self, log: str, shard: int, before: int | datetime.datetime) -> int:
        """Forgets a shard's records below an offset, or those appended before a time, for good.

        Whole chunks of 64 MiB go, once every replica has them; the rest stays. Asking again is
        harmless.

        Returns:
            The shard's first offset left.

        Raises:
            UnknownLog, UnknownShard, InvalidRequest, AccessDenied: what they say.
            StateConflict: the shard changes just now; trim again.
            Unavailable: nobody who could tell where to cut can be reached; trim again.
            LasUnavailable: nobody answered in time; it may be done.
        """
        self._check_open()
        if isinstance(before, datetime.datetime):
            async with self.read(log, start=before, shard=shard) as reading:
                before = await reading.begin()
        return await self.las.trim_shard(log, shard, before)

    async def describe_log(self, name: str) -> tuple[LogEntry, tuple[Shard, ...]]:
        """A log and its shards: segments, epochs, who stores what.

        Raises:
            UnknownLog: no log of that name.
        """
        self._check_open()
        return await self.las.describe_log(name)

    async def drill(self, log: str, shard: int | None = None) -> list[ShardDrill]:
        """Whether each shard of a log, or one of them, could go on if its primary died now.

        Each voter is asked what it has; nothing is changed.

        Raises:
            UnknownLog, UnknownShard: what they say. Unavailable: no LAS node answered in time.
        """
        _, shards = await self.describe_log(log)
        chosen = [each for each in shards if shard is None or each.shard == shard]
        if not chosen:
            raise UnknownShard(f"{log} has no shard {shard}")
        nodes = {str(name): node for name, node in self._directory.cache.nodes.items()}
        tails = await drill.ask_all(self._channels, log, chosen, nodes)
        return [drill.judge(each, tails, nodes) for each in chosen]

    # -------------------------------------------------------------------------- observability

    async def save_recording(self, address: str, path: Path) -> int:
        """Writes the flight recording of the process at `address` to `path`; returns its bytes.

        Raises:
            NotServedYet: it records nothing. Overloaded: somebody else reads it now.
        """
        self._check_open()
        return await incidents.save_recording(self._channels, address, path)

    def statistics(self) -> ClientStatistics:
        """Counts."""
        counts = self._services.statistics
        return ClientStatistics(
            queued_bytes=self._services.room.queued_bytes,
            batches_sent=counts.batches_sent,
            batches_sent_again=counts.batches_sent_again,
            batches_acknowledged=counts.batches_acknowledged,
            records_acknowledged=counts.records_acknowledged,
        )


def _tail(tail: log_pb2.ShardTail) -> Tail:
    return Tail(
        shard=tail.shard,
        epoch=tail.epoch,
        committed=tail.committed,
        first_offset=tail.first_offset,
        peer=tail.peer,
    )


def connect(
    addresses: str | Sequence[str] | None = None,
    *,
    credentials: str | Path | TlsFiles | None = None,
    options: ClientOptions | None = None,
) -> Client:
    """Returns a client, to be opened by `async with`.

    Args:
        addresses: `host:port` of any peers or LAS nodes; None takes those of the credentials file.
        credentials: Path of a `peerctl.toml`, TLS files, or None for plaintext on loopback.
        options: Bounds and times.

    Raises:
        CredentialsError: the file or an address cannot be used.
        ConnectFailed: a TLS file cannot be read.
    """
    return Client(access(addresses, credentials), options or ClientOptions())
