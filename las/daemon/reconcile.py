"""Brings one shard to where the committed map says it must get: the steps of docs/protocol.md §4.2.

Invariants:
- *Only committed state is acted on.* Each step looks at the newest state, and each command names
  what it expects; a leader that was deposed meanwhile, or a racing one, changes nothing.
- *A standing fence is always finished*, by whoever leads: `recover` begins anew from the fence that
  stands, and asking again is harmless, since stores answer the same again.
- *Answers are counted for the fence they were given to*, and kept only while it stands.

Nothing here is kept between two leaders. Must not decide where a segment ends, nor who gets what:
`las.core.recovery` and `las.core.planner` do.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from las.core.commands import (
    Command,
    FenceSegment,
    OpenSegment,
    Reason,
    Result,
    SegmentOpened,
)
from las.core.index import FleetIndex
from las.core.many_shards import ShardChange
from las.core.placement import Placement
from las.core.planner import recovery_plan
from las.core.recovery import (
    Answer,
    Contradiction,
    EpochAnswer,
    Recovered,
    decide,
    voters_to_ask,
)
from las.core.state import ClusterState, NodeState, ShardEntry
from peerd.core.ids import NO_EPOCH, Epoch, NodeName, Offset, ProcessId, ReplicaId, ShardId
from peerd.core.shard_map import Shard

# limit: promises asked of one peer in one call; a call of that size is some 20 KB.
PROMISES_PER_CALL_MAX = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class PromiseOrder:
    """Promise `fence`, and say what is stored of `epoch` and of `prepared` (0 = none)."""

    shard: ShardId
    fence: Epoch
    epoch: Epoch
    prepared: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Promised:
    """The durable answer to one order. `promised` above the fence: nothing was promised to it."""

    shard: ShardId
    promised: Epoch
    open: EpochAnswer
    prepared: EpochAnswer


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """Whether the primary of a prepared segment has begun it; then what `SegmentOpened` tells."""

    begun: bool
    begin: Offset
    holders: tuple[ReplicaId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """For how many milliseconds a witness has not heard a suspect; None: it has no stream to it."""

    silent_ms: int | None


class PeerCalls(Protocol):
    """Calls to peers. Each has its own deadline and raises nothing: None is *no usable answer*.

    An answer that comes from another store than the one that was asked is no usable answer.
    """

    async def promise(
        self, target: ReplicaId, orders: Sequence[PromiseOrder]
    ) -> Sequence[Promised] | None:
        """Have a store make promises; its answers in the order of `orders`."""
        ...

    async def has_begun(self, target: ProcessId, shard: ShardId, epoch: Epoch) -> Begun | None:
        """Ask the primary of a prepared segment whether it has begun."""
        ...

    async def hears(self, witness: NodeName, suspect: NodeName) -> Heard | None:
        """Ask a node when it heard another one last."""
        ...

    async def responds(self, target: ProcessId, within_ms: int) -> bool:
        """Whether a process answers within that time; what it is asked costs it nothing."""
        ...


class Consensus(Protocol):
    """The LAS group as the leader's works need it."""

    async def submit(self, command: Command) -> Result:
        """Commit a command; when this returns, `indexed` shows it.

        Raises:
            peerd.transport.status.Refused: not the leader any more, or no outcome in time.
        """
        ...

    def indexed(self) -> tuple[ClusterState, FleetIndex]:
        """The newest applied state with an index of it; the next call changes the index."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryTiming:
    """In milliseconds.

    Attributes:
        answer_grace_ms: how long a possible decision waits for answers of nodes that are up: each
            may be one more holder, which saves a copy.
        retry_ms: pause before silent voters, or a plan without enough nodes, are tried again.
        retry_ms_max: bound of a silent voter's pause, which doubles; a process that comes back is
            asked at once, so this delays only answers of the same process.
    """

    answer_grace_ms: int = 30
    retry_ms: int = 100
    retry_ms_max: int = 1_000


class _Rests:
    """Who is left alone for a while, since it did not answer: longer each time, per process."""

    def __init__(self, timing: RecoveryTiming) -> None:
        self._timing = timing
        self._rests: dict[ReplicaId, tuple[ProcessId, float, float]] = {}

    def silent(self, voter: ReplicaId, process: ProcessId, now_s: float) -> None:
        """`process`, which runs on the store of `voter`, gave no answer."""
        before = self._rests.get(voter)
        rest_s = self._timing.retry_ms / 1000
        if before is not None and before[0] == process:
            rest_s = min(2 * before[1], self._timing.retry_ms_max / 1000)
        self._rests[voter] = (process, rest_s, now_s + rest_s)

    def rested(self, voter: ReplicaId, process: ProcessId, now_s: float) -> bool:
        """Whether it may be asked: it never was, has restarted since, or has rested."""
        rest = self._rests.get(voter)
        return rest is None or rest[0] != process or now_s >= rest[2]


class PromiseBatcher:
    """Joins promises for the same store into calls: one call under way per store, none waits idle.

    A node's death concerns all its shards at once; a call each would be thousands.
    """

    def __init__(self, peers: PeerCalls, group: asyncio.TaskGroup) -> None:
        self._peers = peers
        self._group = group
        self._waiting: dict[
            ReplicaId, list[tuple[PromiseOrder, asyncio.Future[Promised | None]]]
        ] = {}
        self._calling: set[ReplicaId] = set()

    def ask(self, target: ReplicaId, order: PromiseOrder) -> asyncio.Future[Promised | None]:
        """The answer of `target`, or None if there is none in time."""
        future: asyncio.Future[Promised | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(target, []).append((order, future))
        if target not in self._calling:
            self._calling.add(target)
            self._group.create_task(self._call(target), name=f"promises of {target.peer}")
        return future

    async def _call(self, target: ReplicaId) -> None:
        """Call until nobody waits. The first call leaves at once, the next ones take who waits."""
        try:
            await asyncio.sleep(0)  # whoever asks in this turn of the loop travels in one call
            while waiting := self._waiting.pop(target, []):
                now, later = waiting[:PROMISES_PER_CALL_MAX], waiting[PROMISES_PER_CALL_MAX:]
                if later:
                    self._waiting[target] = later
                answers = await self._peers.promise(target, [order for order, _ in now])
                usable = answers if answers is not None and len(answers) == len(now) else None
                for at, (order, future) in enumerate(now):
                    answer = None if usable is None else usable[at]
                    if not future.done():
                        known = answer is not None and answer.shard == order.shard
                        future.set_result(answer if known else None)
        finally:
            self._calling.discard(target)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt to bring a shard forward ended, in words; `opened` tells of a new primary."""

    text: str
    opened: ProcessId | None = None


class ShardGone(Exception):
    """The shard's log was deleted meanwhile: there is nothing to be done for it any more."""


def entry_of(state: ClusterState, shard: ShardId) -> ShardEntry:
    """The entry of a shard that was there a moment ago. Raises `ShardGone`."""
    entry = state.shards.get(shard)
    if entry is None:
        raise ShardGone(f"shard {shard} was deleted with its log")
    return entry


class Recovery:
    """Finishes prepared and fenced segments whose primary is gone. Used on the event loop."""

    def __init__(
        self,
        *,
        consensus: Consensus,
        change: Callable[[ShardChange], Awaitable[Result]],
        peers: PeerCalls,
        promises: PromiseBatcher,
        timing: RecoveryTiming,
        placement: Callable[[], Placement],
        is_silent: Callable[[ProcessId], bool] = lambda _: False,
    ) -> None:
        """`change` commits like `consensus.submit`, together with other shards' changes.

        `placement` gives one of the newest state, or a little older; `is_silent` says of which
        processes it is known that they do not answer in time.
        """
        self._consensus = consensus
        self._change = change
        self._peers = peers
        self._promises = promises
        self._timing = timing
        self._placement = placement
        self._is_silent = is_silent

    async def recover(self, shard: ShardId, why: str) -> Outcome:
        """Unplanned change of one shard, from wherever it stands.

        Raises:
            peerd.transport.status.Refused: the leadership is lost or in doubt; a leader goes on.
            ShardGone: its log was deleted.
        """
        entry = self._shard(shard)
        if entry.fence == NO_EPOCH:
            if entry.prepared is not None and await self.confirm_begun(shard):
                return Outcome(text="the prepared segment had begun")
            entry = self._shard(shard)
            fenced = await self._change(
                FenceSegment(
                    shard=shard,
                    epoch=entry.open.epoch,
                    prepared=NO_EPOCH if entry.prepared is None else entry.prepared.epoch,
                    why=why,
                )
            )
            if not fenced.ok:
                return Outcome(text=f"not fenced: {fenced.text}")
        return await self._finish_fence(shard, self._shard(shard).fence)

    async def confirm_begun(self, shard: ShardId) -> bool:
        """Ask the primary of the prepared segment whether it has begun, and commit it if so.

        One that is known to be gone, or not to answer, is not asked, since waiting for its silence
        costs a pause: had it begun, the fence finds what it acknowledged.
        """
        state, _ = self._consensus.indexed()
        prepared = entry_of(state, shard).shard.prepared
        if prepared is None or not is_running(state, prepared.plan.primary):
            return False
        if self._is_silent(prepared.plan.primary):
            return False
        answer = await self._peers.has_begun(prepared.plan.primary, shard, prepared.epoch)
        if answer is None or not answer.begun:
            return False
        result = await self._consensus.submit(
            SegmentOpened(
                shard=shard, epoch=prepared.epoch, begin=answer.begin, holders=answer.holders
            )
        )
        return result.ok

    async def _finish_fence(self, shard: ShardId, fence: Epoch) -> Outcome:
        """Ask, decide and open until it is done, whatever it takes; `fence` is the standing one."""
        answers: dict[ReplicaId, Answer] = {}
        while True:
            recovered = await self._answered(shard, fence, answers)
            if isinstance(recovered, Outcome):
                return recovered
            state, _ = self._consensus.indexed()
            entry = entry_of(state, shard)
            if entry.halted or entry.shard.fence != fence:
                return Outcome(text="finished elsewhere")
            plan = recovery_plan(
                state,
                self._placement(),
                shard=shard,
                recovered=recovered,
                answered=frozenset(answers),
            )
            if plan is not None:
                result = await self._change(
                    OpenSegment(
                        shard=shard,
                        fence=fence,
                        plan=plan,
                        ended=recovered.ended,
                        ended_prepared=recovered.ended_prepared,
                    )
                )
                if result.ok:
                    return Outcome(text=f"opened at {recovered.begin}", opened=plan.primary)
                if result.reason is not Reason.INVALID_ARGUMENT:
                    return Outcome(text=f"not opened: {result.text}")
            # Too few nodes, or one of the plan has restarted meanwhile: plan again a little later.
            await asyncio.sleep(self._timing.retry_ms / 1000)

    async def _answered(
        self, shard: ShardId, fence: Epoch, answers: dict[ReplicaId, Answer]
    ) -> Recovered | Outcome:
        """Collect answers into `answers` until they allow a decision, and a little longer."""
        asking: dict[ReplicaId, asyncio.Future[Promised | None]] = {}
        rests = _Rests(self._timing)
        loop = asyncio.get_running_loop()
        retry_s = self._timing.retry_ms / 1000
        while True:
            state, _ = self._consensus.indexed()
            found = entry_of(state, shard)
            entry = found.shard
            if found.halted or entry.fence != fence:
                return Outcome(text="finished elsewhere")
            for voter in voters_to_ask(entry):
                if voter in answers or voter in asking:
                    continue
                if rests.rested(voter, state.nodes[voter.peer].process, loop.time()):
                    asking[voter] = self._promises.ask(voter, order_of(entry))
            if asking:
                await asyncio.wait(
                    asking.values(), timeout=retry_s, return_when=asyncio.FIRST_COMPLETED
                )
            else:
                await asyncio.sleep(retry_s)
            for voter in _collect(asking, answers):
                rests.silent(voter, state.nodes[voter.peer].process, loop.time())
            decision = decide(entry, answers.values())
            if isinstance(decision, Contradiction):
                return await self._halt(entry, decision)
            if isinstance(decision, Recovered):
                await self._wait_for_more(asking)
                _collect(asking, answers)
                final = decide(entry, answers.values())
                if isinstance(final, Contradiction):
                    return await self._halt(entry, final)
                return final if isinstance(final, Recovered) else decision

    async def _wait_for_more(
        self, asking: Mapping[ReplicaId, asyncio.Future[Promised | None]]
    ) -> None:
        """Wait for answers under way of nodes that are up, within the grace."""
        state, _ = self._consensus.indexed()
        likely = [
            future
            for replica, future in asking.items()
            if state.nodes[replica.peer].state is NodeState.UP
        ]
        if likely:
            await asyncio.wait(likely, timeout=self._timing.answer_grace_ms / 1000)

    async def _halt(self, entry: Shard, found: Contradiction) -> Outcome:
        """Stop changing the shard: a person must look."""
        result = await self._consensus.submit(found.halt(entry))
        return Outcome(text=f"halted: {found.why}" if result.ok else f"not halted: {result.text}")

    def _shard(self, shard: ShardId) -> Shard:
        state, _ = self._consensus.indexed()
        return entry_of(state, shard).shard


def is_running(state: ClusterState, process: ProcessId) -> bool:
    """Whether a process is the one that registered last for its node, and up."""
    node = state.nodes.get(process.peer)
    return node is not None and node.process == process and node.state is NodeState.UP


def order_of(shard: Shard) -> PromiseOrder:
    """What the standing fence of `shard` asks of each voter."""
    return PromiseOrder(
        shard=shard.shard,
        fence=shard.fence,
        epoch=shard.open.epoch,
        prepared=NO_EPOCH if shard.prepared is None else shard.prepared.epoch,
    )


def _collect(
    asking: dict[ReplicaId, asyncio.Future[Promised | None]], answers: dict[ReplicaId, Answer]
) -> list[ReplicaId]:
    """Move what was answered from `asking` to `answers`; who gave no answer."""
    silent = []
    for replica, future in list(asking.items()):
        if not future.done():
            continue
        del asking[replica]
        answer = future.result()
        if answer is None:
            silent.append(replica)
        else:
            answers[replica] = Answer(
                replica=replica,
                promised=answer.promised,
                open=answer.open,
                prepared=answer.prepared,
            )
    return silent
