"""The two ways to put load on a cluster: closed loops that wait for each answer, and an open loop
that sends when it is time, whatever the answers do.

The clock and the pause between looks at it are given, so that tests decide what time it is.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from peerd.bench.account import Account, Schedule
from peerd.client.errors import PeerdError

Append = Callable[[], Awaitable[object]]

# limit: appends of an open loop that wait for their answers at once; beyond it the loop waits, and
# what it sends late still counts from its intended moment
OPEN_LOOP_UNANSWERED_MAX = 50_000
# The open loop looks at the clock this often: what has become due meanwhile leaves together.
PACE_S = 0.001
# A closed loop whose append failed waits this long, or errors that come at once would be a flood.
AFTER_ERROR_S = 0.020


async def closed_loop(
    append: Append,
    account: Account,
    in_flight: int,
    *,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Keep `in_flight` appends under way until the run of `account` is over, and await them."""

    async def one() -> None:
        begun_s = clock()
        while begun_s < account.end_s:
            try:
                await append()
            except PeerdError as error:
                account.failed(begun_s, error)
                await pause(AFTER_ERROR_S)
                begun_s = clock()
            else:
                ended_s = clock()
                account.succeeded(begun_s, ended_s)
                begun_s = ended_s

    await asyncio.gather(*(one() for _ in range(in_flight)))
    account.finish()


async def open_loop(
    append: Append,
    account: Account,
    schedule: Schedule,
    *,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Send each append of `schedule` when it is due, and await them all."""
    room = asyncio.Semaphore(OPEN_LOOP_UNANSWERED_MAX)
    under_way: set[asyncio.Task[None]] = set()

    async def one(intended_s: float) -> None:
        try:
            await append()
        except PeerdError as error:
            account.failed(intended_s, error)
        else:
            account.succeeded(intended_s, clock())
        finally:
            room.release()

    while not schedule.is_over:
        while (intended_s := schedule.take(clock())) is not None:
            await room.acquire()
            task = asyncio.create_task(one(intended_s))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await pause(PACE_S)
    await asyncio.gather(*under_way)
    account.finish()
