"""Lets holders go that are too many, a few at a time (docs/protocol.md §8.4).

Who is one too many is said in `las.core.surplus`; here is when, and the questions:

- *Last of all.* As with moves of votes (`las.daemon.rebalancer`): nothing while a shard is being
  changed or a copy is made that somebody needs, nor until every node has been as it is for
  `rebalance_after_s`. Copies that are moved (`las.daemon.copy_moves`) are waited for one by one:
  nothing is let go of a segment that somebody is wanted for.
- *Asked first.* Each of the other holders is asked, and says from its own store whether it has the
  segment whole. Only who said so counts, and `las.core.holders` counts again when it is committed.
- *A few at a time.* Some tens of segments a second: each is a command, and rows to delete.

Nothing is kept between two leaders. A peer that cannot be asked, or is too old to answer, confirms
nothing, so nothing is let go for its sake.

Must not: choose a holder, or count copies.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import islice
from typing import Protocol

from las.core.holder_commands import ReleaseHolder
from las.core.levels import RELEASES_LEVEL
from las.core.rebalance import unrest
from las.core.stored_balance import SegmentKey, copies_of_moves
from las.core.surplus import Surplus, surplus
from las.daemon.config import Policy
from las.daemon.reconcile import Consensus
from las.daemon.steady import SteadyNodes
from peerd.core.ids import Epoch, NodeName, ReplicaId, ShardId
from peerd.daemon.logging import get_logger
from peerd.transport.status import Refused

# limit: segments of which a holder is released in one look.
RELEASES_PER_LOOK_MAX = 32
# Pause between two looks while something is let go, and while nothing is. Seconds.
LOOK_S = 1.0
REST_S = 10.0

_log = get_logger("surplus")


class HolderCalls(Protocol):
    """Calls to peers, with deadlines of their own."""

    async def holds(
        self, target: ReplicaId, segments: Sequence[tuple[ShardId, Epoch]]
    ) -> Sequence[bool]:
        """Whether the store has each segment whole, in their order; empty: it does not answer."""
        ...


class SurplusReleaser:
    """One term's. Used on the event loop."""

    def __init__(
        self,
        consensus: Consensus,
        calls: HolderCalls,
        policy: Policy,
        *,
        stored_bytes: Callable[[NodeName], int],
        now_ms: Callable[[], int],
        moving: Callable[[], Collection[tuple[ShardId, Epoch, ReplicaId]]] = frozenset,
        givers: Callable[[], Mapping[SegmentKey, ReplicaId]] = dict,
    ) -> None:
        """`stored_bytes` is what a node told last of how much it stores. `moving` are copies that
        are made in moves, `givers` who lets go in them.
        """
        self._moving = moving
        self._givers = givers
        self._consensus = consensus
        self._calls = calls
        self._policy = policy
        self._stored_bytes = stored_bytes
        self._steady = SteadyNodes(consensus.indexed()[0], now_ms)
        self.released = 0
        """Copies that were let go in this term."""

    async def run(self) -> None:
        """Look again and again, for ever."""
        while True:
            try:
                busy = await self.look()
            except Refused as refused:
                busy = True
                _log.info("put off", why=str(refused))
            await asyncio.sleep(LOOK_S if busy or self._givers() else REST_S)

    async def look(self) -> bool:
        """Let go what may be let go now; whether something was. Raises `Refused`."""
        if self._why_not():
            return False
        state, _ = self._consensus.indexed()
        stored = {name: self._stored_bytes(name) for name in state.nodes}

        givers = dict(self._givers())

        def found() -> list[Surplus]:
            all_found = surplus(state, stored_bytes=stored, givers=givers)
            return list(islice(all_found, RELEASES_PER_LOOK_MAX))

        # A look at 100,000 shards takes a while: the loop goes on meanwhile.
        some = await asyncio.to_thread(found)
        confirmed = await self._ask(some)
        released = 0
        for each in some:
            released += await self._release(each, confirmed[each.shard, each.epoch])
        return released > 0

    def _why_not(self) -> str:
        """Why nothing is let go now; empty if something may be."""
        state, index = self._consensus.indexed()
        steady_ms = self._steady.for_ms(state)
        if not self._policy.release_surplus:
            return "off"
        if state.command_level < RELEASES_LEVEL:
            return "a LAS node runs a version that does not know it"
        if why := unrest(state, index, copies_of_moves(state, self._moving())):
            return why
        rested = steady_ms >= self._policy.rebalance_after_s * 1_000
        return "" if rested else "nodes, or the LAS leader, changed"

    async def _ask(
        self, some: Sequence[Surplus]
    ) -> Mapping[tuple[ShardId, Epoch], list[ReplicaId]]:
        """Who of the other holders says that it has each segment whole."""
        questions: defaultdict[ReplicaId, list[tuple[ShardId, Epoch]]] = defaultdict(list)
        for each in some:
            for other in each.others:
                questions[other].append((each.shard, each.epoch))
        confirmed: defaultdict[tuple[ShardId, Epoch], list[ReplicaId]] = defaultdict(list)

        async def ask(store: ReplicaId, segments: list[tuple[ShardId, Epoch]]) -> None:
            answers = await self._calls.holds(store, segments)
            for segment, is_whole in zip(segments, answers, strict=False):
                if is_whole:
                    confirmed[segment].append(store)

        async with asyncio.TaskGroup() as asking:
            for store, segments in questions.items():
                asking.create_task(ask(store, segments))
        return confirmed

    async def _release(self, found: Surplus, confirmed: list[ReplicaId]) -> bool:
        result = await self._consensus.submit(
            ReleaseHolder(
                shard=found.shard,
                epoch=found.epoch,
                holder=found.holder,
                confirmed=tuple(sorted(confirmed)),
                why=found.why,
            )
        )
        facts = {"shard": found.shard, "epoch": found.epoch, "node": found.holder.peer}
        if not result.ok:
            _log.info("not released", why=result.text, **facts)
            return False
        self.released += 1
        _log.info("released", why=found.why, **facts)
        return True
