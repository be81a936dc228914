"""Hand-overs that wait for a primary which does not get on: starved, late, swapped out, or stopped.

A planned change needs the old primary (docs/protocol.md §4.1): it stops, says where, and tells the
next one. One that has no processor left does that late or never, and appends to its shards wait
meanwhile, which is what the change was to spare; so does one whose packets come late, since the
change is three of its messages. So while a node that is at risk, drained or slow as a primary has
shards to hand over, its process is asked whether it answers at all. If it does not in time, what it
was to hand over is opened elsewhere as after a death (§4.2). The same is done with what a node at
risk or slow has not handed over `finish_ms` after it was prepared, though it answers: whatever it
is that does not get on, its clients wait for it.

Why it is right: that path is allowed whatever the old primary does. The LAS asks the next primary
first whether it has begun; then so many voters promise the fence that nothing of the old epoch is
acknowledged any more, and what was acknowledged is in their answers. A primary that was only slow
finds itself fenced. So a wrong guess here costs a pause, never a record.

Why only nodes that are to be left: elsewhere the planned change has all its time, since a busy
process is no reason to move what it leads. Who is drained and answers has it, too: it is well and
has much to hand over at once.

Bound: what is kept is one entry for each node.
"""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from las.core.state import ClusterState, ShardEntry
from las.daemon.reconcile import is_running
from peerd.core.ids import BootId, NodeName, ProcessId, Tick


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOverTiming:
    """In milliseconds.

    Attributes:
        answer_ms: how long an answer may take: many times what a busy process needs.
        dial_ms: the same for the first question to a process, which may have to be dialled.
        again_ms: pause between two questions to the same process.
        silent_ms: for how long an answer that did not come counts.
        finish_ms: for how long a change that is prepared may wait for one at risk or slow.
    """

    answer_ms: int = 300
    dial_ms: int = 500
    again_ms: int = 100
    silent_ms: int = 3_000
    finish_ms: int = 3_000


@dataclass(slots=True)
class _Asked:
    boot: BootId
    at: Tick
    silent_at: Tick | None = None


class HandOvers:
    """Of one term. Used on the event loop."""

    def __init__(
        self,
        responds: Callable[[ProcessId, int], Awaitable[bool]],
        now: Callable[[], Tick],
        timing: HandOverTiming | None = None,
    ) -> None:
        """`responds` asks a process, and says whether an answer came within so many ms."""
        self._responds = responds
        self._now = now
        self._timing = timing or HandOverTiming()
        self._asked: dict[NodeName, _Asked] = {}

    def is_due(self, process: ProcessId) -> bool:
        """Whether a process that has something to hand over should be asked now."""
        asked = self._asked.get(process.peer)
        if asked is None or asked.boot != process.boot:
            return True
        return self._now() - asked.at >= self._timing.again_ms

    async def ask(self, process: ProcessId) -> None:
        """Ask it, and remember whether it answered. Never twice at once for a process."""
        began = self._now()
        before = self._asked.get(process.peer)
        is_known = before is not None and before.boot == process.boot
        within_ms = self._timing.answer_ms if is_known else self._timing.dial_ms
        responds = await self._responds(process, within_ms)
        self._asked[process.peer] = _Asked(
            boot=process.boot, at=self._now(), silent_at=None if responds else began
        )

    def is_overdue(self, since: Tick) -> bool:
        """Whether one at risk or slow should be done by now with what was prepared at `since`."""
        return self._now() - since >= self._timing.finish_ms

    def is_silent(self, process: ProcessId, since: Tick | None = None) -> bool:
        """Whether the last question had no answer in time, and was asked at `since` or later."""
        asked = self._asked.get(process.peer)
        if asked is None or asked.boot != process.boot or asked.silent_at is None:
            return False
        if self._now() - asked.at >= self._timing.silent_ms:
            return False
        return since is None or since <= asked.silent_at


Nodes = Collection[NodeName]


def to_be_left(state: ClusterState, entry: ShardEntry, slow: Nodes = ()) -> ProcessId | None:
    """The primary of `entry` if it runs on a node that is to be left: at risk, drained or slow."""
    primary = entry.shard.open.plan.primary
    node = state.nodes.get(primary.peer)
    if node is None or not is_running(state, primary):
        return None
    return primary if node.at_risk or node.draining or node.name in slow else None


def hands_over(state: ClusterState, entry: ShardEntry, slow: Nodes = ()) -> ProcessId | None:
    """The process that `entry` waits for, while it is prepared for another one that runs.

    Or for itself, since nobody knew yet: then it has to finish that before it can hand over. (One
    that goes on leading without a vote is not to be left.)
    """
    prepared, primary = entry.shard.prepared, to_be_left(state, entry, slow)
    if prepared is None or primary is None:
        return None
    plan = prepared.plan
    if plan.primary.peer == primary.peer and plan.primary.replica not in plan.voters:
        return None
    return primary if is_running(state, plan.primary) else None
