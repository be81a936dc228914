"""A fleet of model peers and a model LAS group for tests of the executor: the protocol, and no IO.

Peers keep what docs/protocol.md §4.4 says is durable and follow §4.1 and §4.2; the group is the
real state machine behind a call that may be refused. Everything acknowledged is remembered, and
`check_nothing_lost` looks for it in the log that the committed map defines.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from las.core.cluster import Cluster
from las.core.commands import (
    AddHolder,
    Command,
    Result,
    SegmentOpened,
    WithdrawSegment,
    command_to_json,
    result_from_json,
)
from las.core.index import FleetIndex
from las.core.many_shards import changes_of
from las.core.many_steps import steps_of
from las.core.recovery import EpochAnswer
from las.core.rows import ChangeShards, StepShards
from las.core.snapshot import snapshot
from las.core.state import ClusterState
from las.daemon.reconcile import Begun, Heard, Promised, PromiseOrder
from peerd.core.errors import Reason
from peerd.core.ids import BootId, Epoch, NodeName, Offset, ProcessId, ReplicaId, ShardId
from peerd.core.shard_map import Segment, Shard
from peerd.transport.status import Refused, refusal
from tests.las_core.builders import register


@dataclass
class Stored:
    """What a store has of one epoch."""

    begin: int
    records: list[int] = field(default_factory=list)
    commit: int = 0

    @property
    def end(self) -> int:
        return self.begin + len(self.records)


@dataclass
class ModelShard:
    promised: int = 0
    adopted: int = 0
    segments: dict[int, Stored] = field(default_factory=dict)


@dataclass
class ModelPeer:
    """One peer. `leads` is volatile: shard → epoch. One that is `stuck` answers, and hands over
    nothing.
    """

    process: ProcessId
    number: int
    boots: int = 1
    alive: bool = True
    answers: bool = True
    stuck: bool = False
    shards: dict[ShardId, ModelShard] = field(default_factory=dict)
    leads: dict[ShardId, int] = field(default_factory=dict)
    begun: set[tuple[ShardId, int]] = field(default_factory=set)

    def shard(self, shard: ShardId) -> ModelShard:
        return self.shards.setdefault(shard, ModelShard())

    def adopt(self, shard: ShardId, epoch: int, begin: int) -> bool:
        kept = self.shard(shard)
        if not self.alive or epoch < kept.promised:
            return False
        if epoch > kept.adopted:
            kept.promised = kept.adopted = epoch
            kept.segments[epoch] = Stored(begin=begin, commit=begin)
        return kept.adopted == epoch


class ModelFleet:
    """`Consensus` and `PeerCalls` in one, and the peers behind them."""

    def __init__(self, state: ClusterState) -> None:
        self.cluster = Cluster(state.cluster_id)
        self.cluster.restore(snapshot(state))
        self.index = FleetIndex()
        self.peers = {
            node.name: ModelPeer(process=node.process, number=int(node.name.split("-")[1]))
            for node in state.nodes.values()
        }
        self.leading = True
        self.refusals = 0
        self.hold_reports = False
        self.commands: list[Command] = []
        self.joined: list[int] = []
        """How many shards each `ChangeShards` was for; its changes are in `commands`."""
        self.promise_calls = 0
        self.questions: list[ProcessId] = []
        """Who was asked whether it answers."""
        self.begun_questions: list[ProcessId] = []
        """Who was asked whether it has begun what is prepared."""
        self.acked: list[tuple[ShardId, int, int, int]] = []
        self._next_record = 1
        self._changed = asyncio.Event()
        self.pump()

    # ------------------------------------------------------------------ consensus
    @property
    def state(self) -> ClusterState:
        return self.cluster.state

    def indexed(self) -> tuple[ClusterState, FleetIndex]:
        self.index.update(self.state)
        return self.state, self.index

    async def submit(self, command: Command) -> Result:
        await asyncio.sleep(0)
        if not self.leading:
            self.refusals += 1
            raise Refused(refusal(Reason.NOT_LAS_LEADER, "not the leader"))
        return self.commit(command)

    def commit(self, command: Command) -> Result:
        result = result_from_json(self.cluster.apply(command_to_json(command)))
        if isinstance(command, ChangeShards):
            self.joined.append(len(result.each))
            self.commands.extend(changes_of(command))
        elif isinstance(command, StepShards):
            self.commands.extend(steps_of(command))
        else:
            self.commands.append(command)
        self.pump()
        self._changed.set()
        return result

    async def until(self, condition, deadline_s: float = 60.0) -> None:
        """Wait until `condition()`, looked at after each commit and now and then between."""
        async with asyncio.timeout(deadline_s):
            while not condition():
                self._changed.clear()
                try:
                    async with asyncio.timeout(0.01):
                        await self._changed.wait()
                except TimeoutError:
                    self.pump()

    # ------------------------------------------------------------------ calls to peers
    async def promise(
        self, target: ReplicaId, orders: Sequence[PromiseOrder]
    ) -> Sequence[Promised] | None:
        self.promise_calls += 1
        await asyncio.sleep(0)
        peer = self.peers[target.peer]
        if not peer.alive or not peer.answers or peer.process.replica != target:
            return None
        return [self._promised(peer, order) for order in orders]

    def _promised(self, peer: ModelPeer, order: PromiseOrder) -> Promised:
        kept = peer.shard(order.shard)
        if kept.promised <= order.fence:
            kept.promised = order.fence
            if peer.leads.get(order.shard, 0) < order.fence:
                peer.leads.pop(order.shard, None)

        def told(epoch: Epoch) -> EpochAnswer:
            stored = kept.segments.get(epoch)
            if stored is None:
                return EpochAnswer()
            return EpochAnswer(
                adopted=True,
                begin=Offset(stored.begin),
                end=Offset(stored.end),
                commit=Offset(stored.commit),
            )

        return Promised(
            shard=order.shard,
            promised=Epoch(kept.promised),
            open=told(order.epoch),
            prepared=told(order.prepared),
        )

    async def has_begun(self, target: ProcessId, shard: ShardId, epoch: Epoch) -> Begun | None:
        self.begun_questions.append(target)
        await asyncio.sleep(0)
        peer = self.peers[target.peer]
        if not peer.alive or not peer.answers or peer.process != target:
            return None
        if (shard, epoch) not in peer.begun:
            return Begun(begun=False, begin=Offset(0), holders=())
        opened = self._opened(self.state.shards[shard].shard, epoch, peer)
        return Begun(begun=True, begin=opened.begin, holders=opened.holders)

    async def hears(self, witness: NodeName, suspect: NodeName) -> Heard | None:
        await asyncio.sleep(0)
        if not self.peers[witness].alive:
            return None
        return Heard(silent_ms=0 if self.peers[suspect].alive else 10_000)

    async def responds(self, target: ProcessId, within_ms: int) -> bool:
        await asyncio.sleep(0)
        peer = self.peers[target.peer]
        self.questions.append(target)
        return peer.alive and peer.answers and peer.process == target

    # ------------------------------------------------------------------ what peers do
    def pump(self) -> None:
        """Let every peer follow the committed map as far as it can."""
        for entry in list(self.state.shards.values()):
            self._start_committed(entry.shard)
            if entry.shard.fence == 0:
                self._switch(entry.shard)
                self._fetch(entry.shard)

    def _start_committed(self, shard: Shard) -> None:
        """§4.2.3: a process starts from a committed open segment that names its boot id, once."""
        epoch, primary = shard.open.epoch, shard.open.plan.primary
        peer = self.peers[primary.peer]
        first = (shard.shard, epoch) not in peer.begun
        if peer.process == primary and first and shard.open.begin is not None:
            self._begin(peer, shard.shard, shard.open, shard.open.begin)

    def _begin(self, peer: ModelPeer, shard: ShardId, segment: Segment, begin: int) -> bool:
        kept = peer.shard(shard)
        if not peer.alive or kept.promised > segment.epoch:
            return False
        peer.begun.add((shard, segment.epoch))
        peer.leads[shard] = segment.epoch
        for replica in segment.plan.replicas:
            self.peers[replica.peer].adopt(shard, segment.epoch, begin)
        return True

    def _switch(self, shard: Shard) -> None:
        """§4.1: P stops, X is its commit offset, N begins and reports; or P declines."""
        if shard.prepared is None:
            return
        epoch, prepared = shard.open.epoch, shard.prepared
        old = self.peers[shard.open.plan.primary.peer]
        new = self.peers[prepared.plan.primary.peer]
        if (shard.shard, prepared.epoch) in new.begun:
            if not self.hold_reports and new.alive:
                self._report(self._opened(shard, prepared.epoch, new))
            return
        if not old.alive or not old.answers or old.leads.get(shard.shard) != epoch:
            return
        if old.stuck:
            return
        if not new.alive or new.process != prepared.plan.primary:
            declined = WithdrawSegment(
                shard=shard.shard, epoch=prepared.epoch, declined_by=old.process
            )
            self._report(declined)
            return
        stored = old.shard(shard.shard).segments[epoch]
        old.leads.pop(shard.shard)
        if self._begin(new, shard.shard, prepared, stored.commit) and not self.hold_reports:
            self._report(self._opened(shard, prepared.epoch, new))

    def _report(self, command: Command) -> None:
        if self.leading:
            self.commit(command)

    def _opened(self, shard: Shard, epoch: Epoch, peer: ModelPeer) -> SegmentOpened:
        begin = peer.shard(shard.shard).segments[epoch].begin
        holders = tuple(
            replica
            for replica in shard.open.plan.replicas
            if self._has(replica, shard.shard, shard.open.epoch, begin)
        )
        return SegmentOpened(shard=shard.shard, epoch=epoch, begin=Offset(begin), holders=holders)

    def _has(self, replica: ReplicaId, shard: ShardId, epoch: int, end: int) -> bool:
        stored = self.peers[replica.peer].shard(shard).segments.get(epoch)
        return stored is not None and stored.end >= end

    def _fetch(self, shard: Shard) -> None:
        for segment in shard.sealed:
            for wanted in segment.wanted_holders:
                peer = self.peers[wanted.peer]
                sources = [
                    self.peers[replica.peer]
                    for replica in segment.plan.replicas
                    if self.peers[replica.peer].alive
                    and self._has(replica, shard.shard, segment.epoch, segment.end or 0)
                ]
                if not peer.alive or not sources:
                    continue
                source = sources[0].shard(shard.shard).segments[segment.epoch]
                count = (segment.end or 0) - source.begin
                kept = peer.shard(shard.shard)
                kept.promised = max(kept.promised, shard.open.epoch)
                kept.segments[segment.epoch] = Stored(
                    begin=source.begin, records=source.records[:count], commit=source.begin + count
                )
                self._report(AddHolder(shard=shard.shard, epoch=segment.epoch, holder=wanted))
                return  # the map has changed; the next pump goes on

    # ------------------------------------------------------------------ clients and faults
    def append(self, shard: ShardId, reach: Sequence[int] | None = None) -> bool:
        """One append to whoever leads; it reaches the voters in `reach` (all that live if None)."""
        for peer in self.peers.values():
            epoch = peer.leads.get(shard)
            if epoch is None or not peer.alive:
                continue
            segment = self._segment(shard, epoch)
            stored = peer.shard(shard).segments[epoch]
            if segment is None or peer.shard(shard).promised > epoch:
                continue
            record, self._next_record = self._next_record, self._next_record + 1
            offset = stored.end
            having = sum(
                self._store(replica, shard, epoch, stored, record, reach, peer)
                for replica in segment.plan.voters
            )
            if having >= segment.plan.acks:
                stored.commit = offset + 1
                self.acked.append((shard, epoch, offset, record))
                return True
            return False
        return False

    def _store(
        self,
        replica: ReplicaId,
        shard: ShardId,
        epoch: int,
        source: Stored,
        record: int,
        reach: Sequence[int] | None,
        primary: ModelPeer,
    ) -> bool:
        """Bring one voter up to the primary's end with the new record; whether it has it."""
        peer = self.peers[replica.peer]
        if peer is not primary:
            away = reach is not None and peer.number not in reach
            if away or not peer.alive or not peer.adopt(shard, epoch, source.begin):
                return False
        kept = peer.shard(shard).segments[epoch]
        if peer is primary:
            kept.records.append(record)
        else:
            kept.records[:] = source.records
            if not kept.records or kept.records[-1] != record:
                kept.records.append(record)
        kept.commit = max(kept.commit, source.commit)
        return True

    def _segment(self, shard: ShardId, epoch: int) -> Segment | None:
        entry = self.state.shards[shard].shard
        for segment in (entry.open, entry.prepared):
            if segment is not None and segment.epoch == epoch:
                return segment
        return None

    def kill(self, number: int) -> ModelPeer:
        peer = self.peer(number)
        peer.alive = False
        peer.leads.clear()
        return peer

    def restart(self, number: int) -> None:
        """A new process on the same store; it leads nothing until the map says so."""
        peer = self.peer(number)
        peer.boots += 1
        peer.alive = True
        peer.leads.clear()
        peer.process = replace(peer.process, boot=BootId(f"boot-{number}-{peer.boots}"))
        peer.begun.clear()
        assert self.commit(register(number, boot=peer.boots)).ok

    def peer(self, number: int) -> ModelPeer:
        return self.peers[NodeName(f"peer-{number}")]

    # ------------------------------------------------------------------ checks
    def settled(self) -> bool:
        """Every shard is led by its registered, live process, and nothing is under way."""
        return all(
            entry.shard.prepared is None and entry.shard.fence == 0 and self.leads(entry.shard)
            for entry in self.state.shards.values()
        )

    def leads(self, shard: Shard) -> bool:
        peer = self.peers[shard.open.plan.primary.peer]
        return peer.alive and peer.leads.get(shard.shard) == shard.open.epoch

    def check_nothing_lost(self) -> None:
        """G1, G2: each acknowledged record is at its place in the map's log, on some store."""
        for shard, epoch, offset, record in self.acked:
            entry = self.state.shards[shard].shard
            segments = {segment.epoch: segment for segment in (*entry.sealed, entry.open)}
            segment = segments.get(Epoch(epoch))
            assert segment is not None, f"epoch {epoch} of an acknowledged record is not in the map"
            assert segment.begin <= offset
            assert segment.end is None or offset < segment.end, "an acknowledged record is cut off"
            copies = [
                stored.records[offset - stored.begin]
                for peer in self.peers.values()
                if (stored := peer.shard(shard).segments.get(epoch)) is not None
                and stored.begin <= offset < stored.end
            ]
            assert record in copies
            for holder in segment.holders:
                kept = self.peers[holder.peer].shard(shard).segments[epoch]
                assert kept.records[offset - kept.begin] == record
