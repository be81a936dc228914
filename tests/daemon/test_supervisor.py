"""A task that dies is told by name; appointments ring once, in time."""

import asyncio

import pytest

from peerd.core.ids import ShardId, Tick
from peerd.daemon.supervisor import Supervisor
from peerd.daemon.timetable import Timetable
from peerd.transport.concurrency import first_ended
from tests.daemon.fleet import until


async def returns() -> None:
    return


async def fails() -> None:
    raise ValueError("broken")


async def lasts() -> None:
    await asyncio.Event().wait()


async def test_an_exception_in_any_task_is_the_failure() -> None:
    supervisor = Supervisor()
    supervisor.start("endless", lasts())
    supervisor.spawn("short", fails())
    failure = await supervisor.failed()
    assert failure.name == "short"
    assert isinstance(failure.__cause__, ValueError)
    assert await supervisor.stop(timeout_s=1) == ()
    assert supervisor.task_count == 0


async def test_work_that_never_ends_must_not_return_but_a_spawned_one_may() -> None:
    supervisor = Supervisor()
    supervisor.spawn("short", returns())
    await until(lambda: supervisor.task_count == 0, "it ended")
    supervisor.start("endless", returns())
    assert "its work never ends" in str(await supervisor.failed())


async def test_a_task_that_does_not_end_is_named() -> None:
    supervisor = Supervisor()
    release = asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                pass

    supervisor.start("stubborn", stubborn())
    await asyncio.sleep(0)
    assert await supervisor.stop(timeout_s=0.01) == ("stubborn",)
    release.set()


async def test_parts_that_belong_together_end_together() -> None:
    cancelled = []

    async def other_half() -> None:
        try:
            await lasts()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    with pytest.raises(ValueError, match="broken"):
        await first_ended(fails(), other_half())
    await first_ended(returns(), other_half())
    assert cancelled == [True, True]


@pytest.mark.timeout(20)
async def test_a_part_that_loses_its_cancellation_is_cancelled_again() -> None:
    """As a call of grpc.aio does whose deadline has passed at the same moment."""
    lost = []

    async def tries_again() -> None:
        while True:
            try:
                await lasts()
            except asyncio.CancelledError:
                if len(lost) == 2:
                    raise
                lost.append(True)

    with pytest.raises(ValueError, match="broken"):
        await first_ended(fails(), tries_again())
    assert lost == [True, True]


async def test_appointments_ring_once_at_the_earliest_wish() -> None:
    rung: list[tuple[int, int]] = []
    timetable = Timetable(lambda shard, now: rung.append((shard, now)))
    begin = timetable.now()
    timetable.wake(ShardId(1), Tick(begin + 20))
    timetable.wake(ShardId(1), Tick(begin + 60_000))
    timetable.wake(ShardId(2), Tick(begin + 5))
    timetable.wake(ShardId(3), None)
    await until(lambda: len(rung) == 2, "both rang")
    assert [shard for shard, _ in rung] == [2, 1]
    assert all(now >= begin + due for (_, now), due in zip(rung, (5, 20), strict=True))
    timetable.stop()


async def test_an_appointment_made_while_ringing_is_kept() -> None:
    rung: list[int] = []

    def ring(shard: ShardId, now: Tick) -> None:
        rung.append(now)
        if len(rung) < 3:
            timetable.wake(shard, now)

    timetable = Timetable(ring)
    timetable.wake(ShardId(1), timetable.now())
    await until(lambda: len(rung) == 3, "it rang three times")
    timetable.stop()
    timetable.wake(ShardId(1), timetable.now())
    await asyncio.sleep(0)
    assert len(rung) == 3
