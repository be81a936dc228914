"""What is written to each shard, smoothed, from what the primaries tell.

Only the word of a shard's primary counts: who handed it over still tells of it for a while. A shard
whose plan was changed keeps its rate until its primary has seen whole intervals.

Bounds: one rate a shard of the committed map; so many shards between two turns of the event loop.
"""

import asyncio
from collections.abc import Callable, Mapping

from las.core.state import ClusterState
from las.daemon.vitals import Vitals
from peerd.core.ids import Epoch, ShardId

# Time between two looks at what the peers told: they tell it as often.
PERIOD_MS = 10_000
# Weight of the newest look: what lasts for half a minute counts.
NEWEST_WEIGHT = 0.3
# What is told of a shard so soon after a change of its plan may be of a part of an interval.
UNSURE_MS = 25_000
# What is written less than this is not written to.
BYTES_PER_S_MIN = 1.0
# limit: shards that are gone through in one turn of the event loop, some milliseconds
SHARDS_PER_TURN_MAX = 2_000


class Writes:
    """One term's. Used on the event loop."""

    def __init__(
        self, vitals: Vitals, state: Callable[[], ClusterState], now_ms: Callable[[], int]
    ) -> None:
        self._vitals = vitals
        self._state = state
        self._now_ms = now_ms
        self._rates: dict[ShardId, float] = {}
        self._epochs: dict[ShardId, tuple[Epoch, int]] = {}
        """The open epoch, and since when it has been the open one."""

    @property
    def rates(self) -> Mapping[ShardId, float]:
        """Payload bytes a second by shard; of what is hardly written to there is none."""
        return self._rates

    async def run(self) -> None:
        """Look again and again, for ever."""
        while True:
            await asyncio.sleep(PERIOD_MS / 1_000)
            await self.look()

    async def look(self) -> None:
        """Take in what was told last."""
        told = {}
        state = self._state()
        for name in state.nodes:
            heard = self._vitals.of(name)
            for each in () if heard is None else heard.workload.shards:
                entry = state.shards.get(ShardId(each.shard))
                if entry is not None and entry.shard.open.plan.primary.peer == name:
                    told[entry.shard.shard] = each.bytes_per_s
                    if len(told) % SHARDS_PER_TURN_MAX == 0:
                        await asyncio.sleep(0)
        now_ms = self._now_ms()
        for count, shard in enumerate(sorted(told.keys() | self._rates.keys()), 1):
            self._update(state, shard, told.get(shard, 0.0), now_ms)
            if count % SHARDS_PER_TURN_MAX == 0:
                await asyncio.sleep(0)

    def _update(self, state: ClusterState, shard: ShardId, told: float, now_ms: int) -> None:
        entry = state.shards.get(shard)
        before = self._rates.get(shard, told)
        after = before + NEWEST_WEIGHT * (told - before)
        if entry is None or after < BYTES_PER_S_MIN:
            self._rates.pop(shard, None)
            self._epochs.pop(shard, None)
            return
        epoch = entry.shard.open.epoch
        known, since_ms = self._epochs.get(shard, (epoch, now_ms - UNSURE_MS))
        if known != epoch:
            since_ms = now_ms
        self._epochs[shard] = epoch, since_ms
        if now_ms - since_ms >= UNSURE_MS or shard not in self._rates:
            self._rates[shard] = after
