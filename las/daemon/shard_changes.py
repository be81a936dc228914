"""Joins what is to be committed for many shards: one command under way, the rest waits for it.

Invariants:
- Whoever submits gets the result of its own change, or the refusal of the command that it was in:
  then each change in it may be committed now or later, or not at all, as the refusal says.
- A change leaves at once if none is under way; those that come meanwhile travel together. So one
  shard waits for no other, and a thousand cost a few commits and not a thousand.
- A change that is alone is the plain command.

Bound: what waits is bounded by who waits, `RECOVERIES_MAX` of the executor.
"""

import asyncio

from las.core.commands import Command, Result
from las.core.many_shards import ShardChange, joined, result_of
from las.daemon.reconcile import Consensus
from peerd.transport.status import Refused

_Waiting = tuple[ShardChange, asyncio.Future[Result]]


class ShardChanges:
    """Used on the event loop. Changes that wait at the same time are of different shards."""

    def __init__(self, consensus: Consensus, group: asyncio.TaskGroup) -> None:
        """`group` runs what commits."""
        self._consensus = consensus
        self._group = group
        self._waiting: dict[type[ShardChange], list[_Waiting]] = {}
        self._committing = False

    async def submit(self, change: ShardChange) -> Result:
        """Commit a change; when this returns, the newest state shows it.

        Raises:
            peerd.transport.status.Refused: not the leader any more, or no outcome in time.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(type(change), []).append((change, future))
        if not self._committing:
            self._committing = True
            self._group.create_task(self._commit(), name="changes of shards")
        return await future

    async def _commit(self) -> None:
        """Commit until nobody waits, kind by kind in turn."""
        try:
            await asyncio.sleep(0)  # whoever submits in this turn of the loop travels along
            while self._waiting:
                kind = next(iter(self._waiting))
                waiting = self._waiting.pop(kind)
                command, taken = _command_of(waiting)
                if taken < len(waiting):
                    self._waiting[kind] = waiting[taken:]
                await self._commit_one(command, waiting[:taken])
        finally:
            self._committing = False

    async def _commit_one(self, command: Command, waiting: list[_Waiting]) -> None:
        try:
            result = await self._consensus.submit(command)
        except Refused as refused:
            for _, future in waiting:
                if not future.done():
                    future.set_exception(Refused(refused.refusal))
            return
        for (_, future), each in zip(waiting, _results(result, len(waiting)), strict=True):
            if not future.done():
                future.set_result(each)


def _command_of(waiting: list[_Waiting]) -> tuple[Command, int]:
    if len(waiting) == 1:
        return waiting[0][0], 1
    return joined([change for change, _ in waiting])


def _results(result: Result, count: int) -> list[Result]:
    """One for each change: what a plain command, or a command as a whole, was answered is all's."""
    if not result.each:
        return [result] * count
    return [result_of(each) for each in result.each]
