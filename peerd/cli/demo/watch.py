"""Watches what the LAS expects and decides, for the story alone: nothing here acts.

Times are of the loop's clock, minus the start of the appends. What is noted as shielded or
expendable was read from the committed map, so the true moment is up to a poll earlier.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from las.v1 import fleet_pb2, forecast_pb2
from peerd.client.asynchronous import Client
from peerd.client.errors import PeerdError

STATUS_PERIOD_S = 0.1
_AGAIN_S = 0.2
HORIZON_10_MIN_S = 600


@dataclass(slots=True)
class Story:
    """What was seen of the victim, and of the map, in seconds from the first append."""

    probability: list[tuple[float, float]] = field(default_factory=list)
    """(time, p of failing within 10 minutes) of each evaluation."""
    primaries: list[tuple[float, int]] = field(default_factory=list)
    """(time, open segments that the victim orders), at each change."""
    at_risk_s: float | None = None
    handed_over_s: float | None = None
    """When it was primary of nothing any more, after it had been at risk."""
    shielded_s: float | None = None
    expendable_s: float | None = None
    reasons: str = ""
    model_id: str = ""
    moved: set[str] = field(default_factory=set)
    """Names of nodes that were ever at risk, and shards whose epoch changed."""


class Watcher:
    """Follows one node, until cancelled. `tell(time, line)` gets each event in words."""

    def __init__(
        self,
        client: Client,
        log: str,
        victim: str,
        *,
        start: float,
        tell: Callable[[float, str], None],
    ) -> None:
        self.story = Story()
        self._client = client
        self._log = log
        self._victim = victim
        self._start = start
        self._tell = tell
        self._epochs: dict[int, int] = {}
        self._had: tuple[int, int] = (0, 0)
        self._forecast = forecast_pb2.NodeForecast()

    async def run(self) -> None:
        """Watch, in two tasks; a LAS without a leader is asked again."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._repeat(self._forecasts))
            tasks.create_task(self._repeat(self._statuses))

    async def _repeat(self, what: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await what()
            except PeerdError:
                await asyncio.sleep(_AGAIN_S)

    def _now(self) -> float:
        return asyncio.get_running_loop().time() - self._start

    # ------------------------------------------------------------------ forecast
    async def _forecasts(self) -> None:
        async for evaluation in self._client.las.watch_forecasts():
            for forecast in evaluation.forecasts:
                if forecast.at_risk:
                    self.story.moved.add(forecast.node)
                if forecast.node != self._victim:
                    continue
                self._forecast = forecast
                self.story.model_id = forecast.model_id
                for horizon in forecast.horizons:
                    if horizon.horizon_s == HORIZON_10_MIN_S:
                        self.story.probability.append((self._now(), horizon.probability))
                if forecast.at_risk:
                    self._at_risk()

    def _at_risk(self) -> None:
        """Told once, before what follows from it: a status may know of it first."""
        if self.story.at_risk_s is not None:
            return
        forecast = self._forecast
        self.story.at_risk_s = self._now()
        self.story.reasons = ", ".join(reason.text for reason in forecast.reasons[:3])
        probability = max((h.probability for h in forecast.horizons[:1]), default=0.0)
        self._tell(
            self.story.at_risk_s,
            f"forecast: {self._victim} fails within 10 min, p = {probability:.2f}"
            + (f"     because {self.story.reasons}" if self.story.reasons else ""),
        )

    # ------------------------------------------------------------------ map
    async def _statuses(self) -> None:
        while True:
            status = await self._client.las.status()
            for entry in status.nodes:
                if entry.node.name == self._victim:
                    self._node(entry)
            _, shards = await self._client.las.describe_log(self._log)
            for shard in shards:
                if self._epochs.setdefault(shard.shard, shard.open.epoch) != shard.open.epoch:
                    self.story.moved.add(f"{self._log}/{shard.shard}")
            await asyncio.sleep(STATUS_PERIOD_S)

    def _node(self, entry: fleet_pb2.NodeStatus) -> None:
        if entry.node.at_risk:
            self._at_risk()
        now, story = self._now(), self.story
        if not story.primaries or story.primaries[-1][1] != entry.primaries:
            story.primaries.append((now, entry.primaries))
        if not entry.node.at_risk:
            self._had = (entry.primaries, entry.voting)
            return
        if entry.primaries == 0 and story.handed_over_s is None:
            story.handed_over_s = now
        if entry.shielded and story.shielded_s is None:
            story.shielded_s = now
            primaries, voting = self._had
            self._tell(
                now,
                f"shielded: {voting} shards opened on log-only shadows, "
                f"{primaries} primaries handed over",
            )
        if entry.expendable and story.expendable_s is None:
            story.expendable_s = now
            self._tell(now, "expendable: the sealed past has its healthy copies elsewhere, too")
