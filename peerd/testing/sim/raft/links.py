"""Streams between members: `las.raft.links` on a simulated network.

One stream for each ordered pair, dialled by the sender: both say Hello, which `las.raft` checks,
and then frames go one way. In an *ordered* run a stream is what TCP makes of it: nothing is lost or
overtakes while it stands, a partition holds it up, and sooner or later breaks it. Else each frame
goes its own way, is lost, late or comes twice: more than gRPC would do, and nothing may rest on it.

Frames travel as bytes.
"""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from las.internal.v1 import raft_pb2
from las.raft.errors import RaftError
from las.raft.links import HELLO_TIMEOUT_S, REDIAL_S_MAX, REDIAL_S_MIN, check_hello
from las.raft.member import RaftMember
from peerd.core.ids import NodeName

if TYPE_CHECKING:
    from peerd.testing.sim.raft.group import RaftGroup
    from peerd.testing.sim.raft.process import Process

RETRANSMIT_MS = 50
"""What was lost on a stream is sent again after this; what comes behind it waits."""
BREAKS = 0.1
"""Share of the losses that break a stream; the others hold it up."""
BREAK_MS = (100, 600, 3_000)
"""For how long a partition holds a stream up before it breaks."""
RESET_MS = (1, 5, 40)
"""How long until the sender notices that the other process is gone."""

Frame = raft_pb2.RaftFrame


class Stream:
    """One stream from one process to another: `frames` are on their way, in order."""

    __slots__ = ("arrives", "broken", "frames", "held_since", "receiver", "sender")

    def __init__(self, sender: "Process", receiver: "Process") -> None:
        self.sender = sender
        self.receiver = receiver
        self.broken = False
        self.frames: deque[tuple[int, bytes]] = deque()
        self.arrives = 0
        self.held_since: int | None = None


class Link:
    """One ordered pair of members; dials again and again while a process runs at its begin."""

    def __init__(self, group: "RaftGroup", source: str, target: str) -> None:
        self._group = group
        self._world = group.world
        self._clock = group.world.clock
        self._source = source
        self._target = target
        self._stream: Stream | None = None
        self._dials = 0
        self._pause_s = REDIAL_S_MIN

    @property
    def stands(self) -> bool:
        """Whether frames can leave."""
        return self._stream is not None

    # ------------------------------------------------------------------ dialling
    def restart(self) -> None:
        """A process has begun at the source."""
        self._stream = None
        self._pause_s = REDIAL_S_MIN
        self._dial(self._next())

    def _next(self) -> int:
        self._dials += 1
        return self._dials

    def _redial(self, *, was_up: bool) -> None:
        self._pause_s = REDIAL_S_MIN if was_up else min(2 * self._pause_s, REDIAL_S_MAX)
        pause_ms = int(1_000 * self._pause_s * self._world.rng.uniform(0.5, 1.0))
        self._clock.later(pause_ms, self._dial, self._next())

    def _dial(self, number: int) -> None:
        source = self._group.process(self._source)
        if number != self._dials or source is None:
            return
        self._clock.later(int(HELLO_TIMEOUT_S * 1_000), self._timed_out, number)

        def told(hello: Frame | RaftError) -> None:
            if isinstance(hello, Frame):
                hello.hello.receiver = self._target
                self._carry(self._source, self._target, lambda: self._called(number, source, hello))

        source.call(RaftMember.hello, told)

    def _carry(self, one: str, other: str, then: Callable[[], None]) -> None:
        network, world = self._group.network, self._world
        link = network.links[NodeName(one), NodeName(other)]
        if not link.cut:
            lost_ms = RETRANSMIT_MS if world.draws(world.options.loss) else 0
            self._clock.later(network.delay_ms() + link.slow_ms + lost_ms, lambda _: then(), None)

    def _called(self, number: int, source: "Process", first: Frame) -> None:
        """At the target: `RaftServicer.Exchange`."""
        target = self._group.process(self._target)
        if target is None:
            self._carry(self._target, self._source, lambda: self._refused(number))
            return

        def greet(member: RaftMember) -> Frame:
            answer = member.hello()
            answer.hello.receiver = self._source
            check_hello(first, name=self._source, own=answer.hello)
            member.meet(self._source, first)
            return answer

        def greeted(answer: Frame | RaftError) -> None:
            if not isinstance(answer, Frame):
                self._group.refused(self._target, answer)
                self._carry(self._target, self._source, lambda: self._refused(number))
                return
            stream = Stream(source, target)
            target.streams[self._source] = stream
            text = answer.SerializeToString(deterministic=True)
            self._carry(
                self._target, self._source, lambda: self._answered(number, stream, first, text)
            )

        target.call(greet, greeted)

    def _answered(self, number: int, stream: Stream, first: Frame, text: bytes) -> None:
        """At the source again: `OutgoingLink._greet`."""
        source = stream.sender
        if number != self._dials or source.is_over:
            return
        answer = Frame.FromString(text)

        def met(error: RaftError | None) -> None:
            if number != self._dials or source.is_over:
                return
            if error is not None:
                self._group.refused(self._source, error)
                self._refused(number)
                return
            self._stream = stream
            self._dials += 1
            source.post(lambda member: member.link_up(self._target))
            if stream.receiver.is_over:
                self.lost(stream)

        def meet(member: RaftMember) -> None:
            check_hello(answer, name=self._target, own=first.hello)
            member.meet(self._target, answer)

        source.call(meet, met)

    def _timed_out(self, number: int) -> None:
        if number == self._dials:
            self._refused(number)

    def _refused(self, number: int) -> None:
        if number == self._dials and self._group.process(self._source) is not None:
            self._redial(was_up=False)

    # ------------------------------------------------------------------ the stream
    def target_ended(self) -> None:
        """The process at the target is gone; the source will notice."""
        if self._stream is not None:
            self.lost(self._stream)

    def lost(self, stream: Stream) -> None:
        """The stream is over for both sides; the sender notices a little later."""
        stream.broken = True
        stream.frames.clear()
        self._clock.later(self._world.rng.choice(RESET_MS), self._notice, stream)

    def _notice(self, stream: Stream) -> None:
        if self._stream is not stream or stream.sender.is_over:
            return
        self._stream = None
        stream.sender.post(lambda member: member.link_down(self._target))
        self._redial(was_up=True)

    def put(self, payload: bytes) -> None:
        """Send a frame; without a stream it is lost."""
        stream = self._stream
        if stream is None or stream.broken:
            return
        if self._world.options.ordered:
            lost = self._world.draws(self._world.options.loss)
            if lost and self._world.rng.random() < BREAKS:
                self.lost(stream)
                return
            delay_ms = self._delay_ms() + (RETRANSMIT_MS if lost else 0)
            stream.arrives = max(stream.arrives, self._clock.now + delay_ms)
            stream.frames.append((stream.arrives, payload))
            if len(stream.frames) == 1:
                self._clock.at(stream.arrives, self._pump, stream)
            return
        copies = 2 if self._world.draws(self._world.options.repeat) else 1
        for _ in range(copies):
            if not self._world.draws(self._world.options.loss):
                self._clock.later(self._delay_ms(), self._alone, (stream, payload))

    def _delay_ms(self) -> int:
        network = self._group.network
        return network.delay_ms() + network.links[self._pair].slow_ms

    @property
    def _pair(self) -> tuple[NodeName, NodeName]:
        return NodeName(self._source), NodeName(self._target)

    def _is_cut(self) -> bool:
        return bool(self._group.network.links[self._pair].cut)

    def _alone(self, sent: tuple[Stream, bytes]) -> None:
        stream, payload = sent
        if not self._is_cut():
            self._arrive(stream, payload)

    def _pump(self, stream: Stream) -> None:
        """The next frames of a stream are due; a partition holds them up."""
        now = self._clock.now
        if stream.broken:
            return
        if self._is_cut():
            if stream.held_since is None:
                stream.held_since = now
            if now - stream.held_since > self._world.rng.choice(BREAK_MS):
                self.lost(stream)
            else:
                self._clock.later(RETRANSMIT_MS, self._pump, stream)
            return
        stream.held_since = None
        while stream.frames and stream.frames[0][0] <= now and not stream.broken:
            self._arrive(stream, stream.frames.popleft()[1])
        if stream.frames:
            self._clock.at(stream.frames[0][0], self._pump, stream)

    def _arrive(self, stream: Stream, payload: bytes) -> None:
        receiver = stream.receiver
        if receiver.is_over:
            return
        if receiver.streams.get(self._source) is not stream:
            # Another one took its place: this one ends as soon as it is heard of again.
            if not stream.broken:
                self.lost(stream)
            return
        self._world.events += 1
        frame = Frame.FromString(payload)
        receiver.post(lambda member: member.receive(self._source, frame))
