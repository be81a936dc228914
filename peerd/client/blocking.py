"""The blocking client: the asyncio one on a thread of its own, for programs without a loop.

Invariants:
- All of gRPC and of the client's state stays on that one thread; calls from any thread go there and
  wait for their answer.
- Ctrl-C and other exceptions leave the thread in order: `close` always ends it.
"""

import asyncio
import concurrent.futures
import contextlib
import datetime
import threading
from collections.abc import (
    AsyncGenerator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from las.v1 import access_pb2, fleet_pb2, forecast_pb2, history_pb2, log_admin_pb2, model_pb2
from peerd.client import asynchronous, producer
from peerd.client.asynchronous import ClientStatistics
from peerd.client.credentials import Access, access
from peerd.client.drill import ShardDrill
from peerd.client.errors import ClientClosed
from peerd.client.options import ClientOptions, ProducerOptions
from peerd.client.reading import RecordStream, StartAt
from peerd.client.values import Headers, NewRecord, Position, Receipt, Record, Tail
from peerd.core.shard_map import Shard
from peerd.pki import TlsFiles
from peerd.transport.map_codec import LogEntry

Result = TypeVar("Result")

# limit: records that a blocking iterator takes over from the loop's thread at once; each crossing
# costs some 50 µs, which is shared by them
RECORDS_TAKEN_MAX = 1024


class _LoopThread:
    """A thread that runs an event loop until it is stopped."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="peerd client", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self._end_tasks()
        self.loop.close()

    def _end_tasks(self) -> None:
        """Ends what still runs, such as gRPC's own tasks that look after calls that ended."""
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Runs `work` there and waits; an interrupt of the waiting ends the work, too."""
        if self.loop.is_closed() or not self._thread.is_alive():
            work.close()
            raise ClientClosed("the client is closed: connect again", taken="no")
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def begin(
        self, work: "Callable[[], asyncio.Future[Result]]"
    ) -> "concurrent.futures.Future[Result]":
        """Calls `work` there, without waiting; returns a future of what its future gives."""
        future: concurrent.futures.Future[Result] = concurrent.futures.Future()

        def start() -> None:
            try:
                inner = work()
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever awaits the future
                future.set_exception(error)
            else:
                inner.add_done_callback(lambda ended: _pass_on(ended, future))

        try:
            self.loop.call_soon_threadsafe(start)
        except RuntimeError as error:
            raise ClientClosed("the client is closed: connect again", taken="no") from error
        return future

    def stop(self) -> None:
        """Ends loop and thread."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()


class RecordIterator:
    """A blocking iterator of `Record`. Made by `Client.read`; close it when it is left early."""

    def __init__(self, thread: _LoopThread, stream: RecordStream) -> None:
        self._thread = thread
        self._stream = stream
        self._taken: list[Record] = []
        self._closed_at: Position | None = None

    @property
    def position(self) -> Position:
        """Where a new read goes on after the last record that was given out."""
        if self._closed_at is not None:
            return self._closed_at
        offsets = dict(self._stream.position.offsets)
        for record in self._taken:
            offsets[record.shard] = min(record.offset, offsets.get(record.shard, record.offset))
        return Position(offsets)

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        """The next record; raises as `RecordStream.__anext__`."""
        if self._stream.commit_is_due and self._taken:
            self.commit()
        if not self._taken:
            self._taken = self._thread.run(self._take())
            self._taken.reverse()
        if not self._taken:
            raise StopIteration
        return self._taken.pop()

    async def _take(self) -> list[Record]:
        return await self._stream.take(RECORDS_TAKEN_MAX)

    def commit(self, position: Position | None = None) -> None:
        """Commits `position`, None: where the read stands. See `RecordStream.commit`."""
        self._thread.run(self._stream.commit(self.position if position is None else position))

    def close(self) -> None:
        """Ends the read, without a commit. Doing it twice does no harm."""
        self._closed_at, self._taken = self.position, []
        with contextlib.suppress(ClientClosed):
            self._thread.run(self._stream.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class BlockingPositions:
    """Where named consumers go on reading; see `peerd.client.positions.Positions`."""

    def __init__(self, thread: _LoopThread, client: asynchronous.Client) -> None:
        self._thread = thread
        self._positions = client.positions

    def commit(self, log: str, consumer: str, position: Position) -> None:
        """Stores where `consumer` goes on reading `log`."""
        self._thread.run(self._positions.commit(log, consumer, position))

    def get(self, log: str, consumer: str) -> Position:
        """The position of `consumer` in `log`; without any offset if it has none."""
        return self._thread.run(self._positions.get(log, consumer))

    def list(self, log: str) -> dict[str, Position]:
        """The consumers of `log` by name, each with its position."""
        return self._thread.run(self._positions.list(log))

    def forget(self, log: str, consumer: str) -> None:
        """Takes the position of `consumer` away."""
        self._thread.run(self._positions.forget(log, consumer))


class BlockingLas:
    """Everything that only the LAS can answer; see `peerd.client.las.LasCalls`."""

    def __init__(self, thread: _LoopThread, client: asynchronous.Client) -> None:
        self._thread = thread
        self._las = client.las

    def status(self) -> fleet_pb2.GetStatusResponse:
        """The fleet at a glance."""
        return self._thread.run(self._las.status())

    def forecasts(self, node: str = "") -> Sequence[forecast_pb2.NodeForecast]:
        """The newest forecast of a node, or of all."""
        return self._thread.run(self._las.forecasts(node))

    def report_forecast(
        self, node: str, probabilities: Mapping[int, float], *, source: str = "", age_s: float = 0.0
    ) -> None:
        """Says what is expected of a node; see `peerd.client.las.LasCalls.report_forecast`."""
        self._thread.run(self._las.report_forecast(node, probabilities, source=source, age_s=age_s))

    def explain(self, node: str = "", *, shard: int = 0) -> forecast_pb2.ExplainResponse:
        """What was seen of a node or a shard, and what was decided why."""
        return self._thread.run(self._las.explain(node, shard=shard))

    def ledger(self, node: str = "", limit: int = 0) -> Sequence[forecast_pb2.LedgerCase]:
        """The newest alarms with what became of them; the newest last."""
        return self._thread.run(self._las.ledger(node, limit))

    def effect(self) -> forecast_pb2.GetEffectResponse:
        """What anticipation saves, by the built-in experiment."""
        return self._thread.run(self._las.effect())

    def watch_forecasts(self) -> Iterator[forecast_pb2.WatchForecastResponse]:
        """Forecasts as they are made; see `peerd.client.las.LasCalls.watch_forecasts`."""
        answers = self._las.watch_forecasts()

        async def take() -> forecast_pb2.WatchForecastResponse | None:
            return await anext(answers, None)

        try:
            while (answer := self._thread.run(take())) is not None:
                yield answer
        finally:
            with contextlib.suppress(ClientClosed):
                self._thread.run(_closed(answers))

    def drain(self, node: str, *, for_s: float | None = None) -> None:
        """Moves everything off a node and keeps it off, until `undrain` or for `for_s` seconds."""
        self._thread.run(self._las.drain(node, for_s=for_s))

    def delete_log(
        self, name: str, *, accept_loss: bool = False, shards: Sequence[int] = ()
    ) -> log_admin_pb2.DeleteLogResponse:
        """Deletes a log for good; see `peerd.client.las.LasCalls.delete_log`."""
        return self._thread.run(self._las.delete_log(name, accept_loss=accept_loss, shards=shards))

    def export_state(self) -> bytes:
        """All that the LAS has committed; see `peerd.client.las.LasCalls.export_state`."""
        return self._thread.run(self._las.export_state())

    def access(self) -> access_pb2.GetAccessResponse:
        """Grants and revocations, and which peers have not heard of the newest."""
        return self._thread.run(self._las.access())

    def set_access(self, *, required: bool) -> access_pb2.SetAccessResponse:
        """Says whether clients need grants."""
        return self._thread.run(self._las.set_access(required=required))

    def add_grant(self, grant: access_pb2.Grant) -> access_pb2.AddGrantResponse:
        """Gives rights."""
        return self._thread.run(self._las.add_grant(grant))

    def remove_grant(self, grant: access_pb2.Grant) -> access_pb2.RemoveGrantResponse:
        """Takes rights back."""
        return self._thread.run(self._las.remove_grant(grant))

    def revoke(self, revocation: access_pb2.Revocation) -> access_pb2.RevokeResponse:
        """Refuses a certificate everywhere."""
        return self._thread.run(self._las.revoke(revocation))

    def end_revocation(self, revocation: access_pb2.Revocation) -> access_pb2.EndRevocationResponse:
        """Ends that."""
        return self._thread.run(self._las.end_revocation(revocation))

    def audit(
        self, *, since_ms: int = 0, node: str = "", log: str = "", limit: int = 0
    ) -> fleet_pb2.ListAuditResponse:
        """Who changed what; see `peerd.client.las.LasCalls.audit`."""
        return self._thread.run(self._las.audit(since_ms=since_ms, node=node, log=log, limit=limit))

    def list_outages(self, node: str = "", *, count_max: int = 0) -> Sequence[history_pb2.Outage]:
        """Outages, the newest first; see `peerd.client.las.LasCalls.list_outages`."""
        return self._thread.run(self._las.list_outages(node, count_max=count_max))

    def import_outages(
        self, outages: Sequence[history_pb2.Outage]
    ) -> history_pb2.ImportOutagesResponse:
        """Adds outages that were seen elsewhere; see `peerd.client.las.LasCalls.import_outages`."""
        return self._thread.run(self._las.import_outages(outages))

    def failure_patterns(self) -> history_pb2.GetPatternsResponse:
        """What the history of failures shows."""
        return self._thread.run(self._las.failure_patterns())

    def models(self) -> Sequence[model_pb2.HeadModels]:
        """The forecast models by head, and how those in shadow compare."""
        return self._thread.run(self._las.models())

    def install_model(self, content: bytes, *, head: str = "") -> model_pb2.InstallModelResponse:
        """Gives all LAS nodes a model; see `peerd.client.las.LasCalls.install_model`."""
        return self._thread.run(self._las.install_model(content, head=head))

    def get_model(self, version: int) -> model_pb2.GetModelResponse:
        """The file of a version that was installed."""
        return self._thread.run(self._las.get_model(version))

    def promote_model(self, version: int, *, head: str = "") -> model_pb2.PromoteModelResponse:
        """Lets a version answer; see `peerd.client.las.LasCalls.promote_model`."""
        return self._thread.run(self._las.promote_model(version, head=head))

    def roll_back_model(self, head: str, version: int) -> model_pb2.RollBackModelResponse:
        """In place of `version` the one before answers again."""
        return self._thread.run(self._las.roll_back_model(head, version))

    def remove_node(self, node: str) -> None:
        """Takes a node that is down out of the fleet, once nothing needs what it has."""
        self._thread.run(self._las.remove_node(node))

    def replace_node(self, node: str, store_id: str, *, accept_loss: bool = False) -> None:
        """Accepts a node's new store; see `peerd.client.las.LasCalls.replace_node`."""
        self._thread.run(self._las.replace_node(node, store_id, accept_loss=accept_loss))

    def workload(self, node: str = "", log: str = "") -> fleet_pb2.GetWorkloadResponse:
        """What clients do to each shard; see `peerd.client.las.LasCalls.workload`."""
        return self._thread.run(self._las.workload(node, log))

    def rebalance(self, *, dry_run: bool = False) -> fleet_pb2.RebalanceResponse:
        """Moves votes, leads and copies until nodes are alike, or tells what would be moved."""
        return self._thread.run(self._las.rebalance(dry_run=dry_run))

    def finalize_upgrade(self) -> fleet_pb2.FinalizeUpgradeResponse:
        """The cluster may use what all its nodes know; after that no node goes back."""
        return self._thread.run(self._las.finalize_upgrade())

    def check_stop(self, node: str) -> fleet_pb2.CheckStopResponse:
        """What stopping a node now would cost."""
        return self._thread.run(self._las.check_stop(node))

    def undrain(self, node: str) -> None:
        """Ends a drain."""
        self._thread.run(self._las.undrain(node))

    def switch_primary(self, shard: int, node: str) -> int:
        """Hands a shard over to `node` by plan; returns the epoch of the prepared segment."""
        return self._thread.run(self._las.switch_primary(shard, node))

    def recover_shard(
        self, shard: int, *, why: str = "", accept_loss: bool = False
    ) -> log_admin_pb2.RecoverShardResponse:
        """Gives up what is lost for good; see `peerd.client.las.LasCalls.recover_shard`."""
        return self._thread.run(self._las.recover_shard(shard, why=why, accept_loss=accept_loss))


class Client:
    """A connection to a cluster for programs without an event loop; usable from any thread.

    Arguments and errors are those of `peerd.aio.Client`.
    """

    def __init__(self, how: Access, options: ClientOptions) -> None:
        """Connects.

        Raises:
            ConnectFailed, AccessDenied: as `peerd.aio.Client.__aenter__`.
        """
        self._thread = _LoopThread()
        try:
            self._client = self._thread.run(_opened(how, options))
        except BaseException:
            self._thread.stop()
            raise
        self.positions = BlockingPositions(self._thread, self._client)
        self.las = BlockingLas(self._thread, self._client)

    def close(self) -> None:
        """Ends what is under way, and the thread. Doing it twice does no harm."""
        with contextlib.suppress(ClientClosed):
            self._thread.run(self._client.close())
        self._thread.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -------------------------------------------------------------------------- appending

    def append(
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
        """Appends one record and returns when it is durable."""
        return self._thread.run(
            self._client.append(
                log,
                value,
                key=key,
                headers=headers,
                timestamp_ms=timestamp_ms,
                shard=shard,
                expected_offset=expected_offset,
                timeout_s=timeout_s,
            )
        )

    def append_batch(
        self,
        log: str,
        records: Sequence[NewRecord],
        *,
        shard: int | None = None,
        expected_offset: int | None = None,
        timeout_s: float | None = None,
    ) -> Receipt:
        """Appends records as one: readers see all of them or none."""
        return self._thread.run(
            self._client.append_batch(
                log, records, shard=shard, expected_offset=expected_offset, timeout_s=timeout_s
            )
        )

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
    ) -> "concurrent.futures.Future[Receipt]":
        """Begins to append one record and returns a future of its receipt.

        The future raises `QueueFull` if the client had no room for it.
        """
        begin = partial(
            self._client.append_nowait,
            log,
            value,
            key=key,
            headers=headers,
            timestamp_ms=timestamp_ms,
            shard=shard,
            timeout_s=timeout_s,
        )
        return self._thread.begin(begin)

    def append_many(
        self,
        log: str,
        records: Iterable[NewRecord | bytes],
        *,
        timeout_s: float | None = None,
    ) -> list[Receipt]:
        """Appends records, each for itself, joined into batches."""
        return self._thread.run(self._client.append_many(log, records, timeout_s=timeout_s))

    def flush(self) -> None:
        """Returns when every append made so far has ended, one way or the other."""
        self._thread.run(self._client.flush())

    def producer(self, log: str, *, options: ProducerOptions | None = None) -> "Producer":
        """A producer: appends to one log with options and batches of its own."""

        async def make() -> producer.Producer:
            return self._client.producer(log, options=options)

        return Producer(self._thread, self._thread.run(make()))

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
    ) -> RecordIterator:
        """Reads records; `for record in client.read(…)`."""

        async def make() -> RecordStream:
            return self._client.read(
                log, start=start, shard=shard, follow=follow, local=local, consumer=consumer
            )

        stream = self._thread.run(make())
        return RecordIterator(self._thread, stream)

    def drill(self, log: str, shard: int | None = None) -> list[ShardDrill]:
        """See `AsyncClient.drill`."""
        return self._thread.run(self._client.drill(log, shard))

    def tail(self, log: str, shard: int | None = None, *, linearizable: bool = False) -> list[Tail]:
        """The committed ends of a log's shards, or of one of them."""
        return self._thread.run(self._client.tail(log, shard, linearizable=linearizable))

    # -------------------------------------------------------------------------- logs

    def create_log(
        self,
        name: str,
        *,
        shards: int = 1,
        copies: int = 0,
        acks: int = 0,
        compression: str = "none",
    ) -> LogEntry:
        """Creates a log and returns when this client knows it."""
        return self._thread.run(
            self._client.create_log(
                name, shards=shards, copies=copies, acks=acks, compression=compression
            )
        )

    def list_logs(self) -> list[LogEntry]:
        """All logs, by name."""
        return self._thread.run(self._client.list_logs())

    def split_shard(self, shard: int, *, at_key_hash: int | None = None) -> tuple[int, ...]:
        """Splits a shard and returns its children, as soon as they take appends."""
        return self._thread.run(self._client.split_shard(shard, at_key_hash=at_key_hash))

    def set_copies(self, name: str, *, copies: int = 0, acks: int = 0) -> LogEntry:
        """Says how many copies a log has, and how many of them acknowledge; 0: as it is."""
        return self._thread.run(self._client.set_copies(name, copies=copies, acks=acks))

    def set_retention(
        self, name: str, *, retention_bytes: int | None = None, retention_ms: int | None = None
    ) -> LogEntry:
        """Says how long a log's records are kept; what lies beyond is trimmed by whole chunks."""
        return self._thread.run(
            self._client.set_retention(
                name, retention_bytes=retention_bytes, retention_ms=retention_ms
            )
        )

    def set_tier(self, name: str, hot_bytes: int) -> LogEntry:
        """Says how many bytes of each shard stay on its peers' disks; the rest goes to the tier."""
        return self._thread.run(self._client.set_tier(name, hot_bytes))

    def set_compression(self, name: str, compression: str) -> LogEntry:
        """Says how clients pack what they append to a log from now on: "zstd" or "none"."""
        return self._thread.run(self._client.set_compression(name, compression))

    def trim(self, log: str, shard: int, before: int | datetime.datetime) -> int:
        """Forgets a shard's records below an offset, or those appended before a time, for good."""
        return self._thread.run(self._client.trim(log, shard, before))

    def describe_log(self, name: str) -> tuple[LogEntry, tuple[Shard, ...]]:
        """A log and its shards: segments, epochs, who stores what."""
        return self._thread.run(self._client.describe_log(name))

    def save_recording(self, address: str, path: Path) -> int:
        """Writes the flight recording of a process to `path`; returns its bytes."""
        return self._thread.run(self._client.save_recording(address, path))

    def statistics(self) -> ClientStatistics:
        """Counts."""
        return self._client.statistics()


class Producer:
    """Appends to one log; usable from any thread. Made by `Client.producer`, ended by `close`.

    Arguments and errors are those of `peerd.aio.Producer`.
    """

    def __init__(self, thread: _LoopThread, inner: producer.Producer) -> None:
        self.log = inner.log
        self._thread = thread
        self._producer = inner

    def close(self) -> None:
        """Returns when everything appended has ended; then the producer takes nothing more."""
        with contextlib.suppress(ClientClosed):
            self._thread.run(self._producer.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(
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
        """Appends one record and returns when it is durable."""
        record = NewRecord(value=value, key=key, headers=headers, timestamp_ms=timestamp_ms)
        return self.append_batch(
            [record], shard=shard, expected_offset=expected_offset, timeout_s=timeout_s
        )

    def append_batch(
        self,
        records: Sequence[NewRecord],
        *,
        shard: int | None = None,
        expected_offset: int | None = None,
        timeout_s: float | None = None,
    ) -> Receipt:
        """Appends records as one: readers see all of them or none."""
        return self._thread.run(
            self._producer.append_batch(
                records, shard=shard, expected_offset=expected_offset, timeout_s=timeout_s
            )
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
    ) -> "concurrent.futures.Future[Receipt]":
        """Begins to append one record and returns a future of its receipt."""
        begin = partial(
            self._producer.append_nowait,
            value,
            key=key,
            headers=headers,
            timestamp_ms=timestamp_ms,
            shard=shard,
            timeout_s=timeout_s,
        )
        return self._thread.begin(begin)

    def append_many(
        self, records: Iterable[NewRecord | bytes], *, timeout_s: float | None = None
    ) -> list[Receipt]:
        """Appends records, each for itself, joined into batches."""
        return self._thread.run(self._producer.append_many(records, timeout_s=timeout_s))

    def flush(self) -> None:
        """Returns when everything appended so far has ended, one way or the other."""
        self._thread.run(self._producer.flush())


async def _closed(answers: AsyncGenerator[Any, None]) -> None:
    await answers.aclose()


async def _opened(how: Access, options: ClientOptions) -> asynchronous.Client:
    return await asynchronous.Client(how, options).__aenter__()


def _pass_on(ended: "asyncio.Future[Result]", future: "concurrent.futures.Future[Result]") -> None:
    if future.cancelled():
        # Nobody waits for it; a refusal has to be looked at nevertheless.
        if not ended.cancelled():
            ended.exception()
        return
    error = ended.exception()
    if error is None:
        future.set_result(ended.result())
    else:
        future.set_exception(error)


def connect(
    addresses: str | Sequence[str] | None = None,
    *,
    credentials: str | Path | TlsFiles | None = None,
    options: ClientOptions | None = None,
) -> Client:
    """Connects to a cluster; a context manager.

    Args:
        addresses: `host:port` of any peers or LAS nodes; None takes those of the credentials file.
        credentials: Path of a `peerctl.toml`, TLS files, or None for plaintext on loopback.
        options: Bounds and times.

    Raises:
        CredentialsError: the file or an address cannot be used.
        ConnectFailed: no address answered; the message says why.
        AccessDenied: the cluster refuses this client.
    """
    return Client(access(addresses, credentials), options or ClientOptions())
