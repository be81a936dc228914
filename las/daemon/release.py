"""Frees shards that are held since the group began from older data (docs/protocol.md §4.6).

A shard is freed when its primary process, asked after a heartbeat of it named the group's first map
or a later one, says that it leads the open segment, and `acks` voters have been heard
(`las.core.recovered` has the argument). Those whose primary cannot say so are freed by the last
node that registers, or by a person.

Bounds: one call to a peer for each `SHARDS_PER_CALL_MAX` held shards that it leads, a period.

Must not: free what is halted for what a store has shown; the command looks again.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Protocol

from las.core.commands import ReleaseShards
from las.core.recovered import may_be_freed
from las.core.state import ClusterState
from las.daemon.reconcile import Consensus
from peerd.core.ids import Epoch, NodeName, ReplicaId, ShardId
from peerd.daemon.logging import get_logger
from peerd.transport.status import Refused

PERIOD_S = 0.5
# limit: shards asked about in one call to a peer, and of one command
SHARDS_PER_CALL_MAX = 256

_log = get_logger("release")


class LeadCalls(Protocol):
    """Calls to peers, with deadlines of their own."""

    async def led(
        self, target: ReplicaId, segments: Sequence[tuple[ShardId, Epoch]]
    ) -> frozenset[ShardId]:
        """The shards whose segment the process on `target` leads now, as it says itself."""
        ...


class Releaser:
    """Used on the event loop of the leader."""

    def __init__(
        self,
        consensus: Consensus,
        calls: LeadCalls,
        map_version: Callable[[NodeName], int],
    ) -> None:
        """`map_version` gives the newest map that a node has told it has; 0: none in this term."""
        self._consensus = consensus
        self._calls = calls
        self._map_version = map_version

    async def run(self) -> None:
        """Look again and again while a shard is held, then wait for ever."""
        while self._is_needed():
            try:
                await self.look()
            except Refused as refused:
                _log.info("what is held is looked at again", why=str(refused))
            await asyncio.sleep(PERIOD_S)
        await asyncio.Event().wait()

    def _is_needed(self) -> bool:
        state, _ = self._consensus.indexed()
        return bool(state.recovery.id) and any(entry.is_held for entry in state.shards.values())

    async def look(self) -> None:
        """Ask each primary of held shards once, and free what may be freed. Raises `Refused`."""
        state, _ = self._consensus.indexed()
        for primary, segments in _by_primary(state).items():
            if self._map_version(primary.peer) < state.recovery.version:
                continue
            for part in _parts(segments):
                led = await self._calls.led(primary, part)
                free = tuple(shard for shard, _ in part if shard in led)
                if free:
                    await self._consensus.submit(ReleaseShards(shards=free))
                    _log.info("held no more", node=primary.peer, shards=len(free))


def _by_primary(state: ClusterState) -> dict[ReplicaId, list[tuple[ShardId, Epoch]]]:
    found: dict[ReplicaId, list[tuple[ShardId, Epoch]]] = defaultdict(list)
    for entry in state.shards.values():
        if may_be_freed(state, entry):
            opened = entry.shard.open
            found[opened.plan.primary.replica].append((entry.shard.shard, opened.epoch))
    return found


def _parts(segments: list[tuple[ShardId, Epoch]]) -> list[list[tuple[ShardId, Epoch]]]:
    return [
        segments[at : at + SHARDS_PER_CALL_MAX]
        for at in range(0, len(segments), SHARDS_PER_CALL_MAX)
    ]
