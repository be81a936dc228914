"""The read benchmarks: a log from its beginning, and how soon a follower sees what was appended.

- *Batches*: the batches as they are stored, each with its checksum verified, not taken apart. What
  a program gets that copies a log, or takes batches apart in another language.
- *Objects*: `Record`s, as the client library gives them.
- *Follow*: from the acknowledgement of an append to the moment at which a reader that follows the
  log at its primary has the record. Both happen in one process, so that one clock times them.
"""

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import crc32c
import grpc.aio

import peerd.aio
from peerd.bench.account import Account, Schedule
from peerd.bench.latencies import Latencies
from peerd.bench.loops import open_loop
from peerd.bench.workers import Stage
from peerd.client.credentials import access
from peerd.client.directory import Directory, make_channels
from peerd.client.errors import CorruptData, Unavailable, error_of_call
from peerd.client.options import ClientOptions
from peerd.client.values import NewRecord
from peerd.core.ids import ShardId
from peerd.internal.v1 import log_bytes_pb2
from peerd.transport.channels import Channels
from peerd.v1 import log_pb2

_READ = "/peerd.v1.LogService/Read"
# limit: bytes of one append by which a log is filled
FILL_BYTES_MAX = 256 * 1024
# limit: appends under way at once while a log is filled
FILLS_MAX = 8
# What is acknowledged and on its way to the follower when the time is over has this long.
UNSEEN_TIMEOUT_S = 10.0
_RECORDS_PER_TAKE = 4096
_NUMBER_BYTES = 8


async def fill(config: str, log: str, *, records: int, size: int) -> int:
    """Append to `log` until it has `records` records; returns how many it has.

    Raises:
        PeerdError: it cannot be appended to.
    """
    batch = [NewRecord(value=os.urandom(size))] * max(1, min(1024, FILL_BYTES_MAX // (size + 8)))
    async with peerd.aio.connect(credentials=config) as client:
        has = sum(tail.committed - tail.first_offset for tail in await client.tail(log))
        room = asyncio.Semaphore(FILLS_MAX)

        async def append() -> None:
            async with room:
                await client.append_batch(log, batch)

        missing = -(-max(0, records - has) // len(batch))
        await asyncio.gather(*(append() for _ in range(missing)))
    return has + missing * len(batch)


@dataclass(slots=True, kw_only=True)
class ReadCounts:
    """What was read."""

    records: int = 0
    bytes: int = 0
    seconds: float = 0.0
    client_cpu_s: float = 0.0
    servers_cpu_s: float | None = None
    """Of all processes of the cluster while the pass ran; None if they are not on this machine."""

    @property
    def records_per_s(self) -> float:
        """Records a second."""
        return self.records / self.seconds if self.seconds else 0.0

    @property
    def mb_per_s(self) -> float:
        """10^6 bytes a second: of values as objects, of whole batches as batches."""
        return self.bytes / self.seconds / 1e6 if self.seconds else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadJob:
    """Reads a log from its beginning, again and again, for `duration_s` at least.

    Attributes:
        config: Path of a `peerctl.toml`.
        log: Name of the log.
        objects: As `Record`s; else as batches.
        duration_s: Seconds; a pass that has begun is read to its end.
        once: One pass, however long it takes.
    """

    config: str
    log: str
    objects: bool
    duration_s: float
    once: bool = False

    async def __call__(self, stage: Stage) -> ReadCounts:
        """Read.

        Raises:
            PeerdError: it cannot be read.
        """
        how = access(None, self.config)
        channels = make_channels(how)
        directory = Directory(how, channels)
        await directory.start(ClientOptions().connect_timeout_s)
        async with peerd.aio.connect(credentials=self.config) as client:
            try:
                shards = directory.cache.shards_of(self.log)
                await client.tail(self.log)
                counts = ReadCounts()
                begin_s = await stage.begin()
                begin_cpu_s = time.process_time()
                while not counts.records or (
                    not self.once and time.monotonic() - begin_s < self.duration_s
                ):
                    for shard in shards:
                        if self.objects:
                            await self._read_objects(client, shard, counts)
                        else:
                            await self._read_batches(directory, channels, shard, counts)
                    stage.told(counts.records)
                counts.seconds = time.monotonic() - begin_s
                counts.client_cpu_s = time.process_time() - begin_cpu_s
            finally:
                await directory.close()
                await channels.close()
        return counts

    async def _read_objects(
        self, client: peerd.aio.Client, shard: ShardId, counts: ReadCounts
    ) -> None:
        async with client.read(self.log, shard=shard) as stream:
            while records := await stream.take(_RECORDS_PER_TAKE):
                counts.records += len(records)
                counts.bytes += sum(len(record.value) for record in records)

    async def _read_batches(
        self,
        directory: Directory,
        channels: Channels,
        shard: ShardId,
        counts: ReadCounts,
    ) -> None:
        primary = directory.cache.shards[shard].open.plan.primary.peer
        address = directory.cache.address_of(primary)
        if address is None:
            raise Unavailable(f"{primary} is not up: check the cluster (`peerctl status`)")
        at = None
        try:
            async for message in _messages(channels.to(address), self.log, shard):
                for batch in message.batches:
                    if crc32c.crc32c(batch.batch) != batch.payload_crc:
                        raise CorruptData(f"{self.log}/{shard} offset {batch.base_offset}: damaged")
                    at = batch.base_offset if at is None else at
                    counts.bytes += len(batch.batch)
                if at is not None:
                    counts.records += message.resume.offsets[shard] - at
                    at = message.resume.offsets[shard]
        except grpc.aio.AioRpcError as error:
            raise error_of_call(error, f"reading {self.log!r}") from error


async def _messages(
    channel: grpc.aio.Channel, log: str, shard: ShardId
) -> AsyncIterator[log_bytes_pb2.ReadResponseBytes]:
    request = log_pb2.ReadRequest(log=log, shard=shard)
    call = channel.unary_stream(
        _READ,
        log_pb2.ReadRequest.SerializeToString,
        log_bytes_pb2.ReadResponseBytes.FromString,
    )(request)
    async for message in call:
        yield message


# ---------------------------------------------------------------------------------- follow


@dataclass(slots=True, kw_only=True)
class FollowCounts:
    """How much later than its acknowledgement a follower saw each record."""

    latencies: Latencies = field(default_factory=Latencies)
    unseen: int = 0
    """Acknowledged, and not seen when the time was over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowJob:
    """Appends at `rate_per_s` to a log that it follows.

    Attributes:
        config: Path of a `peerctl.toml`.
        log: Name of the log.
        size: Bytes of a record, at least 8.
        rate_per_s: Appends a second, evenly.
        duration_s: Seconds.
    """

    config: str
    log: str
    size: int
    rate_per_s: float
    duration_s: float

    async def __call__(self, stage: Stage) -> FollowCounts:
        """Append and follow.

        Raises:
            PeerdError: it cannot be appended to, or read.
        """
        acked_s: dict[int, float] = {}
        seen_s: dict[int, float] = {}
        heard = asyncio.Event()
        async with peerd.aio.connect(credentials=self.config) as client:
            shard = min(shard.shard for shard in (await client.describe_log(self.log))[1])
            stream = client.read(self.log, start="latest", shard=shard, follow=True)

            async def follow() -> None:
                async for record in stream:
                    number = int.from_bytes(record.value[:_NUMBER_BYTES], "big")
                    seen_s[number] = time.monotonic()
                    heard.set()

            following = asyncio.create_task(follow())
            numbers = itertools.count()
            rest = os.urandom(max(0, self.size - _NUMBER_BYTES))

            async def append() -> None:
                number = next(numbers)
                value = number.to_bytes(_NUMBER_BYTES, "big") + rest
                await client.append(self.log, value, shard=shard)
                acked_s[number] = time.monotonic()
                stage.told(len(acked_s))

            while not heard.is_set():
                # "latest" begins where the log ends when the read arrives there.
                await append()
                await asyncio.wait([following], timeout=0.01)
                if following.done():
                    following.result()
            acked_s.clear()
            begin_s = await stage.begin()
            await asyncio.sleep(max(0.0, begin_s - time.monotonic()))
            end_s = begin_s + self.duration_s
            schedule = Schedule(self.rate_per_s, begin_s, end_s)
            await open_loop(append, Account(begin_s, end_s), schedule)
            try:
                async with asyncio.timeout(UNSEEN_TIMEOUT_S):
                    while acked_s.keys() - seen_s.keys():
                        heard.clear()
                        await heard.wait()
            except TimeoutError:
                pass  # They are counted as not seen.
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await stream.aclose()
        counts = FollowCounts()
        for number, when_s in acked_s.items():
            if number in seen_s:
                # The follower may be told before the appender is.
                counts.latencies.record(max(0.0, seen_s[number] - when_s))
            else:
                counts.unseen += 1
        return counts
