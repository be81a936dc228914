"""Trims shards: finds where a chunk ends, and commits it (docs/protocol.md §8.1).

Invariants:
- An offset is committed as trimmed only if a store told that a chunk ends there and that it may go,
  or if a segment begins or ends there; `las.core.trim` looks again when it is committed.
- An answer counts only for the segment that it was asked about: the command names its epoch.
- Who cannot be asked stops nothing but the trim of that segment. Nothing is guessed.

Must not: decide how long records are kept.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from las.core.commands import Command, Result, TrimShard
from las.core.state import ClusterState
from las.daemon.reconcile import Consensus, entry_of
from peerd.core.ids import FIRST_OFFSET, Epoch, Offset, ReplicaId, ShardId
from peerd.core.shard_map import Segment, Shard, stable_end


@dataclass(frozen=True, slots=True, kw_only=True)
class CutOrder:
    """Find the last cut of `epoch` at or below `before` behind which `keep_bytes` lie."""

    shard: ShardId
    epoch: Epoch
    before: Offset
    keep_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundCut:
    """Everything of the segment below `offset` may go; `kept_bytes` lie behind it. `limit` is up to
    where it could be trimmed as things are.
    """

    offset: Offset
    kept_bytes: int
    limit: Offset


class CutCalls(Protocol):
    """Calls to peers, with deadlines of their own. None is *no usable answer*."""

    async def find_cuts(
        self, target: ReplicaId, orders: Sequence[CutOrder]
    ) -> Sequence[FoundCut | None] | None:
        """The answers of one store, in the order of `orders`; None for what it cannot tell."""
        ...


Submit = Callable[[Command], Awaitable[Result]]


class CannotTell(Exception):
    """Nobody who could tell where to cut can be asked now; the message says of what."""


class Trimmer:
    """Used on the event loop of the leader."""

    def __init__(self, consensus: Consensus, calls: CutCalls) -> None:
        self._consensus = consensus
        self._calls = calls

    async def trim(
        self, shard: ShardId, before: Offset, submit: Submit | None = None
    ) -> Result | None:
        """Trim a shard to the last cut at or below `before`; None: nothing more lies there.

        `submit` commits in somebody's name.

        Raises:
            CannotTell: the segment that `before` lies in can be asked of nobody.
            ShardGone: its log was deleted.
        """
        state, _ = self._consensus.indexed()
        entry = entry_of(state, shard).shard
        for segment in reversed((*entry.sealed, entry.open)):
            begin = segment.begin or FIRST_OFFSET
            if before <= max(begin, entry.kept_from):
                continue
            if segment.end is not None and before >= segment.end == stable_end(
                segment, FIRST_OFFSET
            ):
                return await self.commit(entry, segment.epoch, segment.end, submit)
            found = await self.ask(entry, segment, before=before)
            offset = max(begin, found.offset)
            return await self.commit(entry, segment.epoch, offset, submit)
        return None

    async def commit(
        self, entry: Shard, epoch: Epoch, offset: Offset, submit: Submit | None = None
    ) -> Result | None:
        """Commit a trim; None if it would change nothing."""
        if offset <= entry.kept_from:
            return None
        command = TrimShard(shard=entry.shard, epoch=epoch, trimmed_to=offset)
        return await (submit or self._consensus.submit)(command)

    async def ask(
        self, entry: Shard, segment: Segment, *, before: Offset, keep_bytes: int = 0
    ) -> FoundCut:
        """Where a segment may be cut. Raises `CannotTell`."""
        order = CutOrder(
            shard=entry.shard, epoch=segment.epoch, before=before, keep_bytes=keep_bytes
        )
        state, _ = self._consensus.indexed()
        for replica in sources_of(state, segment):
            answers = await self._calls.find_cuts(replica, (order,))
            if answers is not None and answers[0] is not None:
                return answers[0]
        raise CannotTell(
            f"nobody who can be asked knows where segment {segment.epoch} of shard "
            f"{entry.shard} may be cut"
        )


def sources_of(state: ClusterState, segment: Segment) -> list[ReplicaId]:
    """Who can tell where a segment may be cut: of the open one its primary, of a sealed one the
    stores that have it, as far as they are up.
    """
    if segment.end is None:
        replicas: tuple[ReplicaId, ...] = (segment.plan.primary.replica,)
    else:
        replicas = segment.holders
    return [replica for replica in replicas if state.is_up(replica)]
