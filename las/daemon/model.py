"""The models of this process: which one answers, which one runs in shadow, and their threads.

What the group has committed (`las.core.model_registry`) is followed before each evaluation, so a
promotion or a roll-back acts with the next one, on the leader of the moment and on every later one.

Invariants:
- A version is checked on this node again before it is used. One that cannot be used here is told
  of, and what this node would use without any version answers in its place.
- A model that answers with something that is no probability, or takes too long, is not asked again
  until another version answers; the named rule stands in, and says so.
- A model in shadow has a thread of its own, is never waited for, and is given up by the same rules.
  What it says goes into its comparison and nowhere else.

Bounds: one run of each at a time; reasons for at most `EXPLAINED_MAX` nodes a run.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from las.core.model_registry import (
    NO_MODELS,
    SHIPPED,
    ModelHead,
    ModelRegistry,
    version_words,
)
from las.core.state import ClusterState
from las.daemon.disk_readings import DiskReadings
from las.daemon.slow_heads import SlowForecast, SlowHeads, settle
from las.forecast.answer import REASONS_MAX, Forecast, Forecaster, Reason, Windows
from las.forecast.comparison import Comparison
from las.forecast.contract import HORIZONS_S, MODEL_TIMEOUT_S, ModelRefused
from las.forecast.heuristic import RULE_WINDOW, HeuristicForecaster
from las.forecast.load import load_forecaster
from las.forecast.model import ForecastModel
from peerd.core.ids import NodeName
from peerd.daemon.logging import get_logger

# limit: nodes whose reasons are worked out in one run, the riskiest first; each costs some model
# runs, and nobody reads more.
EXPLAINED_MAX = 16
# From this probability on a node is worth an explanation.
EXPLAINED_FROM = 0.2

_log = get_logger("forecast")

Judged = tuple[Forecast, dict[int, tuple[Reason, ...]]]


@dataclass(slots=True)
class Shadow:
    """A model that runs beside the one that answers. `given_up` says why it does not any more."""

    version: int
    forecaster: ForecastModel | None
    comparison: Comparison = field(default_factory=lambda: Comparison(HORIZONS_S[0]))
    given_up: str = ""


class Model:
    """The models of this process; shared by the terms that follow each other."""

    def __init__(self, forecaster: Forecaster, note: str, heads: SlowHeads | None = None) -> None:
        """`note` is what an operator should know of `forecaster`; empty if it is the wanted one."""
        self._base = forecaster, note
        self._forecaster = forecaster
        self._note = note
        self._heads = heads or SlowHeads({})
        self._followed = NO_MODELS
        self._live = SHIPPED
        self.shadow: Shadow | None = None
        self._thread = _worker("las-forecast")
        self._shadow_thread = _worker("las-shadow")
        self._comparing: asyncio.Task[None] | None = None

    @classmethod
    def load(cls, path: Path | None) -> "Model":
        """The model of `path`, the shipped one, or the rule. Blocks while it reads the file."""
        forecaster, note = load_forecaster(path)
        return cls(forecaster, note, SlowHeads.load())

    @property
    def model_id(self) -> str:
        """Names what answers."""
        return self._forecaster.model_id

    @property
    def base_id(self) -> str:
        """Names what answers without any version: the configured or shipped model, or the rule."""
        return self._base[0].model_id

    @property
    def heads(self) -> SlowHeads:
        """The heads that look further."""
        return self._heads

    @property
    def incident_note(self) -> str:
        """Why the incident head is not as wanted, with what to do; empty while it is."""
        if not self._note:
            return ""
        if self._live == SHIPPED:
            return f"{self._note}: set model_path to a model of this version"
        return f"{self._note}: `las model rollback` lets the one before answer"

    @property
    def note(self) -> str:
        """What an operator should know of all heads; empty if all is as wanted."""
        return "; ".join(each for each in (self.incident_note, self._heads.note) if each)

    @property
    def window(self) -> int:
        """Samples that suffice for every model that may answer, and for the rule."""
        return max(self._base[0].window, RULE_WINDOW)

    # ------------------------------------------------------------------ which one answers

    async def follow(self, registry: ModelRegistry) -> None:
        """Use the versions that the group has agreed on."""
        if registry is self._followed:
            return
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._follow, registry)
        self._followed = registry

    def _follow(self, registry: ModelRegistry) -> None:
        wanted = registry.of(ModelHead.INCIDENT)
        if wanted.live != self._live:
            self._use(registry, wanted.live)
        shadow = None if self.shadow is None else self.shadow.version
        if wanted.candidate != shadow:
            self.shadow = _shadow_of(registry, wanted.candidate)
        self._heads.follow(registry)

    def _use(self, registry: ModelRegistry, live: int) -> None:
        self._live = live
        self._forecaster, self._note = self._base
        version = registry.version(live)
        if version is not None:
            try:
                self._forecaster = ForecastModel.from_bytes(version.content)
                self._note = ""
            except ModelRefused as error:
                self._note = (
                    f"{version_words(live)} of the incident model cannot be used here ({error}); "
                    f"{self._forecaster.model_id} answers in its place"
                )
                _log.error("model refused", version=live, why=str(error))
        _log.info("model answers", version=live, model=self._forecaster.model_id)

    # ------------------------------------------------------------------ what it says

    async def judge(self, windows: Windows) -> Judged:
        """Forecast a fleet [nodes, `window`, metrics]; reasons by row for the riskiest nodes.

        A model that takes longer than `MODEL_TIMEOUT_S` is given up, and its thread left behind.
        """
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._thread, self._judge, windows)
        done, _ = await asyncio.wait([work], timeout=MODEL_TIMEOUT_S)
        if done or isinstance(self._forecaster, HeuristicForecaster):
            return await work
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._thread = _worker("las-forecast")
        self._give_up(f"one answer takes more than {MODEL_TIMEOUT_S:.0f} s")
        return await loop.run_in_executor(self._thread, self._judge, windows)

    async def ask_slow_heads(
        self, state: ClusterState, disks: DiskReadings, now_s: int
    ) -> SlowForecast:
        """What the hardware and the history head say of the fleet; `now_s` since 1970."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._heads.ask, state, disks, now_s)

    def close(self) -> None:
        """End the threads after the runs under way."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._shadow_thread.shutdown(wait=False, cancel_futures=True)

    def _judge(self, windows: Windows) -> Judged:
        try:
            return self._answer(self._forecaster, windows)
        except ModelRefused as error:
            self._give_up(str(error))
            return self._answer(self._forecaster, windows)

    def _give_up(self, why: str) -> None:
        self._note = (
            f"the forecast model was given up ({why}); the rule "
            "'fsync p99 > 10 × own past' stands in"
        )
        _log.error("model given up", why=why)
        self._forecaster = HeuristicForecaster()

    @staticmethod
    def _answer(forecaster: Forecaster, windows: Windows) -> Judged:
        newest = windows[:, -forecaster.window :]
        forecast = forecaster.predict(newest)
        probabilities = forecast.p_10_min
        riskiest = np.argsort(-probabilities, kind="stable")[:EXPLAINED_MAX]
        reasons = {
            row: forecaster.reasons(newest, row, count=REASONS_MAX)
            for row in riskiest.tolist()
            if probabilities[row] >= EXPLAINED_FROM and forecast.known[row]
        }
        return forecast, reasons

    # ------------------------------------------------------------------ in shadow

    def compare(
        self, windows: Windows, nodes: Sequence[str], live: Forecast, state: ClusterState
    ) -> None:
        """Ask the model in shadow, if there is one, about what `live` was said of; in its thread.

        A round comes while the one before is under way is left out.
        """
        shadow = self.shadow
        if shadow is None or shadow.given_up:
            return
        if self._comparing is None or self._comparing.done():
            work = self._compared(shadow, windows, nodes, live, state)
            self._comparing = asyncio.create_task(work, name="shadow")

    async def _compared(
        self,
        shadow: Shadow,
        windows: Windows,
        nodes: Sequence[str],
        live: Forecast,
        state: ClusterState,
    ) -> None:
        forecaster = shadow.forecaster
        if forecaster is None:
            return
        loop = asyncio.get_running_loop()
        newest = windows[:, -forecaster.window :]
        work = loop.run_in_executor(self._shadow_thread, forecaster.predict, newest)
        done, _ = await asyncio.wait([work], timeout=MODEL_TIMEOUT_S)
        if not done:
            self._shadow_thread.shutdown(wait=False, cancel_futures=True)
            self._shadow_thread = _worker("las-shadow")
            shadow.given_up = f"one answer takes more than {MODEL_TIMEOUT_S:.0f} s"
            return
        try:
            told = await work
        except ModelRefused as error:
            shadow.given_up = str(error)
            return
        now_s = int(time.time())
        settle(shadow.comparison, state, now_s)
        rows = [
            row
            for row in np.flatnonzero(live.known & told.known).tolist()
            if state.is_node_up(NodeName(nodes[row]))
        ]
        names = [nodes[row] for row in rows]
        shadow.comparison.add(now_s, names, live.p_10_min[rows], told.p_10_min[rows])


def _shadow_of(registry: ModelRegistry, candidate: int | None) -> Shadow | None:
    version = registry.version(candidate)
    if version is None:
        return None
    try:
        return Shadow(version.version, ForecastModel.from_bytes(version.content))
    except ModelRefused as error:
        _log.error("model in shadow refused", version=version.version, why=str(error))
        return Shadow(version.version, None, given_up=f"it cannot be used here: {error}")


def _worker(name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix=name)
