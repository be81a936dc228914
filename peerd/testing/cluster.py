"""A whole cluster of cores in one thread, on simulated stores, network and LAS: one shard, one
seed.

Everything that happens is drawn from the seed: latencies, losses, repetitions, crashes, pauses,
partitions, changes of plan. The same seed gives the same run. Time is virtual milliseconds.

`Simulation(seed, options).run()` breaks things for `trouble_ms`, then heals everything and demands
that what clients want gets done (G11) and that everything acknowledged is there (G1 to G7).
Whatever does not hold raises `BrokenPromise`; an `InvariantViolation` of a core is one too.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from peerd.core import events as ev
from peerd.core.durable import FillSealed, Outcome, StoreOperation
from peerd.core.effects import (
    BeginAnswer,
    ConfirmAnswer,
    FetchTable,
    HasBegunAnswer,
    Load,
    LoadBatches,
    LoadTable,
    PromiseAnswered,
    Reply,
    Send,
    Step,
    TableAnswer,
)
from peerd.core.ids import (
    Epoch,
    NodeName,
    ProcessId,
    ReplicaId,
    RequestId,
    ShardId,
    Tick,
)
from peerd.core.limits import Limits
from peerd.core.messages import Ack, Adopt, Begin, ConfirmEpoch, Expect, Frame, Message, Ready
from peerd.core.replica import Replica
from peerd.core.shard_map import Segment, Shard
from peerd.testing.history import BrokenPromise, History
from peerd.testing.sim_clients import Peer, SimClients, ToEvent
from peerd.testing.sim_las import SimLas, process_of
from peerd.testing.sim_store import SimStore

SHARD = ShardId(1)
MAP_AGAIN_MS = 1_000
"""A change of the map that got lost comes again after this time at the latest."""

FAST_LIMITS = Limits(
    drain_timeout_ms=20,
    ready_timeout_ms=600,
    stall_timeout_ms=200,
    repeat_ms=50,
    table_timeout_ms=60_000,
    commit_persist_ms=100,
    stream_bytes_max=60,
    recent_bytes_max=60,
    catch_up_bytes=30,
)
"""Small bounds, so that short runs reach them. A payload is some 10 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What kind of run. Probabilities are per message, rates per second of virtual time."""

    peers: int = 4
    copies: int = 3
    acks: int = 2
    clients: int = 3
    appends_per_client: int = 25
    trouble_ms: int = 4_000
    loss: float = 0.02
    repeat: float = 0.05
    ordered_streams: bool = True
    crashes_per_s: float = 1.0
    pauses_per_s: float = 0.5
    partitions_per_s: float = 0.7
    lost_stores: int = 0
    settle_ms: int = 40_000


class Clock:
    """Virtual time: what is due, in order; at equal times in the order in which it was asked."""

    def __init__(self) -> None:
        self.now = 0
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._number = 0

    def later(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Do `action` after `delay_ms`."""
        self._number += 1
        heapq.heappush(self._due, (self.now + delay_ms, self._number, action))

    def run(self, until: int, is_done: Callable[[], bool] = lambda: False) -> None:
        """Do what is due up to `until`, or until `is_done`."""
        while self._due and self._due[0][0] <= until and not is_done():
            self.now, _, action = heapq.heappop(self._due)
            action()


@dataclass(slots=True, eq=False)
class SimPeer:
    """A data directory, and the process on it, if one runs."""

    name: NodeName
    process: ProcessId
    store: SimStore
    replica: Replica | None = None
    lives: int = 0
    lost: bool = False
    committing: bool = False
    paused_until: int = 0
    ticks_at: int = -1
    clock_skew_ms: int = 0
    outcomes: deque[Outcome] = field(default_factory=deque)
    waiting: dict[RequestId, Callable[[Reply], None]] = field(default_factory=dict)


class Simulation:
    """One run; see the module."""

    def __init__(self, seed: int, options: Options) -> None:
        self.rng = random.Random(seed)
        self.options = options
        self.clock = Clock()
        self.history = History(options.acks)
        self.las = SimLas(self, self.rng, options.copies, options.acks)
        self.troubled = True
        self.peers: dict[NodeName, SimPeer] = {}
        self.clients = SimClients(self, options.clients, options.appends_per_client)
        self._cut: set[tuple[NodeName, NodeName]] = set()
        self._arrives: dict[tuple[NodeName, NodeName], int] = {}
        self._streams: dict[tuple[NodeName, NodeName], int] = {}
        self._heard_dead: dict[NodeName, int] = {}
        self._requests = 0
        for number in range(options.peers):
            name = NodeName("abcdefgh"[number])
            process = process_of(name, 0)
            peer = SimPeer(name, process, SimStore(SHARD))
            peer.clock_skew_ms = self.rng.randint(-5_000, 5_000)
            self.peers[name] = peer

    @property
    def now(self) -> int:
        """Virtual milliseconds."""
        return self.clock.now

    def some_peers(self) -> list[Peer]:
        """All peers, dead or alive."""
        return list(self.peers.values())

    # -------------------------------------------------------------- a run
    def run(self) -> None:
        """Break things, heal them, check. Raises `BrokenPromise`."""
        for peer in self.peers.values():
            self._boot(peer)
            self._register(peer)
        self.las.create_log(tuple(self.peers))
        self.las.start()
        self.clients.start(every_ms=self.options.trouble_ms // self.options.appends_per_client)
        self._spread_map()
        self._trouble()
        self.clock.run(self.options.trouble_ms)
        self._heal()
        self.clock.run(self.clock.now + self.options.settle_ms, self._is_settled)
        if not self._is_settled():
            raise BrokenPromise(f"G11: not settled: {self._unsettled()}")
        shard = self.las.shard
        self.history.check_stores(shard, [p.store for p in self.peers.values() if not p.lost])

    def _is_settled(self) -> bool:
        return not self._unsettled()

    def _unsettled(self) -> str:
        if waiting := self.clients.unanswered():
            return waiting
        shard = self.las.shard
        if shard.fence or shard.prepared is not None:
            return f"fence {shard.fence}, prepared {shard.prepared}"
        return ""

    def _heal(self) -> None:
        self.troubled = False
        self.las.restless = False
        self._cut.clear()
        for peer in self.peers.values():
            peer.paused_until = 0
            if peer.replica is None and not peer.lost:
                self._boot(peer)

    # -------------------------------------------------------------- trouble
    def _trouble(self) -> None:
        """One kind of trouble after the other, at random times."""
        options = self.options
        kinds: list[tuple[float, Callable[[], None]]] = [
            (options.crashes_per_s, self._crash_some),
            (options.pauses_per_s, self._pause_some),
            (options.partitions_per_s, self._cut_some),
        ]
        for rate, action in kinds:
            if rate > 0:
                self._repeat_trouble(rate, action)
        for _ in range(options.lost_stores):
            self.clock.later(self.rng.randint(500, options.trouble_ms), self._lose_some)

    def _repeat_trouble(self, rate: float, action: Callable[[], None]) -> None:
        def strike() -> None:
            if self.troubled:
                action()
                self._repeat_trouble(rate, action)

        self.clock.later(int(self.rng.expovariate(rate) * 1_000) + 1, strike)

    def _some_peer(self) -> SimPeer:
        return self.rng.choice(list(self.peers.values()))

    def _crash_some(self) -> None:
        peer = self._some_peer()
        if peer.replica is not None:
            self._kill(peer)
            down_ms = self.rng.choice((5, 50, 300, 1_000))
            self.clock.later(down_ms, lambda: self._boot(peer))

    def _lose_some(self) -> None:
        """A data directory is gone, if the loss is within what the protocol survives."""
        peer = self._some_peer()
        holders = [segment.holders for segment in self.las.shard.sealed]
        if any(len(each) <= 1 and peer.process.replica in each for each in holders):
            return
        self._kill(peer)
        peer.lost = True

    def _pause_some(self) -> None:
        peer = self._some_peer()
        peer.paused_until = self.clock.now + self.rng.choice((30, 200, 800))

    def _cut_some(self) -> None:
        """A link is cut, one way or both ways, for a while."""
        one, other = self.rng.sample(sorted(self.peers), 2)
        cut = {(one, other)} if self.rng.random() < 0.5 else {(one, other), (other, one)}
        self._cut |= cut
        self.clock.later(self.rng.choice((50, 300, 900)), lambda: self._mend(cut))

    def _mend(self, cut: set[tuple[NodeName, NodeName]]) -> None:
        self._cut -= cut
        for one, other in sorted(cut):
            self._break_stream(one, other)

    def _kill(self, peer: SimPeer) -> None:
        if peer.replica is not None:
            peer.replica = None
            peer.store.crash()
            peer.committing = False
            peer.waiting.clear()
            peer.outcomes.clear()
            peer.lives += 1
            self._heard_dead[peer.name] = self.clock.now
            self.las.copies_lost(peer.process.replica)
            for other in sorted(self.peers):
                self._break_stream(other, peer.name)
                self._break_stream(peer.name, other)

    def _boot(self, peer: SimPeer) -> None:
        """A process starts on what the store has, registers, and learns the map."""
        if peer.lost or peer.replica is not None:
            return
        peer.process = process_of(peer.name, peer.lives)
        peer.replica = Replica(peer.process, peer.store.state, FAST_LIMITS)
        peer.ticks_at = -1
        self._heard_dead.pop(peer.name, None)
        self.in_life(peer, 5, lambda: self._register(peer))

    def _register(self, peer: SimPeer) -> None:
        state = peer.store.state
        self.las.register(peer.process, max(state.promised, state.adopted))
        if SHARD in self.las.state.shards:
            self._tell_map(peer, self.las.shard)

    # -------------------------------------------------------------- processes
    def in_life(self, peer: SimPeer, delay_ms: int, action: Callable[[], None]) -> None:
        """Do `action` later, if the same process still lives then; when it is awake."""
        life = peer.lives

        def act() -> None:
            if peer.lives != life or peer.replica is None:
                return
            if peer.paused_until > self.clock.now:
                self.clock.later(peer.paused_until - self.clock.now, act)
            else:
                action()

        self.clock.later(delay_ms, act)

    def deliver(self, peer: SimPeer, event: ev.Event) -> None:
        """Give a process an event and carry out what it wants."""
        if peer.replica is None:
            return
        step = peer.replica.handle(event)
        self._carry_out(peer, step)
        wake_at = peer.replica.wake_at
        if wake_at is not None and (peer.ticks_at < self.clock.now or wake_at < peer.ticks_at):
            peer.ticks_at = max(wake_at, self.clock.now + 1)
            self.in_life(peer, peer.ticks_at - self.clock.now, lambda: self._tick(peer))

    def _tick(self, peer: SimPeer) -> None:
        peer.ticks_at = -1
        self.deliver(peer, ev.Ticked(now=Tick(self.clock.now)))

    def _carry_out(self, peer: SimPeer, step: Step) -> None:
        for operation in step.persist:
            self._submit(peer, operation)
        for send in step.send:
            self._send(peer, send)
        for load in step.load:
            self._load(peer, load)
        for reply in step.reply:
            self._reply(peer, reply)
        for report in step.report:
            if not self.lost():
                self.later(self.latency(), partial(self.las.reported, report))

    def _submit(self, peer: SimPeer, operation: StoreOperation) -> None:
        peer.store.submit(operation)
        if not peer.committing:
            self._start_commit(peer)

    def _start_commit(self, peer: SimPeer) -> None:
        """Group commit: what is queued when the disk is free becomes durable together, later."""
        peer.committing = True
        delay_ms = self.rng.choice((1, 1, 2, 5)) if self.rng.random() < 0.95 else 250
        life = peer.lives

        def commit() -> None:
            if peer.lives != life:
                return
            peer.committing = False
            before = peer.store.state
            outcomes = peer.store.commit()
            self.history.check_fence(before, outcomes)
            for outcome in outcomes:
                peer.outcomes.append(outcome)
                self.in_life(peer, 0, lambda: self._written(peer))
            if peer.store.queue:
                self._start_commit(peer)

        self.clock.later(delay_ms, commit)

    def _written(self, peer: SimPeer) -> None:
        self.deliver(peer, ev.WriteDone(outcome=peer.outcomes.popleft()))

    # -------------------------------------------------------------- network
    def later(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Do something that belongs to no process."""
        self.clock.later(delay_ms, action)

    def latency(self) -> int:
        """How long a message is under way, in ms."""
        return self.rng.choice((1, 1, 2, 3, 10)) if self.rng.random() < 0.98 else 150

    def lost(self) -> bool:
        """Whether a message is lost."""
        return self.troubled and self.rng.random() < self.options.loss

    def _is_cut(self, one: NodeName, other: NodeName) -> bool:
        return one != other and (one, other) in self._cut

    def _break_stream(self, one: NodeName, other: NodeName) -> None:
        """The stream from `one` to `other` breaks and comes back: what was under way is lost."""
        if one == other:
            return
        self._streams[one, other] = self._streams.get((one, other), 0) + 1
        sender, receiver = self.peers[one], self.peers[other]
        replica = receiver.process.replica
        down, up = ev.StreamDown(replica=replica), ev.StreamUp(replica=replica)
        self.in_life(sender, 1, lambda: self.deliver(sender, down))
        back_ms = self.rng.choice((5, 60))
        self.in_life(sender, 2 + back_ms, lambda: self._stream_back(sender, receiver, up))

    def _stream_back(self, sender: SimPeer, receiver: SimPeer, up: ev.StreamUp) -> None:
        if receiver.replica is not None and not self._is_cut(sender.name, receiver.name):
            self.deliver(sender, up)

    def _send(self, sender: SimPeer, send: Send) -> None:
        name = send.to.peer
        receiver = self.peers[name]
        if send.to != receiver.process.replica:
            return
        if self.lost():
            if self.options.ordered_streams:
                self._break_stream(sender.name, name)
            return
        copies = 2 if self.troubled and self.rng.random() < self.options.repeat else 1
        if self.options.ordered_streams and not isinstance(
            send.message, Ready | Begin | ConfirmEpoch
        ):
            copies = 1
        for _ in range(copies):
            self._put_on_wire(sender, receiver, send.message)

    def _put_on_wire(self, sender: SimPeer, receiver: SimPeer, message: Message) -> None:
        delay_ms = self.latency()
        link = (sender.name, receiver.name)
        if self.options.ordered_streams:
            arrives = max(self.clock.now + delay_ms, self._arrives.get(link, 0))
            self._arrives[link] = arrives
            delay_ms = arrives - self.clock.now
        stream = self._streams.get(link, 0)
        source = sender.process.replica

        def arrive() -> None:
            broken = self.options.ordered_streams and self._streams.get(link, 0) != stream
            if receiver.replica is not None and not broken and not self._is_cut(*link):
                self.in_life(receiver, 0, lambda: self._receive(receiver, source, message))

        self.clock.later(delay_ms, arrive)

    def _receive(self, peer: SimPeer, sender: ReplicaId, message: Message) -> None:
        if isinstance(message, Adopt):
            self.deliver(peer, ev.AdoptReceived(sender=sender, message=message))
        elif isinstance(message, Frame):
            self.deliver(peer, ev.FrameReceived(sender=sender, message=message))
        elif isinstance(message, Ack):
            self.deliver(peer, ev.AckReceived(sender=sender, message=message))
        elif isinstance(message, Expect):
            self.deliver(peer, ev.ExpectReceived(sender=sender, message=message))
        elif isinstance(message, Ready):
            self.deliver(peer, ev.ReadyReceived(sender=sender, message=message))
        elif isinstance(message, ConfirmEpoch):
            self._receive_confirm(peer, sender, message)
        else:
            self._receive_begin(peer, sender, message)

    def _receive_confirm(self, peer: SimPeer, sender: ReplicaId, message: ConfirmEpoch) -> None:
        def answered(reply: Reply) -> None:
            source = self.peers[sender.peer]
            if isinstance(reply, ConfirmAnswer) and not self.lost():
                answer = ev.EpochConfirmed(
                    sender=peer.process.replica,
                    epoch=message.epoch,
                    round=reply.round,
                    promised=reply.promised,
                    now=Tick(self.clock.now),
                )
                self.in_life(source, self.latency(), lambda: self.deliver(source, answer))

        request = self.ask(peer, answered)
        self.deliver(peer, ev.ConfirmReceived(request=request, message=message))

    def _receive_begin(self, peer: SimPeer, sender: ReplicaId, message: Begin) -> None:
        def answered(reply: Reply) -> None:
            source = self.peers[sender.peer]
            if isinstance(reply, BeginAnswer) and not self.lost():
                answer = ev.BeginAnswered(
                    sender=peer.process.replica,
                    epoch=reply.epoch,
                    begun=reply.begun,
                    promised=reply.promised,
                )
                self.in_life(source, self.latency(), lambda: self.deliver(source, answer))

        request = self.ask(peer, answered)
        now = Tick(self.clock.now)
        self.deliver(
            peer, ev.BeginReceived(request=request, sender=sender, message=message, now=now)
        )

    def ask(self, peer: SimPeer, answered: Callable[[Reply], None]) -> RequestId:
        """A request id; `answered` gets its reply, if the process lives to give it."""
        self._requests += 1
        request = RequestId(self._requests)
        peer.waiting[request] = answered
        return request

    def _reply(self, peer: SimPeer, reply: Reply) -> None:
        answered = peer.waiting.pop(reply.request, None)
        if answered is None:
            raise BrokenPromise(f"a reply to nobody, or a second one: {reply}")
        answered(reply)

    def send(self, to: NodeName, answered: Callable[[Reply], None], event: ToEvent) -> None:
        """A client's request on its way to a process, perhaps never to arrive."""
        peer = self.peers[to]

        def arrive() -> None:
            self.deliver(peer, event(self.ask(peer, answered), Tick(self.clock.now)))

        if not self.lost():
            self.in_life(peer, self.latency(), arrive)

    # -------------------------------------------------------------- loads
    def _load(self, peer: SimPeer, load: Load) -> None:
        if isinstance(load, LoadBatches):
            self.in_life(peer, 1, lambda: self._load_batches(peer, load))
        elif isinstance(load, LoadTable):
            self.in_life(peer, 1, lambda: self._load_table(peer, load))
        else:
            self._fetch_table(peer, load)

    def _load_batches(self, peer: SimPeer, load: LoadBatches) -> None:
        batches = peer.store.read(load.epoch, load.begin, load.end, load.bytes_max)
        event: ev.Event
        if batches:
            event = ev.BatchesLoaded(
                replica=load.replica, epoch=load.epoch, begin=load.begin, batches=batches
            )
        else:
            event = ev.BatchesUnavailable(replica=load.replica, epoch=load.epoch, begin=load.begin)
        self.deliver(peer, event)

    def _load_table(self, peer: SimPeer, load: LoadTable) -> None:
        table = peer.store.load_table(load)
        if table is not None:
            self.deliver(peer, ev.TableLoaded(token=load.token, table=table))
        else:
            self.deliver(peer, ev.TableUnavailable(token=load.token, answered=True))

    def _fetch_table(self, peer: SimPeer, load: FetchTable) -> None:
        source = self.peers[load.source.peer]

        def failed(answered: bool) -> None:
            event = ev.TableUnavailable(token=load.token, answered=answered)
            self.in_life(peer, self.latency(), lambda: self.deliver(peer, event))

        def answered(reply: Reply) -> None:
            if isinstance(reply, TableAnswer) and reply.table is not None:
                event = ev.TableFetched(token=load.token, table=reply.table)
                self.in_life(peer, self.latency(), lambda: self.deliver(peer, event))
            else:
                failed(answered=True)

        if source.replica is None or self._is_cut(peer.name, source.name) or self.lost():
            self.in_life(peer, 100, lambda: failed(answered=False))
            return
        event = ev.TableAsked(
            request=self.ask(source, answered),
            as_of=load.as_of,
            or_later=load.or_later,
            since=load.since,
        )
        self.in_life(source, self.latency(), lambda: self.deliver(source, event))

    # -------------------------------------------------------------- what the LAS may do
    def seems_dead(self, peer: NodeName) -> bool:
        """Dead or silent for a while; sometimes a suspicion without reason."""
        process = self.peers[peer]
        since = self._heard_dead.get(peer)
        if since is not None and self.clock.now - since > 80:
            return True
        if process.paused_until - self.clock.now > 100:
            return True
        return self.troubled and self.rng.random() < 0.01

    def promise(
        self, to: ReplicaId, shard: Shard, answer: Callable[[PromiseAnswered], None]
    ) -> None:
        """§4.5: `Promise` and its answer, either of which may be lost."""
        peer = self.peers[to.peer]

        def answered(reply: Reply) -> None:
            if isinstance(reply, PromiseAnswered) and not self.lost():
                self.later(self.latency(), lambda: answer(reply))

        def ask() -> None:
            prepared = shard.prepared.epoch if shard.prepared is not None else Epoch(0)
            event = ev.PromiseReceived(
                request=self.ask(peer, answered),
                fence=shard.fence,
                epoch=shard.open.epoch,
                prepared=prepared,
            )
            self.deliver(peer, event)

        if not self.lost():
            self.in_life(peer, self.latency(), ask)

    def has_begun(
        self, to: ProcessId, epoch: Epoch, answer: Callable[[HasBegunAnswer], None]
    ) -> None:
        """The LAS asks N, if that very process lives."""
        peer = self.peers[to.peer]

        def answered(reply: Reply) -> None:
            if isinstance(reply, HasBegunAnswer) and not self.lost():
                self.later(self.latency(), lambda: answer(reply))

        def ask() -> None:
            event = ev.HasBegunAsked(request=self.ask(peer, answered), epoch=epoch)
            self.deliver(peer, event)

        if peer.process == to:
            self.in_life(peer, self.latency(), ask)

    def copy(self, segment: Segment, holder: ReplicaId) -> None:
        """The copier of `holder`: pull from a holder, fill, tell the LAS; give up when cut off."""
        peer = self.peers[holder.peer]
        sources = [self.peers[each.peer] for each in segment.holders]
        sources = [each for each in sources if each.replica is not None]
        if not sources or peer.replica is None or segment.begin is None or segment.end is None:
            self.las.copied(segment.epoch, holder, whole=False)
            return
        source, begin, end = self.rng.choice(sources), segment.begin, segment.end
        open_epoch = self.las.shard.open.epoch

        def fill() -> None:
            stored = peer.store.state.segments.get(segment.epoch)
            at = min(stored.end, end) if stored is not None else begin
            batches = source.store.read(segment.epoch, at, end, 40)
            operation = FillSealed(
                shard=SHARD,
                epoch=segment.epoch,
                begin=begin,
                end=end,
                open_epoch=open_epoch,
                batches=batches,
            )
            self._submit(peer, operation)
            self.in_life(peer, 8, look)

        def look() -> None:
            stored = peer.store.state.segments.get(segment.epoch)
            if stored is not None and stored.seal == end == stored.end:
                self.las.copied(segment.epoch, holder, whole=True)
            elif self.rng.random() < 0.1:
                self.las.copied(segment.epoch, holder, whole=False)
            else:
                fill()

        self.in_life(peer, 5, fill)

    def map_changed(self, shard: Shard) -> None:
        """A new map was committed; it reaches every process some time."""
        self.history.map_committed(shard)
        for peer in self.peers.values():
            if not self.lost():
                self.in_life(peer, self.latency(), partial(self._tell_map, peer, shard))

    def _tell_map(self, peer: SimPeer, shard: Shard) -> None:
        self.deliver(peer, ev.MapLearned(shard=shard, now=Tick(self.clock.now)))

    def _spread_map(self) -> None:
        """The committed map again, in case that a change was lost."""
        shard = self.las.shard
        for peer in self.peers.values():
            self.in_life(peer, self.latency(), partial(self._tell_map, peer, shard))
        self.later(MAP_AGAIN_MS, self._spread_map)
