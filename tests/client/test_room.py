"""Room for unanswered bytes is given in the order in which it was asked for."""

import asyncio

from peerd.client.appending import Room


async def test_who_comes_while_others_are_let_in_stands_behind_them():
    room = Room(10)
    room.take(10)
    overtaken = []

    async def first():
        await room.wait_for(4)
        room.take(4)
        # The second one has not run since the gate was opened for it.
        overtaken.append(room.fits(1))

    async def second():
        await room.wait_for(4)
        room.take(4)

    waiting = [asyncio.create_task(first()), asyncio.create_task(second())]
    await asyncio.sleep(0)
    assert not room.fits(1)
    room.give(10)
    await asyncio.gather(*waiting)
    assert overtaken == [False]
    assert room.fits(1)


async def test_who_gave_up_waiting_holds_nobody_back():
    room = Room(10)
    room.take(10)
    waiting = asyncio.create_task(room.wait_for(4))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    room.give(10)
    assert room.fits(10)
