"""Splits shards that are written to more than one primary should bear, one at a time.

Which and where is decided in `las.core.hot_shards`; here is when:

- only where `policy.split_bytes_per_s` says what is too much: a split is not taken back;
- what is smoothed over half a minute must be too much `LOOKS_HOT` times in a row, and what the
  primary told last as well, so that a burst splits nothing;
- not while a shard is being changed or a copy is made, and `REST_MS` after the last split: by then
  what the children take is known.

Nothing is kept between two leaders. A split that a failover undoes is tried again like any other.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping

from las.core.commands import PrepareSplit, RecordEvent
from las.core.hot_shards import Heat, HotShard, hot_shard
from las.core.rebalance import unrest
from las.core.state import ClusterState
from las.core.stored_balance import copies_of_moves
from las.daemon.config import Policy
from las.daemon.reconcile import Consensus
from las.daemon.vitals import Vitals
from peerd.core.ids import Epoch, ReplicaId, ShardId
from peerd.daemon.logging import get_logger
from peerd.transport.internal_logs import is_internal
from peerd.transport.status import Refused

SPLIT = "split"
"""Kind of the events that tell of a split."""
LOOK_S = 10.0
# Looks in a row at which a shard must be hot.
LOOKS_HOT = 3
# Time after a split before the next.
REST_MS = 120_000

_log = get_logger("splitter")


class Splitter:
    """One term's splitter. Used on the event loop."""

    def __init__(
        self,
        consensus: Consensus,
        policy: Policy,
        vitals: Vitals,
        *,
        writes: Callable[[], Mapping[ShardId, float]],
        now_ms: Callable[[], int],
        wall_ms: Callable[[], int],
        moving: Callable[[], Collection[tuple[ShardId, Epoch, ReplicaId]]] = frozenset,
    ) -> None:
        """`writes` gives smoothed payload bytes a second by shard, `moving` the copies that are
        made so that nodes store alike.
        """
        self._moving = moving
        self._consensus = consensus
        self._policy = policy
        self._vitals = vitals
        self._writes = writes
        self._now_ms = now_ms
        self._wall_ms = wall_ms
        self._not_before_ms = 0
        self._hot: tuple[ShardId | None, int] = (None, 0)
        self.splits = 0
        """Splits prepared in this term."""

    async def run(self) -> None:
        """Look again and again, for ever; never, if nothing is to be split."""
        while self._policy.split_bytes_per_s:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except Refused as refused:
                _log.info("put off", why=str(refused))
        await asyncio.Event().wait()

    async def look(self) -> None:
        """Split the hottest shard if it has been so for long enough. Raises `Refused`."""
        state, index = self._consensus.indexed()
        found = hot_shard(
            state,
            self._heats(state),
            bytes_per_s=self._policy.split_bytes_per_s,
            shards_max=self._policy.split_shards_max,
        )
        before, looks = self._hot
        shard = None if found is None else found.shard
        self._hot = shard, looks + 1 if shard == before else 1
        due = self._hot[1] >= LOOKS_HOT and self._now_ms() >= self._not_before_ms
        if found is None or not due:
            return
        if not unrest(state, index, copies_of_moves(state, self._moving())):
            await self._split(state, found)

    async def _split(self, state: ClusterState, found: HotShard) -> None:
        self._not_before_ms = self._now_ms() + REST_MS
        self._hot = None, 0
        command = PrepareSplit(
            shard=found.shard,
            epoch=found.epoch,
            key_hash=found.key_hash,
            plan=found.plan,
            why=found.why,
        )
        result = await self._consensus.submit(command)
        if not result.ok:
            _log.info("not split", shard=found.shard, why=result.text)
            return
        self.splits += 1
        text = f"shard {found.shard} of {state.shards[found.shard].shard.log} is split: {found.why}"
        _log.info("split", what=text)
        node = found.plan.primary.peer
        await self._consensus.submit(
            RecordEvent(node=node, kind=SPLIT, text=text, timestamp_ms=self._wall_ms())
        )

    def _heats(self, state: ClusterState) -> dict[ShardId, Heat]:
        """Of shards of which both what was told last and what is smoothed are too much."""
        line = self._policy.split_bytes_per_s
        rates = self._writes()
        heats: dict[ShardId, Heat] = {}
        for shard, rate in rates.items():
            entry = state.shards.get(shard)
            if rate < line or entry is None or is_internal(entry.shard.log):
                continue
            heard = self._vitals.of(entry.shard.open.plan.primary.peer)
            for each in () if heard is None else heard.workload.shards:
                if each.shard == shard:
                    heats[shard] = Heat(
                        bytes_per_s=min(rate, each.bytes_per_s),
                        distinct_keys=each.distinct_keys,
                        hottest_key_share=each.hottest_key_share,
                    )
        return heats
