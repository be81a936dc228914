"""A peer's process: it hosts the real cores of its shards, and carries out what they want.

It decides nothing. Its effects go out in the order that `core.effects` demands (persist, send,
load, reply, report); a *fuse* lets it die between any two of them. Everything that it knows dies
with it; a directory's next process is another object.

`LOADS` has one entry for each kind of load.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, cast

from peerd.core import events as ev
from peerd.core import holding
from peerd.core.batch import PlacedBatch
from peerd.core.check import InvariantViolation
from peerd.core.durable import FillSealed, Outcome, StoreOperation
from peerd.core.effects import (
    BeginAnswer,
    ConfirmAnswer,
    FetchTable,
    Load,
    LoadBatches,
    LoadTable,
    Reply,
    Report,
    Send,
    Step,
    TableAnswer,
)
from peerd.core.errors import Reason, Refusal
from peerd.core.ids import (
    NO_EPOCH,
    BootId,
    Epoch,
    NodeName,
    Offset,
    ProcessId,
    ReplicaId,
    RequestId,
    ShardId,
    StoreId,
    Tick,
)
from peerd.core.messages import ConfirmEpoch
from peerd.core.replica import Replica
from peerd.core.shard_map import Segment, Shard
from peerd.testing import trace
from peerd.testing.sim.checkers import BrokenPromise
from peerd.testing.sim.disk import Disk
from peerd.testing.sim.world import World

if TYPE_CHECKING:
    from peerd.testing.sim.network import Link

LOOK_MS = 4
"""So long after an event the core is asked when it wants a tick: once for all events of a burst. A
real process is not more exact either."""
FETCH_LOST_MS = 100
"""A fetch that gets no answer is given up after this."""
ANSWER_LOST_MS = 1_000
"""The same if the other process was reached; an answer that came is not waited for any more."""
COPY_BYTES = 60
"""One slice of a copy."""
COPY_PAUSE_MS = 8
COPY_AGAIN_MS = 400
"""A copy that broke off is tried again after this."""

OnReply = Callable[[object, Reply], None]


class Outside(Protocol):
    """What a process reaches beside its own disk."""

    def send(self, process: "Process", send: Send) -> None:
        """A message to another peer."""

    def transit_ms(self, one: NodeName, other: NodeName) -> int | None:
        """How long a call's message takes; None: it is lost."""


class LasDoor(Protocol):
    """What a process tells the LAS."""

    def report(self, process: "Process", report: Report) -> None:
        """A core's report; it may be lost."""

    def holder(self, process: "Process", shard: ShardId, epoch: Epoch, *, whole: bool) -> None:
        """This store has a sealed segment whole, or found its copy damaged."""


class Peer:
    """A name with its data directory; and the process on it, if one runs."""

    def __init__(self, world: World, name: NodeName) -> None:
        self.name = name
        self.store = StoreId(f"store-{name}")
        self.disk = Disk(world)
        self.process: Process | None = None
        self.lives = 0
        self.lost = False
        self.silent_since: int | None = None
        self.clock_skew_ms = world.rng.randint(-5_000, 5_000)
        self.links: dict[NodeName, Link] = {}

    @property
    def replica(self) -> ReplicaId:
        """Its store."""
        return ReplicaId(self.name, self.store)

    def next_process(self) -> ProcessId:
        """The name of the process that starts now."""
        self.lives += 1
        return ProcessId(self.name, self.store, BootId(f"boot-{self.name}-{self.lives}"))


class Process:
    """See the module. `on_end` is called when it dies by itself: its fuse, or its disk."""

    def __init__(  # noqa: PLR0917 - all that it is connected with
        self,
        world: World,
        peer: Peer,
        peers: dict[NodeName, Peer],
        outside: Outside,
        las: LasDoor,
        on_end: Callable[[Peer, str], None],
    ) -> None:
        self.id = peer.next_process()
        self.peer = peer
        self.peers = peers
        self.dead = False
        self.fuse: int | None = None
        self.paused_until = 0
        self.clock_skew_ms = peer.clock_skew_ms
        self.replicas: dict[ShardId, Replica] = {}
        self.maps: dict[ShardId, Shard] = {}
        self.versions: dict[ShardId, int] = {}
        self.registered = False
        self.registered_version: int | None = None
        """The version of the map with which it began; what is older it does not take (§4.4)."""
        self._world = world
        self._clock = world.clock
        self._outside = outside
        self._las = las
        self._on_end = on_end
        self._up: dict[ReplicaId, None] = {}
        self._backlog: deque[tuple[ShardId, ev.Event]] = deque()
        self._ticks: dict[ShardId, int] = {}
        self._looks: set[ShardId] = set()
        self._waiting: dict[RequestId, tuple[OnReply, object]] = {}
        self._requests = 0
        self._copying: dict[tuple[ShardId, Epoch], int] = {}
        self._filling: dict[tuple[ShardId, Epoch], tuple[FillSealed, int]] = {}
        self._looked: dict[tuple[ShardId, Epoch], int] = {}
        self._tick_skew_ms = 0
        self._on_record = world.on_record
        peer.disk.attach(self.id, self._written, lambda: on_end(peer, "its disk failed"))

    def start(self) -> None:
        """Make the cores of everything that is stored."""
        for shard, store in self.peer.disk.shards.items():
            if store.state.promised != NO_EPOCH:
                self.core(shard)

    # -------------------------------------------------------------- time
    def tick(self) -> Tick:
        """This process's monotonic clock; it may jump ahead."""
        return Tick(self._clock.now + self._tick_skew_ms)

    def wall_ms(self) -> int:
        """Its wall clock, which may be wrong."""
        return 1_000_000 + self._clock.now + self.clock_skew_ms

    def jump(self, wall_ms: int, ahead_ms: int) -> None:
        """The clocks jump: the wall clock anywhere, the monotonic one ahead."""
        self.clock_skew_ms += wall_ms
        self._tick_skew_ms += ahead_ms

    def pause(self, until: int) -> None:
        """Stop; everything that comes waits, and is taken late as if nothing had happened."""
        if until > self.paused_until:
            self.paused_until = until
            self._clock.at(until, self._wake, until)

    def _wake(self, _until: int) -> None:
        while self._backlog and not self.dead and self.paused_until <= self._clock.now:
            self._handle(*self._backlog.popleft())

    # -------------------------------------------------------------- events in
    def take(self, shard: ShardId, event: ev.Event) -> None:
        """An event for one of the cores."""
        if self.dead:
            return
        if self._backlog or self.paused_until > self._clock.now:
            self._backlog.append((shard, event))
        else:
            self._handle(shard, event)

    def core(self, shard: ShardId) -> Replica:
        """The core of a shard; a new one is told what is known already."""
        replica = self.replicas.get(shard)
        if replica is None:
            stored = self.peer.disk.state(shard)
            replica = self.replicas[shard] = Replica(self.id, stored, self._world.limits)
            self._ticks[shard] = 0
            if self._on_record is not None:
                self._on_record(trace.Booted(self._clock.now, self.id, shard, stored))
            for reachable in tuple(self._up):
                self._handle(shard, ev.StreamUp(replica=reachable))
            entry = self.maps.get(shard)
            if entry is not None and not self.dead:
                self._handle(shard, ev.MapLearned(shard=entry, now=self.tick()))
        return replica

    def _handle(self, shard: ShardId, event: ev.Event) -> None:
        replica = self.replicas.get(shard) or self.core(shard)
        if self.dead:
            return
        try:
            step = replica.handle(event)
        except InvariantViolation as violation:
            text = f"invariant: {self.id.peer} stops: {violation}"
            raise BrokenPromise(text) from violation
        if self._on_record is not None:
            self._on_record(trace.Handled(self._clock.now, self.id, shard, event, step))
        if self.fuse is None:
            self._carry_out(shard, replica, step)
        else:
            self._carry_out_burning(shard, replica, step)
        if shard not in self._looks:
            self._looks.add(shard)
            self._clock.later(LOOK_MS, self._look, shard)

    def _look(self, shard: ShardId) -> None:
        """Ask the core when it wants a tick. An earlier appointment stands, as in a real host."""
        self._looks.discard(shard)
        wake_at = None if self.dead else self.replicas[shard].wake_at
        if wake_at is None:
            return
        when = max(wake_at - self._tick_skew_ms, self._clock.now)
        due = self._ticks[shard]
        if due == 0 or when < due:
            self._ticks[shard] = when
            self._clock.at(when, self._ring, (shard, when))

    def _ring(self, appointment: tuple[ShardId, int]) -> None:
        shard, when = appointment
        if self._ticks[shard] != when or self.dead:
            return
        self._ticks[shard] = 0
        if self.replicas[shard].wake_at is not None:
            self.take(shard, ev.Ticked(now=self.tick()))

    # -------------------------------------------------------------- effects out
    def _carry_out(self, shard: ShardId, replica: Replica, step: Step) -> None:
        for operation in step.persist:
            self.peer.disk.submit(operation)
        if step.send:
            said = self._world.checks[shard].said
            for send in step.send:
                said(replica.stored, send.message)
                self._outside.send(self, send)
        for load in step.load:
            LOADS[type(load)](self, load)
        for reply in step.reply:
            self._reply(reply)
        for report in step.report:
            self._las.report(self, report)
        if step.note and self._world.has_listener:
            for note in step.note:
                text = f"{self.id.peer} {note.kind.value} of epoch {note.epoch}, shard {shard}"
                self._world.tell(f"{text}: {note.message}")

    def _carry_out_burning(self, shard: ShardId, replica: Replica, step: Step) -> None:
        """Effect by effect; the fuse counts them, and at 0 the process is no more."""
        parts = (
            *(Step(persist=(each,)) for each in step.persist),
            *(Step(send=(each,)) for each in step.send),
            *(Step(load=(each,)) for each in step.load),
            *(Step(reply=(each,)) for each in step.reply),
            *(Step(report=(each,)) for each in step.report),
        )
        for part in parts:
            if self.fuse is not None and self.fuse <= 0:
                self._on_end(self.peer, "it dies between two effects of one step")
            if self.dead:
                return
            if self.fuse is not None:
                self.fuse -= 1
            self._carry_out(shard, replica, part)

    def submit(self, operation: StoreOperation) -> None:
        """Write something that no core asked for: a slice of a copy."""
        self.peer.disk.submit(operation)

    def _written(self, outcomes: list[Outcome]) -> None:
        world = self._world
        for outcome in outcomes:
            if self.dead:
                return
            world.events += 1
            if isinstance(outcome.operation, FillSealed):
                self._filled(outcome.operation)
            self.take(outcome.operation.shard, ev.WriteDone(outcome=outcome))

    def superseded(self) -> None:
        """The LAS takes it for dead, for good: it ends, and starts again with a new boot id."""
        if not self.dead:
            self._on_end(self.peer, "the LAS takes it for dead")

    def end(self) -> None:
        """The process is no more."""
        self.dead = True
        self._waiting.clear()
        self._backlog.clear()
        if self._on_record is not None:
            self._on_record(trace.Died(self._clock.now, self.id))

    # -------------------------------------------------------------- streams
    def stream_up(self, replica: ReplicaId) -> None:
        """The outgoing stream to `replica` is open."""
        self._up[replica] = None
        for shard in tuple(self.replicas):
            self.take(shard, ev.StreamUp(replica=replica))

    def stream_down(self, replica: ReplicaId) -> None:
        """It broke."""
        self._up.pop(replica, None)
        for shard in tuple(self.replicas):
            self.take(shard, ev.StreamDown(replica=replica))

    # -------------------------------------------------------------- replies
    def ask(self, on_reply: OnReply, argument: object) -> RequestId:
        """A request id; `on_reply(argument, reply)` is called if the process lives to give it."""
        self._requests += 1
        request = RequestId(self._requests)
        self._waiting[request] = (on_reply, argument)
        return request

    def waiting(self, on_reply: OnReply) -> list[object]:
        """The arguments of all requests with this `on_reply` that have no answer yet."""
        return [argument for each, argument in self._waiting.values() if each == on_reply]

    def _reply(self, reply: Reply) -> None:
        waiting = self._waiting.pop(reply.request, None)
        if waiting is None:
            raise BrokenPromise(f"replies: one to nobody, or a second one: {reply}")
        waiting[0](waiting[1], reply)

    def begin_answered(self, caller: object, reply: Reply) -> None:
        """The answer to a `Begin` goes back to `caller`: a replica and the shard."""
        if isinstance(reply, BeginAnswer):
            sender, shard = cast(tuple[ReplicaId, ShardId], caller)
            answer = ev.BeginAnswered(
                sender=self.id.replica,
                epoch=reply.epoch,
                begun=reply.begun,
                promised=reply.promised,
            )
            self.answer_peer(sender, shard, answer)

    def confirm_answered(self, caller: object, reply: Reply) -> None:
        """The answer to a `ConfirmEpoch` goes back to `caller`: a replica and its message."""
        if isinstance(reply, ConfirmAnswer):
            sender, message = cast(tuple[ReplicaId, ConfirmEpoch], caller)
            answer = ev.EpochConfirmed(
                sender=self.id.replica,
                epoch=message.epoch,
                round=reply.round,
                promised=reply.promised,
                now=self.tick(),
            )
            self.answer_peer(sender, message.shard, answer)

    def answer_peer(self, to: ReplicaId, shard: ShardId, event: ev.Event) -> None:
        """Give a core of another peer the answer to its call, if it gets there."""
        delay_ms = self._outside.transit_ms(self.id.peer, to.peer)
        if delay_ms is not None:
            self._clock.later(delay_ms, self._answer_arrives, (to, shard, event))

    def _answer_arrives(self, answer: tuple[ReplicaId, ShardId, ev.Event]) -> None:
        to, shard, event = answer
        receiver = self.peers[to.peer].process
        if receiver is not None and receiver.id.replica == to:
            self._world.events += 1
            receiver.take(shard, event)

    # -------------------------------------------------------------- loads
    def load_batches(self, load: LoadBatches) -> None:
        """From the own store, a moment later."""
        self._clock.later(1, self._batches_loaded, load)

    def _batches_loaded(self, load: LoadBatches) -> None:
        if self.dead:
            return
        self._world.events += 1
        store = self.peer.disk.shards[load.shard]
        batches = store.read(load.epoch, load.begin, load.end, load.bytes_max)
        event: ev.Event
        if batches:
            event = ev.BatchesLoaded(
                replica=load.replica, epoch=load.epoch, begin=load.begin, batches=batches
            )
        else:
            self.found_damage(load.shard, load.epoch)
            event = ev.BatchesUnavailable(replica=load.replica, epoch=load.epoch, begin=load.begin)
        self.take(load.shard, event)

    def found_damage(self, shard: ShardId, epoch: Epoch) -> None:
        """A batch of the own store failed its checksum: the LAS hears of it."""
        self._las.holder(self, shard, epoch, whole=False)

    def load_table(self, load: LoadTable) -> None:
        """The own table, a moment later."""
        self._clock.later(1, self._table_loaded, load)

    def _table_loaded(self, load: LoadTable) -> None:
        if self.dead:
            return
        self._world.events += 1
        table = self.peer.disk.shards[load.shard].load_table(load)
        if table is not None:
            self.take(load.shard, ev.TableLoaded(token=load.token, table=table))
        else:
            self.take(load.shard, ev.TableUnavailable(token=load.token, answered=True))

    def fetch_table(self, load: FetchTable) -> None:
        """Ask another peer for its table."""
        delay_ms = self._outside.transit_ms(self.id.peer, load.source.peer)
        source = self.peers[load.source.peer].process
        if delay_ms is None or source is None or source.id.replica != load.source:
            lost = ev.TableUnavailable(token=load.token, answered=False)
            self._clock.later(FETCH_LOST_MS, self._give_up, (load.shard, lost))
        else:
            self._clock.later(delay_ms, source.table_asked, (self, load))
            lost = ev.TableUnavailable(token=load.token, answered=False)
            self._clock.later(ANSWER_LOST_MS, self._give_up, (load.shard, lost))

    def _give_up(self, lost: tuple[ShardId, ev.Event]) -> None:
        self.take(*lost)

    def table_asked(self, call: tuple["Process", FetchTable]) -> None:
        """Another peer asks for the table."""
        load = call[1]
        if self.dead:
            return  # the caller gives it up by itself
        self._world.events += 1
        asked = ev.TableAsked(
            request=self.ask(self._table_answered, call),
            as_of=load.as_of,
            or_later=load.or_later,
            since=load.since,
        )
        self.take(load.shard, asked)

    def _table_answered(self, call: object, reply: Reply) -> None:
        if isinstance(reply, TableAnswer):
            caller, load = cast(tuple[Process, FetchTable], call)
            event: ev.Event = ev.TableUnavailable(token=load.token, answered=True)
            if reply.table is not None:
                event = ev.TableFetched(token=load.token, table=reply.table)
            delay_ms = self._outside.transit_ms(self.id.peer, caller.id.peer)
            if delay_ms is not None:
                self._clock.later(delay_ms, caller.answered, (load.shard, event))

    def answered(self, answer: tuple[ShardId, ev.Event]) -> None:
        """The answer to a call of this very process."""
        self._world.events += 1
        self.take(*answer)

    # -------------------------------------------------------------- the map
    def learn(self, learned: tuple[Shard, int]) -> None:
        """An entry of the committed map, as of a version of it. What is older is ignored."""
        entry, version = learned
        shard = entry.shard
        if self.dead or version <= self.versions.get(shard, -1):
            return
        if self.registered_version is None or version < self.registered_version:
            entry = _without_releases(entry)
        self._world.events += 1
        self.maps[shard] = entry
        self.versions[shard] = version
        if shard in self.replicas:
            self.take(shard, ev.MapLearned(shard=entry, now=self.tick()))
        elif self._concerns_me(entry):
            self.core(shard)
        for segment in entry.sealed:
            wanted = self.id.replica in segment.wanted_holders
            if wanted and self.id.replica not in segment.holders:
                self._copy_soon(shard, segment.epoch)
        if self._world.options.releases_per_s:
            stored = self.peer.disk.shards[shard].state
            for epoch in holding.lacking(entry, stored, self.id.replica):
                self._las.holder(self, shard, epoch, whole=False)

    def _concerns_me(self, entry: Shard) -> bool:
        mine = self.id.replica
        prepared = (entry.prepared,) if entry.prepared is not None else ()
        return any(
            mine in segment.plan.replicas
            or mine in segment.holders
            or mine in segment.wanted_holders
            for segment in (*entry.sealed, entry.open, *prepared)
        )

    # -------------------------------------------------------------- copies (§8)
    def _copy_soon(self, shard: ShardId, epoch: Epoch) -> None:
        key = (shard, epoch)
        if key not in self._copying:
            self._copying[key] = self._clock.now
            self._clock.later(COPY_PAUSE_MS, self._copy, key)

    def _copy(self, key: tuple[ShardId, Epoch]) -> None:
        """The next slice of a copy; or the report that it is whole."""
        shard, epoch = key
        if self.paused_until > self._clock.now:
            self._clock.at(self.paused_until + 1, self._copy, key)
            return
        segment = self._wanted(shard, epoch)
        if self.dead or segment is None or segment.begin is None or segment.end is None:
            self._copying.pop(key, None)
            return
        store = self.peer.disk.shards[shard]
        here = store.state.segments.get(epoch)
        trimmed_to = self.maps[shard].trimmed_to
        at = min(here.end, segment.end) if here is not None else segment.begin
        at = max(at, min(trimmed_to, segment.end))
        if any(place[0] == epoch for place in store.damaged):
            # What was here before is read back first, and does not pass.
            self._clock.later(COPY_AGAIN_MS, self._copy, key)
            return
        release = segment.release_of(self.id.replica)
        looked = release is None or self._looked.get(key, -1) >= release.version
        if looked and here is not None and here.seal == segment.end == here.end:
            self._las.holder(self, shard, epoch, whole=True)
            self._clock.later(COPY_AGAIN_MS, self._copy, key)
            return
        if not looked:
            at = segment.end  # the store says first what is here, behind what it was told to drop
        batches = self._fetch(shard, segment, at) if at < segment.end else ()
        if batches is None:
            self._clock.later(COPY_AGAIN_MS, self._copy, key)
            return
        fill = FillSealed(
            shard=shard,
            epoch=epoch,
            begin=segment.begin,
            end=segment.end,
            open_epoch=self.maps[shard].open.epoch,
            batches=batches,
            trimmed_to=trimmed_to,
        )
        self._filling[key] = fill, self.versions[shard]
        self.submit(fill)
        self._clock.later(2 * COPY_PAUSE_MS, self._copy, key)

    def _filled(self, fill: FillSealed) -> None:
        """What was found there is what was there after all that was queued before."""
        key = (fill.shard, fill.epoch)
        last, version = self._filling.get(key, (None, 0))
        if last is fill:
            self._looked[key] = version
            del self._filling[key]

    def looked(self, shard: ShardId, epoch: Epoch) -> int:
        """With which version of the map it last looked what it has of a sealed segment."""
        return self._looked.get((shard, epoch), -1)

    def _wanted(self, shard: ShardId, epoch: Epoch) -> Segment | None:
        """The sealed segment, if the map still wants it here."""
        mine = self.id.replica
        for segment in self.maps[shard].sealed:
            if segment.epoch == epoch:
                wanted = mine in segment.wanted_holders and mine not in segment.holders
                return segment if wanted else None
        return None

    def _fetch(
        self, shard: ShardId, segment: Segment, at: Offset
    ) -> tuple[PlacedBatch, ...] | None:
        """A slice from the first holder that gives it; None: nobody does now."""
        for holder in segment.holders:
            source = self.peers[holder.peer].process
            lost = self._outside.transit_ms(self.id.peer, holder.peer) is None
            if source is None or source is self or lost or source.id.replica != holder:
                continue
            if source.paused_until > self._clock.now:
                continue
            batches = source.give_copy(shard, segment.epoch, at)
            if batches:
                self._world.events += 1
                return batches
        return None

    def give_copy(self, shard: ShardId, epoch: Epoch, at: Offset) -> tuple[PlacedBatch, ...]:
        """For another store's copy: all of a sealed segment may go out, read or not."""
        replica = self.replicas.get(shard)
        here = replica.stored.segments.get(epoch) if replica is not None else None
        if here is None or here.seal is None or at < here.first:
            return ()
        store = self.peer.disk.shards[shard]
        batches = store.read(epoch, at, min(here.end, here.seal), COPY_BYTES)
        if not batches and at < here.end:
            self.found_damage(shard, epoch)
        return batches

    # -------------------------------------------------------------- appends
    def refusal_of_host(self, shard: ShardId) -> Refusal | None:
        """Why an append does not even get to the core."""
        if shard not in self.replicas:
            text = f"{self.id.peer} stores nothing of shard {shard}"
            return Refusal(reason=Reason.NOT_PRIMARY, message=text)
        if self.peer.disk.full:
            text = f"the store of {self.id.peer} has reached its reserve"
            return Refusal(reason=Reason.DISK_RESERVE, message=text)
        return None


def _without_releases(entry: Shard) -> Shard:
    if not any(segment.released for segment in entry.sealed):
        return entry
    return replace(entry, sealed=tuple(replace(segment, released=()) for segment in entry.sealed))


LOADS: dict[type, Callable[[Process, Load], None]] = {
    LoadBatches: lambda process, load: process.load_batches(cast(LoadBatches, load)),
    LoadTable: lambda process, load: process.load_table(cast(LoadTable, load)),
    FetchTable: lambda process, load: process.fetch_table(cast(FetchTable, load)),
}
"""How each kind of load is carried out: a new one is one entry."""
