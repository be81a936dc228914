"""Words for tests of the core: peers a, b, c, and a replica that is talked to directly."""

from collections.abc import Iterable
from dataclasses import replace

from peerd.core import events as ev
from peerd.core.batch import NO_PRODUCER, BatchHeader, PlacedBatch
from peerd.core.effects import (
    AppendAccepted,
    AppendRefused,
    LoadBatches,
    LoadTable,
    Note,
    Reply,
    Report,
    Step,
)
from peerd.core.errors import Refusal
from peerd.core.ids import (
    BootId,
    Epoch,
    NodeName,
    Offset,
    ProcessId,
    ProducerId,
    RequestId,
    ShardId,
    StoreId,
    Tick,
)
from peerd.core.limits import Limits
from peerd.core.messages import Ack, Message
from peerd.core.replica import Replica
from peerd.core.shard_map import Plan, Segment, Shard
from peerd.testing.sim.store import SimStore

SHARD = ShardId(1)
PRODUCER = ProducerId(b"p" * 16)


def process(name: str, boot: int = 0) -> ProcessId:
    return ProcessId(NodeName(name), StoreId(f"store-{name}"), BootId(f"boot-{name}-{boot}"))


A, B, C, D = (process(name) for name in "abcd")


def plan(primary: ProcessId = A, voters: str = "abc", acks: int = 2, non_voters: str = "") -> Plan:
    return Plan(
        primary=primary,
        voters=tuple(process(name).replica for name in voters),
        non_voters=tuple(process(name).replica for name in non_voters),
        acks=acks,
    )


def segment(epoch: int, begin: int | None = None, end: int | None = None, **more) -> Segment:
    return Segment(
        epoch=Epoch(epoch),
        plan=more.pop("plan", plan()),
        begin=None if begin is None else Offset(begin),
        end=None if end is None else Offset(end),
        **more,
    )


def shard_map(opened: Segment, *sealed: Segment, **more) -> Shard:
    return Shard(
        shard=SHARD, log="log", key_hash_low=0, key_hash_high=9, open=opened, sealed=sealed, **more
    )


FIRST_MAP = shard_map(segment(1, 0))


def batch(base: int, count: int = 1, payload: bytes = b"x", **header) -> PlacedBatch:
    header = BatchHeader(record_count=count, payload_crc=0, payload_bytes=len(payload), **header)
    return PlacedBatch(base=Offset(base), header=header, payload=payload)


class Peer:
    """One replica on a simulated store that commits only when told, and all that it ever said."""

    def __init__(self, me: ProcessId = A, store: SimStore | None = None, **limits) -> None:
        self.me = me
        self.store = store or SimStore(SHARD)
        self.replica = Replica(me, self.store.state, replace(Limits(), **limits))
        self.now = 0
        self.said = Step()
        self._requests = 100

    # -------------------------------------------------------------- events
    def tell(self, event: ev.Event) -> Step:
        """Give it an event; the store gets what is to be persisted, and waits."""
        step = self.replica.handle(event)
        for operation in step.persist:
            self.store.submit(operation)
        self.said = Step(
            self.said.persist + step.persist,
            self.said.send + step.send,
            self.said.load + step.load,
            self.said.reply + step.reply,
            self.said.report + step.report,
            self.said.note + step.note,
        )
        return step

    def fsync(self) -> None:
        """The store makes everything that is queued durable, and what follows from it, too."""
        while self.store.queue:
            for outcome in self.store.commit():
                self.tell(ev.WriteDone(outcome=outcome))

    def tick(self, ms: int) -> None:
        self.now += ms
        self.tell(ev.Ticked(now=Tick(self.now)))

    def learn(self, shard: Shard) -> None:
        self.tell(ev.MapLearned(shard=shard, now=Tick(self.now)))

    def append(
        self,
        payload: bytes = b"x",
        *,
        count: int = 1,
        sequence: int | None = None,
        expected: int | None = None,
    ) -> RequestId:
        """Ask for an append; with `sequence` by `PRODUCER`, else without a producer."""
        request = self.request()
        header = BatchHeader(
            record_count=count,
            payload_crc=0,
            producer=NO_PRODUCER if sequence is None else PRODUCER,
            first_sequence=sequence or 0,
            payload_bytes=len(payload),
        )
        self.tell(
            ev.AppendRequested(
                request=request,
                header=header,
                payload=payload,
                expected_offset=None if expected is None else Offset(expected),
                now_ms=1_000 + self.now,
                now=Tick(self.now),
            )
        )
        return request

    def ack(self, sender: ProcessId, end: int, epoch: int = 1) -> None:
        message = Ack(shard=SHARD, epoch=Epoch(epoch), end=Offset(end))
        self.tell(ev.AckReceived(sender=sender.replica, message=message))

    def request(self) -> RequestId:
        self._requests += 1
        return RequestId(self._requests)

    def load_own_table(self) -> None:
        """Answer the newest `LoadTable` from the store, as a host does."""
        load = next(load for load in reversed(self.said.load) if isinstance(load, LoadTable))
        table = self.store.load_table(load)
        if table is None:
            self.tell(ev.TableUnavailable(token=load.token, answered=True))
        else:
            self.tell(ev.TableLoaded(token=load.token, table=table))

    # -------------------------------------------------------------- what it said
    def reply(self, request: RequestId) -> Reply | None:
        found = [reply for reply in self.said.reply if reply.request == request]
        assert len(found) <= 1, found
        return found[0] if found else None

    def accepted(self, request: RequestId) -> AppendAccepted:
        reply = self.reply(request)
        assert isinstance(reply, AppendAccepted), reply
        return reply

    def refused(self, request: RequestId) -> Refusal:
        reply = self.reply(request)
        assert isinstance(reply, AppendRefused), reply
        return reply.refusal

    def sent(self, to: ProcessId | None = None, kind: type | None = None) -> list[Message]:
        return [
            send.message
            for send in self.said.send
            if (to is None or send.to == to.replica)
            and (kind is None or isinstance(send.message, kind))
        ]

    def reports(self, kind: type) -> list[Report]:
        return [report for report in self.said.report if isinstance(report, kind)]

    def loads(self) -> list[LoadBatches]:
        return [load for load in self.said.load if isinstance(load, LoadBatches)]

    def notes(self) -> Iterable[Note]:
        return self.said.note

    def forget(self) -> None:
        """What it said until now is not looked at any more."""
        self.said = Step()
