"""Changes of shards travel together, and each gets its own outcome."""

import asyncio

from las.core.commands import Command, FenceSegment, Result
from las.core.rows import CHANGES_MAX, ChangeShards
from las.daemon.backlog import Backlog
from las.daemon.shard_changes import ShardChanges
from peerd.core.ids import Epoch, ShardId
from peerd.transport.status import Refused
from tests.las_core.builders import with_log
from tests.las_core.model_fleet import ModelFleet


def fence(shard: int, epoch: int = 1) -> FenceSegment:
    return FenceSegment(shard=ShardId(shard), epoch=Epoch(epoch), why="gone")


class Slow(ModelFleet):
    """Commits when it is let to."""

    def __init__(self, shards: int) -> None:
        super().__init__(with_log(rows=((0, 1, 2),) * shards))
        self.gate = asyncio.Event()
        self.sent: list[Command] = []

    async def submit(self, command: Command) -> Result:
        self.sent.append(command)
        await self.gate.wait()
        return await super().submit(command)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_the_first_leaves_at_once_and_those_behind_it_travel_together():
    fleet = Slow(20)
    async with asyncio.TaskGroup() as group:
        changes = ShardChanges(fleet, group)
        first = group.create_task(changes.submit(fence(1)))
        await turns()
        others = [group.create_task(changes.submit(fence(each))) for each in range(2, 21)]
        await turns()
        assert fleet.sent == [fence(1)]
        fleet.gate.set()
        assert (await first).epoch == 2
        assert [(await each).epoch for each in others] == [2] * 19
    assert [type(each) for each in fleet.sent] == [FenceSegment, ChangeShards]
    assert fleet.joined == [19]


async def test_a_thousand_take_two_commands():
    fleet = Slow(1_000)
    fleet.gate.set()
    async with asyncio.TaskGroup() as group:
        changes = ShardChanges(fleet, group)
        results = await asyncio.gather(*(changes.submit(fence(each)) for each in range(1, 1_001)))
    assert all(each.ok for each in results)
    assert fleet.joined == [CHANGES_MAX, 1_000 - CHANGES_MAX]


async def test_each_gets_its_own_refusal():
    fleet = Slow(3)
    fleet.gate.set()
    async with asyncio.TaskGroup() as group:
        changes = ShardChanges(fleet, group)
        found = await asyncio.gather(
            *(changes.submit(each) for each in (fence(1), fence(2, epoch=5), fence(3)))
        )
    assert [each.ok for each in found] == [True, False, True]


async def test_a_lost_leadership_is_told_to_all_and_the_next_ones_are_sent():
    fleet = Slow(3)
    fleet.gate.set()
    fleet.leading = False
    async with asyncio.TaskGroup() as group:
        changes = ShardChanges(fleet, group)
        found = await asyncio.gather(
            *(changes.submit(fence(each)) for each in (1, 2)), return_exceptions=True
        )
        assert [type(each) for each in found] == [Refused, Refused]
        fleet.leading = True
        assert (await changes.submit(fence(3))).ok


async def test_who_does_not_wait_any_more_holds_up_nobody():
    fleet = Slow(2)
    async with asyncio.TaskGroup() as group:
        changes = ShardChanges(fleet, group)
        gone = group.create_task(changes.submit(fence(1)))
        stays = group.create_task(changes.submit(fence(2)))
        await turns()
        gone.cancel()
        await turns()
        fleet.gate.set()
        assert (await stays).ok


def test_a_backlog_gives_the_most_urgent_first_and_each_once():
    backlog = Backlog()
    for shard, order in ((3, (1,)), (1, (2,)), (2, (1,)), (1, (0,)), (1, (0,))):
        backlog.add(ShardId(shard), order)
    assert len(backlog) == 3
    assert backlog.take(-1) == []
    assert backlog.take(2) == [1, 2]
    assert backlog.take(9) == [3]
    assert not backlog


def test_a_backlog_gives_only_what_is_urgent_if_it_is_asked_to():
    backlog = Backlog()
    for shard, order in ((3, (1, 5)), (1, (2,)), (2, (0, 9)), (4, (0, 7))):
        backlog.add(ShardId(shard), order)
    assert backlog.take(9, below=(1,)) == [4, 2]
    assert backlog.take(9, below=(1,)) == []
    assert backlog.take(9) == [3, 1]


def test_a_backlog_does_not_grow_by_what_changes_its_place():
    backlog = Backlog()
    for turn in range(10_000):
        backlog.add(ShardId(1), (turn % 2,))
    assert len(backlog._heap) < 100
    assert backlog.take(5) == [1]
