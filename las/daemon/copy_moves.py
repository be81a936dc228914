"""Moves copies of sealed segments, some at a time, until the nodes store alike.

Which copies go where is decided in `las.core.stored_balance`; here is when:

- *Last of all.* The rebalancer (`las.daemon.rebalancer`) comes here once votes and leads lie
  evenly; nothing is begun while a shard is being changed or a copy is made that somebody needs.
  What is under way goes on meanwhile: it is a few copies of each node, within its budget.
- *One plan at a time.* What nodes store is heard from them, and follows a move late: the giver's
  disk becomes empty after it was told to let go. So a plan is made from what they told while
  nothing moved for `QUIET_MS`, and carried out before the next one is made.
- *Once for all.* A plan is made where a node is further from even than `rebalance_band` and
  `rebalance_bytes_min`, and brings all within half of that. A copy that came, went, or would
  not rests for `REST_MS`.

A move is a wish (`WantHolders`), which the planner leaves alone while it is one of `moving`, and a
release (`las.daemon.surplus`), for which `givers` says who lets go. Both are commands that exist
for other reasons, and their guards keep the copies; there is nothing here that protects them.

*A new leader* takes over the wishes that it finds for segments with holders enough: what has been
copied is not copied for nothing. It does not know who was to give. When the copy is there, it is
one too many like any other, and the releases choose: as a rule whoever stores most.

Sizes: a giver is asked for the payload of all that it stores, and what its store takes on disk is
shared out by that. What would not say is not moved.

Must not: choose places, or take a copy from anybody.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from las.core.commands import RecordEvent, WantHolders
from las.core.levels import RELEASES_LEVEL
from las.core.placement import FleetView, Limits
from las.core.rebalance import REBALANCED
from las.core.state import ClusterState
from las.core.stored_balance import (
    CopyBalance,
    CopyMove,
    SegmentKey,
    Stored,
    copy_balance,
    givers,
    held,
    is_uneven,
    may_begin,
    superfluous,
)
from las.daemon.config import Policy
from las.daemon.detector import fleet_lease_ms
from las.daemon.reconcile import Consensus
from peerd.core.ids import Epoch, NodeName, ReplicaId, ShardId
from peerd.core.shard_map import Segment, segment_with
from peerd.daemon.logging import get_logger
from peerd.transport.status import Refused

# limit: moves of one plan.
PLANNED_MAX = 256
# limit: moves under way at once, far fewer than the copies that repairs may make.
UNDER_WAY_MAX = 64
# limit: moves under way at once to one node, which can copy more: what it lacks does not wait.
TAKES_MAX = 2
# limit: moves under way at once from one node.
GIVES_MAX = 4
# limit: segments asked about in one call to a peer
SIZES_PER_CALL_MAX = 512
# So long nothing must have moved before it is believed what nodes say that they store.
QUIET_MS = 5_000
# A node that was to let go stores less by so many bytes: it is still at it.
FALLEN_BYTES = 1 << 20
# Time that a segment rests after a move, or after one that came to nothing.
REST_MS = 600_000
# Time before it is planned again, for the same nodes, after there was nothing that could be moved.
PLAN_REST_MS = 60_000
# A copy has so long, and a second for each so many bytes; and then so long to be let go elsewhere.
COPY_MS = 600_000
COPY_BYTES_PER_S_MIN = 1 << 20
RELEASE_MS = 600_000
# A wish that an earlier leader began has so long.
ADOPTED_MS = 3_600_000
# limit: segments that are named in a line of a node's history
NAMED_MAX = 8
# limit: bytes on disk for each byte of payload, beyond which a size is not believed
FACTOR_MAX = 16.0

_log = get_logger("copy moves")

Wanted = tuple[ShardId, Epoch, ReplicaId]


class SizeCalls(Protocol):
    """Calls to peers, with deadlines of their own."""

    async def sizes(
        self, target: ReplicaId, segments: Sequence[tuple[ShardId, Epoch]]
    ) -> Sequence[int]:
        """Payload bytes that the store has of each, in their order; empty: it does not answer."""
        ...


@dataclass(slots=True)
class _Begun:
    """A move under way. `listed`: the copy is there, and the giver has still to let go."""

    move: CopyMove
    until_ms: int
    listed: bool = False


class CopyMover:
    """One term's. Used on the event loop."""

    def __init__(
        self,
        consensus: Consensus,
        calls: SizeCalls,
        policy: Policy,
        *,
        view: Callable[[], FleetView],
        limits: Limits,
        stored_bytes: Callable[[NodeName], int | None],
        now_ms: Callable[[], int],
        wall_ms: Callable[[], int],
    ) -> None:
        """`stored_bytes` is what a node told last in this term; None: nothing yet."""
        self._consensus = consensus
        self._calls = calls
        self._policy = policy
        self._view = view
        self._limits = limits
        self._stored_bytes = stored_bytes
        self._now_ms = now_ms
        self._wall_ms = wall_ms
        self._planned: deque[CopyMove] = deque()
        self._begun: dict[SegmentKey, _Begun] = {}
        self._adopted: dict[Wanted, int] = {}
        self._rest_until: dict[tuple[ShardId, Epoch, NodeName], int] = {}
        self._falling: dict[NodeName, int] = {}
        """Who gives in the plan, with the least that it told since."""
        self._quiet_since_ms = now_ms()
        self._plan_not_before_ms = now_ms()
        self._even_among: Collection[NodeName] = frozenset()
        """The nodes among which nothing could be moved when a plan was made last."""
        self._goes_on = False
        self.told = ""
        """What it does, or waits for, in words; empty if there is nothing to be said."""
        self.moved = 0
        """Copies that were moved in this term."""
        self._adopt()

    def _adopt(self) -> None:
        state, index = self._consensus.indexed()
        if self._policy.rebalance and not self._why_off(state):
            until_ms = self._now_ms() + ADOPTED_MS
            self._adopted = dict.fromkeys(superfluous(state, index), until_ms)

    # ------------------------------------------------------------------ what others ask
    def moving(self) -> Collection[Wanted]:
        """Copies that are made so that nodes store alike."""
        begun = ((*key, each.move.taker) for key, each in self._begun.items() if not each.listed)
        return {*begun, *self._adopted}

    def givers(self) -> Mapping[SegmentKey, ReplicaId]:
        """Who lets go of its copy once another one has it, by segment."""
        return {key: each.move.giver for key, each in self._begun.items()}

    @property
    def busy(self) -> bool:
        """Whether something is under way, or planned."""
        return bool(self._planned or self._begun or self._adopted)

    # ------------------------------------------------------------------ looking
    def disturb(self) -> None:
        """Something else moves: what nodes store is to be heard anew."""
        self._quiet_since_ms = self._now_ms()

    def tend(self) -> None:
        """Look what became of the moves under way."""
        state, _ = self._consensus.indexed()
        now_ms = self._now_ms()
        for key, begun in list(self._begun.items()):
            why = self._end_of(state, key, begun, now_ms)
            if why:
                del self._begun[key]
                for store in (begun.move.giver, begun.move.taker):
                    self._rest_until[*key, store.peer] = now_ms + REST_MS
                self.disturb()
                _log.info(why, shard=key[0], epoch=key[1], taker=begun.move.taker.peer)
        for (shard, epoch, store), until_ms in list(self._adopted.items()):
            segment = _segment(state, (shard, epoch))
            if segment is None or store not in segment.wanted_holders or until_ms <= now_ms:
                del self._adopted[shard, epoch, store]
                self.disturb()
        for copy in [copy for copy, until_ms in self._rest_until.items() if until_ms <= now_ms]:
            del self._rest_until[copy]

    def _end_of(self, state: ClusterState, key: SegmentKey, begun: _Begun, now_ms: int) -> str:
        """Why a move is over; empty while it is not."""
        move, segment = begun.move, _segment(state, key)
        if segment is None:
            return "what was moved is gone"
        if move.taker in segment.holders:
            if move.giver not in segment.holders:
                self.moved += 1
                return "moved"
            if not begun.listed:
                begun.listed, begun.until_ms = True, now_ms + RELEASE_MS
        elif move.taker not in segment.wanted_holders:
            return "taken back"
        return "given up" if begun.until_ms <= now_ms else ""

    async def look(self, *, asked: bool) -> bool:
        """Go on with what is planned, or plan; whether something is under way. Raises `Refused`.

        `asked`: nodes are brought within half of the band though none is out of it.
        """
        state, _ = self._consensus.indexed()
        self.told = self._why_off(state)
        if self.told:
            return False
        if not self.busy and not await self._plan(asked=asked):
            return False
        await self._begin()
        copies = len(self._begun) + len(self._adopted)
        self.told = f"moving: {copies} copies under way, {len(self._planned)} to come"
        if first := next(iter(self._begun.values()), None):
            self.told += f"; {first.move.why}"
        return self.busy

    def _why_off(self, state: ClusterState) -> str:
        if not self._policy.rebalance_copies:
            return "copies stay: `policy.rebalance_copies` is off"
        if not self._policy.release_surplus:
            return "copies stay: `policy.release_surplus` is off, so nobody would let go"
        if state.command_level < RELEASES_LEVEL:
            return "copies stay: a node runs a version that lets nothing go"
        return ""

    # ------------------------------------------------------------------ planning
    async def propose(self) -> CopyBalance:
        """What would be moved if nothing else were to be done first; what is under way, if that is.

        Asks peers.
        """
        state, _ = self._consensus.indexed()
        stored = self._stored(state)
        if not self.busy and not self._why_off(state) and is_uneven(stored, stored.inner):
            return await self._balance(state, stored)
        after = dict(stored.bytes_of)
        moves = (*(each.move for each in self._begun.values()), *self._planned)
        for move in moves:
            for node, sign in ((move.giver.peer, -1), (move.taker.peer, 1)):
                if node in after:
                    after[node] = max(0, after[node] + sign * move.size_bytes)
        return CopyBalance(
            moves=moves,
            before=stored.bytes_of,
            after=after,
            even_bytes=stored.even,
            more=self.busy and self._goes_on,
        )

    def _stored(self, state: ClusterState) -> Stored:
        heard = {
            node.name: self._stored_bytes(node.name)
            for node in state.nodes.values()
            if node.is_healthy
        }
        return Stored(
            bytes_of={name: told for name, told in heard.items() if told is not None},
            band=self._policy.rebalance_band,
            bytes_min=self._policy.rebalance_bytes_min,
            resting=frozenset(self._rest_until),
        )

    async def _balance(self, state: ClusterState, stored: Stored) -> CopyBalance:
        _, index = self._consensus.indexed()
        shards_of = {name: tuple(index.shards_of(name)) for name in givers(state, stored)}
        sizes: dict[SegmentKey, int] = {}
        async with asyncio.TaskGroup() as asking:
            for name, shards in shards_of.items():
                asking.create_task(self._measure(state, name, shards, stored, sizes))
        measured = replace(stored, sizes=sizes)
        view, limits = self._view(), self._limits

        def found() -> CopyBalance:
            return copy_balance(
                state, view, limits, measured, shards_of=shards_of, moves_max=PLANNED_MAX
            )

        return await asyncio.to_thread(found)

    async def _measure(
        self,
        state: ClusterState,
        name: NodeName,
        shards: Collection[ShardId],
        stored: Stored,
        sizes: dict[SegmentKey, int],
    ) -> None:
        """Put into `sizes` what each segment that a node stores takes on its disk."""
        keys = held(state, name, shards)
        told: dict[SegmentKey, int] = {}
        for at in range(0, len(keys), SIZES_PER_CALL_MAX):
            part = keys[at : at + SIZES_PER_CALL_MAX]
            answers = await self._calls.sizes(state.nodes[name].replica, part)
            told.update(zip(part, answers, strict=False))
        payload_bytes = sum(told.values())
        if payload_bytes:
            factor = min(max(1.0, stored.bytes_of[name] / payload_bytes), FACTOR_MAX)
            # What several givers have, each measures alike; the last one's word is as good.
            sizes.update({key: round(factor * each) for key, each in told.items() if each})

    async def _plan(self, *, asked: bool) -> bool:
        """Plan moves if nodes are uneven; whether there are any."""
        state, _ = self._consensus.indexed()
        now_ms = self._now_ms()
        stored = self._stored(state)
        healthy = sum(node.is_healthy for node in state.nodes.values())
        if len(stored.bytes_of) < healthy:
            self.told = (
                f"waits: {healthy - len(stored.bytes_of)} nodes have not told what they store"
            )
            return False
        self._watch_falling(stored)
        edge_bytes = stored.inner if asked or self._goes_on else stored.outer
        if not is_uneven(stored, edge_bytes):
            self._goes_on = False
            return False
        quiet_ms = max(QUIET_MS, fleet_lease_ms(0, len(state.nodes)))
        if now_ms - self._quiet_since_ms < quiet_ms:
            self.told = "waits: what nodes store has just changed"
            return False
        rests = now_ms < self._plan_not_before_ms and self._even_among == stored.bytes_of.keys()
        if rests and not asked:
            self.told = "copies are as even as can be"
            return False
        found = await self._balance(state, stored)
        self._goes_on = found.more
        if not found.moves:
            self.told = "copies are as even as can be"
            self._plan_not_before_ms = now_ms + PLAN_REST_MS
            self._even_among = frozenset(stored.bytes_of)
            return False
        self._planned.extend(found.moves)
        self._falling = {move.giver.peer: stored.bytes_of[move.giver.peer] for move in found.moves}
        await self._tell(found.moves)
        return True

    def _watch_falling(self, stored: Stored) -> None:
        """Who gave stores less and less until it has dropped all that it was told to."""
        for name, least in list(self._falling.items()):
            now = stored.bytes_of.get(name, least)
            if now < least - FALLEN_BYTES:
                self._falling[name] = now
                self.disturb()

    async def _tell(self, moves: Sequence[CopyMove]) -> None:
        """In the histories of who gives and who takes, once for each pair of them."""
        pairs: dict[tuple[NodeName, NodeName], list[CopyMove]] = {}
        for move in moves:
            pairs.setdefault((move.giver.peer, move.taker.peer), []).append(move)
        for (giver, taker), some in pairs.items():
            text = words_of(giver, taker, some)
            _log.info("moves", what=text)
            for node in (giver, taker):
                await self._consensus.submit(
                    RecordEvent(node=node, kind=REBALANCED, text=text, timestamp_ms=self._wall_ms())
                )

    # ------------------------------------------------------------------ beginning
    async def _begin(self) -> None:
        """Begin what there is room for."""
        copying = [each.move for each in self._begun.values() if not each.listed]
        takes = Counter(move.taker for move in copying)
        takes.update(store for _, _, store in self._adopted)
        gives = Counter(move.giver for move in copying)
        # Several copies of a segment are moved one after the other, in the order of the plan.
        waiting = set(self._begun)
        for move in list(self._planned):
            if sum(takes.values()) >= UNDER_WAY_MAX:
                break
            full = takes[move.taker] >= TAKES_MAX or gives[move.giver] >= GIVES_MAX
            waits = full or move.key in waiting
            waiting.add(move.key)
            if waits:
                continue
            self._planned.remove(move)
            state, _ = self._consensus.indexed()
            if may_begin(state, move) and await self._want(move):
                takes[move.taker] += 1
                gives[move.giver] += 1

    async def _want(self, move: CopyMove) -> bool:
        seconds = move.size_bytes // COPY_BYTES_PER_S_MIN
        until_ms = self._now_ms() + COPY_MS + 1_000 * seconds
        # Before it is committed: the planner would take it back.
        self._begun[move.key] = _Begun(move, until_ms)
        command = WantHolders(shard=move.shard, epoch=move.epoch, holders=(move.taker,))
        try:
            result = await self._consensus.submit(command)
        except Refused:
            # If it is committed after all, the planner takes it back.
            del self._begun[move.key]
            raise
        if not result.ok:
            del self._begun[move.key]
            self._rest_until[*move.key, move.taker.peer] = self._now_ms() + REST_MS
            _log.info("not moved", shard=move.shard, epoch=move.epoch, why=result.text)
        return result.ok


def words_of(giver: NodeName, taker: NodeName, moves: Sequence[CopyMove]) -> str:
    """Moves from one node to another as people read them."""
    named = ", ".join(f"shard {each.shard} segment {each.epoch}" for each in moves[:NAMED_MAX])
    more = f" and {len(moves) - NAMED_MAX} more" if len(moves) > NAMED_MAX else ""
    size = sum(each.size_bytes for each in moves) / 1e6
    return f"{taker} holds in place of {giver}: {named}{more}; {size:.0f} MB; {moves[0].why}"


def _segment(state: ClusterState, key: SegmentKey) -> Segment | None:
    entry = state.shards.get(key[0])
    return None if entry is None else segment_with(entry.shard.sealed, key[1])
