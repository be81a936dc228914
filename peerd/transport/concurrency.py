"""Coroutines that make sense only together."""

import asyncio
from collections.abc import Coroutine


async def first_ended(*works: Coroutine[None, None, None]) -> None:
    """Run `works` side by side until one ends; end the others, then return or raise as it did.

    For the two directions of a stream, say. Cancelled, it cancels them all.
    """
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(work) for work in works]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if task in ended:
            task.result()
