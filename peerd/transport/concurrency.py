"""Coroutines that make sense only together, and what a stream's end looks like to its writer."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

import grpc.aio

Request = TypeVar("Request")
Response = TypeVar("Response")

# Between two cancellations of a work that does not end. Seconds; most end at once.
CANCEL_AGAIN_S = 0.1


class CallOver(Exception):
    """The call ended before it was written to; the reading side learns why."""


async def write_to(call: "grpc.aio.StreamStreamCall[Request, Response]", message: Request) -> None:
    """Write `message` to a stream that this process dialled.

    Raises:
        CallOver: the call has ended meanwhile, which grpc.aio calls an invalid state.
        AioRpcError: it ends just now.
    """
    try:
        await call.write(message)
    except asyncio.InvalidStateError as error:
        raise CallOver(str(error)) from error


async def first_ended(*works: Coroutine[None, None, None]) -> None:
    """Run `works` side by side until one ends; end the others, then return or raise as it did.

    For the two directions of a stream, say. Cancelled, it cancels them all.

    A work may lose its cancellation: a unary call of grpc.aio whose deadline has just passed raises
    DEADLINE_EXCEEDED in its place, and who tries again upon that goes on. So it is cancelled until
    it ends.
    """
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(work) for work in works]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        pending = set(tasks)
        while pending:
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)
        for task in tasks:
            # Asked for, so that asyncio does not tell of what nobody waits for.
            if not task.cancelled():
                task.exception()
    for task in tasks:
        if task in ended:
            task.result()
