"""Joins steps of planned changes into few commands: what a mass take-over sets off, and its echo.

A dead peer with a thousand shards makes thousands of `PrepareSegment`, `SegmentOpened`,
`WithdrawSegment`, `WantHolders` and `AddHolder`, from the planner and from all other peers. As
commands of their own they fill the consensus group's queue, and what a shard without a primary
needs waits behind them.

Invariants:
- Whoever submits gets the result of its own step, or the refusal of the command that it was in:
  then each step in it may be committed now or later, or not at all. Nothing is kept here that the
  next leader would need: the planner finds again what is due, and peers say again what they saw.
- One command is under way, the oldest steps first; those that come meanwhile travel in the next.
- Of one shard one step is under way: the next is given when the one before is answered.
- A step that is alone, or must not be joined, is the plain command; so is every step while a member
  of the group does not know commands for many (docs/protocol.md §4.7), `PLAIN_MAX` at a time.

Bound: what waits is bounded by who waits: the executor's `TASKS_MAX`, and `REPORTS_PER_CALL_MAX`
for each peer.
"""

import asyncio
from collections.abc import Sequence

from las.core.commands import Result
from las.core.levels import level_of
from las.core.many_shards import result_of
from las.core.many_steps import ShardStep, joined_steps, may_join
from las.core.rows import CHANGES_MAX, StepShards
from las.core.state import ClusterState
from las.daemon.reconcile import Consensus
from peerd.core.errors import Reason, Taken
from peerd.core.ids import ShardId
from peerd.transport.status import Refused, refusal

# limit: plain commands under way at a time where steps may not be joined.
PLAIN_MAX = 64

_Waiting = tuple[ShardStep, asyncio.Future[Result]]


class ShardSteps:
    """The steps of one term. Used on the event loop, on which `run` runs while the term lasts."""

    def __init__(self, consensus: Consensus) -> None:
        self._consensus = consensus
        self._waiting: list[_Waiting] = []
        self._under_way: list[_Waiting] = []
        self._over = False
        self._some = asyncio.Event()

    async def submit(self, step: ShardStep) -> Result:
        """Commit a step; when this returns, the newest state shows it.

        Raises:
            peerd.transport.status.Refused: not the leader any more, or no outcome in time.
        """
        if self._over:
            raise _ended()
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((step, future))
        self._some.set()
        return await future

    async def run(self) -> None:
        """Commit what waits and what comes, until it is cancelled; then nothing is left to wait."""
        try:
            while True:
                await self._some.wait()
                await asyncio.sleep(0)  # whoever submits in this turn of the loop travels along
                await self._commit_some()
                if not self._waiting:
                    self._some.clear()
        finally:
            self._over = True
            for _, future in (*self._under_way, *self._waiting):
                _refuse(future, _ended())

    async def _commit_some(self) -> None:
        """The oldest steps that fit into one command, or the plain commands that take its place."""
        # Who gave up is not committed for: nobody would look at the outcome.
        waiting = [each for each in self._waiting if not each[1].done()]
        state, _ = self._consensus.indexed()
        may_use = state.command_level >= level_of(StepShards())
        if may_use and waiting and may_join(state, waiting[0][0]):
            first = _joinable(state, waiting[: 2 * CHANGES_MAX])
            command, numbers = joined_steps(step for step, _ in first)
            taken = [first[number] for number in numbers]
        else:
            command, taken = None, _of_different_shards(waiting, PLAIN_MAX if not may_use else 1)
        gone = {id(future) for _, future in taken}
        self._waiting = [each for each in waiting if id(each[1]) not in gone]
        self._under_way = taken
        if command is not None and len(taken) > 1:
            await self._commit_joined(command, taken)
        else:
            await asyncio.gather(*(self._commit_plain(*each) for each in taken))
        self._under_way = []

    async def _commit_joined(self, command: StepShards, taken: Sequence[_Waiting]) -> None:
        try:
            result = await self._consensus.submit(command)
        except Refused as refused:
            for _, future in taken:
                _refuse(future, refused)
            return
        each_of = [result_of(each) for each in result.each] or [result] * len(taken)
        for (_, future), each in zip(taken, each_of, strict=True):
            _answer(future, each)

    async def _commit_plain(self, step: ShardStep, future: asyncio.Future[Result]) -> None:
        try:
            _answer(future, await self._consensus.submit(step))
        except Refused as refused:
            _refuse(future, refused)


def _joinable(state: ClusterState, waiting: Sequence[_Waiting]) -> list[_Waiting]:
    """Those that may travel together; none overtakes an older one of its shard that may not."""
    found: list[_Waiting] = []
    alone: set[ShardId] = set()
    for each in waiting:
        if each[0].shard not in alone and may_join(state, each[0]):
            found.append(each)
        else:
            alone.add(each[0].shard)
    return found


def _of_different_shards(waiting: Sequence[_Waiting], count: int) -> list[_Waiting]:
    found: dict[int, _Waiting] = {}
    for each in waiting:
        if len(found) >= count:
            break
        found.setdefault(each[0].shard, each)
    return list(found.values())


def _ended() -> Refused:
    text = "this LAS node leads no longer; what was asked for may be done all the same: look"
    return Refused(refusal(Reason.LAS_UNAVAILABLE, text, taken=Taken.UNKNOWN))


def _answer(future: asyncio.Future[Result], result: Result) -> None:
    if not future.done():
        future.set_result(result)


def _refuse(future: asyncio.Future[Result], refused: Refused) -> None:
    if not future.done():
        future.set_exception(Refused(refused.refusal))
