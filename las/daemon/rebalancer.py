"""Moves votes and leads, a few at a time, until the fleet's work lies evenly; then copies.

What is moved is decided in `las.core.rebalance`; here is when:

- *Last of all.* Nothing is moved while a shard is being changed or a copy is made that somebody
  needs, nor until every node has been as it is (up, healthy, in the fleet) for
  `rebalance_after_s`. A new leader waits as long. An operator who asks does not wait for the nodes,
  but for everything else.
- *A few a second.* Each move is a planned change, whose switch holds appends to its shard up for
  some 20 ms; `rebalance_moves_per_s` bounds them over the whole fleet.
- *Work before bytes.* While votes or leads are uneven no copy is begun (`las.daemon.copy_moves`):
  what moves them seals segments, and these are what can be moved.
- *Beside everything else.* In a fleet of 10,000 a look at 100,000 shards takes most of a second: it
  is made in a thread, with an index of its own, on the immutable state.
- *Once for all.* It begins where a node is further from even than `rebalance_band`, and goes on to
  half of that, so that what goes up and down a little moves nothing.
- *Not again.* A vote that was moved, or would not move, rests for `VOTES_REST_MS`, since it
  follows from what is written, which goes up and down; the lead of a shard for `LEADS_REST_MS`.

Nothing is kept between two leaders: what is uneven follows from the committed map and from what the
peers tell of their workload. Each move is told in the history of the nodes that it concerns.

Must not: choose places, or change a shard that needs something else.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TypeVar

from las.core.commands import PrepareSegment, RecordEvent
from las.core.index import FleetIndex
from las.core.placement import FleetView, Limits
from las.core.rebalance import REBALANCED, Balance, Move, Uneven, balance, unrest
from las.core.stored_balance import copies_of_moves
from las.daemon.config import Policy
from las.daemon.copy_moves import CopyMover
from las.daemon.reconcile import Consensus
from las.daemon.steady import SteadyNodes
from peerd.core.ids import NodeName, ShardId
from peerd.daemon.logging import get_logger
from peerd.transport.status import Refused

# Time that a vote, or a lead, rests after a move, or after one that came to nothing.
VOTES_REST_MS = 600_000
LEADS_REST_MS = 30_000
# The same where an operator put them there.
PLACED_REST_MS = 3_600_000
# Pause between two looks while something is to be moved, and while nothing is. Seconds.
LOOK_S = 1.0
REST_S = 10.0
# While copies are moved votes are looked at so often.
VOTES_LOOK_MS = 10_000
# limit: moves of one proposal, as many as an operator reads.
PROPOSED_MAX = 256

_log = get_logger("rebalance")

Rests = TypeVar("Rests")


class Rebalancer:
    """One term's rebalancer. Used on the event loop."""

    def __init__(
        self,
        consensus: Consensus,
        policy: Policy,
        *,
        view: Callable[[], FleetView],
        limits: Limits,
        writes: Callable[[], Mapping[ShardId, float]],
        now_ms: Callable[[], int],
        wall_ms: Callable[[], int],
        copies: CopyMover | None = None,
    ) -> None:
        """`view` is what the planner sees, `writes` payload bytes a second by shard. Without
        `copies` what is stored stays where it is.
        """
        self._copies = copies
        self._votes_even_until_ms = 0
        self._consensus = consensus
        self._policy = policy
        self._view = view
        self._limits = limits
        self._writes = writes
        self._now_ms = now_ms
        self._wall_ms = wall_ms
        self._index = FleetIndex()
        # A call that is given up leaves its thread behind, which is to end before the next begins.
        self._looking = threading.Lock()
        self._steady = SteadyNodes(consensus.indexed()[0], now_ms)
        self._votes_rest_until: dict[tuple[ShardId, NodeName], int] = {}
        self._leads_rest_until: dict[ShardId, int] = {}
        self._asked = asyncio.Event()
        self._begun = False
        self._found = "not looked yet"
        """What the last look found, in words."""
        self.moved = Counter({"vote": 0, "lead": 0})
        """Moves of this term: of votes, and of leads alone."""

    @property
    def told(self) -> str:
        """What it does, or waits for, in words."""
        if self._found.startswith("even"):
            # Nobody looks for `REST_S` then, and meanwhile nodes may have joined.
            return self._why_not() or self._found
        return self._found

    def ask(self) -> None:
        """Somebody wants the fleet even now, also if it is not done by itself."""
        self._asked.set()

    def placed(self, shard: ShardId, node: NodeName) -> None:
        """An operator made `node` the primary of `shard`: that is let be for a while."""
        until_ms = self._now_ms() + PLACED_REST_MS
        self._votes_rest_until[shard, node] = until_ms
        self._leads_rest_until[shard] = until_ms

    async def run(self) -> None:
        """Look again and again, for ever."""
        while True:
            try:
                moving = await self.look()
            except Refused as refused:
                moving = True
                _log.info("put off", why=str(refused))
            waits = self._policy.rebalance or self._asked.is_set()
            if moving or (waits and self.told.startswith("waits")):
                await asyncio.sleep(LOOK_S)
                continue
            try:
                async with asyncio.timeout(REST_S):
                    await self._asked.wait()
            except TimeoutError:
                pass  # what is written may have changed

    async def propose(
        self, moves_max: int = PROPOSED_MAX, *, begun: bool = True, resting: bool = True
    ) -> Balance:
        """What would be moved if nothing else were under way.

        `begun`: to half of the band. `resting`: what rests is left alone.
        """
        state, _ = self._consensus.indexed()
        votes, leads = self._resting(self._votes_rest_until), self._resting(self._leads_rest_until)
        uneven = Uneven(
            band=self._policy.rebalance_band / (2 if begun else 1),
            bytes_per_s=dict(self._writes()),
            resting_votes=votes if resting else frozenset(),
            resting_leads=leads if resting else frozenset(),
        )
        view = self._view()

        def found() -> Balance:
            with self._looking:
                self._index.update(state)
                return balance(
                    state, view, self._limits, uneven, index=self._index, moves_max=moves_max
                )

        return await asyncio.to_thread(found)

    async def look(self) -> bool:
        """Move what may be moved now; whether something was. Raises `Refused`."""
        if self._copies is not None:
            self._copies.tend()
        self._found = self._why_not()
        if self._found:
            return False
        found = "even"
        if self._now_ms() >= self._votes_even_until_ms:
            found = await self._look_at_votes()
            if not found:
                return True
            if self._copies is not None and self._copies.busy:
                self._votes_even_until_ms = self._now_ms() + VOTES_LOOK_MS
        if self._copies is not None:
            if await self._copies.look(asked=self._asked.is_set()):
                self._found = self._copies.told
                return True
            if self._copies.told.startswith("waits"):
                self._found = self._copies.told
                return False
            found = f"{found}; {self._copies.told}" if self._copies.told else found
        self._found = found
        self._asked.clear()
        return False

    async def _look_at_votes(self) -> str:
        """Move votes and leads that may be moved now; in words why none were, else empty."""
        begun = self._begun or self._asked.is_set()
        found = await self.propose(self._policy.rebalance_moves_per_s, begun=begun)
        self._begun = bool(found.moves)
        if not found.moves:
            rests = self._votes_rest_until or self._leads_rest_until
            if rests and (await self.propose(1, begun=begun, resting=False)).moves:
                return "rests: what is uneven was moved a short while ago"
            return "even"
        if self._copies is not None:
            self._copies.disturb()
        self._found = f"moving: {found.moves[0].why}"
        for move in found.moves:
            await self._move(move)
        return ""

    def _why_not(self) -> str:
        """Why nothing is moved now; empty if something may be."""
        state, index = self._consensus.indexed()
        steady_ms = self._steady.for_ms(state)
        if not (self._policy.rebalance or self._asked.is_set()):
            return "off"
        moved = 0 if self._copies is None else copies_of_moves(state, self._copies.moving())
        if why := unrest(state, index, moved):
            return f"waits: {why}"
        left_ms = self._policy.rebalance_after_s * 1_000 - steady_ms
        if left_ms > 0 and not self._asked.is_set():
            return f"waits: nodes, or the LAS leader, changed; {-(-left_ms // 1_000)} s more"
        return ""

    async def _move(self, move: Move) -> None:
        state, _ = self._consensus.indexed()
        entry = state.shards.get(move.shard)
        if entry is None:
            return
        led = entry.shard.open.plan.primary.peer
        why = f"rebalance: {move.why}"
        result = await self._consensus.submit(
            PrepareSegment(shard=move.shard, epoch=move.epoch, plan=move.plan, why=why)
        )
        # Also one that would not; but not one that nobody could commit, which is as due as before.
        if move.joins:
            self._votes_rest_until[move.shard, move.joins] = self._now_ms() + VOTES_REST_MS
        if move.leads:
            self._leads_rest_until[move.shard] = self._now_ms() + LEADS_REST_MS
        if not result.ok:
            _log.info("not moved", shard=move.shard, why=result.text)
            return
        self.moved["vote" if move.joins else "lead"] += 1
        text = words_of(move, led)
        _log.info("moved", shard=move.shard, what=text)
        concerned = {move.leaves, move.joins} if move.joins else {led, move.leads}
        for node in sorted(concerned):
            await self._consensus.submit(
                RecordEvent(node=node, kind=REBALANCED, text=text, timestamp_ms=self._wall_ms())
            )

    def _resting(self, until: dict[Rests, int]) -> frozenset[Rests]:
        now_ms = self._now_ms()
        for each in [each for each, end_ms in until.items() if end_ms <= now_ms]:
            del until[each]
        return frozenset(until)


def words_of(move: Move, led: NodeName) -> str:
    """A move as people read it; `led` is who leads the shard before it."""
    parts = []
    if move.joins:
        parts.append(f"{move.joins} votes in place of {move.leaves}")
    if move.leads:
        parts.append(f"{move.leads} leads in place of {led}")
    return f"shard {move.shard}: {' and '.join(parts)}; {move.why}"
