"""The forecast on the leader: windows in, one model run a second in its own thread, flags out.

Invariants:
- The event loop never waits for the model: it copies the windows, a thread judges the copy.
- What is decided is committed; each second's forecast is not.
- A model in shadow is asked after the judgement, and what it says reaches nothing but its own
  comparison (las/daemon/model.py).
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from las.core import protection
from las.core.commands import SetAtRisk
from las.core.index import FleetIndex
from las.core.judgement import NOBODY_BUSY, Finding, Judge, Outlook, Stake, Verdict
from las.core.signs import NO_SIGNS, Signs
from las.core.state import ClusterState, NodeState
from las.daemon.config import Policy
from las.daemon.disk_readings import DiskReadings
from las.daemon.evidence import hard_signs
from las.daemon.group import Group
from las.daemon.ledger import Ledger
from las.daemon.model import Model
from las.daemon.outside_forecasts import OutsideForecasts
from las.daemon.slow_heads import SlowForecast
from las.forecast.answer import Reason
from las.forecast.contract import HORIZONS_S
from las.forecast.signs import read_signs
from las.forecast.window import FleetFull, FleetWindows
from las.v1 import fleet_pb2
from peerd.core.ids import NodeName
from peerd.daemon.logging import get_logger
from peerd.daemon.telemetry.schema import TELEMETRY_SCHEMA
from peerd.transport.status import Refused

NAN = float("nan")

_log = get_logger("forecast")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOutlook:
    """The forecast of one node. `probabilities` are by horizon of `HORIZONS_S`."""

    node: NodeName
    probabilities: tuple[float, ...]
    known: bool
    input_age_ms: int
    calibrated: bool = True
    signs: Signs = NO_SIGNS
    reasons: tuple[Reason, ...] = ()
    hard: bool = False

    @property
    def judged(self) -> Outlook:
        """As the judgement takes it."""
        return Outlook(
            horizons=tuple(zip(HORIZONS_S, self.probabilities, strict=True)),
            known=self.known,
            calibrated=self.calibrated,
            signs=self.signs,
            hard=self.hard,
        )

    @property
    def p_10_min(self) -> float:
        """Probability of failing within 10 minutes."""
        return self.probabilities[HORIZONS_S.index(600)]

    @property
    def words(self) -> str:
        """`p(10 min) 0.87: fsync p99 ×31 (62 ms), commit stalls 4/s`."""
        text = f"p(10 min) {self.p_10_min:.2f}"
        reasons = ", ".join(reason.text for reason in self.reasons)
        return f"{text}: {reasons}" if reasons else text


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One run for the whole fleet. `timestamp_ms` is wall time, for people."""

    number: int = 0
    timestamp_ms: int = 0
    model_id: str = ""
    nodes: Mapping[NodeName, NodeOutlook] = field(default_factory=dict)
    verdict: Verdict = field(default_factory=Verdict)
    slow: SlowForecast = field(default_factory=SlowForecast)


class FleetForecaster:
    """The forecast of one term. Used on the event loop."""

    def __init__(
        self,
        group: Group,
        policy: Policy,
        model: Model,
        ledger: Ledger,
        stored_bytes: Callable[[NodeName], int],
        *,
        busy: Callable[[int], Mapping[NodeName, int]] = lambda _: NOBODY_BUSY,
    ) -> None:
        """`stored_bytes` tells how much a node stores, as far as it is known; `busy` who has just
        taken over many shards, as `TakeOvers.busy`.
        """
        self._busy = busy
        self._group = group
        self._policy = policy
        self.model = model
        self._ledger = ledger
        self._stored_bytes = stored_bytes
        self.judge = Judge(policy.rules())
        self._windows = FleetWindows(model.window)
        self._unreadable: set[NodeName] = set()
        self._metrics: dict[NodeName, int] = {}
        self._evaluated = asyncio.Event()
        self.latest = Evaluation()
        self.outside = OutsideForecasts()
        self.disks = DiskReadings()
        self._distrusted = False
        self._held_back: set[NodeName] = set()
        self.decisions = Counter({"at_risk": 0, "recovered": 0})

    @property
    def evaluated(self) -> asyncio.Event:
        """The event that is set by the next evaluation; take it before looking, then wait."""
        return self._evaluated

    @property
    def unreadable(self) -> frozenset[NodeName]:
        """Nodes whose samples follow a telemetry schema that this program does not know."""
        return frozenset(self._unreadable)

    def registered(self, node: NodeName, schema_version: int) -> None:
        """A node says which telemetry schema its samples follow; an earlier one will do."""
        metrics = TELEMETRY_SCHEMA.metrics_of(schema_version)
        if metrics is not None:
            self._unreadable.discard(node)
            self._metrics[node] = metrics
        else:
            self._unreadable.add(node)
            _log.warning("other telemetry schema", node=node, version=schema_version)

    def take(self, node: NodeName, samples: Iterable[fleet_pb2.HealthSample], now_ms: int) -> None:
        """Samples of a heartbeat."""
        if node in self._unreadable:
            return
        for sample in samples:
            values = self._whole(node, sample.values)
            if not self.take_row(
                node,
                sequence=sample.sequence,
                age_ms=sample.age_ms,
                values=values,
                now_ms=now_ms,
            ):
                return

    def take_row(
        self,
        node: NodeName,
        *,
        sequence: int,
        age_ms: int,
        values: Sequence[float],
        now_ms: int,
    ) -> bool:
        """One sample, as `FleetWindows.add`; False if it cannot be read, which is told."""
        try:
            self._windows.add(node, sequence=sequence, age_ms=age_ms, values=values, now_ms=now_ms)
        except (FleetFull, ValueError) as error:
            self._unreadable.add(node)
            _log.warning("samples not read", node=node, why=str(error))
            return False
        return True

    def _whole(self, node: NodeName, values: Sequence[float]) -> Sequence[float]:
        """Values of an earlier schema with those missing that it did not have."""
        lacking = len(TELEMETRY_SCHEMA) - self._metrics.get(node, len(TELEMETRY_SCHEMA))
        return values if lacking == 0 else [*values, *[NAN] * lacking]

    async def run(self) -> None:
        """Evaluate each `interval_ms`, for ever."""
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            # From now on if the loop was late: two forecasts of the same second tell nothing.
            due_s = max(due_s + self._policy.interval_ms / 1000, loop.time())
            await asyncio.sleep(due_s - loop.time())
            await self.evaluate(int(time.monotonic() * 1000))

    async def evaluate(self, now_ms: int) -> None:
        """One evaluation, and what follows from it."""
        await self.model.follow(self._group.state.models)
        snapshot = self._windows.snapshot(now_ms=now_ms)
        ages_ms = snapshot.age_ms
        windows = snapshot.windows.copy()
        forecast, reasons = await self.model.judge(windows)
        signs = await asyncio.to_thread(read_signs, windows)
        hard = hard_signs(windows)
        slow = await self.model.ask_slow_heads(self._group.state, self.disks, int(time.time()))
        state, index = self._group.indexed()
        nodes = {
            NodeName(name): NodeOutlook(
                node=NodeName(name),
                probabilities=tuple(forecast.probabilities[row].tolist()),
                known=bool(forecast.known[row]),
                input_age_ms=int(ages_ms[row]),
                calibrated=forecast.calibrated,
                signs=signs[row],
                reasons=reasons.get(row, ()),
                hard=bool(hard[row]),
            )
            for row, name in enumerate(snapshot.nodes)
            if state.is_node_up(NodeName(name))  # of the dead nothing is to be foreseen
        }
        outlooks = self.outside.joined(_judged(state, nodes), now_ms)
        stakes = {
            name: self._stake(state, index, name)
            for name, outlook in outlooks.items()
            if outlook.known
        }
        verdict = self.judge.judge(
            outlooks,
            at_risk_nodes(state) | self._ledger.left_alone(),
            now_ms,
            stakes=stakes,
            busy=self._busy(now_ms),
            drift=self._ledger.drift(forecast.model_id),
        )
        self.latest = Evaluation(
            number=self.latest.number + 1,
            timestamp_ms=int(time.time() * 1000),
            model_id=forecast.model_id,
            nodes=nodes,
            verdict=verdict,
            slow=slow,
        )
        event, self._evaluated = self._evaluated, asyncio.Event()
        event.set()
        await self._carry_out(verdict, stakes)
        self.model.compare(windows, snapshot.nodes, forecast, state)

    def _stake(self, state: ClusterState, index: FleetIndex, name: NodeName) -> Stake:
        stored = self._stored_bytes(name)
        spared = state.nodes[name].at_risk and protection.is_spared(state, name, index)
        return Stake(
            led=index.leading[name],
            voting=index.voting[name],
            stored_bytes=stored,
            copy_bytes=0 if spared else stored,
        )

    async def _carry_out(self, verdict: Verdict, stakes: Mapping[NodeName, Stake]) -> None:
        if verdict.distrust and not self._distrusted:
            _log.error("not believed", why=verdict.distrust, crying=verdict.crying)
        self._distrusted = bool(verdict.distrust)
        held_back = set(verdict.held_back)
        told = [node for node in verdict.held_back if node not in self._held_back]
        self._held_back &= held_back
        for node in (*verdict.begin, *told, *verdict.end):
            _log.warning("judged", node=node, why=verdict.why[node], seen=self.words(node))
            try:
                await self._carry_out_one(node, verdict, stakes.get(node, Stake()))
            except Refused as refused:
                # The next evaluation finds it still to be done.
                _log.warning("judgement not committed", node=node, why=str(refused))

    async def _carry_out_one(self, node: NodeName, verdict: Verdict, stake: Stake) -> None:
        """The ledger first: what is done is never without its case. Raises `Refused`."""
        if node in verdict.end:
            await self._ledger.calm(node)
            if node in at_risk_nodes(self._group.state):
                await self._group.submit(SetAtRisk(node=node, at_risk=False))
                self.decisions["recovered"] += 1
            return
        is_held_back = node in verdict.held_back
        protect = await self._ledger.alarm(
            node,
            verdict.findings[node],
            stake,
            model_id=self._author(node, verdict.findings[node]),
            why=f"{verdict.why[node]}: {self.words(node)}",
            held_back=is_held_back,
        )
        if is_held_back:
            self._held_back.add(node)
        elif protect:
            await self._group.submit(SetAtRisk(node=node, at_risk=True))
            self.decisions["at_risk"] += 1

    def _author(self, node: NodeName, finding: Finding) -> str:
        """Whose probability decided: the ledger holds nobody to what another one said."""
        outlook = self.latest.nodes.get(node)
        known = {} if outlook is None or not outlook.known else dict(outlook.judged.horizons)
        highest, author = known.get(finding.horizon_s, 0.0), self.latest.model_id
        for told in self.outside.of(node, int(time.monotonic() * 1000)):
            probability = dict(told.horizons).get(finding.horizon_s, 0.0)
            if probability > highest:
                highest, author = probability, told.author
        return author

    def recent(self, node: NodeName, *, now_ms: int, count: int) -> npt.NDArray[np.float32]:
        """What a node's samples said in the last `count` seconds, as `FleetWindows.recent`."""
        return self._windows.recent(node, now_ms=now_ms, count=count)

    def words(self, node: NodeName) -> str:
        """Why a node's forecast is what it is; empty if it has none."""
        outlook = self.latest.nodes.get(node)
        told = [] if outlook is None else [outlook.words]
        told += [each.words for each in self.outside.of(node, int(time.monotonic() * 1000))]
        return "; ".join(told)


def _judged(state: ClusterState, nodes: Mapping[NodeName, NodeOutlook]) -> dict[NodeName, Outlook]:
    """Outlooks of all nodes that are up; one without samples is not known."""
    unknown = Outlook(known=False)
    return {
        name: nodes[name].judged if name in nodes else unknown
        for name, node in state.nodes.items()
        if node.state is NodeState.UP
    }


def at_risk_nodes(state: ClusterState) -> frozenset[NodeName]:
    """Nodes with the committed flag."""
    return frozenset(name for name, node in state.nodes.items() if node.at_risk)
