"""Two small things that everything which waits at the edge needs."""

import asyncio


def is_cancelled() -> bool:
    """Whether somebody ends this very task, and not only the call that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def wait_for(event: asyncio.Event, timeout_s: float) -> None:
    """Returns when `event` is set, or after `timeout_s` seconds: time to look again either way."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
