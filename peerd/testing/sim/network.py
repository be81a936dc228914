"""The network between peers, and between them and the LAS: what is under way, late, twice or lost.

A link goes one way. In an *ordered* run it carries a stream: messages keep their order, a loss
breaks the stream, and whatever was under way with it is lost, as with TCP. Else each message goes
its own way, and may come twice.

`ARRIVALS` says which event each kind of message becomes: a new message is one entry.
"""

from collections.abc import Callable
from typing import cast

from peerd.core import events as ev
from peerd.core.effects import Send
from peerd.core.ids import NodeName, ReplicaId
from peerd.core.messages import Ack, Adopt, Begin, ConfirmEpoch, Expect, Frame, Message, Ready
from peerd.testing.sim.process import Peer, Process
from peerd.testing.sim.world import World

DELAYS = 256
STREAM_BACK_MS = (5, 60)

Arrival = Callable[[Process, ReplicaId, Message], ev.Event]


def _begin_received(receiver: Process, sender: ReplicaId, message: Message) -> ev.Event:
    begin = cast(Begin, message)
    request = receiver.ask(receiver.begin_answered, (sender, begin.shard))
    return ev.BeginReceived(request=request, sender=sender, message=begin, now=receiver.tick())


def _confirm_received(receiver: Process, sender: ReplicaId, message: Message) -> ev.Event:
    confirm = cast(ConfirmEpoch, message)
    request = receiver.ask(receiver.confirm_answered, (sender, confirm))
    return ev.ConfirmReceived(request=request, message=confirm)


def _plain(event: Callable[..., ev.Event]) -> Arrival:
    return lambda _receiver, sender, message: event(sender=sender, message=message)


ARRIVALS: dict[type, Arrival] = {
    Adopt: _plain(ev.AdoptReceived),
    Frame: _plain(ev.FrameReceived),
    Ack: _plain(ev.AckReceived),
    Expect: _plain(ev.ExpectReceived),
    Ready: _plain(ev.ReadyReceived),
    Begin: _begin_received,
    ConfirmEpoch: _confirm_received,
}

CALLS = frozenset({Ready, Begin, ConfirmEpoch})
"""Messages that go by themselves and not in a stream."""


class Link:
    """One direction between two nodes. `cut` counts the partitions that it lies in."""

    __slots__ = ("arrives", "cut", "receiver", "sender", "slow_ms", "stream")

    def __init__(self, sender: Peer | None, receiver: Peer | None) -> None:
        self.sender = sender
        self.receiver = receiver
        self.cut = 0
        self.slow_ms = 0
        self.arrives = 0
        self.stream = 0


Flight = tuple[Link, int, ReplicaId, Send]


class Network:
    """All links. Names of LAS nodes may stand in place of a peer's."""

    def __init__(
        self, world: World, peers: dict[NodeName, Peer], las: tuple[NodeName, ...]
    ) -> None:
        self.links: dict[tuple[NodeName, NodeName], Link] = {}
        self.cut_since = 0
        self._world = world
        self._clock = world.clock
        options = world.options
        self._ordered = options.ordered
        self._loss, self._repeat = options.loss, options.repeat
        base = options.latency_ms
        usual = [base, base, base + 1, 2 * base, 4 * base]
        slow = int(options.slow_messages * DELAYS + 0.5)
        self._healed = [usual[number % len(usual)] for number in range(DELAYS)]
        self._delays = [min(100 * base, 200)] * slow + self._healed[slow:]
        everyone = (*peers, *las)
        for one in everyone:
            for other in everyone:
                if one != other:
                    self.links[one, other] = Link(peers.get(one), peers.get(other))
        for name, peer in peers.items():
            peer.links = {other: self.links[name, other] for other in peers if other != name}

    # -------------------------------------------------------------- messages of cores
    def send(self, process: Process, send: Send) -> None:
        """Put a message on its way."""
        link = process.peer.links.get(send.to.peer)
        if link is None or link.cut:
            return
        world, copies = self._world, 1
        if world.troubled:
            if self._loss and world.random() < self._loss:
                if self._ordered and type(send.message) not in CALLS:
                    self.break_stream(link)
                return
            single = self._ordered and type(send.message) not in CALLS
            if self._repeat and not single and world.random() < self._repeat:
                copies = 2
        for _ in range(copies):
            when = self._clock.now + self.delay_ms() + link.slow_ms
            if self._ordered:
                when = max(when, link.arrives)
                link.arrives = when
            flight = (link, link.stream, process.id.replica, send)
            self._clock.at(when, self._arrive, flight)

    def _arrive(self, flight: Flight) -> None:
        link, stream, sender, send = flight
        if link.cut or (self._ordered and stream != link.stream) or link.receiver is None:
            return
        receiver = link.receiver.process
        if receiver is None or send.to.store != receiver.id.store:
            return
        self._world.events += 1
        message = send.message
        receiver.take(message.shard, ARRIVALS[type(message)](receiver, sender, message))

    # -------------------------------------------------------------- everything else
    def delay_ms(self) -> int:
        """How long a message is under way now."""
        world = self._world
        table = self._delays if world.troubled else self._healed
        return table[int(world.random() * DELAYS)]

    def transit_ms(self, one: NodeName, other: NodeName) -> int | None:
        """How long a call's message takes from `one` to `other`; None: it is lost."""
        link = self.links.get((one, other))
        if link is not None and link.cut:
            return None
        if self._world.draws(self._loss):
            return None
        return self.delay_ms() + (link.slow_ms if link is not None else 0)

    def client_transit_ms(self) -> int | None:
        """The same between a client and anybody."""
        return None if self._world.draws(self._loss) else self.delay_ms()

    # -------------------------------------------------------------- streams and partitions
    def break_stream(self, link: Link) -> None:
        """The stream breaks: what is under way is lost. It comes back if it can."""
        if link.sender is None or link.receiver is None:
            return
        link.stream += 1
        self._clock.later(1, self._stream_down, link)
        back_ms = self._world.rng.choice(STREAM_BACK_MS)
        self._clock.later(1 + back_ms, self._stream_up, (link, link.stream))

    def _stream_down(self, link: Link) -> None:
        if link.sender is not None and link.sender.process is not None and link.receiver:
            link.sender.process.stream_down(link.receiver.replica)

    def _stream_up(self, back: tuple[Link, int]) -> None:
        link, stream = back
        if link.stream != stream or link.cut or link.sender is None or link.receiver is None:
            return
        if link.sender.process is not None and link.receiver.process is not None:
            link.sender.process.stream_up(link.receiver.replica)

    def cut(self, links: list[Link]) -> None:
        """A partition begins."""
        self.cut_since = self._clock.now
        for link in links:
            link.cut += 1

    def mend(self, links: list[Link]) -> None:
        """It ends."""
        for link in links:
            if link.cut:
                link.cut -= 1
                if not link.cut:
                    self.break_stream(link)

    def heal(self) -> None:
        """All partitions end, all links are fast."""
        for link in self.links.values():
            link.slow_ms = 0
            if link.cut:
                link.cut = 0
                self.break_stream(link)
