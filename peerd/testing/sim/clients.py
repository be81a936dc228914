"""Clients of a run: they append until they are told, and read what they may.

A producer sends each batch again and again, to whoever may be primary, until an answer comes; a
client without a producer id sends once, and again only when it is told that nothing was taken. A
conditional append names the end that its client believes in, and the next attempt another one.
Readers go through the log from its begin, or look at what some store has of some epoch.

After any refusal that leaves the outcome open, or says that nothing was taken, it tries again.
"""

from typing import cast

from peerd.core.batch import NO_PRODUCER, BatchHeader, PlacedBatch
from peerd.core.effects import AppendAccepted, AppendRefused, Reply, TailAnswered
from peerd.core.errors import Reason, Refusal, Taken
from peerd.core.events import AppendRequested, TailAsked
from peerd.core.ids import Epoch, NodeName, Offset, ProducerId, ShardId
from peerd.core.limits import PRODUCER_WINDOW_BATCHES
from peerd.testing.sim import serving
from peerd.testing.sim.checkers import BrokenPromise, Sent
from peerd.testing.sim.fleet import Fleet
from peerd.testing.sim.network import Network
from peerd.testing.sim.options import SILENCE_MS
from peerd.testing.sim.process import Process
from peerd.testing.sim.splits import Splits, key_of
from peerd.testing.sim.world import World

PATIENCE_MS = (60, 120, 300)
"""A client waits so long for an answer before it sends the batch again."""
AGAIN_MS = 20
"""After a refusal it sends again after this."""
GIVE_UP_MS = 1_500
"""A client without a producer id believes that its append was lost after this."""
SEND_FOR_MS = 600
"""In a run that forgets producers no batch is sent again after this. It may be under way for some
hundred milliseconds more; what waits for a process that is paused counts for no time there."""
SILENT_MS_MIN = SILENCE_MS - 300
"""Who was silent for less is not forgotten; clocks that jump ahead make a primary see a little more
time than passes."""
RENEWED_FROM = 1_000
"""Producers that begin anew are numbered from here on."""
NAP_MS = (2_000, 5_000)
NAPS = 0.08
"""In such a run, how long producers stop now and then, and after which share of their batches."""
LOST_FOR_EVER = frozenset({Reason.PRODUCER_STATE_LOST, Reason.SEQUENCE_TOO_OLD})
"""Answers that a producer that keeps its window never gets while any holder lives, but for the
first where a kept tail is lost or producers are forgotten, and the second on an attempt that came a
window late: by then another one had its answer."""


class Producer:
    """One producer of one shard; `name` empty: a client without a producer id."""

    __slots__ = (
        "answered", "ended", "heir", "key_hash", "leader", "made", "maker", "moved", "name",
        "next_sequence", "number", "outstanding", "sent_at", "shard", "split",
    )  # fmt: skip

    def __init__(self, shard: ShardId, number: int, *, anonymous: bool) -> None:
        self.shard = shard
        self.number = number
        low, high = number & 0xFF, number >> 8
        name = bytes([shard, low, high, low]) * 4 if high else bytes([shard, low]) * 8
        self.name = NO_PRODUCER if anonymous else ProducerId(name)
        self.next_sequence = 0
        self.made = 0
        self.outstanding: dict[bytes, Sent] = {}
        self.leader: NodeName | None = None
        self.key_hash = 0
        self.maker = b"%d.%d" % (shard, number)
        """Names what it appends; a producer of a child goes on under the parent's name."""
        self.sent_at = 0
        self.answered = False
        self.split = False
        self.ended = False
        self.heir: Producer | None = None
        self.moved: dict[bytes, int] = {}
        """Records that go to a child, and their counts, once everything here is answered."""

    def keeps_its_window(self) -> bool:
        """Whether the oldest batch without an answer is less than W batches back (§3.1)."""
        oldest = next(iter(self.outstanding), None)
        if oldest is None:
            return True
        return self.made - int(oldest.rpartition(b":")[2]) < PRODUCER_WINDOW_BATCHES


Caller = tuple[Producer, Sent, NodeName, int]
"""Who waits for an answer: the last is the number of the attempt."""


class Clients:
    """All producers and readers."""

    def __init__(self, world: World, fleet: Fleet, network: Network, splits: Splits) -> None:
        self._world = world
        self._splits = splits
        self._clock = world.clock
        self._fleet = fleet
        self._network = network
        self._names = tuple(fleet.peers)
        self.producers: list[Producer] = []
        self._read_at: dict[ShardId, Offset] = {}
        self._arrives: dict[NodeName, int] = {}
        self._stopped = False
        self._renewed = 0

    def start(self, shards: tuple[ShardId, ...]) -> None:
        """Begin to append and to read."""
        options = self._world.options
        for shard in shards:
            self._read_at[shard] = Offset(0)
            for number in range(options.producers + 1):
                producer = Producer(shard, number, anonymous=number == 0)
                if options.splits:
                    producer.key_hash = self.key_in(shard, number)
                self.producers.append(producer)
                self._clock.later(1 + int(self._world.random() * 50), self._make, producer)
        if options.reads_per_s:
            self._clock.later(20, self._read, None)

    def stop(self) -> None:
        """Make nothing new; what is outstanding is still sent until it is answered."""
        self._stopped = True

    def unanswered(self, but_of: set[ShardId]) -> str:
        """What is still to be done, in words; empty if nothing is."""
        for producer in self.producers:
            if producer.outstanding and producer.shard not in but_of:
                first = next(iter(producer.outstanding.values()))
                return f"{first} to shard {producer.shard} has no answer"
        return ""

    # -------------------------------------------------------------- appending
    def _pause_ms(self) -> int:
        options = self._world.options
        mean_ms = 1_000 * (options.producers + 1) / options.appends_per_s
        return 1 + int(self._world.random() * 2 * mean_ms)

    def _make(self, producer: Producer) -> None:
        """Append something new, now and again later."""
        if self._stopped or producer.split or producer.ended:
            return
        self._clock.later(self._rest_ms(producer), self._make, producer)
        if len(producer.outstanding) < self._world.options.window and producer.keeps_its_window():
            self.append(producer)

    def _rest_ms(self, producer: Producer) -> int:
        """Until a producer makes its next batch."""
        if self._world.options.forgetful and producer.name and self._world.draws(NAPS):
            return self._world.rng.randint(*NAP_MS)
        return self._pause_ms()

    def append(self, producer: Producer, *, probe: bool = False) -> None:
        """One new batch; a probe has no condition that it could lose."""
        world = self._world
        book = world.checks[producer.shard].book
        draw = world.random()
        sent = Sent(
            shard=producer.shard,
            producer=producer.name,
            first_sequence=producer.next_sequence if producer.name else 0,
            record_count=1 if draw < 0.6 else 2 if draw < 0.85 else 5,
            payload=b"%b:%d" % (producer.maker, producer.made),
            key_hash=producer.key_hash,
            floor=book.acked_end,
        )
        conditional = world.options.conditional
        if conditional and not probe and world.random() < conditional:
            sent.expected.append(book.acked_end)
        producer.made += 1
        self._send_first(producer, sent)
        if world.options.forgetful and sent.producer and world.troubled and not probe:
            self._clock.later(SEND_FOR_MS, self._stop_sending, (producer, sent))

    def _send_first(self, producer: Producer, sent: Sent) -> None:
        world = self._world
        world.checks[producer.shard].book.sent[sent.payload] = sent
        producer.next_sequence += sent.record_count
        producer.outstanding[sent.payload] = sent
        sent.silent_ms = self._clock.now - producer.sent_at
        world.events += 1
        self._attempt(producer, sent)
        if not sent.producer:
            self._clock.later(GIVE_UP_MS, self._give_up, (producer, sent))

    def _attempt(self, producer: Producer, sent: Sent) -> None:
        """To whoever may be primary; only the newest attempt is followed by another."""
        world = self._world
        sent.attempts += 1
        producer.sent_at = self._clock.now
        name = producer.leader
        if name is None or (world.troubled and world.random() < 0.05):
            name = self._names[int(world.random() * len(self._names))]
        delay_ms = self._network.client_transit_ms()
        if delay_ms is not None:
            when = self._clock.now + delay_ms
            if world.options.ordered:
                when = self._arrives[name] = max(when, self._arrives.get(name, 0))
            expected = sent.expected[-1] if sent.expected else None
            caller = (producer, sent, name, sent.attempts)
            self._clock.at(when, self._arrive, (caller, expected))
        if sent.producer:
            patience_ms = PATIENCE_MS[int(world.random() * len(PATIENCE_MS))]
            self._clock.later(patience_ms, self._send_again, (producer, sent, sent.attempts))

    def _send_again(self, attempt: tuple[Producer, Sent, int]) -> None:
        """No answer came in time: somebody else may be primary."""
        producer, sent, number = attempt
        if sent.attempts == number and sent.payload in producer.outstanding:
            producer.leader = None
            self._attempt(producer, sent)

    def _give_up(self, attempt: tuple[Producer, Sent]) -> None:
        attempt[0].outstanding.pop(attempt[1].payload, None)
        self._follow_split(attempt[0])

    def _arrive(self, arrived: tuple[Caller, Offset | None]) -> None:
        caller, expected = arrived
        producer, sent, name, _ = caller
        process = self._fleet.peers[name].process
        if process is None:
            return
        self._world.events += 1
        refusal = process.refusal_of_host(producer.shard)
        if refusal is not None:
            self._refused(caller, refusal, None)
            return
        header = BatchHeader(
            record_count=sent.record_count,
            payload_crc=0,
            key_hash_low=sent.key_hash,
            key_hash_high=sent.key_hash,
            producer=sent.producer,
            first_sequence=sent.first_sequence,
            payload_bytes=len(sent.payload),
        )
        request = AppendRequested(
            request=process.ask(self._replied, caller),
            header=header,
            payload=sent.payload,
            expected_offset=expected,
            now_ms=process.wall_ms(),
            now=process.tick(),
        )
        process.take(producer.shard, request)

    def _replied(self, caller: object, reply: Reply) -> None:
        """A core answered; the answer is on its way to the client, if the network lets it."""
        waiting = cast(Caller, caller)
        if isinstance(reply, AppendAccepted):
            sent = waiting[1]
            self._world.checks[reply.shard].acknowledged(sent, reply)
        delay_ms = self._network.client_transit_ms()
        if delay_ms is not None:
            self._clock.later(delay_ms, self._answered, (waiting, reply))

    def _answered(self, answer: tuple[Caller, Reply]) -> None:
        caller, reply = answer
        producer, sent, name, _ = caller
        self._world.events += 1
        if isinstance(reply, AppendAccepted):
            producer.outstanding.pop(sent.payload, None)
            producer.answered = True
            producer.leader = name
            self._follow_split(producer)
        elif isinstance(reply, AppendRefused):
            leader = reply.refusal.leader
            self._refused(caller, reply.refusal, leader.peer if leader is not None else None)

    def _refused(self, caller: Caller, refusal: Refusal, leader: NodeName | None) -> None:
        producer, sent, _, number = caller
        answered = sent.payload not in producer.outstanding
        late = answered and refusal.reason is Reason.SEQUENCE_TOO_OLD
        if refusal.reason in LOST_FOR_EVER and not late:
            self._state_lost(producer, sent, refusal.reason)
            return
        if refusal.taken is Taken.NO:
            sent.not_taken += 1
        if refusal.reason is Reason.SPLIT:
            self._told_split(producer, sent)
            return
        if refusal.reason is Reason.OFFSET_MISMATCH and refusal.first_offset is not None:
            sent.expected.append(refusal.first_offset)
        if refusal.reason not in {Reason.OFFSET_MISMATCH, Reason.SEQUENCE_GAP}:
            producer.leader = leader
        if sent.attempts == number and (sent.producer or refusal.taken is Taken.NO):
            self._clock.later(AGAIN_MS, self._try_again, (producer, sent, number))

    def _state_lost(self, producer: Producer, sent: Sent, reason: Reason) -> None:
        """§3.1: nobody knows the past any more, so the producer ends: all is unknown to it."""
        if sent.payload not in producer.outstanding:
            return
        forgotten = reason is Reason.PRODUCER_STATE_LOST and self._may_be_forgotten(producer, sent)
        if not forgotten:
            book = self._world.checks[producer.shard].book
            book.log()
            if reason is not Reason.PRODUCER_STATE_LOST or not book.holes:
                text = f"{sent} of producer {producer.number} is refused: {reason.name}"
                raise BrokenPromise(f"G4: {text}")
        self._end(producer)

    def _may_be_forgotten(self, producer: Producer, sent: Sent) -> bool:
        """Whether it was silent for long, or is so new that nobody has met it: without its first
        batch nothing tells it from one that was forgotten.
        """
        if self._fleet.map_of(producer.shard).gaps or self._world.options.gaps:
            return True  # whoever had its state may be lost
        if not self._world.options.forgetful or sent.first_sequence == 0:
            return False
        oldest = next(iter(producer.outstanding.values()))
        return oldest.silent_ms >= SILENT_MS_MIN or not producer.answered

    def _stop_sending(self, attempt: tuple[Producer, Sent]) -> None:
        """Nobody sends a batch again for so long that it could have been forgotten."""
        producer, sent = attempt
        if sent.payload in producer.outstanding:
            self._end(producer)

    def _end(self, producer: Producer) -> None:
        """What is outstanding is unknown; where producers are forgotten, another one goes on."""
        producer.outstanding.clear()
        self._follow_split(producer)
        if producer.ended or producer.split:
            return
        producer.ended = True
        if self._world.options.forgetful:
            self._renewed += 1
            heir = Producer(producer.shard, RENEWED_FROM + self._renewed, anonymous=False)
            heir.key_hash = producer.key_hash
            self.producers.append(heir)
            self._clock.later(self._pause_ms(), self._make, heir)

    def _try_again(self, attempt: tuple[Producer, Sent, int]) -> None:
        """Where the refusal pointed, or anywhere."""
        producer, sent, number = attempt
        if sent.attempts == number and sent.payload in producer.outstanding:
            self._attempt(producer, sent)

    def demand_answers(self) -> None:
        """Each append is answered, or its process died: nobody waits where nobody leads."""
        for peer in self._fleet.alive():
            process = peer.process
            if process is None or process.paused_until > self._clock.now:
                continue
            for caller in process.waiting(self._replied):
                producer, sent, name, _ = cast(Caller, caller)
                replica = process.replicas.get(producer.shard)
                if replica is None or not replica.is_primary:
                    raise BrokenPromise(f"G10: {sent} was never answered by {name}")

    # -------------------------------------------------------------- splits
    def key_in(self, shard: ShardId, number: int) -> int:
        """A key of the shard for a producer of this number."""
        entry = self._fleet.map_of(shard)
        return entry.key_hash_low + key_of(number) % (entry.key_hash_high - entry.key_hash_low + 1)

    def _told_split(self, producer: Producer, sent: Sent) -> None:
        """The shard does not have the batch and never will; a child gets it."""
        if sent.payload not in producer.outstanding:
            return
        producer.split = True
        if sent.producer:
            self._splits.note_refused(producer.shard, sent.payload)
        del producer.outstanding[sent.payload]
        producer.moved[sent.payload] = sent.record_count
        self._follow_split(producer)

    def _follow_split(self, producer: Producer) -> None:
        """Go on in the child, once nothing that was sent here is without an answer (G8)."""
        if not producer.split or producer.outstanding or producer.heir is not None:
            return
        child = self._splits.home_of(self._fleet.map_of(producer.shard), producer.key_hash)
        if child is None:
            raise BrokenPromise(f"G4: SPLIT was said of shard {producer.shard}, which is not split")
        heir = Producer(child, producer.number, anonymous=not producer.name)
        heir.maker, heir.made, heir.key_hash = producer.maker, producer.made, producer.key_hash
        producer.heir = heir
        moved = sorted(producer.moved.items(), key=lambda item: int(item[0].rpartition(b":")[2]))
        producer.moved.clear()
        self.producers.remove(producer)
        self.producers.append(heir)
        self._read_at.setdefault(child, Offset(0))
        book = self._world.checks[child].book
        for payload, record_count in moved:
            sent = Sent(
                shard=child,
                producer=heir.name,
                first_sequence=heir.next_sequence if heir.name else 0,
                record_count=record_count,
                payload=payload,
                key_hash=heir.key_hash,
                floor=book.acked_end,
            )
            self._send_first(heir, sent)
        self._clock.later(self._pause_ms(), self._make, heir)

    # -------------------------------------------------------------- reading
    def _read(self, _: None) -> None:
        """One read of some store."""
        options, world = self._world.options, self._world
        self._clock.later(1 + int(2_000 * world.random() / options.reads_per_s), self._read, None)
        processes = [peer.process for peer in self._fleet.alive() if peer.process is not None]
        if not processes:
            return
        process = processes[int(world.random() * len(processes))]
        shard = world.rng.choice(tuple(self._read_at))
        world.events += 1
        draw = world.random()
        if draw < 0.2:
            self._ask_tail(process, shard)
        elif draw < 0.7:
            self._read_on(process, shard)
        else:
            self._read_some_epoch(process, shard)

    def _ask_tail(self, process: Process, shard: ShardId) -> None:
        """Ask for the linearizable tail; most processes answer that they are not primary."""
        if shard in process.replicas:
            floor = self._world.checks[shard].book.acked_end
            request = process.ask(self._tail_answered, (shard, floor))
            process.take(shard, TailAsked(request=request, now=process.tick()))

    def _tail_answered(self, asked: object, reply: Reply) -> None:
        shard, floor = cast(tuple[ShardId, Offset], asked)
        if isinstance(reply, TailAnswered) and reply.tail is not None:
            self._world.events += 1
            self._world.checks[shard].tail_answered(floor, reply.epoch, reply.tail)

    def _read_on(self, process: Process, shard: ShardId) -> None:
        """Go on where the last read of the shard ended, wherever that was."""
        offset = self._read_at[shard]
        entry = process.maps.get(shard)
        if entry is not None and offset < entry.kept_from:
            # A gap is told; the reader goes on behind it.
            self._world.checks[shard].told_trimmed(entry.kept_from)
            self._read_at[shard] = entry.kept_from
            return
        gap = entry.gap_at(offset) if entry is not None else None
        if gap is not None:
            offset = self._read_at[shard] = gap.end
        found = self._served(process, shard, offset)
        if found is not None:
            epoch, batches = found
            self._world.checks[shard].read(epoch, offset, batches)
            self._read_at[shard] = batches[-1].end

    def _served(
        self, process: Process, shard: ShardId, offset: Offset
    ) -> tuple[Epoch, tuple[PlacedBatch, ...]] | None:
        """From the process's store, or through it from the tier."""
        entry = process.maps.get(shard)
        if entry is not None and offset < entry.trimmed_to:
            return self._fleet.tier.read(entry, offset)
        return serving.read(process, shard, offset)

    def _read_some_epoch(self, process: Process, shard: ShardId) -> None:
        replica = process.replicas.get(shard)
        if replica is None or not replica.stored.segments:
            return
        segments = replica.stored.segments
        epoch = self._world.rng.choice(sorted(segments))
        found = serving.read_epoch(process, shard, epoch)
        if found is not None:
            self._world.checks[shard].read(epoch, *found)

    def read_all(self, shard: ShardId) -> Offset:
        """Read the whole log from whichever stores give it; where that ends."""
        offset, moved = self._fleet.map_of(shard).kept_from, True
        while moved:
            moved = False
            for peer in self._fleet.alive():
                if peer.process is None:
                    continue
                while (found := self._served(peer.process, shard, offset)) is not None:
                    epoch, batches = found
                    self._world.checks[shard].read(epoch, offset, batches)
                    offset, moved = batches[-1].end, True
            behind = self._world.checks[shard].book.holes.get(offset, offset)
            offset, moved = behind, moved or behind > offset
        return offset
