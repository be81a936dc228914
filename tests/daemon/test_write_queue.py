"""The order in which a host's operations reach the storage writer, and what runs before it."""

import asyncio
from pathlib import Path

import pytest

from peerd.core.durable import PromiseEpoch
from peerd.core.ids import Epoch, ShardId
from peerd.daemon.write_queue import WriteQueue
from peerd.storage.errors import StoreClosed, WriterOverloaded


def operation(fence):
    return PromiseEpoch(shard=ShardId(1), fence=Epoch(fence), epoch=Epoch(0))


class FakeStore:
    """Notes what it is told; has room for `room` operations, or is closed."""

    def __init__(self, told, room=100):
        self.told = told
        self.room = room
        self.closed = False

    def submit(self, operation, token, *, wake):
        if self.closed:
            raise StoreClosed(Path("store"))
        if self.room == 0:
            raise WriterOverloaded(queued_bytes=1, queue_bytes_max=1)
        self.room -= 1
        self.told.append((int(operation.fence), wake))

    def wake_writer(self):
        self.told.append("woken")


async def woken(event, told):
    await event.wait()
    told.append("frame left")


async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_task_that_is_woken_in_the_same_turn_runs_before_the_writer():
    told = []
    queue = WriteQueue(FakeStore(told), asyncio.get_running_loop())
    event = asyncio.Event()
    stream = asyncio.create_task(woken(event, told))
    await turns(1)
    queue.submit(operation(1), None, frames_first=True)
    queue.submit(operation(2), None, frames_first=True)
    event.set()
    await turns(3)
    assert told == [(1, False), (2, False), "frame left", "woken"]
    await stream


async def test_where_no_frame_leaves_the_writer_begins_at_once():
    told = []
    queue = WriteQueue(FakeStore(told), asyncio.get_running_loop())
    queue.submit(operation(1), None)
    assert told == [(1, True)]


async def test_each_turn_wakes_the_writer_anew():
    told = []
    queue = WriteQueue(FakeStore(told), asyncio.get_running_loop())
    for fence in (1, 2):
        queue.submit(operation(fence), None, frames_first=True)
        await turns(3)
    assert told == [(1, False), "woken", (2, False), "woken"]


async def test_what_has_no_room_waits_in_order():
    told = []
    store = FakeStore(told, room=1)
    queue = WriteQueue(store, asyncio.get_running_loop())
    for fence in (1, 2, 3):
        queue.submit(operation(fence), None)
    assert queue.is_full
    assert told == [(1, True)]
    store.room = 1
    queue.submit_again()
    assert told == [(1, True), (2, True)]
    # One that would have room now may not pass those before it.
    store.room = 2
    queue.submit(operation(4), None, frames_first=True)
    assert queue.is_full
    queue.submit_again()
    queue.submit_again()
    store.room = 9
    queue.submit_again()
    assert told == [(1, True), (2, True), (3, True), (4, True)]
    assert not queue.is_full
    assert queue.submitted == 4


async def test_a_closed_store_is_told():
    store = FakeStore([])
    store.closed = True
    queue = WriteQueue(store, asyncio.get_running_loop())
    with pytest.raises(StoreClosed):
        queue.submit(operation(1), None)
