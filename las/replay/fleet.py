"""A fleet in virtual time: recorded outages, the daemon's judgement, planner and commands.

The state is a real `ClusterState`, changed by real commands only; the planner and the recovery
plans are the LAS's own. What is made up is time: a switch takes none, a failover `failover_s`, a
copy its bytes at `copy_bytes_per_s` of the store that it is read from, one after the other.

Each shard has one sealed segment of `bytes_per_shard`, which stands for its past. New records are
not modelled: what they would meet is in the pauses.

What is counted:
- *Unavailability*: shard-seconds without appends. A primary's death costs `failover_s`, unless no
  shard needed it; a shard with fewer live voters than `acks` waits for one to return.
- *Short*: byte-seconds on fewer live copies than promised. A copy on a node that is down is none.
- *Loss*: a failure destroys its store with probability `destroyed`, independently. A shard loses
  records if all its stores were destroyed before a copy was made anew. That all of them were down
  at once is counted as it happened; from the time on one and on two live copies follows, at the
  fleet's rate of failures, how often it would be expected. An estimate for comparing ways, no more.
- *Copied* bytes, and *extra* byte-seconds on more live copies than promised.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, replace

from las.core import planner, protection
from las.core.apply import apply
from las.core.commands import (
    AddHolder,
    Command,
    CreateLog,
    DropHolder,
    FenceSegment,
    OpenSegment,
    PrepareSegment,
    RecoveredSegment,
    RegisterNode,
    Result,
    SegmentOpened,
    SetAtRisk,
    SetNodeState,
    WantHolders,
)
from las.core.index import FleetIndex
from las.core.judgement import COST_LINE_MIN, Rules, Stake
from las.core.placement import FleetView, Limits, Placement
from las.core.planner import Prepare, Recover, Want
from las.core.recovery import Recovered
from las.core.state import LOG_SHARDS_MAX, ClusterState, NodeState, ShardEntry
from las.forecast.history_inputs import Place
from peerd.core.check import invariant
from peerd.core.ids import BootId, Epoch, NodeName, Offset, ReplicaId, ShardId, StoreId, Tick
from peerd.core.shard_map import Segment

_PAST = Offset(1)
"""The one record that stands for all that a shard holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What of the fleet is made up. `react` False: nobody moves anything, ever."""

    shards_per_node: float = 1.0
    copies: int = 3
    acks: int = 2
    bytes_per_node: int = 10**12
    copy_bytes_per_s: float = 100e6
    failover_s: float = 2.0
    repair_delay_s: int = 600
    destroyed: float = 0.02
    react: bool = True

    @property
    def bytes_per_shard(self) -> float:
        """Bytes of one shard, of which each node has its share of the copies."""
        return self.bytes_per_node / (self.shards_per_node * self.copies)


@dataclass(slots=True)
class Tally:
    """What a run cost; see the module."""

    failures: int = 0
    shielded: int = 0
    expendable: int = 0
    alarms: int = 0
    unavailable_s: float = 0.0
    short_byte_s: float = 0.0
    extra_byte_s: float = 0.0
    copied_bytes: float = 0.0
    copies_gone: int = 0
    all_down: int = 0
    one_live_s: float = 0.0
    two_live_s: float = 0.0

    def losses(self, model: Model, node_s: float) -> float:
        """Expected shards with lost records, over `node_s` seconds of all nodes together."""
        rate = self.failures / node_s
        repair_s = self.short_byte_s / model.bytes_per_shard / max(1, self.copies_gone)
        expected = self.all_down + rate * self.one_live_s + rate**2 * repair_s * self.two_live_s
        return expected * model.destroyed**model.copies


class VirtualFleet:
    """Nodes are named by their place in `places`; seconds are those of the history."""

    def __init__(self, places: Iterable[Place], model: Model, begin_s: int) -> None:
        self.model = model
        self.tally = Tally()
        self.state = ClusterState(cluster_id="replay")
        self._index = FleetIndex()
        self._limits = Limits(
            changes_max=1 << 30,
            copies_max=1 << 30,
            repair_delay_ms=model.repair_delay_s * 1_000,
        )
        self._begin_s = begin_s
        self._boots: dict[NodeName, int] = {}
        self._down_since: dict[NodeName, Tick] = {}
        self._waiting_since: dict[ShardId, float] = {}
        self._seen: dict[ShardId, tuple[float, int]] = {}
        self._reading_until: dict[NodeName, float] = {}
        self._due: list[tuple[float, int, ShardId, Epoch, ReplicaId | None]] = []
        self._number = 0
        self._create(list(places))
        self._placement = Placement(self.state, self._view(begin_s), self._limits, self._index)

    # ------------------------------------------------------------------ the beginning
    def _create(self, places: list[Place]) -> None:
        for place in places:
            name = NodeName(place.node)
            labels = (("host", place.host or place.node), ("rack", place.rack))
            self._boots[name] = 1
            self._do(self._registration(name, tuple(pair for pair in labels if pair[1])))
        left = max(1, round(len(places) * self.model.shards_per_node))
        # Few large logs, since each looks at the whole fleet; a log lies on so many nodes at most.
        rows_max = min(LOG_SHARDS_MAX, planner.INITIAL_NODES_MAX // self.model.copies)
        number = 0
        while left > 0:
            count = min(left, rows_max)
            found = planner.initial_plans(
                self.state,
                self._view(self._begin_s),
                self._limits,
                shards=count,
                copies=self.model.copies,
                index=self._index,
            )
            if isinstance(found, str):
                raise ValueError(f"the fleet is too small to replay: {found}")
            number += 1
            self._do(
                CreateLog(
                    name=f"log-{number}",
                    copies=self.model.copies,
                    acks=self.model.acks,
                    nodes=found.nodes,
                    rows=found.rows,
                )
            )
            left -= count
        self._give_past()

    def _give_past(self) -> None:
        """Each shard gets a sealed segment that its voters hold."""
        entries = []
        for entry in self.state.shards.values():
            plan = entry.shard.open.plan
            past = replace(
                entry.shard.open, end=_PAST, known_commit=_PAST, holders=tuple(plan.voters)
            )
            opened = Segment(epoch=Epoch(past.epoch + 1), begin=_PAST, plan=plan)
            shard = replace(entry.shard, open=opened, sealed=(past,))
            entries.append(replace(entry, shard=shard, drawn=opened.epoch))
            self._seen[entry.shard.shard] = (self._begin_s, self.model.copies)
        self.state = self.state.changed(shards=entries)
        self._index.update(self.state)

    def _registration(self, name: NodeName, labels: tuple[tuple[str, str], ...]) -> RegisterNode:
        return RegisterNode(
            name=name,
            store=StoreId(f"store-{name}"),
            boot=BootId(f"boot-{name}-{self._boots[name]}"),
            address="",
            labels=labels,
            feature_level=2,
        )

    def _do(self, command: Command) -> Result:
        self.state, result = apply(self.state, command)
        self._index.update(self.state)
        return result

    def _view(self, now_s: float) -> FleetView:
        return FleetView(now=Tick(int(now_s * 1_000)), down_since=self._down_since)

    # ------------------------------------------------------------------ what happens
    def advance(self, until_s: float) -> None:
        """Carry out what is due by then: copies that are done, repairs that were put off."""
        while self._due and self._due[0][0] <= until_s:
            at_s, _, shard, epoch, holder = heapq.heappop(self._due)
            if holder is None:
                self._plan([shard], at_s)
                continue
            past = self.state.shards[shard].shard.sealed[0]
            if holder not in past.wanted_holders or not self.state.is_up(holder):
                continue
            self._do(AddHolder(shard=shard, epoch=epoch, holder=holder))
            self.tally.copied_bytes += self.model.bytes_per_shard
            self._count([shard], at_s)

    def down(self, name: NodeName, now_s: float, *, failed: bool) -> None:
        """A node goes down; `failed`: nobody wished it, so that it counts."""
        node = self.state.nodes[name]
        if node.state is not NodeState.UP:
            return
        self.tally.failures += failed
        if failed and node.at_risk:
            self.tally.shielded += protection.is_shielded(self.state, name, self._index)
            self.tally.expendable += protection.is_expendable(self.state, name, self._index)
        shards = sorted(self._index.shards_of(name))
        led = [s for s in shards if self.state.shards[s].shard.open.plan.primary.peer == name]
        self._down_since[name] = Tick(int(now_s * 1_000))
        self._do(SetNodeState(node=name, boot=node.boot, state=NodeState.DOWN))
        self._placement.refresh(self.state.nodes[name])
        self._count(shards, now_s)
        if failed:
            self._count_losses(shards)
        if self.model.react:
            self.tally.unavailable_s += self.model.failover_s * len(led)
            self._plan(shards, now_s)
            for shard in shards:
                self._later(now_s + self.model.repair_delay_s, shard, None)
        self._watch(shards, now_s)

    def up(self, name: NodeName, now_s: float) -> None:
        """A node is back, with all that it had."""
        node = self.state.nodes[name]
        if node.state is NodeState.UP:
            return
        self._down_since.pop(name, None)
        self._boots[name] += 1
        self._do(self._registration(name, node.labels))
        self._placement.refresh(self.state.nodes[name])
        shards = sorted(self._index.shards_of(name))
        self._count(shards, now_s)
        if self.model.react:
            self._plan(shards, now_s)
            self._drop_surplus(shards, now_s)
        self._watch(shards, now_s)

    def set_at_risk(self, name: NodeName, now_s: float, *, at_risk: bool) -> None:
        """The judgement of a node changed."""
        self.tally.alarms += at_risk
        self._do(SetAtRisk(node=name, at_risk=at_risk))
        self._placement.refresh(self.state.nodes[name])
        shards = sorted(self._index.shards_of(name))
        self._plan(shards, now_s)
        if not at_risk:
            self._drop_surplus(shards, now_s)

    def end(self, now_s: float) -> Tally:
        """What it all cost, counted up to now."""
        self.advance(now_s)
        self._count(self.state.shards, now_s)
        for since_s in self._waiting_since.values():
            self.tally.unavailable_s += now_s - since_s
        self._waiting_since.clear()
        return self.tally

    # ------------------------------------------------------------------ what is known of nodes
    def is_up(self, name: NodeName) -> bool:
        """Whether the node serves."""
        return name not in self._down_since

    def stake(self, name: NodeName) -> Stake:
        """What its failure would touch; each node is taken to store the same."""
        stored = self.model.bytes_per_node
        spared = self.state.nodes[name].at_risk and protection.is_spared(
            self.state, name, self._index
        )
        return Stake(
            led=self._index.leading[name],
            voting=self._index.voting[name],
            stored_bytes=stored,
            copy_bytes=0 if spared else stored,
        )

    def cost_line_min(self, rules: Rules) -> float:
        """A probability below which protecting no node of this fleet pays."""
        led = 4 * max(1.0, self.model.shards_per_node)
        stored = self.model.bytes_per_node
        failure = led * rules.pause_cost_bytes + stored * rules.exposure_cost
        return max(COST_LINE_MIN, stored / failure if failure else 1.0)

    # ------------------------------------------------------------------ what is done about it
    def _plan(self, shards: Iterable[ShardId], now_s: float) -> None:
        """What the planner wants for these shards, done at once but for the copies."""
        wanted = [shard for shard in shards if self._may_plan(shard)]
        actions = planner.plan(
            self.state,
            self._view(now_s),
            self._limits,
            index=self._index,
            shards=wanted,
            placement=self._placement,
        )
        for action in actions:
            if isinstance(action, Recover):
                self._recover(action)
            elif isinstance(action, Prepare):
                self._switch(action)
            elif isinstance(action, Want):
                self._fetch(action, now_s)

    def _may_plan(self, shard: ShardId) -> bool:
        """Whether enough voters are up to find out where the open segment ends, if that is due."""
        plan = self.state.shards[shard].shard.open.plan
        return sum(map(self.state.is_up, plan.voters)) > len(plan.voters) - plan.acks

    def _switch(self, action: Prepare) -> None:
        prepared = self._do(
            PrepareSegment(shard=action.shard, epoch=action.epoch, plan=action.plan, why="")
        )
        if not prepared.ok:
            return
        before = self.state.shards[action.shard].shard.open
        holders = tuple(each for each in before.plan.voters if self.state.is_up(each))
        opened = SegmentOpened(
            shard=action.shard, epoch=prepared.epoch, begin=before.begin or _PAST, holders=holders
        )
        invariant(self._do(opened).ok, "a prepared segment can be opened")

    def _recover(self, action: Recover) -> None:
        before = self.state.shards[action.shard].shard.open
        begin = before.begin or _PAST
        holders = tuple(each for each in before.plan.voters if self.state.is_up(each))
        ended = RecoveredSegment(end=begin, known_commit=begin, holders=holders)
        fence = self._do(FenceSegment(shard=action.shard, epoch=before.epoch, why=""))
        plan = planner.recovery_plan(
            self.state,
            self._placement,
            shard=action.shard,
            recovered=Recovered(ended=ended),
            answered=frozenset(holders),
        )
        if plan is not None:
            command = OpenSegment(shard=action.shard, fence=fence.epoch, plan=plan, ended=ended)
            invariant(self._do(command).ok, "a fence can be finished")

    def _fetch(self, action: Want, now_s: float) -> None:
        past = self.state.shards[action.shard].shard.sealed[0]
        new = [each for each in action.holders if each not in past.wanted_holders]
        self._do(WantHolders(shard=action.shard, epoch=action.epoch, holders=action.holders))
        sources = [each.peer for each in past.holders if self.state.is_up(each)]
        for holder in new if sources else []:
            source = min(sources, key=lambda name: (self._reading_until.get(name, now_s), name))
            begin_s = max(now_s, self._reading_until.get(source, now_s))
            done_s = begin_s + self.model.bytes_per_shard / self.model.copy_bytes_per_s
            self._reading_until[source] = done_s
            self._later(done_s, action.shard, holder)

    def _drop_surplus(self, shards: Iterable[ShardId], now_s: float) -> None:
        """Copies that are more than promised and not of voters go, the newest first."""
        for shard in shards:
            entry = self.state.shards[shard].shard
            past, copies = entry.sealed[0], self.model.copies
            healthy = [each for each in past.holders if self.state.is_healthy(each)]
            spare = [each for each in healthy if each not in entry.open.plan.voters]
            for holder in spare[::-1][: max(0, len(healthy) - copies)]:
                self._do(DropHolder(shard=shard, epoch=past.epoch, holder=holder))
        self._count(shards, now_s)

    def _later(self, at_s: float, shard: ShardId, holder: ReplicaId | None) -> None:
        self._number += 1
        epoch = self.state.shards[shard].shard.sealed[0].epoch
        heapq.heappush(self._due, (at_s, self._number, shard, epoch, holder))

    # ------------------------------------------------------------------ counting
    def _count(self, shards: Iterable[ShardId], now_s: float) -> None:
        """Count up to now how many live copies these shards had, and look how many they have."""
        size, copies = self.model.bytes_per_shard, self.model.copies
        for shard in shards:
            since_s, live = self._seen[shard]
            span_s = now_s - since_s
            self.tally.short_byte_s += size * span_s * max(0, copies - live)
            self.tally.extra_byte_s += size * span_s * max(0, live - copies)
            holders = self.state.shards[shard].shard.sealed[0].holders
            self.tally.one_live_s += span_s * (live == 1)
            self.tally.two_live_s += span_s * (live == 2)
            self._seen[shard] = now_s, sum(map(self.state.is_up, holders))

    def _count_losses(self, shards: Iterable[ShardId]) -> None:
        for shard in shards:
            holders = self.state.shards[shard].shard.sealed[0].holders
            self.tally.copies_gone += 1
            self.tally.all_down += not any(map(self.state.is_up, holders))

    def _watch(self, shards: Iterable[ShardId], now_s: float) -> None:
        """Shards that cannot take appends wait from now on; others wait no more."""
        for shard in shards:
            waits = self._waits(self.state.shards[shard])
            if waits:
                self._waiting_since.setdefault(shard, now_s)
            elif (since_s := self._waiting_since.pop(shard, None)) is not None:
                self.tally.unavailable_s += now_s - since_s

    def _waits(self, entry: ShardEntry) -> bool:
        plan = entry.shard.open.plan
        alive = sum(map(self.state.is_up, plan.voters))
        if self.model.react:
            return alive < plan.acks
        return alive < plan.acks or not self.state.is_up(plan.primary.replica)
