"""One term of leadership: what the leader hears, and the works that act on it.

Made at election, thrown away at its end; nothing survives it but what was committed.
"""

import asyncio
import time
from collections.abc import Coroutine, Iterator, Sequence
from typing import Protocol

from las.core.commands import Caller, RaiseCommandLevel, RecordRejoin
from las.core.history import Cause
from las.core.levels import FIRST_LEVEL
from las.core.patience import TakeOvers, taken_over
from las.core.placement import FleetView, Limits, Placement
from las.core.state import Node, NodeState
from las.daemon.clock import CommittedClock, Deadlines
from las.daemon.config import LasConfig, Policy, Telemetry
from las.daemon.cooling import Cooling
from las.daemon.copy_moves import CopyMover, SizeCalls
from las.daemon.detector import Detector, DetectorTiming, Judged
from las.daemon.evidence import LAST_SAMPLES, cause_of_end, cause_of_silence
from las.daemon.executor import Executor
from las.daemon.forecaster import FleetForecaster
from las.daemon.gap_recovery import Proposal, propose
from las.daemon.group import Group
from las.daemon.ledger import Ledger
from las.daemon.model import Model
from las.daemon.rebalancer import Rebalancer
from las.daemon.reconcile import PeerCalls
from las.daemon.release import LeadCalls, Releaser
from las.daemon.retention import Retention
from las.daemon.scraped import ScrapedTelemetry
from las.daemon.shard_steps import ShardSteps
from las.daemon.splitter import Splitter
from las.daemon.story import Story
from las.daemon.surplus import HolderCalls, SurplusReleaser
from las.daemon.trimmer import CutCalls, Trimmer
from las.daemon.vitals import Vitals
from las.daemon.writes import Writes
from las.v1 import fleet_pb2
from peerd.core.ids import BootId, Epoch, NodeName, ShardId, Tick
from peerd.daemon.logging import get_logger
from peerd.pki import Role
from peerd.transport.map_codec import decode_replica
from peerd.transport.status import Refused

# limit: refused registrations remembered for the status; as many lines as a person reads, and more.
REFUSED_KEPT_MAX = 100

_log = get_logger("term")

# What could not be committed is given again after this time. Seconds.
AGAIN_S = 1.0

Work = Coroutine[None, None, None]


def now_ms() -> int:
    """The leader's monotonic clock in milliseconds."""
    return int(time.monotonic() * 1000)


def wall_ms() -> int:
    """Milliseconds since 1970-01-01 UTC, for people."""
    return int(time.time() * 1000)


class Peers(PeerCalls, CutCalls, LeadCalls, HolderCalls, SizeCalls, Protocol):
    """All calls to peers."""


class Term:
    """Used on the event loop."""

    def __init__(
        self,
        number: int,
        group: Group,
        config: LasConfig,
        model: Model,
        peers: Peers,
    ) -> None:
        policy = config.policy
        self.number = number
        self.limits = Limits(
            repair_delay_ms=policy.repair_delay_s * 1000,
            mirror=policy.at_risk_action == "mirror",
        )
        self.vitals = Vitals(now_ms())
        self.detector = Detector(DetectorTiming(lease_ms=policy.lease_ms), Tick(now_ms()))
        self.over = asyncio.Event()
        self.refused: dict[NodeName, str] = {}
        """Nodes whose last registration in this term was refused, and why."""
        self._group = group
        self._peers = peers
        self.steps = ShardSteps(group)
        self.take_overs = self._find_take_overs(config)
        self.detector.busy = self.take_overs.busy
        self.executor = self._make_executor()
        self.clock = CommittedClock(group, now_ms)
        self._deadlines = Deadlines(group, self.clock)
        self._leaving: dict[NodeName, BootId] = {}
        self.ledger = Ledger(group, policy, wall_ms=wall_ms, pause_of=self.executor.take_pause_ms)
        self.forecaster = FleetForecaster(
            group, policy, model, self.ledger, self.vitals.stored_bytes, busy=self.take_overs.busy
        )
        self.scraped = self._scraped(config.telemetry)
        self.trimmer = Trimmer(group, peers)
        self._releaser = Releaser(group, peers, self._map_version)
        self._retention = Retention(
            group,
            peers,
            self.trimmer,
            period_ms=policy.retention_period_ms,
            clock=self.clock,
        )
        self._cooling = Cooling(group, self.trimmer, period_ms=policy.retention_period_ms)
        self._story = Story(group, self.forecaster.words, wall_ms)
        self._writes = Writes(self.vitals, lambda: group.state, now_ms)
        self.detector.writes = self._writes.rates
        self._balance(policy)

    def _balance(self, policy: Policy) -> None:
        """What moves votes, leads and copies, and what splits, while nothing else is to be done."""
        group, peers = self._group, self._peers
        self.copies = CopyMover(
            group,
            peers,
            policy,
            view=self.view,
            limits=self.limits,
            stored_bytes=self.vitals.told_bytes,
            now_ms=now_ms,
            wall_ms=wall_ms,
        )
        self.detector.moving = self.copies.moving
        self.rebalancer = Rebalancer(
            group,
            policy,
            view=self.view,
            limits=self.limits,
            writes=lambda: self._writes.rates,
            now_ms=now_ms,
            wall_ms=wall_ms,
            copies=self.copies,
        )
        self.surplus = SurplusReleaser(
            group,
            peers,
            policy,
            stored_bytes=self.vitals.stored_bytes,
            now_ms=now_ms,
            moving=self.copies.moving,
            givers=self.copies.givers,
        )
        self.splitter = Splitter(
            group,
            policy,
            self.vitals,
            writes=lambda: self._writes.rates,
            now_ms=now_ms,
            wall_ms=wall_ms,
            moving=self.copies.moving,
        )

    def _find_take_overs(self, config: LasConfig) -> TakeOvers:
        """Who is busy with the shards of others, also if an earlier leader gave them."""
        patience_ms = config.policy.take_over_patience_s * 1000
        found = TakeOvers(shards_min=config.policy.take_over_shards, patience_ms=patience_ms)
        began_ms, now_s = now_ms(), wall_ms() // 1000
        given = taken_over(self._group.state, now_s=now_s, patience_ms=patience_ms)
        # The oldest first: patience lasts from the first shard on.
        for nodes, age_ms in sorted(given, key=lambda each: -each[1]):
            found.opened(nodes, began_ms - age_ms)
        return found

    def _make_executor(self) -> Executor:
        return Executor(
            consensus=self._group,
            step=self.steps.submit,
            peers=self._peers,
            detector=self.detector,
            limits=self.limits,
            now=lambda: Tick(now_ms()),
            wall_ms=wall_ms,
            cause=self._cause,
            take_overs=self.take_overs,
        )

    def works(self) -> Iterator[tuple[str, Work]]:
        """What runs while the term lasts, by name; each goes on until it is cancelled."""
        yield "steps of shards", self.steps.run()
        yield "executor", self.executor.run()
        yield "watch of the map", self._wake_executor()
        yield "forecast", self.forecaster.run()
        if self.scraped is not None:
            yield "Prometheus", self.scraped.run()
        yield "story", self._story.run()
        yield "ledger", self.ledger.run()
        yield "retention", self._retention.run()
        yield "cooling", self._cooling.run()
        yield "deadlines", self._deadlines.run()
        yield "release", self._releaser.run()
        yield "rejoins", self._record_rejoins()
        yield "writes", self._writes.run()
        yield "rebalance", self.rebalancer.run()
        yield "surplus", self.surplus.run()
        yield "splits", self.splitter.run()
        yield "command level", self._raise_command_level()

    def _map_version(self, name: NodeName) -> int:
        heard = self.vitals.of(name)
        return 0 if heard is None else heard.map_version

    async def _record_rejoins(self) -> None:
        """A LAS node that came back with another directory is told in the audit, once."""
        told: set[tuple[str, str]] = set()
        with self._group.watch() as changed:
            while True:
                for name, store in self._group.status.rejoined:
                    if (name, store) not in told:
                        await self._record_rejoin(name, store)
                        told.add((name, store))
                await changed.wait()
                changed.clear()

    async def _raise_command_level(self) -> None:
        """A new group uses what all its members know (docs/protocol.md §4.7).

        Once it has, a person says when it goes on: `FleetService.FinalizeUpgrade`.
        """
        with self._group.watch() as changed:
            while True:
                level = self._group.status.command_level
                if level > FIRST_LEVEL == self._group.state.command_level:
                    try:
                        await self._group.submit(RaiseCommandLevel(level=level))
                    except Refused:
                        await asyncio.sleep(AGAIN_S)
                        continue
                    _log.info("all members know these commands", level=level)
                await changed.wait()
                changed.clear()

    async def _record_rejoin(self, name: str, store: str) -> None:
        caller = Caller(
            who=name,
            role=Role.LAS.value,
            what="las rejoin",
            clock_ms=self.clock.clock_ms,
            timestamp_ms=wall_ms(),
        )
        while True:
            try:
                await self._group.submit(RecordRejoin(caller=caller, store=store))
            except Refused:
                await asyncio.sleep(AGAIN_S)
            else:
                return

    async def _wake_executor(self) -> None:
        with self._group.watch() as changed:
            while True:
                await changed.wait()
                changed.clear()
                self.executor.wake()

    def _scraped(self, telemetry: Telemetry) -> ScrapedTelemetry | None:
        if telemetry.source != "prometheus":
            return None

        def take(node: NodeName, second: int, age_ms: int, values: Sequence[float]) -> None:
            self.forecaster.take_row(
                node, sequence=second, age_ms=age_ms, values=values, now_ms=now_ms()
            )

        return ScrapedTelemetry(
            telemetry,
            state=lambda: self._group.state,
            take=take,
            window_s=self.forecaster.model.window,
            wall_ms=wall_ms,
        )

    def end(self) -> None:
        """The leadership is lost: streams end, works are cancelled by who started them."""
        self.over.set()
        self.forecaster.evaluated.set()

    def view(self) -> FleetView:
        """What the planner may know beside the committed state."""
        return self.detector.view(self._group.state, Tick(now_ms()))

    async def propose_gap(self, shard: ShardId, why: str) -> Proposal:
        """What a person may give up for `shard`. Raises `Refused`; see `gap_recovery.propose`."""

        def placement() -> Placement:
            state, index = self._group.indexed()
            return Placement(state, self.view(), self.limits, index)

        return await propose(lambda: self._group.state, self._peers, placement, shard, why)

    def heartbeat(
        self, node: NodeName, boot: BootId, heartbeat: fleet_pb2.HeartbeatRequest
    ) -> None:
        """A heartbeat of the registered process of `node`."""
        now = now_ms()
        self.vitals.heard(node, boot, heartbeat, now)
        self.detector.heard(
            node, boot, Tick(now), heartbeat.free_bytes, heartbeat.network_bytes_per_s
        )
        if heartbeat.HasField("disk"):
            self.forecaster.disks.take(node, heartbeat.disk)
        if self.scraped is None:
            self.forecaster.take(node, heartbeat.samples, now)

    def turned_away(self, node: NodeName, why: str) -> None:
        """The registration of a node was refused; told to operators until one is taken."""
        if len(self.refused) < REFUSED_KEPT_MAX or node in self.refused:
            self.refused[node] = why

    def replaced(self, node: NodeName) -> None:
        """Somebody let a new store of a node in: what was refused before is not true any more."""
        self.refused.pop(node, None)

    def registered(self, node: NodeName, boot: BootId, schema_version: int) -> None:
        """A process registered."""
        self.refused.pop(node, None)
        self.detector.heard(node, boot, Tick(now_ms()))
        self.forecaster.registered(node, schema_version)

    def leaving(self, node: NodeName, boot: BootId) -> None:
        """A process said that it stops because somebody wants it to."""
        self._leaving[node] = boot

    def cause_of_end(self, node: NodeName, boot: BootId, *, refused: bool) -> Cause:
        """Why the process `boot` of a node ended, as far as it is known."""
        if self._leaving.get(node) == boot:
            return Cause.OPERATOR
        # A silent node is judged some seconds after its last sample.
        seconds = LAST_SAMPLES + self.vitals.silent_ms(node, now_ms()) // 1000
        recent = self.forecaster.recent(node, now_ms=now_ms(), count=seconds)
        return cause_of_end(recent, refused=refused)

    def _cause(self, verdict: Judged) -> Cause:
        if verdict.state is not NodeState.UP:
            return self.cause_of_end(verdict.node, verdict.boot, refused=verdict.refused)
        seconds = verdict.silent_ms // 1000
        return cause_of_silence(
            self.forecaster.recent(verdict.node, now_ms=now_ms(), count=seconds)
        )

    def stream_broken(self, node: NodeName, boot: BootId) -> None:
        """The heartbeat stream of a process ended, and not by this node's will."""
        self.detector.stream_broken(node, boot)
        self.executor.wake()

    def suspect(self, accuser: Node, report: fleet_pb2.Suspect) -> None:
        """A peer cannot hear another one."""
        self.detector.suspected(
            accuser.name,
            NodeName(report.peer),
            BootId(report.boot_id),
            refused=report.connection_refused,
            now=Tick(now_ms()),
        )
        self.executor.wake()

    def stall(self, accuser: Node, report: fleet_pb2.Stall) -> None:
        """The acknowledgements of a voter stall at its primary."""
        self.detector.stalled(
            accuser.name,
            ShardId(report.shard),
            Epoch(report.epoch),
            decode_replica(report.voter),
            Tick(now_ms()),
        )
        self.executor.wake()
