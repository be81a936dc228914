"""The LAS in a simulation: the real committed state and its commands, and actors that use them.

The state is `las.core`'s own, as a linearizable register: a command is committed when it is
applied. Two actors look at it and command it at random moments, each from what it saw a while ago,
so that plans and fences race as they do when a leader changes. What they decide is
`las.core.recovery`.

Must not: help the protocol. An actor knows only the committed state, answers and reports.
"""

import random
from collections.abc import Callable
from functools import partial
from typing import Protocol

from las.core import apply as las_apply
from las.core import commands as c
from las.core import recovery
from las.core.state import ClusterState
from peerd.core.effects import (
    Declined,
    EpochAnswer,
    HasBegunAnswer,
    HigherPromise,
    PromiseAnswered,
    Report,
    SegmentOpened,
    Stall,
)
from peerd.core.ids import NO_EPOCH, BootId, Epoch, NodeName, ProcessId, ReplicaId, ShardId, StoreId
from peerd.core.shard_map import Plan, Segment, Shard
from peerd.testing.history import BrokenPromise

LOOK_MS = (10, 60)
"""How often an actor looks."""
COPIES_AT_ONCE = 4
"""Segments that are being copied at the same time."""


class Peers(Protocol):
    """What the LAS can do with peers. Answers may be lost; then nothing is called."""

    def seems_dead(self, peer: NodeName) -> bool:
        """Whether nothing was heard of it for a while; it may be wrong."""

    def promise(
        self, to: ReplicaId, shard: Shard, answer: Callable[[PromiseAnswered], None]
    ) -> None:
        """Ask a voter to promise the standing fence."""

    def has_begun(
        self, to: ProcessId, epoch: Epoch, answer: Callable[[HasBegunAnswer], None]
    ) -> None:
        """Ask a process whether it has begun the prepared epoch."""

    def copy(self, segment: Segment, holder: ReplicaId) -> None:
        """Let `holder` fetch a sealed segment; `SimLas.copied` tells when it has it."""

    def later(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Do something after a while."""

    def map_changed(self, shard: Shard) -> None:
        """A command changed the shard's entry."""


class SimLas:
    """One shard's LAS."""

    def __init__(self, peers: Peers, rng: random.Random, copies: int, acks: int) -> None:
        self.state = ClusterState(cluster_id="simulation")
        self.restless = True
        self._peers = peers
        self._rng = rng
        self._copies = copies
        self._acks = acks
        self._answers: dict[Epoch, dict[ReplicaId, recovery.Answer]] = {}
        self._prepared_seen: dict[Epoch, int] = {}
        self._copying: set[tuple[Epoch, ReplicaId]] = set()

    @property
    def shard(self) -> Shard:
        """The committed entry."""
        return self.state.shards[ShardId(1)].shard

    # -------------------------------------------------------------- commands
    def commit(self, command: c.Command) -> c.Result:
        """Apply one command to the register."""
        before = self.state.shards.get(ShardId(1))
        self.state, result = las_apply.apply(self.state, command)
        after = self.state.shards.get(ShardId(1))
        if after is not None and after.halted:
            raise BrokenPromise(f"G7: the LAS halted the shard: {after.halted}")
        if after is not None and (before is None or before.shard != after.shard):
            self._peers.map_changed(after.shard)
        return result

    def register(self, process: ProcessId, epoch: Epoch) -> None:
        """A process announces itself and the highest epoch of its store."""
        stored = ((ShardId(1), epoch),) if epoch != NO_EPOCH else ()
        self.commit(
            c.RegisterNode(
                name=process.peer,
                store=process.store,
                boot=process.boot,
                address=f"{process.peer}:7400",
                labels=(("host", process.peer),),
                stored=las_apply.suspicious_epochs(self.state, stored),
            )
        )

    def create_log(self, peers: tuple[NodeName, ...]) -> None:
        """The log with its one shard."""
        self.commit(
            c.CreateLog(
                name="log",
                copies=self._copies,
                acks=self._acks,
                nodes=peers[: self._copies],
                rows=(tuple(range(self._copies)),),
            )
        )

    # -------------------------------------------------------------- actors
    def start(self) -> None:
        """Two actors, for ever."""
        for _ in range(2):
            self._look_again()

    def _look_again(self) -> None:
        self._peers.later(self._rng.randint(*LOOK_MS), self._look)

    def _look(self) -> None:
        seen = self.shard
        self._peers.later(self._rng.randint(0, 20), lambda: self._act(seen))
        self._look_again()

    def _act(self, seen: Shard) -> None:
        """One small step from a state that was seen a while ago."""
        if seen.fence != NO_EPOCH:
            self._pursue_fence(seen)
        elif self._is_dead(seen.open.plan.primary):
            self._replace_primary(seen)
        elif seen.prepared is not None and self._is_dead(seen.prepared.plan.primary):
            self._fence(seen)
        elif seen.prepared is None:
            self._improve(seen)
        self._repair(seen)

    def _is_dead(self, process: ProcessId) -> bool:
        """A new boot id proves it; silence makes it likely."""
        node = self.state.nodes[process.peer]
        return node.boot != process.boot or self._peers.seems_dead(process.peer)

    def _replace_primary(self, seen: Shard) -> None:
        """§4.2: "If e′ is prepared, the LAS first asks N whether it has begun"."""
        prepared = seen.prepared
        if prepared is None or self._is_dead(prepared.plan.primary):
            self._fence(seen)
            return

        def answered(answer: HasBegunAnswer) -> None:
            if answer.begun:
                self._opened(prepared.epoch, answer)
            else:
                self._fence(seen)

        self._peers.has_begun(prepared.plan.primary, prepared.epoch, answered)

    def _opened(self, epoch: Epoch, told: HasBegunAnswer | SegmentOpened) -> None:
        self.commit(
            c.SegmentOpened(shard=ShardId(1), epoch=epoch, begin=told.begin, holders=told.holders)
        )

    def _fence(self, seen: Shard) -> None:
        prepared = seen.prepared.epoch if seen.prepared is not None else NO_EPOCH
        command = c.FenceSegment(shard=ShardId(1), epoch=seen.open.epoch, prepared=prepared)
        self.commit(command)

    def _pursue_fence(self, seen: Shard) -> None:
        for voter in recovery.voters_to_ask(seen):
            self._peers.promise(voter, seen, partial(self._promised, seen, voter))

    def _promised(self, seen: Shard, voter: ReplicaId, answer: PromiseAnswered) -> None:
        answers = self._answers.setdefault(seen.fence, {})
        answers[voter] = recovery.Answer(
            replica=voter,
            promised=answer.promised,
            open=_translated(answer.open),
            prepared=_translated(answer.prepared),
        )
        if self.shard.fence != seen.fence:
            return
        decision = recovery.decide(seen, answers.values())
        if isinstance(decision, recovery.Contradiction):
            raise BrokenPromise(f"G7: {decision.replica.peer}: {decision.why}")
        if isinstance(decision, recovery.Recovered):
            plan = self._plan()
            if plan is not None:
                self.commit(
                    c.OpenSegment(
                        shard=ShardId(1),
                        fence=seen.fence,
                        plan=plan,
                        ended=decision.ended,
                        ended_prepared=decision.ended_prepared,
                    )
                )

    # -------------------------------------------------------------- plans
    def _healthy(self) -> list[ProcessId]:
        return [
            node.process
            for node in self.state.nodes.values()
            if not self._peers.seems_dead(node.name)
        ]

    def _plan(self, primary: ProcessId | None = None) -> Plan | None:
        """Some plan of healthy peers; with luck the primary is one that has the past."""
        healthy = self._healthy()
        if len(healthy) < self._acks or (primary is not None and primary not in healthy):
            return None
        self._rng.shuffle(healthy)
        first = primary if primary is not None else healthy[0]
        others = [process.replica for process in healthy if process != first]
        voters = self._rng.randint(max(0, self._acks - 1), self._copies - 1)
        extra = others[voters : voters + self._rng.randint(0, 1)]
        return Plan(
            primary=first,
            voters=(first.replica, *others[:voters]),
            non_voters=tuple(extra),
            acks=self._acks,
        )

    def _improve(self, seen: Shard) -> None:
        """Replace a dead voter; sometimes change the plan without any reason."""
        primary = seen.open.plan.primary
        dead = [each for each in seen.open.plan.voters if self._peers.seems_dead(each.peer)]
        whim = self.restless and self._rng.random() < 0.06
        if not dead and not whim:
            return
        stays = bool(dead) or self._rng.random() < 0.3
        plan = self._plan(primary if stays else None)
        if plan is not None and plan != seen.open.plan:
            command = c.PrepareSegment(shard=ShardId(1), epoch=seen.open.epoch, plan=plan)
            self.commit(command)

    def _repair(self, seen: Shard) -> None:
        """Copy sealed segments that have too few holders."""
        if len(self._copying) >= COPIES_AT_ONCE:
            return
        healthy = {process.replica for process in self._healthy()}
        for segment in seen.sealed:
            missing = self._copies - len(healthy.intersection(segment.holders))
            for replica in sorted(healthy.difference(segment.holders))[: max(0, missing)]:
                key = (segment.epoch, replica)
                if key not in self._copying and len(self._copying) < COPIES_AT_ONCE:
                    self._copying.add(key)
                    self._peers.copy(segment, replica)

    def copied(self, epoch: Epoch, holder: ReplicaId, whole: bool) -> None:
        """A copy is over, well or not."""
        self._copying.discard((epoch, holder))
        if whole:
            self.commit(c.AddHolder(shard=ShardId(1), epoch=epoch, holder=holder))

    def copies_lost(self, holder: ReplicaId) -> None:
        """The process that copied is gone."""
        self._copying = {key for key in self._copying if key[1] != holder}

    # -------------------------------------------------------------- reports
    def reported(self, report: Report) -> None:
        """A peer told something; the same may come again and again."""
        shard = self.shard
        if isinstance(report, SegmentOpened):
            self._opened(report.epoch, report)
        elif isinstance(report, Declined):
            command = c.WithdrawSegment(
                shard=ShardId(1), epoch=report.prepared, declined_by=report.process
            )
            self.commit(command)
        elif isinstance(report, HigherPromise):
            if report.promised > shard.open.epoch and shard.fence == NO_EPOCH:
                self._fence(shard)
        elif isinstance(report, Stall) and report.epoch == shard.open.epoch:
            self._replace_stalled(shard)

    def _replace_stalled(self, shard: Shard) -> None:
        """§6: a stalled voter is replaced by 4.1 with N = P."""
        plan = self._plan(shard.open.plan.primary)
        if shard.prepared is None and plan is not None and plan != shard.open.plan:
            self.commit(c.PrepareSegment(shard=ShardId(1), epoch=shard.open.epoch, plan=plan))


def _translated(answer: EpochAnswer | None) -> recovery.EpochAnswer:
    if answer is None or not answer.adopted:
        return recovery.EpochAnswer()
    return recovery.EpochAnswer(
        adopted=True, begin=answer.begin, end=answer.end, commit=answer.commit
    )


def process_of(peer: str, boot: int) -> ProcessId:
    """The process of `peer` in its `boot`-th life; its store is always the same."""
    return ProcessId(NodeName(peer), StoreId(f"store-{peer}"), BootId(f"boot-{peer}-{boot}"))
