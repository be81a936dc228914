"""The stage of the shard's scripts: real cores on simulated stores, the real core of the LAS.

Nothing moves by itself: a write is durable when the script says `fsync`, a message arrives when it
says `deliver`. What was said and has not arrived is *in flight*, in the order in which it was said.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from las.core import commands as c
from las.core import recovery
from las.core.apply import apply
from las.core.state import CLOSED_SEGMENTS_LEVEL, GAP_OFFSETS_MIN, ClusterState, NodeState
from peerd.core import effects as e
from peerd.core import events as ev
from peerd.core import messages as m
from peerd.core.batch import NO_PRODUCER, BatchHeader
from peerd.core.durable import FillSealed
from peerd.core.ids import NO_EPOCH, Epoch, NodeName, Offset, ProducerId, RequestId, ShardId, Tick
from peerd.core.limits import Limits
from peerd.core.replica import Replica
from peerd.core.shard_map import Plan, Segment, Shard
from tests.core.words import SimStore
from tests.core.words import process as process_of
from tests.scripts import wording
from tests.scripts.script import Command

SHARD = ShardId(1)
ROUNDS_MAX = 40
"""`settle` is over long before; else something is said again and again for ever."""


@dataclass(slots=True, eq=False)
class Flight:
    """Something said that has not arrived."""

    sender: str
    to: str
    text: str
    arrive: Callable[[], list[str]]

    @property
    def way(self) -> str:
        return f"{self.sender}>{self.to}"


class Actor:
    """A peer: its store, and its process if one runs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.boots = 0
        self.store = SimStore(SHARD)
        self.replica: Replica | None = None
        self.awaited: dict[RequestId, Callable[[e.Reply], Flight]] = {}

    @property
    def process(self):
        return process_of(self.name, self.boots)


class Cast:
    """Everybody on the stage; see the module."""

    def __init__(self) -> None:
        self.actors: dict[str, Actor] = {}
        self.las = ClusterState(cluster_id="scripts")
        self.flights: list[Flight] = []
        self.delivered: dict[str, Flight] = {}
        self.answers: dict[str, recovery.Answer] = {}
        self.reports: list[e.Report] = []
        self.replies: list[e.Reply] = []
        self.now = 0
        self.requests = 0
        self.limits = Limits()

    @property
    def shard(self) -> Shard:
        return self.las.shards[SHARD].shard

    def play(self, command: Command) -> list[str]:
        """Do what a line says; the trace."""
        return getattr(self, f"do_{command.verb}")(command)

    def named(self, words: Iterable[str]) -> list[Actor]:
        listed = list(words)
        if listed in ([], ["all"]):
            return [actor for actor in self.actors.values() if actor.replica is not None]
        return [self.actors[word] for word in listed]

    # -------------------------------------------------------------- processes
    def do_boot(self, command: Command) -> list[str]:
        """boot a b: start processes; a peer's first boot makes its data directory."""
        lines = []
        for name in command.words:
            actor = self.actors.get(name)
            if actor is None:
                actor = self.actors[name] = Actor(name)
            else:
                actor.boots += 1
            actor.replica = Replica(actor.process, actor.store.state, self.limits)
            actor.awaited.clear()
            registered = self.commit(
                c.RegisterNode(
                    name=NodeName(name),
                    store=actor.process.store,
                    boot=actor.process.boot,
                    address=f"{name}:7400",
                    labels=(("host", name),),
                    feature_level=CLOSED_SEGMENTS_LEVEL,
                )
            )
            lines.append(f"{name}: {registered[0]}")
        return lines

    def do_cluster(self, command: Command) -> list[str]:
        """cluster a b c acks=2 spare=d: boot them and the spare ones, create the log, settle."""
        peers = " ".join(command.words)
        self.do_boot(Command(f"boot {peers} {' '.join(command.options.get('spare', ''))}"))
        self.do_create(Command(f"create {peers} acks={command.options['acks']}"))
        self.do_learn(Command("learn all"))
        self.do_settle(Command("settle"))
        return wording.chain(self.shard)

    def do_limits(self, command: Command) -> list[str]:
        """limits name=value: bounds of processes that are booted from now on."""
        values = {name: int(value) for name, value in command.options.items()}
        self.limits = Limits(**values)
        return ["ok"]

    def do_crash(self, command: Command) -> list[str]:
        """crash a: the process is gone, and what was not durable with it."""
        for actor in self.named(command.words):
            actor.replica = None
            actor.store.crash()
        return ["ok"]

    def do_lose(self, command: Command) -> list[str]:
        """lose a: the data directory is gone for good."""
        for name in command.words:
            del self.actors[name]
        return ["ok"]

    def tell(self, actor: Actor, event: ev.Event) -> list[str]:
        """Give a process an event; what follows from it goes where it belongs."""
        if actor.replica is None:
            return [f"{actor.name} is dead"]
        step = actor.replica.handle(event)
        for operation in step.persist:
            actor.store.submit(operation)
        for send in step.send:
            self.flights.append(self.flight_of(actor, send))
        for load in step.load:
            self.flights.append(self.load_flight(actor, load))
        for reply in step.reply:
            if reply.request in actor.awaited:
                self.flights.append(actor.awaited.pop(reply.request)(reply))
        self.reports.extend(step.report)
        self.replies.extend(step.reply)
        return wording.step(actor.name, step)

    def do_fsync(self, command: Command) -> list[str]:
        """fsync a b: what is queued now is durable, as one group, and the core hears of it."""
        lines = []
        for actor in self.named(command.words):
            for outcome in actor.store.commit():
                why = getattr(outcome, "why", None)
                if why is not None:
                    told = wording.operation(outcome.operation)
                    lines.append(f"{actor.name} does not {told}: {why}")
                lines += self.tell(actor, ev.WriteDone(outcome=outcome))
        return lines or ["nothing"]

    def do_tick(self, command: Command) -> list[str]:
        """tick 500 a b: time passes for everybody; these processes notice."""
        self.now += int(command.words[0])
        lines = []
        for actor in self.named(command.words[1:]):
            lines += self.tell(actor, ev.Ticked(now=Tick(self.now)))
        return lines or ["nothing"]

    # -------------------------------------------------------------- messages
    def flight_of(self, actor: Actor, send: e.Send) -> Flight:
        to, message, sender = send.to.peer, send.message, actor.process.replica
        text = wording.message(message)
        if isinstance(message, m.Begin):
            return Flight(actor.name, to, text, lambda: self.begin(actor.name, to, message))
        if isinstance(message, m.ConfirmEpoch):
            return Flight(actor.name, to, text, lambda: self.confirm(actor.name, to, message))
        kinds = {
            m.Adopt: ev.AdoptReceived,
            m.Frame: ev.FrameReceived,
            m.Ack: ev.AckReceived,
            m.Expect: ev.ExpectReceived,
            m.Ready: ev.ReadyReceived,
        }
        event = kinds[type(message)](sender=sender, message=message)
        return Flight(actor.name, to, text, lambda: self.arrive(to, event))

    def arrive(self, to: str, event: ev.Event) -> list[str]:
        actor = self.actors.get(to)
        return [f"{to} is lost"] if actor is None else self.tell(actor, event)

    def call(self, to: str, answered: Callable[[e.Reply], Flight]) -> RequestId:
        self.requests += 1
        request = RequestId(self.requests)
        if to in self.actors:
            self.actors[to].awaited[request] = answered
        return request

    def begin(self, sender: str, to: str, message: m.Begin) -> list[str]:
        def answered(reply: e.Reply) -> Flight:
            assert isinstance(reply, e.BeginAnswer)
            event = ev.BeginAnswered(
                sender=process_of(to, 0).replica,
                epoch=reply.epoch,
                begun=reply.begun,
                promised=reply.promised,
            )
            return Flight(to, sender, wording.reply(reply), lambda: self.arrive(sender, event))

        event = ev.BeginReceived(
            request=self.call(to, answered),
            sender=process_of(sender, 0).replica,
            message=message,
            now=Tick(self.now),
        )
        return self.arrive(to, event)

    def confirm(self, sender: str, to: str, message: m.ConfirmEpoch) -> list[str]:
        def answered(reply: e.Reply) -> Flight:
            assert isinstance(reply, e.ConfirmAnswer)
            event = ev.EpochConfirmed(
                sender=process_of(to, 0).replica,
                epoch=message.epoch,
                round=reply.round,
                promised=reply.promised,
                now=Tick(self.now),
            )
            return Flight(to, sender, wording.reply(reply), lambda: self.arrive(sender, event))

        return self.arrive(to, ev.ConfirmReceived(request=self.call(to, answered), message=message))

    def load_flight(self, actor: Actor, load: e.Load) -> Flight:
        name, text = actor.name, wording.load(load)
        if isinstance(load, e.LoadBatches):
            batches = actor.store.read(load.epoch, load.begin, load.end, load.bytes_max)
            facts = {"replica": load.replica, "epoch": load.epoch, "begin": load.begin}
            event: ev.Event = ev.BatchesLoaded(batches=batches, **facts)
            if not batches:
                event = ev.BatchesUnavailable(**facts)
            return Flight(name, name, text, lambda: self.arrive(name, event))
        if isinstance(load, e.FetchTable):
            return Flight(name, load.source.peer, text, lambda: self.fetch_table(name, load))

        def loaded() -> list[str]:
            table = actor.store.load_table(load)
            if table is None:
                return self.arrive(name, ev.TableUnavailable(token=load.token, answered=True))
            return self.arrive(name, ev.TableLoaded(token=load.token, table=table))

        return Flight(name, name, text, loaded)

    def fetch_table(self, name: str, load: e.FetchTable) -> list[str]:
        source = load.source.peer
        if source not in self.actors or self.actors[source].replica is None:
            return self.arrive(name, ev.TableUnavailable(token=load.token, answered=False))

        def answered(reply: e.Reply) -> Flight:
            assert isinstance(reply, e.TableAnswer)
            event: ev.Event = ev.TableUnavailable(token=load.token, answered=True)
            if reply.table is not None:
                event = ev.TableFetched(token=load.token, table=reply.table)
            return Flight(source, name, wording.reply(reply), lambda: self.arrive(name, event))

        asked = ev.TableAsked(
            request=self.call(source, answered),
            as_of=load.as_of,
            or_later=load.or_later,
            since=load.since,
        )
        return self.arrive(source, asked)

    def do_deliver(self, command: Command) -> list[str]:
        """deliver a>b: what is in flight now arrives; all, or what goes these ways. `drop=a>b`
        loses what goes that way.
        """
        lost = command.options.get("drop", "").split(",")
        taken, self.flights = self.flights, []
        lines = []
        for flight in taken:
            if flight.way in lost:
                lines.append(f"lost {flight.way} {flight.text}")
            elif command.words and flight.way not in command.words:
                self.flights.append(flight)
            else:
                self.delivered[flight.way] = flight
                lines.append(f"{flight.way} {flight.text}")
                lines += [f"  {line}" for line in flight.arrive()]
        return lines or ["nothing"]

    def do_again(self, command: Command) -> list[str]:
        """again a>b: what arrived last on that way arrives once more."""
        flight = self.delivered[command.words[0]]
        return [f"{flight.way} {flight.text}", *(f"  {line}" for line in flight.arrive())]

    def do_flights(self, _command: Command) -> list[str]:
        """flights: what is in flight."""
        return [f"{each.way} {each.text}" for each in self.flights] or ["nothing"]

    def do_settle(self, _command: Command) -> list[str]:
        """settle: fsync and deliver until nothing is left; only what is told to clients, the LAS
        and operators is shown.
        """
        lines: list[str] = []
        for _ in range(ROUNDS_MAX):
            busy = bool(self.flights)
            lines += self.do_deliver(Command("deliver"))
            for actor in self.named(()):
                busy = busy or bool(actor.store.queue)
                lines += self.do_fsync(Command(f"fsync {actor.name}"))
            if not busy:
                break
        else:
            raise AssertionError("it does not settle")
        shown = (" answers #", " reports ", " notes ")
        return [line.strip() for line in lines if any(word in line for word in shown)] or ["ok"]

    def do_down(self, command: Command) -> list[str]:
        """down a>b: a's stream to b breaks."""
        return self._stream(command, ev.StreamDown)

    def do_up(self, command: Command) -> list[str]:
        """up a>b: it is there again."""
        return self._stream(command, ev.StreamUp)

    def _stream(self, command: Command, kind: type) -> list[str]:
        lines = []
        for way in command.words:
            one, other = way.split(">")
            event = kind(replica=process_of(other, 0).replica)
            lines += self.tell(self.actors[one], event)
        return lines or ["ok"]

    # -------------------------------------------------------------- clients
    def do_append(self, command: Command) -> list[str]:
        """append a: a client sends a batch; producer=, seq=, count=, expected=."""
        options = command.options
        self.requests += 1
        producer = options.get("producer")
        named = ProducerId(producer.encode() * 16) if producer else NO_PRODUCER
        header = BatchHeader(
            record_count=int(options.get("count", 1)),
            payload_crc=0,
            producer=named,
            first_sequence=int(options.get("seq", 0)),
            payload_bytes=1,
        )
        expected = options.get("expected")
        event = ev.AppendRequested(
            request=RequestId(self.requests),
            header=header,
            payload=b"x",
            expected_offset=None if expected is None else Offset(int(expected)),
            now_ms=1_000 + self.now,
            now=Tick(self.now),
        )
        told = self.tell(self.actors[command.words[0]], event)
        return [f"request #{event.request}", *told]

    def do_tail(self, command: Command) -> list[str]:
        """tail a: a client asks for the linearizable tail."""
        self.requests += 1
        event = ev.TailAsked(request=RequestId(self.requests), now=Tick(self.now))
        return [f"request #{event.request}", *self.tell(self.actors[command.words[0]], event)]

    def do_read(self, command: Command) -> list[str]:
        """read a 1: up to where a may serve epoch 1."""
        replica = self.actors[command.words[0]].replica
        assert replica is not None
        limit = replica.readable_limit(Epoch(int(command.words[1])))
        return ["has nothing of it" if limit is None else f"serves up to {limit}"]

    def do_status(self, command: Command) -> list[str]:
        """status a: what it is, and what its store has."""
        lines = []
        for actor in self.named(command.words):
            role = "dead"
            if actor.replica is not None:
                primary = actor.replica.is_primary
                hint = actor.replica.leader_hint
                role = f"primary of {actor.replica.epoch}" if primary else "replica"
                role += f", committed {actor.replica.committed}"
                role += f", leader {hint.peer}" if hint and not primary else ""
            lines.append(f"{actor.name}: {role}; {wording.stored(actor.store.state)}")
        return lines

    # -------------------------------------------------------------- the LAS
    def commit(self, command: c.Command) -> list[str]:
        self.las, result = apply(self.las, command)
        text = result.text or "ok"
        return [text if result.ok else f"refused: {result.reason}: {text}"]

    def do_create(self, command: Command) -> list[str]:
        """create a b c acks=2: the log with its one shard; a is the first primary."""
        peers = tuple(NodeName(each) for each in command.words)
        return self.commit(
            c.CreateLog(
                name="log",
                copies=len(peers),
                acks=int(command.options.get("acks", 2)),
                nodes=peers,
                rows=(tuple(range(len(peers))),),
            )
        )

    def do_map(self, _command: Command) -> list[str]:
        """map: the committed entry of the shard."""
        return wording.chain(self.shard)

    def do_learn(self, command: Command) -> list[str]:
        """learn a b: these processes get the committed map."""
        lines = []
        for actor in self.named(command.words):
            lines += self.tell(actor, ev.MapLearned(shard=self.shard, now=Tick(self.now)))
        return lines or ["nothing"]

    def plan_of(self, command: Command) -> Plan:
        options = command.options
        return Plan(
            primary=self.actors[command.words[0]].process,
            voters=tuple(process_of(each, 0).replica for each in options["voters"]),
            non_voters=tuple(process_of(each, 0).replica for each in options.get("non", "")),
            acks=int(options.get("acks", self.shard.open.plan.acks)),
        )

    def do_prepare(self, command: Command) -> list[str]:
        """prepare b voters=bc: commit the segment after the open one."""
        return self.commit(
            c.PrepareSegment(
                shard=SHARD, epoch=self.shard.open.epoch, plan=self.plan_of(command), why="asked"
            )
        )

    def do_split(self, command: Command) -> list[str]:
        """split a voters=abc key=99: prepare the closed segment that splits the shard there."""
        return self.commit(
            c.PrepareSplit(
                shard=SHARD,
                epoch=self.shard.open.epoch,
                key_hash=int(command.options["key"]),
                plan=self.plan_of(command),
                why="asked",
            )
        )

    def reported(self, kind: type) -> e.Report:
        return next(each for each in reversed(self.reports) if isinstance(each, kind))

    def do_opened(self, _command: Command) -> list[str]:
        """opened: the LAS commits the newest report that a segment opened."""
        told = self.reported(e.SegmentOpened)
        assert isinstance(told, e.SegmentOpened)
        return self.commit(
            c.SegmentOpened(shard=SHARD, epoch=told.epoch, begin=told.begin, holders=told.holders)
        )

    def do_withdraw(self, _command: Command) -> list[str]:
        """withdraw: the LAS commits the newest report that a segment was declined."""
        told = self.reported(e.Declined)
        assert isinstance(told, e.Declined)
        return self.commit(
            c.WithdrawSegment(shard=SHARD, epoch=told.prepared, declined_by=told.process)
        )

    def do_fence(self, _command: Command) -> list[str]:
        """fence: draw a fence over what is open and prepared."""
        prepared = self.shard.prepared
        return self.commit(
            c.FenceSegment(
                shard=SHARD,
                epoch=self.shard.open.epoch,
                prepared=prepared.epoch if prepared else NO_EPOCH,
                why="asked",
            )
        )

    def do_ask(self, command: Command) -> list[str]:
        """ask b c: the LAS asks these voters, or all, to promise the standing fence."""
        shard = self.shard
        voters = [each.peer for each in recovery.voters_to_ask(shard)]
        for name in command.words or voters:
            if name in self.actors:
                self.flights.append(self.promise_flight(name, shard))
        return [f"asked {' '.join(command.words or voters)}"]

    def promise_flight(self, name: str, shard: Shard) -> Flight:
        prepared = shard.prepared.epoch if shard.prepared else NO_EPOCH

        def answered(reply: e.Reply) -> Flight:
            assert isinstance(reply, e.PromiseAnswered)

            def heard() -> list[str]:
                self.answers[name] = recovery.Answer(
                    replica=process_of(name, 0).replica,
                    promised=reply.promised,
                    open=_answer(reply.open),
                    prepared=_answer(reply.prepared),
                )
                return []

            return Flight(name, "las", wording.reply(reply), heard)

        def arrive() -> list[str]:
            request = self.call(name, answered)
            return self.arrive(
                name,
                ev.PromiseReceived(
                    request=request, fence=shard.fence, epoch=shard.open.epoch, prepared=prepared
                ),
            )

        return Flight("las", name, f"promise {shard.fence}", arrive)

    def do_begun(self, command: Command) -> list[str]:
        """begun b 2: the LAS asks b whether it has begun 2."""
        self.requests += 1
        event = ev.HasBegunAsked(
            request=RequestId(self.requests), epoch=Epoch(int(command.words[1]))
        )
        return self.tell(self.actors[command.words[0]], event)

    def do_decide(self, _command: Command) -> list[str]:
        """decide: what follows from the answers that came."""
        decision = recovery.decide(self.shard, self.answers.values())
        if isinstance(decision, recovery.Wait):
            return [f"wait for {decision.need} of {wording.names(decision.lacking)}"]
        if isinstance(decision, recovery.Contradiction):
            return [f"{decision.replica.peer} contradicts: {decision.why}"]
        parts = [("ended", decision.ended)]
        if decision.ended_prepared is not None:
            parts.append(("the prepared one ended", decision.ended_prepared))
        return [
            f"{word} at {part.end}, known commit {part.known_commit}, "
            f"holders {wording.names(part.holders)}"
            for word, part in parts
        ]

    def do_open(self, command: Command) -> list[str]:
        """open b voters=bc: finish the fence as decided."""
        decision = recovery.decide(self.shard, self.answers.values())
        if not isinstance(decision, recovery.Recovered):
            return self.do_decide(command)
        return self.commit(
            c.OpenSegment(
                shard=SHARD,
                fence=self.shard.fence,
                plan=self.plan_of(command),
                ended=decision.ended,
                ended_prepared=decision.ended_prepared,
            )
        )

    def do_risk(self, command: Command) -> list[str]:
        """risk a: the LAS takes a for a node at risk."""
        return self.commit(c.SetAtRisk(node=NodeName(command.words[0]), at_risk=True))

    def do_gone(self, command: Command) -> list[str]:
        """gone a b: the LAS takes these nodes for down."""
        lines = []
        for name in command.words:
            node = self.las.nodes[NodeName(name)]
            down = c.SetNodeState(node=node.name, boot=node.boot, state=NodeState.DOWN)
            lines += self.commit(down)
        return lines

    def do_recover(self, command: Command) -> list[str]:
        """recover c voters=cd: a person gives up the voters that have not answered."""
        decision = recovery.decide_with_gap(self.shard, self.answers.values())
        assert isinstance(decision, recovery.Recovered)
        asked = recovery.voters_to_ask(self.shard)
        return self.commit(
            c.RecoverWithGap(
                shard=SHARD,
                fence=self.shard.fence,
                plan=self.plan_of(command),
                ended=decision.ended,
                ended_prepared=decision.ended_prepared,
                resume_at=Offset(decision.begin + GAP_OFFSETS_MIN),
                given_up=tuple(each for each in asked if each.peer not in self.answers),
                why="both disks burned",
            )
        )

    def do_trim(self, command: Command) -> list[str]:
        """trim a 1 at=2: trim epoch 1 at 2, or as far as a says that it may be."""
        name, epoch = command.words[0], Epoch(int(command.words[1]))
        limit = self.actors[name].replica.trim_limit(epoch)
        if limit is None:
            return [f"{name} cannot tell"]
        at = min(int(command.options.get("at", limit)), limit)
        trim = c.TrimShard(shard=SHARD, epoch=epoch, trimmed_to=Offset(at))
        return self.commit(trim)

    def do_copy(self, command: Command) -> list[str]:
        """copy b>c 1: c fetches what it lacks of sealed segment 1 from b."""
        one, other = command.words[0].split(">")
        segment = self.sealed(int(command.words[1]))
        target = self.actors[other]
        assert segment.begin is not None
        assert segment.end is not None
        here = target.store.state.segments.get(segment.epoch)
        begin = min(here.end, segment.end) if here is not None else segment.begin
        begin = max(begin, min(self.shard.trimmed_to, segment.end))
        batches = self.actors[one].store.read(segment.epoch, begin, segment.end)
        target.store.submit(
            FillSealed(
                shard=SHARD,
                epoch=segment.epoch,
                begin=segment.begin,
                end=segment.end,
                open_epoch=self.shard.open.epoch,
                batches=batches,
                trimmed_to=self.shard.trimmed_to,
            )
        )
        return self.do_fsync(Command(f"fsync {other}"))

    def do_holder(self, command: Command) -> list[str]:
        """holder c 1: c tells the LAS that it has 1 whole, if its store has."""
        name, segment = command.words[0], self.sealed(int(command.words[1]))
        here = self.actors[name].store.state.segments.get(segment.epoch)
        if here is None or here.end != segment.end:
            return [f"{name} has it not whole"]
        added = c.AddHolder(
            shard=SHARD, epoch=segment.epoch, holder=self.actors[name].process.replica
        )
        return self.commit(added)

    def sealed(self, epoch: int) -> Segment:
        return next(each for each in self.shard.sealed if each.epoch == epoch)


def _answer(answer: e.EpochAnswer | None) -> recovery.EpochAnswer:
    if answer is None or not answer.adopted:
        return recovery.EpochAnswer()
    return recovery.EpochAnswer(
        adopted=True, begin=answer.begin, end=answer.end, commit=answer.commit
    )
