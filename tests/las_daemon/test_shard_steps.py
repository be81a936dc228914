"""Steps of planned changes travel together, each with its own outcome, where all know how."""

import asyncio
from contextlib import asynccontextmanager

from las.core.commands import (
    Command,
    DropHolder,
    PrepareSegment,
    PrepareSplit,
    RaiseCommandLevel,
    Result,
    SegmentOpened,
    WithdrawSegment,
)
from las.core.rows import CHANGES_MAX, StepShards
from las.daemon.shard_steps import PLAIN_MAX, ShardSteps
from peerd.core.errors import Reason
from peerd.core.ids import Epoch, Offset, ShardId
from peerd.transport.status import Refused
from tests.las_core.builders import plan_of, process, replica, with_log
from tests.las_core.model_fleet import ModelFleet


def prepare(shard: int, epoch: int = 1) -> PrepareSegment:
    return PrepareSegment(shard=ShardId(shard), epoch=Epoch(epoch), plan=plan_of(1, 1, 2, 4))


class Slow(ModelFleet):
    """Commits when it is let to."""

    def __init__(self, shards: int, *, level: int = 2) -> None:
        super().__init__(with_log(rows=((0, 1, 2),) * shards))
        if level > 1:
            self.commit(RaiseCommandLevel(level=level))
        self.hold_reports = True
        self.gate = asyncio.Event()
        self.sent: list[Command] = []
        self.under_way = self.under_way_max = 0

    async def submit(self, command: Command) -> Result:
        self.sent.append(command)
        self.under_way += 1
        self.under_way_max = max(self.under_way, self.under_way_max)
        try:
            await self.gate.wait()
            return await super().submit(command)
        finally:
            self.under_way -= 1


@asynccontextmanager
async def stepping(fleet: Slow):
    steps = ShardSteps(fleet)
    running = asyncio.create_task(steps.run())
    try:
        yield steps
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def turns(count: int = 9) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_the_first_leaves_at_once_and_those_behind_it_travel_together():
    fleet = Slow(20)
    async with stepping(fleet) as steps:
        first = asyncio.create_task(steps.submit(prepare(1)))
        await turns()
        others = [asyncio.create_task(steps.submit(prepare(each))) for each in range(2, 21)]
        await turns()
        assert fleet.sent == [prepare(1)]
        fleet.gate.set()
        assert (await first).epoch == 2
        assert [(await each).epoch for each in others] == [2] * 19
    assert [type(each) for each in fleet.sent] == [PrepareSegment, StepShards]


async def test_a_thousand_take_two_commands_one_after_the_other_the_oldest_first():
    fleet = Slow(1_000)
    fleet.gate.set()
    async with stepping(fleet) as steps:
        results = await asyncio.gather(*(steps.submit(prepare(each)) for each in range(1, 1_001)))
    assert all(each.ok for each in results)
    assert [len(each.prepared) for each in fleet.sent] == [CHANGES_MAX, 1_000 - CHANGES_MAX]
    assert fleet.sent[0].prepared[0][0] == 1
    assert fleet.under_way_max == 1


async def test_each_gets_its_own_outcome_and_a_second_step_of_a_shard_waits_for_the_first():
    fleet = Slow(3)
    fleet.gate.set()
    withdraw = WithdrawSegment(shard=ShardId(1), epoch=Epoch(2), declined_by=process(1))
    async with stepping(fleet) as steps:
        found = await asyncio.gather(
            *(steps.submit(each) for each in (prepare(1), withdraw, prepare(2, 7), prepare(3)))
        )
    assert [each.ok for each in found] == [True, True, False, True]
    assert [type(each) for each in fleet.sent] == [StepShards, WithdrawSegment]


async def test_a_split_is_given_by_itself_and_nothing_of_its_shard_overtakes_it():
    fleet = Slow(3)
    split = PrepareSplit(shard=ShardId(1), epoch=Epoch(1), key_hash=9, plan=plan_of(1, 1, 2, 3))
    fleet.commit(split)
    opened = SegmentOpened(shard=ShardId(1), epoch=Epoch(2), begin=Offset(5), holders=(replica(1),))
    lost = DropHolder(shard=ShardId(1), epoch=Epoch(1), holder=replica(1))
    fleet.gate.set()
    async with stepping(fleet) as steps:
        found = await asyncio.gather(
            *(steps.submit(each) for each in (prepare(2), opened, lost, prepare(3)))
        )
    assert all(each.ok for each in found)
    assert fleet.sent[1:] == [opened, lost]
    assert fleet.state.shards[ShardId(1)].shard.sealed[0].holders == ()


async def test_while_a_member_does_not_know_it_steps_go_one_by_one_and_few_at_a_time():
    fleet = Slow(3 * PLAIN_MAX, level=1)
    async with stepping(fleet) as steps:
        all_of_them = [
            asyncio.create_task(steps.submit(prepare(each))) for each in range(1, 3 * PLAIN_MAX + 1)
        ]
        await turns()
        assert len(fleet.sent) == PLAIN_MAX
        fleet.gate.set()
        assert all([(await each).ok for each in all_of_them])
    assert {type(each) for each in fleet.sent} == {PrepareSegment}
    assert fleet.under_way_max == PLAIN_MAX


async def test_a_refused_command_is_told_to_all_in_it_and_the_next_ones_are_sent():
    fleet = Slow(3)
    fleet.gate.set()
    fleet.leading = False
    async with stepping(fleet) as steps:
        found = await asyncio.gather(
            *(steps.submit(prepare(each)) for each in (1, 2)), return_exceptions=True
        )
        assert [type(each) for each in found] == [Refused, Refused]
        fleet.leading = True
        assert (await steps.submit(prepare(3))).ok


async def test_the_end_of_the_term_leaves_nobody_waiting():
    fleet = Slow(4)
    async with stepping(fleet) as steps:
        under_way = asyncio.create_task(steps.submit(prepare(1)))
        await turns()
        waits = asyncio.create_task(steps.submit(prepare(2)))
        await turns()
    late = asyncio.create_task(steps.submit(prepare(3)))
    for refused in await asyncio.gather(under_way, waits, late, return_exceptions=True):
        assert isinstance(refused, Refused)
        assert refused.refusal.reason == Reason.LAS_UNAVAILABLE


async def test_who_does_not_wait_any_more_holds_up_nobody():
    fleet = Slow(3)
    async with stepping(fleet) as steps:
        first = asyncio.create_task(steps.submit(prepare(1)))
        await turns()
        gone = asyncio.create_task(steps.submit(prepare(2)))
        stays = asyncio.create_task(steps.submit(prepare(3)))
        await turns()
        gone.cancel()
        await turns()
        fleet.gate.set()
        assert (await first).ok
        assert (await stays).ok
    assert fleet.state.shards[ShardId(2)].shard.prepared is None
