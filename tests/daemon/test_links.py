"""What a link joins, what it bounds, and what its other end counts as taken."""

import asyncio
from collections.abc import Callable

from peerd.core.batch import BatchHeader, PlacedBatch
from peerd.core.ids import BootId, Epoch, NodeName, Offset, ProcessId, ReplicaId, ShardId, StoreId
from peerd.core.messages import Ack, Adopt, Expect, Frame
from peerd.core.shard_map import Plan
from peerd.daemon.links import Link, LinkLimits
from peerd.internal.v1 import replication_pb2
from peerd.transport.replication_service import IncomingStream

ME = ProcessId(NodeName("peer-1"), StoreId("1" * 32), BootId("a" * 32))
OTHER = ReplicaId(NodeName("peer-2"), StoreId("2" * 32))


class Events:
    def __init__(self) -> None:
        self.taken: list[float] = []
        self.round_trips: list[float] = []

    def frame_taken(self, duration_ms: float) -> None:
        self.taken.append(duration_ms)

    def round_trip(self, duration_ms: float) -> None:
        self.round_trips.append(duration_ms)


def link(**limits: int) -> tuple[Link, Events, list[float]]:
    events, clock = Events(), [0.0]
    made = Link(
        me=ME,
        cluster_id="c",
        target=OTHER,
        address="127.0.0.1:1",
        channels=None,
        events=events,
        limits=LinkLimits(**limits),
        neighbours=None,
        now_s=lambda: clock[0],
    )
    made._process = ProcessId(OTHER.peer, OTHER.store, BootId("b" * 32))
    return made, events, clock


def frame(shard: int, size: int = 0) -> Frame:
    header = BatchHeader(record_count=1, payload_crc=0, payload_bytes=size)
    batch = PlacedBatch(base=Offset(0), header=header, payload=b"x" * size)
    return Frame(shard=ShardId(shard), epoch=Epoch(1), commit=Offset(0), batches=(batch,))


def next_message(made: Link) -> replication_pb2.ReplicateRequest:
    return replication_pb2.ReplicateRequest.FromString(made._next_message())


def adopt(shard: int) -> Adopt:
    plan = Plan(primary=ME, voters=(ME.replica,), acks=1)
    return Adopt(shard=ShardId(shard), epoch=Epoch(2), begin=Offset(0), plan=plan)


async def test_what_waits_is_joined_in_order_up_to_a_size() -> None:
    made, _, _ = link(message_bytes_max=2500)
    for shard in range(5):
        made.send(frame(shard, 1000))
    shards = []
    while made._queue:
        shards.append([joined.shard for joined in next_message(made).frames])
    assert shards == [[0, 1], [2, 3], [4]]
    assert made.statistics().queued_bytes == 0


async def test_a_batch_larger_than_a_message_travels_alone() -> None:
    made, _, _ = link(message_bytes_max=100)
    made.send(frame(1, 1000))
    made.send(frame(2, 1000))
    assert [joined.shard for joined in next_message(made).frames] == [1]


async def test_an_adoption_does_not_overtake_frames_of_its_shard() -> None:
    made, _, _ = link()
    for message in (frame(1), adopt(2), adopt(1), frame(1)):
        made.send(message)
    first, second = next_message(made), next_message(made)
    assert ([a.shard for a in first.adopts], [f.shard for f in first.frames]) == ([2], [1])
    assert ([a.shard for a in second.adopts], [f.shard for f in second.frames]) == ([1], [1])
    assert (first.number, second.number) == (1, 2)


async def test_too_much_that_waits_starts_the_stream_over_instead_of_growing() -> None:
    made, _, _ = link(queue_bytes_max=3000)
    for shard in range(10):
        made.send(frame(shard, 1000))
    assert made.statistics().overflows == 1
    assert made.statistics().queued_bytes <= 3000
    made._forget()
    assert made.statistics().queued_messages == 0
    assert not made._overflowed


async def test_nothing_is_queued_while_the_link_is_down() -> None:
    made, _, _ = link()
    made._process = None
    made.send(frame(1))
    assert made.statistics().queued_messages == 0


async def test_what_was_taken_makes_room_and_is_timed() -> None:
    made, events, clock = link()
    for shard in range(3):
        made.send(frame(shard))
        made._next_message()
    clock[0] = 0.5
    made._taken(2)
    assert events.taken == [500.0, 500.0]
    assert made.statistics().under_way == 1
    made._taken(2)
    assert made.statistics().under_way == 1


class Written:
    def __init__(self) -> None:
        self.messages: list = []

    async def write(self, message: object) -> None:
        self.messages.append(message)


async def written(act: Callable[[IncomingStream], None]) -> list:
    stream, context = IncomingStream(ME), Written()
    act(stream)
    writing = asyncio.ensure_future(stream.write_to(context))
    for _ in range(5):
        await asyncio.sleep(0)
    stream.close()
    await writing
    return context.messages


async def test_answers_that_wait_are_merged() -> None:
    def act(stream: IncomingStream) -> None:
        for end in (1, 5, 9):
            stream.answer(Ack(shard=ShardId(1), epoch=Epoch(1), end=Offset(end)))
        stream.answer(Ack(shard=ShardId(1), epoch=Epoch(2), end=Offset(3)))
        for promised in (4, 5):
            stream.answer(
                Expect(
                    shard=ShardId(2),
                    promised=Epoch(promised),
                    adopted=Epoch(1),
                    end=Offset(0),
                    refused_epoch=Epoch(1),
                )
            )
        stream.taken(3)
        stream.taken(2)

    (message,) = await written(act)
    assert [(ack.epoch, ack.end) for ack in message.acks] == [(1, 9), (2, 3)]
    assert [expect.promised for expect in message.expects] == [5]
    assert message.taken == 3


async def test_an_idle_stream_says_that_it_lives_once_a_period() -> None:
    (message,) = await written(lambda stream: stream.pulse())
    assert message.alive
    messages = await written(
        lambda stream: (stream.taken(1), setattr(stream, "_wrote", True), stream.pulse())
    )
    assert [message.alive for message in messages] == [False]


# ---------------------------------------------------------------------------------- round trips
class Wire:
    """Both ways of a stream: what is written waits, and answers are given by the test."""

    def __init__(self) -> None:
        self.written: list[replication_pb2.ReplicateRequest] = []
        self.answers: asyncio.Queue[replication_pb2.ReplicateResponse] = asyncio.Queue()

    async def write(self, message: replication_pb2.ReplicateRequest) -> None:
        self.written.append(message)

    async def read(self) -> replication_pb2.ReplicateResponse:
        return await self.answers.get()

    def done(self) -> bool:
        return False


class Listener:
    """Stands in for `Neighbours`: what was heard, and how."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def heard(self, process: ProcessId) -> None:
        self.told.append("heard")

    def answered(self, process: ProcessId, *, a_ping: bool) -> None:
        self.told.append("pong" if a_ping else "answer")


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_ping_a_second_measures_the_way_there_and_back() -> None:
    made, events, clock = link()
    made._neighbours = listener = Listener()
    wire = Wire()
    tasks = [
        asyncio.ensure_future(made._write(wire)),
        asyncio.ensure_future(made._read(wire, made._process)),
    ]

    async def second() -> None:
        for _ in range(4):
            made.pulse()
            await settled()

    await second()
    # Each asks whether it is heard; the last one is measured.
    assert [message.ping for message in wire.written] == [1, 2, 3, 4]
    ping = 4
    # Without an answer to any ping the other end may be of a version that knows none.
    clock[0] = 5.0
    await second()
    await wire.answers.put(replication_pb2.ReplicateResponse(pong=ping - 1))
    await settled()
    assert events.round_trips == []
    await wire.answers.put(replication_pb2.ReplicateResponse(pong=ping))
    await settled()
    assert events.round_trips == [5_000.0]
    await second()
    assert [message.ping for message in wire.written] == list(range(1, 13))
    # It answered before: a late answer is told while it is late.
    clock[0] = 5.75
    await second()
    assert events.round_trips[1:] == [750.0]
    assert made.statistics().round_trip_ms == 750.0
    assert listener.told == ["pong", "pong"]
    made._forget()
    assert made.statistics().round_trip_ms is None
    for task in tasks:
        task.cancel()


async def test_only_what_answers_proves_that_this_end_is_heard() -> None:
    made, _, _ = link()
    made._neighbours = listener = Listener()
    wire = Wire()
    task = asyncio.ensure_future(made._read(wire, made._process))
    for answer in (
        replication_pb2.ReplicateResponse(alive=True),
        replication_pb2.ReplicateResponse(taken=1),
        replication_pb2.ReplicateResponse(pong=1),
    ):
        await wire.answers.put(answer)
    await settled()
    assert listener.told == ["heard", "answer", "pong"]
    task.cancel()


async def test_frames_that_flow_need_no_ping_but_the_measured_one() -> None:
    made, _, _ = link()
    wire = Wire()
    task = asyncio.ensure_future(made._write(wire))
    for _ in range(4):
        made._wrote = True
        made.pulse()
        await settled()
    assert [message.ping for message in wire.written] == [1]
    task.cancel()


async def test_a_ping_is_answered_once_and_at_once() -> None:
    stream = IncomingStream(ME)
    stream.pinged(7)
    message = stream._next_message()
    assert message is not None
    assert message.pong == 7
    assert stream._next_message() is None
